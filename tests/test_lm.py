"""The language model against golden data, against a slow version of itself, and over any length."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from slow_lm import SlowLm, inputs, rotate

from msh_mlx import InputError, LmConfig, LmGen, Sampler, load_lm
from msh_mlx.models.cache import KeyValueRing
from msh_mlx.models.transformer import rotation

GOLDEN = Path(__file__).parent / "golden"
SMALL = GOLDEN / "lm-small"
QUANT = GOLDEN / "lm-quant"
GREEDY = Sampler(temperature=0)


class Recorder(Sampler):
    """Greedy, and remembers the logits that it saw and what it chose."""

    def __init__(self):
        super().__init__(temperature=0)
        object.__setattr__(self, "logits", [])
        object.__setattr__(self, "tokens", [])

    def __call__(self, logits, key):
        token = super().__call__(logits, key)
        self.logits.append(np.array(logits[0].astype(mx.float32)))
        self.tokens.append(int(token[0]))
        return token


def talk(gen, user_codes):
    """Run a conversation; `user_codes` is [codebooks, steps]. Returns text tokens and frames, [steps] and [dep_q, steps]."""
    steps = [gen.step(user_codes[:, t]) for t in range(user_codes.shape[1])]
    return [s.text_token for s in steps], np.array([s.frame for s in steps]).T


def recorded(lm, user_codes):
    """Run greedily and return, with the priming step first: text tokens, text logits, depformer tokens and logits, frames."""
    text, audio = Recorder(), Recorder()
    gen = LmGen(lm, text_sampler=text, audio_sampler=audio)
    _, frames = talk(gen, user_codes)
    dep_q = lm.config.dep_q
    tokens = np.array(audio.tokens).reshape(-1, dep_q).T
    return (
        np.array(text.tokens),
        np.array(text.logits),
        tokens,
        np.array(audio.logits).reshape(-1, dep_q, lm.config.card),
        frames,
    )


@pytest.fixture(scope="module")
def small_golden():
    return load_file(SMALL / "greedy_f32.safetensors")


@pytest.mark.parametrize("layout", ["lm_pytorch", "lm_mlx_f32"])
def test_small_model_equals_the_reference(layout, small_golden):
    lm = load_lm(SMALL / f"{layout}.safetensors", SMALL / "config.json", mx.float32)
    text, logits, tokens, _, frames = recorded(lm, small_golden["user_codes"])
    assert (text == small_golden["text_tokens"]).all()
    assert (tokens == small_golden["depformer_tokens"]).all()
    assert (frames == small_golden["audio_frames"]).all()
    assert np.abs(logits - small_golden["text_logits"]).max() < 1e-4


def test_reset_starts_the_same_conversation_again(small_golden):
    lm = load_lm(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", mx.float32)
    gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
    for stop in (3, 70, 160):  # inside the first steps, past the window, at the end
        talk(gen, small_golden["user_codes"][:, :stop])
        gen.reset()
    text, frames = talk(gen, small_golden["user_codes"])
    assert (np.array(text) == small_golden["text_tokens"][1:]).all()
    assert (frames == small_golden["audio_frames"]).all()


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 32)])
def test_quantized_models_equal_the_reference(bits, group_size):
    golden = load_file(QUANT / f"greedy_q{bits}_first48.safetensors")
    lm = load_lm(QUANT / f"lm_mlx_q{bits}.safetensors", QUANT / "config.json", mx.float32, quantized=bits)
    assert (lm.text_linear.bits, lm.text_linear.group_size) == (bits, group_size)
    user = np.random.default_rng(12).integers(0, 64, (2, 160))[:, :47]
    text, _, _, _, frames = recorded(lm, user)
    assert (text == golden["text_tokens"]).all()
    assert (frames == golden["own_codes"]).all()


def test_ten_windows_equal_a_version_that_keeps_everything():
    config = json.loads((SMALL / "config.json").read_text())
    user = np.random.default_rng(5).integers(0, config["card"], (4, 10 * config["context"]))
    lm = load_lm(SMALL / "lm_pytorch.safetensors", config, mx.float32)
    text, logits, tokens, audio_logits, _ = recorded(lm, user)
    slow = SlowLm(load_file(SMALL / "lm_pytorch.safetensors"), config)
    h, slow_logits = slow.temporal(inputs(config, text, tokens, user))
    assert np.abs(logits - slow_logits).max() < 1e-4
    for p in range(0, len(text), 37):
        assert np.abs(audio_logits[p] - slow.depformer(h[p], text[p], tokens[:, p])).max() < 1e-4


@pytest.mark.parametrize(
    "delays", [[0] * 9, [0, 0, 2, 2, 3, 0, 2, 2, 3], [1, 0, 1, 1, 1, 2, 0, 1, 1]], ids=["none", "three", "mixed"]
)
def test_other_delays(delays):
    config = {**json.loads((SMALL / "config.json").read_text()), "delays": delays}
    user = np.random.default_rng(6).integers(0, config["card"], (4, 30))
    lm = load_lm(SMALL / "lm_pytorch.safetensors", config, mx.float32)
    text, audio = Recorder(), Recorder()
    gen = LmGen(lm, text_sampler=text, audio_sampler=audio)
    frames = [gen.step(user[:, t]).frame for t in range(30)]
    tokens = np.array(audio.tokens).reshape(-1, 4).T
    slow = SlowLm(load_file(SMALL / "lm_pytorch.safetensors"), config)
    _, logits = slow.temporal(inputs(config, text.tokens, tokens, user))
    assert np.abs(np.array(text.logits) - logits).max() < 1e-4
    largest = max(delays)
    for t, frame in enumerate(frames):
        own = t + 1 - largest
        if own < 0:
            assert frame is None
        else:
            assert frame.tolist() == [tokens[k][own + delays[1 + k]] for k in range(4)]


def test_a_missing_code_adds_nothing():
    config = json.loads((SMALL / "config.json").read_text())
    user = np.random.default_rng(7).integers(-1, config["card"], (4, 12))
    assert (user == -1).any()
    lm = load_lm(SMALL / "lm_pytorch.safetensors", config, mx.float32)
    text, logits, tokens, _, _ = recorded(lm, user)
    _, slow_logits = SlowLm(load_file(SMALL / "lm_pytorch.safetensors"), config).temporal(
        inputs(config, text, tokens, user)
    )
    assert np.abs(logits - slow_logits).max() < 1e-4


@pytest.mark.parametrize("position", [0, 1, 3750, 1_080_000, 10**9])
def test_rotation_is_exact_at_any_position(position):
    x = np.random.default_rng(position).standard_normal((1, 4, 1, 64))
    freqs = rotation(position, 64, 10000.0)
    fast = mx.fast.rope(
        mx.array(x.astype(np.float32)), 64, traditional=True, base=None, scale=1.0, offset=1, freqs=freqs
    )
    assert np.abs(np.array(fast)[0] - rotate(x[0], np.array([float(position)]), 10000.0)).max() < 5e-6


def test_ring_holds_the_last_context_steps_and_grows_by_doubling():
    ring, context = KeyValueRing(150), 150
    capacities = set()
    for p in range(400):
        step = mx.full((1, 1, 1, 1), float(p))
        keys, values = ring.update(p, step, -step)
        seen = sorted(np.array(keys).ravel().tolist())
        assert seen == [float(q) for q in range(max(0, p + 1 - context), p + 1)]
        assert (np.array(values) == -np.array(keys)).all()
        capacities.add(ring.keys.shape[2])
    assert capacities == {64, 128, 150}
    assert ring.nbytes == 2 * 150 * 4


def test_bfloat16_stays_near_float32(small_golden):
    user = small_golden["user_codes"][:, :40]
    lm = load_lm(SMALL / "lm_pytorch.safetensors", SMALL / "config.json", mx.bfloat16)
    assert lm.text_linear.weight.dtype == mx.bfloat16
    gen = LmGen(lm, text_sampler=(text := Recorder()), audio_sampler=GREEDY)
    talk(gen, user[:, :1])
    h, logits = lm(mx.zeros((1, 9), mx.int32), lm.make_cache(), 0)
    assert h.dtype == logits.dtype == mx.bfloat16
    # The first two positions have the same inputs in either precision.
    same = load_lm(SMALL / "lm_pytorch.safetensors", SMALL / "config.json", mx.float32)
    _, exact, _, _, _ = recorded(same, user[:, :1])
    assert np.abs(text.logits[0] - exact[0]).max() < 0.05 * np.abs(exact[0]).max()


def test_sampling_follows_the_seed(small_golden):
    lm = load_lm(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", mx.float32)
    user = small_golden["user_codes"][:, :60]

    def conversation(seed):
        text, frames = talk(LmGen(lm, seed=seed), user)
        return text, frames.tolist()

    gen = LmGen(lm, seed=3)
    first = talk(gen, user)
    gen.reset()
    again = talk(gen, user)
    assert (first[0], first[1].tolist()) == (again[0], again[1].tolist()) == conversation(3)
    assert conversation(3) != conversation(4)
    free = LmGen(lm)
    one = talk(free, user)
    free.reset()
    two = talk(free, user)
    assert one[1].tolist() != two[1].tolist()


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        ([1, 2, 3], "shape [4]"),
        ([1, 2, 3, 64], "64"),
        ([1, 2, 3, -2], "-2"),
        (np.array([1, 2, 3, 2**32 - 1], np.uint32), "4294967295"),
        ([1.0, 2.0, 3.0, 4.0], "float64[4]"),
    ],
)
def test_wrong_codes_are_refused_and_change_nothing(codes, says, small_golden):
    lm = load_lm(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", mx.float32)
    gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
    talk(gen, small_golden["user_codes"][:, :5])
    with pytest.raises(InputError) as error:
        gen.step(codes)
    assert says in str(error.value)
    text, frames = talk(gen, small_golden["user_codes"][:, 5:20])
    assert (np.array(text) == small_golden["text_tokens"][6:21]).all()
    assert (frames == small_golden["audio_frames"][:, 5:20]).all()


def test_codes_may_be_a_column(small_golden):
    lm = load_lm(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", mx.float32)
    gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
    step = gen.step(small_golden["user_codes"][:, :1].astype(np.uint32))
    assert step.text_token == small_golden["text_tokens"][1]
    assert step.frame.dtype == np.uint32


def test_seed_out_of_range():
    lm = load_lm(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json")
    with pytest.raises(InputError, match="seed"):
        LmGen(lm, seed=-1)
    assert (
        LmGen(lm, seed=2**64 - 1, text_sampler=Sampler(1.0), audio_sampler=Sampler(1.0)).step([0] * 4).frame is not None
    )


def test_feed_forward_width_is_that_of_the_tensors(tmp_path):
    """A file whose hidden widths differ from the configuration's is taken as it is."""
    weights = load_file(SMALL / "lm_pytorch.safetensors")
    hidden = 100
    for name, array in list(weights.items()):
        if name.startswith("transformer.") and "gating" in name:
            rng = np.random.default_rng(len(name))
            shape = (2 * hidden, array.shape[1]) if "linear_in" in name else (array.shape[0], hidden)
            weights[name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    save_file(weights, tmp_path / "lm.safetensors")
    config = json.loads((SMALL / "config.json").read_text())
    user = np.random.default_rng(8).integers(0, config["card"], (4, 6))
    text, logits, tokens, _, _ = recorded(load_lm(tmp_path / "lm.safetensors", config, mx.float32), user)
    _, slow = SlowLm(weights, config).temporal(inputs(config, text, tokens, user))
    assert np.abs(logits - slow).max() < 1e-4


def test_config_in_every_form(small_golden):
    values = json.loads((SMALL / "config.json").read_text())
    user = small_golden["user_codes"][:, :3]
    forms = [SMALL / "config.json", str(SMALL / "config.json"), values, LmConfig.from_dict(values)]
    for form in forms:
        text, _, _, _, _ = recorded(load_lm(SMALL / "lm_mlx_f32.safetensors", form, mx.float32), user)
        assert (text == small_golden["text_tokens"][:4]).all()
    assert replace(LmConfig.from_dict(values), dim=4096) != LmConfig.from_dict(values)
