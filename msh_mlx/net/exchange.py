"""A request and its answer, as plain values: what an interface needs of a server, whichever one it runs on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """A request. The names of `headers` are in lower case. `body` yields the body as it comes, once.

    `client` says who asks, so that what is shared can be shared fairly.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
    client: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer. `body` is whole, or comes in pieces; then whoever sends it closes the iterator, at its end or before.

    If the client leaves while an answer is made, the server cancels what makes it.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | AsyncIterator[bytes] = b""

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        """Make an answer of a value that JSON can hold."""
        # A text may hold half a character, which cannot be encoded.
        body = json.dumps(value, ensure_ascii=False).encode(errors="replace")
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, body)

    @classmethod
    def of_text(cls, text: str, kind: str = "text/plain", headers: Mapping[str, str] | None = None) -> Answer:
        """Make an answer of a text."""
        return cls(200, {"Content-Type": f"{kind}; charset=utf-8", **(headers or {})}, text.encode(errors="replace"))


Endpoint = Callable[[Request], Awaitable[Answer]]
