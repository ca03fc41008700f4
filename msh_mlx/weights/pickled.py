"""Tensors in PyTorch's own files (`.pt`), read without PyTorch. Nothing that such a file says is ever run.

A file is a ZIP archive of entries that are not compressed: `NAME/data.pkl`, a pickle, and `NAME/data/KEY`, raw numbers. The
pickle is a program. Of its operations, only those that make a dictionary of tensors are known here, and no function but the
one that PyTorch makes a tensor with.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model.ranges import is_whole

# The types of PyTorch's storages: each by its name in safetensors files, and as numpy reads it. It has no bfloat16.
TYPES: dict[str, tuple[str, Any]] = {
    "BFloat16Storage": ("BF16", np.uint16),
    "HalfStorage": ("F16", np.float16),
    "FloatStorage": ("F32", np.float32),
    "LongStorage": ("I64", np.int64),
    "IntStorage": ("I32", np.int32),
}
_MAX_ENTRIES = 32
_MAX_PICKLE = 1 << 12  # that of two tensors has some 400 bytes
_DIRECTORY = b"PK\x01\x02"  # how an entry of the archive's directory begins


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its type as in safetensors files, and its numbers, bfloat16 as uint16."""

    dtype: str
    values: npt.NDArray[Any]


class _Mark:
    """Where the arguments of an operation begin on the stack."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a dictionary of tensors.

    Raises
    ------
    ValueError
        The file is something else, or has anything else in it.
    """
    data = path.read_bytes()
    if data.count(_DIRECTORY) > _MAX_ENTRIES:
        raise ValueError("too many entries")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in entries.values())
            size = sum(info.file_size for info in entries.values())
            if len(entries) < len(archive.infolist()) or not stored or size > len(data):
                raise ValueError("entries that are repeated, compressed or overlap")
            (name,) = (name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl"))
            if entries[name].file_size > _MAX_PICKLE:
                raise ValueError("a long pickle")
            folder = name.removesuffix("/data.pkl")
            if f"{folder}/byteorder" in entries and archive.read(f"{folder}/byteorder") != b"little":
                raise ValueError("numbers in another order of bytes")
            return _Machine(lambda key: archive.read(f"{folder}/data/{key}")).run(archive.read(name))
    except (zipfile.BadZipFile, struct.error, ArithmeticError, LookupError, EOFError, OSError, RuntimeError) as error:
        # RuntimeError and its NotImplementedError: an entry with a password, or in a way that is not known.
        raise ValueError(str(error)) from None


class _Machine:
    """Runs the pickle of a dictionary of tensors: a stack, and a memory of what was made.

    What is on the stack is made here: strings, numbers, tuples, tensors, and the one dictionary. `read(key)` gives the bytes of
    a storage.
    """

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._storages: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}
        self._result: dict[str, Tensor] = {}

    def run(self, pickled: bytes) -> dict[str, Tensor]:
        """Run a pickle. Return the dictionary that it makes."""
        argument: Any
        for operation, argument, _ in pickletools.genops(pickled):
            name = operation.name
            if name == "STOP":
                break
            if name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memory[argument] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memory[argument])
            elif name == "MARK":
                self._stack.append(_Mark)
            elif name in _LENGTHS:
                self._stack.append(tuple(self._pop(_LENGTHS[name])))
            elif name == "TUPLE":
                self._stack.append(tuple(self._marked()))
            elif name == "EMPTY_DICT":
                self._stack.append(self._result)
            elif name == "GLOBAL":
                self._stack.append(_global(argument))
            elif name == "BINPERSID":
                self._stack.append(self._storage(*self._pop(1)))
            elif name == "REDUCE":
                self._stack.append(_call(*self._pop(2)))
            elif name in ("SETITEM", "SETITEMS"):
                self._set(self._pop(2) if name == "SETITEM" else self._marked())
            elif name != "PROTO":
                raise ValueError(f"a pickle with {name}")
        if len(self._stack) != 1 or id(self._stack[0]) != id(self._result):
            raise ValueError("a pickle that is not a dictionary")
        return self._result

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise ValueError("a pickle that ends early")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        if any(item is _Mark for item in taken):
            raise ValueError("a mark in the wrong place")
        return taken

    def _marked(self) -> list[Any]:
        begin = max(i for i, item in enumerate(self._stack) if item is _Mark)
        taken = self._stack[begin + 1 :]
        del self._stack[begin:]
        return taken

    def _set(self, items: list[Any]) -> None:
        if len(items) % 2 or self._stack[-1] is not self._result:
            raise ValueError("a dictionary that is not whole")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or not isinstance(value, Tensor) or key in self._result:
                raise ValueError("something that is not a tensor")
            self._result[key] = value

    def _storage(self, identity: Any) -> Tensor:
        if not isinstance(identity, tuple) or len(identity) != 5:
            raise ValueError("a storage of another form")
        kind, storage, key, _, count = identity
        if kind != "storage" or not isinstance(key, str) or not key.isalnum() or not isinstance(storage, _Type):
            raise ValueError("a storage of another form")
        if key not in self._storages:
            dtype, numbers = TYPES[storage.name]
            self._storages[key] = Tensor(dtype, np.frombuffer(self._read(key), numbers))
        found = self._storages[key]
        if found.dtype != TYPES[storage.name][0] or not is_whole(count) or found.values.size != count:
            raise ValueError("a storage of another size or type")
        return found


@dataclass(frozen=True)
class _Type:
    """The name of a type of storage."""

    name: str


_REBUILD, _ORDERED = object(), object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _global(name: str) -> object:
    """Return what stands for a function or a type of this name."""
    if name == "torch._utils _rebuild_tensor_v2":
        return _REBUILD
    if name == "collections OrderedDict":
        return _ORDERED
    module, _, kind = name.partition(" ")
    if module == "torch" and kind in TYPES:
        return _Type(kind)
    raise ValueError(f"a pickle with {name}")


def _call(function: object, arguments: Any) -> Any:
    """Make what a call makes: a tensor, or the empty table of hooks of one."""
    if function is _ORDERED and arguments == ():
        return None
    if function is not _REBUILD or not isinstance(arguments, tuple) or not 5 <= len(arguments) <= 7:
        raise ValueError("a call of another form")
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Tensor) or not all(
        isinstance(axes, tuple) and len(axes) <= 8 for axes in (size, stride)
    ):
        raise ValueError("a tensor of another form")
    if not all(map(is_whole, (offset, *size, *stride))) or len(size) != len(stride) or min((offset, *size)) < 0:
        raise ValueError("a tensor of another form")
    count = math.prod(size)
    steps = [math.prod(size[i + 1 :]) for i in range(len(size))]
    # Only tensors whose numbers follow each other.
    plain = all(n == 1 or step == wanted for n, step, wanted in zip(size, stride, steps, strict=True))
    if not plain or offset + count > storage.values.size:
        raise ValueError("a tensor that is not in its storage")
    return Tensor(storage.dtype, storage.values[offset : offset + count].reshape(size))
