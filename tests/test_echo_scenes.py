"""The scenes of `benchmarks/echo.py` are what they say."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from echo_scenes import FRAME, LEVEL, RATE, SCENES, Air, Scene, Voices, active_level, at_level, plain  # noqa: E402

SILENCE = np.zeros(FRAME, np.float32)
DRY = Scene("dry", room=0.1, direct=60.0, loop=0.1, noise=-120.0)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    pcm = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE) // FRAME * FRAME)
    return pcm.astype(np.float32)


def echo(scene: Scene, played: np.ndarray) -> np.ndarray:
    air = Air(scene)
    pairs = [air.hear(played[i : i + FRAME], SILENCE) for i in range(0, len(played), FRAME)]
    return np.concatenate([heard - near for heard, near in pairs])


@pytest.mark.parametrize("loop", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("level", [-12.0, 0.0, 10.0])
def test_a_dry_echo_is_late_and_loud_as_it_says(loop, level):
    played = noise(2)
    late = round(loop * RATE)
    heard = echo(replace(DRY, loop=loop, level=level), played)
    wanted = 10 ** (level / 20) * played[: len(played) - late]
    assert not heard[: late - 1].any()
    assert np.abs(heard[late:] - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("room", [0.1, 0.6])
def test_a_room_keeps_the_level_and_decays(room):
    scene = Scene("room", room=room, loop=0.02)
    played = noise(4)
    heard = echo(scene, played)
    assert abs(active_level(heard[RATE:]) - active_level(played)) < 1
    impulse = np.zeros(RATE // FRAME * FRAME, np.float32)
    impulse[0] = 1.0
    power = echo(scene, impulse).astype(np.float64) ** 2
    left = np.cumsum(power[::-1])[::-1]
    begin, end = (round((0.02 + share * room) * RATE) for share in (0.2, 0.6))
    assert 10 * np.log10(left[begin] / left[end]) == pytest.approx(0.4 * 60, abs=5)


def test_what_changes_changes():
    played = noise(4)
    base = echo(DRY, played)
    at = 2 * RATE // FRAME * FRAME
    moved, louder = echo(replace(DRY, jump=2.0), played), echo(replace(DRY, volume=2.0), played)
    assert np.array_equal(moved[:at], base[:at])
    assert np.abs(moved[at + FRAME : -960] - base[at + FRAME - 960 : -1920]).max() < 1e-5
    assert np.allclose(louder[at + FRAME :], base[at + FRAME :] * 10 ** (6 / 20), atol=1e-6)
    assert np.abs(echo(replace(DRY, distort=True), played) - base).max() > 0.05


def test_a_clock_drifts():
    played = np.sin(2 * np.pi * 500 * np.arange(10 * RATE // FRAME * FRAME) / RATE).astype(np.float32)
    heard = echo(replace(DRY, drift=-1000.0), played)[RATE:]
    crossings = np.count_nonzero(np.diff(np.signbit(heard)))
    assert crossings / 2 / (len(heard) / RATE) == pytest.approx(500 * (1 - 1e-3), abs=0.15)


def test_the_same_seed_is_the_same_scene():
    played = noise(1)
    frames = [played[i : i + FRAME] for i in range(0, len(played), FRAME)]
    for scene in (SCENES[0], *plain(3)):
        one, other = Air(scene), Air(scene)
        for frame in frames:
            assert np.array_equal(one.hear(frame, SILENCE)[0], other.hear(frame, SILENCE)[0])
    assert plain(5)[:3] == plain(3)
    assert len({scene.loop for scene in plain(20)}) == 20


def test_voices_are_as_loud_as_they_say():
    voices = Voices(ROOT / "assets" / "demo")
    assert len(voices.moshi) == 10
    assert [len(voice) for voice in voices.users] == [6, 6, 6]
    for voice in (voices.moshi, *voices.users):
        for pcm in voice.values():
            assert active_level(pcm) == pytest.approx(LEVEL, abs=0.1)
            assert active_level(at_level(pcm, -30.0)) == pytest.approx(-30, abs=0.1)
