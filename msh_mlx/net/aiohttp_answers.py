"""Answers of the plain interfaces (`exchange`) on aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from aiohttp import web

from ..errors import MshError
from .exchange import Endpoint, Request

T = TypeVar("T")

_LOOK = 0.25  # seconds between two looks whether the client is still there
_PIECE = 1 << 16  # bytes


class _GoneError(Exception):
    """The client has gone."""


async def answer(
    request: web.Request, endpoint: Endpoint, client: str, moved: Callable[[], None]
) -> web.StreamResponse:
    """Let an endpoint answer a request, and cancel it if the client leaves. `moved` is called when something has moved on."""
    reading = True

    async def body() -> AsyncIterator[bytes]:
        nonlocal reading
        size = 0
        async for data in request.content.iter_chunked(_PIECE):
            # Not for every byte: one that sends a byte a minute has not moved on.
            if (size := size + len(data)) >= _PIECE:
                moved()
                size = 0
            yield data
        reading = False

    async def while_there(work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_LOOK)
                if request.transport is None or request.transport.is_closing():
                    raise _GoneError
                if not reading:
                    moved()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    headers = {name.lower(): value for name, value in request.headers.items()}
    asked = Request(request.method, "/" + request.path.lstrip("/"), request.query, headers, body(), client)
    try:
        made = await while_there(endpoint(asked))
    except (_GoneError, ConnectionError):
        return web.Response()
    if isinstance(made.body, bytes):
        return web.Response(status=made.status, headers=made.headers, body=made.body)
    response = web.StreamResponse(status=made.status, headers=made.headers)
    pieces = made.body
    reading = False
    try:
        await response.prepare(request)
        while (piece := await while_there(_next(pieces))) is not None:
            await response.write(piece)
            moved()
        await response.write_eof()
    except (_GoneError, ConnectionError):
        pass
    except MshError:
        # The answer has begun. A client sees only by a broken end that it is not whole.
        if request.transport:
            request.transport.abort()
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
    return response


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
