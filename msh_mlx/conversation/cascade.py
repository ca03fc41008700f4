"""`Cascade`: a conversation with any language model, between a model that hears and one that speaks."""

from __future__ import annotations

import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from ..errors import MshError
from ..events import (
    Answered,
    Event,
    HeardWord,
    Hushed,
    Listened,
    Loading,
    Notice,
    Replied,
    Said,
    Spoke,
    SpokeWord,
    Turned,
    Word,
)
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from ..metrics import Memory
from .dialogue import NOTHING, Dialogue, Thinker, Thought, TooLongError
from .live import DELAY_LIMIT, Sink, Source
from .on_threads import OnThreads
from .speaker import NotYetError, Spoken
from .transcriber import Transcribed
from .voice_activity import PIECE, VoiceActivity

_READ = FRAME_SIZE // 2  # samples that are read at once: 40 ms, the least that every source gives
_PATIENCE = 0.1  # seconds that the thread of the ears waits for sound
_TICK = 0.005  # seconds between two looks at the loudspeaker's queue
_AHEAD = 25  # frames of speech that are made before they are played, at most
_QUEUED = 2 * FRAME_SECONDS  # of speech that waits at the loudspeaker besides its cushion: longer than a frame takes
_SHORT = 0.2  # seconds of the user's voice that are no word, whatever the ears take them for
_INTERRUPTED = 0.6  # seconds of the user's voice that end an answer; "mm-hm" is shorter
_WARM_UP = 4  # steps
_BEGINNING = 2  # frames with which an answer begins: while they are played, the next word comes
_SILENT = 0.005  # the loudest sample of a frame in which nobody speaks
_PART = 0.25  # of a frame that may still be played when it counts as heard
# What listeners say to show that they listen. These words alone do not end an answer.
_LISTENING = {
    "ah",
    "aha",
    "hm",
    "hmm",
    "huh",
    "mhm",
    "mm",
    "mm-hm",
    "mm-hmm",
    "oh",
    "ok",
    "okay",
    "uh-huh",
    "yeah",
    "yes",
}


class Ears(Protocol):
    """What writes down what the user says: a `Transcriber`, or a part of a shared one."""

    @property
    def turn_ended(self) -> bool:
        """As of `Transcriber`."""

    def push(self, pcm: Pcm) -> list[Transcribed]:
        """As of `Transcriber`."""

    def flush(self) -> list[Transcribed]:
        """As of `Transcriber`."""

    def reset(self) -> None:
        """As of `Transcriber`."""


class Utterance(Protocol):
    """What is being said: a `Speech`, or a part of what a shared speaker says. Attributes are those of `Speech`."""

    notes: list[str]
    over: bool

    def advance(self) -> Spoken | None:
        """As of `Speech`; a speaker that fails raises `MshError`."""

    def close(self) -> None:
        """Give it up, or what is left of it."""


class Mouth(Protocol):
    """What says the answers: a `Speaker`, or a part of a shared one."""

    def say(self, text: Iterable[str | None]) -> Utterance:
        """As of `Speaker`."""


@dataclass(frozen=True)
class Models:
    """The model that hears and the one that speaks, warmed up."""

    ears: Ears
    mouth: Mouth


@dataclass
class Answer:
    """An answer on its way: thought, speech, sound. `_changed` of the cascade guards all but `thought`.

    `speech` says a part of the thought, and `part` is its number. Frames of sound are kept with that.
    """

    thought: Thought
    speech: Utterance
    turned: Turned
    part: int = 0
    ready: deque[tuple[int, Spoken]] = field(default_factory=deque)  # made, and not handed to the loudspeaker yet
    handed: deque[tuple[int, Spoken]] = field(default_factory=deque)  # waiting there, as far as is known
    at: int = 0  # the first frame of the conversation that it has not taken
    follows: bool = False  # whether the next frame follows the one before, and is not the present one
    said: defaultdict[int, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )  # words that were heard, by part
    notes: list[str] = field(default_factory=list)  # of the parts before
    thought_at: float | None = None  # when the first words came, by perf_counter
    audible: bool = False  # whether a frame of this part was made that is not silent
    begun: bool = False  # whether the first sound was handed over
    cancelled: bool = False

    def speaks(self, spoken: Spoken) -> bool:
        """Tell whether the speech has begun, with this frame at the latest: the silence before it would only add delay."""
        self.audible = self.audible or bool(spoken.words) or float(np.abs(spoken.pcm).max()) > _SILENT
        return self.audible

    def cancel(self) -> None:
        """Stop thinking and speaking."""
        self.cancelled = True
        self.thought.cancel()
        self.speech.close()


# Makes the models on the thread of the ears; the arguments are as for `MakeSession`.
MakeModels = Callable[[Callable[[Loading], None], Callable[[], None]], Models]


class Cascade(OnThreads):
    """A conversation between `source` and `sink`: `ears` write down what the user says, `thinker` answers, `mouth` says that.

    One thread hears: it notices the end of the user's turn, has the words behind it written at once, and asks the thinker.
    Another speaks, while words still come. When the user speaks meanwhile, the voice stops at once; after 0.6 s of the user's
    voice the answer is given up, and what was not heard of it is not kept. If the user falls silent before, the answer goes on
    where it stopped.

    In its figures, "step" is how long the ears take for a frame, and "decode" how long the mouth takes for a step.

    Parameters
    ----------
    make
        Makes the models; it is called once, on the thread of the ears.
    thinker
        The language model.
    instructions
        The system prompt; "": none.
    speak_up
        After so many seconds in which nobody speaks, the language model is asked all the same, once until the user speaks
        again; the user's message is "...". None: never.
    source, sink, events, delay_limit
        As for `LiveConversation`.
    """

    def __init__(
        self,
        make: MakeModels,
        thinker: Thinker,
        source: Source,
        sink: Sink,
        events: Callable[[Event], None],
        *,
        instructions: str = "",
        speak_up: float | None = None,
        delay_limit: float = DELAY_LIMIT,
    ) -> None:
        super().__init__(source, sink, events, delay_limit)
        self._make = make
        self._thinker = thinker
        self._dialogue = Dialogue(instructions)
        self._changed = threading.Condition()  # guards what both threads use
        self._answer: Answer | None = None
        self._held = False  # whether the voice waits for the user
        self._silence = None if speak_up is None else math.ceil(speak_up / FRAME_SECONDS)  # frames
        self._active = 0  # the frame in which somebody last spoke
        self._spoke_up = False  # since the user last spoke
        self._answers_now = False
        self._index = 0  # frames of the user that were heard in this conversation
        self._heard: list[str] = []  # words of the user's turn so far
        self._voice = VoiceActivity()
        self._voice_ended = 0.0  # when the user's voice was last there, by perf_counter

    def start(self) -> None:
        """Start the threads, make the models and begin; events report the progress."""
        self._begin_thread("model", self._run_ears)

    def give_up(self) -> bool:
        """Give up the answer that is asked for or on its way, and keep what was heard; return whether it was on its way."""
        self._answers_now = False
        return self._drop_answer()

    def answer_now(self) -> None:
        """Answer when all sound that waits was heard, whether the user's turn has ended or not, and even without one."""
        self._answers_now = True

    def read(self, text: str) -> None:
        """Take what the user has written. It is answered with what the user says next, or by `answer_now`."""
        with self._changed:
            self._dialogue.say("user", text)

    def _wake(self) -> None:
        with self._changed:
            if self._answer:
                self._answer.cancel()
            self._changed.notify_all()

    # ---- the ears --------------------------------------------------------------------------------------------------------

    def _run_ears(self) -> None:
        models = self._make(self._events, self._check)
        self.metrics.memory = Memory.now()
        self._listen()
        self._begin_thread("mouth", lambda: self._run_mouth(models.mouth))
        voice, frame = self._voice, np.zeros(0, np.float32)
        while True:
            self._check()
            if self._restart:
                self._start_anew(models.ears)
                frame = np.zeros(0, np.float32)
            backlog = self._keep_up(self._index)
            self._tell_queues(backlog, 0.0, 0.0)
            pcm = self._source.read(_READ, _PATIENCE)
            if pcm is None:
                continue
            if self.muted:
                pcm = np.zeros_like(pcm)
            for at in range(0, _READ, PIECE):
                voice.hear(pcm[at : at + PIECE])
            if voice.quiet == 0.0:
                self._voice_ended = perf_counter() - backlog
            self._give_way()
            frame = np.concatenate([frame, pcm])
            if len(frame) == FRAME_SIZE:
                self._hear(models, frame)
                frame = np.zeros(0, np.float32)

    def _start_anew(self, ears: Ears) -> None:
        self._restart = False
        self._drop_answer()
        ears.reset()
        self._sink.clear()
        self._dialogue.reset()
        self._heard.clear()
        self._index = self._active = 0
        self._spoke_up = self._answers_now = False
        self._listen()

    def _hear(self, models: Models, pcm: Pcm) -> None:
        """Hear a frame, and answer if it ends a turn."""
        index, ears = self._index, models.ears
        begin = perf_counter()
        words = ears.push(self._hears(index, pcm))
        self._worked("step", index, begin, perf_counter())
        self._index += 1
        self._taken += 1
        self.metrics.frames += 1
        self._write(words)
        self._measure(Memory.now)
        now = self._answers_now and self._source.backlog() < FRAME_SECONDS
        if now or ears.turn_ended:
            noticed = perf_counter()
            self._write(ears.flush())
            listens, text = self._only_listens() and not now, " ".join(self._heard)
            self._heard.clear()
            if text and listens:
                self._events(Listened(text))
            elif text:
                self._drop_answer()
                turned = Turned(text, self._index, self._voice_ended, noticed, perf_counter())
                self._events(turned)
                self._answer_to(turned, models.mouth)
                self._spoke_up = False
            elif now:
                self._answer_nothing(models.mouth)
        elif self._is_silent():
            self._answer_nothing(models.mouth)
            self._spoke_up = True

    def _answer_nothing(self, mouth: Mouth) -> None:
        """Answer without a turn. What the user has said or written before may still wait for an answer."""
        now = perf_counter()
        waits = any(message["role"] == "user" for message in self._dialogue.messages[-1:])
        self._answer_to(Turned("" if waits else NOTHING, self._index, now, now, now), mouth)

    def _answer_to(self, turned: Turned, mouth: Mouth) -> None:
        self._answers_now = False
        with self._changed:
            self._drop_answer()
            self._dialogue.say("user", turned.text)
            self._ask(mouth, turned)
        self._voice.end()  # what ended the turn does not interrupt the answer

    def _is_silent(self) -> bool:
        """Tell whether it is time to speak up."""
        if self._voice.speaking or self._answer or self._heard:
            self._active = self._index
        return self._silence is not None and not self._spoke_up and self._index - self._active >= self._silence

    def _write(self, words: list[Transcribed]) -> None:
        for word in words:
            self._heard.append(word.text)
            self._events(HeardWord(Word(word.start, word.text)))
        # More words before the answer begins: the turn goes on, and the answer would be to half of it.
        if words and (self._is_early() or not self._only_listens()):
            self._drop_answer()

    def _is_early(self) -> bool:
        """Tell whether an answer is on its way, of which nothing was heard yet."""
        with self._changed:
            return self._answer is not None and not self._answer.begun

    def _only_listens(self) -> bool:
        """Tell whether the user's words only show that an answer is heard."""
        with self._changed:
            answered = self._answer is not None
        return answered and (
            self._voice.voiced < _SHORT or all(word.strip(".,!?…").lower() in _LISTENING for word in self._heard)
        )

    def _give_way(self) -> None:
        """Be silent while the user speaks, and give the answer up if that lasts."""
        voice = self._voice
        with self._changed:
            answer = self._answer
            if answer is None or not answer.begun:
                self._held = False
                return
            if voice.speaking and not self._held:
                self._held = True
                self._take_back(answer)
            elif self._held and not voice.speaking:
                self._held = False
                self._changed.notify_all()
            lasts = self._held and voice.voiced >= _INTERRUPTED
        if lasts:
            self._drop_answer()

    def _take_back(self, answer: Answer) -> None:
        """Take what was not played yet back from the loudspeaker."""
        self._tell_heard(answer)
        self._sink.clear()
        self._sink.pause()
        self._events(Hushed())
        while answer.handed:
            answer.ready.appendleft(answer.handed.pop())
        answer.follows = False

    # ---- asking ----------------------------------------------------------------------------------------------------------

    def _ask(self, mouth: Mouth, turned: Turned) -> None:
        """Ask for the answer to the dialogue so far; the caller holds the lock, and no answer is on its way."""
        thought = Thought(self._thinking, self._events)
        self._answer, self._held = Answer(thought, mouth.say(thought.pieces()), turned), False
        self._thinker.ask(self._dialogue.messages, thought)

    def _thinking(self) -> None:
        """Notice that something came; on a thread of the thinker."""
        with self._changed:
            answer = self._answer
            if answer and answer.thought_at is None and not answer.thought.waits:
                answer.thought_at = perf_counter()
            self._changed.notify_all()

    def _drop_answer(self) -> bool:
        """Give up the answer that is on its way, and keep what was heard of it; return whether there was one."""
        with self._changed:
            answer, self._answer, self._held = self._answer, None, False
            if answer is None:
                return False
            answer.cancel()
            if answer.begun:
                self._take_back(answer)
            self._dialogue.keep(answer.thought.messages(answer.said))
            self._changed.notify_all()
        self._events(Answered(cut=True))
        return True

    # ---- the mouth -------------------------------------------------------------------------------------------------------

    def _warm_up(self, mouth: Mouth) -> None:
        """Let the mouth compile: MLX does so for each thread."""
        speech = mouth.say(["one"])
        for _ in range(_WARM_UP):
            speech.advance()

    def _run_mouth(self, mouth: Mouth) -> None:
        self._warm_up(mouth)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._answer or self._over)
                answer = self._answer
            self._check()
            if answer:
                self._speak(answer, mouth)

    def _speak(self, answer: Answer, mouth: Mouth) -> None:
        """Say an answer, until all of it was heard or it is given up."""
        wrong: MshError | None = None
        while not answer.cancelled:
            self._check()
            made = False
            if not wrong and len(answer.ready) < _AHEAD and self._has_part(answer, mouth):
                try:
                    begin = perf_counter()
                    spoken = answer.speech.advance()
                    self._worked("decode", self._index, begin, perf_counter())
                    made = True
                    if spoken and answer.speaks(spoken):
                        with self._changed:
                            answer.ready.append((answer.part, spoken))
                except NotYetError:
                    pass
                except MshError as error:
                    wrong = error
            played = self._play(answer)
            over = wrong or (answer.speech.over and answer.thought.over)
            if over and not answer.ready and not answer.handed:
                break
            if not made and not played:
                with self._changed:
                    self._changed.wait(_TICK if answer.begun else _PATIENCE)
        else:
            return
        self._finish(answer, mouth, wrong)

    def _has_part(self, answer: Answer, mouth: Mouth) -> bool:
        """Tell whether a part of an answer is being said; begin the next one where that has come."""
        with self._changed:  # else what is given up meanwhile would begin a speech that nobody ends
            thought = answer.thought
            if answer.speech.over and not answer.cancelled and not thought.over and not thought.waits:
                answer.notes += answer.speech.notes
                answer.speech = mouth.say(thought.pieces())
                answer.part += 1
                answer.audible = False
            return not answer.speech.over

    def _finish(self, answer: Answer, mouth: Mouth, wrong: MshError | None) -> None:
        error = wrong or answer.thought.error
        with self._changed:
            if self._answer is not answer:
                return
            self._answer = None
            if wrong:  # the thought may still go on
                answer.cancel()
            self._sink.pause()
            kept = answer.thought.messages(answer.said)
            said = any(message["role"] == "assistant" and message["content"] for message in kept)
            self._dialogue.keep(kept)
            again = isinstance(error, TooLongError) and not (said or self._over) and self._dialogue.forget()
            if again:
                self._ask(mouth, answer.turned)
        for note in answer.notes + answer.speech.notes:
            self._events(Notice("unknown-word", note))
        if again and error:
            self._events(Notice("forgotten", f"{error.what}; the oldest half of it is forgotten.", "warning"))
        elif error:
            self._events(Notice("language-model", str(error), "error"))
        elif not said:
            self._events(Notice("no-answer", "The language model answered nothing that can be said.", "warning"))
        if not again:
            self._events(Answered(cut=False))

    def _play(self, answer: Answer) -> bool:
        """Tell what was heard, and hand a frame to the loudspeaker if it is time for it; return whether it was."""
        with self._changed:
            self._tell_heard(answer)
            queued = self._sink.queued()
            if self._held or answer.cancelled or not answer.ready:
                if answer.begun and not queued:
                    self._sink.pause()
                    answer.follows = False
                return False
            cushion = float(self._sink.stats().get("cushion", 0)) / SAMPLE_RATE
            if answer.begun and queued > cushion + _QUEUED:
                return False
            if not answer.begun and len(answer.ready) < _BEGINNING and not answer.speech.over:
                return False
            part, spoken = answer.ready.popleft()
            answer.handed.append((part, spoken))
            self._sink.write(spoken.pcm)
            first, answer.begun = not answer.begun, True
        if first:
            self._tell_reply(answer, perf_counter(), queued)
        return True

    def _tell_heard(self, answer: Answer) -> None:
        """Tell the frames that were played, and the words that begin in them."""
        waiting = math.ceil(self._sink.queued() / FRAME_SECONDS - _PART)
        while len(answer.handed) > waiting:
            part, spoken = answer.handed.popleft()
            index = answer.at if answer.follows else max(self._index, answer.at)
            answer.at, answer.follows = index + 1, True
            for word in spoken.words:
                answer.said[part].append(word.text)
                self.metrics.words += 1
                self._events(Spoke(index, f" {word.text}"))
                self._events(SpokeWord(Word(round(index * FRAME_SECONDS, 3), word.text)))
            self._events(Said(index, spoken.pcm))

    def _tell_reply(self, answer: Answer, made: float, queued: float) -> None:
        turned, thought = answer.turned, answer.thought_at or made
        self.metrics.reply.add(made - turned.noticed)
        self.metrics.delay.add(made + queued - turned.voice_ended)
        self._events(Replied(turned.voice_ended, turned.noticed, turned.written, thought, made, made + queued))
