"""Figures in bounded memory, against those that numpy computes from all values."""

import json
import mmap
import sys
import threading

import numpy as np
import pytest

from msh_mlx.metrics import Durations, Memory, Metrics, percentile, resident_bytes


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_of_all_and_of_the_last_250(seed):
    random = np.random.default_rng(seed)
    values = np.exp(random.normal(-4, [0.01, 0.1, 1, 2, 3][seed], 5000))
    durations = Durations()
    for value in values:
        durations.add(float(value))
    spread = durations.all()
    assert spread.count == 5000
    assert (spread.least, spread.most) == (values.min(), values.max())
    exact = np.percentile(values, [50, 95, 99])
    assert np.allclose([spread.p50, spread.p95, spread.p99], exact, rtol=0.006)
    for percent in (0, 12.5, 50, 95, 100):
        assert durations.recent(percent) == pytest.approx(np.percentile(values[-250:], percent), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 249, 250, 251])
def test_few_values(count):
    values = np.random.default_rng(count).uniform(0.01, 0.1, count)
    durations = Durations()
    for value in values:
        durations.add(float(value))
    for percent in (5, 50, 95):
        assert durations.recent(percent) == pytest.approx(np.percentile(values[-250:], percent), rel=1e-12)
        assert percentile(list(values), percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)
    assert durations.all().p50 == pytest.approx(np.percentile(values, 50), rel=0.006)


def test_no_values():
    assert Durations().recent(50) == Durations().all().p95 == Durations().all().least == percentile([], 50) == 0


def test_values_beyond_the_bins_count():
    durations = Durations()
    for value in (0.0, 1e-9, 1e6):
        durations.add(value)
    spread = durations.all()
    assert (spread.count, spread.least, spread.most) == (3, 0.0, 1e6)
    assert spread.p50 < 2e-6
    assert durations.recent(100) == 1e6


def test_memory_does_not_grow_with_the_count():
    durations = Durations()

    def size():
        return sum(sys.getsizeof(value) for value in vars(durations).values())

    durations.add(0.01)
    before = size()
    for value in np.random.default_rng(0).uniform(0, 1, 20000):
        durations.add(float(value))
    assert size() <= before + 64


def test_reading_while_another_thread_adds():
    durations, stop, seen = Durations(), threading.Event(), []

    def add():
        value = 0.0
        while not stop.is_set():
            value = 0.02 if value == 0.01 else 0.01
            durations.add(value)

    thread = threading.Thread(target=add)
    thread.start()
    for _ in range(300):
        seen += [durations.recent(95), durations.all().p50]
    stop.set()
    thread.join()
    # A first look may find nothing, the first value, or a slot of the window that is about to be filled.
    assert all(value == 0 or 0.0099 < value < 0.0201 for value in seen)
    assert seen[-1] > 0


def test_the_summary_is_json_and_says_what_was_noted():
    metrics = Metrics()
    metrics.step.add(0.25)
    metrics.words += 3
    metrics.memory = Memory(active=1, cache=2, peak=3, rss=4)
    summary = json.loads(json.dumps(metrics.summary()))
    assert summary["words"] == 3
    assert summary["step"] == {"count": 1, "least": 0.25, "p50": 0.25, "p95": 0.25, "p99": 0.25, "most": 0.25}
    assert summary["decode"]["count"] == 0
    assert summary["memory"] == {"active": 1, "cache": 2, "peak": 3, "rss": 4}


def test_memory_is_measured():
    before = resident_bytes()
    assert 1e6 < before < 1e12
    with mmap.mmap(-1, 64 << 20) as block:  # pages of its own, not what an earlier test has freed
        block.write(bytes(64 << 20))
        assert resident_bytes() - before > 32 << 20
    assert Memory.now().rss > 1e6
    mx = pytest.importorskip("mlx.core")
    array = mx.ones((1 << 20,), mx.float32)
    mx.eval(array)
    memory = Memory.now()
    assert memory.peak >= memory.active >= array.nbytes
    assert memory.rss > array.nbytes
