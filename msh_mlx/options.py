"""What the programs share: how they end, how options are read, and how a session is loaded from them.

Heavy modules are imported late: help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import InputError, MshError
from .places import mend_environment, user_path
from .ranges import LORA_SCALING, PADDING_BONUS, REPETITION_PENALTY, TEMPERATURE, Range
from .signals import Signals, Stopped
from .streams import check_output, end_standard, open_standard

if TYPE_CHECKING:
    from .events import Notice
    from .files import ModelFiles
    from .live import Options
    from .session import Parts, Session
    from .ui import Display


TOKEN = "MSH_TOKEN"  # of the environment


def guard(program: Callable[[Signals], int], *, debug: bool = False) -> int:
    """Run `program` and return its exit code; what goes wrong becomes one line on the standard error.

    `debug` shows the traceback of errors that nobody expected.
    """
    open_standard()
    mend_environment()
    with Signals() as signals:
        code = _exit_code(program, signals, debug)
        end_standard()
        if signals.end_process:
            os._exit(code)
    return code


def _exit_code(program: Callable[[Signals], int], signals: Signals, debug: bool) -> int:
    try:
        try:
            code = program(signals)
            sys.stdout.flush()
            return code
        except BaseException:
            # What a signal interrupts may raise anything: a native module that is being imported, a panic of Rust.
            signals.check()
            raise
    except MshError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        _complain("Stopped.")
        return 128 + number
    except BrokenPipeError:
        pass  # whoever read the standard output has gone, as with `| head`
    except ModuleNotFoundError as error:
        _complain(f"The module {error.name} is missing; install the program as its README says.")
    except MemoryError:
        _complain("There is not enough memory.")
    except OSError as error:
        _complain(f"{error.filename or 'A file'}: {error.strerror or error}.")
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif said := _explained(error):
            _complain(str(said))
        else:
            _complain(f"An unexpected {type(error).__name__} ended the program ({error}); --debug shows where.")
    return MshError.exit_code


def _explained(error: Exception) -> MshError | None:
    if "mlx.core" not in sys.modules:
        return None
    from .position import explain

    return explain(error)


def _complain(message: str) -> None:
    # Where the standard error takes nothing, the exit code has to do.
    with contextlib.suppress(OSError, ValueError):
        print("".join(c if c.isprintable() else " " for c in message), file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the options, as `InputError`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        message = message.removeprefix("argument ").rstrip(".")
        raise InputError(f"{message[0].upper()}{message[1:]}; --help lists the options.")

    def _print_message(self, message: str, file: Any = None) -> None:
        check_output()  # help and version are all that there is to get
        sys.stdout.write(message)
        sys.stdout.flush()


def number(text: str) -> float:
    """Parse an option that is a finite number ≥ 0."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
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


def within(values: Range) -> Callable[[str], float]:
    """Return a parser for an option that is a number of a range."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if values.has(value := float(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {values}")

    return parse


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
    `lora_scaling` None what the configurations say.

    Raises
    ------
    InputError
        A file or a value is wrong, or the files do not belong together.
    """
    from .sampling import Sampler, TextSampler
    from .session import Session

    samplers = {"audio_sampler": Sampler(**voice), "text_sampler": TextSampler(**text)}
    parts = load_parts(files, quantized, lora=lora, lora_scaling=lora_scaling, progress=progress)
    return Session(parts.lm, parts.mimi, parts.tokenizer, **samplers, seed=seed, kv_bits=kv_bits)


def load_parts(
    files: ModelFiles,
    quantized: int | None,
    *,
    lora: str | None = None,
    lora_scaling: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Parts:
    """Set MLX's limits and load what sessions share; arguments and errors are those of `load_session`."""
    from .codec import load_mimi
    from .config import LmConfig
    from .memory import set_limits
    from .position import check_compiling
    from .session import Parts
    from .text import check_vocabulary, load_tokenizer
    from .weights import load_lm, open_checkpoint

    check_compiling()
    set_limits()
    config = LmConfig.of(files.config, lora=lora is not None)
    tokenizer = load_tokenizer(files.tokenizer)
    # Before gigabytes are read; what is wrong with the model itself comes first.
    open_checkpoint(files.model, config, quantized, lora=lora is not None)
    check_vocabulary(tokenizer, config.text_card)
    mimi = load_mimi(files.mimi, num_codebooks=max(config.dep_q, config.user_q))
    lm = load_lm(
        files.model, config=config, quantized=quantized, lora=lora, lora_scaling=lora_scaling, progress=progress
    )
    return Parts(lm, mimi, tokenizer)


def add_printing(add: Callable[..., object]) -> None:
    add("--plain", action="store_true", help="show no progress, also in a terminal")
    add("--json", action="store_true", help="print the outcome as a JSON object")
    add("--debug", action="store_true", help="show where an unexpected error came from")


def add_config(add: Callable[..., object], name: str = "--config") -> None:
    add(
        name,
        dest="config",
        metavar="FILE",
        help="the model's configuration; default: the .json of its name or the config.json beside it, if there is one",
    )


def add_lora(add: Callable[..., object]) -> None:
    scaling = "how much of them to add (default: what the configuration beside them, or else the model's, says; else 2)"
    add("--lora", metavar="FILE", help="add the LoRA adapters in this file to the model's weights (.safetensors)")
    add("--lora-scaling", metavar="S", type=within(Range(0, LORA_SCALING.most)), help=scaling)


def add_sampling(add: Callable[..., object], *, remote: bool = False) -> None:
    """Add the options of how Moshi talks.

    With `remote` there are only those that the wire protocol knows, and what is not given is None: the server has its own.
    """

    def option(name: str, default: float, said: str, help: str, **options: Any) -> None:
        value, said = (None, "the server's") if remote else (default, said)
        add(name, default=value, help=help.format(f"default: {said}"), **options)

    option("--temperature", 0.8, "0.8", "of the voice; 0 is greedy ({})", metavar="T", type=within(TEMPERATURE))
    option("--text-temperature", 0.7, "0.7", "of the text; 0 is greedy ({})", metavar="T", type=within(TEMPERATURE))
    option("--top-k", 250, "250", "choices for the voice; 0 is all ({})", metavar="K", type=whole(0))
    option("--text-top-k", 25, "25", "choices for the text; 0 is all ({})", metavar="K", type=whole(0))
    for name, of in () if remote else (("", "voice"), ("text-", "text")):
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
    avoid = "make Moshi avoid its last words: above 1, say 1.1 ({})"
    option("--repetition-penalty", 1.0, "1, off", avoid, metavar="X", type=within(REPETITION_PENALTY))
    looks = "how many of its last words --repetition-penalty looks at ({})"
    option("--repetition-words", 32, "32", looks, metavar="N", type=whole(1, 1001))
    less = "make Moshi talk less (above 0, say 2) or more (below 0; {})"
    option("--padding-bonus", 0.0, "0", less, metavar="X", type=within(PADDING_BONUS))
    if not remote:
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


def samplers(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return `voice` and `text` for `load_session`, from the options of `add_sampling`."""
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
    }


def display(args: argparse.Namespace) -> Display:
    from rich.console import Console

    from .ui import Display

    console = Console(highlight=False)
    return Display(console, plain=args.plain or args.json or not sys.stdout.isatty() or console.is_dumb_terminal)


def interruptible(progress: Callable[[float], None], signals: Signals) -> Callable[[float], None]:
    def tell(fraction: float) -> None:
        signals.check()
        progress(fraction)

    return tell


def own_token(args: argparse.Namespace) -> str | None:
    """Return the token of `--token`, else of the environment; raise InputError for one that an address cannot have."""
    token: str | None = args.token or os.environ.get(TOKEN) or None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise InputError(
            "The token has spaces or other characters that an address cannot have; take letters and digits."
        )
    return token


def check_lora(args: argparse.Namespace) -> None:
    if args.lora_scaling is not None and args.lora is None:
        raise InputError("--lora-scaling is about the adapters of --lora; give both, or neither.")


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


def add_live(add: Callable[..., object]) -> None:
    """Add the options of live conversations."""
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
        "--echo",
        choices=("auto", "on", "off"),
        help="take the loudspeaker's echo out of the microphone's sound: if there is one, always, or never (default: auto)",
    )
    add("--noise-suppression", action="store_true", help="take steady noise out of the microphone's sound")
    add("--gain-control", action="store_true", help="bring your voice to the same level, however far you are")
    add(
        "--measure-latency",
        action="store_true",
        help="play clicks, find them in the microphone, say how long that took, and end",
    )


def _delay(text: str) -> float:
    """Parse a delay in milliseconds and return it in seconds; two frames are under way even if nothing is late."""
    value = number(text)
    if value < 200:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 200 or more")
    return value / 1000


def live_options(args: argparse.Namespace) -> Options:
    """Return what the options of `add_live` and of the program say."""
    from .files import file_output
    from .live import Options

    return Options(
        input_device=args.input_device,
        output_device=args.output_device,
        record=user_path(args.record) if args.record else None,
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
    """Raise InputError for options of another kind of conversation than `args.input` says; `of_files` need recordings."""
    for name in _LIVE if args.input else of_files:
        if getattr(args, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} is for live conversations; leave it or --input out."
                if args.input
                else f"{option} is for conversations with recordings; give one with --input."
            )


def print_devices(args: argparse.Namespace) -> int:
    check_output()
    from .devices import list_devices
    from .log import Log

    with Log():
        devices = list_devices(as_json=args.json)
    print(devices)
    return 0


def print_latency(args: argparse.Namespace) -> int:
    check_output()
    from .devices import Devices
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
