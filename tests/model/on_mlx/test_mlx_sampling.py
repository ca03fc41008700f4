"""MLX's samplers against the distribution that they should have."""

import mlx.core as mx
import numpy as np
import pytest
from test_sampling import VALUES, agrees, distribution

from msh_mlx import Sampler, TextSampler
from msh_mlx.model.mlx import choosing
from msh_mlx.model.mlx.choosing import choose, noise_size

COUNT = 40000


def draw(sampler, logits, count=COUNT, seed=1):
    """Tokens drawn `count` times."""
    rows = mx.broadcast_to(mx.array(logits, mx.float32), (count, len(logits)))
    noise = mx.random.gumbel((count, noise_size(sampler, len(logits))), key=mx.random.key(seed))
    return np.array(choose(sampler, rows, noise))


@pytest.mark.parametrize("values", VALUES, ids=str)
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
    assert noise_size(Sampler(0), 33) == 0
    for sampler in (Sampler(0), Sampler(0, 5, 0.5, 0.5)):
        assert (np.array(choose(sampler, mx.array(logits), nothing)) == logits.argmax(-1)).all()
    assert (np.array(choose(Sampler(1.0, 1), mx.array(logits), mx.zeros((1,)))) == logits.argmax(-1)).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_low_temperature_and_low_precision_stay_finite(temperature):
    logits = mx.array([[100.0, 99.0, -1000.0]], mx.bfloat16)
    for values in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        sampler = Sampler(temperature, **values)
        assert int(choose(sampler, logits, mx.random.gumbel((noise_size(sampler, 3),), key=mx.random.key(0)))[0]) == 0


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
            changed = choosing.adjusted(sampler, logits, mx.array(recent)[None], 2)
            assert mx.isfinite(changed.astype(mx.float32) * 1e6).all().item()
            noise = mx.random.gumbel((noise_size(sampler, 4),), key=mx.random.key(1))
            assert choose(sampler, changed, noise).item() == best, (values, more)
    hot = Sampler(temperature=1e9)
    assert agrees(draw(hot, [30.0, -20.0, 1.0]), np.full(3, 1 / 3))


def adjusted(sampler, logits, recent=()):
    """What a text sampler makes of logits; token 2 is padding."""
    tokens = np.full(sampler.recent_size, len(logits), np.int32)
    tokens[: len(recent)] = recent
    return np.array(choosing.adjusted(sampler, mx.array([logits], mx.float32), mx.array(tokens[None]), 2))[0]


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
