"""`Speaker`: text to speech, while the text still comes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from ..errors import InputError
from ..format import FRAME_SECONDS, Pcm
from ..model.families import family_of
from ..model.families.tts import Entry, SpeechScript, WordMachine, ahead, entries, steering
from ..model.generate import LmGen
from ..model.lm import Lm
from ..model.sampling import Sampler
from .codec import Mimi
from .text import check_vocabulary

SAMPLER = Sampler(0.6)  # the published one, for text and sound
_BREAK = re.compile(r'<break time="(\d+(?:\.\d+)?)s"\s*/>')
_WORD = re.compile(r"(?:[^\s<]+|<(?!break)[^\s<]*)(?=[\s<])")  # up to a space or a pause
_SPEAKERS = 1  # the token of the main speaker; the next is the other one's


class Speaker:
    """Says text. `say` yields sound while it reads the text, so that a long text or a pipe is heard at once.

    Parameters
    ----------
    lm
        A text-to-speech model, as from `load_lm`.
    mimi
        As from `load_mimi`, with as many codebooks as `codebooks`.
    tokenizer
        As from `load_tokenizer`, with the vocabulary of `lm`.
    voices
        The voices of the speakers, each `[steps, dim]`, for a model that takes them; none: the model's own.
    sampler, seed, kv_bits
        As for `LmGen`.
    codebooks
        How many codebooks are computed. Fewer are faster, and sound worse. None: all.
    cfg
        How closely the model keeps to the voice, one of the values of its condition `cfg`; None: it is not told.
    padding
        The least number of steps between words. More speaks slower.

    Raises
    ------
    InputError
        The model is of another family, or the parts do not belong together.
    """

    def __init__(
        self,
        lm: Lm,
        mimi: Mimi,
        tokenizer: sentencepiece.SentencePieceProcessor,
        *,
        voices: Sequence[npt.NDArray[np.float32]] = (),
        sampler: Sampler = SAMPLER,
        seed: int | None = None,
        kv_bits: int | None = None,
        codebooks: int | None = None,
        cfg: str | None = "2.0",
        padding: int = 1,
    ) -> None:
        family = family_of(lm.config)
        if family.name != "tts":
            raise InputError(f"The model is {family.title}, not one that speaks text", "give a text-to-speech model")
        check_vocabulary(tokenizer, lm.config.text_card)
        count = lm.config.dep_q if codebooks is None else codebooks
        if not 1 <= count <= lm.config.dep_q:
            raise InputError(f"The model has {lm.config.dep_q} codebooks, not {count}.")
        if mimi.num_codebooks < count:
            raise InputError(
                f"The codec has {mimi.num_codebooks} codebooks, and {count} are needed", "load it with as many"
            )
        self._lm = lm
        self._mimi = mimi
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {
            "text_sampler": sampler,
            "audio_sampler": sampler,
            "seed": seed,
            "kv_bits": kv_bits,
        }
        known = lm.config.conditioners.get("cfg")
        self._steering = steering(lm, voices, cfg=cfg if known else None, codebooks=count)
        self._codebooks = count
        self._padding = padding

    def say(self, text: str | Iterable[str]) -> Iterator[Pcm]:
        """Say a text, or pieces of one as they come. Yield the sound, frames of `[1920]` float32 at 24 kHz."""
        machine = WordMachine.of(self._lm.config)
        script = SpeechScript.of(self._lm.config, machine, codebooks=self._codebooks)
        gen = LmGen(self._lm, steering=self._steering, script=script, **self._options)
        decoder = self._mimi.decoder()
        words = self._entries([text] if isinstance(text, str) else text)
        enough, more = ahead(self._lm.config), True
        while True:
            while more and len(machine.entries) <= enough:
                entry = next(words, None)
                if entry is None:
                    more = False
                else:
                    machine.entries.append(entry)
            step = gen.advance()
            if step is None:
                return
            if step.codes is not None:
                yield decoder.step(step.codes[: self._codebooks, None])

    def _entries(self, pieces: Iterable[str]) -> Iterator[Entry]:
        """Cut text into words and pauses, and words into tokens. The first word names the speaker."""
        named = not self._lm.config.cross_attention
        for word in _words(pieces):
            if pause := _BREAK.fullmatch(word):
                yield Entry((), round(float(pause[1]) / FRAME_SECONDS))
                continue
            tokens = self._tokenizer.EncodeAsIds(word)
            if not named:
                tokens, named = [_SPEAKERS, *tokens], True
            yield from entries([tokens], self._padding)


def _words(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the words and pauses of a text that comes in pieces, each when it is complete."""
    rest = ""
    for piece in pieces:
        rest += piece.replace("’", "'").replace(":", " ").replace("(", "").replace(")", "")
        while True:
            rest = rest.lstrip()
            match = _BREAK.match(rest) or _WORD.match(rest)
            if not match:
                break
            yield match[0]
            rest = rest[match.end() :]
    yield from re.sub(r"<(?=break)", " <", rest).split()
