"""Layers of MLX's model on any number of rows."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from test_layers import KINDS, LAYERS, SMALL, WIDE, made

from msh_mlx.model.mlx.attention import ring_caches, rotation, slots
from msh_mlx.model.mlx.layers import normalize


def module(tmp_path, config):
    """MLX's part of a model of seeded random weights."""
    return made(tmp_path, config, "mlx")[0].module


@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (1, 1, 48), (3, 1, 48), (3, 5, 48)])
def test_rows_are_normalized_each_by_itself(shape):
    rng = np.random.default_rng(4)
    x = rng.normal(size=shape).astype(np.float32) * np.exp(rng.normal(size=(*shape[:-1], 1))).astype(np.float32)
    norm = nn.RMSNorm(shape[-1], eps=1e-8)
    norm.weight = mx.array(rng.uniform(0.5, 2, shape[-1]).astype(np.float32))
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-8) * np.array(norm.weight)
    assert np.abs(np.array(normalize(norm, mx.array(x))) - expected).max() < 1e-5


class Rows:
    """Runs the temporal transformer position by position, on the columns of all rows of a batch."""

    def __init__(self, lm, batch=1, kv_bits=None, added=None):
        self._lm, self._added, self.position = lm, added, 0
        self._form = lm.ring_format(kv_bits, batch)
        self.rings = [self._form.empty(lm.config.context) for _ in range(lm.config.num_layers)]

    def read(self, columns):
        """`columns` [batch, 1 + n_q] → output and text logits of each row, [batch, dim + text_card]."""
        config = self._lm.config
        factors = mx.array(rotation(self.position, self._form, config.max_period))
        caches = ring_caches(
            self.rings, self._form, mx.array(slots(self.position, config.context, self.rings)), factors
        )
        result = self._lm(mx.array(columns), caches, self._added)
        self.rings = [cache.ring for cache in caches]
        self.position += 1
        return np.concatenate([np.array(part) for part in result], axis=1)


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("layers", KINDS)
def test_rows_of_a_batch_are_independent(layers, kv_bits, tmp_path):
    """Each row, beside others with other columns and conditions, is as it is alone, over three windows."""
    lm = module(tmp_path, {**SMALL, **LAYERS[layers], **WIDE, "kv_repeat": 1})
    rng = np.random.default_rng(3)
    tokens = rng.integers(-1, 30, (60, 5, 7)).astype(np.int32)
    added = mx.array(rng.standard_normal((5, 64)).astype(np.float32))

    def read(rows):
        reader = Rows(lm, len(rows), kv_bits, added[mx.array(rows)])
        return np.array([reader.read(columns[rows]) for columns in tokens])

    together = read([0, 1, 2, 3, 4])
    for row in range(5):
        # Several rows are multiplied in another order than one.
        assert np.abs(together[:, row] - read([row])[:, 0]).max() < (1e-4 if kv_bits is None else 3e-2)


@pytest.mark.parametrize("layers", KINDS)
def test_rows_of_the_depformer_are_independent(layers, tmp_path):
    """Of each row's output, with the same tokens chosen, the same logits come as alone."""
    model, slow = made(tmp_path, {**SMALL, **LAYERS[layers]}, "mlx")
    lm = model.module
    outputs, codes = np.random.default_rng(4).standard_normal((3, 32)).astype(np.float32), [5, 0, 29, 7]
    found = []
    lm.depformer(mx.array(outputs), mx.array([9]), lambda logits, k: found.append(logits) or mx.array([codes[k]]))
    for row, h in enumerate(outputs):
        wanted = slow.depformer(h, 9, codes)
        assert np.abs(np.array([np.array(logits)[row] for logits in found]) - wanted).max() < 1e-4
