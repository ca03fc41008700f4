"""PortAudio: its list of devices, and streams of them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import MshError
from ..format import SAMPLE_RATE
from .devices import NOUN, Device, Kind, device_table, no_device

if TYPE_CHECKING:
    from msh_native import Capture, Playback

T = TypeVar("T")
_LATENCY = 0.02  # seconds that PortAudio is asked for; less costs a callback every other millisecond on some systems
ANSWER = 10.0  # seconds within which the sound system has to open a stream


class PortAudio:
    """PortAudio through the package sounddevice, which is imported when it is first needed.

    Calls may take long, and may be made on any thread. PortAudio cannot be used on several at a time, so each call waits for
    the one before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: set[Stream] = set()

    def devices(self) -> list[Device]:
        """Return all devices, as they were when PortAudio was initialised.

        Raise MshError if the PortAudio library is missing or does not start.
        """
        with self._lock:
            sd = open_sounddevice()
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

    def open(self, device: Device, kind: Kind, rate: int, channels: int, ring: Capture | Playback) -> Stream:
        """Open a stream that calls the callback of `ring`, and start it. Raise StreamError if PortAudio refuses."""
        with self._lock:
            sd = open_sounddevice()
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
            opened = Stream(self, stream, ring)
            self._streams.add(opened)
            return opened

    def refresh(self) -> None:
        """Initialise PortAudio again. Only so does it notice which devices came and went.

        Raise MshError if a stream is open, or PortAudio does not start.
        """
        with self._lock:
            if self._streams:
                raise MshError("Sound devices cannot be looked for while one is open.")
            sd = open_sounddevice()
            try:
                while sd._initialized:
                    sd._terminate()
                sd._initialize()
            except sd.PortAudioError as error:
                raise _no_start(error) from None

    def close(self, stream: Stream) -> None:
        """Close a stream, once."""
        with self._lock:
            if stream in self._streams:
                stream.stream.close()
                self._streams.discard(stream)


class Stream:
    """A running stream. It keeps its ring alive for as long as PortAudio may call the callback.

    `stream` is sounddevice's. `latency` is PortAudio's own, in seconds.
    """

    def __init__(self, system: PortAudio, stream: Any, ring: Capture | Playback) -> None:
        self._system = system
        self._ring = ring
        self.stream = stream
        self.latency: float = stream.latency

    @property
    def active(self) -> bool:
        try:
            return bool(self.stream.active)
        except Exception:  # PortAudio raises when a stream broke
            return False

    def close(self) -> None:
        self._system.close(self)


class StreamError(MshError):
    """A stream cannot be opened. `text`, `code` and the words of the `host` system are as in sounddevice's error."""

    _REASONS: ClassVar = {
        "busy": ("is in use by another program", "close that, or choose another device"),
        "gone": ("is not there any more", "connect it again, or choose another device"),
        "rate": (f"opens neither at {SAMPLE_RATE} Hz nor at its own rate", "choose another device"),
        "denied": ("may not be used ({})", "allow it in the system's privacy settings"),
        "": ("cannot be opened ({})", "choose another device"),
    }
    _CODES: ClassVar = {-9985: "busy", -9996: "gone", -9997: "rate"}  # PortAudio's

    def __init__(
        self, device: Device, kind: Kind, text: str, code: int = 0, host: tuple[int, int, str] | None = None
    ) -> None:
        said = (host[2] if host else text).strip().rstrip(".")
        self.reason: str = self._CODES.get(code, "")
        if not self.reason and re.search(r"permission|permitted|not allowed|denied", said, re.IGNORECASE):
            self.reason = "denied"
        what, advice = self._REASONS[self.reason]
        super().__init__(f'The {NOUN[kind]} "{device.name}" {what.format(said)}', advice)


def open_sounddevice() -> Any:
    try:
        import sounddevice
    except OSError:
        raise MshError(
            "The PortAudio library is missing",
            "install it (on Debian and Ubuntu: apt-get install libportaudio2), or give --input FILE, which needs none",
        ) from None
    except Exception as error:
        raise _no_start(error) from None
    return sounddevice


def _no_start(error: Exception) -> MshError:
    return MshError(f"The sound system does not start: {str(error).rstrip('.')}.")


PORTAUDIO = PortAudio()  # the library has one state for the whole process


def within(seconds: float, call: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
    """Call `call()` on another thread, and return its result. A signal or the deadline ends the waiting.

    If the call ends later, its result goes to `discard`. Raise MshError if it takes longer than `seconds`.
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
                f"The sound system has not answered for {seconds:.0f} s", "restart it or the computer"
            ) from None
        raise


def find_devices(system: PortAudio = PORTAUDIO) -> list[Device]:
    """Return all devices. Raise MshError if the PortAudio library is missing, or does not start or answer."""
    return within(ANSWER, system.devices)


def list_devices(*, as_json: bool = False, system: PortAudio = PORTAUDIO) -> str:
    """Return all devices: as a table for a terminal, with the defaults marked, or as lines of JSON.

    Raise MshError as `find_devices` does, and if there is no device at all.
    """
    devices = find_devices(system)
    if not devices:
        raise no_device("sound device")
    if as_json:
        return "\n".join(json.dumps(asdict(device), ensure_ascii=False) for device in devices)
    return device_table(devices)
