"""Layers, and models that are made of them, on any number of rows, against numpy."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import save_file
from slow_lm import SlowLm, guided, random_weights
from watched import Watched

from msh_mlx import LmGen, load_lm
from msh_mlx.model.families import hibiki, tts
from msh_mlx.model.grid import Prompt
from msh_mlx.model.mlx.attention import ring_caches, rotation, slots
from msh_mlx.model.mlx.layers import normalize
from msh_mlx.model.prefill import prefill


@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (1, 1, 48), (3, 1, 48), (3, 5, 48)])
def test_rows_are_normalized_each_by_itself(shape):
    rng = np.random.default_rng(4)
    x = rng.normal(size=shape).astype(np.float32) * np.exp(rng.normal(size=(*shape[:-1], 1))).astype(np.float32)
    norm = nn.RMSNorm(shape[-1], eps=1e-8)
    norm.weight = mx.array(rng.uniform(0.5, 2, shape[-1]).astype(np.float32))
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-8) * np.array(norm.weight)
    assert np.abs(np.array(normalize(norm, mx.array(x))) - expected).max() < 1e-5


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


def made(tmp_path, config, seed=7):
    """A model of seeded random weights, read from a file, and its slow version."""
    filled = {**config, "depformer_dim_feedforward": config["depformer_dim_feedforward"] or 4 * config["depformer_dim"]}
    weights = random_weights(filled, seed)
    save_file(weights, tmp_path / "lm.safetensors")
    return load_lm(tmp_path / "lm.safetensors", config, mx.float32), SlowLm(weights, config)


VOICE = np.random.default_rng(6).standard_normal((4, 6)).astype(np.float32)


def steered(lm):
    """The condition of a model that is told one, or the voice of a model that is given one."""
    return tts.steering(lm, [VOICE]) if lm.config.fuser.crossed else hibiki.steering(lm)


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_layers_equal_a_version_that_keeps_everything(layers, tmp_path):
    """Text, codes and heads, over three windows."""
    lm, slow = made(tmp_path, {**SMALL, **layers})
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
def test_guidance_mixes_two_models_that_are_told_other_things(coef, tmp_path):
    lm, slow = made(tmp_path, {**SMALL, **LAYERS["all"]})
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


# ---- rows of a batch, and a prompt at once ---------------------------------------------------------------------------------


class Rows:
    """Runs the temporal transformer position by position, on the columns of all rows of a batch."""

    def __init__(self, lm, batch=1, kv_bits=None, added=None, rings=None, position=0, sources=()):
        self._lm, self._added, self._sources, self.position = lm, added, sources, position
        self._form = lm.ring_format(kv_bits, batch)
        self.rings = rings or [self._form.empty(lm.config.context) for _ in range(lm.config.num_layers)]

    def read(self, columns):
        """`columns` [batch, 1 + n_q] → output and text logits of each row, [batch, dim + text_card]."""
        config = self._lm.config
        factors = mx.array(rotation(self.position, self._form, config.max_period))
        caches = ring_caches(
            self.rings, self._form, mx.array(slots(self.position, config.context, self.rings)), factors
        )
        result = self._lm(mx.array(columns), caches, self._added, self._sources or None)
        self.rings = [cache.ring for cache in caches]
        self.position += 1
        return np.concatenate([np.array(part) for part in result], axis=1)


WIDE = {"dim": 64, "num_heads": 2}  # for keys and values in 8 bits
KINDS = ["Moshi's", "concat, shared keys", "all"]


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("layers", KINDS)
def test_rows_of_a_batch_are_independent(layers, kv_bits, tmp_path):
    """Each row, beside others with other columns and conditions, is as it is alone, over three windows."""
    lm, _ = made(tmp_path, {**SMALL, **LAYERS[layers], **WIDE, "kv_repeat": 1})
    lm.prepare()
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
    lm, slow = made(tmp_path, {**SMALL, **LAYERS[layers]})
    lm.prepare()
    outputs, codes = np.random.default_rng(4).standard_normal((3, 32)).astype(np.float32), [5, 0, 29, 7]
    found = []
    lm.depformer(mx.array(outputs), mx.array([9]), lambda logits, k: found.append(logits) or mx.array([codes[k]]))
    for row, h in enumerate(outputs):
        wanted = slow.depformer(h, 9, codes)
        assert np.abs(np.array([np.array(logits)[row] for logits in found]) - wanted).max() < 1e-4


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("layers", [*KINDS, "cross-attention"])
def test_a_prompt_at_once_equals_step_by_step(layers, kv_bits, tmp_path):
    """In chunks of any size; and what is read behind it, until the ring has turned twice."""
    config = {**SMALL, **LAYERS[layers], **WIDE, "context": 30}
    lm, _ = made(tmp_path, config)
    steer = steered(lm)
    rng = np.random.default_rng(5)
    for length in (1, 7, 30):
        columns = rng.integers(0, 30, (length + 70, 7)).astype(np.int32)
        slowly = Rows(lm, 1, kv_bits, steer.added, sources=steer.sources)
        first = [slowly.read(column[None]) for column in columns[: length - 1]]
        assert len(first) == length - 1
        wanted = np.array([slowly.read(column[None]) for column in columns[length - 1 :]])
        # The columns behind the prompt that its delays reach belong to it.
        prompt = Prompt(columns[: length + lm.config.max_delay])
        for chunk in (3, 64):
            read = prefill(lm, prompt, kv_bits=kv_bits, steering=steer, chunk=chunk)
            rings = [read.form.grown(ring, 30) if ring[0].shape[2] < 30 else ring for ring in read.rings]
            behind = Rows(lm, 1, kv_bits, steer.added, rings, length - 1, steer.sources)
            found = np.array([behind.read(column[None]) for column in columns[length - 1 :]])
            assert np.abs(found - wanted).max() < (1e-4 if kv_bits is None else 3e-2)
