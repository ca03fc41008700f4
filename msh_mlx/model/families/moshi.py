"""Moshi: listens and speaks at the same time. The model chooses the text and its own codes; it hears the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    from ..architecture import Architecture

TITLE = "a Moshi language model"


def known(config: Architecture) -> bool:
    """Tell whether a configuration is of this family: any that no other family knows."""
    return True


def adapted(config: Architecture) -> Architecture:
    """Check a configuration of this family.

    Raises
    ------
    InputError
        No codebook is left for the user.
    """
    if config.dep_q >= config.n_q:
        raise InputError(
            "The model's configuration does not fit together: "
            f"dep_q = n_q = {config.n_q} leaves no codebook for the user."
        )
    return config
