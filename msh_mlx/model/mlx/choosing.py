"""Choose tokens from logits, as samplers say. Random numbers are an argument, so that all of them can be drawn at once."""

from __future__ import annotations

import math

import mlx.core as mx

from ..sampling import COLDEST, SMALLEST_SHARE, Sampler, TextSampler


def noise_size(sampler: Sampler, vocabulary: int) -> int:
    """Return how many random numbers it takes to choose a token from `vocabulary` tokens."""
    if sampler.greedy:
        return 0
    return min(sampler.top_k, vocabulary) or vocabulary


def choose(sampler: Sampler, logits: mx.array, noise: mx.array) -> mx.array:
    """Choose tokens `[batch]` uint32.

    `logits` are `[batch, vocabulary]`. `noise`, `[noise_size]` or `[batch, noise_size]`, are independent draws from the
    standard Gumbel distribution. The largest sum of logit and noise is a draw from the softmax (Gumbel-max).
    """
    if sampler.greedy:
        return mx.argmax(logits, axis=-1)
    logits = logits.astype(mx.float32) * (1.0 / max(sampler.temperature, COLDEST))
    tokens: mx.array | None = None
    if 0 < sampler.top_k < logits.shape[-1]:
        tokens = mx.argpartition(logits, -sampler.top_k, axis=-1)[:, -sampler.top_k :]
        logits = mx.take_along_axis(logits, tokens, axis=-1)
    if sampler.top_p < 1:
        order = mx.argsort(-logits, axis=-1)
        logits = mx.take_along_axis(logits, order, axis=-1)
        tokens = order if tokens is None else mx.take_along_axis(tokens, order, axis=-1)
        probabilities = mx.softmax(logits, axis=-1, precise=True)
        likelier = mx.cumsum(probabilities, axis=-1, inclusive=False)
        logits = mx.where(likelier < max(sampler.top_p, SMALLEST_SHARE), logits, -math.inf)
    if sampler.min_p > 0:
        least = mx.max(logits, axis=-1, keepdims=True) + math.log(sampler.min_p)
        logits = mx.where(logits >= least, logits, -math.inf)
    drawn = mx.argmax(logits + noise, axis=-1, keepdims=True)
    if tokens is not None:
        drawn = mx.take_along_axis(tokens, drawn, axis=-1)
    return drawn.reshape(-1)


def adjusted(sampler: TextSampler, logits: mx.array, recent: mx.array, padding_id: int) -> mx.array:
    """Apply penalty and bonus to logits `[1, vocabulary]`. The result is float32 if there is either.

    `recent`, int32 `[recent_size]`, holds the tokens to penalize, in any order, and is filled up with `vocabulary`.
    """
    vocabulary = logits.shape[1]
    if sampler.recent_size or sampler.padding_bonus:
        logits = logits.astype(mx.float32)  # in float16 the largest penalty or bonus would give infinity
    if sampler.recent_size:
        said = mx.zeros((1, vocabulary + 1), mx.bool_)
        said = mx.put_along_axis(said, recent[None], mx.array(True), axis=1)[:, :vocabulary]
        penalized = mx.where(logits > 0, logits / sampler.repetition_penalty, logits * sampler.repetition_penalty)
        logits = mx.where(said, penalized, logits)
    if sampler.padding_bonus:
        logits = mx.where(mx.arange(vocabulary) == padding_id, logits + sampler.padding_bonus, logits)
    return logits
