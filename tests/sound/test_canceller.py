"""`msh_native.EchoCanceller` on sound that is put together."""

import numpy as np
import pytest
from loudness import decibels
from msh_native import EchoCanceller

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.sound.echo import MODES


def syllables(seed: int, seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
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
    samples = round(delay * SAMPLE_RATE)
    late[samples:] = gain * played[:-samples]
    return late


# ---- the canceller -------------------------------------------------------------------------------------------------------


def cancel(canceller: EchoCanceller, heard: np.ndarray, played: np.ndarray) -> np.ndarray:
    frames = range(0, len(heard) - FRAME_SIZE + 1, FRAME_SIZE)
    return np.concatenate([canceller.process(heard[i : i + FRAME_SIZE], played[i : i + FRAME_SIZE]) for i in frames])


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
    late = slice(4 * SAMPLE_RATE, 6 * SAMPLE_RATE - FRAME_SIZE)
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
    assert np.array_equal(clean[SAMPLE_RATE:], voice[SAMPLE_RATE : len(clean)])
    # When the user is silent in them, nothing is lost at all.
    canceller, voice = EchoCanceller(), syllables(3, 8)
    voice[: 2 * SAMPLE_RATE] = 0
    clean = cancel(canceller, voice, syllables(4, 8))
    assert np.array_equal(clean[2 * SAMPLE_RATE :], voice[2 * SAMPLE_RATE : len(clean)])
    assert np.abs(clean[: 2 * SAMPLE_RATE]).max() < 1e-3


def test_the_users_voice_is_there_while_moshi_speaks():
    played, voice = syllables(5, 12), syllables(6, 12)
    heard = echo_of(played, 0.1, 1.0) + voice
    clean = cancel(EchoCanceller(), heard, played)
    late = slice(8 * SAMPLE_RATE, 11 * SAMPLE_RATE)
    wanted, got = voice[late].astype(np.float64), clean[8 * SAMPLE_RATE + 64 : 11 * SAMPLE_RATE + 64].astype(np.float64)
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
    frame = np.zeros(FRAME_SIZE, np.float32)
    for heard, played in ((frame, frame[:-64]), (frame[:-1], frame[:-1])):
        with pytest.raises(ValueError, match="the same multiple of 64 is expected"):
            canceller.process(heard, played)
    with pytest.raises(TypeError):
        canceller.process(frame.astype(np.float64), frame)
