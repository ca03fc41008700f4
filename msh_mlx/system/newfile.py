"""Write files that appear whole or not at all, and check outputs before any work."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ..errors import InputError, write_error
from .places import user_path
from .streams import STDOUT, NamedFile, StandardOutput


class NewFile:
    """A file that is written under another name beside `path`, and gets its own name when it is complete.

    Use it as `with NewFile(path) as new: new.file.write(…); new.commit()`. Without `commit`, no file is left. A link is
    followed, and the file that it names is replaced. The folder is made if it is missing, but not the folders above it: if they
    are missing, too, the path is probably misspelt. Raise InputError if the folder cannot be made or written to, or if
    `path` is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        if self.path.is_dir():
            raise InputError(f"{path} is a folder", "give the name of a file")
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{path} is not a regular file", "give another name")
        self._temporary = self.path.with_name(f".msh-{secrets.token_hex(8)}.tmp")
        self._name = str(path)
        self._made = False
        try:
            if not self.path.parent.exists():
                self.path.parent.mkdir(exist_ok=True)
                self._made = True
            self.file: BinaryIO = io.BufferedRandom(NamedFile(self._temporary, "x+b", self._name))
        except FileNotFoundError:
            above = self.path.parent.parent
            raise InputError(f"{path} cannot be written, since there is no folder {above}", "make it first") from None
        except OSError as error:
            self._remove_folder()
            raise InputError(f"{path} cannot be written: {error.strerror or error}", "name another place") from None

    def _remove_folder(self) -> None:
        if self._made:
            with contextlib.suppress(OSError):  # it may hold other files by now
                self.path.parent.rmdir()

    def commit(self) -> None:
        """Give the file its name."""
        self.file.flush()
        try:
            os.fsync(self.file.fileno())
            self.file.close()
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(self.path, self._temporary)
            self._temporary.replace(self.path)
        except OSError as error:
            raise write_error(self._name, error) from None

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # When the disk is full, closing tries to write the rest, and fails once more.
            with contextlib.suppress(OSError):
                self.file.close()
        finally:
            self._temporary.unlink(missing_ok=True)
            self._remove_folder()


Output: TypeAlias = "Path | StandardOutput"


def output(text: str) -> Output:
    """Return the output that an option names: a path, or the standard output for `-`, which is taken at once."""
    return StandardOutput() if text == STDOUT else user_path(text)


def file_output(text: str, what: str) -> Path:
    """Return the path of an output that must be a file. `what` begins the error message."""
    if text == STDOUT:
        raise InputError(f"{what} cannot go to the standard output", "name a file (./- for one that is called so)")
    return user_path(text)


def named_folder(text: str, option: str) -> Path:
    """Return the path of the folder that an option names. Raise InputError if it names none, or the standard output."""
    if not text:
        raise InputError("The name of the folder is empty", f"give one with {option}")
    if text == STDOUT:
        raise InputError(
            f"{option} takes a folder, and - is the standard output", "name one (./- for one that is called so)"
        )
    return user_path(text)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder and those above it. At the end, remove those that were made and are empty.

    Raise InputError if the folder cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be made: {error.strerror or error}", "name another") from None
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def open_output(place: Output) -> NewFile | StandardOutput:
    """Open an output for writing. Errors are those of `NewFile`."""
    return NewFile(place) if isinstance(place, Path) else place


def check_outputs(outputs: Iterable[Output], inputs: Iterable[Path | int]) -> None:
    """Check that the outputs can be written, before any work. Inputs are paths or open descriptors.

    Raise InputError if an output cannot be written, is given twice, or is also an input, if only through a link.
    """
    sources = []
    for source in inputs:
        with contextlib.suppress(OSError, ValueError):  # reading the input raises the error
            sources.append(os.stat(source))  # noqa: PTH116
    seen: set[str] = set()
    for path in outputs:
        if not isinstance(path, Path):
            if any(os.path.samestat(path.stat(), source) for source in sources):
                raise InputError("The standard output is a file that is read and would be overwritten", "name another")
            continue
        if path.exists() and any(os.path.samestat(path.stat(), source) for source in sources):
            raise InputError(f"{path} is read and would be overwritten", "give the output another name")
        place = os.path.realpath(path)
        if sys.platform in ("darwin", "win32"):  # whose file names differ in more than case and composition
            place = unicodedata.normalize("NFC", place).casefold()
        if place in seen:
            raise InputError(f"{path} would be written twice", "give every output a name of its own")
        seen.add(place)
        with NewFile(path):
            pass
