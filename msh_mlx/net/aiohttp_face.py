"""Requests, answers and websockets of aiohttp, as the plain values that the server knows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Protocol, TypeVar

from aiohttp import WebSocketError, WSMsgType, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.log import ws_logger

from ..errors import MshError
from .exchange import GoneError, Opening, Request, next_piece
from .server import GOODBYE, Server
from .wire import BrokenError, Sign

T = TypeVar("T")

_LOOK = 0.25  # seconds between two looks whether the client is still there
_PIECE = 1 << 16  # bytes
_HEARTBEAT = 20.0  # seconds between two pings of the websocket

# It warns of subprotocols that nobody knows; but browsers send their token as one.
ws_logger.setLevel(logging.ERROR)


class Busy(Protocol):
    """What is told of the requests on a connection, so that only idle ones are closed."""

    talks: bool  # whether it holds a conversation, or waits for one

    def begin(self) -> None:
        """Note that an answer is being sent."""

    def move(self) -> None:
        """Note that a request that takes its time has moved on."""

    def end(self) -> None:
        """Note that it was sent."""


async def answer(request: web.Request, server: Server, busy: Busy) -> web.StreamResponse:
    """Let the server answer a request, send what it answers, and cancel that if the client leaves."""
    reading = True

    async def body() -> AsyncIterator[bytes]:
        nonlocal reading
        size = 0
        async for data in request.content.iter_chunked(_PIECE):
            # Not for every byte: one that sends a byte a minute has not moved on.
            if (size := size + len(data)) >= _PIECE:
                busy.move()
                size = 0
            yield data
        reading = False

    async def while_there(work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_LOOK)
                if request.transport is None or request.transport.is_closing():
                    raise GoneError
                if not reading:
                    busy.move()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    asked = plain(request, body())
    headers = server.headers(asked)
    try:
        made = await while_there(server.answer(asked))
    except (GoneError, ConnectionError):
        return web.Response()
    if isinstance(made, Opening):
        return await _open(request, made, headers, server, busy)
    headers |= made.headers
    if isinstance(made.body, bytes):
        return web.Response(status=made.status, headers=headers, body=made.body)
    if isinstance(made.body, Path):
        return _File(made.body, headers, busy)
    response = web.StreamResponse(status=made.status, headers=headers)
    pieces = made.body
    reading = False
    try:
        await response.prepare(request)
        while (piece := await while_there(next_piece(pieces))) is not None:
            await response.write(piece)
            busy.move()
        await response.write_eof()
    except (GoneError, ConnectionError):
        pass
    except MshError:
        # The answer has begun. A client sees only by a broken end that it is not whole.
        if request.transport:
            request.transport.abort()
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
    return response


def plain(request: web.BaseRequest, body: AsyncIterator[bytes]) -> Request:
    """Return a request as plain values."""
    ours = request.transport.get_extra_info("sockname") if request.transport else None
    opens = False
    if request.method == "GET" and "Upgrade" in request.headers:
        with contextlib.suppress(ValueError):  # its key has letters that no key has
            opens = web.WebSocketResponse().can_prepare(request).ok
    return Request(
        request.method,
        request.path,
        request.query,
        {name.lower(): ", ".join(request.headers.getall(name)) for name in request.headers},
        body,
        peer=request.remote or "",
        port=ours[1] if isinstance(ours, tuple) else None,
        opens=opens,
    )


async def _open(
    request: web.Request, made: Opening, headers: dict[str, str], server: Server, busy: Busy
) -> web.StreamResponse:
    ws = web.WebSocketResponse(
        heartbeat=_HEARTBEAT,
        autoping=False,  # pings count as messages
        max_msg_size=made.largest,
        compress=False,
        timeout=GOODBYE,
        protocols=made.protocols,
    )
    ws.headers.update(headers)
    try:
        await ws.prepare(request)
    except ConnectionError:  # the client has gone, which aiohttp would report with a traceback
        server.count("lost")
        return web.Response()
    busy.talks = True
    await made.serve(AiohttpWire(ws, request.transport))
    return ws


class _File(web.FileResponse):
    """A file. It is sent after the request counts as answered, so it marks the connection as busy until then."""

    def __init__(self, path: Path, headers: dict[str, str], busy: Busy) -> None:
        super().__init__(path, headers=headers)
        self._busy = busy

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._busy.begin()
        try:
            return await super().prepare(request)
        finally:
            self._busy.end()


class AiohttpWire:
    """aiohttp's websocket as a `Wire`. It is prepared already, on `transport`; pings are not answered by aiohttp."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport | None) -> None:
        self._ws = ws
        self.transport = transport

    async def send(self, data: bytes | str) -> None:
        """As in `Wire`."""
        if isinstance(data, str):
            await self._ws.send_str(data)
        else:
            await self._ws.send_bytes(data)

    async def receive(self) -> bytes | str | Sign | None:
        """As in `Wire`."""
        message = await self._ws.receive()
        match message.type:
            case WSMsgType.BINARY | WSMsgType.TEXT:
                data: bytes | str = message.data
                return data
            case WSMsgType.PING:
                await self._ws.pong(message.data)
                return Sign()
            case WSMsgType.PONG:
                return Sign()
            case WSMsgType.ERROR:
                error: object = message.data
                raise BrokenError(error.code if isinstance(error, WebSocketError) else None)
        return None

    async def close(self, code: int, reason: str) -> None:
        """As in `Wire`."""
        await self._ws.close(code=code, message=reason.encode())

    @property
    def closed(self) -> bool:
        """As in `Wire`."""
        return self._ws.closed

    @property
    def unsent(self) -> int:
        """As in `Wire`."""
        return self.transport.get_write_buffer_size() if self.transport else 0

    def abort(self) -> None:
        """As in `Wire`."""
        if self.transport and not self._ws.closed:
            self.transport.abort()
