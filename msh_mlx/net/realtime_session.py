"""What all sessions of `/v1/realtime` share: events both ways, settings, the buffer of sound, and the user's turns."""

from __future__ import annotations

import base64
import binascii
import json
from abc import abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..conversation.personas import Persona
from ..conversation.served import OfferedPersonas
from ..events import Failed
from ..format import SAMPLE_RATE, Pcm
from ..system.words import shortened
from .connection import Connection, End, Limits
from .parameters import ChatParameters
from .realtime_events import (
    Item,
    Items,
    Json,
    RefusedError,
    error_event,
    event_name,
    needed,
    new_id,
    read_event,
)
from .realtime_settings import Asked, RealtimeSettings, Updater
from .realtime_sound import SoundReader, SpeechBegan
from .wire import Wire

_LEAST = 0.1  # seconds of sound that can be committed
_EARLY_EVENTS = 64  # that are kept while the client waits in line


class RealtimeSession(Connection):
    """A client of `/v1/realtime`. What becomes of its sound is up to the kind of session, which is a class of its own.

    `model` is what clients are told of the model's name, and `personas` are those that they can choose, or None. With `beta`,
    the events have the names and forms of OpenAI's beta. `refused` is called with each event that is refused.
    """

    beginning = "session.created"

    def __init__(
        self,
        wire: Wire,
        parameters: ChatParameters,
        persona: Persona | None,
        limits: Limits,
        fail: Callable[[Failed], None],
        refused: Callable[[], None],
        *,
        model: str,
        personas: OfferedPersonas | None,
        beta: bool,
    ) -> None:
        super().__init__(wire, parameters, persona, limits, fail, by_turns=True)
        self._refused = refused
        self._model = model
        self._personas = personas
        self._beta = beta
        self._name, self._conversation = new_id("sess"), new_id("conv")
        self._settings = RealtimeSettings(Asked(parameters.voice_prompt, parameters.text_prompt), persona)
        self._created = False
        self._early: list[str] = []  # events that came before the client's turn
        self._sound_came = False  # whether the model hears, or will
        self._reader = SoundReader(self._settings.input_format)
        self._buffered = 0.0  # seconds of sound since the last commit or clear
        self._detector = self._settings.detection.voice() if self._settings.detection else None
        self._turn: str | None = None  # the id of the item that the user's turn becomes
        self._items = Items()
        self._obey: dict[str, Callable[[Json], None]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.retrieve": self._retrieve,
            "conversation.item.delete": self._delete,
        }

    # ---- what a kind of session does -------------------------------------------------------------------------------------

    @abstractmethod
    def _updated(self, old: RealtimeSettings, new: RealtimeSettings) -> None:
        """Follow new settings."""

    @abstractmethod
    def _take_sound(self, pcm: Pcm) -> None:
        """Let the model hear sound."""

    @abstractmethod
    def _drop_sound(self) -> None:
        """Drop the sound that was not heard yet."""

    @abstractmethod
    def _user_began(self) -> None:
        """Follow that the user has begun to speak."""

    # ---- the way out -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Tell the client that its turn has come, and take the events that it sent before."""
        self._listens = self._created = True
        self._listens_since = monotonic()
        self._emit("session.created", session=self._form())
        self._emit("conversation.created", conversation={"id": self._conversation, "object": "realtime.conversation"})
        for text in self._early:
            self._take(text)
        self._early.clear()

    def _form(self) -> Json:
        return self._settings.form(self._name, self._model, self.parameters.text_temperature, self._beta)

    def _emit(self, name: str, **values: Any) -> None:
        """Queue an event, in the client's dialect."""
        if name := event_name(name, self._beta):
            self._send([dumped({"type": name, "event_id": new_id("event"), **values})])

    def _farewell(self, sentence: str, end: End) -> str:
        own = end.kind in ("failed", "session", "shutdown")
        return dumped(error_event(sentence, end.kind, own=own))

    def _refuse(self, error: RefusedError, event_id: str | None) -> None:
        self._refused()
        self._send([dumped(error_event(str(error), error.code, param=error.param, event_id=event_id))])

    # ---- the way in ------------------------------------------------------------------------------------------------------

    def _hear(self, data: bytes | str) -> None:
        if isinstance(data, bytes):
            sentence = "The message is binary; send events as texts, and sound in them in base64."
            self._refuse(RefusedError("invalid_message", sentence), None)
        elif len(data) > self._limits.message:
            sentence = f"The event has {len(data)} characters; {self._limits.message} are allowed; send less at once."
            self._refuse(RefusedError("event_too_large", sentence), None)
        elif self._created:
            self._take(data)
        elif '"input_audio_buffer.append"' in data:
            pass  # sound before the client's turn is not heard
        elif len(self._early) < _EARLY_EVENTS:
            self._early.append(data)
        else:
            sentence = (
                f"More than {_EARLY_EVENTS} events came before the session was created; wait for session.created."
            )
            self._refuse(RefusedError("too_early", sentence), None)

    def _take(self, text: str) -> None:
        event_id = None
        try:
            event = read_event(text)
            if isinstance(name := event.get("event_id"), str):
                event_id = name
            if obey := self._obey.get(event["type"]):
                obey(event)
            else:
                shown, known = shortened(event["type"], 60), ", ".join(f"'{name}'" for name in self._obey)
                raise RefusedError("invalid_value", f"Invalid value: '{shown}'. Supported values are: {known}.", "type")
        except RefusedError as error:
            self._refuse(error, event_id)

    def _update(self, event: Json) -> None:
        updater = self._updater()
        updater.update(needed(event, "session", dict))
        event_id = event.get("event_id")
        for unable in updater.unable:
            self._refuse(unable, event_id if isinstance(event_id, str) else None)
        old, new = self._settings, updater.settings
        self._settings = new
        if new.input_format != old.input_format:
            self._reader = SoundReader(new.input_format)
        if new.detection != old.detection:
            self._detector, self._turn = new.detection.voice() if new.detection else None, None
        self._updated(old, new)
        self._emit("session.updated", session=self._form())

    def _updater(self) -> Updater:
        return Updater(self._settings, self._personas, self._sound_came)

    def _append(self, event: Json) -> None:
        self._hear_sound(self._decoded(needed(event, "audio", str), "audio"))

    def _decoded(self, text: str, param: str) -> Pcm:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise RefusedError("invalid_value", f"{param} is not valid base64.", param) from None
        return self._reader.read(data)

    def _hear_sound(self, pcm: Pcm) -> None:
        if seconds := len(pcm) / SAMPLE_RATE:
            self._sound_came = True
            self._came(seconds)
            self._buffered += seconds
            self._take_sound(pcm)

    def _commit(self, _: Json) -> None:
        if self._buffered < _LEAST:
            raise RefusedError(
                "input_audio_buffer_commit_empty",
                f"The buffer has {1000 * self._buffered:.0f} ms of sound; at least {1000 * _LEAST:.0f} ms are needed.",
            )
        self._end_turn()

    def _end_turn(self) -> Item:
        """Make an item of what the user said since the last one, and return it."""
        item = Item("user", self._turn or new_id("item"))
        self._turn, self._buffered = None, 0.0
        before = self._items.add(item)
        self._emit("input_audio_buffer.committed", previous_item_id=before, item_id=item.id)
        self._tell_item(item, before)
        return item

    def _tell_item(self, item: Item, before: str | None) -> None:
        for name in ("conversation.item.added", "conversation.item.done"):
            self._emit(name, previous_item_id=before, item=item.form(self._beta))

    def _clear(self, _: Json) -> None:
        self._buffered = self._unanswered = 0.0
        self._drop_sound()
        self._reader = SoundReader(self._settings.input_format)
        self._detector, self._turn = self._settings.detection.voice() if self._settings.detection else None, None
        self._emit("input_audio_buffer.cleared")

    def _retrieve(self, event: Json) -> None:
        item = self._items.find(event, "item_retrieve_invalid_item_id")
        self._emit("conversation.item.retrieved", item=item.form(self._beta))

    def _delete(self, event: Json) -> None:
        item = self._items.find(event, "item_delete_invalid_item_id")
        if item.status == "in_progress":
            raise RefusedError("invalid_value", "The model is still speaking; cancel the response before.", "item_id")
        self._items.remove(item)
        self._emit("conversation.item.deleted", item_id=item.id)

    # ---- the user's voice ------------------------------------------------------------------------------------------------

    def _user_says(self, pcm: Pcm, end: float) -> None:
        for found in self._detector.hear(pcm, end) if self._detector else ():
            at = round(1000 * found.at)
            if isinstance(found, SpeechBegan):
                if self._turn:  # what was said has shown it already
                    continue
                self._turn = new_id("item")
                self._emit("input_audio_buffer.speech_started", audio_start_ms=at, item_id=self._turn)
                self._user_began()
            elif self._turn:
                self._emit("input_audio_buffer.speech_stopped", audio_end_ms=at, item_id=self._turn)
                self._end_turn()


def dumped(event: Json) -> str:
    """Return an event as it is sent."""
    return json.dumps(event, separators=(",", ":"))  # in ASCII: what the client wrote may be no valid Unicode
