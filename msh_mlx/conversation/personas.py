"""Personas: a voice and a role, for a model that takes them, turned into what comes before a conversation."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sentencepiece

from ..errors import InputError
from ..format import FRAME_SIZE, SAMPLE_RATE, Pcm
from ..library.voices import ENDINGS
from ..model.architecture import Architecture
from ..model.engine import Prefilled
from ..model.families import family_of, personaplex
from ..model.families.personaplex import Voice
from ..model.prefill import check_length, prefill_in_turns
from ..sound.loudness import LEAST, normalized
from ..sound.recordings import open_recording, resample
from ..system.places import user_path
from ..system.words import listed, persona_words, shortened
from ..weights.voice import read_voice
from .codec import check_pcm
from .kept import KeptPrompts
from .session import Opening, Parts

LONGEST = 60.0  # seconds of a recording
_LOUDNESS = -24.0  # LUFS, of a voice
_IN_MEMORY = 4  # prompts, at most
_BYTES_IN_MEMORY = 1 << 29  # of all of them, beside the newest
_SHOWN = 60  # characters of a text

_TAG = "<system>"


@dataclass(frozen=True)
class Persona:
    """A voice and a role, as `read_persona` reads them.

    `voice` is in NVIDIA's form, or sound, `[samples]` float32 at 24 kHz as loud as voices are; None: the model's own. `text` is
    the role, "" for none. `name` is what the voice is called. `recording` tells whether it was just made of a recording.
    """

    voice: Voice | Pcm | None = None
    text: str = ""
    name: str = ""
    recording: bool = False

    def __str__(self) -> str:
        """Describe it in a few words."""
        return persona_words(self.name, self.text)


def read_persona(voice: str | os.PathLike[str] | None, text: str = "") -> Persona:
    """Read the file of a voice, or a recording of one. Nothing is read for a role, `text`, without a voice.

    Raises
    ------
    InputError
        The file cannot be read; it is not a voice; or the recording is too short, too long or silent.
    """
    text = text.strip()
    if voice is None:
        return Persona(None, text)
    path = user_path(voice)
    if path.suffix.lower() in ENDINGS:
        return Persona(read_voice(path), text, path.stem)
    return Persona(read_sound(str(path)), text, path.stem, recording=True)


def read_sound(path: str) -> Pcm:
    """Read a recording of a voice: `[samples]` float32 at 24 kHz, mono, at −24 LUFS.

    Raises
    ------
    InputError
        The recording cannot be read, or is too short, too long or silent.
    """
    blocks: list[Pcm] = []
    with open_recording(path) as recording:
        for block in resample(recording.blocks(), recording.rate, SAMPLE_RATE):
            blocks.append(block)
            if sum(map(len, blocks)) > LONGEST * SAMPLE_RATE:
                raise InputError(
                    f"{recording.name} lasts more than {LONGEST:g} s, which is too long for a voice",
                    "cut it: some 4 s of speech are enough",
                )
    pcm = np.concatenate(blocks)
    if len(pcm) < LEAST * SAMPLE_RATE:
        raise InputError(
            f"{recording.name} lasts {len(pcm) / SAMPLE_RATE:.2f} s, which is too short for a voice",
            "some 4 s of speech are enough",
        )
    sound = normalized(pcm, SAMPLE_RATE, _LOUDNESS)
    if sound is None:
        raise InputError(f"{recording.name} is silent, and so it has no voice", "give a recording of speech")
    return sound


def check_takes_persona(config: Architecture) -> None:
    """Raise InputError if the model is of a family that takes neither a voice nor a role."""
    if (family := family_of(config)).name != personaplex.NAME:
        raise personaplex.no_persona("The model", family.title)


def text_tokens(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Turn a text into tokens, with a tag on both sides unless it has them; an empty text has none.

    Raises
    ------
    InputError
        The tokenizer does not know some of the text, or it is not valid Unicode.
    """
    text = text.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("The role is not valid Unicode", "give it in UTF-8") from None
    if not text:
        return []
    has_tags = text.startswith(_TAG) and text.endswith(_TAG) and len(text) > len(_TAG)
    tokens: list[int] = tokenizer.EncodeAsIds(text if has_tags else f"{_TAG} {text} {_TAG}")
    unknown = tokenizer.unk_id()
    if unknown in tokens:
        wrong = [c for c in dict.fromkeys(text) if not c.isspace() and unknown in tokenizer.EncodeAsIds(c)]
        shown = listed(map(repr, wrong[:5])) if wrong else repr(shortened(text, _SHOWN))
        known = readable(tokenizer, text)
        can_be_shown = 0 < len(known) <= _SHOWN and known.isprintable()
        advice = f"write “{known}”" if can_be_shown else "write it in other letters"
        raise InputError(f"The model's tokenizer does not know {shown} of the role", advice)
    return tokens


def readable(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> str:
    """Return a text without letters that a tokenizer does not know; capitals become small ones if it knows these.

    The published tokenizers know all letters, and small ones may not.
    """

    def knows(part: str) -> bool:
        return tokenizer.unk_id() not in tokenizer.EncodeAsIds(part)

    if knows(text):
        return text
    letters = (next(filter(knows, (letter, letter.lower())), "") for letter in text)
    return " ".join("".join(letters).split())


def _frames(voice: Voice | Pcm | None) -> int:
    """Return how many frames of a prompt a voice takes."""
    if isinstance(voice, Voice):
        return voice.frames
    return 0 if voice is None else math.ceil(len(voice) / FRAME_SIZE)


def check_persona(persona: Persona, tokenizer: sentencepiece.SentencePieceProcessor, config: Architecture) -> None:
    """Check that a persona fits a model. Errors are those of `Personas.check`."""
    tokens, voice = text_tokens(tokenizer, persona.text), persona.voice
    if isinstance(voice, Voice):
        personaplex.check_voice(voice, config)
    elif voice is not None:
        check_pcm(voice, "sound of the voice")
        if not len(voice):
            raise InputError("The sound of the voice is empty", "some 4 s of speech are enough")
    check_length(config, _frames(voice) + len(tokens) + 2 * personaplex.SILENT_FRAMES)


class Personas:
    """Makes openings of personas for one model, and keeps the prompts that were read: some in memory, more on disk.

    One thread at a time uses it: the one that does the work of MLX.

    Parameters
    ----------
    parts
        The model, as from `load_parts`.
    kv_bits
        As for `Session`.
    kept
        Where prompts are kept on disk; None: nowhere. It needs the `identity` of the parts.

    Raises
    ------
    InputError
        The model takes no personas.
    """

    def __init__(self, parts: Parts, *, kv_bits: int | None = None, kept: KeptPrompts | None = None) -> None:
        check_takes_persona(parts.lm.config)
        self.tokenizer = parts.tokenizer
        self._parts = parts
        self._kv_bits = kv_bits
        self._kept = kept if parts.identity else None
        self._form = parts.lm.form(kv_bits)
        self._recent: OrderedDict[str, Prefilled] = OrderedDict()

    def check(self, persona: Persona) -> None:
        """Check that a persona fits the model, before anything is computed.

        Raises
        ------
        InputError
            The voice is one for another model, or is not a voice; the tokenizer does not know some of the text; or both
            together are too long.
        """
        check_persona(persona, self._parts.tokenizer, self._parts.lm.config)

    def opening(self, persona: Persona) -> Opening:
        """Return what a conversation with a persona begins with. Its prompt is read, unless that was done before.

        Raises
        ------
        InputError
            As `check`.
        """
        return [opening for opening in self.opening_in_turns(persona) if opening][-1]

    def opening_in_turns(self, persona: Persona, *, keep: bool = True) -> Iterator[Opening | None]:
        """Do as `opening` does. Yield None after each part of the work, so that others can have their turn; then the result.

        Without `keep`, the prompt is not kept on disk.
        """
        self.check(persona)
        tokens = text_tokens(self._parts.tokenizer, persona.text)
        key = self._key(persona, tokens)
        prefilled = self._recent.pop(key, None)
        if prefilled is None:
            prefilled = self._kept.get(key, self._parts.lm, self._kv_bits) if self._kept else None
            for part in () if prefilled else self._read(key, persona, tokens, self._kept if keep else None):
                prefilled = part
                if part is None:
                    yield None
        assert prefilled
        while len(self._recent) >= _IN_MEMORY or sum(one.nbytes for one in self._recent.values()) > _BYTES_IN_MEMORY:
            self._recent.popitem(last=False)
        self._recent[key] = prefilled
        yield Opening(prefilled)

    def _read(
        self, key: str, persona: Persona, tokens: Sequence[int], kept: KeptPrompts | None
    ) -> Iterator[Prefilled | None]:
        """Read a prompt, part by part, and keep it."""
        config, given = self._parts.lm.config, persona.voice
        voice = (yield from self._encoded(given)) if isinstance(given, np.ndarray) else given
        prompt = personaplex.prompt_for(config, voice, tokens)
        for prefilled in prefill_in_turns(self._parts.lm, prompt, kv_bits=self._kv_bits):
            if prefilled and kept:
                about = {"model": self._parts.name, "voice": persona.name, "text": persona.text}
                kept.put(key, prefilled, self._parts.lm, about)
            yield prefilled

    def _encoded(self, sound: Pcm) -> Generator[None, None, npt.NDArray[np.uint32]]:
        """Turn sound into codes, `[own, frames]`, and yield after each frame; the last one is filled up with zeros."""
        encoder = self._parts.mimi.encoder()
        padded = np.pad(sound, (0, -len(sound) % FRAME_SIZE))
        frames = []
        for frame in padded.reshape(-1, FRAME_SIZE):
            frames.append(encoder.step(frame))
            yield None
        codes: npt.NDArray[np.uint32] = np.concatenate(frames, axis=1)[: self._parts.lm.config.dep_q]
        return codes

    def _key(self, persona: Persona, tokens: Sequence[int]) -> str:
        """Make a name of all that the state behind a prompt depends on."""
        digest = hashlib.sha256(json.dumps([self._parts.identity, list(tokens), self._form]).encode())
        if isinstance(voice := persona.voice, Voice):
            digest.update(b"NVIDIA" + voice.embedded.tobytes())
            digest.update(voice.columns.astype("<i4").tobytes())
        elif voice is not None:
            digest.update(b"sound" + voice.astype("<f4").tobytes())
        return digest.hexdigest()
