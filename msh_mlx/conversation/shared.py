"""`SharedModel`: one set of weights for several conversations, whose steps take turns on one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import Durations
from ..model.generate import Step
from ..model.sampling import Sampler
from ..system.threads import exists
from .session import Parts, Session

# What was heard and said in one step: the user's codes `[K]`, the text token, Moshi's codes `[K]` or None.
Tokens = Callable[[npt.NDArray[np.uint32], int, "npt.NDArray[np.uint32] | None"], None]

_WARM_UP = 25  # frames
_ROOM = 0.75  # of the time of a frame, what the steps of all conversations may take: codecs want theirs, too


class SharedModel:
    """Weights, codec and tokenizer, and the thread on which all work of MLX is done, first come, first served.

    A conversation asks for one step at a time, so that among several that have something to do each gets its turn: none waits
    for more than one step of every other.

    Attributes
    ----------
    step
        What steps took, without waiting for their turn.
    on_step
        Hears what each step took, in seconds, on that thread.
    """

    def __init__(self, *, kv_bits: int | None = None, on_step: Callable[[float], None] = lambda _: None) -> None:
        self.step = Durations()
        self.on_step = on_step
        self._kv_bits = kv_bits
        self._parts: Parts | None = None
        self._frame_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, "msh-model")

    def load(self, load: Callable[[], Parts]) -> None:
        """Load with `load`, and hold a conversation of two seconds for the others to find everything warm.

        Raises
        ------
        InputError
            The parts do not belong together.
        """
        self._thread.submit(self._load, load).result()

    def _load(self, load: Callable[[], Parts]) -> None:
        parts = load()
        session = Session(parts.lm, parts.mimi, parts.tokenizer, seed=0, kv_bits=self._kv_bits)
        session.warm_up()
        silence = np.zeros(session.frame_size, np.float32)
        for _ in range(_WARM_UP):
            self.step.add(session.push(silence).timings.step)
        self._frame_seconds = 1 / session.frame_rate
        self._parts = parts

    def session(
        self, *, text_sampler: Sampler, audio_sampler: Sampler, seed: int | None, tokens: Tokens | None = None
    ) -> Session:
        """Make a conversation from fresh state, primed; arguments as for `Session`. `tokens` hears those of each step.

        Raises
        ------
        InputError
            The seed is wrong.
        """
        return self._thread.submit(self._make, text_sampler, audio_sampler, seed, tokens).result()

    def _make(self, text_sampler: Sampler, audio_sampler: Sampler, seed: int | None, tokens: Tokens | None) -> Session:
        assert self._parts
        samplers = {"text_sampler": text_sampler, "audio_sampler": audio_sampler}
        session = _TakesTurns(
            self._parts, self._take_turn, self._note, tokens, kv_bits=self._kv_bits, seed=seed, **samplers
        )
        Session.reset_model(session)
        return session

    def has_room(self, others: int) -> bool:
        """Tell whether one more conversation beside `others` would leave all steps within the time of a frame."""
        return others == 0 or (others + 1) * self.step.recent(95) <= _ROOM * self._frame_seconds

    def close(self) -> None:
        """End the thread, and wait until it has ended for the system, too."""
        thread = self._thread.submit(threading.current_thread).result()
        self._thread.shutdown()
        while exists(thread):
            sleep(0.001)

    def _take_turn(self, work: Callable[[], Any]) -> Any:
        return self._thread.submit(work).result()

    def _note(self, seconds: float) -> None:
        self.step.add(seconds)
        self.on_step(seconds)


class _TakesTurns(Session):
    """A session whose work of MLX is done on the model's thread."""

    def __init__(
        self,
        parts: Parts,
        turn: Callable[[Callable[[], Any]], Any],
        note: Callable[[float], None],
        tokens: Tokens | None,
        **options: Any,
    ) -> None:
        super().__init__(parts.lm, parts.mimi, parts.tokenizer, **options)
        self._turn = turn
        self._note = note
        self._tokens = tokens

    def step(self, codes: npt.NDArray[np.uint32]) -> tuple[Step, str]:
        step, text = self._turn(lambda: self._timed_step(codes))
        if self._tokens:
            self._tokens(codes, step.text_token, step.codes)
        return step, text

    def _timed_step(self, codes: npt.NDArray[np.uint32]) -> tuple[Step, str]:
        begin = perf_counter()
        result = super().step(codes)
        self._note(perf_counter() - begin)
        return result

    def reset_model(self) -> None:
        self._turn(super().reset_model)
