"""The standard streams of the process, and files whose errors name the file."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO

from ..errors import InputError, MshError, write_error

STDOUT = "-"
_STDOUT_NAME = "The standard output"
_closed: set[int] = set()  # descriptors that were closed when the program started
_taken = False  # whether one output has the standard output for itself


class NamedFile(io.FileIO):
    """An unbuffered file. Failed writes raise `WriteError`, with `said` as the file's name."""

    def __init__(self, file: str | os.PathLike[str] | int, mode: str, said: str, *, closefd: bool = True) -> None:
        super().__init__(file, mode, closefd=closefd)
        self._said = said

    def write(self, data: Any) -> int:
        """Write bytes; return how many were written."""
        try:
            return super().write(data)
        except BrokenPipeError:  # the reader has had enough, which is not a mistake
            raise
        except OSError as error:
            # What Windows says of a pipe without a reader is no error of its own in C.
            if (
                sys.platform == "win32"
                and error.errno == errno.EINVAL
                and stat.S_ISFIFO(os.fstat(self.fileno()).st_mode)
            ):
                raise BrokenPipeError from None
            raise write_error(self._said, error) from None


def open_standard() -> None:
    """Make sure that the three standard streams are open. Call it before anything else opens a file.

    The null device takes the place of a closed stream. Otherwise the next file or socket would get its descriptor, and then
    the bytes that are meant for the stream.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _closed.add(descriptor)
            # A read from a missing standard input must fail, and not look like empty input.
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.platform == "win32":
        _open_console()
    if sys.stdout is None or (
        sys.stdout is sys.__stdout__ and _descriptor(sys.stdout) == 1 and not _is_console(sys.stdout)
    ):
        sys.stdout = _printing(sys.stdout)


def end_standard() -> None:
    """Flush the standard streams. Give up what cannot be written: Python would try it again at the exit."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _is_console(stream: TextIO | Any) -> bool:
    """Whether a stream writes to a console of Windows, which takes characters and not bytes."""
    return sys.platform == "win32" and type(getattr(stream.buffer, "raw", None)).__name__ == "_WindowsConsoleIO"


def _open_console() -> None:
    """Let files and pipes have UTF-8, which other programs expect, and consoles of Windows obey escape sequences."""
    if sys.platform == "win32":
        import ctypes

        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                errors = "strict" if stream is sys.stdin else "backslashreplace" if stream is sys.stderr else "replace"
                stream.reconfigure(encoding="utf-8", errors=errors)
        for number in (-11, -12):  # the standard output and the standard error
            handle = ctypes.windll.kernel32.GetStdHandle(number)
            mode = ctypes.c_ulong()
            if ctypes.windll.kernel32.GetConsoleMode(handle, ctypes.byref(mode)):
                ctypes.windll.kernel32.SetConsoleMode(handle, mode.value | 4)  # ENABLE_VIRTUAL_TERMINAL_PROCESSING


def _descriptor(stream: TextIO | Any) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _printing(stream: TextIO | None, descriptor: int = 1) -> TextIO:
    """Return a stream like `stream` on the standard output. Its errors name it, and it takes any character."""
    file = io.BufferedWriter(NamedFile(descriptor, "wb", _STDOUT_NAME, closefd=False))
    encoding = stream.encoding if stream else None
    return io.TextIOWrapper(file, encoding=encoding, errors="replace", line_buffering=os.isatty(descriptor))


@contextlib.contextmanager
def only_ours() -> Iterator[None]:
    """While it lasts, only `sys.stdout` writes to the standard output. What programs print that are started meanwhile is lost.

    A console of Windows stays as it is.
    """
    before = sys.stdout
    if _descriptor(before) != 1 or _is_console(before):
        yield
        return
    before.flush()
    own = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    sys.stdout = _printing(before, own)
    os.dup2(null, 1)
    os.close(null)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = before
        os.dup2(own, 1)
        os.close(own)


def check_output() -> None:
    """Raise InputError if the standard output is closed. This is for commands whose only result is what they print."""
    if 1 in _closed:
        raise InputError("The standard output is closed, and there is nothing else to write to", "leave it open")


class StandardOutput:
    """The standard output as the file of one output, used like a `NewFile`. `print` goes to the standard error instead.

    Raise InputError if it is closed, is a terminal, or is taken by another output already.
    """

    def __init__(self) -> None:
        global _taken
        check_output()
        if _taken:
            raise InputError("Only one thing can go to the standard output", "name a file for the other")
        if os.isatty(1):
            raise InputError(
                "The standard output is a terminal", "put > FILE or | PROGRAM behind the command, or name a file"
            )
        _taken = True
        sys.stdout.flush()
        raw = _Output(os.dup(1))
        os.dup2(2, 1)
        self.file: BinaryIO = io.BufferedWriter(raw)

    def __str__(self) -> str:
        return "the standard output"

    def stat(self) -> os.stat_result:
        """Return its status, as `os.fstat` does."""
        return os.fstat(self.file.fileno())

    def commit(self) -> None:
        """Flush it."""
        self.file.flush()

    def __enter__(self) -> StandardOutput:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.file.close()
        except (BrokenPipeError, MshError):
            if error is None:
                raise


class _Output(NamedFile):
    """The former standard output. It can seek if it is a file that is written from its beginning on."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", _STDOUT_NAME)
        self._seekable = stat.S_ISREG(os.fstat(descriptor).st_mode) and not _appends(descriptor)

    def seekable(self) -> bool:
        """Whether bytes that were written can be changed."""
        return self._seekable


def _appends(descriptor: int) -> bool:
    """Whether a file gets everything at its end, behind what it has."""
    if sys.platform == "win32":  # which has no such mode: the shell begins at the end
        return os.lseek(descriptor, 0, os.SEEK_CUR) > 0
    import fcntl

    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND)
