"""The standard streams of the process, and files whose errors say which file it is."""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys
from types import TracebackType
from typing import Any, BinaryIO, TextIO

from ..errors import InputError, MshError, write_error

STDOUT = "-"
_STDOUT_NAME = "The standard output"
_closed: set[int] = set()  # descriptors that the program was started without
_taken = False  # whether the standard output is somebody's alone


class NamedFile(io.FileIO):
    """An unbuffered file. Errors of writing are `WriteError`, and call the file `said`."""

    def __init__(self, file: str | os.PathLike[str] | int, mode: str, said: str, *, closefd: bool = True) -> None:
        super().__init__(file, mode, closefd=closefd)
        self._said = said

    def write(self, data: Any) -> int:
        """Write bytes; return how many were taken."""
        try:
            return super().write(data)
        except BrokenPipeError:  # whoever reads has had enough, which is no mistake
            raise
        except OSError as error:
            raise write_error(self._said, error) from None


def open_standard() -> None:
    """See that the three standard streams are there; called before anything else opens a file.

    Where one is closed, the null device takes its place: the next file or socket would get its descriptor, and then what is
    meant for the stream.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _closed.add(descriptor)
            # Who reads the standard input is to hear that it is not there, not that it is empty.
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stdout is None or (sys.stdout is sys.__stdout__ and _descriptor(sys.stdout) == 1):
        sys.stdout = _printing(sys.stdout)


def end_standard() -> None:
    """Write what waits in the standard streams. Give up what cannot be written, or Python would try it again."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _descriptor(stream: TextIO | Any) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _printing(stream: TextIO | None) -> TextIO:
    """Return a stream on the standard output like `stream`, with errors that name it, and for any character."""
    file = io.BufferedWriter(NamedFile(1, "wb", _STDOUT_NAME, closefd=False))
    encoding = stream.encoding if stream else None
    return io.TextIOWrapper(file, encoding=encoding, errors="replace", line_buffering=os.isatty(1))


def check_output() -> None:
    """Raise InputError if the standard output is closed; for commands whose only result is what they print."""
    if 1 in _closed:
        raise InputError("The standard output is closed, and there is nothing else to write to", "leave it open")


class StandardOutput:
    """The standard output as the file of one output, used like a `NewFile`. What is printed goes to standard error instead.

    Raises
    ------
    InputError
        It is closed, a terminal, or something else's already.
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
        """Return what the system knows of it."""
        return os.fstat(self.file.fileno())

    def commit(self) -> None:
        """Write what waits."""
        self.file.flush()

    def __enter__(self) -> StandardOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.file.close()
        except (BrokenPipeError, MshError):
            if error is None:
                raise


class _Output(NamedFile):
    """What the standard output was; it can seek where that is a file that is written from its beginning on."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", _STDOUT_NAME)
        appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        self._seekable = stat.S_ISREG(os.fstat(descriptor).st_mode) and not appends

    def seekable(self) -> bool:
        """Whether what was written can be changed."""
        return self._seekable
