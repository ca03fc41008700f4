"""Work on files on a thread of its own, so that nothing else waits for a disk."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Generic, TypeVar

from ..errors import MshError

T = TypeVar("T")

TICK = 0.5  # seconds between two looks at the clock, the headers and the disk


class Background(Generic[T]):
    """A thread that handles things from a queue, so that callers of `put` never wait for a disk.

    Parameters
    ----------
    name
        The thread's name.
    handle
        Called with each thing from the queue, in order, on the thread. It must not raise.
    tick
        Called on the thread about every half second. It must not raise.
    size
        How many things may wait in the queue.
    """

    def __init__(self, name: str, handle: Callable[[T], None], tick: Callable[[], None], size: int) -> None:
        self._handle = handle
        self._tick = tick
        self._size = size
        # Neither end of this queue holds a lock while it waits.
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        # A disk that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, thing: T, *, force: bool = False) -> bool:
        """Queue `thing` and return True at once; return False if the queue is full. With `force` it is never full."""
        if not force and self._queue.qsize() >= self._size:
            return False
        self._queue.put(thing)
        return True

    def close(self, timeout: float) -> bool:
        """Let the thread handle what is queued and end; return whether it has ended within `timeout` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        due = perf_counter() + TICK
        while True:
            with contextlib.suppress(Empty):
                thing = self._queue.get(timeout=max(0.0, due - perf_counter()))
                if thing is None:
                    return
                self._handle(thing)
            if perf_counter() >= due:
                self._tick()
                due = perf_counter() + TICK


class RemovedError(Exception):
    """The folder of a recording has been removed."""


def disk_error(error: Exception) -> str:
    """Return why something could not be written, in words for the middle of a sentence."""
    if isinstance(error, RemovedError):
        return "its folder has been removed"
    if isinstance(error, MshError):
        return error.clause
    if not isinstance(error, OSError):
        return f"{type(error).__name__} ({error})"
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return error.strerror or str(error)
