"""`local_mlx.py --llm` with mlx_lm.server, on virtual devices: turns answered and interrupted, and how long that takes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from devices.conftest import VirtualAudio, virtual_audio  # noqa: F401 - a fixture
from devices.test_conversation import Talk
from paths import DIGITS, ROOT

from msh_mlx.format import SAMPLE_RATE

sys.path.insert(0, str(ROOT / "benchmarks"))
from processes import make_peer

VERSION = "0.32.2"
LIMIT = 60  # seconds until the server is there
TURNS = 10
FOUR_ONE = soundfile.read(DIGITS, dtype="float32")[0][: round(2.1 * SAMPLE_RATE)]
SEVEN = ["two", "three", "four", "five", "six", "seven", "eight", "nine"]  # how the model goes on after "one"
STAGES = ("noticed", "written", "thought", "made", "played")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = make_peer("mlx_lm", VERSION, ["mlx[cpu]"], package="mlx-lm")
    folder = tmp_path_factory.mktemp("llama")
    subprocess.run([python, Path(__file__).with_name("small_llama.py"), folder], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([python, "-m", "mlx_lm", "server", "--model", folder, "--port", str(port)])
    try:
        end = time.monotonic() + LIMIT
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=LIMIT):
                    break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(LIMIT)


def program(url: str) -> list[str]:
    return [sys.executable, str(ROOT / "local_mlx.py"), "--llm", url, "--demo", "--engine", "native", "--echo", "off"]


def test_ten_turns(url: str, virtual_audio: VirtualAudio) -> None:  # noqa: F811
    with Talk(virtual_audio, command=program(url)) as talk:
        talk.until_ready()
        for _ in range(TURNS):
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: event["event"] == "word" and event["text"] == "nine")
            time.sleep(0.5)
        talk.stop(signal.SIGINT)
    assert talk.words() == SEVEN * TURNS
    replies = [event for event in talk.events if event["event"] == "reply"]
    assert len(replies) == TURNS
    print(f"\nms after the end of the voice, {TURNS} turns: p50, p95")
    for name in STAGES:
        p50, p95 = np.percentile([1000 * reply[name] for reply in replies], [50, 95])
        print(f"{name:8} {p50:7.0f} {p95:7.0f}")


def test_interruptions(url: str, virtual_audio: VirtualAudio, tmp_path: Path) -> None:  # noqa: F811
    """How long the voice goes on after the user begins to speak, from the recording."""
    command = [*program(url), "--record", str(tmp_path)]
    with Talk(virtual_audio, command=command) as talk:
        talk.until_ready()
        for turn in range(5):
            virtual_audio.speak(FOUR_ONE)
            enough = len(talk.words()) + 2 + turn % 3
            talk.until(lambda event, enough=enough: len(talk.words()) >= enough)
        talk.stop(signal.SIGINT)
    (folder,) = tmp_path.iterdir()
    sound, _ = soundfile.read(folder / "conversation.wav", dtype="float32")
    user, voice = (np.flatnonzero(np.abs(side) > 0.02) / SAMPLE_RATE for side in sound.T)
    onsets = [at for at, before in zip(user, [-9.0, *user], strict=False) if at - before > 1.0]
    took = [float(voice[(voice > at) & (voice < at + 1)].max(initial=at)) - at for at in onsets[1:]]
    print("\nms from the user's voice to the end of the other one:", *(round(1000 * seconds) for seconds in took))
    assert len(took) >= 3
    assert max(took) < 0.3
