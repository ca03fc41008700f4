"""`Session`: one conversation, frame by frame, without threads, devices or files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from time import perf_counter

import numpy as np
import numpy.typing as npt
import sentencepiece

from ..errors import InputError
from ..format import Pcm
from ..model import generate
from ..model.engine import LanguageModel, Prefilled
from ..model.families import family_of
from ..model.families.hibiki import END
from ..model.generate import LmGen, Step, one_at_a_time
from ..model.grid import Prompt
from ..model.sampling import Sampler, TextSampler
from ..model.steering import NO_STEERING, Steering
from .codec import Mimi, check_codec, check_pcm
from .text import TextStream, check_vocabulary, word_starts

_OTHER_USES = {"transcription": "Transcriber", "speech": "Speaker"}  # what models for other uses are for


@dataclass(frozen=True)
class Timings:
    """How long the stages of one frame took, in seconds."""

    encode: float
    step: float
    decode: float

    @property
    def total(self) -> float:
        """All stages, one after the other, in seconds."""
        return self.encode + self.step + self.decode


@dataclass(frozen=True)
class Frame:
    """What Moshi says in one frame (80 ms).

    `pcm` is its voice, `[1920]` float32 at 24 kHz, about in [−1, 1] (not clamped). `text` is the text that this frame
    completes, "" if there is none; a leading space starts a word. `token` is the text token of the frame. `timings` are the
    times of its stages.
    """

    pcm: Pcm
    text: str
    token: int
    timings: Timings


@dataclass(frozen=True)
class Parts:
    """The parts that conversations share: the model, the codec and the tokenizer, as `Session` takes them.

    `name` is what the model is called. `identity` changes when the files do; "" if it is not known.
    """

    lm: LanguageModel
    mimi: Mimi
    tokenizer: sentencepiece.SentencePieceProcessor
    name: str = ""
    identity: str = ""


@dataclass(frozen=True)
class Opening:
    """What comes before a conversation, and beside it.

    `prompt` is a prompt, perhaps read already, so that conversations begin at once; None: there is none. `steering` is what
    steers the model besides tokens. Several sessions with the same model may share an opening.
    """

    prompt: Prompt | Prefilled | None = None
    steering: Steering = NO_STEERING


class Session:
    """A conversation: pass the user's sound to `push` frame by frame, and get Moshi's back.

    Several sessions may share the model and the codec; each has a state of its own. A session may be made on one thread and
    used on another, but by one at a time: two at once get an `InUseError`.

    Parameters
    ----------
    lm
        As from `load_lm`.
    mimi
        As from `load_mimi`, with as many codebooks as `lm` speaks and hears.
    tokenizer
        As from `load_tokenizer`, with the vocabulary of `lm`.
    text_sampler, audio_sampler
        How tokens are chosen. None: as published for the model's family, for Moshi temperature 0.7 and top-k 25 for text, 0.8
        and 250 for audio.
    seed
        The same seed, sound and machine give the same conversation, also after `reset`. With None, every conversation has a new
        seed.
    kv_bits
        8 stores the model's keys and values in 8 bits; None keeps them in the model's dtype.
    opening
        What comes before each conversation, also after `reset`, as from `Personas`; None: what the model's family needs, which
        is nothing for Moshi, and some silence for PersonaPlex.

    Raises
    ------
    InputError
        Model, codec and tokenizer do not belong together, or the seed or `kv_bits` is wrong; the message says why.
    """

    def __init__(
        self,
        lm: LanguageModel,
        mimi: Mimi,
        tokenizer: sentencepiece.SentencePieceProcessor,
        *,
        text_sampler: Sampler | None = None,
        audio_sampler: Sampler | None = None,
        seed: int | None = None,
        kv_bits: int | None = None,
        opening: Opening | None = None,
    ) -> None:
        config = lm.config
        family = family_of(config)
        if family.use in _OTHER_USES:
            raise InputError(
                f"The model is {family.title}, not one that holds conversations", f"use {_OTHER_USES[family.use]}"
            )
        opening = opening or Opening(family.prompt(config), family.steering(lm))
        check_vocabulary(tokenizer, config.text_card)
        check_codec(mimi, config)
        self.sample_rate: int = mimi.sample_rate
        self.frame_rate: float = mimi.frame_rate
        self.frame_size: int = mimi.frame_size
        self._user_q = config.user_q
        self._mimi = mimi
        # Three threads may run the three stages, but only one thread at a time each. `LmGen` has a lock of its own.
        self._encoding, self._decoding = Lock(), Lock()
        self._encoder = mimi.encoder()
        self._decoder = mimi.decoder()
        penalty = isinstance(text_sampler, TextSampler) and text_sampler.recent_size
        self._gen = LmGen(
            lm,
            text_sampler=text_sampler,
            audio_sampler=audio_sampler,
            seed=seed,
            kv_bits=kv_bits,
            word_starts=word_starts(tokenizer) if penalty else None,
            prompt=opening.prompt,
            steering=opening.steering,
        )
        self._text = TextStream(tokenizer, config.padding_ids)
        # Whether the model translates; once the user's speech has ended, how many steps complete what was said until then.
        self.translates: bool = family.use == "translation"
        self._input_ended = False
        self._delay = config.max_delay
        self._to_complete: int | None = None

    def push(self, pcm: Pcm) -> Frame:
        """Take one frame of the user's sound and return one of Moshi's.

        Parameters
        ----------
        pcm
            The user's sound: `[1920]` float32 at 24 kHz in [−1, 1].

        Returns
        -------
        Frame
            Moshi's frame. Its sound is silence until Moshi's first codes are complete; the published models need no such wait.

        Raises
        ------
        InputError
            `pcm` has another shape or dtype, or samples that are not finite; the conversation is as before.
        InUseError
            Another thread is using the session.
        """
        begin = perf_counter()
        codes = self.encode(pcm)
        encoded = perf_counter()
        return self._answered(self.step(codes), encoded - begin, encoded)

    def end_input(self) -> Frame:
        """Tell a model that translates that the user's speech has ended, in place of a frame of it, and return a frame.

        After it, push silence until `ended`: the translation is behind the speech.

        Raises
        ------
        InputError
            The model does not translate.
        InUseError
            Another thread is using the session.
        """
        if not self.translates:
            raise InputError("Only a model that translates is told that the speech has ended", "push silence")
        begin = perf_counter()
        self._input_ended = True
        return self._answered(self._handed(self._gen.end_input()), 0.0, begin)

    @property
    def ended(self) -> bool:
        """Whether the translation has ended, behind the end of the speech, and all of its sound was returned."""
        return self._to_complete == 0

    def _answered(self, stepped: tuple[Step, str], encode: float, begin: float) -> Frame:
        """Decode the result of a step that began at a time; `encode` is how long its frame's encoding took, in seconds."""
        step, text = stepped
        now = perf_counter()
        reply = self.decode(step.codes)
        return Frame(reply, text, step.text_token, Timings(encode, now - begin, perf_counter() - now))

    def reset(self) -> None:
        """Start a new conversation from fresh state, with the same opening; model and codec stay loaded."""
        self.reset_encoder()
        self.reset_model()
        self.reset_decoder()

    def fill_window(self) -> None:
        """Act as if the conversation were as long as the model's window, to measure one of any length. `reset` ends it."""
        self._gen.fill_window()

    def warm_up(self) -> None:
        """Compile and load everything now, so that the first steps are as fast as later ones; the state does not change.

        MLX compiles for each thread: call this on the thread that will call `push` or `step`.
        """
        self._gen.warm_up()
        self._mimi.decoder().step(self._mimi.encoder().step(np.zeros(self.frame_size, np.float32)))

    # The stages of `push`. They share no state, so each can run on a thread of its own.

    def encode(self, pcm: Pcm) -> npt.NDArray[np.uint32]:
        """Turn one frame of the user's sound into codes, `[K]` uint32 for the K codebooks that the model hears.

        `pcm` is as for `push`.

        Raises
        ------
        InputError
            `pcm` has another shape or dtype, or samples that are not finite; the conversation is as before.
        """
        check_pcm(pcm, "frame", self.frame_size)
        with one_at_a_time(self._encoding):
            return self._encoder.step(pcm)[: self._user_q, 0]

    def step(self, codes: npt.NDArray[np.uint32]) -> tuple[Step, str]:
        """Pass the codes of one frame, `[K]` as from `encode`, to the model; return its step and the `text` of `Frame`.

        Raises
        ------
        InputError
            The codes have another shape, are not integers or are out of range; the conversation is as before.
        """
        return self._handed(self._gen.step(codes))

    def _handed(self, step: Step) -> tuple[Step, str]:
        """Return a step with the text that it completes, and notice the end of a translation."""
        if self._to_complete:
            self._to_complete -= 1
        elif self._input_ended and step.text_token == END and self._to_complete is None:
            self._to_complete = self._delay
        return step, self._text.push(step.text_token)

    def decode(self, codes: npt.NDArray[np.uint32] | None) -> Pcm:
        """Turn the codes of a `Step` into sound, `[1920]` float32 at 24 kHz; None, no codes yet, becomes silence."""
        with one_at_a_time(self._decoding):
            return np.zeros(self.frame_size, np.float32) if codes is None else self._decoder.step(codes[:, None])

    def reset_encoder(self) -> None:
        """Reset the state of `encode`; a part of `reset`."""
        self._encoder.reset()

    def reset_model(self) -> None:
        """Reset the state of `step`; a part of `reset`."""
        self._gen.reset()
        self._gen.prime()  # now, while nobody waits for an answer
        self._text.flush()
        self._input_ended, self._to_complete = False, None

    def reset_decoder(self) -> None:
        """Reset the state of `decode`; a part of `reset`."""
        self._decoder.reset()


def step_together(steps: Sequence[tuple[Session, npt.NDArray[np.uint32]]]) -> list[tuple[Step, str]]:
    """Pass the codes of one frame to each of several sessions with one model, in one pass over its weights.

    Each session has its own codes, and the result is what `Session.step` returns for each. A session says what it says alone;
    `model.generate.step_together` says how exactly.

    Raises
    ------
    InputError
        Sessions are of different models, one is there twice, or codes are as `Session.step` refuses them. No session has
        changed then.
    InUseError
        Another thread is in the middle of a step of one of them. No session has changed then.
    """
    done = generate.step_together([(session._gen, codes) for session, codes in steps])
    return [session._handed(step) for (session, _), step in zip(steps, done, strict=True)]
