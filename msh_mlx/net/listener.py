"""Listen for clients with aiohttp: TCP connections, how many there may be, and how long they may be idle."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from time import monotonic
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong

from . import aiohttp_face
from .server import Server
from .visitor import Network, is_among

_LOOK = 0.25  # seconds between two looks for connections that are late
_HEAD_WITHIN = 10.0  # seconds from the connection, or from the last answer on it, to the request
_TAKEN_WITHIN = 120.0  # seconds for a client to take an answer
# Connections besides those of conversations: for pages, figures, and what browsers keep open for the next request.
_SPARE, _SPARE_PER_ADDRESS = 128, 32
_MAX_LINE, _MAX_FIELD = 8190, 32_768  # bytes of a request's first line, and of a header: with all cookies of a host
_TOO_MANY = "Too many headers"  # the beginning of aiohttp's error for more than about 128 headers
_SEND_BUFFER = 1 << 18  # bytes that the system keeps for a client


class _Gate(web.RequestHandler):
    """aiohttp's handler of a TCP connection, with or without a request under way; an idle one is closed in time.

    It has a sentence of ours for each request that cannot be read or answered.
    """

    __slots__ = ("_fault", "_gates", "_way", "address", "asked", "requests", "since", "talks")

    def __init__(
        self,
        manager: web.Server,
        loop: asyncio.AbstractEventLoop,
        gates: _Gates,
        fault: Callable[[str, BaseException | None], None],
    ) -> None:
        options: dict[str, Any] = {"access_log": None, "max_line_size": _MAX_LINE, "max_field_size": _MAX_FIELD}
        super().__init__(manager, loop=loop, **options)
        self._gates = gates
        self._fault = fault
        self.address = ""
        self.since = monotonic()
        self.asked = False  # whether a request has come
        self.requests = 0  # requests under way
        self.talks = False  # whether it holds a conversation, or waits for one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._way = transport  # aiohttp forgets its own when it closes it, though the client may not have taken all yet
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        super().connection_made(transport)
        self._gates.add(self)

    def connection_lost(self, error: BaseException | None) -> None:
        self._gates.remove(self)
        super().connection_lost(error)

    def begin(self) -> None:
        """Note that a request has come."""
        self.asked = True
        self.requests += 1
        self.since = monotonic()

    def move(self) -> None:
        """Note that a request that takes its time has moved on."""
        self.since = monotonic()

    def end(self) -> None:
        """Note that a request was answered."""
        self.requests -= 1
        self.since = monotonic()

    def drop(self) -> None:
        """Close the connection at once, whatever is under way."""
        sock = self._way.get_extra_info("socket")
        if self.requests and not self.talks and sock is not None:
            with contextlib.suppress(OSError):  # it is closed already
                sock.shutdown(socket.SHUT_RDWR)  # this also ends the sending of a file, which asyncio cannot abort
        else:
            self._way.abort()

    @property
    def is_late(self) -> bool:
        """Return whether the next request, or the end of an answer, is overdue."""
        patience = _TAKEN_WITHIN if self.requests else _HEAD_WITHIN
        return not self.talks and monotonic() - self.since > patience

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        answer = super().handle_error(request, status, exc, message)
        if isinstance(answer, web.Response):
            if isinstance(exc, LineTooLong) and str(_MAX_LINE) in map(str, exc.args):
                status, sentence = 414, f"The address is longer than {_MAX_LINE} bytes."
            elif isinstance(exc, LineTooLong):
                status, sentence = 431, f"A header of the request is longer than {_MAX_FIELD} bytes."
            elif isinstance(exc, HttpProcessingError) and exc.message.startswith(_TOO_MANY):
                status = 431
                sentence = "The request has more headers than this server reads; send fewer than a hundred."
            elif status < 500:
                sentence = "The request is not HTTP that this server can read."
            else:
                sentence = "Something unexpected happened in the server."
            answer.set_status(status)
            answer.content_type = "text/plain"
            answer.text = sentence + "\n"
        return answer

    def log_exception(self, message: str, *_: Any, exc_info: BaseException | None = None) -> None:
        self._fault(message, exc_info)


class _Gates:
    """All TCP connections: up to `most`, and up to `most_per_address` from an address that is not in one of `proxies`.

    If there are too many, an idle one of the address with the most connections is closed.
    """

    def __init__(self, most: int, most_per_address: int, proxies: Collection[Network]) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._proxies = proxies
        self._gates: set[_Gate] = set()

    def __len__(self) -> int:
        return len(self._gates)

    def __iter__(self) -> Iterator[_Gate]:
        return iter(list(self._gates))

    def add(self, gate: _Gate) -> None:
        """Add a connection. If there are too many, close an idle one for it, or the new one if none is idle."""
        self._gates.add(gate)
        same = [other for other in self._gates if other.address == gate.address]
        if len(same) > self._most_per_address and not is_among(gate.address, self._proxies):
            self._give_up(same, gate)
        elif len(self._gates) > self._most:
            self._give_up(self._gates, gate)

    def remove(self, gate: _Gate) -> None:
        self._gates.discard(gate)

    def _give_up(self, gates: Iterable[_Gate], new: _Gate) -> None:
        count = Counter(gate.address for gate in self._gates)
        idle = [gate for gate in gates if not gate.requests and gate is not new]
        one = min(idle, key=lambda gate: (-count[gate.address], gate.since), default=new)
        self.remove(one)
        one.drop()


class Listener:
    """Lets clients reach a server by HTTP, perhaps over TLS."""

    def __init__(self, server: Server) -> None:
        settings = server.settings
        self._server = server
        self._gates = _Gates(
            settings.connections + _SPARE, settings.connections_per_address + _SPARE_PER_ADDRESS, settings.proxies
        )
        self._sockets: asyncio.Server | None = None
        self._looks: asyncio.Task[None] | None = None
        server.open_connections = lambda: len(self._gates)

    async def listen(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Listen on a bound socket."""
        app = web.Application(client_max_size=1 << 16)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_response_prepare.append(self._complete)
        runner = web.AppRunner(app, handle_signals=False)
        await runner.setup()
        manager = runner.server
        assert manager
        loop = asyncio.get_running_loop()
        self._sockets = await loop.create_server(
            lambda: _Gate(manager, loop, self._gates, self._note_fault),
            sock=sock,
            ssl=context,
            backlog=256,
            ssl_handshake_timeout=_HEAD_WITHIN if context else None,
        )
        self._server.begin()
        self._looks = asyncio.create_task(self._look())

    async def close(self, sentence: str) -> None:
        """Send `sentence` to every client, and close all connections, within a second."""
        if self._sockets:
            self._sockets.close()
        await self._server.end(sentence)
        if self._looks:
            self._looks.cancel()
        for gate in self._gates:
            gate.drop()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            for gate in self._gates:
                if gate.is_late:
                    # An idle one that was asked before is not an error: a browser has kept it open for more.
                    if gate.requests or not gate.asked:
                        self._server.count("request")
                    gate.drop()

    def _note_fault(self, message: str, error: BaseException | None) -> None:
        """Take an error of aiohttp's: a request that is not HTTP is counted, another error is logged in one line."""
        if isinstance(error, HttpProcessingError):
            self._server.count("request")
        else:
            self._server.note_error(error, message)

    async def _complete(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers of every answer to those that aiohttp makes itself."""
        if "Content-Security-Policy" not in response.headers:
            response.headers.update(self._server.headers(aiohttp_face.plain(request, request.content.iter_any())))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        gate = request.protocol
        assert isinstance(gate, _Gate)
        gate.begin()
        try:
            return await aiohttp_face.answer(request, self._server, gate)
        finally:
            gate.end()
