"""`msh-mlx transcribe` from outside: what is printed and written, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS, ROOT
from test_cli import LIMIT, assert_refused, listing, run

from msh_mlx.sound.recordings import to_int16, wav_header

TEXT = "four one three eight nine zero"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sound, rate = soundfile.read(DIGITS, dtype="float32")
    soundfile.write(tmp_path / "first.wav", np.stack([sound[:60_000]] * 2, axis=1), rate)
    soundfile.write(tmp_path / "quiet.flac", np.zeros(8_000), 8_000)
    soundfile.write(tmp_path / "rest.mp3", sound[60_000:], rate)
    return tmp_path


def test_the_demo(tmp_path: Path) -> None:
    """Only the text goes to the standard output."""
    result = run("transcribe", "--demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == f"{TEXT}\n"
    assert "× real time" in result.stderr.decode()
    assert listing(tmp_path) == {}


def test_several_recordings_with_subtitles(folder: Path) -> None:
    """A line for each, in their order; one without words has an empty line, and subtitles without any."""
    names = ["rest.mp3", "quiet.flac", "first.wav"]
    result = run("transcribe", "--demo", *names, "--srt", "--vtt", "--output-dir", "subtitles", cwd=folder)
    assert result.returncode == 0, result.stderr
    texts = ["three eight nine zero", "", "four one"]
    assert result.stdout.decode() == "".join(f"{name}: {text}\n" for name, text in zip(names, texts, strict=True))
    files = [f"subtitles/{name.partition('.')[0]}.{ending}" for name in names for ending in ("srt", "vtt")]
    assert [line for line in result.stderr.decode().splitlines() if line[:4] == "Subt"] == [
        f"Subtitles: {f}" for f in files
    ]
    written = listing(folder / "subtitles")
    assert set(written) == {f"{name}.{ending}" for name in ("rest", "quiet", "first") for ending in ("srt", "vtt")}
    assert written["first.srt"] == b"1\n00:00:00,720 --> 00:00:02,880\nfour one\n"
    assert written["first.vtt"] == b"WEBVTT\n\n00:00:00.720 --> 00:00:02.880\nfour one\n"
    assert (written["quiet.srt"], written["quiet.vtt"]) == (b"", b"WEBVTT\n")


def test_words_as_json(folder: Path) -> None:
    """One object a word; with several recordings it says which. The end of the last word is not known."""
    (word, last) = map(json.loads, run("transcribe", "--demo", "--json", "first.wav", cwd=folder).stdout.splitlines())
    assert word == {"start": 0.72, "end": 1.28, "text": "four"}
    assert last == {"start": 1.28, "end": None, "text": "one"}
    several = run("transcribe", "--demo", "--json", "quiet.flac", "first.wav", "--batch", "1", cwd=folder).stdout
    assert [json.loads(line) for line in several.splitlines()] == [{"file": "first.wav", **w} for w in (word, last)]


def test_the_standard_input_that_breaks_off(folder: Path) -> None:
    """What was heard is printed and written, and the error says how much that was."""
    data = (folder / "first.wav").read_bytes()
    result = run("transcribe", "--demo", "-", "--srt", cwd=folder, stdin=data[:-2_000])
    assert result.returncode == 2
    assert result.stdout == b"four one\n"
    assert "ends too early, after 2.48 s" in result.stderr.decode()
    assert (folder / "stdin.srt").read_bytes().endswith(b"four one\n")


def test_bad_recordings_are_named_before_any_work(folder: Path) -> None:
    (folder / "cut.wav").write_bytes((folder / "first.wav").read_bytes()[:-2_000])
    before = listing(folder)
    for name, said in (("none.wav", "There is no recording none.wav"), ("cut.wav", "cut.wav")):
        result = run("transcribe", "--demo", "first.wav", name, "--srt", cwd=folder)
        assert said in assert_refused(result)
        assert result.stdout == b""
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "There is no recording; give one, or --live for the microphone."),
        (["--demo", "--live", "first.wav"], "--live hears the microphone, not recordings"),
        (["--demo", "--live", "--srt"], "--srt is for recordings; leave it or --live out."),
        (["--demo", "--duration", "3"], "--duration is for --live; give both."),
        (["--demo", "-", "-"], "The standard input can be heard only once"),
        (["--demo", "--output-dir", "x"], "--output-dir is for subtitles"),
        (["--demo", "--srt", "--output-dir", ""], "The name of the folder is empty; give one with --output-dir."),
        (["--demo", "first.wav", "./first.wav", "--vtt"], "first.vtt would be written twice"),
        (["--demo", "--variant", "x"], "--demo and --variant name two models"),
        (["--demo", "--batch", "0"], "is not a whole number of 1 or more"),
    ],
)
def test_options_that_do_not_fit(folder: Path, args: list[str], said: str) -> None:
    before = listing(folder)
    assert said in assert_refused(run("transcribe", *args, cwd=folder))
    assert listing(folder) == before


def test_a_model_for_something_else(folder: Path) -> None:
    own = ["--mimi", DEMO / "mimi.safetensors", "--tokenizer", DEMO / "tokenizer.model"]
    moshi = run("transcribe", "--model", DEMO / "model.q8.safetensors", *own, "first.wav", cwd=folder)
    assert "is a Moshi language model; use 'msh-mlx'." in assert_refused(moshi)


def test_an_interruption_keeps_what_was_heard(folder: Path) -> None:
    """Ctrl-C: the words until then are printed; nothing else is left."""
    command = [sys.executable, str(ROOT / "local_mlx.py"), "transcribe", "--demo", "--json", "--srt", "-"]
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        sound = soundfile.read(DIGITS, dtype="float32")[0]
        # Of a size that is not known, as programs write it into a pipe; and then the pipe waits.
        process.stdin.write(wav_header(24_000, 1, 0xFFFFFFFF - 36) + to_int16(sound[: 9 * 24_000]).tobytes())
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(2)]
        os.kill(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert errors == b"Stopped.\n"
    words = [json.loads(line)["text"] for line in [*lines, *rest.splitlines()]]
    assert words == TEXT.split()[: len(words)]
    assert not (folder / "stdin.srt").exists()
