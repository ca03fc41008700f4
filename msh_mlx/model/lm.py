"""The Moshi language model: a temporal transformer over steps of 80 ms, and a depformer over the codebooks of a step.

Parameters are named as in the published MLX checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .attention import KvCache, RingFormat, StepCache
from .config import LmConfig
from .layers import Projection, Table, lay_out, lay_out_linear, normalize, project
from .transformer import NORM_EPS, Transformer, TransformerShape

Choose = Callable[[mx.array, int], mx.array]


class DepformerSlice(nn.Module):
    """The depformer's weights for one codebook."""

    def __init__(self, config: LmConfig, k: int, hidden: int) -> None:
        super().__init__()
        width = config.depformer_dim
        self.emb = nn.Embedding((config.text_card if k == 0 else config.card) + 1, width)
        self.linear_in = nn.Linear(config.dim, width, bias=False)
        self.linear_out = nn.Linear(width, config.card, bias=False)
        self.transformer = Transformer(TransformerShape(width, config.depformer_num_layers, hidden))


class Depformer(nn.Module):
    """Predicts the `dep_q` codes of one step, one after the other, each with its own weights."""

    def __init__(self, config: LmConfig, hidden: int) -> None:
        super().__init__()
        self._heads = config.depformer_num_heads
        self.slices = [DepformerSlice(config, k, hidden) for k in range(config.dep_q)]

    def prepare(self) -> None:
        """Lay the weights out for the steps."""
        # All slices have the input h: if they are stored alike, they are one matrix product.
        self._inputs = lay_out(Projection, [part.linear_in for part in self.slices])
        self._tables = [table for part in self.slices for table in lay_out(Table, [part.emb])]

    def __call__(self, h: mx.array, text_token: mx.array, choose: Choose) -> list[mx.array]:
        """Choose the codes of one step.

        `h` is the temporal transformer's output, `[1, dim]`. `text_token`, `[1]`, was chosen in this step.
        `choose(logits [1, card], k) -> [1]` chooses the code of codebook k, an integer. The result is `dep_q` arrays `[1]`.
        """
        caches = [StepCache(self._heads) for _ in self.slices[0].transformer.layers]
        heard = [
            part
            for inputs in self._inputs
            for part in mx.split(inputs(h), len(self.slices) // len(self._inputs), axis=1)
        ]
        previous, codes = text_token, []
        for k, (part, table) in enumerate(zip(self.slices, self._tables, strict=True)):
            x = part.transformer(heard[k] + table(previous), caches)
            previous = choose(project(part.linear_out, x), k)
            codes.append(previous)
        return codes


class Lm(nn.Module):
    """The whole model. It holds only weights: key/value caches and positions are arguments.

    `hidden` and `depformer_hidden` are the feed-forward widths, by default those of the configuration.
    """

    def __init__(self, config: LmConfig, hidden: int | None = None, depformer_hidden: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.text_emb = nn.Embedding(config.text_card + 1, config.dim)
        self.audio_embs = [nn.Embedding(config.card + 1, config.dim) for _ in range(config.n_q)]
        self.transformer = Transformer(TransformerShape(config.dim, config.num_layers, hidden or config.hidden))
        self.out_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.text_linear = nn.Linear(config.dim, config.text_card, bias=False)
        self.depformer = Depformer(config, depformer_hidden or config.depformer_hidden)
        self._prepared = False

    def prepare(self) -> None:
        """Lay the weights out for the steps. Call it after loading; weights must not be replaced afterwards."""
        if self._prepared:
            return
        self.depformer.prepare()
        (self._text_table,) = lay_out(Table, [self.text_emb])
        self._audio_tables = lay_out(Table, self.audio_embs)
        # The first row of each codebook in its table. A codebook has its own table, or all share one.
        in_a_table = self.config.n_q // len(self._audio_tables)
        self._rows = mx.array([k % in_a_table * (self.config.card + 1) for k in range(self.config.n_q)], mx.int32)
        lay_out_linear(self)
        mx.eval(self.parameters(), self._rows)
        self._prepared = True

    def named_parameters(self) -> list[tuple[str, mx.array]]:
        """List all weights with their published names."""
        return cast("list[tuple[str, mx.array]]", tree_flatten(self.parameters()))

    def ring_format(self, bits: int | None = None) -> RingFormat:
        """Return the format of each layer's ring. With `bits` 8 it takes about half the memory of bfloat16."""
        config = self.config
        return RingFormat(config.num_heads, config.dim // config.num_heads, self.out_norm.weight.dtype, bits)

    def __call__(self, tokens: mx.array, caches: Sequence[KvCache]) -> tuple[mx.array, mx.array]:
        """Run one step of the temporal transformer.

        Parameters
        ----------
        tokens
            `[1 + n_q]` int32: text, own codes, the user's codes. `text_card` and `card` mean "start", −1 adds nothing.
        caches
            One `RingCache` per layer. They are updated.

        Returns
        -------
        tuple
            The output after `out_norm`, `[1, dim]`, and the text logits, `[1, text_card]`.
        """
        rows = mx.maximum(tokens, 0)
        audio, count = rows[1:] + self._rows, len(self._audio_tables)
        # Each table looks up its codebooks: all of them, or one.
        parts = [table(share) for table, share in zip(self._audio_tables, mx.split(audio, count), strict=True)]
        parts.insert(0, self._text_table(rows[:1]))
        x = mx.where((tokens >= 0)[:, None], mx.concatenate(parts), 0).sum(axis=0, keepdims=True)
        h = normalize(self.out_norm, self.transformer(x, caches))
        return h, project(self.text_linear, h)
