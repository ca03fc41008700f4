"""The errors that a user can meet; each message is one sentence that says what was wrong and what to do.

Both parts are fields, for whoever needs one without the other: nobody takes a sentence apart.
"""

from __future__ import annotations

import errno


class MshError(Exception):
    """Something failed; the program ends with exit code 1.

    Parameters
    ----------
    what
        What was wrong, without a full stop where there is `advice`; else a whole sentence.
    advice
        What to do about it, or what was expected, without a full stop: "what; advice." is the message.
    """

    exit_code = 1

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}; {advice}." if advice else what)
        self.what = what if advice else what.removesuffix(".")
        self.advice = advice

    @property
    def clause(self) -> str:
        """The message without its full stop, for the middle of another sentence."""
        return str(self).removesuffix(".")


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
    made = WriteError(f"{name} cannot be written: {error.strerror or error}", advice)
    made.errno = error.errno
    return made


class ProtocolError(MshError, ValueError):
    """What the other side sent is wrong; the message is one sentence that can be sent back."""
