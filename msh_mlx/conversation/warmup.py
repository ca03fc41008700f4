"""From loading to a session that is warm and new, for a `Pipeline` that has the process to itself."""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..events import Loading
from ..metrics import percentile

if TYPE_CHECKING:
    from .pipeline import MakeSession
    from .session import Session

Load: TypeAlias = (
    "Callable[[Callable[[float], None]], Session]"  # gets what to tell the loaded fraction to, from 0 to 1
)
Lighter: TypeAlias = "Callable[[float], Load | None]"

_WARM_UP = 5, 25  # frames, at least and at most
_MEASURED = 5, 25  # frames by which a model is judged, at least and at most
_JUDGING = 5.0  # seconds, after which the fewest will do
_WARM = 1.5  # times the fastest frame: no slower is warm


def warm(load: Load, lighter: Lighter | None = None) -> MakeSession:
    """Return what loads a session, lets it run on silence until its time is steady, and gives it back as new.

    `load` makes the session. `lighter` gets the lower quartile of the model's step times, in seconds: what else runs just then
    makes some steps longer, and none shorter. What it returns makes another session in place of this one, None keeps it. Both
    are called on the model's thread.
    """

    def make(tell: Callable[[Loading], None], check: Callable[[], None]) -> Session:
        following: Load | None = load
        while following:
            begin = perf_counter()
            tell(Loading("loading"))
            session = following(lambda fraction: tell(Loading("loading", fraction=fraction)))
            loaded = perf_counter()
            tell(Loading("loading", loaded - begin))
            tell(Loading("warm-up"))
            _warm_up(session, check)
            following = lighter(_pace(session, check)) if lighter else None
            if following:
                del session  # before the next one comes
                gc.collect()
        session.reset()
        # Python's collector would stop all threads to look through what was loaded, again and again.
        gc.collect()
        gc.freeze()
        tell(Loading("warm-up", perf_counter() - loaded))
        return session

    return make


def _warm_up(session: Session, check: Callable[[], None]) -> None:
    """Let a session run on silence until its time is steady."""
    session.warm_up()
    silence = np.zeros(session.frame_size, np.float32)
    took: list[float] = []
    while len(took) < _WARM_UP[0] or (took[-1] > _WARM * min(took) and len(took) < _WARM_UP[1]):
        check()
        took.append(session.push(silence).timings.total)


def _pace(session: Session, check: Callable[[], None]) -> float:
    """Return the lower quartile of the steps of a session that is warm, in seconds."""
    silence = np.zeros(session.frame_size, np.float32)
    steps: list[float] = []
    begin = perf_counter()
    while len(steps) < _MEASURED[0] or (len(steps) < _MEASURED[1] and perf_counter() - begin < _JUDGING):
        check()
        steps.append(session.push(silence).timings.step)
    return percentile(steps, 25)
