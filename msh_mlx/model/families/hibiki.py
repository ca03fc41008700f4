"""Hibiki: translates speech while it hears it. It is Moshi with another user: the speech to translate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..steering import Guidance, Steering
from .moshi import adapted as adapted_as_moshi

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..lm import Lm

TITLE = "a speech translation model (Hibiki)"

END = 2  # the text token of the end, which counts only after the end of the input
CONDITION = "description"
GIVEN, NULL = "very_good", "very_bad"  # what is asked for; and with guidance, what is not


def known(config: Architecture) -> bool:
    """Tell whether a configuration is of this family. Hibiki-Zero's says it only by its layers."""
    return (
        (config.model_type or "").lower().startswith("hibiki")
        or CONDITION in config.conditioners
        or config.depformer_norm is not None
    )


def adapted(config: Architecture) -> Architecture:
    """Check a configuration of this family, as Moshi's."""
    return adapted_as_moshi(config)


def replaced_rows(config: Architecture) -> dict[int, int]:
    """Return the rows of the text embedding to replace after loading: an early end is read as padding."""
    return {END: config.existing_text_padding_id} if (config.model_type or "").lower().startswith("hibiki") else {}


def steering(lm: Lm, coef: float = 1.0) -> Steering:
    """Return the condition that is asked for, with guidance by `coef`; 1: without."""
    config = lm.config
    if not config.fuser.added:
        return Steering()
    values = (GIVEN, NULL) if coef != 1 else (GIVEN,)
    added = [lm.condition_provider.added(config.fuser, {CONDITION: value}) for value in values]
    return Steering(mx.stack(added), guidance=Guidance(coef) if coef != 1 else None)
