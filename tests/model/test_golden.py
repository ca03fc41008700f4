"""Every family against what its reference implementation answers, through `scripts/family_test.py`.

The references are moshi 0.2.13 and NVIDIA's own program for PersonaPlex, with torch on the CPU in float32, greedy.
"""

import json
import re
import shutil

import family_test
import numpy as np
import pytest
from engines import load_exact
from family_test import ENGINES, Folder, compared
from paths import GOLDEN
from safetensors.numpy import load_file, save_file
from slow_lm import SlowLm, guided
from test_scripts import run
from watched import Watched

from msh_mlx import InputError, load_lm
from msh_mlx.weights.checkpoint import open_checkpoint
from msh_mlx.weights.convert import convert
from msh_mlx.weights.safetensors import as_float32, read_tensor

FOLDERS = [Folder.read(path.parent) for path in sorted(GOLDEN.glob("*/lm.safetensors"))]
RUNS = [pytest.param(f, r, id=f"{f.path.name}-{r.name}".rstrip("-")) for f in FOLDERS for r in f.runs]


def test_every_family_is_there():
    assert {folder.family for folder in FOLDERS} == {"stt", "tts", "hibiki", "personaplex"}
    assert len(RUNS) >= 11


@pytest.mark.parametrize(("folder", "run"), RUNS)
def test_answers_equal_the_reference(folder, run, engine):
    """All tokens, columns, frames, words and positions are equal, and all logits close."""
    found = compared(run.name, ENGINES[engine](folder).answers(run), run.wanted)
    assert found.equal == found.total > 100
    assert found.difference < 1e-4


@pytest.mark.parametrize(("folder", "run"), RUNS)
def test_the_native_engine_as_it_is_used_chooses_the_tokens_of_the_reference(folder, run):
    """With activations of 16 bits, where weights are packed."""
    lm = load_lm(folder.path / "lm.safetensors", folder.path / "config.json", engine="native")
    found = compared(run.name, watching("native")(folder, lm).answers(run), run.wanted)
    assert found.equal == found.total > 100


@pytest.mark.parametrize(("folder", "run"), RUNS)
def test_keys_and_values_in_float16_change_no_token_that_is_clearly_the_best(folder, run):
    """They move logits by a few thousandths of the largest, so of two that are nearly as likely the other may be taken. Up to
    there all tokens are equal; what follows is another conversation.
    """
    lm = load_lm(folder.path / "lm.safetensors", folder.path / "config.json", "float16", engine="native")
    used, exact = watching("native")(folder, lm), watching("native")(folder)
    found = compared(run.name, used.answers(run), run.wanted)
    exact.answers(run)
    a, b = used.watched, exact.watched
    coef = run.options.get("cfg_coef", 3.0 if run.name == "cfg3" else 1.0)
    for p, text in enumerate(b.text_logits):
        heads = [(a.text_logits[p], text, a.text[p], b.text[p])]
        if b.audio_logits[p] is not None:
            heads += zip(a.audio_logits[p], b.audio_logits[p], a.codes[p], b.codes[p], strict=False)
        for logits, wanted, token, best in heads:
            near = 0.005 * coef * np.abs(wanted).max()
            assert np.abs(logits - wanted).max() < near
            if token != best:
                assert wanted[best] - wanted[token] < near / 4
                return
    assert found.equal == found.total > 100


# ---- a stream against the whole at once ------------------------------------------------------------------------------------


def watching(engine):
    """An engine of `family_test.py` that keeps what its conversation reads and chooses."""

    class Watching(ENGINES[engine]):
        def _conversation(self, **options):
            gen = super()._conversation(**options)
            self.watched = Watched(gen)
            self.prompt = gen._prompt.columns[: gen._first]
            return gen

    return Watching


def told(slow, folder, run):
    """What a run adds to the inputs of each row of its batch, what cross-attention sees, and the factor of guidance."""
    if folder.family == "hibiki":
        slow.w["text_emb.weight"][2 if slow.c.get("model_type") == "hibiki" else 3] = slow.w["text_emb.weight"][3]
        if not slow.c["conditioners"]:
            return [0], None, 1.0
        good, bad = (slow.condition("description", value) for value in ("very_good", "very_bad"))
        return ([good, bad], None, 3.0) if run.name == "cfg3" else ([good], None, 1.0)
    if folder.family == "tts" and slow.c["conditioners"]:
        added = slow.condition("control", "ok") + slow.condition("cfg", run.options["cfg"])
        voices = [folder.given[f"voice.{i}"][0].T for i in run.options["voices"]]
        return [added], slow.source("speaker_wavs", voices), 1.0
    coef = run.options.get("cfg_coef", 1.0)
    return [0] * (1 + (coef != 1)), None, coef


@pytest.mark.parametrize(("folder", "run"), [p for p in RUNS if "voice." not in p.id])
def test_a_stream_equals_the_whole_at_once(folder, run, engine):
    """Whole attention in numpy, over all columns that were read, gives the logits of the stream: text, codes and heads."""
    ours = watching(engine)(folder)
    ours.answers(run)
    seen = ours.watched
    config = json.loads((folder.path / "config.json").read_text())
    slow = SlowLm(load_file(folder.path / "lm.safetensors"), config)
    added, source, coef = told(slow, folder, run)
    outputs = []
    for row, vector in enumerate(added):
        read = [columns[min(row, len(columns) - 1)] for columns in seen.columns]
        h, logits = slow.temporal(np.concatenate([ours.prompt, read]), vector, source)
        outputs.append((h[len(ours.prompt) :], logits[len(ours.prompt) :]))
    given, null = outputs[0], outputs[-1]
    text = guided(given[1], null[1], coef if folder.family != "tts" else 1)
    assert np.abs(np.array(seen.text_logits) - text).max() < 1e-4
    if config.get("extra_heads_num_heads"):
        assert np.abs(np.array(seen.heads) - slow.heads(given[0])).max() < 1e-4
    spoken = [p for p, logits in enumerate(seen.audio_logits) if logits is not None]
    assert len(spoken) > 30 or not config["dep_q"]
    for p in spoken[::6]:
        a, b = (slow.depformer(h[p], seen.text[p], seen.codes[p], len(seen.audio_logits[p])) for h, _ in (given, null))
        # Their logits reach 60. Guidance takes `coef − 1` times one row from `coef` times the other, and adds up their errors.
        assert np.abs(seen.audio_logits[p] - guided(a, b, coef)).max() < 3e-4 * (2 * coef - 1)


def test_a_conversation_behind_a_prompt_for_three_windows(engine):
    """With a window that hardly holds the prompt. The reference cannot tell: its window forgets a position too early."""
    path = GOLDEN / "personaplex-small"
    (folder,) = (folder for folder in FOLDERS if folder.path == path)
    config = {**json.loads((path / "config.json").read_text()), "context": 36}
    ours = watching(engine)(folder, load_exact(path / "lm.safetensors", config, engine))
    ours.answers(folder.runs[0])
    columns = np.concatenate([ours.prompt, *ours.watched.columns])
    assert len(ours.prompt) == 33
    assert len(columns) > 3 * 36
    _, text = SlowLm(load_file(path / "lm.safetensors"), config).temporal(columns)
    assert np.abs(np.array(ours.watched.text_logits) - text[33:]).max() < 1e-4


def test_half_of_the_depformer_is_enough():
    """Nothing that is kept depends on the codes of the user that PersonaPlex's depformer goes on to."""
    path = GOLDEN / "personaplex-small"
    config = json.loads((path / "config.json").read_text())
    slow, rng = SlowLm(load_file(path / "lm.safetensors"), config), np.random.default_rng(9)
    for _ in range(20):
        h, codes = rng.standard_normal(config["dim"]), rng.integers(0, config["card"], 8)
        whole, half = (slow.depformer(h, 7, codes, count) for count in (8, 4))
        assert np.abs(whole[:4] - half).max() < 1e-9


# ---- quantized -----------------------------------------------------------------------------------------------------------


def unpacked(path, config, out):
    """Write the model with the weights that its packed ones stand for, in float32. Return how many are packed."""
    checkpoint = open_checkpoint(path, config)
    tensors = {}
    for module, shape in checkpoint.shapes.items():
        for part, info in checkpoint.parts(module).items():
            if len(shape) == 2:
                tensors[f"{module}.weight"] = np.concatenate([rows for _, rows in checkpoint.rows(module)])
            else:
                tensors[f"{module}.{part}" if part else module] = as_float32(read_tensor(path, info))
    save_file(tensors, out)
    return len(checkpoint.quantizations)


@pytest.mark.parametrize(
    ("bits", "group_size"), [(8, 64), (6, 32), (5, 64), (4, 32), (3, 32), (2, 32)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.path.name)
def test_quantized_models_equal_their_weights_unpacked(folder, bits, group_size, tmp_path, engine):
    """Converted by the program, with what does not fit groups left as it is: equal tokens, close logits, in all runs."""
    path = folder.path
    written = convert(
        path / "lm.safetensors",
        tmp_path / "lm.safetensors",
        bits=bits,
        group_size=group_size,
        config=path / "config.json",
    )
    assert unpacked(written.path, written.config, tmp_path / "same.safetensors") >= 18
    lm, same = (load_exact(tmp_path / f"{name}.safetensors", written.config, engine) for name in ("lm", "same"))
    for case in folder.runs:
        found, wanted = (ENGINES[engine](folder, model).answers(case) for model in (lm, same))
        comparison = compared(case.name, found, wanted)
        assert comparison.equal == comparison.total > 100
        assert comparison.difference < 2e-4
        # What is quantized is another model than the one it was made of.
        assert compared(case.name, found, case.wanted).difference > 1e-3


# ---- it would find what is wrong -------------------------------------------------------------------------------------------


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
def test_damage_is_found(copy, change, says, engine):
    folder, damage = copy
    if change:
        damage(*change)
    (found,) = family_test.compare(folder, engine)
    assert found.good == (change is None)
    assert re.fullmatch(f"stt-small: .*{says}.*", str(found))


def test_the_script_says_what_it_found(copy, engine):
    folder, damage = copy
    for code, equal in ((0, 122), (1, 121)):
        result = run("scripts/family_test.py", folder, "--engine", engine)
        assert (result.returncode, result.stderr) == (code, "")
        assert result.stdout.startswith(f"stt-small: {equal} of 122 tokens equal, logits differ by ")
        assert result.stdout.count("\n") == 1
        damage("golden.safetensors", "text_tokens", 60, 1)


def test_another_engine_is_one_entry(copy, monkeypatch):
    folder, _ = copy

    class Wrong(ENGINES["native"]):
        def answers(self, run):
            return {**super().answers(run), "text_tokens": np.zeros(61, int)}

    monkeypatch.setitem(ENGINES, "wrong", Wrong)
    (found,) = family_test.compare(folder, "wrong")
    assert not found.good
    assert found.equal < 100


def test_what_is_missing_counts():
    """An answer that an engine does not give, or gives in another shape, is wrong."""
    wanted = {"text": np.arange(3), "logits": np.zeros((3, 2), np.float32)}
    assert compared("", wanted, wanted).good
    assert not compared("", {"text": np.arange(3)}, wanted).good
    assert compared("", {**wanted, "text": np.arange(2)}, wanted).equal == 0
    assert not compared("", wanted, {"logits": wanted["logits"]}).good
    assert not compared("", {**wanted, "logits": np.full((3, 2), np.nan, np.float32)}, wanted).good


@pytest.mark.parametrize("name", ["lm.safetensors", "golden.safetensors", "config.json"])
def test_a_folder_without_a_file(copy, name):
    folder, _ = copy
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        list(family_test.compare(folder))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "words.json is not valid JSON"),
        ("[1]", "words.json is not a JSON object"),
        ("{}", r"does not have the form of tests/golden/\*-small"),
        ('{"words": [{"tokens": [5]}]}', r"does not have the form of tests/golden/\*-small"),
    ],
)
def test_a_folder_of_another_form(copy, text, says):
    folder, _ = copy
    (folder / "words.json").write_text(text)
    with pytest.raises(InputError, match=says):
        list(family_test.compare(folder))


def test_a_file_without_what_goes_in(copy):
    folder, _ = copy
    arrays = load_file(folder / "golden.safetensors")
    del arrays["user_codes"]
    save_file(arrays, folder / "golden.safetensors")
    with pytest.raises(InputError, match="has no user_codes"):
        list(family_test.compare(folder))
