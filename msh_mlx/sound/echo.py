"""Remove the loudspeaker's echo from the microphone's sound, so that Moshi does not hear itself, and measure the echo.

Sound is mono float32 at 24 kHz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from msh_native import EchoCanceller, VoiceEnhancer

from ..errors import MshError
from ..events import EchoState
from ..format import FRAME_SIZE, SAMPLE_RATE, Pcm
from ..metrics import EchoFigures
from .ends import Loudspeaker, Microphone

if TYPE_CHECKING:
    from msh_native import Ear, Playback

MODES = {
    "auto": "An echo of Moshi's voice is removed when there is one.",
    "on": "Any echo of Moshi's voice is removed.",
    "off": "An echo of Moshi's voice is left as it is.",
}

_QUIET = 0.5  # seconds of silence before a sound, by which the noise of the room is known
_SOUND = 3.0  # seconds
_LONGEST = 0.6  # seconds that an echo may be late
_LEARNING = 1.0  # seconds until it is measured how much is removed
_MARGIN = 0.01  # seconds that a canceller is told late what was played
_DEAD = 3.0  # seconds without sound after which a microphone gives none
_LEVEL = 0.1  # RMS of the syllables, of full scale
_ABOVE = 2.0  # times the power of noise: what is heard beyond that is an echo


def next_mode(mode: str) -> str:
    """Return the mode that follows in turn: auto, on, off."""
    names = list(MODES)
    return names[(names.index(mode) + 1) % len(names)]


class EchoFree:
    """What a microphone hears without the echo of a loudspeaker: a source for the pipeline.

    Devices may be closed and opened again meanwhile; what was learnt of an echo is forgotten then. While there is no
    loudspeaker, silence counts as what it plays. `read` and `trim` belong to one thread; the mode may be set, and the state be
    asked for, on any.

    `mode` is one of `MODES`; another is a ValueError. `noise_suppression` and `gain_control` are done besides (see
    `msh_native.VoiceEnhancer`). `figures` tell what echo there was so far.
    """

    def __init__(
        self,
        microphone: Microphone,
        loudspeaker: Loudspeaker,
        mode: str = "auto",
        *,
        noise_suppression: bool = False,
        gain_control: bool = False,
    ) -> None:
        self.figures = EchoFigures()
        self._microphone = microphone
        self._loudspeaker = loudspeaker
        self._canceller = EchoCanceller(mode=mode)
        self._enhancer: VoiceEnhancer | None = None
        if noise_suppression or gain_control:
            self._enhancer = VoiceEnhancer(noise_suppression=noise_suppression, gain_control=gain_control)
        self._ear: Ear | None = None
        self._playback: Playback | None = None  # whose echo the ear removes

    @property
    def mode(self) -> str:
        """When an echo is removed."""
        return self._canceller.mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._canceller.mode = mode

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for `n` samples, a multiple of 64, or of 960 where more is done than cancelling, at most `timeout` seconds.

        Return `[n]` float32, or None if they did not come in time; nothing is lost then. Another `n` is a ValueError.
        """
        ear, playback = self._microphone.ear(timeout), self._loudspeaker.playback
        if not ear:
            return None
        if (ear, playback) != (self._ear, self._playback):
            self._ear, self._playback = ear, playback
            ear.clean(self._canceller, playback, self._enhancer)
        pcm = ear.read(n, timeout)
        if pcm is not None:
            self.figures.add(self.state(), n / SAMPLE_RATE)
        return pcm

    def heard(self) -> Pcm:
        """Return the sound that was read last, with its echo: `[n]` float32, empty before the first read."""
        return self._ear.heard() if self._ear else np.zeros(0, np.float32)

    def backlog(self) -> float:
        """Return how much sound waits to be read, in seconds."""
        return self._microphone.backlog()

    def trim(self, keep: float) -> float:
        """Forget the oldest sound so that about `keep` seconds wait. Return how many seconds were forgotten."""
        return self._microphone.trim(keep)

    def state(self) -> EchoState:
        """Return what is known of the echo now."""
        stats = self._canceller.stats()
        mode = stats["mode"]
        if mode == "off":  # nobody looks for one
            return EchoState(mode)
        level, delay = (value if math.isfinite(value) else None for value in (stats["level"], stats["delay"]))
        if delay is not None:
            delay += _MARGIN
        return EchoState(mode, stats["echo"], level, stats["removed"], delay)


# ---- a measurement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EchoMeasure:
    """The echo of a sound: `level` in dB of what was played, `removed` in dB once a second had passed, `delay` in seconds.

    `left` is what remains, in dB of full scale, the noise of the room included. All but `left` are None if the microphone does
    not hear the loudspeaker; `delay` is None as well if it was not found.
    """

    left: float
    level: float | None = None
    removed: float | None = None
    delay: float | None = None


def measure_echo(microphone: Microphone, loudspeaker: Loudspeaker) -> EchoMeasure:
    """Play three seconds of noise with the rhythm of speech. Measure how much of it is heard, and how much is removed.

    Both devices are open, and not used by anything else meanwhile. Raise MshError if the microphone gives no sound.
    """
    source = EchoFree(microphone, loudspeaker, "auto")
    sound = syllables(_SOUND)
    before, after = (np.zeros(round(seconds * SAMPLE_RATE), np.float32) for seconds in (_QUIET, _LONGEST))
    heard, clean = [], []
    for frame in _frames(np.concatenate([before, sound, after])):
        while loudspeaker.queued() < loudspeaker.cushion():
            loudspeaker.write(np.zeros(FRAME_SIZE, np.float32))
        loudspeaker.write(frame)
        pcm = source.read(FRAME_SIZE, _DEAD)
        if pcm is None:
            raise MshError("The microphone gives no sound", "choose another one with --input-device")
        heard.append(source.heard())
        clean.append(pcm)
    return _judged(np.concatenate(heard), np.concatenate(clean), sound, source.state().delay)


def _judged(heard: Pcm, clean: Pcm, sound: Pcm, delay: float | None) -> EchoMeasure:
    """Compare the sound that was heard with the sound that was played, and with the cleaned sound."""
    begin, learnt = (round(seconds * SAMPLE_RATE) for seconds in (_QUIET, _QUIET + _LONGEST + _LEARNING))
    noise = _power(heard[begin // 2 : begin])
    end = begin + len(sound)
    left = _decibels(_power(clean[learnt:end]))
    # The way through the devices is as long at both ends of the sound.
    echo = (_power(heard[begin:]) - noise) * (len(heard) - begin) / len(sound)
    if echo <= _ABOVE * noise:
        return EchoMeasure(left)
    removed = _decibels(_power(heard[learnt:end])) - left
    return EchoMeasure(left, _decibels(echo) - _decibels(_power(sound)), removed, delay)


def syllables(seconds: float, seed: int = 0) -> Pcm:
    """Return noise with the spectrum and the rhythm of speech, `[24000 * seconds]` float32, the same for the same seed."""
    rng = np.random.default_rng(seed)
    size = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hertz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1.0)
    # As loud as voices are: flat from 100 to 500 Hz, and 6 dB an octave less above.
    spectrum *= np.minimum(hertz / 100, 1) ** 2 / np.maximum(hertz / 500, 1)
    noise = np.fft.irfft(spectrum, size)
    envelope = np.zeros(size)
    begin = 0
    for pause in cycle((0.02, 0.05, 0.03, 0.2)):
        length = round(rng.uniform(0.12, 0.28) * SAMPLE_RATE)
        end = min(begin + length, size)
        envelope[begin:end] = (rng.uniform(0.4, 1) * np.hanning(length))[: end - begin]
        begin = end + round(pause * SAMPLE_RATE)
        if begin >= size:
            break
    pcm = noise * envelope
    pcm *= _LEVEL / math.sqrt(_power(pcm))
    return np.clip(pcm, -0.9, 0.9).astype(np.float32)


def _frames(pcm: Pcm) -> list[Pcm]:
    padded = np.pad(pcm, (0, -len(pcm) % FRAME_SIZE))
    return list(padded.reshape(-1, FRAME_SIZE))


def _power(pcm: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> float:
    return float(np.mean(np.square(pcm, dtype=np.float64)))


def _decibels(power: float) -> float:
    return 10 * math.log10(max(power, 1e-12))
