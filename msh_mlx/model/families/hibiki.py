"""Hibiki: translates speech while it hears it. It is Moshi with another user: the speech to translate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ..sampling import Sampler
from ..steering import Guidance, Steering
from .moshi import adapted as adapted_as_moshi

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..engine import LanguageModel

TITLE = "a speech translation model (Hibiki)"

END = 2  # the text token of the end, which counts only after the end of the input
CONDITION = "description"
GIVEN, NULL = "very_good", "very_bad"  # what is asked for; and with guidance, what is not
# The keys of `lm_gen_config`, with the argument of a sampler that each is, and its value where a model does not say it.
_TEXT = {"temp_text": ("temperature", 0.8), "top_k_text": ("top_k", 250)}
_AUDIO = {"temp": ("temperature", 0.8), "top_k": ("top_k", 250)}


def known(config: Architecture) -> bool:
    """Tell whether a configuration is of this family. Hibiki-Zero's says it only by its layers."""
    return (
        (config.model_type or "").lower().startswith("hibiki")
        or CONDITION in config.conditioners
        or config.depformer_norm is not None
    )


def adapted(config: Architecture) -> Architecture:
    """Check a configuration of this family, as Moshi's.

    Raises
    ------
    InputError
        No codebook is left for the user, or `lm_gen_config` is not understood.
    """
    samplers(config)
    return adapted_as_moshi(config)


def samplers(config: Architecture) -> tuple[Sampler, Sampler]:
    """Return how text and codes are chosen: as the model's `lm_gen_config` says, else as Hibiki-Zero's program does."""
    said = config.lm_gen_config if config.lm_gen_config is not None else {}
    try:
        text, audio = (
            Sampler(**{name: said.get(key, usual) for key, (name, usual) in keys.items()}) for keys in (_TEXT, _AUDIO)
        )
    except (AttributeError, InputError):
        raise InputError("The model's configuration has an lm_gen_config that is not understood.") from None
    return text, audio


def replaced_rows(config: Architecture) -> dict[int, int]:
    """Return the rows of the text embedding to replace after loading: an early end is read as padding."""
    return {END: config.existing_text_padding_id} if (config.model_type or "").lower().startswith("hibiki") else {}


def no_guidance(name: str, title: str) -> InputError:
    """Make the error for a model that does not translate: its name, and the title of its family."""
    return InputError(f"{name} is {title}, and --guidance is for Hibiki", "leave it out")


def check_guidance(config: Architecture, coef: float) -> None:
    """Raise InputError if a model cannot be guided, because it has no conditions, and `coef` asks for guidance."""
    if coef != 1 and not config.fuser.added:
        raise InputError("This model of Hibiki has no conditions, so it cannot be guided", "leave the guidance out")


def steering(lm: LanguageModel, coef: float = 1.0) -> Steering:
    """Return the condition that is asked for, with guidance by `coef`; 1: without.

    Raises
    ------
    InputError
        The model has no condition, and guidance is asked for.
    """
    config = lm.config
    check_guidance(config, coef)
    if not config.fuser.added:
        return Steering()
    values = (GIVEN, NULL) if coef != 1 else (GIVEN,)
    added = [lm.conditions.added(config.fuser, {CONDITION: value}) for value in values]
    return Steering(np.stack(added), guidance=Guidance(coef) if coef != 1 else None)
