"""The messages of `/api/chat`: turn bytes into values and back, without I/O.

A message of the websocket is a type byte and a payload; integers are little-endian. Audio is Opus in Ogg pages, as bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from ..errors import ProtocolError
from ..sound.ogg import CAPTURE

# In bytes. A second of sound from the published programs has six kilobytes.
MAX_MESSAGE = 1 << 20


class Control(IntEnum):
    """A command of the client's (message 3)."""

    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


@dataclass(frozen=True)
class Handshake:
    """The server is in fresh state and listens (message 0); both numbers are in [0, 2^32)."""

    protocol_version: int = 0
    model_version: int = 0


@dataclass(frozen=True)
class Audio:
    """Bytes of the Ogg stream (message 1); pages may be split over messages."""

    data: bytes


@dataclass(frozen=True)
class Text:
    """A piece of Moshi's text (message 2); a leading space starts a word."""

    text: str


@dataclass(frozen=True)
class MetaData:
    """Facts about the server and the conversation (message 4): values that JSON can hold, without infinities and NaN."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Error:
    """A sentence about what went wrong (message 5)."""

    text: str


@dataclass(frozen=True)
class Ping:
    """A sign of life (message 6)."""


@dataclass(frozen=True)
class ColoredText:
    """A piece of text with a colour in [0, 256) (message 7); other models send it."""

    colour: int
    text: str


Message: TypeAlias = Handshake | Audio | Text | Control | MetaData | Error | Ping | ColoredText


def encode(message: Message) -> bytes:
    """Return a message as the bytes of a websocket's binary message.

    Raises
    ------
    ProtocolError
        A number does not fit into its field, a text has half a surrogate pair, or JSON cannot hold the values.
    """
    try:
        match message:
            case Handshake(protocol_version, model_version):
                return struct.pack("<BII", 0, protocol_version, model_version)
            case Audio(data):
                return b"\x01" + data
            case Text(text):
                return b"\x02" + text.encode()
            case Control():
                return bytes((3, message))
            case MetaData(values):
                return b"\x04" + json.dumps(dict(values), allow_nan=False, separators=(",", ":")).encode()
            case Error(text):
                return b"\x05" + text.encode()
            case Ping():
                return b"\x06"
            case ColoredText(colour, text):
                return struct.pack("<BB", 7, colour) + text.encode()
    except (struct.error, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"The message {type(message).__name__} cannot be sent: {error}.") from None


def decode(data: bytes, limit: int = MAX_MESSAGE) -> Message | None:
    """Read a websocket's binary message; return None for one to ignore: it is empty, or its type or control is not known.

    A handshake may have any length. With nine bytes or more it has two numbers of 32 bits; with three, two numbers of 8 bits,
    as the published page writes them. With any other length both numbers are 0.

    Raises
    ------
    ProtocolError
        The message has more than `limit` bytes, its text is not UTF-8, or its metadata is not a JSON object.
    """
    if len(data) > limit:
        raise ProtocolError(f"A message has {len(data)} bytes", f"{limit} are allowed")
    if not data:
        return None
    payload = data[1:]
    match data[0]:
        case 0 if len(payload) == 2:
            return Handshake(payload[0], payload[1])
        case 0:
            return Handshake(*struct.unpack_from("<II", payload)) if len(payload) >= 8 else Handshake(0, 0)
        case 1:
            return Audio(payload)
        case 2:
            return Text(_utf8(payload, "A text"))
        case 3 if len(payload) == 1 and payload[0] in _CONTROLS:
            return Control(payload[0])
        case 4:
            return MetaData(_object(_utf8(payload, "The metadata")))
        case 5:
            return Error(_utf8(payload, "An error's text"))
        case 6:
            return Ping()
        case 7 if payload:
            return ColoredText(payload[0], _utf8(payload[1:], "A coloured text"))
    return None


_CONTROLS = frozenset(Control)
_AUDIO = 1


def misplaced_sound(data: bytes) -> str | None:
    """Return a sentence if a message holds an Ogg page but does not have the type of sound; return None for others."""
    if data.startswith(CAPTURE):
        return f"Sound comes without its type: a message with sound is the byte {_AUDIO} and then Ogg pages."
    if data.startswith(CAPTURE, 1) and data[0] != _AUDIO:
        return f"Sound comes as a message of type {data[0]}; its type is {_AUDIO}."
    return None


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not in UTF-8.") from None


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ProtocolError("The metadata is not valid JSON.") from None
    if not isinstance(values, dict):
        raise ProtocolError("The metadata is not a JSON object.")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
