"""The protocol of `/v1/realtime` on a live connection: OpenAI's, of today and of its beta, with a model in full duplex.

The model hears and speaks all the time. A response opens when it begins to speak, or when the client asks for one, and is done
after a pause. So the sound of a response comes as fast as the model speaks, and what lies between two responses is not sent.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from ..events import Event, Heard, Said
from ..format import FRAME_SECONDS, SAMPLE_RATE, Pcm
from ..system.words import shortened
from .connection import AHEAD, UNREAD, Connection, End, MakeSeat
from .realtime_events import (
    Item,
    Json,
    RefusedError,
    Response,
    needed,
    new_id,
    read_event,
    typed,
)
from .realtime_session import RealtimeSession
from .realtime_settings import TRANSCRIPTION, UNABLE, RealtimeSettings, Updater, format_form
from .realtime_sound import ModelVoice, SoundWriter
from .realtime_transcription import RealtimeTranscription

BETA_HEADER, BETA_PROTOCOL = "realtime=v1", "openai-beta.realtime-v1"
PROTOCOLS = "realtime", BETA_PROTOCOL  # the subprotocols that are known
TOKEN_PROTOCOL = "openai-insecure-api-key."  # what a browser's token stands behind, as a subprotocol

_PATIENCE = round(5.0 / FRAME_SECONDS)  # frames for which a response that was asked for waits for the model to speak
_ENDING = 3  # frames of the model's silence, after which the user's voice ends a response
_LONGEST_ID = 64  # characters
_NOTHING = np.zeros(0, np.float32)
# What a response may be asked for besides its form: what is so anyway.
_USUAL: dict[str, tuple[Any, ...]] = {
    "conversation": (None, "auto"),
    "instructions": (None, ""),
    "max_output_tokens": (None, "inf"),
    "max_response_output_tokens": (None, "inf"),
    "parallel_tool_calls": (None, True, False),
    "tool_choice": (None, "auto", "none"),
    "tools": (None, []),
}


class Realtime(RealtimeSession):
    """A client of `/v1/realtime` that talks with the model; the parameters are those of `RealtimeSession`.

    `transcription` makes the session of transcription that this one becomes if it is asked for that first thing: `follower`.
    None: there is no model for that.
    """

    def __init__(
        self, *args: Any, transcription: Callable[[], RealtimeTranscription] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.follower: RealtimeTranscription | None = None
        self._transcription = transcription
        self._defaults = self.parameters
        # The model's session is made when it is known what is asked for: after the first update, or when sound comes.
        self._wanted = asyncio.Event()
        self._was_wanted = False
        self._hears = False  # whether sound goes to the model
        self._held: list[Pcm] = []  # sound that came before
        self._held_seconds = 0.0
        self._voice = ModelVoice()
        self._before: Pcm | None = None  # the frame before the model began to speak
        self._response: Response | None = None
        self._writer = SoundWriter(self._settings.output_format)
        self._withholds = False  # until the model pauses
        # Frames without an answer yet, each with where it ends in the client's sound. Used by the pipeline's threads alone.
        self._heard: deque[tuple[Heard, float]] = deque()
        self._obey |= {
            "conversation.item.create": self._create_item,
            "conversation.item.truncate": self._truncate,
            "response.create": self._create_response,
            "response.cancel": self._cancel,
        }

    # ---- the conversation ------------------------------------------------------------------------------------------------

    async def _talk(self, wait: Callable[[Connection], Awaitable[None]], make: MakeSeat) -> None:
        await wait(self)
        self._begin()
        while True:
            await self._wanted.wait()
            await self._stop()
            self._wanted.clear()
            seat = await self._make(make)
            if seat is None:
                return
            if not self._wanted.is_set():
                self._start(seat)
            del seat

    def _want(self, anew: bool = False) -> None:
        """Ask for a session, or for a new one in place of one that has heard nothing yet."""
        if anew or not self._was_wanted:
            self._was_wanted = True
            self._hears = False
            self._wanted.set()

    def _ready(self) -> None:
        super()._ready()
        if not self._wanted.is_set():
            self._hears = True
            for pcm in self._held:
                self._source.write(pcm)
            self._held.clear()
            self._held_seconds = 0.0

    # ---- the way in ------------------------------------------------------------------------------------------------------

    def _hear(self, data: bytes | str) -> None:
        if self.follower:
            self.follower._hear(data)
        elif self._transcription and not self._was_wanted and self._asks_for_transcription(data):
            self.follower = self._transcription()
            self.follower.follow(self, str(data))
            self.end(End("follower"))
        else:
            super()._hear(data)

    def _asks_for_transcription(self, data: bytes | str) -> bool:
        if not isinstance(data, str) or len(data) > self._limits.message or "transcription" not in data:
            return False
        try:
            event = read_event(data)
        except RefusedError:
            return False
        return event["type"] == "transcription_session.update" or (
            event["type"] == "session.update" and has_type(event.get("session"), TRANSCRIPTION)
        )

    def _update(self, event: Json) -> None:
        if self._transcription and has_type(event.get("session"), TRANSCRIPTION):
            sentence = "This is a conversation already; ask for transcription first thing, or by ?intent=transcription."
            raise RefusedError(UNABLE, sentence, "session.type")
        super()._update(event)

    async def _until_there_is_room(self) -> None:
        begin, live = monotonic(), self.parameters.realtime
        while self._held_seconds > AHEAD and not (live and monotonic() - begin > UNREAD):
            await asyncio.sleep(0.01)
        await super()._until_there_is_room()

    def _updated(self, old: RealtimeSettings, new: RealtimeSettings) -> None:
        if new.asked != old.asked:
            self.persona = new.persona
            heat = new.asked.temperature
            self.parameters = self._defaults
            if heat is not None:
                self.parameters = replace(self._defaults, text_temperature=heat, audio_temperature=heat)
        self._want(anew=new.asked != old.asked)

    def _take_sound(self, pcm: Pcm) -> None:
        self._want()
        if self._hears:
            self._source.write(pcm)
        else:
            self._held.append(pcm)
            self._held_seconds += len(pcm) / SAMPLE_RATE

    def _drop_sound(self) -> None:
        self._held.clear()
        self._held_seconds = 0.0
        if self._hears:
            self._source.trim(0)

    def _create_item(self, event: Json) -> None:
        given = needed(event, "item", dict)
        parts = given.get("content")
        heard = isinstance(parts, list) and parts and all(has_type(part, "input_audio") for part in parts)
        if not has_type(given, "message") or given.get("role") != "user" or not heard:
            sentence = (
                "The model hears sound, and reads nothing in a conversation; the only items that it takes are messages of the "
                "user with input_audio. What it should know from the beginning can be in its instructions, if it takes them."
            )
            raise RefusedError(UNABLE, sentence, "item")
        item = self._users_item(event, given)
        pcms = [self._decoded(needed(part, "audio", str, "item.content."), "item.content.audio") for part in parts]
        before = self._items.add(item)
        for pcm in pcms:
            self._hear_sound(pcm)
        self._buffered = 0.0
        self._tell_item(item, before)

    def _users_item(self, event: Json, given: Json) -> Item:
        """Make an item of the user as the client wants it. Raise RefusedError if it cannot be."""
        name = given.get("id")
        if name is not None and (self._items.has(typed(name, str, "item.id")) or len(name) > _LONGEST_ID):
            sentence = f"item.id is longer than {_LONGEST_ID} characters, or there is an item with this id already."
            raise RefusedError("invalid_value", sentence, "item.id")
        if event.get("previous_item_id") not in (None, self._items.last):
            raise RefusedError(UNABLE, "Items can only be added at the end of a conversation.", "previous_item_id")
        return Item("user", name or new_id("item"))

    def _truncate(self, event: Json) -> None:
        item = self._items.find(event, "item_truncate_invalid_item_id")
        end = needed(event, "audio_end_ms", int)
        if item.role != "assistant" or item.written:
            raise RefusedError("invalid_value", "Only what the model has said can be cut short.", "item_id")
        if event.get("content_index", 0) != 0:
            raise RefusedError("invalid_value", "content_index is not 0; items have one part here.", "content_index")
        if not 0 <= end <= round(1000 * item.seconds):
            sentence = f"audio_end_ms is {end}, but the item has {round(1000 * item.seconds)} ms of sound."
            raise RefusedError("invalid_value", sentence, "audio_end_ms")
        item.seconds, item.text = end / 1000, ""
        self._emit("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=end)

    # ---- the user's voice ------------------------------------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        if isinstance(event, Heard):
            self._heard.append((event, self._source.position))
        else:
            super()._observe(event)

    def _renew(self) -> None:
        self._heard.clear()

    def _user_began(self) -> None:
        if self._response and self._response.item:
            if self._voice.silent >= _ENDING:
                self._finish("completed")
            elif self._settings.detection and self._settings.detection.interrupts:
                self._break_off("turn_detected")

    # ---- the model's voice -----------------------------------------------------------------------------------------------

    def _coded(self, said: Said, texts: list[str]) -> Callable[[], None]:
        # What the user says is looked at when the model has answered it: so the order of events does not depend on chance.
        heard = []
        while self._heard and self._heard[0][0].index <= said.index:
            heard.append(self._heard.popleft())
        return partial(self._exchange, heard, texts, said.pcm)

    def _exchange(self, heard: list[tuple[Heard, float]], texts: list[str], pcm: Pcm) -> None:
        for event, end in heard:
            self._user_says(event.pcm, end)
        self._model_says(texts, pcm)

    def _model_says(self, texts: list[str], pcm: Pcm) -> None:
        speaks = self._voice.say(texts, pcm)
        if self._withholds:
            self._withholds = not self._voice.pauses
            return
        response = self._response
        if response and response.item:
            self._deliver(response, response.item, texts, pcm)
            if self._voice.pauses:
                self._finish("completed")
        elif speaks:
            response = response or self._open(Response(written=self._settings.written))
            item = self._open_item(response)
            if self._before is not None:
                self._deliver(response, item, [], self._before)
            self._deliver(response, item, texts, pcm)
        elif response:
            response.patience -= 1
            if response.patience <= 0:
                self._finish("completed")
        self._before = None if speaks else pcm

    def _open(self, response: Response) -> Response:
        self._response = response
        self._fill("live" if self.parameters.realtime else "fast")
        self._writer = SoundWriter(self._settings.output_format)
        self._emit("response.created", response=self._response_form(response, "in_progress"))
        return response

    def _open_item(self, response: Response) -> Item:
        item = response.item = Item("assistant", status="in_progress", text="", written=response.written, begun=False)
        before = self._items.add(item)
        form = item.form(self._beta)
        self._emit("response.output_item.added", response_id=response.id, output_index=0, item=form)
        self._emit("conversation.item.added", previous_item_id=before, item=form)
        part = {"type": "text", "text": ""} if response.written else {"type": "audio", "transcript": ""}
        self._tell("response.content_part.added", response, item, part=part)
        item.begun = True
        return item

    def _tell(self, name: str, response: Response, item: Item, **values: Any) -> None:
        self._emit(name, response_id=response.id, item_id=item.id, output_index=0, content_index=0, **values)

    def _deliver(self, response: Response, item: Item, texts: list[str], pcm: Pcm) -> None:
        for text in texts:
            delta = text if item.text else text.lstrip()
            item.text = (item.text or "") + delta
            name = "response.output_text.delta" if response.written else "response.output_audio_transcript.delta"
            self._tell(name, response, item, delta=delta)
        if not response.written:
            item.seconds += len(pcm) / SAMPLE_RATE
            self._tell_sound(response, item, self._writer.write(pcm))

    def _tell_sound(self, response: Response, item: Item, data: bytes) -> None:
        if data:
            self._tell("response.output_audio.delta", response, item, delta=base64.b64encode(data).decode())

    def _finish(self, status: str, reason: str | None = None) -> None:
        """End the response that is open."""
        response, self._response = self._response, None
        assert response
        self._fill("no")
        if item := response.item:
            item.status = "completed" if status == "completed" else "incomplete"
            text = item.text or ""
            if response.written:
                part = {"type": "text", "text": text}
                self._tell("response.output_text.done", response, item, text=text)
            else:
                part = {"type": "audio", "transcript": text}
                if status == "completed":
                    self._tell_sound(response, item, self._writer.write(_NOTHING, last=True))
                self._tell("response.output_audio.done", response, item)
                self._tell("response.output_audio_transcript.done", response, item, transcript=text)
            self._tell("response.content_part.done", response, item, part=part)
            form = item.form(self._beta)
            self._emit("conversation.item.done", previous_item_id=self._items.before(item), item=form)
            self._emit("response.output_item.done", response_id=response.id, output_index=0, item=form)
        details = {"type": status, "reason": reason} if reason else None
        self._emit("response.done", response=self._response_form(response, status, details))

    def _break_off(self, reason: str) -> None:
        """Cancel the response that is open; what the model goes on to say is withheld until it pauses."""
        self._withholds = not self._voice.pauses
        self._finish("cancelled", reason)

    def _create_response(self, event: Json) -> None:
        given = event.get("response")
        given = {} if given is None else typed(given, dict, "response")
        if self._response:
            sentence = (
                f"Conversation already has an active response in progress: {self._response.id}. Wait until it is done."
            )
            raise RefusedError("conversation_already_has_active_response", sentence)
        response = Response(patience=_PATIENCE, written=self._settings.written)
        for name, value in given.items():
            if name in ("output_modalities", "modalities"):
                updater = Updater(self._settings, None, True)
                updater.update({"output_modalities": value})
                response.written = updater.settings.written
            elif name == "metadata":
                response.metadata = None if value is None else typed(value, dict, "response.metadata")
            elif value not in _USUAL.get(name, (None,)):
                sentence = (
                    f"The model speaks by itself, and response.{shortened(name, 40)} cannot be asked for; leave it out."
                )
                raise RefusedError(UNABLE, sentence, f"response.{shortened(name, 40)}")
        self._sound_came = True  # from here on, the model hears at least silence
        self._want()
        self._open(response)

    def _cancel(self, event: Json) -> None:
        if not self._response or event.get("response_id") not in (None, self._response.id):
            raise RefusedError("response_cancel_not_active", "Cancellation failed: no active response found.")
        self._break_off("client_cancelled")

    def _response_form(self, response: Response, status: str, details: Json | None = None) -> Json:
        form: Json = {
            "object": "realtime.response",
            "id": response.id,
            "status": status,
            "status_details": details,
            "output": [response.item.form(self._beta)] if response.item else [],
            "conversation_id": self._conversation,
            "max_output_tokens": "inf",
            "metadata": response.metadata,
            "usage": None,
        }
        session = self._form()
        if self._beta:
            form |= {name: session[name] for name in ("voice", "output_audio_format", "temperature")}
            return form | {"modalities": ["text"] if response.written else ["audio", "text"]}
        said = {"format": format_form(self._settings.output_format), "voice": session["audio"]["output"]["voice"]}
        return form | {"output_modalities": ["text"] if response.written else ["audio"], "audio": {"output": said}}


def has_type(values: object, kind: str) -> bool:
    """Tell whether something is an object of a type."""
    return isinstance(values, dict) and values.get("type") == kind
