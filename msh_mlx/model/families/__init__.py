"""The families of models: one module for each, with what its configuration must say, and the script that goes with it.

They differ in numbers; in which cells of the token grid are given, and which are chosen; in what is added to the input or
attended to; and in how rows of logits are mixed. All else is the model's (`msh_mlx.model`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import hibiki, moshi, personaplex, stt, tts

if TYPE_CHECKING:
    from ..architecture import Architecture


@dataclass(frozen=True)
class Family:
    """A family: its name, what its models are called in messages, and what they are for."""

    name: str
    title: str
    use: str
    known: Callable[[Architecture], bool]
    adapted: Callable[[Architecture], Architecture]


# The first that knows a configuration counts; Moshi knows all that are left.
FAMILIES = tuple(
    Family(module.NAME, module.TITLE, module.USE, module.known, module.adapted)
    for module in (stt, tts, hibiki, personaplex, moshi)
)


def family_of(config: Architecture) -> Family:
    """Return the family of a configuration."""
    return next(family for family in FAMILIES if family.known(config))
