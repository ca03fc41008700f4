"""`MlxListeners`: several streams of sound that a model writes down at once, as rows of one batch, on MLX."""

from __future__ import annotations

from copy import copy

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..engine import Heard
from ..grid import AS_SAID
from .attention import KvRing, capacities, rotation, row_caches
from .lm import Lm
from .run import to_host
from .step import compiled


class MlxListeners:
    """As `Listeners`.

    The state on the device is the rings of the layers, whose slots are by step and shared by all rows, and the newest token of
    each row. The state on the host is the number of steps, and the step at which each row began.
    """

    def __init__(self, lm: Lm, rows: int, kv_bits: int | None = None) -> None:
        lm.prepare()
        self.lm = lm
        self.rows = rows
        self._form = lm.ring_format(kv_bits, rows)
        self._run = compiled(self._step)
        self.reset()

    def reset(self) -> None:
        """As `Listeners.reset`."""
        self._count = 0
        self._begun = np.zeros(self.rows, np.int64)
        self._said: mx.array | None = None
        self._rings: list[KvRing] = []

    def copy(self) -> MlxListeners:
        """As `Listeners.copy`."""
        other = copy(self)
        # Each list and array of the host is replaced or changed by one of them. Those of the device do not change.
        other._begun, other._rings = self._begun.copy(), list(self._rings)
        return other

    def hear(self, codes: npt.NDArray[np.integer]) -> Heard:
        """As `Listeners.hear`."""
        config = self.lm.config
        begins = (codes == config.card).all(axis=2)
        said, heads = [], []
        for column, begin in zip(codes, begins, strict=True):
            self._begun[begin] = self._count
            text = np.where(begin, config.text_card, AS_SAID)
            reach = self._count - self._begun
            slot = self._count % config.context
            numbers = np.concatenate([[slot], np.minimum(reach, config.context - 1), text, column.ravel()])
            factors = self._factors(reach)
            rings, self._rings = self._rings_for_step(), []
            if self._said is None:  # not before: MLX evaluates an array on the thread that made it
                self._said = mx.zeros((self.rows,), mx.int32)
            numbers = numbers.astype(np.int32)
            self._said, self._rings, says = self._run(mx.array(numbers), factors, self._said, rings)
            said.append(self._said)
            heads.append(says)
            self._count += 1
            mx.async_eval(self._said, says, self._rings)
        classes = config.extra_heads_dim if config.extra_heads_num_heads else 0
        shape = (len(codes), self.rows, config.extra_heads_num_heads, classes)
        return Heard(to_host(mx.stack(said)), np.array(mx.stack(heads)).reshape(shape))

    def warm_up(self) -> None:
        """As `Listeners.warm_up`: compile what is needed."""
        config = self.lm.config
        numbers = mx.zeros((1 + 2 * self.rows + self.rows * config.n_q,), mx.int32)
        factors = self._factors(np.zeros(self.rows, np.int64))
        for capacity in capacities(config.context):
            rings = [self._form.empty(capacity) for _ in range(config.num_layers)]
            mx.eval(self._run(numbers, factors, mx.zeros((self.rows,), mx.int32), rings))
            del rings
        mx.clear_cache()

    def _factors(self, reach: npt.NDArray[np.int64]) -> mx.array:
        config = self.lm.config
        factors = [rotation(int(position), self._form, config.max_period, alone=False) for position in reach]
        return mx.array(np.stack(factors, axis=1))

    def _rings_for_step(self) -> list[KvRing]:
        """Return the rings, with room for the next step."""
        config = self.lm.config
        if not self._rings:
            capacity = capacities(config.context)[0]
            return [self._form.empty(capacity) for _ in range(config.num_layers)]
        capacity = self._rings[0][0].shape[2]
        if self._count % config.context == capacity:
            return [self._form.grown(ring, min(2 * capacity, config.context)) for ring in self._rings]
        return self._rings

    def _step(
        self, numbers: mx.array, factors: mx.array, said: mx.array, rings: list[KvRing]
    ) -> tuple[mx.array, list[KvRing], mx.array]:
        rows = self.rows
        slot, reach, text, codes = mx.split(numbers, [1, 1 + rows, 1 + 2 * rows])
        text = mx.where(text == AS_SAID, said, text)
        tokens = mx.concatenate([text[:, None], codes.reshape(rows, -1)], axis=1)
        caches = row_caches(rings, self._form, slot, reach, factors)
        h, logits = self.lm(tokens, caches)
        heads = self.lm.heads(h)
        says = mx.stack(heads, axis=1).astype(mx.float32) if heads else mx.zeros((rows, 0))
        return mx.argmax(logits, axis=-1).astype(mx.int32), [cache.ring for cache in caches], says
