"""`SharedModel`: one set of weights for several conversations, whose steps take turns on one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, sleep
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..format import FRAME_SECONDS
from ..metrics import Durations
from ..model.generate import Step
from ..model.sampling import Sampler
from ..system.threads import exists
from .personas import Persona
from .served import ServedPersonas
from .session import Opening, Parts, Session

# Called with the tokens of one step: the user's codes `[K]`, the text token, and Moshi's codes `[K]`, or None while there are
# none.
Tokens = Callable[[npt.NDArray[np.uint32], int, "npt.NDArray[np.uint32] | None"], None]

T = TypeVar("T")

_WARM_UP = 25  # frames
_ROOM = 0.75  # of a frame's 80 ms: what the steps of all conversations may take; the codec needs time, too


class SharedModel:
    """Weights, codec and tokenizer, and the one thread that does all work of MLX, first come, first served.

    A conversation asks for one step at a time. So all conversations take turns: each waits for at most one step of every other.

    Attributes
    ----------
    step
        How long the steps took, without the wait for their turn.
    on_step
        Called with the time of each step, in seconds, on the model's thread.
    personas
        The personas that can be chosen, once the model is loaded; None if it takes none.
    """

    def __init__(self, *, kv_bits: int | None = None, on_step: Callable[[float], None] = lambda _: None) -> None:
        self.step = Durations()
        self.on_step = on_step
        self._kv_bits = kv_bits
        self._parts: Parts | None = None
        self._opening: Opening | None = None
        self.personas: ServedPersonas | None = None
        self._thread = ThreadPoolExecutor(1, "msh-model")

    def load(
        self, load: Callable[[], Parts], begin: Callable[[Parts], Opening | ServedPersonas | None] = lambda _: None
    ) -> None:
        """Load with `load`, and warm up with a conversation of two seconds, so that later ones are fast from the beginning.

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
            session = Session(parts.lm, parts.mimi, parts.tokenizer, seed=0, kv_bits=self._kv_bits, opening=opening)
            session.warm_up()
            silence = np.zeros(session.frame_size, np.float32)
            for _ in range(_WARM_UP):
                self.step.add(session.push(silence).timings.step)
            self._parts = parts

        self.take_turn(work)

    def session(
        self,
        *,
        text_sampler: Sampler,
        audio_sampler: Sampler,
        seed: int | None,
        tokens: Tokens | None = None,
        persona: Persona | None = None,
    ) -> Session:
        """Make a session in fresh state, ready for its first step.

        The arguments are as for `Session`; `tokens` is called with the tokens of each step. The prompt of `persona` is read
        now, unless it was read before. Meanwhile, the steps of other conversations have their turns.

        Raises
        ------
        InputError
            The seed is wrong, or the persona does not fit the model.
        """
        parts, opening = self._parts, self._opening
        assert parts
        if self.personas:
            opening = self.in_turns(self.personas.opening_in_turns(persona or self.personas.default))
        options = {
            "text_sampler": text_sampler,
            "audio_sampler": audio_sampler,
            "seed": seed,
            "kv_bits": self._kv_bits,
            "opening": opening,
        }
        session = self.take_turn(lambda: _TakesTurns(self, parts, tokens, options))
        session.reset_model()
        return session

    def has_room(self, others: int) -> bool:
        """Return whether one more conversation beside `others` leaves all in real time; the first always has room."""
        return others == 0 or (others + 1) * self.step.recent(95) <= _ROOM * FRAME_SECONDS

    def close(self) -> None:
        """End the thread, and wait until the system has ended it, too."""
        thread = self._thread.submit(threading.current_thread).result()
        self._thread.shutdown()
        while exists(thread):
            sleep(0.001)

    def take_turn(self, work: Callable[[], T]) -> T:
        """Do `work` on the model's thread, after what waits there already, and return its result."""
        return self._thread.submit(work).result()

    def in_turns(self, work: Iterator[T | None]) -> T:
        """Do `work` on the model's thread, one part after the other, until it yields a result."""
        while (result := self.take_turn(lambda: next(work))) is None:
            pass
        return result


class _TakesTurns(Session):
    """A session that does its work of MLX on the model's thread."""

    def __init__(self, model: SharedModel, parts: Parts, tokens: Tokens | None, options: dict[str, Any]) -> None:
        super().__init__(parts.lm, parts.mimi, parts.tokenizer, **options)
        self._model = model
        self._tokens = tokens

    def step(self, codes: npt.NDArray[np.uint32]) -> tuple[Step, str]:
        step, text = self._model.take_turn(lambda: self._timed_step(codes))
        if self._tokens:
            self._tokens(codes, step.text_token, step.codes)
        return step, text

    def _timed_step(self, codes: npt.NDArray[np.uint32]) -> tuple[Step, str]:
        begin = perf_counter()
        result = super().step(codes)
        seconds = perf_counter() - begin
        self._model.step.add(seconds)
        self._model.on_step(seconds)
        return result

    def reset_model(self) -> None:
        self._model.take_turn(super().reset_model)
