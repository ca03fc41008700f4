"""Live speech to text: words from the microphone as they come, and turns."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from time import perf_counter
from typing import TextIO

from ..conversation.transcriber import Transcribed, Transcriber
from ..errors import MshError, NoDeviceError
from ..events import Notice
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE
from ..sound.both import Devices
from ..system.signals import Signals, Stopped
from ..system.words import printable

_WAIT = 0.1  # seconds between two looks at devices and signals, while there is no sound
_AT_ONCE = 16  # frames that are heard at once, if so many wait
_LATE = 1.0  # seconds of sound that may be lost before the user is told, and told again


class Page(ABC):
    """Where the words go."""

    @abstractmethod
    def ready(self) -> None:
        """Say that the microphone is heard from now on."""

    @abstractmethod
    def word(self, word: Transcribed) -> None:
        """Write a word."""

    @abstractmethod
    def turn(self, seconds: float) -> None:
        """End a turn, which was noticed after so many seconds of sound."""

    @abstractmethod
    def note(self, notice: Notice) -> None:
        """Tell what happened to the devices."""


class JsonPage(Page):
    """Writes one JSON object a line, for programs. Its `event` is one of

    - `ready`: words follow
    - `word`: `start` (seconds of sound since `ready`), `text`
    - `turn`: the speaker has ended a turn; `end` is when that was noticed (seconds)
    - `notice`: `kind`, `level`, `message`
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def _write(self, event: str, **fields: object) -> None:
        self._out.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
        self._out.flush()

    def ready(self) -> None:
        self._write("ready")

    def word(self, word: Transcribed) -> None:
        self._write("word", start=round(word.start, 3), text=word.text)

    def turn(self, seconds: float) -> None:
        self._write("turn", end=round(seconds, 3))

    def note(self, notice: Notice) -> None:
        self._write("notice", **vars(notice))


class TextPage(Page):
    """Writes the words of a turn on a line. In a terminal, a long line goes on below without cutting a word.

    What else there is to say is said by `say`.
    """

    def __init__(self, out: TextIO, say: Callable[[str], None], *, terminal: bool) -> None:
        self._out = out
        self._say = say
        self._terminal = terminal
        self._width = 0  # letters on the line

    def ready(self) -> None:
        self._say("Listening. Ctrl-C ends.")

    def word(self, word: Transcribed) -> None:
        text = printable(word.text)
        if self._terminal and self._width + 1 + len(text) > shutil.get_terminal_size().columns:
            self._end_line()
        self._out.write(f" {text}" if self._width else text)
        self._out.flush()
        self._width += len(text) + 1

    def turn(self, seconds: float) -> None:
        self._end_line()

    def note(self, notice: Notice) -> None:
        if self._terminal:
            self._end_line()
        self._say(notice.message)

    def _end_line(self) -> None:
        if self._width:
            self._width = 0
            self._out.write("\n")
            self._out.flush()


def dictate(
    load: Callable[[], Transcriber],
    page: Page,
    signals: Signals,
    *,
    input_device: str | None = None,
    duration: float | None = None,
) -> None:
    """Write down what the microphone hears, for `duration` seconds, or until a signal comes.

    The words of a turn that has ended are written without waiting for the sound behind them; so are the last ones at the end.
    `load` loads the model, after the microphone was opened.

    Raises
    ------
    InputError
        There is no such device, or the model is not usable.
    MshError
        The microphone cannot be opened.
    Stopped
        A signal came; all words have been written.
    """
    with ExitStack() as stack:
        devices = Devices(input_device, None, page.note, alone=True)
        stack.callback(devices.close)
        try:
            devices.open()
        except NoDeviceError as error:
            raise MshError(error.what, "connect one, or give a recording, which needs none") from None
        transcriber = load()
        transcriber.warm_up()
        signals.end_process = True  # without waiting for threads in native code
        signals.defer()
        signals.check()
        devices.microphone.trim(0.0)
        page.ready()
        stopped: Stopped | None = None
        said = False

        def write(words: Iterable[Transcribed]) -> None:
            nonlocal said
            for word in words:
                said = True
                page.word(word)

        microphone, lost, begin = devices.microphone, _lost(devices), perf_counter()
        while duration is None or perf_counter() - begin < duration:
            try:
                signals.check()
            except Stopped as signalled:
                stopped = signalled
                break
            devices.poll()
            count = min(max(1, int(microphone.backlog() / FRAME_SECONDS)), _AT_ONCE)
            pcm = microphone.read(count * FRAME_SIZE, _WAIT)
            if pcm is None:
                continue
            write(transcriber.push(pcm))
            if transcriber.turn_ended:
                write(transcriber.flush())
                if said:
                    page.turn(transcriber.seconds)
                said = False
            if (now := _lost(devices)) - lost > _LATE:
                message = f"{now - lost:.1f} s of sound were lost: this machine is too slow for this model."
                page.note(Notice("dropped", message, "warning"))
                lost = now
        if (rest := microphone.read(int(microphone.backlog() * SAMPLE_RATE), 0.0)) is not None:
            write(transcriber.push(rest))
        write(transcriber.flush())
        if said:
            page.turn(transcriber.seconds)
        if stopped:
            raise stopped


def _lost(devices: Devices) -> float:
    """Return how much sound came while there was no room for it, in seconds."""
    return float(devices.microphone.stats().get("lost", 0)) / SAMPLE_RATE
