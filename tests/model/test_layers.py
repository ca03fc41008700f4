"""Layers on any number of rows, against numpy."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from msh_mlx.model.layers import normalize


@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (1, 1, 48), (3, 1, 48), (3, 5, 48)])
def test_rows_are_normalized_each_by_itself(shape):
    rng = np.random.default_rng(4)
    x = rng.normal(size=shape).astype(np.float32) * np.exp(rng.normal(size=(*shape[:-1], 1))).astype(np.float32)
    norm = nn.RMSNorm(shape[-1], eps=1e-8)
    norm.weight = mx.array(rng.uniform(0.5, 2, shape[-1]).astype(np.float32))
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-8) * np.array(norm.weight)
    assert np.abs(np.array(normalize(norm, mx.array(x))) - expected).max() < 1e-5
