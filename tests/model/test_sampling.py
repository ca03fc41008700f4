"""Sampling against the distribution that it should have, with each engine."""

import math
from collections import Counter

import numpy as np
import pytest
from engines import load_exact, seeded
from safetensors.numpy import save_file
from slow_lm import SlowLm, random_weights

from msh_mlx import InputError, Sampler, TextSampler
from msh_mlx.model.engine import Manner
from msh_mlx.model.grid import Prompt

VALUES = [
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
]
SIZE = {
    "dim": 8, "num_layers": 1, "num_heads": 1, "context": 4, "text_card": 12, "card": 10, "n_q": 2, "dep_q": 1,
    "hidden_scale": 4.125, "max_period": 10000, "depformer_dim": 8, "depformer_num_layers": 1, "depformer_num_heads": 1,
    "depformer_dim_feedforward": 12, "delays": [0, 0, 0], "existing_text_padding_id": 3,
}  # fmt: skip
PADDING = 3


class Fixed:
    """A model that gives these text logits at the first position."""

    def __init__(self, folder, engine, logits):
        config = {**SIZE, "text_card": len(logits)}
        weights = random_weights(config, 5)
        start = np.array([[config["text_card"], *[config["card"]] * config["n_q"]]])
        (output,), _ = SlowLm(weights, config).temporal(start)
        weights["text_linear.weight"] = (np.outer(logits, output) / (output @ output)).astype(np.float32)
        save_file(weights, folder / "lm.safetensors")
        self.lm = load_exact(folder / "lm.safetensors", config, engine)

    def drawn(self, sampler, seeds, recent=()):
        """What is drawn with each seed, if the tokens `recent` were said."""
        if not isinstance(sampler, TextSampler):
            sampler = TextSampler(**vars(sampler))
        streams = self.lm.config.streams
        run, prompt = self.lm.converse(Manner(sampler, Sampler(0))), Prompt(streams.begin())
        said = np.full(sampler.recent_size, self.lm.config.text_card, np.int32)
        said[: len(recent)] = recent
        tokens = []
        for seed in seeds:
            run.begin(seed, None)
            run.step(0, prompt.columns[0], said)
            tokens.append(run.take()[0, 0])
        self.logits = np.array(run.text_logits())
        return np.array(tokens)


@pytest.fixture
def fixed(tmp_path, engine):
    return lambda logits: Fixed(tmp_path, engine, logits)


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


@pytest.fixture(scope="module")
def count(engine):
    """How often to draw. A step of MLX takes longer."""
    return 2000 if engine == "mlx" else 20000


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_draws_follow_the_distribution(values, fixed, count):
    logits = np.random.default_rng(4).standard_normal(12)
    model = fixed(logits)
    drawn = model.drawn(Sampler(**values), range(count))
    assert np.abs(model.logits - logits).max() < 1e-5
    assert agrees(drawn, distribution(logits, **values))


@pytest.mark.parametrize("values", [{}, VALUES[1], VALUES[5], VALUES[-1]], ids=str)
def test_codes_follow_the_distribution(values, tmp_path, engine, count):
    """Of each of two codebooks; the second one's logits follow from what the first one was."""
    config = {**SIZE, "n_q": 3, "dep_q": 2, "delays": [0] * 4}
    lm, _ = seeded(tmp_path, config, engine)
    run, prompt = lm.converse(Manner(TextSampler(0), Sampler(**values))), Prompt(lm.config.streams.begin())
    drawn, logits = [], {}
    for seed in range(count):
        run.begin(seed, None)
        run.step(0, prompt.columns[0], np.zeros(0, np.int32))
        first, second = run.take()[0, 1:]
        drawn.append((first, second))
        if first not in logits:
            logits[first] = np.array(run.audio_logits())
    codes = np.array(drawn)
    (best, times), *_ = Counter(codes[:, 0].tolist()).most_common()
    assert agrees(codes[:, 0], distribution(logits[best][0], **values))
    assert times > count / 20
    assert agrees(codes[codes[:, 0] == best, 1], distribution(logits[best][1], **values))


def test_another_distribution_is_noticed(fixed, count):
    logits = np.random.default_rng(4).standard_normal(12)
    drawn = fixed(logits).drawn(Sampler(0.8), range(count))
    hotter = 0.8 * (1 + 10 / math.sqrt(count))
    for values in ({"temperature": hotter}, {"temperature": 0.8, "top_k": 11}, {"temperature": 0.8, "top_p": 0.98}):
        assert not agrees(drawn, distribution(logits, **values))


def test_seeds_and_positions_do_not_repeat_each_other(tmp_path, engine):
    """Codes of neighbouring seeds and positions are as often equal as independent draws are."""
    config = {**SIZE, "n_q": 4, "dep_q": 4, "delays": [0] * 5, "card": 40}
    weights = random_weights(config, 5)
    for k in range(4):
        weights[f"linears.{k}.weight"][:] = 0  # all codes are as likely
    save_file(weights, tmp_path / "lm.safetensors")
    lm = load_exact(tmp_path / "lm.safetensors", config, engine)
    run, prompt = lm.converse(Manner(TextSampler(0), Sampler(1.0))), Prompt(lm.config.streams.begin())
    drawn = []
    for seed in range(40):
        run.begin(seed, None)
        for position in range(40):
            run.step(position, prompt.columns[0], np.zeros(0, np.int32))
        drawn.append(run.take()[:, 1:])
    codes = np.array(drawn)  # [seeds, positions, codebooks]
    assert agrees(codes.ravel(), np.full(40, 1 / 40))
    for one, other in ((codes[1:], codes[:-1]), (codes[:, 1:], codes[:, :-1]), (codes[..., 1:], codes[..., :-1]),
                       (codes[1:, :-1], codes[:-1, 1:])):  # fmt: skip
        same = (one == other).ravel()
        assert abs(same.mean() - 1 / 40) < 4 * math.sqrt(39 / 40**2 / same.size)


def test_top_k_keeps_exactly_k_of_equal_logits(fixed):
    assert len(set(fixed([1.0] * 8).drawn(Sampler(1.0, 3), range(300)).tolist())) == 3


@pytest.mark.parametrize("temperature", [0, 1e-6, 1e-300])
def test_the_coldest_take_the_likeliest(temperature, fixed):
    logits = [3.0, 1.0, 3.01, -4.0, 2.9]
    model = fixed(logits)
    for values in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 5, "top_p": 0.5, "min_p": 0.5}):
        assert (model.drawn(Sampler(temperature, **values), range(5)) == 2).all()


def test_the_largest_numbers_do_what_they_say(fixed):
    """Whatever the coldest temperature makes of them; token 3 is padding."""
    model = fixed([30.0, -20.0, 29.0, 1.0])
    for values, best in (
        ({"padding_bonus": 1e9}, 3),
        ({"padding_bonus": -1e9}, 0),
        ({"repetition_penalty": 1e9}, 2),
        ({"repetition_penalty": 1e-9}, 0),
        ({"repetition_penalty": 1e9, "padding_bonus": 1e9}, 3),
    ):
        for more in ({"temperature": 1e-6}, {"temperature": 1e-6, "top_p": 1e-46}, {"temperature": 0}):
            assert model.drawn(TextSampler(**values, **more), [1], recent=[0]) == [best], (values, more)
    drawn = model.drawn(Sampler(temperature=1e9), range(2000))
    assert agrees(drawn, np.full(4, 1 / 4))


def test_penalty_and_bonus_equal_the_slow_version(fixed):
    """The likeliest token after both, with any tokens said, some of them twice."""
    rng, changed = np.random.default_rng(6), 0
    for _ in range(20):
        logits = rng.standard_normal(12)
        model = fixed(logits)
        for _ in range(10):
            penalty, bonus = float(np.exp(rng.standard_normal())), float(rng.choice([0, 1, -1.5]))
            recent = rng.integers(0, 12, rng.integers(0, 7)).tolist()
            wanted = logits.copy()
            for token in set(recent):
                wanted[token] *= penalty if wanted[token] < 0 else 1 / penalty
            wanted[PADDING] += bonus
            sampler = TextSampler(0, repetition_penalty=penalty, repetition_words=2, padding_bonus=bonus)
            assert model.drawn(sampler, [0], recent) == [wanted.argmax()]
            changed += wanted.argmax() != logits.argmax()
    assert changed > 30


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
