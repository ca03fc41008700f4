"""`Transcriber`: speech to text, by a model that only hears."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sentencepiece

from ..errors import InputError
from ..format import FRAME_SIZE, SAMPLE_RATE, Pcm
from ..model.families import family_of
from ..model.families.stt import PAUSE_HEAD, Timing, Word, WordTimes
from ..model.generate import LmGen
from ..model.lm import Lm
from ..model.sampling import Sampler
from .codec import Mimi
from .text import check_vocabulary

_SPACE = "\u2581"  # SentencePiece's sign for a space inside a piece
_ONCE = 64  # frames of a recording that are encoded at once


@dataclass(frozen=True)
class Transcribed:
    """A word that was heard: its text, and when it begins and ends, in seconds of the sound. `end` None: not known yet."""

    text: str
    start: float
    end: float | None = None


class Transcriber:
    """Writes down what it hears. Pass sound to `push`, of any length, and get the words that it completes.

    Parameters
    ----------
    lm
        A speech-to-text model, as from `load_lm`.
    mimi
        As from `load_mimi`, with as many codebooks as `lm` hears.
    tokenizer
        As from `load_tokenizer`, with the vocabulary of `lm`.
    kv_bits
        As for `LmGen`.

    Raises
    ------
    InputError
        The model is of another family, or the parts do not belong together.
    """

    def __init__(
        self, lm: Lm, mimi: Mimi, tokenizer: sentencepiece.SentencePieceProcessor, *, kv_bits: int | None = None
    ) -> None:
        family = family_of(lm.config)
        if family.name != "stt":
            raise InputError(
                f"The model is {family.title}, not one that writes down speech", "give a speech-to-text model"
            )
        check_vocabulary(tokenizer, lm.config.text_card)
        if mimi.num_codebooks < lm.config.user_q:
            raise InputError(
                f"The codec has {mimi.num_codebooks} codebooks and the model needs {lm.config.user_q}",
                "load it with as many",
            )
        self._tokenizer = tokenizer
        self._codebooks = lm.config.user_q
        self._timing = Timing.of(lm.config)
        self._encoder = mimi.encoder()
        self._gen = LmGen(lm, text_sampler=Sampler(0), audio_sampler=Sampler(0), seed=0, kv_bits=kv_bits)
        self.reset()

    def reset(self) -> None:
        """Forget all that was heard. The times of the next words begin at 0."""
        self._encoder.reset()
        self._gen.reset()
        self._words = WordTimes(self._timing)
        self._rest = np.zeros(0, np.float32)
        self._begun = False

    def push(self, pcm: Pcm) -> list[Transcribed]:
        """Take sound, float32 at 24 kHz of any length, and return the words that it completes."""
        found: list[Word] = []
        if not self._begun:
            self._begun = True
            self._hear(np.zeros(round(self._timing.prefix * SAMPLE_RATE / FRAME_SIZE) * FRAME_SIZE, np.float32), found)
        sound = np.concatenate([self._rest, np.asarray(pcm, np.float32)])
        whole = len(sound) // FRAME_SIZE * FRAME_SIZE
        self._rest = sound[whole:]
        self._hear(sound[:whole], found)
        return [part for word in found for part in self._shown(word)]

    def flush(self) -> list[Transcribed]:
        """End a turn: return the words that are still on their way, without waiting for the sound behind them."""
        silence = np.zeros((self._timing.delay + 1) * FRAME_SIZE, np.float32)
        return self.push(np.concatenate([silence, np.zeros(-len(self._rest) % FRAME_SIZE, np.float32)]))

    @property
    def pause(self) -> float | None:
        """The probability that the speaker has paused for some two seconds. None: the model does not say."""
        return float(self._gen.extra_heads[PAUSE_HEAD, 0]) if self._gen.lm.config.extra_heads_num_heads else None

    def _hear(self, pcm: Pcm, found: list[Word]) -> None:
        for begin in range(0, len(pcm), _ONCE * FRAME_SIZE):
            codes: npt.NDArray[np.integer] = self._encoder.step(pcm[begin : begin + _ONCE * FRAME_SIZE])
            for frame in codes[: self._codebooks].T:
                primed = self._gen.prime()
                tokens = [self._gen.step(frame).text_token]
                for token in tokens if primed is None else [primed, *tokens]:
                    if (word := self._words.push(token)) is not None:
                        found.append(word)

    def _shown(self, word: Word) -> list[Transcribed]:
        """Turn tokens into text. Pieces that begin with a space are words of their own, said at once."""
        parts: list[list[int]] = []
        for token in word.tokens:
            if not parts or self._tokenizer.IdToPiece(token).startswith(_SPACE):
                parts.append([])
            parts[-1].append(token)
        texts = [text for part in parts if (text := self._tokenizer.DecodeIds(part).strip())]
        return [Transcribed(text, max(0.0, word.start), word.end) for text in texts]
