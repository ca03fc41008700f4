"""Files of all families: what is read of them, converted and held in memory, and in which forms they come."""

import json
import math
import shutil

import numpy as np
import pytest
from engines import mx, weights_on_mlx
from paths import DEMO, GOLDEN
from safetensors.numpy import load_file, save_file
from shapes import HIBIKI_1B, HIBIKI_ZERO, MOSHI, PERSONAPLEX, STT_1B, STT_1B_HEADS, STT_26B, TTS_16B
from test_convert import error

from msh_mlx import InputError, LmConfig, load_lm
from msh_mlx.cli.main import main
from msh_mlx.model.families import family_of
from msh_mlx.weights.beside import find_config
from msh_mlx.weights.checkpoint import describe, open_checkpoint
from msh_mlx.weights.convert import convert
from msh_mlx.weights.load import load
from msh_mlx.weights.lora import read_lora
from msh_mlx.weights.safetensors import read_header

FAMILIES = {
    path.parent.name: (path, path.with_name("config.json"))
    for path in sorted([*GOLDEN.glob("*-small/lm.safetensors"), *DEMO.glob("*/model.*safetensors")])
}
PERSONA, PERSONA_CONFIG = FAMILIES["personaplex-small"]
TTS, TTS_CONFIG = FAMILIES["tts-small"]


parameters = weights_on_mlx


def written(path, arrays):
    mx.eval(arrays)
    mx.save_safetensors(str(path), arrays)
    return path


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("bits", "group_size"), [(16, 64), (8, 64), (4, 32)])
def test_what_is_read_is_converted_and_known_again(name, bits, group_size, tmp_path):
    """All weights, bit by bit; the configuration; and a second conversion changes nothing."""
    model, config = FAMILIES[name]
    source = open_checkpoint(model, config)
    result = convert(model, tmp_path / "o.safetensors", bits=bits, group_size=group_size, config=config)
    found = open_checkpoint(result.path, result.config)
    assert found.config == source.config
    assert found.family == source.family
    assert found.family.title.split()[-1] in describe(read_header(result.path)) or found.family.name == "personaplex"
    assert found.shapes == source.shapes
    # Conditions are float32, as they were; matrices of whole groups are packed; all else is bfloat16.
    stored, packed = mx.load(str(result.path)), set()
    for full, array in parameters(model, config, "bfloat16").items():
        module, _, part = full.rpartition(".")
        if part in ("scales", "biases"):
            continue
        how = found.quantizations.get(module)
        if module in source.quantizations:  # the demo's, which has 8 bits in groups of 64 already
            array = mx.array(np.concatenate([rows for _, rows in source.rows(module)])).astype(mx.bfloat16)
        if module == "text_emb" and source.config.model_type == "hibiki":
            assert mx.array_equal(array[2], array[3])
            array = parameters(model, {**json.loads(config.read_text()), "model_type": None}, "bfloat16")[full]
        wide = array.ndim == 2 and part == "weight" and array.shape[1] % group_size == 0
        if bits < 16 and wide and not full.startswith("condition_provider."):
            assert (how.bits, how.group_size) == (bits, group_size), full
            packed.add(module)
            if module not in source.quantizations:
                parts = [stored[f"{module}.{part}"] for part in ("weight", "scales", "biases")]
                theirs = mx.quantize(array, group_size, bits)
                assert mx.array_equal(parts[1], theirs[1]), full
                assert mx.array_equal(parts[2], theirs[2]), full
                exact = np.array(array.astype(mx.float32))
                a, b = (error(array, packing, group_size, bits) for packing in (parts, theirs))
                assert (a <= b + 1e-7 * np.abs(exact)).all(), full
                array = parts[0]
        else:
            assert how is None, full
            assert (module in result.unpacked) == (bits < 16 and array.ndim == 2 and "condition" not in full), full
        if module not in source.quantizations or bits == 16:
            assert mx.array_equal(stored[full], array), full
    assert bool(packed) == (bits < 16)
    again = convert(result.path, tmp_path / "p.safetensors", bits=bits, group_size=group_size, config=result.config)
    assert again.path.read_bytes() == result.path.read_bytes()
    assert again.config.read_bytes() == result.config.read_bytes()


def test_sixteen_slices_become_eight(tmp_path):
    """Of PersonaPlex, half of the depformer is never run: it is not read, not held, and not written."""
    source, result = read_header(PERSONA), convert(PERSONA, tmp_path / "p.safetensors", bits=16, config=PERSONA_CONFIG)
    assert len([name for name in source if name.startswith("linears.")]) == 8
    assert result.left_out == 4
    assert json.loads(result.config.read_text())["model_type"] == "personaplex"
    after = read_header(result.path)
    assert {int(name.split(".")[2]) for name in after if name.startswith("depformer.slices.")} == set(range(4))
    arrays = load_file(PERSONA)
    found = parameters(result.path, result.config)
    for k in range(4):
        slices = np.split(arrays["depformer.layers.1.self_attn.in_proj_weight"], 8)
        exact = mx.array(slices[k]).astype(mx.bfloat16).astype(mx.float32)
        assert mx.array_equal(found[f"depformer.slices.{k}.transformer.layers.1.self_attn.in_proj.weight"], exact)


def test_what_is_left_out_is_said(tmp_path, capsys):
    out = str(tmp_path / "p.safetensors")
    assert main(["convert", str(PERSONA), out, "--bits", "8"]) == 0
    said = "The prediction of the user's 4 codebooks is left out: it is never run"
    assert said in capsys.readouterr().out.splitlines()
    assert main(["convert", out, str(tmp_path / "q.safetensors"), "--bits", "4"]) == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "said", [{}, {"model_type": "personaplex"}, {"dep_q": 4, "model_type": "personaplex"}, {"dep_q": 4}]
)
def test_personaplex_is_known_by_its_name_or_by_its_tensors(said):
    config = {**json.loads(PERSONA_CONFIG.read_text()), **said}
    checkpoint = open_checkpoint(PERSONA, config)
    assert (checkpoint.family.name, checkpoint.config.dep_q) == ("personaplex", 4)
    assert load(checkpoint, "native").config.user_q == 4


def test_a_persona_of_a_model_without_the_second_half_is_known_by_its_name(tmp_path):
    kept = {
        n: a for n, a in load_file(PERSONA).items() if not n.startswith(tuple(f"linears.{k}." for k in range(4, 8)))
    }
    gone = tuple(f"{name}.{k}." for name in ("depformer_in", "depformer_emb") for k in range(3, 8))
    gone = tuple(name for name in gone if name != "depformer_in.3.")
    arrays = {}
    for name, array in kept.items():
        if name.startswith(gone) or any(f".gating.{k}." in name for k in range(4, 8)):
            continue
        arrays[name] = np.split(array, 2)[0] if "depformer" in name and "self_attn" in name else array
    save_file(arrays, tmp_path / "half.safetensors")
    half = parameters(tmp_path / "half.safetensors", PERSONA_CONFIG)
    whole = parameters(PERSONA, PERSONA_CONFIG)
    assert half.keys() == whole.keys()
    assert all(mx.array_equal(half[name], array) for name, array in whole.items())


# ---- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in FAMILIES if n.endswith("-small")])
def test_the_names_of_the_newest_package(name, tmp_path):
    """`in_projs.{i}` and `out_projs.{i}`, one for each slice."""
    model, config = FAMILIES[name]
    arrays, count = {}, 0
    for old, array in load_file(model).items():
        parts = LmConfig.from_file(config).slices
        if ".self_attn." not in old and ".cross_attention." not in old:
            arrays[old] = array
            continue
        stem = old.replace("in_proj_weight", "in_projs").replace("out_proj.weight", "out_projs")
        rows = {"personaplex-small": 8}.get(name, max(parts, default=0) + 1) if old.startswith("depformer") else 1
        for i, part in enumerate(np.split(array, rows)):
            arrays[f"{stem}.{i}.weight"] = part
            count += 1
    assert count >= 4
    save_file(arrays, tmp_path / "new.safetensors")
    before, after = parameters(model, config), parameters(tmp_path / "new.safetensors", config)
    assert before.keys() == after.keys()
    assert all(mx.array_equal(after[name], array) for name, array in before.items())


def test_tensors_of_no_slice_do_not_belong(tmp_path):
    arrays = load_file(TTS)
    arrays["depformer_in.4.weight"] = arrays["depformer_in.3.weight"]
    save_file(arrays, tmp_path / "more.safetensors")
    with pytest.raises(InputError, match=r"depformer_in\.4\.weight does not belong to this model"):
        load_lm(tmp_path / "more.safetensors", TTS_CONFIG)


# ---- weights that several codebooks share ----------------------------------------------------------------------------------


def unrolled(path, slices):
    """A file in MLX's layout in which each codebook has a copy of the weights that it shares."""
    arrays = mx.load(str(path))
    for k, number in enumerate(slices):
        owner = slices.index(number)
        for name in [name for name in arrays if name.startswith(f"depformer.slices.{owner}.") and owner < k]:
            rest = name.removeprefix(f"depformer.slices.{owner}.")
            if rest.startswith(("linear_in.", "transformer.")):
                arrays[f"depformer.slices.{k}.{rest}"] = arrays[name]
    return arrays


@pytest.mark.parametrize("bits", [16, 8])
def test_shared_weights_are_held_once_and_read_in_either_form(bits, tmp_path):
    once = convert(TTS, tmp_path / "once.safetensors", bits=bits, group_size=32, config=TTS_CONFIG)
    slices = open_checkpoint(TTS, TTS_CONFIG).config.slices
    assert slices == (0, 1, 2, 2, 3, 3)
    arrays = unrolled(once.path, slices)
    copies = written(tmp_path / "copies.safetensors", arrays)
    assert copies.stat().st_size > 1.1 * once.path.stat().st_size
    before, after = parameters(once.path, once.config), parameters(copies, once.config)
    assert before.keys() == after.keys()
    assert all(mx.array_equal(after[name], array) for name, array in before.items())
    again = convert(copies, tmp_path / "again.safetensors", bits=bits, group_size=32, config=once.config)
    assert again.path.read_bytes() == once.path.read_bytes()
    # A copy that is another is not what the configuration says.
    wrong = dict(mx.load(str(copies)))
    name = "depformer.slices.5.linear_in.weight"
    for change in (wrong[name] + 1, wrong[name][:-1]):
        path = written(tmp_path / "wrong.safetensors", {**wrong, name: change})
        for use in (load_lm, lambda path, config: convert(path, tmp_path / "x.safetensors", bits=4, config=config)):
            with pytest.raises(
                InputError, match=rf"{name} and depformer\.slices\.4\.linear_in\.weight differ, and the conf"
            ):
                use(path, once.config)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_is_in_memory_once(name):
    """As many bytes as the file has, without what is not run; in float32, as many as `held_bytes` says."""
    model, config = FAMILIES[name]
    checkpoint = open_checkpoint(model, config)
    parts = parameters(model, config)
    held = {id(array): array.nbytes for array in parts.values()}
    places = {(info.begin, info.shape): info for info in read_header(model).values()}
    assert sum(held.values()) == checkpoint.held_bytes(4)
    if checkpoint.family.name != "personaplex" and not checkpoint.quantizations:
        # Norms are small, and each slice of the depformer has its own in MLX's layout.
        norms = [a.nbytes for n, a in parts.items() if n.startswith("depformer") and ".norm" in n]
        numbers = sum(int(np.prod(info.shape)) for info in places.values())
        assert 0 <= sum(held.values()) - 4 * numbers <= sum(norms)


# ---- fine-tunes ------------------------------------------------------------------------------------------------------------


def adapter(rng, rows, columns, rank=2):
    a, b = rng.standard_normal((rank, columns)), rng.standard_normal((rows, rank))
    return a.astype(np.float32) / 8, b.astype(np.float32) / 8


@pytest.mark.parametrize("name", ["hibiki-small", "personaplex-small", "stt-small", "tts-small"])
def test_adapters_of_every_family(name, tmp_path):
    """In the published recipe's form, with whole embeddings; those of what is not run are left out."""
    model, config = FAMILIES[name]
    checkpoint, rng, arrays, expected = open_checkpoint(model, config), np.random.default_rng(5), {}, {}
    before = {n: np.array(a) for n, a in parameters(model, config).items()}
    layers = {
        "transformer.layers.1.self_attn.in_projs.0": "transformer.layers.1.self_attn.in_proj",
        "text_linear": "text_linear",
    }
    for k, number in enumerate(checkpoint.config.slices):
        layers[f"depformer_in.{number}"] = f"depformer.slices.{checkpoint.config.slices.index(number)}.linear_in"
        layers[f"linears.{k}"] = f"depformer.slices.{k}.linear_out"
    for old, new in layers.items():
        a, b = adapter(rng, *checkpoint.shapes[new])
        arrays |= {f"{old}.lora_A.weight": a, f"{old}.lora_B.weight": b}
        expected[new] = before[f"{new}.weight"] + 0.5 * b @ a
    if name == "personaplex-small":
        more = {f"linears.{k}": (64, 32) for k in range(4, 8)} | {"depformer_in.7": (32, 64)}
        more["depformer.layers.0.self_attn.in_projs.6"] = (96, 32)
        for old, shape in more.items():
            a, b = adapter(rng, *shape)
            arrays |= {f"{old}.lora_A.weight": a, f"{old}.lora_B.weight": b}
        arrays["depformer_emb.5.weight"] = np.ones((65, 32), np.float32)
    expected["audio_embs.2"] = arrays["emb.2.weight"] = rng.standard_normal(checkpoint.shapes["audio_embs.2"]).astype(
        np.float32
    )
    save_file(arrays, tmp_path / "lora.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"lora": True, "lora_rank": 2, "lora_scaling": 0.5}))
    after = parameters(model, config, lora=tmp_path / "lora.safetensors")
    for full, array in before.items():
        wanted = expected.get(full.removesuffix(".weight"), array)
        np.testing.assert_allclose(np.array(after[full]), wanted, rtol=0, atol=2e-6, err_msg=full)
    merged = convert(model, tmp_path / "m.safetensors", bits=16, config=config, lora=tmp_path / "lora.safetensors")
    assert merged.scaling.value == 0.5
    assert family_of(LmConfig.from_file(merged.config)) == checkpoint.family


def test_adapters_for_what_no_model_has_are_refused(tmp_path, engine):
    a, b = adapter(np.random.default_rng(0), 64, 32)
    save_file({"linears.8.lora_A.weight": a, "linears.8.lora_B.weight": b}, tmp_path / "lora.safetensors")
    checkpoint = open_checkpoint(PERSONA, PERSONA_CONFIG, lora=tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=r"no linear layer linears\.8"):
        load(checkpoint, engine)
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="it is empty"):
        read_lora(tmp_path / "none.safetensors", 1.0, {}, ())


def test_a_full_fine_tune_in_the_published_form(tmp_path, capsys):
    """`consolidated.safetensors` holds all weights, and adapters merged, whatever the configuration beside it says of them."""
    folder = tmp_path / "consolidated"
    folder.mkdir()
    model, config = GOLDEN / "lm-small" / "lm_pytorch.safetensors", GOLDEN / "lm-small" / "config.json"
    tuned = {name: array.astype(mx.bfloat16) for name, array in mx.load(str(model)).items()}
    path = written(folder / "consolidated.safetensors", tuned)
    said = {"moshi_name": "model.safetensors", "lora": True, "lora_rank": 128, "lora_scaling": 2.0}
    (folder / "config.json").write_text(json.dumps({**json.loads(config.read_text()), **said}))
    assert find_config(path) == folder / "config.json"
    after = parameters(path, find_config(path))
    exact = mx.array(load_file(model)["text_linear.weight"]).astype(mx.bfloat16).astype(mx.float32)
    assert mx.array_equal(after["text_linear.weight"], exact)
    assert main(["convert", str(path), str(tmp_path / "o.safetensors"), "--bits", "8"]) == 0
    assert "lora" not in (tmp_path / "o.json").read_text()
    # Under another name nobody knows whether adapters are merged.
    shutil.copy(path, folder / "model.safetensors")
    assert main(["convert", str(folder / "model.safetensors"), str(tmp_path / "p.safetensors"), "--bits", "8"]) == 2
    assert capsys.readouterr().err.endswith("config.json is of a model with LoRA adapters; give them with --lora.\n")


# ---- published models ------------------------------------------------------------------------------------------------------


def published(config, stored, scheme=None):
    """The shapes of a published file in PyTorch's layout, by its configuration. `stored` codebooks are predicted in it.

    `scheme` has the number of the depformer's weights for each of them; None: each has its own.
    """
    dim, small, hidden = config.dim, config.depformer_dim, config.hidden
    key_value = 2 * dim // config.kv_repeat
    words, codes, rank = config.text_card + 1, config.card + 1, config.depformer_low_rank_embeddings
    slices = max(scheme) + 1 if scheme else stored
    shapes = {"text_emb.weight": (words, dim), "text_linear.weight": (config.text_card_out or config.text_card, dim)}
    shapes |= {f"emb.{k}.weight": (codes, dim) for k in range(config.n_q)} | {"out_norm.alpha": (1, 1, dim)}
    for layer in (f"transformer.layers.{i}" for i in range(config.num_layers)):
        shapes[f"{layer}.self_attn.in_proj_weight"] = (dim + key_value, dim)
        shapes[f"{layer}.self_attn.out_proj.weight"] = (dim, dim)
        shapes |= {
            f"{layer}.gating.linear_in.weight": (2 * hidden, dim),
            f"{layer}.gating.linear_out.weight": (dim, hidden),
        }
        shapes |= {f"{layer}.norm{n}.alpha": (1, 1, dim) for n in (1, 2)}
        if config.cross_attention:
            shapes |= {f"{layer}.norm_cross.weight": (dim,), f"{layer}.norm_cross.bias": (dim,)}
            shapes[f"{layer}.cross_attention.in_proj_weight"] = (3 * dim, dim)
            shapes[f"{layer}.cross_attention.out_proj.weight"] = (dim, dim)
    if stored:
        wide = config.depformer_hidden
        for k in range(stored - 1):
            shapes[f"depformer_emb.{k}.weight"] = (codes, rank or small)
            if rank:
                shapes[f"depformer_emb.{k}.low_rank.weight"] = (small, rank)
        shapes["depformer_text_emb.weight"] = (words, rank or small)
        if rank:
            shapes["depformer_text_emb.low_rank.weight"] = (small, rank)
        shapes |= {f"depformer_in.{i}.weight": (small, dim) for i in range(slices)}
        shapes |= {f"linears.{k}.weight": (config.card, small) for k in range(stored)}
        for layer in (f"depformer.layers.{i}" for i in range(config.depformer_num_layers)):
            shapes[f"{layer}.self_attn.in_proj_weight"] = (3 * small * slices, small)
            shapes[f"{layer}.self_attn.out_proj.weight"] = (small * slices, small)
            shapes |= {f"{layer}.norm{n}.alpha": (1, 1, small) for n in (1, 2)}
            shapes |= {f"{layer}.gating.{i}.linear_in.weight": (2 * wide, small) for i in range(slices)}
            shapes |= {f"{layer}.gating.{i}.linear_out.weight": (small, wide) for i in range(slices)}
        if config.depformer_norm:
            shapes |= {f"depformer_norms.{k}.{part}": (small,) for k in range(stored) for part in ("weight", "bias")}
    if config.demux_second_stream:
        shapes |= {f"text_emb.out{n}.weight": (dim, dim) for n in (1, 2)}
        shapes |= {f"depformer_text_emb.out{n}.weight": (small, rank) for n in (1, 2)}
    shapes |= {f"extra_heads.{i}.weight": (config.extra_heads_dim, dim) for i in range(config.extra_heads_num_heads)}
    for name, condition in config.conditioners.items():
        prefix = f"condition_provider.conditioners.{name}"
        shapes |= {f"{prefix}.output_proj.weight": (dim, condition.dim), f"{prefix}.learnt_padding": (1, 1, dim)}
        if condition.values is not None:
            shapes[f"{prefix}.embed.weight"] = (condition.rows + 1, condition.dim)
    return shapes


def sparse(path, shapes):
    """A file with these tensors, of which nothing is written but the header."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * (4 if name.startswith("condition_provider.") else 2)
        dtype = "F32" if name.startswith("condition_provider.") else "BF16"
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + size]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return path


SHARED = [*range(8), *8 * [8]]


@pytest.mark.parametrize(
    ("config", "stored", "scheme", "family", "tensors", "gigabytes"),
    [
        pytest.param(MOSHI, 8, None, "moshi", None, 15.4, id="moshi"),  # and J-Moshi
        pytest.param(PERSONAPLEX, 16, None, "personaplex", 475, 16.74, id="personaplex"),
        pytest.param(MOSHI, 16, None, "personaplex", 475, 16.74, id="personaplex-without-configuration"),
        pytest.param(HIBIKI_1B, 8, None, "hibiki", None, 3.6, id="hibiki-1b"),
        pytest.param(HIBIKI_ZERO, 16, SHARED, "hibiki", 408, 6.26, id="hibiki-zero-3b"),
        pytest.param(STT_1B, 0, None, "stt", None, 1.98, id="stt-1b"),
        pytest.param(STT_1B_HEADS, 0, None, "stt", None, 1.98, id="stt-1b-candle"),
        pytest.param(STT_26B, 0, None, "stt", None, 5.23, id="stt-2.6b"),
        pytest.param(TTS_16B, 32, [*range(8), *8 * [8], *8 * [9], *8 * [10]], "tts", 418, 3.68, id="tts-1.6b"),
    ],
)
def test_files_of_published_sizes_fit(config, stored, scheme, family, tensors, gigabytes, tmp_path):
    """As many tensors and bytes as the published files have, where they are known, under the published names."""
    shapes = published(config, stored, scheme)
    path = sparse(tmp_path / "model.safetensors", shapes)
    assert tensors in (None, len(shapes))
    assert path.stat().st_size / 1e9 == pytest.approx(gigabytes, rel=0.005)
    checkpoint = open_checkpoint(path, config)
    assert checkpoint.family.name == family
    assert family == "moshi" or checkpoint.family.title in describe(read_header(path))
    places = {(info.begin, info.shape) for module in checkpoint.shapes for info in checkpoint.parts(module).values()}
    read = sum(2 * math.prod(shape) for _, shape in places)
    assert read <= path.stat().st_size
    if family == "personaplex":
        assert checkpoint.config.dep_q == 8
        assert read / 1e9 == pytest.approx(15.4, rel=0.005)  # as Moshi
    else:
        assert read == pytest.approx(path.stat().st_size, rel=0.005)
