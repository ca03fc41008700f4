"""What `msh-mlx doctor` says of virtual sound devices, and of a sound system that does not answer."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from paths import ROOT
from test_live_echo import loop

if TYPE_CHECKING:
    from conftest import VirtualAudio

COMMAND = [sys.executable, str(ROOT / "local_mlx.py"), "doctor"]
LIMIT = 60  # seconds


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def examine(*args: str, **env: str) -> tuple[dict[str, Any], int]:
    result = subprocess.run(
        [*COMMAND, "--json", *args], capture_output=True, text=True, timeout=LIMIT, env={**os.environ, **env}
    )
    assert not result.stderr
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}, result.returncode


def test_a_microphone_that_hears(virtual_audio: VirtualAudio) -> None:
    sound = (0.1 * np.sin(np.arange(24_000 * 60) * 0.05)).astype(np.float32)
    speaking = virtual_audio.speak(sound, at_once=True)
    try:
        checks, code = examine()
    finally:
        speaking.kill()
        speaking.wait()
    assert checks["sound"]["status"] == checks["speaker"]["status"] == checks["microphone"]["status"] == "ok", checks
    assert "default, 24000 Hz stereo" in checks["microphone"]["found"]
    assert re.search(r"hears -2[2-6] dBFS, peak -20$", checks["microphone"]["found"])
    assert code == 0


def test_a_microphone_that_is_silent(virtual_audio: VirtualAudio) -> None:
    begin = time.monotonic()
    checks, code = examine("--input-device", "moshi_mic", "--output-device", "moshi_speaker")
    assert time.monotonic() - begin < 10
    assert checks["speaker"]["found"].startswith("moshi_speaker, 24000 Hz mono")
    # A room may be that quiet.
    assert checks["microphone"]["status"] == "warning"
    assert "hears nothing" in checks["microphone"]["found"]
    assert "--input-device" in checks["microphone"]["advice"]
    assert code == 0


def test_the_echo(virtual_audio: VirtualAudio) -> None:
    for _ in range(3):  # a busy machine tears holes into virtual sound
        with loop(120):
            checks, _ = examine("--echo", "--input-device", "moshi_mic", "--output-device", "moshi_speaker")
        echo = checks["echo"]
        print(echo)
        if echo["figures"]["removed"] > 10:
            break
    assert echo["figures"]["level"] == pytest.approx(0, abs=1)
    assert echo["figures"]["removed"] > 10
    assert 0.1 < echo["figures"]["delay"] < 0.5
    assert re.match(r"-?[01] dB against what is played, \d\d dB removed after 1 s, \d+ ms late$", echo["found"])
    checks, _ = examine("--echo", "--input-device", "moshi_mic", "--output-device", "moshi_speaker")
    assert checks["echo"]["status"] == "ok"
    assert checks["echo"]["figures"]["level"] is None


def test_without_listening(virtual_audio: VirtualAudio) -> None:
    checks, code = examine("--quick")
    assert checks["microphone"]["status"] == "ok"
    assert "not listened to" in checks["microphone"]["found"]
    assert code == 0


def test_a_device_that_is_not_there(virtual_audio: VirtualAudio) -> None:
    checks, code = examine("--quick", "--input-device", "none of these")
    assert code == 1
    assert "called 'none of these'" in checks["microphone"]["found"]
    assert "moshi_mic" in checks["microphone"]["advice"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_while_it_listens(virtual_audio: VirtualAudio, number: int) -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    for line in process.stdout:
        if " speaker: " in line:
            break
    time.sleep(0.5)
    process.send_signal(number)
    begin = time.monotonic()
    assert process.wait(LIMIT) == 128 + number
    assert time.monotonic() - begin < 1
    assert "microphone" not in process.stdout.read()
    assert process.stderr.read() == "Stopped.\n"


def test_a_sound_system_that_does_not_answer(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    place = str(Path("/tmp") / f"msh-{os.getpid()}.sock")  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        try:
            server.listen()
            begin = time.monotonic()
            checks, code = examine(PULSE_SERVER=f"unix:{place}")
            assert time.monotonic() - begin < 10
        finally:
            Path(place).unlink()
    assert checks["sound"]["status"] == "problem"
    assert "does not answer" in checks["sound"]["found"]
    assert checks["microphone"]["status"] == "skipped"
    assert code == 1
