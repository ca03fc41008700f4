"""The safetensors format: headers that are checked, tensors read by ranges of the file, files written in place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from .errors import InputError

# https://huggingface.co/docs/safetensors: the header is at most 100 MB.
_MAX_HEADER = 100_000_000
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
FLOATS = ("F32", "BF16", "F16")
# How numpy reads what is read here; bfloat16, which it does not have, as its bits.
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: its dtype as the header has it ("F32", "BF16", …), its shape, and the byte it begins at."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]

    def rows(self, begin: int, end: int) -> TensorInfo:
        """Describe rows `begin` to `end` alone, which lie side by side; fewer where the tensor ends."""
        end = min(end, self.shape[0])
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        return TensorInfo(self.dtype, (end - begin, *self.shape[1:]), self.begin + begin * row)


def read_header(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises
    ------
    InputError
        The file cannot be read, is no safetensors file, or is shorter or longer than its header says.
    """
    path = Path(path).expanduser()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            raw = file.read(length) if len(start) == 8 and length <= min(_MAX_HEADER, size - 8) else b""
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the .safetensors file in it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if size == 0:
        raise InputError(f"{path} is empty; fetch the file again.")
    if not raw.startswith(b"{"):
        if len(start) == 8 and size - 8 < length <= _MAX_HEADER and size < _MAX_HEADER and not start.isascii():
            raise InputError(f"{path} is cut off in its header; fetch the file again.")
        raise InputError(f"{path} is not a safetensors file.")
    try:
        header = json.loads(raw)
        places = {name: _place(name, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path} has a broken safetensors header; fetch the file again.") from None
    end = 0
    for name, (_, begin, stop) in sorted(places.items(), key=lambda item: item[1][1:]):
        if begin != end:
            raise InputError(f"{path} has a broken safetensors header: the place of {name} is wrong.")
        end = stop
    data = 8 + length
    if end != size - data:
        what = "cut off" if end > size - data else "longer than its header says"
        raise InputError(f"{path} is {what}: {size:,} bytes in place of {data + end:,}; fetch the file again.")
    return {name: TensorInfo(info.dtype, info.shape, data + begin) for name, (info, begin, _) in places.items()}


def _place(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
    if not name.isprintable() or not whole or end - begin != math.prod(shape) * _DTYPE_BYTES[entry["dtype"]]:
        raise ValueError(name)
    return TensorInfo(entry["dtype"], shape), begin, end


def read_tensor(path: Path, info: TensorInfo) -> mx.array:
    """Read one tensor, or some rows of one, of dtype F32, F16, BF16 or U32; nothing else of the file is touched.

    Raises
    ------
    InputError
        The file has changed since its header was read.
    """
    count = math.prod(info.shape)
    data = np.fromfile(path, _NUMPY[info.dtype], count, offset=info.begin)
    if data.size != count:
        raise InputError(f"{path} became shorter while it was read.")
    array = mx.array(data)
    if info.dtype == "BF16":
        array = array.view(mx.bfloat16)
    return array.reshape(info.shape)


class TensorWriter:
    """Writes a safetensors file whose tensors' names, dtypes (F32, BF16, U32) and shapes are known beforehand.

    The header is written at once; tensors follow in any order, whole or by rows, and none is kept.
    """

    def __init__(self, file: BinaryIO, tensors: Mapping[str, TensorInfo]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        end = 0
        for name, info in tensors.items():
            header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [end, end + info.nbytes]}
            end += info.nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # readers may map the file: the data begins at a multiple of 8
        file.write(len(raw).to_bytes(8, "little") + raw)
        self._file = file
        self._tensors = {
            name: TensorInfo(info.dtype, info.shape, 8 + len(raw) + header[name]["data_offsets"][0])
            for name, info in tensors.items()
        }

    def write(self, name: str, array: mx.array, row: int = 0) -> None:
        """Write `array`, of the dtype that was announced, as the rows of tensor `name` from `row` on."""
        place = self._tensors[name].rows(row, row + array.shape[0])
        if array.dtype == mx.bfloat16:
            array = array.view(mx.uint16)
        data = np.ascontiguousarray(np.array(array, copy=False))
        assert data.dtype == _NUMPY[place.dtype], name
        assert data.shape == place.shape, name
        self._file.seek(place.begin)
        self._file.write(data.data)
