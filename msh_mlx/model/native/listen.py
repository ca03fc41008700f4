"""`NativeListeners`: several streams of sound that a model writes down at once, in the native engine."""

from __future__ import annotations

from copy import copy

import numpy as np
import numpy.typing as npt

from ..engine import Heard, Manner
from ..sampling import Sampler, TextSampler
from ..steering import Steering
from .shared import ROWS, Shared

_NOTHING = np.zeros(0, np.int32)


class NativeListeners:
    """As `Listeners`: each row is a conversation of its own, which begins anew with each stream."""

    def __init__(self, shared: Shared, rows: int, kv_bits: int | None) -> None:
        self.rows = rows
        self._shared = shared
        manner = Manner(TextSampler(0), Sampler(0), kv_bits, Steering(codebooks=0))
        self._conversations = [shared.conversation(manner) for _ in range(rows)]
        self.reset()

    def reset(self) -> None:
        """As `Listeners.reset`."""
        for conversation in self._conversations:
            conversation.reset(0)
        self._said = np.zeros(self.rows, np.int32)

    def copy(self) -> NativeListeners:
        """As `Listeners.copy`."""
        other = copy(self)
        other._conversations = [conversation.copy() for conversation in self._conversations]
        other._said = self._said.copy()
        return other

    def hear(self, codes: npt.NDArray[np.integer]) -> Heard:
        """As `Listeners.hear`."""
        config, said, heads = self._shared.config, [], []
        for column in codes:
            begins = (column == config.card).all(axis=1)
            for row in np.flatnonzero(begins):
                self._conversations[row].reset(0)
            text = np.where(begins, config.text_card, self._said)
            tokens = np.ascontiguousarray(np.concatenate([text[:, None], column], axis=1), np.int32)
            self._said = np.concatenate([self._hear(tokens, first) for first in range(0, self.rows, ROWS)])
            said.append(self._said)
            heads.append([conversation.extra_heads() for conversation in self._conversations])
        classes = config.extra_heads_dim if config.extra_heads_num_heads else 0
        shape = (len(codes), self.rows, config.extra_heads_num_heads, classes)
        return Heard(np.array(said, np.int32), np.array(heads, np.float32).reshape(shape))

    def _hear(self, tokens: npt.NDArray[np.int32], first: int) -> npt.NDArray[np.int32]:
        """Run a step of as many rows as the engine takes at once, from row `first` on."""
        some = self._conversations[first : first + ROWS]
        with self._shared.lock:
            return self._shared.rows.hear(some, tokens[first : first + ROWS], [_NOTHING] * len(some))

    def warm_up(self) -> None:
        """As `Listeners.warm_up`: there is nothing to do."""
