"""The screen in a terminal: it shows events and a status, and does not know the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment, SegmentLines
from rich.style import Style
from rich.text import Text

from ...events import Called, Calling, Event, Failed, Loading, Notice, Ready, Spoke, Turned
from ...format import FRAME_SECONDS
from ...system.words import human_size, printable
from ..keys import KEYS
from .sentences import PAUSE, Flow, call_line, clock, counted, echo_line, stage_line, summary_lines, wrapped
from .status import Screen, Status, Summary

Line = list[Segment]


@dataclass(frozen=True)
class _Glyphs:
    """Characters of the footer. `cells` are the fillings of a meter's cell, from empty to full."""

    cells: str
    peak: str
    separator: str
    pause: str
    done: str
    you: str
    wait: str


_UNICODE = _Glyphs(" ▏▎▍▌▋▊▉█", "│", " · ", "⋯", "✓", "›", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
_ASCII = _Glyphs(" #", "|", " | ", "...", "*", ">", "-\\|/")

_PLAIN = Style.null()
_DIM = Style(dim=True)
_BOLD = Style(bold=True)
_GOOD = Style(color="green")
_LOUD = Style(color="yellow")
_BAD = Style(color="red", bold=True)
_HINT = Style(color="yellow")
_YOU = Style(color="cyan")

_FEW_KEYS = 2  # keys whose help, if it is shown, goes before the last figures when room is short


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
        """Take the largest sample since the last call (0 to 1), and whether a sample was clipped; `now` is in seconds."""
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
        """Return whether a sample was clipped in the last 1.5 seconds."""
        return self._time - self._clipped_at <= self._HOLD

    def draw(self, width: int, glyphs: _Glyphs) -> Line:
        """Return the meter as a bar of `width` cells."""
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


class LiveScreen(Screen):
    """A terminal: Moshi's words scroll by, with meters, figures, hints and keys below them.

    A full line of words is printed for good, so that the user can scroll back to it. The line in progress and everything below
    it are redrawn, about twelve times a second at most.
    """

    _WIDEST = 100  # cells of a line of words; longer ones are hard to read
    _INTERVAL = FRAME_SECONDS

    def __init__(self, console: Console, *, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._glyphs = _UNICODE if console.encoding.lower().startswith("utf") else _ASCII
        # The lines at the bottom of the terminal, which are redrawn; each is shorter than the terminal is wide.
        self._region = SegmentLines([], new_lines=True)
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

    # ---- what is told

    def handle(self, event: Event) -> None:
        """Take an event; the next `tick` shows it."""
        if isinstance(event, Spoke):
            self._spoke(event)
        elif isinstance(event, Loading):
            self._loaded = event.fraction
            if event.seconds is None and event.fraction is None:
                self._loading = (stage_line(event), self._now())
            elif event.seconds is not None:
                self._loading = None
                self._keep(f"{self._glyphs.done} {stage_line(event)}", _DIM)
        elif isinstance(event, Ready):
            self._end_line()
            self._listening, self._last_index = True, None
            if event.conversation > 1:
                self._keep("A new conversation", _BOLD)
            self._keep("")
        elif isinstance(event, Turned):
            self._end_line()
            self._last_index = None
            for line in wrapped(f"{self._glyphs.you} {event.text}", min(self._columns(), self._WIDEST)):
                self._keep(line, _YOU)
        elif isinstance(event, Calling | Called):
            self._end_line()
            self._keep(call_line(event), _HINT if isinstance(event, Called) and event.failed else _DIM)
        elif isinstance(event, Notice):
            self._end_line()
            self._keep(event.message, {"warning": _HINT, "error": _BAD}.get(event.level, _DIM))
        elif isinstance(event, Failed):
            self._end_line()

    def _spoke(self, event: Spoke) -> None:
        if self._last_index is not None:
            pause = (event.index - self._last_index) * FRAME_SECONDS
            if pause > PAUSE:
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
        self._done.append(Text(printable(text), style))

    def help(self) -> None:
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
        """Take the status, and draw unless the last drawing is less than a frame's time ago."""
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
        """Print the line as far as it goes, remove the footer, and show the cursor again."""
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
        """Draw the footer again, also after others have written to the terminal."""
        self.suspend()
        self._width = self._console.width
        self._live = Live(self._region, console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._draw()

    def _columns(self) -> int:
        # Some terminals move on to the next line as soon as a line is full.
        return max(self._console.width - 1, 1)

    def _draw(self) -> None:
        if not self._live:
            return self._print_done()
        lines = self._footer()
        if self._after_resize() or self._done or lines != self._region.lines:
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
        """Remove the rest of the region if the terminal's width has changed since it was drawn; return whether it has."""
        width, self._width = self._width, self._console.width
        if width == self._width:
            return False
        # Most terminals wrap lines that have become too long, and then rich would move up too few lines.
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
        words, keys = self._line_in_progress(width), self._key_line(width)
        *_, least = layouts = list(self._layouts(width))
        between = next((lines for lines in layouts if len(lines) + 2 <= height), least[: max(height - 2, 0)])
        lines = [words, *between, keys][:height]
        return [list(Segment.adjust_line_length(line, width, pad=False)) for line in lines]

    def _layouts(self, width: int) -> Iterator[list[Line]]:
        """Yield layouts of the lines between the words and the keys: first everything, then less for smaller windows."""
        meters, figures, hints = self._status_lines(width)
        sentences, explained = self._help_lines(width) if self._help else ([], [])

        def layout(figure_lines: int, few: int = 0) -> list[Line]:
            """Return the meters, the first lines of figures, the hints, and the help on the first few keys."""
            return [*meters, *figures[:figure_lines], *hints, *(line for lines in sentences[:few] for line in lines)]

        status = layout(len(figures))
        if self._help:
            keys = [line for lines in sentences for line in lines]
            yield [[], *status, [], *keys, *explained]
            yield [*status, *keys, *explained]
            yield [[], *status, [], *keys]
            # All figures stay as long as there is room for the first keys.
            yield from (layout(len(figures), few) for few in range(len(sentences), _FEW_KEYS - 1, -1))
            yield from (layout(count, _FEW_KEYS) for count in range(len(figures), 0, -1))
            yield from (layout(1, few) for few in range(_FEW_KEYS - 1, 0, -1))
        elif status:
            yield [[], *status]
        # The hints say what is wrong now, so they stay; the last figures are the least important.
        yield from (layout(count) for count in range(len(figures), -1, -1))

    def _line_in_progress(self, width: int) -> Line:
        if self._loading:
            doing, since = self._loading
            seconds = self._now() - since
            wait = self._glyphs.wait[int(10 * seconds) % len(self._glyphs.wait)]
            loaded = "" if self._loaded is None else f"  {100 * self._loaded:.0f} %"
            return [Segment(f"{wait} {doing}"), Segment(f"{loaded}  {seconds:.1f} s", _DIM)]
        if self._listening and self._last_index is None:
            muted = self._status is not None and self._status.muted
            return [Segment("Muted: m lets Moshi hear you" if muted else "Moshi is listening", _DIM)]
        line = [Segment(self._flow.line)]
        silence = self._now() - self._spoken_at
        if self._last_index is not None and silence > PAUSE:
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
                line.append(Segment(" " + _shortened(printable(device), left), _DIM))
            cells.append(list(Segment.adjust_line_length(line, room)))
        return [[*cells[0], Segment("  "), *cells[1]]] if columns == 2 else cells

    def _figures(self, status: Status, width: int) -> list[Line]:
        budget = 1000 * FRAME_SECONDS
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
            Segment(counted(status.underruns, "underrun"), _LOUD if status.underruns else _DIM),
        ]
        if status.echo:
            figures.append(Segment(echo_line(status.echo), _DIM))
        if status.memory_active is not None:
            active, cache, peak = map(human_size, (status.memory_active, status.memory_cache, status.memory_peak))
            figures.append(Segment(f"memory {active} + {cache}, peak {peak}", _DIM))
        if status.recording:
            name = printable(PurePath(status.recording).name or status.recording)
            figures.append(Segment(f"recording to {_shortened(name, 24)}", _DIM))
        return _packed(figures, Segment(self._glyphs.separator, _DIM), width)

    def _status_lines(self, width: int) -> tuple[list[Line], list[Line], list[Line]]:
        """Return the lines of the meters, of the figures and of the hints."""
        if not self._status:
            return [], [], []
        hints = [wrapped(f"! {hint}", width) for hint in self._status.hints[:2]]
        return (
            self._meter_lines(self._status, width),
            self._figures(self._status, width),
            [[Segment(line, _HINT)] for lines in hints for line in lines],
        )

    def _help_lines(self, width: int) -> tuple[list[list[Line]], list[Line]]:
        """Return the help: for each key the lines that say what it does, and the lines that explain the figures."""
        sentences: list[list[Line]] = []
        for key in KEYS:
            first, *rest = wrapped(key.sentence, max(width - 8, 1))
            begin: Line = [Segment(f"{key.name:8}", _BOLD), Segment(first)]
            sentences.append([begin, *([Segment(f"{'':8}{line}")] for line in rest)])
        explained = (
            "step: median and 95th percentile of the model's time for a frame, and how long a frame lasts. "
            "echo: how loud Moshi's voice comes back through the microphone, below full scale, and how much of that Moshi "
            "does not hear. memory: MLX's in use + kept for reuse, and the most so far."
        )
        return sentences, [[Segment(line, _DIM)] for line in wrapped(explained, width)]

    def _key_line(self, width: int) -> Line:
        keys = list(KEYS)
        muted = self._status is not None and self._status.muted
        extra = len("un") if muted else 0
        # Help and quit, the last two, always stay.
        while len(keys) > 2 and sum(len(key.name) + len(key.word) + 3 for key in keys) - 2 + extra > width:
            del keys[-3]
        line: Line = []
        for key in keys:
            word = "unmute" if key.word == "mute" and muted else key.word
            line += [Segment("  " if line else ""), Segment(key.name, _BOLD), Segment(f" {word}", _DIM)]
        return line


def _shortened(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width).rstrip()


def _packed(items: Iterable[Segment], separator: Segment, width: int) -> list[Line]:
    """Put items, in order, on lines of at most `width` cells, as many on each as fit."""
    lines: list[Line] = []
    for item in items:
        if lines and Segment.get_line_length([*lines[-1], separator, item]) <= width:
            lines[-1] += [separator, item]
        else:
            lines.append([item])
    return lines
