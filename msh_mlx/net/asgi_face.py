"""The server as an ASGI application, for programs that host those: its requests, answers and websockets as plain values."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from ..errors import MshError
from .exchange import Answer, GoneError, Request, next_piece
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
    beginning of that program to its end. `most_ahead` is for programs that take whatever comes: a client may send so many bytes
    ahead of what was read.
    """

    def __init__(
        self,
        server: Server,
        beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
        most_ahead: int | None = None,
    ) -> None:
        self.server = server
        self._beside = beside
        self._most_ahead = most_ahead

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
                running = asyncio.ensure_future(self._beside()) if self._beside else None
                await send({"type": "lifespan.startup.complete"})
            else:
                if running:
                    running.cancel()
                    await asyncio.wait([running])
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
        except (GoneError, OSError):
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
            with contextlib.suppress(OSError):
                await _refuse(scope, made, headers, send)
            return
        offered = scope.get("subprotocols") or []
        chosen = next((name for name in offered if name in made.protocols), None)
        try:
            await send({"type": "websocket.accept", "subprotocol": chosen, "headers": _encoded(headers)})
        except OSError:
            self.server.count("lost")
            return
        async with _Ahead(receive, self._most_ahead) as ahead:
            wire = AsgiWire(ahead.receive, send, made.largest)
            await made.serve(wire)
            if not wire.closed:
                with contextlib.suppress(ConnectionError):
                    await wire.close(Close.INTERNAL_ERROR, "")


class _Client:
    """The client of an HTTP request: it sends a body, and may leave."""

    def __init__(self, receive: Receive) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._left = asyncio.ensure_future(self._listen(receive))

    async def _listen(self, receive: Receive) -> None:
        """Take what the client sends, until it leaves."""
        with contextlib.suppress(Exception):  # what the program raises when it cannot reach the client any more
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
        """Wait for `work`; cancel it if the client leaves, and raise `GoneError`."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._left], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise GoneError
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def leave(self) -> None:
        """End listening."""
        self._left.cancel()
        await asyncio.wait([self._left])


class _Ahead:
    """Reads ahead of a websocket, up to so many bytes. Without a limit it does not: the hosting program holds back the rest."""

    def __init__(self, receive: Receive, most: int | None) -> None:
        self._receive, self._most = receive, most
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._bytes = 0
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Ahead:
        if self._most is not None:
            self._reading = asyncio.ensure_future(self._read(self._most))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def receive(self) -> Message:
        """Return the next message. Raise BrokenError if the client has sent too much, or the connection is lost."""
        if self._reading is None:
            return await self._receive()
        waiting = asyncio.ensure_future(self._messages.get())
        try:
            await asyncio.wait([waiting, self._reading], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                message = waiting.result()
                self._bytes -= _size(message)
                return message
        finally:
            waiting.cancel()
        self._reading.result()  # it raises
        raise BrokenError(None)

    async def _read(self, most: int) -> None:
        while (message := await self._receive())["type"] != "websocket.disconnect":
            self._bytes += _size(message)
            if self._bytes > most:
                raise BrokenError(Close.TRY_AGAIN_LATER)
            self._messages.put_nowait(message)
        self._messages.put_nowait(message)
        await asyncio.Event().wait()


def _size(message: Message) -> int:
    return len(message.get("bytes") or message.get("text") or b"")


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
        try:
            message = await self._receive()
        except BrokenError:
            raise
        except Exception:  # what the program raises when it cannot reach the client any more
            self._closed = True
            raise BrokenError(None) from None
        if message["type"] == "websocket.disconnect":
            self._closed = True
            if message.get("code", 1005) not in _ORDERLY:
                raise BrokenError(None)
            return None
        data: bytes | str | None = message.get("bytes")
        if data is None:
            data = message.get("text") or ""
        if len(data if isinstance(data, bytes) else data.encode(errors="replace")) > self._largest:
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
        """As in `Wire`: what the program has taken is its own to keep."""
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
    for name, text in parse_qsl(scope["query_string"].decode(errors="replace"), keep_blank_values=True):
        query.setdefault(name, text)
    peer, ours, path, root = scope.get("client"), scope.get("server"), scope["path"], scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path.removeprefix(root)
    return Request(
        scope.get("method", "GET"),
        path,
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
        from starlette.staticfiles import StaticFiles

        # It also knows when a client has the file already.
        folder = StaticFiles(directory=made.body.parent, check_dir=False)
        response = folder.file_response(made.body, made.body.stat(), scope)
        response.headers.update(headers)
        await response(scope, receive, send)
        return
    if isinstance(made.body, bytes):
        headers["Content-Length"] = str(len(made.body))
        await send({"type": "http.response.start", "status": made.status, "headers": _encoded(headers)})
        await send({"type": "http.response.body", "body": made.body})
        return
    pieces = made.body
    try:
        await send({"type": "http.response.start", "status": made.status, "headers": _encoded(headers)})
        while (piece := await client.while_there(next_piece(pieces))) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except MshError:
        pass  # The answer has begun. A client sees only by its missing end that it is not whole.
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def _refuse(scope: Message, made: Answer, headers: dict[str, str], send: Send) -> None:
    """Refuse a websocket, with the answer where the program can send one."""
    if not isinstance(made.body, bytes):  # a file of the page
        made = Answer.of_text("Websockets are not opened at this address.\n", status=404)
    if _REFUSALS not in scope.get("extensions", {}):
        reason = made.text.strip().encode()[:120].decode(errors="ignore")
        await send({"type": "websocket.close", "code": int(Close.POLICY_VIOLATION), "reason": reason})
        return
    headers |= made.headers
    headers["Content-Length"] = str(len(made.text.encode()))
    await send({"type": f"{_REFUSALS}.start", "status": made.status, "headers": _encoded(headers)})
    await send({"type": f"{_REFUSALS}.body", "body": made.text.encode()})
