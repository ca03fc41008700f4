"""How a token is chosen from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from .errors import InputError


@dataclass(frozen=True)
class Sampler:
    """Softmax sampling with a temperature among the `top_k` likeliest tokens.

    `temperature` 0 takes the likeliest token; `top_k` 0, or one as large as the vocabulary, takes all tokens.

    Raises
    ------
    InputError
        The temperature is negative or not finite, or `top_k` is not a whole number ≥ 0.
    """

    temperature: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, int | float) and 0 <= self.temperature < math.inf):
            raise InputError(f"The temperature {self.temperature!r} is not a finite number ≥ 0.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"The top-k {self.top_k!r} is not a whole number ≥ 0.")

    @property
    def greedy(self) -> bool:
        """Whether no randomness is used."""
        return self.temperature == 0

    def __call__(self, logits: mx.array, key: mx.array | None) -> mx.array:
        """Choose tokens `[batch]` int32 from logits `[batch, vocabulary]`; `key` as from `mx.random.key`, unused if greedy."""
        if self.greedy:
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        logits = logits.astype(mx.float32)
        if 0 < self.top_k < logits.shape[-1]:
            best = mx.argpartition(-logits, self.top_k - 1, axis=-1)[:, : self.top_k]
            drawn = mx.random.categorical(mx.take_along_axis(logits, best, axis=-1) / self.temperature, key=key)
            return mx.take_along_axis(best, drawn[:, None], axis=-1)[:, 0].astype(mx.int32)
        return mx.random.categorical(logits / self.temperature, key=key).astype(mx.int32)


# The published defaults.
TEXT_SAMPLER = Sampler(temperature=0.7, top_k=25)
AUDIO_SAMPLER = Sampler(temperature=0.8, top_k=250)
