"""The figures of a live conversation: durations, drops, underruns, memory. They take the same memory however long it lasts."""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from .events import EchoState

_LEAST, _MOST = 1e-6, 1e4  # seconds that the bins cover
_PER_E = 200  # bins per factor of e: each is 0.5 % wide
_BINS = math.ceil(_PER_E * math.log(_MOST / _LEAST)) + 1
_WINDOW = 250  # frames, 20 s
_PROCESS = psutil.Process()  # this one


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between the two nearest values as numpy does. 0: there are no values."""
    ordered = sorted(values)
    return _interpolate(ordered.__getitem__, len(ordered), percent) if ordered else 0.0


def _interpolate(value_at: Callable[[int], float], count: int, percent: float) -> float:
    rank, fraction = divmod((count - 1) * percent / 100, 1)
    low = value_at(int(rank))
    return low + (value_at(int(rank) + 1) - low) * fraction if fraction else low


@dataclass(frozen=True)
class Spread:
    """The spread of durations: their count, and in seconds the least, percentiles, and the most."""

    count: int = 0
    least: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    most: float = 0.0


class Durations:
    """Durations in seconds: a histogram of all, with percentiles exact to 0.5 %, and the last 250 themselves.

    One thread adds. Any thread may read meanwhile: there is no lock that could hold up the first.
    """

    def __init__(self) -> None:
        self._bins = array("Q", bytes(8 * _BINS))
        self._recent = array("d", bytes(8 * _WINDOW))
        self._count = 0
        self._least = math.inf
        self._most = 0.0

    def add(self, seconds: float) -> None:
        """Add a duration."""
        self._bins[_bin(seconds)] += 1
        self._recent[self._count % _WINDOW] = seconds
        self._least = min(self._least, seconds)
        self._most = max(self._most, seconds)
        self._count += 1

    def recent(self, percent: float) -> float:
        """Return a percentile of the last 250 durations."""
        count = self._count
        return percentile(self._recent[: min(count, _WINDOW)], percent)

    def all(self) -> Spread:
        """Return the spread of all durations."""
        bins = self._bins[:]  # a copy in one operation, while the other thread goes on
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
    """Memory in bytes: MLX's (in use, kept for reuse, most in use so far), and `rss`, the process's part of the main memory."""

    active: int = 0
    cache: int = 0
    peak: int = 0
    rss: int = 0

    @classmethod
    def now(cls) -> Memory:
        """Measure the memory. Call it on the thread that works with MLX. MLX's is 0 where it is not used."""
        if (mx := sys.modules.get("mlx.core")) is None:
            return cls(rss=resident_bytes())
        return cls(mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory(), resident_bytes())


def peak_resident_bytes() -> int:
    """Return the most main memory that this process has taken so far, in bytes."""
    if sys.platform == "win32":
        return int(_PROCESS.memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def resident_bytes() -> int:
    """Return the main memory that this process takes now, in bytes."""
    return int(_PROCESS.memory_info().rss)


class Decibels:
    """Numbers in decibels, counted by whole decibels: their median, exact to half a decibel, and the largest.

    One thread adds. Any thread may read meanwhile.
    """

    _LEAST, _MOST = -120, 120

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (self._MOST - self._LEAST + 1)))

    def add(self, decibels: float) -> None:
        """Add a number."""
        self._counts[round(min(max(decibels, self._LEAST), self._MOST)) - self._LEAST] += 1

    def median(self) -> float:
        """Return the median of the numbers, of which there must be one at least."""
        ends = list(accumulate(self._counts))
        return bisect_right(ends, (ends[-1] - 1) // 2) + self._LEAST

    def most(self) -> float:
        """Return the largest of the numbers, of which there must be one at least."""
        return max(i + self._LEAST for i, count in enumerate(self._counts) if count)


class EchoFigures:
    """The echo in a conversation: for how many seconds it was `found`, and then its `level`, and how much was `removed`."""

    def __init__(self) -> None:
        self.found = 0.0
        self.level = Decibels()
        self.removed = Decibels()

    def add(self, state: EchoState, seconds: float) -> None:
        """Add a state of the echo that lasted for some seconds."""
        if state.found and state.level is not None:
            self.level.add(state.level)
            self.removed.add(state.removed)
            self.found += seconds  # last: another thread that sees an echo can ask for the others


class Metrics:
    """The figures of one run of the pipeline. Each is written by one thread, and may be read by any.

    All durations are in seconds. `encode`, `step` and `decode` are the times of the stages. `model_wait` and `decoder_wait` are
    how long a frame waited for the model and for the decoder. `reply` is the time from when the microphone hears a frame's last
    sample to when the first sample of the reply goes to the loudspeaker. `delay` adds to that the sound that the loudspeaker
    still had to play then.

    `frames` is the number of frames answered in all conversations, `words` that of the words spoken. `drops` is how often sound
    of the user was given up, `dropped` how many seconds in all. `underruns` is how often the loudspeaker ran dry.
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
        """Return all figures by their names, ready for JSON. Durations have the fields of `Spread`."""
        counts = {name: getattr(self, name) for name in ("frames", "words", "drops", "dropped", "underruns")}
        stages = {name: vars(getattr(self, name).all()) for name in self.STAGES}
        return {**counts, **stages, "memory": vars(self.memory)}
