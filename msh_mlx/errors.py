"""The errors that a user can meet; each message is one sentence that says what was wrong and what to do."""


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
