"""`OnThreads`: a live conversation whose parts each run on a thread, and end together."""

from __future__ import annotations

import contextlib
import math
import threading
from abc import abstractmethod
from collections.abc import Callable
from time import perf_counter, sleep

from ..events import Event, Failed
from ..system.threads import exists
from .live import LiveConversation, Sink, Source


class ClosedError(Exception):
    """The conversation is over; the thread that gets this error ends."""


class OnThreads(LiveConversation):
    """A live conversation on threads of this process. Only `stop` or a failure ends it: then all threads end.

    The parameters are those of `LiveConversation`.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        events: Callable[[Event], None],
        delay_limit: float,
        early: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        super().__init__(source, sink, events, delay_limit, early)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._over = False

    def stop(self, timeout: float = 1.0) -> bool:
        self._end()
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        deadline = math.inf if timeout is None else perf_counter() + timeout
        for thread in self._threads:  # the first starts the others: the list is complete once it has ended
            if thread is threading.current_thread():
                continue
            thread.join(None if timeout is None else max(0.0, deadline - perf_counter()))
            while exists(thread):
                if perf_counter() > deadline:
                    return False
                sleep(0.001)
        return True

    @abstractmethod
    def _wake(self) -> None:
        """Wake the threads that wait for something, now that the conversation is over: `_check` ends them."""

    def _begin_thread(self, name: str, work: Callable[[], None]) -> None:
        """Begin a thread, unless the conversation is over. `name` is what `Failed` calls it."""

        def run() -> None:
            try:
                work()
            except ClosedError:
                pass
            except BaseException as error:
                failure = Failed(name if self._conversation else "start", error)
                if self._end(failure):
                    with contextlib.suppress(Exception):
                        self._events(failure)

        thread = threading.Thread(target=run, name=f"msh-{name}", daemon=True)
        with self._lock:
            if not self._over:
                thread.start()
                self._threads.append(thread)

    def _end(self, failure: Failed | None = None) -> bool:
        """End all threads and keep `failure`; return False if they were ended before: then `failure` only follows from that."""
        with self._lock:
            first, self._over = not self._over, True
            if first:
                self.failure = failure
        self._wake()
        return first

    def _check(self) -> None:
        if self._over:
            raise ClosedError
