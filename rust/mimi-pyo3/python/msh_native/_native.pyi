import os
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Capture",
    "Decoder",
    "Ear",
    "EchoCanceller",
    "Encoder",
    "FileError",
    "Lm",
    "LmConversation",
    "LmEngine",
    "LmSource",
    "Mimi",
    "MimiError",
    "Mixer",
    "ModelError",
    "Mouth",
    "OpusDecoder",
    "OpusEncoder",
    "Playback",
    "VoiceEnhancer",
    "dots",
    "find_not_finite",
    "foreign",
    "kernels",
    "pack",
    "read_bandwidth",
    "read_header",
]

def dots() -> list[str]: ...
def find_not_finite(
    path: str | os.PathLike[str], progress: Callable[[float], object] | None = None
) -> tuple[str, int, float] | None: ...
def foreign(start: bytes) -> tuple[str, str] | None: ...
def kernels() -> str: ...
def pack(
    values: npt.NDArray[np.float32], bits: int, group_size: int, dtype: str
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any]]: ...
def read_bandwidth(threads: int | None = None, size: int = ..., seconds: float = 0.5) -> float: ...
def read_header(path: str | os.PathLike[str]) -> dict[str, tuple[str, tuple[int, ...], int]]: ...

class FileError(ValueError):
    """A file that is not what it should be. Its arguments are what is wrong, and what to do about it."""

class ModelError(ValueError):
    """A language model that cannot be loaded or run; the message says what is wrong with it."""

class MimiError(ValueError):
    """A checkpoint or a configuration cannot be used. The message says what is wrong with it."""

@final
class Mimi:
    """The weights of a codec. They do not change, and may be shared between threads and streams."""

    def __new__(
        cls,
        path: str | os.PathLike[str],
        *,
        num_codebooks: int = 8,
        num_threads: int | None = None,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        weights: str = "float32",
    ) -> Mimi: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def frame_size(self) -> int: ...
    @property
    def num_codebooks(self) -> int: ...
    @property
    def weights(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]: ...
    def encode_latent(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
    def decode(self, codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]: ...
    def encoder(self) -> Encoder: ...
    def decoder(self) -> Decoder: ...

@final
class Encoder:
    """A stream from audio to codes; made by ``Mimi.encoder()``."""

    def step(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]: ...
    def copy(self) -> Encoder: ...
    def stage_seconds(self) -> dict[str, float]: ...
    def reset(self, *, position: int = 0) -> None: ...

@final
class Decoder:
    """A stream from codes to audio; made by ``Mimi.decoder()``."""

    def step(self, codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]: ...
    def stage_seconds(self) -> dict[str, float]: ...
    def reset(self, *, position: int = 0) -> None: ...

@final
class Mixer:
    """Mixes several channels into one. A voice on any of them is as loud as it would be alone."""

    def __new__(cls, rate: int, channels: int) -> Mixer: ...
    def mix(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
    @property
    def left_out(self) -> list[int]: ...

@final
class Capture:
    """Sound from a microphone that has not been read yet: mono float32, from the device's thread to another."""

    def __new__(cls, rate: int, *, channels: int = 1, seconds: float = 4.0) -> Capture: ...
    @property
    def callback(self) -> int: ...
    @property
    def userdata(self) -> int: ...
    @property
    def available(self) -> int: ...
    def feed(self, pcm: npt.NDArray[np.float32]) -> None: ...
    def read(self, n: int, timeout: float) -> npt.NDArray[np.float32] | None: ...
    def trim(self, keep: int) -> int: ...
    def stats(self, since: int = 0) -> dict[str, Any]: ...

@final
class Playback:
    """Sound that was written and not played yet: mono float32, from one thread to the device's."""

    def __new__(
        cls, rate: int, *, channels: int = 1, frame: int, seconds: float = 4.0, regulated: bool = True
    ) -> Playback: ...
    @property
    def callback(self) -> int: ...
    @property
    def userdata(self) -> int: ...
    @property
    def queued(self) -> int: ...
    def render(self, n: int) -> npt.NDArray[np.float32]: ...
    def write(self, pcm: npt.NDArray[np.float32]) -> None: ...
    def pause(self) -> None: ...
    def clear(self) -> None: ...
    def stats(self, since: int = 0) -> dict[str, Any]: ...

@final
class Mouth:
    """Writes to a ``Playback`` at 24 kHz, whatever the rate of its device."""

    def __new__(cls, playback: Playback) -> Mouth: ...
    def write(self, pcm: npt.NDArray[np.float32]) -> None: ...
    def pause(self) -> None: ...
    def clear(self) -> None: ...
    def queued(self) -> float: ...

@final
class EchoCanceller:
    """Removes the loudspeaker's echo from the microphone's sound, mono float32 at 24 kHz."""

    def __new__(cls, *, mode: str = "auto") -> EchoCanceller: ...
    mode: str
    def process(self, heard: npt.NDArray[np.float32], played: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
    def reset(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...

@final
class VoiceEnhancer:
    """Suppresses steady noise behind a voice, or brings the voice to one level, or both; mono float32 at 24 kHz."""

    def __new__(cls, *, noise_suppression: bool = False, gain_control: bool = False) -> VoiceEnhancer: ...
    def process(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
    def reset(self) -> None: ...

@final
class Ear:
    """Reads the sound of a microphone at 24 kHz, whatever the rate of its device."""

    def __new__(cls, capture: Capture) -> Ear: ...
    def clean(
        self, canceller: EchoCanceller, playback: Playback | None = None, enhancer: VoiceEnhancer | None = None
    ) -> None: ...
    def read(self, n: int, timeout: float) -> npt.NDArray[np.float32] | None: ...
    def heard(self) -> npt.NDArray[np.float32]: ...
    def backlog(self) -> float: ...
    def trim(self, keep: float) -> float: ...

@final
class OpusEncoder:
    """Turns mono sound into Opus packets with the least delay."""

    def __new__(cls, sample_rate: int, *, bitrate: int, complexity: int) -> OpusEncoder: ...
    @property
    def delay(self) -> int: ...
    def encode(self, pcm: npt.NDArray[np.float32]) -> bytes: ...

@final
class OpusDecoder:
    """Turns Opus packets into sound."""

    def __new__(cls, sample_rate: int, channels: int) -> OpusDecoder: ...
    def decode(self, packet: bytes) -> npt.NDArray[np.float32]: ...

# A type, rows, columns, and the byte of the file that it begins at.
_Place = tuple[str, int, int, int]

@final
class Lm:
    """The weights of a language model."""

    def __new__(
        cls,
        path: str | os.PathLike[str],
        config: str,
        modules: Mapping[
            str,
            tuple[
                _Place,
                tuple[int, int, _Place, _Place] | None,
                tuple[_Place] | tuple[_Place, _Place, float] | None,
            ],
        ],
        *,
        replaced: list[tuple[int, int]] = ...,
        lora: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        memory: int | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Lm: ...
    @staticmethod
    def random(
        config: str,
        bits: int,
        group_size: int = 64,
        seed: int = 0,
        dtype: str = "bf16",
        *,
        threads: int | None = None,
        memory: int | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Lm: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def step_bytes(self) -> int: ...
    def conversation(
        self,
        *,
        kv: str = "float16",
        batch: int = 1,
        text: tuple[float, int, float, float, float, float] = ...,
        audio: tuple[float, int, float, float] = ...,
        guidance: tuple[float, bool] | None = None,
        codebooks: int | None = None,
        seed: int = 0,
        padding: int | None = None,
        state: list[npt.NDArray[Any]] | None = None,
        position: int = 0,
    ) -> LmConversation: ...
    def engine(
        self, rows: int = 1, *, activations: str = "int16", threads: int | None = None, dot: str | None = None
    ) -> LmEngine: ...

@final
class LmConversation:
    """One conversation with a language model: its keys and values, its position, how it chooses."""

    def reset(self, seed: int | None = None) -> None: ...
    def fill_window(self) -> None: ...
    @property
    def position(self) -> int: ...
    def nbytes(self) -> int: ...
    def add_to_input(self, added: npt.NDArray[np.float32]) -> None: ...
    def attend_to(self, source: LmSource) -> None: ...
    def text_logits(self) -> npt.NDArray[np.float32]: ...
    def audio_logits(self) -> npt.NDArray[np.float32]: ...
    def extra_heads(self) -> npt.NDArray[np.float32]: ...
    def copy(self) -> LmConversation: ...
    def state(self) -> list[npt.NDArray[Any]]: ...
    def restore(self, arrays: list[npt.NDArray[Any]], position: int) -> None: ...

@final
class LmSource:
    """What the layers of a model attend to besides."""

@final
class LmEngine:
    """Takes conversations through steps: threads and room."""

    def hear(
        self,
        conversations: list[LmConversation],
        tokens: npt.NDArray[np.int32],
        recent: list[npt.NDArray[np.int32]] | None = None,
    ) -> npt.NDArray[np.int32]: ...
    def step(
        self,
        conversations: list[LmConversation],
        tokens: npt.NDArray[np.int32],
        recent: list[npt.NDArray[np.int32]] | None = None,
    ) -> npt.NDArray[np.int32]: ...
    def speak(self, conversations: list[LmConversation], texts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]: ...
    def read(
        self,
        conversation: LmConversation,
        columns: npt.NDArray[np.int32],
        embedded: npt.NDArray[np.float32] | None = None,
    ) -> None: ...
    def source(self, source: npt.NDArray[np.float32]) -> LmSource: ...
