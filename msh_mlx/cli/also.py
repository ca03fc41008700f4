"""The models that hold conversations on a server: the one that the usual options name, and those of `--also`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..system.signals import Signals
from ..system.words import listed
from .choice import Choice, choose
from .options import Group
from .served_audio import model_name, other_options

if TYPE_CHECKING:
    from ..conversation.personas import Persona


@dataclass(frozen=True)
class Talking:
    """A chosen model that holds conversations: its name for clients, and the options that count for it.

    `persona` is that of clients that choose none; None: the user named none.
    """

    name: str
    args: argparse.Namespace
    choice: Choice
    persona: Persona | None = None


def add_also(to: Group) -> None:
    """Add the option."""
    named = "its name in the catalogue, a file, a folder, hf:OWNER/NAME/FILE[@REVISION], or demo"
    also = f"also hold conversations with this model, which a client may choose: {named}; can be repeated"
    to.repeated("--also", "MODEL", also)


def check_also(args: argparse.Namespace) -> None:
    """Raise InputError if the option does not fit others."""
    if "" in args.also:
        raise InputError("--also is empty", "give a model")
    if args.also and args.no_conversations:
        raise InputError("--also and --no-conversations do not go together", "leave one of them out")


def also_options(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the options by which `choose` finds the models of `--also`.

    They are made before `choose` settles for another model what the user left out. What is for one model alone, such as a
    voice, does not count for them.
    """
    alone = {"voice": None, "prompt": None, "guidance": 1.0, "lora": None, "lora_scaling": None, "or_demo": False}
    return [
        argparse.Namespace(**{**vars(args), **alone, **vars(other_options(args, model, args.sessions))})
        for model in args.also
    ]


def choose_also(options: Sequence[argparse.Namespace], first: str, signals: Signals) -> list[Talking]:
    """Find the models, and fetch missing files; errors are those of `choose`. `first` is the name of the default."""
    found: list[Talking] = []
    for args, given in zip(options, options[0].also if options else [], strict=True):
        choice = choose(args, signals)
        name = model_name(choice)
        if name in [first, *(each.name for each in found)]:
            raise InputError(
                f"--also {given} would be a second model named {name}", "leave it out, or rename its folder"
            )
        found.append(Talking(name, args, choice))
    return found


def check_memory_together(talking: Sequence[Talking]) -> str | None:
    """Compare what all models need together with the machine's memory, as `check_memory` does for one."""
    from ..library.suited import check_memory, memory_needed
    from ..model.engines import prepare
    from ..system.memory import machine_memory

    need = 0
    for each in talking:
        args = each.args
        engine, guided = prepare(args.engine), args.guidance != 1
        need += memory_needed(each.choice.checkpoint, engine, args.kv_bits, args.sessions, guided=guided)
    what = f"What holds conversations ({listed(each.name for each in talking)})"
    return check_memory(what, need, machine_memory())
