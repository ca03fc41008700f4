"""How a token is chosen from logits. The engines do it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..system.inputs import brief
from .ranges import PADDING_BONUS, REPETITION_PENALTY, TEMPERATURE, is_whole

COLDEST = 1e-6  # colder would choose the same tokens, but logits would grow beyond float32
SMALLEST_SHARE = 1e-30  # a smaller one could become 0 in float32, and then not even the likeliest token would pass

# How many tokens are kept for each of the recent words.
TOKENS_A_WORD = 4

_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2^64 / φ, odd


def mixed_seed(seed: int, number: int) -> int:
    """Make one seed in [0, 2^64) from two numbers. Neighbouring seeds with neighbouring numbers do not give the same one."""
    return (seed + _GOLDEN_RATIO * number) % (1 << 64)


@dataclass(frozen=True)
class Sampler:
    """Softmax sampling with a temperature, among the tokens that pass every filter.

    The filters are applied in this order, each to the tokens that the one before has left, as in the transformers library:

    - `top_k`: keep the k likeliest tokens; 0, or a number as large as the vocabulary, keeps all.
    - `top_p`: keep the likeliest tokens that together reach this probability (Holtzman et al. 2020); 1 keeps all.
    - `min_p`: keep tokens with at least this share of the likeliest one's probability; 0 keeps all.

    `temperature` 0 always takes the likeliest token.

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
        """Whether the likeliest token is taken, without random numbers."""
        return self.temperature == 0


@dataclass(frozen=True)
class TextSampler(Sampler):
    """A `Sampler` for the text stream. It can also make Moshi repeat words less, or say less.

    - `repetition_penalty`: divide the logits of tokens in the last `repetition_words` words by it if they are positive, else
      multiply them (Keskar et al. 2019); 1 changes nothing. Of these words, at most `repetition_words · TOKENS_A_WORD` tokens
      count, the newest ones.
    - `padding_bonus`: add this to the logit of the padding token. Above 0 Moshi talks less, below 0 more.

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
        """The number of recent tokens that the penalty takes, filled up with a number that is no token; 0 without a penalty."""
        return 0 if self.repetition_penalty == 1 else self.repetition_words * TOKENS_A_WORD


# The published defaults.
TEXT_SAMPLER = Sampler(temperature=0.7, top_k=25)
AUDIO_SAMPLER = Sampler(temperature=0.8, top_k=250)
