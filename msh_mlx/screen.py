"""What a person, or another program, sees of a live conversation: reads events and a status, knows nothing of the model."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import TextIO

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from .events import Dropped, EchoState, Event, Failed, Loading, Notice, Ready, Spoke, SpokeWord, Underrun
from .keys import KEYS
from .metrics import EchoFigures
from .ui import printable


@dataclass(frozen=True)
class Status:
    """How a conversation is doing.

    `microphone` and `loudspeaker` are the peaks since the last status, 0 to 1, and whether they were clipped; `step_p50` and
    `step_p95` are in milliseconds, `delay` too (how far Moshi's answer lags behind by what waits in queues); `dropped` is the
    user's sound given up so far, in seconds; memory is MLX's, in bytes. What is not known yet is None. `elapsed` is in seconds;
    `recording` is the folder that is written to; `echo` what is known of the loudspeaker's. `hints` are sentences, the most
    important first.
    """

    elapsed: float = 0.0
    microphone: float = 0.0
    loudspeaker: float = 0.0
    microphone_clipped: bool = False
    loudspeaker_clipped: bool = False
    muted: bool = False
    step_p50: float | None = None
    step_p95: float | None = None
    delay: float | None = None
    dropped: float = 0.0
    underruns: int = 0
    memory_active: int | None = None
    memory_cache: int | None = None
    memory_peak: int | None = None
    input_device: str = ""
    output_device: str = ""
    recording: str = ""
    echo: EchoState | None = None
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Percentiles:
    """How long a stage took, in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class EchoSummary:
    """An echo that was found for so many `seconds`: its level in dB of full scale, and how many dB of it were taken away.

    Both as medians, and the most.
    """

    seconds: float
    level: float
    level_most: float
    removed: float
    removed_most: float

    @classmethod
    def of(cls, figures: EchoFigures) -> EchoSummary | None:
        """Sum up; None if there was no echo."""
        level, loudest = figures.level.median(), figures.level.most()
        removed, most = figures.removed.median(), figures.removed.most()
        if level is None or loudest is None or removed is None or most is None:
            return None
        return cls(figures.found, level, loudest, removed, most)


@dataclass(frozen=True)
class Summary:
    """A conversation that has ended: `seconds` long, of so many `words` of Moshi's.

    `stages` are "encode", "step" and "decode" by name; `dropped` is the user's sound given up, in seconds; `memory_peak` is
    MLX's, in bytes; `echo` is None if there was none; `files` is what was written.
    """

    seconds: float
    words: int
    stages: Mapping[str, Percentiles] = field(default_factory=dict)
    dropped: float = 0.0
    underruns: int = 0
    memory_peak: int | None = None
    echo: EchoSummary | None = None
    files: tuple[str, ...] = ()


class Screen:
    """What is common to all faces of a conversation: a context manager that is told events, and how things are.

    All methods belong to one thread, and none waits for anything but the output. A failure is left to the caller to
    complain about, after the screen has been closed.
    """

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.suspend()

    def handle(self, event: Event) -> None:
        """Show an event. Most have nothing to show."""

    def tick(self, status: Status | None = None) -> None:
        """Show the time passing, and how things are; to be called ten times per second or more often."""

    def say(self, text: str) -> None:
        """Show a line of text."""

    def help(self) -> None:
        """Show what the keys do, or hide it again."""

    def summary(self, summary: Summary) -> None:
        """Show what there is to say at the end."""

    def suspend(self) -> None:
        """Leave the terminal to others; everything that was said is on it."""

    def resume(self) -> None:
        """Take the terminal again."""


def open_screen(*, plain: bool, as_json: bool, out: TextIO, frame_seconds: float) -> Screen:
    """Return the face that fits `out` and what the user wishes; `frame_seconds` is how long a frame lasts."""
    if as_json:
        return JsonScreen(out)
    # A terminal type of termcap's may say by its end that it has no colours; rich does not know that.
    monochrome = os.environ.get("TERM", "").endswith(("-m", "-mono"))
    console = Console(file=out, highlight=False, no_color=True if monochrome else None)
    if plain or not console.is_terminal or console.is_dumb_terminal:
        return PlainScreen(console, frame_seconds=frame_seconds)
    return LiveScreen(console, frame_seconds=frame_seconds)


# ---- numbers and sentences -----------------------------------------------------------------------------------------------

_PAUSE = 2.0  # seconds without a word that are worth showing
_STAGES = {
    "files": ("Looking for the files", "Files found"),
    "loading": ("Loading the model", "Model loaded"),
    "warm-up": ("Warming up", "Warmed up"),
    "connecting": ("Connecting", "Connected"),
    "waiting": ("Waiting for the server to listen", "Server ready"),
}


def _stage(event: Loading) -> str:
    doing, done = _STAGES.get(event.stage, (event.stage.capitalize(), event.stage.capitalize()))
    return printable(doing if event.seconds is None else f"{done} in {event.seconds:.1f} s")


def clock(seconds: float) -> str:
    """Write a length of time as minutes and seconds, and hours if there are any."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "?"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _losses(dropped: float, underruns: int) -> str:
    return f"Dropped {dropped:.2f} s of your speech, {_count(underruns, 'underrun')}"


def _echo(echo: EchoState) -> str:
    if echo.mode == "off":
        return "echo: off"
    if not echo.found or echo.level is None:
        return "no echo"
    return f"echo {round(echo.level)} dB, {round(echo.removed)} dB taken away"


def summary_lines(summary: Summary) -> list[str]:
    """Say what a conversation was like, for people."""
    lines = [f"Talked for {clock(summary.seconds)}: {_count(summary.words, 'word')} of Moshi's"]
    for name, stage in summary.stages.items():
        lines.append(
            f"  {name:7} {stage.p50:7.1f} ms p50 {stage.p95:7.1f} p95 {stage.p99:7.1f} p99 {stage.max:7.1f} max"
        )
    lines.append(_losses(summary.dropped, summary.underruns))
    if summary.memory_peak is not None:
        lines.append(f"Memory: {_bytes(summary.memory_peak)} at most")
    if echo := summary.echo:
        lines.append(
            f"Echo for {clock(echo.seconds)}: {round(echo.level)} dB (most {round(echo.level_most)}), "
            f"{round(echo.removed)} dB taken away (most {round(echo.removed_most)})"
        )
    lines += [f"Written: {file}" for file in summary.files]
    return [printable(line) for line in lines]


def _one_line(text: str) -> str:
    return printable("".join(" " if c.isspace() else c for c in text))


class Flow:
    """Breaks text that comes in pieces into lines."""

    def __init__(self) -> None:
        self.line = ""

    def push(self, text: str, width: int) -> list[str]:
        """Add `text` to the line; return the lines of at most `width` cells that are full."""
        self.line = (self.line + _one_line(text)).lstrip(" ")
        full = []
        while cell_len(self.line.rstrip(" ")) > width:
            # At least a character, even where the terminal is narrower than that.
            room = max(len(chop_cells(self.line[: width + 1], width)[0]), 1)
            # A space right after what there is room for ends its last word.
            end = self.line.rfind(" ", 0, room + 1)
            end = room if end <= 0 else end
            full.append(self.line[:end].rstrip(" "))
            self.line = self.line[end:].lstrip(" ")
        return full

    def flush(self) -> list[str]:
        """Return what is on the line, if anything, and begin a new one."""
        line, self.line = self.line.rstrip(" "), ""
        return [line] if line else []


def _wrapped(text: str, width: int) -> list[str]:
    flow = Flow()
    return [*flow.push(text, width), *flow.flush()]


# ---- a program -----------------------------------------------------------------------------------------------------------


class JsonScreen(Screen):
    """One JSON object a line, for programs. Its `event` is one of

    - `loading`: `stage`, `seconds` (null when it begins)
    - `ready`: `conversation`, from 1
    - `word`: `start` (seconds of this conversation), `text`
    - `dropped`: `seconds`; `underrun`: `count` so far
    - `notice`: `kind`, `level`, `message`; `message`: `text`
    - `status`, about once a second: the fields of `Status`, `echo` those of `EchoState`
    - `failed`: `where`, `message`
    - `summary`: the fields of `Summary`; each of `stages` has `p50`, `p95`, `p99` and `max`, in milliseconds; `echo`, null if
      there was none, those of `EchoSummary`

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
        """Write an event, if it is one of those above."""
        if isinstance(event, Loading):
            if event.fraction is None:
                self._write("loading", {"stage": event.stage, "seconds": event.seconds})
        elif isinstance(event, Ready):
            self._write("ready", {"conversation": event.conversation})
        elif isinstance(event, SpokeWord):
            self._write("word", {"start": round(event.word.start, 3), "text": event.word.text})
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
        """Write the status, unless that was less than a second ago."""
        now = self._now()
        # Ticks are not exactly regular.
        if status and now - self._last_status > 0.95:
            self._last_status = now
            self._write("status", asdict(status))

    def say(self, text: str) -> None:
        """Write a line of text."""
        self._write("message", {"text": text})

    def summary(self, summary: Summary) -> None:
        """Write the summary."""
        stages = {name: asdict(stage) for name, stage in summary.stages.items()}
        self._write("summary", {**asdict(summary), "stages": stages})


# ---- plain lines ---------------------------------------------------------------------------------------------------------

_SENTENCE_ENDS = tuple(".!?…。！？")


class PlainScreen(Screen):
    """Plain lines: Moshi's words, a line for each sentence or what is said without a pause; notices; a summary."""

    _SILENCE = 1.5  # seconds after which a line is not waited for any longer
    _LONGEST = 100
    _PATIENCE = 10.0  # seconds between two lines about losses, or about the echo
    _OTHER = 6.0  # decibels by which what is taken away has to change to be told again

    def __init__(self, console: Console, *, frame_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._frame_seconds = frame_seconds
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

    def say(self, text: str) -> None:
        """Print a line."""
        self._flush()
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(Text(_one_line(text)), soft_wrap=True)

    def _flush(self) -> None:
        line, self._line = self._line.strip(), ""
        if line:
            self._print(f"{self._start:8.2f} s  {line}")

    def handle(self, event: Event) -> None:
        """Print an event, or keep it until its line is complete."""
        if isinstance(event, Spoke):
            self._spoke(event)
        elif isinstance(event, Loading) and event.seconds is not None:
            self.say(_stage(event))
        elif isinstance(event, Ready):
            self.say("Listening" if event.conversation == 1 else "A new conversation")
            self._last_index = 0
        elif isinstance(event, Notice):
            self.say(event.message)
        elif isinstance(event, Failed):
            self._flush()

    def _spoke(self, event: Spoke) -> None:
        new_word = event.text[:1].isspace()
        paused = (event.index - self._last_index) * self._frame_seconds > self._SILENCE
        if paused or (new_word and (self._line.endswith(_SENTENCE_ENDS) or len(self._line) > self._LONGEST)):
            self._flush()
        if not self._line:
            self._start = event.index * self._frame_seconds
        self._line += event.text
        self._last_index, self._spoken_at = event.index, self._now()

    def tick(self, status: Status | None = None) -> None:
        """Print the line after a silence, new hints, what was muted, and from time to time what was lost, and the echo."""
        now = self._now()
        if now - self._spoken_at > self._SILENCE:
            self._flush()
        if not status:
            return
        before, self._status = self._status, status
        if status.muted != before.muted:
            self.say("The microphone is muted" if status.muted else "The microphone is heard")
        for hint in status.hints:
            if hint not in before.hints:
                self.say(hint)
        losses = (status.dropped, status.underruns)
        if losses != self._losses and now - self._losses_at > self._PATIENCE:
            self._losses, self._losses_at = losses, now
            if any(losses):
                self.say(f"{_losses(*losses)} so far")
        if status.echo and self._is_news(status.echo) and now - self._echo_at > self._PATIENCE:
            self._echo, self._echo_at = status.echo, now
            line = _echo(status.echo)
            self.say(line[0].upper() + line[1:])

    def _is_news(self, echo: EchoState) -> bool:
        # Of the mode tells a notice.
        before = self._echo
        return echo.mode != "off" and (echo.found != before.found or abs(echo.removed - before.removed) >= self._OTHER)

    def help(self) -> None:
        """Print what the keys do."""
        for key in KEYS:
            self.say(f"  {key.name:6} {key.sentence}")

    def summary(self, summary: Summary) -> None:
        """Print the summary."""
        for line in summary_lines(summary):
            self.say(line)

    def suspend(self) -> None:
        """Print what is on the line."""
        self._flush()


# ---- a terminal ----------------------------------------------------------------------------------------------------------

Line = list[Segment]


@dataclass(frozen=True)
class _Glyphs:
    """Characters of the footer: parts of a meter's cell from nothing to full, and others."""

    cells: str
    peak: str
    separator: str
    pause: str
    done: str
    wait: str


_UNICODE = _Glyphs(" ▏▎▍▌▋▊▉█", "│", " · ", "⋯", "✓", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
_ASCII = _Glyphs(" #", "|", " | ", "...", "*", "-\\|/")

_PLAIN = Style.null()
_DIM = Style(dim=True)
_BOLD = Style(bold=True)
_GOOD = Style(color="green")
_LOUD = Style(color="yellow")
_BAD = Style(color="red", bold=True)
_HINT = Style(color="yellow")


class Meter:
    """A level with a peak that is held for a while and then falls, on a scale in decibels."""

    _BOTTOM, _LOUD = -60.0, -6.0
    _HOLD = 1.5  # seconds
    _FALL = 30.0  # decibels per second

    def __init__(self) -> None:
        self._level = self._peak = self._BOTTOM
        self._peak_at = self._clipped_at = -math.inf
        self._time = 0.0

    def push(self, level: float, clipped: bool, now: float) -> None:
        """Take the largest sample since the last time (0 to 1), and whether one was clipped, at `now` in seconds."""
        decibels = 20 * math.log10(max(level, 1e-3))
        fallen = self._FALL * max(now - self._time, 0.0)
        self._time = now
        self._level = max(decibels, self._level - fallen, self._BOTTOM)
        if now - self._peak_at > self._HOLD:
            self._peak = max(self._peak - fallen, self._BOTTOM)
        if self._level >= self._peak:
            self._peak, self._peak_at = self._level, now
        if clipped:
            self._clipped_at = now

    @property
    def clipped(self) -> bool:
        """Whether a sample was clipped a short while ago."""
        return self._time - self._clipped_at <= self._HOLD

    def draw(self, width: int, glyphs: _Glyphs) -> Line:
        """Return `width` cells of a bar."""
        steps = len(glyphs.cells) - 1

        def fill(decibels: float) -> int:
            return round(min(1 - decibels / self._BOTTOM, 1.0) * width * steps)

        whole, part = divmod(fill(self._level), steps)
        bar = glyphs.cells[-1] * whole + (glyphs.cells[part] if part else "")
        bar += " " * (width - len(bar))
        mark = min(fill(self._peak) // steps, width - 1)
        if mark and bar[mark] == " ":
            bar = bar[:mark] + glyphs.peak + bar[mark + 1 :]
        loud = fill(self._LOUD) // steps
        return [Segment(bar[:loud], _GOOD), Segment(bar[loud:], _LOUD)]


class _Region:
    """The lines at the bottom of the terminal that change; each is shorter than the terminal is wide."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for index, line in enumerate(self.lines):
            if index:
                yield Segment.line()
            yield from line


class LiveScreen(Screen):
    """A terminal: Moshi's words roll by and stay; below them are meters, figures, hints and keys.

    Lines that are full are printed for good, so that they can be scrolled back to; the line in progress and what is below it is
    redrawn, at most twelve times per second.
    """

    _WIDEST = 100  # cells of a line of words; longer ones are hard to read
    _INTERVAL = 1 / 12.5

    def __init__(self, console: Console, *, frame_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._frame_seconds = frame_seconds
        self._now = now
        self._glyphs = _UNICODE if console.encoding.lower().startswith("utf") else _ASCII
        self._region = _Region()
        self._live: Live | None = None
        self._width = 0
        self._done: list[Text] = []  # to be printed above the region
        self._flow = Flow()
        self._status: Status | None = None
        self._meters = (Meter(), Meter())
        self._loading: tuple[str, float] | None = None
        self._loaded: float | None = None  # the fraction, if it is told
        self._listening = False
        self._last_index: int | None = None  # of the last piece of text
        self._spoken_at = 0.0
        self._help = False
        self._drawn_at = -math.inf

    def __enter__(self) -> LiveScreen:
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        # A terminal that has gone takes nothing any more.
        with suppress(OSError):
            self.suspend()

    # ---- what is told

    def handle(self, event: Event) -> None:
        """Take an event; it is seen with the next `tick`."""
        if isinstance(event, Spoke):
            self._spoke(event)
        elif isinstance(event, Loading):
            self._loaded = event.fraction
            if event.seconds is None and event.fraction is None:
                self._loading = (_stage(event), self._now())
            elif event.seconds is not None:
                self._loading = None
                self._keep(f"{self._glyphs.done} {_stage(event)}", _DIM)
        elif isinstance(event, Ready):
            self._end_line()
            self._listening, self._last_index = True, None
            if event.conversation > 1:
                self._keep("A new conversation", _BOLD)
            self._keep("")
        elif isinstance(event, Notice):
            self._end_line()
            self._keep(event.message, {"warning": _HINT, "error": _BAD}.get(event.level, _DIM))
        elif isinstance(event, Failed):
            self._end_line()

    def _spoke(self, event: Spoke) -> None:
        if self._last_index is not None:
            pause = (event.index - self._last_index) * self._frame_seconds
            if pause > _PAUSE:
                self._end_line()
                self._keep(self._pause(pause), _DIM)
        self._last_index, self._spoken_at = event.index, self._now()
        for line in self._flow.push(event.text, min(self._columns(), self._WIDEST)):
            self._keep(line)

    def _pause(self, seconds: float) -> str:
        return f"  {self._glyphs.pause} {seconds:.0f} s"

    def _end_line(self) -> None:
        for line in self._flow.flush():
            self._keep(line)

    def _keep(self, text: str, style: Style = _PLAIN) -> None:
        self._done.append(Text(_one_line(text), style))

    def say(self, text: str) -> None:
        """Print a line."""
        self._end_line()
        self._keep(text)
        self._draw()

    def help(self) -> None:
        """Show or hide the panel that explains keys and figures."""
        self._help = not self._help
        self._draw()

    def summary(self, summary: Summary) -> None:
        """Print the summary in place of the footer."""
        self.suspend()
        self._keep("")
        for line in summary_lines(summary):
            self._keep(line)
        self._print_done()

    def tick(self, status: Status | None = None) -> None:
        """Take the status, and draw unless that was done a moment ago."""
        now = self._now()
        if status:
            self._status = status
            self._meters[0].push(status.microphone, status.microphone_clipped, now)
            self._meters[1].push(status.loudspeaker, status.loudspeaker_clipped, now)
        if now - self._drawn_at >= self._INTERVAL:
            self._drawn_at = now
            self._draw()

    # ---- the terminal

    def suspend(self) -> None:
        """Print what is on the line and remove the footer; the cursor is shown again."""
        self._end_line()
        live, self._live = self._live, None
        if live:
            try:
                self._after_resize()
            finally:
                live.stop()
                self._region.lines = []
        self._print_done()

    def resume(self) -> None:
        """Draw the footer again; also after something else has written to the terminal."""
        self.suspend()
        self._width = self._console.width
        self._live = Live(self._region, console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._draw()

    def _columns(self) -> int:
        # A line that fills the terminal would make some go on to the next.
        return max(self._console.width - 1, 1)

    def _draw(self) -> None:
        if not self._live:
            return self._print_done()
        before = self._region.lines
        lines = self._footer()
        if self._after_resize() or self._done or lines != before:
            self._region.lines = lines
            if self._done:
                self._print_done()
            else:
                self._live.refresh()
        return None

    def _print_done(self) -> None:
        if self._done:
            lines, self._done = self._done, []
            self._console.print(Group(*lines), soft_wrap=True)

    def _after_resize(self) -> bool:
        """Remove what is left of the region if the terminal has another width than when it was drawn."""
        width, self._width = self._width, self._console.width
        if width == self._width:
            return False
        # Most terminals break lines anew when they become too long; rich would go up too few lines.
        heights = [max(1, -(-Segment.get_line_length(line) // self._width)) for line in self._region.lines]
        extra = sum(heights) - len(heights)
        if extra > 0:
            down = len(heights) - 1
            self._console.file.write(f"\r\x1b[{extra + down}A\x1b[J" + (f"\x1b[{down}B" if down else ""))
        return True

    # ---- the footer

    def _footer(self) -> list[Line]:
        width = self._columns()
        height = max(self._console.height - 1, 1)
        words, status, help_, keys = [self._line_in_progress(width)], [], [], [self._key_line(width)]
        if self._status:
            status += [[], *self._meter_lines(self._status, width), *self._figures(self._status, width)]
            status += [
                [Segment(line, _HINT)] for hint in self._status.hints[:2] for line in _wrapped(f"! {hint}", width)
            ]
        if self._help:
            help_ = self._help_panel(width)
            if len(words + status + help_ + keys) > height:
                status = []
        lines = (words + status + help_ + keys)[:height]
        return [list(Segment.adjust_line_length(line, width, pad=False)) for line in lines]

    def _line_in_progress(self, width: int) -> Line:
        if self._loading:
            doing, since = self._loading
            seconds = self._now() - since
            wait = self._glyphs.wait[int(10 * seconds) % len(self._glyphs.wait)]
            loaded = "" if self._loaded is None else f"  {100 * self._loaded:.0f} %"
            return [Segment(f"{wait} {doing}"), Segment(f"{loaded}  {seconds:.1f} s", _DIM)]
        if self._listening and self._last_index is None:
            return [Segment("Moshi is listening", _DIM)]
        line = [Segment(self._flow.line)]
        silence = self._now() - self._spoken_at
        if self._last_index is not None and silence > _PAUSE:
            pause = self._pause(silence)
            if cell_len(self._flow.line) + cell_len(pause) <= width:
                line.append(Segment(pause, _DIM))
        return line

    def _meter_lines(self, status: Status, width: int) -> list[Line]:
        names = ("mic", status.input_device), ("speaker", status.output_device)
        columns = 2 if width >= 50 else 1
        room = (width - 2 * (columns - 1)) // columns
        cells = []
        for (name, device), meter, muted in zip(names, self._meters, (status.muted, False), strict=True):
            label = name if columns == 2 else f"{name:7}"
            bar = min(max(room - len(label) - 6, 1), 40)
            line = [Segment(label + " ", _DIM)]
            line += [Segment(f"{'muted':{bar}}"[:bar], _BAD)] if muted else meter.draw(bar, self._glyphs)
            line.append(Segment(" CLIP", _BAD) if meter.clipped else Segment("     "))
            left = room - Segment.get_line_length(line) - 1
            if left >= 12:
                line.append(Segment(" " + _shortened(_one_line(device), left), _DIM))
            cells.append(list(Segment.adjust_line_length(line, room)))
        return [[*cells[0], Segment("  "), *cells[1]]] if columns == 2 else cells

    def _figures(self, status: Status, width: int) -> list[Line]:
        budget = 1000 * self._frame_seconds
        if status.step_p50 is None or status.step_p95 is None:
            step = Segment(f"step ? of {budget:.0f} ms", _DIM)
        else:
            slow = status.step_p95 > budget
            text = f"step {status.step_p50:.0f}/{status.step_p95:.0f} of {budget:.0f} ms"
            step = Segment(f"{text} !" if slow else text, _BAD if slow else _DIM)
        figures = [
            Segment(clock(status.elapsed), _BOLD),
            step,
            Segment("delay ?" if status.delay is None else f"delay {status.delay:.0f} ms", _DIM),
            Segment(f"dropped {status.dropped:.1f} s", _LOUD if status.dropped else _DIM),
            Segment(_count(status.underruns, "underrun"), _LOUD if status.underruns else _DIM),
        ]
        if status.echo:
            figures.append(Segment(_echo(status.echo), _DIM))
        if status.memory_active is not None:
            active, cache, peak = map(_bytes, (status.memory_active, status.memory_cache, status.memory_peak))
            figures.append(Segment(f"memory {active} + {cache}, peak {peak}", _DIM))
        if status.recording:
            name = _one_line(PurePath(status.recording).name or status.recording)
            figures.append(Segment(f"recording to {_shortened(name, 24)}", _DIM))
        return _packed(figures, Segment(self._glyphs.separator, _DIM), width)

    def _help_panel(self, width: int) -> list[Line]:
        lines: list[Line] = []
        for key in KEYS:
            first, *rest = _wrapped(key.sentence, max(width - 8, 1))
            lines.append([Segment(f"{key.name:8}", _BOLD), Segment(first)])
            lines += [[Segment(f"{'':8}{line}")] for line in rest]
        explained = (
            "step: median and 95th percentile of the model's time for a frame, and how long a frame lasts. "
            "echo: how loud Moshi's voice comes back through the microphone, below full scale, and how much of that Moshi "
            "does not hear. memory: MLX's in use + kept for reuse, and the most so far."
        )
        return [[], *lines, *([Segment(line, _DIM)] for line in _wrapped(explained, width))]

    def _key_line(self, width: int) -> Line:
        keys = list(KEYS)
        # Help and quit stay as long as there is any room.
        while len(keys) > 2 and sum(len(key.name) + len(key.word) + 3 for key in keys) - 2 > width:
            del keys[-3]
        line: Line = []
        for key in keys:
            line += [Segment("  " if line else ""), Segment(key.name, _BOLD), Segment(f" {key.word}", _DIM)]
        return line


def _shortened(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width).rstrip()


def _packed(items: Iterable[Segment], separator: Segment, width: int) -> list[Line]:
    """Put items on as few lines of at most `width` cells as possible."""
    lines: list[Line] = []
    for item in items:
        if lines and Segment.get_line_length([*lines[-1], separator, item]) <= width:
            lines[-1] += [separator, item]
        else:
            lines.append([item])
    return lines
