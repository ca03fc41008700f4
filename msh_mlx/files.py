"""Where files are found, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import stat
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeAlias

from .errors import InputError, MshError, write_error
from .places import user_path
from .streams import STDOUT, NamedFile, StandardOutput

# The names of the codec and the tokenizer in the published repositories.
MIMIS = "tokenizer-*.safetensors"
TOKENIZERS = "tokenizer*.model"


class NewFile:
    """A file that is written under another name beside `path` and gets its own when it is complete.

    Used as `with NewFile(path) as new: new.file.write(…); new.commit()`: leaving without `commit` leaves nothing. A link is
    followed: what it names is replaced. The folder is made if it is missing, but not those above it: where they are missing,
    too, something in the path is misspelt.

    Raises
    ------
    InputError
        The folder cannot be made or written to, or `path` is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        if self.path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file.")
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{path} is no regular file; give another name.")
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
            raise InputError(f"{path} cannot be written, since there is no folder {above}; make it first.") from None
        except OSError as error:
            self._remove_folder()
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None

    def _remove_folder(self) -> None:
        if self._made:
            with contextlib.suppress(OSError):  # others may have used it
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # What waits to be written when the disk is full fails once more.
            with contextlib.suppress(OSError):
                self.file.close()
        finally:
            self._temporary.unlink(missing_ok=True)
            self._remove_folder()


Output: TypeAlias = "Path | StandardOutput"


def output(text: str) -> Output:
    """Return what the option for an output names: a file, or the standard output by `-`, which is taken at once."""
    return StandardOutput() if text == STDOUT else user_path(text)


def file_output(text: str, what: str) -> Path:
    """Return the path of an output that must be a file; `what` it is begins the error."""
    if text == STDOUT:
        raise InputError(f"{what} cannot go to the standard output; name a file (./- for one that is called so).")
    return user_path(text)


def open_output(place: Output) -> NewFile | StandardOutput:
    """Open an output for writing; errors are those of `NewFile`."""
    return NewFile(place) if isinstance(place, Path) else place


def check_outputs(outputs: Iterable[Output], inputs: Iterable[Path | int]) -> None:
    """Find out before any work whether the outputs can be written; inputs are paths or open descriptors.

    Raises
    ------
    InputError
        One of them cannot be written, is another one as well, or is one of the inputs, be it through a link.
    """
    sources = []
    for source in inputs:
        with contextlib.suppress(OSError, ValueError):  # whoever reads it will complain
            sources.append(os.stat(source))  # noqa: PTH116
    seen: set[str] = set()
    for path in outputs:
        if not isinstance(path, Path):
            if any(os.path.samestat(path.stat(), source) for source in sources):
                raise InputError("The standard output is a file that is read and would be overwritten; name another.")
            continue
        if path.exists() and any(os.path.samestat(path.stat(), source) for source in sources):
            raise InputError(f"{path} is read and would be overwritten; give the output another name.")
        place = os.path.realpath(path)
        if sys.platform == "darwin":  # whose file names differ in more than case and composition
            place = unicodedata.normalize("NFC", place).casefold()
        if place in seen:
            raise InputError(f"{path} would be written twice; give every output a name of its own.")
        seen.add(place)
        NewFile(path).__exit__(None, None, None)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model; `config` None is the published architecture."""

    model: Path
    mimi: Path
    tokenizer: Path
    config: Path | None

    @property
    def all(self) -> list[Path]:
        """Those that are there."""
        return [path for path in (self.model, self.mimi, self.tokenizer, self.config) if path]


def config_beside(model: Path) -> Path:
    """Name the configuration that is beside a model's file and belongs to it alone: model.json for model.safetensors."""
    return model.with_suffix(".json")


def find_config(model: Path) -> Path | None:
    """Find the configuration beside a model: the one of its own name, else the folder's `config.json`, else None."""
    for path in (config_beside(model), model.with_name("config.json")):
        if path.is_file():
            return path
    return None


def beside(model: Path, pattern: str, what: str, option: str) -> Path | None:
    """Find the file beside a model that fits a pattern; None if there is none, InputError if there are several."""
    found = sorted(path for path in model.parent.glob(pattern) if path.is_file())
    if len(found) > 1:
        raise InputError(f"There are {len(found)} {what}s ({pattern}) beside {model}; name one with {option}.")
    return found[0] if found else None


def find_model(model: str, mimi: str, tokenizer: str | None = None, config: str | None = None) -> ModelFiles:
    """Find the files of a model; tokenizer and configuration, if not given, beside it (`tokenizer*.model`, `find_config`).

    Raises
    ------
    InputError
        A file is missing or a folder, or there is not exactly one tokenizer beside the model.
    """
    model_file = existing(model, "model")
    mimi_file = existing(mimi, "codec")
    if tokenizer is not None:
        tokenizer_file: Path | None = existing(tokenizer, "tokenizer")
    else:
        tokenizer_file = beside(model_file, TOKENIZERS, "tokenizer", "--tokenizer")
    if tokenizer_file is None:
        raise InputError(f"There is no tokenizer ({TOKENIZERS}) beside {model}; give one with --tokenizer.")
    config_file = existing(config, "configuration") if config is not None else find_config(model_file)
    return ModelFiles(model_file, mimi_file, tokenizer_file, config_file)


def asset(name: str, what: str) -> Path:
    """Return the path of a file that comes with the program: in the package as installed, beside it in a checkout.

    `what` names it in the error.

    Raises
    ------
    MshError
        It is in neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        if (folder / name).is_file():
            return folder / name
    raise MshError(f"{what} is missing from this installation; install the package again.")


def demo_folder() -> Path:
    """Return the folder of the demo model; raises MshError if it is not installed."""
    return asset("assets/demo/config.json", "The demo model").parent


def client_folder() -> Path | None:
    """Find the built web page, in the installed package or where `npm run build` leaves it; None if it is not there."""
    package = Path(__file__).parent
    for folder in (package / "assets" / "client", package.parent / "client" / "dist"):
        if (folder / "index.html").is_file():
            return folder
    return None


def find_demo() -> ModelFiles:
    """Find the files of the demo model; raises MshError if it is not installed."""
    folder = demo_folder()
    return find_model(str(folder / "model.q8.safetensors"), str(folder / "mimi.safetensors"))


def existing(path: str, what: str) -> Path:
    """Return the path of a file, `what` it is to be, or raise InputError if it is not there or a folder."""
    found = user_path(path) if path else Path()
    try:
        mode = found.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"There is no {what} {path}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"The {what} {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not path or stat.S_ISDIR(mode):
        raise InputError(f"The {what} {path or '(an empty name)'} is a folder; give the file in it.")
    return found


def human_size(count: float) -> str:
    """Write a number of bytes with its unit."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
