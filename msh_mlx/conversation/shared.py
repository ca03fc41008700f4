"""`SharedModel`: one set of weights for several conversations, which are stepped together on one thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..format import FRAME_SECONDS
from ..metrics import Durations
from ..model.generate import Step
from ..model.sampling import Sampler
from ..system.threads import exists
from .personas import Persona
from .served import ServedPersonas
from .session import Opening, Parts, Session, step_together
from .ticks import Arrivals, Costs, begin_tick

# Called with the tokens of one step: the user's codes `[K]`, the text token, and Moshi's codes `[K]`, or None while there are
# none.
Tokens = Callable[[npt.NDArray[np.uint32], int, "npt.NDArray[np.uint32] | None"], None]

T = TypeVar("T")

_WARM_UP = 25  # frames
_MEASURED = 5  # steps of each number of conversations, beforehand
ROOM = 0.75  # of a frame's 80 ms: what all conversations may take; the network needs time, too
SETTLED = 2.0  # seconds after which a new conversation shows in what is measured
_AT_ONCE = 4  # conversations that may come within that time, or as many as were there before


@dataclass(frozen=True)
class Tick:
    """A step of several conversations: how many, and in seconds how long it took and how long each frame had waited for it."""

    size: int
    seconds: float
    waits: list[float]


@dataclass(frozen=True, eq=False)
class Seat:
    """A conversation's place at a model: its session, whose steps the model makes together with those of others.

    `tokens` is called with the tokens of each step.
    """

    model: SharedModel
    session: Session
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Stepped:
    """What a step has given: `begin` and `end` are its time, by `perf_counter`."""

    step: Step
    text: str
    begin: float
    end: float


@dataclass(frozen=True)
class _Waiting:
    """Codes of a conversation that wait for a tick, since when, and who takes what comes of it."""

    seat: Seat
    codes: npt.NDArray[np.uint32]
    since: float
    done: Callable[[Stepped], None]
    failed: Callable[[BaseException], None]


class SharedModel:
    """Weights, codec and tokenizer for several conversations, and the threads that work for all of them.

    One thread does all work with the model. Conversations whose frames are there step together, in a tick (`begin_tick`). Other
    work, such as reading a prompt, takes turns with the ticks. The threads of `pool` encode and decode; there are as many as
    processors, however many conversations there are.

    `sessions` is how many conversations there may be: for so many, `load` measures what a step costs.

    Attributes
    ----------
    costs
        How long a step takes, by how many conversations it serves.
    replies
        How long it took from the end of a user's frame to the answer, in live conversations, since the newest came.
    sound
        How much time of a processor a frame took besides the model. Like `replies` it is added to under `lock`.
    on_tick
        Called with each `Tick`, on the model's thread.
    personas
        The personas that can be chosen, once the model is loaded; None if it takes none.
    """

    def __init__(
        self, *, kv_bits: int | None = None, sessions: int = 1, on_tick: Callable[[Tick], None] = lambda _: None
    ) -> None:
        self.costs = Costs()
        self.replies = Durations()
        self.sound = Durations()
        self.lock = threading.Lock()
        self.on_tick = on_tick
        self.personas: ServedPersonas | None = None
        self.workers = max(2, os.cpu_count() or 1)
        self.pool = ThreadPoolExecutor(self.workers, "msh-codec")
        self._kv_bits = kv_bits
        self._sessions = sessions
        self._parts: Parts | None = None
        self._opening: Opening | None = None
        self._changed = threading.Condition()
        self._turns: deque[Callable[[], None]] = deque()
        self._waiting: list[_Waiting] = []
        self._arrivals = Arrivals()
        self._open = True
        self._thread: threading.Thread | None = None  # it starts with its first work

    def load(
        self, load: Callable[[], Parts], begin: Callable[[Parts], Opening | ServedPersonas | None] = lambda _: None
    ) -> None:
        """Load with `load`, warm up, so that conversations are fast from the beginning, and measure what their steps cost.

        `begin` makes of the parts what comes before each conversation: an opening for all, or personas to choose from. None is
        as for `Session`.

        Raises
        ------
        InputError
            The parts do not belong together, or what `begin` makes does not fit them.
        """

        def work() -> None:
            parts = load()
            opening = begin(parts)
            if isinstance(opening, ServedPersonas):
                self.personas = opening
                opening = opening.personas.opening(opening.default)
            self._opening = opening
            self._parts = parts
            session = self._new_session(seed=0)
            session.warm_up()
            silence = np.zeros(session.frame_size, np.float32)
            steps = [session.push(silence).timings.step for _ in range(_WARM_UP)]
            self.costs.measure(1, median(steps))
            self._measure_together(session)

        self.take_turn(work)

    def _new_session(
        self,
        text_sampler: Sampler | None = None,
        audio_sampler: Sampler | None = None,
        seed: int | None = None,
        opening: Opening | None = None,
    ) -> Session:
        parts = self._parts
        assert parts
        return Session(
            parts.lm,
            parts.mimi,
            parts.tokenizer,
            text_sampler=text_sampler,
            audio_sampler=audio_sampler,
            seed=seed,
            kv_bits=self._kv_bits,
            opening=opening or self._opening,
        )

    def _measure_together(self, first: Session) -> None:
        """Measure steps of 2, 4, 8 and more conversations, up to those that may come or that no frame's time is enough for."""
        sessions = [first]
        codes = first.encode(np.zeros(first.frame_size, np.float32))
        while len(sessions) < self._sessions and self.costs.expected(len(sessions)) < FRAME_SECONDS:
            sessions += [self._new_session(seed=0) for _ in range(min(len(sessions), self._sessions - len(sessions)))]
            times = []
            for _ in range(1 + _MEASURED):  # the first also primes
                begin = perf_counter()
                step_together([(session, codes) for session in sessions])
                times.append(perf_counter() - begin)
            self.costs.measure(len(sessions), median(times[1:]))

    def seat(
        self,
        *,
        text_sampler: Sampler,
        audio_sampler: Sampler,
        seed: int | None,
        tokens: Tokens | None = None,
        persona: Persona | None = None,
    ) -> Seat:
        """Make a session in fresh state, ready for its first step.

        The arguments are as for `Session`; `tokens` is called with the tokens of each step. The prompt of `persona` is read
        now, unless it was read before. Meanwhile, other conversations go on.

        Raises
        ------
        InputError
            The seed is wrong, or the persona does not fit the model.
        """
        opening = self._opening
        if self.personas:
            opening = self.in_turns(self.personas.opening_in_turns(persona or self.personas.default))
        session = self.take_turn(lambda: self._new_session(text_sampler, audio_sampler, seed, opening))
        self.take_turn(session.reset_model)
        with self.lock:
            self.replies = Durations()  # of all, with the new one
        return Seat(self, session, tokens)

    def has_room(self, others: int, beside: Mapping[SharedModel, int] | None = None, fresh: int = 0) -> bool:
        """Return whether one more conversation beside `others` leaves all in real time; the first of all always has room.

        `beside` says how many talk with other models on this machine: what all take is added up. It goes by what was measured:
        a step of all of them with the work on their sound, and how long those who talk wait for their answers.

        `fresh` of all those have not talked for `SETTLED` seconds and do not show in the answers yet. Where not every cost was
        foreseen, too many would have come before that is seen. So their number at most doubles in that time, and near the limit
        they come one by one.
        """
        every = others + sum((beside or {}).values())
        need, reply = self._with_one_more(others, beside or {})
        limit = ROOM * FRAME_SECONDS
        if fresh and (need > limit / 2 or fresh >= max(_AT_ONCE, every - fresh)):
            return False
        return max(need, reply) <= limit

    def places(self, others: int, beside: Mapping[SharedModel, int] | None = None, most: int = 1) -> int:
        """Return how many conversations with this model there can be, as far as one can tell while there are `others`.

        That is as many as there are if there is no room for one more; else as many as steps and sound leave time for, up to
        `most`.
        """
        beside = beside or {}
        need, reply = self._with_one_more(others, beside)
        limit, count = ROOM * FRAME_SECONDS, others
        if max(need, reply) > limit:
            return max(count, 0 if beside else 1)
        with self.lock:
            sound = self.sound.recent(50) / self.workers
        without = sum(model._figures(number, number)[0] for model, number in beside.items())
        while count < most and without + self.costs.expected(count + 1) + (count + 1) * sound <= limit:
            count += 1
        return max(count, 0 if beside else 1)

    def _with_one_more(self, others: int, beside: Mapping[SharedModel, int]) -> tuple[float, float]:
        """Return what one more beside `others` would make of a frame's time: what all take, and how long each would wait."""
        talking = {self: others, **beside}
        every = sum(talking.values())
        figures = [model._figures(count + (model is self), count) for model, count in talking.items()]
        need, reply = sum(f[0] for f in figures), max(f[1] for f in figures)
        return (need, reply * (every + 1) / every) if every else (0.0, 0.0)

    def _figures(self, count: int, talking: int) -> tuple[float, float]:
        """Return what `count` conversations take of a frame's time, and how long those who talk wait."""
        with self.lock:
            sound, reply = self.sound.recent(50), self.replies.recent(95)
        need = self.costs.expected(count) + count * sound / self.workers if count else 0.0
        return need, reply if talking else 0.0

    def close(self) -> None:
        """End the threads, and wait until the system has ended them, too."""
        with self._changed:
            self._open = False
            self._changed.notify()
        threads = list(self.pool._threads)
        self.pool.shutdown()
        if self._thread:
            self._thread.join()
            threads.append(self._thread)
        while any(map(exists, threads)):
            sleep(0.001)

    # ---- what the threads of conversations ask for -----------------------------------------------------------------------

    def later(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` on the model's thread, after what waits there already."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        with self._changed:
            if not self._open:
                raise RuntimeError("the model is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="msh-model", daemon=True)
                self._thread.start()
            self._turns.append(run)
            self._changed.notify()
        return result

    def take_turn(self, work: Callable[[], T]) -> T:
        """Do `work` on the model's thread, after what waits there already, and return its result."""
        return self.later(work).result()

    def in_turns(self, work: Iterator[T | None]) -> T:
        """Do `work` on the model's thread, one part after the other, until it yields a result."""
        while (result := self.take_turn(lambda: next(work))) is None:
            pass
        return result

    def step(
        self,
        seat: Seat,
        codes: npt.NDArray[np.uint32],
        done: Callable[[Stepped], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Let a conversation step with the next tick; then `done` is called, or `failed`, on the model's thread.

        A conversation may ask for the next step when it has got the one before. `codes` are as from `Session.encode`.
        """
        now = perf_counter()
        with self._changed:
            self._waiting.append(_Waiting(seat, codes, now, done, failed))
            self._arrivals.came(seat, now)
            self._changed.notify()

    def leave(self, seat: Seat) -> bool:
        """Expect no frame of a conversation any more; return whether one waited, which is now given up."""
        with self._changed:
            self._arrivals.forget(seat)
            before = len(self._waiting)
            self._waiting = [one for one in self._waiting if one.seat is not seat]
            self._changed.notify()
            return len(self._waiting) < before

    # ---- the model's thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        turn = False  # whether a turn comes before a tick
        while (work := self._next(turn)) is not None:
            if isinstance(work, list):
                self._tick(work)
                turn = True
            else:
                work()
                turn = False
            del work  # it may hold the last reference to a session

    def _next(self, turn: bool) -> Callable[[], None] | list[_Waiting] | None:
        """Wait for the next turn, or the frames of the next tick; None: the model is closed."""
        with self._changed:
            while True:
                if self._turns and (turn or not self._waiting):
                    return self._turns.popleft()
                if not self._open:
                    return None
                wait = None
                if self._waiting:
                    wait = self._begin_tick() - perf_counter()
                    if wait <= 0:
                        waiting, self._waiting = self._waiting, []
                        return waiting
                    if self._turns:
                        return self._turns.popleft()
                self._changed.wait(wait)

    def _begin_tick(self) -> float:
        waiting = self._waiting
        others = self._arrivals.without(one.seat for one in waiting)
        return begin_tick(perf_counter(), [one.since for one in waiting], others, self.costs)

    def _tick(self, waiting: list[_Waiting]) -> None:
        begin = perf_counter()
        try:
            results = step_together([(one.seat.session, one.codes) for one in waiting])
        except BaseException as error:
            for one in waiting:
                one.failed(error)
            return
        end = perf_counter()
        self.costs.add(len(waiting), end - begin)
        self.on_tick(Tick(len(waiting), end - begin, [begin - one.since for one in waiting]))
        for one, (step, text) in zip(waiting, results, strict=True):
            if one.seat.tokens:
                one.seat.tokens(one.codes, step.text_token, step.codes)
            one.done(Stepped(step, text, begin, end))
