"""`local_mlx.py --llm` with servers that others wrote, on virtual devices: answers and interruptions, and how long they take.

Times are measured on the recording, which has both voices on one clock.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from devices.conftest import VirtualAudio, virtual_audio  # noqa: F401 - a fixture
from devices.test_conversation import Talk
from paths import DIGITS, ROOT

from msh_mlx.format import SAMPLE_RATE

sys.path.insert(0, str(ROOT / "benchmarks"))
from processes import make_peer

LIMIT = 60  # seconds until the server is there
TURNS = 10
HERE = Path(__file__).parent
FOUR_ONE = soundfile.read(DIGITS, dtype="float32")[0][: round(2.1 * SAMPLE_RATE)]
SEVEN = ["two", "three", "four", "five", "six", "seven", "eight", "nine"]  # how the model goes on after "one"
STAGES = ("noticed", "written", "thought", "made", "played")
LOUD = 0.02
APART = 1.0  # seconds between two turns of the user, at least
FADED = 0.2  # seconds from the user's voice to the end of the other one


@contextlib.contextmanager
def mlx_lm(folder: Path) -> Iterator[str]:
    """mlx_lm.server, with a model that counts from the last digit to nine."""
    python = make_peer("mlx_lm", "0.32.2", ["mlx[cpu]"], package="mlx-lm")
    subprocess.run([python, HERE / "small_llama.py", folder], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([python, "-m", "mlx_lm", "server", "--model", folder, "--port", str(port)])
    with ending(server):
        end = time.monotonic() + LIMIT
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=LIMIT):
                    break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def llama_cpp(folder: Path) -> Iterator[str]:
    """llama.cpp's server, with such a model."""
    python = make_peer("xllamacpp", "2026.10.11549", ["gguf"])
    subprocess.run([python, HERE / "small_gguf.py", folder / "counts.gguf"], check=True)
    command = [python, HERE / "llama_server.py", folder / "counts.gguf"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with ending(server):
        assert server.stdout
        yield f"{server.stdout.readline().strip()}/v1"


@contextlib.contextmanager
def ending(server: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        server.terminate()
        server.wait(LIMIT)


@pytest.fixture(scope="module", params=[mlx_lm, llama_cpp], ids=["mlx_lm", "llama.cpp"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("language_model")) as url:
        yield url


def program(url: str, folder: Path) -> list[str]:
    options = ["--llm", url, "--demo", "--engine", "native", "--echo", "off", "--record", str(folder)]
    return [sys.executable, str(ROOT / "local_mlx.py"), *options]


def recorded(folder: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the seconds in which the user, and the voice that answers, are loud."""
    (file,) = folder.glob("*/conversation.wav")
    sound, _ = soundfile.read(file, dtype="float32")
    user, voice = (np.flatnonzero(np.abs(side) > LOUD) / SAMPLE_RATE for side in sound.T)
    return user, voice


def onsets(times: npt.NDArray[np.float64]) -> list[float]:
    """Return where loud sound begins after a while without."""
    return [float(at) for at, before in zip(times, [-9.0, *times], strict=False) if at - before > APART]


def test_ten_turns(url: str, virtual_audio: VirtualAudio, tmp_path: Path) -> None:  # noqa: F811
    with Talk(virtual_audio, command=program(url, tmp_path)) as talk:
        talk.until_ready()
        for _ in range(TURNS):
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: event["event"] == "word" and event["text"] == "nine")
            time.sleep(APART)
        talk.stop(signal.SIGINT)
    assert talk.words() == SEVEN * TURNS
    replies = [event for event in talk.events if event["event"] == "reply"]
    assert len(replies) == TURNS
    user, voice = recorded(tmp_path)
    turns = onsets(user)
    assert len(turns) == TURNS
    answers = [float(voice[voice > turn].min()) for turn in turns]
    pauses = [answer - float(user[user < answer].max()) for answer in answers]
    print(f"\nms after the end of the voice, {TURNS} turns: p50, p95")
    for name in STAGES:
        show(name, [reply[name] for reply in replies])
    show("heard", pauses)


def show(name: str, seconds: list[float]) -> None:
    p50, p95 = np.percentile([1000 * each for each in seconds], [50, 95])
    print(f"{name:8} {p50:7.0f} {p95:7.0f}")


def test_interruptions(url: str, virtual_audio: VirtualAudio, tmp_path: Path) -> None:  # noqa: F811
    """How long the voice goes on after the user begins to speak."""
    with Talk(virtual_audio, command=program(url, tmp_path)) as talk:
        talk.until_ready()
        for turn in range(5):
            virtual_audio.speak(FOUR_ONE)
            enough = len(talk.words()) + 2 + turn % 3
            talk.until(lambda event, enough=enough: len(talk.words()) >= enough)
        talk.stop(signal.SIGINT)
    user, voice = recorded(tmp_path)
    took = [float(voice[(voice > at) & (voice < at + 1)].max(initial=at)) - at for at in onsets(user)[1:]]
    print("\nms from the user's voice to the end of the other one:", *(round(1000 * seconds) for seconds in took))
    assert len(took) >= 3
    assert max(took) < FADED
