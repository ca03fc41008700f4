"""Check files that a user names before they are opened, and recognise files that are something else."""

from __future__ import annotations

import codecs
import os
import reprlib
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

from ..errors import InputError, MshError
from .places import user_path

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 60
# Byte order marks, which editors and shells of Windows write before a text, and their encodings.
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}

_PIECE = 1 << 16  # bytes that are read of a text at most at once
_TICK = 0.05  # seconds between two looks at something else while a text is waited for

# The advice for a part of a model, or the index of its parts.
ONE_FILE = "give a model that is in one file"


def brief(value: object) -> str:
    """Return a value as short text on one line, for a message."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4300 digits
        return "a number of thousands of digits"


def check_file(path: Path, what: str = "") -> int:
    """Check that a file can be opened without waiting for anything, and return its size in bytes.

    `what`, such as "The tokenizer", comes before the file's name in messages; it may be "". Raise InputError if
    the file does not exist, is a folder, a pipe or a device, or may not be read.
    """
    name = f"{what} {path}".strip()
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"There is no {what.lower().removeprefix('the ') or 'file'} {path}.") from None
    except OSError as error:
        raise cannot_read(name, error) from None
    except ValueError:
        raise InputError(f"{name.replace(chr(0), '?')} is not the name of a file: it has a zero byte in it.") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name} is a folder", "give the file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is a pipe or a device", "give a regular file")
    if not os.access(path, os.R_OK):
        raise cannot_read(name, PermissionError())
    return status.st_size


def existing(path: str, what: str) -> Path:
    """Return the path of a file that a user named. `what`, such as "tokenizer", names it in errors: those of `check_file`."""
    if not path:
        raise InputError(f"The name of the {what} is empty", "give a file")
    found = user_path(path)
    check_file(found, f"The {what}")
    return found


def cannot_read(name: str, error: OSError) -> InputError:
    """Make the error for a file that cannot be read."""
    if isinstance(error, PermissionError):
        return InputError(f"{name} may not be read by this user", "change its permissions")
    return InputError(f"{name} cannot be read: {error.strerror or error}.")


def decode_text(data: bytes) -> str:
    """Decode a text file: as its byte order mark says, else as UTF-8. The mark is removed.

    Raise UnicodeDecodeError if the bytes are not in that encoding.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode("utf-8")


def text_pieces(descriptor: int, name: str, wait: Callable[[], None]) -> Iterator[str]:
    """Read text piece by piece as it comes, without waiting for more. The encoding is that of `decode_text`.

    `name` begins error messages. `wait` is called some twenty times a second while nothing comes; what it raises ends the
    reading. Raise InputError if the descriptor cannot be read, or the bytes are not in that encoding.
    """
    decoder, head = None, b""
    # Windows waits for sockets only.
    pieces = _read_by_thread if sys.platform == "win32" else _read_by_waiting
    for data in pieces(descriptor, name, wait):
        fresh = data
        if decoder is None:
            head += data
            if data and any(mark.startswith(head) and mark != head for mark in _MARKS):
                continue  # it may still become a mark
            mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
            decoder = codecs.getincrementaldecoder(_MARKS.get(mark, "utf-8"))()
            fresh = head[len(mark) :]
        try:
            piece = decoder.decode(fresh, not data)
        except UnicodeDecodeError:
            raise InputError(f"{name} is not text in UTF-8", "give it in this encoding") from None
        if piece:
            yield piece


def _read_by_waiting(descriptor: int, name: str, wait: Callable[[], None]) -> Iterator[bytes]:
    """Yield what can be read, as soon as it comes; at the end nothing, once. The arguments are those of `text_pieces`."""
    data = b" "
    while data:
        try:
            while not select.select([descriptor], [], [], _TICK)[0]:
                wait()
            data = os.read(descriptor, _PIECE)
        except MshError:
            raise
        except OSError as error:
            raise cannot_read(name, error) from None
        yield data


def _read_by_thread(descriptor: int, name: str, wait: Callable[[], None]) -> Iterator[bytes]:
    """Do the same where nothing can wait for a file: a thread reads it, which nobody waits for at the end."""
    read: SimpleQueue[bytes | OSError] = SimpleQueue()

    def read_all() -> None:
        data = b" "
        try:
            while data:
                data = os.read(descriptor, _PIECE)
                read.put(data)
        except OSError as error:
            read.put(error)

    threading.Thread(target=read_all, name="reading", daemon=True).start()
    data: bytes | OSError = b" "
    while data:
        try:
            data = read.get(timeout=_TICK)
        except Empty:
            wait()
            continue
        if isinstance(data, OSError):
            raise cannot_read(name, data) from None
        yield data


def read_small(path: str | os.PathLike[str], what: str, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes. `what` is as for `check_file`.

    Raise InputError if the file cannot be read, is larger, or is something else by its beginning.
    """
    path = user_path(path)
    size = check_file(path, what)
    try:
        with path.open("rb") as file:
            data = file.read(min(size, limit) + 1)
    except OSError as error:
        raise cannot_read(f"{what} {path}", error) from None
    if other := _foreign(data[:64]):
        raise InputError(f"{what} {path} is {other[0]}", other[1])
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= size:
        raise InputError(f"{what} {path} is a safetensors file, which holds weights", f"give {what.lower()} itself")
    if len(data) > limit:
        raise InputError(f"{what} {path} has more than {limit >> 20} MiB, so it is something else", "give another file")
    return data


def _foreign(start: bytes) -> tuple[str, str] | None:
    """Recognise a file that is something else. Return what it is and what to do instead; None if it is not a known mistake."""
    try:
        from msh_native import foreign
    except ImportError:  # the catalogue and configurations are read without it, too
        return None
    return foreign(start)
