"""`msh-mlx voices`: list voices and the prompts that are kept, make voices of recordings, and play them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, MshError
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from ..library.suited import load_library
from ..library.voices import ENDINGS, NamedVoice, check_name, find_voice, known_voices, own_folder
from ..system.inputs import existing
from ..system.newfile import NewFile, check_outputs, file_output, making
from ..system.places import user_path
from ..system.signals import Signals
from ..system.streams import check_output
from ..system.words import human_size, printable, shortened
from .choice import add_model, add_weights, check_model, choose
from .devices import find_loudspeaker
from .options import Parser, action_of, add_engine, add_printing, computing, display, print_json
from .persona import CONSENT, prompt_text

if TYPE_CHECKING:
    from ..conversation.kept import Kept
    from ..conversation.personas import Persona

ACTIONS = ("from", "play", "clear")
_SAMPLE = 6.0  # seconds of a voice that a model speaks with
_SHOWN = 60  # characters of a prompt


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx voices",
        description="List the voices that a conversation takes by their names (--voice), and the prompts that are kept on "
        "disk. Speech ('msh-mlx say') has other voices, which come with its model.",
        epilog="Other commands, each with --help: " + ", ".join(f"msh-mlx voices {name}" for name in ACTIONS) + ".",
    )
    to = parser.group()
    to.value("--model", "FILE", "list the voices beside this model, too")
    add_weights(to)
    add_printing(to)
    return parser


def action_parser(action: str) -> Parser:
    about = {
        "from": "Make a voice of a recording of some 4 s of speech. Its speaker must have agreed to that.",
        "play": "Play a voice: what it was made of, or, for a file of PersonaPlex's own, some seconds spoken by the model.",
        "clear": "Remove the prompts that are kept on disk. They are made again when they are needed.",
    }
    parser = Parser(prog=f"msh-mlx voices {action}", description=about[action])
    to = parser.group()
    if action == "from":
        to.value(
            "recording",
            "RECORDING",
            "make a voice of this (WAV, FLAC, OGG, MP3, AIFF, AU, CAF); - is the standard input",
        )
        to.value("--name", "NAME", "call the voice so (default: the recording's name)")
    if action == "play":
        to.value("name", "VOICE", "play this voice: its name or file, or a recording")
        to.value("--output", "FILE", "write the sound to this file in place of playing it (WAV, 24 kHz)")
        to.value("--output-device", "DEVICE", "use this loudspeaker: its number, or part of its name")
        to.value("--prompt", "TEXT", "give the model this role while it speaks; @FILE reads it from a file")
        add_model(to)
        add_engine(to)
    add_printing(to)
    return parser


def run(arguments: list[str], signals: Signals) -> int:
    if action := action_of(arguments, "voices", ACTIONS):
        args = action_parser(action).parse_args(arguments[1:])
        return {"from": _from, "play": _play, "clear": _clear}[action](args, signals)
    args = parser().parse_args(arguments)
    check_output()
    return _list(args)


# ---- the list ------------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from ..conversation.kept import KeptPrompts

    entries = load_library(args.weights)
    model = existing(args.model, "model") if args.model is not None else None
    known = known_voices(model, entries.values())
    kept = KeptPrompts.of_user().all()
    if args.json:
        voices = [
            {
                "name": voice.name,
                "source": voice.source,
                "licence": voice.licence,
                "own": voice.own,
                "path": str(voice.path),
            }
            for voice in known.values()
        ]
        prompts = [{**one.about, "size": one.size, "used": one.used, "path": str(one.path)} for one in kept]
        print_json({"voices": voices, "prompts": prompts})
        return 0
    _print_voices(known)
    _print_kept(kept)
    return 0


def _print_voices(known: Mapping[str, NamedVoice]) -> None:
    if not known:
        print("There are no voices with a name; 'msh-mlx voices from RECORDING' makes one.")
        return
    width = max(len(name) for name in known)
    for name, voice in known.items():
        print(printable(f"{name:{width}}  {', '.join(filter(None, (voice.source, voice.licence)))}"))


def _print_kept(kept: list[Kept]) -> None:
    if not kept:
        print("\nNo prompts are kept.")
        return
    print(f"\nPrompts that are kept ({human_size(sum(one.size for one in kept))} in all), those used last first:")
    for one in kept:
        used = f"{datetime.fromtimestamp(one.used):%Y-%m-%d %H:%M}"
        about = one.about
        words = [about.get("model", ""), f"voice {about['voice']}" if about.get("voice") else ""]
        words.append(f"“{shortened(about['text'], _SHOWN)}”" if about.get("text") else "")
        print(printable(f"{used}  {human_size(one.size):>8}  {', '.join(filter(None, words))}"))
    print("'msh-mlx voices clear' removes them.")


# ---- from, play, clear ---------------------------------------------------------------------------------------------------


def _from(args: argparse.Namespace, _: Signals) -> int:
    from ..conversation.personas import read_sound
    from ..sound.recordings import STDIN
    from ..weights.voice import write_sound

    folder = own_folder()
    if folder is None:
        raise InputError("There is no home folder for voices", "set HOME")
    if args.name is None and args.recording == STDIN:
        raise InputError("The standard input has no name for the voice", "give one with --name")
    name = check_name(Path(args.recording).stem if args.name is None else args.name)
    for ending in ENDINGS:
        if (there := folder / f"{name}{ending}").exists():
            raise InputError(f"There is a voice {name} already ({there})", "give another --name, or remove that file")
    sound = read_sound(args.recording)
    path = folder / f"{name}.safetensors"
    with making(folder), NewFile(path) as new:
        write_sound(new.file, sound)
        new.commit()
    if args.json:
        print_json({"name": name, "path": str(path), "seconds": len(sound) / SAMPLE_RATE, "notice": CONSENT})
        return 0
    print(f"The voice {name} is made: {len(sound) / SAMPLE_RATE:.1f} s, {path}")
    print(CONSENT)
    return 0


def _play(args: argparse.Namespace, signals: Signals) -> int:
    from ..conversation.personas import read_persona

    entries = load_library(args.weights)
    model = user_path(args.model) if args.model and not args.model.startswith("hf:") else None
    text = prompt_text(args)
    path = find_voice(args.name, known_voices(model, entries.values()))
    output = file_output(args.output, "The sound of a voice") if args.output else None
    check_outputs([output] if output else [], [path])
    device = None if output else find_loudspeaker(args)
    persona = read_persona(path, text)
    if isinstance(persona.voice, np.ndarray) and not text:
        frames: Iterator[Pcm] = iter(
            np.pad(persona.voice, (0, -len(persona.voice) % FRAME_SIZE)).reshape(-1, FRAME_SIZE)
        )
    else:
        frames = _spoken(args, persona, signals)
    if output:
        seconds = _write(output, frames)
        if args.json:
            print_json({"path": str(output), "seconds": seconds})
        else:
            print(f"Written: {output}")
    elif device:
        from ..sound.playing import play
        from ..system.log import Log

        signals.end_process = True  # the sound system may not let go of its threads
        with Log():
            play(frames, device, signals.check)
    return 0


def _spoken(args: argparse.Namespace, persona: Persona, signals: Signals) -> Iterator[Pcm]:
    """Load a model, and let it speak with a voice for some seconds, to a user who says nothing."""
    from ..conversation.load import load_parts
    from ..conversation.personas import Personas, check_persona, check_takes_persona
    from ..conversation.session import Session
    from ..conversation.text import load_tokenizer

    check_model(args)
    args.voice = args.name
    choice = choose(args, signals)
    check_takes_persona(choice.checkpoint.config)
    check_persona(persona, load_tokenizer(choice.files.tokenizer), choice.checkpoint.config)
    with display(args, signals) as shown, shown.progress(f"Loading {choice.files.model.name}") as progress:
        parts = load_parts(choice.files, choice.checkpoint, **computing(args), progress=progress)
    opening = Personas(parts, kv_bits=args.kv_bits).opening(persona)
    session = Session(parts.lm, parts.mimi, parts.tokenizer, seed=0, kv_bits=args.kv_bits, opening=opening)
    session.warm_up()

    def speak() -> Iterator[Pcm]:
        for _ in range(round(_SAMPLE / FRAME_SECONDS)):
            signals.check()
            yield session.push(np.zeros(FRAME_SIZE, np.float32)).pcm

    return speak()


def _write(output: Path, frames: Iterator[Pcm]) -> float:
    """Write the sound, and return its seconds."""
    from ..sound.recordings import WavWriter

    with NewFile(output) as new:
        writer = WavWriter(new.file, SAMPLE_RATE, 1)
        samples = 0
        for frame in frames:
            writer.write(frame)
            samples += len(frame)
        writer.finish()
        new.commit()
    return samples / SAMPLE_RATE


def _clear(args: argparse.Namespace, _: Signals) -> int:
    from ..conversation.kept import KeptPrompts

    kept = KeptPrompts.of_user()
    try:
        freed = kept.clear()
    except OSError as error:
        raise MshError(f"{error.filename} cannot be removed: {error.strerror}.") from None
    if args.json:
        print_json({"freed": freed})
    else:
        print(
            f"Removed the prompts that were kept: {human_size(freed)} are free now."
            if freed
            else "No prompts were kept."
        )
    return 0
