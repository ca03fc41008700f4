"""The transformer, which both parts of the model use: layers of attention and a gated feed-forward.

Everything here computes one step at a time: activations are `[1, dim]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .attention import Attention, KvCache
from .layers import normalize, project

NORM_EPS = 1e-8


class Gating(nn.Module):
    """The gated feed-forward: `linear_out(silu(a) · b)`, where `a, b` are the halves of `linear_in(x)`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array, onto: mx.array) -> mx.array:
        """`[1, dim]` in and out; the result is added to `onto`."""
        a, b = mx.split(project(self.linear_in, x), 2, axis=-1)
        return project(self.linear_out, a * mx.sigmoid(a) * b, onto)


class Layer(nn.Module):
    """One layer: `x += attn(norm1(x))`, then `x += gating(norm2(x))`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.norm2 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.self_attn = Attention(dim)
        self.gating = Gating(dim, hidden)

    def __call__(self, x: mx.array, cache: KvCache) -> mx.array:
        """`[1, dim]` in and out."""
        x = self.self_attn(normalize(self.norm1, x), cache, x)
        return self.gating(normalize(self.norm2, x), x)


@dataclass(frozen=True)
class TransformerShape:
    """The sizes of a `Transformer`."""

    dim: int
    num_layers: int
    hidden: int


class Transformer(nn.Module):
    """A stack of layers, without a final norm."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.layers = [Layer(shape.dim, shape.hidden) for _ in range(shape.num_layers)]

    def __call__(self, x: mx.array, caches: Sequence[KvCache]) -> mx.array:
        """`[1, dim]` in and out; `caches` has one per layer."""
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache)
        return x
