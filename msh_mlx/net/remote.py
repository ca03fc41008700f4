"""`Remote`: a live conversation with a server by websocket (`/api/chat`), with the same interface as `Pipeline`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, NoReturn

import aiohttp
import numpy as np

from ..conversation.live import DELAY_LIMIT, LiveConversation, Sink, Source
from ..errors import InputError, MshError, ProtocolError, UnansweredError
from ..events import Called, Event, Failed, HeardWord, Loading, Notice, Turned, Word
from ..format import FRAME_SECONDS, FRAME_SIZE, Pcm
from ..metrics import Durations, Memory, resident_bytes
from ..system.words import shortened
from . import messages
from .address import Address
from .messages import Audio, ColoredText, Control, Error, Handshake, MetaData, Ping, Text
from .opus import OpusDecoder, OpusEncoder
from .tls import fingerprint, known_file, remember
from .tunnel import Proxy, ProxyConnector, reason

# Before Python 3.12, `asyncio.wait_for` loses a cancellation that comes just when its task is done. So do not use it.
if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

_CONNECT = 10.0  # seconds for a connection to be made
_SILENT = 10.0  # seconds without a message, though we sent sound, after which the connection counts as lost
_ANSWER = 3.0  # seconds for a new conversation to begin on the same connection; published servers cannot do that
_PATIENT = 5.0  # seconds without a handshake, after which the user is told
_PAUSES = 0.5, 1.0, 2.0, 4.0, 5.0  # seconds between attempts to connect again; later pauses are like the last
_IDLE = 10.0  # seconds without sound, after which we send a sign of life: servers drop clients that send nothing
_CLOSE = 0.2  # seconds to close a connection
_TICK = 0.1  # seconds between two looks at the clock
_POLL = 0.005  # seconds between two looks for sound
_PINGED = 2  # frames between two pings
# Frames that may be under way to the server in a live conversation. On a slow network, sound is then dropped, not delayed.
_UNHEARD = 12
UNANSWERED = 25  # frames of a recording that may be sent and not answered yet
# Seconds without an answer, after which one more frame is sent: some servers wait for it, and some do not answer every frame.
STALLED = 1.0
_STUCK = 60.0  # seconds without sound from the server, though other messages come, after which a recording is given up
LAST_WORDS = 0.2  # seconds to wait for the text of the last frame, which some servers send after its sound
TOGETHER = 0.02  # seconds between a text and the sound of the same frame, at most
_DAMAGE_EVERY = 10.0  # seconds between two messages about damage
# Close codes that promise a return. After an error and any other code, the server is not asked again.
_COMES_BACK = aiohttp.WSCloseCode.GOING_AWAY, aiohttp.WSCloseCode.SERVICE_RESTART
_SENTENCE = 500  # characters of what a server says that are shown
_PROMPTS = "voice_prompt", "text_prompt"  # parameters without which PersonaPlex's server fails


class _LostError(MshError):
    """The connection is lost; the message says how, for the middle of a sentence.

    `over` is True if the conversation may simply be over: the server fell silent, or closed the connection in order.
    """

    def __init__(self, how: str, *, over: bool = False) -> None:
        super().__init__(how)
        self.over = over


class _AgainError(Exception):
    """The server began no new conversation on this connection: connect again."""


class EndedError(MshError):
    """A conversation with a recording ended before all of it was answered; `over` is as in `_LostError`."""

    def __init__(self, what: str, *, over: bool) -> None:
        super().__init__(what, "try again")
        self.over = over


class _KnownCertificate(aiohttp.Fingerprint):
    """Accepts the certificate that is remembered for a server, or remembers a new server's, before anything is sent to it."""

    def __init__(self, address: Address, events: Callable[[Event], None]) -> None:
        super().__init__(bytes(32))  # aiohttp wants one that it could compare
        self._address = address
        self._events = events

    def check(self, transport: asyncio.Transport) -> None:
        try:
            address = self._address
            certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if remember(address.host, address.port, certificate):
                said = f"The certificate of {address} is new: {fingerprint(certificate)} (SHA-256)"
                self._events(Notice("certificate", f"{said}; from now on this server must have it ({known_file()})."))
        except BaseException:
            transport.abort()
            raise


class _Steps(Durations):
    """The times of the model's steps, in seconds, as the server sends them: only the median and the 95th percentile."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[float, float] = {50: 0.0, 95: 0.0}

    def tell(self, p50: float, p95: float) -> None:
        self._told = {50: p50, 95: p95}

    def recent(self, percent: float) -> float:
        return self._told[percent]


@dataclass
class _Talk:
    """The state of a connection and of the conversation on it."""

    begun: float = field(default_factory=perf_counter)
    latest: float = 0.0  # when a message last came
    listening: bool = False  # whether the server listens
    asked: float | None = None  # when the server was asked for a new conversation
    waiting: object = None  # our place in line
    complaint: str = ""  # the server's last error since it last sent sound
    decoder: OpusDecoder = field(default_factory=OpusDecoder)
    taken: int = 0  # frames that were sent on this connection, in all conversations
    arrived: int | None = None  # how many of them have arrived, or None if the server has never said so
    sent: int = 0  # frames that were sent in this conversation
    received: int = 0  # frames of the reply that came in this conversation
    sent_at: float = 0.0  # when a frame was last sent
    said_at: float = 0.0  # when a frame of the reply last came
    pinged_at: float = field(default_factory=perf_counter)  # when we last sent a sign of life
    given_up: int = 0  # frames of ours that the server dropped in this conversation
    forgiven: int = 0  # frames of ours in this conversation whose answers we do not wait for any longer
    told_given_up: int = 0  # frames that the server dropped, as it last said on this connection
    told_damaged: float = 0.0  # seconds of our sound that the server could not read, as it last said
    told_faults: int = 0  # damaged pages of the server's sound, as the user was last told
    told_at: float = -math.inf  # when the user was last told
    encoder: OpusEncoder = field(default_factory=OpusEncoder)
    rest: Pcm = field(default_factory=lambda: np.zeros(0, np.float32))  # less than a frame of the reply
    # For each frame that was sent and not answered, when the user's sound in it ended. The first is frame `index`.
    heard: deque[float] = field(default_factory=deque)

    @property
    def index(self) -> int:
        """Return the index of the sent frame that the next frame of the reply answers."""
        return self.received + self.given_up

    @property
    def is_on(self) -> bool:
        """Return whether what comes belongs to a conversation, even to one that we have asked to end."""
        return self.listening or self.asked is not None

    def begin(self) -> None:
        """Reset the state for a new conversation; the stream from the server goes on, ours begins anew."""
        self.sent = self.received = self.given_up = self.forgiven = 0
        self.encoder = OpusEncoder()
        self.rest = np.zeros(0, np.float32)
        self.heard.clear()
        self.said_at = perf_counter()
        self.listening, self.asked, self.complaint = True, None, ""
        self.pinged_at = perf_counter()


class Remote(LiveConversation):
    """A conversation between `source` and `sink` with a model on a server, on a thread of its own.

    From the server's handshake on, the user's sound is sent; while muted, silence. When the server or the network is slow,
    sound waits in `source`, and beyond `delay_limit` the oldest is dropped. A lost connection is made again, with a new
    conversation, until `stop`. The first connection must succeed. If the sound is a `recording`'s, none of it is dropped, it is
    sent only as fast as the server answers, and a lost connection ends the conversation.

    All else is as for `LiveConversation`; the step times come from the server.
    """

    def __init__(
        self,
        address: Address,
        source: Source,
        sink: Sink,
        events: Callable[[Event], None],
        delay_limit: float = DELAY_LIMIT,
        *,
        recording: bool = False,
    ) -> None:
        super().__init__(source, sink, events, delay_limit)
        self.metrics.step = self._steps = _Steps()
        self._address = address
        self._recording = recording
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = False  # whether the user was told that the connection is lost
        self._attempts = 0  # failed attempts to connect again
        self._refusal = ""  # the server's sentence when it refuses a connection
        self._talk = _Talk()
        self._proxy: Proxy | None = None

    def start(self) -> None:
        """Start a thread that connects, and return at once; events report the progress."""
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._run())
        self._thread = threading.Thread(target=self._run_thread, name="msh-remote", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> bool:
        """As in `LiveConversation`."""
        if self._loop and self._task:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        """As in `LiveConversation`."""
        if not self._thread:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run_thread(self) -> None:
        assert self._loop
        assert self._task
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.failure = Failed("connection", error)
            with contextlib.suppress(Exception):
                self._events(self.failure)
        finally:
            # Close only the loop. Another thread may still look up a name, and waiting for that could take long.
            self._loop.close()

    async def _run(self) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._read_refusal)
        address = self._address
        self._proxy = Proxy.on_the_way(address.host, address.port, secure=address.secure)
        connector = ProxyConnector(self._proxy) if self._proxy else None
        http = aiohttp.ClientSession(connector=connector, trace_configs=[trace])
        try:
            while True:
                with contextlib.suppress(_AgainError):
                    await self._attempt(http)
        finally:
            # Without a limit, TLS would wait half a minute for the other side to close.
            with contextlib.suppress(Exception):
                async with timeout(_CLOSE):
                    await http.close()

    async def _attempt(self, http: aiohttp.ClientSession) -> None:
        """Connect and hold conversations until the connection is lost, then pause before the next attempt."""
        try:
            connection = await self._connect(http)
            try:
                await self._converse(connection)
            finally:
                with contextlib.suppress(Exception):
                    async with timeout(_CLOSE):
                        await connection.close()
        except (_LostError, UnansweredError) as error:
            if not self._conversation or self._recording:
                if isinstance(error, UnansweredError):
                    raise
                when = f"after {self._talk.index * FRAME_SECONDS:.0f} s" if self._conversation else "before it began"
                over = isinstance(error, _LostError) and error.over
                if not self._talk.latest:  # not a single message came
                    raise UnansweredError(
                        f"{self._address} failed before it began ({error.clause})", self._hint()
                    ) from None
                raise EndedError(
                    f"The connection to {self._address} was lost {when}: {error.clause}", over=over
                ) from None
            if not self._lost:
                self._lost = True
                self._sink.pause()
                sentence = f"The connection to {self._address} is lost ({error.clause}); trying to connect again."
                self._events(Notice("connection-lost", sentence, "warning"))
            await asyncio.sleep(_PAUSES[min(self._attempts, len(_PAUSES) - 1)])
            self._attempts += 1

    async def _connect(self, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse[bool]:
        """Connect to the server.

        Raises
        ------
        UnansweredError
            The server cannot be reached, or is busy.
        InputError, MshError
            The server is not one of conversations, has another certificate than before, or refuses this client.
        """
        begin = perf_counter()
        first = not self._conversation
        if first:
            self._events(Loading("connecting"))
        try:
            async with timeout(_CONNECT):
                connection = await self._open(http)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            for own in (error, error.__cause__):  # aiohttp replaces every OSError, such as WriteError
                if isinstance(own, MshError):
                    raise own from None
            raise self._sorry(error) from None
        if first:
            self._events(Loading("connecting", perf_counter() - begin))
            self._events(Loading("waiting"))
        return connection

    async def _open(self, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse[bool]:
        url = self._address.url()
        # We read pongs ourselves: they show how much of the sound has arrived.
        connect = partial(http.ws_connect, url, autoping=False, max_msg_size=messages.MAX_MESSAGE)
        try:
            return await connect()
        except aiohttp.ClientConnectorCertificateError as error:
            if (error.host, error.port) != (url.raw_host, url.port):  # it redirects to another server
                raise
            return await connect(ssl=_KnownCertificate(self._address, self._events))

    def _sorry(self, error: Exception) -> MshError:
        """Return the error for a connection that could not be made."""
        server = self._address
        match error:
            case asyncio.TimeoutError() | TimeoutError():
                way = f", and whether the proxy {self._proxy} lets everybody through" if self._proxy else ""
                return UnansweredError(f"{server} does not answer", f"see whether the server runs there{way}")
            case aiohttp.WSServerHandshakeError():
                return self._refused(error)
            case aiohttp.ClientSSLError():
                return MshError(f"{server} does not speak TLS as it should", "if it speaks none, leave --https out")
            case aiohttp.ClientConnectorDNSError():
                return UnansweredError(
                    f"There is no host {server.host}, or its name cannot be looked up", "check the spelling"
                )
            case aiohttp.ClientConnectorError():
                return UnansweredError(
                    f"Nothing can be reached at {server} ({reason(error)})",
                    "start the server, or say where it is with --host and --port",
                )
            case aiohttp.ClientResponseError() | aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
                what = f"{server} does not answer as a server of conversations does"
                return (
                    UnansweredError(f"{what}.")
                    if server.secure
                    else UnansweredError(what, "if it speaks TLS, give --https")
                )
        return UnansweredError(f"{server} cannot be reached ({reason(error)})", "see whether the server runs there")

    def _refused(self, error: aiohttp.WSServerHandshakeError) -> MshError:
        said = self._refusal or f"it answers {error.status}"
        if self._refusal and error.headers and error.headers.get("WWW-Authenticate") == "Bearer":
            return InputError(f"{self._address} refuses: {said.rstrip('.')}", "give the token with --token")
        if error.status in (400, 401, 403):
            return InputError(f"{self._address} refuses: {said}")
        if error.status == 500:
            return UnansweredError(f"{self._address} failed before it began ({said.rstrip('.')})", self._hint())
        if error.status in (429, 500, 502, 503, 504):
            return UnansweredError(f"{self._address} cannot talk now: {said}")
        return MshError(f"{self._address} is not a server of conversations ({said})", "check the host and the port")

    def _hint(self) -> str:
        """Return advice for a published server that fails without a message: it may lack parameters in the address."""
        if self._address.query.keys() >= set(_PROMPTS):
            return "look at the server's own messages, and check that it has this voice_prompt"
        return f"if it is PersonaPlex's server, give {' and '.join(f'--param {name}=…' for name in _PROMPTS)}"

    async def _read_refusal(self, _: object, __: object, params: aiohttp.TraceRequestEndParams) -> None:
        """Keep the server's sentence when it refuses the websocket; the error that follows does not hold it."""
        self._refusal = ""
        response = params.response
        if response.status != 101 and response.content_type == "text/plain":
            with contextlib.suppress(aiohttp.ClientError):
                body = await response.content.read(_SENTENCE)
                self._refusal = _line(body.decode(errors="replace"))

    async def _converse(self, connection: aiohttp.ClientWebSocketResponse[bool]) -> NoReturn:
        """Hold conversations on a connection until it is lost or something fails; raise the error."""
        self._talk = _Talk()
        tasks = [asyncio.create_task(work) for work in (self._hear(connection), self._speak(connection), self._watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tell_damage(0.0)
            self._end_words()
        for task in tasks:  # raise the error of the task that ended first; it explains the others
            if task in done:
                await task
        raise AssertionError("a task returned without an error")

    async def _watch(self) -> None:
        """Watch the clock: raise an error, or tell the user, when the server is silent for too long."""
        talk, told = self._talk, False
        while True:
            await asyncio.sleep(_TICK)
            now = perf_counter()
            if talk.asked is not None and now - talk.asked > _ANSWER:
                raise _AgainError
            if talk.listening and (silence := self._silence(now)):
                hint = "" if self._address.query.get("realtime") != "0" else "; some servers need --realtime"
                raise _LostError(f"{silence}{hint}", over=True)
            since = talk.begun if talk.asked is None else talk.asked
            if not talk.listening and talk.waiting is None and not told and now - since > _PATIENT:
                told = True
                self._events(
                    Notice("waiting", f"{self._address} does not listen yet; it may be busy with somebody else.")
                )

    def _silence(self, now: float) -> str:
        """Return how long the server has been silent, though we sent sound, if that is too long; else ""."""
        talk = self._talk
        if talk.sent_at > talk.latest and now - talk.latest > _SILENT:
            return f"nothing came for {_SILENT:.0f} s"
        if self._recording and talk.sent_at > talk.said_at and now - talk.said_at > _STUCK:
            return f"no sound came for {_STUCK:.0f} s"
        return ""

    async def _speak(self, connection: aiohttp.ClientWebSocketResponse[bool]) -> None:
        talk = self._talk
        silence = np.zeros(FRAME_SIZE, np.float32)
        while True:
            if self._restart:
                self._restart = False
                talk.asked, talk.listening = perf_counter(), False
                await self._send(connection, Control.RESTART)
            pcm = None
            if talk.listening:
                self._look_around()
                if self._may_send():
                    pcm = self._source.read(FRAME_SIZE, 0.0)
            if pcm is None and talk.listening and perf_counter() - max(talk.sent_at, talk.pinged_at) > _IDLE:
                talk.pinged_at = perf_counter()
                if self._recording:  # more sound would be too early: the server has not answered yet
                    await self._send(connection, Ping())
                else:
                    pcm = silence  # the microphone has gone, and only sound keeps a conversation alive
            if pcm is None:
                await asyncio.sleep(_POLL)
                continue
            begin = perf_counter()
            index, heard = talk.sent, begin - self._source.backlog()
            data = talk.encoder.encode(self._hears(index, pcm))
            self._worked("encode", index, begin, perf_counter())
            talk.heard.append(heard)
            talk.sent += 1
            talk.taken += 1
            talk.sent_at = perf_counter()
            await self._send(connection, Audio(data))

    async def _send(self, connection: aiohttp.ClientWebSocketResponse[bool], message: messages.Message) -> None:
        talk = self._talk
        try:
            await connection.send_bytes(messages.encode(message))
            if isinstance(message, Audio) and talk.taken % _PINGED == 0:
                await connection.ping(str(talk.taken).encode())
        except (ConnectionError, aiohttp.ClientError):
            # Leave it to `_hear` to report why: the server's explanation may still be on its way.
            await asyncio.sleep(math.inf)

    def _may_send(self) -> bool:
        talk = self._talk
        if self._recording:
            if talk.sent - talk.index - talk.forgiven < UNANSWERED:
                return True
            stalled = perf_counter() - max(talk.sent_at, talk.said_at) > STALLED
            talk.forgiven += stalled
            return stalled
        return talk.arrived is None or talk.taken - talk.arrived < _UNHEARD

    def _look_around(self) -> None:
        """Keep the waiting sound within its limit, and report drops, underruns and queues."""
        backlog = self._source.backlog()
        if backlog > self._delay_limit and not self._recording:
            dropped = self._source.trim(FRAME_SECONDS)
            backlog -= dropped
            self._gave_up(self._talk.sent, dropped)
        self._tell_queues(backlog, FRAME_SECONDS * max(0, self._talk.sent - self._talk.index), 0.0)
        self._measure(lambda: Memory(rss=resident_bytes()))

    async def _hear(self, connection: aiohttp.ClientWebSocketResponse[bool]) -> None:
        talk = self._talk
        while True:
            message = await connection.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                talk.latest = perf_counter()
                with contextlib.suppress(ProtocolError):  # ignore a bad message, as published clients do
                    if (known := messages.decode(message.data)) is not None:
                        self._take(known)
            elif message.type is aiohttp.WSMsgType.PING:
                await connection.pong(message.data)
            elif message.type is aiohttp.WSMsgType.PONG:
                with contextlib.suppress(ValueError):
                    talk.arrived = min(int(message.data), talk.taken)
            elif message.type is not aiohttp.WSMsgType.TEXT:
                comes_back = message.data in _COMES_BACK and not self._recording
                if talk.complaint and not comes_back:
                    raise MshError(f"{self._address} ended the conversation: {talk.complaint}")
                over = message.type is aiohttp.WSMsgType.CLOSE and message.data == aiohttp.WSCloseCode.OK
                raise _LostError(_ending(message.type, message.data, message.extra), over=over)

    def _take(self, message: messages.Message) -> None:
        talk = self._talk
        match message:
            case Handshake():
                self._begin()
            case Audio(data):
                self._play(self._decode(data))
            case Text(text) | ColoredText(_, text) if talk.is_on:
                self._speaks(talk.index, text)
            case MetaData(values):
                self._learn(values)
            case Error(text):
                talk.complaint = _line(text) or "something went wrong (it does not say what)."
                self._events(Notice("server-error", f"{self._address} says: {talk.complaint}", "error"))

    def _begin(self) -> None:
        """Begin the next conversation: the server has sent its handshake."""
        self._end_words()
        self._talk.begin()
        if self._conversation:
            self._sink.clear()
        else:
            self._events(Loading("waiting", perf_counter() - self._talk.begun))
        self._listen()
        if self._lost:
            self._lost = False
            self._events(Notice("connection-back", f"{self._address} is back; this is a new conversation."))

    def _decode(self, data: bytes) -> Pcm:
        """Decode sound, and drop what comes before the handshake; return `[n]` float32 at 24 kHz."""
        talk = self._talk
        try:
            pcm = talk.decoder.decode(data, keep=talk.is_on)
        except ProtocolError as error:
            raise MshError(f"{self._address} sends sound that cannot be heard: {error}") from None
        self._tell_damage(_DAMAGE_EVERY)
        return pcm

    def _tell_damage(self, every: float) -> None:
        """Tell the user of new damage in the server's sound, unless that was done less than `every` seconds ago."""
        talk, now = self._talk, perf_counter()
        if talk.decoder.faults > talk.told_faults and now - talk.told_at > every:
            talk.told_faults, talk.told_at = talk.decoder.faults, now
            what = f"damaged or missing pages: {talk.told_faults}, {talk.decoder.lost:.2f} s"
            self._events(
                Notice("damaged", f"Sound from {self._address} has {what} so far, which are silent.", "warning")
            )

    def _play(self, pcm: Pcm) -> None:
        talk = self._talk
        if len(pcm):
            talk.complaint = ""
            self._attempts = 0
        talk.rest = np.concatenate([talk.rest, pcm])
        while len(talk.rest) >= FRAME_SIZE:
            frame, talk.rest = talk.rest[:FRAME_SIZE], talk.rest[FRAME_SIZE:]
            index = talk.index
            talk.said_at = perf_counter()
            talk.received += 1
            self._says(index, frame, talk.heard.popleft() if talk.heard else None)
            self._speaks(index, "")

    def _learn(self, values: Mapping[str, Any]) -> None:
        """Read metadata: notices, the user's words, our place in line, and figures; ignore what published servers send."""
        talk = self._talk
        if isinstance(ignored := values.get("ignored"), list) and ignored:
            names = _line(", ".join(map(str, ignored)))
            self._events(Notice("ignored", f"{self._address} does not know these parameters: {names}."))
        if isinstance(note := values.get("notice"), str):
            self._events(Notice("channels", _line(note), "warning"))
        if values.get("hush") is True:
            self._sink.clear()
        if isinstance(word := values.get("heard"), str):
            self._events(HeardWord(Word(round(talk.sent * FRAME_SECONDS, 3), _line(word))))
        if isinstance(turn := values.get("turn"), str):
            now = perf_counter()
            self._events(Turned(_line(turn), talk.index, now, now, now))
        if isinstance(tool := values.get("tool"), Mapping):
            name, arguments, result = (_line(str(tool.get(key, ""))) for key in ("name", "arguments", "result"))
            self._events(
                Called(name, arguments, result, tool.get("failed") is True, _number(tool.get("seconds")) or 0.0)
            )
        place = values.get("waiting")
        if not talk.listening and place is not None and place != talk.waiting:
            talk.waiting = place
            self._events(Notice("waiting", f"{self._address} is busy; we are number {_line(str(place))} in line."))
        figures = "step_p50_ms", "step_p95_ms", "dropped_s", "damaged_s"
        p50, p95, dropped, damaged = (_number(values.get(name)) for name in figures)
        if p50 is not None and p95 is not None:
            self._steps.tell(p50 / 1000, p95 / 1000)
        if dropped is not None:
            frames = round(dropped / FRAME_SECONDS)
            # The server may count from the beginning of the conversation or of the connection.
            new = frames - talk.told_given_up if frames >= talk.told_given_up else frames
            talk.told_given_up = frames
            new = new if talk.listening else 0  # else the drops belong to the conversation before
            talk.given_up += new
            for _ in range(min(new, len(talk.heard))):
                talk.heard.popleft()
            self._gave_up(talk.sent, new * FRAME_SECONDS)
        if damaged is not None and damaged > talk.told_damaged:
            talk.told_damaged = damaged
            sentence = f"{self._address} could not read {damaged:.2f} s of your sound so far: pages arrived damaged."
            self._events(Notice("damaged", sentence, "warning"))


def _line(text: str) -> str:
    """Return a server's text on one line, shortened, and without control characters for the terminal."""
    return shortened(text, _SENTENCE)


def _number(value: object) -> float | None:
    """Return a value from the server as a finite number ≥ 0; return None if it is something else."""
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def _ending(kind: aiohttp.WSMsgType, data: object, extra: str | None) -> str:
    """Return how a connection ended, by its last message, in words for the middle of a sentence."""
    if kind is aiohttp.WSMsgType.ERROR:
        return f"{type(data).__name__}: {_line(str(data))}"
    said = _line(extra or "") if kind is aiohttp.WSMsgType.CLOSE else ""
    return f"the server ended it: {said}" if said else "the server ended it"
