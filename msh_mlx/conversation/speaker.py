"""`Speaker`: text to speech, while the text still comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from ..errors import InputError, MshError
from ..events import Word
from ..format import FRAME_SECONDS, FRAME_SIZE, Pcm
from ..model.engine import LanguageModel
from ..model.families import family_of
from ..model.families.tts import SPEAKERS, Entry, SpeechScript, WordMachine, delay_steps, entries, steering
from ..model.generate import LmGen, Step, one_at_a_time
from ..model.ranges import Range, is_whole
from ..model.sampling import Sampler
from ..system.inputs import brief
from .codec import Mimi, check_codec
from .spoken import Pause, SpokenWord, Turn, cut
from .text import check_vocabulary

SAMPLER = Sampler(0.6, top_k=250)  # the published ones
TEXT_SAMPLER = Sampler(0.6, top_k=25)
CFG = Range(0, 100)
_PADDING = Range(0, 100)
_CUT = 2  # frames at the end of a recording that are not taken into a voice
_AHEAD = 100  # entries that are read ahead, at most
_NOTES = 10  # words that are named


@dataclass(frozen=True)
class Spoken:
    """One frame of speech (80 ms).

    `pcm` is its sound, `[1920]` float32 at 24 kHz, about in [−1, 1] (not clamped). `words` are those that begin in it, with
    their times in seconds from the first frame on.
    """

    pcm: Pcm
    words: tuple[Word, ...]


class NotYetError(MshError):
    """The text that comes next has not come yet."""


class Speaker:
    """Says text: `say` yields speech while it reads the text, so that a long text, or one that still comes, is heard at once.

    Several speakers may share the model and the codec. A speaker has no state of its own; each speech has.

    Parameters
    ----------
    lm
        A text-to-speech model, as from `load_lm`.
    mimi
        As from `load_mimi`, with as many codebooks as `codebooks`.
    tokenizer
        As from `load_tokenizer`, with the vocabulary of `lm`.
    voices
        The voice of each speaker; none: the model's own. For a model that attends to a voice, one or two arrays
        `[steps, dim]` float32, as from `read_speaker`. For one that goes on from a recording, one array `[codebooks, frames]`
        of integers, as from `voice_codes`.
    text_sampler, audio_sampler
        How tokens are chosen. The defaults are the published ones: temperature 0.6, and top-k 25 for text and 250 for audio.
        `TextSampler.padding_bonus` above 0 makes the speech slower, below 0 faster.
    seed
        The same seed, text and machine give the same speech. None: each speech has another one.
    kv_bits
        8 stores the model's keys and values in 8 bits; None keeps them in the model's dtype.
    codebooks
        How many codebooks are computed. Fewer are faster, and sound worse. None: all.
    cfg
        How closely the speech keeps to voice and text, 2 in the published programs. If the model has a condition `cfg`, it is
        one of its values, or None for none. Otherwise it is the factor of guidance, which takes two rows of the
        model for every step; 1 or None: without.
    padding
        The least number of steps from the end of a word to the next one, 1 in the published programs.

    Raises
    ------
    InputError
        The model is of another family, the parts do not belong together, a voice does not fit, or a value is wrong.
    """

    def __init__(
        self,
        lm: LanguageModel,
        mimi: Mimi,
        tokenizer: sentencepiece.SentencePieceProcessor,
        *,
        voices: Sequence[npt.NDArray[Any]] = (),
        text_sampler: Sampler = TEXT_SAMPLER,
        audio_sampler: Sampler = SAMPLER,
        seed: int | None = None,
        kv_bits: int | None = None,
        codebooks: int | None = None,
        cfg: float | None = 2.0,
        padding: int = 1,
    ) -> None:
        config = lm.config
        if (family := family_of(config)).name != "tts":
            raise InputError(f"The model is {family.title}, not one that speaks text", "give a text-to-speech model")
        if codebooks is not None and (not is_whole(codebooks) or not 1 <= codebooks <= config.dep_q):
            raise InputError(
                f"The model has {config.dep_q} codebooks, not {brief(codebooks)}", f"give 1 to {config.dep_q}"
            )
        if cfg is not None and not CFG.has(cfg):
            raise InputError(f"The cfg {brief(cfg)} is not {CFG}.")
        if not is_whole(padding) or not _PADDING.has(padding):
            raise InputError(f"The padding {brief(padding)} is not a whole number from 0 to {_PADDING.most}.")
        check_vocabulary(tokenizer, config.text_card)
        count = codebooks or config.dep_q
        check_codec(mimi, config, count)
        self._lm = lm
        self._mimi = mimi
        self._tokenizer = tokenizer
        self._codebooks = count
        self._padding = padding
        self._speakers = max(1, len(voices))
        self._tells_speakers = config.cross_attention
        self._prefix: npt.NDArray[np.int32] | None = None
        conditioned = "cfg" in config.fuser.added
        coef = 1.0 if conditioned or cfg is None else float(cfg)
        if config.cross_attention:
            if len(voices) > len(SPEAKERS):
                raise InputError(f"There are {len(voices)} voices", f"give {len(SPEAKERS)} at most")
        else:
            self._prefix, voices = self._checked_codes(voices), ()
        self._guided = coef != 1
        value = str(float(cfg)) if conditioned and cfg is not None else None
        self._steering = steering(lm, voices, cfg=value, coef=coef, codebooks=count)
        self._options: dict[str, Any] = {
            "text_sampler": text_sampler,
            "audio_sampler": audio_sampler,
            "seed": seed,
            "kv_bits": kv_bits,
            "steering": self._steering,
        }
        self.say("")  # checks what is left

    def say(self, text: str | Turn | Iterable[str | Turn | None]) -> Speech:
        """Say a text, or pieces of one as they come: `str` goes on with the turn before, a `Turn` begins another.

        A word is said when some words behind it are known, as many as the model looks ahead, or when the text ends. Text is
        read only when it is needed; `spoken.cut` says how it is cut into words. The speech raises its errors, and an InputError
        for a turn of a speaker without a voice. None among the pieces says that the next one has not come yet. Where it is
        needed, the speech raises `NotYetError`, and goes on when it is asked again.
        """
        return Speech(self, [text] if isinstance(text, str | Turn) else text)

    def _checked_codes(self, voices: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int32] | None:
        """Check the voice of a model that goes on from a recording."""
        if not voices:
            return None
        if len(voices) > 1:
            raise InputError("The model speaks with one voice", f"give one in place of {len(voices)}")
        config, codes = self._lm.config, np.asarray(voices[0])
        good = codes.ndim == 2 and codes.dtype.kind in "iu" and len(codes) >= self._codebooks and codes.shape[1]
        if not good or codes.min() < 0 or codes.max() >= config.card:
            raise InputError(
                f"The voice is {codes.dtype}{list(codes.shape)}",
                f"codes [{self._codebooks}, frames] below {config.card} are expected",
            )
        whole = np.zeros((config.dep_q, codes.shape[1]), np.int32)
        whole[: self._codebooks] = codes[: self._codebooks]
        return whole


class Speech(Iterator[Spoken]):
    """A text that is being said, as from `Speaker.say`: an iterator over the frames of speech.

    It may be made on one thread and used on another, but only on one thread at a time.

    Attributes
    ----------
    notes
        Sentences on words that the model's tokenizer does not know, which are left out. The caller may take them from here.
    over
        Whether it has ended.
    """

    def __init__(self, speaker: Speaker, pieces: Iterable[str | Turn | None]) -> None:
        config = speaker._lm.config
        self.notes: list[str] = []
        self.over = False
        self._speaker = speaker
        self._in_use = Lock()
        self._parts = cut(pieces)
        self._more = True
        self._last: int | None = None  # the speaker of the word before
        self._unknown: set[str] = set()
        self._texts: deque[str] = deque()  # of the machine's entries
        self._begun: deque[tuple[int, str]] = deque()  # words that were begun, before their sound is there
        self._machine = WordMachine.of(config)
        prefix = speaker._prefix
        options = {"codebooks": speaker._codebooks, "prefix": prefix, "guided": speaker._guided}
        script = SpeechScript.of(config, self._machine, **options)
        self._gen = LmGen(speaker._lm, script=script, **speaker._options)
        self._decoder = speaker._mimi.decoder()
        # How many frames at the beginning are the voice's recording.
        self._dropped = 0 if prefix is None else prefix.shape[1]
        self._position = -1
        self._first = delay_steps(config) + config.max_delay  # the position at which the first frame is complete

    @property
    def end(self) -> int | None:
        """The position at which the model asked for a word and there was none; None: not yet."""
        return self._machine.end

    def step(self) -> Step | None:
        """Run one position of the model, without sound. Return its text token and the codes of a frame; None: it has ended.

        Raises
        ------
        InputError
            The text is wrong.
        InUseError
            Another thread is using the speech.
        """
        with one_at_a_time(self._in_use):
            return self._step()

    def __next__(self) -> Spoken:
        """Return the next frame.

        Raises
        ------
        NotYetError
            The text that comes next has not come yet. The speech is as before.
        InputError
            The text is wrong, or cannot be read. The words before can still be heard: the next frames end with them.
        InUseError
            Another thread is using the speech.
        """
        while (spoken := self.advance()) is None:
            if self.over:
                raise StopIteration
        return spoken

    def advance(self) -> Spoken | None:
        """Run one position of the model, and return the frame that it completes. None: none yet, or it is `over`.

        Errors are as for the next frame.
        """
        with one_at_a_time(self._in_use):
            step = self._step()
            self.over = step is None
            if step is None or step.codes is None:
                return None
            pcm = self._decoder.step(step.codes[:, None])
            frame = self._position - self._first - self._dropped
            return Spoken(pcm, self._words(frame)) if frame >= 0 else None

    def close(self) -> None:
        """End it here. What was not said yet is not said any more."""
        self.over = True

    def _step(self) -> Step | None:
        if not self._read():
            raise NotYetError("The text that comes next has not come yet.")
        step = self._gen.advance()
        if step is not None:
            self._position += 1
            for position in self._machine.begun:
                if text := self._texts.popleft():
                    self._begun.append((position, text))
            self._machine.begun.clear()
        return step

    def _words(self, frame: int) -> tuple[Word, ...]:
        """Take the words that begin in a frame."""
        words = []
        while self._begun and self._begun[0][0] - self._dropped <= frame:
            position, text = self._begun.popleft()
            words.append(Word(round((position - self._dropped) * FRAME_SECONDS, 3), text))
        return tuple(words)

    def _read(self) -> bool:
        """Read as much of the text as the next position needs. Return whether it is there."""
        machine = self._machine
        while self._more and machine.hungry and len(machine.entries) < _AHEAD:
            try:
                part = next(self._parts)
            except StopIteration:
                self._more = False
                break
            if part is None:
                return False
            if isinstance(part, Pause):
                self._append(Entry((), round(part.seconds / FRAME_SECONDS)), "")
            elif tokens := self._tokens(part):
                self._append(entries([tokens], self._speaker._padding)[0], part.text)
        return True

    def _append(self, entry: Entry, text: str) -> None:
        self._machine.entries.append(entry)
        self._texts.append(text)

    def _tokens(self, word: SpokenWord) -> list[int]:
        """Return the tokens of a word, with the speaker's in front if it is another than before; [] for an unknown word."""
        speaker = self._speaker
        if not is_whole(word.speaker) or not 0 <= word.speaker < speaker._speakers:
            raise InputError(
                f"There is a turn of speaker {brief(word.speaker)}, and {speaker._speakers} can speak",
                "give two voices to a model that takes them",
            )
        tokenizer = speaker._tokenizer
        for text in (word.text, word.text.strip(".,;!?\"'«»“”…").lower()):
            tokens: list[int] = tokenizer.EncodeAsIds(text)
            if tokens and tokenizer.unk_id() not in tokens:
                break
        else:
            self._leave_out(word.text)
            return []
        if speaker._tells_speakers and word.speaker != self._last:
            self._last = word.speaker
            tokens = [SPEAKERS[word.speaker], *tokens]
        return tokens

    def _leave_out(self, text: str) -> None:
        if text in self._unknown or len(self._unknown) > _NOTES:
            return
        self._unknown.add(text)
        if len(self._unknown) > _NOTES:
            self.notes.append("The model does not know more words, which are left out.")
        else:
            self.notes.append(f"The model does not know {brief(text)}, which is left out.")


def voice_codes(mimi: Mimi, pcm: Pcm) -> npt.NDArray[np.uint32]:
    """Make the voice of a recording, float32 at 24 kHz, for a model that goes on from a recording; some 10 s are usual.

    Return codes `[codebooks, frames]`. The last two frames are left out, as in the published programs.

    Raises
    ------
    InputError
        The recording is too short, or holds numbers that are not finite.
    """
    codes = mimi.encode(np.asarray(pcm, np.float32))
    if codes.shape[1] <= _CUT:
        raise InputError(
            f"The recording of the voice has only {len(pcm)} samples", f"give more than {_CUT * FRAME_SIZE}"
        )
    return codes[:, :-_CUT]
