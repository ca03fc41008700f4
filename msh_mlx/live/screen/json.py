"""The screen for programs: one JSON object a line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TextIO

from ...events import (
    Called,
    Calling,
    Dropped,
    Event,
    Failed,
    HeardWord,
    Loading,
    Notice,
    Ready,
    Replied,
    SpokeWord,
    Turned,
    Underrun,
)
from .status import Screen, Status, Summary


class JsonScreen(Screen):
    """Writes one JSON object a line, for programs. Its `event` is one of

    - `loading`: `stage`, `seconds` (null when the stage begins)
    - `ready`: `conversation`, counted from 1
    - `word`: `start` (seconds of this conversation), `text`
    - with a language model, `heard-word`: a word of the user, as `word`; `turn`: the user's turn has ended, `text`; `reply`: an
      answer begins to sound; so many seconds after the user's voice was last there it was `noticed`, `written`, `thought`,
      `made` and `played`, as in `Replied`; `calling`: it calls a tool, with the fields of `Calling`; `called`: that call has
      ended, with the fields of `Called`
    - `dropped`: `seconds`; `underrun`: `count` so far
    - `notice`: `kind`, `level`, `message`
    - `status`, about once a second: the fields of `Status`; `echo` has the fields of `EchoState`
    - `failed`: `where`, `message`
    - `summary`: the fields of `Summary`; each of `stages` has `p50`, `p95`, `p99` and `max`, in milliseconds; `echo` has the
      fields of `EchoSummary`, or is null if there was no echo

    Programs should ignore events and keys that they do not know.
    """

    def __init__(self, out: TextIO, *, now: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._now = now
        self._last_status = -math.inf

    def _write(self, event: str, fields: Mapping[str, object]) -> None:
        self._out.write(json.dumps({"event": event, **fields}) + "\n")
        self._out.flush()

    def handle(self, event: Event) -> None:
        if isinstance(event, Loading):
            if event.fraction is None:
                self._write("loading", {"stage": event.stage, "seconds": event.seconds})
        elif isinstance(event, Ready):
            self._write("ready", {"conversation": event.conversation})
        elif isinstance(event, SpokeWord):
            self._write("word", asdict(event.word))
        elif isinstance(event, HeardWord):
            self._write("heard-word", asdict(event.word))
        elif isinstance(event, Turned):
            self._write("turn", {"text": event.text})
        elif isinstance(event, Replied):
            self._write("reply", event.delays())
        elif isinstance(event, Calling):
            self._write("calling", asdict(event))
        elif isinstance(event, Called):
            self._write("called", asdict(event))
        elif isinstance(event, Dropped):
            self._write("dropped", {"seconds": event.seconds})
        elif isinstance(event, Underrun):
            self._write("underrun", {"count": event.count})
        elif isinstance(event, Notice):
            self._write("notice", asdict(event))
        elif isinstance(event, Failed):
            message = str(event.error) or type(event.error).__name__
            self._write("failed", {"where": event.where, "message": message})

    def tick(self, status: Status | None = None) -> None:
        now = self._now()
        # A little less than a second, since ticks are not exactly regular.
        if status and now - self._last_status > 0.95:
            self._last_status = now
            self._write("status", asdict(status))

    def summary(self, summary: Summary) -> None:
        self._write("summary", asdict(summary))
