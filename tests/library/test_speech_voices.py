"""Voices of text-to-speech models: their names, where they are, and what their licences forbid."""

from pathlib import Path

import pytest

from msh_mlx.errors import InputError
from msh_mlx.library.catalogue import HubFile
from msh_mlx.library.speech_voices import find_voice, forbidden, voices_beside

ENDING = ".1e68beda@240.safetensors"


@pytest.fixture
def model(tmp_path):
    for name in ("calm.safetensors", f"anna{ENDING}", f"expresso/happy.wav{ENDING}", "notes.txt"):
        path = tmp_path / "models" / "voices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "models" / "model.safetensors"


def test_names(model):
    found = voices_beside(model)
    assert {name: str(path.relative_to(model.parent / "voices")) for name, path in found.items()} == {
        "anna": f"anna{ENDING}",
        "calm": "calm.safetensors",
        "expresso/happy.wav": f"expresso/happy.wav{ENDING}",
    }
    assert voices_beside(model.parent / "elsewhere" / "model.safetensors") == {}


def test_a_file_comes_before_a_name_and_a_name_before_the_hub(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    beside = model.parent / "voices"
    assert find_voice("calm", model, ENDING) == beside / "calm.safetensors"
    assert find_voice("expresso/happy.wav", model, ENDING) == beside / "expresso" / f"happy.wav{ENDING}"
    assert find_voice("ears/p003/fast.wav", model, ENDING) == HubFile(
        "kyutai/tts-voices", f"ears/p003/fast.wav{ENDING}"
    )
    assert find_voice("ears/p003/fast.wav", model, "") == HubFile("kyutai/tts-voices", "ears/p003/fast.wav")
    Path("calm").touch()
    assert find_voice("calm", model, ENDING) == Path("calm")


@pytest.mark.parametrize("text", ["", "bert", "a/../b", "../x.wav", "a/b.safetensors", "a\0b", "x" * 5000, "a//b", "/"])
def test_what_is_not_a_voice(model, text):
    with pytest.raises(InputError) as caught:
        find_voice(text, model, ENDING)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_licences(model):
    assert forbidden(HubFile("kyutai/tts-voices", "expresso/a.wav")) == "CC BY-NC 4.0"
    assert forbidden(HubFile("kyutai/tts-voices", "ears/p003/a.wav")) == "CC BY-NC 4.0"
    assert forbidden(HubFile("kyutai/tts-voices", "vctk/p225.wav")) is None
    assert forbidden(model.parent / "voices" / "expresso" / "a.wav") == "CC BY-NC 4.0"
    assert forbidden(Path("expresso")) is None
