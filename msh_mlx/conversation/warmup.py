"""Load a session and warm it up, for a `Pipeline` that is alone in its process."""

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

# Takes a function that is called with the loaded fraction, 0 to 1.
Load: TypeAlias = "Callable[[Callable[[float], None]], Session]"
Lighter: TypeAlias = "Callable[[float], Load | None]"

_WARM_UP = 5, 25  # frames, at least and at most
_MEASURED = 5, 25  # frames by which a model is judged, at least and at most
_TRIED = 20, 100  # frames of a trial, at least and at most
_JUDGING = 5.0  # seconds, after which the least number of frames is enough
_WARM = 1.5  # times the fastest frame: a session is warm when a frame takes no longer


def warm(load: Load, lighter: Lighter | None = None, on_trial: Lighter | None = None) -> MakeSession:
    """Return a function that loads a session, runs it on silence until its times are steady, and resets it.

    `on_trial` is called first, if it is given, with the 95th percentile of a frame's times, encoding and decoding included, at
    the length of a full window. Like `lighter`, it returns a function that loads another session, or None to keep this one; or
    it raises an error.

    `load` makes the session. `lighter` is called with the lower quartile of the model's step times, in seconds; other programs
    make some steps longer but none shorter, so the quartile shows the model's own speed. `lighter` returns a function that
    loads another session in place of this one, or None to keep this one. Both are called on the model's thread.
    """

    def make(tell: Callable[[Loading], None], check: Callable[[], None]) -> Session:
        following: Load | None = load
        judge = on_trial
        while following:
            begin = perf_counter()
            tell(Loading("loading"))
            session = following(lambda fraction: tell(Loading("loading", fraction=fraction)))
            loaded = perf_counter()
            tell(Loading("loading", loaded - begin))
            tell(Loading("warm-up"))
            _warm_up(session, check)
            following = judge(_longest(session, check)) if judge else None
            judge = None  # only the first is on trial
            if following is None and lighter:
                following = lighter(_pace(session, check))
            if following:
                del session  # before the next one comes
                gc.collect()
        session.reset()
        # Else Python's collector would stop all threads again and again to look through what was loaded.
        gc.collect()
        gc.freeze()
        tell(Loading("warm-up", perf_counter() - loaded))
        return session

    return make


def _warm_up(session: Session, check: Callable[[], None]) -> None:
    """Run a session on silence until its times are steady."""
    session.warm_up()
    silence = np.zeros(session.frame_size, np.float32)
    took: list[float] = []
    while len(took) < _WARM_UP[0] or (took[-1] > _WARM * min(took) and len(took) < _WARM_UP[1]):
        check()
        took.append(session.push(silence).timings.total)


def _longest(session: Session, check: Callable[[], None]) -> float:
    """Return the 95th percentile of a warm session's frames, in seconds, at the length of a full window."""
    session.fill_window()
    silence = np.zeros(session.frame_size, np.float32)
    frames: list[float] = []
    begin = perf_counter()
    while len(frames) < _TRIED[0] or (len(frames) < _TRIED[1] and perf_counter() - begin < _JUDGING):
        check()
        frames.append(session.push(silence).timings.total)
    session.reset()
    return percentile(frames, 95)


def _pace(session: Session, check: Callable[[], None]) -> float:
    """Return the lower quartile of a warm session's step times, in seconds."""
    silence = np.zeros(session.frame_size, np.float32)
    steps: list[float] = []
    begin = perf_counter()
    while len(steps) < _MEASURED[0] or (len(steps) < _MEASURED[1] and perf_counter() - begin < _JUDGING):
        check()
        steps.append(session.push(silence).timings.step)
    return percentile(steps, 25)
