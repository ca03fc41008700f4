"""Capture and Playback: against slow versions of themselves, through the C callback, across threads, with bad input."""

import ctypes
import threading
import time

import msh_native
import numpy as np
import pytest

RATE = 8000
FRAME = 640
FADE = RATE // 200

CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
)


def noise(rng, n):
    return rng.uniform(-1, 1, n).astype(np.float32)


def sine(n):
    """Ends where it begins if n is a multiple of 80."""
    return (0.5 * np.sin(2 * np.pi * np.arange(n) / 80)).astype(np.float32)


# The sine's largest step, three times, and a fade's.
LARGEST_STEP = 3 * 0.5 * 2 * np.pi / 80 + 0.5 / FADE


class SlowPlayback:
    """The policy of Playback one sample at a time, without the regulation of the delay."""

    def __init__(self):
        self.queue = []
        self.played = []
        self.state = "waiting"
        self.starved = False
        self.gain = 0
        self.cushion = FRAME
        self.underruns = self.silent = self.cleared = 0
        self.calm = True
        self.paused = True
        self.forget = 0
        self.cleared_now = False

    def write(self, pcm):
        self.queue.extend(pcm)
        if len(pcm):
            self.calm = self.paused = False

    def pause(self):
        self.calm = self.paused = True

    def clear(self):
        self.calm = self.cleared_now = True
        self.forget = len(self.queue)

    def render(self, n):
        if self.cleared_now and self.state == "playing":
            self.state, self.starved, self.back = "fading", False, len(self.played)
        self.cleared_now = False
        return np.array([self.sample() for _ in range(n)], np.float32)

    def faded(self, sample):
        return sample * np.float32(np.float32(self.gain) / np.float32(FADE))

    def sample(self):
        if self.state == "fading" and self.gain == 0:
            self.state = "waiting"
        if self.state == "waiting":
            del self.queue[: self.forget]
            self.cleared += self.forget
            self.forget = 0
            if len(self.queue) >= self.cushion or (self.paused and self.queue):
                self.state = "playing"
        if self.state == "playing" and not self.queue:
            self.state, self.starved, self.back = "fading", not self.calm, len(self.played)
            if self.starved:
                self.underruns += 1
                self.cushion = min(self.cushion + FRAME // 4, 4 * FRAME)
        if self.state == "playing":
            self.played.append(self.queue.pop(0))
            self.gain = min(self.gain + 1, FADE)
            return self.faded(self.played[-1])
        if self.state == "fading":
            self.silent += self.starved
            self.gain -= 1
            self.back -= 1
            return self.faded(self.played[self.back])
        self.starved = self.starved and not self.calm
        self.silent += self.starved
        return np.float32(0)


@pytest.mark.parametrize("seed", range(40))
def test_playback_against_slow(seed):
    rng = np.random.default_rng(seed)
    # Less than the 2 s in which the regulation does nothing.
    fast, slow = msh_native.Playback(RATE, frame=FRAME, seconds=30), SlowPlayback()
    rendered = 0
    while True:
        action = rng.integers(12)
        if action == 0:
            fast.clear()
            slow.clear()
        elif action == 1:
            fast.pause()
            slow.pause()
        elif action < 7:
            pcm = noise(rng, int(rng.integers(0, 2 * FRAME)))
            fast.write(pcm)
            slow.write(pcm)
        else:
            n = int(rng.integers(0, 4096 if seed % 4 == 0 else 1000))
            rendered += n
            if rendered >= 2 * RATE:
                break
            np.testing.assert_array_equal(fast.render(n)[:, 0], slow.render(n))
            stats = fast.stats()
            for key in ("underruns", "silent", "cushion"):
                assert stats[key] == getattr(slow, key), key
            assert stats["played"] == len(slow.played)
            assert stats["cleared"] == slow.cleared + slow.forget
        assert fast.queued == len(slow.queue) - slow.forget
    assert rendered > RATE


@pytest.mark.parametrize("seed", range(20))
def test_capture_against_slow(seed):
    rng = np.random.default_rng(seed)
    fast = msh_native.Capture(RATE, channels=2, seconds=0.5)
    mixer = msh_native.Mixer(RATE, 2)
    capacity = RATE // 2
    slow = np.zeros(0, np.float32)
    old = np.zeros(0, np.float32)  # what was forgotten; the sound now blends from it
    begun = 0
    fed = lost = dropped = read = 0

    def blended(n):
        pcm = slow[:n].copy()
        rest = old[begun : begun + n]
        weight = np.arange(begun + 1, begun + 1 + len(rest), dtype=np.float32) / np.float32(len(old) + 1)
        pcm[: len(rest)] = rest + (pcm[: len(rest)] - rest) * weight
        return pcm

    for _ in range(300):
        action = rng.integers(5)
        if action < 2:
            pcm = noise(rng, 2 * int(rng.integers(0, 1500))).reshape(-1, 2)
            fast.feed(pcm)
            room = capacity - len(slow)
            fed += len(pcm)
            lost += max(0, len(pcm) - room)
            slow = np.concatenate([slow, mixer.mix(pcm)[:room]])
        elif action < 4:
            n = int(rng.integers(0, 900))
            pcm = fast.read(n, 0)
            if n > len(slow):
                assert pcm is None
            else:
                np.testing.assert_array_equal(pcm, blended(n))
                slow = slow[n:]
                begun += n
                read += n
        else:
            keep = int(rng.integers(0, capacity))
            n = max(0, len(slow) - keep)
            assert fast.trim(keep) == n
            if n:
                old, begun = blended(FADE), 0
                slow = slow[n:]
                dropped += n
        assert fast.available == len(slow)
    stats = fast.stats()
    assert (stats["samples"], stats["lost"]) == (fed, lost)
    assert fed == read + dropped + lost + fast.available
    assert min(lost, dropped, read) > 0


def test_capture_by_its_callback():
    capture = msh_native.Capture(RATE, channels=2)
    callback = CALLBACK(capture.callback)
    pcm = np.array([[0.5, 0.5], [np.nan, 1], [np.inf, -np.inf], [0, 0]], np.float32)
    assert callback(pcm.ctypes.data, None, 4, None, 2, capture.userdata) == 0
    assert callback(None, None, 4, None, 0, capture.userdata) == 0
    assert callback(pcm.ctypes.data, None, 0, None, 0, capture.userdata) == 0
    assert capture.read(4, 0).tolist() == [0.5, pytest.approx(0.9, abs=0.1), 0, 0]
    stats = capture.stats()
    assert (stats["callbacks"], stats["samples"], stats["device_overflows"]) == (3, 4, 1)
    assert stats["all_zero_seconds"] == 2 / RATE


def test_playback_by_its_callback():
    playback = msh_native.Playback(RATE, channels=3, frame=FRAME)
    callback = CALLBACK(playback.callback)
    playback.write(np.full(FRAME, 7, np.float32))
    output = np.full((100, 3), np.nan, np.float32)
    assert callback(None, output.ctypes.data, 100, None, 4, playback.userdata) == 0
    assert callback(None, None, 100, None, 0, playback.userdata) == 0
    assert callback(None, output.ctypes.data, 0, None, 0, playback.userdata) == 0
    assert (output[FADE:] == 1).all()
    assert (np.diff(output[:, 0]) >= 0).all()
    assert (output == output[:, :1]).all()
    stats = playback.stats()
    assert (stats["callbacks"], stats["samples"], stats["device_underflows"]) == (3, 100, 1)
    assert playback.queued == FRAME - 100


def test_mono_goes_to_all_channels():
    capture = msh_native.Capture(RATE, channels=2)
    pcm = sine(100)
    capture.feed(pcm)
    capture.feed(np.stack([pcm, pcm], 1)[::2])
    np.testing.assert_array_equal(capture.read(150, 0), np.concatenate([pcm, pcm[::2]]))


def test_levels_are_sums_that_asking_leaves_alone():
    capture, playback = msh_native.Capture(RATE), msh_native.Playback(RATE, frame=FRAME)
    pcm = np.array([0.5, -0.999, 0.25, 1.5] * 200, np.float32)
    capture.feed(pcm)
    playback.write(pcm)
    played = playback.render(700)[:, 0]
    for _ in range(2):
        stats = capture.stats()
        assert (stats["peak"], stats["clipped"]) == (1.5, 400)
        assert stats["energy"] == pytest.approx(np.sum(pcm.astype(float) ** 2), rel=1e-6)
        stats = playback.stats()
        assert stats["peak"] == 1
        assert stats["energy"] == pytest.approx(np.sum(played.astype(float) ** 2), rel=1e-6)
    # Of what came since, and nothing did.
    assert capture.stats(800)["peak"] == playback.stats(700)["peak"] == 0
    # A span of 10 ms may have begun before.
    capture.feed(np.full(RATE, 0.125, np.float32))
    assert capture.stats(880)["peak"] == 0.125
    assert capture.stats()["peak"] == 1.5
    for ring in (capture, playback):
        with pytest.raises(ValueError, match="since is -1"):
            ring.stats(-1)


def test_idle_is_the_time_since_the_last_callback():
    for ring, call in (
        (capture := msh_native.Capture(RATE), lambda: capture.feed(sine(10))),
        (playback := msh_native.Playback(RATE, frame=FRAME), lambda: playback.render(10)),
    ):
        time.sleep(0.05)
        assert 0.05 <= ring.stats()["idle"] < 10
        call()
        time.sleep(0.02)
        call()
        stats = ring.stats()
        assert stats["idle"] < stats["longest_gap"]
        assert 0.02 <= stats["longest_gap"] < 10
        assert 0 < stats["longest_callback"] < 10


def test_read_waits_without_the_gil():
    capture = msh_native.Capture(RATE)
    pcm = sine(1000)

    def feed():
        for start in range(0, 1000, 10):
            capture.feed(pcm[start : start + 10])

    thread = threading.Thread(target=feed)
    thread.start()
    # If it kept the GIL, nothing would ever be fed.
    np.testing.assert_array_equal(capture.read(1000, 10), pcm)
    thread.join()


def test_read_gives_up_after_its_timeout():
    capture = msh_native.Capture(RATE)
    capture.feed(sine(10))
    start = time.monotonic()
    assert capture.read(11, 0.05) is None
    assert 0.05 <= time.monotonic() - start < 10
    assert capture.available == 10


def test_capture_across_threads():
    capture = msh_native.Capture(RATE, seconds=0.2)
    total = 300_000
    numbers = np.arange(total, dtype=np.float32)

    def feed():
        rng = np.random.default_rng(0)
        start = 0
        while start < total:
            block = numbers[start : start + int(rng.integers(1, 800))]
            # A device would not wait; here nothing may be lost.
            while capture.available + len(block) > RATE // 5:
                time.sleep(0.0001)
            capture.feed(block)
            start += len(block)

    thread = threading.Thread(target=feed)
    thread.start()
    rng = np.random.default_rng(1)
    start = 0
    while start < total:
        n = min(int(rng.integers(1, 800)), total - start)
        np.testing.assert_array_equal(capture.read(n, 10), numbers[start : start + n])
        start += n
    thread.join()


def test_playback_across_threads():
    """One thread writes, pauses, clears and asks, the other renders: no click, and every sample is accounted for."""
    playback = msh_native.Playback(RATE, frame=FRAME)
    frame = sine(FRAME)
    heard = []
    done = threading.Event()

    def device():
        rng = np.random.default_rng(0)
        while not done.is_set() and time.monotonic() < deadline:
            heard.append(playback.render(int(rng.integers(1, 500)))[:, 0])
            time.sleep(0)

    thread = threading.Thread(target=device)
    deadline = time.monotonic() + 60
    thread = threading.Thread(target=device, daemon=True)
    thread.start()
    rng = np.random.default_rng(1)
    for i in range(3000):
        # More than the largest cushion, or both would wait.
        while playback.queued > 5 * FRAME:
            assert time.monotonic() < deadline
            time.sleep(0)
        playback.write(frame)
        if i % 50 == 0:
            assert playback.stats()["cushion"] >= FRAME
            rng.choice([playback.pause, playback.clear])()
    done.set()
    thread.join()
    pcm = np.concatenate(heard)
    stats = playback.stats()
    assert stats["samples"] == len(pcm)
    assert stats["written"] == 3000 * FRAME
    kept = stats["written"] + stats["inserted"] - stats["trimmed"] - stats["lost"]
    assert kept == stats["played"] + stats["cleared"] + stats["queued"]
    assert stats["played"] > 1000 * FRAME
    assert np.abs(pcm).max() <= 0.5
    assert np.abs(np.diff(pcm)).max() < LARGEST_STEP


def test_two_devices_at_a_ring_break_nothing():
    """That is a mistake, but it may cost samples only."""
    capture, playback = msh_native.Capture(RATE, seconds=600), msh_native.Playback(RATE, frame=FRAME)
    pcm = sine(FRAME)

    def device():
        for _ in range(300):
            capture.feed(pcm)
            playback.write(pcm)
            assert np.isfinite(playback.render(FRAME)).all()

    threads = [threading.Thread(target=device) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = capture.stats()
    assert stats["samples"] == 600 * FRAME == capture.available + stats["lost"]


def test_bad_arguments():
    for make in (
        lambda: msh_native.Capture(0),
        lambda: msh_native.Capture(-48000),
        lambda: msh_native.Capture(RATE, channels=0),
        lambda: msh_native.Capture(RATE, seconds=0),
        lambda: msh_native.Capture(RATE, seconds=float("nan")),
        lambda: msh_native.Playback(RATE, frame=0),
        lambda: msh_native.Playback(RATE, frame=FRAME, seconds=0.3),
        lambda: msh_native.Playback(RATE, frame=FRAME, channels=-1),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()
    capture, playback = msh_native.Capture(RATE, channels=2), msh_native.Playback(RATE, frame=FRAME)
    with pytest.raises(TypeError, match="float32"):
        capture.feed(np.zeros(10))
    with pytest.raises(TypeError, match="float32"):
        playback.write([0.0])
    with pytest.raises(ValueError, match="channels"):
        capture.feed(np.zeros((10, 3), np.float32))
    with pytest.raises(ValueError, match="dimension"):
        playback.write(np.zeros((10, 1), np.float32))
    with pytest.raises(ValueError, match="n is"):
        capture.read(-1, 0)
    with pytest.raises(ValueError, match="n is"):
        capture.read(5 * RATE, 0)
    with pytest.raises(ValueError, match="timeout"):
        capture.read(1, float("nan"))
    with pytest.raises(ValueError, match="timeout"):
        capture.read(1, -1)
    with pytest.raises(ValueError, match="keep"):
        capture.trim(-1)
    with pytest.raises(ValueError, match="n is"):
        playback.render(-1)
    assert playback.render(0).shape == (0, 1)
    assert capture.available == playback.queued == 0
