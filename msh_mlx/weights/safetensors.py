"""The safetensors format: check headers, read tensors by ranges of the file, write files in place.

The codec has its own reader in Rust (`rust/mimi/src/checkpoint.rs`), because its crate works without Python. That reader is not
used here, for three reasons. It takes three float types, and streams each tensor into its own layout; here packed integers,
ranges of rows and MLX arrays are needed, too. Its errors do not know the program's options. And commands that read only
headers, such as `msh-mlx models` and `msh-mlx doctor`, must work even where the extension cannot be loaded.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..system.inputs import ONE_FILE, brief, cannot_read, check_file, foreign
from ..system.places import user_path

# https://huggingface.co/docs/safetensors: the header is at most 100 MB.
_MAX_HEADER = 100_000_000
_MAX_NAME = 512
_MAX_AXES = 16
_MAX_INDEX = 1 << 20
_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*\{\s*[\"}]")
# All types of the format, and the bits of one number.
_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64,
    "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
FLOATS = ("F32", "BF16", "F16")
# The types that numpy reads them as. It has no bfloat16, so that is read as its bits.
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: its dtype as in the header ("F32", "BF16", …), its shape, and the byte of the file it begins at."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * _BITS[self.dtype] // 8

    def rows(self, begin: int, end: int) -> TensorInfo:
        """Describe the rows from `begin` up to `end`, or up to the tensor's end if that comes first."""
        end = min(end, self.shape[0])
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        return TensorInfo(self.dtype, (end - begin, *self.shape[1:]), self.begin + begin * row)


def read_header(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file. No tensor is read.

    Raises
    ------
    InputError
        The file cannot be read, is not a safetensors file, is shorter or longer than its header says, or has a tensor of an
        unknown type.
    """
    path = user_path(path)
    size = check_file(path)
    if size == 0:
        raise InputError(f"{path} is empty", "fetch the file again")
    try:
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            raw = file.read(length) if size >= 8 and length <= min(_MAX_HEADER, size - 8) else b""
    except OSError as error:
        raise cannot_read(str(path), error) from None
    if start[8:9] != b"{" and (other := foreign(start) or (_json(path) if _JSON.match(start) else None)):
        raise InputError(f"{path} is {other[0]}", other[1])
    if not raw.startswith(b"{"):
        if size >= 9 and start[8:9] == b"{" and length > _MAX_HEADER:
            raise InputError(
                f"{path} is not a safetensors file: its header would have {length:,} bytes", "fetch the file again"
            )
        if size >= 8 and size - 8 < length <= _MAX_HEADER and (start[8:9] == b"{" or not start[:8].isascii()):
            raise InputError(f"{path} is cut off in its header", "fetch the file again")
        raise InputError(f"{path} is not a safetensors file", "fetch the file again")
    try:
        header = json.loads(raw, object_pairs_hook=_distinct)
        places = {name: _place(name, entry) for name, entry in header.items() if name != "__metadata__"}
    except _TwiceError as error:
        raise InputError(
            f"{path} has a broken safetensors header: {brief(error.key)} is there twice", "fetch the file again"
        ) from None
    except _UnknownTypeError as error:
        raise InputError(
            f"{path}: {error.name} is of type {brief(error.dtype)}, which is not known",
            "fetch the file again, or take one with weights of type BF16",
        ) from None
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path} has a broken safetensors header", "fetch the file again") from None
    end = 0
    for name, (_, begin, stop) in sorted(places.items(), key=lambda item: item[1][1:]):
        if begin != end:
            what = "overlaps another tensor" if begin < end else "leaves a gap before it"
            raise InputError(
                f"{path} has a broken safetensors header: the place of {name} {what}", "fetch the file again"
            )
        end = stop
    data = 8 + length
    if end != size - data:
        what = "cut off" if end > size - data else "longer than its header says"
        raise InputError(f"{path} is {what}: {size:,} bytes in place of {data + end:,}", "fetch the file again")
    return {name: TensorInfo(info.dtype, info.shape, data + begin) for name, (info, begin, _) in places.items()}


class _TwiceError(ValueError):
    def __init__(self, key: str) -> None:
        self.key = key


class _UnknownTypeError(ValueError):
    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = dtype


def _json(path: Path) -> tuple[str, str]:
    """Say what a JSON file is, and what to give in its place."""
    with path.open("rb") as file:
        text = file.read(_MAX_INDEX)
    if b'"weight_map"' not in text:
        return "a JSON file, which holds no weights", "give the .safetensors file"
    parts = sorted({name.decode() for name in re.findall(rb'"([\w.-]+\.safetensors)"', text)})
    of = f" ({', '.join(parts[:2])}{' …' if len(parts) > 2 else ''})" if parts else ""
    return f"an index of a model that is in several files{of}", ONE_FILE


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _place(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63 for n in (*shape, begin, end))
    # Without these limits, the product of many large numbers could take for ever.
    if not name.isprintable() or len(name) > _MAX_NAME or len(shape) > _MAX_AXES or not whole:
        raise ValueError(name)
    if isinstance(dtype := entry["dtype"], str) and dtype not in _BITS:
        raise _UnknownTypeError(name, dtype)
    if 8 * (end - begin) != math.prod(shape) * _BITS[dtype]:
        raise ValueError(name)
    return TensorInfo(dtype, shape), begin, end


def read_tensor(path: Path, info: TensorInfo) -> mx.array:
    """Read one tensor, or some rows of one, of dtype F32, F16, BF16 or U32. Nothing else of the file is read.

    Raises
    ------
    InputError
        The file is shorter than when its header was read.
    """
    count = math.prod(info.shape)
    data = np.fromfile(path, _NUMPY[info.dtype], count, offset=info.begin)
    if data.size != count:
        raise InputError(f"{path} became shorter while it was read.")
    array = mx.array(data)
    if info.dtype == "BF16":
        array = array.view(mx.bfloat16)
    return array.reshape(info.shape)


# For each type of float: numpy's type for its bits, the mask of its exponent and that of its fraction. If all bits of the
# exponent are set, the number is not finite; it is NaN if the fraction is not 0.
_EXPONENTS: dict[str, tuple[Any, int, int]] = {
    "F16": (np.uint16, 0x7C00, 0x3FF),
    "BF16": (np.uint16, 0x7F80, 0x7F),
    "F32": (np.uint32, 0x7F80_0000, 0x7F_FFFF),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000, 0xF_FFFF_FFFF_FFFF),
}
_PIECE = 1 << 22


def find_not_finite(
    path: str | os.PathLike[str], progress: Callable[[float], None] | None = None
) -> tuple[str, int, float] | None:
    """Read all floats of a safetensors file, some megabytes at a time. Find the first that is infinite or NaN.

    Parameters
    ----------
    path
        The file, of any model. Quantized weights are not floats, but their scales and biases are.
    progress
        Called with the fraction of the floats' bytes that have been read, from 0 to 1.

    Returns
    -------
    tuple or None
        The tensor's name, the number's position in it (row-major), and its value (inf, −inf or nan). None: all are finite.

    Raises
    ------
    InputError
        `read_header` refuses the file, or it became shorter while it was read.
    """
    path = user_path(path)
    floats = {name: info for name, info in read_header(path).items() if info.dtype in _EXPONENTS}
    total, done = sum(info.nbytes for info in floats.values()), 0
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        for name, info in sorted(floats.items(), key=lambda item: item[1].begin):
            kind, exponent, fraction = _EXPONENTS[info.dtype]
            file.seek(info.begin)
            for first in range(0, info.nbytes, _PIECE):
                piece = memoryview(buffer)[: min(_PIECE, info.nbytes - first)]
                filled = 0
                while filled < len(piece):
                    count = file.readinto(piece[filled:])
                    if not count:
                        raise InputError(f"{path} became shorter while it was read.")
                    filled += count
                bits = np.frombuffer(piece, kind)
                wrong = (bits & kind(exponent)) == kind(exponent)
                if wrong.any():
                    at = int(wrong.argmax())
                    value = math.nan if int(bits[at]) & fraction else math.inf
                    negative = int(bits[at]) >> (8 * bits.itemsize - 1)
                    return name, first // bits.itemsize + at, -value if negative else value
                done += len(piece)
                if progress:
                    progress(done / total)
    if progress and not total:
        progress(1.0)
    return None


class TensorWriter:
    """Writes a safetensors file. The names, dtypes (F32, BF16, U32) and shapes of its tensors must be known beforehand.

    The header is written at once. Tensors follow in any order, whole or by rows. None is kept in memory.
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
        """Write `array` as the rows of tensor `name` from `row` on. Its dtype must be the announced one."""
        place = self._tensors[name].rows(row, row + array.shape[0])
        if array.dtype == mx.bfloat16:
            array = array.view(mx.uint16)
        data = np.ascontiguousarray(np.array(array, copy=False))
        assert data.dtype == _NUMPY[place.dtype], name
        assert data.shape == place.shape, name
        self._file.seek(place.begin)
        self._file.write(data.data)
