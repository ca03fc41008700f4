"""Hugging Face's cache: which files of the hub are on disk, in the layout that all programs share.

The layout is documented at https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A repository's folder has
`blobs/ETAG` (contents, named by their hash), `snapshots/COMMIT/PATH` (links to them) and `refs/REVISION` (the commit of a
branch). Nothing here asks the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.places import notes_folder
from .catalogue import Entry, HubFile, LocalFile, Reference
from .settings import constants

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_PARTIAL = ".msh.incomplete"


@dataclass(frozen=True)
class Watch:
    """Three functions that are called while files are fetched or read.

    `progress` gets the bytes done so far and the bytes of all files. `say` gets a sentence for the user. `check` is called
    often; it ends the work by raising an exception.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    say: Callable[[str], None] = lambda sentence: None
    check: Callable[[], None] = lambda: None


NOBODY = Watch()


def cache_folder() -> Path:
    """Return the folder of the cache, which `HF_HUB_CACHE` and `HF_HOME` choose."""
    return Path(constants.HF_HUB_CACHE)


def check_cache() -> None:
    """Raise InputError if there is no folder for the cache, because the user has no home folder."""
    if cache_folder().parts[:1] == ("~",):  # so Hugging Face's library leaves it without a home folder
        raise InputError(
            "There is no home folder for Hugging Face's cache", "set HOME, or HF_HOME to a folder for the models"
        )


def repository_folder(repository: str) -> Path:
    """Return the folder of a repository in the cache."""
    return cache_folder() / "--".join(["models", *repository.split("/")])


def is_commit(revision: str) -> bool:
    """Tell whether a revision is a commit, not the name of a branch or a tag."""
    return _COMMIT.fullmatch(revision) is not None


def commit_of(repository: str, revision: str) -> str | None:
    """Return the commit of a revision; None if the cache does not know it."""
    if is_commit(revision):
        return revision
    try:
        commit = (repository_folder(repository) / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if is_commit(commit) else None


def pointer(file: HubFile, commit: str) -> Path:
    """Return the path that a file of a commit has once it is on disk."""
    return repository_folder(file.repository) / "snapshots" / commit / file.path


def find(file: Reference) -> Path | None:
    """Return the path of a file if it is on disk, complete; else None."""
    if isinstance(file, LocalFile):
        path = file.path
    else:
        commit = commit_of(file.repository, file.revision)
        if commit is None:
            return None
        path = pointer(file, commit)
    return path if path.is_file() else None


def missing(entry: Entry) -> list[Reference]:
    """List the files of a model that are not on disk."""
    return [file for file in entry.files.values() if find(file) is None]


def is_on_disk(entry: Entry) -> bool:
    """Tell whether all files of a model are on disk."""
    return not missing(entry)


def blob_folder(repository: str) -> Path:
    """Return the folder of a repository's blobs: the contents of its files, named by their ETags."""
    return repository_folder(repository) / "blobs"


def blob_of(path: Path) -> Path | None:
    """Return the blob that a path in the cache links to; None if the path is not a link.

    The blob itself may be a link into a store that several repositories share.
    """
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else None


def partial(repository: str, etag: str) -> Path:
    """Return the path that a file's contents have while they are incomplete."""
    return blob_folder(repository) / f"{etag}{_PARTIAL}"


def partials(repository: str) -> list[Path]:
    """List the incomplete files of a repository."""
    return sorted(blob_folder(repository).glob(f"*{_PARTIAL}"))


# ---- what a file should be -----------------------------------------------------------------------------------------------


class Digest:
    """The hash of a file's contents, as the hub names them: sha256 for large files, git's sha1 for small ones.

    `expected` is an ETag from the hub. If it is neither of the two hashes, nothing can be checked, and every file agrees.
    """

    def __init__(self, expected: str, size: int) -> None:
        self._expected = expected
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if is_commit(expected) else None

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._sha256.update(data)
        if self._git:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def agrees(self) -> bool:
        """Tell whether the contents have the expected hash. Call it after the last byte."""
        if self._git:
            return self._git.hexdigest() == self._expected
        return not is_sha256(self._expected) or self.sha256 == self._expected


def is_sha256(etag: str) -> bool:
    """Tell whether an ETag is a sha256."""
    return _SHA256.fullmatch(etag) is not None


def can_check(file: Reference, path: Path) -> bool:
    """Tell whether a hash of the file is known, so that its contents can be checked.

    On some file systems the cache cannot make links. Then nothing tells the hub's hash of a file.
    """
    blob = blob_of(path) if isinstance(file, HubFile) else None
    return file.sha256 is not None or (blob is not None and (is_sha256(blob.name) or is_commit(blob.name)))


def wrong_hash(file: Reference, path: Path, told: Callable[[int], None] = lambda count: None) -> str | None:
    """Read a file, and compare its hash with the known ones. Return what is wrong, as a clause, or None.

    The hub's hash is the name of the blob that `path` links to; the reference may have one, too. If there is neither (see
    `can_check`), nothing is found wrong. `told` gets the number of bytes that were read since its last call.
    Raise OSError if the file cannot be read.
    """
    blob = blob_of(path) if isinstance(file, HubFile) else None
    digest = Digest(blob.name if blob else "", path.stat().st_size)
    with path.open("rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
            told(len(piece))
    if not digest.agrees():
        return "its contents are not those that the hub has under this hash"
    if file.sha256 and digest.sha256 != file.sha256:
        return f"its sha256 is {digest.sha256}, and {file.sha256} is expected"
    return None


# ---- what was checked ----------------------------------------------------------------------------------------------------
#
# Reading gigabytes takes long. So a file that was read and found right is noted, by its path, with its size, time and inode:
# one of these changes when the file does.


def _notes() -> Path | None:
    folder = notes_folder()
    return folder / "verified.json" if folder else None


def _read_notes() -> dict[str, Any]:
    place = _notes()
    try:
        notes = json.loads(place.read_text(encoding="utf-8")) if place else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def note_verified(paths: Iterable[Path]) -> None:
    """Note that the contents of files have been checked."""
    place = _notes()
    if place is None:
        return
    with contextlib.suppress(OSError):  # without the note they are checked once more
        notes = {name: state for name, state in _read_notes().items() if Path(name).exists()}
        notes |= {str(path.resolve()): _state(path) for path in paths}
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"verified.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(notes, indent=1), encoding="utf-8")
        temporary.replace(place)


def is_verified(path: Path) -> bool:
    """Tell whether a file was checked and has not changed since."""
    return _read_notes().get(str(path.resolve())) == _state(path)


# ---- removing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removed:
    """What `remove` did: bytes that were freed, links that were removed, and files that were kept for other models."""

    freed: int
    removed: tuple[Path, ...]
    kept: tuple[HubFile, ...]


def remove(entry: Entry, others: Iterable[Entry]) -> Removed:
    """Remove the files of a model from the cache, complete or not. Keep those that a model of `others` on disk needs.

    Other files of the same repository stay: other programs may have fetched them. Raise InputError if the model's files
    are the user's own.
    """
    own = [file for file in entry.files.values() if isinstance(file, HubFile)]
    if not own:
        raise InputError(f"The files of {entry.name} are your own, not fetched ones", "remove them by hand")
    neighbours = [other for other in others if other.name != entry.name and is_on_disk(other)]
    needed = {find(file) for other in neighbours for file in other.files.values()}
    freed, removed, kept = 0, [], []
    for file in own:
        path = find(file)
        if path in needed:
            kept.append(file)
        elif path:
            freed += _remove(path, file.repository)
            removed.append(path)
    for repository in {file.repository for file in own}:
        for rest in partials(repository):
            freed += rest.stat().st_size
            rest.unlink()
        _prune(repository_folder(repository))
    return Removed(freed, tuple(removed), tuple(kept))


def _remove(path: Path, repository: str) -> int:
    """Remove a file from its snapshot, and its blob if no other snapshot has it. Return the bytes that were freed."""
    blob = blob_of(path)
    last = blob or path
    size = 0 if last.is_symlink() or last.stat().st_nlink > 1 else last.stat().st_size
    path.unlink()
    if blob is None:
        return size
    if any(blob_of(other) == blob for other in (repository_folder(repository) / "snapshots").rglob("*")):
        return 0
    blob.unlink()
    return size


def _prune(folder: Path) -> None:
    """Remove the empty folders of a repository's snapshots, and the whole repository if no file is left."""
    for path in sorted(folder.glob("snapshots/**/"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    if not (folder / "snapshots").exists() and not any((folder / "blobs").glob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def paths(entry: Entry) -> Mapping[str, Path | None]:
    """Return the path of each file of a model, by its role; None for a file that is not on disk."""
    return {role: find(file) for role, file in entry.files.items()}
