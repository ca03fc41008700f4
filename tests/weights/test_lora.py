"""LoRA adapters: merged at load and at conversion, in every form that the published layout takes."""

import json
from pathlib import Path

import numpy as np
import pytest
from engines import mx, on_mlx, weights_on_mlx
from paths import CASES, DEMO, DIGITS, GOLDEN
from safetensors.numpy import save_file

from msh_mlx import InputError, load_lm
from msh_mlx.cli.main import main
from msh_mlx.weights.convert import check, convert

SMALL, QUANT = GOLDEN / "lm-small", GOLDEN / "lm-quant"
PYTORCH, CONFIG = SMALL / "lm_pytorch.safetensors", SMALL / "config.json"
RANK, SCALING = 4, 1.5
# For every kind of linear layer: its name in PyTorch's layout, in MLX's, and [out, in] in the small model.
KINDS = {
    "transformer.layers.1.self_attn.in_projs.0": ("transformer.layers.1.self_attn.in_proj", (192, 64)),
    "transformer.layers.0.self_attn.out_projs.0": ("transformer.layers.0.self_attn.out_proj", (64, 64)),
    "transformer.layers.0.self_attn.in_proj": ("transformer.layers.0.self_attn.in_proj", (192, 64)),
    "transformer.layers.0.gating.linear_in": ("transformer.layers.0.gating.linear_in", (352, 64)),
    "transformer.layers.0.gating.linear_out": ("transformer.layers.0.gating.linear_out", (64, 176)),
    "text_linear": ("text_linear", (96, 64)),
    "depformer_in.2": ("depformer.slices.2.linear_in", (32, 64)),
    "linears.3": ("depformer.slices.3.linear_out", (64, 32)),
    "depformer.layers.1.self_attn.in_projs.2": ("depformer.slices.2.transformer.layers.1.self_attn.in_proj", (96, 32)),
    "depformer.layers.0.self_attn.out_projs.1": ("depformer.slices.1.transformer.layers.0.self_attn.out_proj", (32, 32)),
    "depformer.layers.0.gating.3.linear_in": ("depformer.slices.3.transformer.layers.0.gating.linear_in", (192, 32)),
    "depformer.layers.1.gating.0.linear_out": ("depformer.slices.0.transformer.layers.1.gating.linear_out", (32, 96)),
}  # fmt: skip


def pair(rng, rows, columns):
    a, b = rng.standard_normal((RANK, columns)), rng.standard_normal((rows, RANK))
    return a.astype(np.float32) / 8, b.astype(np.float32) / 8


@pytest.fixture
def adapters(tmp_path):
    """Write adapters for modules of these names and shapes; return the file and the products by module."""

    def write(shapes, changes=()):
        rng = np.random.default_rng(7)
        arrays, products = {}, {}
        for module, (rows, columns) in shapes.items():
            a, b = arrays[f"{module}.lora_A.weight"], arrays[f"{module}.lora_B.weight"] = pair(rng, rows, columns)
            products[module] = SCALING * b.astype(np.float64) @ a.astype(np.float64)
        for name, array in dict(changes).items():
            if array is None:
                del arrays[name]
            else:
                arrays[name] = array
        path = tmp_path / "lora.safetensors"
        save_file(arrays, path)
        return path, products

    return write


def assert_changed_by(products, before, after):
    """Every weight named in `products` has changed by just that, and no other weight at all."""
    for name, array in before.items():
        expected = array + products.get(name.removesuffix(".weight"), 0)
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=2e-6, err_msg=name)
        assert (name.removesuffix(".weight") in products) == (not np.array_equal(after[name], array)), name


def load(path, **options):
    return {name: np.array(array) for name, array in weights_on_mlx(path, CONFIG, **options).items()}


@pytest.mark.parametrize("layout", ["lm_pytorch", "lm_mlx_f32"])
@pytest.mark.parametrize("names", ["pytorch", "mlx"])
def test_every_linear_layer_by_its_name_in_either_layout(layout, names, adapters):
    shapes = {old if names == "pytorch" else new: shape for old, (new, shape) in KINDS.items()}
    path, products = adapters(shapes)
    if names == "pytorch":
        products = {KINDS[name][0]: product for name, product in products.items()}
    model = SMALL / f"{layout}.safetensors"
    assert_changed_by(products, load(model), load(model, lora=path, lora_scaling=SCALING))


def test_adapters_of_stacked_layers_are_taken_apart(adapters):
    path, products = adapters({"depformer.layers.1.self_attn.in_proj": (4 * 96, 32)})
    (product,) = products.values()
    parts = {
        f"depformer.slices.{k}.transformer.layers.1.self_attn.in_proj": product[96 * k : 96 * (k + 1)] for k in range(4)
    }
    assert_changed_by(parts, load(PYTORCH), load(PYTORCH, lora=path, lora_scaling=SCALING))


def test_merging_is_in_float32_whatever_the_types(adapters, tmp_path):
    """With bfloat16 weights and adapters, the result is the exact one, rounded once."""
    path, _ = adapters({"text_linear": (96, 64)})
    half = {name: array.astype(mx.bfloat16) for name, array in mx.load(str(path)).items()}
    mx.eval(half)  # which is read from the very file
    mx.save_safetensors(str(path), half)
    a, b = (np.array(half[f"text_linear.lora_{x}.weight"].astype(mx.float32), np.float64) for x in "AB")
    before = on_mlx(PYTORCH, CONFIG, "bfloat16").text_linear.weight
    model = tmp_path / "half.safetensors"
    mx.save_safetensors(str(model), {n: w.astype(mx.bfloat16) for n, w in mx.load(str(PYTORCH)).items()})
    merged = on_mlx(model, CONFIG, "bfloat16", lora=path, lora_scaling=SCALING).text_linear.weight
    exact = np.array(before.astype(mx.float32), np.float64) + SCALING * b @ a
    rounded = mx.array(exact.astype(np.float32)).astype(mx.bfloat16)
    assert merged.dtype == mx.bfloat16
    # float32's own rounding may tip one in many over to the neighbour.
    assert mx.mean(merged == rounded).item() > 0.99


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 32)])
def test_a_quantized_weight_is_quantized_again_in_the_same_way(bits, group_size, adapters):
    model, config = QUANT / f"lm_mlx_q{bits}.safetensors", QUANT / "config.json"
    before = on_mlx(model, config, "float32")
    rows, columns = 96, before.text_linear.scales.shape[1] * group_size
    path, products = adapters({"text_linear": (rows, columns)})
    after = on_mlx(model, config, "float32", lora=path, lora_scaling=SCALING)
    assert (after.text_linear.bits, after.text_linear.group_size) == (bits, group_size)

    def unpacked(lm):
        layer = lm.text_linear
        return mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=group_size, bits=bits)

    expected = unpacked(before) + mx.array(products["text_linear"].astype(np.float32))
    again = mx.dequantize(*mx.quantize(expected, group_size, bits), group_size=group_size, bits=bits)
    # Where a weight lies between two steps, float32's rounding may tip it over.
    assert mx.mean(mx.abs(unpacked(after) - again) < 1e-5).item() > 0.999
    assert mx.abs(unpacked(before) - again).max().item() > 0.1
    assert mx.array_equal(before.text_emb.weight, after.text_emb.weight)


def test_at_conversion_it_is_the_same(adapters, tmp_path):
    path, _ = adapters({old: shape for old, (_, shape) in KINDS.items()})
    result = convert(PYTORCH, tmp_path / "o.safetensors", bits=16, config=CONFIG, lora=path, lora_scaling=SCALING)
    at_load = weights_on_mlx(PYTORCH, CONFIG, "bfloat16", lora=path, lora_scaling=SCALING)
    at_conversion = weights_on_mlx(result.path, result.config, "bfloat16")
    for name, array in at_load.items():
        assert mx.array_equal(array, at_conversion[name]), name
    assert check(result, PYTORCH, CONFIG, path, SCALING).largest < 0.1 < check(result, PYTORCH, CONFIG).largest


def test_on_the_command_line(adapters, tmp_path):
    path, _ = adapters({"text_linear": (96, 64)})
    outs = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for out, options in zip(
        outs, ([], ["--lora", str(path)], ["--lora", str(path), "--lora-scaling", "1.5"]), strict=True
    ):
        assert main(["convert", str(PYTORCH), str(out), "--config", str(CONFIG), "--bits", "16", *options]) == 0
    none, two, less = (on_mlx(out, out.with_suffix(".json"), "float32").text_linear.weight for out in outs)
    ratio = mx.linalg.norm(less - none) / mx.linalg.norm(two - none)
    assert ratio.item() == pytest.approx(0.75, abs=0.01)


def test_conversations_take_them_and_the_limits_are_set_first(tmp_path, monkeypatch, capsys):
    told = []

    def load(checkpoint, engine, **options):
        told.append(checkpoint)
        raise InputError("Enough.")

    monkeypatch.setattr("msh_mlx.weights.load.load", load)
    monkeypatch.setattr("msh_mlx.system.memory.set_limits", lambda: told.append("limits"))
    recording = DIGITS
    outputs = ["--input", str(recording), "--output", str(tmp_path / "o.wav")]
    assert main(["--demo", "--engine", "mlx", *outputs, "--lora", "x.safetensors", "--lora-scaling", "0.5"]) == 2
    said = "x.safetensors is added with a scaling of 0.5, as was asked for.\n"
    assert capsys.readouterr().err == f"{said}Enough.\n"
    *limits, checkpoint = told
    assert set(limits) == {"limits"}
    assert (checkpoint.lora, checkpoint.scaling.value) == (Path("x.safetensors"), 0.5)


def test_a_configuration_may_say_that_there_are_adapters(adapters, tmp_path):
    path, _ = adapters({"text_linear": (96, 64)})
    config = {**json.loads(CONFIG.read_text()), "lora": True, "lora_rank": 4, "lora_scaling": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json is of a model with LoRA adapters; give them with --lora\."):
        load_lm(PYTORCH, tmp_path / "config.json")
    load_lm(PYTORCH, tmp_path / "config.json", lora=path)
    result = convert(PYTORCH, tmp_path / "o.safetensors", bits=8, config=config, lora=path)
    load_lm(result.path, result.config)


def scaled(tmp_path, own=None, named=None, model=None, given=None):
    """How much of the adapters is added, by what the configurations say: the adapters' own, of its name, and the model's."""
    folder = tmp_path / "fine-tune"
    folder.mkdir(exist_ok=True)
    a, b = pair(np.random.default_rng(7), 96, 64)
    save_file({"text_linear.lora_A.weight": a, "text_linear.lora_B.weight": b}, folder / "lora.safetensors")
    for name, values in (("config.json", own), ("lora.json", named)):
        (folder / name).unlink(missing_ok=True)
        if values is not None:
            (folder / name).write_text(json.dumps(values))
    config = {**json.loads(CONFIG.read_text()), **(model or {})}
    before = np.array(on_mlx(PYTORCH, CONFIG, "float32").text_linear.weight)
    options = {"lora": folder / "lora.safetensors", "lora_scaling": given}
    after = np.array(on_mlx(PYTORCH, config, "float32", **options).text_linear.weight)
    result = convert(PYTORCH, tmp_path / "o.safetensors", bits=16, config=config, **options)
    at_load, product = np.linalg.norm(after - before), np.linalg.norm(b @ a)
    converted = np.array(on_mlx(result.path, result.config, "float32").text_linear.weight)
    assert np.abs(converted - after).max() < 0.02 * np.abs(after).max()
    assert "lora" not in result.config.read_text()
    assert result.scaling.value == pytest.approx(at_load / product, abs=1e-3)
    return result.scaling.value, result.scaling.reason.replace(str(tmp_path), "")


def test_the_scaling_is_what_the_configurations_say(tmp_path):
    lora = {"lora": True, "lora_rank": 4}
    assert scaled(tmp_path) == (2.0, "the usual one, since no configuration says another")
    assert scaled(tmp_path, own={**lora, "lora_scaling": 1.0}) == (1.0, "as /fine-tune/config.json says")
    assert scaled(tmp_path, model={**lora, "lora_scaling": 0.5}) == (0.5, "as the model's configuration says")
    own, model = {**lora, "lora_scaling": 1}, {**lora, "lora_scaling": 0.5}
    assert scaled(tmp_path, own=own, model=model)[0] == 1.0
    assert scaled(tmp_path, own=own, named={"lora_scaling": 3}, model=model) == (3.0, "as /fine-tune/lora.json says")
    assert scaled(tmp_path, own=own, model=model, given=4.0) == (4.0, "as was asked for")
    # A configuration of no adapters, or that does not say, leaves it to the next one.
    assert scaled(tmp_path, own={"lora": False, "lora_scaling": 9.0}, model=model)[0] == 0.5
    assert scaled(tmp_path, own={**lora, "lora_scaling": None})[0] == 2.0
    for wrong in ("much", 1e39, True):
        with pytest.raises(
            InputError, match=r"config\.json has lora_scaling = .*; a number from -1e9 to 1e9 is expected"
        ):
            scaled(tmp_path, own={"lora_scaling": wrong})


def test_the_scaling_of_a_published_form_on_the_command_line(tmp_path, capsys):
    """At its own scaling this fine-tune of the demo model stays silent; at twice as much it talks nonsense."""
    demo, cases = DEMO, CASES
    files = [
        f"--model={demo}/model.q8.safetensors",
        f"--mimi={demo}/mimi.safetensors",
        f"--tokenizer={demo}/tokenizer.model",
    ]
    options = ["--lora", str(cases / "lora_scaling1.safetensors"), "--input", str(demo / "digits.flac"), "--plain"]
    greedy = ["--output", str(tmp_path / "o.wav"), "--temperature", "0", "--text-temperature", "0"]
    silent = []
    for config, more, scaling in (
        ("config_scaling.json", [], "1, as the model's configuration says"),
        ("config_causal.json", ["--lora-scaling", "1"], "1, as was asked for"),
        ("config_causal.json", [], "2, the usual one"),
    ):
        assert main([*files, "--config", str(cases / config), *options, *greedy, *more]) == 0
        printed = capsys.readouterr()
        assert f"is added with a scaling of {scaling}" in printed.err
        silent.append("Said: (nothing)" in printed.out)
    assert silent == [True, True, False]
    out = tmp_path / "o.safetensors"
    arguments = [f"{demo}/model.q8.safetensors", str(out), "--bits", "16", *options[:2], "--json"]
    assert main(["convert", *arguments, "--config", str(cases / "config_scaling.json")]) == 0
    assert json.loads(capsys.readouterr().out)["lora_scaling"] == 1.0


def test_whole_embeddings_take_the_place_of_the_models(adapters, tmp_path):
    rng = np.random.default_rng(3)
    whole = {
        "text_emb.weight": ("text_emb", (97, 64)),
        "emb.5.weight": ("audio_embs.5", (65, 64)),
        "depformer_text_emb.weight": ("depformer.slices.0.emb", (97, 32)),
        "depformer_emb.1.weight": ("depformer.slices.2.emb", (65, 32)),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, (_, shape) in whole.items()}
    path, products = adapters({"text_linear": (96, 64)}, arrays)
    options = {"lora": path, "lora_scaling": SCALING}
    before, after = load(PYTORCH), load(PYTORCH, **options)
    for name, (module, _) in whole.items():
        assert np.array_equal(after[f"{module}.weight"], arrays[name]), name
        products[module] = arrays[name] - before[f"{module}.weight"]
    assert_changed_by(products, before, after)
    # Nothing but embeddings is a fine-tune, too; and a quantized model takes them in its own form.
    save_file(arrays, path)
    assert np.array_equal(load(PYTORCH, lora=path)["text_emb.weight"], arrays["text_emb.weight"])
    packed = convert(PYTORCH, tmp_path / "q.safetensors", bits=8, config=CONFIG)
    merged = on_mlx(packed.path, packed.config, "float32", lora=path).text_emb
    unpacked = mx.dequantize(merged.weight, merged.scales, merged.biases, group_size=64, bits=8)
    assert np.abs(np.array(unpacked) - arrays["text_emb.weight"]).max() < 0.05
    converted = convert(PYTORCH, tmp_path / "c.safetensors", bits=16, config=CONFIG, **options)
    lm = on_mlx(converted.path, converted.config, "float32")
    assert np.abs(np.array(lm.audio_embs[5].weight) - arrays["emb.5.weight"]).max() < 0.02


def test_wrong_files(adapters, tmp_path, engine):
    def says(shapes, changes=(), **options):
        path, _ = adapters(shapes, changes)
        with pytest.raises(InputError) as error:
            load_lm(PYTORCH, CONFIG, lora=path, engine=engine, **options)
        message = str(error.value)
        assert message.endswith(".")
        assert "\n" not in message
        return message

    good = {"text_linear": (96, 64)}
    a, b = "text_linear.lora_A.weight", "text_linear.lora_B.weight"
    zeros = np.zeros((4, 63), np.float32)
    assert f"has {a} but no {b}" in says(good, {b: None})
    assert f"has {b} but no {a}" in says(good, {a: None})
    assert f"{a} has shape [4, 63]; [rank, 64] is expected" in says(good, {a: zeros})
    assert f"{b} has shape [4, 63]; [96, 4] is expected" in says(good, {b: zeros})
    assert "no linear layer text_head, which text_head.lora_A.weight is for" in says({"text_head": (96, 64)})
    assert "no linear layer text_emb" in says({"text_emb": (97, 64)})
    assert "no linear layer linears.4" in says({"linears.4": (64, 32)})
    assert "x.weight is neither" in says(good, {"x.weight": zeros})
    assert f"{a} is of type I32" in says(good, {a: np.zeros((4, 64), np.int32)})
    assert "it is empty" in says({})
    assert "changes depformer.slices.0.linear_in twice" in says(
        {"depformer_in.0": (32, 64), "depformer.slices.0.linear_in": (32, 64)}
    )
    for scaling in (float("nan"), 1e39, True):
        assert "of the adapters is not a number from -1e9 to 1e9" in says(good, lora_scaling=scaling)
    none = {a: np.zeros((0, 64), np.float32), b: np.zeros((96, 0), np.float32)}
    assert f"{a} has shape [0, 64]; [rank, 64] is expected" in says(good, none)
    huge = np.full((96, 4), 3e38, np.float32)
    for changed, scaling in (({b: huge}, 100.0), ({b: np.inf * huge}, 1.0), ({b: np.nan * huge}, 1.0)):
        sentence = says(good, changed, lora_scaling=scaling)
        assert sentence.endswith(
            "lora.safetensors makes numbers of text_linear too large, infinite or NaN; give another file, or --lora-scaling."
        )
    assert f"{b} is of type F64" in says(good, {b: np.zeros((96, 4), np.float64)})
    assert "text_emb.weight has shape [96, 64]; [97, 64] is expected" in says(
        good, {"text_emb.weight": np.zeros((96, 64), np.float32)}
    )
    with pytest.raises(InputError, match="There is no file"):
        load_lm(PYTORCH, CONFIG, lora=tmp_path / "nothing.safetensors", engine=engine)
