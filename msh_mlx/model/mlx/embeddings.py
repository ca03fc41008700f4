"""Embeddings that are more than a table of rows."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .layers import Table, lay_out, project


class Rows(nn.Module):
    """A table of rows, `[rows, rank]`, from which an embedding is made. It can be packed, as other weights can."""

    def __init__(self, rows: int, rank: int) -> None:
        super().__init__()
        self.weight = mx.zeros((rows, rank))

    def pack(self, bits: int, group_size: int) -> None:
        """Hold the table with so many bits a number, and a scale and a bias for each group of a row."""
        self.bits, self.group_size = bits, group_size
        self.weight, self.scales, self.biases = mx.quantize(self.weight, group_size, bits)


class LowRankEmbedding(Rows):
    """A table of short rows, `[rows, rank]`, and one matrix that makes them `width` long."""

    def __init__(self, rows: int, rank: int, width: int) -> None:
        super().__init__(rows, rank)
        self.low_rank = nn.Linear(rank, width, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return the embeddings of tokens `[n]`: `[n, width]`; of −1, zeros."""
        x = project(self.low_rank, self._table(mx.maximum(tokens, 0)))
        return mx.where((tokens >= 0)[:, None], x, 0)


class DemuxedEmbedding(Rows):
    """The embedding of two text tokens in one number x: `t1 = x mod rows`, `t2 = x div rows − 1`.

    It is `out1 · E[t1] + out2 · E[t2]`, without the second term where t2 is −1. `unused`: the file also holds a matrix
    `low_rank`, which nothing uses.
    """

    def __init__(self, rows: int, rank: int, width: int, *, unused: bool = False) -> None:
        super().__init__(rows, rank)
        self._count = rows
        self.out1 = nn.Linear(rank, width, bias=False)
        self.out2 = nn.Linear(rank, width, bias=False)
        if unused:
            self.low_rank = nn.Linear(rank, width, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return the embeddings of numbers `[..., ]`: `[..., width]`; of −1, zeros."""
        flat = tokens.reshape(-1).astype(mx.int32)  # a sampled token is unsigned, and −1 stands for none
        x = mx.maximum(flat, 0)
        second = x // self._count - 1
        first = project(self.out1, self._table(x % self._count))
        more = project(self.out2, self._table(mx.maximum(second, 0)))
        both = first + mx.where((second >= 0)[:, None], more, 0)
        return mx.where((flat >= 0)[:, None], both, 0).reshape(*tokens.shape, -1)


def look_up(embedding: nn.Module) -> Callable[[mx.array], mx.array]:
    """Lay out an embedding for the steps. Return the function that looks up tokens `[…]`, and returns `[…, width]`."""
    (table,) = lay_out(Table, [embedding])
    if isinstance(embedding, LowRankEmbedding | DemuxedEmbedding):
        embedding._table = table
        return embedding
    return table
