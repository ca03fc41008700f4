"""Models of random weights, on MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..architecture import Architecture
from ..randomly import random_conditions
from .lm import Lm
from .model import MlxModel


def random_model(
    config: Architecture,
    bits: int,
    group_size: int,
    seed: int,
    dtype: mx.Dtype,
    progress: Callable[[float], None] | None = None,
    *,
    packed: Callable[[str, Any], bool] | None = None,
) -> MlxModel:
    """Make a model of seeded random weights, one matrix after the other. Packed ones are made in packed form.

    `bits` is 16 for weights in `dtype`, else the bits of all matrices, in groups of `group_size`; of those alone for which
    `packed(name, module)` holds, if it is given. `progress` gets the fraction that has been made. Weights have the variance
    1 / columns, so that activations stay about as large from layer to layer.
    """
    lm = Lm(config)
    if bits < 16:
        nn.quantize(lm, group_size=group_size, bits=bits, class_predicate=packed)
    key = mx.random.key(seed)
    parameters = lm.named_parameters()
    like = dict(parameters)
    made: list[tuple[str, mx.array]] = []
    for name, parameter in parameters:
        if progress:
            progress(len(made) / len(parameters))
        module, _, part = name.rpartition(".")
        columns = parameter.shape[-1]
        if f"{module}.scales" in like:
            columns = like[f"{module}.weight"].shape[-1] * 32 // bits
        # The standard deviation of evenly distributed whole numbers of so many bits.
        scale = columns**-0.5 * (12 / ((1 << bits) ** 2 - 1)) ** 0.5
        if parameter.dtype == mx.uint32:
            key, own = mx.random.split(key)
            low, high = mx.random.randint(0, 1 << 16, (2, *parameter.shape), mx.uint32, own)
            array = low + (high << 16)
        elif part == "scales":
            array = mx.full(parameter.shape, scale, dtype)
        elif part == "biases":
            array = mx.full(parameter.shape, -scale * ((1 << bits) - 1) / 2, dtype)
        elif parameter.ndim == 1:
            array = mx.ones(parameter.shape, dtype)
        else:
            key, own = mx.random.split(key)
            array = mx.random.normal(parameter.shape, dtype, scale=columns**-0.5, key=own)
        mx.eval(array)
        mx.clear_cache()
        made.append((name, array))
    lm.load_weights(made, strict=True)
    made.clear()
    lm.freeze()
    lm.prepare()
    mx.clear_cache()
    return MlxModel(lm, random_conditions(config, seed))
