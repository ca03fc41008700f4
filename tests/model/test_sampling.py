"""Sampling against the distribution that it should have."""

import math

import mlx.core as mx
import numpy as np
import pytest

from msh_mlx import InputError, Sampler, TextSampler

COUNT = 40000


def draw(sampler, logits, count=COUNT, seed=1):
    """Tokens drawn `count` times."""
    rows = mx.broadcast_to(mx.array(logits, mx.float32), (count, len(logits)))
    noise = mx.random.gumbel((count, sampler.noise_size(len(logits))), key=mx.random.key(seed))
    return np.array(sampler(rows, noise))


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The same, slow and obvious: one filter after the other, on probabilities in float64."""
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    if top_k:
        p[np.argsort(-p)[top_k:]] = 0
    p /= p.sum()
    together = 0.0
    for token in np.argsort(-p):
        if together >= top_p:
            p[token] = 0
        together += p[token]
    p[p < min_p * p.max()] = 0
    return p / p.sum()


def agrees(drawn, probabilities):
    """Whether the counts are within the 99.9 % point of chi-square (Wilson and Hilferty's approximation)."""
    counts = np.bincount(drawn, minlength=len(probabilities))
    possible = probabilities > 0
    freedom = int(possible.sum()) - 1
    if counts[~possible].any() or not freedom:
        return not counts[~possible].any()
    expected = len(drawn) * probabilities[possible]
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    return chi_square < limit


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 0.8, "top_k": 12},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 0.8, "top_k": 250},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_p": 0.5},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"temperature": 1.3, "top_k": 8, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 9, "top_p": 0.95, "min_p": 0.1},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(values):
    logits = np.random.default_rng(4).standard_normal(12)
    assert agrees(draw(Sampler(**values), logits), distribution(logits, **values))


def test_another_distribution_is_noticed():
    logits = np.random.default_rng(4).standard_normal(12)
    drawn = draw(Sampler(0.8), logits)
    for values in ({"temperature": 0.84}, {"temperature": 0.8, "top_k": 11}, {"temperature": 0.8, "top_p": 0.98}):
        assert not agrees(drawn, distribution(logits, **values))


def test_top_k_keeps_exactly_k_of_equal_logits():
    assert len(set(draw(Sampler(1.0, 3), [1.0] * 8, 2000).tolist())) == 3


def test_temperature_zero_takes_the_likeliest():
    logits = np.random.default_rng(2).standard_normal((50, 33)).astype(np.float32)
    nothing = mx.zeros((0,))
    assert Sampler(0).noise_size(33) == 0
    for sampler in (Sampler(0), Sampler(0, 5, 0.5, 0.5)):
        assert (np.array(sampler(mx.array(logits), nothing)) == logits.argmax(-1)).all()
    assert (np.array(Sampler(1.0, 1)(mx.array(logits), mx.zeros((1,)))) == logits.argmax(-1)).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_low_temperature_and_low_precision_stay_finite(temperature):
    logits = mx.array([[100.0, 99.0, -1000.0]], mx.bfloat16)
    for values in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        sampler = Sampler(temperature, **values)
        assert int(sampler(logits, mx.random.gumbel((sampler.noise_size(3),), key=mx.random.key(0)))[0]) == 0


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_largest_numbers_stay_finite_and_do_what_they_say(dtype):
    """Whatever the coldest temperature makes of them, and in whatever type the model computes; token 2 is padding."""
    logits = mx.array([[30.0, -20.0, 1.0, 29.0]], dtype)
    for values, best in (
        ({"padding_bonus": 1e9}, 2),
        ({"padding_bonus": -1e9}, 0),
        ({"repetition_penalty": 1e9}, 3),
        ({"repetition_penalty": 1e-9}, 0),
        ({"repetition_penalty": 1e9, "padding_bonus": 1e9}, 2),
    ):
        for more in ({"temperature": 1e-6}, {"temperature": 1e-6, "top_p": 1e-46}, {"temperature": 0}):
            sampler = TextSampler(**values, **more)
            recent = np.full(sampler.recent_size, 4, np.int32)
            recent[:1] = 0
            changed = sampler.adjusted(logits, mx.array(recent), 2)
            assert mx.isfinite(changed.astype(mx.float32) * 1e6).all().item()
            noise = mx.random.gumbel((sampler.noise_size(4),), key=mx.random.key(1))
            assert sampler(changed, noise).item() == best, (values, more)
    hot = Sampler(temperature=1e9)
    assert agrees(draw(hot, [30.0, -20.0, 1.0]), np.full(3, 1 / 3))


def adjusted(sampler, logits, recent=()):
    """What a text sampler makes of logits; token 2 is padding."""
    tokens = np.full(sampler.recent_size, len(logits), np.int32)
    tokens[: len(recent)] = recent
    return np.array(sampler.adjusted(mx.array([logits], mx.float32), mx.array(tokens), 2))[0]


def test_repetition_penalty_moves_what_was_said_away():
    logits = [2.0, -2.0, 1.0, 0.5, -1.0]
    sampler = TextSampler(repetition_penalty=2.0, repetition_words=2)
    assert adjusted(sampler, logits).tolist() == logits
    assert adjusted(sampler, logits, [0, 1, 1, 4]).tolist() == [1.0, -4.0, 1.0, 0.5, -2.0]
    plain = TextSampler()
    assert plain.recent_size == 0
    assert adjusted(plain, logits).tolist() == logits


def test_padding_bonus_moves_the_padding_token():
    logits = [2.0, -2.0, 1.0, 0.5]
    assert adjusted(TextSampler(padding_bonus=3.0), logits).tolist() == [2.0, -2.0, 4.0, 0.5]
    assert adjusted(TextSampler(padding_bonus=-1.5), logits).tolist() == [2.0, -2.0, -0.5, 0.5]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        *[({"temperature": t}, "temperature") for t in (-0.1, float("nan"), float("inf"), "1", 1e39, 10**400)],
        *[({"top_k": k}, "top-k") for k in (-1, 2.5, True)],
        *[({"top_p": p}, "top-p") for p in (0, 1.1, float("nan"), "1")],
        *[({"min_p": p}, "min-p") for p in (-0.1, 1.1, float("nan"))],
        *[({"repetition_penalty": x}, "penalty") for x in (0, -1, float("inf"), "1", 1e39, 1e-46)],
        *[({"repetition_words": n}, "words") for n in (0, 1001, 1.5, True)],
        *[({"padding_bonus": x}, "bonus") for x in (float("nan"), float("inf"), "1", 1e39, -1e39, 10**400)],
    ],
    ids=str,
)
def test_wrong_values_are_refused(values, says):
    with pytest.raises(InputError, match=says):
        TextSampler(**values)
