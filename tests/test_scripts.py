"""The scripts that try the codec and the model on a recording, from outside; and that every program can say what it does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS, ROOT

MIMI = ["scripts/mimi_test.py", "--weights", str(DEMO / "mimi.safetensors")]
FILES = ["--mimi-weights", str(DEMO / "mimi.safetensors"), "--tokenizer", str(DEMO / "tokenizer.model")]
MOSHI = ["scripts/moshi_test.py", *FILES, "--moshi-weights", str(DEMO / "model.q8.safetensors")]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": "."}
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )


def test_the_codec(tmp_path: Path) -> None:
    result = run(*MIMI, "--output", tmp_path / "out.wav")
    assert (result.returncode, result.stderr) == (0, "")
    table = re.findall(r"^ *(\d+) +(\d+) +(\d+\.\d+)$", result.stdout, re.MULTILINE)
    assert [int(row[0]) for row in table] == list(range(8))
    assert all(1 < int(distinct) <= 164 and 0 < float(entropy) < 7.4 for _, distinct, entropy in table)
    assert "codes and those of the whole: the same" in result.stdout
    assert float(re.findall(r"differ by (\S+) at most", result.stdout)[0]) < 1e-4
    assert re.search(r"round trip: -?\d+\.\d dB", result.stdout)
    assert len(re.findall(r"\d+\.\d ms p50, \d+\.\d ms p95", result.stdout)) == 2
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.frames, info.samplerate) == (164 * 1920, 24000)


def test_the_model(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.flac", soundfile.read(DIGITS, stop=80000)[0], 24000)
    result = run(
        *MOSHI, tmp_path / "in.flac", "--text-temperature", "0", "--temperature", "0", "--output", tmp_path / "out.wav"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Said: four one\n" in result.stdout
    assert len(re.findall(r"\d+\.\d ms p50, \d+\.\d ms p95", result.stdout)) == 4
    assert soundfile.info(tmp_path / "out.wav").frames == 42 * 1920


def test_the_recording_of_the_demo_is_the_default() -> None:
    result = run(*MOSHI, "--quantized", "8", "--steps", "5")
    assert (result.returncode, result.stderr) == (0, "")
    assert "digits.flac" in result.stdout


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["scripts/mimi_test.py"], "--weights"),
        (["scripts/mimi_test.py", "--weights", "none"], "none"),
        (["scripts/mimi_test.py", "--weights", "LICENSE"], "LICENSE"),
        ([*MIMI, "none.wav"], "none.wav"),
        ([*MIMI, "LICENSE"], "LICENSE"),
        ([*MIMI, "--output", "none/none/out.wav"], "none"),
        ([*MIMI, "--output", str(DIGITS)], "digits.flac"),
        ([*MIMI, "--codebooks", "0"], "--codebooks"),
        ([*MIMI, "--colour"], "--colour"),
        (["scripts/moshi_test.py", *FILES], "--moshi-weights"),
        ([*MOSHI, "none.wav"], "none.wav"),
        ([*MOSHI, "--quantized", "4"], "8"),
        ([*MOSHI, "--steps", "0"], "--steps"),
        ([*MOSHI, "--config", "none"], "none"),
        ([*MOSHI, "--tokenizer", "LICENSE"], "LICENSE"),
        ([*MOSHI, "--moshi-weights", "LICENSE"], "LICENSE"),
        ([*MOSHI, "--output", str(DEMO / "model.q8.safetensors")], "model.q8.safetensors"),
    ],
)
def test_refused_in_one_sentence(command: list[str], word: str) -> None:
    result = run(*command)
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"\S.*\.\n", result.stderr), result.stderr
    assert word in result.stderr
    assert "Listening" not in result.stdout


def test_sound_that_is_cut_off(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", np.zeros(24000), 24000)
    data = (tmp_path / "in.wav").read_bytes()
    (tmp_path / "in.wav").write_bytes(data[:30000])
    for command in (MIMI, MOSHI):
        result = run(*command, tmp_path / "in.wav")
        assert result.returncode == 2
        assert "cut off" in result.stderr


def test_weights_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for arguments, words in (
        ([tmp_path / "none" / "x.safetensors"], "none/x.safetensors: No such file or directory."),
        ([tmp_path], "Is a directory."),
        ([tmp_path / "x.safetensors", "--config", tmp_path / "none.json"], "none.json: No such file or directory."),
        ([tmp_path / "x.safetensors", "--config", tmp_path / "broken.json"], "broken.json is not valid JSON"),
    ):
        result = run("scripts/make_mimi_weights.py", *arguments)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert words in result.stderr


def test_the_table_of_memory() -> None:
    """7.69e9 weights of 16 bits; keys and values of 32 layers of 4096 numbers for 3000 steps, of 16 bits."""
    pytest.importorskip("mlx.core")
    result = run("benchmarks/lm.py", "--memory")
    assert (result.returncode, result.stderr) == (0, "")
    row = re.findall(r"^bf16 +(\d.*)$", result.stdout, re.MULTILINE)[0].split()
    assert row[0] == "15.38"
    assert float(row[6]) == round(2 * 32 * 4096 * 3000 * 2 / 1e9, 2)


def test_the_ways_to_speak() -> None:
    """They say the same, with words that the model knows."""
    pytest.importorskip("mlx.core")
    result = run("benchmarks/families.py", "--quick", "--no-persona", "--shapes", "tts-demo", "--steps", "1")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.findall(r"^(ours.*?)  ", result.stdout, re.MULTILINE) == [
        "ours", "ours, two waits", "ours, machine on the device",
    ]  # fmt: skip


def test_how_often_to_damage() -> None:
    for count in ("0", "-1", "x"):
        result = run("scripts/fuzz_family.py", "--count", count)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["personas", "transcription"])
def test_a_place_for_figures_is_checked_first(name: str, tmp_path: Path) -> None:
    result = run(f"benchmarks/{name}.py", "--json", tmp_path / "no" / "where" / "x.json")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r".*x.json cannot be written, since there is no folder .*; make it first\.\n", result.stderr)


def test_the_start_of_a_model_without_a_persona() -> None:
    result = run("benchmarks/personas.py", "tests/golden/stt-small")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "The model in tests/golden/stt-small is a speech-to-text model; give a PersonaPlex.\n"


PROGRAMS = [path for folder in ("benchmarks", "scripts") for path in sorted((ROOT / folder).glob("*.py"))]
PROGRAMS = [path for path in PROGRAMS if "add_argument" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_help(path: Path) -> None:
    result = run(path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
