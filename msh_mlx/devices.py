"""Microphones and loudspeakers: which there are, streams of them, and how they come back after they were lost.

PortAudio calls native code in `mimi` that copies sound into and out of rings; nothing here runs when a device wants sound, so
nothing here can be late. Sound on this side of the rings is mono float32 at 24 kHz, whatever the device has.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, TimeoutError
from dataclasses import asdict, dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import soxr

from .errors import InputError, MshError
from .events import Notice
from .mixing import opposed

if TYPE_CHECKING:
    from mimi import Capture, Playback

Pcm = npt.NDArray[np.float32]
Kind = Literal["input", "output"]
T = TypeVar("T")

RATE = 24_000  # Hz, of the sound that the conversation hears and says
FRAME = 0.08  # seconds
_LATENCY = 0.02  # seconds that PortAudio is asked for; less costs a callback every other millisecond on some systems
_SILENT = 1.0  # seconds without a callback after which a stream is lost
_SETTLING = 3.0  # seconds after opening in which a stream may take as long as that (Bluetooth changes its profile)
_ANSWER = 10.0  # seconds within which the sound system has to open a stream
_CLOSE = 0.3  # seconds to wait for a stream to close: one whose device is gone may never do so
_RETRY = 1.0  # seconds between two attempts to get a device back


# ---- which there are -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A device of PortAudio's list: `rate` in Hz is its own, `input_channels` is 0 if it is no microphone.

    `number` counts from 0 and holds until devices come or go; `host_api` is the system behind it, such as "Core Audio".
    """

    number: int
    name: str
    host_api: str
    input_channels: int
    output_channels: int
    rate: float
    default_input: bool = False
    default_output: bool = False

    def channels(self, kind: Kind) -> int:
        """Return how many channels it has in that direction."""
        return self.input_channels if kind == "input" else self.output_channels

    @property
    def microphones(self) -> int:
        """How many channels may carry a voice of their own: all, or 2 where ALSA's plugins name what they could make."""
        plugin = self.host_api == "ALSA" and "(hw:" not in self.name
        return min(self.input_channels, 2) if plugin else self.input_channels

    def is_default(self, kind: Kind) -> bool:
        """Whether the system uses it where no device is named."""
        return self.default_input if kind == "input" else self.default_output


_NOUN: dict[Kind, str] = {"input": "microphone", "output": "loudspeaker"}


def _table(devices: Sequence[Device]) -> str:
    rows = [("No.", "Device", "System", "In", "Out", "Rate", "")]
    for device in devices:
        defaults = [kind for kind in _NOUN if device.is_default(kind)]
        rows.append(
            (
                str(device.number),
                device.name,
                device.host_api,
                str(device.input_channels),
                str(device.output_channels),
                f"{device.rate:.0f} Hz",
                f"default {' and '.join(defaults)}" if defaults else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = (str.rjust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.ljust)
    return "\n".join(
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    )


def choose_device(devices: Sequence[Device], wanted: str | None, kind: Kind) -> Device:
    """Return the device that the user wants.

    Parameters
    ----------
    devices
        All there are.
    wanted
        Its number, its name, or a part of the name, in capitals or not; None for the system's default.
    kind
        "input" for a microphone, "output" for a loudspeaker.

    Raises
    ------
    InputError
        None, or several, are meant by `wanted`; the message names those there are.
    MshError
        There is no device of that kind at all.
    """
    noun = _NOUN[kind]
    candidates = [device for device in devices if device.channels(kind)]
    if not candidates:
        raise _no_device(noun)
    if wanted is None:
        return next((device for device in candidates if device.is_default(kind)), candidates[0])
    wanted = wanted.strip()
    if wanted.isdecimal():
        found = [device for device in candidates if device.number == int(wanted)]
    else:
        folded = wanted.casefold()
        found = [device for device in candidates if device.name.casefold() == folded]
        found = found or [device for device in candidates if folded and folded in device.name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"Several {noun}s are called {wanted!r}: {_listing(found)}; give a number or more of the name."
        )
    what = f"number {wanted}" if wanted.isdecimal() else f"called {wanted!r}"
    raise InputError(f"There is no {noun} {what}; there is {_listing(candidates)}.")


def _listing(devices: Sequence[Device]) -> str:
    return ", ".join(f'{device.number} "{device.name}"' for device in devices)


def _no_device(noun: str) -> MshError:
    return MshError(f"There is no {noun} on this computer; connect one, or give --input FILE, which needs none.")


def _find_again(devices: Sequence[Device], device: Device, kind: Kind) -> Device | None:
    """Return `device` as it is in a newer list: numbers change, and on Linux so do those in its name."""
    for name in (str, lambda text: re.sub(r"\(hw:\d+,\d+\)", "", text)):
        for other in devices:
            if other.channels(kind) and (name(other.name), other.host_api) == (name(device.name), device.host_api):
                return other
    return None


# ---- PortAudio -----------------------------------------------------------------------------------------------------------


class Ring(Protocol):
    """What PortAudio is given of a `mimi.Capture` or a `mimi.Playback`: the addresses of its callback and its data."""

    @property
    def callback(self) -> int: ...
    @property
    def userdata(self) -> int: ...
    def stats(self) -> dict[str, Any]: ...


class Stream(Protocol):
    """A stream that runs; `latency` is PortAudio's own, in seconds."""

    @property
    def active(self) -> bool: ...
    @property
    def latency(self) -> float: ...
    def close(self) -> None: ...


class SoundSystem(Protocol):
    """What is needed of PortAudio. The calls may take long, and are made on any thread."""

    def devices(self) -> list[Device]: ...
    def open(self, device: Device, kind: Kind, rate: int, channels: int, ring: Ring) -> Stream: ...
    def refresh(self) -> None: ...


class PortAudio:
    """PortAudio by way of sounddevice, which is imported when it is first needed.

    PortAudio is not made for several threads at a time, so each call waits for the one before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: set[_PortAudioStream] = set()

    def devices(self) -> list[Device]:
        """Return all devices, as they were when PortAudio was initialised.

        Raises
        ------
        MshError
            The PortAudio library is missing or does not start.
        """
        with self._lock:
            sd = _sounddevice()
            try:
                apis = [api["name"] for api in sd.query_hostapis()]
                default_input, default_output = sd.default.device
                infos = sd.query_devices()
            except sd.PortAudioError as error:
                raise _no_start(error) from None
            return [
                Device(
                    info["index"],
                    info["name"],
                    apis[info["hostapi"]],
                    info["max_input_channels"],
                    info["max_output_channels"],
                    info["default_samplerate"],
                    info["index"] == default_input,
                    info["index"] == default_output,
                )
                for info in infos
            ]

    def open(self, device: Device, kind: Kind, rate: int, channels: int, ring: Ring) -> Stream:
        """Open a stream that calls the callback of `ring`, and start it.

        Raises
        ------
        StreamError
            PortAudio refuses; the message says why.
        """
        with self._lock:
            sd = _sounddevice()
            try:
                low = sd.query_devices(device.number)[f"default_low_{kind}_latency"]
                stream = sd._StreamBase(
                    kind,
                    samplerate=rate,
                    blocksize=0,
                    device=device.number,
                    channels=channels,
                    dtype="float32",
                    latency=max(low, _LATENCY),
                    callback=sd._ffi.cast("PaStreamCallback *", ring.callback),
                    userdata=sd._ffi.cast("void *", ring.userdata),
                )
                try:
                    stream.start()
                except sd.PortAudioError:
                    stream.close()
                    raise
            except sd.PortAudioError as error:
                raise StreamError(device, kind, *error.args) from None
            opened = _PortAudioStream(self, stream, ring)
            self._streams.add(opened)
            return opened

    def refresh(self) -> None:
        """Initialise PortAudio anew, which is the only way to learn which devices came and went.

        Raises
        ------
        MshError
            A stream is open, or PortAudio does not start.
        """
        with self._lock:
            if self._streams:
                raise MshError("Sound devices cannot be looked for while one is open.")
            sd = _sounddevice()
            try:
                while sd._initialized:
                    sd._terminate()
                sd._initialize()
            except sd.PortAudioError as error:
                raise _no_start(error) from None

    def _close(self, stream: _PortAudioStream) -> None:
        with self._lock:
            if stream in self._streams:
                stream.stream.close()
                self._streams.discard(stream)


class _PortAudioStream:
    """A stream of sounddevice. It holds on to its ring, which has to live as long as PortAudio may call its callback."""

    def __init__(self, system: PortAudio, stream: Any, ring: Ring) -> None:
        self._system = system
        self._ring = ring
        self.stream = stream
        self.latency: float = stream.latency

    @property
    def active(self) -> bool:
        try:
            return bool(self.stream.active)
        except Exception:  # PortAudio reports an error of a stream that broke
            return False

    def close(self) -> None:
        self._system._close(self)


class StreamError(MshError):
    """A stream cannot be opened. `text`, `code` and what the `host` system said are as in sounddevice's error."""

    _REASONS = (
        ("busy", "is in use by another program; close that, or choose another device"),
        ("gone", "is not there any more; connect it again, or choose another device"),
        ("rate", "opens neither at 24000 Hz nor at its own rate; choose another device"),
        ("denied", "may not be used ({}); allow it in the system's privacy settings"),
        ("", "cannot be opened ({}); choose another device"),
    )
    _CODES: ClassVar = {-9985: "busy", -9996: "gone", -9997: "rate"}  # PortAudio's

    def __init__(
        self, device: Device, kind: Kind, text: str, code: int = 0, host: tuple[int, int, str] | None = None
    ) -> None:
        said = (host[2] if host else text).strip().rstrip(".")
        self.reason: str = self._CODES.get(code, "")
        if not self.reason and re.search(r"permission|permitted|not allowed|denied", said, re.IGNORECASE):
            self.reason = "denied"
        super().__init__(f'The {_NOUN[kind]} "{device.name}" {dict(self._REASONS)[self.reason].format(said)}.')


def _sounddevice() -> Any:
    try:
        import sounddevice
    except OSError:
        raise MshError(
            "The PortAudio library is missing: install it (on Debian and Ubuntu: apt-get install libportaudio2), "
            "or give --input FILE, which needs none."
        ) from None
    except Exception as error:
        raise _no_start(error) from None
    return sounddevice


def _no_start(error: Exception) -> MshError:
    return MshError(f"The sound system does not start: {str(error).rstrip('.')}.")


PORTAUDIO = PortAudio()  # the library has one state for the whole process


def _within(seconds: float, call: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
    """Return `call()`, made on a thread, so that a signal or the deadline ends the waiting whatever the sound system does.

    The result of a call that nobody waits for any more goes to `discard`.

    Raises
    ------
    MshError
        It takes longer than `seconds`, or fails with one.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="sound system", daemon=True).start()
    try:
        return future.result(seconds)
    except BaseException as error:
        if discard and not (future.done() and future.exception()):
            future.add_done_callback(lambda done: None if done.exception() else discard(done.result()))
        if isinstance(error, TimeoutError) and not future.done():
            raise MshError(
                f"The sound system has not answered for {seconds:.0f} s; restart it or the computer."
            ) from None
        raise


def find_devices(system: SoundSystem = PORTAUDIO) -> list[Device]:
    """Return all devices.

    Raises
    ------
    MshError
        The PortAudio library is missing, or does not start or answer.
    """
    return _within(_ANSWER, system.devices)


def list_devices(*, as_json: bool = False, system: SoundSystem = PORTAUDIO) -> str:
    """Return all devices as a table for a terminal with the defaults marked, or as lines of JSON.

    Raises
    ------
    MshError
        As `find_devices`, or there is no device at all.
    """
    devices = find_devices(system)
    if not devices:
        raise _no_device("sound device")
    if as_json:
        return "\n".join(json.dumps(asdict(device), ensure_ascii=False) for device in devices)
    return _table(devices)


# ---- rings at 24 kHz -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """Sound of a microphone, `pcm` `[n]` float32 at 24 kHz, and where it was in `capture`.

    `places` are its parts: at which sample of the capture, counted as `Capture.position` is, each begins, and how long it is,
    in samples at 24 kHz. There is more than one where sound between them was forgotten.
    """

    pcm: Pcm
    capture: Capture
    places: Sequence[tuple[float, int]]


class CaptureSource:
    """What a microphone hears, at 24 kHz, out of a ring at the microphone's rate.

    `read`, `take` and `trim` belong to one thread.
    """

    def __init__(self, capture: Capture, rate: int) -> None:
        self._capture = capture
        self._rate = rate
        self._resampler = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
        self._waiting = np.zeros(0, np.float32)  # resampled, and not read yet
        # Of the first sample, as if what was forgotten before the next had come before it.
        self._begin = capture.position
        self._taken = 0  # samples at 24 kHz
        self._cuts: deque[tuple[int, int]] = deque()  # positions, and samples forgotten there, not taken yet

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for the next `n` samples at 24 kHz, at most `timeout` seconds.

        Returns
        -------
        pcm
            `[n]` float32, or None if they did not come in time; nothing is lost then.
        """
        taken = self.take(n, timeout)
        return taken.pcm if taken else None

    def take(self, n: int, timeout: float) -> Taken | None:
        """Do what `read` does, and say where in the ring the sound was."""
        if self._resampler:
            pcm = self._resampled(self._resampler, n, timeout)
            return None if pcm is None else Taken(pcm, self._capture, self._places(n))
        position = self._capture.position
        pcm = self._capture.read(n, timeout)
        return None if pcm is None else Taken(pcm, self._capture, [(float(position), n)])

    def _places(self, n: int) -> list[tuple[float, int]]:
        """Say where the next `n` samples are, and go on behind them; the resampler gives sample k for k * rate / 24000."""
        places = []
        while n:
            position = self._begin + self._taken * self._rate / RATE
            while self._cuts and position >= self._cuts[0][0]:
                forgotten = self._cuts.popleft()[1]
                self._begin += forgotten
                position += forgotten
            count = n
            if self._cuts:
                count = min(n, math.ceil((self._cuts[0][0] - position) * RATE / self._rate))
            places.append((position, count))
            self._taken += count
            n -= count
        return places

    def _resampled(self, resampler: soxr.ResampleStream, n: int, timeout: float) -> Pcm | None:
        end = monotonic() + timeout
        while len(self._waiting) < n:
            missing = (n - len(self._waiting)) * self._rate // RATE
            block: Pcm | None = self._capture.read(max(missing, self._rate // 200), max(0.0, end - monotonic()))
            if block is None:
                return None
            self._waiting = np.concatenate([self._waiting, resampler.resample_chunk(block)])
        pcm, self._waiting = self._waiting[:n], self._waiting[n:]
        return pcm

    def backlog(self) -> float:
        """Return how much sound waits, in seconds."""
        return float(self._capture.available / self._rate) + len(self._waiting) / RATE

    def trim(self, keep: float) -> float:
        """Forget the oldest sound so that `keep` seconds wait, with a short crossfade at the cut; return how many were lost."""
        ring = max(0, round((keep - len(self._waiting) / RATE) * self._rate))
        position = self._capture.position
        forgotten = self._capture.trim(ring)
        if forgotten and self._resampler:  # which has yet to give what came before
            self._cuts.append((position, forgotten))
        return float(forgotten / self._rate)


class PlaybackSink:
    """What a loudspeaker plays, given at 24 kHz, into a ring at the loudspeaker's rate."""

    def __init__(self, playback: Playback, rate: int) -> None:
        self._playback = playback
        self._rate = rate
        self._resampler = None if rate == RATE else soxr.ResampleStream(RATE, rate, 1, dtype="float32", quality="HQ")
        self._lock = threading.Lock()  # the resampler is written to on one thread and paused on another

    def write(self, pcm: Pcm) -> None:
        """Play `[n]` float32 at 24 kHz; never waits."""
        if not self._resampler:
            self._playback.write(pcm)
            return
        with self._lock:
            self._playback.write(self._resampler.resample_chunk(pcm))

    def pause(self) -> None:
        """Nothing will come for now: what waits is played to its end, and silence after it is no underrun."""
        if self._resampler:
            with self._lock:
                self._playback.write(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
                self._resampler.clear()
        self._playback.pause()

    def clear(self) -> None:
        """Fade out what is playing, and forget the rest."""
        if self._resampler:
            with self._lock:
                self._resampler.clear()
        self._playback.clear()

    def queued(self) -> float:
        """Return how much sound waits to be played, in seconds."""
        return float(self._playback.queued / self._rate)


# ---- one microphone, one loudspeaker -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """How loud it was since the last time it was asked for: largest and root mean square sample, and how many clipped."""

    peak: float = 0.0
    rms: float = 0.0
    clipped: int = 0


_COUNTS = {  # what goes on counting when a stream is opened again; True for samples, which are those of the device
    "callbacks": False,
    "underruns": False,
    "device_overflows": False,
    "device_underflows": False,
    "samples": True,
    "silent": True,
    "lost": True,
    "trimmed": True,
    "inserted": True,
}
_SAMPLES = ("cushion", "queued")  # further samples of the device


class _Meter:
    """The stats of rings that follow each other, as of a single ring at 24 kHz; any number of threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ring: Ring | None = None
        self._rate = RATE
        self._before: dict[str, float] = {}
        self._peak = 0.0
        self._energy = 0.0
        self._heard = 0.0
        self._clipped = 0
        self._samples = 0

    def watch(self, ring: Ring, rate: int) -> None:
        """Go on with another ring."""
        with self._lock:
            if self._ring:
                latest = self._take(self._ring)
                self._before.update({name: latest[name] for name in _COUNTS if name in latest})
            self._ring, self._rate, self._samples = ring, rate, 0

    def stats(self) -> dict[str, Any]:
        """Return the stats of the ring without its levels; counts include those of earlier rings, samples are at 24 kHz."""
        with self._lock:
            return self._take(self._ring) if self._ring else {}

    def level(self) -> Level:
        """Return how loud it was since the last call."""
        with self._lock:
            if self._ring:
                self._take(self._ring)
            rms = (self._energy / self._heard) ** 0.5 if self._heard else 0.0
            level = Level(self._peak, rms, self._clipped)
            self._peak = self._energy = self._heard = 0.0
            self._clipped = 0
            return level

    def _take(self, ring: Ring) -> dict[str, Any]:
        stats = ring.stats()
        # Asking a ring for its levels resets them, so they are gathered until somebody wants them.
        self._peak = max(self._peak, stats.pop("peak"))
        new = stats["samples"] - self._samples
        self._samples = stats["samples"]
        self._energy += stats.pop("rms") ** 2 * new
        self._heard += new
        self._clipped += stats.pop("clipped", 0)
        for name in _SAMPLES:
            if name in stats:
                stats[name] = round(stats[name] * RATE / self._rate)
        for name, samples in _COUNTS.items():
            if name in stats:
                count = round(stats[name] * RATE / self._rate) if samples else stats[name]
                stats[name] = count + self._before.get(name, 0)
        return stats


@dataclass(frozen=True)
class _Line:
    """An open stream and its ring."""

    device: Device
    rate: int
    channels: int
    ring: Any
    stream: Stream
    opened: float


class _End(ABC):
    """What a microphone and a loudspeaker have in common: a stream that can be closed and opened again on other devices."""

    kind: Kind

    def __init__(self, system: SoundSystem = PORTAUDIO, *, formats: Sequence[tuple[int, int]] | None = None) -> None:
        self._system = system
        self._formats = formats
        self._line: _Line | None = None
        self._meter = _Meter()

    @abstractmethod
    def _ring(self, rate: int, channels: int) -> Ring:
        """Return a new ring for a device with that rate and so many channels."""

    @abstractmethod
    def _opened(self, line: _Line) -> None:
        """Use a new stream from now on."""

    @abstractmethod
    def _usual_formats(self, device: Device) -> list[tuple[int, int]]:
        """Return rates and numbers of channels to try, in that order."""

    def open(self, device: Device) -> None:
        """Open a stream of `device`, at 24 kHz if it can, else at its own rate; close the one before.

        A loudspeaker is opened in mono if it can be, a microphone with all of its channels.

        Raises
        ------
        MshError
            It is in use, not allowed, not there any more, or cannot be opened for another reason.
        """
        self.close()
        line = _within(_ANSWER, lambda: self._open(device), lambda late: late.stream.close())
        self._meter.watch(line.ring, line.rate)
        self._line = line
        self._opened(line)

    def _open(self, device: Device) -> _Line:
        formats = self._formats or self._usual_formats(device)
        trouble: StreamError | None = None
        for rate, channels in dict.fromkeys(formats):
            ring = self._ring(rate, channels)
            try:
                stream = self._system.open(device, self.kind, rate, channels, ring)
            except StreamError as error:
                trouble = error
                if error.reason == "busy":
                    break
            else:
                return _Line(device, rate, channels, ring, stream, monotonic())
        assert trouble
        raise trouble

    def close(self) -> None:
        """Close the stream, promptly even if its device is gone."""
        line, self._line = self._line, None
        if not line:
            return
        try:
            _within(_CLOSE, line.stream.close)
        except MshError:
            # PortAudio hangs, and would do so again when sounddevice ends it on the way out of the process.
            with contextlib.suppress(Exception):
                atexit.unregister(_sounddevice()._exit_handler)

    @property
    def device(self) -> Device | None:
        """The device, None while closed."""
        line = self._line
        return line.device if line else None

    @property
    def lost(self) -> bool:
        """Whether the stream has died: it ended, or its device has wanted nothing for a second (three at the beginning)."""
        line = self._line
        if not line:
            return False
        limit = _SILENT if monotonic() - line.opened > _SETTLING else _SETTLING
        return not line.stream.active or bool(self._meter.stats()["idle"] > limit)

    def stats(self) -> dict[str, Any]:
        """Return the stats of the ring, see `mimi`, with samples counted at 24 kHz and without its levels.

        Counts go on when the stream is opened again. Empty before the first time.
        """
        return self._meter.stats()

    def level(self) -> Level:
        """Return how loud it was since the last call."""
        return self._meter.level()

    def describe(self) -> str:
        """Say which device it is, at which rate, with how many channels and which delay."""
        line = self._line
        if not line:
            return f"no {_NOUN[self.kind]}"
        channels = {1: "mono", 2: "stereo"}.get(line.channels, f"{line.channels} channels")
        return f"{line.device.name}, {line.rate} Hz {channels}, {1000 * line.stream.latency:.0f} ms"


class Microphone(_End):
    """The user's voice, mono float32 at 24 kHz. The object stays the same whatever happens to the device behind it.

    The device's channels are mixed so that a voice on any of them is heard, as `mimi.Mixer` says.

    Parameters
    ----------
    system
        Where the devices are.
    formats
        Rates and numbers of channels to try, in that order, instead of all channels at 24 kHz and at the device's own rate,
        and then fewer.
    """

    kind = "input"
    _source: CaptureSource | None = None

    def __init__(self, system: SoundSystem = PORTAUDIO, *, formats: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__(system, formats=formats)
        self._available = threading.Event()
        self._noted: set[str] = set()

    def _ring(self, rate: int, channels: int) -> Ring:
        from mimi import Capture

        return Capture(rate, channels=channels)

    def _usual_formats(self, device: Device) -> list[tuple[int, int]]:
        own, most = round(device.rate), device.microphones
        # Who gives fewer channels than there are leaves some out, or takes their average.
        return [(rate, channels) for channels in (most, min(2, most), 1) for rate in (RATE, own)]

    def note(self) -> str | None:
        """Return a sentence on channels of the device that are not heard; None if all are, or if that was said before."""
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
        if left_out := self._meter.stats()["left_out"]:
            notes.append(opposed(name, left_out))
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                return note
        return None

    def _opened(self, line: _Line) -> None:
        self._source = CaptureSource(line.ring, line.rate)
        self._available.set()

    def close(self) -> None:
        """Close the stream, promptly even if its device is gone; `read` waits until it is opened again."""
        self._available.clear()
        self._source = None
        super().close()

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for the next `n` samples, at most `timeout` seconds.

        Returns
        -------
        pcm
            `[n]` float32, or None if they did not come in time, also while there is no device.
        """
        taken = self.take(n, timeout)
        return taken.pcm if taken else None

    def take(self, n: int, timeout: float) -> Taken | None:
        """Do what `read` does, and say where in which ring the sound was."""
        source = self._source
        if source:
            return source.take(n, timeout)
        self._available.wait(timeout)
        return None

    def backlog(self) -> float:
        """Return how much sound waits, in seconds."""
        source = self._source
        return source.backlog() if source else 0.0

    def trim(self, keep: float) -> float:
        """Forget the oldest sound so that `keep` seconds wait; return how many were lost."""
        source = self._source
        return source.trim(keep) if source else 0.0


class Loudspeaker(_End):
    """Moshi's voice, mono float32 at 24 kHz. The object stays the same whatever happens to the device behind it.

    Parameters
    ----------
    system
        Where the devices are.
    formats
        Rates and numbers of channels to try, in that order, instead of 24 kHz mono and then the device's own.
    """

    kind = "output"
    _sink: PlaybackSink | None = None

    def _ring(self, rate: int, channels: int) -> Ring:
        from mimi import Playback

        return Playback(rate, channels=channels, frame=round(FRAME * rate))

    def _usual_formats(self, device: Device) -> list[tuple[int, int]]:
        own, most = round(device.rate), device.output_channels
        return [(RATE, 1), (own, 1), (own, min(2, most)), (own, most)]

    def _opened(self, line: _Line) -> None:
        self._sink = PlaybackSink(line.ring, line.rate)

    def close(self) -> None:
        """Fade out and close the stream, promptly even if its device is gone; what is written then is forgotten."""
        line, sink = self._line, self._sink
        if line and sink and not self.lost:
            sink.clear()
            sleep(min(line.stream.latency + 0.01, 0.1))
        self._sink = None
        super().close()

    @property
    def playback(self) -> Playback | None:
        """The ring of the open stream, None while closed."""
        line = self._line
        return line.ring if line else None

    def write(self, pcm: Pcm) -> None:
        """Play `[n]` float32; never waits."""
        if sink := self._sink:
            sink.write(pcm)

    def pause(self) -> None:
        """Nothing will come for now: what waits is played to its end, and silence after it is no underrun."""
        if sink := self._sink:
            sink.pause()

    def clear(self) -> None:
        """Fade out what is playing, and forget the rest."""
        if sink := self._sink:
            sink.clear()

    def queued(self) -> float:
        """Return how much sound waits to be played, in seconds."""
        sink = self._sink
        return sink.queued() if sink else 0.0

    def cushion(self) -> float:
        """Return how much sound should wait, in seconds."""
        return float(self.stats().get("cushion", 0)) / RATE

    def underruns(self) -> int:
        """Return how often the loudspeaker ran dry so far."""
        return int(self.stats().get("underruns", 0))


# ---- both, and how they come back ----------------------------------------------------------------------------------------


class Devices:
    """The microphone and the loudspeaker of a conversation, which come back by themselves after they were lost.

    Parameters
    ----------
    input_device, output_device
        As `choose_device` takes them; None for the default, also for whatever is the default later.
    notify
        Is told when devices are lost, are back, or were changed; called by `poll`.
    system
        Where the devices are.
    """

    def __init__(
        self,
        input_device: str | None,
        output_device: str | None,
        notify: Callable[[Notice], None],
        *,
        system: SoundSystem = PORTAUDIO,
    ) -> None:
        self._system = system
        self._wanted: dict[Kind, str | None] = {"input": input_device, "output": output_device}
        self._chosen: dict[Kind, Device] = {}  # by the user; these are waited for when they are lost
        self._current: dict[Kind, Device] = {}
        self._notify = notify
        self.microphone = Microphone(system)
        self.loudspeaker = Loudspeaker(system)
        self.known: list[Device] = []  # when they were last asked for
        self._suspicions = 0
        self._next = False  # the next microphone is wanted
        self._news: Notice | None = None
        self._worker: threading.Thread | None = None
        self._stopping = threading.Event()

    def open(self) -> None:
        """Open both.

        Raises
        ------
        InputError
            There is no such device, or there are several.
        MshError
            There is no device at all, one of them cannot be opened, or PortAudio is missing or does not answer.
        """
        devices = self.known = find_devices(self._system)
        for kind, wanted in self._wanted.items():
            self._current[kind] = choose_device(devices, wanted, kind)
            if wanted is not None:
                self._chosen[kind] = self._current[kind]
        try:
            self._open_both()
        except BaseException:
            self._close_both()
            raise

    @property
    def lost(self) -> bool:
        """Whether there are no devices at the moment."""
        return self._worker is not None

    def poll(self) -> None:
        """Notice what happened to the devices. Call it a few times a second; it never waits for them."""
        if self._worker:
            if not self._worker.is_alive():
                self._worker = None
                if self._news:
                    self._notify(self._news)
                    self._news = None
                if self._next:  # it was wanted when this change had been decided
                    self.next_input()
            return
        if note := self.microphone.note():
            self._notify(Notice("channels", note, "warning"))
        lost = [end for end in (self.microphone, self.loudspeaker) if end.lost]
        # Twice, because a process that was stopped and goes on has not heard of its devices for long either.
        self._suspicions = self._suspicions + 1 if lost else 0
        if self._suspicions < 2:
            return
        self._suspicions = 0
        names = " and ".join(f'the {_NOUN[end.kind]} "{self._current[end.kind].name}"' for end in lost)
        waits = "until it is back" if any(end.kind in self._chosen for end in lost) else "until there is one again"
        message = f"{names[0].upper()}{names[1:]} is lost; the conversation pauses {waits}."
        self.loudspeaker.pause()
        self._notify(Notice("device-lost", message, "warning"))
        self._start("device-back")

    def next_input(self) -> None:
        """Change to the next microphone, one that was plugged in meanwhile included. `notify` hears of it."""
        self._next = True
        if not self._worker:
            self.loudspeaker.pause()
            self._start("device-changed")

    def close(self) -> None:
        """Close both, within a second whatever the sound system does."""
        self._stopping.set()
        if self._worker:
            self._worker.join(_CLOSE)
        self._close_both()

    def _start(self, kind: str) -> None:
        self._worker = threading.Thread(target=self._reopen, args=(kind,), name="devices", daemon=True)
        self._worker.start()

    def _reopen(self, kind: str) -> None:
        """Close both and try to open them again until it works. Runs on a thread, because the sound system may take long."""
        while not self._stopping.is_set():
            changing = self._next
            try:
                self._close_both()
                self._system.refresh()
                devices = self.known = self._system.devices()
                alone = not self._choose_again(devices)
                self._open_both()
            except Exception:  # whatever it is, the user knows that the devices are lost; the next attempt may succeed
                self._next |= changing  # a microphone that cannot be opened is passed over
                self._stopping.wait(_RETRY)
                continue
            heard, said = (self._current[kind].name for kind in ("input", "output"))
            message = f'Listening to "{heard}", speaking through "{said}".'
            self._news = Notice(kind, f"There is no other microphone. {message}" if alone else message)
            break
        if self._stopping.is_set():
            self._close_both()

    def _choose_again(self, devices: Sequence[Device]) -> bool:
        """Choose from a new list of devices; return False if another microphone was wanted and there is none."""
        for kind in self._current:
            chosen = self._chosen.get(kind)
            if not chosen:
                self._current[kind] = choose_device(devices, None, kind)
            elif again := _find_again(devices, chosen, kind):
                self._current[kind] = again
            elif not (self._next and kind == "input"):
                raise MshError(f'The {_NOUN[kind]} "{chosen.name}" is not there.')
        if not self._next:
            return True
        self._next = False
        microphones = [device for device in devices if device.input_channels]
        current = _find_again(microphones, self._current["input"], "input")
        if not microphones or microphones == [current]:
            return False
        begin = microphones.index(current) + 1 if current else 0
        self._current["input"] = self._chosen["input"] = (microphones * 2)[begin]
        return True

    def _open_both(self) -> None:
        self.loudspeaker.open(self._current["output"])
        self.microphone.open(self._current["input"])

    def _close_both(self) -> None:
        self.microphone.close()
        self.loudspeaker.close()
