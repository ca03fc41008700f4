"""Conversations with one model that step together: each says what it says alone, whoever else is there."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engines import load_exact, seeded
from paths import DEMO
from safetensors.numpy import load_file
from test_lm import GREEDY, SMALL
from test_prefill import random_prompt
from test_step import WIDE

from msh_mlx import InputError, InUseError, LmGen, Sampler, TextSampler, load_lm
from msh_mlx.model.engine import LanguageModel
from msh_mlx.model.generate import Step, step_together
from msh_mlx.model.prefill import prefill
from msh_mlx.model.steering import Guidance, Steering

# What one step shows: its text, its codes, its logits.
Said = tuple[int, Any, npt.NDArray[np.float32], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def lm(engine: str) -> LanguageModel:
    return load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine)


@pytest.fixture(scope="module")
def golden() -> dict[str, npt.NDArray[Any]]:
    return load_file(SMALL / "greedy_f32.safetensors")


def said(gen: LmGen, step: Step) -> Said:
    codes = None if step.codes is None else step.codes.tolist()
    return step.text_token, codes, np.array(gen.text_logits), np.array(gen.audio_logits)


def alone(gen: LmGen, user: npt.NDArray[Any]) -> list[Said]:
    return [said(gen, gen.step(user[:, t])) for t in range(user.shape[1])]


def equal(engine: str, found: Said, wanted: Said) -> bool:
    """The same choices. The native engine has computed the same bits for them, and MLX nearly the same numbers."""
    if found[:2] != wanted[:2]:
        return False
    pairs = list(zip(found[2:], wanted[2:], strict=True))
    if engine == "native":
        return all(a.tobytes() == b.tobytes() for a, b in pairs)
    return all(a.shape == b.shape and np.abs(a - b).max(initial=0.0) < 1e-4 for a, b in pairs)


def by_turns(gens: list[LmGen], users: list[npt.NDArray[Any]], seed: int) -> list[list[Said]]:
    """Let conversations take their steps, at each time some of them together, in any order, until all have taken theirs."""
    random, found = np.random.default_rng(seed), [list[Said]() for _ in gens]
    while open_ := [i for i, user in enumerate(users) if len(found[i]) < user.shape[1]]:
        present = random.permutation([i for i in open_ if random.random() < 0.7]).tolist()
        steps = step_together([(gens[i], users[i][:, len(found[i])]) for i in present])
        for i, step in zip(present, steps, strict=True):
            found[i].append(said(gens[i], step))
    return found


def test_the_reference_is_reached_beside_others(lm: LanguageModel, golden: dict[str, npt.NDArray[Any]]) -> None:
    """Beyond the window, and beside a conversation that is elsewhere."""
    user = golden["user_codes"]
    first, second, third = (LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY) for _ in range(3))
    for t in range(20):
        second.step(user[:, t])
    third.step(user[:, 3])
    rows = [
        step_together([(third, user[:, t // 2]), (first, user[:, t]), (second, user[:, 20 + t])])
        for t in range(user.shape[1] - 20)
    ]
    for place, begin in ((1, 0), (2, 20)):
        steps = [row[place] for row in rows]
        end = begin + len(steps)
        assert [step.text_token for step in steps] == golden["text_tokens"][1 + begin : 1 + end].tolist()
        codes = np.array([step.codes for step in steps]).T
        assert (codes == golden["audio_frames"][:, begin:end]).all()


def test_every_manner_beside_every_other(tmp_path: Path, engine: str) -> None:
    """Samplers, guidance, conditions, fewer codebooks, keys and values in 8 bits: each as alone, with absences."""
    lm, _ = seeded(tmp_path, replace(WIDE, context=24), engine, seed=3)
    random = np.random.default_rng(5)
    told = random.standard_normal((2, lm.config.dim)).astype(np.float32)
    free = {"text_sampler": Sampler(0.9, top_k=6, top_p=0.95), "audio_sampler": Sampler(1.2, min_p=0.02)}
    wordy = TextSampler(0.8, repetition_penalty=1.6, repetition_words=3, padding_bonus=-0.3)
    manners: list[dict[str, Any]] = [
        {},
        {"text_sampler": GREEDY, "audio_sampler": GREEDY},
        free,
        {"text_sampler": wordy},
        {"kv_bits": 8},
        {"steering": Steering(told[:1])},
        {"steering": Steering(told, guidance=Guidance(1.5))},
        {"steering": Steering(told, guidance=Guidance(2.0, text=False), codebooks=1)},
        {"steering": Steering(codebooks=0)},
        # Each kind again, with other numbers.
        {},
        {"text_sampler": Sampler(0.6, top_k=6, top_p=0.8), "audio_sampler": Sampler(0.7, min_p=0.1)},
        {"text_sampler": replace(wordy, repetition_penalty=1.2, padding_bonus=0.5)},
        {"kv_bits": 8},
        {"steering": Steering(told[1:])},
        {"steering": Steering(codebooks=0)},
        {"text_sampler": GREEDY, "audio_sampler": Sampler(0, top_k=3)},
    ]
    users = [random.integers(-1, lm.config.card, (2, 26 + i)) for i in range(len(manners))]

    def made() -> list[LmGen]:
        return [LmGen(lm, seed=i, **manner) for i, manner in enumerate(manners)]

    wanted = [alone(gen, user) for gen, user in zip(made(), users, strict=True)]
    found = by_turns(made(), users, 8)
    for i, manner in enumerate(manners):
        assert len(found[i]) == len(wanted[i])
        for t, (one, other) in enumerate(zip(found[i], wanted[i], strict=True)):
            assert equal(engine, one, other), (i, t, manner)


def test_prompts_of_any_length_beside_each_other(engine: str) -> None:
    """Some read already, one shared by two, one that nobody has read yet; and rings of several sizes."""
    folder = SMALL.parent / "personaplex-small"
    config = json.loads((folder / "config.json").read_text()) | {"context": 300}
    lm = load_exact(folder / "lm.safetensors", config, engine)
    shared = prefill(lm, random_prompt(lm, 130))
    prompts = [None, shared, shared, random_prompt(lm, 61), prefill(lm, random_prompt(lm, 127))]
    users = [np.random.default_rng(i).integers(0, lm.config.card, (lm.config.user_q, 12)) for i in range(5)]

    def made() -> list[LmGen]:
        return [LmGen(lm, seed=i, prompt=prompt) for i, prompt in enumerate(prompts)]

    wanted = [alone(gen, user) for gen, user in zip(made(), users, strict=True)]
    for seed in (1, 2):  # what was read stays as it is
        for one, other in zip(by_turns(made(), users, seed), wanted, strict=True):
            assert all(equal(engine, a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_byte_equal_beside_15_neighbours(dtype: str | None) -> None:
    """The demo model in the native engine, as it is used and exactly."""
    lm = load_lm(DEMO / "model.q8.safetensors", DEMO / "config.json", dtype, engine="native")
    user = np.random.default_rng(1).integers(0, lm.config.card, (lm.config.user_q, 40))
    wanted = alone(LmGen(lm, seed=7), user)
    gens = [LmGen(lm, seed=seed) for seed in range(16)]
    for t in range(user.shape[1]):
        # Neighbours hear something else, and some are away.
        others = [gen for i, gen in enumerate(gens) if i != 7 and (t % 4 == 0 or (i + t) % 3)]
        steps = step_together([(gens[7], user[:, t]), *((gen, user[:, (3 * t + 1) % 40]) for gen in others)])
        assert equal("native", said(gens[7], steps[0]), wanted[t]), t


def test_more_conversations_than_the_native_engine_computes_at_once(golden: dict[str, npt.NDArray[Any]]) -> None:
    lm = load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", "native")
    guided = Steering(np.zeros((2, lm.config.dim), np.float32), guidance=Guidance(1.0))
    user = golden["user_codes"][:, :3]

    def made() -> list[LmGen]:
        return [LmGen(lm, seed=i, steering=guided) if i % 3 == 0 else LmGen(lm, seed=i) for i in range(70)]

    gens = made()
    found = [step_together([(gen, user[:, t]) for gen in gens]) for t in range(3)]
    for i, gen in enumerate(made()):
        for t in range(3):
            one, other = gen.step(user[:, t]), found[t][i]
            assert one.text_token == other.text_token
            assert one.codes is not None
            assert other.codes is not None
            assert (one.codes == other.codes).all()


def test_reset_and_fresh_neighbours(lm: LanguageModel, engine: str, golden: dict[str, npt.NDArray[Any]]) -> None:
    """Who begins again, and who comes and goes, changes nothing for who stays."""
    user = golden["user_codes"]
    wanted = alone(LmGen(lm, seed=1), user[:, :30])
    stays, again = LmGen(lm, seed=1), LmGen(lm, seed=2)
    fresh = alone(LmGen(lm, seed=2), user[:, :1])[0]
    for t in range(30):
        guest = LmGen(lm, seed=2)
        if t % 7 == 0:
            again.reset()
        guest_step, step, again_step = step_together(
            [(guest, user[:, 0]), (stays, user[:, t]), (again, user[:, t % 7])]
        )
        assert equal(engine, said(stays, step), wanted[t])
        assert equal(engine, said(guest, guest_step), fresh)
        if t % 7 == 0:
            assert equal(engine, said(again, again_step), fresh)


def test_what_is_wrong_changes_no_conversation(lm: LanguageModel, engine: str, golden: dict[str, Any]) -> None:
    user = golden["user_codes"]
    one, other = LmGen(lm, seed=1), LmGen(lm, seed=2)
    wanted = [alone(LmGen(lm, seed=seed), user[:, :4]) for seed in (1, 2)]
    stranger = LmGen(load_exact(SMALL / "lm_mlx_f32.safetensors", SMALL / "config.json", engine), seed=1)
    for t in range(4):
        for codes in (np.full(4, lm.config.card), user[:3, t], user[:, t] + 0.5):
            with pytest.raises(InputError, match="code"):
                step_together([(one, user[:, t]), (other, codes)])
        with pytest.raises(InputError, match="there twice; give each one step"):
            step_together([(one, user[:, t]), (other, user[:, t]), (one, user[:, t])])
        with pytest.raises(InputError, match="different models"):
            step_together([(one, user[:, t]), (stranger, user[:, t])])
        with other._in_use, pytest.raises(InUseError, match="another thread"):
            step_together([(one, user[:, t]), (other, user[:, t])])
        steps = step_together([(one, user[:, t]), (other, user[:, t])])
        for i, (gen, step) in enumerate(zip((one, other), steps, strict=True)):
            assert equal(engine, said(gen, step), wanted[i][t])
    assert step_together([]) == []


def test_on_any_thread(lm: LanguageModel, engine: str, golden: dict[str, npt.NDArray[Any]]) -> None:
    """Each step on a new thread, as when one worker follows another."""
    user = golden["user_codes"]
    wanted = [alone(LmGen(lm, seed=seed), user[:, :6]) for seed in (1, 2, 3)]
    gens = [LmGen(lm, seed=seed) for seed in (1, 2, 3)]
    for t in range(6):
        found: list[Said] = []

        def work(t: int = t, found: list[Said] = found) -> None:
            steps = step_together([(gen, user[:, t]) for gen in gens])
            found.extend(said(gen, step) for gen, step in zip(gens, steps, strict=True))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        assert len(found) == 3
        assert all(equal(engine, a, wanted[i][t]) for i, a in enumerate(found))
