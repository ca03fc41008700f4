"""The parameters of a model: their names, as in the published MLX checkpoints, and their shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .architecture import Architecture

CONDITIONS = "condition_provider."  # what the names of the conditions' parameters begin with


@dataclass(frozen=True)
class Parameter:
    """A parameter: the module that it belongs to, and what it is called there, "weight" mostly.

    A "linear" layer and a "table" of embeddings are matrices, and may be packed; "other" is as it is.
    """

    module: str
    part: str
    shape: tuple[int, ...]
    kind: Literal["linear", "table", "other"]

    @property
    def name(self) -> str:
        """Its name in a checkpoint."""
        return f"{self.module}.{self.part}"


def parameters(config: Architecture, hidden: int | None = None, depformer_hidden: int | None = None) -> list[Parameter]:
    """List the parameters of a model.

    `hidden` and `depformer_hidden` are the feed-forward widths, by default those of the configuration.
    """
    return list(_parameters(config, hidden or config.hidden, depformer_hidden or config.depformer_hidden))


def _parameters(config: Architecture, hidden: int, depformer_hidden: int) -> Iterator[Parameter]:
    dim, rows = config.dim, config.text_card + 1
    yield from _embedding("text_emb", rows, dim, demuxed=config.demux_second_stream)
    for k in range(config.n_q):
        yield from _embedding(f"audio_embs.{k}", config.card + 1, dim)
    width = _projected(dim, config.num_heads, config.kv_repeat)
    yield from _layers("transformer", config.num_layers, dim, width, hidden, cross=config.cross_attention)
    yield Parameter("out_norm", "weight", (dim,), "other")
    yield _linear("text_linear", config.text_card_out or config.text_card, dim)
    for k in range(config.dep_q):
        yield from _slice(config, k, depformer_hidden)
    for i in range(config.extra_heads_num_heads):
        yield _linear(f"extra_heads.{i}", config.extra_heads_dim, dim)
    for name, conditioner in config.conditioners.items():
        module = f"{CONDITIONS}conditioners.{name}"
        if conditioner.values is not None:
            yield Parameter(f"{module}.embed", "weight", (conditioner.rows + 1, conditioner.dim), "table")
        yield _linear(f"{module}.output_proj", dim, conditioner.dim)
        yield Parameter(module, "learnt_padding", (1, 1, dim), "other")


def _slice(config: Architecture, k: int, hidden: int) -> Iterator[Parameter]:
    """List the depformer's parameters for one codebook, without those that it shares with a codebook before it."""
    module, width = f"depformer.slices.{k}", config.depformer_dim
    rows = (config.text_card if k == 0 else config.card) + 1
    demuxed = k == 0 and config.demux_second_stream
    yield from _embedding(f"{module}.emb", rows, width, config.depformer_low_rank_embeddings, demuxed=demuxed)
    if config.slices.index(config.slices[k]) == k:
        yield _linear(f"{module}.linear_in", width, config.dim)
        projected = _projected(width, config.depformer_num_heads, config.depformer_group)
        yield from _layers(f"{module}.transformer", config.depformer_num_layers, width, projected, hidden)
    yield _linear(f"{module}.linear_out", config.card, width)
    if config.depformer_norm is not None:
        yield from (Parameter(f"{module}.norm", part, (width,), "other") for part in ("weight", "bias"))


def _embedding(
    module: str, rows: int, width: int, rank: int | None = None, *, demuxed: bool = False
) -> Iterator[Parameter]:
    yield Parameter(module, "weight", (rows, rank or width), "table")
    if demuxed:
        yield from (_linear(f"{module}.{part}", width, rank or width) for part in ("out1", "out2"))
    if rank is not None:  # where there are two streams, the file holds this matrix, too, and nothing uses it
        yield _linear(f"{module}.low_rank", width, rank)


def _layers(
    module: str, count: int, dim: int, projected: int, hidden: int, *, cross: bool = False
) -> Iterator[Parameter]:
    for i in range(count):
        layer = f"{module}.layers.{i}"
        yield from (Parameter(f"{layer}.{norm}", "weight", (dim,), "other") for norm in ("norm1", "norm2"))
        yield _linear(f"{layer}.self_attn.in_proj", projected, dim)
        yield _linear(f"{layer}.self_attn.out_proj", dim, dim)
        yield _linear(f"{layer}.gating.linear_in", 2 * hidden, dim)
        yield _linear(f"{layer}.gating.linear_out", dim, hidden)
        if cross:
            yield from (Parameter(f"{layer}.norm_cross", part, (dim,), "other") for part in ("weight", "bias"))
            yield _linear(f"{layer}.cross_attention.in_proj", 3 * dim, dim)
            yield _linear(f"{layer}.cross_attention.out_proj", dim, dim)


def _linear(module: str, out: int, columns: int) -> Parameter:
    return Parameter(module, "weight", (out, columns), "linear")


def _projected(dim: int, heads: int, group: int) -> int:
    """Return the width of a projected row: queries, keys and values."""
    return dim + 2 * (dim // heads) * (heads // group)
