"""Checkpoints: both layouts, quantized or not, and every wrong file with its sentence."""

import json
import math
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from engines import load_exact, mx, on_mlx, weights_on_mlx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mimi import Mimi, MimiError
from paths import CASES, DEMO, GOLDEN
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from msh_mlx import InputError, LmConfig, LmGen, Sampler, load_lm
from msh_mlx.model.families import family_of
from msh_mlx.weights.checkpoint import open_checkpoint
from msh_mlx.weights.load import load
from msh_mlx.weights.safetensors import read_header

SMALL = GOLDEN / "lm-small"
QUANT = GOLDEN / "lm-quant"
MLX_FILE = SMALL / "lm_mlx_f32.safetensors"


def test_a_model_too_large_for_the_memory_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "lm.safetensors"  # a file of its own, of which no weights are held yet
    path.write_bytes(MLX_FILE.read_bytes())
    monkeypatch.setattr("msh_mlx.weights.onto_native.memory_to_take", lambda: 100_000)
    with pytest.raises(InputError, match=r"The weights take \d\.\d\d GB of memory, and 0\.00 GB can be had; close"):
        load_lm(path, SMALL / "config.json", engine="native", progress=lambda _: pytest.fail("something was read"))


def says(path, config=SMALL / "config.json", **options):
    """The one sentence with which loading fails."""
    with pytest.raises(InputError) as error:
        load_lm(path, config, **options)
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.fixture
def changed(tmp_path):
    """Write the small model with some tensors changed: None removes one."""

    def write(source=MLX_FILE, **changes):
        weights = load_file(source)
        for name, array in changes.items():
            if array is None:
                del weights[name]
            else:
                weights[name] = array
        path = tmp_path / "changed.safetensors"
        save_file(weights, path)
        return path

    return write


def test_both_layouts_give_the_same_weights():
    a, b = (
        weights_on_mlx(SMALL / f"{name}.safetensors", SMALL / "config.json") for name in ("lm_pytorch", "lm_mlx_f32")
    )
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert mx.array_equal(array, b[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["lm_pytorch", "lm_mlx_f32"])
def test_half_precision_files_are_taken(layout, dtype, tmp_path):
    arrays = mx.load(str(SMALL / f"{layout}.safetensors"))
    path = tmp_path / "half.safetensors"
    mx.save_safetensors(str(path), {name: array.astype(getattr(mx, dtype)) for name, array in arrays.items()})
    lm = on_mlx(path, SMALL / "config.json")
    exact = arrays["text_linear.weight"].astype(getattr(mx, dtype)).astype(mx.float32)
    assert mx.array_equal(lm.text_linear.weight, exact)


def test_mixed_quantization_is_read_off_the_tensors(tmp_path):
    """Some weights at 8 bits, some at 4, some not quantized at all, groups of two sizes: as stored, so it is run."""
    arrays = mx.load(str(QUANT / "lm_mlx_q8.safetensors"))
    q4 = mx.load(str(QUANT / "lm_mlx_q4.safetensors"))
    for part in ("weight", "scales", "biases"):
        arrays[f"text_emb.{part}"] = q4[f"text_emb.{part}"]
    head = [arrays.pop(f"text_linear.{part}") for part in ("weight", "scales", "biases")]
    arrays["text_linear.weight"] = mx.dequantize(*head, group_size=64, bits=8)
    mx.save_safetensors(str(tmp_path / "mixed.safetensors"), arrays)
    lm = on_mlx(tmp_path / "mixed.safetensors", QUANT / "config.json")
    assert (lm.text_emb.bits, lm.text_emb.group_size) == (4, 32)
    assert (lm.audio_embs[0].bits, lm.audio_embs[0].group_size) == (8, 64)
    assert not hasattr(lm.text_linear, "bits")
    for engine in ("mlx", "native"):
        mixed = load_exact(tmp_path / "mixed.safetensors", QUANT / "config.json", engine)
        assert mixed.about().bits == (4, 8, 32)
        logits, exact = (
            first_logits(one)
            for one in (mixed, load_exact(QUANT / "lm_mlx_q8.safetensors", QUANT / "config.json", engine))
        )
        # The rows of the text embedding are all that differs: about a 4-bit step of them.
        assert 0 < np.abs(logits - exact).max() < 0.3


def first_logits(lm):
    gen = LmGen(lm, text_sampler=Sampler(0), audio_sampler=Sampler(0))
    gen.step([1, 2])
    return np.array(gen.text_logits)


def test_codebooks_that_are_stored_differently_are_taken_one_by_one(tmp_path, engine):
    """Embeddings and inputs of the depformer are stacked where they are alike; where they are not, nothing changes."""
    arrays = mx.load(str(QUANT / "lm_mlx_q8.safetensors"))
    for module in ("audio_embs.1", "depformer.slices.1.linear_in"):
        parts = [arrays.pop(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        arrays[f"{module}.weight"] = mx.dequantize(*parts, group_size=64, bits=8)
    mx.save_safetensors(str(tmp_path / "mixed.safetensors"), arrays)
    lm = load_exact(tmp_path / "mixed.safetensors", QUANT / "config.json", engine)
    plain = load_exact(QUANT / "lm_mlx_q8.safetensors", QUANT / "config.json", engine)
    a, b = (LmGen(one, text_sampler=Sampler(0), audio_sampler=Sampler(0)) for one in (lm, plain))
    for t in range(5):
        codes = [(7 * t + k) % 64 for k in range(2)]
        step, other = a.step(codes), b.step(codes)
        assert np.abs(np.array(a.text_logits) - np.array(b.text_logits)).max() < 1e-4
        assert np.abs(np.array(a.audio_logits) - np.array(b.audio_logits)).max() < 1e-4
        assert (step.text_token, step.codes.tolist()) == (other.text_token, other.codes.tolist())


def test_dtype_follows_the_device():
    pytest.importorskip("mlx.core")
    from msh_mlx.model.mlx.layers import default_dtype

    assert default_dtype() == (mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16)
    assert on_mlx(MLX_FILE, SMALL / "config.json", None).text_linear.weight.dtype == default_dtype()


def test_other_dtypes_are_refused(engine):
    for wrong in ("float64", "int32", "", 4):
        with pytest.raises(InputError, match="give one of float32, bfloat16, float16"):
            load_lm(MLX_FILE, SMALL / "config.json", wrong, engine=engine)
    with pytest.raises(InputError, match="no engine 'torch'; give one of auto, mlx, native"):
        load_lm(MLX_FILE, SMALL / "config.json", engine="torch")


def test_path_may_hold_a_tilde_and_an_at_sign(tmp_path, monkeypatch, engine):
    folder = tmp_path / "models@main"
    folder.mkdir()
    (folder / "lm.safetensors").write_bytes(MLX_FILE.read_bytes())
    (folder / "config.json").write_bytes((SMALL / "config.json").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    lm = load_lm("~/models@main/lm.safetensors", "~/models@main/config.json", engine=engine)
    assert LmGen(lm, text_sampler=Sampler(0), audio_sampler=Sampler(0)).step([1, 2, 3, 4]).codes is not None


def test_quantized_must_be_what_the_file_is():
    assert "quantized to 8 bits, not 4" in says(QUANT / "lm_mlx_q8.safetensors", QUANT / "config.json", quantized=4)
    assert "quantized to 4 bits, not 8" in says(QUANT / "lm_mlx_q4.safetensors", QUANT / "config.json", quantized=8)
    assert "is not quantized" in says(MLX_FILE, quantized=8)


def test_files_that_are_none(tmp_path):
    assert "There is no file" in says(tmp_path / "nothing.safetensors")
    assert "is a folder" in says(tmp_path)
    contents = {
        "empty": (b"", "is empty"),
        "short": (b"\x10\0\0", "not a safetensors file"),
        "html": (b"<!DOCTYPE html><html><body>404</body></html>" * 20, "is a web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "is a git-lfs pointer"),
        "huge header": (struct.pack("<Q", 1 << 40) + b"{}", "not a safetensors file"),
        "no json": (struct.pack("<Q", 4) + b"{abc", "broken safetensors header"),
        "a list": (struct.pack("<Q", 2) + b"{]", "broken safetensors header"),
        "deep": (struct.pack("<Q", 90000) + b'{"a":' + b"[" * 89995, "broken safetensors header"),
        "dtype": (
            header({"x": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
            "x is of type 'F7'",
        ),
        "no whole bytes": (header({"x": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}) + b"\0" * 2, "broken"),
        "json": (b'{"a": 1}', "is a JSON file, which holds no weights"),
        "index": (
            b'{"weight_map": {"a": "m-1-of-2.safetensors", "b": "m-2-of-2.safetensors"}}',
            "is an index of a model that is in several files (m-1-of-2.safetensors, m-2-of-2.safetensors); give",
        ),
        "shape": (header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"\0" * 4, "broken"),
        "offsets": (header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + b"\0" * 8, "place of x"),
        "huge": (header({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}) + b"\0", "cut off"),
        "twice": (
            b"\x69\0\0\0\0\0\0\0" + b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}\0\0',
            "has a broken safetensors header: 'x' is there twice; fetch the file again.",
        ),
        "longer": (header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 8, "longer than"),
    }
    for name, (data, sentence) in contents.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert sentence in says(path), name
        with pytest.raises(MimiError) as error:  # the codec's file is read by the same reader
            Mimi(path)
        assert str(error.value) == says(path)


def header(entries):
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.rglob("*.safetensors")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_headers_are_those_that_the_published_reader_sees(path):
    found = read_header(path)
    data = path.read_bytes()
    with safe_open(path, "np") as file:
        assert sorted(found) == sorted(file.keys())
        for name, info in found.items():
            tensor = file.get_slice(name)
            assert (info.dtype, list(info.shape)) == (tensor.get_dtype(), tensor.get_shape())
            if info.dtype in ("F32", "F16", "U32"):
                assert data[info.begin : info.begin + info.nbytes] == file.get_tensor(name).tobytes()


@pytest.mark.parametrize("shape", [[0, 1 << 62, 1 << 62], [1 << 62, 1 << 62, 0]])
def test_an_empty_tensor_may_have_long_axes(shape, tmp_path):
    path = tmp_path / "empty.safetensors"
    path.write_bytes(header({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}))
    assert read_header(path)["x"].shape == tuple(shape)


@pytest.mark.parametrize("keep", [100, 5000, -1])
def test_truncated_files(keep, tmp_path):
    data = MLX_FILE.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[:keep])
    assert "cut off" in says(path)


def test_wrong_models(changed):
    assert "is a Mimi codec" in says(GOLDEN / "mimi-tiny" / "mimi.safetensors")
    assert "not a Moshi language model" in says(SMALL / "greedy_f32.safetensors")
    with pytest.raises(
        InputError, match=r"shapes of its tensors say num_layers = 2, .*dim = 64.*configuration num_layers = 32"
    ):
        load_lm(MLX_FILE)
    wider = {**json.loads((QUANT / "config.json").read_text()), "dim": 512, "num_heads": 8}
    assert "shapes of its tensors say dim = 256, and the configuration dim = 512" in says(
        QUANT / "lm_mlx_q8.safetensors", wider
    )
    assert "text_linear.weight has shape [96, 63]; [96, 64]" in says(
        changed(**{"text_linear.weight": np.zeros((96, 63), np.float32)})
    )
    assert "text_linear.weight is of type int32" in says(
        changed(**{"text_linear.weight": np.zeros((96, 64), np.int32)})
    )
    assert "text_linear.weight is missing" in says(changed(**{"text_linear.weight": None}))
    two = changed(**{"text_linear.weight": None, "text_emb.weight": None})
    assert "text_emb.weight, text_linear.weight (2 tensors) are missing" in says(two)
    assert "more.weight does not belong to this model" in says(changed(**{"more.weight": np.zeros(3, np.float32)}))
    pytorch = SMALL / "lm_pytorch.safetensors"
    assert "odd.alpha does not belong" in says(changed(pytorch, **{"odd.alpha": np.zeros(3, np.float32)}))
    rows = {"depformer.layers.0.self_attn.in_proj_weight": np.zeros((383, 32), np.float32)}
    assert "depformer" in says(changed(pytorch, **rows))


def test_wrong_quantized_tensors(changed):
    def says_changed(**changes):
        return says(changed(QUANT / "lm_mlx_q8.safetensors", **changes), QUANT / "config.json")

    assert "text_emb.biases is missing" in says_changed(**{"text_emb.biases": None})
    assert "text_emb has a quantized weight" in says_changed(**{"text_emb.scales": np.zeros((97, 3), np.float32)})
    assert "text_emb has a quantized weight" in says_changed(**{"text_emb.weight": np.zeros((97, 65), np.uint32)})
    assert "text_emb.weight is of type int32; uint32 is expected" in says_changed(
        **{"text_emb.weight": np.zeros((97, 64), np.int32)}
    )
    assert "text_emb.weight is of type float32; uint32 is expected" in says_changed(
        **{"text_emb.weight": np.zeros((97, 256), np.float32)}
    )
    assert "out_norm.scales does not belong" in says_changed(**{"out_norm.scales": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"dimension": 4}', "keys that are not known: dimension"),
        ('{"norm": "layer_norm"}', "norm = 'layer_norm'; only 'rms_norm_f32'"),
        ('{"dim": "64"}', "dim = '64'"),
        ('{"dim": 0}', "dim = 0"),
        ('{"dim": true}', "dim = True"),
        ('{"dim": 100000000000000}', "dim = 100000000000000"),
        ('{"delays": [0, 1]}', "delays has 2 entries"),
        ('{"delays": 3}', "delays = 3"),
        ('{"dep_q": 17}', "dep_q = 17 is larger than n_q = 16"),
        ('{"num_heads": 33}', "not an even multiple of num_heads"),
        ('{"text_card_out": 32001}', "text_card_out = 32001 is larger than text_card = 32000"),
        ('{"text_card_out": 3}', "existing_text_padding_id is not below text_card_out"),
        ('{"dim": null}', "dim = null"),
        ('{"dep_q": 0, "n_q": 0}', "n_q = 0; a whole number from 1"),
        ('{"model_type": "stt"}', "is of a speech-to-text model, but has dep_q = 8; 0 is expected"),
        ('{"model_type": "tts"}', "is of a text-to-speech model, but has dep_q = 8; n_q = 16 is expected"),
        ('{"dep_q": 15, "n_q": 15, "delays": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}', "leaves no codebook for the user"),
        ('{"kv_repeat": 3}', "num_heads = 32 is not a multiple of kv_repeat = 3"),
        ('{"cross_attention": 1}', "cross_attention = 1; true or false"),
        ('{"positional_embedding": "sin"}', "positional_embedding = 'sin'; rope or rope_concat"),
        ('{"conditioners": {"x": {"type": "lut"}}}', "conditioners that are not understood"),
        ('{"fuser": {"sum": ["x"]}}', "fuser names a condition that is not there"),
        ('{"max_period": 1e-300}', "max_period = 1e-300"),
        ('{"lora": "yes"}', "lora = 'yes'"),
        ('{"max_period": NaN}', "max_period = nan"),
    ],
)
def test_wrong_configurations(text, sentence, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert sentence in says(MLX_FILE, path)


def test_configuration_defaults_and_keys_that_do_not_matter():
    assert LmConfig.from_dict({}) == LmConfig()
    assert LmConfig.from_dict({"lm_gen_config": {"temp": 1}, "model_id": {}, "cross_attention": False}) == LmConfig()
    assert (LmConfig().hidden, LmConfig().depformer_hidden, LmConfig().user_q) == (11264, 2816, 8)
    with pytest.raises(InputError, match="bias_proj"):
        LmConfig.from_dict({"bias_proj": True})
    with pytest.raises(InputError, match=r"nowhere\.json"):
        LmConfig.from_file("nowhere.json")


@pytest.mark.parametrize("name", ["bom", "cardout", "causal", "ctx", "ffnull"])
def test_what_published_configurations_say(name, engine):
    """Keys that mean nothing to the model, nulls and a byte order mark: it runs as without them."""
    path, plain = CASES / f"config_{name}.json", DEMO / "config.json"
    config = LmConfig.from_file(path)
    widths = {"depformer_dim_feedforward": int(4.125 * 128)} if name == "ffnull" else {}
    assert config == replace(LmConfig.from_file(plain), **widths)
    tokens = []
    for one in (path, plain):
        lm = load_lm(DEMO / "model.q8.safetensors", one, engine=engine)
        gen = LmGen(lm, text_sampler=Sampler(0), audio_sampler=Sampler(0))
        tokens.append([gen.step([(37 * t + k) % 256 for k in range(8)]).text_token for t in range(8)])
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_configurations_in_the_encodings_of_other_systems(encoding, tmp_path):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "c.json").write_bytes((mark + (SMALL / "config.json").read_text()).encode(encoding))
    assert LmConfig.from_file(tmp_path / "c.json") == LmConfig.from_file(SMALL / "config.json")


def test_keys_that_mean_nothing_may_have_any_value():
    for key in (
        "depformer_context",
        "depformer_max_period",
        "depformer_causal",
        "existing_text_end_padding_id",
        "lora_name",
    ):
        for value in (None, 0, -1, 1e300, "x", False, [], {}):
            assert LmConfig.from_dict({key: value}) == LmConfig()
    for key in ("conditioners", "kv_repeat", "depformer_norm", "extra_heads_num_heads", "cross_attention", "lora"):
        assert LmConfig.from_dict({key: None}) == LmConfig()
    assert LmConfig.from_dict({"depformer_dim_feedforward": [96] * 8}).depformer_dim_feedforward == 96
    # Weights of its own for every step of the depformer.
    for schedule in (None, list(range(8))):
        assert LmConfig.from_dict({"depformer_weights_per_step_schedule": schedule}) == LmConfig()
    shared = LmConfig.from_dict({"depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 5, 6, 6]})
    assert shared.slices == (0, 1, 2, 3, 4, 5, 6, 6)
    for schedule in ([0, 1, 2, 3, 4, 5, 6, 8], [0, 1, 2, 3], [], "x", 8, [0.0] * 8, [True] * 8, [-1] * 8):
        with pytest.raises(InputError, match=r"_schedule = .*; a list of 8 numbers from 0 on, with none left out, is"):
            LmConfig.from_dict({"depformer_weights_per_step_schedule": schedule})
    # Names, remarks, what other programs set, and keys without values.
    said = {"moshi_path": 1, "_comment": "x", "torch_dtype": "bfloat16", "quantization": {"bits": 4}, "new": None}
    assert LmConfig.from_dict(said) == LmConfig()
    with pytest.raises(InputError, match="not known: new"):
        LmConfig.from_dict({"new": 0})
    # The package calls it so since it moved.
    demux = {"dep_q": 16, "demux_second_text_stream": True}
    assert LmConfig.from_dict(demux) == LmConfig.from_dict({"dep_q": 16, "demux_second_stream": True})
    # Speech to text has no depformer: whatever is said of it means nothing.
    nothing = {"dep_q": 0, "depformer_dim": None, "depformer_num_heads": 7, "depformer_weights_per_step_schedule": "x"}
    assert LmConfig.from_dict(nothing) == LmConfig.from_dict({"dep_q": 0})
    assert LmConfig(hidden_scale=4.0).hidden == 21 * 4096 // 8


STT = {"dep_q": 0, "model_type": "stt", "stt_config": {"audio_delay_seconds": 0.5}}
TTS = {"dep_q": 16, "demux_second_stream": True, "text_card_out": 5}
DESCRIPTION = {"type": "lut", "lut": {"n_bins": 31, "dim": 16, "possible_values": ["very_bad", "very_good"]}}
HIBIKI = {"conditioners": {"description": DESCRIPTION}, "fuser": {"sum": ["description"]}}
ZERO = {"depformer_norm": "layer_norm", "kv_repeat": 2, "positional_embedding": "rope_concat"}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "moshi"),
        ({"model_type": "moshi"}, "moshi"),
        (STT, "stt"),
        ({"dep_q": 0}, "stt"),
        (TTS, "tts"),
        ({"dep_q": 16, "tts_config": {"audio_delay": 1.28}}, "tts"),
        (HIBIKI, "hibiki"),
        (ZERO, "hibiki"),
        ({"model_type": "hibiki"}, "hibiki"),
        ({"model_type": "personaplex", "version": "7b-v1"}, "personaplex"),
        ({"dep_q": 16}, "personaplex"),
    ],
)
def test_the_family_is_what_the_configuration_says(values, name):
    config = LmConfig.from_dict({"n_q": 16, **values})
    assert family_of(config).name == name
    # What is written beside a converted model says the same, and has no more user's codes to predict.
    assert LmConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.dep_q == (8 if name == "personaplex" else values.get("dep_q", 8))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"architectures": ["MoshiForConditionalGeneration"], "model_type": "moshi", "hidden_size": 4096},
            "the Transformers library's own form of a model, which this program does not run; give Kyutai's own file",
        ),
        ({"model_type": "csm", "architectures": ["Csm"]}, "a text-to-speech model of another kind (CSM), which"),
        (
            {"backbone_flavor": "llama-1B", "decoder_flavor": "llama-100M"},
            "a text-to-speech model of another kind (CSM)",
        ),
        ({"model_type": "csm"}, "a text-to-speech model of another kind (CSM), which"),
        ({"model_type": "mimi", "codebook_dim": 256}, "a codec (Mimi), which this program does not run; give the conf"),
        (
            {"xa_shared": True, "xa_gating": "sigmoid"},
            "a model that sees images (MoshiVis), which this program does not",
        ),
    ],
)
def test_configurations_of_other_kinds_are_named(values, sentence):
    with pytest.raises(InputError) as error:
        LmConfig.from_dict(values)
    assert f"configuration is of {sentence}" in str(error.value)


def test_files_of_other_families_are_named(changed):
    def other(**changes):
        path = changed(SMALL / "lm_pytorch.safetensors", **changes)
        return says(path).removeprefix(f"{path} ")

    end = "and its configuration is that of a Moshi language model; give the model's own with --config."
    none = {name: None for name in load_file(SMALL / "lm_pytorch.safetensors") if name.startswith(("depf", "linears"))}
    assert other(**none) == f"is a speech-to-text model, {end}"
    assert other(**{"text_emb.out1.weight": np.zeros((64, 64), np.float32)}) == f"is a text-to-speech model, {end}"
    lut = {"condition_provider.conditioners.description.embed.weight": np.zeros((32, 16), np.float32)}
    assert other(**lut) == f"is a speech translation model (Hibiki), {end}"
    norms = {f"depformer_norms.{k}.weight": np.zeros(32, np.float32) for k in range(4)}
    assert other(**norms) == f"is a speech translation model (Hibiki), {end}"
    seeing = {"image_prefix.proj.weight": np.zeros((4, 4), np.float32)}
    assert other(**seeing).startswith("is a model that sees images (MoshiVis), which this program does not run; give a")
    scaled = {"text_linear.weight_scb": np.zeros(96, np.float32)}
    assert other(**scaled).startswith(
        "is quantized in PyTorch's own way, which this program does not read; give one for"
    )
    speaking = {"codebook0_head.weight": np.zeros((4, 4), np.float32), "out_norm.alpha": None}
    assert other(**speaking).startswith(
        "is a text-to-speech model of another kind (CSM), which this program does not run"
    )


def test_a_file_that_takes_the_place_of_the_one_that_was_checked(changed, tmp_path, engine):
    path = changed()
    checkpoint = open_checkpoint(path, SMALL / "config.json")
    load(checkpoint, engine)
    load(checkpoint, engine)  # as often as one likes
    other = tmp_path / "other.safetensors"
    other.write_bytes(path.read_bytes()[:-1] + b"?")
    other.replace(path)
    with pytest.raises(InputError, match=r"changed\.safetensors has changed since it was checked; start again\."):
        load(checkpoint, engine)
    path.unlink()
    with pytest.raises(InputError, match="There is no file"):
        load(checkpoint, engine)


def test_a_model_that_is_opened_leaves_nothing_behind():
    """In a process of its own, whose peak of memory nothing else raises: 300 more of a model of 1 MB."""
    code = f"""
import resource
from msh_mlx.weights.checkpoint import open_checkpoint
peaks = []
for i in range(350):
    open_checkpoint({str(MLX_FILE)!r}, {str(SMALL / "config.json")!r})
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[-1] / peaks[49])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1


def test_parts_and_the_names_of_other_libraries(changed, tmp_path):
    path = changed(SMALL / "lm_pytorch.safetensors", **{"out_norm.alpha": None})
    part = path.rename(tmp_path / "model-00002-of-00003.safetensors")
    assert "is part 2 of 3 of a model; give a model that is in one file" in says(part)
    whole = changed().rename(tmp_path / "model-00001-of-00002.safetensors")  # a name proves nothing
    load_lm(whole, SMALL / "config.json")
    for name in (
        "decoder.model.layers.0.self_attn.q_proj.linear.weight",
        "depth_decoder.layers.0.x",
        "embed_tokens.3.weight",
    ):
        save_file({name: np.zeros((2, 2), np.float32)}, part)
        assert "has the Transformers library's names of tensors; give Kyutai's own file" in says(part)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("F8_E4M3", 8),
        ("F8_E5M2", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("C64", 64),
    ],
)
def test_types_that_are_not_read_are_named(dtype, bits, tmp_path):
    """The header is sound; what is wrong is the type of a tensor."""
    data, entries, end = bytearray(), {}, 0
    for name, info in read_header(MLX_FILE).items():
        kind, size = (dtype, bits) if name == "text_linear.weight" else ("F32", 32)
        count = int(np.prod(info.shape)) * size // 8
        entries[name] = {"dtype": kind, "shape": list(info.shape), "data_offsets": [end, end + count]}
        data, end = data + bytes(count), end + count
    path = tmp_path / "typed.safetensors"
    path.write_bytes(header(entries) + data)
    assert f"text_linear.weight is of type {dtype}; a float of 16 or 32 bits is expected" in says(path)


@pytest.mark.parametrize(
    ("folder", "file", "name", "expected"),
    [
        (SMALL, "lm_mlx_f32", "text_linear.weight", "a float of 16 or 32 bits"),
        (SMALL, "lm_mlx_f32", "out_norm.weight", "a float of 16 or 32 bits"),
        (SMALL, "lm_mlx_f32", "transformer.layers.0.gating.linear_in.weight", "a float of 16 or 32 bits"),
        (QUANT, "lm_mlx_q8", "text_emb.weight", "uint32"),
        (QUANT, "lm_mlx_q8", "text_emb.biases", "a float of 16 or 32 bits"),
    ],
)
def test_a_type_is_named_before_the_shape_that_it_brings(folder, file, name, expected, tmp_path):
    data = (folder / f"{file}.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    entry = entries[name]
    begin, end = entry["data_offsets"]
    entry["dtype"], entry["shape"] = "F4", [*entry["shape"][:-1], 2 * (end - begin) // math.prod(entry["shape"][:-1])]
    path = tmp_path / "typed.safetensors"
    path.write_bytes(header(entries) + data[start:])
    assert says(path, folder / "config.json").endswith(f"{name} is of type F4; {expected} is expected.")


SMALL_BYTES = MLX_FILE.read_bytes()
HEADER_END = 8 + int.from_bytes(SMALL_BYTES[:8], "little")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    changes=st.lists(st.tuples(st.integers(0, HEADER_END - 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.booleans(),
)
def test_damaged_headers_end_in_a_sentence_or_a_model(changes, cut, tmp_path):
    """Whatever bytes of the header are wrong, there is one clear error, or they did not matter."""
    data = bytearray(SMALL_BYTES)
    for place, value in changes:
        data[place] = value
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(bytes(data[: changes[0][0]] if cut else data))
    try:
        load_lm(path, SMALL / "config.json")
    except InputError as error:
        message = str(error)
    else:
        assert len(read_header(path)) == len(read_header(MLX_FILE))
        return
    assert message.endswith(".")
    assert "\n" not in message
