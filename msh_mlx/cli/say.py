"""`msh-mlx say`: say a text, on the loudspeaker or into a file, while the text still comes.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..conversation.spoken import Turn, cut, dialogue
from ..errors import InputError
from ..format import FRAME_SECONDS, SAMPLE_RATE
from ..model.ranges import TEMPERATURE, Range
from ..system.inputs import brief, check_file, text_pieces
from ..system.newfile import Output, check_outputs, open_output, output
from ..system.places import user_path
from ..system.signals import Signals
from ..system.streams import StandardOutput
from ..system.words import printable
from .choice import add_model, check_model, choose
from .devices import find_loudspeaker, print_devices
from .options import Parser, add_engine, add_printing, check_wav, computing, display, whole, within
from .speech import as_model_takes, find_voices, read_voice

if TYPE_CHECKING:
    from ..conversation.speaker import Speaker, Spoken
    from ..events import Word
    from ..sound.devices import Device
    from .display import Display

_STDIN = "-"
_STDIN_NAME = "The standard input"
_SPEED = Range(-20, 20)
_DIGITS = frozenset(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx say",
        description="Say a text on the loudspeaker, or write it to a sound file. The text may come from a pipe: it is "
        'spoken while it comes. <break time="1.5s"/> is a pause.',
    )
    to = parser.group("text")
    said = "say these words; - is the standard input, and so is no text at all where it is a pipe or a file"
    to.value("text", "TEXT", said, nargs="*")
    to.value("--file", "FILE", "say the text in this file (UTF-8); - is the standard input")
    to = parser.group("voice")
    named = "speak with this voice: its name, or a file (.safetensors; for a model that goes on from a recording, a sound file)"
    twice = "given twice, the text is a dialogue, in which a line that begins with A: or B: changes the voice"
    to.repeated("--voice", "VOICE", f"{named}; {twice}")
    faster = "speak faster (above 0) or slower (below 0): take this much from the logit of padding; 1 changes little"
    to.value("--speed", "X", f"{faster} (default: 0)", type=within(_SPEED), default=0.0)
    keep = "keep this close to voice and text, such as 1.5 or 3 (default: 2); none: leave this to the model"
    to.value("--cfg", "X", keep, type=_cfg, default=2.0)
    fewer = "compute only this many codebooks: fewer are faster, and sound worse (default: all that the model has)"
    to.value("--codebooks", "N", fewer, type=whole(1))
    temperature = "sample at this temperature; 0 is greedy (default: 0.6)"
    to.value("--temperature", "T", temperature, type=within(TEMPERATURE), default=0.6)
    seed = "seed the sampling: the same seed gives the same speech (default: a new seed every time)"
    to.value("--seed", "N", seed, type=whole(0, 1 << 64))
    to = parser.group("sound")
    to.value(
        "--output",
        "FILE",
        "write the speech to this file (WAV, 24 kHz) in place of playing it; - is the standard output",
    )
    to.value("--output-device", "DEVICE", "use this loudspeaker: its number, or part of its name")
    to.flag("--list-devices", "list the sound devices, mark the defaults, and exit")
    to = parser.group("model")
    add_model(to, "speech")
    add_engine(to)
    add_printing(
        parser.group("program"), as_json="print a JSON object for each word and for what else there is to tell"
    )
    return parser


def _cfg(text: str) -> float | None:
    return None if text.lower() == "none" else within(Range(0, 100))(text)


def run(arguments: list[str], signals: Signals) -> int:
    """Say a text, and return the exit code."""
    args = parser().parse_args(arguments)
    if args.list_devices:
        return print_devices(args, "--output FILE")
    _check(args)
    to_file = output(args.output) if args.output else None
    if to_file:
        check_outputs([to_file], [0 if _is_stdin(args) else user_path(args.file)] if _reads(args) else [])
    _check_text(args)
    device = None if to_file else find_loudspeaker(args)
    choice = choose(args, signals, ("speech",))
    if to_file:
        check_outputs([to_file], choice.files.all)
    voices = [read_voice(path, choice) for path in find_voices(args.voice, args, choice, signals)]

    from ..conversation.load import load_parts
    from ..conversation.speaker import SAMPLER, TEXT_SAMPLER, Speaker
    from ..model.sampling import Sampler, TextSampler

    text_sampler = TextSampler(args.temperature, TEXT_SAMPLER.top_k, padding_bonus=-args.speed)
    with ExitStack() as stack:
        shown = stack.enter_context(display(args, signals))
        with shown.progress(f"Loading {choice.files.model.name}") as progress:
            parts = load_parts(choice.files, choice.checkpoint, **computing(args), progress=progress)
        speaker = Speaker(
            parts.lm,
            parts.mimi,
            parts.tokenizer,
            voices=[as_model_takes(voice, parts) for voice in voices],
            text_sampler=text_sampler,
            audio_sampler=Sampler(args.temperature, SAMPLER.top_k),
            seed=args.seed,
            kv_bits=args.kv_bits,
            codebooks=args.codebooks,
            cfg=args.cfg,
        )
        teller = _Teller(args, shown, is_demo=choice.is_demo)
        stack.callback(teller.end_line)
        out: _ToFile | _Aloud
        if device:
            out = _Aloud(device, stack, teller, signals)
        else:
            assert to_file
            out = _ToFile(to_file, stack, teller, signals)
        _say(speaker, args, out, teller)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    check_model(args)
    if args.file == "":
        raise InputError("The name of the text is empty", "give a file with --file")
    if args.text and args.file is not None:
        raise InputError("--file has the text", "leave the other one out")
    if len(args.voice) > 2:
        raise InputError(f"There are {len(args.voice)} voices", "give two at most")
    if args.output is not None and args.output_device is not None:
        raise InputError("--output-device is for speech that is played", "leave it or --output out")
    if args.output == "":
        raise InputError("The name of the output is empty", "give a file with --output")
    if args.output:
        check_wav(args.output)


# ---- the text ------------------------------------------------------------------------------------------------------------


def _is_stdin(args: argparse.Namespace) -> bool:
    return args.text == [_STDIN] or args.file == _STDIN or (not args.text and args.file is None)


def _reads(args: argparse.Namespace) -> bool:
    """Tell whether the text is read from somewhere."""
    return _is_stdin(args) or args.file is not None


def _is_pipe(args: argparse.Namespace) -> bool:
    """Tell whether the text is in a pipe that has a name, as the shell's <(command) has."""
    return bool(args.file) and args.file != _STDIN and user_path(args.file).is_fifo()


def _check_text(args: argparse.Namespace) -> None:
    """Find mistakes in a text that is there already, before anything is loaded."""
    if _is_pipe(args):
        return
    if not _is_stdin(args):
        if args.file is not None:
            check_file(user_path(args.file), "The text")
        parts = cut(_turns(args, _text(args, lambda: None)))
        if next(parts, None) is None:
            raise _no_text()
        deque(parts, 0)
    elif not args.text and args.file is None and sys.stdin.isatty():
        raise InputError("There is no text", "give it, --file FILE, or - to type it")


def _no_text() -> InputError:
    return InputError("There is nothing to say", "give a text with words")


def _text(args: argparse.Namespace, wait: Any) -> Iterator[str]:
    """Yield the text as it comes. `wait` is called while it does not."""
    if not _reads(args):
        yield " ".join(args.text)
    elif _is_stdin(args):
        yield from text_pieces(0, _STDIN_NAME, wait)
    else:
        path = user_path(args.file)
        with path.open("rb", buffering=0) as file:
            yield from text_pieces(file.fileno(), f"The text {path}", wait)


def _turns(args: argparse.Namespace, pieces: Iterable[str]) -> Iterable[str | Turn]:
    return dialogue(pieces) if len(args.voice) > 1 else pieces


# ---- speaking ------------------------------------------------------------------------------------------------------------


class _Teller:
    """Tells the user which words are spoken when, and what else there is to say.

    With --json it writes one JSON object a line; its `event` is one of

    - `word`: `start` (seconds of this speech), `text`
    - `notice`: `message`
    - `summary`: `seconds` of speech, how many it `took` to make them, and how often the speech broke off (`gaps`)
    """

    def __init__(self, args: argparse.Namespace, shown: Display, *, is_demo: bool) -> None:
        self._json = args.json
        self._shown = shown
        self._is_demo = is_demo
        self._hinted = False
        self._width = 0  # letters on the line, and a space

    def word(self, word: Word) -> None:
        if word.text.strip(".,;!?").lower() not in _DIGITS:
            self.warn(brief(word.text))
        if self._json:
            self._event("word", start=word.start, text=word.text)
            return
        text = printable(word.text)
        if self._width and self._width + len(text) > shutil.get_terminal_size().columns:
            self.end_line()
        line = f" {text}" if self._width else text
        self._width += len(text) + 1  # first: a signal may raise as soon as the word is out
        print(line, end="", flush=True)

    def warn(self, wrong: str = "") -> None:
        """Tell, once, what the demo model can say, and once that a word will sound wrong."""
        if self._is_demo and (wrong or not self._hinted):
            self._hinted, self._is_demo = True, not wrong
            sounds = f"; {wrong} will not sound right" if wrong else ""
            self.note(f"The demo model knows only the words zero to nine{sounds}.")

    def note(self, sentence: str) -> None:
        if self._json:
            self._event("notice", message=sentence)
        else:
            self.end_line()
            self._shown.say(sentence)

    def end(self, seconds: float, took: float, gaps: int, file: Path | None) -> None:
        if self._json:
            self._event("summary", seconds=round(seconds, 3), took=round(took, 3), gaps=gaps)
            return
        self.end_line()
        if file:
            self._shown.say(f"Speech: {file}")
        self._shown.say(f"{seconds:.2f} s of speech in {took:.2f} s: {seconds / took:.1f} × real time")
        if gaps:
            times = "once" if gaps == 1 else f"{gaps} times"
            self._shown.say(f"The speech broke off {times}: this machine is too slow for it; try fewer --codebooks.")

    def _event(self, event: str, **fields: object) -> None:
        print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)

    def end_line(self) -> None:
        if self._width:
            self._width = 0
            print(flush=True)


class _ToFile:
    """Speech that goes to a file. The file appears whole, or not at all."""

    gaps = 0

    def __init__(self, place: Output, stack: ExitStack, teller: _Teller, signals: Signals) -> None:
        from ..sound.recordings import WavWriter

        self.file = place if isinstance(place, Path) else None
        self._output = opened = open_output(place)
        stack.enter_context(opened)
        self._writer = WavWriter(self._output.file, SAMPLE_RATE, 1)
        self._teller = teller
        self._signals = signals

    def put(self, spoken: Spoken) -> None:
        self._writer.write(spoken.pcm)
        if isinstance(self._output, StandardOutput):
            self._output.file.flush()
        for word in spoken.words:
            self._teller.word(word)
        self._signals.check()

    def wait(self) -> None:
        self._signals.check()

    def finish(self) -> None:
        self._writer.finish()
        self._output.commit()


class _Aloud:
    """Speech that is played. A word is told when it is heard."""

    file = None

    def __init__(self, device: Device, stack: ExitStack, teller: _Teller, signals: Signals) -> None:
        from ..sound.playing import Player
        from ..system.log import Log

        signals.end_process = True  # the sound system may not let go of its threads
        self._teller = teller
        self._signals = signals
        self._words: deque[Word] = deque()  # that are not heard yet
        stack.enter_context(Log())
        self._player = stack.enter_context(closing(Player(device, self._look)))

    def put(self, spoken: Spoken) -> None:
        self._words += spoken.words
        self._player.put(spoken.pcm)

    def wait(self) -> None:
        self._player.pause()

    def finish(self) -> None:
        self._player.finish()

    @property
    def gaps(self) -> int:
        return self._player.gaps

    def _look(self) -> None:
        self._signals.check()
        while self._words and self._words[0].start <= self._player.heard:
            self._teller.word(self._words.popleft())


def _say(speaker: Speaker, args: argparse.Namespace, out: _ToFile | _Aloud, teller: _Teller) -> None:
    """Say the text, and tell how long that took without the waiting for text."""
    waited = took = 0.0
    frames, somebody, left_out = 0, False, False

    def text() -> Iterator[str]:
        nonlocal waited
        pieces = _text(args, out.wait)
        while True:
            begin = perf_counter()
            piece = next(pieces, None)
            waited += perf_counter() - begin
            if piece is None:
                return
            yield piece

    speech = speaker.say(_turns(args, text()))
    wrong: InputError | None = None
    while True:
        begin, before = perf_counter(), waited
        try:
            spoken = next(speech, None)
        except InputError as error:
            if not isinstance(out, _Aloud):
                raise
            wrong = error  # say it when the words before were heard
            continue
        took += perf_counter() - begin - (waited - before)
        while speech.notes:
            teller.note(speech.notes.pop(0))
            left_out = True
        if spoken is None:
            break
        frames += 1
        somebody = somebody or bool(spoken.words)
        out.put(spoken)
    if left_out:
        teller.warn()
    if not somebody and not wrong:
        raise _no_text()
    out.finish()
    if wrong:
        raise wrong
    teller.end(frames * FRAME_SECONDS, took, out.gaps, out.file)
