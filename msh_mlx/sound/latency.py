"""How long sound takes from the program through the loudspeaker and the microphone back to the program."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ..errors import MshError
from ..format import SAMPLE_RATE, Pcm
from .ends import Loudspeaker, Microphone

_BLOCK = 240  # samples that are read at a time
_AHEAD = 0.03  # seconds of sound that the loudspeaker has beyond its cushion
_SETTLE = 0.5  # seconds until both devices run
_PAUSE = 0.2  # seconds before each sound
_LONGEST = 1.0  # seconds that a round trip may take; Bluetooth needs about half of that
_RECENT = 20  # blocks by which the clocks of the devices are read
_DEAD = 3.0  # seconds without sound after which a microphone gives none
_LEVEL = 0.5  # of full scale
_CLEAR = 8.0  # times the noise after the matched filter; noise alone exceeds five of them in one round of fifty
_FAINTEST = 1e-3  # of the matched filter: below it there is nothing but rounding
_AGREE = 0.02  # seconds within which round trips are the same, on a machine that may be busy


@dataclass(frozen=True)
class RoundTrip:
    """The device round trip in milliseconds: `median`, and `spread`, the range of the middle half.

    `heard` of `played` sounds were found again. What waits in the program's own queues is not part of it.
    """

    median: float
    spread: float
    heard: int
    played: int


def measure_latency(
    microphone: Microphone,
    loudspeaker: Loudspeaker,
    *,
    rounds: int = 7,
    clock: Callable[[], float] = perf_counter,
) -> RoundTrip:
    """Play short chirps and find them in what the microphone hears.

    A sound's way begins when the loudspeaker's queue gives it to the device, and ends when the device has given it to the
    program, blocks of the device included. It takes a little over a second a round. Both devices are open, and not used by
    anything else meanwhile; `clock` gives the seconds of the clock that they live by.

    Raises
    ------
    MshError
        The microphone gives no sound, or does not hear the loudspeaker often enough, or not clearly.
    """
    ends = _Ends(microphone, loudspeaker, clock)
    ends.listen(_SETTLE)
    delays = [delay for _ in range(rounds) if (delay := _round(ends)) is not None]
    median = float(np.median(delays)) if delays else 0.0
    agreeing = [delay for delay in delays if abs(delay - median) <= _AGREE]
    # Sounds that agree on a delay were heard; something else that was taken for them would come at any time.
    if len(agreeing) <= rounds // 2:
        raise MshError(
            "The microphone does not hear the loudspeaker: turn the volume up, take off headphones, and keep the room quiet."
        )
    low, high = np.percentile(agreeing, [25, 75])
    return RoundTrip(1000 * float(np.median(agreeing)), 1000 * float(high - low), len(agreeing), rounds)


def _chirp() -> Pcm:
    """Return 30 ms that rise from 1 to 8 kHz: unlike speech, sharp after a matched filter, and heard on any device."""
    seconds = np.arange(round(0.03 * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * (1000 * seconds + 7000 / (2 * 0.03) * seconds**2)) * np.hanning(len(seconds))
    return (_LEVEL * wave).astype(np.float32)


def _round(ends: _Ends) -> float | None:
    """Return the seconds that a chirp took, None if it was not heard."""
    chirp = _chirp()
    ends.listen(_PAUSE)
    left = ends.play(chirp)
    heard = ends.listen(_LONGEST + ends.ahead)
    size = 1 << (len(heard) + len(chirp)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(chirp, size))
    match = np.abs(np.fft.irfft(spectrum, size)[: len(heard) - len(chirp)])
    at = int(np.argmax(match))
    # The median, because it knows nothing of the sound itself; 0.6745 makes it the deviation of normal noise.
    if match[at] <= max(_CLEAR * float(np.median(match)) / 0.6745, _FAINTEST):
        return None
    return ends.arrived(len(heard) - at) - left


class _Ends:
    """Both devices, kept busy, and the clocks at which they take and give samples.

    A device takes and gives a block at a time, and this thread may look late; but the earliest that a count was seen, less the
    time that so many samples last, is when the device moved.
    """

    def __init__(self, microphone: Microphone, loudspeaker: Loudspeaker, clock: Callable[[], float]) -> None:
        self._microphone = microphone
        self._loudspeaker = loudspeaker
        self._clock = clock
        self._written = self._read = 0
        self._taken: deque[float] = deque(maxlen=_RECENT)
        self._given: deque[float] = deque(maxlen=_RECENT)

    @property
    def ahead(self) -> float:
        """How many seconds are kept ready for the loudspeaker."""
        return self._loudspeaker.cushion() + _AHEAD

    def play(self, pcm: Pcm) -> float:
        """Put a sound into the queue, and return the time at which the device will take it."""
        time = min(self._taken) + self._written / SAMPLE_RATE
        self._write(pcm)
        return time

    def arrived(self, ago: int) -> float:
        """Return the time at which the device gave the sample that was read `ago` samples before the end."""
        return min(self._given) + (self._read - ago) / SAMPLE_RATE

    def listen(self, seconds: float) -> Pcm:
        """Return what is heard, `[24000 * seconds]` float32, while the loudspeaker gets silence behind what it has."""
        heard = []
        for _ in range(round(seconds * SAMPLE_RATE / _BLOCK)):
            while self._loudspeaker.queued() < self.ahead:
                self._write(np.zeros(_BLOCK, np.float32))
            self._taken.append(self._clock() - self._written / SAMPLE_RATE + self._loudspeaker.queued())
            pcm = self._microphone.read(_BLOCK, _DEAD)
            if pcm is None:
                raise MshError("The microphone gives no sound", "choose another one with --input-device")
            self._read += _BLOCK
            self._given.append(self._clock() - self._read / SAMPLE_RATE - self._microphone.backlog())
            heard.append(pcm)
        return np.concatenate(heard)

    def _write(self, pcm: Pcm) -> None:
        self._loudspeaker.write(pcm)
        self._written += len(pcm)
