"""The options that the commands share: how they are added, parsed and checked.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import InputError
from ..model.engines import ENGINES
from ..model.ranges import CONTEXT, LORA_SCALING, PADDING_BONUS, REPETITION_PENALTY, TEMPERATURE, Range
from ..system.newfile import file_output, named_folder
from ..system.signals import Signals
from ..system.streams import check_output
from ..system.words import listed

if TYPE_CHECKING:
    from ..live.talk import Options
    from ..model.architecture import Architecture
    from .display import Display


TOKEN = "MSH_TOKEN"  # of the environment


class _Help(argparse.HelpFormatter):
    """The help, without a line that ends at the hyphen of a name, such as `msh-mlx` or `--top-k`."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent("\n".join(self._split_lines(text, width - len(indent))), indent)


class Parser(argparse.ArgumentParser):
    """A parser that raises wrong options as an `InputError` of one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        message = message.removeprefix("argument ").rstrip(".")
        raise InputError(f"{message[0].upper()}{message[1:]}", "--help lists the options")

    def _print_message(self, message: str, file: Any = None) -> None:
        check_output()  # the output of --help and --version is all that they are for
        sys.stdout.write(message)
        sys.stdout.flush()

    def group(self, title: str = "") -> Group:
        """Make a group of options, with a title in the help; "": the options that have none."""
        return Group(self.add_argument_group(title) if title else self)


class Group:
    """A group of options in the help of a command. Each kind of option has a method, which calls argparse in its place."""

    def __init__(self, container: argparse._ActionsContainer) -> None:
        self._add = container.add_argument

    def flag(self, name: str, help: str) -> None:
        """Add an option without a value: it is True if it is given, else False."""
        self._add(name, action="store_true", help=help)

    def value(self, name: str, metavar: str, help: str, *, also: str | None = None, **more: Any) -> None:
        """Add an option with a value, or an argument. `also` is another name for it; `more` is as for argparse."""
        self._add(name, *filter(None, [also]), metavar=metavar, help=help, **more)

    def repeated(self, name: str, metavar: str, help: str, **more: Any) -> None:
        """Add an option that can be repeated: it is the list of its values."""
        self._add(name, metavar=metavar, help=help, action="append", default=[], **more)

    def choice(self, name: str, choices: Sequence[int | str], help: str, **more: Any) -> None:
        """Add an option that takes one of some values."""
        self._add(name, type=type(choices[0]), choices=choices, help=help, **more)


def within(values: Range) -> Callable[[str], float]:
    """Return a function that parses a number within a range."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if values.has(value := float(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {values}")

    return parse


# A number of seconds: a day is longer than anybody waits, and far from where times and counts of steps overflow.
_DAY = 86_400.0
seconds = within(Range(0, _DAY))
share = within(Range(0, 1))


def positive_share(text: str) -> float:
    """Parse an option that is a number above 0 and up to 1."""
    if (value := share(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def whole(least: int, limit: int | None = None) -> Callable[[str], int]:
    """Return a function that parses a whole number ≥ `least` and < `limit`."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= (value := int(text)) and (limit is None or value < limit):
                return value
        beyond = "" if limit is None else f" and less than {limit}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more{beyond}")

    return parse


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def byte_count(text: str) -> int:
    """Parse a number of bytes, with or without a unit, such as 500MB or 2 GB."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(|k|M|G|T)B?", text.strip(), re.ASCII | re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 500MB or 2GB")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def action_of(arguments: Sequence[str], command: str, actions: Sequence[str]) -> str | None:
    """Return the action that the arguments of a command begin with; None: they begin with an option, or there are none.

    Raise InputError for another word.
    """
    if not arguments or arguments[0].startswith("-"):
        return None
    if arguments[0] not in actions:
        raise InputError(
            f"There is no command {arguments[0]!r} of {command}, only {listed(actions)}", "--help lists them"
        )
    return arguments[0]


def print_json(value: object) -> None:
    """Print the result of a command as a JSON object."""
    print(json.dumps(value, ensure_ascii=False))


def add_printing(
    to: Group,
    plain: str = "do not show progress, even in a terminal",
    as_json: str = "print the result as a JSON object",
) -> None:
    """Add the options of what is printed. `plain` and `as_json` are the help of two of them."""
    to.flag("--plain", plain)
    to.flag("--json", as_json)
    to.flag("--debug", "print the traceback of an unexpected error")


def add_config(to: Group, name: str = "--config") -> None:
    beside = "the .json of the same name or the config.json beside the model, else that of Moshi 0.1"
    to.value(name, "FILE", f"read the model's configuration from this file (default: {beside})", dest="config")


def add_codec_weights(to: Group) -> None:
    kinds = (
        "hold the codec's weights as this: float16 is half the memory, and slightly less exact (default: %(default)s)"
    )
    to.choice("--codec-weights", ("float32", "float16"), kinds, default="float32")


def add_quantized(to: Group, more: str = "") -> None:
    to.choice("--quantized", (4, 8), f"require a model with this many bits a weight{more}")


def add_lora(to: Group) -> None:
    to.value("--lora", "FILE", "add the LoRA adapters in this file to the model's weights (.safetensors)")
    scaling = "multiply the adapters by S (default: what the configuration beside them, or the model's, says; else 2)"
    to.value("--lora-scaling", "S", scaling, type=within(Range(0, LORA_SCALING.most)))


_OR_MODEL = ", or the model's own"


def add_sampling(to: Group, *, remote: bool = False) -> None:
    """Add the options for the choice of tokens: temperatures, seed and so on.

    Temperatures and top-k have the default None, for what is usual for the model's family (`settle_sampling`). With `remote`
    only the options that the protocol knows are added, and the default of all is None, for the server's own.
    """

    def option(name: str, metavar: str, type: Callable[[str], float], default: float, help: str, off: str = "") -> None:
        shown = "the server's" if remote else f"{default:g}{off}"
        value = None if remote or off == _OR_MODEL else default
        to.value(name, metavar, help.format(f"default: {shown}"), type=type, default=value)

    temperature = within(TEMPERATURE)
    option("--temperature", "T", temperature, 0.8, "sample the voice at this temperature; 0 is greedy ({})", _OR_MODEL)
    option(
        "--text-temperature", "T", temperature, 0.7, "sample the text at this temperature; 0 is greedy ({})", _OR_MODEL
    )
    option("--top-k", "K", whole(0), 250, "sample the voice from the K likeliest choices; 0 is all ({})", _OR_MODEL)
    option("--text-top-k", "K", whole(0), 25, "sample the text from the K likeliest choices; 0 is all ({})", _OR_MODEL)
    for name, of in () if remote else (("", "voice"), ("text-", "text")):
        together = f"sample the {of} from the likeliest choices that together have probability P (default: 1, all)"
        to.value(f"--{name}top-p", "P", together, type=positive_share, default=1.0)
        least = f"sample the {of} from choices at least P times as likely as the likeliest one (default: 0, all)"
        to.value(f"--{name}min-p", "P", least, type=share, default=0.0)
    avoid = "make Moshi avoid its last words: above 1, such as 1.1 ({})"
    option("--repetition-penalty", "X", within(REPETITION_PENALTY), 1.0, avoid, ", off")
    option("--repetition-words", "N", whole(1, 1001), 32, "apply --repetition-penalty to Moshi's last N words ({})")
    less = "make Moshi talk less (above 0, such as 2) or more (below 0; {})"
    option("--padding-bonus", "X", within(PADDING_BONUS), 0.0, less)
    if not remote:
        add_engine(to, ": half the memory, slightly less exact")
    seed = "seed the sampling: the same seed gives the same conversation (default: a new seed every time)"
    to.value("--seed", "N", seed, type=whole(0, 1 << 64))


def add_engine(to: Group, more: str = "") -> None:
    """Add the options of how a model is computed."""
    to.choice(
        "--engine",
        ENGINES,
        "compute the model with MLX or natively (default: auto, MLX if it has a GPU)",
        default="auto",
    )
    shorter = (
        "remember only the last SECONDS of a conversation, so that a step reads less (default: the model's window)"
    )
    to.value("--context", "SECONDS", shorter, type=within(CONTEXT))
    to.choice("--kv-bits", (8,), f"keep the model's key/value cache in 8 bits{more}")


def computing(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_parts` that say how the model and the codec are computed."""
    return {"engine": args.engine, "codec_weights": args.codec_weights}


def settle_sampling(args: argparse.Namespace, config: Architecture | None) -> None:
    """Give options of `add_sampling` that the user left out the values that are usual for the model's family, else Moshi's."""
    from ..model.families import family_of
    from ..model.sampling import AUDIO_SAMPLER, TEXT_SAMPLER

    text, audio = family_of(config).samplers(config) if config else (TEXT_SAMPLER, AUDIO_SAMPLER)
    usual = {"temperature": audio.temperature, "top_k": audio.top_k}
    usual |= {"text_temperature": text.temperature, "text_top_k": text.top_k}
    for name, value in usual.items():
        if getattr(args, name, value) is None:
            setattr(args, name, value)


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_session` that the options of `add_sampling` set, after `settle_sampling`."""
    return {
        "voice": {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "min_p": args.min_p},
        "text": {
            "temperature": args.text_temperature,
            "top_k": args.text_top_k,
            "top_p": args.text_top_p,
            "min_p": args.text_min_p,
            "repetition_penalty": args.repetition_penalty,
            "repetition_words": args.repetition_words,
            "padding_bonus": args.padding_bonus,
        },
        "kv_bits": args.kv_bits,
        "seed": args.seed,
    }


def display(args: argparse.Namespace, signals: Signals, *, apart: bool = False) -> Display:
    """Return the display, which raises `Stopped` when a signal came.

    It is on the standard output, or `apart` from the results that go there: on the standard error.
    """
    from rich.console import Console

    from .display import Display

    console = Console(highlight=False, stderr=apart)
    plain = args.plain or args.json or not console.file.isatty() or console.is_dumb_terminal
    return Display(console, plain=plain, check=signals.check)


def own_token(args: argparse.Namespace) -> str | None:
    """Return the token from `--token`, else from the environment; raise InputError if an address cannot hold it."""
    token: str | None = args.token or os.environ.get(TOKEN) or None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise InputError(
            "The token has spaces or other characters that an address cannot hold", "use letters and digits"
        )
    return token


def check_lora(args: argparse.Namespace) -> None:
    if args.lora_scaling is not None and args.lora is None:
        raise InputError("--lora-scaling is about the adapters of --lora", "give both, or neither")


# ---- what live conversations have in common, wherever the model is -----------------------------------------------------

# As argparse keeps them.
_LIVE = (
    "input_device",
    "output_device",
    "record",
    "trace",
    "duration",
    "max_delay",
    "mute_start",
    "echo",
    "noise_suppression",
    "gain_control",
    "measure_latency",
)


def add_reply(to: Group, *, remote: bool = False) -> None:
    """Add the options of what is kept of a conversation with a recording; with `remote`, the model is on a server."""
    stdout = "- is the standard output"
    to.value("--output", "FILE", f"write Moshi's voice to this file (WAV, 24 kHz); {stdout}")
    to.value("--transcript", "FILE", f"write Moshi's words to this file, one JSON object a line; {stdout}")
    by_itself = "" if remote else "; a translation ends by itself"
    tail = f"add this much silence after the recording, for an answer to finish (default: 0{by_itself})"
    to.value("--tail", "SECONDS", tail, type=seconds)


def check_reply(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not fit a conversation with a recording."""
    if args.json:
        raise InputError("--json is for live conversations", "--transcript writes the words of a recording's as JSON")
    check_wav(args.output or "")


def check_wav(text: str) -> None:
    """Raise InputError if the name of an output is that of another kind of file than WAV."""
    name = Path(text)
    if name.suffix.lower() in (".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aiff", ".jsonl"):
        raise InputError("--output writes a WAV file", f"name it {name.with_suffix('.wav').name}, say")


def add_live_printing(to: Group) -> None:
    """Add the options of what live conversations print."""
    add_printing(to, "print plain lines, even in a terminal", "print each event as a JSON object, one a line (live)")


def add_devices(to: Group) -> None:
    to.value("--input-device", "DEVICE", "use this microphone: its number, or part of its name")
    to.value("--output-device", "DEVICE", "use this loudspeaker: its number, or part of its name")


def add_live(to: Group) -> None:
    """Add the options of live conversations."""
    to.flag("--list-devices", "list the sound devices, mark the defaults, and exit")
    add_devices(to)
    record = "record both voices, a stereo mix and the words to this folder, as the conversation goes"
    to.value("--record", "FOLDER", record)
    trace = "write how long each stage took to this file (Chrome's trace format; open it in Perfetto)"
    to.value("--trace", "FILE", trace)
    to.value("--duration", "SECONDS", "end the conversation after this time", type=seconds)
    late = "drop the oldest of your sound once it is more than this many milliseconds late (default: 400)"
    to.value("--max-delay", "MS", late, type=_delay)
    to.flag("--mute-start", "start with the microphone muted")
    when = "auto, if there is one; on, always; off, never (default: auto)"
    to.choice("--echo", ("auto", "on", "off"), f"remove the loudspeaker's echo from the microphone's sound: {when}")
    to.flag("--noise-suppression", "remove steady noise from the microphone's sound (adds 4 ms)")
    to.flag("--gain-control", "keep your voice at one level, however far away you are")
    clicks = "play clicks, find them in the microphone's sound, print the delay of the devices, and exit"
    to.flag("--measure-latency", clicks)


def _delay(text: str) -> float:
    """Parse a delay in milliseconds and return it in seconds; less than 200 ms is too short, since two frames are under way."""
    return within(Range(200, 1000 * _DAY))(text) / 1000


def live_options(args: argparse.Namespace) -> Options:
    """Return the options of `add_live`, with --plain and --json, as `Options`."""
    from ..live.talk import Options

    return Options(
        input_device=args.input_device,
        output_device=args.output_device,
        record=None if args.record is None else named_folder(args.record, "--record"),
        trace=file_output(args.trace, "The trace") if args.trace else None,
        duration=args.duration,
        max_delay=args.max_delay or Options.max_delay,
        muted=args.mute_start,
        echo=args.echo or Options.echo,
        noise_suppression=args.noise_suppression,
        gain_control=args.gain_control,
        plain=args.plain,
        as_json=args.json,
    )


def check_kind(args: argparse.Namespace, of_files: Sequence[str]) -> None:
    """Raise InputError for options that do not fit the kind of conversation: with recordings if `args.input` is set, else live.

    `of_files` are the options that need recordings.
    """
    for name in _LIVE if args.input else of_files:
        if getattr(args, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            if args.input:
                raise InputError(f"{option} is for live conversations", "leave it or --input out")
            raise InputError(f"{option} is for conversations with recordings", "give one with --input")
