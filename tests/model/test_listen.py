"""`Listeners`: rows write what `LmGen` writes for each of them alone, with each engine."""

import dataclasses
import itertools

import numpy as np
import pytest
from engines import load_exact
from safetensors.numpy import save_file
from slow_lm import random_weights

from msh_mlx import InputError, LmConfig, LmGen, Sampler

CONFIG = LmConfig(
    dim=64, num_layers=3, num_heads=2, context=20, text_card=40, card=24, n_q=3, dep_q=0, delays=(0, 0, 0, 0),
    existing_text_padding_id=3, extra_heads_num_heads=4, extra_heads_dim=6, model_type="stt",
)  # fmt: skip
GREEDY = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0)}


def made(folder, engine, config=CONFIG, seed=5):
    weights = random_weights(config.to_dict(), seed)
    # Larger than at the start of a training, so that the likeliest token is clearly the likeliest.
    weights["text_linear.weight"] *= 20
    save_file(weights, folder / "lm.safetensors")
    return load_exact(folder / "lm.safetensors", config, engine)


@pytest.fixture(scope="module")
def lm(tmp_path_factory, engine):
    return made(tmp_path_factory.mktemp("lm"), engine)


def alone(lm, codes):
    """What `LmGen` writes: tokens, the priming step's first, and what the extra heads say."""
    gen = LmGen(lm, **GREEDY)
    tokens, heads, logits = [gen.prime()], [np.array(gen.extra_heads)], [np.array(gen.text_logits)]
    for frame in codes:
        tokens.append(gen.step(frame).text_token)
        heads.append(np.array(gen.extra_heads))
        logits.append(np.array(gen.text_logits))
    best = np.sort(logits, axis=1)
    assert (best[:, -1] - best[:, -2]).min() > 1e-3  # rounding cannot turn a choice
    return np.array(tokens), np.array(heads)


def test_rows_write_what_they_would_alone(lm, engine):
    """Streams begin at different steps, in rows that heard others before, and are longer than the window."""
    rng = np.random.default_rng(1)
    streams = [rng.integers(0, CONFIG.card, (length, 3)) for length in (55, 9, 30, 1, 47, 26)]
    columns = [np.concatenate([np.full((1, 3), CONFIG.card), stream]) for stream in streams]
    rows = [(0, 4), (1, 2), (3, 5)]  # the streams of each row, one behind the other
    offsets, steps = [2, 0, 7], 120
    codes = np.full((steps, 3, 3), -1)
    places = {}
    for row, numbers in enumerate(rows):
        at = offsets[row]
        for number in numbers:
            codes[at : at + len(columns[number]), row] = columns[number]
            places[number] = (row, at)
            at += len(columns[number])
    listeners = lm.listen(3)
    cuts = [0, *sorted(rng.choice(steps, 9, replace=False)), steps]
    heard = [listeners.hear(codes[a:b]) for a, b in itertools.pairwise(cuts) if b > a]
    tokens, heads = (np.concatenate([getattr(part, name) for part in heard]) for name in ("tokens", "heads"))
    for number, (row, at) in places.items():
        wanted, says = alone(lm, streams[number])
        np.testing.assert_array_equal(tokens[at : at + len(wanted), row], wanted)
        # The native engine computes the bits of a row whatever the others are.
        np.testing.assert_allclose(
            heads[at : at + len(wanted), row], says, rtol=0, atol=0 if engine == "native" else 1e-5
        )


def test_more_rows_than_an_engine_takes_at_once(lm):
    codes = np.random.default_rng(6).integers(0, CONFIG.card, (5, 150, 3))
    codes[0] = CONFIG.card
    heard = lm.listen(150).hear(codes)
    for first in (0, 60, 100):
        few = lm.listen(50).hear(codes[:, first : first + 50])
        np.testing.assert_array_equal(heard.tokens[:, first : first + 50], few.tokens)
        np.testing.assert_allclose(heard.heads[:, first : first + 50], few.heads, rtol=0, atol=1e-5)


def test_a_row_alone_is_a_conversation(lm):
    codes = np.random.default_rng(2).integers(0, CONFIG.card, (60, 3))
    listener = lm.listen()
    listener.warm_up()
    for _ in range(2):
        heard = listener.hear(np.concatenate([np.full((1, 3), CONFIG.card), codes])[:, None])
        np.testing.assert_array_equal(heard.tokens[:, 0], alone(lm, codes)[0])
        listener.reset()


def test_grouped_heads_and_an_8_bit_cache(tmp_path, engine):
    """Rows write the same with other forms of keys and values, too."""
    config = dataclasses.replace(CONFIG, kv_repeat=2, extra_heads_num_heads=0)
    lm = made(tmp_path, engine, config, seed=8)
    codes = np.random.default_rng(3).integers(0, CONFIG.card, (30, 3))
    for bits in (None, 8):
        gen = LmGen(lm, **GREEDY, kv_bits=bits)
        wanted = [gen.prime(), *(gen.step(frame).text_token for frame in codes)]
        columns = np.concatenate([np.full((1, 3), CONFIG.card), codes])
        heard = lm.listen(2, kv_bits=bits).hear(np.stack([columns, columns[::-1]], axis=1))
        np.testing.assert_array_equal(heard.tokens[:, 0], wanted)
        assert heard.heads.shape == (31, 2, 0, 0)


def test_an_8_bit_cache_that_cannot_be(lm):
    with pytest.raises(InputError, match="give 8"):
        lm.listen(kv_bits=4)


def test_a_copy_goes_on_by_itself(lm):
    """From the same state, with other codes; and what was copied is as if nobody had copied it."""
    rng = np.random.default_rng(4)
    codes = np.concatenate([np.full((1, 2, 3), CONFIG.card), rng.integers(0, CONFIG.card, (50, 2, 3))])
    other = np.concatenate([codes[:30], rng.integers(0, CONFIG.card, (21, 2, 3))])
    listeners = lm.listen(2)
    listeners.hear(codes[:30])
    copied = listeners.copy()
    found = copied.hear(other[30:40]), listeners.hear(codes[30:]), copied.hear(other[40:])
    listeners.reset()
    np.testing.assert_array_equal(found[1].tokens, listeners.hear(codes).tokens[30:])
    listeners.reset()
    wanted = listeners.hear(other).tokens[30:]
    np.testing.assert_array_equal(np.concatenate([found[0].tokens, found[2].tokens]), wanted)
    assert (wanted != found[1].tokens).any()
