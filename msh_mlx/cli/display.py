"""Show the user a conversation with a recording, and the progress of loading and fetching."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from ..conversation.recordings import Began, Ended, RecordingEvent
from ..events import Notice, Said, SpokeWord
from ..format import FRAME_SECONDS
from ..sound.recordings import STDIN_NAME
from ..system.words import human_size, printable


class Display:
    """Shows conversations on `console`, as plain lines or with a progress bar below the words.

    Use it as a context manager: it leaves the terminal as it was. `check` is called with each event and each step of progress.
    It may raise an exception, to end the work.
    """

    def __init__(self, console: Console, *, plain: bool, check: Callable[[], None] = lambda: None) -> None:
        self._console = console
        self._plain = plain
        self._check = check
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._line = ""
        self._begin = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """Print a line of text."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[float], None]]:
        """Show `text` and a percentage in a terminal while the context lasts.

        The context's value is a function: call it with the fraction that is done, 0 to 1.
        """
        if self._plain:
            yield lambda _: self._check()
            return
        with self._console.status(Text(printable(text))) as status:

            def tell(fraction: float) -> None:
                self._check()
                status.update(Text(printable(f"{text}  {100 * fraction:.0f} %")))

            yield tell

    @contextmanager
    def bar(self, total: float | None) -> Iterator[Callable[[float], None]]:
        """Show a bar in a terminal while the context lasts, for `total` seconds of sound; None: it is not known how many.

        The context's value is a function: call it with the seconds that are done.
        """
        if self._plain:
            yield lambda _: self._check()
            return
        columns = (
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("remaining"),
        )
        # What is printed to the standard output stays there, also where that is not this terminal.
        self._bar = Progress(*columns, console=self._console, transient=True, redirect_stdout=False)
        task = self._bar.add_task("", total=total)

        def tell(done: float) -> None:
            self._check()
            if self._bar:
                self._bar.update(task, completed=done)

        try:
            self._bar.start()
            yield tell
        finally:
            self._bar.stop()
            self._bar = None

    def beside(self, line: str) -> None:
        """Print a result to the standard output, beside a bar on the standard error."""
        if self._bar:
            self._bar.stop()
        print(line, flush=True)
        if self._bar:
            self._bar.start()

    @contextmanager
    def transfer(self) -> Iterator[Callable[[int, int], None]]:
        """Show the progress of a transfer while the context lasts.

        The context's value is a function: call it with the bytes that are done and with all bytes. A terminal shows the speed
        and the time left; without one, a line is printed at every tenth.
        """
        if self._plain:
            yield self._tenths()
            return
        columns = DownloadColumn(), BarColumn(), TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("left")
        progress = Progress(*columns, console=self._console, transient=True)
        task: TaskID | None = None

        def tell(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                # Begin with what is there already, so that the speed counts only what comes from now on.
                task = progress.add_task("", total=total, completed=done)
                progress.start()
            progress.update(task, completed=min(done, total), total=total)

        try:
            yield tell
        finally:
            progress.stop()

    def _tenths(self) -> Callable[[int, int], None]:
        told: int | None = None
        begin, had = perf_counter(), 0

        def tell(done: int, total: int) -> None:
            nonlocal told, had
            tenth = 10 * done // total if total else 10
            if told is None:
                told, had = tenth, done
            elif tenth > told:
                told = tenth
                speed = (done - had) / (perf_counter() - begin)
                left = f", {(total - done) / speed:.0f} s left" if speed > 0 and done < total else ""
                self.say(f"{10 * tenth} % of {human_size(total)}, {human_size(speed)}/s{left}")

        return tell

    def __call__(self, event: RecordingEvent) -> None:
        """Show an event, if it has something to show."""
        self._check()
        if isinstance(event, Began):
            self._began(event)
        elif isinstance(event, SpokeWord):
            self._spoke(event)
        elif isinstance(event, Said):
            self._said(event)
        elif isinstance(event, Notice):
            self.say(event.message)
        elif isinstance(event, Ended):
            self._ended(event)

    def _began(self, event: Began) -> None:
        self._begin = perf_counter()
        self.say(f"Listening to {STDIN_NAME.lower() if event.name == STDIN_NAME else event.name}")
        if self._plain:
            return
        self._progress = Progress(
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("remaining, {task.fields[speed]:.1f} × real time"),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=event.steps, speed=0.0)
        self._line = ""
        self._live = Live(self._view(), console=self._console, transient=True)
        self._live.start()

    def _view(self) -> Group:
        assert self._progress
        return Group(Text(self._line, no_wrap=True, overflow="ellipsis"), self._progress)

    def _spoke(self, event: SpokeWord) -> None:
        word = printable(event.word.text)
        if not self._live:
            self.say(f"{event.word.start:8.2f} s  {word}")
            return
        if self._line and len(self._line) + 1 + len(word) > self._console.width - 1:
            self.say(self._line)
            self._line = ""
        self._line = f"{self._line} {word}".strip()
        self._live.update(self._view())

    def _said(self, event: Said) -> None:
        if self._progress:
            count = event.index + 1
            speed = count * FRAME_SECONDS / (perf_counter() - self._begin)
            self._progress.update(self._task, completed=count, speed=speed)

    def _ended(self, ended: Ended) -> None:
        self._stop()
        self.say(f"Said: {' '.join(word.text for word in ended.words) or '(nothing)'}")
        if ended.plan.reply:
            self.say(f"Reply: {ended.plan.reply}")
        if ended.plan.transcript:
            self.say(f"Transcript: {ended.plan.transcript}")
        self.say(f"{ended.seconds:.2f} s of sound in {ended.wall:.2f} s: {ended.speed:.1f} × real time")
        if ended.stages["step"]:
            self.say(timing_line("Step", ended.stages.values(), FRAME_SECONDS))

    def _stop(self) -> None:
        if self._live:
            self._live.stop()
        self._live = self._progress = None


def timing_line(what: str, stages: Iterable[array[float]], budget: float | None = None) -> str:
    """Return a line with the median and the 95th percentile of the time of a step, in milliseconds.

    `stages` are the times of the stages in seconds, step by step; their sum counts. `budget` is how long a frame lasts, in
    seconds.
    """
    total = 1000 * np.sum([np.asarray(stage) for stage in stages], axis=0)
    p50, p95 = np.percentile(total, [50, 95]) if len(total) else (0.0, 0.0)
    line = f"{what}: {p50:.1f} ms p50, {p95:.1f} ms p95"
    return line if budget is None else f"{line} (a frame lasts {1000 * budget:.0f} ms)"
