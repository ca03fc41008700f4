"""The trace: what the viewer reads is what was fed, also when the program was killed or the disk is full."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from msh_mlx.errors import InputError
from msh_mlx.events import (
    Called,
    Dropped,
    EchoState,
    Failed,
    Heard,
    Loading,
    Notice,
    Queues,
    Ready,
    Span,
    SpokeWord,
    Underrun,
    Word,
)
from msh_mlx.live.trace import Trace

STAGES = ("encode", "step", "decode")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "trace"]


def tracks(entries: list[dict[str, Any]]) -> dict[int, str]:
    return {e["tid"]: e["args"]["name"] for e in entries if e["name"] == "thread_name"}


def spans(seed: int, count: int, begin: float) -> list[Span]:
    """Frames that go through three stages, each as soon as the stage is free; some follow without a gap."""
    rng = np.random.default_rng(seed)
    free = dict.fromkeys(STAGES, begin)
    result = []
    for index in range(count):
        ready = begin + 0.08 * index
        for stage in STAGES:
            start = max(ready, free[stage])
            ready = free[stage] = start + float(rng.choice([0.0, 1e-7, rng.uniform(0.001, 0.08), 0.2]))
            result.append(Span(stage, index, start, ready))
    return result


@pytest.mark.parametrize("seed", range(3))
def test_spans_are_those_that_were_fed(tmp_path: Path, seed: int) -> None:
    before = perf_counter()
    trace = Trace(tmp_path / "t.json", lambda notice: None)
    fed = spans(seed, 200, perf_counter())
    for span in fed:
        trace(span)
        trace(Heard(span.index, np.zeros(1920, np.float32)))
    assert trace.close(10)
    entries = json.loads((tmp_path / "t.json").read_text())
    names = tracks(entries)
    assert set(STAGES) < set(names.values())
    got = [entry for entry in entries if entry["ph"] == "X"]
    # The same origin for all, between the construction's begin and the first event.
    origins = [span.begin - entry["ts"] / 1e6 for span, entry in zip(fed, got, strict=True)]
    assert before <= min(origins) <= max(origins) < min(origins) + 2e-9 + 1e-9 * fed[-1].end
    for span, entry in zip(fed, got, strict=True):
        assert (names[entry["tid"]], entry["args"]["frame"], entry["pid"]) == (span.stage, span.index, 1)
        assert entry["name"].startswith(span.stage)
        assert entry["dur"] == pytest.approx(1e6 * (span.end - span.begin), abs=0.0021)
    for tid in names:
        own = [(round(1000 * e["ts"]), round(1000 * (e["ts"] + e["dur"]))) for e in got if e["tid"] == tid]
        assert all(end <= begin for (_, end), (begin, _) in pairwise(own))


def test_everything_else(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.json", lambda notice: None)
    begin = perf_counter()
    trace(Loading("loading"))
    trace(Loading("loading", 1.5))
    trace(Ready(2))
    trace(Queues(begin + 1, 0.01, 0.08, 0.16, 0.1, 0.08, 0.4, 7))
    trace(EchoState("auto", found=True, level=-18.44, removed=31.55, delay=0.05))
    trace(EchoState("auto"))
    trace(Dropped(31, 0.4))
    trace(Underrun(7))
    trace(Notice("device-lost", "“Line” is\ngone.", "warning"))
    trace(SpokeWord(Word(1.36, 'say "\udc80"')))
    trace(Called("add", '{"a": 4}', "5", False, 0.25))
    trace(Failed("model", RuntimeError("no memory")))
    assert trace.close(10)
    entries = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    names = tracks(entries)
    loading, called = (e for e in entries if e["ph"] == "X")
    assert (names[loading["tid"]], loading["name"], loading["dur"]) == ("start", "loading", 1.5e6)
    assert (names[called["tid"]], called["name"], called["dur"]) == ("tools", "add", 0.25e6)
    assert called["args"] == {"arguments": '{"a": 4}', "result": "5", "failed": False}
    queues, lost, echo, none = (e for e in entries if e["ph"] == "C")
    assert queues["args"] == {"microphone": 10, "model": 80, "decoder": 160, "loudspeaker": 100, "cushion": 80}
    assert lost["args"] == {"dropped ms": 400, "underruns": 7}
    assert queues["ts"] == lost["ts"]
    assert echo["name"] == none["name"] == "echo dB"
    assert echo["args"] == {"level": -18.4, "removed": 31.6}
    assert none["args"] == {"level": -100, "removed": 0}
    instants = {e["name"]: (names[e["tid"]], e["args"]) for e in entries if e["ph"] == "i"}
    assert instants == {
        "conversation 2": ("events", {}),
        "dropped": ("events", {"frame": 31, "ms": 400}),
        "underrun": ("events", {"count": 7}),
        "device-lost": ("events", {"message": "“Line” is\ngone.", "level": "warning"}),
        'say "?"': ("words", {"start": 1.36}),
        "model failed": ("events", {"message": "no memory"}),
    }
    times = [e["ts"] for e in entries if e["ph"] == "i"]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 1e7
    assert queues["ts"] > 1e6


def test_a_trace_of_nothing(tmp_path: Path) -> None:
    assert Trace(tmp_path / "t.json", lambda notice: None).close(10)
    entries = json.loads((tmp_path / "t.json").read_text())
    assert {e["ph"] for e in entries} == {"M"}
    assert entries[0]["args"] == {"name": "msh-mlx"}


CHILD = """
import os, sys, time
from itertools import pairwise
from pathlib import Path
from msh_mlx.events import Span
from msh_mlx.live.trace import Trace

trace = Trace(Path(sys.argv[1]), lambda notice: os.write(1, notice.message.encode() + b"\\n"))
for index in range(int(sys.argv[2])):
    now = time.perf_counter()
    trace(Span("step", index, now, now + 0.001))
    if index % 200 == 0:
        os.write(1, b"%d\\n" % index)
        time.sleep(0.01)
os.write(1, b"closed %d\\n" % trace.close(10))
"""


def test_a_killed_program_leaves_all_but_the_bracket(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    fed: list[tuple[float, int]] = []
    with subprocess.Popen([sys.executable, "-c", CHILD, path, "1000000"], stdout=subprocess.PIPE) as child:
        assert child.stdout
        for line in child.stdout:
            fed.append((time.monotonic(), int(line)))
            if fed[-1][0] - fed[0][0] > 1.6:
                break
        killed = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
    due = max(index for at, index in fed if at < killed - 1)
    frames = [e["args"]["frame"] for e in json.loads(path.read_text() + "]") if e["ph"] == "X"]
    assert frames == list(range(len(frames)))
    assert len(frames) > due > 0


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.json"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    result = subprocess.run(
        [sys.executable, "-c", CHILD, path, "10001"], capture_output=True, text=True, preexec_fn=limit, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    notices = [line for line in result.stdout.splitlines() if not line.isdigit()]
    assert len(notices) == 2
    assert notices[0].startswith("The trace ended: ")
    assert str(path) in notices[0]
    assert notices[1] == "closed 1"
    assert "10000" in result.stdout.splitlines()
    frames = [e["args"]["frame"] for e in json.loads(path.read_text() + "]") if e["ph"] == "X"]
    assert frames == list(range(len(frames)))
    assert len(frames) > 100


def test_a_slow_disk_ends_the_trace(tmp_path: Path) -> None:
    notices: list[Notice] = []
    trace = Trace(tmp_path / "t.json", notices.append, queue=100)
    go = threading.Event()
    trace._write = lambda *_: go.wait(10)  # type: ignore[method-assign,assignment,return-value]
    for index in range(300):
        trace(Underrun(index))
    assert [notice.kind for notice in notices] == ["trace-ended"]
    assert "slow" in notices[0].message
    assert trace._background._queue.qsize() <= 101
    go.set()
    assert trace.close(10)


def test_hours_do_not_fill_the_memory(tmp_path: Path) -> None:
    """An hour of spans and levels, as fast as they can be written."""
    trace = Trace(tmp_path / "t.json", lambda notice: None, queue=1000)
    now = perf_counter()
    tracemalloc.start()
    try:
        for index in range(12_000):
            while trace._background._queue.qsize() > 500:
                time.sleep(0.001)
            for stage in STAGES:
                trace(Span(stage, index, now + 0.3 * index, now + 0.3 * index + 0.01))
            trace(Queues(now + 0.3 * index, 0, 0, 0, 0, 0, 0, 0))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert trace.close(10)
    entries = json.loads((tmp_path / "t.json").read_text())
    assert sum(e["ph"] == "X" for e in entries) == 36_000
    assert sum(e["ph"] == "C" for e in entries) == 24_000


def test_a_file_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none" / "t.json", tmp_path / "file" / "t.json"):
        with pytest.raises(InputError, match=r"^\S.*\.$") as error:
            Trace(path, lambda notice: None)
        assert str(path.parent) in str(error.value)
    with pytest.raises(InputError):
        Trace(Path("/dev/full"), lambda notice: None)
