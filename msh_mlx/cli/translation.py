"""The option of a translation: how closely it keeps to the voice that is translated."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..model.ranges import GUIDANCE
from .options import Group, within

if TYPE_CHECKING:
    from ..conversation.session import Opening, Parts
    from .choice import Choice


def add_guidance(to: Group) -> None:
    """Add the option."""
    closer = "keep closer to the voice that is translated, such as 3, at some cost of speed (default: 1, off)"
    to.value("--guidance", "C", f"{closer}; for Hibiki models", type=within(GUIDANCE), default=1.0)


def guided_opening(args: argparse.Namespace, choice: Choice) -> Callable[[Parts], Opening] | None:
    """Return what makes the opening of a translation with guidance, for `load_session`. None: no guidance is asked for.

    Raises
    ------
    InputError
        The model does not translate, or cannot be guided.
    """
    if args.guidance == 1:
        return None
    from ..model.families import family_of, hibiki

    config = choice.checkpoint.config
    family = family_of(config)
    if family.use != "translation":
        raise hibiki.no_guidance(choice.name, family.title)
    hibiki.check_guidance(config, args.guidance)

    def make(parts: Parts) -> Opening:
        from ..conversation.session import Opening

        return Opening(steering=hibiki.steering(parts.lm, args.guidance))

    return make
