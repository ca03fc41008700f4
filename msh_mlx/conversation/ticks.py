"""Steps of several conversations at once: what they cost, and when a tick, in which they are made, begins."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence

from ..format import FRAME_SECONDS
from ..metrics import Durations

_GRACE = 0.25  # of a step: how much later than expected a frame may come and still be waited for
_ON_TIME = 0.9  # of a frame: the time after its arrival within which a step has to end


class Costs:
    """How long a step takes, by how many conversations it serves.

    `measure` says, once, how the time grows with their number. `add` says how long the steps take in use: longer conversations
    and a busy machine make all of them slower. One thread adds, and any thread may ask.
    """

    def __init__(self) -> None:
        self._curve: list[tuple[int, float]] = []
        self._level = Durations()  # how long steps took, each as a multiple of what the curve says

    def measure(self, size: int, seconds: float) -> None:
        """Set what a step of `size` conversations takes, in seconds. Sizes come in rising order."""
        self._curve.append((size, seconds))

    def add(self, size: int, seconds: float) -> None:
        """Add the time of a step of `size` conversations, in seconds."""
        self._level.add(seconds / self._measured(size))

    def expected(self, size: int, percent: float = 95) -> float:
        """Return a percentile of the time, in seconds, that a step of `size` conversations takes. 0: nothing is known yet."""
        level = self._level.recent(percent) or (1.0 if self._curve else 0.0)
        return level * self._measured(size)

    def _measured(self, size: int) -> float:
        """Return what the curve says: between measured sizes in proportion, beyond them as steep as before.

        Without a curve, the conversations step one after the other.
        """
        curve = self._curve or [(1, 1.0)]
        if len(curve) == 1:
            return curve[0][1] * size / curve[0][0]
        above = min(max(1, bisect_left(curve, (size, 0.0))), len(curve) - 1)
        (low, fast), (high, slow) = curve[above - 1 : above + 1]
        return max(fast, fast + (slow - fast) * (size - low) / (high - low))


class Arrivals:
    """When the next frame of each conversation is expected: a frame's time after the last one came."""

    def __init__(self) -> None:
        self._next: dict[Hashable, float] = {}

    def came(self, who: Hashable, moment: float) -> None:
        """Note that a frame came."""
        self._next[who] = moment + FRAME_SECONDS

    def forget(self, who: Hashable) -> None:
        """Expect no frame of a conversation any more."""
        self._next.pop(who, None)

    def without(self, those: Iterable[Hashable]) -> list[float]:
        """Return when frames of all other conversations are expected."""
        here = set(those)
        return [moment for who, moment in self._next.items() if who not in here]


def begin_tick(now: float, since: Sequence[float], expected: Iterable[float], costs: Costs) -> float:
    """Return when a tick begins: `now` or earlier, if it begins at once.

    `since` is when the frames came that wait, and `expected` when those of other conversations should come. Those that should
    come before the end of a tick that began now are due: the tick waits for them, but not for one that is late, and not so long
    that the first frame would get its answer after the next one has come.
    """
    cost = costs.expected(len(since), 50)
    grace = _GRACE * cost
    due = [moment + grace for moment in expected if now < moment + grace and moment < now + cost]
    if not due:
        return now
    return min(max(due), min(since) + _ON_TIME * FRAME_SECONDS - costs.expected(len(since) + len(due), 50))
