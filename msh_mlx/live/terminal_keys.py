"""Single keys, read from a terminal of Linux or macOS."""

from __future__ import annotations

import codecs
import os
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO

# Only where there are such terminals; elsewhere nobody imports this.
assert sys.platform != "win32"

_ESCAPE, _BELL = "\x1b", "\x07"
_PASTE_BEGINS, _PASTE_ENDS = "\x1b[200~", "\x1b[201~"
# Seconds: a sequence comes at once; what comes later than this after the escape key is a separate key.
_IMPATIENCE = 0.1


class KeyStream:
    """Picks out the keys that were pressed, and ignores escape sequences, mouse reports and pasted text."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._sequence = ""  # the part that came of an escape sequence
        self._pasting = False
        self._time = 0.0

    def push(self, data: bytes, now: float) -> list[str]:
        """Take the bytes that came at `now`, in seconds of any clock; return the keys that they complete.

        Ignore control characters, and letters that are pressed together with Alt.
        """
        if now - self._time > _IMPATIENCE:
            self._sequence = ""
            if now - self._time > 10 * _IMPATIENCE:
                self._pasting = False
        self._time = now
        keys = []
        for character in self._utf8.decode(data):
            if character == _ESCAPE and not self._is_string():
                self._sequence = _ESCAPE
            elif self._sequence:
                self._sequence += character
                if self._is_complete():
                    if self._sequence in (_PASTE_BEGINS, _PASTE_ENDS):
                        self._pasting = self._sequence == _PASTE_BEGINS
                    self._sequence = ""
            elif not self._pasting and character.isprintable():
                keys.append(character)
        return keys

    def _is_string(self) -> bool:
        # OSC, DCS, SOS, PM and APC begin answers of the terminal, which may have any length.
        return self._sequence[1:2] in tuple("]PX^_")

    def _is_complete(self) -> bool:
        kind, last = self._sequence[1], self._sequence[-1]
        if self._is_string():
            return last == _BELL or self._sequence.endswith("\x1b\\")
        if kind == "[":
            if self._sequence[2:3] == "M":  # a mouse report of the old kind: button, column, row
                return len(self._sequence) == 6
            if self._sequence[2:3] == "[":  # a function key of the Linux console
                return len(self._sequence) == 4
            return len(self._sequence) > 2 and "@" <= last <= "~"
        return kind != "O" or len(self._sequence) == 3


class TerminalKeys:
    """Reads single keys without waiting for Return and without showing them; Ctrl-C stays a signal.

    Use it as a context manager: at the end the terminal is as it was before. The same holds while Ctrl-Z stops the program:
    `poll` calls `suspend` before the stop and `resume` after it. If `source` (default: the standard input) is not a terminal,
    no keys are read. Use it on the main thread, which gets the signals.
    """

    def __init__(
        self,
        source: TextIO | None = None,
        *,
        suspend: Callable[[], None] = lambda: None,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        self._fd = -1  # no terminal
        with suppress(OSError, ValueError, AttributeError):  # closed, or no file
            fd = (source or sys.stdin).fileno()
            self._fd = fd if os.isatty(fd) else -1
        self._suspend, self._resume = suspend, resume
        self._stream = KeyStream()
        self._keys: deque[str] = deque()
        self._original: list[Any] | None = None  # how the terminal was
        self._taken = False
        self._handlers: dict[int, Any] = {}
        self._wake: tuple[int, int] | None = None
        self.closed = False  # whether the terminal has gone: then no more keys will come

    def __enter__(self) -> TerminalKeys:
        if self._fd < 0:
            return self
        self._wake = os.pipe()
        for end in self._wake:
            os.set_blocking(end, False)
        for number in (signal.SIGTSTP, signal.SIGCONT):
            with suppress(ValueError):  # not the main thread
                self._handlers[number] = signal.signal(number, self._on_signal)
        with suppress(termios.error, OSError):
            self._original = termios.tcgetattr(self._fd)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self._give_back()
        for end in self._wake or ():
            os.close(end)
        self._wake = None

    def poll(self, timeout: float) -> str | None:
        """Wait at most `timeout` seconds for a key and return it; return None if none came."""
        if self._keys:
            return self._keys.popleft()
        if not self._wake:
            time.sleep(timeout)
            return None
        self._take()  # in case the program is back in the foreground
        sources = [self._wake[0]]
        if not self.closed and self._in_foreground():
            sources.append(self._fd)
        ready, _, _ = select.select(sources, [], [], timeout)
        if self._wake[0] in ready:
            self._signalled(self._wake[0])
        elif ready:
            self._read()
        return self._keys.popleft() if self._keys else None

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.closed = not data
        self._keys += self._stream.push(data, time.monotonic())

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # The work writes to the terminal, and the signal may have interrupted another write: leave it to `poll`.
        if self._wake:
            with suppress(BlockingIOError):
                os.write(self._wake[1], bytes([number]))

    def _signalled(self, wake: int) -> None:
        numbers = os.read(wake, 4096)
        if signal.SIGTSTP in numbers:
            self._suspend()
            self._give_back()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTSTP)
            # Here the program stands still until it is continued.
            signal.signal(signal.SIGTSTP, self._on_signal)
            self._resume()
        # The shell has set up the terminal for itself in the meantime, also after a SIGSTOP.
        self._taken = False
        self._take()

    def _in_foreground(self) -> bool:
        # In the background, reading from the terminal or setting it up would stop the program.
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # this is not the controlling terminal, or it has gone: then reading finds out

    def _take(self) -> None:
        if self._original is None or self._taken or not self._in_foreground():
            return
        with suppress(termios.error, OSError):
            tty.setcbreak(self._fd, termios.TCSANOW)
            self._bracket_pastes(True)
            self._taken = True

    def _give_back(self) -> None:
        if not self._taken:
            return
        self._taken = False
        self._bracket_pastes(False)
        with suppress(termios.error, OSError):
            termios.tcsetattr(self._fd, termios.TCSANOW, self._original or [])

    def _bracket_pastes(self, on: bool) -> None:
        # Without the brackets, the letters of a pasted text would count as keys.
        if os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
            with suppress(OSError):
                os.write(self._fd, b"\x1b[?2004h" if on else b"\x1b[?2004l")
