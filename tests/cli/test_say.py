"""`msh-mlx say` from outside: text from everywhere, what it prints, what is wrong with it, what is left behind."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS, ROOT
from rich.console import Console

from msh_mlx import InputError, MshError, Sampler, Speaker, Turn, load_lm, load_mimi, load_tokenizer, read_speaker
from msh_mlx.cli.display import Display
from msh_mlx.cli.say import _Teller, run
from msh_mlx.events import Word
from msh_mlx.system.signals import Signals

LIMIT = 60  # seconds, for a busy machine
SAY = [sys.executable, str(ROOT / "local_mlx.py"), "say"]
GREEDY = ["--demo", "--temperature", "0"]


def say(*args: str | Path, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cwd / "none"), "XDG_CONFIG_HOME": str(cwd / "none")}
    command = [*SAY, *map(str, args)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, timeout=LIMIT, env={**os.environ, **own})


def sentence(result: subprocess.CompletedProcess[bytes], code: int = 2) -> str:
    message = result.stderr.decode()
    assert result.returncode == code, message
    assert re.fullmatch(r"\S.*\.\n", message), message
    assert "unexpected" not in message
    return message[:-1]


def events(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def spoken() -> Any:
    """Return a function that says a text with the API, greedily, and rounds the sound to 16 bits."""
    parts = (
        load_lm(DEMO / "tts" / "model.safetensors", DEMO / "tts" / "config.json"),
        load_mimi(DEMO / "mimi.safetensors"),
        load_tokenizer(DEMO / "tokenizer.model"),
    )
    voices = [read_speaker(DEMO / "tts" / "voices" / f"{name}.d161752e@1.safetensors") for name in ("brisk", "calm")]

    def said(text: Any, count: int = 0) -> Any:
        greedy = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0)}
        pcm = np.concatenate([frame.pcm for frame in Speaker(*parts, voices=voices[:count], **greedy).say(text)])
        return np.round(np.clip(pcm, -1, 1) * 32767) / 32768

    return said


def test_a_text_from_everywhere(tmp_path: Path, spoken: Any) -> None:
    """The file holds what the API says, wherever the text comes from."""
    (tmp_path / "text.txt").write_text("\ufeffthree one\nfour", encoding="utf-16-le")
    wanted = spoken("three one four")
    for number, (args, stdin) in enumerate(
        (
            (["three", "one four"], b"nine"),
            (["--file", "text.txt"], b"nine"),
            ([], b"\xef\xbb\xbfthree one four\n"),
            (["-"], b"three one four"),
            (["--file", "/dev/stdin"], b"three one four"),  # a pipe with a name
        )
    ):
        result = say(*GREEDY, *args, "--output", f"{number}.wav", cwd=tmp_path, stdin=stdin)
        assert result.returncode == 0, result.stderr
        words, file, speed = result.stdout.decode().splitlines()
        assert (words, file) == ("three one four", f"Speech: {number}.wav")
        assert re.fullmatch(r"1\.92 s of speech in \d+\.\d\d s: \d+\.\d × real time", speed)
        sound, rate = soundfile.read(tmp_path / f"{number}.wav")
        assert rate == 24000
        assert np.abs(sound - wanted).max() < 1e-4


def test_the_standard_output(tmp_path: Path) -> None:
    """Sound alone goes to the standard output; the words go elsewhere."""
    file = say(*GREEDY, "nine <break time='0.2s'/> two", "--output", "x.wav", "--json", cwd=tmp_path)
    assert [event["event"] for event in events(file.stdout)] == ["word", "word", "summary"]
    one, two, summary = events(file.stdout)
    assert (one["text"], two["text"]) == ("nine", "two")
    assert summary["gaps"] == 0
    assert 0 < one["start"] < two["start"] < summary["seconds"]
    piped = say(*GREEDY, "nine <break time='0.2s'/> two", "--output", "-", cwd=tmp_path)
    assert piped.returncode == 0
    assert piped.stdout[44:] == (tmp_path / "x.wav").read_bytes()[44:]
    assert b"nine two" in piped.stderr


def test_two_voices(tmp_path: Path, spoken: Any) -> None:
    """With two voices the text is a dialogue; with one, A: is text, as the notice says."""
    text = b"A: one two\nB: three\nA: four"
    voices = ["--voice", "brisk", "--voice", DEMO / "tts" / "voices" / "calm.d161752e@1.safetensors"]
    result = say(*GREEDY, *voices, "--output", "x.wav", "--json", cwd=tmp_path, stdin=text)
    assert [event["text"] for event in events(result.stdout)[:-1]] == ["one", "two", "three", "four"]
    turns = [Turn("one two"), Turn("three", 1), Turn("four")]
    assert np.abs(soundfile.read(tmp_path / "x.wav")[0] - spoken(turns, 2)).max() < 1e-4
    result = say(*GREEDY, *voices[:2], "--output", "x.wav", "--json", cwd=tmp_path, stdin=text)
    notices = [event["message"] for event in events(result.stdout) if event["event"] == "notice"]
    unknown = [f"The model does not know '{name}', which is left out." for name in "AB"]
    assert notices == [*unknown, "The demo model knows only the words zero to nine."]
    assert np.abs(soundfile.read(tmp_path / "x.wav")[0] - spoken("one two three four", 1)).max() < 1e-4


def test_what_the_demo_does_not_know(tmp_path: Path) -> None:
    result = say(*GREEDY, "hello 7 One", "--output", "x.wav", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.decode().splitlines()[:3] == [
        "The model does not know '7', which is left out.",
        "The demo model knows only the words zero to nine; 'hello' will not sound right.",
        "hello One",
    ]


def test_a_word_that_sounds_wrong_is_named_when_it_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    """Speech that is played: words that are left out are told before others are heard."""
    teller = _Teller(Namespace(json=True), Display(Console(), plain=True), is_demo=True)
    teller.warn()
    for text in ("one", "hello", "there"):
        teller.word(Word(0.0, text))
    assert [event["message"] for event in events(capsys.readouterr().out) if event["event"] == "notice"] == [
        "The demo model knows only the words zero to nine.",
        "The demo model knows only the words zero to nine; 'hello' will not sound right.",
    ]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in one sentence, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_bytes(b"one \xff two")
    Path("pause.txt").write_text("one\n<break time=1/>")
    Path("empty.txt").write_text("\n()\n")
    shutil.copy(DIGITS, "sound.flac")
    demo = ["--demo", "--output", "x.wav"]
    stt = ["--model", f"{DEMO}/stt/model.safetensors", *demo[1:]]
    stt += ["--mimi", f"{DEMO}/mimi.safetensors", "--tokenizer", f"{DEMO}/tokenizer.model"]
    before = sorted(tmp_path.iterdir())
    for args, message in (
        ([*demo, ""], "There is nothing to say; give a text with words."),
        ([*demo, "()"], "There is nothing to say; give a text with words."),
        ([*demo, "--file", "empty.txt"], "There is nothing to say; give a text with words."),
        ([*demo, "--file", "bad.txt"], "The text bad.txt is not text in UTF-8; give it in this encoding."),
        ([*demo, "--file", "sound.flac"], "The text sound.flac is not text in UTF-8; give it in this encoding."),
        ([*demo, "--file", "pause.txt"], "'<break time=1/>' is not a pause; write it as <break time=\"1.5s\"/>."),
        ([*demo, "--file", "nothing"], "There is no text nothing."),
        ([*demo, "--file", "."], "The text . is a folder; give the file in it."),
        ([*demo, "--file", ""], "The name of the text is empty; give a file with --file."),
        ([*demo, "one", "--file", "bad.txt"], "--file has the text; leave the other one out."),
        (
            ["--demo", "--output", "empty.txt", "--file", "empty.txt"],
            "empty.txt is read and would be overwritten; give",
        ),
        (["--demo", "--output", "", "one"], "The name of the output is empty; give a file with --output."),
        (["--demo", "--output", "x.mp3", "one"], "--output writes a WAV file; name it x.wav, say."),
        (["--demo", "--output", "no/where/x.wav", "one"], "no/where/x.wav cannot be written, since there is no folder"),
        ([*demo, "--output-device", "1", "one"], "--output-device is for speech that is played; leave it or --output"),
        ([*demo, "--voice", "x", "one"], "There is no voice 'x'; the model has brisk and calm."),
        ([*demo, "--voice", "", "one"], "The name of the voice is empty; give a name or a file."),
        ([*demo, *["--voice", "calm"] * 3, "one"], "There are 3 voices; give two at most."),
        ([*demo, "--voice", "empty.txt", "one"], "empty.txt is not a voice of this model"),
        (
            [*demo, "--voice", "sound.flac", "one"],
            "sound.flac is not a voice of this model, which takes no recordings; give the name of one, or a .safetensors file",
        ),
        (
            [*demo, "--cfg", "2.2", "one"],
            "The condition cfg cannot be '2.2'; it may be 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0.",
        ),
        ([*demo, "--cfg", "some", "one"], "--cfg: 'some' is not a number from 0 to 100; --help lists the options."),
        ([*demo, "--codebooks", "32", "one"], "The model has 8 codebooks, not 32; give 1 to 8."),
        ([*demo, "--speed", "21", "one"], "--speed: '21' is not a number from -20 to 20; --help lists the options."),
        ([*stt, "one"], f"{DEMO}/stt/model.safetensors is a speech-to-text model; use 'msh-mlx transcribe'."),
        ([*demo, "--variant", "moshiko-q4", "one"], "--demo and --variant name two models; leave one of them out."),
    ):
        with pytest.raises(InputError) as caught:
            run(args, Signals())
        assert str(caught.value).startswith(message), args
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_computer_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msh_mlx.sound.portaudio.find_devices", lambda *_: [])
    for args in (["--list-devices"], ["--demo", "one"]):
        with pytest.raises(MshError, match="connect one, or give --output FILE, which needs none"):
            run(args, Signals())


def test_a_pipe_that_is_refused(tmp_path: Path) -> None:
    for stdin, message in (
        (b"", "There is nothing to say; give a text with words."),
        (b"\xff", "The standard input is not text in UTF-8; give it in this encoding."),
        (b"one <break>", "'<break>' is not a pause; write it as <break time=\"1.5s\"/>."),
    ):
        assert sentence(say("--demo", "--output", "x.wav", cwd=tmp_path, stdin=stdin)) == message
    assert not list(tmp_path.iterdir())


def test_a_text_of_unknown_words(tmp_path: Path) -> None:
    result = say("--demo", "42", "--output", "x.wav", cwd=tmp_path)
    assert result.stdout.decode().splitlines() == [
        "The model does not know '42', which is left out.",
        "The demo model knows only the words zero to nine.",
    ]
    assert sentence(result) == "There is nothing to say; give a text with words."
    assert not list(tmp_path.iterdir())


def test_a_published_voice_that_is_not_on_disk(tmp_path: Path) -> None:
    """The file is that of this model, also after a conversion."""
    command = [*SAY[:2], "convert", DEMO / "tts" / "model.safetensors", "q8.safetensors", "--bits", "8"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=LIMIT)
    files = ["--mimi", DEMO / "mimi.safetensors", "--tokenizer", DEMO / "tokenizer.model"]
    for model in (["--demo"], ["--model", "q8.safetensors", *files]):
        result = say(*model, "one", "--output", "x.wav", "--voice", "expresso/a.wav", cwd=tmp_path)
        assert "expresso/a.wav.d161752e@1.safetensors of the voice is not on this disk" in sentence(result, 1)


def test_a_voice_that_must_not_be_used_commercially(tmp_path: Path) -> None:
    (tmp_path / "expresso").mkdir()
    shutil.copy(DEMO / "tts" / "voices" / "calm.d161752e@1.safetensors", tmp_path / "expresso" / "a.safetensors")
    result = say(*GREEDY, "one", "--output", "x.wav", "--voice", "expresso/a.safetensors", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr.decode() == "The licence of the voice a.safetensors, CC BY-NC 4.0, forbids commercial use.\n"


def test_a_text_that_still_comes(tmp_path: Path) -> None:
    """Words are said while the pipe is open; the sound reaches the next program at once."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*SAY, *GREEDY, "--output", "-"], cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"one two three four five six seven\n")
    process.stdin.flush()
    sound = b""
    while len(sound) < 44 + 3 * 2 * 24000 * 0.5:
        ready, _, _ = select.select([process.stdout], [], [], LIMIT)
        assert ready
        sound += os.read(process.stdout.fileno(), 1 << 16)
    rest, _ = process.communicate(b"eight", timeout=LIMIT)
    assert process.returncode == 0
    whole = say(*GREEDY, "one two three four five six seven eight", "--output", "-", cwd=tmp_path)
    assert sound + rest == whole.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_what_was_there(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "x.wav").write_bytes(b"mine")
    pipe = subprocess.PIPE
    command = [*SAY, *GREEDY, "--output", "x.wav"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"one two three four\n")
    process.stdin.flush()
    assert process.stdout.read(3) == b"one"
    begin = time.monotonic()
    process.send_signal(number)
    words, errors = process.communicate(timeout=LIMIT)
    assert words.endswith(b"\n"), "the line is left open"
    assert process.returncode == 128 + number
    assert errors == b"Stopped.\n"
    assert time.monotonic() - begin < LIMIT
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.wav", b"mine")]


def test_a_terminal(tmp_path: Path) -> None:
    """A line of words that breaks between words; typed text is said line by line, and Ctrl-D ends it."""
    master, slave = pty.openpty()
    out = [*GREEDY, "--output", "x.wav"]
    env = {**os.environ, "COLUMNS": "20"}
    process = subprocess.Popen([*SAY, *out, "-"], cwd=tmp_path, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, b"one two three four five six seven eight nine\n\x04")
    shown = b""
    try:
        while chunk := os.read(master, 1 << 16):
            shown += chunk
    except OSError:  # the terminal has ended with the program
        pass
    os.close(master)
    assert process.wait(LIMIT) == 0
    lines = re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]", b"", shown).decode().replace("\r", "").split("\n")
    assert [line for line in lines if line.strip()][-5:-2] == ["one two three four", "five six seven eight", "nine"]
    lonely = pty.openpty()
    none = subprocess.run([*SAY, *out], cwd=tmp_path, stdin=lonely[1], capture_output=True, timeout=LIMIT)
    assert sentence(none) == "There is no text; give it, --file FILE, or - to type it."
