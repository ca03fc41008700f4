"""The errors that a user can meet. Each message is one sentence that says what was wrong and what to do.

Both parts are fields, so that nobody has to take the sentence apart.
"""

from __future__ import annotations

import errno


class MshError(Exception):
    """Something failed. The program ends with exit code 1.

    Parameters
    ----------
    what
        What was wrong. Without `advice` it is a whole sentence; with it, it has no full stop.
    advice
        What to do about it, or what was expected, without a full stop. The message is "what; advice.".
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
    """An input of the user is wrong: an option, a file or an array. The program ends with exit code 2."""

    exit_code = 2


class InUseError(MshError, RuntimeError):
    """A conversation was used on two threads at once. The call that raises this has changed nothing."""


class NoDeviceError(MshError):
    """There is no sound device of the kind that is needed."""


class UnansweredError(MshError):
    """The server cannot be reached now. It may be reached later."""


class UnreachableError(MshError):
    """The hub does not answer, or must not be asked. Files on disk can still be used."""


class WriteError(MshError, OSError):
    """A file could not be written. `errno` is the system's reason."""


def write_error(name: str, error: OSError) -> WriteError:
    """Make the error to raise when the system failed to write `name`."""
    advice = {
        errno.ENOSPC: "make room, or name a place on another disk",
        errno.EDQUOT: "make room, or name a place on another disk",
        errno.EFBIG: "the system allows no larger file there, so name another place",
    }.get(error.errno or 0, "name another place")
    made = WriteError(f"{name} cannot be written: {error.strerror or error}", advice)
    made.errno = error.errno
    return made


class ProtocolError(MshError, ValueError):
    """The other side sent something wrong. The message is one sentence that can be sent back."""
