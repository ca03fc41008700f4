"""Clients of every kind against the real server, a few of those that `benchmarks/server_soak.py` plays."""

import asyncio
import sys

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import server_soak
from server_soak import Found, Usage, Voice, Wrong, check, come, complaints, soak


def test_the_server_bears_clients_of_every_kind():
    found = soak(60, seed=1, at_once=4)
    assert found.wrong == [], found.noise
    came = {who for who, _ in found.outcomes}
    assert len(came) > 15
    assert found.outcomes["proper", "closed, 1000"] >= 5
    assert len(found.usage) == 5


# ---- it would find what is wrong -----------------------------------------------------------------------------------------


class Ended:
    """A server that has ended, with what it left behind."""

    def __init__(self, *, code=143, err="Stopped.\n", events=()):
        self.process = self
        self.returncode = code
        self._err, self._events = err, list(events)

    def complained(self):
        return self._err

    def events(self):
        return self._events


GOOD = Usage(100_000_000, 8, 10)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (Usage(180_000_000, 8, 10), "memory grew by 80.0 MB"),
        (Usage(100_000_000, 50, 10), "50 threads"),
        (Usage(100_000_000, 8, 11), "11 descriptors"),
    ],
)
def test_growth_is_found(last, said):
    (complaint,) = complaints(Found(usage=[GOOD, last]), Ended(), 60)
    assert said in complaint


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Ended(code=1), "exit code is 1"),
        (Ended(err="Traceback\nValueError: x\nStopped.\n"), "ValueError: x"),
        (Ended(events=[{"event": "error", "error": "KeyError: 1"}]), "KeyError: 1"),
    ],
)
def test_faults_of_the_server_are_found(ended, said):
    (complaint,) = complaints(Found(usage=[GOOD, GOOD]), ended, 60)
    assert said in complaint


def test_a_slow_leak_is_found():
    usage = [Usage(memory, 8, 10) for memory in (100_000_000, 105_000_000, 110_000_000, 120_000_000, 125_000_000)]
    assert complaints(Found(usage=usage), Ended(), 60) == []
    (complaint,) = complaints(Found(usage=usage), Ended(), 1000)
    assert "still grew by 15.0 MB" in complaint


def test_the_reply_of_another_is_found():
    voice = Voice([], {}, [b"\1a", b"\2b", b"\1c"])
    check(voice, [b"\1a", b"\2b", b"\1c"])
    check(voice, [b"\1a"], whole=False)
    for said in ([b"\1a"], [b"\1a", b"\2x", b"\1c"], [b"\1a", b"\2b", b"\1c", b"\1d"]):
        with pytest.raises(Wrong):
            check(voice, said)
    with pytest.raises(Wrong):
        check(voice, [b"\1x"], whole=False)


def test_who_comes_is_the_same_every_time(monkeypatch):
    async def note(kind, port, spoken, said, name, found):
        found.outcomes[kind.__name__, name] += 1

    monkeypatch.setattr(server_soak, "visit", note)
    came = []
    for at_once in (1, 4):
        found = Found()
        asyncio.run(come(iter(range(300)), 7, 0, [], None, at_once, found))
        came.append(found.outcomes)
    assert came[0] == came[1]
    assert {who for who, _ in came[0]} == {kind.__name__ for kind in server_soak.WEIGHTS}
