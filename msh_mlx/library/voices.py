"""PersonaPlex's voices by name: the user's own, those beside a model, and those in the archives of the catalogue's models."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError, MshError
from ..system.inputs import brief, cannot_read
from ..system.places import config_folder, notes_folder, user_path
from . import cache
from .catalogue import Entry

ENDINGS = (".pt", ".safetensors")
ARCHIVE = "voices.tgz"
_NAME = re.compile(r"\w[\w.+-]{0,63}")
_MAX_NAME = 200  # bytes: a file's name has at most 255
_MAX_SIZE = 1 << 28  # bytes of an archive's files; the published one has some megabytes
_MAX_FILES = 1000


@dataclass(frozen=True)
class NamedVoice:
    """A voice with a name: its file, where it is from in a few words, and its licence if that is known.

    `own` tells whether it is the user's.
    """

    name: str
    path: Path
    source: str
    licence: str | None = None
    own: bool = False


def own_folder() -> Path | None:
    """Return the folder of the user's own voices, which may not exist yet. None: there is no home folder."""
    folder = config_folder()
    return folder / "voices" if folder else None


def check_name(name: str) -> str:
    """Return the name of a voice. Raise InputError if it is not one."""
    if not _NAME.fullmatch(name) or name.endswith(ENDINGS) or len(name.encode()) > _MAX_NAME:
        raise InputError(
            f"{brief(name)} is not a name for a voice",
            "give one with --name: up to 64 letters, digits, '_', '.', '+' and '-', and a letter or digit first",
        )
    return name


def known_voices(model: Path | None, entries: Iterable[Entry] = ()) -> dict[str, NamedVoice]:
    """List PersonaPlex's voices that have a name, by their names: the user's own, those beside `model`, those of `entries`.

    The first of a name counts. Archives are unpacked, once, into the folder of notes.

    Raises
    ------
    InputError
        An archive is damaged, or is not one of voices.
    """
    found: dict[str, NamedVoice] = {}

    def add(folder: Path, source: str, licence: str | None = None, *, own: bool = False) -> None:
        if not folder.is_dir():
            return
        for path in sorted(folder.iterdir()):
            if path.suffix in ENDINGS and _NAME.fullmatch(path.stem) and path.is_file():
                found.setdefault(path.stem, NamedVoice(path.stem, path, source, licence, own))

    if own := own_folder():
        add(own, "your own", own=True)
    if model:
        add(model.parent / "voices", f"beside {model.name}")
        if (archive := model.parent / ARCHIVE).is_file() and (folder := unpacked(archive)):
            of = next((e for e in entries if model in cache.paths(e).values()), None)
            add(folder, of.name if of else f"beside {model.name}", of.licence if of else None)
    for entry in entries:
        file = entry.files.get("voices") if entry.family == "personaplex" else None
        path = cache.find(file) if file else None
        if path and path.name.endswith((".tgz", ".tar.gz")) and (folder := unpacked(path)):
            add(folder, entry.name, entry.licence)
    return found


def find_voice(text: str, known: Mapping[str, NamedVoice]) -> Path:
    """Return the file of a voice that the user names: by its name, by a path, or by its name with `.pt`.

    Raises
    ------
    InputError
        There is neither a voice of this name nor a file.
    """
    if not text:
        raise InputError("The name of the voice is empty", "'msh-mlx voices' lists them")
    if voice := known.get(text):
        return voice.path
    path = user_path(text)
    try:
        path.stat()
    except (OSError, ValueError):
        if voice := known.get(text.removesuffix(".pt")):
            return voice.path
        raise InputError(
            f"There is no voice {brief(text)}, and no file of this name",
            "'msh-mlx voices' lists those with a name, or give a file",
        ) from None
    return path


# ---- archives ------------------------------------------------------------------------------------------------------------


def unpacked(archive: Path) -> Path | None:
    """Return the folder with the voices of an archive, which is unpacked if it was not. None: there is no home folder.

    Only voices are taken: regular files with the name of one, whatever their folder is. Nothing is written elsewhere.

    Raises
    ------
    InputError
        The archive cannot be read, holds links or too much, or has no voice in it.
    """
    notes = notes_folder()
    if notes is None:
        return None
    status = archive.stat()
    mark = hashlib.sha256(f"{archive.resolve().name} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = notes / "voices" / mark
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".msh-", dir=folder.parent))
    except OSError as error:
        raise MshError(f"{folder.parent} cannot be written: {error.strerror or error}", "make room there") from None
    try:
        _unpack(archive, made)
        with contextlib.suppress(OSError):  # another program has done the same meanwhile
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    size = count = 0
    try:
        # Gzip compares the whole with its checksum, which tarfile does not.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                path = PurePosixPath(member.name)
                if member.isdir() or path.name.startswith("."):
                    continue
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    raise _wrong(archive, f"it holds {brief(member.name)}, which is a link, or lies outside")
                size, count = size + member.size, count + 1
                if size > _MAX_SIZE or count > _MAX_FILES:
                    raise _wrong(archive, "it holds too much")
                source = members.extractfile(member)
                if path.suffix in ENDINGS and _NAME.fullmatch(path.stem) and source:
                    (folder / path.name).write_bytes(source.read())
            while rest := stream.read(1 << 20):
                size += len(rest)
                if size > _MAX_SIZE:
                    raise _wrong(archive, "it holds too much")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _wrong(archive, "it is damaged, or something else") from None
    except OSError as error:
        raise cannot_read(str(archive), error) from None
    if not any(folder.iterdir()):
        raise _wrong(archive, "no voice is in it")


def _wrong(archive: Path, why: str) -> InputError:
    return InputError(f"{archive} is not an archive of voices: {why}", "fetch it again")
