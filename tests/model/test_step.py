"""The compiled step: what it waits for, what it compiles, what it keeps, and which threads may use it."""

import ast
import gc
import shutil
import sys
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from paths import ROOT
from safetensors.numpy import load_file
from slow_lm import SlowLm, inputs
from test_lm import GREEDY, SMALL, Recorder, recorded, talk
from test_sampling import agrees, distribution
from watched import Watched

import msh_mlx
from msh_mlx import InputError, InUseError, LmConfig, LmGen, Sampler, TextSampler, load_lm
from msh_mlx.model import generate as generate_module
from msh_mlx.model.grid import AS_SAID
from msh_mlx.model.mlx.attention import Heads, RingFormat
from msh_mlx.model.mlx.layers import on_cpu
from msh_mlx.model.mlx.lm import Lm
from msh_mlx.model.steering import NO_STEERING, Guidance, Steering

sys.path.append(str(ROOT / "benchmarks"))

from lm_worker import Counts

ROOM = Path(msh_mlx.__file__).parent / "model"
PATIENCE = 10.0


@pytest.fixture(scope="module")
def lm():
    return load_lm(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", mx.float32)


@pytest.fixture(scope="module")
def golden():
    return load_file(SMALL / "greedy_f32.safetensors")


def wide(context=40):
    """A seeded model with heads wide enough for an 8-bit key/value cache."""
    config = LmConfig(
        dim=128, num_layers=3, num_heads=2, context=context, text_card=50, card=30, n_q=4, dep_q=2, delays=(0, 0, 1, 0, 1),
        depformer_dim=32, depformer_num_layers=2, depformer_num_heads=2, depformer_dim_feedforward=48,
    )  # fmt: skip
    mx.random.seed(3)
    lm = Lm(config)
    mx.eval(lm.parameters())
    return lm


# ---- one wait a step ---------------------------------------------------------------------------------------------------------


def test_a_step_waits_once_for_the_device(lm, golden, monkeypatch):
    """The priming step, which comes with the first, and a ring that grows do not wait on their own."""
    waits = []
    to_host = generate_module.to_host
    monkeypatch.setattr(generate_module, "to_host", lambda array: waits.append(array.shape) or to_host(array))
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
        ("prefill.py", "prefill_in_turns"),  # reading a prompt, once, in parts
    }
    found = []
    for name in ("attention", "generate", "layers", "lm", "prefill", "sampling", "step", "transformer"):
        path = ROOM / f"{name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in forbidden:
                    found.append((f"{name}.py", function.name))
                # numpy may only make arrays of numbers of Python, or of what was brought to the host.
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.array", "np.asarray"):
                    argument = node.args[0]
                    if isinstance(argument, ast.Name) and (name, function.name) != ("generate", "_checked"):
                        found.append((f"{name}.py", function.name))
    assert set(found) - allowed == {("generate.py", "to_host")}


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


# ---- in two halves -----------------------------------------------------------------------------------------------------------


class AsSampled:
    """A script that takes what the model says, for `steps` positions."""

    def __init__(self, steps):
        self._steps = steps

    def text(self, position, sampled):
        return sampled

    def own(self, position):
        return np.full(5, AS_SAID, np.int32)

    def rows(self, position, column):
        return column

    def speaks(self, position):
        return True

    def over(self, position):
        return position >= self._steps


def speaker(steering=NO_STEERING, context=30, **options):
    """A seeded conversation of a model that hears nothing."""
    config = LmConfig(
        dim=64, num_layers=2, num_heads=2, context=context, text_card=50, card=30, n_q=5, dep_q=5, delays=(0, 0, 2, 2, 2, 2),
        depformer_dim=32, depformer_num_layers=2, depformer_num_heads=2, depformer_dim_feedforward=48,
    )  # fmt: skip
    mx.random.seed(4)
    return LmGen(Lm(config), seed=3, steering=steering, **options)


def test_a_script_waits_once_a_step(monkeypatch):
    """For the text of a position, and for the codes of the position before."""
    waits = []
    to_host = generate_module.to_host
    monkeypatch.setattr(generate_module, "to_host", lambda array: waits.append(array.shape) or to_host(array))
    gen = speaker(script=AsSampled(6))
    gen.warm_up()
    waits.clear()
    said = [gen.advance() for _ in range(8)]
    assert [step is None for step in said] == [False] * 6 + [True] * 2
    assert waits == [(1,), *[(7,)] * 5, (6,)]
    gen.reset()
    assert [gen.advance().text_token for _ in range(6)] == [step.text_token for step in said[:6]]


@pytest.mark.parametrize("guidance", [None, Guidance(2.5), Guidance(2.5, text=False)], ids=["alone", "all", "codes"])
def test_two_halves_choose_what_a_whole_step_chooses(guidance):
    """The same tokens by the same noise, and the same logits."""
    told = mx.random.normal((2, 64), key=mx.random.key(5)) if guidance else None
    steering = Steering(told, guidance=guidance, codebooks=4)
    whole, halves = speaker(steering), speaker(steering, script=AsSampled(80))
    a, b = Watched(whole), Watched(halves)
    steps = [whole.step(np.zeros(0, np.int32)) for _ in range(79)]
    said = []
    while (step := halves.advance()) is not None:
        said.append(step)
    assert a.text == b.text
    assert (np.array(a.codes) == np.array(b.codes)).all()
    assert (np.array(a.columns) == np.array(b.columns)).all()
    for name in ("text_logits", "audio_logits"):
        assert np.abs(np.array(getattr(a, name)) - np.array(getattr(b, name))).max() < 1e-5
    for one, other in zip(steps, said[1:], strict=True):
        assert one.text_token == other.text_token
        assert (one.codes is None) == (other.codes is None)
        assert one.codes is None or (one.codes == other.codes).all()


# ---- compiling ---------------------------------------------------------------------------------------------------------------


def count_traces(gen):
    """Count how often the step's Python code runs from now on: once for a trace, or every time if it is not compiled."""
    traces = []
    prepared = gen.lm.depformer.__call__

    class Counted(type(gen.lm.depformer)):
        def __call__(self, *args):
            traces.append(1)
            return prepared(*args)

    gen.lm.depformer.__class__ = Counted
    return traces


@pytest.mark.skipif(not shutil.which("g++"), reason="MLX compiles with g++ on the CPU")
def test_warm_up_compiles_all_that_a_conversation_needs():
    lm = wide(context=600)
    gen = LmGen(lm, seed=1, text_sampler=TextSampler(0.7, 25, repetition_penalty=1.2))
    traces = count_traces(gen)
    gen.warm_up()
    assert len(traces) == 4  # 128, 256, 512 and 600 slots
    for t in range(700):
        gen.step([t % 30, 0])
    gen.reset()
    gen.step([0, 0])
    assert len(traces) == 4


def test_warm_up_changes_nothing(lm, golden):
    user = golden["user_codes"]
    gen, undisturbed = LmGen(lm, seed=5), LmGen(lm, seed=5)
    gen.warm_up()
    assert gen.kv_bytes == lm.ring_format().nbytes(lm.config.context) * lm.config.num_layers  # the priming step's
    a = talk(gen, user[:, :4])
    gen.warm_up()
    b = talk(gen, user[:, 4:9])
    text, frames = talk(undisturbed, user[:, :9])
    assert a[0] + b[0] == text
    assert (np.concatenate([a[1], b[1]], axis=1) == frames).all()


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
        gen = LmGen(lm)
        gen.step([0] * 8)
        # The model goes with the last who uses it.
        del lm, gen
        gc.collect()
        mx.clear_cache()
        assert mx.get_active_memory() - before < 65536


def test_the_rings_are_changed_in_place():
    """A step takes far less memory than a copy of the rings would."""
    lm = wide(context=4096)
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


def test_the_rings_of_a_script_are_changed_in_place():
    gen = speaker(script=AsSampled(10**6), context=4096)
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
        assert gen.kv_bytes == lm.ring_format().nbytes(lm.config.context) * lm.config.num_layers, part
    assert max(levels[1:]) <= 1.01 * min(levels[1:])


# ---- the 8-bit key/value cache -----------------------------------------------------------------------------------------------


def test_an_8_bit_cache_stays_near_and_is_smaller():
    lm = wide(context=300)
    user = np.random.default_rng(1).integers(0, 30, (2, 400))
    exact = Recorder(lm).talk(user)
    close = Recorder(lm, kv_bits=8)
    # The same input for both: what the exact one said.
    enqueue = close.gen._run
    position = iter(range(10**6))

    def forced(p, tokens, said, rings, key, recent):
        i = next(position)
        if i:
            said = mx.array(np.concatenate([[exact.text[i - 1]], exact.tokens[i - 1]]).astype(np.int32))
        return enqueue(p, tokens, said, rings, key, recent)

    close.gen._run = forced
    close.talk(user)
    a, b = np.array(exact.text_logits), np.array(close.text_logits)
    assert 0 < np.abs(a - b).max() < 0.02 * np.abs(a).max()
    assert close.gen.kv_bytes == lm.ring_format(8).nbytes(300) * 3 == 3 * 2 * 2 * 300 * (64 + 8)
    assert exact.gen.kv_bytes == 3 * 2 * 2 * 300 * 64 * 4


def test_an_8_bit_cache_that_cannot_be(lm):
    with pytest.raises(InputError, match="multiple of 32"):
        RingFormat(Heads(2, 48), mx.float32, 8)
    with pytest.raises(InputError, match="give 8"):
        LmGen(lm, kv_bits=4)


# ---- sampling in the step ----------------------------------------------------------------------------------------------------


def test_the_padding_bonus_decides_how_much_is_said(lm, golden):
    pad = lm.config.existing_text_padding_id
    user = golden["user_codes"][:, :40]

    def silent(bonus):
        text, _ = talk(LmGen(lm, seed=1, text_sampler=TextSampler(padding_bonus=bonus)), user)
        return sum(token == pad for token in text)

    assert silent(100.0) == 40
    assert silent(-100.0) == 0


@pytest.mark.parametrize("starts", [range(0, 96, 2), None], ids=["given", "after padding"])
def test_the_repetition_penalty_looks_at_the_last_words(lm, golden, starts):
    config = lm.config
    gen = LmGen(
        lm,
        text_sampler=TextSampler(0, repetition_penalty=1.7, repetition_words=3, padding_bonus=-0.2),
        audio_sampler=GREEDY,
        word_starts=starts,
    )
    primed = Recorder(lm).talk(golden["user_codes"][:, :1]).text_logits[0]
    primed[config.existing_text_padding_id] -= 0.2
    words, padded, changed = [], True, 0
    for t in range(-1, 150):
        if t < 0:
            token = int(primed.argmax())
        else:
            # The priming step's token counts from the second step on.
            recent = [x for word in words[-3:] for x in word][-12:] if t else []
            token = gen.step(golden["user_codes"][:, t]).text_token
            logits = np.array(gen.text_logits)
            likeliest = logits.argmax()
            for x in set(recent):
                logits[x] = logits[x] / 1.7 if logits[x] > 0 else logits[x] * 1.7
            logits[config.existing_text_padding_id] -= 0.2
            assert token == logits.argmax()
            changed += token != likeliest
        if token in config.padding_ids:
            padded = True
            continue
        if not words or (padded if starts is None else token in starts):
            words.append([])
        words[-1].append(token)
        padded = False
    assert changed > 3


def test_the_samplers_of_the_step_follow_the_distribution(lm):
    """Over many seeds, what the first step's text is drawn from is the softmax of its logits."""
    values = {"temperature": 0.9, "top_k": 6, "top_p": 0.95, "min_p": 0.02}
    gen = LmGen(lm, text_sampler=Sampler(**values), audio_sampler=GREEDY)
    drawn = []
    for seed in range(3000):
        gen.seed = seed
        gen.reset()
        drawn.append(int(np.array(gen._enqueue())[0]))
    assert agrees(np.array(drawn), distribution(np.array(gen.text_logits), **values))


# ---- threads -----------------------------------------------------------------------------------------------------------------


def on_a_thread(work):
    result = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join(PATIENCE)
    return result[0]


def test_made_on_one_thread_used_on_another(golden):
    user = golden["user_codes"]
    lm = on_a_thread(lambda: load_lm(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", mx.float32))
    gen = on_a_thread(lambda: LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY))
    parts = [on_a_thread(lambda i=i: talk(gen, user[:, i : i + 10])) for i in range(0, 40, 10)]
    parts.append(talk(gen, user[:, 40:50]))
    assert [token for text, _ in parts for token in text] == golden["text_tokens"][1:51].tolist()
    assert (np.concatenate([frames for _, frames in parts], axis=1) == golden["audio_frames"][:, :50]).all()
    on_a_thread(gen.reset)
    assert talk(gen, user[:, :3])[0] == golden["text_tokens"][1:4].tolist()


def test_two_threads_at_once_are_told(lm, golden, monkeypatch):
    user = golden["user_codes"]
    gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
    inside, go = threading.Event(), threading.Event()
    to_host = generate_module.to_host

    def slow(array):
        inside.set()
        assert go.wait(PATIENCE)
        return to_host(array)

    monkeypatch.setattr(generate_module, "to_host", slow)
    texts = []
    thread = threading.Thread(target=lambda: texts.append(gen.step(user[:, 0]).text_token))
    thread.start()
    assert inside.wait(PATIENCE)
    for work in (lambda: gen.step(user[:, 1]), gen.reset, gen.warm_up):
        with pytest.raises(InUseError, match="another thread"):
            work()
    go.set()
    thread.join(PATIENCE)
    monkeypatch.undo()
    # Nothing was lost by it.
    assert texts + talk(gen, user[:, 1:10])[0] == golden["text_tokens"][1:11].tolist()


def test_logits_before_any_step(lm):
    gen = LmGen(lm)
    for logits in ("text_logits", "audio_logits"):
        with pytest.raises(InputError, match="no logits before the first step"):
            getattr(gen, logits)


def test_slow_version_agrees_on_wide_heads():
    """The seeded model of the other tests is right, too: ten windows against a version that keeps everything."""
    lm = wide()
    user = np.random.default_rng(2).integers(0, 30, (2, 400))
    r = Recorder(lm).talk(user)
    config = {**vars(lm.config)}
    names = {name: np.array(array) for name, array in lm.named_parameters()}
    weights = {"out_norm.alpha": names["out_norm.weight"]}
    for name, array in names.items():
        new = (
            name.replace("audio_embs", "emb")
            .replace("norm1.weight", "norm1.alpha")
            .replace("norm2.weight", "norm2.alpha")
        )
        weights[new.replace("in_proj.weight", "in_proj_weight")] = array
    _, slow = SlowLm(weights, config).temporal(inputs(config, r.text, np.array(r.tokens).T, user))
    assert np.abs(np.array(r.text_logits) - slow).max() < 1e-4
