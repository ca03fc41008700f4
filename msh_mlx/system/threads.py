"""Threads: whether one has really ended, and how soon a waiting one gets its turn."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TURN = 1e-3  # seconds


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
