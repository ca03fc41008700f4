"""The server as an ASGI application, for programs that host those: its requests, answers and websockets as plain values."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from ..errors import MshError
from .exchange import Answer, Request
from .server import Server
from .wire import BrokenError, Close, Sign

T = TypeVar("T")
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_AHEAD = 4  # pieces of a body that may wait to be read
_ORDERLY = Close.OK, Close.GOING_AWAY, 1005  # with these codes a client closes a websocket; 1005: it gave none
_REFUSALS = "websocket.http.response"  # the extension with which a websocket can be refused by an answer


class AsgiServer:
    """A server as an ASGI application.

    The program that hosts it answers pings and limits connections, as `Listener` does otherwise. `beside` runs from the
    beginning of that program to its end.
    """

    def __init__(self, server: Server, beside: Coroutine[Any, Any, None] | None = None) -> None:
        self.server = server
        self._beside = beside

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or take part in the beginning and the end of the program."""
        match scope["type"]:
            case "lifespan":
                await self._live(receive, send)
            case "http":
                await self._answer(scope, receive, send)
            case "websocket":
                await self._open(scope, receive, send)
            case other:
                raise ValueError(f"This application does not know the protocol {other!r}.")

    async def _live(self, receive: Receive, send: Send) -> None:
        running: asyncio.Future[None] | None = None
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.server.begin()
                running = asyncio.ensure_future(self._beside) if self._beside else None
                await send({"type": "lifespan.startup.complete"})
            else:
                if running:
                    running.cancel()
                await self.server.end("The server is shutting down.")
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        self.server.begin()
        client = _Client(receive)
        try:
            asked = _plain(scope, client.body())
            made = await client.while_there(self.server.answer(asked))
            assert isinstance(made, Answer)  # nobody asked for a websocket
            await _send(scope, made, self.server.headers(asked), client, receive, send)
        except _GoneError:
            pass
        finally:
            await client.leave()

    async def _open(self, scope: Message, receive: Receive, send: Send) -> None:
        self.server.begin()
        await receive()  # it says that the client wants to connect
        asked = _plain(scope, _nothing(), opens=True)
        made = await self.server.answer(asked)
        headers = self.server.headers(asked)
        if isinstance(made, Answer):
            await _refuse(scope, made, headers, send)
            return
        offered = scope.get("subprotocols") or []
        chosen = next((name for name in offered if name in made.protocols), None)
        try:
            await send({"type": "websocket.accept", "subprotocol": chosen, "headers": _encoded(headers)})
        except OSError:
            self.server.count("lost")
            return
        wire = AsgiWire(receive, send, made.largest)
        await made.serve(wire)
        if not wire.closed:
            with contextlib.suppress(ConnectionError):
                await wire.close(Close.INTERNAL_ERROR, "")


class _GoneError(Exception):
    """The client has gone."""


class _Client:
    """The client of an HTTP request: it sends a body, and may leave."""

    def __init__(self, receive: Receive) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._left = asyncio.ensure_future(self._listen(receive))

    async def _listen(self, receive: Receive) -> None:
        """Take what the client sends, until it leaves."""
        while (message := await receive())["type"] != "http.disconnect":
            if data := message.get("body", b""):
                await self._pieces.put(data)
            if not message.get("more_body", False):
                await self._pieces.put(None)

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""
        while (data := await self._pieces.get()) is not None:
            yield data

    async def while_there(self, work: Awaitable[T]) -> T:
        """Wait for `work`; cancel it if the client leaves, and raise `_GoneError`."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._left], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _GoneError
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def leave(self) -> None:
        """End listening."""
        self._left.cancel()
        await asyncio.wait([self._left])


class AsgiWire:
    """The websocket of an ASGI program as a `Wire`. It is accepted already; the program answers pings."""

    def __init__(self, receive: Receive, send: Send, largest: int) -> None:
        self._receive = receive
        self._send = send
        self._largest = largest
        self._closed = False

    async def send(self, data: bytes | str) -> None:
        """As in `Wire`."""
        kind = "text" if isinstance(data, str) else "bytes"
        await self._pass({"type": "websocket.send", kind: data})

    async def _pass(self, message: Message) -> None:
        if self._closed:
            raise ConnectionResetError("The websocket is closed.")
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:  # programs differ in what they raise when the client has gone
            self._closed = True
            raise ConnectionResetError(str(error)) from error

    async def receive(self) -> bytes | str | Sign | None:
        """As in `Wire`."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._closed = True
            if message.get("code", 1005) not in _ORDERLY:
                raise BrokenError(None)
            return None
        data: bytes | str | None = message.get("bytes")
        if data is None:
            data = message.get("text") or ""
        if len(data) > self._largest:
            raise BrokenError(Close.MESSAGE_TOO_BIG)
        return data

    async def close(self, code: int, reason: str) -> None:
        """As in `Wire`."""
        await self._pass({"type": "websocket.close", "code": int(code), "reason": reason})
        self._closed = True

    @property
    def closed(self) -> bool:
        """As in `Wire`."""
        return self._closed

    @property
    def unsent(self) -> int:
        """As in `Wire`: `send` waits until the program has taken a message, so none is here."""
        return 0

    def abort(self) -> None:
        """As in `Wire`: the connection ends when the application returns."""
        self._closed = True


def _plain(scope: Message, body: AsyncIterator[bytes], *, opens: bool = False) -> Request:
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("utf-8", "surrogateescape")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    query: dict[str, str] = {}
    for name, text in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        query.setdefault(name, text)
    peer, ours = scope.get("client"), scope.get("server")
    return Request(
        scope.get("method", "GET"),
        scope["path"].removeprefix(scope.get("root_path", "")),
        query,
        headers,
        body,
        peer=peer[0] if peer else "",
        port=ours[1] if ours else None,
        opens=opens,
    )


def _encoded(headers: MutableMapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode()) for name, value in headers.items()]


async def _nothing() -> AsyncIterator[bytes]:
    empty: tuple[bytes, ...] = ()
    for data in empty:
        yield data


async def _send(
    scope: Message, made: Answer, headers: dict[str, str], client: _Client, receive: Receive, send: Send
) -> None:
    """Send an answer; the client may leave while it is made."""
    headers |= made.headers
    if isinstance(made.body, Path):
        from starlette.responses import FileResponse

        await FileResponse(made.body, headers=headers)(scope, receive, send)
        return
    if isinstance(made.body, bytes):
        headers["Content-Length"] = str(len(made.body))
        await send({"type": "http.response.start", "status": made.status, "headers": _encoded(headers)})
        await send({"type": "http.response.body", "body": made.body})
        return
    pieces = made.body
    try:
        await send({"type": "http.response.start", "status": made.status, "headers": _encoded(headers)})
        while (piece := await client.while_there(_next(pieces))) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except MshError:
        pass  # The answer has begun. A client sees only by its missing end that it is not whole.
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def _refuse(scope: Message, made: Answer, headers: dict[str, str], send: Send) -> None:
    """Refuse a websocket, with the answer where the program can send one."""
    if not isinstance(made.body, bytes):  # a file of the page
        made = Answer.of_text("Websockets are not opened at this address.\n", status=404)
    if _REFUSALS not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": int(Close.POLICY_VIOLATION), "reason": made.text.strip()[:100]})
        return
    headers |= made.headers
    headers["Content-Length"] = str(len(made.text.encode()))
    await send({"type": f"{_REFUSALS}.start", "status": made.status, "headers": _encoded(headers)})
    await send({"type": f"{_REFUSALS}.body", "body": made.text.encode()})
