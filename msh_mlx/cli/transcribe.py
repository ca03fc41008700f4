"""`msh-mlx transcribe`: write down what recordings say, or what the microphone hears."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MshError
from ..system.newfile import NewFile, check_outputs, making, named_folder
from ..system.places import user_path
from ..system.signals import Signals
from ..system.streams import check_output
from ..system.words import printable
from .choice import add_model, check_model, choose
from .options import Parser, add_engine, add_printing, computing, display, seconds, whole

if TYPE_CHECKING:
    from ..conversation.session import Parts
    from ..conversation.transcriber import Progress, Transcribed
    from ..format import Pcm
    from ..sound.recordings import Recording
    from .choice import Choice
    from .display import Display

_ROWS = 4  # recordings at once; benchmarks/transcription.py says what more bring
_ENDINGS = ("srt", "vtt")


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx transcribe",
        description="Write down what recordings say, or what the microphone hears. The text goes to the standard output: "
        "a line for each recording, or for each turn.",
    )
    to = parser.group()
    heard = "write down these recordings (WAV, FLAC, OGG, MP3, AIFF, AU, CAF); - is the standard input"
    to.value("input", "FILE", heard, nargs="*")
    add_model(parser.group("model"), "transcription")
    to = parser.group("recordings")
    to.flag("--srt", "write subtitles, NAME.srt for each recording")
    to.flag("--vtt", "write subtitles for browsers, NAME.vtt for each recording")
    to.value(
        "--output-dir", "FOLDER", "write the subtitles to this folder; it is made if it is missing (default: here)"
    )
    to.value("--batch", "N", f"hear up to N recordings at once (default: {_ROWS})", type=whole(1, 65))
    to = parser.group("live")
    to.flag("--live", "write down what the microphone hears, as it comes; a line ends when the speaker pauses")
    to.value("--input-device", "DEVICE", "use this microphone: its number, or part of its name")
    to.value("--duration", "SECONDS", "end after this time", type=seconds)
    to = parser.group("program")
    add_engine(to, ": half the memory, slightly less exact")
    add_printing(
        to, as_json="print a JSON object for each word, one a line: start, end (seconds; null: not known), text"
    )
    return parser


def run(arguments: list[str], signals: Signals) -> int:
    args = parser().parse_args(arguments)
    _check(args)
    check_output()
    return _live(args, signals) if args.live else _recordings(args, signals)


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together, and set the recording of the demo."""
    check_model(args)
    of_other = ("srt", "vtt", "output_dir", "batch") if args.live else ("input_device", "duration")
    for name in of_other:
        if getattr(args, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            what, advice = ("for recordings", "leave it or --live out") if args.live else ("for --live", "give both")
            raise InputError(f"{option} is {what}", advice)
    if args.live and args.input:
        raise InputError("--live hears the microphone, not recordings", "leave one of them out")
    if not args.input and not args.live:
        if not args.demo:
            raise InputError("There is no recording", "give one, or --live for the microphone")
        from ..library.files import demo_folder

        args.input = [str(demo_folder() / "digits.flac")]
    if args.input.count("-") > 1:
        raise InputError("The standard input can be heard only once", "give - once")
    if args.output_dir is not None and not (args.srt or args.vtt):
        raise InputError("--output-dir is for subtitles", "give --srt or --vtt, too")


# ---- recordings ------------------------------------------------------------------------------------------------------------


@dataclass
class _Task:
    """A recording to write down: where it is, what is written, and what has been heard.

    `recording` is open if it can be read only once.
    """

    path: str
    name: str
    outputs: list[Path]
    recording: Recording | None = None
    words: list[Transcribed] = field(default_factory=list)
    printed: int = 0
    seconds: float = 0.0
    ended: bool = False


def _recordings(args: argparse.Namespace, signals: Signals) -> int:
    from ..sound.recordings import STDIN, STDIN_NAME, checked

    folder = Path() if args.output_dir is None else named_folder(args.output_dir, "--output-dir")
    tasks = []
    for path in args.input:
        stem, name = ("stdin", STDIN_NAME.lower()) if path == STDIN else (Path(path).stem, path)
        tasks.append(_Task(path, name, [folder / f"{stem}.{ending}" for ending in _ENDINGS if getattr(args, ending)]))
    outputs = [output for task in tasks for output in task.outputs]
    with ExitStack() as stack:
        if args.output_dir is not None:
            stack.enter_context(making(folder))
        # Find errors here, before gigabytes are fetched.
        check_outputs(outputs, [0 if path == STDIN else user_path(path) for path in args.input])
        for task in tasks:
            task.recording = checked(task.path)
        args.sessions = rows = min(args.batch or _ROWS, len(tasks))
        choice = choose(args, signals, ("transcription",), in_time=False)
        check_outputs(outputs, choice.files.all)
        shown = stack.enter_context(display(args, signals, apart=True))
        parts = _load(choice, args, shown)
        signals.defer()  # so that no word is lost in the middle of something
        _Work(args, tasks, shown, signals).run(parts, rows)
    return 0


def _load(choice: Choice, args: argparse.Namespace, shown: Display) -> Parts:
    from ..conversation.load import load_parts

    with shown.progress(f"Loading {choice.files.model.name}") as progress:
        return load_parts(choice.files, choice.checkpoint, **computing(args), progress=progress)


class _Work:
    """Writes recordings down, and prints them in their order."""

    def __init__(self, args: argparse.Namespace, tasks: list[_Task], shown: Display, signals: Signals) -> None:
        self._args = args
        self._tasks = tasks
        self._shown = shown
        self._signals = signals
        self._next = 0  # the first that is not printed to its end
        self._errors: list[MshError] = []

    def run(self, parts: Parts, rows: int) -> None:
        """Do all of it. Raise the first error of a recording at the end, when the others are complete."""
        from ..conversation.transcriber import transcribe

        sounds = (self._sound(task) for task in self._tasks)
        begin = perf_counter()
        try:
            with self._shown.bar(self._length()) as told:
                ahead = all(task.recording is None for task in self._tasks)
                options = {"rows": rows, "ahead": ahead, "kv_bits": self._args.kv_bits}
                for news in transcribe(parts.lm, parts.mimi, parts.tokenizer, sounds, **options):
                    for progress in news:
                        self._take(progress)
                    self._print()
                    told(sum(task.seconds for task in self._tasks))
        except KeyboardInterrupt:
            for task in self._tasks:
                task.ended = True
            self._print()
            raise
        heard, took = sum(task.seconds for task in self._tasks), perf_counter() - begin
        for task in self._tasks:
            for output in task.outputs:
                self._shown.say(f"Subtitles: {output}")
        self._shown.say(f"{heard:.1f} s of sound in {took:.1f} s: {heard / took:.1f} × real time")
        if self._errors:
            raise self._errors[0]

    def _length(self) -> float | None:
        """Return how long all recordings are together, in seconds; None if that is not known."""
        from ..sound.recordings import open_recording

        total = 0.0
        for task in self._tasks:
            with ExitStack() as stack:
                recording = task.recording or stack.enter_context(open_recording(task.path))
                if recording.samples is None:
                    return None
                total += recording.samples / recording.rate
        return total

    def _sound(self, task: _Task) -> Iterator[Pcm]:
        from ..format import SAMPLE_RATE
        from ..sound.recordings import open_recording, resample

        with task.recording or open_recording(task.path) as recording:
            blocks = resample(recording.blocks(), recording.rate, SAMPLE_RATE)
            while True:
                with self._signals.waiting() if task.recording else nullcontext():
                    block = next(blocks, None)
                while recording.notes:
                    self._shown.say(recording.notes.pop(0))
                if block is None:
                    return
                yield block

    def _take(self, progress: Progress) -> None:
        task = self._tasks[progress.index]
        task.words += progress.words
        task.seconds, task.ended = progress.seconds, progress.ended
        if progress.error:
            if self._errors:  # the first one is raised at the end
                self._shown.say(str(progress.error))
            self._errors.append(progress.error)
        if task.ended:
            from ..conversation.subtitles import srt, vtt

            for output in task.outputs:
                with NewFile(output) as new:
                    new.file.write((vtt if output.suffix == ".vtt" else srt)(task.words).encode())
                    new.commit()

    def _print(self) -> None:
        """Print what is complete: with --json the words of the first recording that has not ended, else recordings."""
        while self._next < len(self._tasks):
            task = self._tasks[self._next]
            if self._args.json:
                self._print_words(task)
            if not task.ended:
                return
            if not self._args.json:
                before = f"{printable(task.name)}: " if len(self._tasks) > 1 else ""
                self._shown.beside(before + " ".join(printable(word.text) for word in task.words))
            task.words = []
            self._next += 1

    def _print_words(self, task: _Task) -> None:
        """Print words as JSON. The newest one waits until its end is known."""
        words = task.words[task.printed :]
        while words and (task.ended or words[0].end is not None):
            word = words.pop(0)
            end = None if word.end is None else round(word.end, 3)
            entry: dict[str, Any] = {"start": round(word.start, 3), "end": end, "text": word.text}
            if len(self._tasks) > 1:
                entry = {"file": task.name, **entry}
            self._shown.beside(json.dumps(entry, ensure_ascii=False))
            task.printed += 1


# ---- live ------------------------------------------------------------------------------------------------------------------


def _live(args: argparse.Namespace, signals: Signals) -> int:
    from rich.console import Console

    from ..conversation.transcriber import Transcriber
    from ..live.dictate import JsonPage, Page, TextPage, dictate
    from ..system.log import Log
    from .display import Display

    choice = choose(args, signals, ("transcription",))
    terminal = sys.stdout.isatty() and not args.plain
    # The standard error as it is now: later it takes what native code complains about.
    with ExitStack() as stack:
        errors = stack.enter_context(os.fdopen(os.dup(2), "w", errors="backslashreplace"))
        console = Console(file=errors, highlight=False)
        plain = args.plain or args.json or not console.is_terminal or console.is_dumb_terminal
        shown = stack.enter_context(Display(console, plain=plain, check=signals.check))
        stack.enter_context(Log())
        page: Page = JsonPage(sys.stdout) if args.json else TextPage(sys.stdout, shown.say, terminal=terminal)

        def load() -> Transcriber:
            parts = _load(choice, args, shown)
            return Transcriber(parts.lm, parts.mimi, parts.tokenizer, kv_bits=args.kv_bits)

        dictate(load, page, signals, input_device=args.input_device, duration=args.duration)
    return 0
