"""Simulated rooms in which a microphone hears a loudspeaker, and voices for them: seeded, frame by frame, 24 kHz mono."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from mimi import Mimi

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE, Pcm

LEVEL = -20.0  # dB of full scale, of a voice while it speaks
NO_ECHO = -300.0  # dB against the user's voice


@dataclass(frozen=True)
class Scene:
    """A room: how the loudspeaker's sound reaches the microphone.

    `room`: reverberation time (RT60) in seconds; `level`: of the echo against the user's voice, dB; `loop`: seconds until the
    direct sound is back; `direct`: dB of the direct sound against the tail; `distort`: a small loudspeaker, 200 Hz to 8 kHz,
    with soft clipping; `noise`: of the microphone, dB of full scale; `jump`: when the loop becomes longer by 40 ms, seconds;
    `drift`: of the loudspeaker's clock against the microphone's, parts per million; `volume`: when the loudspeaker is turned up
    by 6 dB, seconds; `music`: of music in the room that something else plays, dB against the user's voice.
    """

    name: str
    seed: int = 0
    room: float = 0.25
    level: float = 0.0
    loop: float = 0.12
    direct: float = 0.0
    distort: bool = False
    noise: float = -66.0
    jump: float | None = None
    drift: float = 0.0
    volume: float | None = None
    music: float | None = None


SCENES = (
    *(Scene(f"room {room}", room=room) for room in (0.1, 0.25, 0.4, 0.6)),
    *(Scene(f"loop {loop}", loop=loop) for loop in (0.02, 0.06, 0.25, 0.5)),
    *(Scene(f"level {level:+}", level=level) for level in (-30, -12, 10)),
    Scene("distort", distort=True),
    Scene("noise", noise=-50),
    Scene("jump", jump=8.0),
    Scene("drift +100", drift=100),
    Scene("drift -100", drift=-100),
    Scene("volume", volume=8.0),
    Scene("music", music=-20.0),
    Scene("only music", level=NO_ECHO, music=-20.0),
    Scene("no echo", level=NO_ECHO),
)


def plain(count: int) -> list[Scene]:
    """Return seeded scenes with an echo as loud as the user."""
    scenes = []
    for seed in range(count):
        random = np.random.default_rng(1000 + seed)
        room, loop = random.uniform(0.1, 0.6), random.uniform(0.02, 0.5)
        scenes.append(Scene(f"plain {seed}", seed=seed, room=float(room), loop=float(loop)))
    return scenes


def active_level(pcm: npt.NDArray[np.floating]) -> float:
    """Return the level of a voice while it speaks, in dB of full scale, over the 20-ms parts within 15 dB of the loudest."""
    power = np.mean(pcm[: len(pcm) // 480 * 480].reshape(-1, 480).astype(np.float64) ** 2, axis=1)
    return float(10 * np.log10(np.mean(power[power > power.max() / 30]) + 1e-20))


def at_level(pcm: Pcm, level: float = LEVEL) -> Pcm:
    """Return a voice scaled to a level."""
    return (pcm * 10 ** ((level - active_level(pcm)) / 20)).astype(np.float32)


class Air:
    """Simulates a scene, frame by frame."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._random = np.random.default_rng(scene.seed)
        taps = round(scene.room * SAMPLE_RATE)
        # An exponential tail behind the direct sound: Schroeder's model of a diffuse field.
        tail = self._random.standard_normal(taps) * 10 ** (-3 * np.arange(taps) / taps)
        tail[: SAMPLE_RATE // 500] = 0.0
        tail *= 10 ** (-scene.direct / 20) / np.sqrt(np.sum(tail**2))
        tail[0] = 1.0
        response = tail / np.sqrt(np.sum(tail**2))
        if scene.distort:
            response = np.convolve(response, _small_loudspeaker())
        self._response = response
        self._size = 1 << (FRAME_SIZE + len(response)).bit_length()
        self._spectrum = np.fft.rfft(response, self._size)
        self._wet = np.zeros(4 * SAMPLE_RATE)  # in the air, by the loudspeaker's clock; grows
        self._played = 0
        self._time = 0
        self._music = np.zeros(1, np.float32)
        if scene.music is not None:
            dry = _music(scene.seed)
            wet = np.fft.irfft(np.fft.rfft(dry) * np.fft.rfft(response, len(dry)), len(dry))
            self._music = at_level(wet.astype(np.float32), LEVEL + scene.music)

    def hear(self, played: Pcm, voice: Pcm) -> tuple[Pcm, Pcm]:
        """Return the microphone's sound, and the same without the loudspeaker, for frames `[1920]` of the same time."""
        scene = self._scene
        sound = played.astype(np.float64)
        if scene.distort:
            sound = np.tanh(4 * sound) / 4
        end = self._played + self._size
        if end > len(self._wet):
            self._wet = np.concatenate([self._wet, np.zeros(len(self._wet) + self._size)])
        self._wet[self._played : end] += np.fft.irfft(np.fft.rfft(sound, self._size) * self._spectrum, self._size)
        self._played += len(played)
        number = self._time + np.arange(len(played))
        seconds = number / SAMPLE_RATE
        loop = scene.loop + 0.04 * (scene.jump is not None and seconds[0] >= scene.jump)
        gain = 10 ** ((scene.level + 6 * (scene.volume is not None and seconds[0] >= scene.volume)) / 20)
        # Make up for a clock that runs ahead, so that nothing is heard before it was played.
        place = number * (1 + scene.drift * 1e-6) - loop * SAMPLE_RATE
        place -= max(0.0, scene.drift) * 1e-6 * 120 * SAMPLE_RATE
        echo = gain * self._between(place)
        self._time += len(played)
        noise = self._random.standard_normal(len(played)) * 10 ** (scene.noise / 20)
        near = voice + self._music[number % len(self._music)] + noise
        return (near + echo).astype(np.float32).clip(-1, 1), near.astype(np.float32).clip(-1, 1)

    def _between(self, place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sound in the air at places between samples, by Lagrange's interpolation of third order."""
        whole = np.floor(place).astype(int)
        at = place - whole
        weights = (
            -at * (at - 1) * (at - 2) / 6,
            (at + 1) * (at - 1) * (at - 2) / 2,
            -(at + 1) * at * (at - 2) / 2,
            (at + 1) * at * (at - 1) / 6,
        )
        parts = (
            weight * np.where(whole + k >= 0, self._wet[np.maximum(whole + k, 0)], 0.0)
            for k, weight in zip(range(-1, 3), weights, strict=True)
        )
        return np.sum(list(parts), axis=0)


def _small_loudspeaker() -> npt.NDArray[np.float64]:
    """Return the impulse response of a band-pass from 200 Hz to 8 kHz."""
    at = np.arange(-240, 241) / SAMPLE_RATE
    band = 2 * 8000 / SAMPLE_RATE * np.sinc(2 * 8000 * at) - 2 * 200 / SAMPLE_RATE * np.sinc(2 * 200 * at)
    return np.asarray(band * np.hanning(len(at)), np.float64)


def _music(seed: int) -> Pcm:
    """Return 16 s of chords of three plucked strings, two a second, over a bass, to be played in a loop."""
    random = np.random.default_rng(seed)
    at = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    music = np.zeros(16 * SAMPLE_RATE)
    for beat in range(32):
        root = 110 * 2 ** (random.choice([0, 3, 5, 7]) / 12)
        for pitch in root * 2 ** (np.array([-12, *random.choice([0, 3, 7, 10, 12, 15], 3, replace=False)]) / 12):
            string = sum(np.sin(2 * np.pi * k * pitch * at) * np.exp(-(2 + k) * at) / k for k in range(1, 12))
            place = (beat * SAMPLE_RATE // 2 + np.arange(len(at))) % len(music)
            music[place] += string
    return music.astype(np.float32)


# ---- voices --------------------------------------------------------------------------------------------------------------


class Voices:
    """Spoken digits at `LEVEL`: `moshi` are the model's own ten; `users`, by voice, have other pitches and tempos."""

    def __init__(self, folder: Path) -> None:
        codec = Mimi(folder / "mimi.safetensors")
        words = json.loads((folder / "voice.json").read_text())["words"]
        self.moshi = {word: at_level(codec.decode(np.array(codes, np.uint32).T)) for word, codes in words.items()}
        recording, _ = soundfile.read(folder / "digits.flac", dtype="float32")
        self.users = [
            dict(zip(json.loads((folder / "expected.json").read_text())["words"], _cut(recording), strict=True))
        ]
        for factor in (0.94, 1.06):
            self.users.append(
                {
                    word: at_level(soxr.resample(pcm, SAMPLE_RATE, SAMPLE_RATE * factor))
                    for word, pcm in self.users[0].items()
                }
            )


def _cut(recording: Pcm) -> list[Pcm]:
    """Return the words of a recording."""
    loud = np.convolve(np.abs(recording) > 0.03, np.ones(3600), "same") > 0
    edges = np.flatnonzero(np.diff(loud, prepend=False, append=False))
    return [at_level(recording[begin:end]) for begin, end in edges.reshape(-1, 2)]
