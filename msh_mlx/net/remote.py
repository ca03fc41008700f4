"""`Remote`: a live conversation with a model behind a websocket (`/api/chat`), with the same face as `Pipeline`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import ssl
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
from ..events import Event, Failed, Loading, Notice
from ..format import FRAME_SECONDS, FRAME_SIZE, Pcm
from ..metrics import Durations, Memory, resident_bytes
from ..system.words import shortened
from . import messages
from .messages import Audio, ColoredText, Control, Error, Handshake, MetaData, Ping, Text
from .opus import OpusDecoder, OpusEncoder
from .tls import KnownServers, fingerprint, peer_certificate
from .tunnel import Proxy, ProxyConnector

# Not `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes just when what it waits for is done.
if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

from .address import Address

_CONNECT = 10.0  # seconds for a connection to be there
_SILENT = 10.0  # seconds in which a server that hears something sends nothing: it has gone
_ANSWER = 3.0  # seconds for a new conversation to begin on the same connection; published servers do not do that
_PATIENT = 5.0  # seconds without a beginning that are worth a word
_PAUSES = 0.5, 1.0, 2.0, 4.0, 5.0  # seconds between attempts to connect again; the last one stays
_IDLE = 10.0  # seconds without sound after which we say that we are still here: servers let go of who says nothing
_CLOSE = 0.2  # seconds to say goodbye
_TICK = 0.1  # seconds between two looks at the clock
_POLL = 0.005  # seconds between two looks for sound
_PINGED = 2  # frames between two pings
# Frames that may be under way to a live server: a slow network makes the microphone drop, not lag.
_UNHEARD = 12
UNANSWERED = 25  # frames of a recording that may be without a reply
# Seconds without an answer after which a server hears a frame more: some wait for it, and some do not answer every frame.
STALLED = 1.0
_STUCK = 60.0  # seconds without sound, while other messages come, after which a recording is not answered any more
LAST_WORDS = 0.2  # seconds for the text of the last frame, which some servers send behind its sound
TOGETHER = 0.02  # seconds between a text and the sound of the same frame, at most
_DAMAGE_EVERY = 10.0  # seconds between two words about damage
# A server that complains and closes with another code is not asked again.
_COMES_BACK = aiohttp.WSCloseCode.GOING_AWAY, aiohttp.WSCloseCode.SERVICE_RESTART
_SENTENCE = 500  # characters of what a server says that are shown
_PROMPTS = "voice_prompt", "text_prompt"  # parameters without which PersonaPlex's server fails


class _LostError(Exception):
    """The connection is lost; the message says how, in the middle of a sentence.

    `over` is True where the server may have had all that it wanted: it fell silent, or closed the connection in order.
    """

    def __init__(self, how: str, *, over: bool = False) -> None:
        super().__init__(how)
        self.over = over


class _AgainError(Exception):
    """A new conversation needs a new connection."""


class EndedError(MshError):
    """A conversation with a recording has ended before all of it was answered; `over` is as of `_LostError`."""

    def __init__(self, what: str, *, over: bool) -> None:
        super().__init__(what, "try again")
        self.over = over


class _Steps(Durations):
    """The times of the model's steps as the server tells them, in seconds: their median and their 95th percentile alone."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[float, float] = {50: 0.0, 95: 0.0}

    def tell(self, p50: float, p95: float) -> None:
        self._told = {50: p50, 95: p95}

    def recent(self, percent: float) -> float:
        return self._told[percent]


@dataclass
class _Talk:
    """What is known of a connection, and, from `taken` on, of the conversation that is held on it."""

    begun: float = field(default_factory=perf_counter)
    latest: float = 0.0  # when something came
    listening: bool = False  # the server does
    asked: float | None = None  # when it was asked for a new conversation
    waiting: object = None  # which place in line we have
    complaint: str = ""  # of the server's, since it last sent sound
    decoder: OpusDecoder = field(default_factory=OpusDecoder)
    taken: int = 0  # frames, sent in all conversations of this connection
    arrived: int | None = None  # of these; None: it never told
    sent: int = 0  # frames
    received: int = 0  # frames
    sent_at: float = 0.0  # when a frame last was
    said_at: float = 0.0  # when a frame of the reply last came
    pinged_at: float = field(default_factory=perf_counter)  # when we last said that we are still here
    given_up: int = 0  # frames of ours in this conversation, by the server
    forgiven: int = 0  # frames of ours in this conversation that are not waited for any longer
    told_given_up: int = 0  # frames, on this connection
    told_damaged: float = 0.0  # seconds of our sound, by the server
    told_faults: int = 0  # pages of its sound, to the user
    told_at: float = -math.inf  # when they were
    encoder: OpusEncoder = field(default_factory=OpusEncoder)
    rest: Pcm = field(default_factory=lambda: np.zeros(0, np.float32))  # less than a frame of the reply
    # When what was sent had been heard by the microphone, `[0]` for frame `received + given_up`.
    heard: deque[float] = field(default_factory=deque)

    @property
    def place(self) -> int:
        """Which of the frames that were sent the next frame of the reply belongs to."""
        return self.received + self.given_up

    @property
    def is_on(self) -> bool:
        """Whether what comes belongs to a conversation, be it one that we want to end."""
        return self.listening or self.asked is not None

    def begin(self) -> None:
        """Begin a conversation from fresh state, but for the streams of bytes, which go on."""
        self.sent = self.received = self.given_up = self.forgiven = 0
        self.encoder = OpusEncoder()
        self.rest = np.zeros(0, np.float32)
        self.heard.clear()
        self.said_at = perf_counter()
        self.listening, self.asked, self.complaint = True, None, ""
        self.pinged_at = perf_counter()


class Remote(LiveConversation):
    """A conversation between `source` and `sink` with a model elsewhere, on a thread of its own.

    Sound goes out from the server's handshake on, silence while muted. What waits in `source` beyond `delay_limit` is given up,
    the oldest first; and while the server, or the way to it, does not take what was sent, it waits there. A connection that is
    lost is made anew, with a new conversation, until `stop`; the first one must succeed.

    Parameters
    ----------
    address
        The server.
    source, sink, events
        As for `LiveConversation`.
    delay_limit
        How much of the user's sound may wait, in seconds.
    recording
        The sound is a recording's: nothing of it is given up, no more is sent than the server answers, and a lost connection
        ends the conversation.

    Attributes
    ----------
    metrics, failure, muted
        As of `LiveConversation`; the times of steps are what the server tells.
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
        self._lost = False  # whether the user was told so
        self._attempts = 0  # to connect again, in vain
        self._refusal = ""  # what the server said when it did not want us
        self._talk = _Talk()
        self._proxy: Proxy | None = None

    def start(self) -> None:
        """Connect and begin, on a thread: events tell how it goes."""
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
            # Not what waits for a name's address in another thread: that may take long.
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
            # TLS would wait half a minute for the other side's goodbye.
            with contextlib.suppress(Exception):
                async with timeout(_CLOSE):
                    await http.close()

    async def _attempt(self, http: aiohttp.ClientSession) -> None:
        """Connect and hold conversations until the connection is lost; wait, so that another attempt makes sense."""
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
                when = f"after {self._talk.place * FRAME_SECONDS:.0f} s" if self._conversation else "before it began"
                over = isinstance(error, _LostError) and error.over
                if not self._talk.latest:  # not a word came
                    raise UnansweredError(f"{self._address} failed before it began ({error}){self._hint()}.") from None
                raise EndedError(f"The connection to {self._address} was lost {when}: {error}", over=over) from None
            if not self._lost:
                self._lost = True
                self._sink.pause()
                sentence = (
                    f"The connection to {self._address} is lost ({str(error).rstrip('.')}); trying to connect again."
                )
                self._events(Notice("connection-lost", sentence, "warning"))
            await asyncio.sleep(_PAUSES[min(self._attempts, len(_PAUSES) - 1)])
            self._attempts += 1

    async def _connect(self, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse[bool]:
        """Connect to the server.

        Raises
        ------
        UnansweredError
            It cannot be reached, or is busy.
        InputError, MshError
            It can, but it is no such server, or another one than before, or does not want this client.
        """
        begin = perf_counter()
        first = not self._conversation
        if first:
            self._events(Loading("connecting"))
        try:
            async with timeout(_CONNECT):
                connection = await self._open(http)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            if isinstance(error, MshError):
                raise
            raise self._sorry(error) from None
        if first:
            self._events(Loading("connecting", perf_counter() - begin))
            self._events(Loading("waiting"))
        return connection

    async def _open(self, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse[bool]:
        trusted: bool | aiohttp.Fingerprint = True
        if self._address.secure:
            proxy, host, port = self._proxy, self._address.url().raw_host or "", self._address.port
            certificate = await peer_certificate(host, port, partial(proxy.connect, host, port) if proxy else None)
            if certificate is not None:
                known = KnownServers()
                if known.check(self._address.host, self._address.port, certificate):
                    said = f"The certificate of {self._address} is new: {fingerprint(certificate)} (SHA-256)"
                    self._events(Notice("certificate", f"{said}; from now on it is expected there ({known.path})."))
                trusted = aiohttp.Fingerprint(bytes.fromhex(fingerprint(certificate).replace(":", "")))
        # Pongs say how much of the sound has arrived.
        return await http.ws_connect(
            self._address.url(), ssl=trusted, autoping=False, max_msg_size=messages.MAX_MESSAGE
        )

    def _sorry(self, error: Exception) -> MshError:
        """Return what to say about a connection that could not be made."""
        server = self._address
        match error:
            case asyncio.TimeoutError() | TimeoutError():
                way = f", and whether the proxy {self._proxy} lets everybody through" if self._proxy else ""
                return UnansweredError(f"{server} does not answer; see whether the server runs there{way}.")
            case aiohttp.ServerFingerprintMismatch():
                return MshError(f"The certificate of {server} changed in between; try again.")
            case aiohttp.WSServerHandshakeError():
                return self._refused(error)
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return MshError(f"{server} does not speak TLS as it should; if it speaks none, leave --https out.")
            case aiohttp.ClientConnectorDNSError() | socket.gaierror():
                return UnansweredError(
                    f"There is no host {server.host}, or no way to look it up; see how it is spelled."
                )
            case aiohttp.ClientConnectorError() | ConnectionRefusedError():
                return UnansweredError(
                    f"Nothing can be reached at {server} ({_reason(error)}); start the server, or say where it is with "
                    "--host and --port."
                )
            case aiohttp.ClientResponseError() | aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
                hint = "" if server.secure else "; if it speaks TLS, give --https"
                return UnansweredError(f"{server} does not answer as a server of conversations does{hint}.")
        return UnansweredError(f"{server} cannot be reached ({_reason(error)}); see whether the server runs there.")

    def _refused(self, error: aiohttp.WSServerHandshakeError) -> MshError:
        said = self._refusal or f"it answers {error.status}"
        if error.status in (400, 401, 403):
            return InputError(f"{self._address} refuses: {said}")
        if error.status == 500:
            return UnansweredError(f"{self._address} failed before it began ({said.rstrip('.')}){self._hint()}.")
        if error.status in (429, 500, 502, 503, 504):
            return UnansweredError(f"{self._address} cannot talk now: {said}")
        return MshError(f"{self._address} is no server of conversations ({said}); see whether host and port are right.")

    def _hint(self) -> str:
        """Say what a published server may have missed that fails without a word: it wants more in the address than others."""
        if self._address.query.keys() >= set(_PROMPTS):
            return "; see what it says itself, and whether it has that voice_prompt"
        return f"; if it is PersonaPlex's, give it {' and '.join(f'--param {name}=…' for name in _PROMPTS)}"

    async def _read_refusal(self, _: object, __: object, params: aiohttp.TraceRequestEndParams) -> None:
        """Keep what the server says in place of going on; the error that follows has no room for it."""
        self._refusal = ""
        response = params.response
        if response.status != 101 and response.content_type == "text/plain":
            with contextlib.suppress(aiohttp.ClientError):
                body = await response.content.read(_SENTENCE)
                self._refusal = _line(body.decode(errors="replace"))

    async def _converse(self, connection: aiohttp.ClientWebSocketResponse[bool]) -> NoReturn:
        """Hold conversations on a connection until it is lost or something fails, which is raised."""
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
        for task in tasks:  # what came first explains the others
            if task in done:
                await task
        raise AssertionError("none of them returns")

    async def _watch(self) -> None:
        """Find out when the server does not do what it should."""
        talk, told = self._talk, False
        while True:
            await asyncio.sleep(_TICK)
            now = perf_counter()
            if talk.asked is not None and now - talk.asked > _ANSWER:
                raise _AgainError
            if talk.listening and (silence := self._silence(now)):
                hint = "" if self._address.query.get("realtime") != "0" else "; --realtime is for servers that want it"
                raise _LostError(f"{silence}{hint}", over=True)
            since = talk.begun if talk.asked is None else talk.asked
            if not talk.listening and talk.waiting is None and not told and now - since > _PATIENT:
                told = True
                self._events(
                    Notice("waiting", f"{self._address} does not listen yet; it may be busy with somebody else.")
                )

    def _silence(self, now: float) -> str:
        """Say for how long the server has said nothing, though it heard something, if that is too long."""
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
                if self._recording:  # what was sent is yet to be answered
                    await self._send(connection, Ping())
                else:
                    pcm = silence  # the microphone has gone; nothing but sound keeps a conversation
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
            # Whoever hears knows why; perhaps there is an explanation yet to be heard.
            await asyncio.sleep(math.inf)

    def _may_send(self) -> bool:
        talk = self._talk
        if self._recording:
            if talk.sent - talk.place - talk.forgiven < UNANSWERED:
                return True
            stalled = perf_counter() - max(talk.sent_at, talk.said_at) > STALLED
            talk.forgiven += stalled
            return stalled
        return talk.arrived is None or talk.taken - talk.arrived < _UNHEARD

    def _look_around(self) -> None:
        """Keep what waits within its limit, and tell of drops, underruns and queues."""
        backlog = self._source.backlog()
        if backlog > self._delay_limit and not self._recording:
            dropped = self._source.trim(FRAME_SECONDS)
            backlog -= dropped
            self._gave_up(self._talk.sent, dropped)
        self._tell_queues(backlog, FRAME_SECONDS * max(0, self._talk.sent - self._talk.place), 0.0)
        self._measure(lambda: Memory(rss=resident_bytes()))

    async def _hear(self, connection: aiohttp.ClientWebSocketResponse[bool]) -> None:
        talk = self._talk
        while True:
            message = await connection.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                talk.latest = perf_counter()
                with contextlib.suppress(ProtocolError):  # it is discarded, as published clients do
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
                self._speaks(talk.place, text)
            case MetaData(values):
                self._learn(values)
            case Error(text):
                talk.complaint = _line(text) or "it says no more than that something went wrong."
                self._events(Notice("server-error", f"{self._address} says: {talk.complaint}", "error"))

    def _begin(self) -> None:
        """Begin the next conversation with what is heard from now on."""
        self._end_words()
        self._talk.begin()
        if self._conversation:
            self._sink.clear()
        else:
            self._events(Loading("waiting", perf_counter() - self._talk.begun))
        self._listen()
        if self._lost:
            self._lost = False
            self._events(Notice("connection-back", f"{self._address} is there again; this is a new conversation."))

    def _decode(self, data: bytes) -> Pcm:
        """Decode sound; what comes before the handshake is not for us."""
        talk = self._talk
        try:
            pcm = talk.decoder.decode(data, keep=talk.is_on)
        except ProtocolError as error:
            raise MshError(f"{self._address} sends sound that cannot be heard: {error}") from None
        self._tell_damage(_DAMAGE_EVERY)
        return pcm

    def _tell_damage(self, every: float) -> None:
        """Tell how much of the server's sound was damaged, unless the user heard of it less than `every` seconds ago."""
        talk, now = self._talk, perf_counter()
        if talk.decoder.faults > talk.told_faults and now - talk.told_at > every:
            talk.told_faults, talk.told_at = talk.decoder.faults, now
            what = f"damaged or missing pages: {talk.told_faults}, {talk.decoder.lost:.2f} s"
            self._events(
                Notice("damaged", f"What {self._address} says has {what} so far, which are silent.", "warning")
            )

    def _play(self, pcm: Pcm) -> None:
        talk = self._talk
        if len(pcm):
            talk.complaint = ""
            self._attempts = 0
        talk.rest = np.concatenate([talk.rest, pcm])
        while len(talk.rest) >= FRAME_SIZE:
            frame, talk.rest = talk.rest[:FRAME_SIZE], talk.rest[FRAME_SIZE:]
            index = talk.place
            talk.said_at = perf_counter()
            talk.received += 1
            self._says(index, frame, talk.heard.popleft() if talk.heard else None)
            self._speaks(index, "")

    def _learn(self, values: Mapping[str, Any]) -> None:
        """Take what the server tells about itself; published ones tell other things."""
        talk = self._talk
        if isinstance(ignored := values.get("ignored"), list) and ignored:
            names = _line(", ".join(map(str, ignored)))
            self._events(Notice("ignored", f"{self._address} knows nothing of these parameters: {names}."))
        if isinstance(note := values.get("notice"), str):
            self._events(Notice("channels", _line(note), "warning"))
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
            # It may count by conversation, or by connection.
            new = frames - talk.told_given_up if frames >= talk.told_given_up else frames
            talk.told_given_up = frames
            new = new if talk.listening else 0  # or of the conversation before
            talk.given_up += new
            for _ in range(min(new, len(talk.heard))):
                talk.heard.popleft()
            self._gave_up(talk.sent, new * FRAME_SECONDS)
        if damaged is not None and damaged > talk.told_damaged:
            talk.told_damaged = damaged
            sentence = f"{self._address} could not read {damaged:.2f} s so far of what it was sent: pages are damaged."
            self._events(Notice("damaged", sentence, "warning"))


def _line(text: str) -> str:
    """Return what a server says on one line, of bounded length and without anything that a terminal would obey."""
    return shortened(text, _SENTENCE)


def _number(value: object) -> float | None:
    """Return what the other side sent as a number ≥ 0; None if it is none."""
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def _reason(error: BaseException) -> str:
    """Say in a few words what the system says; never more, as there may be an address in it, and a token in that."""
    while isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__


def _ending(kind: aiohttp.WSMsgType, data: object, extra: str | None) -> str:
    """Say how a connection ended, from the last message, in the middle of a sentence."""
    if kind is aiohttp.WSMsgType.ERROR:
        return f"{type(data).__name__}: {_line(str(data))}"
    said = _line(extra or "") if kind is aiohttp.WSMsgType.CLOSE else ""
    return f"the server ended it: {said}" if said else "the server ended it"
