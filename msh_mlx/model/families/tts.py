"""Text to speech: the text is given, word by word, when the model asks for a word."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...format import FRAME_SIZE, SAMPLE_RATE
from ..architecture import wrong
from ..conditions import positions
from ..grid import AS_SAID, NOTHING, Column, Streams
from ..ranges import Range, is_whole
from ..steering import Guidance, Steering

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..engine import LanguageModel

TITLE = "a text-to-speech model"

NEW_WORD, PADDING = 0, 3
_SECONDS = Range(0, 60)
MAX_PADDING = 8  # positions after which a word is begun, whether or not the model asks for one
INITIAL_PADDING = 2
FINAL_PADDING = 4
SPEAKERS = (1, 2)  # the tokens of the main speaker and of the other
VOICES = 5  # slots for voices
VOICE_STEPS = 125  # of a voice in a published file
SOURCE_STEPS = VOICES * VOICE_STEPS  # that cross-attention sees then
MOST_VOICE_STEPS = 1000


def known(config: Architecture) -> bool:
    """Tell whether a configuration is of this family."""
    return (config.model_type or "").lower().startswith("tts") or bool(config.tts_config) or config.demux_second_stream


def adapted(config: Architecture) -> Architecture:
    """Check a configuration of this family.

    Raises
    ------
    InputError
        Not all codebooks are the model's own, voices have no condition, or `tts_config` is not understood.
    """
    if config.dep_q != config.n_q:
        raise InputError(
            f"The model's configuration is of {TITLE}, but has dep_q = {config.dep_q}",
            f"n_q = {config.n_q} is expected",
        )
    if config.cross_attention and len(config.fuser.crossed) != 1:
        raise InputError("The model's configuration has cross-attention", "fuser.cross with one condition is expected")
    delay_steps(config)
    ahead(config)
    return config


def delay_steps(config: Architecture) -> int:
    """Return how many positions the sound is behind the text."""
    seconds = (config.tts_config or {}).get("audio_delay", 1.28)
    if not _SECONDS.has(seconds):
        raise wrong("audio_delay", seconds, str(_SECONDS))
    return int(seconds * SAMPLE_RATE / FRAME_SIZE)


def ahead(config: Architecture) -> int:
    """Return how many words the second stream of text is ahead."""
    words = (config.tts_config or {}).get("second_stream_ahead", 2)
    if not is_whole(words) or not 1 <= words <= 100:
        raise wrong("second_stream_ahead", words, "a whole number from 1 to 100")
    return int(words)


@dataclass(frozen=True)
class Entry:
    """A word: its tokens, and the least number of positions of padding behind its beginning. Without tokens it is a pause."""

    tokens: tuple[int, ...]
    padding: int = 0


class WordMachine:
    """Turns what the model asks for (a new word, or padding) into the tokens of the words that it is given.

    Parameters
    ----------
    words
        The rows of the text embedding, `text_card + 1`, if the model reads two streams of text; None: it reads one.
    ahead
        How many words the second stream is ahead of the first.
    """

    def __init__(self, words: int | None, ahead: int) -> None:
        self._words = words
        self._distance = ahead
        self.entries: deque[Entry] = deque()
        self._queued: deque[int] = deque()
        self._ahead: deque[int] = deque()
        self._remaining = self._forced = INITIAL_PADDING
        self.end: int | None = None
        self.begun: list[int] = []  # the positions at which entries were begun

    @classmethod
    def of(cls, config: Architecture) -> WordMachine:
        """Make the machine of a configuration."""
        return cls(config.text_card + 1 if config.demux_second_stream else None, ahead(config))

    @property
    def hungry(self) -> bool:
        """Whether the next position may begin an entry, and that, or those that the second stream reads ahead, are missing."""
        if self._queued or self._forced > 0:
            return False
        following = sum(bool(entry.tokens) for entry in islice(self.entries, 1, None))
        return not self.entries or (self._words is not None and following < self._distance)

    def token(self, position: int, sampled: int) -> int:
        """Return the text of the next column, given the token that was sampled at a position."""
        token = self._asked(sampled)
        if token == NEW_WORD:
            token = self._begin(position)
        if token == PADDING:
            self._remaining = max(0, self._remaining - 1)
            self._forced = max(0, self._forced - 1)
            out = self._queued.popleft() if self._queued else PADDING
        else:
            out = NEW_WORD
        if self._words is None:
            return out
        if out == NEW_WORD:
            second = NEW_WORD
            out = self._queued.popleft() if self._queued else PADDING
        else:
            second = self._ahead.popleft() if self._ahead else NOTHING
        return (second + 1) * self._words + out

    def _asked(self, sampled: int) -> int:
        """Return what the model may ask for now: `NEW_WORD` or `PADDING`."""
        if self._queued or self._forced > 0:
            return PADDING
        return NEW_WORD if sampled == NEW_WORD or self._remaining <= 0 else PADDING

    def _begin(self, position: int) -> int:
        """Begin the next entry. Return `NEW_WORD`, or `PADDING` if there is nothing to begin."""
        if not self.entries:
            if self.end is None:
                self.end = position
                return NEW_WORD if self._words is not None else PADDING
            return PADDING
        entry = self.entries.popleft()
        self.begun.append(position)
        self._forced = entry.padding
        if not entry.tokens:
            return PADDING
        self._queued.extend(entry.tokens)
        self._remaining = MAX_PADDING
        if self._words is not None:
            following = [other for other in self.entries if other.tokens]
            if len(following) >= self._distance:
                self._ahead.extend(following[self._distance - 1].tokens)
        return NEW_WORD


class SpeechScript:
    """The script of text to speech: the words' tokens as text, and no sound for the first `delay_steps` positions.

    Parameters
    ----------
    streams
        The rows of the grid.
    machine
        Gives the text.
    delay_steps
        How many positions the sound is behind the text.
    codebooks
        How many codebooks are computed; the others add nothing.
    prefix
        The codes `[own, length]` of a recording whose voice is to be taken, if it is a prefix.
    guided
        The batch has a second row, which knows neither the text nor the prefix.
    """

    def __init__(
        self,
        streams: Streams,
        machine: WordMachine,
        delay_steps: int,
        *,
        codebooks: int | None = None,
        prefix: npt.NDArray[np.integer] | None = None,
        guided: bool = False,
    ) -> None:
        self._streams = streams
        self._machine = machine
        self._delay_steps = delay_steps
        self._codebooks = streams.own if codebooks is None else codebooks
        prefix = np.zeros((streams.own, 0), np.int32) if prefix is None else np.asarray(prefix, np.int32)
        self._prefix = prefix[: self._codebooks]
        self._guided = guided
        self._delays = np.array(streams.delays[1 : 1 + streams.own])

    @classmethod
    def of(cls, config: Architecture, machine: WordMachine, **options: Any) -> SpeechScript:
        """Make the script of a configuration. `options` are those of the class."""
        return cls(config.streams, machine, delay_steps(config), **options)

    def text(self, position: int, sampled: int) -> int:
        """As `Script.text`."""
        return NOTHING if position < self._prefix.shape[1] else self._machine.token(position, sampled)

    def own(self, position: int) -> Column:
        """As `Script.own`."""
        begun = self._delays + self._delay_steps
        cells = np.where(position < begun, NOTHING, AS_SAID)
        cells[self._codebooks :] = NOTHING
        frames = (position - begun)[: self._codebooks]
        for k in np.flatnonzero((frames >= 0) & (frames < self._prefix.shape[1])):
            cells[k] = self._prefix[k, frames[k]]
        return cells.astype(np.int32)

    def rows(self, position: int, column: Column) -> Column:
        """As `Script.rows`."""
        if not self._guided:
            return column
        null, streams = column.copy(), self._streams
        if null[0] != streams.text_start:
            null[0] = NOTHING
        own = null[1 : 1 + streams.own]
        hidden = (position <= self._delays + self._prefix.shape[1] + self._delay_steps) & (own != streams.start)
        own[hidden] = NOTHING
        return np.stack([column, null])

    def speaks(self, position: int) -> bool:
        """As `Script.speaks`."""
        return position >= self._delay_steps

    def over(self, position: int) -> bool:
        """As `Script.over`."""
        end = self._machine.end
        return end is not None and position >= end + self._delay_steps + FINAL_PADDING


def entries(tokens: Iterable[Sequence[int]], padding_between: int = 0) -> list[Entry]:
    """Make words of their tokens, each with at least `padding_between` positions of padding behind it."""
    return [Entry(tuple(word), max(0, padding_between + len(word) - 1) if padding_between else 0) for word in tokens]


def steering(
    lm: LanguageModel,
    voices: Sequence[npt.NDArray[np.float32]] = (),
    *,
    cfg: str | None = None,
    coef: float = 1.0,
    codebooks: int | None = None,
) -> Steering:
    """Return the conditions of a voice, or of several, each `[steps, dim]`, and guidance by `coef`; 1: without.

    `cfg` is the value of the condition of this name; None: it is not given.

    Raises
    ------
    InputError
        A voice does not fit the model, or the condition cannot have this value.
    """
    config = lm.config
    added, source = None, None
    if config.fuser.added:
        given = {"control": "ok", "cfg": cfg}
        added = lm.conditions.added(config.fuser, given)[None]
    if config.cross_attention:
        (name,) = config.fuser.crossed
        dim = config.conditioners[name].dim
        for voice in voices:
            if voice.ndim != 2 or voice.shape[1] != dim or voice.dtype != np.float32 or not np.isfinite(voice).all():
                raise InputError(
                    f"The voice is {voice.dtype}{list(voice.shape)}, and the model takes finite float32[steps, {dim}]",
                    "give a voice that was made for the model",
                )
            if not 1 <= len(voice) <= MOST_VOICE_STEPS or len(voice) != len(voices[0]):
                raise InputError(
                    f"The voices have {' and '.join(str(len(other)) for other in voices)} steps",
                    f"as many in each are expected, 1 to {MOST_VOICE_STEPS}",
                )
        steps = len(voices[0]) if voices else VOICE_STEPS
        rows = np.zeros((VOICES * steps, dim), np.float32)
        there = np.arange(len(rows)) < len(voices) * steps
        rows[there] = np.concatenate(list(voices)) if voices else 0
        sequence = lm.conditions.sequence(name, rows, there)
        source = lm.source(sequence + np.float32(config.fuser.scale) * positions(len(rows), config.dim))
    guidance = Guidance(coef, text=False) if coef != 1 else None
    return Steering(added, source, guidance, codebooks)
