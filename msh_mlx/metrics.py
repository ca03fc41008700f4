"""Figures of a live conversation in bounded memory, however long it lasts: durations, drops, underruns, memory."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from .events import EchoState

_LEAST, _MOST = 1e-6, 1e4  # seconds, what the bins cover
_PER_E = 200  # bins per factor of e: each is 0.5 % wide
_BINS = math.ceil(_PER_E * math.log(_MOST / _LEAST)) + 1
_WINDOW = 250  # frames, 20 s
_PROCESS = psutil.Process()  # this one


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between the two nearest values as numpy does; 0 of no values."""
    ordered = sorted(values)
    return _interpolate(ordered.__getitem__, len(ordered), percent) if ordered else 0.0


def _interpolate(value_at: Callable[[int], float], count: int, percent: float) -> float:
    rank, fraction = divmod((count - 1) * percent / 100, 1)
    low = value_at(int(rank))
    return low + (value_at(int(rank) + 1) - low) * fraction if fraction else low


@dataclass(frozen=True)
class Spread:
    """How durations are spread: a count, and seconds."""

    count: int = 0
    least: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    most: float = 0.0


class Durations:
    """Durations in seconds: a histogram of all, whose percentiles are right to 0.5 %, and the last 250 as they were.

    One thread adds; any may read meanwhile, without a lock that could hold that one up.
    """

    def __init__(self) -> None:
        self._bins = array("Q", bytes(8 * _BINS))
        self._recent = array("d", bytes(8 * _WINDOW))
        self._count = 0
        self._least = math.inf
        self._most = 0.0

    def add(self, seconds: float) -> None:
        """Note a duration."""
        self._bins[_bin(seconds)] += 1
        self._recent[self._count % _WINDOW] = seconds
        self._least = min(self._least, seconds)
        self._most = max(self._most, seconds)
        self._count += 1

    def recent(self, percent: float) -> float:
        """Return a percentile of the last 250."""
        count = self._count
        return percentile(self._recent[: min(count, _WINDOW)], percent)

    def all(self) -> Spread:
        """Return the percentiles of all."""
        bins = self._bins[:]  # at once, while the other thread goes on
        count = sum(bins)
        if not count:
            return Spread()
        ends = list(accumulate(bins))

        def value_at(rank: int) -> float:
            middle = _LEAST * math.exp((bisect_right(ends, rank) + 0.5) / _PER_E)
            return min(max(middle, self._least), self._most)

        p50, p95, p99 = (_interpolate(value_at, count, percent) for percent in (50, 95, 99))
        return Spread(count, self._least, p50, p95, p99, self._most)


def _bin(seconds: float) -> int:
    return max(0, min(_BINS - 1, int(_PER_E * math.log(max(seconds, _LEAST) / _LEAST))))


@dataclass(frozen=True)
class Memory:
    """Bytes: of MLX (in use, kept for reuse, the most in use so far), and `rss`, the process's share of the main memory."""

    active: int = 0
    cache: int = 0
    peak: int = 0
    rss: int = 0

    @classmethod
    def now(cls) -> Memory:
        """Measure; to be called on the thread that does the MLX work."""
        import mlx.core as mx

        return cls(mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory(), resident_bytes())


def resident_bytes() -> int:
    """Return the main memory that this process takes now, in bytes."""
    return int(_PROCESS.memory_info().rss)


class Decibels:
    """Numbers of decibels, counted in whole ones: their median, right to half of one, and the most.

    One thread adds; any may read meanwhile.
    """

    _LEAST, _MOST = -120, 120

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (self._MOST - self._LEAST + 1)))

    def add(self, decibels: float) -> None:
        """Note a number."""
        self._counts[round(min(max(decibels, self._LEAST), self._MOST)) - self._LEAST] += 1

    def median(self) -> float | None:
        """Return the median, None of no numbers."""
        ends = list(accumulate(self._counts))
        return bisect_right(ends, (ends[-1] - 1) // 2) + self._LEAST if ends[-1] else None

    def most(self) -> float | None:
        """Return the most, None of no numbers."""
        return max((i + self._LEAST for i, count in enumerate(self._counts) if count), default=None)


class EchoFigures:
    """The echo over a conversation: for how many seconds one was `found`, and then its `level` and what was `removed`."""

    def __init__(self) -> None:
        self.found = 0.0
        self.level = Decibels()
        self.removed = Decibels()

    def add(self, state: EchoState, seconds: float) -> None:
        """Note how it was for some seconds."""
        if state.found and state.level is not None:
            self.found += seconds
            self.level.add(state.level)
            self.removed.add(state.removed)


class Metrics:
    """The figures of one run of the pipeline; each is written by one thread and may be read by any.

    `encode`, `step`, `decode` are what the stages took; `model_wait` and `decoder_wait` what a frame waited for the model
    and the decoder; `reply` the time from a frame's last sample, heard by the microphone, to the first sample of its reply,
    handed to the loudspeaker; `delay` that and what the loudspeaker had yet to play by then. All in seconds.

    `frames` were answered in all conversations; `words` were spoken; `drops` times `dropped` seconds of the user's sound in
    all were given up; the loudspeaker ran dry `underruns` times.
    """

    STAGES = ("encode", "step", "decode", "model_wait", "decoder_wait", "reply", "delay")

    def __init__(self) -> None:
        self.encode = Durations()
        self.step = Durations()
        self.decode = Durations()
        self.model_wait = Durations()
        self.decoder_wait = Durations()
        self.reply = Durations()
        self.delay = Durations()
        self.frames = 0
        self.words = 0
        self.drops = 0
        self.dropped = 0.0
        self.underruns = 0
        self.memory = Memory()

    def summary(self) -> dict[str, Any]:
        """Return all figures under their names, ready for JSON; durations as the fields of `Spread`."""
        counts = {name: getattr(self, name) for name in ("frames", "words", "drops", "dropped", "underruns")}
        stages = {name: vars(getattr(self, name).all()) for name in self.STAGES}
        return {**counts, **stages, "memory": vars(self.memory)}
