"""Prompts that were read, on disk: the keys and values behind them, so that the next conversation begins at once.

A file holds one line of JSON, and behind it bytes: the prompt's columns, then each layer's ring up to the last column. The line
has a hash of these bytes. A file that is not exactly what it should be counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..errors import MshError
from ..model.architecture import Architecture
from ..model.attention import KvRing, RingFormat, capacities
from ..model.grid import Prompt
from ..model.prefill import Prefilled, first_position
from ..system.newfile import NewFile
from ..system.places import notes_folder

LIMIT = 2_000_000_000  # bytes

_FORM = "msh-mlx prompt 1"  # a change of the layout, or of how a prompt is read, changes the number
_ENDING = ".prompt"
_MAX_LINE = 1 << 20
# What reading a file can raise that is damaged, or is something else.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_ABANDONED = 3600  # seconds after which a file that was not completed is removed


@dataclass(frozen=True)
class Kept:
    """A prompt on disk: its file, the bytes that it takes, when it was used last, and what is said about it."""

    path: Path
    size: int
    used: float
    about: Mapping[str, str]


class KeptPrompts:
    """The prompts that are kept in a folder.

    Parameters
    ----------
    folder
        The folder; it is made when the first prompt is kept. None: nothing is kept.
    limit
        The most bytes that all files together take. The prompts that were not used for the longest time go first.
    """

    def __init__(self, folder: Path | None, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit

    @classmethod
    def of_user(cls, limit: int = LIMIT) -> KeptPrompts:
        """Return those of the user, in the folder of notes."""
        notes = notes_folder()
        return cls(notes / "prompts" if notes else None, limit)

    def get(self, key: str, config: Architecture, form: RingFormat) -> Prefilled | None:
        """Return the prompt of a key, for conversations in a format; None if it is not there, or is damaged."""
        path = self._path(key)
        try:
            if path is None or path.stat().st_size > self._limit:
                return None
            found = _read(path.read_bytes(), key, config, form)
        except _DAMAGED:
            return None
        if found:
            with contextlib.suppress(OSError):
                os.utime(path)
        return found

    def put(self, key: str, prefilled: Prefilled, config: Architecture, about: Mapping[str, str]) -> None:
        """Keep a prompt under a key. `about` is shown to the user. If it cannot be written, it is not kept."""
        path = self._path(key)
        if not path:
            return
        pieces = _pieces(prefilled, first_position(config, prefilled.prompt))
        digest = hashlib.blake2b(digest_size=32)
        for piece in pieces:
            digest.update(piece)
        line = {
            "form": _FORM,
            "key": key,
            "digest": digest.hexdigest(),
            "columns": len(prefilled.prompt.columns),
            "about": dict(about),
        }
        raw = json.dumps(line).encode() + b"\n"
        if len(raw) > _MAX_LINE or len(raw) + sum(map(len, pieces)) > self._limit:
            return
        with contextlib.suppress(MshError, OSError):  # without it the prompt is read once more
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            with NewFile(path) as new:
                new.file.write(raw)
                for piece in pieces:
                    new.file.write(piece)
                new.commit()
            self._trim()

    def all(self) -> list[Kept]:
        """List the prompts that are kept, those used last first. Files that are not prompts are left out."""
        found = []
        for path in self._files():
            with contextlib.suppress(*_DAMAGED):
                with path.open("rb") as file:
                    line = json.loads(file.readline(_MAX_LINE))
                status = path.stat()
                about = {str(name): str(value) for name, value in line["about"].items()}
                found.append(Kept(path, status.st_size, status.st_mtime, about))
        return sorted(found, key=lambda kept: -kept.used)

    def clear(self) -> int:
        """Remove all. Return the bytes that are free now. Raise OSError if a file cannot be removed."""
        freed = 0
        for path in [*self._files(), *self._incomplete()]:
            with contextlib.suppress(FileNotFoundError):  # another program has removed it
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def _path(self, key: str) -> Path | None:
        return self._folder / f"{key}{_ENDING}" if self._folder else None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{_ENDING}")) if self._folder else []

    def _incomplete(self) -> list[Path]:
        return sorted(self._folder.glob(".msh-*.tmp")) if self._folder else []

    def _trim(self) -> None:
        """Remove the prompts that were used least recently, until the others are within the limit."""
        for path in self._incomplete():
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self._files()]
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= size


def _numbers(dtype: mx.Dtype) -> Any:
    """Return the type of numpy that an array's numbers are written as. It has no bfloat16, so that is written as its bits."""
    return {mx.bfloat16: np.uint16, mx.float16: np.float16, mx.float32: np.float32, mx.uint32: np.uint32}[dtype]


def _pieces(prefilled: Prefilled, count: int) -> list[bytes]:
    """Return the bytes of a prompt: its columns, and the first `count` slots of each ring."""
    pieces = [prefilled.prompt.columns.astype("<i4").tobytes()]
    for ring in prefilled.rings:
        for part in ring:
            used = mx.contiguous(part[:, :, :count])
            used = used.view(mx.uint16) if used.dtype == mx.bfloat16 else used
            pieces.append(np.array(used).tobytes())
    return pieces


def _read(raw: bytes, key: str, config: Architecture, form: RingFormat) -> Prefilled | None:
    """Make a prompt of a file's bytes; None if they are not those of the key, or are damaged."""
    end = raw.index(b"\n", 0, _MAX_LINE) + 1
    line, data = json.loads(raw[:end]), memoryview(raw)[end:]
    if line["form"] != _FORM or line["key"] != key:
        return None
    if hashlib.blake2b(data, digest_size=32).hexdigest() != line["digest"]:
        return None
    streams = config.streams
    rows, length = len(streams.delays), int(line["columns"])
    columns: npt.NDArray[np.int32] = np.frombuffer(data, "<i4", length * rows).reshape(length, rows).astype(np.int32)
    prompt = Prompt(columns)
    count, begin = first_position(config, prompt), columns.nbytes
    capacity = next(size for size in capacities(config.context) if size > count)
    rings: list[KvRing] = []
    for _ in range(config.num_layers):
        ring = []
        for part in form.empty(count):
            array = mx.array(
                np.frombuffer(data, _numbers(part.dtype), math.prod(part.shape), begin).reshape(part.shape)
            )
            begin += array.nbytes
            ring.append(array.view(mx.bfloat16) if part.dtype == mx.bfloat16 else array)
        rings.append(form.grown(ring, capacity))
    if begin != len(data):
        return None
    mx.eval(rings)
    return Prefilled(prompt, form, tuple(rings))
