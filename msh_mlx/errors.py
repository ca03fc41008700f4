"""The errors that a user can meet; each message is one sentence that says what was wrong and what to do."""

from __future__ import annotations

import errno


class MshError(Exception):
    """Something failed; the program ends with exit code 1."""

    exit_code = 1


class InputError(MshError, ValueError):
    """Something that the user gave (an option, a file, an array) is wrong; the program ends with exit code 2."""

    exit_code = 2


class InUseError(MshError, RuntimeError):
    """A conversation was used on two threads at once; nothing of it has changed."""


class UnansweredError(MshError):
    """There is no way to the server now; there may be one later."""


class UnreachableError(MshError):
    """The hub does not answer, or must not be asked; what is on disk can be used."""


class WriteError(MshError, OSError):
    """A file could not be written; `errno` is the system's reason."""


def write_error(name: str, error: OSError) -> WriteError:
    """Return what to raise for an error of the system's when `name` was written."""
    advice = {
        errno.ENOSPC: "make room, or name a place on another disk",
        errno.EDQUOT: "make room, or name a place on another disk",
        errno.EFBIG: "the system allows no larger file there, so name another place",
    }.get(error.errno or 0, "name another place")
    made = WriteError(f"{name} cannot be written: {error.strerror or error}; {advice}.")
    made.errno = error.errno
    return made


class ProtocolError(MshError, ValueError):
    """What the other side sent is wrong; the message is one sentence that can be sent back."""
