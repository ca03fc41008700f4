"""Choose the model that a command line asks for: read the options, find the files, and check the model's file.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UnreachableError
from ..library.catalogue import (
    Entry,
    HubFile,
    Reference,
    find_entry,
    of_use,
    parse_reference,
    parse_repository,
    title_of,
)
from ..library.files import MIMIS, TOKENIZERS, ModelFiles, beside, find_demo
from ..system.inputs import existing
from ..system.signals import Signals
from ..system.words import human_size, listed
from ..weights.beside import find_config, names_in
from .options import Group, add_codec_weights, add_config, add_quantized, settle_sampling
from .persona import is_asked
from .program import import_mlx

if TYPE_CHECKING:
    from ..library.cache import Watch
    from ..library.suited import Machine, Selection
    from ..weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Choice:
    """A chosen model: its files, the checked file of the language model, and its name.

    `checkpoint` is opened only once, for the check of memory, the display and loading. `selection` says how the model was
    chosen for this machine, or is None if the user named it. `is_demo` says whether it is the demo model.
    """

    files: ModelFiles
    checkpoint: Checkpoint
    name: str
    selection: Selection | None = None
    is_demo: bool = False


def add_weights(to: Group) -> None:
    to.value("--weights", "FILE", "add the models in this file to the catalogue; its form is that of weights.toml")


# What a live conversation takes. Translation is one, too, with another user: the speech to translate.
TALK = ("conversation", "translation")
# By what models are for: the command that runs them, and what the demo model does.
COMMANDS = {
    "conversation": "msh-mlx",
    "translation": "msh-mlx",
    "transcription": "msh-mlx transcribe",
    "speech": "msh-mlx say",
}
_DEMO = {
    "conversation": "it repeats spoken digits, or says what --prompt asks for",
    "transcription": "it writes down English digits",
    "speech": "it says English digits",
}


def add_model(to: Group, use: str = "conversation", *, served: bool = False) -> None:
    """Add the options that choose a model for a use, as `Family.use`.

    With `served`, add them also under the names that the published servers use.
    """
    best = "'msh-mlx models' lists them (default: the best that suits this machine)"
    to.value("--variant", "NAME", f"use this model of the catalogue; {best}")
    model = "load the language model from this file (.safetensors), or from hf:OWNER/NAME/FILE[@REVISION] on the hub"
    to.value("--model", "FILE", model, also="--moshi-weights" if served else None)
    beside = "default: the tokenizer-*.safetensors or mimi-*.safetensors beside the model, else the catalogue's"
    mimi = f"load the codec from this file (.safetensors; {beside})"
    to.value("--mimi", "FILE", mimi, also="--mimi-weights" if served else None)
    add_codec_weights(to)
    beside = "default: the tokenizer*.model beside the model, else the catalogue's"
    to.value("--tokenizer", "FILE", f"load the text tokenizer from this file ({beside})")
    add_config(to, "--lm-config" if served else "--config")
    repository = "use the model of this repository on the hub (OWNER/NAME), which must have all of its files"
    to.value("--hf-repo", "REPOSITORY", repository)
    add_quantized(to, "; alone, use the published model that has them")
    to.flag("--demo", f"use the demo model that comes with the program; {_DEMO[use]}")
    if use == "conversation":
        to.flag("--or-demo", "use the demo model only if no other suits this machine or can be fetched")
    add_weights(to)


def check_model(args: argparse.Namespace) -> None:
    """Raise InputError for options of `add_model` that do not go together."""
    ways = [f"--{name}" for name in ("demo", "variant", "hf-repo", "model") if getattr(args, name.replace("-", "_"))]
    if len(ways) > 1:
        raise InputError(f"{ways[0]} and {ways[1]} name two models", "leave one of them out")
    if args.model == "":
        raise InputError("--model is empty", "give a file")
    for name in ("mimi", "tokenizer", "config"):
        if getattr(args, name) is not None and not args.model:
            if ways:
                raise InputError(f"{ways[0]} brings its own files", f"leave --{name} out")
            raise InputError(f"--{name} is for a model of your own", "give it with --model")


@contextmanager
def watching(args: argparse.Namespace, signals: Signals) -> Iterator[Watch]:
    """Return a context manager that shows on the standard error what is fetched."""
    from rich.console import Console

    from ..library.cache import Watch
    from .display import Display

    console = Console(stderr=True, highlight=False)
    plain = args.plain or not console.is_terminal or console.is_dumb_terminal
    with Display(console, plain=plain) as shown, shown.transfer() as progress:
        yield Watch(progress, shown.say, signals.check)


def choose(
    args: argparse.Namespace,
    signals: Signals,
    uses: Sequence[str] = TALK,
    *,
    in_time: bool = True,
    tries: bool = False,
) -> Choice:
    """Find the model that the options ask for, fetch missing files, and check that the model can be loaded.

    Options of sampling that were left out get the values that are usual for the model. `uses` are what the model may be for, as
    `Family.use`; the demo model is of the first. With `in_time`, a model that the user did not name must be able to follow a
    conversation; without it, the fastest is taken if none is. With `tries`, a model may be taken on trial if none surely can.

    Raises
    ------
    InputError
        There is no such model, a file is missing or wrong, the model is for another use, or no model suits this machine.
    MshError
        A file cannot be fetched, or MLX cannot compile on this machine.
    """
    import_mlx(signals, args.engine)
    from ..library.suited import check_memory, memory_needed
    from ..model.engines import prepare
    from ..system.memory import machine_memory

    engine = prepare(args.engine)
    with watching(args, signals) as watch:
        choice = _chosen(args, uses, in_time, tries, watch)
        settle_sampling(args, choice.checkpoint.config)
        if not choice.is_demo:
            guided = getattr(args, "guidance", 1.0) != 1
            conversations = getattr(args, "sessions", 1)
            need = memory_needed(choice.checkpoint, engine, args.kv_bits, conversations, guided=guided)
            if warning := check_memory(choice.name, need, machine_memory()):
                watch.say(warning)
        if scaling := choice.checkpoint.scaling:
            # Tell the scaling: with another one, the fine-tuned model would be a different one.
            watch.say(f"{args.lora} is added with a scaling of {scaling.value:g}, {scaling.reason}.")
    return choice


def _chosen(args: argparse.Namespace, uses: Sequence[str], in_time: bool, tries: bool, watch: Watch) -> Choice:
    persona = _asks_persona(args, uses)  # now: what is wrong about it is said before anything is fetched
    if not args.demo:
        try:
            return _choose(args, uses, persona, in_time, tries, watch)
        except (_NothingSuitsError, UnreachableError) as error:
            if not getattr(args, "or_demo", False) or args.model or args.variant or args.hf_repo:
                raise
            watch.say(f"{error.what}; so this is the demo model, which repeats digits.")
    files = find_demo("persona" if persona else uses[0])
    return Choice(files, _checkpoint(args, uses, files.model, files.config), "The demo model", is_demo=True)


def _checkpoint(args: argparse.Namespace, uses: Sequence[str], model: Path, config: Path | None) -> Checkpoint:
    """Open a model's file, and check it against its configuration, the options, and what it may be for."""
    from ..model.families import family_of
    from ..weights.checkpoint import open_checkpoint

    adapters = {"lora": getattr(args, "lora", None), "lora_scaling": getattr(args, "lora_scaling", None)}
    checkpoint = open_checkpoint(model, config, args.quantized, context=args.context, **adapters)
    family = family_of(checkpoint.config)
    if family.use not in uses:
        raise _other_use(str(model), family.title, family.use)
    return checkpoint


def _other_use(name: str, title: str, use: str) -> InputError:
    return InputError(f"{name} is {title}", f"use '{COMMANDS[use]}'")


def named_files(args: argparse.Namespace, signals: Signals) -> ModelFiles:
    """Return the files of the model that `--variant` names, and fetch missing ones; errors are those of `choose`."""
    from ..library.suited import load_library, obtain

    entries = load_library(args.weights)
    with watching(args, signals) as watch:
        return obtain(find_entry(entries, args.variant), entries, watch)


def _asks_persona(args: argparse.Namespace, uses: Sequence[str]) -> bool:
    """Tell whether a conversation shall begin with a voice or a role."""
    return uses == TALK and hasattr(args, "prompt") and is_asked(args)


def _persona_model(entries: Iterable[Entry]) -> Entry:
    """Return a model that takes a voice and a role, the best on disk. Others are large and gated, so they must be named."""
    from ..library.cache import is_on_disk

    known = sorted((entry for entry in entries if entry.family == "personaplex"), key=lambda entry: -(entry.bits or 0))
    if found := next(filter(is_on_disk, known), None):
        return found
    names = f"name {listed(entry.name for entry in known)} with --variant, or try --demo" if known else "try --demo"
    raise _NothingSuitsError("No model on this disk takes a voice or a role", names)


class _NothingSuitsError(InputError):
    """No model of the catalogue suits this machine."""


def _choose(
    args: argparse.Namespace, uses: Sequence[str], persona: bool, in_time: bool, tries: bool, watch: Watch
) -> Choice:
    from ..library.cache import is_on_disk
    from ..library.suited import load_library, obtain, repository_entry
    from ..model.families import hibiki
    from ..model.families.personaplex import no_persona

    entries = load_library(args.weights)
    of_bits = [entry for entry in entries.values() if args.quantized in (None, entry.bits)]
    of_first_use = of_use(entries, uses[0])
    selection = None
    if args.model:
        return _own(args, uses, entries, watch)
    if args.variant:
        entry = find_entry(entries, args.variant)
        if args.quantized and entry.bits not in (None, args.quantized):
            raise InputError(f"{entry.name} has {entry.bits} bits a weight", f"leave --quantized {args.quantized} out")
    elif args.hf_repo:
        known = [entry for entry in of_bits if _is_of(entry, args.hf_repo)]
        if known:
            entry = known[0]
        else:
            _tell_licence(parse_repository(args.hf_repo)[0], entries, watch)
            entry = repository_entry(args.hf_repo, args.quantized, watch)
    elif persona:
        entry = _persona_model(of_bits)
    elif args.quantized:
        fitting = [entry for entry in of_bits if entry.name in of_first_use and not entry.is_restricted]
        if not fitting:
            raise InputError(f"The catalogue has no model of {args.quantized} bits", "give one with --model")
        entry = next(filter(is_on_disk, fitting), fitting[0])
    else:
        selection = _best(args, of_first_use, in_time, tries, watch)
        entry = selection.entry
    if entry.use not in uses:  # say so before gigabytes are fetched
        raise _other_use(entry.name, title_of(entry.family), entry.use)
    if persona and entry.name in entries and entry.family != "personaplex" and not is_on_disk(entry):
        raise no_persona(entry.name, title_of(entry.family))
    if getattr(args, "guidance", 1.0) != 1 and entry.use != "translation":
        raise hibiki.no_guidance(entry.name, title_of(entry.family))
    files = obtain(entry, entries, watch)
    return Choice(files, _checkpoint(args, uses, files.model, files.config), entry.name, selection)


def _tell_licence(repository: str, entries: Mapping[str, Entry], watch: Watch) -> None:
    """Say what forbids commercial use of a model of a repository that the catalogue has, too."""
    from ..library.suited import tell_licence

    if entry := next((entry for entry in entries.values() if _is_of(entry, repository)), None):
        tell_licence(entry, watch)


def _is_of(entry: Entry, repository: str) -> bool:
    lm = entry.files["lm"]
    return isinstance(lm, HubFile) and lm.repository == repository


def _best(
    args: argparse.Namespace, entries: Mapping[str, Entry], in_time: bool, tries: bool, watch: Watch
) -> Selection:
    """Choose the best model for this machine."""
    from ..library.cache import is_on_disk
    from ..library.suited import SHORT_TRIAL_LIMIT, STEP_LIMIT, TRIAL_LIMIT, Selection, suitable, this_machine, triable

    machine = this_machine(args.engine)
    suited = suitable(entries, machine)
    if not suited:
        # Measure again: other programs may have slowed down the first measurement of the memory.
        machine = max(machine, this_machine(args.engine), key=lambda measured: measured.bandwidth)
        suited = suitable(entries, machine)
    limit = (SHORT_TRIAL_LIMIT if args.context else TRIAL_LIMIT) if tries else STEP_LIMIT
    if not suited and tries and (tried := triable(entries, machine, limit)):
        watch.say(f"The model is {tried[0].name}, on trial: this machine may be fast enough with --kv-bits 8.")
        args.kv_bits = 8
        return Selection(tried[0], [], entries, trial=True)
    if not suited and not in_time:
        # The fastest that fits in memory, and first those on disk.
        suited = suitable(entries, replace(machine, bandwidth=math.inf))
        suited.sort(key=lambda entry: (not is_on_disk(entry), entry.step_bytes or 0))
    if not suited:
        raise _nothing_suits(entries, machine, limit)
    best = suited[0]
    watch.say(f"The model is {best.name}: {best.about}".rstrip(": ") + ".")
    better = [entry for entry in suited if (entry.bits or 0) > (best.bits or 0)]
    if is_on_disk(best) and better:
        watch.say(f"{better[0].name}, which is better, suits this machine, too: 'msh-mlx models get {better[0].name}'.")
    return Selection(best, suited, entries)


def _nothing_suits(entries: Mapping[str, Entry], machine: Machine, limit: float) -> _NothingSuitsError:
    from ..library.suited import SHORT_TRIAL_LIMIT, TRIAL_LIMIT, judge

    known = [entry for entry in entries.values() if entry.memory and entry.step_bytes and not entry.is_restricted]
    if not known:
        return _NothingSuitsError(
            "The catalogue does not say how much memory and time any model takes",
            "name one with --variant, or try --demo",
        )
    least = min(known, key=lambda entry: entry.memory or 0)
    verdict = judge(least, machine)
    assert verdict.step is not None
    if not verdict.fits:
        what = f"needs {human_size(least.memory or 0)} of memory, and this machine can give {human_size(machine.room)}"
    else:
        what = (
            f"would take {1000 * verdict.step:.0f} ms a step at this machine's memory bandwidth "
            f"({human_size(machine.bandwidth)}/s), and the limit is {1000 * limit:.0f} ms"
        )
    advice = f"take it all the same with --variant {least.name}, or try --demo"
    if verdict.fits and limit == TRIAL_LIMIT and verdict.step <= SHORT_TRIAL_LIMIT:
        advice = f"shorten its window with --context, {advice}"
    return _NothingSuitsError(
        f"No model suits this machine: {least.name}, the lightest, {what}",
        advice,
    )


def _own(args: argparse.Namespace, uses: Sequence[str], entries: Mapping[str, Entry], watch: Watch) -> Choice:
    """Take the files that were named, and find the others beside the model, or else in the catalogue.

    The model is checked first: nothing is fetched for a file that is not one.
    """
    from ..library.suited import obtain_file, shared_file
    from ..model.config import read_config
    from ..model.families import family_of

    def named(text: str, what: str) -> Path | HubFile:
        reference = parse_reference(text)
        return reference if isinstance(reference, HubFile) else existing(str(reference.path), what)

    def beside_it(text: str | None, role: str, what: str, patterns: Sequence[str]) -> Path | HubFile | None:
        if text is not None:
            return named(text, what)
        told = model.with_name(names[role]) if role in names else None
        return told if told and told.is_file() else beside(model, patterns, what, f"--{role}")

    def there(file: Path | Reference, what: str) -> Path:
        return file if isinstance(file, Path) else obtain_file(file, what, entries, watch)

    reference = named(args.model, "model")
    if isinstance(reference, HubFile):
        _tell_licence(reference.repository, entries, watch)
    model = there(reference, "model")
    config = find_config(model)
    if args.config is not None:
        config = there(named(args.config, "configuration"), "configuration")
    names: dict[str, str] = {}
    if config:
        with suppress(InputError):  # it is raised again when the model is opened
            names = names_in(read_config(config))
    mimi = beside_it(args.mimi, "mimi", "codec", MIMIS)
    tokenizer = beside_it(args.tokenizer, "tokenizer", "tokenizer", TOKENIZERS)
    checkpoint = _checkpoint(args, uses, model, config)
    family = family_of(checkpoint.config).name
    mimi = there(mimi or shared_file("mimi", entries, family, names.get("mimi")), "codec")
    tokenizer = there(tokenizer or shared_file("tokenizer", entries, family, names.get("tokenizer")), "tokenizer")
    files = ModelFiles(model, mimi, tokenizer, config)
    return Choice(files, checkpoint, args.model)
