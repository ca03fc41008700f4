"""Voices in files: PyTorch's `.pt`, read without PyTorch, and `.safetensors`."""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..format import Pcm
from ..model.families.personaplex import Voice
from ..system.inputs import check_file
from ..system.places import user_path
from .safetensors import TensorInfo, TensorWriter, read_header

_MAX_SIZE = 1 << 28  # a voice has some hundred kilobytes
_MAX_PICKLE = 1 << 16
_MAX_SAMPLE = 1e3  # voices are not loud
_TYPES: dict[str, tuple[str, Any]] = {
    "BFloat16Storage": ("BF16", np.uint16),
    "HalfStorage": ("F16", np.float16),
    "FloatStorage": ("F32", np.float32),
    "LongStorage": ("I64", np.int64),
    "IntStorage": ("I32", np.int32),
}
_SAFETENSORS = dict(_TYPES.values())
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
    path = user_path(path)
    if check_file(path) > _MAX_SIZE:
        raise InputError(f"{path} is too large to be a voice", "give another file")
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        tensors = _read_pt(path) if is_zip else _read_safetensors(path)
        if not is_zip and set(tensors) == {"sound"}:
            return _checked_sound(path, *tensors["sound"])
        embedded, columns = tensors["embeddings"], tensors["cache"]
        dtype, values = embedded
        good = (
            set(tensors) == {"embeddings", "cache"} and dtype in ("BF16", "F16", "F32") and columns[0] in ("I64", "I32")
        )
        if not good or values.ndim != 4 or values.shape[1:3] != (1, 1) or columns[1].ndim != 3 or not values.size:
            raise ValueError
        if columns[1].shape[0] != 1 or columns[1].shape[2] != 4 or not (abs(columns[1]) < 1 << 24).all():
            raise ValueError
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        EOFError,
        OverflowError,
        RecursionError,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a voice", _EXPECTED) from None
    array = mx.array(values)
    if dtype == "BF16":
        array = array.view(mx.bfloat16)
    if not mx.isfinite(array).all().item():
        raise InputError(f"{path} has numbers that are infinite or NaN", "give another file")
    return Voice(array[:, 0, 0], columns[1][0].astype(np.int32))


def write_sound(file: BinaryIO, pcm: Pcm) -> None:
    """Write a voice as sound, `[samples]` float32 at 24 kHz, to a file that is open for writing."""
    TensorWriter(file, {"sound": TensorInfo("F32", pcm.shape)}).write("sound", mx.array(pcm))


def _checked_sound(path: Path, dtype: str, values: npt.NDArray[Any]) -> Pcm:
    if dtype != "F32" or values.ndim != 1 or not values.size:
        raise ValueError
    if not (np.abs(values) < _MAX_SAMPLE).all():
        raise InputError(f"{path} has samples that are no sound", "give another file")
    return np.asarray(values, np.float32)


def _read_safetensors(path: Path) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    def read(info: TensorInfo) -> npt.NDArray[Any]:
        count = math.prod(info.shape)
        return np.fromfile(path, _SAFETENSORS[info.dtype], count, offset=info.begin).reshape(info.shape)

    return {name: (info.dtype, read(info)) for name, info in read_header(path).items()}


@dataclass(frozen=True)
class _Storage:
    dtype: str
    values: npt.NDArray[Any]


class _Unpickler(pickle.Unpickler):
    """Reads tensors, and refuses all else: no class or function of a file's choice is looked up."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _TYPES:
            return name
        raise ValueError(name)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(key, str) or not key.isalnum():
            raise ValueError(key)
        dtype, numbers = _TYPES[storage]
        values = np.frombuffer(self._archive.read(f"{self._folder}/data/{key}"), numbers)
        if len(values) != count:
            raise ValueError(key)
        return _Storage(dtype, values)


def _tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> tuple[str, npt.NDArray[Any]]:
    """Make a tensor of a storage; only those whose numbers follow each other."""
    count = math.prod(size)
    steps = [math.prod(size[i + 1 :]) for i in range(len(size))]
    plain = all(n == 1 or step == wanted for n, step, wanted in zip(size, stride, steps, strict=True))
    if not plain or not 0 <= offset <= offset + count <= len(storage.values) or min(size, default=0) < 0:
        raise ValueError(size)
    return storage.dtype, storage.values[offset : offset + count].reshape(size)


def _read_pt(path: Path) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > _MAX_SIZE:
                raise ValueError
            (pickled,) = (
                info for info in infos if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")
            )
            if pickled.file_size > _MAX_PICKLE:
                raise ValueError
            folder = pickled.filename.removesuffix("/data.pkl")
            found = _Unpickler(io.BytesIO(archive.read(pickled)), archive, folder).load()
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, NotImplementedError, MemoryError, OSError):
        raise ValueError from None
    except RuntimeError:  # an entry with a password
        raise ValueError from None
    if not isinstance(found, dict):
        raise ValueError
    return found
