"""The interface of the screens, and the figures that they show."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ...events import EchoState, Event
from ...metrics import EchoFigures


@dataclass(frozen=True)
class Status:
    """The state of a conversation. Figures that are not known yet are None.

    `elapsed` is in seconds. `microphone` and `loudspeaker` are the peaks since the last status, 0 to 1; `microphone_clipped`
    and `loudspeaker_clipped` say whether samples were clipped. `step_p50` and `step_p95` are in milliseconds, and so is
    `delay`: how long after the user's sound Moshi's answer to it is played, with the wait in queues. `dropped` is how much of
    the user's sound was dropped so far, in seconds. Memory is MLX's, in bytes. `recording` is the folder that is recorded into.
    `echo` is the loudspeaker's echo. `hints` are sentences, the most important first.
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
    """The echo of a conversation, which was found for `seconds` in all.

    `level` and `level_most` are the median and the highest level, in dB of full scale. `removed` and `removed_most` are the
    median and the most that was removed, in dB.
    """

    seconds: float
    level: float
    level_most: float
    removed: float
    removed_most: float

    @classmethod
    def of(cls, figures: EchoFigures) -> EchoSummary | None:
        """Return the summary of `figures`, or None if there was no echo."""
        level, removed = figures.level, figures.removed
        if not figures.found:
            return None
        return cls(figures.found, level.median(), level.most(), removed.median(), removed.most())


@dataclass(frozen=True)
class Summary:
    """The figures of a conversation that has ended.

    `seconds` is its length, `words` how many words Moshi said. `stages` has the times of "encode", "step" and "decode".
    `dropped` is how much of the user's sound was dropped, in seconds. `memory_peak` is MLX's, in bytes, or None if it is not
    known. `echo` is None if there was no echo. `files` are the files and folders that were written.
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
    """The interface of all screens: a context manager that takes events and the status of a conversation.

    One thread calls all methods, and none waits for anything but the output. A screen does not report the error of a failure:
    the caller does, after the screen was closed.
    """

    def __enter__(self) -> Screen:
        with suppress(OSError):  # nothing can be written to a terminal that has gone
            self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, ValueError):
            self.suspend()

    def handle(self, event: Event) -> None:
        """Show an event, if it has something to show."""

    def tick(self, status: Status | None = None) -> None:
        """Update the screen with the time and the status; call this at least ten times a second."""

    def help(self) -> None:
        """Show what the keys do, or hide it again."""

    def summary(self, summary: Summary) -> None:
        """Show the summary of a conversation that has ended."""

    def suspend(self) -> None:
        """Release the terminal, with all text printed, so that others can use it."""

    def resume(self) -> None:
        """Take the terminal again."""
