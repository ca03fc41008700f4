"""Random weights, for models that are only measured."""

from __future__ import annotations

import numpy as np

from .architecture import Architecture
from .conditions import Conditions
from .parameters import CONDITIONS, parameters


def random_conditions(config: Architecture, seed: int) -> Conditions:
    """Return conditions of seeded random weights, of the variance 1 / columns."""
    random = np.random.default_rng(seed)
    wanted = [one for one in parameters(config) if one.name.startswith(CONDITIONS)]
    weights = {
        one.name.removeprefix(CONDITIONS): random.standard_normal(one.shape, np.float32) * one.shape[-1] ** -0.5
        for one in wanted
    }
    return Conditions(config.conditioners, weights)
