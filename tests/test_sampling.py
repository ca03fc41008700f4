"""Sampling against the distribution that it should have."""

import mlx.core as mx
import numpy as np
import pytest

from msh_mlx import InputError, Sampler


def draw(sampler, logits, count):
    rows = mx.broadcast_to(mx.array(logits, mx.float32), (count, len(logits)))
    return np.array(sampler(rows, mx.random.key(1)))


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 5), (0.8, 12), (2.0, 3), (0.8, 250)])
def test_draws_follow_the_distribution(temperature, top_k):
    logits = np.random.default_rng(4).standard_normal(12)
    probabilities = np.exp(logits / temperature)
    if 0 < top_k < 12:
        probabilities[np.argsort(logits)[:-top_k]] = 0
    probabilities /= probabilities.sum()
    count = 40000
    counts = np.bincount(draw(Sampler(temperature, top_k), logits, count), minlength=12)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - count * probabilities)[possible] ** 2 / (count * probabilities[possible])).sum()
    # 99.9 % points of chi-square with possible − 1 degrees of freedom
    limit = {3: 13.8, 5: 18.5, 12: 31.3}[int(possible.sum())]
    assert chi_square < limit


def test_top_k_keeps_exactly_k_of_equal_logits():
    drawn = draw(Sampler(1.0, 3), [1.0] * 8, 2000)
    assert len(set(drawn.tolist())) == 3


def test_temperature_zero_takes_the_likeliest():
    logits = np.random.default_rng(2).standard_normal((50, 33)).astype(np.float32)
    assert (np.array(Sampler(0)(mx.array(logits), None)) == logits.argmax(-1)).all()
    assert (np.array(Sampler(1.0, 1)(mx.array(logits), mx.random.key(0))) == logits.argmax(-1)).all()


def test_low_temperature_and_low_precision_stay_finite():
    logits = mx.array([[100.0, 99.0, -1000.0]], mx.bfloat16)
    assert int(Sampler(1e-6)(logits, mx.random.key(0))[0]) == 0


@pytest.mark.parametrize("values", [(-0.1, 0), (float("nan"), 0), (float("inf"), 0), (1.0, -1), (1.0, 2.5), ("1", 0)])
def test_wrong_values_are_refused(values):
    with pytest.raises(InputError):
        Sampler(*values)
