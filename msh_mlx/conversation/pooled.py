"""`Pooled`: a live conversation without threads of its own, beside others on the same model."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..events import Event, Failed
from ..format import SAMPLE_RATE
from .lane import Lane
from .live import DELAY_LIMIT, LiveConversation, NullSink, Source
from .shared import Seat, Stepped

_QUEUE = 2  # frames between two stages


class WatchedSource(Source, Protocol):
    """A source that calls `watch` when a frame has come."""

    watch: Callable[[], None]


@dataclass(frozen=True)
class _Frame:
    """Frame `index` between two stages, with the times, by `perf_counter`, when it had been heard and when it came here.

    `codes` are the user's, or Moshi's.
    """

    index: int
    heard: float
    ready: float
    codes: npt.NDArray[np.uint32] | None


class Pooled(LiveConversation):
    """A conversation at a `seat`. Its sound comes from `source`, and Moshi's is in the events.

    Two lanes on the pool of the model encode and decode, a frame at a time; the model steps it together with others. As in a
    `Pipeline`, sound that must wait does so in `source`. When the delay passes its limit, the oldest is dropped. The other
    parameters are those of `Pipeline`.
    """

    def __init__(
        self,
        seat: Seat,
        source: WatchedSource,
        events: Callable[[Event], None],
        *,
        delay_limit: float = DELAY_LIMIT,
        early: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        super().__init__(source, NullSink(), events, delay_limit, early)
        self._seat = seat
        self._session = seat.session
        self._ears = Lane(seat.model.pool, self._guarded("encoder", self._hear))
        self._mouth = Lane(seat.model.pool, self._guarded("decoder", self._say))
        source.watch = self._ears.wake
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._to_model: deque[_Frame] = deque()
        self._to_decoder: deque[_Frame] = deque()
        self._steps = False  # whether the model has a frame of this conversation, or makes it anew
        self._over = False
        self._index = 0  # of the next frame of this conversation
        self._said = 0  # frames of all conversations, each counted when its events were sent
        self._fresh: Future[None] | None = None  # when the model's part is in fresh state
        self._work = 0.0  # seconds of a processor that encoding the newest frame took

    # ---- what the caller may do, on any thread ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; events report what happens."""
        self._ears.wake()

    def reset(self) -> None:
        super().reset()
        self._ears.wake()

    def stop(self, timeout: float = 1.0) -> bool:
        self._end()
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        deadline = math.inf if timeout is None else perf_counter() + timeout

        def left() -> float:
            return min(max(0.0, deadline - perf_counter()), threading.TIMEOUT_MAX)

        with self._changed:
            if not self._changed.wait_for(lambda: self._over and not self._steps, left()):
                return False
        return self._ears.join(left()) and self._mouth.join(left())

    # ---- how it ends -----------------------------------------------------------------------------------------------------

    def _end(self, failure: Failed | None = None) -> bool:
        """End, and keep `failure`; return False if it had ended before: then `failure` only follows from that."""
        with self._changed:
            first, self._over = not self._over, True
            if first:
                self.failure = failure
            self._to_model.clear()
            self._to_decoder.clear()
            self._changed.notify_all()
        self._ears.close()
        self._mouth.close()
        if self._seat.model.leave(self._seat):
            self._stepped_no_more()
        return first

    def _fail(self, where: str, error: BaseException) -> None:
        failure = Failed(where, error)
        if self._end(failure):
            with contextlib.suppress(Exception):
                self._events(failure)

    def _guarded(self, where: str, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._fail(where, error)

        return run

    # ---- the ears' lane --------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        if self._conversation == 0:
            self._listen()
        if self._begins_anew():
            return
        self._keep_up(self._index)
        if len(self._to_model) >= _QUEUE or (pcm := self._source.read(self._session.frame_size, 0.0)) is None:
            return
        begin, before = perf_counter(), thread_time()
        heard = begin - self._source.backlog()
        codes = self._session.encode(self._hears(self._index, pcm))
        end = perf_counter()
        self._work = thread_time() - before
        self._taken += 1
        with self._lock:
            self._to_model.append(_Frame(self._index, heard, end, codes))
        self._worked("encode", self._index, begin, end)
        self._index += 1
        self._step()
        self._hear_more()

    def _hear_more(self) -> None:
        """Let the ears' lane go on if a whole frame waits; else the source wakes it when one has come."""
        if self._source.backlog() * SAMPLE_RATE >= self._session.frame_size:
            self._ears.wake()

    def _begins_anew(self) -> bool:
        """Begin a new conversation if that was asked for, behind the last frame of the old one; return whether to wait for it.

        Whoever is waited for wakes this lane.
        """
        if self._fresh is None:
            if not self._restart:
                return False
            if self._taken > self._said:
                return True
            self._restart = False
            self._session.reset_encoder()
            self._session.reset_decoder()
            with self._lock:
                self._steps = True
            self._fresh = self._seat.model.later(self._reset_model)
            self._fresh.add_done_callback(lambda _: self._ears.wake())
        if not self._fresh.done():
            return True
        self._fresh.result()
        self._fresh, self._index = None, 0
        self._listen()
        return False

    # ---- the model's thread ----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Give the model the next frame, if it has none of this conversation, and there is room for the result."""
        with self._lock:
            if self._steps or self._over or not self._to_model or len(self._to_decoder) >= _QUEUE:
                return
            frame = self._to_model.popleft()
            self._steps = True
        assert frame.codes is not None
        self._seat.model.step(
            self._seat,
            frame.codes,
            lambda stepped: self._stepped(frame, stepped),
            lambda error: self._step_failed(error),
        )
        self._hear_more()  # there is room for a frame

    def _stepped(self, frame: _Frame, stepped: Stepped) -> None:
        try:
            if not self._over:
                self.metrics.model_wait.add(stepped.begin - frame.ready)
                self._speaks(frame.index, stepped.text)  # first the text of a frame, then its sound
                self._worked("step", frame.index, stepped.begin, stepped.end)
                with self._lock:
                    self._to_decoder.append(_Frame(frame.index, frame.heard, stepped.end, stepped.step.codes))
        except BaseException as error:
            self._fail("model", error)
        self._stepped_no_more()
        self._mouth.wake()
        self._step()

    def _step_failed(self, error: BaseException) -> None:
        self._fail("model", error)
        self._stepped_no_more()

    def _stepped_no_more(self) -> None:
        with self._changed:
            self._steps = False
            self._changed.notify_all()

    def _reset_model(self) -> None:
        try:
            if not self._over:
                self._session.reset_model()
                self._end_words()
        finally:
            self._stepped_no_more()

    # ---- the mouth's lane ------------------------------------------------------------------------------------------------

    def _say(self) -> None:
        with self._lock:
            if not self._to_decoder:
                return
            frame = self._to_decoder.popleft()
            more = bool(self._to_decoder)
        self._step()
        begin, before = perf_counter(), thread_time()
        self.metrics.decoder_wait.add(begin - frame.ready)
        pcm = self._session.decode(frame.codes)
        self._worked("decode", frame.index, begin, perf_counter())
        self._says(frame.index, pcm, frame.heard)
        self._said += 1
        self._measure_frame(frame, self._work + thread_time() - before)
        if more:
            self._mouth.wake()
        if self._restart:
            self._ears.wake()

    def _measure_frame(self, frame: _Frame, work: float) -> None:
        model = self._seat.model
        with model.lock:
            model.sound.add(work)
            if math.isfinite(self._delay_limit):
                model.replies.add(perf_counter() - frame.heard)
