"""`SharedCascade`: a language model, with one model that hears and one that speaks, for several conversations at once."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

import numpy as np

from ..errors import MshError
from ..events import Event, Failed, Loading, Ready, Said, Span, Spoke
from ..format import FRAME_SECONDS, FRAME_SIZE, Pcm
from .cascade import Answer, Cascade, Models, Mouth
from .dialogue import Thinker
from .live import DELAY_LIMIT, Source
from .personas import Persona
from .served import find_voice
from .shared import ROOM, Tick
from .shared_speaker import Made, SharedSpeaker
from .shared_transcriber import LiveProgress, SharedTranscriber
from .speaker import NotYetError, Spoken
from .transcriber import Transcribed

_PATIENCE = 0.1  # seconds between two looks whether the conversation is over
_LATE = 1.0  # seconds after which sound is not made up for: the machine was asleep
_ON_THEIR_WAY = 2  # frames that were sent, and that the user has most likely not heard yet
_SILENCE = np.zeros(FRAME_SIZE, np.float32)


class SharedCascade:
    """What all conversations with a language model share, and the places for them.

    Parameters
    ----------
    transcriber, speaker
        The models that hear and speak, for all. They may be loaded later.
    rows
        How many places `transcriber` has: each conversation takes one.
    thinker
        The language model.
    instructions
        The system prompt, where a client gives none.
    speak_up
        As for `Cascade`.

    Attributes
    ----------
    on_tick
        Called for each frame that is heard, as by `SharedModel`.
    personas
        What a client may choose: the voices of `speaker`, and a system prompt.
    """

    def __init__(
        self,
        transcriber: SharedTranscriber,
        speaker: SharedSpeaker,
        rows: int,
        thinker: Thinker,
        *,
        instructions: str = "",
        speak_up: float | None = None,
    ) -> None:
        self.transcriber, self.speaker, self.thinker = transcriber, speaker, thinker
        self.speak_up = speak_up
        self.on_tick: Callable[[Tick], None] = lambda _: None
        self.personas = VoicesAndPrompts(speaker, instructions)
        self._rows = rows

    def has_room(self, others: int, beside: Mapping[Any, int] | None = None, fresh: int = 0) -> bool:
        """Tell whether one more conversation beside `others` has a place, and is heard in time, as far as was measured.

        The first always is. The other arguments are there for other models, and are of no use here.
        """
        taken = max(others, sum(self.transcriber.figures()))
        return taken < self._rows and (not others or self._fit(others + 1))

    def places(self, others: int, beside: Mapping[Any, int] | None = None, most: int = 1) -> int:
        """Return how many conversations there can be, up to `most`, as far as one can tell while there are `others`."""
        count = max(1, others)
        while count < min(most, self._rows) and self._fit(count + 1):
            count += 1
        return count

    def _fit(self, count: int) -> bool:
        return count * self.transcriber.frames.recent(50) <= ROOM * FRAME_SECONDS


class VoicesAndPrompts:
    """The voices of a speaker, and a system prompt: `OfferedPersonas`. A voice has no more than its name here."""

    def __init__(self, speaker: SharedSpeaker, instructions: str) -> None:
        self._speaker = speaker
        self._instructions = instructions

    @property
    def names(self) -> list[str]:
        """Return the names of the voices, sorted; none before they are loaded."""
        return sorted(self._speaker.voices.speakers) if self._speaker.voices else []

    @property
    def default(self) -> Persona:
        """Return the usual voice, and the server's system prompt."""
        return Persona(None, self._instructions, self._speaker.voices.default if self._speaker.voices else "")

    def choose(self, voice: str | None = None, text: str | None = None) -> Persona:
        """Return what a client asks for; None stands for what it did not ask for.

        Raises
        ------
        InputError
            There is no such voice.
        """
        persona = self.default
        if voice is not None:
            persona = replace(persona, name=find_voice(voice, self.names))
        return persona if text is None else replace(persona, text=text)


class ServedCascade(Cascade):
    """A conversation beside others, between a connection's `source` and what comes as events.

    `Said` comes every 80 ms, with silence where nothing is said. What is to be said waits here until its time has come, so that
    little of it is ahead of the user when they interrupt. `Spoke` comes right before the sound of its frame. `persona` has the
    name of the voice, and the system prompt. The rest is as for `Cascade`.
    """

    def __init__(
        self,
        shared: SharedCascade,
        persona: Persona,
        source: Source,
        events: Callable[[Event], None],
        *,
        delay_limit: float = DELAY_LIMIT,
        early: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        self._out = _Out()
        super().__init__(
            self._join,
            shared.thinker,
            source,
            self._out,
            self._tell,
            instructions=persona.text,
            speak_up=shared.speak_up,
            delay_limit=delay_limit,
        )
        self._early = early
        self._shared, self._voice_name = shared, persona.name
        self._client = secrets.token_hex(8)  # each conversation counts as a client of its own
        self._told = events
        self._telling = threading.Lock()  # what is told of a frame is told together
        self._frames = 0  # that were played since the conversation began
        self._sent: deque[tuple[int, Pcm]] = deque(maxlen=_ON_THEIR_WAY)  # frames with speech that were played last
        self._ended = threading.Event()
        self._ears: _Ears | None = None

    def _wake(self) -> None:
        self._ended.set()
        super()._wake()

    # ---- the ears' thread ------------------------------------------------------------------------------------------------

    def _join(self, _: Callable[[Loading], None], check: Callable[[], None]) -> Models:
        self._ears = _Ears(self._shared.transcriber, self._client, check)
        self._begin_thread("clock", self._run_clock)
        return Models(self._ears, _Mouth(self._shared.speaker, self._voice_name, self._client, self._notify))

    def _run_ears(self) -> None:
        try:
            super()._run_ears()
        finally:
            self._wake()  # it gives up an answer that was asked for meanwhile
            if self._ears:
                self._ears.close()

    def _notify(self) -> None:
        """Say that something was made; on the speaker's thread."""
        with self._changed:
            self._changed.notify_all()

    def _warm_up(self, mouth: Mouth) -> None:
        """The shared model is warm."""

    def _take_back(self, answer: Answer) -> None:
        """Say what is on its way again, too, if the answer goes on: clients silence it."""
        super()._take_back(answer)
        while self._sent:
            frame, pcm = self._sent.pop()
            if self._frames - frame <= _ON_THEIR_WAY:
                answer.ready.appendleft((answer.part, Spoken(pcm, ())))

    # ---- the clock's thread ----------------------------------------------------------------------------------------------

    def _run_clock(self) -> None:
        at = perf_counter()
        while True:
            at += FRAME_SECONDS
            wait = at - perf_counter()
            if wait < -_LATE:
                at = perf_counter()
            self._ended.wait(max(0.0, wait))
            self._check()
            self._play_frame()

    def _play_frame(self) -> None:
        """Send what is said now: the words, and then the sound."""
        with self._changed:
            pcm = self._out.take()
            if self._answer:
                self._tell_heard(self._answer)
            if pcm is not None:
                self._sent.append((self._frames, pcm))
            with self._telling:
                if self._conversation:
                    self._told(Said(self._frames, _SILENCE if pcm is None else pcm))
                    self._frames += 1
            self._changed.notify_all()

    def _tell(self, event: Event) -> None:
        """Pass an event on, in terms of what is played."""
        if isinstance(event, Said):
            return  # the clock tells it
        if isinstance(event, Failed):
            event = Failed("conversation", event.error)  # a failure of the models is told by themselves
        elif isinstance(event, Span) and event.stage == "step":
            self._shared.on_tick(Tick(1, event.end - event.begin, [self._source.backlog()]))
        if isinstance(event, Ready):
            with self._changed:
                self._sent.clear()
        with self._telling:
            if isinstance(event, Ready):
                self._frames = 0
            elif isinstance(event, Spoke):
                event = Spoke(self._frames, event.text)
            self._told(event)


class _Out:
    """The loudspeaker of a connection: frames wait here until the clock takes them. It is used under the cascade's lock."""

    def __init__(self) -> None:
        self._frames: deque[Pcm] = deque()

    def write(self, pcm: Pcm) -> None:
        self._frames.append(pcm)

    def pause(self) -> None:
        return

    def clear(self) -> None:
        self._frames.clear()

    def queued(self) -> float:
        return len(self._frames) * FRAME_SECONDS

    def stats(self) -> Mapping[str, Any]:
        return {}

    def take(self) -> Pcm | None:
        return self._frames.popleft() if self._frames else None


class _Ears:
    """One conversation's part of a shared transcriber: `Ears`. `check` raises an error when the conversation is over."""

    def __init__(self, shared: SharedTranscriber, client: str, check: Callable[[], None]) -> None:
        self._progress: SimpleQueue[LiveProgress] = SimpleQueue()
        self._live = shared.listen(self._progress.put, client)
        self._check = check
        self.turn_ended = False

    def push(self, pcm: Pcm) -> list[Transcribed]:
        self._live.push(pcm)
        return self._wait()

    def flush(self) -> list[Transcribed]:
        self._live.flush()
        return self._wait()

    def reset(self) -> None:
        self._live.reset()
        self.turn_ended = False

    def close(self) -> None:
        self._live.close()

    def _wait(self) -> list[Transcribed]:
        """Wait until what was asked for last is done. Raise `MshError` if the model hears no more."""
        while True:
            self._check()
            try:
                progress = self._progress.get(timeout=_PATIENCE)
            except Empty:
                continue
            if progress.ended:
                raise progress.error or MshError("The speech-to-text model hears no more.")
            self.turn_ended = progress.turn_ended
            return progress.words


class _Mouth:
    """One conversation's part of a shared speaker: `Mouth`. `changed` is called, on its thread, when sound is made."""

    def __init__(self, shared: SharedSpeaker, voice: str, client: str, changed: Callable[[], None]) -> None:
        self._shared, self._voice, self._client, self._changed = shared, voice, client, changed

    def say(self, text: Iterable[str | None]) -> _Utterance:
        return _Utterance(self._shared, self._voice, self._client, text, self._changed)


class _Utterance:
    """A text that is said by a shared speaker: `Utterance`."""

    def __init__(
        self,
        shared: SharedSpeaker,
        voice: str,
        client: str,
        text: Iterable[str | None],
        changed: Callable[[], None],
    ) -> None:
        self.notes: list[str] = []
        self.over = False
        self._pieces = iter(text)
        self._more = True
        self._made: deque[Made] = deque()
        self._changed = changed
        self._error: MshError | None = None
        try:
            self._saying = shared.say(self._take, voice or None, client)
        except MshError as error:  # it is told when the answer is to be said
            self._error = error

    def _take(self, made: Made) -> None:
        self._made.append(made)
        self._changed()

    def advance(self) -> Spoken | None:
        if self._error:
            raise self._error
        self._feed()
        if not self._made:
            raise NotYetError("The next frame is not made yet.")
        made = self._made.popleft()
        self.notes += made.notes
        self.over = made.ended
        if made.error:
            raise made.error
        if made.spoken:
            self._saying.took()
        return made.spoken

    def _feed(self) -> None:
        """Hand over the text that has come."""
        while self._more:
            try:
                piece = next(self._pieces)
            except StopIteration:
                self._more = False
                self._saying.finish()
                return
            if piece is None:
                return
            self._saying.feed(piece)

    def close(self) -> None:
        self.over = True
        if not self._error:
            self._saying.close()
