"""`msh-mlx bench`: what it counts, what it makes, and what it prints."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from engines import load_exact
from paths import DEMO, ROOT

from msh_mlx import InputError, LmConfig, LmGen, Sampler, load_lm
from msh_mlx.bench import SIZES, Percentiles, able, bytes_per_step
from msh_mlx.library.catalogue import load_catalogue
from msh_mlx.model.engines import random_lm
from msh_mlx.model.families.tts import delay_steps
from msh_mlx.system.signals import Stopped
from msh_mlx.weights.checkpoint import open_checkpoint

QUANT = ROOT / "tests" / "golden" / "lm-quant"
LIMIT = 60
TINY = LmConfig(
    dim=128, num_layers=2, num_heads=2, context=20, text_card=100, card=50, n_q=4, dep_q=2, delays=(0, 0, 1, 0, 1),
    hidden_scale=3.0, depformer_dim=64, depformer_num_layers=1, depformer_num_heads=2, depformer_dim_feedforward=96,
)  # fmt: skip


def bench(*options):
    return subprocess.run(
        [sys.executable, "-m", "msh_mlx", "bench", *options], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
    )


def test_the_demo_model_without_any_option():
    result = bench("--steps", "5")
    assert (result.returncode, result.stderr) == (0, "")
    rows = dict(re.findall(r"^\| (\S.*?) +\| (\S.*?) +\|$", result.stdout, re.MULTILINE))
    wanted = ["chip", "memory", "engine", "model", "bits", "step p50 / p95 / p99 (5 steps)", "encode p50 / p95 / p99",
              "real-time factor", "memory peak", "bytes read a step", "bandwidth reached", "conversations with"]  # fmt: skip
    assert set(wanted) <= set(rows)
    assert rows["model"] == "model.q8.safetensors"
    assert rows["bits"].startswith("8, activations ")
    assert len({len(line) for line in result.stdout.splitlines()}) == 1


def test_json_of_a_model_without_a_codec(engine):
    model = str(QUANT / "lm_mlx_q4.safetensors")
    result = bench(
        "--model", model, "--config", str(QUANT / "config.json"), "--steps", "4", "--json", "--engine", engine
    )
    assert (result.returncode, result.stderr) == (0, "")
    figures = json.loads(result.stdout)
    assert figures["engine"].lower().startswith(engine)
    assert figures["encode"] is None
    assert figures["steps"] == 4
    assert 0 < figures["step"]["p50"] <= figures["step"]["p95"] <= figures["step"]["p99"]
    assert figures["real_time"] == pytest.approx(80 / figures["step"]["p50"])
    assert figures["share"] == pytest.approx(
        figures["bytes_per_step"] / (figures["step"]["p50"] / 1000) / figures["bandwidth"]
    )
    assert figures["step_ms"] == figures["step"]["p50"]
    assert (figures["read_bandwidth"], figures["share_of_bandwidth"]) == (figures["bandwidth"], figures["share"])
    needed = load_catalogue()["moshiko-q4"].step_bytes
    assert figures["conversations"]["moshiko-q4"] == pytest.approx(0.08 * figures["bandwidth"] / needed)


def test_with_the_native_engine_mlx_is_not_imported():
    code = "import atexit, sys; from msh_mlx.cli.main import main; atexit.register(lambda: print(*sys.modules)); main()"
    command = [sys.executable, "-c", code, "bench", "--engine", "native", "--steps", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert "| real-time factor" in result.stdout
    modules = result.stdout.splitlines()[-1].split()
    assert "msh_native" in modules
    assert "mlx.core" not in modules


@pytest.mark.parametrize("name", ["stt", "tts", "persona"])
def test_models_of_other_families(name):
    model = next((DEMO / name).glob("model.*"))
    result = bench("--model", str(model), "--mimi", str(DEMO / "mimi.safetensors"), "--steps", "4", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    figures = json.loads(result.stdout)
    lm = load_lm(model, model.with_name("config.json"))
    # What has no voice decodes nothing, and what hears nothing encodes nothing.
    assert [part for part in ("encode", "decode") if figures[part]] == {
        "stt": ["encode"], "tts": ["decode"], "persona": ["encode", "decode"]
    }[name]  # fmt: skip
    parts = [figures[part]["p50"] for part in ("step", "encode", "decode") if figures[part]]
    assert figures["real_time"] == pytest.approx(80 / sum(parts))
    before = delay_steps(lm.config) + 1 if name == "tts" else 2  # positions before those that are measured
    seen = sum(min(before + t + 1, lm.config.context) for t in range(4)) / 4
    assert figures["bytes_per_step"] == bytes_per_step(lm, seen)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--size 7b --model x", "leave --model"),
        ("--bits 4", "--size"),
        ("--config x", "--model"),
        ("--size 3b", "--size"),
        ("--model nothing.safetensors", "nothing.safetensors"),
        ("--steps 0", "--steps"),
    ],
)
def test_wrong_options(options, says):
    result = bench(*options.split())
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bytes_of_a_step_counted_by_hand(engine):
    lm = load_exact(QUANT / "lm_mlx_q8.safetensors", QUANT / "config.json", engine)
    c = lm.config

    def matrix(rows, columns):
        return rows * columns + 2 * 4 * rows * columns // 64  # a byte each; a scale and a bias, float32, for 64 of them

    def layers(count, dim, hidden):
        return count * (matrix(4 * dim, dim) + 3 * matrix(hidden, dim) + 2 * 4 * dim)

    shapes = open_checkpoint(QUANT / "lm_mlx_q8.safetensors", QUANT / "config.json").shapes
    hidden, inner = (shapes[f"{part}transformer.layers.0.gating.linear_out"][1] for part in ("", "depformer.slices.0."))
    wanted = layers(c.num_layers, c.dim, hidden) + 4 * c.dim + matrix(c.text_card, c.dim)
    wanted += (1 + c.n_q) * matrix(1, c.dim)
    d = c.depformer_dim
    wanted += c.dep_q * (layers(c.depformer_num_layers, d, inner) + matrix(d, c.dim) + matrix(c.card, d) + matrix(1, d))
    assert bytes_per_step(lm) == wanted
    assert bytes_per_step(lm, 10) == wanted + c.num_layers * 10 * 2 * c.dim * 4


def logits(lm):
    gen = LmGen(lm, seed=0, text_sampler=Sampler(0), audio_sampler=Sampler(0))
    gen.step([1, 2])
    return np.array(gen.text_logits)


@pytest.mark.parametrize("bits", [16, 8, 6, 4])
def test_random_models_are_seeded_and_keep_their_size(bits, engine):
    one, same, other = (random_lm(TINY, bits, 64, seed, engine) for seed in (1, 1, 2))
    a, b, c = map(logits, (one, same, other))
    assert (a == b).all()
    assert (a != c).any()
    assert np.isfinite(a).all()
    assert 0.3 < a.std() < 3
    assert one.about().bits == (bits,) if bits < 16 else True
    assert one.weights_bytes > one.step_bytes > 0


def test_what_is_too_large_for_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("msh_mlx.model.native.model.memory_to_take", lambda: 10**6)
    with pytest.raises(
        InputError, match=r"The weights take 4\.\d\d GB of memory, and 0\.00 GB can be had; close other programs"
    ):
        random_lm(SIZES["7b"], 4, 64, 1, "native", lambda _: pytest.fail("something was made"))


@pytest.mark.parametrize("bits", [16, 8, 6, 4])
def test_random_weights_of_mlx(bits):
    mx = pytest.importorskip("mlx.core")
    layer = random_lm(TINY, bits, 64, 1, "mlx").module.transformer.layers[1].gating.linear_in
    weight = (
        layer.weight
        if bits == 16
        else mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=64, bits=bits)
    )
    weight = np.array(weight.astype(mx.float32))
    assert weight.shape == (2 * TINY.hidden, TINY.dim)
    assert abs(weight.mean()) < 0.01
    assert weight.std() == pytest.approx(TINY.dim**-0.5, rel=0.05)


def test_the_published_size_is_the_default():
    assert SIZES["7b"] == LmConfig()


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ({"q8": 1.8, "q4": 2.7, "bf16": 1.0}, "q8 (1.8 times) and q4 (2.7 times)"),
        ({"q8": 0.6, "q4": 0.9}, "perhaps q4, the lightest (0.9 times)"),
        ({"q8": 0.2, "q4": 0.4}, "none; q4, the lightest (0.4 times)"),
    ],
)
def test_the_models_that_hold_a_conversation(times, says):
    assert able(times) == says


def test_percentiles_are_milliseconds():
    assert Percentiles.of([0.001 * n for n in range(101)]) == Percentiles(
        pytest.approx(50), pytest.approx(95), pytest.approx(99)
    )


def test_making_weights_tells_how_far_it_is_and_can_be_ended(engine):
    """As Ctrl-C ends it: by what `progress` raises."""
    config = LmConfig(dim=256, num_layers=2, num_heads=4, context=10, text_card=2000, card=100, depformer_dim=64)
    told: list[float] = []
    random_lm(config, 16, 32, 0, engine, told.append)
    assert len(told) > 5
    assert 0 <= min(told) <= max(told) <= 1
    assert max(told) > 0.8

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise Stopped(2)

    with pytest.raises(Stopped):
        random_lm(config, 16, 32, 1, engine, stop)


def test_only_packed_weights_round_activations():
    about = [random_lm(TINY, bits, 32, 0, "native").about() for bits in (8, 16)]
    assert [one.dtype for one in about] == ["int16", "float32"]
