"""The way to one client: what a live connection needs of a websocket."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol


class Close(IntEnum):
    """The codes with which a websocket is closed here, as RFC 6455 and its registry have them."""

    OK = 1000
    GOING_AWAY = 1001
    UNSUPPORTED_DATA = 1003
    INVALID_TEXT = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013


class Sign:
    """A sign of life, which the wire has answered: it counts as a message, and says nothing."""


class BrokenError(Exception):
    """The client has broken the rules of the websocket, which must be closed with `code`; None: the connection is lost."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Wire(Protocol):
    """A websocket that is open on the side of the server. It is used on the event loop's thread."""

    async def send(self, data: bytes | str) -> None:
        """Send a binary message or a text. Raise ConnectionError if the connection is lost."""

    async def receive(self) -> bytes | str | Sign | None:
        """Wait for a message; return None if the client has closed the connection. Raise BrokenError."""

    async def close(self, code: int, reason: str) -> None:
        """Close the connection. The reason has up to 120 bytes in UTF-8."""

    @property
    def closed(self) -> bool:
        """Whether the connection is closed."""

    @property
    def unsent(self) -> int:
        """Return how many bytes wait to be sent, without those in the system's own buffer."""

    def abort(self) -> None:
        """End the connection at once, whatever is under way."""
