"""Run a check within its time limit, whatever it does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass, replace
from threading import Thread

from ..errors import MshError
from .judgements import Finding

LIMIT = 5.0  # seconds that a check may take
_EXCEPTIONS = 0xC0000000  # the exit codes of processes that an exception of Windows ended
AGAIN = "Install the program again, as its README says."


@dataclass(frozen=True)
class Check:
    """A check, which may take at most `limit` seconds.

    `late` is the advice if it takes longer. `doing` is the text to show while it runs.
    """

    name: str
    run: Callable[[], Finding]
    limit: float = LIMIT
    late: str = "Run it again when the computer is less busy."
    doing: str = ""


def examine(check: Check, seconds: float) -> Finding:
    """Run a check on its own thread, so that a signal or the time limit ends the waiting.

    Return what it finds; a "problem" if it fails or takes longer than its limit or `seconds`; "skipped" if no time is left.
    """
    return replace(_found(check, seconds), name=check.name)


def _found(check: Check, seconds: float) -> Finding:
    limit = min(check.limit, seconds)
    if limit <= 0:
        return Finding("skipped", "there was no time left for it", "Mend what took so long, then run it again.")
    future: Future[Finding] = Future()
    Thread(target=lambda: future.set_result(_made(check)), name=check.name, daemon=True).start()
    try:
        return future.result(limit)
    except TimeoutError:
        return Finding("problem", f"no answer for {limit:.0f} s", check.late)


def _made(check: Check) -> Finding:
    try:
        return check.run()
    except MshError as error:
        return Finding("problem", error.what, sentence(error.advice) or AGAIN)
    except ModuleNotFoundError as error:
        return Finding("problem", f"the module {error.name} is missing", AGAIN)
    except BaseException as error:
        return Finding("problem", f"{type(error).__name__}: {error}", AGAIN)


def death_of(code: str, seconds: float) -> str:
    """Run code in another process, since native code may crash this one. Return the signal that ended it, or "".

    On Windows, return the exception's number.

    Raise subprocess.TimeoutExpired if it takes longer than `seconds`.
    """
    command = [sys.executable, "-I", "-c", code]
    null = subprocess.DEVNULL
    done = subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=seconds)
    if sys.platform == "win32":
        return f"{done.returncode:#x}" if done.returncode >= _EXCEPTIONS else ""
    return signal.Signals(-done.returncode).name if done.returncode < 0 else ""


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
