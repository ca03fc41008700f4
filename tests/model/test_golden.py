"""Every family against what its reference implementation answers, through `scripts/family_test.py`.

The references are moshi 0.2.13 and NVIDIA's own program for PersonaPlex, with torch on the CPU in float32, greedy.
"""

import re
import shutil

import family_test
import numpy as np
import pytest
from family_test import ENGINES, Folder, compared
from paths import GOLDEN
from safetensors.numpy import load_file, save_file
from test_scripts import run

FOLDERS = [Folder.read(path.parent) for path in sorted(GOLDEN.glob("*/lm.safetensors"))]
RUNS = [pytest.param(f, r, id=f"{f.path.name}-{r.name}".rstrip("-")) for f in FOLDERS for r in f.runs]


def test_every_family_is_there():
    assert {folder.family for folder in FOLDERS} == {"stt", "tts", "hibiki", "personaplex"}
    assert len(RUNS) >= 11


@pytest.mark.parametrize(("folder", "run"), RUNS)
@pytest.mark.parametrize("engine", ENGINES)
def test_answers_equal_the_reference(folder, run, engine):
    """All tokens, columns, frames, words and positions are equal, and all logits close."""
    found = compared(run.name, ENGINES[engine](folder).answers(run), run.wanted)
    assert found.equal == found.total > 100
    assert found.difference < 1e-4


@pytest.fixture
def copy(tmp_path):
    """A copy of a set, and a way to change an array of one of its files."""
    folder = tmp_path / "stt-small"
    shutil.copytree(GOLDEN / "stt-small", folder)

    def change(file, name, at, value):
        arrays = load_file(folder / file)
        arrays[name][at] += value
        save_file(arrays, folder / file)

    return folder, change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, "122 of 122 tokens equal"),
        (("golden.safetensors", "text_tokens", 60, 1), "121 of 122 tokens equal"),
        (("golden.safetensors", "text_logits", (60, 5), 2e-4), "differ by 2.*e-04"),
        (("golden.safetensors", "extra_heads", (60, 3, 5), -2e-4), "differ by 2.*e-04"),
        (("lm.safetensors", "transformer.layers.1.norm1.alpha", (0, 0, 0), 0.2), r"differ by \d.*e-0[123]"),
    ],
    ids=["none", "token", "logit", "head", "weight"],
)
def test_damage_is_found(copy, change, says):
    folder, damage = copy
    if change:
        damage(*change)
    result = run("scripts/family_test.py", folder)
    assert (result.returncode, result.stderr) == (1 if change else 0, "")
    assert result.stdout.startswith("stt-small: ")
    assert result.stdout.count("\n") == 1
    assert re.search(says, result.stdout)


def test_what_is_missing_counts():
    """An answer that an engine does not give, or gives in another shape, is wrong."""
    wanted = {"text": np.arange(3), "logits": np.zeros((3, 2), np.float32)}
    assert compared("", wanted, wanted).good
    assert not compared("", {"text": np.arange(3)}, wanted).good
    assert compared("", {**wanted, "text": np.arange(2)}, wanted).equal == 0


@pytest.mark.parametrize("name", ["lm.safetensors", "golden.safetensors", "config.json"])
def test_a_folder_without_a_file(copy, name):
    folder, _ = copy
    (folder / name).unlink()
    result = run("scripts/family_test.py", folder)
    assert result.returncode == 2
    assert name in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_without_what_goes_in(copy):
    folder, _ = copy
    arrays = load_file(folder / "golden.safetensors")
    del arrays["user_codes"]
    save_file(arrays, folder / "golden.safetensors")
    with pytest.raises(family_test.InputError, match="has no user_codes"):
        list(family_test.compare(folder))
