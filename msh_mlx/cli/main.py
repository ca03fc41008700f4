"""The command line: a conversation, live or with recordings, or one of the commands.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..conversation.load import load_session, on_trial, step_down
from ..errors import InputError
from ..system.newfile import Output, check_outputs, making, named_folder, output
from ..system.places import user_path
from ..system.signals import Signals
from ..system.words import listed
from .cascade import add_llm, check_llm, talk_with_llm
from .choice import add_model, check_model, choose
from .devices import print_devices, print_latency
from .options import (
    Group,
    Parser,
    add_live,
    add_live_printing,
    add_lora,
    add_reply,
    add_sampling,
    check_kind,
    check_lora,
    check_reply,
    computing,
    display,
    live_options,
    sampling,
    whole,
)
from .persona import add_persona, opening_of, persona_of, sentences
from .program import guard
from .translation import add_guidance, guided_opening

if TYPE_CHECKING:
    from ..conversation.live import Sink, Source
    from ..conversation.personas import Persona
    from ..conversation.recordings import Plan
    from ..conversation.session import Opening, Parts, Session
    from ..events import Event
    from .choice import Choice

_COMMANDS = {
    "bench": "how fast a model is here",
    "client": "a conversation with a server",
    "convert": "models with other bits a weight",
    "doctor": "a check of this machine",
    "models": "which models there are",
    "say": "text to speech",
    "serve": "a server for browsers and clients",
    "transcribe": "speech to text",
    "voices": "voices for --voice",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (default: the process's arguments) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guard(lambda signals: _run(arguments, signals), debug="--debug" in arguments)


def _run(arguments: list[str], signals: Signals) -> int:
    # A conversation takes only options, so a first word without a dash is a command.
    if not arguments or arguments[0].startswith("-"):
        return _converse(parser().parse_args(arguments), signals)
    name, *rest = arguments
    if name not in _COMMANDS:
        raise InputError(f"There is no command {name!r}, only {listed(_COMMANDS)}", "--help lists the options")
    command = importlib.import_module(f".{name}", __package__)
    code: int = command.run(rest, signals)
    return code


# ---- the conversation, live or with recordings ---------------------------------------------------------------------------

# Options that only conversations with recordings have, by their names in argparse.
_FILE_OPTIONS = ("output", "transcript", "output_dir", "stereo", "tail", "steps")


def parser() -> Parser:
    from .. import __version__

    parser = Parser(
        prog="msh-mlx",
        description="Talk with Moshi, or let it hear a recording (--input) and save its reply.",
        epilog="Other commands, each with --help: "
        + "; ".join(f"msh-mlx {name} ({about})" for name, about in _COMMANDS.items())
        + ".",
    )
    to = parser.group("model")
    add_model(to)
    add_lora(to)
    add_live(parser.group("live"))
    to = parser.group("recordings")
    heard = "play these recordings to Moshi (WAV, FLAC, OGG, MP3, AIFF, AU, CAF); - is the standard input"
    to.value("--input", "FILE", heard, nargs="+", action="extend")
    add_reply(to)
    folder = "write NAME.wav and NAME.jsonl for each input to this folder; it is made if it is missing"
    to.value("--output-dir", "FOLDER", folder)
    to.flag("--stereo", "write two channels: the user on the left, Moshi on the right")
    to.value("--steps", "N", "stop after N steps of 80 ms", type=whole(1))
    add_llm(parser.group("language model"))
    to = parser.group("conversation")
    add_persona(to)
    add_guidance(to)
    add_sampling(to)
    program = parser.add_argument_group("program")
    add_live_printing(Group(program))
    said = f"msh-mlx {__version__}"
    program.add_argument("--version", action="version", version=said, help="print the version and exit")
    return parser


def _converse(args: argparse.Namespace, signals: Signals) -> int:
    _check_options(args)
    if args.list_devices:
        return print_devices(args)
    if args.measure_latency:
        return print_latency(args)
    if args.llm is not None:
        return talk_with_llm(args, signals)
    return _with_recordings(args, signals) if args.input else _talk(args, signals)


def _talk(args: argparse.Namespace, signals: Signals) -> int:
    from ..conversation.pipeline import Pipeline
    from ..conversation.warmup import warm
    from ..events import ModelInUse, Notice
    from ..library.files import find_demo
    from ..live.talk import talk
    from ..weights.checkpoint import open_checkpoint

    choice = choose(args, signals, tries=True)
    persona = persona_of(args, choice.files, choice.checkpoint.config)
    how = {**sampling(args), **computing(args), "opening": _opening(args, choice, persona)}
    load: Callable[..., Session] = partial(load_session, **how)
    open_model = partial(open_checkpoint, lora=args.lora, lora_scaling=args.lora_scaling, context=args.context)

    def make(source: Source, sink: Sink, events: Callable[[Event], None], delay_limit: float) -> Pipeline:
        if not choice.is_demo:
            events(ModelInUse(choice.checkpoint.bits))
        for sentence in sentences(persona) if persona else ():
            events(Notice("persona", sentence))
        selection = choice.selection
        lighter = step_down(selection, open_model, load, events) if selection else None
        demo = partial(load, find_demo()) if args.or_demo else None
        trial = on_trial(selection, demo, events) if selection and selection.trial else None
        session = warm(lambda progress: load(choice.files, choice.checkpoint, progress=progress), lighter, trial)
        return Pipeline(session, source, sink, events, delay_limit=delay_limit)

    return talk(make, live_options(args), signals)


def _opening(args: argparse.Namespace, choice: Choice, persona: Persona | None) -> Callable[[Parts], Opening] | None:
    """Return what makes the opening that the options ask for; None: the usual one. A persona is not for a translation."""
    return guided_opening(args, choice) or opening_of(args, persona)


def _with_recordings(args: argparse.Namespace, signals: Signals) -> int:
    from ..sound.recordings import STDIN, checked, open_recording

    folder = named_folder(args.output_dir, "--output-dir") if args.output_dir else None
    plans = _plans(args, folder)
    outputs = [path for plan in plans for path in (plan.reply, plan.transcript) if path]
    inputs = [0 if path == STDIN else user_path(path) for path in args.input]
    with ExitStack() as stack:
        if folder:
            stack.enter_context(making(folder))
        # Find errors here, before gigabytes are fetched.
        check_outputs(outputs, inputs)
        recordings = [checked(path) for path in args.input]
        choice = choose(args, signals)
        files = choice.files
        check_outputs(outputs, files.all)
        persona = persona_of(args, choice.files, choice.checkpoint.config)

        from ..conversation.recordings import converse

        shown = stack.enter_context(display(args, signals))
        begin = perf_counter()
        with shown.progress(f"Loading {files.model.name}") as progress:
            session = load_session(
                files,
                choice.checkpoint,
                **sampling(args),
                **computing(args),
                opening=_opening(args, choice, persona),
                progress=progress,
            )
        shown.say(f"Loaded {files.model.name} in {perf_counter() - begin:.1f} s")
        for sentence in sentences(persona) if persona else ():
            shown.say(sentence)
        for path, recording, plan in zip(args.input, recordings, plans, strict=True):
            session.reset()
            with recording or open_recording(path) as source:
                converse(session, source, plan, shown)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    check_kind(args, _FILE_OPTIONS)
    if args.list_devices or args.measure_latency:
        return
    check_lora(args)
    check_llm(args, parser)
    check_model(args)
    if not args.input:
        return
    check_reply(args)
    if not (args.output or args.transcript or args.output_dir):
        raise InputError("Nothing would be written", "give --output, --transcript or --output-dir")
    if args.output_dir and (args.output or args.transcript):
        raise InputError("--output-dir names the files itself", "leave --output and --transcript out")
    if len(args.input) > 1 and not args.output_dir:
        raise InputError(
            f"There are {len(args.input)} inputs", "give --output-dir in place of --output and --transcript"
        )
    if args.stereo and not (args.output or args.output_dir):
        raise InputError("--stereo needs a sound file to write", "give --output")
    if args.input.count("-") > 1:
        raise InputError("The standard input can be heard only once", "give - once")


def _plans(args: argparse.Namespace, folder: Path | None) -> list[Plan]:
    """Return the plan for each input: which files to write, and how. `folder` is that of --output-dir."""
    from ..conversation.recordings import Plan

    def plan(reply: Output | None, transcript: Output | None) -> Plan:
        return Plan(reply, transcript, stereo=args.stereo, tail=args.tail, max_steps=args.steps)

    if folder is None:
        return [plan(*(output(path) if path else None for path in (args.output, args.transcript)))]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "give one with --output-dir")
    stems = ["stdin" if path == "-" else Path(path).stem for path in args.input]
    return [plan(folder / f"{stem}.wav", folder / f"{stem}.jsonl") for stem in stems]
