"""The bounds of numbers that reach the model. Within them, all results in float32 are finite."""

from __future__ import annotations

from dataclasses import dataclass

# Far beyond any useful value. A logit times or plus this, divided by the lowest temperature (1e-6), is still finite in float32.
# The inverse is as far from the numbers that float32 rounds to 0.
_LARGEST = 1e9


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, both included. As text it is "a number from 0 to 1e9"."""

    least: float
    most: float

    def has(self, value: object) -> bool:
        """Tell whether `value` is a number in the range. True, False and NaN are not."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        """Return "a number from … to …"."""
        return f"a number from {_brief(self.least)} to {_brief(self.most)}"


def _brief(bound: float) -> str:
    return f"{bound:g}".replace("e+0", "e").replace("e-0", "e-")


TEMPERATURE = Range(0, _LARGEST)
REPETITION_PENALTY = Range(1 / _LARGEST, _LARGEST)
PADDING_BONUS = Range(-_LARGEST, _LARGEST)
GUIDANCE = Range(0, _LARGEST)
CONTEXT = Range(1, _LARGEST)  # seconds
LORA_SCALING = Range(-_LARGEST, _LARGEST)


def is_whole(value: object) -> bool:
    """Tell whether `value` is a whole number. True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
