"""The command line. Heavy modules are imported late: help and wrong options are answered at once."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import InputError, MshError
from .signals import Signals, Stopped

if TYPE_CHECKING:
    from .audio import Recording
    from .files import ModelFiles
    from .run import Event, Plan
    from .session import Session
    from .ui import Display


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (default: the process's arguments) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guard(lambda signals: _run(arguments, signals), debug="--debug" in arguments)


def _run(arguments: list[str], signals: Signals) -> int:
    # The conversation takes options only, so that a first word without a dash is a command.
    if not arguments or arguments[0].startswith("-"):
        return _converse(_parser().parse_args(arguments), signals)
    name, *rest = arguments
    if name not in _COMMANDS:
        raise InputError(f"There is no command {name!r}, only {' and '.join(_COMMANDS)}; --help lists the options.")
    return _COMMANDS[name](rest, signals)


# ---- what every program of ours shares -----------------------------------------------------------------------------------


def guard(program: Callable[[Signals], int], *, debug: bool = False) -> int:
    """Run `program` and return its exit code; what goes wrong becomes one line on the standard error.

    `debug` shows the traceback of errors that nobody expected.
    """
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    with Signals() as signals:
        code = _exit_code(program, signals, debug)
        if signals.end_process:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(code)
    return code


def _exit_code(program: Callable[[Signals], int], signals: Signals, debug: bool) -> int:
    try:
        return program(signals)
    except MshError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        _complain("Stopped.")
        return 128 + number
    except BrokenPipeError:
        # Whoever read the standard output has gone, as with `| head`. Python would try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except ModuleNotFoundError as error:
        _complain(f"The module {error.name} is missing; install the program as its README says.")
    except MemoryError:
        _complain("There is not enough memory.")
    except OSError as error:
        _complain(f"{error.filename or 'A file'}: {error.strerror or error}.")
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            _complain(f"An unexpected {type(error).__name__} ended the program ({error}); --debug shows where.")
    return MshError.exit_code


def _complain(message: str) -> None:
    # Without a standard error the exit code has to do.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print("".join(c if c.isprintable() else " " for c in message), file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the options, as `InputError`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        message = message.removeprefix("argument ").rstrip(".")
        raise InputError(f"{message[0].upper()}{message[1:]}; --help lists the options.")


def signed(text: str) -> float:
    """Parse an option that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def number(text: str) -> float:
    """Parse an option that is a finite number ≥ 0."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        if (value := signed(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")


def positive(text: str) -> float:
    """Parse an option that is a finite number > 0."""
    if (value := number(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def share(text: str) -> float:
    """Parse an option that is a number from 0 to 1."""
    if (value := number(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def positive_share(text: str) -> float:
    """Parse an option that is a number above 0 and up to 1."""
    return min(positive(text), share(text))


def whole(least: int, limit: int | None = None) -> Callable[[str], int]:
    """Return a parser for an option that is a whole number ≥ `least` and < `limit`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (limit is not None and value >= limit):
            beyond = "" if limit is None else f" and less than {limit}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more{beyond}")
        return value

    return parse


def _delay(text: str) -> float:
    """Parse a delay in milliseconds and return it in seconds; two frames are under way even if nothing is late."""
    value = number(text)
    if value < 200:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 200 or more")
    return value / 1000


def load_session(
    files: ModelFiles,
    quantized: int | None,
    *,
    voice: Mapping[str, Any],
    text: Mapping[str, Any],
    seed: int | None,
    kv_bits: int | None = None,
    lora: str | None = None,
    lora_scaling: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Session:
    """Set MLX's limits and load a model, what is small first.

    `voice` and `text` are the arguments of `Sampler` and `TextSampler`; the others are as for `load_lm` and `Session`,
    `lora_scaling` None the usual one.

    Raises
    ------
    InputError
        A file or a value is wrong, or the files do not belong together.
    """
    from .codec import load_mimi
    from .config import LmConfig
    from .lora import SCALING
    from .memory import set_limits
    from .sampling import Sampler, TextSampler
    from .session import Session
    from .text import load_tokenizer
    from .weights import load_lm

    set_limits()
    samplers = {"audio_sampler": Sampler(**voice), "text_sampler": TextSampler(**text)}
    config = LmConfig.of(files.config, lora=lora is not None)
    tokenizer = load_tokenizer(files.tokenizer)
    mimi = load_mimi(files.mimi, num_codebooks=max(config.dep_q, config.user_q))
    scaling = SCALING if lora_scaling is None else lora_scaling
    lm = load_lm(files.model, config=config, quantized=quantized, lora=lora, lora_scaling=scaling, progress=progress)
    return Session(lm, mimi, tokenizer, **samplers, seed=seed, kv_bits=kv_bits)


# ---- the conversation, live or with recordings ---------------------------------------------------------------------------

# Options that make sense in one kind of conversation only, as they are spelled and as argparse keeps them.
_FILE_OPTIONS = ("output", "transcript", "output_dir", "stereo", "tail", "steps")
_LIVE_OPTIONS = (
    "input_device",
    "output_device",
    "record",
    "trace",
    "duration",
    "max_delay",
    "mute_start",
    "measure_latency",
)


def _parser() -> Parser:
    from . import __version__

    parser = Parser(
        prog="msh-mlx",
        description="Talk with Moshi; or let it hear a recording (--input) and keep what it says.",
        epilog="Commands: " + "; ".join(f"msh-mlx {name} --help" for name in _COMMANDS) + ".",
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="FILE", help="the language model (.safetensors)")
    add("--mimi", metavar="FILE", help="the codec (.safetensors)")
    add("--tokenizer", metavar="FILE", help="the tokenizer; default: the tokenizer*.model beside the model")
    _add_config(add)
    _add_lora(add)
    add("--quantized", type=int, choices=(4, 8), help="insist that the model has so many bits")
    add("--demo", action="store_true", help="use the small model that comes with the program: it repeats digits")
    add = parser.add_argument_group("live").add_argument
    add("--list-devices", action="store_true", help="list the sound devices and end")
    add("--input-device", metavar="DEVICE", help="the microphone: its number, or a part of its name")
    add("--output-device", metavar="DEVICE", help="the loudspeaker: its number, or a part of its name")
    add("--record", metavar="FOLDER", help="record both voices and the words there, as the conversation goes")
    add("--trace", metavar="FILE", help="write what took how long there (Chrome's trace format; open it in Perfetto)")
    add("--duration", metavar="SECONDS", type=number, help="end after so long")
    add(
        "--max-delay",
        metavar="MS",
        type=_delay,
        help="drop the oldest of what you said once it is late by more than so many milliseconds (default: 400)",
    )
    add("--mute-start", action="store_true", help="begin with the microphone muted")
    add(
        "--measure-latency",
        action="store_true",
        help="play clicks, find them in the microphone, say how long that took, and end",
    )
    add = parser.add_argument_group("recordings").add_argument
    add(
        "--input",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="recordings (WAV, FLAC, OGG, MP3); - is the standard input",
    )
    add("--output", metavar="FILE", help="write Moshi's voice there (WAV)")
    add("--transcript", metavar="FILE", help="write Moshi's words there, one JSON object a line")
    add("--output-dir", metavar="FOLDER", help="write NAME.wav and NAME.jsonl there for every input")
    add("--stereo", action="store_true", help="put the user on the left and Moshi on the right")
    add("--tail", metavar="SECONDS", type=number, help="hear so much silence after the recording (default: 0)")
    add("--steps", metavar="N", type=whole(1), help="stop after N steps (80 ms each)")
    add = parser.add_argument_group("conversation").add_argument
    add("--temperature", metavar="T", type=number, default=0.8, help="of the voice; 0 is greedy (default: %(default)s)")
    add(
        "--text-temperature",
        metavar="T",
        type=number,
        default=0.7,
        help="of the text; 0 is greedy (default: %(default)s)",
    )
    add(
        "--top-k",
        metavar="K",
        type=whole(0),
        default=250,
        help="choices for the voice; 0 is all (default: %(default)s)",
    )
    add(
        "--text-top-k",
        metavar="K",
        type=whole(0),
        default=25,
        help="choices for the text; 0 is all (default: %(default)s)",
    )
    for name, of in (("", "voice"), ("text-", "text")):
        add(
            f"--{name}top-p",
            metavar="P",
            type=positive_share,
            default=1.0,
            help=f"for the {of}, the likeliest choices that together have this probability (default: 1, all)",
        )
        add(
            f"--{name}min-p",
            metavar="P",
            type=share,
            default=0.0,
            help=f"for the {of}, only choices with this share of the likeliest one's probability (default: 0, all)",
        )
    add(
        "--repetition-penalty",
        metavar="X",
        type=positive,
        default=1.0,
        help="make Moshi avoid its last words: above 1, say 1.1 (default: 1, off)",
    )
    add(
        "--repetition-words",
        metavar="N",
        type=whole(1, 1001),
        default=32,
        help="how many of its last words --repetition-penalty looks at (default: %(default)s)",
    )
    add(
        "--padding-bonus",
        metavar="X",
        type=signed,
        default=0.0,
        help="make Moshi talk less (above 0, say 2) or more (below 0; default: 0)",
    )
    add(
        "--kv-bits",
        type=int,
        choices=(8,),
        help="keep what the model remembers in 8 bits: half the memory, a little less exact",
    )
    add(
        "--seed",
        metavar="N",
        type=whole(0, 1 << 64),
        help="the same seed gives the same conversation (default: a new one every time)",
    )
    add = parser.add_argument_group("program").add_argument
    add("--plain", action="store_true", help="print plain lines, also in a terminal")
    add("--json", action="store_true", help="print one JSON object a line for every event (live)")
    add("--debug", action="store_true", help="show where an unexpected error came from")
    add("--version", action="version", version=f"msh-mlx {__version__}")
    return parser


def _add_config(add: Callable[..., object]) -> None:
    add(
        "--config",
        metavar="FILE",
        help="the model's configuration; default: the .json of its name or the config.json beside it, if there is one",
    )


def _add_lora(add: Callable[..., object]) -> None:
    add("--lora", metavar="FILE", help="add the LoRA adapters in this file to the model's weights (.safetensors)")
    add("--lora-scaling", metavar="S", type=number, help="how much of them to add (default: 2)")


def _converse(args: argparse.Namespace, signals: Signals) -> int:
    _check_options(args)
    if args.list_devices:
        return _list_devices(args)
    if args.measure_latency:
        return _measure_latency(args)
    return _with_recordings(args, signals) if args.input else _talk(args, signals)


def _load(files: ModelFiles, args: argparse.Namespace, progress: Callable[[float], None]) -> Session:
    return load_session(
        files,
        args.quantized,
        voice={"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "min_p": args.min_p},
        text={
            "temperature": args.text_temperature,
            "top_k": args.text_top_k,
            "top_p": args.text_top_p,
            "min_p": args.text_min_p,
            "repetition_penalty": args.repetition_penalty,
            "repetition_words": args.repetition_words,
            "padding_bonus": args.padding_bonus,
        },
        kv_bits=args.kv_bits,
        seed=args.seed,
        lora=args.lora,
        lora_scaling=args.lora_scaling,
        progress=progress,
    )


def _list_devices(args: argparse.Namespace) -> int:
    from .devices import list_devices
    from .log import Log

    with Log():
        devices = list_devices(as_json=args.json)
    print(devices)
    return 0


def _measure_latency(args: argparse.Namespace) -> int:
    from .devices import Devices
    from .events import Notice
    from .latency import measure_latency
    from .log import Log

    def notify(notice: Notice) -> None:
        raise MshError(notice.message)

    devices = Devices(args.input_device, args.output_device, notify)
    with Log(), contextlib.closing(devices):
        devices.open()
        ends = {"microphone": devices.microphone.describe(), "loudspeaker": devices.loudspeaker.describe()}
        if not args.json:
            for name, end in ends.items():
                print(f"{name.capitalize()}: {end}", flush=True)
            print("Playing clicks…", flush=True)
        trip = measure_latency(devices.microphone, devices.loudspeaker)
    if args.json:
        print(json.dumps({**ends, **vars(trip)}, ensure_ascii=False))
    else:
        print(
            f"From the loudspeaker's queue to the microphone's: {trip.median:.0f} ms, "
            f"give or take {trip.spread / 2:.0f} ({trip.heard} of {trip.played} clicks heard)"
        )
    return 0


def _talk(args: argparse.Namespace, signals: Signals) -> int:
    from .live import Options, Prepared, talk
    from .tensors import read_header
    from .weights import file_bits

    def prepare() -> Prepared:
        files = _model_files(args)
        bits = None if args.demo else file_bits(read_header(files.model)) or 16
        return Prepared(lambda progress: _load(files, args, progress), bits)

    options = Options(
        input_device=args.input_device,
        output_device=args.output_device,
        record=Path(args.record).expanduser() if args.record else None,
        trace=Path(args.trace).expanduser() if args.trace else None,
        duration=args.duration,
        max_delay=args.max_delay or Options.max_delay,
        muted=args.mute_start,
        plain=args.plain,
        as_json=args.json,
    )
    return talk(prepare, options, signals)


def _with_recordings(args: argparse.Namespace, signals: Signals) -> int:
    files = _model_files(args)
    from .audio import STDIN, open_recording
    from .files import check_outputs

    plans = _plans(args)
    outputs = [path for plan in plans for path in (plan.reply, plan.transcript) if path]
    check_outputs(outputs, [*files.all, *(0 if path == STDIN else Path(path).expanduser() for path in args.input)])
    recordings = [_checked(path) for path in args.input]

    from .run import converse

    with _display(args) as display:

        def listener(event: Event) -> None:
            signals.check()
            display(event)

        begin = perf_counter()
        with display.progress(f"Loading {files.model.name}") as progress:
            session = _load(files, args, _interruptible(progress, signals))
        display.say(f"Loaded {files.model.name} in {perf_counter() - begin:.1f} s")
        for path, recording, plan in zip(args.input, recordings, plans, strict=True):
            session.reset()
            with recording or open_recording(path) as source:
                converse(session, source, plan, listener)
    return 0


def _display(args: argparse.Namespace) -> Display:
    from rich.console import Console

    from .ui import Display

    console = Console(highlight=False)
    return Display(console, plain=args.plain or args.json or not sys.stdout.isatty() or console.is_dumb_terminal)


def _interruptible(progress: Callable[[float], None], signals: Signals) -> Callable[[float], None]:
    def tell(fraction: float) -> None:
        signals.check()
        progress(fraction)

    return tell


def _check_options(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    for name in _LIVE_OPTIONS if args.input else _FILE_OPTIONS:
        if getattr(args, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} is for live conversations; leave it or --input out."
                if args.input
                else f"{option} is for conversations with recordings; give one with --input."
            )
    if args.list_devices or args.measure_latency:
        return
    _check_lora(args)
    if args.demo:
        for name in ("model", "mimi", "tokenizer", "config"):
            if getattr(args, name) is not None:
                raise InputError(f"--demo brings its own model; leave --{name} out.")
    elif not args.model:
        raise InputError("There is no model; give one with --model and --mimi, or try --demo.")
    elif not args.mimi:
        raise InputError("There is no codec; give one with --mimi.")
    if not args.input:
        return
    if args.json:
        raise InputError("--json is for live conversations; --transcript writes the words of a recording's as JSON.")
    if not (args.output or args.transcript or args.output_dir):
        raise InputError("Nothing would be kept; give --output, --transcript or --output-dir.")
    if args.output_dir and (args.output or args.transcript):
        raise InputError("--output-dir names the files itself; leave --output and --transcript out.")
    if len(args.input) > 1 and not args.output_dir:
        raise InputError(
            f"There are {len(args.input)} inputs; give --output-dir in place of --output and --transcript."
        )
    if args.stereo and not (args.output or args.output_dir):
        raise InputError("--stereo needs a sound file to write; give --output.")
    if args.output and Path(args.output).suffix.lower() in (
        ".flac",
        ".ogg",
        ".opus",
        ".mp3",
        ".m4a",
        ".aiff",
        ".jsonl",
    ):
        raise InputError(f"--output writes a WAV file; name it {Path(args.output).with_suffix('.wav').name}, say.")
    if args.input.count("-") > 1:
        raise InputError("The standard input can be heard only once; give - once.")


def _check_lora(args: argparse.Namespace) -> None:
    if args.lora_scaling is not None and args.lora is None:
        raise InputError("--lora-scaling is about the adapters of --lora; give both, or neither.")


def _model_files(args: argparse.Namespace) -> ModelFiles:
    from .files import find_demo, find_model

    return find_demo() if args.demo else find_model(args.model, args.mimi, args.tokenizer, args.config)


def _plans(args: argparse.Namespace) -> list[Plan]:
    """Say for every input what is to be written."""
    from .run import Plan

    def plan(reply: Path | None, transcript: Path | None) -> Plan:
        return Plan(reply, transcript, stereo=args.stereo, tail=args.tail or 0.0, max_steps=args.steps)

    if not args.output_dir:
        return [plan(*(Path(path).expanduser() if path else None for path in (args.output, args.transcript)))]
    folder = Path(args.output_dir).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder {args.output_dir}; make it first.")
    stems = ["stdin" if path == "-" else Path(path).stem for path in args.input]
    return [plan(folder / f"{stem}.wav", folder / f"{stem}.jsonl") for stem in stems]


def _checked(path: str) -> Recording | None:
    """Find out before the model is loaded whether a recording is sound; return it, open, if it can be read only once."""
    from .audio import open_recording

    recording = open_recording(path)
    if not recording.can_reopen:
        return recording
    with recording:
        recording.check()
    return None


# ---- what the commands share ---------------------------------------------------------------------------------------------


def _add_printing(add: Callable[..., object]) -> None:
    add("--plain", action="store_true", help="show no progress, also in a terminal")
    add("--json", action="store_true", help="print the outcome as a JSON object")
    add("--debug", action="store_true", help="show where an unexpected error came from")


# ---- convert -------------------------------------------------------------------------------------------------------------


def _convert_parser() -> Parser:
    parser = Parser(
        prog="msh-mlx convert",
        description="Write a language model, in PyTorch's or MLX's layout, with other bits a weight, for MLX. "
        "Its configuration is written beside it, as OUT with .json in place of .safetensors, where it is found.",
    )
    add = parser.add_argument
    add("model", metavar="IN", help="the language model (.safetensors)")
    add("out", metavar="OUT", help="the file to write (.safetensors)")
    bits = "4, 6 or 8 bits a weight, or 16 for bfloat16"
    add("--bits", type=int, choices=(4, 6, 8, 16), required=True, help=bits)
    add(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        help="weights that share a scale (default: 32 with 4 bits, else 64)",
    )
    add(
        "--keep",
        metavar="PATTERN[=BITS]",
        type=_rule,
        action="append",
        default=[],
        help="other bits (default: 16) for weights with such names, as in --keep '*emb*=8' --keep text_linear; "
        "the first that fits counts",
    )
    _add_config(add)
    _add_lora(add)
    add("--check", action="store_true", help="compare the text logits of before and after on a fixed input")
    _add_printing(add)
    return parser


def _rule(text: str) -> tuple[str, int]:
    """Parse a pattern with bits, or without for 16."""
    pattern, equals, bits = text.partition("=")
    if not pattern or (equals and bits not in ("4", "6", "8", "16")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a pattern, or a pattern = 4, 6, 8 or 16 bits")
    return pattern, int(bits or 16)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _convert(arguments: list[str], signals: Signals) -> int:
    args = _convert_parser().parse_args(arguments)
    _check_lora(args)
    from .convert import Rule, check, convert
    from .files import existing, find_config
    from .lora import SCALING
    from .memory import set_limits

    model = existing(args.model, "model")
    config = existing(args.config, "configuration") if args.config is not None else find_config(model)
    scaling = SCALING if args.lora_scaling is None else args.lora_scaling
    group_size = args.group_size or (32 if args.bits == 4 else 64)
    set_limits()
    divergence = None
    with _display(args) as display:
        begin = perf_counter()
        with display.progress(f"Converting {model.name}") as progress:
            result = convert(
                model,
                args.out,
                bits=args.bits,
                group_size=group_size,
                keep=[Rule(*rule) for rule in args.keep],
                config=config,
                lora=args.lora,
                lora_scaling=scaling,
                progress=_interruptible(progress, signals),
            )
        seconds = perf_counter() - begin
        if not args.json:
            sizes = f"{_size(result.bytes_after)}, from {_size(result.bytes_before)}"
            display.say(f"Wrote {result.path.name} and {result.config.name} in {seconds:.1f} s: {sizes}")
            if result.unpacked:
                some = f"{len(result.unpacked)} weights, such as {result.unpacked[0]}, stay at 16 bits"
                display.say(f"{some}: their rows are no whole number of groups of {group_size}")
        if args.check:
            with display.progress("Comparing before and after") as progress:
                divergence = check(
                    result, model, config, args.lora, scaling, progress=_interruptible(progress, signals)
                )
            if not args.json:
                display.say(
                    f"Text logits of before and after, {divergence.steps} steps: at most {divergence.largest:.3g} apart; "
                    f"mean KL divergence {divergence.kl:.3g}; the same best token in {100 * divergence.agree:.1f} %"
                )
    if args.json:
        outcome = {
            "model": str(result.path),
            "config": str(result.config),
            "bytes_before": result.bytes_before,
            "bytes_after": result.bytes_after,
            "unpacked": result.unpacked,
            "seconds": seconds,
            "divergence": vars(divergence) if divergence else None,
        }
        print(json.dumps(outcome, ensure_ascii=False))
    return 0


# ---- bench ---------------------------------------------------------------------------------------------------------------


def _bench_parser() -> Parser:
    parser = Parser(
        prog="msh-mlx bench",
        description="Measure how fast a model is on this machine, and print a table to paste. "
        "Without --model or --size it is the small model that comes with the program.",
    )
    add = parser.add_argument
    add("--model", metavar="FILE", help="the language model (.safetensors)")
    add("--mimi", metavar="FILE", help="the codec (.safetensors), to be measured, too")
    _add_config(add)
    add("--quantized", type=int, choices=(4, 8), help="insist that the model has so many bits")
    add("--size", choices=("7b", "1b"), help="random weights of this size, made in memory, in place of a model")
    add("--bits", type=int, choices=(4, 6, 8, 16), help="of the random weights (default: 4)")
    add("--steps", metavar="N", type=whole(1), default=100, help="to measure (default: %(default)s)")
    add("--kv-bits", type=int, choices=(8,), help="keep keys and values in 8 bits")
    _add_printing(add)
    return parser


def _bench(arguments: list[str], signals: Signals) -> int:
    args = _bench_parser().parse_args(arguments)
    if args.size and (args.model or args.config or args.quantized):
        raise InputError("--size makes a model; leave --model, --config and --quantized out.")
    if args.bits and not args.size:
        raise InputError("--bits is for random weights; give --size with it.")
    if (args.config or args.quantized) and not args.model:
        raise InputError("--config and --quantized are for a model; give one with --model.")
    from .bench import SIZES, measure, random_lm
    from .codec import load_mimi
    from .config import LmConfig
    from .files import existing, find_config, find_demo
    from .memory import set_limits
    from .weights import default_dtype, load_lm

    set_limits()
    codec = existing(args.mimi, "codec") if args.mimi is not None else None
    with _display(args) as display:
        if args.size:
            bits = args.bits or 4
            config, name = SIZES[args.size], f"{args.size}, random weights"
            with display.progress(f"Making {name}") as progress:
                group = 32 if bits == 4 else 64
                lm = random_lm(config, bits, group, 0, default_dtype(), _interruptible(progress, signals))
        else:
            if args.model:
                model = existing(args.model, "model")
                given = existing(args.config, "configuration") if args.config is not None else find_config(model)
            else:
                demo = find_demo()
                model, given, codec = demo.model, demo.config, codec or demo.mimi
            config, name = LmConfig.of(given), model.name
            with display.progress(f"Loading {name}") as progress:
                lm = load_lm(model, config, quantized=args.quantized, progress=_interruptible(progress, signals))
        mimi = load_mimi(codec, num_codebooks=max(config.dep_q, config.user_q)) if codec else None
        with display.progress("Measuring") as progress:
            outcome = measure(
                lm, name, mimi, steps=args.steps, kv_bits=args.kv_bits, progress=_interruptible(progress, signals)
            )
    print(json.dumps(outcome.as_dict(), ensure_ascii=False) if args.json else outcome.table())
    return 0


_COMMANDS: dict[str, Callable[[list[str], Signals], int]] = {"bench": _bench, "convert": _convert}
