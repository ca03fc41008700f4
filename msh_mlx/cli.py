"""The command line. Heavy modules are imported late: help and wrong options are answered at once."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import InputError, MshError

if TYPE_CHECKING:
    from .audio import Recording
    from .files import ModelFiles
    from .run import Event, Plan
    from .session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (default: the process's arguments) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The conversation takes options only, so that a first word without a dash is free for commands.
    return guard(lambda signals: _converse(_parser().parse_args(arguments), signals), debug="--debug" in arguments)


# ---- what every program of ours shares -----------------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """The user or the system asked the program to end, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """While entered, raises `Stopped` in the main thread when the program is asked to end."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._received: int | None = None

    def check(self) -> None:
        """Raise `Stopped` if a signal came whose exception got lost in a callback of some library."""
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        # Once is enough: the cleaning up that follows shall not be interrupted.
        for other in self._before:
            signal.signal(other, signal.SIG_IGN)
        self._received = number
        raise Stopped(number)

    def __enter__(self) -> Signals:
        for number in self._NUMBERS:
            # `nohup` ignores SIGHUP on purpose. (SIGINT is ignored by accident in scripts, behind "&".)
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                try:
                    self._before[number] = signal.signal(number, self._receive)
                except ValueError:  # not the main thread, which alone gets signals
                    break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def guard(program: Callable[[Signals], int], *, debug: bool = False) -> int:
    """Run `program` and return its exit code; what goes wrong becomes one line on the standard error.

    `debug` shows the traceback of errors that nobody expected.
    """
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        with Signals() as signals:
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
            raise
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


def number(text: str) -> float:
    """Parse an option that is a finite number ≥ 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


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
    voice: tuple[float, int],
    text: tuple[float, int],
    seed: int | None,
) -> Session:
    """Load a model, what is small first; `voice` and `text` are temperature and top-k.

    Raises
    ------
    InputError
        A file is wrong, or the files do not belong together.
    """
    from .codec import load_mimi
    from .config import LmConfig
    from .sampling import Sampler
    from .session import Session
    from .text import load_tokenizer
    from .weights import load_lm

    config = LmConfig.of(files.config)
    tokenizer = load_tokenizer(files.tokenizer)
    mimi = load_mimi(files.mimi, num_codebooks=max(config.dep_q, config.user_q))
    lm = load_lm(files.model, config=config, quantized=quantized)
    return Session(lm, mimi, tokenizer, text_sampler=Sampler(*text), audio_sampler=Sampler(*voice), seed=seed)


# ---- the conversation with recordings ------------------------------------------------------------------------------------


def _parser() -> Parser:
    from . import __version__

    parser = Parser(
        prog="msh-mlx", description="Let Moshi hear a recording, and keep what it says as sound and as text."
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="FILE", help="the language model (.safetensors)")
    add("--mimi", metavar="FILE", help="the codec (.safetensors)")
    add("--tokenizer", metavar="FILE", help="the tokenizer; default: the tokenizer*.model beside the model")
    add(
        "--config",
        metavar="FILE",
        help="the model's configuration; default: the config.json beside it, if there is one",
    )
    add("--quantized", type=int, choices=(4, 8), help="insist that the model has so many bits")
    add("--demo", action="store_true", help="use the small model that comes with the program: it repeats digits")
    add = parser.add_argument_group("sound").add_argument
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
    add(
        "--tail",
        metavar="SECONDS",
        type=number,
        default=0.0,
        help="hear so much silence after the recording (default: 0)",
    )
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
    add(
        "--seed",
        metavar="N",
        type=whole(0, 1 << 64),
        help="the same seed gives the same conversation (default: a new one every time)",
    )
    add("--steps", metavar="N", type=whole(1), help="stop after N steps (80 ms each)")
    add = parser.add_argument_group("program").add_argument
    add("--plain", action="store_true", help="print plain lines, also in a terminal")
    add("--debug", action="store_true", help="show where an unexpected error came from")
    add("--version", action="version", version=f"msh-mlx {__version__}")
    return parser


def _converse(args: argparse.Namespace, signals: Signals) -> int:
    _check_options(args)
    files = _model_files(args)
    from .audio import STDIN, open_recording
    from .files import check_outputs

    plans = _plans(args)
    outputs = [path for plan in plans for path in (plan.reply, plan.transcript) if path]
    check_outputs(outputs, [*files.all, *(0 if path == STDIN else Path(path).expanduser() for path in args.input)])
    recordings = [_checked(path) for path in args.input]

    from rich.console import Console

    from .run import converse
    from .ui import Display

    console = Console(highlight=False)
    plain = args.plain or not sys.stdout.isatty() or console.is_dumb_terminal
    with Display(console, plain=plain) as display:

        def listener(event: Event) -> None:
            signals.check()
            display(event)

        begin = perf_counter()
        with display.busy(f"Loading {files.model.name}"):
            session = load_session(
                files,
                args.quantized,
                voice=(args.temperature, args.top_k),
                text=(args.text_temperature, args.text_top_k),
                seed=args.seed,
            )
        display.say(f"Loaded {files.model.name} in {perf_counter() - begin:.1f} s")
        for path, recording, plan in zip(args.input, recordings, plans, strict=True):
            session.reset()
            with recording or open_recording(path) as source:
                converse(session, source, plan, listener)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if not args.input:
        raise InputError("A live conversation is not possible yet; give a recording with --input.")
    if args.demo:
        for name in ("model", "mimi", "tokenizer", "config"):
            if getattr(args, name) is not None:
                raise InputError(f"--demo brings its own model; leave --{name} out.")
    elif not args.model:
        raise InputError("There is no model; give one with --model and --mimi, or try --demo.")
    elif not args.mimi:
        raise InputError("There is no codec; give one with --mimi.")
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


def _model_files(args: argparse.Namespace) -> ModelFiles:
    from .files import find_demo, find_model

    return find_demo() if args.demo else find_model(args.model, args.mimi, args.tokenizer, args.config)


def _plans(args: argparse.Namespace) -> list[Plan]:
    """Say for every input what is to be written."""
    from .run import Plan

    def plan(reply: Path | None, transcript: Path | None) -> Plan:
        return Plan(reply, transcript, stereo=args.stereo, tail=args.tail, max_steps=args.steps)

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
