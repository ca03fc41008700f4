"""Choose tokens from logits, as samplers say. Random numbers are an argument, so that all of them can be drawn at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from ..sampling import COLDEST, SMALLEST_SHARE, Sampler, TextSampler


class Numbers(NamedTuple):
    """The numbers of a sampler: plain ones, or float32 arrays `[batch, 1]`, if each row has a sampler of its own.

    `warmth` is 1 / temperature, `top_p` the least probability that is kept, and `least` the logarithm of `min_p`.
    """

    warmth: float | mx.array
    top_p: float | mx.array
    least: float | mx.array
    penalty: float | mx.array = 1.0
    bonus: float | mx.array = 0.0


def numbers_of(sampler: Sampler) -> Numbers:
    """Return the numbers of a sampler."""
    least = math.log(sampler.min_p) if sampler.min_p > 0 else -math.inf
    numbers = Numbers(1.0 / max(sampler.temperature, COLDEST), max(sampler.top_p, SMALLEST_SHARE), least)
    if isinstance(sampler, TextSampler):
        numbers = numbers._replace(penalty=sampler.repetition_penalty, bonus=sampler.padding_bonus)
    return numbers


def operations(sampler: Sampler) -> tuple[int | bool, ...]:
    """Return by which operations a sampler chooses. Samplers with the same ones differ only in their numbers."""
    kept = (0, False, False) if sampler.greedy else (sampler.top_k, sampler.top_p < 1, sampler.min_p > 0)
    more = (sampler.recent_size, sampler.padding_bonus != 0) if isinstance(sampler, TextSampler) else ()
    return sampler.greedy, *kept, *more


def noise_size(sampler: Sampler, vocabulary: int) -> int:
    """Return how many random numbers it takes to choose a token from `vocabulary` tokens."""
    if sampler.greedy:
        return 0
    return min(sampler.top_k, vocabulary) or vocabulary


def choose(sampler: Sampler, logits: mx.array, noise: mx.array, numbers: Numbers | None = None) -> mx.array:
    """Choose tokens `[batch]` uint32.

    `logits` are `[batch, vocabulary]`. `noise`, `[noise_size]` or `[batch, noise_size]`, are independent draws from the
    standard Gumbel distribution. The largest sum of logit and noise is a draw from the softmax (Gumbel-max). `numbers` take the
    place of the sampler's own.
    """
    if sampler.greedy:
        return mx.argmax(logits, axis=-1)
    numbers = numbers or numbers_of(sampler)
    logits = logits.astype(mx.float32) * numbers.warmth
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
        logits = mx.where(likelier < numbers.top_p, logits, -math.inf)
    if sampler.min_p > 0:
        least = mx.max(logits, axis=-1, keepdims=True) + numbers.least
        logits = mx.where(logits >= least, logits, -math.inf)
    drawn = mx.argmax(logits + noise, axis=-1, keepdims=True)
    if tokens is not None:
        drawn = mx.take_along_axis(tokens, drawn, axis=-1)
    return drawn.reshape(-1)


def adjusted(
    sampler: TextSampler, logits: mx.array, recent: mx.array, padding_id: int, numbers: Numbers | None = None
) -> mx.array:
    """Apply penalty and bonus to logits `[batch, vocabulary]`. The result is float32 if there is either.

    `recent`, int32 `[batch, recent_size]`, holds the tokens to penalize, in any order, and is filled up with `vocabulary`.
    `numbers` take the place of the sampler's own.
    """
    batch, vocabulary = logits.shape
    _, _, _, penalty, bonus = numbers or numbers_of(sampler)
    if sampler.recent_size or sampler.padding_bonus:
        logits = logits.astype(mx.float32)  # in float16 the largest penalty or bonus would give infinity
    if sampler.recent_size:
        said = mx.zeros((batch, vocabulary + 1), mx.bool_)
        said = mx.put_along_axis(said, recent, mx.array(True), axis=1)[:, :vocabulary]
        penalized = mx.where(logits > 0, logits / penalty, logits * penalty)
        logits = mx.where(said, penalized, logits)
    if sampler.padding_bonus:
        logits = mx.where(mx.arange(vocabulary) == padding_id, logits + bonus, logits)
    return logits
