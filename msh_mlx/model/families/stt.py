"""Speech to text: hears all codebooks, and chooses only text."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...errors import InputError
from ...format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE
from ..architecture import wrong
from ..ranges import Range

if TYPE_CHECKING:
    from ..architecture import Architecture

TITLE = "a speech-to-text model"

NEW_WORD, PADDING = 0, 3
PAUSE_HEAD = 2  # the head that tells a pause of two seconds
_SECONDS = Range(0, 60)
_STEPS = {2.5: 32}  # of a delay in seconds, where the published programs do not round down


def known(config: Architecture) -> bool:
    """Tell whether a configuration is of this family."""
    return config.dep_q == 0 or (config.model_type or "").lower().startswith("stt") or bool(config.stt_config)


def adapted(config: Architecture) -> Architecture:
    """Check a configuration of this family.

    Raises
    ------
    InputError
        Own codes are chosen, or `stt_config` is not understood.
    """
    if config.dep_q:
        raise InputError(f"The model's configuration is of {TITLE}, but has dep_q = {config.dep_q}", "0 is expected")
    Timing.of(config)
    return config


@dataclass(frozen=True)
class Timing:
    """How text lies behind sound: by `delay` steps. `prefix` seconds of silence come before a recording."""

    delay: int
    prefix: float

    @classmethod
    def of(cls, config: Architecture) -> Timing:
        """Read them from a configuration; without numbers, those of `stt-1b-en_fr`."""
        values = config.stt_config or {}
        delay = values.get("audio_delay_seconds", 0.5)
        prefix = values.get("audio_silence_prefix_seconds", 0.0)
        for key, value in (("audio_delay_seconds", delay), ("audio_silence_prefix_seconds", prefix)):
            if not _SECONDS.has(value):
                raise wrong(key, value, str(_SECONDS))
        return cls(_STEPS.get(delay, int(delay * SAMPLE_RATE / FRAME_SIZE)), float(prefix))


@dataclass
class Word:
    """A recognised word: its tokens, when it begins, and when it ends, in seconds; None: that is not known yet.

    `times` are those of the tokens, by the same clock.
    """

    tokens: list[int]
    start: float
    end: float | None = None
    times: list[float] = field(default_factory=list)


class WordTimes:
    """Collects the tokens of a speech-to-text model into words with times.

    A token 0 is the beginning of a word, `delay` steps after its sound; 3 is nothing. A word is complete at the first 0 or 3
    behind it. It gets its end later, when the next 0 comes.
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._count = 0
        self._tokens: list[int] = []
        self._times: list[float] = []
        self._boundary = 0.0
        self._begun = False
        self._last: Word | None = None

    def copy(self) -> WordTimes:
        """Return another that goes on from here, on its own."""
        other = copy(self)
        other._tokens, other._times = list(self._tokens), list(self._times)
        return other

    @property
    def open(self) -> bool:
        """Whether a word has begun that is not complete."""
        return self._begun

    def push(self, token: int) -> Word | None:
        """Take the token of the next step, the priming step's first. Return the word that it completes."""
        self._count += 1
        if self._count < self._timing.delay:
            return None
        time = (self._count - self._timing.delay) * FRAME_SECONDS - self._timing.prefix
        if token not in (NEW_WORD, PADDING):
            self._tokens.append(token)
            self._times.append(time)
            self._begun = True
            return None
        word = self.close()
        if token == NEW_WORD:
            self._boundary, self._begun = time, True
            if self._last is not None and self._last.end is None:
                self._last.end = time
        return word

    def close(self) -> Word | None:
        """Return the word whose tokens have come so far, and regard it as complete. None: there is none."""
        self._begun = False
        if not self._tokens:
            return None
        word = self._last = Word(self._tokens, self._boundary, times=self._times)
        self._tokens, self._times = [], []
        return word
