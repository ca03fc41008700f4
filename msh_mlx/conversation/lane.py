"""`Lane`: work of a conversation that a pool's threads do, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor


class Lane:
    """Runs `work` on a thread of `pool`, as often as it is asked for, never on two threads at once.

    If it is asked for while it runs, or before it has begun, it runs once more behind the work of others. So a piece of work
    should be short, and ask for the next one itself.
    """

    def __init__(self, pool: Executor, work: Callable[[], None]) -> None:
        self._pool = pool
        self._work = work
        self._changed = threading.Condition()
        self._busy = False
        self._again = False
        self._open = True

    def wake(self) -> None:
        """Ask for the work. Any thread may do so, even the work itself."""
        with self._changed:
            if self._busy:
                self._again = True
            elif self._open:
                self._busy = True
                self._submit()

    def close(self) -> None:
        """Begin no work any more. When what has begun has ended, the work and what it refers to are let go."""
        with self._changed:
            self._open = self._again = False
            if not self._busy:
                self._work = _nothing

    def join(self, timeout: float) -> bool:
        """Wait until the work that has begun has ended; return False if it has not after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout)

    def _submit(self) -> None:
        self._again = False
        try:
            self._pool.submit(self._run)
        except RuntimeError:  # the pool is closed
            self._busy = False

    def _run(self) -> None:
        try:
            if self._open:
                self._work()
        finally:
            with self._changed:
                self._busy = self._again and self._open
                if self._busy:
                    self._submit()
                elif not self._open:
                    self._work = _nothing
                self._changed.notify_all()


def _nothing() -> None:
    pass
