"""What only MLX's model has: rotations, sizes of rings, dtypes."""

import mlx.core as mx
import numpy as np
import pytest
from engines import load_exact
from safetensors.numpy import load_file
from slow_lm import rotate
from test_lm import SMALL, Recorder, recorded

from msh_mlx import load_lm
from msh_mlx.model.mlx.attention import Heads, RingFormat, capacities, rotation


@pytest.mark.parametrize("position", [0, 1, 3750, 1_080_000, 10**9])
def test_rotation_is_exact_at_any_position(position):
    x = np.random.default_rng(position).standard_normal((3, 4, 1, 64))
    factors = rotation(position, RingFormat(Heads(4, 64), mx.float32), 10000.0)
    assert factors.dtype == np.float32
    pairs = x.reshape(3, 4, 1, 32, 2)
    turned = (pairs * factors[0] + pairs[..., ::-1] * factors[1]).reshape(x.shape)
    query, key = (rotate(x[i], np.array([float(position)]), 10000.0) for i in (0, 1))
    assert np.abs(turned[0] * 8 - query).max() < 5e-6  # 8 = √64
    assert np.abs(turned[1] - key).max() < 5e-6
    assert (turned[2] == x[2]).all()


@pytest.mark.parametrize(
    ("context", "steps"), [(3000, [128, 256, 512, 1024, 2048, 3000]), (150, [128, 150]), (128, [128]), (100, [100])]
)
def test_capacities_double_up_to_the_context(context, steps):
    assert capacities(context) == steps


def test_bfloat16_stays_near_float32():
    user = load_file(SMALL / "greedy_f32.safetensors")["user_codes"][:, :40]
    lm = load_lm(SMALL / "lm_pytorch.safetensors", SMALL / "config.json", "bfloat16", engine="mlx")
    module = lm.module
    assert module.text_linear.weight.dtype == mx.bfloat16
    r = Recorder(lm).talk(user)
    assert {array.dtype for array in (r.gen._run._newest[0], *r.gen._run._newest[1])} == {mx.bfloat16}
    assert r.gen.text_logits.dtype == r.gen.audio_logits.dtype == mx.float32  # numpy has no bfloat16
    assert r.gen.kv_bytes == module.ring_format().nbytes(lm.config.context) * lm.config.num_layers
    # The first two positions have the same inputs in either precision.
    same = load_exact(SMALL / "lm_pytorch.safetensors", SMALL / "config.json", "mlx")
    _, exact, _, _, _ = recorded(same, user[:, :1])
    assert np.abs(r.text_logits[0] - exact[0]).max() < 0.05 * np.abs(exact[0]).max()


def test_packed_weights_are_as_the_file_says():
    path = SMALL.parent / "lm-quant"
    for bits, group_size in ((8, 64), (4, 32)):
        lm = load_exact(path / f"lm_mlx_q{bits}.safetensors", path / "config.json", "mlx").module
        assert (lm.text_linear.bits, lm.text_linear.group_size) == (bits, group_size)
