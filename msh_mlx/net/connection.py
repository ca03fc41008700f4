"""What all live connections share, whatever their protocol: limits, the line, the way out, and the conversation."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, Literal, TypeAlias

import numpy as np

from ..conversation.live import DELAY_LIMIT, LiveConversation
from ..conversation.personas import Persona
from ..errors import InputError, MshError, ProtocolError
from ..events import Dropped, Event, Failed, Ready, Said, Spoke
from ..format import FRAME_SIZE, SAMPLE_RATE, Pcm
from ..metrics import Metrics
from .parameters import ChatParameters
from .wire import BrokenError, Close, Sign, Wire

# Makes the conversation at a place that a client has got. The arguments are those of `Pooled` behind its seat.
Seated: TypeAlias = Callable[..., LiveConversation]
# Makes a place, in fresh state, of what a client asks for. It is called on a thread of its own.
MakeSeat: TypeAlias = Callable[[ChatParameters, "Persona | None"], Seated]

_LOOK = 0.01  # seconds, at least, between two looks for silence
_FADE_IN = 120  # samples, 5 ms, where sound was left out
_STATS_EVERY = 2.0  # seconds
_PING_EVERY = 4.0  # seconds without another message, after which a ping is sent
AHEAD = 2.0  # seconds of sound that may wait for the model before reading stops
_LONGEST = 60.0  # seconds of live sound that may wait, whatever the model does
_PIECES = 16  # the last pieces of sound; the largest shows how much a client sends at once
_IDLE = 0.16  # seconds of sound: if no more waits, the model keeps up
_APART = 0.1  # seconds between two pieces that count as separate
_GAP = 0.25  # seconds without sound, after which silence may take its place
UNREAD = 5.0  # seconds for which early live sound is left unread, at most: other messages may come behind it
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

    `kind` is for the log and the figures. `sentence` is sent to the client, if there is one. `code` closes the websocket.
    """

    def __init__(self, kind: str, sentence: str | None = None, code: int = Close.POLICY_VIOLATION) -> None:
        super().__init__(sentence or kind)
        self.kind = kind
        self.sentence = sentence
        self.code = code


class NetworkSource:
    """The user's sound from the network, as a `Source`. The event loop's thread writes it, the encoder's thread reads it.

    `watch` is called when a frame has come. If more than `longest` seconds wait, the oldest are dropped; `refused` counts them.
    With `by_turns`, the client may send turn by turn, each as fast as it can: what comes at once after a gap was not held up on
    its way.

    While `fills` is set and no sound comes, silence is read in its place: as fast as one speaks, or, if it is "fast", when all
    that was read before is `answered`, in frames. So its length does not depend on how fast anything goes. Somebody has to look
    at the time `fill_at`.
    """

    def __init__(self, longest: float, now: Callable[[], float] = monotonic, *, by_turns: bool = False) -> None:
        self._longest = longest
        self._now = now
        self._by_turns = by_turns
        self.fills: Literal["no", "live", "fast"] = "no"
        self._came = 0  # samples, in all
        self._last_read = -math.inf  # when a frame was last read
        self._reads = 0  # frames
        self.answered = 0  # frames of them
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
            if waits < _IDLE and since > _APART and not self._by_turns:
                self._gap = max(0.0, since - self._ahead)
            self._ahead = min(max(0.0, self._ahead - since), waits) + seconds
            self._written = now
            self._pieces.append(seconds)
            self._parts.append(pcm)
            self._samples += len(pcm)
            self._came += len(pcm)
            self._changed.notify()
        if self.backlog() > self._longest:
            self.refused += self.trim(self._longest / 2)
        if self._samples >= FRAME_SIZE:
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
            fill_at = self.fill_at(n)
            patience = min(timeout, max(0.0, fill_at - self._now()))
            if not self._changed.wait_for(lambda: self._samples >= n, patience) and self._now() < fill_at:
                return None
            pcm = self._take(min(n, self._samples))
            if len(pcm) < n:
                pcm = np.pad(pcm, (0, n - len(pcm)))
            self._last_read = self._now()
            self._reads += 1
            if self._cut:
                fade = min(n, _FADE_IN)
                pcm[:fade] *= np.linspace(0, 1, fade, endpoint=False, dtype=np.float32)
                self._cut = False
            return pcm

    def fill_at(self, n: int) -> float:
        """Return when silence is read if `n` samples have not come by then; infinite if none is."""
        if self.fills == "no" or (self.fills == "fast" and self._reads > self.answered):
            return math.inf
        quiet = -math.inf if self._written is None else self._written + _GAP
        return max(quiet, self._last_read + n / SAMPLE_RATE) if self.fills == "live" else quiet

    def begin(self) -> None:
        """Begin a conversation: of what was read before, nothing is answered any more."""
        self._reads = self.answered = 0

    @property
    def position(self) -> float:
        """Return how much of the client's sound has left, in seconds: it was read, or dropped."""
        return (self._came - self._samples) / SAMPLE_RATE

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


class Connection(ABC):
    """A client, from its first message to its last. Each protocol has a class of its own, which says what messages mean.

    Everything here runs on the event loop's thread, except `_observe`, which the pipeline calls on its threads, and what its
    documentation says.

    `parameters` and `persona` are what the client asks for. `fail` is called when a part of the pipeline fails.
    """

    beginning = ""  # the message from which on sound is heard, for sentences

    def __init__(
        self,
        wire: Wire,
        parameters: ChatParameters,
        persona: Persona | None,
        limits: Limits,
        fail: Callable[[Failed], None],
        *,
        by_turns: bool = False,
    ) -> None:
        self.id = secrets.token_hex(4)
        self.parameters = parameters
        self.persona = persona
        self.begun: float | None = None  # when the session began
        self.steps = 0
        self.words = 0
        self.pipeline: LiveConversation | None = None
        self._metrics = Metrics()
        self._wire = wire
        self._limits = limits
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._looks: asyncio.TimerHandle | None = None  # the next look for silence
        self._source = NetworkSource(_LONGEST if parameters.realtime else math.inf, by_turns=by_turns)
        self._listens = False
        self._listens_since: float | None = None
        self._last_sound: float | None = None  # when sound last came, or was answered
        self._unanswered = 0.0  # seconds of sound that came and were not answered yet
        self._meaningless = 0, 0  # messages and bytes since sound last came
        self._meaningless_since = 0.0  # when the first of them came
        self._allowance = _BURST * limits.rate
        self._metered = monotonic()
        self._out: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._waiting = 0  # bytes in `_out`, and in the message that is being sent
        self._last_sent = monotonic()
        self._last_stats = monotonic()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # Used by the pipeline's threads alone.
        self._texts: deque[tuple[int, str]] = deque()
        # For each drop the frame behind it, and the seconds that were dropped in all by then.
        self._drops: deque[tuple[int, float]] = deque()

    # ---- the way out -----------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        """Return how many bytes wait for the client, without those in the system's own buffer."""
        return self._waiting + self._wire.unsent

    def _send(self, datas: Iterable[bytes | str]) -> None:
        """Queue messages to be sent."""
        for data in datas:
            self._out.put_nowait(data)
            self._waiting += len(data)
        self._last_sent = monotonic()
        if self.unsent > self._limits.unsent:
            self.end(End("unsent", "The connection is too slow: what Moshi says was not read.", Close.TRY_AGAIN_LATER))

    def tell(self, values: Mapping[str, Any]) -> None:
        """Send facts about the server, if the protocol has a message for them."""
        return

    def end(self, end: End) -> None:
        """End the conversation; the first reason counts."""
        if not self._ended.done():
            self._ended.set_exception(end)

    async def _write(self) -> None:
        while True:
            data = await self._out.get()
            await self._wire.send(data)
            self._waiting -= len(data)

    # ---- the conversation ------------------------------------------------------------------------------------------------

    async def run(self, wait: Callable[[Connection], Awaitable[None]], make: MakeSeat) -> End:
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
        if isinstance(end, BrokenError):
            if end.code is None:
                return End("lost")
            return End("message_size" if end.code == Close.MESSAGE_TOO_BIG else "websocket", None, end.code)
        if isinstance(end, ConnectionError | asyncio.CancelledError):
            return End("lost")
        if isinstance(end, ProtocolError):
            return End("protocol", str(end), Close.INVALID_TEXT)
        if isinstance(end, MshError):
            return End("session", str(end), Close.INTERNAL_ERROR)
        raise end

    async def close(self, end: End, timeout: float) -> None:
        """Tell the client why the conversation ends, close the connection within `timeout` seconds, and end the pipeline."""
        try:
            with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
                await asyncio.wait_for(self._say_goodbye(end), timeout)
        finally:
            self._wire.abort()
            self._fill("no")
            await self._stop()

    async def _stop(self) -> None:
        if self.pipeline:
            await asyncio.to_thread(self.pipeline.stop, 10.0)
            # Pipeline and connection refer to each other. Break the cycle, so that the session's memory, gigabytes with a
            # real model, is freed now and not when Python's collector runs.
            self.pipeline = None

    async def _say_goodbye(self, end: End) -> None:
        if not self._wire.closed:
            while end.kind != "unsent" and not self._out.empty():
                await self._wire.send(self._out.get_nowait())
            if end.sentence:
                await self._wire.send(self._farewell(end.sentence, end))
            reason = (end.sentence or end.kind).encode()[:120].decode(errors="ignore")
            await self._wire.close(end.code, reason)

    @abstractmethod
    async def _talk(self, wait: Callable[[Connection], Awaitable[None]], make: MakeSeat) -> None:
        """Wait for the client's turn, and hold its conversation."""

    async def _make(self, make: MakeSeat) -> Seated | None:
        """Make a seat of what the client asks for now. None: that failed, and the conversation is over."""
        try:
            return await asyncio.to_thread(make, self.parameters, self.persona)
        except InputError:  # it is what the client asks for, and not the model
            raise
        except Exception as error:
            self._failed(Failed("model", error))
            return None

    def _start(self, seat: Seated) -> None:
        self.begun = self.begun or perf_counter()
        self._source.begin()
        delay_limit = DELAY_LIMIT if self.parameters.realtime else math.inf
        self.pipeline = seat(self._source, self._observe, delay_limit=delay_limit, early=self._source.early)
        self._metrics = self.pipeline.metrics
        self.pipeline.start()

    def _fill(self, how: Literal["no", "live", "fast"]) -> None:
        """Say whether the model hears silence while the client sends no sound, as `fills` of `NetworkSource`."""
        self._source.fills = how
        if self._looks:
            self._looks.cancel()
        self._look_for_silence()

    def _look_for_silence(self) -> None:
        if (moment := self._source.fill_at(FRAME_SIZE)) < math.inf:
            self._source.watch()
            self._looks = self._loop.call_later(max(_LOOK, moment - monotonic()), self._look_for_silence)

    @abstractmethod
    def _farewell(self, sentence: str, end: End) -> bytes | str:
        """Return the message that says why the conversation is over."""

    # ---- the way in ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            await self._until_there_is_room()
            data = await self._wire.receive()
            if data is None:
                return
            self._meter()
            if not isinstance(data, Sign):
                self._hear(data)

    async def _until_there_is_room(self) -> None:
        """Stop reading while enough sound waits for the model and none of it is late."""
        source, begin, live = self._source, monotonic(), self.parameters.realtime
        while source.backlog() > AHEAD or (not live and self.unsent > self._limits.unsent // 2):
            if live and (source.early() < AHEAD or monotonic() - begin > UNREAD):
                return
            await asyncio.sleep(0.01)

    def _meter(self) -> None:
        now, limits = monotonic(), self._limits
        self._allowance = min(_BURST * limits.rate, self._allowance + limits.rate * (now - self._metered))
        self._metered = now
        self._allowance -= 1
        if self._allowance < 0:
            raise End("rate", f"More than {limits.rate:.0f} messages a second came; send fewer.")

    @abstractmethod
    def _hear(self, data: bytes | str) -> None:
        """Take a message: binary, or a text."""

    def _came(self, seconds: float) -> None:
        """Note that so much sound came."""
        self._last_sound = monotonic()
        self._unanswered += seconds
        self._meaningless = 0, 0

    def _pass_over(self, size: int) -> None:
        """Ignore a message without a meaning here; `tick` ends the conversation if too many of them come without sound."""
        count, bytes_ = self._meaningless
        if not count:
            self._meaningless_since = monotonic()
        self._meaningless = count + 1, bytes_ + size

    # ---- time ------------------------------------------------------------------------------------------------------------

    def tick(self, others: int) -> None:
        """Check the time limits, and send figures or a ping when they are due; call this several times a second.

        `others` is how many sessions there are now, for the figures.
        """
        now, limits = monotonic(), self._limits
        if self._listens and self._listens_since is not None:
            last = self._last_sound
            if last is None and now - self._listens_since > limits.first:
                sentence = f"No sound came for {limits.first:g} s; send audio from {self.beginning} on."
                self.end(End("first", sentence))
            elif last is not None and now - last > limits.idle:
                self.end(End("idle", f"No sound came for {limits.idle:g} s, so the conversation is over."))
        too_many = any(have > most for have, most in zip(self._meaningless, _MEANINGLESS, strict=True))
        if too_many and now - self._meaningless_since > _NO_SOUND:
            sentence = (
                "Only messages without a meaning here have come; a message with sound is the byte 1 and then Ogg pages."
            )
            self.end(End("type", sentence, Close.UNSUPPORTED_DATA))
        if now - self._last_stats > _STATS_EVERY and self._tell_figures(others):
            self._last_stats = now
        elif now - self._last_sent > _PING_EVERY:
            self._ping()

    def _tell_figures(self, others: int) -> bool:
        """Send the figures of the conversation, and return True, if the client gets them."""
        return False

    def _ping(self) -> None:
        """Send a sign of life, if the protocol has one."""
        return

    @property
    def notes(self) -> list[str]:
        """Return what was wrong with the client's sound, a sentence each, for the log.

        Published clients do not get these notes: they would take them for a part of the conversation, or for an error.
        """
        dropped = self._dropped()
        return [f"{dropped:.1f} s of the sound came too late and were not heard."] if dropped else []

    def stats(self) -> dict[str, float | int]:
        """Return the figures of the conversation."""
        metrics = self._metrics
        return {
            "step_p50_ms": round(1000 * metrics.step.recent(50), 2),
            "step_p95_ms": round(1000 * metrics.step.recent(95), 2),
            "delay_ms": round(1000 * metrics.reply.recent(50), 2),
            "backlog_ms": round(1000 * self._source.backlog(), 1),
            "dropped_s": self._dropped(),
            "drops": metrics.drops,
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
            while self._drops and self._drops[0][0] <= event.index:
                # Tell it in its place, so that the client knows where in the reply sound is missing.
                self._on_loop(self._tell_dropped, self._drops.popleft()[1])
            texts = []
            while self._texts and self._texts[0][0] <= event.index:
                texts.append(self._texts.popleft()[1])
            words = sum(text.startswith(" ") for text in texts)
            self._on_loop(self._said, self._coded(event, texts), words, len(event.pcm) / SAMPLE_RATE)
        elif isinstance(event, Ready):
            self._texts.clear()
            self._drops.clear()
            self._renew()
            self._on_loop(self._ready)
        elif isinstance(event, Failed):
            self._on_loop(self._failed, event)

    @abstractmethod
    def _coded(self, said: Said, texts: list[str]) -> Callable[[], None]:
        """Take a frame's sound and texts, on a thread of the pipeline; return how to send them."""

    def _renew(self) -> None:
        """Begin anew with the coding of sound, on a thread of the pipeline."""
        return

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    # ---- what the pipeline has done --------------------------------------------------------------------------------------

    def _said(self, send: Callable[[], None], words: int, seconds: float) -> None:
        self.steps += 1
        if self._unanswered > 0:
            self._unanswered -= seconds
            self._last_sound = monotonic()
        self.words += words
        if self._listens and self.steps <= (self.parameters.max_steps or math.inf):
            send()
            if self.steps == self.parameters.max_steps:
                self.end(End("max_steps", None, Close.OK))
        self._source.answered += 1
        if self._source.fills == "fast":
            self._fill("fast")  # perhaps at once

    def _tell_dropped(self, seconds: float) -> None:
        """Say how many seconds of sound were dropped, in all, if the protocol has a message for it."""
        return

    def _ready(self) -> None:
        """Begin with a conversation: the model listens."""
        self._listens = True
        self._listens_since = self._listens_since or monotonic()

    def _failed(self, failure: Failed) -> None:
        self._fail(failure)
        self.end(End("failed", "The model failed; the conversation is over.", Close.INTERNAL_ERROR))
