"""A request and its answer, as plain values: what an interface needs of a server, whichever one it runs on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .wire import Wire


@dataclass(frozen=True)
class Request:
    """A request. The names of `headers` are in lower case; the values of one that came several times are joined with commas.

    `body` yields the body as it comes, once. `peer` is the address at the other end of the connection, and `port` our port;
    "" and None if they are not known. With `opens` the client asks for a websocket, and can have one.

    `client` says who asks, perhaps through proxies, so that what is shared can be shared fairly.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
    peer: str = ""
    port: int | None = None
    opens: bool = False
    client: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer. `body` is whole, a file, or comes in pieces; then whoever sends it closes the iterator, at its end or before.

    If the client leaves while an answer is made, the server cancels what makes it.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path | AsyncIterator[bytes] = b""

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        """Make an answer of a value that JSON can hold."""
        # A text may hold half a character, which cannot be encoded.
        body = json.dumps(value, ensure_ascii=False).encode(errors="replace")
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, body)

    @classmethod
    def of_text(
        cls, text: str, kind: str = "text/plain", headers: Mapping[str, str] | None = None, status: int = 200
    ) -> Answer:
        """Make an answer of a text."""
        made = {"Content-Type": f"{kind}; charset=utf-8", **(headers or {})}
        return cls(status, made, text.encode(errors="replace"))

    @property
    def text(self) -> str:
        """Return a body that is whole, as a text."""
        assert isinstance(self.body, bytes)
        return self.body.decode()


@dataclass(frozen=True)
class Opening:
    """The answer to a client that may open a websocket.

    `protocols` are the subprotocols that are known, and `largest` is how many bytes a message may have. `serve` is called with
    the open websocket; when it returns, the websocket is closed.
    """

    protocols: tuple[str, ...]
    largest: int
    serve: Callable[[Wire], Awaitable[None]]


class GoneError(Exception):
    """The client has gone while an answer was made."""


async def next_piece(pieces: AsyncIterator[bytes]) -> bytes | None:
    """Return the next piece of a body, or None at its end."""
    return await anext(pieces, None)


Endpoint = Callable[[Request], Awaitable[Answer]]
