"""Keys and values of the steps that a query can still see."""

from __future__ import annotations

import mlx.core as mx

_FIRST_CAPACITY = 64


class KeyValueRing:
    """The last `context` keys and values of one attention layer.

    State: `keys`, `values`, each `[batch, heads, capacity, head_dim]`, in the activations' dtype. Position p lies in slot
    `p % context`; capacity doubles up to `context` and stays there. Slots are in no order of time once the ring has
    turned: keys carry their position in their rotation, so attention does not need one.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update(self, position: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store the keys and values of one step and return all that its query sees.

        `position` counts the steps from 0, without a gap. `keys`, `values` are `[batch, heads, 1, head_dim]`; the result
        is `[batch, heads, min(position + 1, context), head_dim]`.
        """
        slot = position % self.context
        if self.keys is None or self.values is None:
            capacity = min(_FIRST_CAPACITY, self.context)
            shape = (*keys.shape[:2], capacity, keys.shape[3])
            self.keys, self.values = mx.zeros(shape, keys.dtype), mx.zeros(shape, values.dtype)
        elif slot == self.keys.shape[2]:
            more = min(slot, self.context - slot)
            room = mx.zeros((*keys.shape[:2], more, keys.shape[3]), keys.dtype)
            self.keys = mx.concatenate([self.keys, room], axis=2)
            self.values = mx.concatenate([self.values, room], axis=2)
        self.keys[:, :, slot : slot + 1] = keys
        self.values[:, :, slot : slot + 1] = values
        seen = min(position + 1, self.context)
        return self.keys[:, :, :seen], self.values[:, :, :seen]

    @property
    def nbytes(self) -> int:
        """Bytes that the ring holds now."""
        return sum(a.nbytes for a in (self.keys, self.values) if a is not None)
