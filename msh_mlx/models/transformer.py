"""The transformer that both parts of the model are made of: attention, gated feed-forward, layers.

Everything here handles one step at a time: activations are `[batch, 1, dim]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

NORM_EPS = 1e-8


class Cache(Protocol):
    """Where a layer's keys and values go, and which of them the query sees."""

    def update(self, position: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store one step's keys and values (`[batch, heads, 1, head_dim]`), return all that its query sees."""


class StepCache:
    """Keys and values of the few steps of one depformer pass: no window, no position, gone afterwards."""

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update(self, position: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append one step and return everything so far, `[batch, heads, position + 1, head_dim]`."""
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        return keys, values


def rotation(position: int, head_dim: int, max_period: float) -> mx.array:
    """Describe the rotary embedding of one position, `[head_dim / 2]` float32, for `mx.fast.rope`'s `freqs`.

    The angle `position · max_period^(−2i / head_dim)` is computed in float64 and reduced to (0, 2π] before it becomes
    float32, so it is as exact after a week as at the start; `freqs` are its inverse, used with offset 1.
    """
    angle = position * max_period ** (-2.0 * np.arange(head_dim // 2, dtype=np.float64) / head_dim)
    angle = angle % (2 * math.pi)
    angle[angle == 0] = 2 * math.pi
    return mx.array((1.0 / angle).astype(np.float32))


class Attention(nn.Module):
    """Multi-head attention of one query over what the cache returns."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def __call__(self, x: mx.array, cache: Cache, position: int, freqs: mx.array | None) -> mx.array:
        """`x` is `[batch, 1, dim]`, as is the result; `freqs` as from `rotation`, or None for no positional embedding."""
        batch, _, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.in_proj(x).reshape(batch, 3, self.num_heads, 1, head_dim)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        if freqs is not None:
            q = mx.fast.rope(q, head_dim, traditional=True, base=None, scale=1.0, offset=1, freqs=freqs)
            k = mx.fast.rope(k, head_dim, traditional=True, base=None, scale=1.0, offset=1, freqs=freqs)
        keys, values = cache.update(position, k, v)
        out = mx.fast.scaled_dot_product_attention(q, keys, values, scale=head_dim**-0.5)
        return self.out_proj(out.reshape(batch, 1, dim))


class Gating(nn.Module):
    """The gated feed-forward: `linear_out(silu(a) · b)` with `a, b` the halves of `linear_in(x)`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """`[batch, 1, dim]` in and out."""
        a, b = mx.split(self.linear_in(x), 2, axis=-1)
        return self.linear_out(nn.silu(a) * b)


class Layer(nn.Module):
    """`x += attn(norm1(x))`, `x += gating(norm2(x))`."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.norm2 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.self_attn = Attention(dim, num_heads)
        self.gating = Gating(dim, hidden)

    def __call__(self, x: mx.array, cache: Cache, position: int, freqs: mx.array | None) -> mx.array:
        """`[batch, 1, dim]` in and out."""
        x = x + self.self_attn(self.norm1(x), cache, position, freqs)
        return x + self.gating(self.norm2(x))


@dataclass(frozen=True)
class TransformerShape:
    """What it takes to build a `Transformer`; `max_period` None means no positional embedding."""

    dim: int
    num_layers: int
    num_heads: int
    hidden: int
    max_period: float | None


class Transformer(nn.Module):
    """A stack of layers, without a final norm."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.layers = [Layer(shape.dim, shape.num_heads, shape.hidden) for _ in range(shape.num_layers)]

    def __call__(self, x: mx.array, caches: list[Cache], position: int) -> mx.array:
        """`x` is `[batch, 1, dim]`, as is the result; one cache a layer; `position` is that of the step."""
        freqs = None
        if self.shape.max_period is not None:
            freqs = rotation(position, self.shape.dim // self.shape.num_heads, self.shape.max_period)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache, position, freqs)
        return x
