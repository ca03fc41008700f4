"""`Pipeline`: a live conversation on three threads that overlap."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..events import (
    Dropped,
    Event,
    Failed,
    Heard,
    Levels,
    Loading,
    Ready,
    Said,
    Span,
    Spoke,
    SpokeWord,
    Underrun,
    Word,
)
from ..format import Pcm
from ..metrics import Durations, Memory, Metrics, percentile
from ..system.threads import exists
from .text import Words

if TYPE_CHECKING:
    from .session import Session, Timings

Load: TypeAlias = "Callable[[Callable[[float], None]], Session]"

DELAY_LIMIT = 0.4  # seconds
SWITCH_INTERVAL = 1e-3  # seconds

_QUEUE = 2  # frames between two stages
_WARM_UP = 5, 25  # frames, at least and at most
_MEASURED = 5, 25  # frames by which a model is judged, at least and at most
_JUDGING = 5.0  # seconds, after which the fewest will do
_WARM = 1.5  # times the fastest frame: no slower is warm
_PATIENCE = 0.1  # seconds, after which the encoder thread looks around though there is no sound or no room
_PAUSE_AFTER = 3  # times: the microphone gives nothing
_WORD_ENDS = 12  # frames without text after which the last word is complete
_LEVELS_EVERY = 0.05  # seconds, at least
_MEMORY_EVERY = 1.0  # seconds, at least


class Source(Protocol):
    """Where the user's sound comes from, 24 kHz mono; used by one thread at a time."""

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for `n` samples and return them, `[n]` float32; None if they are not there after `timeout` seconds."""

    def backlog(self) -> float:
        """Return how much sound waits to be read, in seconds."""

    def trim(self, keep: float) -> float:
        """Forget the oldest sound so that about `keep` seconds wait; return how many seconds were forgotten."""


class Sink(Protocol):
    """Where Moshi's sound goes, 24 kHz mono; written by the decoder thread, asked by it and the encoder thread."""

    def write(self, pcm: Pcm) -> None:
        """Take a frame, `[1920]` float32, to be played behind what waits already; does not wait."""

    def pause(self) -> None:
        """Hear that nothing will come for now: running dry is no underrun then."""

    def clear(self) -> None:
        """Forget what waits to be played."""

    def stats(self) -> Mapping[str, Any]:
        """Return "queued" and "cushion", samples at 24 kHz that wait and that should, and the count of "underruns".

        What is not known yet may be left out.
        """


class _ClosedError(Exception):
    """The queue is closed: the thread that meets this ends."""


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
        """Wait until `put` is possible; False if it is not after `timeout` seconds."""
        return self._wait(lambda: len(self._items) < self._size, timeout)

    def put(self, item: T) -> None:
        """Add an item; the only thread that does so has waited for room."""
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
        """Let both threads end: whoever waits, now or later, gets `_ClosedError`."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        with self._changed:
            there = self._changed.wait_for(lambda: ready() or not self._open, timeout)
            if not self._open:
                raise _ClosedError
            return there


@dataclass(frozen=True)
class _Frame(Generic[T]):
    """A frame on its way: `heard` is when its last sample was, `ready` when the stage before was done with it."""

    index: int
    heard: float
    ready: float
    data: T


class _Restart:
    """A new conversation begins behind this."""


class _Pause:
    """The microphone gives nothing for now."""


_Codes = npt.NDArray[np.uint32]


class Pipeline:
    """A conversation between `source` and `sink` on three threads, whose stages overlap.

    The model thread does all work of MLX, loading included. A stage takes a frame only when there is room for the result, so
    that sound waits where it can be given up, in `source`: the oldest goes first when the delay passes its limit. Nothing ends
    the conversation but `stop` or a failure.

    Parameters
    ----------
    load
        Makes the session; called once, on the model thread, with what it may tell the loaded fraction to, from 0 to 1.
    source, sink
        The ends. The caller opens and closes them, and may do so while the pipeline runs: with a source that gives nothing
        everybody waits.
    events
        Gets every event, on the threads of the pipeline: it must be quick and bear several calls at a time, and must not
        change the sound in them. What it raises ends the conversation.
    delay_limit
        How old the user's sound may become on its way through the pipeline, in seconds.
    early
        Tells how many seconds of the sound that waits count as not old at all, since they came together; it is told how many
        seconds are under way behind `source`. Called on the encoder thread.
    lighter
        Gets the lower quartile of the model's step times in warm-up, in seconds, on the model thread: what else runs just then
        makes some steps longer, and none shorter. What it returns makes another session in place of this one, None keeps it.
    alone
        False: others run in this process. `load` gives a session that is warm and new, and the process stays as it is.

    Attributes
    ----------
    metrics
        The figures so far.
    failure
        What ended the conversation, if something did.
    muted
        Whether the model hears silence in place of the user.
    """

    def __init__(
        self,
        load: Load,
        source: Source,
        sink: Sink,
        events: Callable[[Event], None],
        *,
        delay_limit: float = DELAY_LIMIT,
        early: Callable[[float], float] = lambda _: 0.0,
        lighter: Callable[[float], Load | None] | None = None,
        alone: bool = True,
    ) -> None:
        self.metrics = Metrics()
        self.failure: Failed | None = None
        self.muted = False
        self._load = load
        self._source = source
        self._sink = sink
        self._events = events
        self._delay_limit = delay_limit
        self._early = early
        self._lighter = lighter
        self._alone = alone
        self._codes: _Queue[_Frame[_Codes] | _Restart | _Pause] = _Queue(_QUEUE)
        self._frames: _Queue[_Frame[_Codes | None] | _Restart | _Pause] = _Queue(_QUEUE)
        self._restarted: _Queue[_Restart] = _Queue(1)  # from the decoder thread back to the encoder thread
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._over = False
        self._conversation = 0  # 0 until the first begins
        self._restart = False
        self._taken = 0  # frames, of all conversations
        self._told = 0.0  # when `Levels` were
        self._switch_interval: float | None = None

    # ---- what the caller may do, on any thread ---------------------------------------------------------------------------

    def start(self) -> None:
        """Load, warm up and begin, on threads: events tell how it goes."""
        if self._alone:
            self._switch_interval = sys.getswitchinterval()
            # A thread that comes back from native code waits so long while another, such as the screen's, runs Python.
            sys.setswitchinterval(SWITCH_INTERVAL)
        self._begin_thread("model", self._run_model)

    def reset(self) -> None:
        """Begin a new conversation from fresh state, behind the frames that are on their way; `Ready` says when."""
        self._restart = True

    def mute(self, muted: bool) -> None:
        """Let the model hear silence in place of the user, or the user again."""
        self.muted = muted

    def stop(self, timeout: float = 1.0) -> bool:
        """End the conversation and wait up to `timeout` seconds for the threads; may be called again.

        False means that one of them is still in native code, which cannot be interrupted: only ending the process does.
        """
        self._end()
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until `stop` or a failure has ended the threads; False if that is not so after `timeout` seconds."""
        deadline = math.inf if timeout is None else perf_counter() + timeout
        for thread in self._threads:  # the first starts the others: the list is complete once it has ended
            if thread is threading.current_thread():
                continue
            thread.join(None if timeout is None else max(0.0, deadline - perf_counter()))
            while exists(thread):
                if perf_counter() > deadline:
                    return False
                sleep(0.001)
        if self._switch_interval is not None:
            sys.setswitchinterval(self._switch_interval)
            self._switch_interval = None
        return True

    # ---- threads and how they end ----------------------------------------------------------------------------------------

    def _begin_thread(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except _ClosedError:
                pass
            except BaseException as error:
                failure = Failed(name if self._conversation else "start", error)
                if self._end(failure):
                    with contextlib.suppress(Exception):
                        self._events(failure)

        thread = threading.Thread(target=run, name=f"msh-{name}", daemon=True)
        with self._lock:
            if not self._over:
                thread.start()
                self._threads.append(thread)

    def _end(self, failure: Failed | None = None) -> bool:
        """End all threads; False if that was done already, so that `failure` is but a consequence."""
        with self._lock:
            first, self._over = not self._over, True
            if first:
                self.failure = failure
        for queue in (self._codes, self._frames, self._restarted):
            queue.close()
        return first

    # ---- the model thread ------------------------------------------------------------------------------------------------

    def _run_model(self) -> None:
        session = self._start_up() if self._alone else self._load(lambda _: None)
        self._listen()
        self._begin_thread("encoder", lambda: self._run_encoder(session))
        self._begin_thread("decoder", lambda: self._run_decoder(session))
        words, latest, measured = Words(), 0, 0.0
        try:
            while True:
                self._frames.wait_for_room()
                item = self._codes.get()
                if isinstance(item, _Frame):
                    begin = perf_counter()
                    self.metrics.codes_wait.add(begin - item.ready)
                    spoken = session.step(item.data)
                    end = perf_counter()
                    # First the text of a frame, then its sound.
                    if spoken.text:
                        latest = item.index
                        self._events(Spoke(item.index, spoken.text))
                        self._spoke(words.push(item.index / session.frame_rate, spoken.text))
                    elif item.index == latest + _WORD_ENDS:
                        self._spoke(words.flush())
                    self._frames.put(_Frame(item.index, item.heard, end, spoken.frame))
                    self._worked("step", item.index, begin, end)
                    if end - measured > _MEMORY_EVERY:
                        self.metrics.memory, measured = Memory.now(), end
                else:
                    if isinstance(item, _Restart):
                        session.reset_model()
                        self._spoke(words.flush())
                    self._frames.put(item)
        finally:
            self._spoke(words.flush())

    def _start_up(self) -> Session:
        """Load a session that is fast enough, let it run on silence until its time is steady, and return it as new."""
        load: Load | None = self._load
        while load:
            begin = perf_counter()
            self._events(Loading("loading"))
            session = load(lambda fraction: self._events(Loading("loading", fraction=fraction)))
            loaded = perf_counter()
            self._events(Loading("loading", loaded - begin))
            self._events(Loading("warm-up"))
            pace = self._warm_up(session)
            load = self._lighter(pace) if self._lighter else None
            if load:
                del session  # before the next one comes
                gc.collect()
        session.reset()
        # Python's collector would stop all threads to look through what was loaded, again and again.
        gc.collect()
        gc.freeze()
        self.metrics.memory = Memory.now()
        self._events(Loading("warm-up", perf_counter() - loaded))
        return session

    def _warm_up(self, session: Session) -> float:
        """Let a session run on silence until its time is steady; return the lower quartile of its steps from then on."""
        session.warm_up()
        silence = np.zeros(session.frame_size, np.float32)

        def push() -> Timings:
            if self._over:
                raise _ClosedError
            return session.push(silence).timings

        took: list[float] = []
        while len(took) < _WARM_UP[0] or (took[-1] > _WARM * min(took) and len(took) < _WARM_UP[1]):
            took.append(push().total)
        if self._lighter is None:
            return 0.0
        steps: list[float] = []
        begin = perf_counter()
        while len(steps) < _MEASURED[0] or (len(steps) < _MEASURED[1] and perf_counter() - begin < _JUDGING):
            steps.append(push().step)
        return percentile(steps, 25)

    def _listen(self) -> None:
        """Begin the next conversation with what is heard from now on."""
        self._source.trim(0)
        self._conversation += 1
        self._events(Ready(self._conversation))

    def _spoke(self, words: list[Word]) -> None:
        for word in words:
            self.metrics.words += 1
            # A time on the clock of the conversation, without the noise of binary fractions.
            self._events(SpokeWord(Word(round(word.start, 3), word.text)))

    # ---- the encoder thread ----------------------------------------------------------------------------------------------

    def _run_encoder(self, session: Session) -> None:
        silence = np.zeros(session.frame_size, np.float32)
        index = missed = 0
        while True:
            if self._restart:
                self._start_anew(session)
                index = missed = 0
            self._look_around(session, index)
            if not self._codes.wait_for_room(_PATIENCE):
                continue
            pcm = self._source.read(session.frame_size, _PATIENCE)
            if pcm is None:
                missed += 1
                if missed == _PAUSE_AFTER:
                    self._codes.put(_Pause())
                continue
            begin = perf_counter()
            heard = begin - self._source.backlog()
            if self.muted:
                pcm = silence
            self._events(Heard(index, pcm))
            codes = session.encode(pcm)
            end = perf_counter()
            self._taken += 1
            self._codes.put(_Frame(index, heard, end, codes))
            self._worked("encode", index, begin, end)
            index += 1
            missed = 0

    def _start_anew(self, session: Session) -> None:
        """Begin a new conversation as soon as everything of the old one has gone through all stages."""
        self._restart = False
        session.reset_encoder()
        self._codes.wait_for_room()
        self._codes.put(_Restart())
        self._restarted.get()
        self._listen()

    def _look_around(self, session: Session, index: int) -> None:
        """Keep the delay within its limit, and tell of drops, underruns and queues."""
        frame = 1 / session.frame_rate
        under_way = frame * (self._taken - self.metrics.frames)
        backlog = self._source.backlog()
        early = self._early(under_way)  # after `backlog`, since what comes in between is early
        if backlog + under_way > self._delay_limit + early:
            # One frame is kept: with less the encoder would have to wait, and more would be delay for nothing.
            dropped = self._source.trim(max(frame, early))
            if dropped > 0:
                backlog -= dropped
                self.metrics.drops += 1
                self.metrics.dropped += dropped
                self._events(Dropped(index, dropped))
        stats = self._sink.stats()
        underruns = stats.get("underruns", 0)
        if underruns != self.metrics.underruns:
            self.metrics.underruns = underruns
            self._events(Underrun(underruns))
        now = perf_counter()
        if now - self._told > _LEVELS_EVERY:
            self._told = now
            queued, cushion = (stats.get(name, 0) / session.sample_rate for name in ("queued", "cushion"))
            codes, frames = frame * len(self._codes), frame * len(self._frames)
            self._events(Levels(now, backlog, codes, frames, queued, cushion, self.metrics.dropped, underruns))

    # ---- the decoder thread ----------------------------------------------------------------------------------------------

    def _run_decoder(self, session: Session) -> None:
        while True:
            item = self._frames.get()
            if isinstance(item, _Frame):
                begin = perf_counter()
                self.metrics.frames_wait.add(begin - item.ready)
                pcm = session.decode(item.data)
                end = perf_counter()
                queued = self._sink.stats().get("queued", 0) / session.sample_rate
                self._sink.write(pcm)
                self.metrics.frames += 1
                self.metrics.reply.add(end - item.heard)
                self.metrics.delay.add(end - item.heard + queued)
                self._worked("decode", item.index, begin, end)
                self._events(Said(item.index, pcm))
            elif isinstance(item, _Restart):
                session.reset_decoder()
                self._sink.clear()
                self._restarted.put(item)
            else:
                self._sink.pause()

    def _worked(self, stage: str, index: int, begin: float, end: float) -> None:
        durations: Durations = getattr(self.metrics, stage)
        durations.add(end - begin)
        self._events(Span(stage, index, begin, end))
