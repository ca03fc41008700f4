"""The bounds of numbers that reach the model: within them, what is computed of the numbers in float32 stays finite."""

from __future__ import annotations

from dataclasses import dataclass

# Far beyond what makes sense, and far enough below where float32 ends that a logit times or plus this, divided by the coldest
# temperature there is (1e-6), is finite still. Its inverse is as far from where float32 becomes 0.
_LARGEST = 1e9


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, both included; in a sentence it reads as in "-1 is not a number from 0 to 1e9"."""

    least: float
    most: float

    def has(self, value: object) -> bool:
        """Tell whether `value` is a number in the range; True, False and NaN are not."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        """Return "a number from … to …"."""
        return f"a number from {_brief(self.least)} to {_brief(self.most)}"


def _brief(bound: float) -> str:
    return f"{bound:g}".replace("e+0", "e").replace("e-0", "e-")


TEMPERATURE = Range(0, _LARGEST)
REPETITION_PENALTY = Range(1 / _LARGEST, _LARGEST)
PADDING_BONUS = Range(-_LARGEST, _LARGEST)
LORA_SCALING = Range(-_LARGEST, _LARGEST)


def is_whole(value: object) -> bool:
    """Tell whether `value` is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
