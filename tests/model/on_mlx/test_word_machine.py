"""The word machine on MLX's device, of the benchmark that compares it with the one on the host."""

import sys

import mlx.core as mx
import numpy as np
import pytest
from engines import load_exact
from paths import GOLDEN, ROOT
from test_families import speech_cases

from msh_mlx import LmGen
from msh_mlx.model.families import tts

sys.path.append(str(ROOT / "benchmarks"))

from word_machine import WAYS, DeviceMachine


def test_the_machine_on_the_device_equals_the_one_on_the_host():
    """Of the benchmark, which compares the two."""
    for rows in (None, 21):
        for rng, entries, sampled in speech_cases(6, 10):
            second = int(rng.integers(1, 4))
            words = [tts.Entry(*entry) for entry in entries]
            host, device = tts.WordMachine(rows, second), DeviceMachine(words, second, rows)
            host.entries.extend(words)
            state = device.begin
            for p, wish in enumerate(sampled[:60]):
                out, state = device.token(mx.array([p]), mx.array([wish]), state, device.arrays)
                assert out.item() == host.token(p, wish)
            assert state[-1].item() == (-1 if host.end is None else host.end)


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_speak_say_the_same(way):
    """With a voice, pauses and two streams of text, by random samples of the same noise."""
    path = GOLDEN / "tts-small"
    lm = load_exact(path / "lm.safetensors", path / "config.json", "mlx")
    voice = np.random.default_rng(8).standard_normal((7, 24)).astype(np.float32)
    steering = tts.steering(lm, [voice], cfg="1.5")
    words = [tts.Entry((49, 54, 25)), tts.Entry((), 4), tts.Entry((10, 37), 2), tts.Entry((74,)), tts.Entry((5, 6))]

    def speech(way):
        machine = tts.WordMachine.of(lm.config)
        machine.entries.extend(words)
        script = tts.SpeechScript.of(lm.config, machine)
        gen = LmGen(lm, seed=2, steering=steering, script=script)
        ours = gen if way is None else WAYS[way](gen, script, machine)
        steps = []
        while (step := ours.advance()) is not None:
            steps.append((step.text_token, None if step.codes is None else step.codes.tolist()))
        return steps, machine.end

    assert speech(way) == speech(None)
    assert len(speech(None)[0]) > 25
