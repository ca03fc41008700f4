"""Steps of a conversation with each engine: in two halves, with an 8-bit cache, with samplers, on any thread."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from engines import load_exact, seeded
from safetensors.numpy import load_file
from slow_lm import SlowLm, inputs
from test_lm import GREEDY, SMALL, Recorder, talk
from test_sampling import agrees, distribution
from watched import Watched

from msh_mlx import InputError, InUseError, LmConfig, LmGen, Sampler, TextSampler
from msh_mlx.metrics import resident_bytes
from msh_mlx.model.grid import AS_SAID
from msh_mlx.model.steering import NO_STEERING, Guidance, Steering

PATIENCE = 10.0


@pytest.fixture(scope="module")
def lm(engine):
    return load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine)


@pytest.fixture(scope="module")
def golden():
    return load_file(SMALL / "greedy_f32.safetensors")


WIDE = LmConfig(
    dim=128, num_layers=3, num_heads=2, context=40, text_card=50, card=30, n_q=4, dep_q=2, delays=(0, 0, 1, 0, 1),
    depformer_dim=32, depformer_num_layers=2, depformer_num_heads=2, depformer_dim_feedforward=48,
)  # fmt: skip


def wide(folder, engine, context=40):
    """A seeded model with heads wide enough for an 8-bit key/value cache."""
    return seeded(folder, replace(WIDE, context=context), engine, seed=3)[0]


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


def speaker(folder, engine, steering=NO_STEERING, context=30, **options):
    """A seeded conversation of a model that hears nothing."""
    config = LmConfig(
        dim=64, num_layers=2, num_heads=2, context=context, text_card=50, card=30, n_q=5, dep_q=5, delays=(0, 0, 2, 2, 2, 2),
        depformer_dim=32, depformer_num_layers=2, depformer_num_heads=2, depformer_dim_feedforward=48,
    )  # fmt: skip
    lm, _ = seeded(folder, config, engine, seed=4)
    return LmGen(lm, seed=3, steering=steering, **options)


@pytest.mark.parametrize("guidance", [None, Guidance(2.5), Guidance(2.5, text=False)], ids=["alone", "all", "codes"])
def test_two_halves_choose_what_a_whole_step_chooses(guidance, tmp_path, engine):
    """The same tokens by the same noise, and the same logits."""
    told = np.random.default_rng(5).standard_normal((2, 64)).astype(np.float32) if guidance else None
    steering = Steering(told, guidance=guidance, codebooks=4)
    whole, halves = speaker(tmp_path, engine, steering), speaker(tmp_path, engine, steering, script=AsSampled(80))
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


def test_warm_up_changes_nothing(lm, golden, engine):
    user = golden["user_codes"]
    gen, undisturbed = LmGen(lm, seed=5), LmGen(lm, seed=5)
    gen.warm_up()
    assert gen.kv_bytes == lm.kv_bytes(1 if engine == "native" else lm.config.context)  # the priming step's
    a = talk(gen, user[:, :4])
    gen.warm_up()
    b = talk(gen, user[:, 4:9])
    text, frames = talk(undisturbed, user[:, :9])
    assert a[0] + b[0] == text
    assert (np.concatenate([a[1], b[1]], axis=1) == frames).all()


def test_memory_stays_flat_beyond_the_window(lm, golden):
    """Keys and values take what the window takes, and the process no more than before."""
    gen, user, levels = LmGen(lm, seed=2), golden["user_codes"], []
    for part in range(12):
        for t in range(100):
            gen.step(user[:, t])
        levels.append(resident_bytes())
        assert gen.kv_bytes == lm.kv_bytes(lm.config.context), part
    assert max(levels[6:]) < levels[5] + (1 << 20)


# ---- the 8-bit key/value cache -----------------------------------------------------------------------------------------------


def test_an_8_bit_cache_stays_near_and_is_smaller(tmp_path, engine):
    lm = wide(tmp_path, engine, context=300)
    user = np.random.default_rng(1).integers(0, 30, (2, 400))
    exact = Recorder(lm).talk(user)
    close = Recorder(lm, kv_bits=8)
    # The same input for both: what the exact one said.
    run, own = close.gen._run, 1 + lm.config.dep_q

    class Forced:
        def __getattr__(self, name):
            return getattr(run, name)

        def step(self, position, column, recent):
            if position:
                said = np.concatenate([[exact.text[position - 1]], exact.tokens[position - 1]])
                column[:own] = np.where(column[:own] == AS_SAID, said, column[:own])
            run.step(position, column, recent)

    close.gen._run = Forced()
    close.talk(user)
    a, b = np.array(exact.text_logits), np.array(close.text_logits)
    assert 0 < np.abs(a - b).max() < 0.02 * np.abs(a).max()
    assert close.gen.kv_bytes == lm.kv_bytes(300, 8) < 0.3 * lm.kv_bytes(300)
    assert exact.gen.kv_bytes == lm.kv_bytes(300) == 3 * 2 * 2 * 300 * 64 * 4


def test_a_cache_that_cannot_be(lm):
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
        drawn.append(gen.prime())
    assert agrees(np.array(drawn), distribution(np.array(gen.text_logits), **values))


# ---- threads -----------------------------------------------------------------------------------------------------------------


def on_a_thread(work):
    result = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join(PATIENCE)
    return result[0]


def test_made_on_one_thread_used_on_another(golden, engine):
    user = golden["user_codes"]
    lm = on_a_thread(lambda: load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine))
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
    take = gen._run.take

    def slow():
        inside.set()
        assert go.wait(PATIENCE)
        return take()

    monkeypatch.setattr(gen._run, "take", slow)
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


def test_conversations_with_one_model_do_not_disturb_each_other(lm, golden):
    """By turns, and on several threads at once, each says what it says alone."""
    users = [golden["user_codes"][:, 7 * i : 7 * i + 60] for i in range(4)]

    def alone(i):
        return talk(LmGen(lm, seed=i), users[i])

    wanted = [(text, frames.tolist()) for text, frames in map(alone, range(4))]
    gens = [LmGen(lm, seed=i) for i in range(4)]
    steps = [[gen.step(users[i][:, t]) for i, gen in enumerate(gens)] for t in range(60)]
    for i in range(4):
        own = [row[i] for row in steps]
        assert ([s.text_token for s in own], np.array([s.codes for s in own]).T.tolist()) == wanted[i]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(alone, range(4)))
    assert [(text, frames.tolist()) for text, frames in found] == wanted


def test_halves_of_steps_of_several_conversations_may_alternate(tmp_path, engine):
    """Another conversation steps between the halves of a step."""
    first = speaker(tmp_path, engine, script=AsSampled(30))
    wanted = [step.codes for step in iter(first.advance, None)]
    other = LmGen(first.lm, seed=9)
    other.step(np.zeros(0, np.int32))

    class Between(AsSampled):
        def text(self, position, sampled):
            other.step(np.zeros(0, np.int32))
            return sampled

    gen = LmGen(first.lm, seed=3, script=Between(30))
    found = [step.codes for step in iter(gen.advance, None)]
    assert len(found) == len(wanted) == 30
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a == b).all()


def test_logits_before_any_step(lm):
    gen = LmGen(lm)
    for logits in ("text_logits", "audio_logits"):
        with pytest.raises(InputError, match="no logits before the first step"):
            getattr(gen, logits)


def test_slow_version_agrees_on_wide_heads(tmp_path, engine):
    """The seeded model of the other tests is right, too: ten windows against a version that keeps everything."""
    lm, weights = seeded(tmp_path, WIDE, engine, seed=3)
    user = np.random.default_rng(2).integers(0, 30, (2, 400))
    r = Recorder(lm).talk(user)
    config = {**vars(lm.config)}
    _, slow = SlowLm(weights, config).temporal(inputs(config, r.text, np.array(r.tokens).T, user))
    assert np.abs(np.array(r.text_logits) - slow).max() < 1e-4
