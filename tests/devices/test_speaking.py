"""Speech on the loudspeaker, as a user hears it: `msh-mlx say` on virtual devices, with all that can go wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from paths import ROOT

if TYPE_CHECKING:
    from conftest import VirtualAudio

SAY = [sys.executable, str(ROOT / "local_mlx.py"), "say", "--demo", "--seed", "3", "--json"]
TEXT = "three one four one five nine two six"
LIMIT = 60  # seconds, against hanging on a busy machine


def events(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def started(audio: VirtualAudio, *args: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*SAY, *args], env=audio.env, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)


def test_what_is_said_is_heard(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """The loudspeaker plays what the file holds, without breaking off; each word is told when it is heard."""
    file = tmp_path / "said.wav"
    whole = subprocess.run([*SAY, TEXT, "--output", file], env=virtual_audio.env, capture_output=True, timeout=LIMIT)
    assert whole.returncode == 0, whole.stderr
    said, _ = soundfile.read(file, dtype="float32")
    heard = virtual_audio.listen()
    process = started(virtual_audio, TEXT)
    assert process.stdout
    told = []
    for line in process.stdout:
        told.append((time.monotonic(), json.loads(line)))
    assert process.wait(LIMIT) == 0
    played = heard.finish()
    assert virtual_audio.match(played, said) > 0.95
    assert [event["text"] for _, event in told[:-1]] == TEXT.split()
    assert told[-1][1]["gaps"] == 0
    # In step with the sound: words come as far apart as they are spoken.
    times, starts = np.array([(at, event["start"]) for at, event in told[:-1]]).T
    assert np.abs((times - times[0]) - (starts - starts[0])).max() < 0.5


def test_text_that_still_comes(virtual_audio: VirtualAudio) -> None:
    """What is there is spoken while the pipe is open, as far as the model's looking ahead allows; a wait is not a gap."""
    process = started(virtual_audio)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"one two three four\n")
    process.stdin.flush()
    first = json.loads(process.stdout.readline())
    assert (first["event"], first["text"]) == ("word", "one")
    time.sleep(1.5)
    output, errors = process.communicate(b"five\n", timeout=LIMIT)
    assert process.returncode == 0, errors
    *words, summary = events(output)
    assert [word["text"] for word in words] == ["two", "three", "four", "five"]
    assert summary["gaps"] == 0


def test_an_interruption(virtual_audio: VirtualAudio) -> None:
    process = started(virtual_audio, TEXT)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.decode() == "Stopped.\n"
    assert len(events(output)) < len(TEXT.split())


def test_a_lost_loudspeaker(virtual_audio: VirtualAudio) -> None:
    process = started(virtual_audio, TEXT, "--output-device", "moshi_speaker")
    assert process.stdout
    process.stdout.readline()
    virtual_audio.unplug()
    try:
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        virtual_audio.plug()
    assert process.returncode == 1
    assert errors.decode() == (
        'The loudspeaker "moshi_speaker" is lost; connect it again, or name another with --output-device.\n'
    )


def test_no_such_loudspeaker(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    (tmp_path / "alsa.conf").write_text("pcm.moshi_mic { type hw card 99 }")
    for args, env, code, sentence in (
        (["--output-device", "nothing"], {}, 2, "There is no loudspeaker called 'nothing'; there is "),
        ([], {"ALSA_CONFIG_PATH": str(tmp_path / "alsa.conf")}, 1, "There is no loudspeaker on this computer; connect"),
    ):
        result = subprocess.run(
            [*SAY, TEXT, *args], env={**virtual_audio.env, **env}, capture_output=True, timeout=LIMIT
        )
        assert result.returncode == code
        assert result.stderr.decode().startswith(sentence)
        assert "--input" not in result.stderr.decode()
        assert len(result.stderr.splitlines()) == 1
