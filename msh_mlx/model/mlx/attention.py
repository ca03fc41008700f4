"""Attention: from a layer's input to its output, over what a key/value cache holds.

In the temporal transformer each layer has a `RingCache`, which holds as many positions of a conversation as fit in the window.
A `PrefillCache` takes several positions at once. In the depformer each layer has a `StepCache`, which holds the codebooks of
one step. What cross-attention sees does not change, and needs no cache.

A *ring* is the state of one layer: a list of arrays that a step takes and gives back. They hold the keys and the values,
`[2 · batch, heads, capacity, head_dim]`: one array in the activations' dtype, or three with 8 bits (packed uint32, scales,
biases; groups along `head_dim`). The keys of all rows of the batch come first. Position p lies in slot `p % context`. Once the
ring has turned, the slots are not in the order of time. Attention does not need that order: a key's rotation says at which
position it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .layers import RowProjection, lay_out, on_cpu, project

_FIRST_CAPACITY = 128

KvRing = list[mx.array]

# The keys and values of a layer's cross-attention, as from `CrossAttention.read`.
Source = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Heads:
    """How a row of attention is cut into heads: `count` for queries, and one for keys and values per `group` of them.

    Query head h attends to the keys and values of head `h // group`. The width of a head is `dim`.
    """

    count: int
    dim: int
    group: int = 1

    @property
    def shared(self) -> int:
        """The number of heads of keys, and of values."""
        return self.count // self.group

    @property
    def width(self) -> int:
        """The width of a projected row: queries, then keys, then values."""
        return (self.count + 2 * self.shared) * self.dim

    def cut(self, rows: mx.array, batch: int) -> tuple[mx.array, mx.array]:
        """Cut projected rows, `batch · width` numbers, into queries `[batch, shared, group, dim]` and keys and values.

        The latter are `[2 · batch, shared, 1, dim]`: the keys of all rows, then the values of all rows.
        """
        if batch == 1 and self.group == 1:  # one operation less
            query, new = mx.split(rows.reshape(3, self.count, 1, self.dim), [1])
            return query, new
        query, new = mx.split(rows.reshape(batch, -1), [self.count * self.dim], axis=1)
        new = new.reshape(batch, 2, self.shared, self.dim).swapaxes(0, 1)
        return (
            query.reshape(batch, self.shared, self.group, self.dim),
            new.reshape(2 * batch, self.shared, 1, self.dim),
        )


class KvCache(Protocol):
    """Keeps the keys and values of a layer, and attends to them."""

    def attend(self, qkv: mx.array) -> mx.array:
        """Take projected rows of queries, keys and values, `[batch, width]`, and return `[batch, dim]`."""


class Attention(nn.Module):
    """Multi-head attention of one query in each row over what the cache holds."""

    def __init__(self, dim: int, heads: Heads) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, heads.width, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def __call__(self, x: mx.array, cache: KvCache, onto: mx.array) -> mx.array:
        """`[batch, dim]` in and out; the result is added to `onto`."""
        return project(self.out_proj, cache.attend(project(self.in_proj, x)), onto)


def attend(query: mx.array, keys: mx.array, values: mx.array, scale: float, seen: mx.array | None = None) -> mx.array:
    """Attend from queries `[batch, shared, group, head_dim]` to keys and values `[batch, shared, n, head_dim]`.

    Returns the queries' shape. `seen`, bool `[n]`, says which of the keys and values count; None: all.
    """
    if not on_cpu():
        return mx.fast.scaled_dot_product_attention(query, keys, values, scale=scale, mask=seen)
    # The same operations as MLX's own on the CPU, but with scale and mask inside the matrix product.
    mask = mx.array(0.0, query.dtype) if seen is None else mx.where(seen, 0.0, -math.inf).astype(query.dtype)
    scores = mx.addmm(mask, query, keys.swapaxes(-1, -2), alpha=scale)
    return mx.softmax(scores, axis=-1, precise=True) @ values


# ---- the conversation's ----------------------------------------------------------------------------------------------------


def capacities(context: int) -> list[int]:
    """List the capacities that a ring of `context` slots goes through: doublings, and `context` at the end."""
    sizes = [min(_FIRST_CAPACITY, context)]
    while sizes[-1] < context:
        sizes.append(min(2 * sizes[-1], context))
    return sizes


@dataclass(frozen=True)
class RingFormat:
    """The format of one model's rings.

    `heads` are those of the attention, and `dtype` is that of the activations. `bits` is 8, or None to keep keys and values in
    `dtype`. `batch` is the number of rows that are at the same position. `concat`: the rotation turns the pairs (i, i + D/2) of
    a head of width D, not (2i, 2i + 1).

    Raises
    ------
    InputError
        `bits` is another number, or `head_dim` does not fit groups of 32.
    """

    heads: Heads
    dtype: mx.Dtype
    bits: int | None = None
    batch: int = 1
    concat: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (None, 8):
            raise InputError(f"The key/value cache cannot have {self.bits!r} bits", "give 8, or leave it out")
        if self.bits and self.head_dim % 32:
            raise InputError(
                f"An 8-bit key/value cache needs heads of a multiple of 32 numbers, and these have {self.head_dim}."
            )

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.heads.dim

    @property
    def group_size(self) -> int:
        """How many values share a scale and a bias, with 8 bits."""
        return 64 if self.head_dim % 64 == 0 else 32

    def empty(self, capacity: int) -> KvRing:
        """Return a ring that holds nothing yet."""
        shape = (2 * self.batch, self.heads.shared, capacity)
        if self.bits is None:
            return [mx.zeros((*shape, self.head_dim), self.dtype)]
        groups = (*shape, self.head_dim // self.group_size)
        packed = mx.zeros((*shape, self.head_dim * self.bits // 32), mx.uint32)
        return [packed, mx.zeros(groups, self.dtype), mx.zeros(groups, self.dtype)]

    def grown(self, ring: KvRing, capacity: int) -> KvRing:
        """Return the ring with more slots behind its own, `capacity` in all."""
        more = self.empty(capacity - ring[0].shape[2])
        return [mx.concatenate([old, new], axis=2) for old, new in zip(ring, more, strict=True)]

    def nbytes(self, capacity: int) -> int:
        """Return the bytes of one layer's ring."""
        values = 2 * self.batch * self.heads.shared * capacity * self.head_dim
        if self.bits is None:
            return values * self.dtype.size
        return values * self.bits // 8 + 2 * (values // self.group_size) * self.dtype.size

    def turned(self, qkv: mx.array, factors: mx.array, batch: int) -> mx.array:
        """Rotate and scale projected rows `[batch, width]` by factors from `rotation`."""
        half = self.head_dim // 2
        lead = (3, self.heads.count, 1) if factors.ndim == 6 else (batch, -1)
        if self.concat:
            pairs = qkv.reshape(*lead, 2, half)
            swapped = pairs[..., ::-1, :]
        else:
            pairs = qkv.reshape(*lead, half, 2)
            swapped = pairs[..., ::-1]
        return (pairs * factors[0] + swapped * factors[1]).astype(qkv.dtype)

    def unpacked(self, ring: KvRing) -> mx.array:
        """Return the keys and values of a ring as floats."""
        if self.bits is None:
            return ring[0]
        packed, scales, biases = ring
        return mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self.bits)

    def store(self, ring: KvRing, new: mx.array, slot: mx.array) -> KvRing:
        """Put keys and values, `[2 · batch, shared, 1, head_dim]`, into slot `slot`, int32 `[1]`."""
        parts = [new] if self.bits is None else mx.quantize(new, group_size=self.group_size, bits=self.bits)
        return [mx.slice_update(old, part, slot, axes=(2,)) for old, part in zip(ring, parts, strict=True)]

    def attend(self, query: mx.array, ring: KvRing, seen: mx.array) -> mx.array:
        """Attend from a query, which is scaled already, to the slots that are seen.

        Queries and result are `[batch, shared, group, head_dim]`; `seen` is bool `[capacity]`.
        """
        if self.bits is None:
            keys, values = mx.split(ring[0], 2)
            return attend(query, keys, values, 1.0, seen)
        (keys, key_scales, key_biases), (values, scales, biases) = zip(
            *(mx.split(part, 2) for part in ring), strict=True
        )
        group, bits = self.group_size, self.bits
        scores = mx.quantized_matmul(query, keys, key_scales, key_biases, transpose=True, group_size=group, bits=bits)
        weights = mx.softmax(mx.where(seen, scores, -math.inf), axis=-1, precise=True)
        return mx.quantized_matmul(weights, values, scales, biases, transpose=False, group_size=group, bits=bits)


def rotation(position: int, form: RingFormat, max_period: float, *, alone: bool = True) -> npt.NDArray[np.float32]:
    """Return the factors that rotate and scale the queries and keys of one position.

    The result is `[2, heads, head_dim / 2, 2]` float32, or `[2, heads, 2, head_dim / 2]` with `form.concat`: factors of each
    pair, and of the pair swapped; for all heads of queries, keys and values, or `heads` is `[3, 1, 1]` if there are as many of
    each and the position is `alone` in its step. Queries and keys get the interleaved rotary embedding (Su et al. 2021), pair i
    by the angle `position · max_period^(−2i / head_dim)`. The queries' factors include attention's `1 / √head_dim`. Values
    stay as they are. The angle is computed and reduced in float64, so it is as exact after a week as at the start.
    """
    head_dim, heads = form.head_dim, form.heads
    angle = position * max_period ** (-2.0 * np.arange(head_dim // 2, dtype=np.float64) / head_dim)
    angle %= 2 * math.pi
    factors = np.zeros((2, 3, head_dim // 2, 2))
    factors[0] = np.cos(angle)[:, None]
    factors[1] = np.sin(angle)[:, None] * [-1.0, 1.0]
    factors[:, 0] *= head_dim**-0.5
    factors[0, 2], factors[1, 2] = 1.0, 0.0
    if form.concat:
        factors = factors.swapaxes(2, 3)
    result: npt.NDArray[np.float32] = factors.astype(np.float32)
    if heads.group == form.batch == 1 and alone:
        return result[:, :, None, None]
    return np.repeat(result, [heads.count, heads.shared, heads.shared], axis=1)


def slots(position: int, context: int, rings: Sequence[KvRing]) -> npt.NDArray[np.int32]:
    """Return `[2]`: the slot of a position, and the last slot that the position sees."""
    return np.array([position % context, min(position, rings[0][0].shape[2] - 1)], np.int32)


class RingCache:
    """The key/value cache of one layer at one position of a conversation. `attend` replaces `ring` by the new one.

    The position is stored in `slot`, int32 `[1]`, and sees the slots where `seen`, bool `[capacity]`, is true; rows that see
    different ones have `[batch, 1, 1, capacity]`. `factors` are from `rotation`, or one of them for each row,
    `[2, batch, …]`.
    """

    def __init__(self, ring: KvRing, form: RingFormat, slot: mx.array, seen: mx.array, factors: mx.array) -> None:
        self.ring = ring
        self._form = form
        self._slot = slot
        self._seen = seen
        self._factors = factors

    def attend(self, qkv: mx.array) -> mx.array:
        """Take projected rows, `[batch, width]`, store their keys and values, and return `[batch, dim]`."""
        form, factors, batch = self._form, self._factors, qkv.shape[0]
        turned = form.turned(qkv, factors, batch)
        query, new = form.heads.cut(turned, batch)
        self.ring = form.store(self.ring, new, self._slot)
        return form.attend(query, self.ring, self._seen).astype(qkv.dtype).reshape(batch, -1)


def ring_caches(rings: Sequence[KvRing], form: RingFormat, slot: mx.array, factors: mx.array) -> list[RingCache]:
    """Make the key/value caches of one position, one per layer. `slot` is from `slots`, `factors` from `rotation`."""
    seen = mx.arange(rings[0][0].shape[2]) <= slot[1]
    return [RingCache(ring, form, slot[:1], seen, factors) for ring in rings]


def row_caches(
    rings: Sequence[KvRing], form: RingFormat, slot: mx.array, reach: mx.array, factors: mx.array
) -> list[RingCache]:
    """Make the key/value caches of one step of rows that began at different steps, one per layer.

    All rows store the step in `slot`, int32 `[1]`. A row sees the newest `reach + 1` steps, int32 `[batch]`: its own.
    `factors` `[2, batch, …]` are from `rotation`, for the position of each row.
    """
    capacity = rings[0][0].shape[2]
    # How many steps ago a slot was written. One that was never written is older than any step.
    age = (slot - mx.arange(capacity)) % capacity
    seen = (age <= reach[:, None])[:, None, None]
    return [RingCache(ring, form, slot, seen, factors) for ring in rings]


class RingsCache:
    """The key/value caches of one layer, for one position of each of several conversations, whose rings are of one size.

    `rings` has one ring for each conversation, and `attend` replaces them. `slots`, int32 `[conversations, 2]`, and `factors`,
    `[2, conversations, …]`, are those of each position, from `slots` and `rotation`.
    """

    def __init__(self, rings: Sequence[KvRing], form: RingFormat, slots: mx.array, factors: mx.array) -> None:
        self.rings = list(rings)
        self._form = form
        self._factors = factors
        order = mx.arange(rings[0][0].shape[2])
        own = [row.reshape(-1) for row in mx.split(slots, len(rings))]
        self._places = [(row[:1], order <= row[1]) for row in own]

    def attend(self, qkv: mx.array) -> mx.array:
        """Take projected rows, one of each conversation, store their keys and values, and return `[conversations, dim]`."""
        form, count = self._form, qkv.shape[0]
        query, new = form.heads.cut(form.turned(qkv, self._factors, count), count)
        new = new.reshape(2, count, form.heads.shared, 1, form.head_dim)
        rows = []
        queries, news = mx.split(query, count), mx.split(new, count, axis=1)
        for i, (slot, seen) in enumerate(self._places):
            self.rings[i] = form.store(self.rings[i], news[i].squeeze(1), slot)
            rows.append(form.attend(queries[i], self.rings[i], seen))
        return mx.concatenate(rows).astype(qkv.dtype).reshape(count, -1)


class PrefillCache:
    """The key/value cache of one layer for several positions at once, which come first in a ring that has not turned.

    `begin` is the number of positions in the ring before, and `factors` `[T, 2, …]` are from `rotation`, for each position.
    """

    def __init__(self, ring: KvRing, form: RingFormat, begin: int, factors: mx.array) -> None:
        self.ring = ring
        self._form = form
        self._begin = begin
        self._factors = factors

    def attend(self, qkv: mx.array) -> mx.array:
        """Take projected rows, `[T, width]`, store their keys and values, and return `[T, dim]`."""
        form, count = self._form, qkv.shape[0]
        turned = form.turned(qkv, self._factors.swapaxes(0, 1), count)
        query, new = form.heads.cut(turned, count)
        # [2 · T, shared, 1, head_dim] to [2, shared, T, head_dim]
        new = new.reshape(2, count, form.heads.shared, form.head_dim).swapaxes(1, 2)
        self.ring = form.store(self.ring, new, mx.array([self._begin]))
        end = self._begin + count
        keys, values = mx.split(form.unpacked([part[:, :, :end] for part in self.ring]), 2)
        scores = query.swapaxes(0, 1).reshape(1, form.heads.shared, -1, form.head_dim) @ keys.swapaxes(-1, -2)
        seen = mx.arange(end) <= mx.repeat(mx.arange(self._begin, end), form.heads.group)[:, None]
        weights = mx.softmax(mx.where(seen, scores, -math.inf), axis=-1, precise=True)
        result = (weights @ values).reshape(form.heads.shared, count, -1)
        return result.swapaxes(0, 1).reshape(count, -1).astype(qkv.dtype)


# ---- the step's ------------------------------------------------------------------------------------------------------------


class StepCache:
    """The key/value cache of one layer in the depformer, for the codebooks of one step. It has no window and no positions."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._seen: mx.array | None = None

    def attend(self, qkv: mx.array) -> mx.array:
        """Take projected rows, `[batch, width]`, and attend from them to all rows so far; return `[batch, dim]`."""
        heads, batch = self._heads, qkv.shape[0]
        query, new = heads.cut(qkv, batch)
        if self._seen is None:
            self._seen = new
            if heads.group == 1:  # attention over one value is that value
                return qkv[:, 2 * heads.count * heads.dim :]
        else:
            self._seen = mx.concatenate([self._seen, new], axis=2)
        keys, values = mx.split(self._seen, 2)
        return attend(query, keys, values, heads.dim**-0.5).reshape(batch, -1)


# ---- to what is given for the whole conversation ---------------------------------------------------------------------------


class CrossAttention(nn.Module):
    """Attention from each position to a source that does not change, without rotation and mask."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def prepare(self) -> None:
        """Lay the weights out for the steps: of `in_proj`, they use only the queries'."""
        (stack,) = lay_out(RowProjection, [self.in_proj])
        self._queries = stack.first(self.out_proj.weight.shape[0])

    def read(self, source: mx.array) -> tuple[mx.array, mx.array]:
        """Make the keys and values of a source `[batch, T, dim]`, each `[batch, heads, T, head_dim]`. Once a conversation."""
        batch, length, dim = source.shape
        rows = project(self.in_proj, source.reshape(batch * length, dim)).reshape(batch, length, 3, self._heads, -1)
        keys, values = (rows[:, :, i].swapaxes(1, 2) for i in (1, 2))
        return keys, values

    def __call__(self, x: mx.array, source: tuple[mx.array, mx.array], onto: mx.array) -> mx.array:
        """`[batch, dim]` in and out; the result is added to `onto`. `source` is from `read`."""
        batch, dim = x.shape
        query = self._queries(x).reshape(batch, self._heads, 1, dim // self._heads)
        result = attend(query, *source, (dim // self._heads) ** -0.5)
        return project(self.out_proj, result.reshape(batch, dim), onto)
