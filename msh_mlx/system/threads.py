"""Whether a thread has ended, and how soon one gets its turn."""

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
    """Return a context in which a thread that comes back from native code waits 1 ms, not 5, while another runs Python."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def exists(thread: threading.Thread) -> bool:
    """Whether a thread of Python still exists for the system.

    Before Python 3.13 `join` returns a little earlier. What MLX has compiled on a thread is released then, which needs the
    interpreter: should the process end meanwhile, it would be aborted.
    """
    if thread.is_alive() or sys.version_info >= (3, 13):
        return thread.is_alive()
    linux = Path("/proc/self/task")
    if linux.exists():
        return (linux / str(thread.native_id)).exists()
    assert thread.ident
    try:
        signal.pthread_kill(thread.ident, 0)
    except ProcessLookupError:
        return False
    return True
