"""The server: conversations at `/api/chat` and `/v1/realtime`, the page, `/health` and `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from json import dumps
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, NoReturn

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..conversation.personas import Persona
from ..conversation.shared import SETTLED, Tick
from ..errors import InputError, MshError, ProtocolError
from ..events import Failed
from ..system.words import shortened
from .audio_service import AudioService
from .chat import Chat
from .connection import Connection, End, Limits, Seated
from .connection_log import ConnectionLog
from .exchange import Answer, Endpoint, Opening, Request
from .messages import MetaData
from .openai_audio import OpenAiAudio
from .openai_errors import RefusedError, error_body
from .parameters import ChatParameters, describe_server, unknown_parameters
from .realtime import BETA_HEADER, BETA_PROTOCOL, PROTOCOLS, TOKEN_PROTOCOL, Realtime
from .realtime_cascade import RealtimeCascade
from .realtime_transcription import RealtimeTranscription
from .talking_models import LanguageModel, TalkingModel, TalkingModels
from .visitor import Network, Origin, Visitor
from .wire import Close, Wire

_TICK = 0.25  # seconds
_COLLECT_EVERY = 10.0  # seconds, at least: a collection stops everything for some milliseconds
GOODBYE = 0.7  # seconds for a client to take the last message
_MAX_PATH = 1000  # characters
_SHOWN, _LOGGED = 100, 300  # characters of what a client sent, in an answer and in the log
_STEP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

# Our page loads everything from its own server, and connects to servers that the user names.
_OWN_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self' ws: wss: http: https:; media-src 'self' blob:; worker-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A page that the user named may do what published pages do: make code from text, as decoders do, use inline styles, and load
# fonts from other servers. No other page may frame it.
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

_ORDINARY = ("closed", "max_steps", "shutdown")  # kinds of ends that are not counted as errors
_SECRET = ("worker_auth_id", "email", "text_prompt")  # parameters that are not written down


@dataclass(frozen=True)
class Settings:
    """The settings of a server."""

    conversations: bool = True  # whether there are any
    sessions: int = 1  # how many conversations may run at once
    line: int = 16  # how many clients may wait in line
    connections: int = 64  # how many clients may talk or wait
    connections_per_address: int = 32  # how many of them may come from one address
    proxies: Collection[Network] = ()  # the proxies that are trusted to say who their clients are
    limits: Limits = field(default_factory=Limits)  # what one client may do
    token: str | None = None  # the token that every client must send
    hosts: Collection[str] = ("localhost",)  # the names under which the server may be asked for, besides IP addresses
    origins: Collection[str] = ()  # the origins of other pages that may use it
    static: Path | None = None  # the folder of the page
    static_is_named: bool = False  # whether the user named that folder: then its content policy is a loose one
    log_dir: Path | None = None  # the folder for the summaries and tokens of connections
    # The parameters that a conversation's address does not set.
    defaults: ChatParameters = field(default_factory=lambda: ChatParameters(max_steps=None))
    # The names of the model's file, of the codec's file and of the server, for the page.
    about: tuple[str, str, str] = ("", "", "msh-mlx")


@dataclass(frozen=True)
class _Route:
    """A path of the server: its methods, what answers it, and what it is about, for those who ask for an unknown path."""

    methods: tuple[str, ...]
    answer: Callable[[Request, Visitor], Awaitable[Answer | Opening]]
    about: str


class _Figures(Collector):
    """The figures in the format of Prometheus."""

    def __init__(self, server: Server, models: TalkingModels) -> None:
        self._server = server
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.conversations = PrometheusCounter(
            "msh_conversations", "conversations that have ended", registry=self._registry
        )
        self.dropped = PrometheusCounter(
            "msh_dropped_seconds", "sound of users that came too late and was dropped", registry=self._registry
        )
        step = "msh_step_seconds", "time of a step, for all conversations in it"
        self._step = Histogram(*step, buckets=_STEP_BUCKETS, registry=self._registry)
        size = "msh_batch_size", "conversations in a step"
        self._size = Histogram(*size, buckets=_SIZE_BUCKETS, registry=self._registry)
        wait = "msh_wait_seconds", "how long a frame waited for its step"
        self._wait = Histogram(*wait, buckets=_STEP_BUCKETS, registry=self._registry)
        for model in models:
            model.shared.on_tick = self._add

    def _add(self, tick: Tick) -> None:
        self._step.observe(tick.seconds)
        self._size.observe(tick.size)
        for wait in tick.waits:
            self._wait.observe(wait)

    def collect(self) -> Iterator[Metric]:
        sessions, waiting, connections = self._server.figures()
        yield GaugeMetricFamily("msh_sessions", "conversations at the moment", sessions)
        yield GaugeMetricFamily("msh_waiting", "clients in the line", waiting)
        yield GaugeMetricFamily("msh_connections", "open connections", connections)
        errors = CounterMetricFamily("msh_errors", "what was refused, faulty, or ended a connection", labels=["kind"])
        for kind, count in sorted(self._server.errors().items()):
            errors.add_metric([kind], count)
        yield errors
        yield from self._audio()

    def _audio(self) -> Iterator[Metric]:
        """Yield the figures of transcription and speech."""
        audio = self._server.audio
        requests = CounterMetricFamily(
            "msh_requests", "transcriptions and speeches, by their end", labels=["kind", "end"]
        )
        for (kind, end), count in sorted(audio.counts.items()):
            requests.add_metric([kind, end], count)
        yield requests
        under_way = GaugeMetricFamily(
            "msh_requests_active", "transcriptions and speeches at the moment", labels=["kind"]
        )
        waiting = GaugeMetricFamily("msh_requests_waiting", "those that wait", labels=["kind"])
        for kind, shared in (("transcription", audio.transcriber), ("speech", audio.speaker)):
            if shared:
                active, waits = shared.figures()
                under_way.add_metric([kind], active)
                waiting.add_metric([kind], waits)
        yield from (under_way, waiting)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Server:
    """Serves conversations with `models`.

    Parameters
    ----------
    models
        What holds conversations; the first is the default. They may be loaded later. The caller sets `ready` when they are.
    settings
        The settings of the server.
    log
        Called with each event, as a JSON object.
    audio
        What there is besides conversations: transcription and speech.

    Attributes
    ----------
    ready
        Whether the models are loaded; before, conversations are refused.
    failure, failed
        The failure of the model, or None; `failed` is set with it.
    """

    def __init__(
        self,
        models: Sequence[TalkingModel],
        settings: Settings,
        log: Callable[[Mapping[str, Any]], None],
        audio: AudioService | None = None,
    ) -> None:
        self.ready = False
        self.audio = audio or AudioService()
        self.failure: Failed | None = None
        self.failed = asyncio.Event()
        self._models = TalkingModels(models)
        self.settings = settings
        self._log = log
        self._origins = [Origin.parse(origin) for origin in settings.origins]
        self._speakers: set[str] = set()  # untrusted proxies that were logged
        self._routes = {
            "/api/chat": _Route(
                ("GET", "HEAD", "POST"),
                self._chat,
                "a conversation by websocket: Opus in Ogg, text and more, both ways",
            ),
            "/v1/realtime": _Route(
                ("GET", "HEAD"), self._realtime, "a conversation by websocket, in OpenAI's protocol: events in JSON"
            ),
            "/api/voices": _Route(
                ("GET", "HEAD"),
                self._voices,
                "the models of conversations, the voices that one can have, and whether it takes a role in words",
            ),
            "/health": _Route(("GET", "HEAD"), self._health, "whether the server is ready"),
            "/metrics": _Route(("GET", "HEAD"), self._show_metrics, "figures, for Prometheus"),
        }
        if not settings.conversations:
            for path in ("/api/chat", "/api/voices"):
                del self._routes[path]
            about = "a transcription by websocket, in OpenAI's protocol: events in JSON"
            self._routes["/v1/realtime"] = _Route(("GET", "HEAD"), self._realtime, about)
            if not self.audio.transcriber:
                del self._routes["/v1/realtime"]
        for path, (methods, endpoint, about) in OpenAiAudio(self.audio).endpoints().items():
            self._routes[path] = _Route(methods, partial(self._interface, endpoint), about)
        self._connections: dict[Connection, str] = {}
        self._asked_for: dict[Connection, TalkingModel] = {}
        self._active: dict[Connection, float] = {}  # those who were let in, and when
        self._line: dict[Connection, asyncio.Event] = {}  # the clients in line, each with its turn
        self._counts: Counter[str] = Counter()
        self._stopping = False
        self._left = False  # whether a client has left since the last collection
        self._figures = _Figures(self, self._models)
        self.open_connections: Callable[[], int] = lambda: len(self._connections)  # who listens may know better
        self.all_figures = self._only_own_figures  # one of many servers may know those of the others
        self._clock: asyncio.Task[None] | None = None

    # ---- from the beginning to the end -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to keep time, on the running event loop; until `ready` is set, clients are asked to come back later."""
        self._clock = self._clock or asyncio.create_task(self._tick())

    async def end(self, sentence: str) -> None:
        """Send `sentence` to every client, and end all conversations, within a second."""
        self._stopping = True
        kind, code = ("failed", Close.INTERNAL_ERROR) if self.failure else ("shutdown", Close.GOING_AWAY)
        for connection in list(self._connections):
            connection.end(End(kind, sentence, code))
        deadline = monotonic() + GOODBYE
        while self._connections and monotonic() < deadline:
            await asyncio.sleep(0.01)
        if self._clock:
            self._clock.cancel()

    def _tell(self, event: Mapping[str, Any]) -> None:
        """Log an event, with its texts shortened: clients may send anything, and any amount of it."""
        self._log({key: shortened(value, _LOGGED) if isinstance(value, str) else value for key, value in event.items()})

    def count(self, kind: str) -> None:
        """Count something that was refused, or faulty."""
        self._counts[kind] += 1

    def note_error(self, error: BaseException | None, message: str = "") -> None:
        """Log an unexpected error in one line; `message` says what happened if there is no error."""
        self._tell({"event": "error", "error": f"{type(error).__name__}: {error}" if error else message})

    async def _tick(self) -> None:
        collected = monotonic()
        while True:
            await asyncio.sleep(_TICK)
            self._admit()
            if self._left and monotonic() - collected > _COLLECT_EVERY:
                # A session's compiled functions are in a reference cycle; Python alone would let a hundred of them pile up.
                gc.collect()
                self._left, collected = False, monotonic()
            for connection in list(self._connections):
                connection.tick(len(self._active))

    # ---- requests --------------------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Answer | Opening:
        """Answer a request, whatever it is; `headers` must be sent with what is returned.

        Raise ConnectionError if the client has gone.
        """
        try:
            # A proxy that removes a base path may leave one slash too many.
            path = "/" + request.path.lstrip("/")
            if len(path) > _MAX_PATH:
                self._refuse("request", 414, f"The path is longer than {_MAX_PATH} characters.")
            visitor = Visitor.of(request, self.settings.proxies)
            self._note_speaker(visitor)
            self._check_host(visitor)
            if request.method == "OPTIONS" and (allowed := self._allowed(request)):
                return allowed
            if route := self._routes.get(path) or self._routes.get(path[: path.rfind("/") + 1]):
                self._check_method(request, path, route.methods)
                return await route.answer(replace(request, path=path, client=visitor.address), visitor)
            return self._file(request, path)
        except _RefusedError as refused:
            return refused.answer
        except ConnectionError:  # the client has gone
            raise
        except Exception as error:
            self.note_error(error)
            return Answer.of_text("Something unexpected happened in the server.\n", status=500)

    def headers(self, request: Request) -> dict[str, str]:
        """Return the headers that go with every answer to a request."""
        headers = {
            **_HEADERS,
            "Content-Security-Policy": _NAMED_POLICY if self.settings.static_is_named else _OWN_POLICY,
        }
        origin = request.headers.get("origin")
        if origin is not None and self._is_friend(origin):
            # Let the page read why it was refused.
            headers["Access-Control-Allow-Origin"] = origin
        return headers

    def _note_speaker(self, visitor: Visitor) -> None:
        """Log that a proxy is not trusted, so that all its clients count as one: once a proxy, for the first eight."""
        if visitor.speaker and visitor.speaker not in self._speakers and len(self._speakers) < 8:
            self._speakers.add(visitor.speaker)
            hint = f"If {visitor.speaker} is a proxy of yours, start with --trusted-proxy {visitor.speaker}."
            self._tell({"event": "proxy", "address": visitor.speaker, "hint": hint})

    def _check_host(self, visitor: Visitor) -> None:
        """Refuse names that are not ours: another page could have made its own name lead here (DNS rebinding)."""
        for target in visitor.targets:
            if not target.is_address and target.name not in self.settings.hosts:
                name = shortened(target.name, _SHOWN)
                self._refuse(
                    "host", 421, f"This server does not go by the name {name!r}; start it with --allow-host {name}."
                )

    def _check_origin(self, origin: str | None, visitor: Visitor, *, json: bool = False) -> None:
        if origin is None or self._is_friend(origin):
            return
        page = Origin.parse(origin)
        if page and any(target.may_be(page) for target in visitor.targets[:1]):
            return
        shown = shortened(origin, _SHOWN)
        asked = shortened(visitor.targets[0].name, _SHOWN) if visitor.targets else "nothing"
        self._refuse(
            "origin",
            403,
            f"Pages of {shown!r} may not use this server, which was asked for as {asked!r}; start it with --allow-origin "
            f"{shown}, or see docs/proxy.md if a proxy is in between.",
            json=json,
        )

    def _allowed(self, request: Request) -> Answer | None:
        """Answer a browser that asks whether a page may send a request; None: it does not ask, or the page is not allowed."""
        asked = "access-control-request-method" in request.headers
        if not (asked and self._is_friend(request.headers.get("origin"))):
            return None
        headers = {
            "Access-Control-Allow-Methods": "GET, HEAD, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        }
        return Answer(204, headers)

    def _is_friend(self, origin: str | None) -> bool:
        page = Origin.parse(origin) if origin else None
        return page is not None and page in self._origins

    def _check_method(self, request: Request, path: str, methods: tuple[str, ...]) -> None:
        if request.method not in methods:
            sentence = f"{path} does not answer {shortened(request.method, _SHOWN)}; use {methods[0]}."
            self._refuse("method", 405, sentence, {"Allow": ", ".join(methods)}, json=_is_interface(path))

    def _check_token(self, request: Request, *, json: bool = False) -> None:
        token = self.settings.token
        if token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            named = [name for name in _subprotocols(request) if name.startswith(TOKEN_PROTOCOL)] if json else []
            given = named[0].removeprefix(TOKEN_PROTOCOL) if named else request.query.get("worker_auth_id", "")
        if not hmac.compare_digest(given.strip().encode(errors="surrogatepass"), token.encode()):
            sentence = "The token is wrong." if given else "This server needs a token."
            self._refuse(
                "token",
                401,
                f"{sentence} Ask whoever started the server for it.",
                {"WWW-Authenticate": "Bearer"},
                json=json,
            )

    def _refuse(
        self,
        kind: str,
        status: int,
        sentence: str,
        headers: Mapping[str, str] | None = None,
        *,
        json: bool = False,
    ) -> NoReturn:
        self._counts[kind] += 1
        # The sentence may quote the client, which may send anything.
        sentence = sentence.encode(errors="replace").decode()
        if not json:
            raise _RefusedError(Answer.of_text(sentence + "\n", headers=headers, status=status))
        served = {path: route.about for path, route in self._routes.items() if not path.endswith("/")}
        # In the form that programs for other interfaces expect.
        body = {"error": {"message": sentence, "type": kind, "code": status}, "served": served}
        raise _RefusedError(Answer.of_text(dumps(body, indent=1) + "\n", "application/json", headers, status))

    async def _interface(self, endpoint: Endpoint, request: Request, visitor: Visitor) -> Answer:
        """Answer with an endpoint of OpenAI's interfaces, whose clients expect refusals in another form."""
        try:
            self._check_origin(request.headers.get("origin"), visitor)
            self._check_token(request)
            self._check_loaded()
        except _RefusedError as refused:
            status, sentence = refused.answer.status, refused.answer.text.strip()
            kind = "authentication_error" if status == 401 else "invalid_request_error"
            error = RefusedError(sentence, status=status, kind=kind)
            kept = {name: value for name, value in refused.answer.headers.items() if name == "WWW-Authenticate"}
            return Answer.of_json(error_body(error), status, kept)
        return await endpoint(request)

    async def _health(self, *_: object) -> Answer:
        if self.failure or self._stopping:
            return Answer.of_text("The model failed.\n" if self.failure else "Ending.\n", status=503)
        return Answer.of_text("Ready.\n") if self.ready else Answer.of_text("Loading.\n", status=503)

    async def _show_metrics(self, request: Request, _: Visitor) -> Answer:
        self._check_token(request)
        return Answer(200, {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}, await self.all_figures())

    def _file(self, request: Request, path: str) -> Answer:
        """Answer with a file of the page, or refuse and say what there is instead."""
        shown, static, is_interface = shortened(path, _SHOWN), self.settings.static, _is_interface(path)
        file = _inside(static, path[1:] or "index.html") if static and not is_interface else None
        if not file:
            if not self.settings.conversations:
                where = "in this server, which holds no conversations; /v1/models lists what it has."
            elif is_interface:
                where = (
                    "in this server: conversations are held by websocket at /api/chat, in Moshi's protocol, and at "
                    "/v1/realtime, in OpenAI's."
                )
            elif static:
                where = "here; the page is at /. A proxy with a base path must remove it from the address."
            else:
                where = "here, and no page; `make page` builds it. Conversations are at /api/chat."
            self._refuse("unknown", 404, f"There is no {shown} {where}", json=is_interface)
        self._check_method(request, shown, ("GET", "HEAD"))
        return Answer(200, {"Cache-Control": "no-cache"} if path in ("/", "/index.html") else {}, file)

    async def _chat(self, request: Request, visitor: Visitor) -> Answer | Opening:
        """Hold a conversation, or answer why not.

        A page whose websocket did not open asks for the reason with POST, since a browser does not tell it. It must be POST:
        the reason may be the origin, and browsers always send that with POST, but not with GET.
        """
        model, parameters, persona = self._asked(request, visitor)
        about = describe_server(parameters, *model.about)
        ignored = [name for name in unknown_parameters(request.query, model.meaningless) if name != "model"]
        if parameters.stats:
            about = MetaData({**about.values, **_told(parameters, persona, ignored)})

        def make(wire: Wire) -> Connection:
            return Chat(wire, parameters, persona, about, self.settings.limits, self._counts, self.fail)

        return self._open(request, visitor, make, model, ignored)

    async def _realtime(self, request: Request, visitor: Visitor) -> Answer | Opening:
        """Hold a conversation or write down, in OpenAI's protocol, or answer why not.

        Programs must name a model, so any name will do; one that is not served stands for the default.
        """
        model, parameters, persona = self._asked(request, visitor, json=True)
        transcribes = request.query.get("intent", "") == "transcription" or not self.settings.conversations
        if transcribes and not self.audio.transcriber:
            sentence = (
                "No speech-to-text model is served here, so there are no transcription sessions; leave intent out."
            )
            self._refuse("parameters", 400, sentence, json=True)
        beta = BETA_HEADER in request.headers.get("openai-beta", "") or BETA_PROTOCOL in _subprotocols(request)

        def refused() -> None:
            self._counts["event"] += 1

        def make(wire: Wire) -> Connection:
            settings, personas, service = self.settings, model.shared.personas, self.audio
            given = (wire, parameters, persona, settings.limits, self.fail, refused)

            def transcription() -> RealtimeTranscription:
                return RealtimeTranscription(*given, beta=beta, service=service, client=visitor.address)

            if transcribes:
                return transcription()
            more = transcription if service.transcriber else None
            options: dict[str, Any] = {"model": model.name, "personas": personas, "beta": beta, "transcription": more}
            if isinstance(model, LanguageModel):
                return RealtimeCascade(*given, hears=service.transcriber_name, **options)
            return Realtime(*given, **options)

        known = {"model", "intent", "call_id"}
        ignored = [each for each in unknown_parameters(request.query, model.meaningless) if each not in known]
        return self._open(request, visitor, make, model, ignored, PROTOCOLS)

    def _asked(
        self, request: Request, visitor: Visitor, *, json: bool = False
    ) -> tuple[TalkingModel, ChatParameters, Persona | None]:
        """Return what the address of a conversation asks for, or refuse it. In OpenAI's protocol, `json`, any model will do."""
        self._check_origin(request.headers.get("origin"), visitor, json=json)
        self._check_token(request, json=json)
        named = request.query.get("model", "")
        try:
            model = (self._models.find(named) or self._models.default) if json else self._models.choose(named)
            parameters = ChatParameters.from_query(request.query, model.defaults, model.meaningless)
            model.check(parameters)
            self._check_loaded(json=json)
            return model, parameters, model.persona(parameters)
        except (ProtocolError, InputError) as error:
            self._refuse("parameters", 400, str(error), json=json)

    def _open(
        self,
        request: Request,
        visitor: Visitor,
        make: Callable[[Wire], Connection],
        model: TalkingModel,
        ignored: list[str],
        protocols: Collection[str] = (),
    ) -> Answer | Opening:
        """Let a websocket be opened, for the connection that `make` makes of it; or say why not.

        `ignored` are parameters that mean nothing here, for the log; `protocols` are the subprotocols that are known.
        """
        if not request.opens:
            sentence = "This address is for websockets."
            if "sec-websocket-key" in request.headers and "upgrade" not in request.headers:
                self._counts["upgrade"] += 1
                sentence = (
                    "A proxy has removed the header Upgrade of this websocket; docs/proxy.md says how to keep it."
                )
            return Answer.of_text(sentence + "\n", headers={"Upgrade": "websocket"}, status=426)

        async def serve(wire: Wire) -> None:
            await self._serve(make(wire), model, visitor.address, ignored)

        return Opening(tuple(protocols), 4 * self.settings.limits.message, serve)

    def _check_loaded(self, *, json: bool = False) -> None:
        if not self.ready:
            self._refuse("loading", 503, "The model is not loaded yet; try again in a moment.", json=json)

    async def _voices(self, request: Request, visitor: Visitor) -> Answer:
        """Say what a conversation's parameters `model`, `voice_prompt` and `text_prompt` may be."""
        self._check_origin(request.headers.get("origin"), visitor)
        self._check_token(request)
        self._check_loaded()
        try:
            model = self._models.choose(request.query.get("model", ""))
        except InputError as error:
            self._refuse("parameters", 400, str(error))
        offer = {**model.voices(), "models": self._models.names, "model": model.name}
        return Answer.of_json(offer)

    async def _serve(self, connection: Connection, model: TalkingModel, address: str, ignored: list[str]) -> None:
        settings = self.settings
        begin = perf_counter()
        end = self._too_many(address)
        self._connections[connection] = address
        self._asked_for[connection] = model
        kept = ConnectionLog(settings.log_dir, f"{datetime.now():%Y-%m-%d-%H.%M.%S}-{connection.id}")

        def make(parameters: ChatParameters, persona: Persona | None) -> Seated:
            return model.seat(parameters, persona, kept.add)

        try:
            end = end or await connection.run(self._wait_in_line, make)
        except Exception as error:
            end = End("failed", "Something unexpected happened; the conversation is over.", Close.INTERNAL_ERROR)
            self._tell({"event": "error", "id": connection.id, "error": f"{type(error).__name__}: {error}"})
        finally:
            self._leave_line(connection)
            follower = (
                connection.follower if isinstance(connection, Realtime) and end and end.kind == "follower" else None
            )
            try:
                if not follower:
                    await connection.close(end or End("lost"), GOODBYE)
            finally:
                self._connections.pop(connection, None)
                del self._asked_for[connection]
                self._left = True
                self._active.pop(connection, None)
                self._admit()
        if follower:
            follower.inherit(connection)
            await self._serve(follower, model, address, ignored)
            return
        if isinstance(connection, RealtimeTranscription):
            if end.kind not in _ORDINARY:
                self._counts[end.kind] += 1
            connection.note(end)
            return
        summary = self._summary(connection, address, end, begin)
        if connection.persona and connection.persona.name:
            summary["voice"] = connection.persona.name
        if len(self._models.names) > 1:
            summary["model"] = model.name
        if ignored:
            summary["ignored"] = ", ".join(ignored)
        self._tell(summary)
        if connection.begun:
            asked = {name: value for name, value in vars(connection.parameters).items() if name not in _SECRET}
            try:
                kept.finish(summary | {"parameters": asked})
            except MshError as error:
                self._tell({"event": "error", "id": connection.id, "error": str(error)})

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
            self._figures.conversations.inc()
            summary |= {
                "seconds": round(now - connection.begun, 3),
                "steps": connection.steps,
                "words": connection.words,
            }
            summary |= connection.stats()
            if connection.notes:
                summary["notes"] = " ".join(connection.notes)
            self._figures.dropped.inc(summary["dropped_s"])
        return summary

    def _too_many(self, address: str) -> End | None:
        settings = self.settings
        if sum(other == address for other in self._connections.values()) >= settings.connections_per_address:
            return End("per_address", "There are too many connections from your address.", Close.TRY_AGAIN_LATER)
        if len(self._connections) >= settings.connections:
            return End("connections", "The server has too many connections; try again later.", Close.TRY_AGAIN_LATER)
        return None

    # ---- the line --------------------------------------------------------------------------------------------------------

    async def _wait_in_line(self, connection: Connection) -> None:
        turn = self._line[connection] = asyncio.Event()
        self._admit()
        if turn.is_set():
            return
        place = len(self._line)
        if place > self.settings.line:
            self._leave_line(connection)
            sentence = "The server is busy, and its waiting line is full; try again later."
            raise End("line_full", sentence, Close.TRY_AGAIN_LATER)
        connection.tell({"waiting": place})
        await turn.wait()

    def _leave_line(self, connection: Connection) -> None:
        if self._line.pop(connection, None):
            self._tell_places()

    def _tell_places(self) -> None:
        for place, connection in enumerate(self._line, 1):
            connection.tell({"waiting": place})

    def _admit(self) -> None:
        """Admit the clients that are first in line, as long as there is room."""
        came = False
        while self._line and not self._stopping and len(self._active) < self.settings.sessions:
            first, now = next(iter(self._line)), perf_counter()
            talking = [self._asked_for[each] for each in self._active]
            # One that is silent before it begins shows in nothing, and must not keep the others out.
            fresh = sum(now - (each.begun or came) < SETTLED for each, came in self._active.items())
            if not self._models.has_room(self._asked_for[first], talking, fresh):
                break
            self._active[first] = now
            self._line.pop(first).set()
            came = True
        if came:
            self._tell_places()

    def fail(self, failure: Failed) -> None:
        """Note a failure: one of the model ends the server, one of the codec only its conversation."""
        if failure.where in ("model", "start"):
            self.failure = self.failure or failure
            self.failed.set()

    # ---- figures ---------------------------------------------------------------------------------------------------------

    def figures(self) -> tuple[int, int, int]:
        """Return how many conversations, waiting clients and open connections there are now."""
        return len(self._active), len(self._line), self.open_connections()

    def own_figures(self) -> bytes:
        """Return the figures in the format of Prometheus."""
        return self._figures.text()

    async def _only_own_figures(self) -> bytes:
        return self.own_figures()

    def places(self) -> dict[str, float]:
        """Return how many conversations there can be, as far as was measured; how many places are taken; how many are free.

        A client in the line takes one, too.
        """
        active = len(self._active)
        if self.failure or self._stopping:
            places = active
        else:
            talking = [self._asked_for[each] for each in self._active]
            places = max(active, self._models.places(talking, self.settings.sessions))
        taken = active + len(self._line)
        return {"places": places, "taken": taken, "free": max(0, places - taken)}

    def errors(self) -> Mapping[str, int]:
        """Return the counts of refusals, faults and ends, by kind."""
        return self._counts


def _told(parameters: ChatParameters, persona: Persona | None, ignored: list[str]) -> dict[str, Any]:
    """Return what a client of ours is told about its parameters."""
    told: dict[str, Any] = {"ignored": ignored} if ignored else {}
    if persona and parameters.text_prompt and persona.text != parameters.text_prompt:
        reads = f"it reads “{shortened(persona.text, _LOGGED)}”" if persona.text else "it has no role"
        told["notice"] = f"The model does not know all letters of the role; {reads}."
    return told


class _RefusedError(Exception):
    """The request is refused, with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _subprotocols(request: Request) -> list[str]:
    """Return the subprotocols that a client of a websocket offers."""
    return [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]


def _inside(folder: Path, name: str) -> Path | None:
    """Return the file of this name, if it is one and really in the folder."""
    with contextlib.suppress(OSError, ValueError):  # it cannot be the name of a file
        folder = folder.resolve()
        file = (folder / name).resolve()
        if file.is_relative_to(folder) and file.is_file():
            return file
    return None


def _is_interface(path: str) -> bool:
    """Return whether a path is for programs and not for people, in this server or in others."""
    return path.startswith(("/api/", "/v1/")) or path in ("/api", "/v1")
