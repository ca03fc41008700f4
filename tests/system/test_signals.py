"""Signals that ask the program to end."""

import os
import signal
import sys
import weakref

import pytest

from msh_mlx.system.signals import Signals, Stopped


class Thing:
    pass


def test_a_signal_in_a_callback_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """Python drops what a weak reference's callback raises, and prints it, as in the middle of an import."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with Signals() as signals:
        del thing
        with pytest.raises(Stopped) as stopped:
            signals.check()
    assert stopped.value.number == signal.SIGTERM
    assert reference() is None
    assert "Traceback" not in capsys.readouterr().err


def test_what_others_raise_in_a_callback_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))
    thing = Thing()
    reference = weakref.ref(thing, lambda _: 1 // 0)
    with Signals():
        del thing
    assert reference() is None
    assert told == [ZeroDivisionError]


def test_a_signal_is_held_while_foreign_code_could_not_bear_it() -> None:
    with Signals() as signals:
        holding = signals.holding()
        holding.__enter__()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            holding.__exit__(None, None, None)
