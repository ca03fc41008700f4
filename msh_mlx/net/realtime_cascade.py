"""A session of `/v1/realtime` with a language model: turns and answers, as programs for OpenAI's own models expect them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ..conversation.cascade import Cascade
from ..events import Answered, Event, Heard, HeardWord, Listened, Notice, Replied, Said, Turned
from ..format import Pcm
from .realtime import Realtime, has_type
from .realtime_events import Item, Json, RefusedError, Response, error_event, needed, new_id
from .realtime_session import dumped
from .realtime_settings import UNABLE, RealtimeSettings
from .realtime_sound import SpeechBegan
from .realtime_transcription import EVENT

_NO_WORDS = 3.0  # seconds after the end of a sound, without a word, after which it counts as a turn without words


class RealtimeCascade(Realtime):
    """A client of `/v1/realtime` that talks with a language model; `hears` is the name of the model that hears.

    A turn begins when the level or a word says so, and ends when the conversation says so, which then asks for an answer. A
    response opens with that. It is done when all of it was sent, or when the user has interrupted it. The other parameters are
    those of `Realtime`.
    """

    def __init__(self, *args: Any, hears: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hears_by = hears
        self._settings = _interrupted(self._settings)
        self._words: list[str] = []  # of the turn that has not ended
        self._position = 0.0  # in the client's sound, up to which it was heard
        self._quiet: float | None = None  # since when the user is silent
        self._committed: deque[Item] = deque()  # turns that the client has ended, until their words have come
        self._texts_to_read: deque[str] = deque()  # that the client has written
        self._asks = False  # whether a response was asked for before there was somebody to give it
        self._given_up = 0  # answers whose end is known already
        self._failed_answer = False

    # ---- events ----------------------------------------------------------------------------------------------------------

    def _form(self) -> Json:
        form = super()._form()
        writes = {"model": self._hears_by, "language": None, "prompt": ""}
        if self._beta:
            form["input_audio_transcription"] = writes
        else:
            form["audio"]["input"]["transcription"] = writes
        return form

    def _updated(self, old: RealtimeSettings, new: RealtimeSettings) -> None:
        self._settings = new = _interrupted(new)
        super()._updated(old, new)

    def _commit(self, event: Json) -> None:
        super()._commit(event)
        if item := self._items.newest:
            self._committed.append(item)

    def _create_response(self, event: Json) -> None:
        super()._create_response(event)
        self._asks = True
        self._ask()

    def _create_item(self, event: Json) -> None:
        given = needed(event, "item", dict)
        parts = given.get("content")
        parts = parts if isinstance(parts, list) else []
        written, heard = (
            bool(parts) and all(has_type(part, f"input_{kind}") for part in parts) for kind in ("text", "audio")
        )
        if not has_type(given, "message") or given.get("role") != "user" or not (written or heard):
            sentence = "The only items that can be added are messages of the user, with input_text or input_audio."
            raise RefusedError(UNABLE, sentence, "item")
        if heard:
            super()._create_item(event)
            return
        item = self._users_item(event, given)
        item.written = True
        item.text = " ".join(needed(part, "text", str, "item.content.") for part in parts)
        self._tell_item(item, self._items.add(item))
        self._texts_to_read.append(item.text)
        self._want()
        self._ask()

    def _ask(self) -> None:
        """Hand over what the client has asked for, if there is somebody to answer."""
        if not (self._hears and isinstance(self.pipeline, Cascade)):
            return
        while self._texts_to_read:
            self.pipeline.read(self._texts_to_read.popleft())
        if self._asks:
            self._asks = False
            self.pipeline.answer_now()

    def _cancel(self, event: Json) -> None:
        super()._cancel(event)
        self._asks = False
        if isinstance(self.pipeline, Cascade) and self.pipeline.give_up():
            self._given_up += 1

    def _ready(self) -> None:
        super()._ready()
        self._ask()

    def _fill(self, how: str) -> None:
        """Silence is always heard where no sound comes."""

    # ---- what the conversation tells -------------------------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        if isinstance(event, Heard):
            self._on_loop(self._user_says, event.pcm, self._source.position)
        elif isinstance(event, HeardWord | Turned | Listened | Replied | Answered | Notice):
            self._on_loop(self._follow, event)
        else:
            super()._observe(event)

    def _follow(self, event: Event) -> None:
        match event:
            case HeardWord(word):
                self._hear_word(word.text, word.start)
            case Turned(text):
                self._turned(text)
                self._answers()
            case Listened(text):
                self._turned(text)
            case Replied():
                self._answers()
            case Answered(cut):
                self._answered(cut=cut)
            case Notice(kind, sentence, "error"):
                self._failed_answer = True
                self._send([dumped(error_event(sentence, kind.replace("-", "_"), own=True))])

    def _hear_word(self, text: str, start: float) -> None:
        name = self._committed[0].id if self._committed else self._turn or self._begin_turn(start)
        delta = f" {text}" if self._words else text
        self._words.append(text)
        self._emit(f"{EVENT}.delta", item_id=name, content_index=0, delta=delta)

    def _begin_turn(self, at: float) -> str:
        self._turn, self._quiet = new_id("item"), None
        if self._detector:
            self._emit("input_audio_buffer.speech_started", audio_start_ms=round(1000 * at), item_id=self._turn)
        return self._turn

    def _turned(self, text: str) -> None:
        self._write_down(self._committed.popleft() if self._committed else self._stopped(), text)

    def _stopped(self) -> Item:
        """End the turn, and return its item."""
        at = self._position if self._quiet is None else self._quiet
        if self._detector:
            self._detector.end(self._position)
            if self._turn:
                self._emit("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * at), item_id=self._turn)
        self._quiet = None
        return self._end_turn()

    def _write_down(self, item: Item, text: str) -> None:
        self._words.clear()
        item.text = text
        done = {"transcript": text, "logprobs": None, "usage": None}
        self._emit(f"{EVENT}.completed", item_id=item.id, content_index=0, **done)

    def _answers(self) -> None:
        while self._committed:  # nothing was said in them
            self._write_down(self._committed.popleft(), "")
        if not self._response:
            self._open(Response(written=self._settings.written))

    def _answered(self, *, cut: bool) -> None:
        failed, self._failed_answer = self._failed_answer, False
        if cut and self._given_up:
            self._given_up -= 1
        elif self._response and cut:
            self._finish("cancelled", "turn_detected")
        elif self._response:
            self._finish("failed" if failed else "completed")

    # ---- sound -----------------------------------------------------------------------------------------------------------

    def _coded(self, said: Said, texts: list[str]) -> Callable[[], None]:
        return partial(self._model_says, texts, said.pcm)

    def _user_says(self, pcm: Pcm, end: float) -> None:
        self._position = end
        for found in self._detector.hear(pcm, end) if self._detector else ():
            if not isinstance(found, SpeechBegan):
                self._quiet = found.at
            elif self._turn:
                self._quiet = None
            else:
                self._begin_turn(found.at)
        if self._turn and not self._words and self._quiet is not None and end - self._quiet > _NO_WORDS:
            self._write_down(self._stopped(), "")

    def _model_says(self, texts: list[str], pcm: Pcm) -> None:
        response = self._response
        if response and (texts or pcm.any()):
            self._deliver(response, response.item or self._open_item(response), texts, pcm)


def _interrupted(settings: RealtimeSettings) -> RealtimeSettings:
    """Return the settings with what is so anyway: who speaks interrupts."""
    detection = settings.detection
    return replace(settings, detection=replace(detection, interrupts=True)) if detection else settings
