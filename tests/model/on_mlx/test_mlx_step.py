"""MLX's compiled step: what it waits for, what it compiles, what it keeps."""

import ast
import gc
import shutil
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from engines import load_exact, seeded
from paths import ROOT
from safetensors.numpy import load_file
from test_layers import LAYERS, made, steered
from test_layers import SMALL as SMALL_LAYERS
from test_listen import CONFIG as LISTENER
from test_lm import GREEDY, SMALL, recorded
from test_step import AsSampled, on_a_thread, speaker, wide

import msh_mlx
from msh_mlx import InputError, LmConfig, LmGen, TextSampler
from msh_mlx.model.conditions import Conditions
from msh_mlx.model.generate import step_together
from msh_mlx.model.mlx import run as run_module
from msh_mlx.model.mlx.attention import Heads, RingFormat
from msh_mlx.model.mlx.layers import on_cpu
from msh_mlx.model.mlx.lm import Lm
from msh_mlx.model.mlx.model import MlxModel

sys.path.append(str(ROOT / "benchmarks"))

from lm_worker import Counts

ROOM = Path(msh_mlx.__file__).parent / "model" / "mlx"
NAMES = (
    "attention", "choosing", "embeddings", "layers", "listen", "lm", "prefill", "run", "step", "together", "transformer",
)  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    return load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", "mlx")


@pytest.fixture(scope="module")
def golden():
    return load_file(SMALL / "greedy_f32.safetensors")


# ---- one wait a step ---------------------------------------------------------------------------------------------------------


def test_a_step_waits_once_for_the_device(lm, golden, monkeypatch):
    """The priming step, which comes with the first, and a ring that grows do not wait on their own."""
    waits = []
    to_host = run_module.to_host
    monkeypatch.setattr(run_module, "to_host", lambda array: waits.append(array.shape) or to_host(array))
    gen = LmGen(lm)
    for t in range(5):
        gen.step(golden["user_codes"][:, t])
    row = 1 + lm.config.dep_q
    assert waits == [(2 * row,), (row,), (row,), (row,), (row,)]
    waits.clear()
    gen.reset()
    gen.prime()
    gen.prime()
    gen.step(golden["user_codes"][:, 0])
    assert waits == [(row,), (row,)]


def test_only_one_function_brings_values_to_the_host():
    """In what a step runs through, nothing else may turn an array of MLX into a value."""
    forbidden = {"item", "tolist", "eval", "async_eval", "synchronize", "__array__", "memoryview"}
    allowed = {
        ("layers.py", "lay_out"),  # laying the weights out, once
        ("layers.py", "first"),
        ("lm.py", "prepare"),
        ("prefill.py", "read_prompt"),  # reading a prompt, once, in parts
        ("step.py", "on_device"),  # what steers a conversation, once
        ("listen.py", "hear"),  # many steps at once
        ("together.py", "step"),  # steps of several kinds, without waiting for them
        ("listen.py", "warm_up"),
    }
    found = []
    for name in NAMES:
        path = ROOM / f"{name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in forbidden:
                    found.append((f"{name}.py", function.name))
                # numpy may only make arrays of numbers of Python, or of what was brought to the host.
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.array", "np.asarray"):
                    argument = node.args[0]
                    if isinstance(argument, ast.Name):
                        found.append((f"{name}.py", function.name))
    assert set(found) - allowed == {("run.py", "to_host")}


@pytest.mark.skipif(
    not on_cpu() or not shutil.which("g++"), reason="the count is that of functions compiled for the CPU"
)
def test_a_step_of_moshi_makes_no_more_operations_than_it_did(lm, golden):
    """What other families need costs Moshi nothing. A compiled function counts once."""
    gen = LmGen(lm, seed=1)
    for t in range(3):
        gen.step(golden["user_codes"][:, t])
    with Counts() as counts:
        gen.step(golden["user_codes"][:, 3])
    assert (counts.syncs, counts.evaluations) == (1, 1)
    assert 100 < counts.primitives <= 283


def test_a_script_waits_once_a_step(monkeypatch, tmp_path):
    """For the text of a position, and for the codes of the position before."""
    waits = []
    to_host = run_module.to_host
    monkeypatch.setattr(run_module, "to_host", lambda array: waits.append(array.shape) or to_host(array))
    gen = speaker(tmp_path, "mlx", script=AsSampled(6))
    gen.warm_up()
    waits.clear()
    said = [gen.advance() for _ in range(8)]
    assert [step is None for step in said] == [False] * 6 + [True] * 2
    assert waits == [(1,), *[(7,)] * 5, (6,)]
    gen.reset()
    assert [gen.advance().text_token for _ in range(6)] == [step.text_token for step in said[:6]]


def test_conversations_that_step_together_wait_once(lm, golden, monkeypatch):
    """Priming steps and conversations that come later do not wait on their own."""
    waits = []
    to_host = run_module.to_host
    monkeypatch.setattr(run_module, "to_host", lambda array: waits.append(array.shape) or to_host(array))
    gens, user, row = [LmGen(lm, seed=i) for i in range(5)], golden["user_codes"], 1 + lm.config.dep_q
    for t in range(3):
        step_together([(gen, user[:, t]) for gen in gens[:4]])
    assert waits == [
        (4, row),
        (4, row),
        (4, row),
        (4, row),
    ]  # the first two at once: the second is there when the first is
    waits.clear()
    with Counts() as counts:
        step_together([(gen, user[:, 3]) for gen in gens[:4]])
    assert (counts.syncs, counts.evaluations) == (1, 1)
    step_together([(gen, user[:, 4]) for gen in gens[1:4]])
    assert waits == [(4, row), (3, row)]


# ---- compiling ---------------------------------------------------------------------------------------------------------------


def count_traces(gen):
    """Count how often the step's Python code runs from now on: once for a trace, or every time if it is not compiled."""
    traces = []
    prepared = gen.lm.module.depformer.__call__

    class Counted(type(gen.lm.module.depformer)):
        def __call__(self, *args):
            traces.append(1)
            return prepared(*args)

    gen.lm.module.depformer.__class__ = Counted
    return traces


@pytest.mark.skipif(not shutil.which("g++"), reason="MLX compiles with g++ on the CPU")
def test_warm_up_compiles_all_that_a_conversation_needs(tmp_path):
    lm = wide(tmp_path, "mlx", context=600)
    gen = LmGen(lm, seed=1, text_sampler=TextSampler(0.7, 25, repetition_penalty=1.2))
    traces = count_traces(gen)
    gen.warm_up()
    assert len(traces) == 4  # 128, 256, 512 and 600 slots
    for t in range(700):
        gen.step([t % 30, 0])
    gen.reset()
    gen.step([0, 0])
    assert len(traces) == 4


@pytest.mark.skipif(not shutil.which("g++"), reason="MLX compiles with g++ on the CPU")
def test_what_is_traced_for_conversations_that_step_together(tmp_path):
    """One function for each number of them and each size of their rings, whatever their numbers are."""
    lm = wide(tmp_path, "mlx", context=200)
    samplers = [TextSampler(0.5 + i / 4, 25, repetition_penalty=1.1 + i / 10) for i in range(4)]
    gens = [LmGen(lm, seed=i, text_sampler=sampler) for i, sampler in enumerate(samplers)]
    for gen in gens:
        gen.prime()
    traces = count_traces(gens[0])

    def traced(count, steps):
        traces.clear()
        for t in range(steps):
            step_together([(gen, [t % 30, 0]) for gen in gens[:count]])
        return len(traces)

    assert traced(4, 100) == 1
    assert traced(3, 20) == 1
    assert traced(4, 20) == 1  # beyond 128 positions, which the fourth has not, in rings of 200
    assert traced(3, 100) == 1
    assert traced(4, 100) == 0
    assert len({gen.kv_bytes for gen in gens}) == 1


def test_without_a_compiler_the_answers_are_the_same(lm, golden, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    text, _, _, _, frames = recorded(lm, golden["user_codes"][:, :20])
    assert (text == golden["text_tokens"][:21]).all()
    assert (frames == golden["audio_frames"][:, :20]).all()


# ---- memory ------------------------------------------------------------------------------------------------------------------


def test_laid_out_weights_are_held_once():
    config = LmConfig(
        dim=256, num_layers=2, num_heads=2, context=8, text_card=1000, card=500, n_q=16, dep_q=8,
        depformer_dim=64, depformer_num_layers=1, depformer_num_heads=2, depformer_dim_feedforward=96,
    )  # fmt: skip
    crossed = replace(config, cross_attention=True)
    for quantize, sizes in product((False, True), (config, crossed)):
        gc.collect()
        mx.clear_cache()
        before = mx.get_active_memory()
        lm = Lm(sizes)
        if quantize:
            nn.quantize(lm, 32, 4)
        mx.eval(lm.parameters())
        weights = mx.get_active_memory() - before
        lm.prepare()
        assert mx.get_active_memory() - before <= 1.01 * weights + 65536
        gen = LmGen(MlxModel(lm, Conditions({}, {})))
        gen.step([0] * 8)
        # The model goes with the last who uses it.
        del lm, gen
        gc.collect()
        mx.clear_cache()
        assert mx.get_active_memory() - before < 65536


def test_the_rings_are_changed_in_place(tmp_path):
    """A step takes far less memory than a copy of the rings would."""
    lm = wide(tmp_path, "mlx", context=4096)
    gen = LmGen(lm, seed=1)
    for t in range(1030):
        gen.step([t % 30, 0])
    held = gen.kv_bytes
    assert held == 3 * 2 * 2 * 64 * 2048 * 4
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(5):
        gen.step([0, 0])
    assert mx.get_peak_memory() - before < held / 2


def test_the_rings_of_conversations_that_step_together_are_changed_in_place(tmp_path):
    lm = wide(tmp_path, "mlx", context=4096)
    gens = [LmGen(lm, seed=i) for i in range(3)]
    for gen in gens:
        gen.fill_window()
    for _ in range(3):
        step_together([(gen, [0, 0]) for gen in gens])
    held = gens[0].kv_bytes
    assert held == 3 * 2 * 2 * 64 * 4096 * 4
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(5):
        step_together([(gen, [0, 0]) for gen in gens])
    assert mx.get_peak_memory() - before < held / 2


def test_the_rings_of_a_script_are_changed_in_place(tmp_path):
    gen = speaker(tmp_path, "mlx", script=AsSampled(10**6), context=4096)
    for _ in range(1030):
        gen.advance()
    held = gen.kv_bytes
    assert held == 2 * 2 * 64 * 2048 * 4
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(5):
        gen.advance()
    assert mx.get_peak_memory() - before < held / 2


def test_memory_stays_flat_beyond_the_window(lm, golden):
    gen = LmGen(lm, seed=2)
    user = golden["user_codes"]
    levels = []
    for part in range(6):
        mx.reset_peak_memory()
        for t in range(100):
            gen.step(user[:, t])
        levels.append(mx.get_peak_memory())
        assert gen.kv_bytes == lm.module.ring_format().nbytes(lm.config.context) * lm.config.num_layers, part
    assert max(levels[1:]) <= 1.01 * min(levels[1:])


# ---- other forms -----------------------------------------------------------------------------------------------------------


def test_an_8_bit_cache_of_narrow_heads():
    with pytest.raises(InputError, match="multiple of 32"):
        RingFormat(Heads(2, 48), mx.float32, 8)


def test_listeners_with_an_8_bit_cache_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="multiple of 32"):
        seeded(tmp_path, replace(LISTENER, dim=48), "mlx")[0].listen(kv_bits=8)


def test_a_steering_serves_on_any_thread(tmp_path):
    """What cross-attention sees is computed at once: MLX evaluates an array on the thread that made it."""
    lm, _ = made(tmp_path, {**SMALL_LAYERS, **LAYERS["cross-attention"]}, "mlx")
    steering = steered(lm)
    gen = on_a_thread(lambda: LmGen(lm, steering=steering, text_sampler=GREEDY, audio_sampler=GREEDY))
    here = LmGen(lm, steering=steering, text_sampler=GREEDY, audio_sampler=GREEDY)
    assert on_a_thread(gen.prime) == here.prime()
