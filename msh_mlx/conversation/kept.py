"""Prompts that were read, on disk: the keys and values behind them, so that the next conversation begins at once.

A file holds one line of JSON, and behind it bytes: the prompt's columns, then what the engine keeps up to the last column. The
line has a hash of these bytes. A file that is not exactly what it should be counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import MshError
from ..model.engine import LanguageModel, Prefilled
from ..model.grid import Prompt
from ..system.newfile import NewFile
from ..system.places import notes_folder

LIMIT = 2_000_000_000  # bytes

_FORM = "msh-mlx prompt 2"  # a change of the layout, or of how a prompt is read, changes the number
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

    def get(self, key: str, lm: LanguageModel, kv_bits: int | None) -> Prefilled | None:
        """Return the prompt of a key, for conversations with `kv_bits`; None if it is not there, or is damaged."""
        path = self._path(key)
        try:
            if path is None or path.stat().st_size > self._limit:
                return None
            found = _read(path.read_bytes(), key, lm, kv_bits)
        except _DAMAGED:
            return None
        if found:
            with contextlib.suppress(OSError):
                os.utime(path)
        return found

    def put(self, key: str, prefilled: Prefilled, lm: LanguageModel, about: Mapping[str, str]) -> None:
        """Keep a prompt under a key. `about` is shown to the user. If it cannot be written, it is not kept."""
        path = self._path(key)
        if not path:
            return
        pieces = [prefilled.prompt.columns.astype("<i4").tobytes()]
        pieces += [np.ascontiguousarray(array).tobytes() for array in lm.kept(prefilled)]
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


def _read(raw: bytes, key: str, lm: LanguageModel, kv_bits: int | None) -> Prefilled | None:
    """Make a prompt of a file's bytes; None if they are not those of the key, or are damaged."""
    end = raw.index(b"\n", 0, _MAX_LINE) + 1
    line, data = json.loads(raw[:end]), memoryview(raw)[end:]
    if line["form"] != _FORM or line["key"] != key:
        return None
    if hashlib.blake2b(data, digest_size=32).hexdigest() != line["digest"]:
        return None
    streams = lm.config.streams
    rows, length = len(streams.delays), int(line["columns"])
    columns: npt.NDArray[np.int32] = np.frombuffer(data, "<i4", length * rows).reshape(length, rows).astype(np.int32)
    return lm.restored(Prompt(columns), kv_bits, data[columns.nbytes :])
