"""How a check is made: in the time that it has, whatever it does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from threading import Thread

from ..errors import MshError
from .judgements import Finding

LIMIT = 5.0  # seconds for a check
AGAIN = "Install the program again, as its README says."


@dataclass(frozen=True)
class Check:
    """Something to look at, in `limit` seconds at most.

    `late` is what to do if it takes longer, `doing` what a person is told meanwhile.
    """

    name: str
    run: Callable[[], Finding]
    limit: float = LIMIT
    late: str = "Run it again when the computer is less busy."
    doing: str = ""


def examine(check: Check, seconds: float) -> Finding:
    """Make a check on a thread, so that a signal or the time ends the waiting whatever it does.

    Returns
    -------
    finding
        A "problem" if the check fails itself, or takes longer than its limit or `seconds`.
    """
    limit = min(check.limit, seconds)
    if limit <= 0:
        return Finding(
            check.name, "skipped", "there was no time left for it", "Mend what took so long, then run it again."
        )
    future: Future[Finding] = Future()
    Thread(target=lambda: future.set_result(_made(check)), name=check.name, daemon=True).start()
    try:
        return future.result(limit)
    except TimeoutError:
        return Finding(check.name, "problem", f"no answer for {limit:.0f} s", check.late)


def _made(check: Check) -> Finding:
    try:
        return check.run()
    except MshError as error:
        return Finding(check.name, "problem", error.what, sentence(error.advice) or AGAIN)
    except ModuleNotFoundError as error:
        return Finding(check.name, "problem", f"the module {error.name} is missing", AGAIN)
    except BaseException as error:
        return Finding(check.name, "problem", f"{type(error).__name__}: {error}", AGAIN)


def death_of(code: str, seconds: float) -> str:
    """Try code in another process, since native code may end this one; return the signal that ended it, "" if none did.

    Raises
    ------
    subprocess.TimeoutExpired
        It took longer than `seconds`.
    """
    command = [sys.executable, "-I", "-c", code]
    null = subprocess.DEVNULL
    done = subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=seconds)
    return signal.Signals(-done.returncode).name if done.returncode < 0 else ""


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
