"""The models of the catalogue on this machine: which of them suit it, which are on disk, and how to get one.

A model **fits** if it takes at most three quarters of the memory while talking, and leaves 4 GiB to the system. It is **fast
enough** if the bytes of a step can be read in 45 ms at the measured bandwidth of the memory. That is a little more than half of
the 80 ms that there are; attention, launches and everything else come on top. A model **suits** the machine if it is both. Of
the models that suit, those on disk come first, and among them the one with the most bits a weight. If three in four steps of
the warm-up then take more than 70 ms, the next lighter model is taken.

All that is for the models of one use (`catalogue.of_use`). A restricted model is never taken unless the user names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, MshError, UnreachableError
from ..model.families import family_of
from ..system.inputs import ONE_FILE
from ..system.words import human_size, listed
from ..weights.beside import find_config
from . import cache
from .cache import Watch
from .catalogue import (
    QUANTIZATIONS,
    ROLES,
    Entry,
    HubFile,
    LocalFile,
    Reference,
    load_catalogue,
    parse_repository,
    use_of,
)
from .files import MIMIS, TOKENIZERS, ModelFiles
from .settings import SettingsError
from .voices import ARCHIVE

if TYPE_CHECKING:
    from ..model.architecture import Architecture
    from ..weights.checkpoint import Checkpoint

STEP_LIMIT = 0.045  # seconds; the bytes of a step must be read in this time
# Seconds: a model whose step takes at most so long to read may be fast enough with a smaller cache, which a trial shows. Keys
# and values are up to a quarter of what is read: 8 bits save half of that, and a shorter window nearly all.
TRIAL_LIMIT = 0.09
SHORT_TRIAL_LIMIT = 0.105
SLOW = 0.07  # seconds; a model is too slow if three in four of its steps take longer
_SYSTEM = 4 << 30  # bytes that the system keeps, at least
# Bytes that a conversation takes besides weights, keys and values: for the codec, MLX's freed buffers and the program.
_THE_REST = 1_000_000_000
_INDEX = ".safetensors.index.json"  # how the name ends of the list of a model's parts
_ROLES = {
    "lm": "model",
    "mimi": "codec",
    "tokenizer": "tokenizer",
    "config": "configuration",
    "voices": "file of voices",
}


@dataclass(frozen=True)
class Machine:
    """A machine's memory in bytes, and its bandwidth in bytes a second."""

    memory: int
    bandwidth: float

    @property
    def room(self) -> int:
        """Bytes that a model may take."""
        return room(self.memory)


def room(memory: int) -> int:
    """Return how many bytes a model may take of a machine's memory."""
    return memory - max(memory // 4, _SYSTEM)


def this_machine(engine: str = "auto") -> Machine:
    """Measure the machine, as `engine` reads its memory. Takes about a second."""
    from ..system.memory import machine_memory
    from .bandwidth import bandwidth

    return Machine(machine_memory(), bandwidth(engine))


@dataclass(frozen=True)
class Verdict:
    """What to expect of a model on a machine.

    `fits` says whether it fits in memory; `step` is the time that it takes to read the bytes of a step, in seconds. None: not
    known.
    """

    fits: bool | None
    step: float | None

    @property
    def suits(self) -> bool:
        """Whether the model may be chosen when the user does not name one."""
        return self.fits is True and self.step is not None and self.step <= STEP_LIMIT

    @property
    def words(self) -> str:
        """The verdict in a few words."""
        if self.fits is None or self.step is None:
            return "not known"
        if not self.fits:
            return "too little memory"
        return "suits" if self.suits else f"too slow: {1000 * self.step:.0f} ms a step"


def judge(entry: Entry, machine: Machine) -> Verdict:
    """Judge a model by its figures in the catalogue."""
    fits = None if entry.memory is None else entry.memory <= machine.room
    return Verdict(fits, None if entry.step_bytes is None else entry.step_bytes / machine.bandwidth)


def reading(entries: Mapping[str, Entry], bandwidth: float) -> dict[str, float]:
    """Return how many seconds the bytes of a step take to read at a bandwidth, for each model of which they are known."""
    return {entry.name: entry.step_bytes / bandwidth for entry in entries.values() if entry.step_bytes}


def suitable(entries: Mapping[str, Entry], machine: Machine) -> list[Entry]:
    """List the models, of one use, that suit a machine and that anyone may take: those on disk first, then the best."""
    good = [entry for entry in entries.values() if not entry.is_restricted and judge(entry, machine).suits]
    return sorted(good, key=lambda entry: (not cache.is_on_disk(entry), -(entry.bits or 0)))


def triable(entries: Mapping[str, Entry], machine: Machine, limit: float = TRIAL_LIMIT) -> list[Entry]:
    """List the models, of one use, that anyone may take and that may be fast enough: those on disk first, then the lightest.

    The bytes of a step must be read within `limit` seconds.
    """
    good = [entry for entry in entries.values() if not entry.is_restricted]
    verdicts = {entry.name: judge(entry, machine) for entry in good}
    found = [entry for entry in good if verdicts[entry.name].fits and (verdicts[entry.name].step or 1) <= limit]
    return sorted(found, key=lambda entry: (not cache.is_on_disk(entry), entry.step_bytes or 0))


@dataclass(frozen=True)
class Selection:
    """The model that was chosen for this machine, all models that suit it (see `suitable`), and the whole catalogue.

    `trial`: the model is only perhaps fast enough, which is measured when it is loaded.
    """

    entry: Entry
    suited: Sequence[Entry]
    entries: Mapping[str, Entry]
    trial: bool = False

    def lighter(self) -> Selection | None:
        """Choose the model to take if this one is too slow: with the same voice if possible. None: there is none."""
        fewer = [other for other in self.suited if (other.step_bytes or 0) < (self.entry.step_bytes or 0)]
        # Stable: what is on disk comes first, then the best.
        found = min(fewer, key=lambda other: _voice(other) != _voice(self.entry), default=None)
        return replace(self, entry=found) if found else None


def _voice(entry: Entry) -> str:
    return entry.name.rpartition("-")[0]


def load_library(extra: str | None = None) -> dict[str, Entry]:
    """Read the catalogue (see `load_catalogue`), and add the models in `weights/` where the program was started."""
    return load_catalogue(extra) | _in_weights(Path("weights"))


def _in_weights(folder: Path) -> dict[str, Entry]:
    """Find models in a folder and its subfolders by the names of their files. They are repositories downloaded by hand."""
    found: dict[str, Entry] = {}
    for place in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
        mimis, tokenizers = (_matching(place, patterns) for patterns in (MIMIS, TOKENIZERS))
        if not len(mimis) == len(tokenizers) == 1:
            continue
        for lm, kind in _models_in(place).items():
            files: dict[str, Reference] = {
                "lm": LocalFile(lm), "mimi": LocalFile(mimis[0]), "tokenizer": LocalFile(tokenizers[0])
            }  # fmt: skip
            if path := find_config(lm):
                files["config"] = LocalFile(path)
            family, kept = _told(lm, path)
            size = lm.stat().st_size
            found[str(lm)] = Entry(
                name=str(lm),
                about=f"Your own, in {place}/",
                files=files,
                family=family,
                quantization=kind,
                size=sum(file.path.stat().st_size for file in files.values() if isinstance(file, LocalFile)),
                memory=size + kept + _THE_REST,
                step_bytes=size + kept,
                source=place,
            )
    return found


def _told(lm: Path, path: Path | None) -> tuple[str, int]:
    """Return what a model and its configuration say: the name of the family, and the bytes of keys and values.

    Without a configuration it is that of v0.1.
    """
    from ..model.config import LmConfig
    from ..weights.checkpoint import as_stored
    from ..weights.safetensors import read_header

    config = LmConfig()
    if path:
        with contextlib.suppress(InputError):  # it is raised again when the model is opened
            config = LmConfig.from_file(path, lora=True)
    with contextlib.suppress(InputError):
        config = as_stored(config, read_header(lm))
    return family_of(config).name, _kept_bytes(config, 2, 2)


def _models_in(place: Path) -> dict[Path, str]:
    """Return the language models in a folder, with their quantizations: those of a published name, and the configuration's."""
    from ..model.config import read_config

    found = {place / lm_name(QUANTIZATIONS[kind]): kind for kind in ("bf16", "q8", "q4")}
    with contextlib.suppress(InputError):
        config = place / "config.json"
        named = read_config(config).get("moshi_name") if config.is_file() else None
        if isinstance(named, str) and named == Path(named).name:
            found.setdefault(place / named, next((kind for kind in QUANTIZATIONS if f".{kind}." in named), "bf16"))
    return {path: kind for path, kind in found.items() if _is_there(path)}


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern) if _is_there(path)]


def _is_there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def lm_name(bits: int) -> str:
    """Return the name of the model's file in a published MLX repository."""
    return "model.safetensors" if bits == 16 else f"model.q{bits}.safetensors"


def memory_needed(
    checkpoint: Checkpoint, engine: str, kv_bits: int | None = None, conversations: int = 1, *, guided: bool = False
) -> int:
    """Return the bytes that conversations with a model take once their windows are full; for one, as `Entry.memory`.

    With guidance, `guided`, each has two rows of keys and values.
    """
    from ..model.engines import sizes

    size = sizes(engine, wide=checkpoint.is_wide)
    kept = _kept_bytes(checkpoint.config, size.kept, size.seen, kv_bits, 2 if guided else 1)
    return checkpoint.held_bytes(size.weights) + conversations * kept + _THE_REST


def _kept_bytes(config: Architecture, item: int, seen: int, kv_bits: int | None = None, rows: int = 1) -> int:
    """Return the bytes of the keys and values of a conversation whose window is full, and of what cross-attention sees.

    Numbers take `item` bytes, or, with 8 bits, one, and the scales and biases of groups; `seen` bytes in cross-attention.
    """
    width = config.dim // config.kv_repeat
    group = 64 if config.dim // config.num_heads % 64 == 0 else 32
    kept = width + 2 * width // group * item if kv_bits else width * item
    return config.num_layers * 2 * rows * config.context * kept + source_bytes(config, seen)


def source_bytes(config: Architecture, item: int) -> int:
    """Return the bytes of the keys and values that cross-attention sees, of numbers of `item` bytes; 0 without it."""
    from ..model.families.tts import SOURCE_STEPS

    return 2 * config.num_layers * SOURCE_STEPS * config.dim * item if config.cross_attention else 0


def check_memory(name: str, need: int, memory: int) -> str | None:
    """Compare the bytes that a model needs with those that the machine has. Return a warning if little is left, else None.

    Raise MshError if the model needs more memory than there is.
    """
    what = f"{name} takes {human_size(need)} of memory while talking, and this machine has {human_size(memory)}"
    instead = "'msh-mlx models' shows lighter ones; --kv-bits 8 takes a little less"
    if need > memory:
        raise MshError(what, instead)
    return f"{what}: it may become slow; {instead}." if need > room(memory) else None


# ---- getting one ---------------------------------------------------------------------------------------------------------


def obtain(entry: Entry, entries: Mapping[str, Entry], watch: Watch) -> ModelFiles:
    """Return the files of a model. Fetch those that are not on disk. Say so if its licence forbids commercial use.

    Raises
    ------
    InputError
        One of the user's own files is not there, or the hub does not have a file, or does not give it to this user.
    MshError
        A file cannot be fetched. The message says what works without network.
    """
    tell_licence(entry, watch)
    if cache.missing(entry):
        _fetch(entry, entries, watch)
    found = cache.paths(entry)
    model, mimi, tokenizer = (found[role] for role in ("lm", "mimi", "tokenizer"))
    if not (model and mimi and tokenizer):
        raise MshError(f"Files of {entry.name} went away while they were fetched", "try again")
    return ModelFiles(model, mimi, tokenizer, found.get("config"), found.get("voices"))


def tell_licence(entry: Entry, watch: Watch) -> None:
    """Say so if the licence of a model that was chosen forbids commercial use."""
    if entry.non_commercial:
        watch.say(f"{entry.name} is not for commercial use, by its licence ({entry.licence or 'not named'}).")


def obtain_file(reference: Reference, what: str, entries: Mapping[str, Entry], watch: Watch) -> Path:
    """Return the path of one file. Fetch it if it is not on disk. `what` names it in errors, which are those of `obtain`."""
    found = cache.find(reference)
    if found is None:
        entry = Entry(f"the {what}", "", {"file": reference})
        _fetch(entry, entries, watch)
        found = cache.find(reference)
    if found is None:
        raise MshError(f"The {what} went away while it was fetched", "try again")
    return found


def _fetch(entry: Entry, entries: Mapping[str, Entry], watch: Watch) -> None:
    for role, file in entry.files.items():
        if isinstance(file, LocalFile) and cache.find(file) is None:
            raise InputError(f"The {_ROLES.get(role, 'file')} of {entry.name}, {file.path}, is not there.")
    from . import fetch

    # Fetch all files: if the branch has moved to another commit, those on disk are of the old one.
    files = [file for file in entry.files.values() if isinstance(file, HubFile)]
    try:
        remotes = fetch.look_up(files, watch)
        size = sum(remote.missing for remote in remotes)
        count = sum(remote.missing > 0 for remote in remotes)
        if size:
            what = f"{human_size(size)} in {count} file{'s' if count > 1 else ''}"
            watch.say(f"Fetching {entry.name} from {fetch.host()} into {cache.cache_folder()}: {what}")
        fetch.fetch(remotes, watch)
    except SettingsError:
        raise
    except UnreachableError as error:
        gone = [str(file.path) for file in cache.missing(entry)]
        there = [other.name for other in entries.values() if cache.is_on_disk(other)]
        instead = f"without a network, {listed(there)} can be used" if there else ""
        raise UnreachableError(
            f"{error}, and {listed(gone)} of {entry.name} {'is' if len(gone) == 1 else 'are'} not on this disk",
            instead or "without a network, only --demo works",
        ) from None


def repository_entry(repository: str, bits: int | None, watch: Watch) -> Entry:
    """Make the entry of a repository that is not in the catalogue, but has the published form, by the names of its files.

    `bits` chooses the model's file if there are several.

    Raises
    ------
    InputError
        The repository does not exist, or does not have that form.
    MshError
        The hub cannot be asked, and the repository is not on disk.
    """
    from ..model.config import read_config
    from . import fetch

    name, revision = parse_repository(repository)
    try:
        names = fetch.list_files(name, revision, watch)
    except UnreachableError as error:
        commit = cache.commit_of(name, revision)
        folder = cache.repository_folder(name) / "snapshots" / (commit or "")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] if commit else []
        if not names and isinstance(error, SettingsError):
            raise
        if not names:
            raise UnreachableError(f"{error}, and {name} is not on this disk", "--demo needs no network") from None
    said: dict[str, object] = {}
    files: dict[str, Reference] = {}
    if "config.json" in names:
        config = HubFile(name, "config.json", revision)
        files["config"] = config
        path = obtain_file(config, "configuration", {}, watch)
        with contextlib.suppress(InputError):  # it is raised again when the model is opened
            said = read_config(path)
    wanted = [lm_name(bits)] if bits else [lm_name(16), lm_name(8), lm_name(4)]
    for role, key, usual in (
        ("lm", "moshi_name", [path for path in wanted if path in names]),
        ("mimi", "mimi_name", [path for path in names if _fits(path, MIMIS)]),
        ("tokenizer", "tokenizer_name", [path for path in names if _fits(path, TOKENIZERS)]),
    ):
        told = said.get(key)
        if isinstance(told, str) and told in names and not (role == "lm" and bits):
            files[role] = HubFile(name, told, revision)
        elif len(usual) == 1 or (role == "lm" and usual and not bits):
            files[role] = HubFile(name, usual[0], revision)
        elif role == "lm" and not usual and (index := next((path for path in names if path.endswith(_INDEX)), None)):
            raise InputError(f"The repository {name} has its model in several files ({index})", ONE_FILE)
        else:
            what = f"no {_ROLES[role]}" if not usual else f"{len(usual)} files that could be the {_ROLES[role]}"
            of = f" of {bits} bits ({wanted[0]})" if role == "lm" and bits else ""
            raise InputError(
                f"The repository {name} has {what}{of}", "give the files with --model, --mimi and --tokenizer"
            )
    if ARCHIVE in names:
        files["voices"] = HubFile(name, ARCHIVE, revision)
    files = {role: files[role] for role in ROLES if role in files}
    return Entry(repository, "", files, family=_family_said(said))


def _family_said(values: Mapping[str, object]) -> str:
    """Return the name of the family that a configuration is of; Moshi's if it is wrong, which is said when it is opened."""
    from ..model.config import LmConfig

    with contextlib.suppress(InputError):
        return family_of(LmConfig.from_dict(values, lora=True)).name
    return "moshi"


def _fits(path: str, patterns: Sequence[str]) -> bool:
    return any(Path(path).match(pattern) for pattern in patterns)


def shared_file(role: str, entries: Mapping[str, Entry], family: str = "moshi", name: str | None = None) -> Reference:
    """Return the catalogue's codec or tokenizer for a model of a family that came without one. Prefer one on disk.

    It is of a model of the same family, else of one for the same use. Files of restricted models are never taken. If there is
    one of this `name`, which the model's configuration says, it is that.
    """
    open_to_all = [entry for entry in entries.values() if role in entry.files and not entry.is_restricted]
    use = use_of(family)
    of_family = [entry for entry in open_to_all if entry.family == family]
    files = [entry.files[role] for entry in of_family or [entry for entry in open_to_all if entry.use == use]]
    if not files:
        raise InputError(f"The catalogue has no {_ROLES[role]}", f"give one with --{role}")
    files = [file for file in files if Path(file.path).name == name] or files
    return next((file for file in files if cache.find(file)), files[0])
