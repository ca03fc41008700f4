"""How a token is chosen from logits. Randomness is an argument, so that all of it can be drawn at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError
from ..system.inputs import brief
from .ranges import PADDING_BONUS, REPETITION_PENALTY, TEMPERATURE, is_whole

_COLDEST = 1e-6  # no logits that differ are closer than this makes matter, and none grows beyond float32
_SMALLEST_SHARE = 1e-30  # what is smaller would be 0 in float32, and not even the likeliest token would pass

# How many tokens of the recent words are kept, for each word.
TOKENS_A_WORD = 4

_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2^64 / φ, odd


def mixed_seed(seed: int, number: int) -> int:
    """Make one seed in [0, 2^64) of two numbers, so that neighbouring seeds do not meet at neighbouring numbers."""
    return (seed + _GOLDEN_RATIO * number) % (1 << 64)


@dataclass(frozen=True)
class Sampler:
    """Softmax sampling with a temperature, among the tokens that pass every filter.

    The filters are applied in this order, each to what the one before left, as in the transformers library:

    - `top_k`: the k likeliest tokens; 0, or one as large as the vocabulary, takes all.
    - `top_p`: the likeliest tokens that together have this probability, the one that reaches it included (Holtzman et al.
      2020); 1 takes all.
    - `min_p`: those with at least this share of the likeliest one's probability; 0 takes all.

    `temperature` 0 takes the likeliest token.

    Raises
    ------
    InputError
        The temperature is not in [0, 1e9], `top_k` is not a whole number ≥ 0, `top_p` is not in (0, 1], or `min_p` not in
        [0, 1].
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not TEMPERATURE.has(self.temperature):
            raise InputError(f"The temperature {brief(self.temperature)} is not {TEMPERATURE}.")
        if not is_whole(self.top_k) or self.top_k < 0:
            raise InputError(f"The top-k {brief(self.top_k)} is not a whole number ≥ 0.")
        if not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise InputError(f"The top-p {brief(self.top_p)} is not a number above 0 and up to 1.")
        if not (isinstance(self.min_p, int | float) and 0 <= self.min_p <= 1):
            raise InputError(f"The min-p {brief(self.min_p)} is not a number from 0 to 1.")

    @property
    def greedy(self) -> bool:
        """Whether no randomness is used."""
        return self.temperature == 0

    def noise_size(self, vocabulary: int) -> int:
        """Tell how many random numbers a choice among so many tokens takes."""
        if self.greedy:
            return 0
        return min(self.top_k, vocabulary) or vocabulary

    def __call__(self, logits: mx.array, noise: mx.array) -> mx.array:
        """Choose tokens `[batch]` uint32.

        `logits` are `[batch, vocabulary]`; `noise` is `[noise_size]` or `[batch, noise_size]`, independent draws of the
        standard Gumbel distribution: the largest sum of logit and noise is a draw from the softmax (Gumbel-max).
        """
        if self.greedy:
            return mx.argmax(logits, axis=-1)
        logits = logits.astype(mx.float32) * (1.0 / max(self.temperature, _COLDEST))
        tokens: mx.array | None = None
        if 0 < self.top_k < logits.shape[-1]:
            tokens = mx.argpartition(logits, -self.top_k, axis=-1)[:, -self.top_k :]
            logits = mx.take_along_axis(logits, tokens, axis=-1)
        if self.top_p < 1:
            order = mx.argsort(-logits, axis=-1)
            logits = mx.take_along_axis(logits, order, axis=-1)
            tokens = order if tokens is None else mx.take_along_axis(tokens, order, axis=-1)
            probabilities = mx.softmax(logits, axis=-1, precise=True)
            likelier = mx.cumsum(probabilities, axis=-1, inclusive=False)
            logits = mx.where(likelier < max(self.top_p, _SMALLEST_SHARE), logits, -math.inf)
        if self.min_p > 0:
            least = mx.max(logits, axis=-1, keepdims=True) + math.log(self.min_p)
            logits = mx.where(logits >= least, logits, -math.inf)
        drawn = mx.argmax(logits + noise, axis=-1, keepdims=True)
        if tokens is not None:
            drawn = mx.take_along_axis(tokens, drawn, axis=-1)
        return drawn.reshape(-1)


@dataclass(frozen=True)
class TextSampler(Sampler):
    """A `Sampler` for the text stream. It can also make Moshi repeat words less, or say less.

    - `repetition_penalty`: logits of tokens in the last `repetition_words` words are divided by it if positive, else multiplied
      (Keskar et al. 2019); 1 changes nothing. Of longer words the last `TOKENS_A_WORD` tokens each are counted, on average.
    - `padding_bonus`: added to the logit of the padding token: above 0 Moshi talks less, below 0 more.

    Raises
    ------
    InputError
        As `Sampler`; also, the penalty is not in [1e-9, 1e9], the words are not a whole number from 1 to 1000, or the bonus is
        not in [-1e9, 1e9].
    """

    repetition_penalty: float = 1.0
    repetition_words: int = 32
    padding_bonus: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not REPETITION_PENALTY.has(self.repetition_penalty):
            raise InputError(f"The repetition penalty {brief(self.repetition_penalty)} is not {REPETITION_PENALTY}.")
        words = self.repetition_words
        if not is_whole(words) or not 1 <= words <= 1000:
            raise InputError(f"The repetition penalty's {brief(words)} words are not a whole number from 1 to 1000.")
        if not PADDING_BONUS.has(self.padding_bonus):
            raise InputError(f"The padding bonus {brief(self.padding_bonus)} is not {PADDING_BONUS}.")

    @property
    def recent_size(self) -> int:
        """How many recent tokens `adjusted` takes; 0 if it needs none."""
        return 0 if self.repetition_penalty == 1 else self.repetition_words * TOKENS_A_WORD

    def adjusted(self, logits: mx.array, recent: mx.array, padding_id: int) -> mx.array:
        """Apply penalty and bonus to logits `[1, vocabulary]`; if there are any, the result is float32.

        `recent` is int32 `[recent_size]`: the tokens to penalize, in any order, and `vocabulary` where there are none.
        """
        vocabulary = logits.shape[1]
        if self.recent_size or self.padding_bonus:
            logits = logits.astype(mx.float32)  # in which the largest of both are finite; in float16 they would not be
        if self.recent_size:
            said = mx.zeros((1, vocabulary + 1), mx.bool_)
            said = mx.put_along_axis(said, recent[None], mx.array(True), axis=1)[:, :vocabulary]
            penalized = mx.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = mx.where(said, penalized, logits)
        if self.padding_bonus:
            logits = mx.where(mx.arange(vocabulary) == padding_id, logits + self.padding_bonus, logits)
        return logits


# The published defaults.
TEXT_SAMPLER = Sampler(temperature=0.7, top_k=25)
AUDIO_SAMPLER = Sampler(temperature=0.8, top_k=250)
