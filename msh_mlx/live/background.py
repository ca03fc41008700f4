"""Work on files on a thread of its own, so that nothing else waits for a disk."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import perf_counter

from ..errors import MshError

TICK = 0.5  # seconds between two looks at the clock, the headers and the disk


class Background:
    """A thread that does jobs in order, so that callers never wait for a disk. An error in one of them ends the work.

    `name` is the thread's name, and `tick` a job for every half second. If the work ends too early, `on_end` is called once
    with the reason, in words for the middle of a sentence, and `ended` becomes True; that may happen on the thread, or on a
    thread that calls `put`. `size` is how many jobs may wait; with more, the disk counts as too slow, and the work ends.
    """

    def __init__(self, name: str, tick: Callable[[], None], on_end: Callable[[str], None], size: int) -> None:
        self.ended = False
        self._tick = tick
        self._on_end = on_end
        self._size = size
        self._ending = threading.Lock()
        # Neither end of this queue holds a lock while it waits.
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A disk that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job and return at once; once the work has ended, drop it."""
        if self.ended:
            return
        if self._queue.qsize() < self._size:
            self._queue.put(job)
        else:
            self.end("the disk is too slow")

    def force(self, job: Callable[[], None]) -> None:
        """Queue a job even if too many wait or the work has ended."""
        self._queue.put(job)

    def attempt(self, job: Callable[[], None]) -> None:
        """Do a job now, on this thread; an error ends the work."""
        try:
            job()
        except Exception as error:
            self.end(disk_error(error))

    def end(self, reason: str) -> None:
        """End the work for `reason`, unless it has ended already."""
        with self._ending:
            if self.ended:
                return
            self.ended = True
        self._on_end(reason)

    def close(self, timeout: float) -> bool:
        """Let the thread do the jobs in the queue and end; return whether it has ended within `timeout` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        due = perf_counter() + TICK
        while True:
            with contextlib.suppress(Empty):
                job = self._queue.get(timeout=max(0.0, due - perf_counter()))
                if job is None:
                    return
                self.attempt(job)
            if perf_counter() >= due:
                self.attempt(self._tick)
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
