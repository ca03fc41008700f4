"""The events of `/v1/realtime`: names and forms, as OpenAI's documentation has them, and those of its beta. No I/O."""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..system.words import shortened

Json: TypeAlias = "dict[str, Any]"

_MOST_ITEMS = 500  # that are kept of a conversation
_SHOWN = 60  # characters of what the client wrote
# What the beta called otherwise. "" was not there.
_IN_BETA = {
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": "",
    "conversation.item.input_audio_transcription.segment": "",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
}


class RefusedError(Exception):
    """An event of the client is refused, in a sentence; the session goes on. `param` names what is wrong in it."""

    def __init__(self, code: str, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.param = param


def new_id(kind: str) -> str:
    """Make an id, such as "item_0a1b…"."""
    return f"{kind}_{secrets.token_hex(10)}"


def event_name(name: str, beta: bool) -> str:
    """Return the name of a server event in the client's dialect, or "" if it has none."""
    return _IN_BETA.get(name, name) if beta else name


def error_event(
    sentence: str, code: str, *, param: str | None = None, event_id: str | None = None, own: bool = False
) -> Json:
    """Make an error event. `event_id` is that of the client's event; `own` tells that the fault is the server's."""
    error = {
        "type": "server_error" if own else "invalid_request_error",
        "code": code,
        # The sentence may quote the client, which may send halves of surrogate pairs.
        "message": sentence.encode(errors="replace").decode(),
        "param": param,
        "event_id": event_id,
    }
    return {"type": "error", "event_id": new_id("event"), "error": error}


def read_event(text: str) -> Json:
    """Read an event of the client's.

    Raises
    ------
    RefusedError
        It is not a JSON object, or has no type.
    """
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedError("invalid_json", "The message is not valid JSON; send one event, a JSON object.") from None
    if not isinstance(event, dict):
        raise RefusedError("invalid_json", "The message is not a JSON object; send one event.")
    needed(event, "type", str)
    return event


_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "an array",
    bool: "true or false",
}


def needed(values: Mapping[str, Any], name: str, kind: type, within: str = "") -> Any:
    """Return a value that must be there and be of a type. Raise RefusedError if it is not."""
    if name not in values:
        raise RefusedError("missing_required_parameter", f"The parameter {within}{name} is missing.", within + name)
    return typed(values[name], kind, within + name)


def typed(value: Any, kind: type, param: str) -> Any:
    """Return a value if it is of a type: a whole number is a number, but true is not. Raise RefusedError if it is not."""
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise RefusedError("invalid_type", f"{param} is not {_NAMES[kind]}; {_NAMES[kind]} is expected.", param)
    return value


def chosen(value: Any, values: tuple[str, ...], param: str) -> str:
    """Return a text that must be one of `values`. Raise RefusedError if it is not."""
    if not isinstance(value, str) or value not in values:
        shown = shortened(json.dumps(value, ensure_ascii=False), _SHOWN)
        raise RefusedError(
            "invalid_value", f"{param} is {shown}; it can be {', '.join(values[:-1])} or {values[-1]}.", param
        )
    return value


# ---- items ---------------------------------------------------------------------------------------------------------------


@dataclass
class Item:
    """An item of a conversation: a message, of the user by sound, or of the model by sound or text. The sound is not kept."""

    role: str
    id: str = field(default_factory=lambda: new_id("item"))
    status: str = "completed"
    text: str | None = None  # what was said; None: nobody knows
    written: bool = False  # whether the message is only text
    seconds: float = 0.0  # of the model's sound
    begun: bool = True  # whether it has content

    def form(self, beta: bool) -> Json:
        """Return the item as it is sent."""
        part: Json
        if self.role == "user" and self.written:
            part = {"type": "input_text", "text": self.text or ""}
        elif self.role == "user":
            part = {"type": "input_audio", "transcript": self.text}
        elif self.written:
            part = {"type": "text" if beta else "output_text", "text": self.text or ""}
        else:
            part = {"type": "audio" if beta else "output_audio", "transcript": self.text or ""}
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [part] if self.begun else [],
        }


class Items:
    """The items of a conversation, in their order; the oldest of very many are forgotten."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, Item] = OrderedDict()

    @property
    def newest(self) -> Item | None:
        """The last item; None: there is none."""
        return next(reversed(self._items.values()), None)

    def add(self, item: Item) -> str | None:
        """Add an item; return the id of the one before."""
        last = self.last
        self._items[item.id] = item
        while len(self._items) > _MOST_ITEMS:
            self._items.popitem(last=False)
        return last

    @property
    def last(self) -> str | None:
        """Return the id of the last item; None if there are none."""
        return next(reversed(self._items), None)

    def before(self, item: Item) -> str | None:
        """Return the id of the item before one."""
        names = list(self._items)
        index = names.index(item.id) if item.id in self._items else 0
        return names[index - 1] if index else None

    def find(self, event: Json, code: str) -> Item:
        """Return the item that an event names; raise RefusedError with `code` if there is none."""
        name = needed(event, "item_id", str)
        if name not in self._items:
            raise RefusedError(code, f"There is no item {shortened(name, _SHOWN)!r} in this conversation.", "item_id")
        return self._items[name]

    def has(self, name: str) -> bool:
        """Tell whether there is an item with this id."""
        return name in self._items

    def remove(self, item: Item) -> None:
        """Forget an item."""
        del self._items[item.id]


@dataclass
class Response:
    """What the model says from when it begins to speak to a pause: one item, or none if it says nothing."""

    id: str = field(default_factory=lambda: new_id("resp"))
    item: Item | None = None
    patience: int = 0  # frames until it is over if the model says nothing
    metadata: Json | None = None
    written: bool = False  # whether it is only text
