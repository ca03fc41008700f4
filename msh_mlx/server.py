"""The server: conversations at `/api/chat`, the page, and what tells how it goes; `protocol` is the wire."""

from __future__ import annotations

import asyncio
import gc
import hmac
import ipaddress
import logging
import socket
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from aiohttp import WSCloseCode, web
from aiohttp.http import HttpProcessingError
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from .connection import Connection, End, Limits
from .errors import InputError, MshError
from .events import Failed
from .protocol import ChatParameters, MetaData, ProtocolError, describe_server
from .session import Session
from .session_log import SessionLog
from .shared import SharedModel, Tokens

_TICK = 0.25  # seconds
_COLLECT_EVERY = 10.0  # seconds, at least; it stops everything for some milliseconds
_GOODBYE = 0.7  # seconds for a client to take the last message
_HEARTBEAT = 20.0  # seconds between two pings of the websocket
_HEAD_WITHIN = 10.0  # seconds from the connection to the request
_STEP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)
_SEND_BUFFER = 1 << 18  # bytes that the system keeps for a client

# Our page brings everything along, and talks to servers that the user names.
_OWN_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self' ws: wss: http: https:; media-src 'self' blob:; worker-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Somebody else's page may be built in any way: decoders that make code of text, inline styles, fonts from elsewhere. Published
# ones do all three. No other page may frame it.
_NAMED_POLICY = (
    "default-src 'self' https: data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "connect-src 'self' ws: wss: http: https: data: blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_ORDINARY = ("closed", "max_steps", "shutdown")  # ends that are no fault
_SECRET = ("worker_auth_id", "email")

Samplers = Callable[[ChatParameters], "dict[str, Any]"]


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes
    ----------
    sessions, line
        How many conversations at once, and how many clients may wait.
    connections, connections_per_address
        How many at once, in all and from one address.
    token
        What every client must give, if it is set.
    hosts, origins
        Names under which the server may be addressed besides addresses, and pages of others that may use it.
    static, static_is_named
        The folder of the page, and whether it is one that the user named: its policy lets it do what pages do, ours is strict.
    log_dir
        Where sessions leave a summary and their tokens.
    defaults
        Of the parameters in a conversation's address.
    about
        The names of the model's file, the codec's file, and the server, for the page.
    """

    sessions: int = 1
    line: int = 16
    connections: int = 64
    connections_per_address: int = 32
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    hosts: Collection[str] = ("localhost",)
    origins: Collection[str] = ()
    static: Path | None = None
    static_is_named: bool = False
    log_dir: Path | None = None
    defaults: ChatParameters = field(default_factory=lambda: ChatParameters(max_steps=None))
    about: tuple[str, str, str] = ("", "", "msh-mlx")


class _Gate(asyncio.Protocol):
    """A connection before and between its requests: closed if none comes, refused where there are far too many."""

    def __init__(self, inner: Any, gates: set[_Gate], most: int) -> None:
        self._inner = inner
        self._gates = gates
        self._most = most
        self.transport: asyncio.Transport | None = None
        self.since = monotonic()
        self.requests = 0  # under way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._gates.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._inner.connection_made(transport)
        if len(self._gates) > self._most:
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._gates.discard(self)
        self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        closes: bool | None = self._inner.eof_received()
        return closes

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


@dataclass(frozen=True)
class _Waiting:
    """A client that waits for its turn, and what makes its session then."""

    connection: Connection
    make: Callable[[], Session]
    turn: asyncio.Future[Session]


class _Metrics:
    """The figures in Prometheus's form."""

    def __init__(self, server: Server, model: SharedModel) -> None:
        self._registry = CollectorRegistry()
        for name, about in (
            ("sessions", "conversations at the moment"),
            ("waiting", "clients in the line"),
            ("connections", "open connections"),
        ):
            gauge = Gauge(f"msh_{name}", about, registry=self._registry)
            gauge.set_function(partial(server.figure, name))
        self.sessions = PrometheusCounter("msh_conversations", "conversations that have ended", registry=self._registry)
        self.dropped = PrometheusCounter(
            "msh_dropped_seconds", "sound of users that came too late and was dropped", registry=self._registry
        )
        step = Histogram("msh_step_seconds", "time of a step", buckets=_STEP_BUCKETS, registry=self._registry)
        model.on_step = step.observe
        self._registry.register(_Ends(server))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Ends(Collector):
    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("msh_errors", "what was refused, faulty, or ended a connection", labels=["kind"])
        for kind, count in sorted(self._server.errors().items()):
            family.add_metric([kind], count)
        yield family


class Server:
    """Serves conversations with `model`.

    Parameters
    ----------
    model
        May be loaded later: `ready` says when it is.
    settings
        How the server behaves.
    samplers
        Makes `text_sampler`, `audio_sampler` and `seed` for a session of what a client asks for.
    log
        Takes what happened, as a JSON object.
    """

    def __init__(
        self,
        model: SharedModel,
        settings: Settings,
        samplers: Samplers,
        log: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.ready = False
        self.failure: Failed | None = None
        self.failed = asyncio.Event()
        self._model = model
        self._settings = settings
        self._samplers = samplers
        self._log = log
        self._gates: set[_Gate] = set()
        self._connections: dict[Connection, str] = {}
        self._active: set[Connection] = set()
        self._line: deque[_Waiting] = deque()
        self._counts: Counter[str] = Counter()
        self._stopping = False
        self._left = False  # whether somebody has left since Python's collector came by
        self._metrics = _Metrics(self, model)
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    # ---- from the beginning to the end -----------------------------------------------------------------------------------

    async def listen(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Listen on a socket that is bound; until `ready` is set, clients are told to come back later."""
        app = web.Application(middlewares=[self._guarded], client_max_size=1 << 16)
        app.on_response_prepare.append(self._add_headers)
        app.router.add_get("/api/chat", self._chat)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._show_metrics)
        if self._settings.static:
            app.router.add_get("/", self._page)
            app.router.add_static("/", self._settings.static)
        self._runner = web.AppRunner(app, access_log=None, logger=self._http_logger(), handle_signals=False)
        await self._runner.setup()
        make = self._runner.server
        assert make
        most = 2 * self._settings.connections
        loop = asyncio.get_running_loop()
        patience = _HEAD_WITHIN if context else None
        self._server = await loop.create_server(
            lambda: _Gate(make(), self._gates, most),
            sock=sock,
            ssl=context,
            backlog=256,
            ssl_handshake_timeout=patience,
        )
        self._start(self._tick())

    async def close(self, sentence: str) -> None:
        """Tell every client `sentence`, and close everything, within a second."""
        self._stopping = True
        if self._server:
            self._server.close()
        kind, code = ("failed", WSCloseCode.INTERNAL_ERROR) if self.failure else ("shutdown", WSCloseCode.GOING_AWAY)
        for connection in list(self._connections):
            connection.end(End(kind, sentence, code))
        deadline = monotonic() + _GOODBYE
        while self._connections and monotonic() < deadline:
            await asyncio.sleep(0.01)
        for job in self._jobs:
            job.cancel()
        for gate in list(self._gates):
            if gate.transport:
                gate.transport.abort()

    def _http_logger(self) -> logging.Logger:
        """Make what aiohttp tells its errors to: that somebody speaks no HTTP is counted, the rest is logged in a line."""
        handler = logging.Handler(logging.WARNING)

        def emit(record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            if isinstance(error, HttpProcessingError):
                self._counts["request"] += 1
            else:
                what = f"{type(error).__name__}: {error}" if error else record.getMessage()
                self._log({"event": "error", "error": what})

        handler.emit = emit  # type: ignore[method-assign]
        logger = logging.Logger("msh-http")  # of our own: no other handler hears it
        logger.addHandler(handler)
        return logger

    def _start(self, job: Any) -> None:
        task = asyncio.ensure_future(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _tick(self) -> None:
        collected = monotonic()
        while True:
            await asyncio.sleep(_TICK)
            self._admit()
            if self._left and monotonic() - collected > _COLLECT_EVERY:
                # What MLX compiled for a session is in a cycle, and Python would let a hundred of them pile up.
                gc.collect()
                self._left, collected = False, monotonic()
            for connection in list(self._connections):
                connection.tick(len(self._active))
            late = monotonic() - _HEAD_WITHIN
            for gate in list(self._gates):
                if not gate.requests and gate.since < late and gate.transport:
                    self._counts["request"] += 1
                    gate.transport.abort()

    # ---- requests --------------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        gate = request.transport.get_protocol() if request.transport else None
        assert gate is None or isinstance(gate, _Gate)
        if gate:
            gate.requests += 1
        try:
            self._check_host(request)
            return await handler(request)
        finally:
            if gate:
                gate.requests -= 1
                gate.since = monotonic()

    def _check_host(self, request: web.Request) -> None:
        """Refuse names that are not ours: a page of somebody else's could have made its name lead here (DNS rebinding)."""
        name = _name(request.host)
        if not _is_address(name) and name not in self._settings.hosts:
            self._refuse(
                "host", 421, f"This server does not go by the name {name!r}; start it with --allow-host {name}."
            )

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is None or origin in self._settings.origins:
            return
        if origin.partition("://")[2] != request.host:
            self._refuse(
                "origin", 403, f"Pages of {origin!r} may not use this server; start it with --allow-origin {origin}."
            )

    def _check_token(self, request: web.Request) -> None:
        token = self._settings.token
        if token is None:
            return
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            given = request.query.get("worker_auth_id", "")
        if not hmac.compare_digest(given.strip().encode(errors="surrogatepass"), token.encode()):
            sentence = "The token is wrong." if given else "This server wants a token."
            self._refuse(
                "token", 401, f"{sentence} Ask for it whoever started the server.", {"WWW-Authenticate": "Bearer"}
            )

    def _refuse(self, kind: str, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        self._counts[kind] += 1
        # There may be anything in what the client sent.
        raise _Refused(status, sentence.encode(errors="replace").decode(), headers)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)
        response.headers["Content-Security-Policy"] = _NAMED_POLICY if self._settings.static_is_named else _OWN_POLICY
        origin = request.headers.get("Origin")
        if origin is not None and origin in self._settings.origins:
            # Its page may read why it was refused.
            response.headers["Access-Control-Allow-Origin"] = origin

    async def _health(self, _: web.Request) -> web.Response:
        if self.failure or self._stopping:
            return web.Response(status=503, text="The model failed.\n" if self.failure else "Ending.\n")
        return web.Response(text="Ready.\n") if self.ready else web.Response(status=503, text="Loading.\n")

    async def _show_metrics(self, request: web.Request) -> web.Response:
        self._check_token(request)
        return web.Response(
            body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _page(self, _: web.Request) -> web.FileResponse:
        assert self._settings.static
        return web.FileResponse(self._settings.static / "index.html", headers={"Cache-Control": "no-cache"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._check_origin(request)
        self._check_token(request)
        try:
            parameters = ChatParameters.from_query(request.query, self._settings.defaults)
            self._samplers(parameters)
        except (ProtocolError, InputError) as error:
            self._refuse("parameters", 400, str(error))
        if not self.ready:
            self._refuse("loading", 503, "The model is not loaded yet; try again in a moment.")
        ws = web.WebSocketResponse(
            heartbeat=_HEARTBEAT,
            autoping=False,  # pings count as messages
            max_msg_size=4 * self._settings.limits.message,
            compress=False,
            timeout=_GOODBYE,
        )
        if not ws.can_prepare(request):
            return web.Response(status=426, text="This address is for websockets.\n", headers={"Upgrade": "websocket"})
        try:
            await ws.prepare(request)
        except ConnectionError:  # gone already, which aiohttp would report with a traceback
            self._counts["lost"] += 1
            return web.Response()
        await self._serve(request, ws, parameters)
        return ws

    async def _serve(self, request: web.Request, ws: web.WebSocketResponse, parameters: ChatParameters) -> None:
        settings, address = self._settings, request.remote or ""
        about = describe_server(parameters, *settings.about)
        connection = Connection(ws, request.transport, parameters, about, settings.limits, self._counts, self._fail)
        begin = perf_counter()
        end = self._too_many(address)
        self._connections[connection] = address
        kept = SessionLog(settings.log_dir, f"{datetime.now():%Y-%m-%d-%H.%M.%S}-{connection.id}")
        try:
            end = end or await connection.run(partial(self._wait_in_line, parameters, kept.add))
        except Exception as error:
            end = End("failed", "Something unexpected happened; the conversation is over.", WSCloseCode.INTERNAL_ERROR)
            self._log({"event": "error", "id": connection.id, "error": f"{type(error).__name__}: {error}"})
        finally:
            self._leave_line(connection)
            try:
                await connection.close(end or End("lost"), _GOODBYE)
            finally:
                self._connections.pop(connection, None)
                self._left = True
                self._active.discard(connection)
                self._admit()
        summary = self._summary(connection, address, end, begin)
        self._log(summary)
        if connection.begun:
            asked = {name: value for name, value in vars(parameters).items() if name not in _SECRET}
            try:
                kept.finish(summary | {"parameters": asked})
            except MshError as error:
                self._log({"event": "error", "id": connection.id, "error": str(error)})

    def _summary(self, connection: Connection, address: str, end: End, begin: float) -> dict[str, Any]:
        if end.kind not in _ORDINARY:
            self._counts[end.kind] += 1
        now = perf_counter()
        summary: dict[str, Any] = {
            "event": "session" if connection.begun else "visit",
            "id": connection.id,
            "address": address,
            "end": end.kind,
            "waited_s": round((connection.begun or now) - begin, 3),
        }
        if connection.begun:
            self._metrics.sessions.inc()
            summary |= {
                "seconds": round(now - connection.begun, 3),
                "steps": connection.steps,
                "words": connection.words,
            }
            summary |= connection.stats()
            self._metrics.dropped.inc(summary["dropped_s"])
        return summary

    def _too_many(self, address: str) -> End | None:
        settings = self._settings
        if len(self._connections) >= settings.connections:
            return End(
                "connections", "The server has too many connections; try again later.", WSCloseCode.TRY_AGAIN_LATER
            )
        if sum(other == address for other in self._connections.values()) >= settings.connections_per_address:
            return End("per_address", "There are too many connections from your address.", WSCloseCode.TRY_AGAIN_LATER)
        return None

    # ---- the line --------------------------------------------------------------------------------------------------------

    def _wait_in_line(
        self, parameters: ChatParameters, tokens: Tokens, connection: Connection
    ) -> asyncio.Future[Session]:
        turn: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        make = partial(self._model.session, **self._samplers(parameters), tokens=tokens)
        self._line.append(_Waiting(connection, make, turn))
        self._admit()
        if not turn.done() and connection not in self._active:
            place = len(self._line)
            if place > self._settings.line:
                self._leave_line(connection)
                sentence = "The server is busy, and its waiting line is full; try again later."
                connection.end(End("line_full", sentence, WSCloseCode.TRY_AGAIN_LATER))
            else:
                connection.send(MetaData({"waiting": place}))
        return turn

    def _leave_line(self, connection: Connection) -> None:
        before = len(self._line)
        self._line = deque(entry for entry in self._line if entry.connection is not connection)
        if len(self._line) != before:
            self._tell_places()

    def _tell_places(self) -> None:
        for place, waiting in enumerate(self._line, 1):
            waiting.connection.send(MetaData({"waiting": place}))

    def _admit(self) -> None:
        """Let in whoever is first in line while there is room."""
        came = False
        while (
            self._line
            and not self._stopping
            and len(self._active) < self._settings.sessions
            and self._model.has_room(len(self._active))
        ):
            first = self._line.popleft()
            self._active.add(first.connection)
            self._start(self._give_session(first))
            came = True
        if came:
            self._tell_places()

    async def _give_session(self, waiting: _Waiting) -> None:
        try:
            session = await asyncio.to_thread(waiting.make)
        except Exception as error:
            self._fail(Failed("model", error))
            return
        if not waiting.turn.done():
            waiting.turn.set_result(session)

    def _fail(self, failure: Failed) -> None:
        """Hear that a part broke: a codec takes its conversation along, the model everything."""
        if failure.where in ("model", "start"):
            self.failure = self.failure or failure
            self.failed.set()

    # ---- figures ---------------------------------------------------------------------------------------------------------

    def figure(self, name: str) -> int:
        """Count the "sessions", the "waiting" clients or the "connections" of the moment."""
        return len({"sessions": self._active, "waiting": self._line, "connections": self._gates}[name])

    def errors(self) -> Mapping[str, int]:
        """Count what was refused or ended, by kind."""
        return self._counts


class _Refused(web.HTTPException):
    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None) -> None:
        self.status_code = status
        super().__init__(text=sentence + "\n", headers=dict(headers or {}))


def _name(host: str) -> str:
    """Return the name or address of a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
