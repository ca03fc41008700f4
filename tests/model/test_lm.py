"""The language model against golden data, against a slow version of itself, and over any length."""

import json
from dataclasses import replace

import numpy as np
import pytest
from engines import load_exact
from paths import GOLDEN
from safetensors.numpy import load_file, save_file
from slow_lm import SlowLm, inputs
from watched import Watched

from msh_mlx import InputError, LmConfig, LmGen, Sampler, load_lm

SMALL = GOLDEN / "lm-small"
QUANT = GOLDEN / "lm-quant"
GREEDY = Sampler(temperature=0)


def talk(gen, user_codes):
    """Run a conversation; `user_codes` is [codebooks, steps]. Returns text tokens and frames, [steps] and [dep_q, steps]."""
    steps = [gen.step(user_codes[:, t]) for t in range(user_codes.shape[1])]
    return [s.text_token for s in steps], np.array([s.codes for s in steps]).T


class Recorder:
    """Runs a greedy conversation and keeps what every position, the priming step included, chose and from what."""

    def __init__(self, lm, **options):
        self.gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY, **options)
        self._seen, self.frames = Watched(self.gen), []

    @property
    def tokens(self):
        return self._seen.codes

    def __getattr__(self, name):
        return getattr(self._seen, name)

    def talk(self, user_codes):
        self.frames += [self.gen.step(user_codes[:, t]).codes for t in range(user_codes.shape[1])]
        return self


def recorded(lm, user_codes, **options):
    """Run greedily and return, with the priming step first: text tokens, text logits, depformer tokens and logits, frames."""
    r = Recorder(lm, **options).talk(user_codes)
    arrays = (r.text, r.text_logits, np.array(r.tokens).T, r.audio_logits, np.array(r.frames).T)
    return tuple(np.array(array) for array in arrays)


@pytest.fixture(scope="module")
def small_golden():
    return load_file(SMALL / "greedy_f32.safetensors")


@pytest.mark.parametrize("layout", ["lm_pytorch", "lm_mlx_f32"])
def test_small_model_equals_the_reference(layout, small_golden, engine):
    lm = load_exact(SMALL / f"{layout}.safetensors", SMALL / "config.json", engine)
    text, logits, tokens, _, frames = recorded(lm, small_golden["user_codes"])
    assert (text == small_golden["text_tokens"]).all()
    assert (tokens == small_golden["depformer_tokens"]).all()
    assert (frames == small_golden["audio_frames"]).all()
    assert np.abs(logits - small_golden["text_logits"]).max() < 1e-4


def test_reset_starts_the_same_conversation_again(small_golden, engine):
    lm = load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine)
    gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
    for stop in (3, 70, 160):  # inside the first steps, past the window, at the end
        talk(gen, small_golden["user_codes"][:, :stop])
        gen.reset()
    text, frames = talk(gen, small_golden["user_codes"])
    assert (np.array(text) == small_golden["text_tokens"][1:]).all()
    assert (frames == small_golden["audio_frames"]).all()


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 32)])
def test_quantized_models_equal_the_reference(bits, group_size, engine):
    golden = load_file(QUANT / f"greedy_q{bits}_first48.safetensors")
    lm = load_exact(QUANT / f"lm_mlx_q{bits}.safetensors", QUANT / "config.json", engine, quantized=bits)
    assert lm.about().bits == (bits,)
    user = np.random.default_rng(12).integers(0, 64, (2, 160))[:, :47]
    text, _, _, _, frames = recorded(lm, user)
    assert (text == golden["text_tokens"]).all()
    assert (frames == golden["own_codes"]).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_activations_of_16_bits_keep_the_tokens(bits, dtype):
    """The native engine as it is used: activations in 16 bits, keys and values in float32, as this model is, or in float16."""
    golden = load_file(QUANT / f"greedy_q{bits}_first48.safetensors")
    lm = load_lm(QUANT / f"lm_mlx_q{bits}.safetensors", QUANT / "config.json", dtype, engine="native")
    assert lm.about().dtype == "int16"
    assert lm.kv_bytes(1) == lm.config.num_layers * 2 * lm.config.dim * (2 if dtype else 4)
    user = np.random.default_rng(12).integers(0, 64, (2, 160))[:, :47]
    text, _, _, _, frames = recorded(lm, user)
    assert (text == golden["text_tokens"]).all()
    assert (frames == golden["own_codes"]).all()


def test_ten_windows_equal_a_version_that_keeps_everything(engine):
    config = json.loads((SMALL / "config.json").read_text())
    user = np.random.default_rng(5).integers(0, config["card"], (4, 10 * config["context"]))
    lm = load_exact(SMALL / "lm_pytorch.safetensors", config, engine)
    text, logits, tokens, audio_logits, _ = recorded(lm, user)
    slow = SlowLm(load_file(SMALL / "lm_pytorch.safetensors"), config)
    h, slow_logits = slow.temporal(inputs(config, text, tokens, user))
    assert np.abs(logits - slow_logits).max() < 1e-4
    for p in range(0, len(text), 37):
        assert np.abs(audio_logits[p] - slow.depformer(h[p], text[p], tokens[:, p])).max() < 1e-4


@pytest.mark.parametrize(
    "delays", [[0] * 9, [0, 0, 2, 2, 3, 0, 2, 2, 3], [1, 0, 1, 1, 1, 2, 0, 1, 1]], ids=["none", "three", "mixed"]
)
def test_other_delays(delays, engine):
    config = {**json.loads((SMALL / "config.json").read_text()), "delays": delays}
    user = np.random.default_rng(6).integers(0, config["card"], (4, 30))
    lm = load_exact(SMALL / "lm_pytorch.safetensors", config, engine)
    r = Recorder(lm).talk(user)
    tokens = np.array(r.tokens).T
    slow = SlowLm(load_file(SMALL / "lm_pytorch.safetensors"), config)
    _, logits = slow.temporal(inputs(config, r.text, tokens, user))
    assert np.abs(np.array(r.text_logits) - logits).max() < 1e-4
    largest = max(delays)
    for t, frame in enumerate(r.frames):
        own = t + 1 - largest
        if own < 0:
            assert frame is None
        else:
            assert frame.tolist() == [tokens[k][own + delays[1 + k]] for k in range(4)]


def test_a_missing_code_adds_nothing(engine):
    config = json.loads((SMALL / "config.json").read_text())
    user = np.random.default_rng(7).integers(-1, config["card"], (4, 12))
    assert (user == -1).any()
    lm = load_exact(SMALL / "lm_pytorch.safetensors", config, engine)
    text, logits, tokens, _, _ = recorded(lm, user)
    _, slow_logits = SlowLm(load_file(SMALL / "lm_pytorch.safetensors"), config).temporal(
        inputs(config, text, tokens, user)
    )
    assert np.abs(logits - slow_logits).max() < 1e-4


def test_the_cache_grows_with_the_conversation_up_to_the_window(engine):
    """Over two doublings and the turn of the ring, the logits are those of a version that keeps everything."""
    config = {**json.loads((SMALL / "config.json").read_text()), "context": 600}
    user = np.random.default_rng(15).integers(0, config["card"], (4, 700))
    lm = load_exact(SMALL / "lm_pytorch.safetensors", config, engine)
    r = Recorder(lm)
    held = set()
    for t in range(700):
        r.talk(user[:, t : t + 1])
        held.add(r.gen.kv_bytes)
    # MLX takes twice as many positions each time, the native engine one after the other.
    sizes = (128, 256, 512, 600) if engine == "mlx" else range(2, 601)
    assert sorted(held) == [lm.kv_bytes(n) for n in sizes]
    _, slow = SlowLm(load_file(SMALL / "lm_pytorch.safetensors"), config).temporal(
        inputs(config, r.text, np.array(r.tokens).T, user)
    )
    assert np.abs(np.array(r.text_logits) - slow).max() < 1e-4


def test_sampling_follows_the_seed(small_golden, engine):
    lm = load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine)
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
def test_wrong_codes_are_refused_and_change_nothing(codes, says, small_golden, engine):
    lm = load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine)
    gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
    talk(gen, small_golden["user_codes"][:, :5])
    with pytest.raises(InputError) as error:
        gen.step(codes)
    assert says in str(error.value)
    text, frames = talk(gen, small_golden["user_codes"][:, 5:20])
    assert (np.array(text) == small_golden["text_tokens"][6:21]).all()
    assert (frames == small_golden["audio_frames"][:, 5:20]).all()


def test_codes_may_be_a_column(small_golden, engine):
    lm = load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine)
    gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
    step = gen.step(small_golden["user_codes"][:, :1].astype(np.uint32))
    assert step.text_token == small_golden["text_tokens"][1]
    assert step.codes.dtype == np.uint32
    assert step.frame is step.codes


def test_seed_out_of_range(engine):
    lm = load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine)
    with pytest.raises(InputError, match="seed"):
        LmGen(lm, seed=-1)
    assert (
        LmGen(lm, seed=2**64 - 1, text_sampler=Sampler(1.0), audio_sampler=Sampler(1.0)).step([0] * 4).codes is not None
    )


def test_feed_forward_width_is_that_of_the_tensors(tmp_path, engine):
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
    text, logits, tokens, _, _ = recorded(load_exact(tmp_path / "lm.safetensors", config, engine), user)
    _, slow = SlowLm(weights, config).temporal(inputs(config, text, tokens, user))
    assert np.abs(logits - slow).max() < 1e-4


def test_config_in_every_form(small_golden, engine):
    values = json.loads((SMALL / "config.json").read_text())
    user = small_golden["user_codes"][:, :3]
    forms = [SMALL / "config.json", str(SMALL / "config.json"), values, LmConfig.from_dict(values)]
    for form in forms:
        text, _, _, _, _ = recorded(load_exact(SMALL / "lm_mlx_f32.safetensors", form, engine), user)
        assert (text == small_golden["text_tokens"][:4]).all()
    assert replace(LmConfig.from_dict(values), dim=4096) != LmConfig.from_dict(values)
