"""The transformer, which both parts of the model use: layers of attention and a gated feed-forward.

Everything here computes one step at a time: activations are `[batch, dim]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .attention import Attention, CrossAttention, Heads, KvCache, Source
from .layers import normalize, project

NORM_EPS = 1e-8
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class TransformerShape:
    """The sizes of a `Transformer`."""

    dim: int
    num_layers: int
    hidden: int
    heads: Heads
    cross: bool = False


class Gating(nn.Module):
    """The gated feed-forward: `linear_out(silu(a) · b)`, where `a, b` are the halves of `linear_in(x)`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array, onto: mx.array) -> mx.array:
        """`[batch, dim]` in and out; the result is added to `onto`."""
        a, b = mx.split(project(self.linear_in, x), 2, axis=-1)
        return project(self.linear_out, a * mx.sigmoid(a) * b, onto)


class Layer(nn.Module):
    """One layer: `x += attn(norm1(x))`, with cross-attention `x += cross(norm_cross(x))`, then `x += gating(norm2(x))`."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        dim = shape.dim
        self.norm1 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.norm2 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.self_attn = Attention(dim, shape.heads)
        self.gating = Gating(dim, shape.hidden)
        if shape.cross:
            self.norm_cross = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
            self.cross_attention = CrossAttention(dim, shape.heads.count)

    def __call__(self, x: mx.array, cache: KvCache, source: Source | None = None) -> mx.array:
        """`[batch, dim]` in and out. `source` is what the cross-attention sees, None without one."""
        x = self.self_attn(normalize(self.norm1, x), cache, x)
        if source is not None:
            x = self.cross_attention(self.norm_cross(x), source, x)
        return self.gating(normalize(self.norm2, x), x)


class Transformer(nn.Module):
    """A stack of layers, without a final norm."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.layers = [Layer(shape) for _ in range(shape.num_layers)]

    def __call__(self, x: mx.array, caches: Sequence[KvCache], sources: Sequence[Source] | None = None) -> mx.array:
        """`[batch, dim]` in and out; `caches` has one per layer, and so has `sources` where there is cross-attention."""
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            x = layer(x, cache, sources[i] if sources else None)
        return x
