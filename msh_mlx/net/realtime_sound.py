"""Sound in `/v1/realtime`: its formats, and where speech begins and ends. Nothing here does I/O."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import soundfile
import soxr

from ..format import FRAME_SECONDS, SAMPLE_RATE, Pcm

PCM, ULAW, ALAW = "audio/pcm", "audio/pcmu", "audio/pcma"
FORMATS = PCM, ULAW, ALAW
_SUBTYPES = {ULAW: "ULAW", ALAW: "ALAW"}
_TELEPHONE = 8000  # Hz, of G.711
# Of soxr. It holds back 40 ms, where better qualities hold back twice as much; what they keep more of is hardly heard at 8 kHz.
_QUALITY = "LQ"

_WINDOW = SAMPLE_RATE // 50  # samples, 20 ms, of which the level is measured
_RECENT, _LOUD = 5, 3  # speech begins when so many of the recent windows are loud
_QUIETEST, _RANGE = -60.0, 40.0  # dB of full scale: thresholds from 0 to 1 are from -60 to -20
_ABOVE = 10.0  # dB above the noise, from which on a window is loud
_RISE = 0.06  # dB by which the noise may grow in a window, 3 dB a second
_NONE = -120.0  # dB, of silence

_FAINT = 0.003  # RMS of a frame, -50 dB of full scale: below it the model is silent
PAUSE = round(1.0 / FRAME_SECONDS)  # frames of silence after which the model has ended what it said


class SoundReader:
    """Turns bytes of one of `FORMATS` into sound, piece by piece; a sample may be split over two pieces."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._rest = b""
        self._resampler = None if kind == PCM else _resampler(_TELEPHONE, SAMPLE_RATE)

    def read(self, data: bytes) -> Pcm:
        """Return the next samples, `[n]` float32 at 24 kHz."""
        if self._resampler is None:
            data = self._rest + data
            whole = len(data) & ~1
            self._rest = data[whole:]
            samples: Pcm = np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(32768)
            return samples
        if not data:
            return np.zeros(0, np.float32)
        pcm, _ = soundfile.read(
            io.BytesIO(data),
            format="RAW",
            subtype=_SUBTYPES[self._kind],
            samplerate=_TELEPHONE,
            channels=1,
            dtype="float32",
        )
        made: Pcm = self._resampler.resample_chunk(pcm)
        return made


class SoundWriter:
    """Turns sound into bytes of one of `FORMATS`, piece by piece."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._resampler = None if kind == PCM else _resampler(SAMPLE_RATE, _TELEPHONE)

    def write(self, pcm: Pcm, *, last: bool = False) -> bytes:
        """Return the bytes of the next samples, `[n]` float32 at 24 kHz; with `last`, also of what was held back."""
        if self._resampler is None:
            whole: bytes = np.clip(np.rint(pcm * 32768), -32768, 32767).astype("<i2").tobytes()
            return whole
        slow = np.clip(self._resampler.resample_chunk(pcm, last=last), -1, 1)
        data = io.BytesIO()
        soundfile.write(data, slow, _TELEPHONE, format="RAW", subtype=_SUBTYPES[self._kind])
        return data.getvalue()


def _resampler(rate: int, new_rate: int) -> soxr.ResampleStream:
    return soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality=_QUALITY)


@dataclass(frozen=True)
class SpeechBegan:
    """The user has begun to speak, `at` seconds after the beginning of the client's sound."""

    at: float


@dataclass(frozen=True)
class SpeechEnded:
    """The user has been silent for long enough, `at` seconds after the beginning of the client's sound."""

    at: float


Heard: TypeAlias = SpeechBegan | SpeechEnded


class UserVoice:
    """Finds where the user begins and ends to speak, by the level of sound, against the noise of late.

    `threshold`, from 0 to 1, is how loud speech is at least; `padding` is how many seconds before it belong to it; `silence` is
    how many seconds of silence end it.
    """

    def __init__(self, threshold: float, padding: float, silence: float) -> None:
        self._least = _QUIETEST + _RANGE * threshold
        self._padding = padding
        self.silence = silence
        self._noise = 0.0
        self._loud: list[bool] = []  # of the recent windows
        self._quiet = 0  # windows since the last loud one
        self._ended = 0.0  # when the user last ended
        self.speaks = False

    def hear(self, pcm: Pcm, end: float) -> list[Heard]:
        """Take a frame of sound, which ends `end` seconds after the beginning of all; return what began or ended in it."""
        found: list[Heard] = []
        count = len(pcm) // _WINDOW
        for index, window in enumerate(pcm[: count * _WINDOW].reshape(count, _WINDOW)):
            level = max(_NONE, 20 * float(np.log10(np.sqrt(np.mean(window**2)) + 1e-9)))
            self._noise = min(level, self._noise + _RISE)
            loud = level > max(self._least, self._noise + _ABOVE)
            self._loud = [*self._loud, loud][-_RECENT:]
            self._quiet = 0 if loud else self._quiet + 1
            at = max(0.0, end - (count - 1 - index) * _WINDOW / SAMPLE_RATE)
            if not self.speaks and sum(self._loud) >= _LOUD:
                first = len(self._loud) - self._loud.index(True)  # windows from the first loud one on
                began = at - first * _WINDOW / SAMPLE_RATE - self._padding
                self.speaks = True
                found.append(SpeechBegan(max(self._ended, began)))
            elif self.speaks and self._quiet * _WINDOW >= self.silence * SAMPLE_RATE:
                self.end(at)
                found.append(SpeechEnded(at))
        return found

    def end(self, at: float) -> None:
        """Take it that the user has ended, `at` seconds after the beginning of the client's sound: somebody knows better."""
        self.speaks, self._loud, self._ended = False, [], at


class ModelVoice:
    """Follows the model, frame by frame: whether it speaks, and for how many frames it has been silent."""

    def __init__(self) -> None:
        self.silent = PAUSE

    def say(self, texts: list[str], pcm: Pcm) -> bool:
        """Take a frame's texts and sound; return whether the model speaks in it."""
        speaks = any(texts) or float(np.sqrt(np.mean(pcm**2))) > _FAINT
        self.silent = 0 if speaks else self.silent + 1
        return speaks

    @property
    def pauses(self) -> bool:
        """Whether the model has ended what it said."""
        return self.silent >= PAUSE
