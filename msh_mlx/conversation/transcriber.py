"""`Transcriber`: speech to text, by a model that only hears; and several recordings at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import numpy.typing as npt
import sentencepiece

from ..errors import InputError, MshError
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from ..model.engine import LanguageModel, Listeners
from ..model.families import family_of
from ..model.families.stt import PAUSE_HEAD, Timing, WordTimes
from ..model.families.stt import Word as Tokens
from ..model.generate import one_at_a_time
from ..model.ranges import Range
from ..system.inputs import brief
from .codec import Mimi, check_codec, check_pcm
from .text import check_vocabulary
from .turns import EndOfTurn

BEHIND = 1.0  # seconds of silence behind a recording, beyond the model's delay
_BEHIND = Range(0, 60)
_SPACE = "\u2581"  # SentencePiece's sign for a space inside a piece
_ONCE = 64  # frames that are encoded at once
_STEPS = 16  # steps of recordings between two looks at what was written
_NEAR = 0.3  # seconds between the beginnings that one word has, with and without the sound behind it
_LONGEST = 13  # frames that a word which has begun may take, after the end of the sound


@dataclass
class Transcribed:
    """A word that was heard: its text, and when it begins and ends, in seconds of the sound.

    The model tells the end of a word only by the beginning of the next one. Until then `end` is None; then it is set.
    """

    text: str
    start: float
    end: float | None = None


class Transcriber:
    """Writes down what it hears. Pass sound to `push`, of any length, and get the words that it completes.

    A transcriber may be made on one thread and used on another, but by one at a time: two at once get an `InUseError`.
    Several may share the model and the codec.

    Parameters
    ----------
    lm
        A speech-to-text model, as from `load_lm`.
    mimi
        As from `load_mimi`, with as many codebooks as `lm` hears.
    tokenizer
        As from `load_tokenizer`, with the vocabulary of `lm`.
    kv_bits
        As for `Session`.

    Raises
    ------
    InputError
        The model is of another family, or the parts do not belong together.
    """

    def __init__(
        self,
        lm: LanguageModel,
        mimi: Mimi,
        tokenizer: sentencepiece.SentencePieceProcessor,
        *,
        kv_bits: int | None = None,
    ) -> None:
        check_parts(lm, mimi, tokenizer)
        self._in_use = Lock()
        self._listener = lm.listen(kv_bits=kv_bits)
        self._stream = _Stream(lm, mimi, tokenizer)

    def reset(self) -> None:
        """Forget all that was heard. The times of the next words begin at 0.

        Raises
        ------
        InUseError
            Another thread is using the transcriber.
        """
        with one_at_a_time(self._in_use):
            self._listener.reset()
            self._stream.reset()

    def warm_up(self) -> None:
        """Compile everything now, so that the first words come as soon as later ones; the state does not change.

        MLX compiles for each thread: call this on the thread that will call `push`.
        """
        with one_at_a_time(self._in_use):
            self._listener.warm_up()

    def push(self, pcm: Pcm) -> list[Transcribed]:
        """Take more of the sound, and return the words that it completes.

        Parameters
        ----------
        pcm
            `[n]` float32 at 24 kHz in [−1, 1], of any length. What does not fill a frame of 80 ms waits for the rest.

        Raises
        ------
        InputError
            `pcm` has another shape or dtype, or samples that are not finite; nothing was heard then.
        InUseError
            Another thread is using the transcriber.
        """
        check_pcm(pcm, "sound")
        with one_at_a_time(self._in_use):
            self._stream.take(pcm)
            return _hear(self._stream, self._listener)

    def flush(self, behind: float = FRAME_SECONDS) -> list[Transcribed]:
        """End a turn: return the words that are still on their way, without waiting for the sound behind them.

        They are what the model would write if the sound ended here: if silence followed, as long as its delay, and `behind`
        seconds more, and then until the last word is complete, for a second at most. The state stays as it is. So sound that
        is pushed later follows what was pushed before, and words that were returned here do not come again.

        Raises
        ------
        InputError
            `behind` is not a number from 0 to 60.
        InUseError
            Another thread is using the transcriber.
        """
        check_behind(behind)
        with one_at_a_time(self._in_use):
            stream, listener = self._stream.copy(), self._listener.copy()
            stream.end(behind)
            words = _hear(stream, listener) + stream.close()
            self._stream.tell(words)
            return words

    @property
    def pause(self) -> float | None:
        """The probability that the speaker has paused for some two seconds. None: the model does not say, or heard nothing."""
        return self._stream.turn.pause

    @property
    def turn_ended(self) -> bool:
        """Whether the speaker has ended a turn, which `flush` has not ended yet.

        The model's extra heads say so: `pause` is above 0.5 for some steps after text. Without extra heads, sound was followed
        by 1.5 s of quiet.
        """
        return self._stream.turn.ended

    @property
    def seconds(self) -> float:
        """How much sound was pushed, in seconds."""
        return self._stream.seconds


def _hear(stream: _Stream, listener: Listeners) -> list[Transcribed]:
    """Let the model hear what waits in a stream."""
    words: list[Transcribed] = []
    while len(codes := stream.next(_ONCE)):
        heard = listener.hear(codes[:, None])
        words += stream.write(heard.tokens[:, 0], heard.heads[:, 0])
    return words


@dataclass
class Progress:
    """What became of a recording since the last time: the words that are complete, and how much was heard, in seconds.

    With `ended`, nothing more follows. `error` says that this recording could not be read to its end.
    """

    index: int
    seconds: float
    words: list[Transcribed] = field(default_factory=list)
    ended: bool = False
    error: MshError | None = None


def transcribe(
    lm: LanguageModel,
    mimi: Mimi,
    tokenizer: sentencepiece.SentencePieceProcessor,
    sounds: Iterable[Iterator[Pcm]],
    *,
    rows: int = 1,
    ahead: bool = True,
    kv_bits: int | None = None,
) -> Iterator[list[Progress]]:
    """Write down several recordings, `rows` at a time in one batch, each as a `Transcriber` would alone.

    Yield the progress of all that are under way, after every second or so of their sound. `sounds` are taken one after the
    other, when a row is free; each yields sound as `Transcriber.push` takes it. With `ahead` another thread takes sound and
    runs the codec while the model works. Without it nothing is waited for that is not needed, which suits sound that comes as
    it is made. The other arguments are as for `Transcriber`. An `MshError` that a sound raises ends this one, with what was
    heard before.

    A recording is heard by one row, from its beginning to its end. It is not cut into stretches for several rows: a stretch
    would begin without what the model remembers (a minute, with the published models), and other words could come out.

    Raises
    ------
    InputError
        The model is of another family, or the parts do not belong together.
    """
    works = Rows(lm, mimi, tokenizer, rows, kv_bits=kv_bits)
    waiting = enumerate(sounds)
    with ThreadPoolExecutor(1, "codec") as codec:
        while True:
            while works.free and (following := next(waiting, None)) is not None:
                works.join(*following)
            if not works:
                return
            yield works.step(codec if ahead else None)


class Rows:
    """Rows of one batch, each of which hears a recording. Recordings join and leave between steps. Its length is their number.

    The arguments are as for `Transcriber`, with the number of rows. `steps` is how many are run at once.

    Raises
    ------
    InputError
        The model is of another family, or the parts do not belong together.
    """

    def __init__(
        self,
        lm: LanguageModel,
        mimi: Mimi,
        tokenizer: sentencepiece.SentencePieceProcessor,
        rows: int,
        *,
        steps: int = _STEPS,
        kv_bits: int | None = None,
    ) -> None:
        check_parts(lm, mimi, tokenizer)
        self._n_q = lm.config.n_q
        self._steps = steps
        self._listeners = lm.listen(rows, kv_bits=kv_bits)
        self._streams = [_Stream(lm, mimi, tokenizer) for _ in range(rows)]
        self._works: dict[int, _Work] = {}  # by row

    def __len__(self) -> int:
        return len(self._works)

    @property
    def free(self) -> int:
        """How many rows are free."""
        return len(self._streams) - len(self._works)

    def join(self, index: int, sound: Iterator[Pcm]) -> None:
        """Give a recording a free row. Its progress comes with `index`."""
        row = next(row for row in range(len(self._streams)) if row not in self._works)
        self._streams[row].reset()
        self._works[row] = _Work(index, sound, self._streams[row], self._steps)

    def leave(self, index: int) -> None:
        """End a recording before its end, if it is here."""
        self._works = {row: work for row, work in self._works.items() if work.index != index}

    def step(self, codec: ThreadPoolExecutor | None) -> list[Progress]:
        """Hear some more of all recordings, while `codec` makes the codes of what follows. Those that have ended leave."""
        works = self._works
        given = {row: work.next() for row, work in works.items()}
        codes = np.zeros((max(map(len, given.values())), len(self._streams), self._n_q), np.int32)
        for row, some in given.items():
            codes[: len(some), row] = some
        # A thread, because MLX lets only a few steps wait: the call returns late.
        prepared = codec.submit(_prepare, list(works.values())) if codec else None
        heard = self._listeners.hear(codes)
        if prepared:
            prepared.result()
        told = {
            row: works[row].write(heard.tokens[: len(some), row], heard.heads[: len(some), row])
            for row, some in given.items()
        }
        self._works = {row: work for row, work in works.items() if not told[row].ended}
        return list(told.values())


def _prepare(works: Iterable[_Work]) -> None:
    for work in works:
        work.prepare()


def check_behind(behind: float) -> None:
    """Raise InputError if `behind` cannot be the silence behind a turn."""
    if not _BEHIND.has(behind):
        raise InputError(f"The silence behind the sound is {brief(behind)}", f"{_BEHIND} is expected, in seconds")


def check_parts(lm: LanguageModel, mimi: Mimi, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    """Raise InputError if the model does not write down speech, or if the parts do not belong together."""
    config, family = lm.config, family_of(lm.config)
    if family.name != "stt":
        raise InputError(f"The model is {family.title}, not one that writes down speech", "give a speech-to-text model")
    check_vocabulary(tokenizer, config.text_card)
    check_codec(mimi, config)


def spelled(word: Tokens, tokenizer: sentencepiece.SentencePieceProcessor) -> list[tuple[float, str]]:
    """Turn the tokens of a word into text, with the time of its beginning.

    Pieces that begin with a space are words of their own. The later ones begin where a token 0 would have stood, a step before
    the piece.
    """
    parts: list[tuple[float, list[int]]] = []
    for token, time in zip(word.tokens, word.times, strict=True):
        if not parts or tokenizer.IdToPiece(token).startswith(_SPACE):
            parts.append((max(word.start, time - FRAME_SECONDS) if parts else word.start, []))
        parts[-1][1].append(token)
    return [(start, text) for start, tokens in parts if (text := tokenizer.DecodeIds(tokens).strip())]


class _Stream:
    """One stream of sound on its way to words: sound to codes, and tokens to words; the model's steps are between them."""

    def __init__(self, lm: LanguageModel, mimi: Mimi, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self._tokenizer = tokenizer
        self._config = lm.config
        self._timing = Timing.of(lm.config)
        self._encoder = mimi.encoder()
        self.reset()

    def reset(self) -> None:
        self._encoder.reset()
        self._begun = False
        self._words = WordTimes(self._timing)
        self._last: tuple[Tokens, Transcribed] | None = None
        self._told: list[Transcribed] = []  # before the model wrote them here
        self._rest = np.zeros(round(self._timing.prefix * SAMPLE_RATE), np.float32)
        self._ready: npt.NDArray[np.int32] | None = None  # codes of the next steps
        self._samples = self._more = 0
        self.turn = EndOfTurn()

    def copy(self) -> _Stream:
        """Return a stream that goes on from the state of this one, on its own."""
        other = copy(self)
        other._encoder, other._words = self._encoder.copy(), self._words.copy()
        other._told, other.turn = list(self._told), copy(self.turn)
        return other

    def tell(self, words: list[Transcribed]) -> None:
        """End a turn. Its last words were told already, by a copy of this stream."""
        self._told += words
        self.turn.end()

    @property
    def seconds(self) -> float:
        """How much sound was taken."""
        return self._samples / SAMPLE_RATE

    @property
    def frames(self) -> int:
        """How many frames wait."""
        return len(self._rest) // FRAME_SIZE

    @property
    def done(self) -> bool:
        """Whether all words are complete, after `end`."""
        return self._ready is None and not self.frames and not (self._more and self._words.open)

    def take(self, pcm: Pcm) -> None:
        """Take sound."""
        self._samples += len(pcm)
        self._rest = np.concatenate([self._rest, pcm])

    def end(self, behind: float) -> None:
        """Put silence behind the sound, for the words that are on their way."""
        frames = self._timing.delay + round(behind / FRAME_SECONDS)
        self._put_silence(-len(self._rest) % FRAME_SIZE + frames * FRAME_SIZE)
        self._more = _LONGEST

    def prepare(self, most: int) -> None:
        """Make the codes of the next steps now, if there is sound for them."""
        if self._ready is None and self.frames:
            self._ready = self._encoded(most)

    def next(self, most: int) -> npt.NDArray[np.int32]:
        """Return the codes of the next steps, `[n, n_q]`, at most so many; none if more sound is needed."""
        if self.done:
            return np.zeros((0, self._config.n_q), np.int32)
        if self._ready is None and not self.frames:
            self._more -= 1
            self._put_silence(FRAME_SIZE)
        self.prepare(most)
        codes, self._ready = self._ready, None
        assert codes is not None
        return codes

    def _encoded(self, most: int) -> npt.NDArray[np.int32]:
        config = self._config
        size = min(self.frames, most if self._begun else most - 1) * FRAME_SIZE
        pcm, self._rest = self._rest[:size], self._rest[size:]
        self.turn.hear(pcm)
        codes: npt.NDArray[np.int32] = self._encoder.step(pcm)[: config.n_q].T.astype(np.int32)
        if not self._begun:  # with the priming step, whose codes are "start"
            self._begun = True
            codes = np.concatenate([np.full((1, config.n_q), config.card, np.int32), codes])
        return codes

    def write(self, tokens: npt.NDArray[np.int32], heads: npt.NDArray[np.float32]) -> list[Transcribed]:
        """Take what the model wrote in these steps, `[n]` and `[n, heads, classes]`, and return the words."""
        words: list[Transcribed] = []
        for token, says in zip(tokens, heads, strict=True):
            new = self._shown(self._words.push(int(token)))
            self.turn.write(bool(new), float(says[PAUSE_HEAD, 0]) if len(says) > PAUSE_HEAD else None)
            words += new
            if self._last and (end := self._last[0].end) is not None:
                self._last[1].end = max(0.0, end)
                self._last = None
        return words

    def close(self) -> list[Transcribed]:
        """Return the word that is still open, if there is one."""
        return self._shown(self._words.close())

    def _put_silence(self, samples: int) -> None:
        self._rest = np.concatenate([self._rest, np.zeros(samples, np.float32)])

    def _shown(self, word: Tokens | None) -> list[Transcribed]:
        """Return the words that a word of tokens brings, but for those that were told already."""
        if word is None:
            return []
        words = [Transcribed(text, max(0.0, start)) for start, text in spelled(word, self._tokenizer)]
        for before, after in itertools.pairwise(words):
            before.end = after.start
        known = [self._known(word) for word in words]
        if words:
            self._last = word, known[-1] or words[-1]
        return [word for word, told in zip(words, known, strict=True) if told is None]

    def _known(self, word: Transcribed) -> Transcribed | None:
        """Return the word that was told in place of this one; None: it was not told.

        Without the sound behind it a word may be another one, or begin a step earlier or later.
        """
        near = [told for told in self._told if abs(told.start - word.start) < _NEAR]
        same = [told for told in near if told.text == word.text] or near
        self._told = [told for told in self._told if told.start > (same[0] if same else word).start]
        return same[0] if same else None


class _Work:
    """One recording on its way through a stream."""

    def __init__(self, index: int, sound: Iterator[Pcm], stream: _Stream, steps: int) -> None:
        self.index = index
        self._sound, self._stream, self._steps = sound, stream, steps
        self._ended = False
        self._error: MshError | None = None

    def prepare(self) -> None:
        """Get the sound of the next steps, and make their codes."""
        stream = self._stream
        while not self._ended and stream.frames < self._steps:
            try:
                stream.take(next(self._sound))
            except StopIteration:
                self._ended = True
            except MshError as error:
                self._ended, self._error = True, error
            if self._ended:
                stream.end(BEHIND)
        stream.prepare(self._steps)

    def next(self) -> npt.NDArray[np.int32]:
        """Return the codes of the next steps, `[n, n_q]`, at least of one."""
        self.prepare()
        return self._stream.next(self._steps)

    def write(self, tokens: npt.NDArray[np.int32], heads: npt.NDArray[np.float32]) -> Progress:
        """Take what the model wrote in these steps, and tell the progress."""
        stream = self._stream
        words = stream.write(tokens, heads)
        ended = self._ended and stream.done
        if ended:
            words += stream.close()
        return Progress(self.index, stream.seconds, words, ended, self._error if ended else None)
