"""The Moshi language model: a temporal transformer over steps of 80 ms, and a depformer over the codebooks of a step.

Parameters are named as in the published MLX checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..architecture import Architecture
from .attention import Heads, KvCache, RingFormat, Source, StepCache
from .embeddings import DemuxedEmbedding, LowRankEmbedding, look_up
from .layers import Projection, Table, lay_out, lay_out_linear, normalize, project
from .transformer import LAYER_NORM_EPS, NORM_EPS, Transformer, TransformerShape

Choose = Callable[[mx.array, int], mx.array]


class DepformerSlice(nn.Module):
    """The depformer's weights for one codebook, without those that it shares with a codebook before it."""

    def __init__(self, config: Architecture, k: int, shape: TransformerShape) -> None:
        super().__init__()
        width, rank = shape.dim, config.depformer_low_rank_embeddings
        rows = (config.text_card if k == 0 else config.card) + 1
        if k == 0 and config.demux_second_stream:
            self.emb: nn.Module = DemuxedEmbedding(rows, rank or width, width, unused=rank is not None)
        elif rank is not None:
            self.emb = LowRankEmbedding(rows, rank, width)
        else:
            self.emb = nn.Embedding(rows, width)
        if config.slices.index(config.slices[k]) == k:
            self.linear_in = nn.Linear(config.dim, width, bias=False)
            self.transformer = Transformer(shape)
        self.linear_out = nn.Linear(width, config.card, bias=False)
        if config.depformer_norm is not None:
            self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class Depformer(nn.Module):
    """Predicts the `dep_q` codes of one step, one after the other, each with its own weights."""

    def __init__(self, config: Architecture, hidden: int) -> None:
        super().__init__()
        width = config.depformer_dim
        heads = Heads(config.depformer_num_heads, width // config.depformer_num_heads, config.depformer_group)
        shape = TransformerShape(width, config.depformer_num_layers, hidden, heads)
        self._heads = heads
        self.slices = [DepformerSlice(config, k, shape) for k in range(config.dep_q)]
        # For each codebook, the number of the weights that it uses; and for each number, the codebook that has them.
        self._numbers = config.slices
        self._owners = [config.slices.index(number) for number in range(len(set(config.slices)))]

    def prepare(self) -> None:
        """Lay the weights out for the steps."""
        # All have the input h: if they are stored alike, they are one matrix product.
        self._inputs = lay_out(Projection, [self.slices[k].linear_in for k in self._owners])
        self._tables = [look_up(part.emb) for part in self.slices]

    def __call__(self, h: mx.array, text_token: mx.array, choose: Choose, count: int | None = None) -> list[mx.array]:
        """Choose the codes of one step.

        `h` is the temporal transformer's output, `[batch, dim]`. `text_token`, `[1]`, was chosen in this step; it is the same
        for all rows. `choose(logits [batch, card], k) -> [1]` chooses the code of codebook k, an integer. The result is
        `count` arrays `[1]`, by default `dep_q`.
        """
        caches = [StepCache(self._heads) for _ in self.slices[0].transformer.layers]
        heard = [
            part
            for inputs in self._inputs
            for part in mx.split(inputs(h), len(self._owners) // len(self._inputs), axis=1)
        ]
        previous, codes = text_token, []
        for k, (part, table) in enumerate(zip(self.slices[:count], self._tables[:count], strict=True)):
            number = self._numbers[k]
            x = self.slices[self._owners[number]].transformer(heard[number] + table(previous), caches)
            if "norm" in part:
                x = part.norm(x)
            previous = choose(project(part.linear_out, x), k)
            codes.append(previous)
        return codes


class Lm(nn.Module):
    """The whole model. It holds only weights: key/value caches and positions are arguments.

    `hidden` and `depformer_hidden` are the feed-forward widths, by default those of the configuration.
    """

    def __init__(self, config: Architecture, hidden: int | None = None, depformer_hidden: int | None = None) -> None:
        super().__init__()
        self.config = config
        dim, rows = config.dim, config.text_card + 1
        heads = Heads(config.num_heads, dim // config.num_heads, config.kv_repeat)
        shape = TransformerShape(dim, config.num_layers, hidden or config.hidden, heads, config.cross_attention)
        self._heads = heads
        self.text_emb = DemuxedEmbedding(rows, dim, dim) if config.demux_second_stream else nn.Embedding(rows, dim)
        self.audio_embs = [nn.Embedding(config.card + 1, dim) for _ in range(config.n_q)]
        self.transformer = Transformer(shape)
        self.out_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.text_linear = nn.Linear(dim, config.text_card_out or config.text_card, bias=False)
        if config.dep_q:
            self.depformer = Depformer(config, depformer_hidden or config.depformer_hidden)
        if config.extra_heads_num_heads:
            self.extra_heads = [
                nn.Linear(dim, config.extra_heads_dim, bias=False) for _ in range(config.extra_heads_num_heads)
            ]
        self._prepared = False

    def prepare(self) -> None:
        """Lay the weights out for the steps. Call it after loading; weights must not be replaced afterwards."""
        if self._prepared:
            return
        if self.config.dep_q:
            self.depformer.prepare()
        self._text_table = look_up(self.text_emb)
        self._audio_tables = lay_out(Table, self.audio_embs)
        # The first row of each codebook in its table. A codebook has its own table, or all share one.
        in_a_table = self.config.n_q // len(self._audio_tables)
        self._rows = mx.array([k % in_a_table * (self.config.card + 1) for k in range(self.config.n_q)], mx.int32)
        if self.config.cross_attention:
            for layer in self.transformer.layers:
                layer.cross_attention.prepare()
        lay_out_linear(self)
        mx.eval(self.parameters(), self._rows)
        self._prepared = True

    def named_parameters(self) -> list[tuple[str, mx.array]]:
        """List all weights with their published names."""
        return cast("list[tuple[str, mx.array]]", tree_flatten(self.parameters()))

    def ring_format(self, bits: int | None = None, batch: int = 1) -> RingFormat:
        """Return the format of each layer's ring. With `bits` 8 it takes about half the memory of bfloat16."""
        concat = self.config.positional_embedding == "rope_concat"
        return RingFormat(self._heads, self.out_norm.weight.dtype, bits, batch, concat)

    def read_source(self, source: mx.array) -> list[Source]:
        """Make what each layer's cross-attention sees of a source `[batch, T, dim]`. Once a conversation."""
        source = source.astype(self.out_norm.weight.dtype)
        self.prepare()
        return [layer.cross_attention.read(source) for layer in self.transformer.layers]

    def __call__(
        self,
        tokens: mx.array,
        caches: Sequence[KvCache],
        added: mx.array | None = None,
        sources: Sequence[Source] | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Run one step of the temporal transformer.

        Parameters
        ----------
        tokens
            `[batch, 1 + n_q]` int32, as for `embed`: text, own codes, the user's codes. `text_card` and `card` mean
            "start", −1 adds nothing.
        caches
            One `RingCache` per layer. They are updated.
        added
            `[batch, dim]`: what is added to the input. None: nothing.
        sources
            From `read_source`, for a model with cross-attention.

        Returns
        -------
        tuple
            The output after `out_norm`, `[batch, dim]`, and the text logits, `[batch, text_card_out]`.
        """
        h = self.run(self.embed(tokens), caches, added, sources)
        return h, project(self.text_linear, h)

    def heads(self, h: mx.array) -> list[mx.array]:
        """Return what the extra heads say of an output `[batch, dim]`, each `[batch, classes]` probabilities; [] without."""
        linears = self.extra_heads if self.config.extra_heads_num_heads else []
        return [mx.softmax(project(linear, h), axis=-1, precise=True) for linear in linears]

    def embed(self, tokens: mx.array) -> mx.array:
        """Sum the embeddings of columns `[batch, 1 + n_q]` int32: `[batch, dim]`. −1 adds nothing.

        A column alone may be `[1 + n_q]`, with fewer operations: `[1, dim]`.
        """
        rows = mx.maximum(tokens, 0)
        audio, count = rows[..., 1:] + self._rows, len(self._audio_tables)
        # Each table looks up its codebooks: all of them, or one.
        shares = mx.split(audio, count, axis=-1)
        parts = [table(share) for table, share in zip(self._audio_tables, shares, strict=True)]
        parts.insert(0, self._text_table(rows[..., :1]))
        cells = mx.where((tokens >= 0)[..., None], mx.concatenate(parts, axis=-2), 0)
        return cells.sum(axis=-2, keepdims=tokens.ndim == 1)

    def run(
        self,
        x: mx.array,
        caches: Sequence[KvCache],
        added: mx.array | None = None,
        sources: Sequence[Source] | None = None,
    ) -> mx.array:
        """Run the temporal transformer on embedded columns `[batch, dim]`. Return the output behind `out_norm`, as large."""
        if added is not None:
            x = x + added.astype(x.dtype)
        return normalize(self.out_norm, self.transformer(x, caches, sources))
