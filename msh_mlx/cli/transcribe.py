"""`msh-mlx transcribe`: write down what recordings say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..errors import InputError
from ..library.files import demo_folder, find_model
from ..system.newfile import NewFile, check_outputs, making, named_folder
from ..system.places import user_path
from ..system.signals import Signals
from .options import Parser, add_config, add_kv_bits, add_printing, display

if TYPE_CHECKING:
    from ..conversation.transcriber import Transcribed, Transcriber
    from .display import Display

_WIDTH = 40  # letters of a line of subtitles
_PAUSE = 1.0  # seconds between words of two subtitles


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx transcribe",
        description="Write down what recordings say, with the time of each word. The text goes to the standard output.",
    )
    to = parser.group()
    heard = "write down these recordings (WAV, FLAC, OGG, MP3, AIFF, AU, CAF); - is the standard input"
    to.value("input", "FILE", heard, nargs="*")
    to.value("--model", "FILE", "load the speech-to-text model from this file (.safetensors)")
    to.value("--mimi", "FILE", "load the codec from this file (.safetensors)")
    to.value(
        "--tokenizer", "FILE", "load the text tokenizer from this file (default: the tokenizer*.model beside the model)"
    )
    add_config(to)
    to.flag("--demo", "use the demo model that comes with the program; it knows English digits")
    to.flag("--srt", "write subtitles, NAME.srt for each recording")
    to.flag("--vtt", "write subtitles for browsers, NAME.vtt for each recording")
    to.value("--output-dir", "FOLDER", "write the files to this folder; it is made if it is missing")
    add_kv_bits(to)
    add_printing(to, as_json="print a JSON object for each word")
    return parser


def run(arguments: list[str], signals: Signals) -> int:
    args = parser().parse_args(arguments)
    _check(args)
    from ..conversation.codec import load_mimi
    from ..conversation.text import load_tokenizer
    from ..conversation.transcriber import Transcriber
    from ..model.step import check_compiling
    from ..system.memory import set_limits
    from ..weights.checkpoint import open_checkpoint

    folder = demo_folder()
    demo = (
        str(folder / "stt" / "model.safetensors"),
        str(folder / "mimi.safetensors"),
        str(folder / "tokenizer.model"),
        None,
    )
    files = find_model(*(demo if args.demo else (args.model, args.mimi, args.tokenizer, args.config)))
    inputs = args.input or [str(folder / "digits.flac")]
    outputs = {path: _outputs(args, path) for path in inputs}
    check_outputs([output for some in outputs.values() for output in some], [*map(user_path, inputs), *files.all])
    check_compiling()
    set_limits()
    checkpoint = open_checkpoint(files.model, files.config)
    with display(args, signals) as shown:
        with shown.progress(f"Loading {files.model.name}") as progress:
            lm = checkpoint.load(progress=progress)
        mimi = load_mimi(files.mimi, num_codebooks=lm.config.user_q)
        transcriber = Transcriber(lm, mimi, load_tokenizer(files.tokenizer), kv_bits=args.kv_bits)
        for path in inputs:
            words = _transcribe(transcriber, path, shown, args, many=len(inputs) > 1)
            for output in outputs[path]:
                with making(output.parent), NewFile(output) as new:
                    new.file.write(_subtitles(words, output.suffix == ".vtt").encode())
                    new.commit()
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if args.demo and (args.model or args.mimi or args.tokenizer or args.config):
        raise InputError("--demo has all files of its own", "leave --model, --mimi, --tokenizer and --config out")
    if not args.demo and not (args.model and args.mimi):
        raise InputError("There is no model", "give --model and --mimi, or --demo")
    if not args.input and not args.demo:
        raise InputError("There is no recording", "give one")
    if args.input.count("-") > 1:
        raise InputError("The standard input can be heard only once", "give - once")
    if args.output_dir and not (args.srt or args.vtt):
        raise InputError("--output-dir is for subtitles", "give --srt or --vtt, too")
    if len({Path(path).stem for path in args.input}) < len(args.input) and (args.srt or args.vtt):
        raise InputError(
            "Two recordings have the same name, and so would their subtitles", "transcribe them one by one"
        )


def _outputs(args: argparse.Namespace, path: str) -> list[Path]:
    """Return the files to write for a recording."""
    stem = "stdin" if path == "-" else Path(path).stem
    folder = named_folder(args.output_dir, "--output-dir") if args.output_dir else Path.cwd()
    return [folder / f"{stem}{ending}" for ending, wanted in ((".srt", args.srt), (".vtt", args.vtt)) if wanted]


def _transcribe(
    transcriber: Transcriber, path: str, shown: Display, args: argparse.Namespace, *, many: bool
) -> list[Transcribed]:
    """Write down one recording, and print it."""
    from ..format import FRAME_SIZE, SAMPLE_RATE
    from ..sound.recordings import open_recording, read_frames

    transcriber.reset()
    words: list[Transcribed] = []
    begin, samples = perf_counter(), 0
    with open_recording(path) as recording, shown.progress(f"Hearing {recording.name}") as progress:
        seconds = recording.samples / recording.rate if recording.samples else None
        for frame in read_frames(recording, SAMPLE_RATE, FRAME_SIZE):
            words += transcriber.push(frame)
            samples += len(frame)
            progress(min(1.0, samples / SAMPLE_RATE / seconds) if seconds else 0.0)
        words += transcriber.flush()
    if args.json:
        for word in words:
            entry = {
                "start": round(word.start, 3),
                "end": None if word.end is None else round(word.end, 3),
                "text": word.text,
            }
            print(json.dumps({"file": recording.name, **entry} if many else entry, ensure_ascii=False), flush=True)
        return words
    if many:
        shown.say(f"{recording.name}:")
    print(" ".join(word.text for word in words), flush=True)
    heard, took = samples / SAMPLE_RATE, perf_counter() - begin
    shown.say(f"{heard:.1f} s in {took:.1f} s, {heard / took:.1f} times as fast as real time")
    return words


def _subtitles(words: Iterable[Transcribed], vtt: bool) -> str:
    """Write subtitles, SRT or WebVTT: lines of some words, each shown until the next, or for a second behind its last word."""
    lines: list[list[Transcribed]] = []
    for word in words:
        line = lines[-1] if lines else []
        new = not line or word.start - (line[-1].end or line[-1].start) > _PAUSE
        if new or sum(len(w.text) + 1 for w in line) + len(word.text) > _WIDTH:
            lines.append([])
        lines[-1].append(word)
    parts = ["WEBVTT\n"] if vtt else []
    for i, line in enumerate(lines):
        last = line[-1]
        end = (last.end or last.start) + _PAUSE
        end = min(end, lines[i + 1][0].start) if i + 1 < len(lines) else end
        times = " --> ".join(_time(seconds, "." if vtt else ",") for seconds in (line[0].start, end))
        number = "" if vtt else f"{i + 1}\n"
        parts.append(f"{number}{times}\n{' '.join(word.text for word in line)}\n")
    return "\n".join(parts)


def _time(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"
