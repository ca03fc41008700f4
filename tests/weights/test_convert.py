"""`msh-mlx convert`: what it writes is what MLX would hold, loads again, and says how far it is from before."""

import json
import subprocess
import sys

import numpy as np
import pytest
from engines import mx, on_mlx, weights_on_mlx
from paths import GOLDEN, ROOT
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from msh_mlx import InputError, LmConfig, load_lm
from msh_mlx.cli.main import main
from msh_mlx.weights.beside import find_config
from msh_mlx.weights.checkpoint import file_bits
from msh_mlx.weights.convert import Rule, check, convert
from msh_mlx.weights.safetensors import TensorInfo, TensorWriter, as_bfloat16, read_header, read_tensor

SMALL, QUANT = GOLDEN / "lm-small", GOLDEN / "lm-quant"
PYTORCH, CONFIG = SMALL / "lm_pytorch.safetensors", SMALL / "config.json"
Q8, Q4, QUANT_CONFIG = QUANT / "lm_mlx_q8.safetensors", QUANT / "lm_mlx_q4.safetensors", QUANT / "config.json"


parameters = weights_on_mlx


def refused(tmp_path, path=PYTORCH, **options):
    """The one sentence with which converting fails; nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    options = {"bits": 4, "group_size": 32, "config": CONFIG, **options}
    with pytest.raises(InputError) as error:
        convert(path, tmp_path / "out.safetensors", **options)
    assert sorted(tmp_path.iterdir()) == before
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_rows_are_read_and_written_where_they_belong(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {
        "half": as_bfloat16(np.random.default_rng(1).standard_normal((5, 3), np.float32)),
        "bits": np.arange(8, dtype=np.uint32).reshape(4, 2),
        "float": np.random.default_rng(2).standard_normal(7, np.float32),
    }
    names = {"half": "BF16", "bits": "U32", "float": "F32"}
    with path.open("wb") as file:
        writer = TensorWriter(file, {name: TensorInfo(names[name], a.shape) for name, a in arrays.items()})
        writer.write("float", arrays["float"])
        writer.write("half", arrays["half"][3:], 3)
        writer.write("half", arrays["half"][:3])
        writer.write("bits", arrays["bits"])
    header = read_header(path)
    with safe_open(path, "np") as others:
        assert {name: others.get_slice(name).get_dtype() for name in arrays} == names
        for name in ("bits", "float"):
            assert np.array_equal(others.get_tensor(name), arrays[name])
    for name, array in arrays.items():
        assert np.array_equal(read_tensor(path, header[name]), array)
        assert np.array_equal(read_tensor(path, header[name].rows(2, 9)), array[2:])
        assert header[name].begin % 2 == 0


@pytest.mark.parametrize("layout", ["lm_pytorch", "lm_mlx_f32"])
def test_bfloat16_from_either_layout(layout, tmp_path):
    fractions = []
    result = convert(
        SMALL / f"{layout}.safetensors", tmp_path / "o.safetensors", bits=16, config=CONFIG, progress=fractions.append
    )
    after, before = parameters(result.path, result.config), parameters(PYTORCH, CONFIG, "bfloat16")
    assert after.keys() == before.keys()
    for name, array in before.items():
        assert mx.array_equal(after[name], array.astype(mx.float32)), name
    assert {info.dtype for info in read_header(result.path).values()} == {"BF16"}
    assert (result.bytes_before, result.bytes_after) == (
        (SMALL / f"{layout}.safetensors").stat().st_size,
        result.path.stat().st_size,
    )
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


def error(array, parts, group_size, bits):
    """How far packed numbers are from those that they stand for."""
    words, *numbers = parts
    array, scales, biases = (part.astype(mx.float32) for part in (array, *numbers))
    return np.abs(np.array(mx.dequantize(words, scales, biases, group_size=group_size, bits=bits) - array))


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (6, 32), (4, 32), (4, 128)])
def test_quantized_as_mlx_does_it(bits, group_size, tmp_path):
    """The temporal layers' 176 columns are no whole groups of 64, say: those stay bfloat16, and are named."""
    result = convert(PYTORCH, tmp_path / "o.safetensors", bits=bits, group_size=group_size, config=CONFIG)
    stored = mx.load(str(result.path))
    exact = parameters(PYTORCH, CONFIG, "bfloat16")
    kinds = set()
    for name, array in exact.items():
        module = name.removesuffix(".weight")
        fits = array.ndim == 2 and array.shape[1] % group_size == 0
        kinds.add(fits)
        if fits:
            # The same scales and biases; and each number is the nearest to the scale as it is stored.
            theirs = mx.quantize(array, group_size, bits)
            ours = [stored.pop(f"{module}.{part}") for part in ("weight", "scales", "biases")]
            assert mx.array_equal(ours[1], theirs[1]), name
            assert mx.array_equal(ours[2], theirs[2]), name
            a, b = (error(array, parts, group_size, bits) for parts in (ours, theirs))
            assert (a <= b + 1e-7 * np.abs(np.array(array.astype(mx.float32)))).all(), name
        else:
            assert mx.array_equal(stored.pop(f"{module}.weight"), array), name
        assert (module in result.unpacked) == (array.ndim == 2 and not fits)
    assert not stored
    # Of 64 columns are the rows of the temporal transformer: in groups of 128 nothing could be packed.
    assert kinds == ({False} if group_size == 128 else {False, True})
    load_lm(result.path, result.config)


def test_chunks_do_not_show(tmp_path, monkeypatch):
    convert(PYTORCH, tmp_path / "a.safetensors", bits=4, group_size=32, config=CONFIG)
    convert(Q8, tmp_path / "c.safetensors", bits=8, group_size=64, config=QUANT_CONFIG)
    monkeypatch.setattr("msh_mlx.weights.checkpoint._CHUNK", 64 * 5)
    convert(PYTORCH, tmp_path / "b.safetensors", bits=4, group_size=32, config=CONFIG)
    convert(Q8, tmp_path / "d.safetensors", bits=8, group_size=64, config=QUANT_CONFIG)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()


def test_mixed_precision_and_loading_it(tmp_path):
    rules = [Rule("text_emb", 16), Rule("*emb*", 8), Rule("text_linear", 16), Rule("depformer.slices.0.*", 6)]
    result = convert(Q8, tmp_path / "m.safetensors", bits=4, group_size=32, keep=rules, config=QUANT_CONFIG)
    lm = on_mlx(result.path, result.config, quantized=4)
    assert file_bits(read_header(result.path)) == 4
    assert not hasattr(lm.text_emb, "bits")
    assert not hasattr(lm.text_linear, "bits")
    assert lm.audio_embs[3].bits == lm.depformer.slices[0].emb.bits == lm.depformer.slices[1].emb.bits == 8
    assert lm.depformer.slices[0].linear_in.bits == 6
    assert lm.depformer.slices[1].linear_in.bits == lm.transformer.layers[0].gating.linear_in.bits == 4
    # Mixed is nearer to what it was made from than 4 bits are.
    plain = convert(Q8, tmp_path / "p.safetensors", bits=4, group_size=32, config=QUANT_CONFIG)
    assert check(result, Q8, QUANT_CONFIG).kl < check(plain, Q8, QUANT_CONFIG).kl


def test_what_is_quantized_alike_is_copied(tmp_path):
    result = convert(Q8, tmp_path / "o.safetensors", bits=8, group_size=64, config=QUANT_CONFIG)
    before, after = mx.load(str(Q8)), mx.load(str(result.path))
    assert before.keys() == after.keys()
    for name, array in before.items():
        expected = array if array.dtype == mx.uint32 else array.astype(mx.bfloat16)
        assert mx.array_equal(after[name], expected), name


def test_quantized_weights_can_be_unpacked_and_get_fewer_bits_but_not_more(tmp_path):
    unpacked = convert(Q4, tmp_path / "o.safetensors", bits=16, config=QUANT_CONFIG)
    divergence = check(unpacked, Q4, QUANT_CONFIG)
    assert 0 < divergence.largest < 0.02
    assert divergence.kl < 1e-5
    sentence = refused(tmp_path, Q4, bits=8, config=QUANT_CONFIG)
    assert "has 4 bits, and 8 would only make it larger" in sentence


def test_the_check_tells_a_good_conversion_from_a_bad_one(tmp_path):
    same = convert(SMALL / "lm_mlx_f32.safetensors", tmp_path / "same.safetensors", bits=16, config=CONFIG)
    exact = check(same, same.path, same.config)
    assert (exact.largest, exact.kl, exact.agree) == (0, 0, 1)
    found = {}
    for bits in (8, 4):
        result = convert(PYTORCH, tmp_path / "o.safetensors", bits=bits, group_size=32, config=CONFIG)
        found[bits] = check(result, PYTORCH, CONFIG)
    assert 0 < found[8].kl < found[4].kl
    assert found[8].largest < found[4].largest
    assert found[4].agree > 0.5
    arrays = mx.load(str(same.path))
    arrays["text_linear.weight"] = -arrays["text_linear.weight"]
    mx.eval(arrays)  # which are read from the very file
    mx.save_safetensors(str(same.path), arrays)
    wrong = check(same, PYTORCH, CONFIG)
    assert wrong.kl > 100 * found[4].kl
    assert wrong.agree < 0.2


def test_the_configuration_is_written_beside_and_found(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    result = convert(PYTORCH, tmp_path / "small.q8.safetensors", bits=8, config=CONFIG)
    assert result.config == tmp_path / "small.q8.json" == find_config(result.path)
    assert LmConfig.from_file(result.config) == LmConfig.from_file(CONFIG)
    assert find_config(tmp_path / "other.safetensors") == tmp_path / "config.json"
    (tmp_path / "config.json").unlink()
    assert find_config(tmp_path / "other.safetensors") is None


def test_the_names_of_codec_and_tokenizer_are_kept(tmp_path):
    """Models of one family may have different ones: the new model must find its own."""
    config = json.loads(CONFIG.read_text()) | {
        "mimi_name": "mimi-1@2.safetensors",
        "tokenizer_name": "../x",
        "moshi_name": "m",
    }
    (tmp_path / "in.json").write_text(json.dumps(config))
    for given in (config, tmp_path / "in.json"):
        result = convert(PYTORCH, tmp_path / "out.safetensors", bits=16, config=given)
        written = json.loads(result.config.read_text())
        assert {key: value for key, value in written.items() if key.endswith("_name")} == {
            "mimi_name": "mimi-1@2.safetensors"
        }
        load_lm(result.path, result.config)


def test_refusals_leave_nothing(tmp_path):
    copy = tmp_path / "in.safetensors"
    copy.write_bytes(PYTORCH.read_bytes())
    config = tmp_path / "out.json"
    config.write_bytes(CONFIG.read_bytes())
    assert "cannot have 7 bits" in refused(tmp_path, bits=7)
    assert "cannot have 1 bits" in refused(tmp_path, keep=[Rule("*", 1)])
    assert "cannot have 48 weights" in refused(tmp_path, group_size=48)
    assert "fits '*embeddings*'" in refused(tmp_path, keep=[Rule("*embeddings*", 8)])
    assert "is read and would be overwritten" in refused(tmp_path, copy, config=config)
    assert "text_card = 32000" in refused(tmp_path, copy, config=None)
    (tmp_path / "out.safetensors").symlink_to(copy)
    assert "is read and would be overwritten" in refused(tmp_path, copy)
    arrays = load_file(PYTORCH)
    arrays["text_linear.weight"] = arrays["text_linear.weight"].astype(np.int32)
    save_file(arrays, copy)
    assert "text_linear.weight is of type int32" in refused(tmp_path, copy)


def test_a_failure_half_way_leaves_the_old_files(tmp_path):
    out = tmp_path / "o.safetensors"
    convert(PYTORCH, out, bits=8, config=CONFIG)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(fraction):
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(PYTORCH, out, bits=4, config=CONFIG, progress=stop)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    options = ["--config", str(CONFIG), "--bits", "4", "--keep", "*emb*=8", "--keep", "text_linear", "--check"]
    assert main(["convert", str(PYTORCH), str(out), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Wrote o.safetensors and o.json in ")
    assert printed[0].endswith(": 0.3 MB, from 1.1 MB")
    assert printed[1].startswith("2 weights, such as transformer.layers.0.gating.linear_out, stay at 16 bits")
    assert printed[2].startswith("Text logits of before and after, 48 steps: at most 0.")
    lm = on_mlx(out, tmp_path / "o.json")
    assert (lm.audio_embs[0].bits, lm.audio_embs[0].group_size, hasattr(lm.text_linear, "bits")) == (8, 32, False)
    # The configuration of a model made here is found; eight bits come in groups of 64 by default.
    second = tmp_path / "second.safetensors"
    assert main(["convert", str(out), str(second), "--bits", "16", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["config"] == str(tmp_path / "second.json")
    assert outcome["bytes_after"] == second.stat().st_size
    assert outcome["divergence"] is None


def test_wrong_commands(tmp_path, capsys):
    def complaint(*arguments):
        assert main(list(arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    paths = str(PYTORCH), str(tmp_path / "o.safetensors")
    assert "There is no command 'covert'" in complaint("covert", *paths)
    assert "IN, OUT, --bits" in complaint("convert")
    assert "'*=5' is not a pattern" in complaint("convert", *paths, "--bits", "4", "--keep", "*=5")
    assert "There is no model nowhere" in complaint("convert", "nowhere", paths[1], "--bits", "4")
    assert "--lora-scaling is about" in complaint("convert", *paths, "--bits", "4", "--lora-scaling", "1")
    assert "--lora-scaling is about" in complaint("--demo", "--lora-scaling", "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", [["-m", "msh_mlx"], [str(ROOT / "local_mlx.py")]])
def test_commands_of_every_program(program):
    done = subprocess.run(
        [sys.executable, *program, "convert", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.startswith("usage: msh-mlx convert")


@pytest.mark.parametrize("folder", ["/", ".", ""])
def test_a_folder_without_a_name_of_its_own_is_refused(folder):
    """What lies beside a file is looked for before the file is opened."""
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        convert(PYTORCH, folder, bits=8, config=CONFIG)
    with pytest.raises(InputError, match="is a folder; give the file in it"):
        load_lm(PYTORCH, CONFIG, lora=folder, engine="native")
