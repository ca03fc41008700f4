"""Programs that others wrote, as a package registry has them, with ours: `make check-world`. Nothing here is an imitation."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import demo
import numpy as np
import pytest
import soundfile
from paths import DIGITS, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from processes import make_peer

WORDS = json.loads((ROOT / "assets" / "demo" / "expected.json").read_text())["words"]
GREEDY = ("--temperature", "0", "--text-temperature", "0")
STARTED = 120  # seconds
# In which both voices are one channel at 24 kHz. The client gets a terminal, as a user has one.
TALK = """
timeout 20 script -qfc "$1 -m moshi.client --host 127.0.0.1 --port $2" "$3/terminal.txt" </dev/null >/dev/null 2>&1 &
timeout 20 parec --device=speaker.monitor --rate=24000 --channels=1 --format=s16le >"$3/heard.raw" &
sleep 3
paplay --device=micsrc "$3/digits.wav"
wait
"""


@pytest.fixture(scope="session")
def moshi() -> Path:
    """The interpreter of an environment with Kyutai's package."""
    return make_peer("moshi", "0.2.13")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def started(command: list[str | Path], port: int) -> Iterator[int]:
    """Run a server until it is no longer needed."""
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + STARTED
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.2)
            else:
                raise AssertionError(f"{command} does not listen")
            yield port
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def theirs(moshi: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the PyTorch server, with the demo model."""
    folder, port = tmp_path_factory.mktemp("torch"), free_port()
    demo.write(folder)
    with started([moshi, Path(__file__).with_name("torch_server.py"), folder, str(port)], port):
        yield port


@pytest.fixture
def ours() -> Iterator[int]:
    """The port of our server, with the demo model, greedy."""
    port = free_port()
    with started([sys.executable, "server_opus.py", "--demo", "--plain", "--port", str(port), *GREEDY], port):
        time.sleep(3)  # until the model is loaded
        yield port


def ask(port: int, folder: Path, *options: str) -> list[str]:
    """Let our client send the demo's recording, and return the words that came back."""
    client = [sys.executable, "client_opus.py", "--host", "127.0.0.1", "--port", str(port), "--plain", *GREEDY]
    files = ["--input", str(DIGITS), "--output", str(folder / "reply.wav"), "--transcript", str(folder / "words.jsonl")]
    done = subprocess.run(
        [*client, *files, "--tail", "2", *options], cwd=ROOT, capture_output=True, text=True, timeout=STARTED
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert len(soundfile.read(folder / "reply.wav")[0]) >= len(soundfile.read(DIGITS)[0])
    return [json.loads(line)["text"] for line in (folder / "words.jsonl").read_text().splitlines()]


def test_our_client_and_the_pytorch_server(theirs: int, tmp_path: Path) -> None:
    for _ in range(3):
        assert ask(theirs, tmp_path) == WORDS
    assert ask(theirs, tmp_path, "--realtime") == WORDS


def test_our_client_and_our_server(ours: int, tmp_path: Path) -> None:
    assert ask(ours, tmp_path) == WORDS


@pytest.mark.skipif(sys.platform != "linux", reason="the virtual devices are PulseAudio's")
def test_moshi_client_and_our_server(moshi: Path, ours: int, tmp_path: Path) -> None:
    sound, rate = soundfile.read(DIGITS, dtype="float32")
    soundfile.write(tmp_path / "digits.wav", sound, rate, subtype="PCM_16")
    audio = ["sh", "scripts/virtual_audio.sh", "run", "bash", "-c", TALK, "talk"]
    subprocess.run([*audio, str(moshi), str(ours), str(tmp_path)], cwd=ROOT, check=True, timeout=STARTED)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", (tmp_path / "terminal.txt").read_text())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    print(*[line for line in lines if line.startswith("[")], lines[-2], sep="\n")
    assert "connected!" in shown
    assert shown.count("unknown message kind 4") == 1  # the description, as the published Rust server sends it
    heard = np.fromfile(tmp_path / "heard.raw", "<i2").astype(np.float32) / 32768
    soundfile.write(tmp_path / "heard.wav", heard, 24000)
    hear = [sys.executable, "client/tests/hear.py", str(tmp_path / "heard.wav"), "0"]
    words = [
        word["word"] for word in json.loads(subprocess.run(hear, cwd=ROOT, capture_output=True, check=True).stdout)
    ]
    print(words)
    # The small model hears one of them wrong where the recording lies otherwise on its frames.
    assert sum(word in words for word in WORDS) >= len(WORDS) - 1
