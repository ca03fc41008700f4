"""What a live conversation shows, and what a screen is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...events import EchoState, Event
from ...metrics import EchoFigures


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
class StageTimes:
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
    stages: Mapping[str, StageTimes] = field(default_factory=dict)
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
