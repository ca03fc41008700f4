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

# Called with the tokens of one step: the user's codes `[K]`, the text token, and Moshi's codes `[K]`, or None while there are
# none.
Tokens = Callable[[npt.NDArray[np.uint32], int, "npt.NDArray[np.uint32] | None"], None]

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
    """

    def __init__(self, *, kv_bits: int | None = None, on_step: Callable[[float], None] = lambda _: None) -> None:
        self.step = Durations()
        self.on_step = on_step
        self._kv_bits = kv_bits
        self._parts: Parts | None = None
        self._frame_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, "msh-model")

    def load(self, load: Callable[[], Parts]) -> None:
        """Load with `load`, and warm up with a conversation of two seconds, so that later ones are fast from the beginning.

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
        """Make a session in fresh state, ready for its first step.

        The arguments are as for `Session`; `tokens` is called with the tokens of each step.

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
        """Return whether one more conversation beside `others` leaves all in real time; the first always has room."""
        return others == 0 or (others + 1) * self.step.recent(95) <= _ROOM * self._frame_seconds

    def close(self) -> None:
        """End the thread, and wait until the system has ended it, too."""
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
    """A session that does its work of MLX on the model's thread."""

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
