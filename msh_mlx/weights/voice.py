"""Voices in files: PyTorch's `.pt`, read without PyTorch, and `.safetensors`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..format import Pcm
from ..model.families.personaplex import Voice
from ..system.inputs import check_file
from ..system.places import user_path
from .pickled import TYPES, Tensor, read_tensors
from .safetensors import TensorInfo, TensorWriter, as_float32, read_header

_MAX_SIZE = 1 << 26  # a voice has some hundred kilobytes
_MAX_CODE = 1 << 24
_MAX_SAMPLE = 1e3  # voices are not loud
_SAFETENSORS = dict(TYPES.values())
_EXPECTED = "embeddings [frames, 1, 1, dim] and cache [1, rows, 4], or sound [samples], are expected"


def read_voice(path: str | os.PathLike[str]) -> Voice | Pcm:
    """Read a voice in NVIDIA's form, or as sound.

    NVIDIA's form is two tensors, `embeddings` and `cache`, in a `.pt` or a `.safetensors` file. Sound is one tensor, `sound`,
    in a `.safetensors` file: `[samples]` float32 at 24 kHz, as `write_sound` writes it. Of a `.pt` file nothing is run. Its
    pickle may hold these two tensors, and nothing else.

    Raises
    ------
    InputError
        The file cannot be read, or is not a voice.
    """
    path = _checked_path(path)
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        if not is_zip and path.suffix.lower() == ".pt":
            raise ValueError
        tensors = read_tensors(path) if is_zip else _read_safetensors(path)
        if not is_zip and set(tensors) == {"sound"}:
            return _checked_sound(path, tensors["sound"])
        if set(tensors) != {"embeddings", "cache"}:
            raise ValueError
        embedded, cache = tensors["embeddings"], tensors["cache"]
        if embedded.dtype not in ("BF16", "F16", "F32") or cache.dtype not in ("I64", "I32"):
            raise ValueError
        values, columns = embedded.values, cache.values
        if values.ndim != 4 or values.shape[1:3] != (1, 1) or not values.size:
            raise ValueError
        if columns.ndim != 3 or columns.shape[0] != 1 or columns.shape[2] != 4 or not columns.size:
            raise ValueError
        if columns.min() <= -_MAX_CODE or columns.max() >= _MAX_CODE:
            raise ValueError
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a voice", _EXPECTED) from None
    inputs = as_float32(values)[:, 0, 0]
    if not np.isfinite(inputs).all():
        raise _not_finite(path)
    return Voice(inputs, columns[0].astype(np.int32))


def write_sound(file: BinaryIO, pcm: Pcm) -> None:
    """Write a voice as sound, `[samples]` float32 at 24 kHz, to a file that is open for writing."""
    TensorWriter(file, {"sound": TensorInfo("F32", pcm.shape)}).write("sound", pcm)


def read_speaker(path: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Read a voice of a text-to-speech model in Kyutai's form: one tensor, `speaker_wavs [1, dim, steps]`, in `.safetensors`.

    Return it as `[steps, dim]` float32.

    Raises
    ------
    InputError
        The file cannot be read, or is not a voice.
    """
    path = _checked_path(path)
    header = read_header(path)
    info = header.get("speaker_wavs")
    if info is None or len(header) != 1 or info.dtype != "F32" or len(info.shape) != 3 or info.shape[0] != 1:
        raise InputError(f"{path} is not a voice of a text-to-speech model", "speaker_wavs [1, dim, steps] is expected")
    values = _read_safetensors(path)["speaker_wavs"].values
    if not np.isfinite(values).all():
        raise _not_finite(path)
    return np.ascontiguousarray(values[0].T, np.float32)


def _checked_path(path: str | os.PathLike[str]) -> Path:
    path = user_path(path)
    if check_file(path, "The voice") > _MAX_SIZE:
        raise InputError(f"{path} is too large to be a voice", "give another file")
    return path


def _not_finite(path: Path) -> InputError:
    return InputError(f"{path} has numbers that are infinite or NaN", "give another file")


def _checked_sound(path: Path, sound: Tensor) -> Pcm:
    if sound.dtype != "F32" or sound.values.ndim != 1 or not sound.values.size:
        raise ValueError
    if not (np.abs(sound.values) < _MAX_SAMPLE).all():
        raise InputError(f"{path} has samples that are no sound", "give another file")
    return np.asarray(sound.values, np.float32)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors, each of a type that a voice may have."""

    def read(info: TensorInfo) -> npt.NDArray[Any]:
        count = math.prod(info.shape)
        return np.fromfile(path, _SAFETENSORS[info.dtype], count, offset=info.begin).reshape(info.shape)

    header = read_header(path)
    if any(info.dtype not in _SAFETENSORS for info in header.values()) or len(header) > 2:
        raise ValueError
    return {name: Tensor(info.dtype, read(info)) for name, info in header.items()}
