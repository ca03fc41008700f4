"""The microphone and the loudspeaker: each a stream, its ring, and its figures.

PortAudio calls native code in `msh_native`, which copies sound into and out of rings. No Python runs when a device wants
sound, so Python cannot be late. On this side of the rings sound is mono float32 at 24 kHz, whatever the device has.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from msh_native import Capture, Ear, Mouth, Playback

from ..errors import MshError
from ..format import FRAME_SECONDS, SAMPLE_RATE, Pcm
from .devices import NOUN, Device, Kind, describe_format
from .mixing import opposed
from .portaudio import ANSWER, PORTAUDIO, PortAudio, Stream, StreamError, open_sounddevice, within

_SILENT = 1.0  # seconds without a callback after which a stream is lost
_SETTLING = 3.0  # seconds after opening in which a stream may take as long as that (Bluetooth changes its profile)
_CUSHION = 0.25  # seconds that wait before sound is played that is written ahead
CLOSE = 0.3  # seconds to wait for a stream to close: one whose device is gone may never do so


@dataclass(frozen=True)
class Level:
    """How loud sound was since the last question: the largest sample, the root mean square, and how many samples clipped."""

    peak: float = 0.0
    rms: float = 0.0
    clipped: int = 0


@dataclass(frozen=True)
class _Sums:
    """The sums over a ring's samples from which levels are made, and the largest sample."""

    samples: int = 0
    energy: float = 0.0
    clipped: int = 0
    peak: float = 0.0


_LEVELS = ("energy", "clipped", "peak")  # the stats of a ring that `level` reports
_COUNTED = ("samples", "silent", "lost", "trimmed", "inserted")
_SAMPLES = (*_COUNTED, "cushion", "queued")  # stats in samples at the device's rate
_COUNTS = (*_COUNTED, "callbacks", "underruns", "device_overflows", "device_underflows")  # go on with the next stream


@dataclass(frozen=True)
class _Line:
    """An open stream, its ring, and the ring's side at 24 kHz: an `Ear` or a `Mouth`."""

    device: Device
    rate: int
    channels: int
    ring: Any
    side: Any
    stream: Stream
    opened: float
    before: Mapping[str, float]  # counts of the streams before it

    def stats(self) -> dict[str, Any]:
        """Return the ring's stats, without levels. Counts include earlier streams; samples are counted at 24 kHz."""
        stats: dict[str, Any] = {name: value for name, value in self.ring.stats().items() if name not in _LEVELS}
        for name in stats.keys() & _SAMPLES:
            stats[name] = round(stats[name] * SAMPLE_RATE / self.rate)
        for name in stats.keys() & _COUNTS:
            stats[name] += self.before.get(name, 0)
        return stats


class _End(ABC):
    """What a microphone and a loudspeaker have in common: a stream that can be closed and opened again on other devices."""

    kind: Kind

    def __init__(self, system: PortAudio = PORTAUDIO) -> None:
        self._system = system
        self._line: _Line | None = None
        self._latest: _Line | None = None  # stays after closing, for figures
        self._lock = threading.Lock()  # levels are asked for on one thread, and streams opened on another
        self._told = _Sums()  # of the latest ring, when its level was asked for
        self._rest = _Sums()  # of earlier rings since then

    @abstractmethod
    def _ring(self, rate: int, channels: int) -> tuple[Any, Any]:
        """Return a new ring for a device with that rate and so many channels, and its side at 24 kHz."""

    @abstractmethod
    def _formats(self, device: Device) -> list[tuple[int, int]]:
        """Return the rates and numbers of channels to try, the first one first."""

    def open(self, device: Device) -> None:
        """Open a stream of `device`: at 24 kHz if the device can, else at its own rate. Close the one before.

        A loudspeaker is opened in mono if it can be, a microphone with all of its channels.

        Raises
        ------
        MshError
            The device is in use, not allowed, not there any more, or cannot be opened for another reason.
        """
        self.close()
        line = within(ANSWER, lambda: self._open(device), lambda late: late.stream.close())
        with self._lock:
            self._rest = self._untold()
            self._told = _Sums()
            self._line = self._latest = line

    def _open(self, device: Device) -> _Line:
        trouble: StreamError | None = None
        for rate, channels in dict.fromkeys(self._formats(device)):
            ring, side = self._ring(rate, channels)
            try:
                stream = self._system.open(device, self.kind, rate, channels, ring)
            except StreamError as error:
                trouble = error
                if error.reason == "busy":
                    break
            else:
                before = {name: count for name, count in self.stats().items() if name in _COUNTS}
                return _Line(device, rate, channels, ring, side, stream, monotonic(), before)
        assert trouble
        raise trouble

    def close(self) -> None:
        """Close the stream, promptly even if its device is gone."""
        line, self._line = self._line, None
        if not line:
            return
        try:
            within(CLOSE, line.stream.close)
        except MshError:
            # PortAudio hangs. It would hang again when sounddevice ends it at the exit of the process.
            with contextlib.suppress(Exception):
                atexit.unregister(open_sounddevice()._exit_handler)

    @property
    def device(self) -> Device | None:
        """The device; None while closed."""
        line = self._line
        return line.device if line else None

    @property
    def latency(self) -> float:
        """How long sound takes through the device, in seconds, as PortAudio says; 0 while closed."""
        line = self._line
        return line.stream.latency if line else 0.0

    @property
    def lost(self) -> bool:
        """Whether the stream has died: it ended, or its device made no callback for a second (three just after opening)."""
        line = self._line
        if not line:
            return False
        limit = _SILENT if monotonic() - line.opened > _SETTLING else _SETTLING
        return not line.stream.active or bool(line.stats()["idle"] > limit)

    def stats(self) -> dict[str, Any]:
        """Return the stats of the ring (see `msh_native`), without its levels; samples are counted at 24 kHz.

        Counts go on when the stream is opened again. The result is empty before the first time.
        """
        line = self._latest
        return line.stats() if line else {}

    def level(self) -> Level:
        """Return how loud the sound was since the last call."""
        with self._lock:
            sums, self._rest = self._untold(), _Sums()
        return Level(sums.peak, math.sqrt(sums.energy / max(1, sums.samples)), sums.clipped)

    def _untold(self) -> _Sums:
        """Return the sums of the sound that no level has told yet, and count it as told."""
        rest, line = self._rest, self._latest
        if not line:
            return rest
        told, stats = self._told, line.ring.stats(self._told.samples)
        self._told = now = _Sums(stats["samples"], stats["energy"], stats.get("clipped", 0), stats["peak"])
        return _Sums(
            rest.samples + now.samples - told.samples,
            rest.energy + now.energy - told.energy,
            rest.clipped + now.clipped - told.clipped,
            max(rest.peak, now.peak),
        )

    def describe(self) -> str:
        """Describe the device for people: its name, rate, channels and delay."""
        line = self._line
        if not line:
            return f"no {NOUN[self.kind]}"
        return f"{line.device.name}, {describe_format(line.rate, line.channels)}, {1000 * line.stream.latency:.0f} ms"


class Microphone(_End):
    """The user's voice, mono float32 at 24 kHz. The object stays the same whatever happens to the device behind it.

    The device's channels are mixed so that a voice on any of them is heard, as `msh_native.Mixer` says.
    """

    kind = "input"

    def __init__(self, system: PortAudio = PORTAUDIO) -> None:
        super().__init__(system)
        self._available = threading.Event()
        self._noted: set[str] = set()

    def _ring(self, rate: int, channels: int) -> tuple[Capture, Ear]:
        ring = Capture(rate, channels=channels)
        return ring, Ear(ring)

    def _formats(self, device: Device) -> list[tuple[int, int]]:
        own, most = round(device.rate), device.microphones
        # A system that gives fewer channels than there are leaves some out, or averages them.
        return [(rate, channels) for channels in (most, min(2, most), 1) for rate in (SAMPLE_RATE, own)]

    def note(self) -> str | None:
        """Return a sentence on the device's channels that are not heard. None: all are heard, or it was said before."""
        line = self._line
        if not line:
            return None
        name = f'the microphone "{line.device.name}"'
        notes = []
        if line.channels < line.device.microphones:
            notes.append(
                f"Only {line.channels} of the {line.device.microphones} channels of {name} can be opened; "
                "speak into the first, or choose another microphone."
            )
        if left_out := line.stats()["left_out"]:
            notes.append(opposed(name, left_out))
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                return note
        return None

    def open(self, device: Device) -> None:
        """Open a stream of `device`, and end the waiting for one."""
        super().open(device)
        self._available.set()

    def close(self) -> None:
        """Close the stream, promptly even if its device is gone; `read` waits until it is opened again."""
        self._available.clear()
        super().close()

    def ear(self, timeout: float = 0.0) -> Ear | None:
        """Return the ear of the open stream. Wait at most `timeout` seconds for one; None if there is none then."""
        line = self._line
        if not line:
            self._available.wait(timeout)
        return line.side if line else None

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for the next `n` samples, at most `timeout` seconds.

        Return `[n]` float32, or None if they did not come in time, as while there is no device.
        """
        ear = self.ear(timeout)
        return ear.read(n, timeout) if ear else None

    def backlog(self) -> float:
        """Return how much sound waits to be read, in seconds."""
        ear = self.ear()
        return ear.backlog() if ear else 0.0

    def trim(self, keep: float) -> float:
        """Forget the oldest sound so that `keep` seconds wait; return how many were lost."""
        ear = self.ear()
        return ear.trim(keep) if ear else 0.0


class Loudspeaker(_End):
    """Moshi's voice, mono float32 at 24 kHz. The object stays the same whatever happens to the device behind it.

    With `ahead`, sound may be written up to three seconds before it is heard. It is played as it is, and begins when a
    quarter of a second waits. Otherwise the delay is kept short, as a conversation needs it.
    """

    kind = "output"

    def __init__(self, system: PortAudio = PORTAUDIO, *, ahead: bool = False) -> None:
        super().__init__(system)
        self._ahead = ahead

    def _ring(self, rate: int, channels: int) -> tuple[Playback, Mouth]:
        frame = round((_CUSHION if self._ahead else FRAME_SECONDS) * rate)
        ring = Playback(rate, channels=channels, frame=frame, regulated=not self._ahead)
        return ring, Mouth(ring)

    def _formats(self, device: Device) -> list[tuple[int, int]]:
        own, most = round(device.rate), device.output_channels
        return [(SAMPLE_RATE, 1), (own, 1), (own, min(2, most)), (own, most)]

    def close(self) -> None:
        """Fade out and close the stream, promptly even if its device is gone; what is written then is forgotten."""
        line = self._line
        if line and not self.lost:
            line.side.clear()
            sleep(min(line.stream.latency + 0.01, 0.1))
        super().close()

    @property
    def playback(self) -> Playback | None:
        """The ring of the open stream; None while closed."""
        line = self._line
        return line.ring if line else None

    def write(self, pcm: Pcm) -> None:
        """Play `[n]` float32. Never waits."""
        if line := self._line:
            line.side.write(pcm)

    def pause(self) -> None:
        """Say that nothing follows for now: what waits is played to its end, and silence after it is not an underrun."""
        if line := self._line:
            line.side.pause()

    def clear(self) -> None:
        """Fade out what is playing, and forget the rest."""
        if line := self._line:
            line.side.clear()

    def queued(self) -> float:
        """Return how much sound waits to be played, in seconds."""
        line = self._line
        return line.side.queued() if line else 0.0

    def cushion(self) -> float:
        """Return how much sound should wait to be played, in seconds."""
        return float(self.stats().get("cushion", 0)) / SAMPLE_RATE
