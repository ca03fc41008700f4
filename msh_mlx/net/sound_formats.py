"""Formats of sound that is sent while it is made: each has an encoder, which holds no more than a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import soundfile

from ..format import SAMPLE_RATE, Pcm
from ..sound.ogg import last_page
from ..sound.recordings import to_int16, wav_header
from .opus import PACKET, OpusEncoder

_UNBOUNDED = 0xFFFFFFFF - 36  # bytes of sound that a WAV header tells if it does not know how many come


class Encoder(Protocol):
    """Turns float32 sound at 24 kHz into bytes of a format."""

    def encode(self, pcm: Pcm) -> bytes:
        """Take frames of sound, `[n]`, and return the bytes that they complete."""

    def finish(self) -> bytes:
        """Return the bytes of the end."""


class _Plain:
    """16-bit integers, little-endian, behind a header or without one."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def encode(self, pcm: Pcm) -> bytes:
        header, self._header = self._header, b""
        return header + to_int16(pcm).tobytes()

    def finish(self) -> bytes:
        header, self._header = self._header, b""
        return header


class _Opus:
    """Opus in Ogg.

    Players leave out the codec's delay in front. Silence behind makes up for it: they play the sound to its last sample.
    """

    def __init__(self) -> None:
        self._encoder = OpusEncoder()
        self._samples = 0

    def encode(self, pcm: Pcm) -> bytes:
        self._samples += len(pcm)
        return self._encoder.encode(pcm)

    def finish(self) -> bytes:
        """Return the last page, which ends the stream."""
        late = self._encoder.delay
        rest = self.encode(np.zeros(-(self._samples + late) % PACKET, np.float32))
        return rest + last_page(self.encode(np.zeros(late, np.float32)))


class _Outlet:
    """A file that only goes forward: what is written behind its end can be taken away, and what is rewritten is lost.

    Encoders rewrite the header at the end, with the length, which could not be sent any more.
    """

    def __init__(self) -> None:
        self._new = bytearray()
        self._place = self._end = 0

    def write(self, data: bytes) -> int:
        if self._place == self._end:
            self._new += data
            self._end += len(data)
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = (0, self._place, self._end)[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def take(self) -> bytes:
        data = bytes(self._new)
        self._new.clear()
        return data


class _Library:
    """What libsndfile encodes."""

    def __init__(self, container: str, subtype: str) -> None:
        self._outlet = _Outlet()
        self._file = soundfile.SoundFile(self._outlet, "w", SAMPLE_RATE, 1, subtype, format=container)

    def encode(self, pcm: Pcm) -> bytes:
        self._file.write(np.clip(pcm, -1.0, 1.0))
        return self._outlet.take()

    def finish(self) -> bytes:
        self._file.close()
        return self._outlet.take()


# By their names in OpenAI's interface: what they are called in a header, and the encoder.
FORMATS: dict[str, tuple[str, Callable[[], Encoder]]] = {
    "mp3": ("audio/mpeg", lambda: _Library("MP3", "MPEG_LAYER_III")),
    "opus": ("audio/ogg", _Opus),
    "flac": ("audio/flac", lambda: _Library("FLAC", "PCM_16")),
    "wav": ("audio/wav", lambda: _Plain(wav_header(SAMPLE_RATE, 1, _UNBOUNDED))),
    "pcm": ("audio/pcm", _Plain),
}
