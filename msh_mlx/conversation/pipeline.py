"""`Pipeline`: a live conversation on three threads that overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..events import Event, Loading
from ..format import FRAME_SECONDS
from ..metrics import Memory
from .live import DELAY_LIMIT, Sink, Source
from .on_threads import ClosedError, OnThreads

if TYPE_CHECKING:
    from .session import Session

# Makes a session, warmed up and in fresh state, on the model's thread. The first argument takes events about the loading. The
# second is to be called now and then: it raises when the conversation is over.
MakeSession: TypeAlias = "Callable[[Callable[[Loading], None], Callable[[], None]], Session]"

_QUEUE = 2  # frames between two stages
# Seconds that the encoder thread waits for sound or for room, before it looks at delay and queues again.
_PATIENCE = 0.1
_PAUSE_AFTER = 3  # reads without sound, after which the microphone counts as paused


T = TypeVar("T")


class _Queue(Generic[T]):
    """A bounded queue from one thread to another that wakes both when it is closed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._open = True

    def __len__(self) -> int:
        return len(self._items)

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """Wait until there is room for `put`; return False if there is none after `timeout` seconds."""
        return self._wait(lambda: len(self._items) < self._size, timeout)

    def put(self, item: T) -> None:
        """Add an item. Only one thread does so, and it calls `wait_for_room` before."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def get(self) -> T:
        """Wait for an item and take it."""
        self._wait(lambda: bool(self._items), None)
        with self._changed:
            self._changed.notify()
            return self._items.popleft()

    def close(self) -> None:
        """Let both threads end: every wait, now or later, raises `ClosedError`."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        with self._changed:
            there = self._changed.wait_for(lambda: ready() or not self._open, timeout)
            if not self._open:
                raise ClosedError
            return there


@dataclass(frozen=True)
class _Envelope(Generic[T]):
    """What one stage passes to the next for frame `index`.

    `heard` is when the user's frame ended, and `ready` when the stage before finished its work, both by `perf_counter`.
    """

    index: int
    heard: float
    ready: float
    content: T


class _Restart:
    """A mark in a queue: what follows belongs to a new conversation."""


class _Pause:
    """A mark in a queue: the microphone gives no sound for now."""


_Codes = npt.NDArray[np.uint32]


class Pipeline(OnThreads):
    """A conversation between `source` and `sink` on three threads: encoder, model and decoder work at the same time.

    The model thread does all work of MLX; it also makes the session. A stage takes a frame only when there is room for the
    result. So sound that must wait does so in `source`, where it can still be dropped: when the delay passes its limit, the
    oldest goes first. Only `stop` or a failure ends the conversation.

    `make` makes the session; it is called once, on the model thread. `early` is called on the encoder thread. The other
    parameters are those of `LiveConversation`.
    """

    def __init__(
        self,
        make: MakeSession,
        source: Source,
        sink: Sink,
        events: Callable[[Event], None],
        *,
        delay_limit: float = DELAY_LIMIT,
        early: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        super().__init__(source, sink, events, delay_limit, early)
        self._make = make
        self._to_model: _Queue[_Envelope[_Codes] | _Restart | _Pause] = _Queue(_QUEUE)
        self._to_decoder: _Queue[_Envelope[_Codes | None] | _Restart | _Pause] = _Queue(_QUEUE)
        self._restarted: _Queue[_Restart] = _Queue(1)  # from the decoder thread back to the encoder thread

    # ---- what the caller may do, on any thread ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads, make the session and begin; events report the progress."""
        self._begin_thread("model", self._run_model)

    def _wake(self) -> None:
        for queue in (self._to_model, self._to_decoder, self._restarted):
            queue.close()

    # ---- the model thread ------------------------------------------------------------------------------------------------

    def _run_model(self) -> None:
        session = self._make(self._events, self._check)
        self.metrics.memory = Memory.now()
        self._listen()
        self._begin_thread("encoder", lambda: self._run_encoder(session))
        self._begin_thread("decoder", lambda: self._run_decoder(session))
        try:
            while True:
                self._to_decoder.wait_for_room()
                item = self._to_model.get()
                if isinstance(item, _Envelope):
                    begin = perf_counter()
                    self.metrics.model_wait.add(begin - item.ready)
                    step, text = session.step(item.content)
                    end = perf_counter()
                    self._speaks(item.index, text)  # first the text of a frame, then its sound
                    self._to_decoder.put(_Envelope(item.index, item.heard, end, step.codes))
                    self._worked("step", item.index, begin, end)
                    self._measure(Memory.now)
                else:
                    if isinstance(item, _Restart):
                        session.reset_model()
                        self._end_words()
                    self._to_decoder.put(item)
        finally:
            self._end_words()

    # ---- the encoder thread ----------------------------------------------------------------------------------------------

    def _run_encoder(self, session: Session) -> None:
        index = missed = 0
        while True:
            if self._restart:
                self._start_anew(session)
                index = missed = 0
            self._look_around(index)
            if not self._to_model.wait_for_room(_PATIENCE):
                continue
            pcm = self._source.read(session.frame_size, _PATIENCE)
            if pcm is None:
                missed += 1
                if missed == _PAUSE_AFTER:
                    self._to_model.put(_Pause())
                continue
            begin = perf_counter()
            heard = begin - self._source.backlog()
            codes = session.encode(self._hears(index, pcm))
            end = perf_counter()
            self._taken += 1
            self._to_model.put(_Envelope(index, heard, end, codes))
            self._worked("encode", index, begin, end)
            index += 1
            missed = 0

    def _start_anew(self, session: Session) -> None:
        """Wait until the old conversation has passed all stages, then begin a new one."""
        self._restart = False
        session.reset_encoder()
        self._to_model.wait_for_room()
        self._to_model.put(_Restart())
        self._restarted.get()
        self._listen()

    def _look_around(self, index: int) -> None:
        """Keep the delay within its limit, and report drops, underruns and queues."""
        backlog = self._keep_up(index)
        self._tell_queues(backlog, *(FRAME_SECONDS * len(queue) for queue in (self._to_model, self._to_decoder)))

    # ---- the decoder thread ----------------------------------------------------------------------------------------------

    def _run_decoder(self, session: Session) -> None:
        while True:
            item = self._to_decoder.get()
            if isinstance(item, _Envelope):
                begin = perf_counter()
                self.metrics.decoder_wait.add(begin - item.ready)
                pcm = session.decode(item.content)
                self._worked("decode", item.index, begin, perf_counter())
                self._says(item.index, pcm, item.heard)
            elif isinstance(item, _Restart):
                session.reset_decoder()
                self._sink.clear()
                self._restarted.put(item)
            else:
                self._sink.pause()
