"""The scenes of `benchmarks/echo.py` are what they say."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from paths import ROOT

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE

sys.path.insert(0, str(ROOT / "benchmarks"))

from echo import decibels, likeness, pass_through, power, words_in_a_row
from echo_scenes import LEVEL, NO_ECHO, SCENES, Air, Scene, Voices, active_level, at_level, plain

SILENCE = np.zeros(FRAME_SIZE, np.float32)
FEW = ("room 0.25", "loop 0.02", "loop 0.5", "level +10", "jump", "drift +100", "volume")
LONG_ROOM = plain(18)[17]  # 0.56 s: what its tail leaves behind words is easily taken for the user
DRY = Scene("dry", room=0.1, direct=60.0, loop=0.1, noise=-120.0)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    pcm = 0.03 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE) // FRAME_SIZE * FRAME_SIZE)
    return pcm.astype(np.float32)


def echo(scene: Scene, played: np.ndarray) -> np.ndarray:
    air = Air(scene)
    pairs = [air.hear(played[i : i + FRAME_SIZE], SILENCE) for i in range(0, len(played), FRAME_SIZE)]
    return np.concatenate([heard - near for heard, near in pairs])


@pytest.mark.parametrize("loop", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("level", [-12.0, 0.0, 10.0])
def test_a_dry_echo_is_late_and_loud_as_it_says(loop, level):
    played = noise(2)
    late = round(loop * SAMPLE_RATE)
    heard = echo(replace(DRY, loop=loop, level=level), played)
    wanted = 10 ** (level / 20) * played[: len(played) - late]
    assert not heard[: late - 1].any()
    assert np.abs(heard[late:] - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("room", [0.1, 0.6])
def test_a_room_keeps_the_level_and_decays(room):
    scene = Scene("room", room=room, loop=0.02)
    played = noise(4)
    heard = echo(scene, played)
    assert abs(active_level(heard[SAMPLE_RATE:]) - active_level(played)) < 1
    impulse = np.zeros(SAMPLE_RATE // FRAME_SIZE * FRAME_SIZE, np.float32)
    impulse[0] = 1.0
    power = echo(scene, impulse).astype(np.float64) ** 2
    left = np.cumsum(power[::-1])[::-1]
    begin, end = (round((0.02 + share * room) * SAMPLE_RATE) for share in (0.2, 0.6))
    assert 10 * np.log10(left[begin] / left[end]) == pytest.approx(0.4 * 60, abs=5)


def test_what_changes_changes():
    played = noise(4)
    base = echo(DRY, played)
    at = 2 * SAMPLE_RATE // FRAME_SIZE * FRAME_SIZE
    moved, louder = echo(replace(DRY, jump=2.0), played), echo(replace(DRY, volume=2.0), played)
    assert np.array_equal(moved[:at], base[:at])
    assert np.abs(moved[at + FRAME_SIZE : -960] - base[at + FRAME_SIZE - 960 : -1920]).max() < 1e-5
    assert np.allclose(louder[at + FRAME_SIZE :], base[at + FRAME_SIZE :] * 10 ** (6 / 20), atol=1e-6)
    assert np.abs(echo(replace(DRY, distort=True), played) - base).max() > 0.05


def test_a_clock_drifts():
    played = np.sin(2 * np.pi * 500 * np.arange(10 * SAMPLE_RATE // FRAME_SIZE * FRAME_SIZE) / SAMPLE_RATE).astype(
        np.float32
    )
    heard = echo(replace(DRY, drift=-1000.0), played)[SAMPLE_RATE:]
    crossings = np.count_nonzero(np.diff(np.signbit(heard)))
    assert crossings / 2 / (len(heard) / SAMPLE_RATE) == pytest.approx(500 * (1 - 1e-3), abs=0.15)


def test_the_same_seed_is_the_same_scene():
    played = noise(1)
    frames = [played[i : i + FRAME_SIZE] for i in range(0, len(played), FRAME_SIZE)]
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


def test_music_is_there_whatever_is_played():
    scene, dry = replace(DRY, music=-20.0), noise(2)
    alone, other = Air(replace(scene, level=NO_ECHO)), Air(scene)
    for i in range(0, len(dry), FRAME_SIZE):
        heard, near = alone.hear(dry[i : i + FRAME_SIZE], SILENCE)
        assert np.array_equal(heard, near)
        assert np.array_equal(other.hear(dry[i : i + FRAME_SIZE], SILENCE)[1], near)
    music = np.concatenate([Air(scene).hear(SILENCE, SILENCE)[1], near])
    assert music.any()
    long = Air(scene)
    whole = np.concatenate([long.hear(SILENCE, SILENCE)[1] for _ in range(2 * 16 * SAMPLE_RATE // FRAME_SIZE)])
    assert active_level(whole) == pytest.approx(LEVEL - 20, abs=0.5)
    assert np.abs(whole[: 16 * SAMPLE_RATE] - whole[16 * SAMPLE_RATE :]).max() < 1e-4


# ---- what our canceller makes of them ------------------------------------------------------------------------------------


def spoken(voices: Voices, scene: Scene, speaking: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    said = words_in_a_row(voices.moshi, scene.seed, 13)
    voice = words_in_a_row(voices.users[1], scene.seed + 1, 13)
    heard, near, clean, _ = pass_through(scene, "ours", said, speaking * voice)
    return heard, near, clean


@pytest.fixture(scope="module")
def voices():
    return Voices(ROOT / "assets" / "demo")


@pytest.mark.parametrize(
    "scene", [*plain(3), LONG_ROOM, *(scene for scene in SCENES if scene.name in FEW)], ids=lambda scene: scene.name
)
def test_little_of_an_echo_is_left_after_two_seconds_and_after_a_change(voices, scene):
    heard, near, clean = spoken(voices, scene, speaking=False)
    for begin, end in ((2.5 + scene.loop, 8.0), (10.0, 13.0)):
        span = slice(int(begin * SAMPLE_RATE), int(end * SAMPLE_RATE))
        assert power(heard[span]) > 100 * power(near[span])
        assert power(clean[span]) < 2 * power(near[span]), decibels(power(clean[span]) / power(near[span]))


@pytest.mark.parametrize("name", ["no echo", "only music"])
def test_what_has_no_echo_passes_as_it_is(voices, name):
    scene = next(scene for scene in SCENES if scene.name == name)
    heard, _, clean = spoken(voices, scene, speaking=True)
    assert np.array_equal(heard[3 * SAMPLE_RATE :], clean[3 * SAMPLE_RATE :])


@pytest.mark.parametrize("scene", plain(3), ids=lambda scene: scene.name)
def test_more_of_the_users_voice_is_left_than_without_a_canceller(voices, scene):
    heard, near, clean = spoken(voices, scene, speaking=True)
    late = slice(4 * SAMPLE_RATE, None)
    assert likeness(near[late], clean[late]) > likeness(near[late], heard[late]) + 3


def test_likeness_is_the_ratio_of_signal_to_distortion():
    wanted, other = noise(4, 1), noise(4, 2)
    late = np.concatenate([np.zeros(240, np.float32), 0.3 * wanted[:-240]])
    assert likeness(wanted, late) > 60
    assert likeness(wanted, wanted + 0.1 * other) == pytest.approx(20, abs=0.3)
