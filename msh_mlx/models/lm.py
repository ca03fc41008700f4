"""The Moshi language model: a temporal transformer over steps of 80 ms, and a depformer over the codebooks of a step.

Parameters are named as in the published MLX checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..config import LmConfig
from .cache import KeyValueRing
from .transformer import NORM_EPS, Cache, StepCache, Transformer, TransformerShape

Sample = Callable[[mx.array, int], mx.array]


class DepformerSlice(nn.Module):
    """The depformer's weights for one codebook."""

    def __init__(self, config: LmConfig, k: int, hidden: int) -> None:
        super().__init__()
        width = config.depformer_dim
        self.emb = nn.Embedding((config.text_card if k == 0 else config.card) + 1, width)
        self.linear_in = nn.Linear(config.dim, width, bias=False)
        self.linear_out = nn.Linear(width, config.card, bias=False)
        self.transformer = Transformer(
            TransformerShape(width, config.depformer_num_layers, config.depformer_num_heads, hidden, None)
        )


class Depformer(nn.Module):
    """Predicts the `dep_q` codes of one step, one after the other, each with weights of its own."""

    def __init__(self, config: LmConfig, hidden: int) -> None:
        super().__init__()
        self.slices = [DepformerSlice(config, k, hidden) for k in range(config.dep_q)]

    def __call__(self, h: mx.array, text_token: mx.array, sample: Sample) -> mx.array:
        """Sample the codes of one step.

        `h` is the temporal output `[batch, 1, dim]`, `text_token` the token `[batch]` int32 sampled in this step,
        `sample(logits [batch, card], k) -> [batch]` int32 chooses codebook k's code. The result is `[batch, dep_q]` int32.
        """
        caches: list[Cache] = [StepCache() for _ in self.slices[0].transformer.layers]
        previous, codes = text_token, []
        for k, part in enumerate(self.slices):
            x = part.linear_in(h) + part.emb(previous)[:, None]
            x = part.transformer(x, caches, k)
            previous = sample(part.linear_out(x)[:, 0], k)
            codes.append(previous)
        return mx.stack(codes, axis=1)


class Lm(nn.Module):
    """The whole model. Holds weights only: caches and positions are arguments.

    `hidden` and `depformer_hidden` are the feed-forward widths, by default those of the configuration.
    """

    def __init__(self, config: LmConfig, hidden: int | None = None, depformer_hidden: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.text_emb = nn.Embedding(config.text_card + 1, config.dim)
        self.audio_embs = [nn.Embedding(config.card + 1, config.dim) for _ in range(config.n_q)]
        self.transformer = Transformer(
            TransformerShape(
                config.dim, config.num_layers, config.num_heads, hidden or config.hidden, config.max_period
            )
        )
        self.out_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.text_linear = nn.Linear(config.dim, config.text_card, bias=False)
        self.depformer = Depformer(config, depformer_hidden or config.depformer_hidden)

    def make_cache(self) -> list[Cache]:
        """Make the empty state of one conversation: a ring of `context` steps a layer."""
        return [KeyValueRing(self.config.context) for _ in self.transformer.layers]

    def __call__(self, tokens: mx.array, caches: list[Cache], position: int) -> tuple[mx.array, mx.array]:
        """One step of the temporal transformer.

        Parameters
        ----------
        tokens
            `[batch, 1 + n_q]` int32: text, own codes, the user's codes. `text_card` and `card` mean "start", −1 adds nothing.
        caches
            As from `make_cache`; updated.
        position
            How many steps these caches have seen.

        Returns
        -------
        tuple
            The output after `out_norm`, `[batch, 1, dim]`, and the text logits, `[batch, text_card]`.
        """
        rows = mx.maximum(tokens, 0)
        embeddings = [self.text_emb, *self.audio_embs]
        parts = mx.stack([embedding(rows[:, i]) for i, embedding in enumerate(embeddings)], axis=1)
        x = mx.where((tokens >= 0)[:, :, None], parts, 0).sum(axis=1, keepdims=True)
        h = self.out_norm(self.transformer(x, caches, position))
        return h, self.text_linear(h)[:, 0]
