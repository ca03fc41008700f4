"""Hints: that they come when they help, stay readable, and do not come otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from paths import DIGITS

from msh_mlx.events import EchoState, Heard, ModelInUse, Ready, Said
from msh_mlx.format import FRAME_SECONDS
from msh_mlx.live.hints import EchoDetector, Hints, Latch, envelope
from msh_mlx.live.screen.status import Status
from msh_mlx.sound.headset import is_bluetooth_headset
from msh_mlx.system.terminal import terminal_name

Row = npt.NDArray[np.float64]
STEP = EchoDetector.STEP


def hints(*, terminal: str | None = "iTerm", bits: int | None = 8) -> Hints:
    made = Hints(terminal=terminal)
    if bits is not None:
        made.handle(ModelInUse(bits))
    return made


Figures = tuple[float, Status, float]


def at(time: float, silent: float = 0.0, **figures: Any) -> Figures:
    """What `update` takes: the time, the status, and the seconds of silence."""
    return time, Status(**figures), silent


def over_time(given: Hints, figures: Callable[[float], Figures], seconds: float) -> list[tuple[float, tuple[str, ...]]]:
    """Ask twelve times per second; return when the hints changed, and to what."""
    changes: list[tuple[float, tuple[str, ...]]] = []
    for time in np.arange(0, seconds, 1 / 12):
        now = given.update(*figures(float(time)))
        if now != (changes[-1][1] if changes else ()):
            changes.append((round(float(time)), now))
    return changes


def starts(changes: list[tuple[float, tuple[str, ...]]]) -> list[tuple[float, str]]:
    """When there were other hints, and the first words of the first."""
    return [(time, " ".join(shown[0].split()[:4]) if shown else "") for time, shown in changes]


def test_all_is_well() -> None:
    assert over_time(hints(), lambda time: at(time, step_p95=70), 60) == []


# ---- the microphone ------------------------------------------------------------------------------------------------------


def test_silence_on_a_mac() -> None:
    changes = over_time(hints(), lambda time: at(time, silent=time if time < 40 else 0), 60)
    (asking, (first,)), (denied, (second,)), (gone, rest) = changes
    assert (asking, denied, gone, rest) == (3, 20, 41, ())
    assert "asking" in first
    assert "allow iTerm in System Settings > Privacy & Security > Microphone" in second
    assert "reopen" in second


def test_silence_elsewhere() -> None:
    changes = over_time(hints(terminal=None), lambda time: at(time, silent=time), 30)
    assert starts(changes) == [(3, "The microphone is silent:")]
    assert "unplugged" in changes[0][1][0]


@pytest.mark.parametrize("terminal", ["iTerm", None])
def test_nothing_is_said_of_a_microphone_that_the_user_has_muted(terminal: str | None) -> None:
    given = hints(terminal=terminal)
    shown = {
        time: given.update(*at(time, silent=time, microphone_clipped=True, muted=10 <= time < 20))
        for time in np.arange(0, 30, 1 / 12).tolist()
    }
    for time, said in shown.items():
        muted = 10 <= time < 20
        if time > 4:
            assert [sum(word in hint for hint in said) for word in ("silent", "too loud")] == [not muted] * 2
        if muted:
            assert said == ()


def test_the_next_device_has_its_own_time() -> None:
    given = hints()
    assert "allow" in over_time(given, lambda time: at(time, silent=time), 30)[-1][1][0]
    given.use_device("Other", 48000, ["Other"])
    changes = over_time(given, lambda time: at(30 + time, silent=time), 30)
    assert [time for time, _ in changes] == [3, 20]
    assert "asking" in changes[0][1][0]


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"TERM_PROGRAM": "Apple_Terminal", "TERM": "xterm-256color"}, "Terminal"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iTerm"),
        ({"TERM_PROGRAM": "WezTerm"}, "WezTerm"),
        ({"TERM_PROGRAM": "ghostty"}, "Ghostty"),
        ({"TERM_PROGRAM": "vscode"}, "Visual Studio Code"),
        ({"TERM_PROGRAM": "WarpTerminal"}, "Warp"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "alacritty"}, "Alacritty"),
        ({"TERM_PROGRAM": "tmux", "TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, "iTerm"),
        ({"TERM_PROGRAM": "tmux", "__CFBundleIdentifier": "com.apple.Terminal"}, "Terminal"),
        ({"TERM_PROGRAM": "tmux", "TERM": "tmux"}, "your terminal application"),
        ({}, "your terminal application"),
    ],
)
def test_terminal_names(environment: dict[str, str], name: str) -> None:
    assert terminal_name(environment) == name


OUTPUTS = ["MacBook Pro Speakers", "Bob's Ears", "Display"]


@pytest.mark.parametrize(
    ("name", "rate", "expected"),
    [
        ("Anna's AirPods Pro", 24000, True),
        ("Headset (WH-1000XM4 Hands-Free AG Audio)", 16000, True),
        ("WF-1000XM5", 48000, True),
        ("Beats Studio", 16000, True),
        ("Jabra Evolve2 65", 16000, True),
        ("Bob's Ears", 24000, True),
        ("Bob's Ears", 48000, False),
        ("Display", 48000, False),
        ("Some Microphone", 16000, False),
        ("Logitech USB Headset", 48000, False),
        ("MacBook Pro Microphone", 48000, False),
        ("HDA Intel PCH: ALC257 Analog (hw:0,0)", 44100, False),
    ],
)
def test_bluetooth_headsets(name: str, rate: float, expected: bool) -> None:
    assert is_bluetooth_headset(name, rate, OUTPUTS) == expected


def test_a_headset_is_spoken_of_for_a_while() -> None:
    given = hints()
    given.use_device("Anna's AirPods Pro", 24000, OUTPUTS)
    changes = over_time(given, at, 60)
    assert [time for time, _ in changes] == [0, 30]
    assert changes[0][1][0].startswith("Anna's AirPods Pro")
    given.use_device("MacBook Pro Microphone", 48000, OUTPUTS)
    assert given.update(*at(61)) == ()


def test_clipping() -> None:
    # Once in ten seconds is nothing; three times within some seconds is too much.
    changes = over_time(hints(), lambda time: at(time, microphone_clipped=round(12 * time) % 120 == 0), 60)
    assert changes == []
    changes = over_time(hints(), lambda time: at(time, microphone_clipped=round(12 * time) in (120, 132, 144, 156)), 60)
    assert starts(changes) == [(12, "The microphone is too"), (21, "")]


# ---- the model -----------------------------------------------------------------------------------------------------------


def test_a_slow_model() -> None:
    changes = over_time(hints(), lambda time: at(time, step_p95=90 if 10 <= time < 20 else 70), 60)
    assert starts(changes) == [(15, "This computer is too"), (30, "")]
    assert changes[0][1][0].endswith("choose the q4 model or close other programs.")
    # Around the budget it does not flicker; for moments it does not matter.
    changes = over_time(hints(), lambda time: at(time, step_p95=79 + 2 * (int(time) % 8 < 6)), 100)
    assert starts(changes) == [(5, "This computer is too")]
    assert over_time(hints(), lambda time: at(time, step_p95=79 + 2 * (int(time) % 8 < 4)), 100) == []


@pytest.mark.parametrize("bits", [4, None])
def test_dropped_sound_where_there_is_no_smaller_model(bits: int | None) -> None:
    changes = over_time(hints(bits=bits), lambda time: at(time, dropped=0.08 * int(time > 20)), 60)
    assert [time for time, _ in changes] == [20, 30]
    assert changes[0][1][0].endswith("the model: close other programs.")


def test_a_model_elsewhere() -> None:
    given = Hints(terminal=None, elsewhere=True)
    changes = over_time(given, lambda time: at(time, dropped=0.08 * int(time > 20)), 60)
    assert [time for time, _ in changes] == [20, 30]
    assert changes[0][1] == ("The server or the network is too slow: Moshi does not hear all that you say.",)


def test_a_latch() -> None:
    latch = Latch(1.0, 2.0)
    held = [latch.push(t / 2, h == "x") for t, h in enumerate("x.xx.xxx......x......")]
    assert "".join("x" if h else "." for h in held) == ".......xxxxx........."


# ---- the echo ------------------------------------------------------------------------------------------------------------


def speech(rng: np.random.Generator, seconds: float) -> Row:
    """Levels like those of speech: syllables of some loudness in phrases, and pauses."""
    levels = np.full(round(seconds / STEP), 1e-5)
    time = 0.0
    while time < seconds:
        end, loudness = time + rng.uniform(1, 4), rng.uniform(0.03, 0.15)
        while time < end:
            length = rng.uniform(0.12, 0.32)
            steps = np.arange(int(time / STEP), min(int((time + length) / STEP) + 1, len(levels)))
            shape = np.sin(np.pi * (np.arange(len(steps)) + 0.5) / max(len(steps), 1)) ** 1.5
            levels[steps] = np.maximum(levels[steps], loudness * 10 ** (rng.normal(0, 6) / 20) * shape)
            time += length * rng.uniform(0.8, 1.2)
        time += rng.uniform(0.2, 2)
    return levels


def digits(rng: np.random.Generator, seconds: float, half: int) -> Row:
    """Pieces of one half of a real recording, and pauses."""
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    size = round(STEP * rate)
    steps = len(pcm) // size // 2
    levels = np.array(envelope(pcm[half * steps * size :][: steps * size], steps))
    pieces: list[Row] = []
    while sum(map(len, pieces)) < seconds / STEP:
        begin = rng.integers(0, steps - 20)
        pieces += [levels[begin : begin + rng.integers(20, 120)], np.full(rng.integers(0, 20), 1e-5)]
    return np.concatenate(pieces)[: round(seconds / STEP)]


def echo(levels: Row, delay: float, gain: float) -> Row:
    """What a room makes of it: later, quieter, with a tail of 0.3 s."""
    tail = np.exp(-3 * np.arange(12) * STEP / 0.3)
    power = np.convolve(levels**2, tail / tail.sum())[: len(levels)]
    steps = np.arange(len(levels))
    return gain * np.sqrt(np.interp(steps - delay / STEP, steps, power, left=0))


def noise(rng: np.random.Generator, length: int) -> Row:
    return 0.001 * np.abs(1 + 0.08 * rng.normal(size=length))


def first_heard(played: Row, heard: Row) -> float | None:
    detector = EchoDetector()
    for step, (a, b) in enumerate(zip(played, heard, strict=True)):
        detector.push(float(a), float(b))
        if detector.heard:
            return step * STEP
    return None


Source = Callable[[np.random.Generator, float], Row]
PAIRS: dict[str, tuple[Source, Source]] = {
    "synthetic": (speech, speech),
    "digits": (lambda rng, seconds: digits(rng, seconds, 0), lambda rng, seconds: digits(rng, seconds, 1)),
    "synthetic and digits": (speech, lambda rng, seconds: digits(rng, seconds, 1)),
}


@pytest.mark.parametrize("gain", [0.3, 0.03])
@pytest.mark.parametrize("pair", PAIRS)
def test_an_echo_is_found(pair: str, gain: float) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        played = PAIRS[pair][0](rng, 40)
        heard = np.hypot(echo(played, rng.uniform(0.1, 0.6), gain), noise(rng, len(played)))
        assert first_heard(played, heard) is not None, seed


@pytest.mark.parametrize("pair", PAIRS)
def test_somebody_else_is_not_an_echo(pair: str) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        played, other = (source(rng, 60) for source in PAIRS[pair])
        assert first_heard(played, np.hypot(other, noise(rng, len(played)))) is None, seed


def test_what_is_not_an_echo_either() -> None:
    rng = np.random.default_rng(1)
    played, silence = speech(rng, 60), np.zeros(round(60 / STEP))
    assert first_heard(played, noise(rng, len(played))) is None  # headphones
    assert first_heard(played, silence) is None  # muted
    assert first_heard(silence, speech(rng, 60)) is None  # Moshi says nothing
    assert first_heard(np.roll(played, round(2 / STEP)), played) is None  # Moshi repeats what it hears


def test_the_hint_about_an_echo() -> None:
    rng = np.random.default_rng(1)
    played = speech(rng, 30)
    heard = np.hypot(echo(played, 0.3, 0.1), noise(rng, len(played)))
    given, shown = hints(), []
    given.handle(Ready(1))
    for index in range(len(played) // 2 + 625):
        # The voice begins two frames later; after half a minute there are headphones.
        levels = heard[2 * index : 2 * index + 2]
        given.handle(Heard(index, pcm(levels if len(levels) else noise(rng, 2), rng)))
        if index >= 2:
            levels = played[2 * index : 2 * index + 2]
            given.handle(Said(index, pcm(levels if len(levels) else speech(rng, STEP * 2), rng)))
        shown.append(given.update(*at(index * FRAME_SECONDS)))
    kinds = [bool(hint) for hint in shown]
    assert kinds.count(True) > 100
    assert sum(a != b for a, b in zip(kinds[1:], kinds[:-1], strict=True)) == 2  # it came once and went once
    assert not kinds[-1]
    assert shown[kinds.index(True)][0] == (
        "Moshi hears itself through the microphone: use headphones, or turn the loudspeaker down."
    )


def test_the_hint_about_an_echo_that_is_not_taken_away() -> None:
    rng = np.random.default_rng(1)
    played = speech(rng, 60)
    heard = np.hypot(echo(played, 0.3, 0.1), noise(rng, len(played)))
    given, shown = hints(), []
    for index in range(len(played) // 2):
        off = index < 375
        levels = heard[2 * index : 2 * index + 2] if off else noise(rng, 2)
        given.handle(Heard(index, pcm(levels, rng)))
        given.handle(Said(index, pcm(played[2 * index : 2 * index + 2], rng)))
        shown.append(given.update(*at(index * FRAME_SECONDS, echo=EchoState("off" if off else "auto"))))
    assert set(filter(None, shown[:375])) == {
        ("Moshi hears itself through the microphone: press e to remove the echo, or use headphones.",)
    }
    assert shown[374]
    assert not any(shown[375:])  # what was heard before says nothing of what is heard now


def pcm(levels: Row, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A frame of white noise of these levels."""
    return (rng.normal(size=(2, 960)) * levels[:, None]).astype(np.float32).ravel()


def test_the_most_important_comes_first() -> None:
    given = hints()
    given.use_device("AirPods", 24000, [])
    changes = over_time(given, lambda time: at(time, silent=time, microphone_clipped=True, step_p95=100), 12)
    first = [hint.split()[1] + " " + hint.split()[-1] for hint in changes[-1][1]]
    assert len(first) == 4
    assert [hint.split(":")[0] for hint in changes[-1][1]] == [
        "The microphone is silent so far",
        "This computer is too slow for the model",
        "The microphone is too loud",
        "AirPods sounds like a telephone while its microphone is in use",
    ]


def test_levels_of_a_frame() -> None:
    frame = np.concatenate([np.full(960, 0.5), np.tile([1.0, -1.0], 480)]).astype(np.float32)
    assert envelope(frame, 2) == pytest.approx([0.5, 1.0])
