"""`msh_native.VoiceEnhancer` on the demo's recording of spoken digits."""

import numpy as np
import pytest
import soundfile
from loudness import decibels
from msh_native import VoiceEnhancer
from paths import DIGITS

from msh_mlx.format import FRAME_SIZE

LATE = 96  # samples, with noise suppression


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    assert rate == 24_000
    pcm = np.tile(pcm, 4)
    return pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE]


def enhance(enhancer: VoiceEnhancer, pcm: np.ndarray) -> np.ndarray:
    return np.concatenate([enhancer.process(pcm[i : i + FRAME_SIZE]) for i in range(0, len(pcm), FRAME_SIZE)])


def test_with_neither_sound_passes_as_it_is(voice):
    assert np.array_equal(enhance(VoiceEnhancer(), voice), voice)


def test_noise_suppression_takes_noise_and_leaves_the_voice(voice):
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(voice)).astype(np.float32)
    clean = enhance(VoiceEnhancer(noise_suppression=True), voice + noise)
    loud = np.convolve(np.abs(voice) > 0.01, np.ones(4800), "same") > 0
    half = len(voice) // 2
    pause, words = (np.flatnonzero(of[half:-LATE]) + half for of in (~loud, loud))
    assert decibels((voice + noise)[pause]) - decibels(clean[pause + LATE]) > 8
    assert abs(decibels(voice[words]) - decibels(clean[words + LATE])) < 1


def test_gain_control_brings_voices_to_one_level(voice):
    levels = {}
    for gain in (-30, -20, -10):
        enhanced = enhance(VoiceEnhancer(gain_control=True), np.tile(voice, 3) * np.float32(10 ** (gain / 20)))
        assert np.abs(enhanced).max() <= 1
        levels[gain] = decibels(enhanced[-len(voice) :])
    assert max(levels.values()) - min(levels.values()) < 4, levels


def test_after_a_reset_it_is_as_new(voice):
    enhancer = VoiceEnhancer(noise_suppression=True, gain_control=True)
    first = enhance(enhancer, voice)
    enhancer.reset()
    assert np.array_equal(enhance(enhancer, voice), first)


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match="479 samples, but a multiple of 480 is expected"):
        VoiceEnhancer(gain_control=True).process(np.zeros(479, np.float32))
    with pytest.raises(TypeError):
        VoiceEnhancer().process(np.zeros(480))
    with pytest.raises(TypeError):
        VoiceEnhancer(True)
