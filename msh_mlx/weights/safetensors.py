"""The safetensors format: read headers, read tensors by ranges of the file, write files in place.

Headers are read and checked, and files searched for numbers that are not finite, by the one reader that the codec uses, too:
the Rust crate `checkpoint`. It must work without Python, and is quicker. It is imported where it is called: what reads no file
works without it, too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..system.inputs import check_file
from ..system.places import user_path

FLOATS = ("F32", "BF16", "F16")
# The types that numpy reads the types of language models as. It has no bfloat16, so that is read as its bits.
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: its dtype as in the header ("F32", "BF16", …), its shape, and the byte of the file it begins at."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def nbytes(self) -> int:
        """Its size in bytes; its dtype is F32, F16, BF16 or U32."""
        return math.prod(self.shape) * np.dtype(_NUMPY[self.dtype]).itemsize

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
    from msh_native import read_header

    with _checked(path) as file:
        return {name: TensorInfo(*info) for name, info in read_header(file).items()}


@contextmanager
def _checked(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Check a file before the native reader opens it, and turn the reader's errors into ours."""
    from msh_native import FileError

    path = user_path(path)
    check_file(path)
    try:
        yield path
    except FileError as error:
        raise InputError(*error.args) from None
    except OSError as error:  # whose message is a whole sentence
        raise InputError(str(error)) from None


def read_tensor(path: Path, info: TensorInfo) -> npt.NDArray[Any]:
    """Read one tensor, or some rows of one, of dtype F32, F16, BF16 or U32. Nothing else of the file is read.

    Numpy has no bfloat16: numbers in it come as their bits, uint16; `as_float32` makes numbers of them.

    Raises
    ------
    InputError
        The file is shorter than when its header was read.
    """
    count = math.prod(info.shape)
    data = np.fromfile(path, _NUMPY[info.dtype], count, offset=info.begin)
    if data.size != count:
        raise InputError(f"{path} became shorter while it was read", "fetch the file again")
    return data.reshape(info.shape)


def as_float32(numbers: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return floats as `read_tensor` gives them, bfloat16 as its bits, in float32."""
    if numbers.dtype == np.uint16:
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32, copy=False)


def as_bfloat16(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite float32 numbers to the nearest of bfloat16, and return the bits."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


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
    from msh_native import find_not_finite

    with _checked(path) as file:
        return find_not_finite(file, progress)


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

    def write(self, name: str, array: npt.NDArray[Any], row: int = 0) -> None:
        """Write `array` as the rows of tensor `name` from `row` on. Its dtype must be the announced one, BF16 as its bits."""
        place = self._tensors[name].rows(row, row + array.shape[0])
        data = np.ascontiguousarray(array)
        assert data.dtype == _NUMPY[place.dtype], name
        assert data.shape == place.shape, name
        self._file.seek(place.begin)
        self._file.write(data.data)
