"""`NativeRun`: one conversation in the native engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..engine import Manner, NextStep, Prefilled
from ..grid import AS_SAID, Column
from ..prefill import first_position
from .shared import ROWS, Shared


class NativeRun:
    """As `Run`. Each call computes what it says, and returns when it is done."""

    def __init__(self, shared: Shared, manner: Manner) -> None:
        self._shared = shared
        self._manner = manner
        self._conversation = shared.conversation(manner)

    def begin(self, seed: int, prefilled: Prefilled | None) -> None:
        """As `Run.begin`."""
        self._conversation.reset(seed)
        self._begun = False
        self._prefilled = prefilled
        self._said = np.full(1 + self._shared.config.dep_q, self._shared.config.card, np.int32)
        self._taken: list[Column] = []
        self._half: Column | None = None
        self._silent = False  # the newest step has no codes
        self._logits: tuple[Any, Any, Any] | None = None  # of the half step that was returned last

    def step(self, position: int, column: Column, recent: Column) -> None:
        """As `Run.step`."""
        step_together(self._shared, [NextStep(self, position, column, recent)])

    def take(self) -> npt.NDArray[np.int32]:
        """As `Run.take`."""
        taken, self._taken = self._taken, []
        return np.array(taken)

    def hear(self, position: int, rows: Column, recent: Column) -> tuple[int, Column | None]:
        """As `Run.hear`."""
        half, self._half = self._half, None
        if half is not None:
            self._logits = self._newest()
        return self._hear(rows, recent), half

    def speak(self, token: int, codes: bool) -> None:
        """As `Run.speak`."""
        if codes:
            self._said = self._speak(token)
        else:
            self._said = np.array([token, *[0] * self._shared.config.dep_q], np.int32)
        self._silent = not codes
        self._half = self._said

    def rest(self) -> Column | None:
        """As `Run.rest`."""
        half, self._half = self._half, None
        if half is not None:
            self._logits = self._newest()
        return half

    def fill_window(self) -> None:
        """As `Run.fill_window`."""
        self._conversation.fill_window()
        self._begun, self._said = True, np.zeros(1 + self._shared.config.dep_q, np.int32)

    def warm_up(self, rows: Column | None) -> None:
        """As `Run.warm_up`: there is nothing to do."""

    def text_logits(self) -> Any:
        """As `Run.text_logits`, float32."""
        return (self._logits or self._newest())[0]

    def audio_logits(self) -> Any:
        """As `Run.audio_logits`, float32."""
        return (self._logits or self._newest())[1]

    def extra_heads(self) -> Any:
        """As `Run.extra_heads`, float32."""
        return (self._logits or self._newest())[2]

    @property
    def kv_bytes(self) -> int:
        """As `Run.kv_bytes`."""
        return int(self._conversation.nbytes())

    def _newest(self) -> tuple[Any, Any, Any]:
        newest = self._conversation
        audio = np.zeros((0, self._shared.config.card), np.float32) if self._silent else newest.audio_logits()
        return newest.text_logits(), audio, newest.extra_heads()

    def _hear(self, rows: Column, recent: Column) -> int:
        """Run the first half of a step on a column `[rows]` or `[batch, rows]`. Return the text that it chose."""
        tokens = self._read(rows)
        with self._shared.lock:
            (text,) = self._shared.rows.hear([self._conversation], tokens, [np.ascontiguousarray(recent, np.int32)])
        return int(text)

    def _read(self, rows: Column) -> Column:
        """Return what each row of the batch reads next, `[batch, rows]`, given `[rows]` or `[batch, rows]`."""
        if not self._begun:
            self._start()
        own = len(self._said)
        tokens = np.array(np.broadcast_to(rows, (self._manner.steering.batch, rows.shape[-1])), np.int32)
        tokens[:, :own] = np.where(tokens[:, :own] == AS_SAID, self._said, tokens[:, :own])
        return tokens

    def _speak(self, token: int) -> Column:
        """Run the second half. Return what the step has chosen, `[1 + dep_q]`."""
        with self._shared.lock:
            (codes,) = self._shared.rows.speak([self._conversation], np.array([token], np.int32))
        return np.concatenate([[token], codes]).astype(np.int32)

    def _start(self) -> None:
        """Go behind the prompt."""
        if self._prefilled is not None:
            count = first_position(self._shared.config, self._prefilled.prompt)
            self._conversation.restore(self._prefilled.state, count)
        self._begun = True


def step_together(shared: Shared, steps: Sequence[NextStep]) -> None:
    """Compute a step of each of some conversations: all at once, or as many at once as the engine has room for."""
    some: list[NextStep] = []
    free = ROWS
    for step in steps:
        assert isinstance(step.run, NativeRun)
        batch = step.run._manner.steering.batch
        if batch > free:
            _compute(shared, some)
            some, free = [], ROWS
        some.append(step)
        free -= batch
    _compute(shared, some)


def _compute(shared: Shared, steps: Sequence[NextStep]) -> None:
    if not steps:
        return
    runs = [cast("NativeRun", step.run) for step in steps]
    tokens = [run._read(step.column) for run, step in zip(runs, steps, strict=True)]
    recent = [np.ascontiguousarray(step.recent, np.int32) for step in steps]
    with shared.lock:
        said = shared.rows.step([run._conversation for run in runs], np.concatenate(tokens), recent)
    for run, row in zip(runs, said, strict=True):
        run._said, run._logits = row, None
        run._taken.append(row)
