"""Moshi's voice in the microphone: where it is looked for, that it is removed, and how it is measured.

The rings are the real ones. Their callbacks are called as time goes by, since that is the clock that both devices share.
"""

from __future__ import annotations

import time
from itertools import cycle

import numpy as np
import pytest
from loudness import decibels
from msh_native import Capture, Ear, Mouth, Playback, VoiceEnhancer

from msh_mlx.errors import MshError
from msh_mlx.events import EchoState
from msh_mlx.format import FRAME_SIZE, Pcm
from msh_mlx.live.screen.status import EchoSummary
from msh_mlx.metrics import Decibels, EchoFigures
from msh_mlx.sound.echo import MODES, EchoFree, measure_echo, next_mode, syllables

BLOCK = 0.01  # seconds of a callback


# ---- removed ----------------------------------------------------------------------------------------------------------


class Room:
    """Microphone and loudspeaker in a room, as time goes by, and the ear there; keeps what was heard."""

    def __init__(
        self, heard_rate: int = 24000, played_rate: int = 24000, *, gain: float = 0.5, delay: float = 0.05
    ) -> None:
        self._rng = np.random.default_rng(1)
        self._words = cycle(syllables(8, seed=3).reshape(-1, FRAME_SIZE))
        self.playback: Playback | None = None
        self.open(heard_rate, played_rate, gain=gain, delay=delay)

    def open(self, heard_rate: int, played_rate: int, *, gain: float, delay: float) -> None:
        """Take other devices."""
        self.raw: list[Pcm] = []
        self.dead = False
        self._rates = heard_rate, played_rate
        self._gain = gain
        self._capture = Capture(heard_rate)
        self._ear = Ear(self._capture)
        self.backlog, self.trim = self._ear.backlog, self._ear.trim
        self.clean, self.heard = self._ear.clean, self._ear.heard
        self._speaking = Playback(played_rate, frame=round(0.08 * played_rate))
        self.playback = self._speaking
        mouth = Mouth(self._speaking)
        self.write, self.queued = mouth.write, mouth.queued
        self._air = np.zeros(round(delay * played_rate))
        self._due = time.perf_counter()

    def cushion(self) -> float:
        return float(self._speaking.stats()["cushion"]) / self._rates[1]

    def ear(self, timeout: float) -> Room:
        return self

    def read(self, n: int, timeout: float) -> Pcm | None:
        self.live(0)
        while (pcm := self._ear.read(n, 0)) is None:
            if self.dead:
                return None
            self.live(BLOCK)
        self.raw.append(self.heard())
        return pcm

    def live(self, seconds: float) -> None:
        """Let the devices do what they do until now, and for so long."""
        end = time.perf_counter() + seconds
        heard_rate, played_rate = self._rates
        while not self.dead and self._due <= max(end, time.perf_counter()):
            time.sleep(max(0.0, self._due - time.perf_counter()))
            self._due += BLOCK
            block = self._speaking.render(round(BLOCK * played_rate))[:, 0]
            air = np.append(self._air, self._gain * block)
            block, self._air = air[: len(block)], air[len(block) :]
            # Between the samples on straight lines: a filter, which is the same all the time.
            places = np.arange(round(BLOCK * heard_rate)) * played_rate / heard_rate
            heard = np.interp(places, np.arange(len(block) + 1), [*block, self._air[0]])
            self._capture.feed((heard + 1e-4 * self._rng.standard_normal(len(heard))).astype(np.float32))

    def converse(self, source: EchoFree, seconds: float) -> tuple[Pcm, Pcm]:
        """Let Moshi talk; return the same sound as it was heard, and as the source gives it, in the last second."""
        clean = []
        for _ in range(round(seconds / 0.08)):
            while self.queued() < 0.16:
                self.write(next(self._words))
            pcm = source.read(FRAME_SIZE, 1)
            assert pcm is not None
            assert (pcm.shape, pcm.dtype) == ((FRAME_SIZE,), np.float32)
            clean.append(pcm)
        return np.concatenate(self.raw[-12:]), np.concatenate(clean[-12:])


@pytest.mark.parametrize(
    ("heard_rate", "played_rate", "delay"),
    [(24000, 24000, 0.05), (48000, 48000, 0.02), (44100, 24000, 0.2), (48000, 44100, 0.1)],
)
def test_the_echo_goes(heard_rate: int, played_rate: int, delay: float) -> None:
    room = Room(heard_rate, played_rate, delay=delay)
    source = EchoFree(room, room)
    assert source.state() == EchoState("auto")
    heard, clean = room.converse(source, 4)
    assert decibels(heard) - decibels(clean) > 15
    state = source.state()
    assert state.found
    assert state.removed > 10
    assert state.level == pytest.approx(decibels(heard), abs=6)
    # The way through the ring of the resampled microphone is not one of sound.
    assert state.delay == pytest.approx(delay, abs=0.03)
    # After frames were given up, sound is still where it is looked for.
    room.live(0.5)
    assert source.backlog() > 0.3
    assert source.trim(0.08) > 0.2
    heard, clean = room.converse(source, 2)
    assert decibels(heard) - decibels(clean) > 15
    summary = EchoSummary.of(source.figures)
    assert summary
    assert 3 < summary.seconds < 6.1
    assert 10 < summary.removed <= summary.removed_most
    assert summary.level <= summary.level_most < 0


def test_other_devices_have_another_echo() -> None:
    room = Room(delay=0.03)
    source = EchoFree(room, room)
    room.converse(source, 3)
    assert source.state().found
    room.dead = True
    room.trim(0)
    assert source.read(FRAME_SIZE, 0.01) is None
    assert source.state().found  # nothing was heard that speaks against it
    # While there is a microphone only, it passes as it is.
    room.open(48000, 48000, gain=0.5, delay=0.25)
    room.playback = None
    heard, clean = room.converse(source, 1.2)
    assert not source.state().found
    assert np.array_equal(heard[FRAME_SIZE:], clean[FRAME_SIZE:])  # the change is faded over
    room.open(48000, 48000, gain=0.5, delay=0.25)
    heard, clean = room.converse(source, 4)
    assert decibels(heard) - decibels(clean) > 15
    assert source.state().delay == pytest.approx(0.25, abs=0.03)


def test_the_mode() -> None:
    room = Room()
    source = EchoFree(room, room, "off")
    heard, clean = room.converse(source, 1.2)
    assert np.array_equal(heard, clean)
    assert source.state() == EchoState("off")
    assert EchoSummary.of(source.figures) is None
    source.mode = "on"
    heard, clean = room.converse(source, 4)
    assert decibels(heard) - decibels(clean) > 10
    assert source.state().mode == source.mode == "on"
    source.mode = "off"
    heard, clean = room.converse(source, 1.2)
    assert np.array_equal(heard, clean)
    assert source.state() == EchoState("off")
    with pytest.raises(ValueError, match="loud"):
        source.mode = "loud"
    with pytest.raises(ValueError, match="loud"):
        EchoFree(room, room, "loud")
    with pytest.raises(ValueError, match="64"):
        source.read(100, 1)


@pytest.mark.parametrize("what", ["noise_suppression", "gain_control"])
def test_more_is_done_where_it_is_asked_for(what: str) -> None:
    room = Room(gain=0)
    heard, got = room.converse(EchoFree(room, room, "off", **{what: True}), 2)
    enhancer = VoiceEnhancer(**{what: True})
    wanted = np.concatenate([enhancer.process(pcm) for pcm in room.raw])[-len(got) :]
    assert np.array_equal(got, wanted)
    assert not np.array_equal(got, heard)


def test_the_modes_in_turn() -> None:
    assert [next_mode(mode) for mode in MODES] == ["on", "off", "auto"]


def test_headphones() -> None:
    room = Room(gain=0)
    source = EchoFree(room, room)
    heard, clean = room.converse(source, 3)
    assert np.array_equal(heard, clean)
    assert source.state() == EchoState("auto")


def test_figures() -> None:
    figures = EchoFigures()
    assert EchoSummary.of(figures) is None
    figures.add(EchoState("auto"), 10)
    figures.add(EchoState("on", found=True), 10)  # one that is not known yet
    assert EchoSummary.of(figures) is None
    rng = np.random.default_rng(1)
    levels, removed = rng.normal(-30, 5, 999), rng.normal(25, 9, 999)
    for level, took in zip(levels, removed, strict=True):
        figures.add(EchoState("auto", found=True, level=level, removed=took, delay=0.1), 0.08)
    summary = EchoSummary.of(figures)
    assert summary
    assert summary.seconds == pytest.approx(79.92)
    for got, right in [
        (summary.level, np.median(levels)),
        (summary.level_most, levels.max()),
        (summary.removed, np.median(removed)),
        (summary.removed_most, removed.max()),
    ]:
        assert got == pytest.approx(right, abs=0.5)
    figures.add(EchoState("auto", found=True, level=-1000.0, removed=1000.0), 0.08)  # has its place, too


def test_a_summary_while_the_first_figures_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the main thread, when the thread that hears is slow to end."""
    figures = EchoFigures()
    summaries = []

    def add(decibels: Decibels, value: float) -> None:
        summaries.append(EchoSummary.of(figures))
        plain(decibels, value)

    plain = Decibels.add
    monkeypatch.setattr(Decibels, "add", add)
    figures.add(EchoState("on", found=True, level=-30.0, removed=20.0), 0.08)
    assert summaries == [None, None]
    assert EchoSummary.of(figures) == EchoSummary(0.08, -30, -30, 20, 20)


# ---- a measurement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "delay"), [(0.5, 0.05), (0.05, 0.2)])
def test_an_echo_is_measured(gain: float, delay: float) -> None:
    room = Room(gain=gain, delay=delay)
    measure = measure_echo(room, room)
    assert measure.level == pytest.approx(20 * np.log10(gain), abs=1.5)
    assert measure.removed
    assert measure.removed > 15
    assert measure.left < -40
    assert measure.delay == pytest.approx(delay, abs=0.03)


def test_no_echo_is_measured() -> None:
    room = Room(gain=0)
    measure = measure_echo(room, room)
    assert measure.level is measure.removed is measure.delay is None
    assert measure.left == pytest.approx(-80, abs=1)
    room.dead = True
    room.trim(0)
    with pytest.raises(MshError, match="gives no sound"):
        measure_echo(room, room)


def test_syllables() -> None:
    sound = syllables(3, seed=1)
    assert (sound.shape, sound.dtype) == ((72000,), np.float32)
    assert np.array_equal(sound, syllables(3, seed=1))
    assert not np.array_equal(sound, syllables(3, seed=2))
    assert decibels(sound) == pytest.approx(-20, abs=0.5)
    assert np.abs(sound).max() <= 0.9
    levels = np.sqrt(np.mean(np.square(sound.reshape(-1, 480)), axis=1))
    assert np.percentile(levels, 10) < 0.1 * np.percentile(levels, 90)
