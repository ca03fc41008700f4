"""The screen without a terminal: lines of text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ...events import Called, Calling, EchoState, Event, Failed, Loading, Notice, Ready, Spoke, Turned
from ...format import FRAME_SECONDS
from ...system.words import printable
from ..keys import KEYS
from .sentences import call_line, echo_line, lost, stage_line, summary_lines
from .status import Screen, Status, Summary

_SENTENCE_ENDS = tuple(".!?…。！？")


class PlainScreen(Screen):
    """Plain lines: Moshi's words, with a new line after each sentence and each pause; notices; a summary."""

    _SILENCE = 1.5  # seconds without text, after which a line is printed as it is
    _LONGEST = 100  # characters, after which a line ends with the word
    _PATIENCE = 10.0  # seconds between two lines about losses, or about the echo
    _OTHER = 6.0  # decibels by which the removed echo must change for a new line about it

    def __init__(self, console: Console, *, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._line = ""
        self._start = 0.0
        self._spoken_at = 0.0
        self._last_index = 0
        self._status = Status()
        self._losses = (0.0, 0)
        self._losses_at = -math.inf
        self._echo = EchoState("auto")
        self._echo_at = -math.inf

    def _say(self, text: str) -> None:
        """Print a line, below the line of words in progress."""
        self._flush()
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(Text(printable(text)), soft_wrap=True)

    def _flush(self) -> None:
        line, self._line = self._line.strip(), ""
        if line:
            self._print(f"{self._start:8.2f} s  {line}")

    def handle(self, event: Event) -> None:
        """Print an event; keep text until its line is complete."""
        if isinstance(event, Spoke):
            self._spoke(event)
        elif isinstance(event, Loading) and event.seconds is not None:
            self._say(stage_line(event))
        elif isinstance(event, Ready):
            self._say("Listening" if event.conversation == 1 else "A new conversation")
            self._last_index = 0
        elif isinstance(event, Turned):
            self._say(f"{event.index * FRAME_SECONDS:8.2f} s  You: {event.text}")
        elif isinstance(event, Calling | Called):
            self._say(call_line(event))
        elif isinstance(event, Notice):
            self._say(event.message)
        elif isinstance(event, Failed):
            self._flush()

    def _spoke(self, event: Spoke) -> None:
        new_word = event.text[:1].isspace()
        paused = (event.index - self._last_index) * FRAME_SECONDS > self._SILENCE
        if paused or (new_word and (self._line.endswith(_SENTENCE_ENDS) or len(self._line) > self._LONGEST)):
            self._flush()
        if not self._line:
            self._start = event.index * FRAME_SECONDS
        self._line += event.text
        self._last_index, self._spoken_at = event.index, self._now()

    def tick(self, status: Status | None = None) -> None:
        """Print the line after a silence, new hints and mutes, and from time to time losses and the echo."""
        now = self._now()
        if now - self._spoken_at > self._SILENCE:
            self._flush()
        if not status:
            return
        before, self._status = self._status, status
        if status.muted != before.muted:
            self._say("The microphone is muted" if status.muted else "The microphone is heard")
        for hint in status.hints:
            if hint not in before.hints:
                self._say(hint)
        losses = (status.dropped, status.underruns)
        if losses != self._losses and now - self._losses_at > self._PATIENCE:
            self._losses, self._losses_at = losses, now
            if any(losses):
                self._say(f"{lost(*losses)} so far")
        if status.echo and self._is_news(status.echo) and now - self._echo_at > self._PATIENCE:
            self._echo, self._echo_at = status.echo, now
            line = echo_line(status.echo)
            self._say(line[0].upper() + line[1:])

    def _is_news(self, echo: EchoState) -> bool:
        # A change of the mode has a notice of its own.
        before = self._echo
        return echo.mode != "off" and (echo.found != before.found or abs(echo.removed - before.removed) >= self._OTHER)

    def help(self) -> None:
        for key in KEYS:
            self._say(f"  {key.name:6} {key.sentence}")

    def summary(self, summary: Summary) -> None:
        for line in summary_lines(summary):
            self._say(line)

    def suspend(self) -> None:
        self._flush()
