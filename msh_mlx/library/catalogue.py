"""The catalogue of models: `weights.toml`, and the user's own file in the same form."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InputError
from ..model.families import FAMILIES
from ..model.ranges import is_whole
from ..system.inputs import brief, decode_text, read_small
from ..system.places import asset, config_folder, user_path
from ..system.words import listed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The keys of an entry.
_KEYS = (
    "about",
    "repository",
    "revision",
    "quantization",
    "size",
    "memory",
    "step-bytes",
    "licence",
    "non-commercial",
    "gated",
    "family",
    "voices",
    "files",
    "sha256",
)
# What a file of a model is for. The configuration may be missing: then it is that of the family's published model. The voices
# are an archive of them.
ROLES = ("lm", "mimi", "tokenizer", "config", "voices")
_NEEDED = ROLES[:3]
_FAMILIES = {family.name: family for family in FAMILIES}
QUANTIZATIONS = {"q4": 4, "q6": 6, "q8": 8, "bf16": 16}
# A catalogue has a few kilobytes. A much larger file is something else.
_MAX_SIZE = 1 << 20
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PATH = re.compile(r"[\w.+@-]+(/[\w.+@-]+)*", re.ASCII)
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)
_NAME = re.compile(r"[\w.+-]+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# How the name of a model's file ends. What follows the last @ is not a revision if it ends so: published names have an @, too.
_ENDINGS = (".safetensors", ".model", ".json", ".tgz")


@dataclass(frozen=True)
class HubFile:
    """A file on the hub: `path` in `repository` at `revision` (a branch, a tag or a commit), and its `sha256` if known."""

    repository: str
    path: str
    revision: str = "main"
    sha256: str | None = None

    def __str__(self) -> str:
        """Return the reference that `parse_reference` reads."""
        plain = self.revision == "main" and _split(self.path) == (self.path, "")
        return f"hf:{self.repository}/{self.path}" + ("" if plain else f"@{self.revision}")


@dataclass(frozen=True)
class LocalFile:
    """One of the user's own files, and its `sha256` if known."""

    path: Path
    sha256: str | None = None

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)


Reference: TypeAlias = HubFile | LocalFile


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue. None means that a value is not known.

    Attributes
    ----------
    name, about
        Its name, as for `--variant`, and a sentence on it.
    files
        Where the files are, by role: always `lm`, `mimi` and `tokenizer`; `config` and `voices` if there are some.
    family
        The name of its family, one of `model.families`.
    quantization
        "q4", "q6", "q8" or "bf16".
    size
        Bytes of all files together, rounded.
    memory
        Bytes that a conversation takes once its window is full: weights, keys and values, and 1 GB for the codec, for what
        MLX keeps of freed buffers and for the program.
    step_bytes
        Bytes that a step reads then: every matrix once, one row of each embedding, all keys and values.
    licence
        The licence of the weights.
    non_commercial
        Whether the licence forbids commercial use.
    gated
        Whether the hub gives the files only to those who have accepted conditions there.
    voices
        The repository on the hub where voices for the model are.
    source
        The file that the entry is from.
    """

    name: str
    about: str
    files: Mapping[str, Reference]
    family: str = "moshi"
    quantization: str | None = None
    size: int | None = None
    memory: int | None = None
    step_bytes: int | None = None
    licence: str | None = None
    non_commercial: bool = False
    gated: bool = False
    voices: str | None = None
    source: Path = Path()

    @property
    def use(self) -> str:
        """What the model does: "conversation", "translation", "transcription" or "speech"."""
        return use_of(self.family)

    @property
    def is_restricted(self) -> bool:
        """Whether the model is gated or not for commercial use. Such a model is taken only if the user names it."""
        return self.gated or self.non_commercial

    @property
    def bits(self) -> int | None:
        """The bits of a weight; None if not known."""
        return QUANTIZATIONS[self.quantization] if self.quantization else None


def use_of(family: str) -> str:
    """Return what the models of a family do, as `Entry.use`, by the family's name."""
    return _FAMILIES[family].use


def title_of(family: str) -> str:
    """Return what the models of a family are called, by the family's name."""
    return _FAMILIES[family].title


def of_use(entries: Mapping[str, Entry], use: str) -> dict[str, Entry]:
    """Return the entries of the models that do something (see `Entry.use`)."""
    return {name: entry for name, entry in entries.items() if entry.use == use}


def parse_reference(text: str, folder: Path | None = None) -> Reference:
    """Read the name of a file: `hf:OWNER/NAME/PATH[@REVISION]`, `file:PATH`, or a path, relative to `folder`.

    A PATH may have an @ itself, as in `model@80.safetensors`.

    Raise InputError if the text begins with `hf:` and does not name a file on the hub, or if it names nothing.
    """
    if text.startswith("hf:"):
        rest, revision = _split(text.removeprefix("hf:").removeprefix("//"))
        owner, _, rest = rest.partition("/")
        name, _, path = rest.partition("/")
        repository = f"{owner}/{name}"
        if not (_REPOSITORY.fullmatch(repository) and _is_path(path) and (not revision or _is_revision(revision))):
            raise InputError(
                f"{text} names no file on the hub", "the form is hf:OWNER/NAME/FILE or hf:OWNER/NAME/FILE@REVISION"
            )
        return HubFile(repository, path, revision or "main")
    path = text.removeprefix("file:")
    path = path.removeprefix("//") if text.startswith("file:") else path
    if not path or "\0" in path:
        raise InputError(f"{text!r} names no file.")
    place = user_path(path)
    return LocalFile(place if folder is None else folder / place)


def _split(text: str) -> tuple[str, str]:
    """Split PATH@REVISION; the revision is "" if there is none."""
    path, at, revision = text.rpartition("@")
    return (path, revision) if at and not revision.endswith(_ENDINGS) else (text, "")


def parse_repository(text: str) -> tuple[str, str]:
    """Read `OWNER/NAME[@REVISION]`; return the repository and the revision. Raise InputError for anything else."""
    name, at, revision = text.removeprefix("hf:").partition("@")
    if not _REPOSITORY.fullmatch(name) or (at and not _is_revision(revision)):
        raise InputError(f"{text!r} names no repository on the hub", "the form is OWNER/NAME or OWNER/NAME@REVISION")
    return name, revision or "main"


def _is_path(text: str) -> bool:
    return _PATH.fullmatch(text) is not None and not {".", ".."} & set(text.split("/"))


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text


def user_file() -> Path | None:
    """Return the path of the user's own entries: `msh-mlx/weights.toml` in `$XDG_CONFIG_HOME`, else in `~/.config`."""
    folder = config_folder()
    return folder / "weights.toml" if folder else None


def load_catalogue(extra: str | os.PathLike[str] | None = None) -> dict[str, Entry]:
    """Read the program's catalogue, then the user's own file if there is one, then the file `extra`. Return entries by name.

    An entry replaces one of the same name from an earlier file. Errors are those of `read_catalogue`.
    """
    entries = read_catalogue(asset("weights.toml", "The catalogue of models"))
    own = user_file()
    if own and own.exists():
        entries |= read_catalogue(own)
    if extra is not None:
        entries |= read_catalogue(extra)
    return entries


def find_entry(entries: Mapping[str, Entry], name: str) -> Entry:
    """Return the entry `name`. Raise InputError, which lists the names, if there is none."""
    if name not in entries:
        raise InputError(f"There is no model {name!r} in the catalogue, only {listed(entries)}.")
    return entries[name]


def read_catalogue(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Read one file of the catalogue: its entries by name.

    Raise InputError if the file cannot be read, is not TOML, has an unknown key, lacks one, or has a value of the wrong kind.
    The message names the line.
    """
    path = user_path(path)
    raw = read_small(path, "The catalogue", _MAX_SIZE)
    try:
        text = decode_text(raw)
        values = tomllib.loads(text)
    except UnicodeDecodeError:
        raise InputError(f"The catalogue {path} is not in UTF-8", "save it in that encoding") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"The catalogue {path} is not valid TOML: {error}.") from None
    return {name: _Table(path, text, (name,), value).entry() for name, value in values.items()}


class _Table:
    """A table in the file that is being read. Its errors name the line."""

    def __init__(self, path: Path, text: str, keys: tuple[str, ...], values: object) -> None:
        self._path = path
        self._text = text
        self._keys = keys
        if not isinstance(values, dict):
            raise self._wrong("is not a table")
        self._values: dict[str, Any] = values

    def entry(self) -> Entry:
        (name,) = self._keys
        if not _NAME.fullmatch(name):
            raise self._wrong("is not a name for a model: letters, digits, '.', '_', '+' and '-' make one")
        self._only(_KEYS)
        repository = self._text_of("repository", "OWNER/NAME", _REPOSITORY.fullmatch)
        revision = self._text_of("revision", "a branch, a tag or a commit", _is_revision)
        if revision and not repository:
            raise self._wrong("needs a repository, since the revision is one of it", "revision")
        return Entry(
            name=name,
            about=self._text_of("about") or "",
            files=self._files(repository, revision or "main"),
            family=self._text_of("family", f"one of {', '.join(_FAMILIES)}", _FAMILIES.__contains__) or "moshi",
            quantization=self._text_of(
                "quantization", f"one of {', '.join(QUANTIZATIONS)}", QUANTIZATIONS.__contains__
            ),
            size=self._count("size"),
            memory=self._count("memory"),
            step_bytes=self._count("step-bytes"),
            licence=self._text_of("licence"),
            non_commercial=self._truth("non-commercial"),
            gated=self._truth("gated"),
            voices=self._text_of("voices", "OWNER/NAME", _REPOSITORY.fullmatch),
            source=self._path,
        )

    def _files(self, repository: str | None, revision: str) -> dict[str, Reference]:
        if "files" not in self._values:
            raise self._wrong("has no files", advice=f"{listed(_NEEDED)} are needed")
        files = self._table_of("files")
        files._only(ROLES)
        hashes = self._table_of("sha256")
        found: dict[str, Reference] = {}
        for role in ROLES:
            text = files._text_of(role, "the name of a file", bool)
            sha256 = hashes._text_of(role, "64 digits from 0 to f", _SHA256.fullmatch)
            if text is None:
                if role in _NEEDED:
                    raise files._wrong(f"has no {role}", advice=f"{listed(_NEEDED)} are needed")
                continue
            try:
                if repository and not text.startswith(("hf:", "file:")):
                    if not _is_path(text):
                        raise InputError(f"{text!r} is not a path in a repository.")
                    reference: Reference = HubFile(repository, text, revision)
                else:
                    reference = parse_reference(text, self._path.parent)
            except InputError as error:
                raise files._wrong(f"is wrong: {error.what}", role, error.advice) from None
            found[role] = replace(reference, sha256=sha256)
        hashes._only(found)
        return found

    def _only(self, known: Iterable[str]) -> None:
        for key in self._values:
            if key not in known:
                raise self._wrong("is not known", key, f"{listed(known)} are")

    def _table_of(self, key: str) -> _Table:
        return _Table(self._path, self._text, (*self._keys, key), self._values.get(key, {}))

    def _text_of(self, key: str, what: str = "text", good: Callable[[str], object] = lambda _: True) -> str | None:
        text: str | None = self._value_of(
            key, what, lambda value: isinstance(value, str) and value.isprintable() and good(value)
        )
        return text

    def _count(self, key: str) -> int | None:
        count: int | None = self._value_of(
            key, "a number of bytes", lambda value: is_whole(value) and 0 < value < 1 << 60
        )
        return count

    def _truth(self, key: str) -> bool:
        return bool(self._value_of(key, "true or false", lambda value: isinstance(value, bool)))

    def _value_of(self, key: str, what: str, fits: Callable[[Any], object]) -> Any:
        value = self._values.get(key)
        if value is not None and not fits(value):
            raise self._wrong(f"is {brief(value)}", key, f"{what} is expected")
        return value

    def _wrong(self, what: str, key: str | None = None, advice: str = "") -> InputError:
        keys = self._keys if key is None else (*self._keys, key)
        where = f"{self._path}, line {_line(self._text, keys)}: {'.'.join(keys)}"
        return InputError(f"{where} {what}" if advice else f"{where} {what}.", advice)


def _line(text: str, keys: tuple[str, ...]) -> int:
    """Find the line that gives `keys` their value. It is the last line of the shortest beginning of the file that has it."""
    lines = text.split("\n")

    def has(count: int) -> bool | None:
        """Tell whether the first lines have the value; None: they are not TOML, as in the middle of a text."""
        try:
            values: Any = tomllib.loads("\n".join(lines[:count]) + "\n")
            for key in keys:
                values = values[key]
        except (ValueError, RecursionError):
            return None
        except (KeyError, TypeError):
            return False
        return True

    # Look table by table first: a catalogue has hundreds of lines.
    begin = 0
    for count in (number for number, line in enumerate(lines) if line.startswith("[")):
        found = has(count)
        if found:
            break
        begin = count if found is False else begin
    return next((count for count in range(begin + 1, len(lines) + 1) if has(count)), len(lines))
