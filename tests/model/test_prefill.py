"""Reading a prompt at once, against reading it column by column."""

from __future__ import annotations

import json

import numpy as np
import pytest
from engines import load_exact
from paths import GOLDEN

from msh_mlx import InputError, LmGen, Sampler
from msh_mlx.model.engine import LanguageModel
from msh_mlx.model.grid import Grid, Prompt
from msh_mlx.model.prefill import first_position, prefill
from msh_mlx.model.steering import Guidance, Steering

GREEDY = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0), "seed": 0}
FOLDER = GOLDEN / "personaplex-small"


@pytest.fixture(scope="module")
def lm(engine: str) -> LanguageModel:
    """A small PersonaPlex. MLX's rings grow from 128 to 256 to 300 slots."""
    config = json.loads((FOLDER / "config.json").read_text()) | {"context": 300}
    return load_exact(FOLDER / "lm.safetensors", config, engine)


def random_prompt(lm: LanguageModel, length: int) -> Prompt:
    """A prompt of `length` columns, and the delayed cells behind it."""
    random, streams = np.random.default_rng(length), lm.config.streams
    columns = random.integers(0, lm.config.card, (length + streams.max_delay, len(streams.delays)))
    return Prompt(streams.opened(columns.astype(np.int32)))


def column_by_column(lm: LanguageModel, prompt: Prompt, kv_bits: int | None) -> LmGen:
    """Return a conversation that has read all columns but the last, each by a step of the model."""
    gen = LmGen(lm, **GREEDY, kv_bits=kv_bits)
    gen._grid = Grid(lm.config.streams, prompt.columns)
    gen._run.begin(0, None)
    for _ in range(first_position(lm.config, prompt)):
        gen._start()
    if gen._position:
        gen._run.take()
    return gen


LENGTHS = [(length, None) for length in (1, 2, 64, 65, 66, 127, 128, 129, 257, 300)] + [(65, 8), (129, 8), (300, 8)]


@pytest.mark.parametrize(("length", "kv_bits"), LENGTHS)
def test_both_go_on_in_the_same_way(lm: LanguageModel, length: int, kv_bits: int | None) -> None:
    """Wherever the prompt ends: at the end of a chunk, of a ring, of the window."""
    prompt = random_prompt(lm, length)
    slow = column_by_column(lm, prompt, kv_bits)
    slow._start()
    said = [slow._take()]
    quick = LmGen(lm, prompt=prefill(lm, prompt, kv_bits=kv_bits), **GREEDY, kv_bits=kv_bits)
    for _ in range(2):  # also after a reset
        assert quick.prime() == said[0]
        for i in range(12 if len(said) == 1 else 0):
            user = np.full(4, i)
            one, other = slow.step(user), quick.step(user)
            said.append(one.text_token)
            assert one.text_token == other.text_token
            assert one.codes is not None
            assert other.codes is not None
            assert one.codes.tolist() == other.codes.tolist()
            difference = np.abs(np.array(slow.text_logits) - np.array(quick.text_logits)).max()
            assert difference < (1e-4 if kv_bits is None else 2e-2)
        quick.reset()


def test_a_prompt_that_does_not_fit(lm: LanguageModel) -> None:
    prompt = random_prompt(lm, 301)
    for read in (lambda: prefill(lm, prompt), lambda: LmGen(lm, prompt=prompt)):
        with pytest.raises(
            InputError, match="The prompt takes 301 steps, and the model's window has 300; give a shorter"
        ):
            read()


def test_a_prompt_of_another_format(lm: LanguageModel) -> None:
    prefilled = prefill(lm, random_prompt(lm, 20))
    with pytest.raises(InputError, match="was read for another format of keys and values"):
        LmGen(lm, prompt=prefilled, kv_bits=8)


def test_guidance_takes_no_prompt(lm: LanguageModel) -> None:
    steering = Steering(guidance=Guidance(2.0))
    with pytest.raises(InputError, match="A conversation with guidance cannot begin with a prompt"):
        prefill(lm, random_prompt(lm, 20), steering=steering)


def test_what_was_read_stays_as_it_is(lm: LanguageModel) -> None:
    """Conversations that go on from it do not change it."""
    prefilled = prefill(lm, random_prompt(lm, 40))
    before = [array.copy() for array in lm.kept(prefilled)]
    for _ in range(2):
        gen = LmGen(lm, prompt=prefilled, **GREEDY)
        for i in range(5):
            gen.step(np.full(4, i))
    assert before
    assert all((a == b).all() for a, b in zip(before, lm.kept(prefilled), strict=True))


@pytest.mark.parametrize(("length", "kv_bits"), [(1, None), (2, None), (40, None), (130, 8), (300, None)])
def test_what_was_read_can_be_restored_from_its_bytes(lm: LanguageModel, length: int, kv_bits: int | None) -> None:
    read = prefill(lm, random_prompt(lm, length), kv_bits=kv_bits)
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in lm.kept(read))
    again = lm.restored(read.prompt, kv_bits, memoryview(data))
    one, other = (LmGen(lm, prompt=prompt, **GREEDY, kv_bits=kv_bits) for prompt in (read, again))
    assert one.prime() == other.prime()
    for i in range(5):
        a, b = one.step(np.full(4, i)), other.step(np.full(4, i))
        assert a.text_token == b.text_token
        assert (np.array(one.text_logits) == np.array(other.text_logits)).all()


def test_bytes_that_are_not_what_was_read(lm: LanguageModel) -> None:
    read = prefill(lm, random_prompt(lm, 40))
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in lm.kept(read))
    for wrong in (data[:-1], data[: len(data) // 2], data + b"0", b""):
        with pytest.raises(ValueError):  # noqa: PT011
            lm.restored(read.prompt, None, memoryview(wrong))
    with pytest.raises(ValueError):  # noqa: PT011
        lm.restored(read.prompt, 8, memoryview(data))
