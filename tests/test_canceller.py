"""The microphone without the loudspeaker's echo, on real rings."""

from time import perf_counter, sleep
from types import SimpleNamespace

import numpy as np
import pytest
from mimi import Capture, EchoCanceller, Playback, Reference

from msh_mlx.devices import CaptureSource
from msh_mlx.echo import MODES, EchoFree
from msh_mlx.events import EchoLevels
from msh_mlx.hints import EchoDetector, Hints
from msh_mlx.hints import Sample as HintSample

RATE = 24_000
FRAME = 1920


def syllables(seed: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """Noise in syllables with pauses, in float32."""
    random = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * rate:
        length = int(random.uniform(0.15, 0.35) * rate)
        parts += [0.1 * random.standard_normal(length) * np.hanning(length)]
        parts += [np.zeros(int(random.uniform(0.02, 0.15) * rate))]
    return np.concatenate(parts)[: int(seconds * rate)].astype(np.float32)


def echo_of(played: np.ndarray, delay: float, gain: float) -> np.ndarray:
    late = np.zeros_like(played)
    samples = round(delay * RATE)
    late[samples:] = gain * played[:-samples]
    return late


def decibels(pcm: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(pcm, dtype=np.float64)) + 1e-12))


# ---- the canceller -------------------------------------------------------------------------------------------------------


def cancel(canceller: EchoCanceller, heard: np.ndarray, played: np.ndarray) -> np.ndarray:
    frames = range(0, len(heard) - FRAME + 1, FRAME)
    return np.concatenate([canceller.process(heard[i : i + FRAME], played[i : i + FRAME]) for i in frames])


@pytest.mark.parametrize("delay", [0.02, 0.12, 0.5])
@pytest.mark.parametrize("mode", MODES)
def test_an_echo_is_taken_away_and_off_leaves_it(mode, delay):
    played = syllables(1, 6)
    heard = echo_of(played, delay, 1.0)
    heard += 2e-4 * np.random.default_rng(2).standard_normal(len(heard)).astype(np.float32)
    canceller = EchoCanceller(mode=mode)
    clean = cancel(canceller, heard, played)
    stats = canceller.stats()
    if mode == "off":
        assert np.array_equal(clean, heard[: len(clean)])
        assert not stats["echo"]
        return
    late = slice(4 * RATE, 6 * RATE - FRAME)
    assert decibels(heard[late]) - decibels(clean[late]) > 25
    assert stats["echo"]
    assert abs(stats["delay"] - delay) < 0.003
    assert stats["removed"] > 20
    assert -40 < stats["level"] < -10


def test_the_users_voice_passes_exactly_where_nothing_of_moshi_is_heard():
    canceller = EchoCanceller()
    voice = syllables(3, 8)
    clean = cancel(canceller, voice, syllables(4, 8))
    # In the first words that both say at a time it is not known yet.
    assert np.array_equal(clean[RATE:], voice[RATE : len(clean)])
    # When the user is silent in them, nothing is lost at all.
    canceller, voice = EchoCanceller(), syllables(3, 8)
    voice[: 2 * RATE] = 0
    clean = cancel(canceller, voice, syllables(4, 8))
    assert np.array_equal(clean[2 * RATE :], voice[2 * RATE : len(clean)])
    assert np.abs(clean[: 2 * RATE]).max() < 1e-3


def test_the_users_voice_is_there_while_moshi_speaks():
    played, voice = syllables(5, 12), syllables(6, 12)
    heard = echo_of(played, 0.1, 1.0) + voice
    clean = cancel(EchoCanceller(), heard, played)
    late = slice(8 * RATE, 11 * RATE)
    wanted, got = voice[late].astype(np.float64), clean[8 * RATE + 64 : 11 * RATE + 64].astype(np.float64)
    share = np.dot(wanted, got) / np.dot(wanted, wanted)
    ratio = 10 * np.log10(np.sum((share * wanted) ** 2) / np.sum((got - share * wanted) ** 2))
    assert ratio > 2, ratio


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match='mode is "maybe", but "auto", "on" or "off" is expected'):
        EchoCanceller(mode="maybe")
    canceller = EchoCanceller()
    with pytest.raises(ValueError, match="mode"):
        canceller.mode = "loud"
    assert canceller.mode == "auto"
    frame = np.zeros(FRAME, np.float32)
    for heard, played in ((frame, frame[:-64]), (frame[:-1], frame[:-1])):
        with pytest.raises(ValueError, match="the same multiple of 64 is expected"):
            canceller.process(heard, played)
    with pytest.raises(TypeError):
        canceller.process(frame.astype(np.float64), frame)


# ---- what was played meanwhile -------------------------------------------------------------------------------------------


class Ends:
    """Rings that a test moves in real time, as devices do, with an echo of the loudspeaker in the microphone."""

    def __init__(self, heard_rate: int = RATE, played_rate: int = RATE, delay: float = 0.1, gain: float = 1.0) -> None:
        self.rates = heard_rate, played_rate
        self.capture = Capture(heard_rate)
        self.ring = Playback(played_rate, frame=round(0.08 * played_rate))
        self.source = CaptureSource(self.capture, heard_rate)
        self._air = np.zeros(round(delay * heard_rate), np.float32)
        self._gain = gain
        self._begin = perf_counter()
        self._blocks = 0
        self.rendered: list[np.ndarray] = []

    def move(self) -> None:
        """Let a hundredth of a second pass."""
        self._blocks += 1
        sleep(max(0.0, self._begin + 0.01 * self._blocks - perf_counter()))
        heard_rate, played_rate = self.rates
        played = self.ring.render(played_rate // 100)[:, 0]
        self.rendered.append(played)
        # The ear of a resampler is not needed for an echo: linear interpolation keeps what matters here.
        at = np.arange(heard_rate // 100) * played_rate / heard_rate
        self._air = np.concatenate([self._air, np.interp(at, np.arange(len(played)), played).astype(np.float32)])
        self.capture.feed(self._gain * self._air[: heard_rate // 100])
        self._air = self._air[heard_rate // 100 :]

    # As a microphone.

    def place(self):
        return self.source.place()

    def read(self, n, timeout):
        return self.source.read(n, timeout)

    def backlog(self):
        return self.source.backlog()

    def trim(self, keep):
        return self.source.trim(keep)


@pytest.mark.parametrize("rates", [(24_000, 24_000), (48_000, 44_100), (16_000, 48_000)])
def test_an_echo_through_real_rings_is_taken_away(rates):
    ends = Ends(*rates)
    told: list[EchoLevels] = []
    free = EchoFree(ends, ends, told.append)
    voice = syllables(7, 6, rates[1])
    written, heard = 0, []
    for _ in range(500):
        while ends.ring.queued < 0.16 * rates[1] and written < len(voice):
            ends.ring.write(voice[written : written + round(0.08 * rates[1])])
            written += round(0.08 * rates[1])
        ends.move()
        if (pcm := free.read(FRAME, 0.0)) is not None:
            heard.append(pcm)
    state = free.state()
    assert state.level is not None
    assert state.removed is not None
    assert state.removed > 15
    clean = np.concatenate(heard)[-2 * RATE :]
    played = np.concatenate(ends.rendered)[-2 * rates[1] :]
    assert decibels(played) - decibels(clean) > 15
    assert told
    assert free.mean().removed is not None


def test_places_are_right_after_sound_was_given_up():
    for rate in (RATE, 48_000):
        capture = Capture(rate)
        source = CaptureSource(capture, rate)
        capture.feed(np.arange(rate, dtype=np.float32) / rate)
        assert source.place() == (capture, 0.0)
        pcm = source.read(FRAME, 0.0)
        assert pcm is not None
        assert source.place() == (capture, 0.08 * rate)
        source.trim(0.2)
        place = source.place()[1]
        after = source.read(2 * FRAME, 0.0)
        assert after is not None
        # The ramp says which sample it was; at the cut there is a crossfade, and the resampler's own length.
        assert abs(after[-1] - (place + 0.16 * rate) / rate) < 0.006


def test_nothing_is_lost_while_nothing_comes_and_devices_may_change():
    ends = Ends()
    free = EchoFree(ends, ends, lambda _: None, "on")
    assert free.read(FRAME, 0.01) is None
    ends.capture.feed(np.full(FRAME, 0.1, np.float32))
    assert free.backlog() == pytest.approx(0.08)
    assert free.read(FRAME, 0.0) is not None
    ends.capture = Capture(RATE)
    ends.source = CaptureSource(ends.capture, RATE)
    ends.ring = Playback(RATE, frame=FRAME)
    ends.capture.feed(np.full(FRAME, 0.1, np.float32))
    assert free.read(FRAME, 0.0) is not None
    # No loudspeaker, no microphone.
    free = EchoFree(SimpleNamespace(place=lambda: None, read=ends.read), SimpleNamespace(ring=None), lambda _: None)
    ends.capture.feed(np.full(FRAME, 0.1, np.float32))
    pcm = free.read(FRAME, 0.0)
    assert np.array_equal(pcm, np.full(FRAME, 0.1, np.float32))


def test_modes_change():
    ends = Ends()
    free = EchoFree(ends, ends, lambda _: None)
    for mode in MODES:
        free.mode = mode
        assert free.state().mode == free.mode == mode
        assert free.state().level is None


def test_what_was_played_before_anything_ran_is_silence():
    reference = Reference(Capture(RATE), Playback(RATE, frame=FRAME))
    assert not reference.read(0.0, FRAME).any()
    with pytest.raises(ValueError, match="at least 0"):
        reference.read(0.0, -1)
    with pytest.raises(ValueError, match="at most 72000"):
        reference.read(0.0, 72_001)


# ---- the hint ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cancelling", "words"), [(True, "turn the loudspeaker down"), (False, "press e")])
def test_the_hint_says_what_helps(cancelling, words, monkeypatch):
    monkeypatch.setattr(EchoDetector, "heard", property(lambda _: True))
    hints = Hints(terminal=None, bits=None, frame_seconds=0.08)
    (hint,) = hints.update(HintSample(0.0, cancelling=cancelling))
    assert words in hint
