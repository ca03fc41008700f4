"""Layers, and models that are made of them, with each engine, against numpy."""

import numpy as np
import pytest
from engines import seeded
from slow_lm import SlowLm, guided
from watched import Watched

from msh_mlx import LmGen, Sampler, TextSampler
from msh_mlx.model.engine import Manner
from msh_mlx.model.families import hibiki, tts
from msh_mlx.model.grid import Prompt
from msh_mlx.model.prefill import prefill

SMALL = {
    "dim": 32, "text_card": 50, "existing_text_padding_id": 3, "n_q": 6, "dep_q": 4, "card": 30, "num_heads": 4,
    "num_layers": 2, "hidden_scale": 4.125, "context": 20, "max_period": 10000, "depformer_dim": 16,
    "depformer_dim_feedforward": 66, "depformer_num_heads": 2, "depformer_num_layers": 2, "delays": [0, 0, 1, 1, 2, 0, 1],
}  # fmt: skip
TABLE = {
    "type": "lut",
    "lut": {"n_bins": 5, "dim": 6, "tokenizer": "noop", "possible_values": ["very_bad", "very_good"]},
}
TOLD = {
    "conditioners": {"description": TABLE},
    "fuser": {
        "cross_attention_pos_emb": False,
        "cross_attention_pos_emb_scale": 1,
        "sum": ["description"],
        "cross": [],
    },
}
HEARD = {
    "cross_attention": True,
    "conditioners": {"voices": {"type": "tensor", "tensor": {"dim": 6}}},
    "fuser": {"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 0.5, "sum": [], "cross": ["voices"]},
}
LAYERS = {
    "Moshi's": {},
    "shared keys": {"kv_repeat": 2},
    "keys shared by all": {"kv_repeat": 4, "depformer_kv_repeat": 1},
    "keys shared in the depformer": {"depformer_kv_repeat": 2},
    "concat": {"positional_embedding": "rope_concat"},
    "concat, shared keys": {"positional_embedding": "rope_concat", "kv_repeat": 2},
    "norms": {"depformer_norm": "layer_norm"},
    "schedule": {"depformer_weights_per_step_schedule": [0, 1, 1, 0]},
    "low rank": {"depformer_low_rank_embeddings": 6},
    "heads": {"extra_heads_num_heads": 3, "extra_heads_dim": 5},
    "cross-attention": HEARD,
    "fewer texts": {"text_card_out": 7},
    "wide gates": {"hidden_scale": 4, "depformer_dim_feedforward": None},
    "all": {
        "kv_repeat": 2, "depformer_kv_repeat": 2, "positional_embedding": "rope_concat", "depformer_norm": "layer_norm",
        "depformer_weights_per_step_schedule": [0, 1, 2, 2], "depformer_low_rank_embeddings": 6, "hidden_scale": 6, **TOLD,
    },
}  # fmt: skip


def conversation(lm, steps, seed=1, **options):
    """Talk with random codes and random samples. Return what every position read and gave."""
    gen = LmGen(lm, seed=seed, **options)
    seen = Watched(gen)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        gen.step(rng.integers(0, lm.config.card, lm.config.user_q))
    return seen


def made(tmp_path, config, engine, seed=7):
    """A model of seeded random weights, read from a file, and its slow version."""
    lm, weights = seeded(tmp_path, config, engine, seed)
    return lm, SlowLm(weights, config)


VOICE = np.random.default_rng(6).standard_normal((4, 6)).astype(np.float32)


def steered(lm):
    """The condition of a model that is told one, or the voice of a model that is given one."""
    return tts.steering(lm, [VOICE]) if lm.config.fuser.crossed else hibiki.steering(lm)


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_layers_equal_a_version_that_keeps_everything(layers, tmp_path, engine):
    """Text, codes and heads, over three windows."""
    lm, slow = made(tmp_path, {**SMALL, **layers}, engine)
    seen = conversation(lm, 60, steering=steered(lm))
    added = slow.condition("description", "very_good") if lm.config.fuser.added else 0
    source = slow.source("voices", [VOICE]) if lm.config.fuser.crossed else None
    h, text = slow.temporal(np.concatenate(seen.columns), added, source)
    assert np.abs(np.array(seen.text_logits) - text).max() < 1e-4
    if "extra_heads_dim" in layers:
        assert np.abs(np.array(seen.heads) - slow.heads(h)).max() < 1e-5
    for p in range(0, len(h), 7):
        codes = slow.depformer(h[p], seen.text[p], seen.codes[p])
        assert np.abs(seen.audio_logits[p] - codes).max() < 1e-4


@pytest.mark.parametrize("coef", [0.0, 4.0])
def test_guidance_mixes_two_models_that_are_told_other_things(coef, tmp_path, engine):
    lm, slow = made(tmp_path, {**SMALL, **LAYERS["all"]}, engine)
    seen = conversation(lm, 50, steering=hibiki.steering(lm, coef))
    columns = np.concatenate(seen.columns)
    (h, text), (h_null, text_null) = (
        slow.temporal(columns, slow.condition("description", value)) for value in ("very_good", "very_bad")
    )
    bound = 1e-4 * (abs(coef) + abs(coef - 1))
    assert np.abs(np.array(seen.text_logits) - guided(text, text_null, coef)).max() < bound
    for p in range(0, len(h), 7):
        given, null = (slow.depformer(x[p], seen.text[p], seen.codes[p]) for x in (h, h_null))
        assert np.abs(seen.audio_logits[p] - guided(given, null, coef)).max() < bound


# ---- a prompt at once ------------------------------------------------------------------------------------------------------

WIDE = {"dim": 64, "num_heads": 2}  # for keys and values in 8 bits
KINDS = ["Moshi's", "concat, shared keys", "all"]


def read(lm, columns, begin, kv_bits, steering, done=None):
    """Text logits of the positions from `begin` on, which read `columns`, perhaps behind a prompt that was read."""
    run = lm.converse(Manner(TextSampler(0), Sampler(0), kv_bits, steering))
    run.begin(0, done)
    logits = []
    for position in range(begin, len(columns)):
        run.step(position, columns[position], np.zeros(0, np.int32))
        run.take()
        logits.append(np.array(run.text_logits()))
    return np.array(logits)


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("layers", [*KINDS, "cross-attention"])
def test_a_prompt_at_once_equals_step_by_step(layers, kv_bits, tmp_path, engine):
    """In chunks of any size; and what is read behind it, until the ring has turned twice."""
    lm, _ = made(tmp_path, {**SMALL, **LAYERS[layers], **WIDE, "context": 30}, engine)
    steering, delay = steered(lm), lm.config.max_delay
    rng = np.random.default_rng(5)
    for length in (1, 7, 30):
        columns = rng.integers(0, 30, (length + 70, 7)).astype(np.int32)
        wanted = read(lm, columns, 0, kv_bits, steering)
        # The columns behind the prompt that its delays reach belong to it.
        prompt = Prompt(columns[: length + delay])
        for chunk in (3, 64):
            done = prefill(lm, prompt, kv_bits=kv_bits, steering=steering, chunk=chunk)
            found = read(lm, columns, length - 1, kv_bits, steering, done)
            assert np.abs(found - wanted[length - 1 :]).max() < (1e-4 if kv_bits is None else 3e-2)
