"""`msh-mlx models`: list the models, and fetch, check or remove their files."""

from __future__ import annotations

import argparse
import textwrap
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import MshError
from ..library import cache
from ..library.catalogue import Entry, HubFile, Reference, find_entry, of_use
from ..library.suited import STEP_LIMIT, Machine, judge, load_library, obtain, suitable, this_machine
from ..system.signals import Signals
from ..system.streams import check_output
from ..system.words import human_size, printable
from .choice import COMMANDS, add_weights, watching
from .options import Parser, action_of, add_printing, display, print_json

_UNCHECKED = 3  # exit code: nothing wrong was found, but some files could not be checked
ACTIONS = ("get", "verify", "remove", "path")
_HEADER = (" ", "name", "on disk", "size", "memory", "here", "what it is")
_RIGHT = (3, 4)  # columns of numbers
_LEAST_BESIDE = 40  # columns for what a model is, beside the other cells
_ONE_LINE = 1 << 16  # columns, for programs that read the table


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx models",
        description="List the models that this program can run, by what they do: the published ones and your own "
        "(--weights, weights/).",
        epilog="Other commands, each with --help: " + ", ".join(f"msh-mlx models {name}" for name in ACTIONS) + ".",
    )
    to = parser.group()
    add_weights(to)
    add_printing(to)
    return parser


def action_parser(action: str) -> Parser:
    about = {
        "get": "Fetch models from the hub into Hugging Face's cache. Files that are there already are not fetched again.",
        "verify": "Read all files of models on disk, and check their hashes, tensors and numbers.",
        "remove": "Remove a model's files from Hugging Face's cache.",
        "path": "Print the paths of a model's files, one a line: model, codec, tokenizer, and configuration and voices if it "
        "has some.",
    }
    codes = {
        "verify": "Exit code: 0 if all files are right, 1 if something is wrong, 3 if nothing is wrong but the hash of a file "
        "from the hub is not known, as in a cache without links. Your own files are read whole; only a sha256 in the "
        "catalogue shows that they are unchanged."
    }
    parser = Parser(prog=f"msh-mlx models {action}", description=about[action], epilog=codes.get(action))
    to = parser.group()
    if action == "get":
        to.value("names", "NAME", "fetch this model; 'msh-mlx models' lists the names", nargs="+")
    elif action == "verify":
        to.value("names", "NAME", "check this model (default: all that are on disk)", nargs="*")
        to.flag("--repair", "remove wrong files, and fetch them again")
    else:
        to.value("names", "NAME", "the model; 'msh-mlx models' lists the names", nargs=1)
    add_weights(to)
    add_printing(to)
    return parser


def run(arguments: list[str], signals: Signals) -> int:
    if action := action_of(arguments, "models", ACTIONS):
        args = action_parser(action).parse_args(arguments[1:])
        if action in ("verify", "path"):
            check_output()
        entries = load_library(args.weights)
        named = [find_entry(entries, name) for name in dict.fromkeys(args.names)]
        work = {"get": _get, "verify": _verify, "remove": _remove, "path": _path}[action]
        return work(args, entries, named, signals)
    args = parser().parse_args(arguments)
    check_output()
    return _list(args, load_library(args.weights))


# ---- the table -----------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace, entries: Mapping[str, Entry]) -> int:
    machine = this_machine()
    # Where a command runs models of several uses, the first use is the one that it takes a model of by itself.
    uses = {command: use for use, command in reversed(COMMANDS.items())}.values()
    defaults = [best[0] for use in uses if (best := suitable(of_use(entries, use), machine))]
    if args.json:
        models = [_as_dict(entry, machine, entry in defaults) for entry in entries.values()]
        print_json({"memory": machine.memory, "room": machine.room, "bandwidth": machine.bandwidth, "models": models})
    else:
        _table(args, entries, machine, defaults)
    return 0


def _as_dict(entry: Entry, machine: Machine, default: bool) -> dict[str, Any]:
    verdict = judge(entry, machine)
    return {
        "name": entry.name,
        "about": entry.about,
        "family": entry.family,
        "use": entry.use,
        "quantization": entry.quantization,
        "size": entry.size,
        "memory": entry.memory,
        "step_bytes": entry.step_bytes,
        "licence": entry.licence,
        "non_commercial": entry.non_commercial,
        "gated": entry.gated,
        "voices": entry.voices,
        "source": str(entry.source),
        "files": {role: str(file) for role, file in entry.files.items()},
        "on_disk": cache.is_on_disk(entry),
        "paths": {role: path and str(path) for role, path in cache.paths(entry).items()},
        "fits": verdict.fits,
        "step_seconds": verdict.step,
        "suits": verdict.suits,
        "default": default,
    }


def _table(args: argparse.Namespace, entries: Mapping[str, Entry], machine: Machine, defaults: Sequence[Entry]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    room = console.width
    if not console.is_terminal or args.plain:
        console, room = Console(highlight=False, no_color=True), _ONE_LINE
    rows = {entry.name: _cells(entry, machine, entry in defaults) for entry in entries.values()}
    widths = [max(map(cell_len, cells)) for cells in zip(_HEADER, *rows.values(), strict=True)][:-1]
    lines = partial(_lines, widths=widths, room=room)
    told = [Text(line, "bold") for line in lines(_HEADER)]
    for use, command in COMMANDS.items():
        if models := of_use(entries, use).values():
            told += [*([Text()] if len(told) > 1 else []), Text(f"{use.capitalize()}, by {command}", "bold")]
        for entry in models:
            told += [Text(line, "bold" if entry in defaults else "") for line in lines(rows[entry.name])]
    limit = f"{1000 * STEP_LIMIT:.0f} ms a step at {human_size(machine.bandwidth)}/s"
    mark = "* is taken without --variant. " if defaults else ""
    end = "" if defaults else " No model does: take one with --variant NAME, or the demo model with --demo."
    named = "a gated one or one that is not for commercial use is taken only with --variant"
    fits = f"A model suits if it takes at most {human_size(machine.room)} of memory, and {limit}; {named}."
    for text in told:
        console.print(text, soft_wrap=True)
    console.print(Text(f"\n{mark}{fits}{end}"), soft_wrap=room == _ONE_LINE)


def _lines(cells: Sequence[str], widths: Sequence[int], room: int) -> list[str]:
    """Lay out a row of the table in `room` columns: what the model is stands behind the other cells, or below them."""
    from rich.cells import cell_len

    *first, about = cells
    padding = [" " * (width - cell_len(cell)) for cell, width in zip(first, widths, strict=True)]
    aligned = [
        pad + cell if i in _RIGHT else cell + pad for i, (cell, pad) in enumerate(zip(first, padding, strict=True))
    ]
    line = "  ".join(aligned)
    beside = room - cell_len(line) - 2
    if beside < _LEAST_BESIDE:
        below = textwrap.wrap(about, max(room - 5, _LEAST_BESIDE), break_on_hyphens=False) if cells != _HEADER else []
        return [line.rstrip(), *(f"     {words}" for words in below)]
    start, *more = textwrap.wrap(about, beside, break_on_hyphens=False) or [""]
    return [f"{line}  {start}".rstrip(), *(" " * (cell_len(line) + 2) + words for words in more)]


def _cells(entry: Entry, machine: Machine, default: bool) -> tuple[str, ...]:
    limits = [
        words for said, words in ((entry.gated, "gated"), (entry.non_commercial, "not for commercial use")) if said
    ]
    cells = (
        "*" if default else " ",
        entry.name,
        _state(entry),
        human_size(entry.size),
        human_size(entry.memory),
        judge(entry, machine).words,
        ", ".join(filter(None, (entry.about, entry.licence, *limits))),
    )
    return tuple(printable(cell) for cell in cells)


def _state(entry: Entry) -> str:
    missing = cache.missing(entry)
    if not missing:
        return "yes"
    begun = any(cache.partials(file.repository) for file in missing if isinstance(file, HubFile))
    return "in part" if begun or len(missing) < len(entry.files) else "no"


# ---- get, remove, path ---------------------------------------------------------------------------------------------------


def _get(args: argparse.Namespace, entries: Mapping[str, Entry], named: list[Entry], signals: Signals) -> int:
    had = {entry.name: cache.is_on_disk(entry) for entry in named}
    with watching(args, signals) as watch:
        for entry in named:
            obtain(entry, entries, watch)
    if args.json:
        print_json({"models": [{"name": e.name, "fetched": not had[e.name], "files": _files(e)} for e in named]})
        return 0
    for entry in named:
        print(f"{entry.name} {'was on disk already' if had[entry.name] else 'is on disk, and its hashes are right'}")
    return 0


def _files(entry: Entry) -> dict[str, str]:
    return {role: str(path) for role, path in cache.paths(entry).items() if path}


def _remove(args: argparse.Namespace, entries: Mapping[str, Entry], named: list[Entry], _: Signals) -> int:
    (entry,) = named
    try:
        done = cache.remove(entry, entries.values())
    except OSError as error:
        raise MshError(f"{error.filename} cannot be removed: {error.strerror}.") from None
    if args.json:
        print_json(
            {
                "name": entry.name,
                "freed": done.freed,
                "removed": [str(path) for path in done.removed],
                "kept": [str(file) for file in done.kept],
            }
        )
        return 0
    if not done.removed and not done.freed:
        print(f"{entry.name} is not on disk" if not done.kept else f"Nothing of {entry.name} was removed")
    else:
        print(f"Removed {entry.name}: {human_size(done.freed)} are free now")
    for file in done.kept:
        print(f"Kept {file.path}, which another model needs")
    return 0


def _path(args: argparse.Namespace, entries: Mapping[str, Entry], named: list[Entry], _: Signals) -> int:
    (entry,) = named
    files = _files(entry)
    if len(files) < len(entry.files):
        raise MshError(f"{entry.name} is not on disk", f"'msh-mlx models get {entry.name}' fetches it")
    if args.json:
        print_json({"name": entry.name, "files": files})
    else:
        print(*files.values(), sep="\n")
    return 0


# ---- verify --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Verified:
    """The result for a file: `wrong` says what is wrong, or is None; `checked` says whether its hash was compared."""

    entry: Entry
    role: str
    path: Path | None
    wrong: str | None
    checked: bool

    @property
    def is_from_hub(self) -> bool:
        """Whether the file can be fetched again; other files are the user's own."""
        return isinstance(self.entry.files[self.role], HubFile)

    @property
    def state(self) -> str:
        """Return "right", "wrong" or "unchecked": that is a file from the hub whose hash is not known."""
        if self.wrong:
            return "wrong"
        return "unchecked" if self.is_from_hub and not self.checked else "right"

    @property
    def words(self) -> str:
        """Return the result in a few words."""
        if self.state == "unchecked":
            return "could not be compared with its hash, which this cache does not have; it can be read"
        without = "" if self.checked else ", but no sha256 says whether it is unchanged"
        return self.wrong or f"as it should be{without}"


def _verify(args: argparse.Namespace, entries: Mapping[str, Entry], named: list[Entry], signals: Signals) -> int:
    named = named or [entry for entry in entries.values() if cache.is_on_disk(entry)]
    findings: list[_Verified] = []
    known: dict[Reference, str | None] = {}
    with display(args, signals) as shown:
        for entry in named:
            for role, file in entry.files.items():
                path = cache.find(file)
                if path is None:
                    wrong: str | None = "it is not on disk"
                elif file in known:
                    wrong = known[file]
                else:
                    with shown.progress(f"Reading {path.name} of {entry.name}") as progress:
                        wrong = known[file] = _wrong(entry, role, path, progress)
                checked = path is not None and cache.can_check(file, path)
                findings.append(_Verified(entry, role, path, wrong, checked))
                if not args.json:
                    shown.say(f"{entry.name}: {Path(file.path).name}: {findings[-1].words}")
        if not named and not args.json:
            shown.say("There is no model on disk; 'msh-mlx models get NAME' fetches one.")
    cache.note_verified(finding.path for finding in findings if finding.path and finding.state == "right")
    bad = [finding for finding in findings if finding.state == "wrong"]
    unchecked = [finding for finding in findings if finding.state == "unchecked"]
    if bad and args.repair:
        bad = _repair(args, entries, bad, signals)
    if args.json:
        print_json({"ok": not bad and not unchecked, "files": [_finding_as_dict(finding) for finding in findings]})
    elif bad:
        again = [finding for finding in bad if finding.is_from_hub]
        repair = f"'msh-mlx models verify --repair {_names(again)}' fetches them again"
        raise MshError("Some files are wrong", repair if again else "they are your own, so replace them yourself")
    if bad:
        return MshError.exit_code
    if unchecked and not args.json:
        print(
            f"Files of {_names(unchecked)} could not be checked: the cache has no links on this disk, which would name their "
            "hashes; 'msh-mlx models remove' and 'get' fetch them anew, which checks them."
        )
    return _UNCHECKED if unchecked else 0


def _names(findings: list[_Verified]) -> str:
    return " ".join(dict.fromkeys(finding.entry.name for finding in findings))


def _finding_as_dict(finding: _Verified) -> dict[str, Any]:
    return {
        "model": finding.entry.name,
        "role": finding.role,
        "path": finding.path and str(finding.path),
        "ok": finding.state == "right",
        "state": finding.state,
        "wrong": finding.wrong,
    }


def _wrong(entry: Entry, role: str, path: Path, progress: Callable[[float], None]) -> str | None:
    """Return what is wrong with a file of a model, or None."""
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        progress(0.5 * done / max(size, 1))

    try:
        size = path.stat().st_size
        if wrong := cache.wrong_hash(entry.files[role], path, told):
            return wrong
        return _wrong_contents(entry, role, path, lambda fraction: progress(0.5 + 0.5 * fraction))
    except MshError as error:
        return error.clause
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def _wrong_contents(entry: Entry, role: str, path: Path, progress: Callable[[float], None]) -> str | None:
    """Return what is wrong with the contents of a file, or None; the loaders may also raise InputError."""
    from ..conversation.codec import load_mimi
    from ..conversation.text import load_tokenizer
    from ..model.config import LmConfig
    from ..weights.checkpoint import open_checkpoint
    from ..weights.safetensors import find_not_finite, read_header

    if role == "tokenizer":
        load_tokenizer(path)
        return None
    if role == "config":
        LmConfig.from_file(path, lora=True)
        return None
    if role == "voices" and path.suffix == ".tgz":
        return _wrong_archive(path)
    if role == "voices":
        read_header(path)
    elif role == "mimi":
        load_mimi(path)
    else:
        config = cache.find(entry.files["config"]) if "config" in entry.files else None
        open_checkpoint(path, LmConfig.of(config, lora=True))
    if found := find_not_finite(path, progress):
        name, position, value = found
        return f"{name} holds {value} at position {position}"
    return None


def _wrong_archive(path: Path) -> str | None:
    """Return what is wrong with an archive of voices, or None. Its voices are checked when they are read."""
    import gzip
    import tarfile

    try:
        with tarfile.open(path, "r:gz") as archive:
            names = archive.getnames()
        with gzip.open(path) as contents:
            while contents.read(1 << 20):  # to the end, where its checksum is
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        return f"it cannot be read as an archive ({error})"
    return None if names else "it is an archive without files"


def _repair(
    args: argparse.Namespace, entries: Mapping[str, Entry], bad: list[_Verified], signals: Signals
) -> list[_Verified]:
    """Fetch wrong files again; return those that cannot be fetched, because they are the user's own."""
    fetched = [finding for finding in bad if finding.is_from_hub]
    for finding in fetched:
        if finding.path:
            blob = cache.blob_of(finding.path)
            finding.path.unlink(missing_ok=True)
            if blob:
                blob.unlink(missing_ok=True)
    with watching(args, signals) as watch:
        for entry in {finding.entry.name: finding.entry for finding in fetched}.values():
            obtain(entry, entries, watch)
            watch.say(f"{entry.name} is complete again.")
    return [finding for finding in bad if not finding.is_from_hub]
