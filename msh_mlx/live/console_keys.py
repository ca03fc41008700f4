"""Single keys, read from a console of Windows."""

from __future__ import annotations

import msvcrt
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

# Only where there are such consoles; elsewhere nobody imports this.
assert sys.platform == "win32"

_TICK = 0.01  # seconds between two looks at the keyboard
_PREFIXES = "\0\xe0"  # a key that sends no character sends one of these first
_CTRL_C = "\3"


class ConsoleKeys:
    """Reads single keys without waiting for Return and without showing them; Ctrl-C stays a signal.

    Use it as a context manager, as `TerminalKeys`. Nothing has to be set up or restored here, and nothing stops the program, so
    `suspend` and `resume` are not called. If `source` (default: the standard input) is not a console, no keys are read.
    """

    def __init__(
        self,
        source: TextIO | None = None,
        *,
        suspend: Callable[[], None] = lambda: None,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        self._is_console = False
        with suppress(ValueError, AttributeError):  # closed, or no file
            self._is_console = (source or sys.stdin).isatty()
        self.closed = False  # the end of a console is a signal

    def __enter__(self) -> ConsoleKeys:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def poll(self, timeout: float) -> str | None:
        """Wait at most `timeout` seconds for a key and return it; return None if none came."""
        end = time.monotonic() + timeout
        while True:
            if self._is_console and (key := self._pressed()):
                return key
            rest = end - time.monotonic()
            if rest <= 0:
                return None
            time.sleep(min(rest, _TICK))

    def _pressed(self) -> str | None:
        while msvcrt.kbhit():
            character = msvcrt.getwch()
            if character in _PREFIXES and msvcrt.kbhit():
                msvcrt.getwch()
            elif character == _CTRL_C:  # it came while a key was read
                signal.raise_signal(signal.SIGINT)
            elif character.isprintable():
                return character
        return None
