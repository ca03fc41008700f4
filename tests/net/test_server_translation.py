"""Translations over the network, with Hibiki's small golden model."""

from functools import partial

import hosts
import numpy as np
import pytest
import soundfile
from paths import DIGITS
from talker import talk
from test_translation import GREEDY, SMALL, folder

from msh_mlx import LmGen
from msh_mlx.cli import server_program
from msh_mlx.cli.also import Talking
from msh_mlx.cli.choice import choose
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.shared import SharedModel
from msh_mlx.format import FRAME_SIZE
from msh_mlx.model.families import hibiki
from msh_mlx.system.signals import Signals

__all__ = ["folder"]


@pytest.mark.parametrize("coef", [1.0, 3.0])
async def test_a_translation_is_served_with_its_condition_and_guidance(folder, tmp_path, coef):
    files = {"--model": SMALL / "lm.safetensors", "--lm-config": SMALL / "config.json"}
    files |= {"--mimi": folder / "mimi-small.safetensors", "--tokenizer": folder / "tokenizer_small.model"}
    options = [str(each) for option in files.items() for each in option] + ["--guidance", str(coef)]
    args = hosts.checked(*options, "--log-dir", str(tmp_path))
    choice = choose(args, Signals())
    program = server_program.Program(args, choice, Signals(), None, None, [], [])
    shared, lm = SharedModel(), []

    def load():
        parts = load_parts(choice.files, choice.checkpoint)
        lm.append(parts.lm)
        return parts

    shared.load(load, partial(program._begin, Talking("hibiki", args, choice)))
    speech = soundfile.read(DIGITS, dtype="float32")[0][: 30 * FRAME_SIZE]
    asked = {"realtime": 0, "text_temperature": 0, "audio_temperature": 0, "text_prompt": "x"}
    async with hosts.serving(shared, args, choice.files) as server:
        heard = await talk(server.url, speech, **asked)
    assert heard.metadata[0]["ignored"] == ["text_prompt"]
    (tokens,) = tmp_path.glob("*.npy")
    rows = np.load(tokens)
    assert len(rows) == 30
    gen = LmGen(lm[0], steering=hibiki.steering(lm[0], coef), **GREEDY)
    own = 1 + lm[0].config.dep_q
    assert [gen.step(row[own:]).text_token for row in rows] == rows[:, 0].tolist()
    other = LmGen(lm[0], steering=hibiki.steering(lm[0], 4.0 - coef), **GREEDY)
    assert [other.step(row[own:]).text_token for row in rows] != rows[:, 0].tolist()
    shared.close()
