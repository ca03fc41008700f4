"""One client of the server, on a websocket; its conversation is a `Pooled` one."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from ..conversation.live import DELAY_LIMIT
from ..conversation.pooled import Pooled
from ..conversation.shared import Seat
from ..errors import InputError, MshError, ProtocolError
from ..events import Dropped, Event, Failed, Ready, Said, Spoke
from ..format import SAMPLE_RATE, Pcm
from ..metrics import Metrics
from .messages import Audio, Control, Error, Handshake, Message, MetaData, Ping, Text, decode, encode, misplaced_sound
from .opus import OpusDecoder, OpusEncoder
from .parameters import ChatParameters

_FADE_IN = 120  # samples, 5 ms, where sound was left out
_STATS_EVERY = 2.0  # seconds
_PING_EVERY = 4.0  # seconds without another message, after which a ping is sent
_AHEAD = 2.0  # seconds of sound that may wait for the model before reading stops
_LONGEST = 60.0  # seconds of live sound that may wait, whatever the model does
_PIECES = 16  # the last pieces of sound; the largest shows how much a client sends at once
_IDLE = 0.16  # seconds of sound: if no more waits, the model keeps up
_APART = 0.1  # seconds between two pieces that count as separate
_UNREAD = 5.0  # seconds for which early live sound is left unread, at most: other messages may come behind it
_BURST = 2  # seconds of messages at the highest rate that may come at once
# Messages without a meaning here, and bytes in them, that may come with no sound for `_NO_SOUND` seconds from the first on.
_MEANINGLESS = 16, 4096
_NO_SOUND = 2.0


@dataclass(frozen=True)
class Limits:
    """The limits for one client. `first` and `idle` count only sound: a client that has paused must go on in time."""

    message: int = 1 << 20  # bytes of a message
    rate: float = 1000.0  # messages a second, on average
    first: float = 20.0  # seconds from the handshake to the first sound
    idle: float = 60.0  # seconds without sound, from then on
    unsent: int = 1 << 20  # bytes that may wait for a client that reads slowly


class End(Exception):  # noqa: N818 — most ends are not errors
    """The conversation ends.

    `kind` is for the log and the figures. `sentence` is sent to the client as an `Error`, if there is one. `code` closes the
    websocket.
    """

    def __init__(self, kind: str, sentence: str | None = None, code: int = WSCloseCode.POLICY_VIOLATION) -> None:
        super().__init__(sentence or kind)
        self.kind = kind
        self.sentence = sentence
        self.code = code


class NetworkSource:
    """The user's sound from the network, as a `Source`. The event loop's thread writes it, the encoder's thread reads it.

    `watch` is called when sound has come. If more than `longest` seconds wait, the oldest are dropped; `refused` counts them.
    """

    def __init__(self, longest: float, now: Callable[[], float] = monotonic) -> None:
        self._longest = longest
        self._now = now
        self._parts: deque[Pcm] = deque()
        self._samples = 0
        self._changed = threading.Condition()
        self._cut = False
        self.watch: Callable[[], None] = lambda: None
        self.refused = 0.0
        self._under_way = 0.0  # seconds of sound that were read and not answered, at the last call of `early`
        self._pieces: deque[float] = deque(maxlen=_PIECES)  # seconds of sound
        self._written: float | None = None  # when sound last came, or None if none has come in this conversation
        self._ahead = 0.0  # seconds of sound by which the client was then ahead of the clock
        self._gap = 0.0  # seconds without sound before what waits now: this much of it was held up on its way

    def write(self, pcm: Pcm) -> None:
        """Take sound, `[n]` float32 at 24 kHz; if too much waits, drop the oldest down to half of what may wait."""
        seconds, now = len(pcm) / SAMPLE_RATE, self._now()
        with self._changed:
            since = 0.0 if self._written is None else now - self._written
            waits = self.backlog() + self._under_way
            if waits < _IDLE and since > _APART:
                self._gap = max(0.0, since - self._ahead)
            self._ahead = min(max(0.0, self._ahead - since), waits) + seconds
            self._written = now
            self._pieces.append(seconds)
            self._parts.append(pcm)
            self._samples += len(pcm)
            self._changed.notify()
        if self.backlog() > self._longest:
            self.refused += self.trim(self._longest / 2)
        self.watch()

    def early(self, under_way: float | None = None) -> float:
        """Return how much sound, in seconds, may wait without being late: it came in one piece, or ahead of the clock.

        A client may send pages of a second, or a file as fast as the network takes it; none of that must be dropped. But sound
        that comes all at once after a gap was held up on its way, and is late. `under_way` is how many seconds of sound were
        read and are not answered yet; without it the last value counts.
        """
        with self._changed:
            if under_way is not None:
                self._under_way = under_way
            since = 0.0 if self._written is None else self._now() - self._written
            return max(self._ahead - since - self._gap, *self._pieces, 0.0)

    def read(self, n: int, timeout: float) -> Pcm | None:
        """As in `Source`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._samples >= n, timeout):
                return None
            pcm = self._take(n)
            if self._cut:
                fade = min(n, _FADE_IN)
                pcm[:fade] *= np.linspace(0, 1, fade, endpoint=False, dtype=np.float32)
                self._cut = False
            return pcm

    def backlog(self) -> float:
        """As in `Source`."""
        return self._samples / SAMPLE_RATE

    def trim(self, keep: float) -> float:
        """As in `Source`."""
        with self._changed:
            if not keep:  # a new conversation or a pause: forget when sound came
                self._written, self._ahead, self._gap = None, 0.0, 0.0
            excess = self._samples - round(keep * SAMPLE_RATE)
            if excess <= 0:
                return 0.0
            self._take(excess)
            self._cut = keep > 0
            return excess / SAMPLE_RATE

    def _take(self, n: int) -> Pcm:
        taken: list[Pcm] = []
        self._samples -= n
        while n:
            part = self._parts.popleft()
            if len(part) > n:
                self._parts.appendleft(part[n:])
            taken.append(part[:n])
            n -= len(taken[-1])
        return np.concatenate(taken) if taken else np.zeros(0, np.float32)


class Connection:
    """A client, from its first message to its last.

    Everything here runs on the event loop's thread, except `_observe`, which the pipeline calls on its threads.

    `ws` is prepared already, on `transport`. `about` is sent before the handshake. Bad pages are added to the server's
    `counts`, under "pages", and `fail` is called when a part of the pipeline fails.
    """

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        parameters: ChatParameters,
        about: MetaData,
        limits: Limits,
        counts: Counter[str],
        fail: Callable[[Failed], None],
    ) -> None:
        self.id = secrets.token_hex(4)
        self.begun: float | None = None  # when the session began
        self.steps = 0
        self.words = 0
        self.pipeline: Pooled | None = None
        self._metrics = Metrics()
        self._ws = ws
        self._transport = transport
        self._parameters = parameters
        self._about = about
        self._limits = limits
        self._counts = counts
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._decoder = OpusDecoder()
        self._source = NetworkSource(_LONGEST if parameters.realtime else math.inf)
        self._listens = False
        self._paused = False
        self._listens_since: float | None = None
        self._last_sound: float | None = None  # when sound last came, or was answered
        self._unanswered = 0.0  # seconds of sound that came and were not answered yet
        self._meaningless = 0, 0  # messages and bytes since sound last came
        self._meaningless_since = 0.0  # when the first of them came
        self._allowance = _BURST * limits.rate
        self._metered = monotonic()
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._unsent = 0
        self._last_sent = monotonic()
        self._last_stats = monotonic()
        self._told_dropped = 0.0  # seconds that were dropped, as last sent to the client
        self._told_notes = 0  # how many of the decoder's notes were sent
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # Used by the pipeline's threads alone.
        self._texts: deque[tuple[int, str]] = deque()
        # For each drop the frame behind it, and the seconds that were dropped in all by then.
        self._drops: deque[tuple[int, float]] = deque()
        self._encoder = OpusEncoder()

    # ---- the way out -----------------------------------------------------------------------------------------------------

    def send(self, *messages: Message) -> None:
        """Queue messages to be sent."""
        self._send([encode(message) for message in messages])

    def tell(self, values: Mapping[str, Any]) -> None:
        """Send metadata that published servers do not send, but only to clients that asked for it: it would confuse others."""
        if self._parameters.stats:
            self.send(MetaData(values))

    @property
    def unsent(self) -> int:
        """Return how many bytes wait for the client, without those in the system's own buffer."""
        return self._unsent + (self._transport.get_write_buffer_size() if self._transport else 0)

    def _send(self, datas: list[bytes]) -> None:
        for data in datas:
            self._out.put_nowait(data)
            self._unsent += len(data)
        self._last_sent = monotonic()
        if self.unsent > self._limits.unsent:
            self.end(
                End("unsent", "The connection is too slow: what Moshi says was not read.", WSCloseCode.TRY_AGAIN_LATER)
            )

    def end(self, end: End) -> None:
        """End the conversation; the first reason counts."""
        if not self._ended.done():
            self._ended.set_exception(end)

    async def _write(self) -> None:
        while True:
            data = await self._out.get()
            await self._ws.send_bytes(data)
            self._unsent -= len(data)

    # ---- the conversation ------------------------------------------------------------------------------------------------

    async def run(self, wait: Callable[[Connection], Awaitable[None]], make: Callable[[], Seat]) -> End:
        """Serve the client until the conversation ends, and return why.

        `wait` waits for the client's turn; then `make` makes its seat, on another thread.
        """
        jobs = [asyncio.ensure_future(job) for job in (self._read(), self._write(), self._talk(wait, make))]
        try:
            await asyncio.wait([*jobs, self._ended], return_when=asyncio.FIRST_COMPLETED)
            errors = [job.exception() for job in (self._ended, *jobs) if job.done()]
            end = next((error for error in errors if error is not None), End("closed"))
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            self._ended.cancel()
        if isinstance(end, End):
            return end
        if isinstance(end, ConnectionError | asyncio.CancelledError):
            return End("lost")
        if isinstance(end, ProtocolError):
            return End("protocol", str(end), WSCloseCode.INVALID_TEXT)
        if isinstance(end, MshError):
            return End("session", str(end), WSCloseCode.INTERNAL_ERROR)
        raise end

    async def close(self, end: End, timeout: float) -> None:
        """Tell the client why the conversation ends, close the connection within `timeout` seconds, and end the pipeline."""
        try:
            with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
                await asyncio.wait_for(self._say_goodbye(end), timeout)
        finally:
            if self._transport and not self._ws.closed:
                self._transport.abort()
            if self.pipeline:
                await asyncio.to_thread(self.pipeline.stop, 10.0)
                # Pipeline and connection refer to each other. Break the cycle, so that the session's memory, gigabytes with a
                # real model, is freed now and not when Python's collector runs.
                self.pipeline = None

    async def _say_goodbye(self, end: End) -> None:
        if not self._ws.closed:
            while end.kind != "unsent" and not self._out.empty():
                await self._ws.send_bytes(self._out.get_nowait())
            if end.sentence:
                await self._ws.send_bytes(encode(Error(end.sentence)))
            reason = (end.sentence or end.kind).encode()[:120].decode(errors="ignore")
            await self._ws.close(code=end.code, message=reason.encode())

    async def _talk(self, wait: Callable[[Connection], Awaitable[None]], make: Callable[[], Seat]) -> None:
        await wait(self)
        try:
            seat = await asyncio.to_thread(make)
        except InputError:  # it is what the client asks for, and not the model
            raise
        except Exception as error:
            self._failed(Failed("model", error))
            return
        self.begun = perf_counter()
        self.send(self._about)
        self.pipeline = Pooled(
            seat,
            self._source,
            self._observe,
            delay_limit=DELAY_LIMIT if self._parameters.realtime else math.inf,
            early=self._source.early,
        )
        self._metrics = self.pipeline.metrics
        self.pipeline.start()
        await asyncio.Event().wait()

    # ---- the way in ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            await self._until_there_is_room()
            message = await self._ws.receive()
            if message.type is WSMsgType.ERROR:
                raise _broken(message.data)
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                return
            self._meter()
            if message.type is WSMsgType.PING:
                await self._ws.pong(message.data)
                continue
            if message.type is WSMsgType.PONG:
                continue
            if message.type is WSMsgType.TEXT:
                sentence = "Text messages have no meaning here; send binary messages: a type byte and a payload."
                raise End("text", sentence, WSCloseCode.UNSUPPORTED_DATA)
            self._hear(message.data)

    async def _until_there_is_room(self) -> None:
        """Stop reading while enough sound waits for the model and none of it is late."""
        source, begin, live = self._source, monotonic(), self._parameters.realtime
        while source.backlog() > _AHEAD or (not live and self.unsent > self._limits.unsent // 2):
            if live and (source.early() < _AHEAD or monotonic() - begin > _UNREAD):
                return
            await asyncio.sleep(0.01)

    def _meter(self) -> None:
        now, limits = monotonic(), self._limits
        self._allowance = min(_BURST * limits.rate, self._allowance + limits.rate * (now - self._metered))
        self._metered = now
        self._allowance -= 1
        if self._allowance < 0:
            raise End("rate", f"More than {limits.rate:.0f} messages a second came; send fewer.")

    def _hear(self, data: bytes) -> None:
        if len(data) > self._limits.message:
            sentence = f"A message has {len(data)} bytes; {self._limits.message} are allowed."
            raise End("message_size", sentence, WSCloseCode.MESSAGE_TOO_BIG)
        if (misplaced := misplaced_sound(data)) is not None:
            raise End("type", misplaced, WSCloseCode.UNSUPPORTED_DATA)
        match decode(data):
            case Audio(pages):
                faults, heard = self._decoder.faults, self._decoder.heard
                try:
                    pcm = self._decoder.decode(pages, keep=self._listens and not self._paused)
                except ProtocolError as error:
                    raise End("audio", str(error), WSCloseCode.UNSUPPORTED_DATA) from None
                self._counts["pages"] += self._decoder.faults - faults
                for note in self._decoder.notes[self._told_notes :]:
                    self.tell({"notice": note})
                self._told_notes = len(self._decoder.notes)
                if (sound := self._decoder.heard - heard) > 0:  # without the silence in place of damaged pages
                    self._last_sound = monotonic()
                    self._unanswered += sound
                    self._meaningless = 0, 0
                if len(pcm):
                    self._source.write(pcm)
            case Control() as control:
                self._obey(control)
            case Ping() if len(data) == 1:
                pass
            case _:
                self._pass_over(data)

    def _pass_over(self, data: bytes) -> None:
        """Ignore a message without a meaning here; `tick` ends the conversation if too many of them come without sound."""
        count, size = self._meaningless
        if not count:
            self._meaningless_since = monotonic()
        self._meaningless = count + 1, size + len(data)

    def _obey(self, control: Control) -> None:
        if control is Control.PAUSE:
            self._paused = True
            self._unanswered = 0.0
            self._source.trim(0)
        elif control is Control.START:
            self._paused = False
        elif control is Control.RESTART and self._listens and self.pipeline:
            self._listens = self._paused = False
            self._unanswered = 0.0
            self.pipeline.reset()

    # ---- time ------------------------------------------------------------------------------------------------------------

    def tick(self, others: int) -> None:
        """Check the time limits, and send figures or a ping when they are due; call this several times a second.

        `others` is how many sessions there are now, for the figures.
        """
        now, limits = monotonic(), self._limits
        if self._listens and self._listens_since is not None:
            last = self._last_sound
            if last is None and now - self._listens_since > limits.first:
                self.end(End("first", f"No sound came for {limits.first:g} s; send audio from the handshake on."))
            elif last is not None and now - last > limits.idle:
                self.end(End("idle", f"No sound came for {limits.idle:g} s, so the conversation is over."))
        too_many = any(have > most for have, most in zip(self._meaningless, _MEANINGLESS, strict=True))
        if too_many and now - self._meaningless_since > _NO_SOUND:
            sentence = (
                "Only messages without a meaning here have come; a message with sound is the byte 1 and then Ogg pages."
            )
            self.end(End("type", sentence, WSCloseCode.UNSUPPORTED_DATA))
        if self._parameters.stats and self._listens and now - self._last_stats > _STATS_EVERY and self.pipeline:
            self._last_stats = now
            self.tell(self.stats() | {"dropped_s": self._told_dropped, "sessions": others})
        elif now - self._last_sent > _PING_EVERY and (self._listens or self._parameters.stats):
            # Only clients that know of the waiting line get pings before the handshake.
            self.send(Ping())

    @property
    def notes(self) -> list[str]:
        """Return what was wrong with the client's sound, a sentence each, for the log.

        Published clients do not get these notes: they would take them for a part of the conversation, or for an error.
        """
        dropped = self._dropped()
        late = [f"{dropped:.1f} s of the sound came too late and were not heard."] if dropped else []
        return [*self._decoder.notes, *late]

    def stats(self) -> dict[str, float | int]:
        """Return the figures of the conversation as the client gets them."""
        metrics = self._metrics
        return {
            "step_p50_ms": round(1000 * metrics.step.recent(50), 2),
            "step_p95_ms": round(1000 * metrics.step.recent(95), 2),
            "delay_ms": round(1000 * metrics.reply.recent(50), 2),
            "backlog_ms": round(1000 * self._source.backlog(), 1),
            "dropped_s": self._dropped(),
            "drops": metrics.drops,
            "damaged_pages": self._decoder.faults,
            "damaged_s": round(self._decoder.lost, 3),
        }

    def _dropped(self) -> float:
        return round(self._metrics.dropped + self._source.refused, 3)

    # ---- on the pipeline's threads ---------------------------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        if isinstance(event, Spoke):
            self._texts.append((event.index, event.text))
        elif isinstance(event, Dropped):
            self._drops.append((event.index, self._dropped()))
        elif isinstance(event, Said):
            datas = []
            while self._drops and self._drops[0][0] <= event.index:
                # Send it in its place, so that the client knows where in the reply sound is missing.
                self._on_loop(self._tell_dropped, self._drops.popleft()[1])
            while self._texts and self._texts[0][0] <= event.index:
                datas.append(encode(Text(self._texts.popleft()[1])))
            datas.append(encode(Audio(self._encoder.encode(event.pcm))))
            self._on_loop(self._said, datas, len(event.pcm) / SAMPLE_RATE)
        elif isinstance(event, Ready):
            self._texts.clear()
            self._drops.clear()
            self._encoder = OpusEncoder()
            self._on_loop(self._ready)
        elif isinstance(event, Failed):
            self._on_loop(self._failed, event)

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _said(self, datas: list[bytes], seconds: float) -> None:
        self.steps += 1
        if self._unanswered > 0:
            self._unanswered -= seconds
            self._last_sound = monotonic()
        self.words += sum(data[1:2] == b" " for data in datas if data[0] == 2)
        if self._listens and self.steps <= (self._parameters.max_steps or math.inf):
            self._send(datas)
            if self.steps == self._parameters.max_steps:
                self.end(End("max_steps", None, WSCloseCode.OK))

    def _tell_dropped(self, seconds: float) -> None:
        self._told_dropped = seconds
        self.tell(self.stats() | {"dropped_s": seconds})

    def _ready(self) -> None:
        self._listens = True
        self._listens_since = self._listens_since or monotonic()
        if (dropped := self._dropped()) != self._told_dropped:
            self._tell_dropped(dropped)  # what the conversation before has dropped
        self.send(Handshake())

    def _failed(self, failure: Failed) -> None:
        self._fail(failure)
        self.end(End("failed", "The model failed; the conversation is over.", WSCloseCode.INTERNAL_ERROR))


def _broken(error: object) -> End:
    """Return the end for an error of the websocket: its rules were broken, or the connection was lost."""
    if not isinstance(error, WebSocketError):
        return End("lost")
    too_big = error.code == WSCloseCode.MESSAGE_TOO_BIG
    return End("message_size" if too_big else "websocket", None, error.code)
