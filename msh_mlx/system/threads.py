"""Threads: whether one has really ended, how soon a waiting one gets its turn, and one with an event loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

_TURN = 1e-3  # seconds
_END = 1.0  # seconds for the tasks of a loop to end

T = TypeVar("T")


@contextmanager
def short_turns() -> Iterator[None]:
    """Return a context in which a thread that returns from native code waits at most 1 ms, not 5, for a thread in Python."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def exists(thread: threading.Thread) -> bool:
    """Whether a Python thread still exists for the system.

    Before Python 3.13, `join` returns a little before the thread's end. At its end, functions that MLX has compiled on it are
    released. That needs the interpreter: if the process ended in that moment, it would be aborted.
    """
    if thread.is_alive() or sys.version_info >= (3, 13):
        return thread.is_alive()
    if sys.platform == "win32":  # where MLX is not
        return False
    linux = Path("/proc/self/task")
    if linux.exists():
        return (linux / str(thread.native_id)).exists()
    assert thread.ident
    try:
        signal.pthread_kill(thread.ident, 0)
    except ProcessLookupError:
        return False
    return True


class LoopThread:
    """An event loop on a thread of its own, which any thread gives work. `close` ends it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._patience = _END
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        with suppress(Exception):
            for task in (tasks := asyncio.all_tasks(self._loop)):
                task.cancel()
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=self._patience))
        self._loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start some work, and return at once. To cancel what is returned cancels the work."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Have some work done, and wait for it on another loop. Who gives up the wait cancels the work."""
        return await asyncio.wrap_future(self.start(work))

    def close(self, timeout: float = _END) -> None:
        """Cancel all work, and end the thread; wait for that so many seconds."""
        self._patience = timeout
        with suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout)


def on_thread(work: Callable[[], T], name: str) -> Awaitable[T]:
    """Do some work on a new thread, and return its result as a future of the running loop.

    If the future is cancelled, the thread is left behind, and what it returns is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = RuntimeError("StopIteration") if isinstance(raised, StopIteration) else raised  # futures take none
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
