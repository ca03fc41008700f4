"""Packed weights, against a slow version and against MLX's."""

import numpy as np
import pytest

from msh_mlx.weights.checkpoint import BITS, GROUP_SIZES
from msh_mlx.weights.packing import Quantization, packed, unpacked
from msh_mlx.weights.safetensors import as_bfloat16, as_float32

FORMS = [pytest.param(Quantization(bits, size), id=f"{bits}-{size}") for bits in BITS for size in GROUP_SIZES]


def random(how, seed=0, rows=5, groups=3):
    """Packed numbers of any bits, with scales and biases."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 32, (rows, groups * how.group_size * how.bits // 32), np.uint32)
    return words, *rng.standard_normal((2, rows, groups), np.float32)


def values_of_all_kinds(how):
    """Rows of ordinary, positive, negative, tiny, huge, equal and missing numbers."""
    rng = np.random.default_rng(how.bits)
    rows = rng.standard_normal((14, 4 * how.group_size), np.float32)
    rows[4:6] = np.abs(rows[4:6]) + 1
    rows[6:8] = -np.abs(rows[6:8]) - 1
    rows[8] *= np.float32(1e-20)
    rows[9] *= np.float32(1e20)
    rows[10], rows[11] = 0, 0.75
    rows[12, ::7] *= 1000
    rows[13] = np.exp(5 * rows[13])
    return as_float32(as_bfloat16(rows))


@pytest.mark.parametrize("how", FORMS)
def test_numbers_are_unpacked_bit_by_bit(how):
    words, scales, biases = random(how)
    found = unpacked(words, scales, biases, how)
    for row, line in enumerate(words):
        stream = sum(int(word) << (32 * i) for i, word in enumerate(line))
        numbers = [stream >> (how.bits * i) & ((1 << how.bits) - 1) for i in range(found.shape[1])]
        for column, number in enumerate(numbers):
            group = column // how.group_size
            wanted = np.float32(number) * scales[row, group] + biases[row, group]
            assert found[row, column] == wanted


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("how", FORMS)
def test_what_is_packed_is_the_nearest_that_its_scale_allows(how, dtype):
    values = values_of_all_kinds(how)
    if dtype == "F16":
        values = values[[*range(8), 10, 11]]
    words, scales, biases = packed(values, how, dtype)
    assert words.dtype == np.uint32
    assert words.shape == (len(values), values.shape[1] * how.bits // 32)
    assert scales.shape == biases.shape == (len(values), 4)
    scales, biases = (as_float32(part.view(np.float16) if dtype == "F16" else part) for part in (scales, biases))
    found = unpacked(words, scales, biases, how)
    steps = np.arange(1 << how.bits, dtype=np.float32)
    grid = scales[..., None] * steps + biases[..., None]  # all numbers that a group can hold
    grouped = values.reshape(len(values), 4, how.group_size)
    nearest = np.abs(grouped[..., None].astype(np.float64) - grid[:, :, None, :]).min(-1)
    error = np.abs(grouped - found.reshape(grouped.shape)).astype(np.float64)
    assert (error <= nearest + 1e-6 * np.abs(grouped).max(-1, keepdims=True)).all()
    # A step is no larger than the edges need: 0 and the number of the largest magnitude are exact.
    reach = np.maximum(grouped.max(-1), 0) - np.minimum(grouped.min(-1), 0)
    assert (np.abs(scales) <= 2.01 * reach / ((1 << how.bits) - 1) + 1.2e-7).all()


@pytest.mark.parametrize("how", FORMS)
def test_mlx_unpacks_the_same(how):
    mx = pytest.importorskip("mlx.core")
    words, scales, biases = random(how, seed=1)
    theirs = mx.dequantize(*map(mx.array, (words, scales, biases)), group_size=how.group_size, bits=how.bits)
    # MLX may add the bias in one operation, without rounding the product.
    np.testing.assert_allclose(unpacked(words, scales, biases, how), np.array(theirs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("how", FORMS)
def test_packed_numbers_are_as_near_as_those_of_mlx(how, dtype):
    mx = pytest.importorskip("mlx.core")
    values = values_of_all_kinds(how)
    given = mx.array(values).astype(mx.float32 if dtype == "F32" else mx.bfloat16)
    words, *numbers = mx.quantize(given, how.group_size, how.bits)
    theirs = [np.array(words), *(np.array(part.astype(mx.float32)) for part in numbers)]
    ours = packed(values, how, dtype)
    a, b = (
        np.abs(unpacked(words, as_float32(scales), as_float32(biases), how).astype(np.float64) - values)
        for words, scales, biases in (ours, theirs)
    )
    groups = (len(values), 4, how.group_size)
    most = np.abs(values).reshape(groups).max(-1)
    assert (a.reshape(groups).max(-1) <= b.reshape(groups).max(-1) + 1e-6 * most).all()
    assert (a.reshape(groups).sum(-1) <= b.reshape(groups).sum(-1) + 1e-5 * most).all()
