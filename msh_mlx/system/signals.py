"""Signals that ask the program to end. They raise an exception where the program is ready for it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn


class Stopped(KeyboardInterrupt):
    """The user or the system asked the program to end, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """While entered, raises `Stopped` in the main thread when a signal asks the program to end.

    `GONE` is the signal that says that the terminal has gone.

    The first signal is enough. Further ones are ignored while the program cleans up. But if `at_once` is set, the second signal
    calls it and ends the process at once. After `defer`, only `check` raises, where the program is ready for it.

    `end_process` says that threads may be left in native code, which nothing can interrupt. The process must then end without
    waiting for them, once everything is written.

    An exception that is raised in a callback of some library, as of the import system, is lost there, and Python would print
    its traceback. It is not printed, and `check` raises it again.
    """

    # Windows sends SIGBREAK for Ctrl-Break, and when the window is closed.
    if sys.platform == "win32":
        GONE = signal.SIGBREAK
    else:
        GONE = signal.SIGHUP
    _NUMBERS = (signal.SIGINT, signal.SIGTERM, GONE)

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook
        self._received: int | None = None
        self._deferred = False
        self.at_once: Callable[[], None] | None = None
        self.end_process = False

    def defer(self) -> None:
        """Let only `check` raise from now on."""
        self._deferred = True

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While it lasts, let a signal raise at once, also after `defer`: the program waits for something from outside."""
        deferred, self._deferred = self._deferred, False
        try:
            self.check()
            yield
        finally:
            self._deferred = deferred

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """While it lasts, let no signal raise, since foreign code could not bear that. Raise behind it."""
        deferred, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = deferred
        if not deferred:
            self.check()

    def stop(self, number: int) -> NoReturn:
        """Raise `Stopped`, as if the signal `number` had come."""
        raise Stopped(number)

    def check(self) -> None:
        """Raise `Stopped` if a signal was deferred, or if its exception was lost in a callback of some library."""
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        for other in self._before:
            signal.signal(other, self._end if self.at_once else signal.SIG_IGN)
        self._received = number
        if not self._deferred:
            raise Stopped(number)

    def _end(self, number: int, _: FrameType | None) -> None:
        if self.at_once:
            self.at_once()
        os._exit(128 + number)

    def _lost(self, lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Stopped):
            self._unraisable(lost)

    def __enter__(self) -> Signals:
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._lost
        for number in self._NUMBERS:
            # `nohup` ignores SIGHUP on purpose, so that stays ignored. A script's "&" ignores SIGINT by accident.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                try:
                    self._before[number] = signal.signal(number, self._receive)
                except ValueError:  # not the main thread, which alone gets signals
                    break
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._unraisable
        for number, handler in self._before.items():
            signal.signal(number, handler)
