import os
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = ["Decoder", "Encoder", "Mimi", "MimiError"]

class MimiError(ValueError):
    """A checkpoint or a configuration that cannot be used; the message says what is wrong with it."""

@final
class Mimi:
    """The weights of a codec: immutable, to be shared between threads and streams."""

    def __new__(
        cls,
        path: str | os.PathLike[str],
        *,
        num_codebooks: int = 8,
        num_threads: int | None = None,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
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
    def reset(self) -> None: ...

@final
class Decoder:
    """A stream from codes to audio; made by ``Mimi.decoder()``."""

    def step(self, codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]: ...
    def reset(self) -> None: ...
