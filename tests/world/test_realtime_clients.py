"""Clients of OpenAI's Realtime protocol that others wrote, as registries have them, with our server: `make check-world`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from paths import DIGITS, ROOT
from served import serving

sys.path.insert(0, str(ROOT / "benchmarks"))
from processes import make_peer

HERE = Path(__file__).parent
TURNS = [["four", "one"], ["three"], ["eight", "nine", "zero"]]
KNOWN = "Event", "Added", "Done", "Segment"  # how the names of the package's classes for events end
WORDS = json.loads((ROOT / "assets" / "demo" / "expected.json").read_text())["words"]
LIMIT = 120  # seconds
AGENTS = "0.20.0"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of our server, with the demo model, greedy."""
    greedy = ("--plain", "--temperature", "0", "--text-temperature", "0")
    with serving(tmp_path_factory.mktemp("served"), *greedy) as found:
        yield found


def spoken(command: Sequence[str | Path | int]) -> list[dict[str, Any]]:
    """Run a client that talks, and return what it told, a line each."""
    lines = told(command)
    assert [line["word"].strip() for line in lines if "word" in line] == WORDS
    assert not [line for line in lines if "error" in line]
    # A response lasts until a second after its last sound.
    assert 3 + 0.4 * len(WORDS) < lines[-1]["seconds"] < 10
    return lines


def told(command: Sequence[str | Path | int]) -> list[dict[str, Any]]:
    """Run a client, print its transcript, and return what it told, a line each."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=LIMIT)
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("dialect", ["now", "beta"])
def test_openais_package(port: int, dialect: str) -> None:
    openai = make_peer("openai", "3.57.0", ["websockets", "soundfile"])
    lines = spoken([openai, HERE / "realtime_openai.py", port, DIGITS, dialect])
    # The package knows each event: it has a class of its own for it.
    assert not [line for line in lines if not str(line.get("class", "Event")).endswith(("Event", "Added", "Done"))]
    assert sum(line.get("event") == "response.done" for line in lines) == 3


@pytest.mark.parametrize("dialect", ["now", "beta"])
def test_openais_package_in_a_session_of_transcription(port: int, dialect: str) -> None:
    openai = make_peer("openai", "3.57.0", ["websockets", "soundfile"])
    lines = told([openai, HERE / "transcription_openai.py", port, DIGITS, dialect])
    assert "".join(line["delta"] for line in lines if "delta" in line) == "".join(" ".join(turn) for turn in TURNS)
    assert [line["turn"].split() for line in lines if "turn" in line] == TURNS
    assert not [line for line in lines if not str(line.get("class", "Event")).endswith(KNOWN)]
    assert not [line for line in lines if "error" in line]


def test_openais_agents(port: int, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = ROOT / ".cache" / "peer-agents-realtime"
    package = folder / "node_modules" / "@openai" / "agents-realtime" / "package.json"
    if not package.exists() or json.loads(package.read_text())["version"] != AGENTS:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text("{}")
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run([*npm, f"@openai/agents-realtime@{AGENTS}"], cwd=folder, check=True)
    pcm, _ = soundfile.read(DIGITS, dtype="int16")
    sound = tmp_path / "digits.raw"
    sound.write_bytes(np.concatenate([pcm, np.zeros(3 * 24_000, np.int16)]).tobytes())
    lines = spoken(["node", HERE / "realtime_agents.mjs", port, sound, folder])
    turns = lines[-1]["history"]
    assert [role for role, _, _ in turns] == ["user", "assistant"] * 3
    assert " ".join(text for role, _, text in turns if role == "assistant").split() == WORDS
    assert {status for _, status, _ in turns} == {"completed"}


def test_pipecats_service(port: int) -> None:
    pipecat = make_peer(
        "pipecat", "1.14.0", ["pipecat-ai[openai]==1.14.0", "soundfile"], package="pipecat-ai", build=True
    )
    lines = spoken([pipecat, HERE / "realtime_pipecat.py", port, DIGITS])
    names = [line.get("event") for line in lines]
    assert names.count("UserStartedSpeakingFrame") == names.count("UserStoppedSpeakingFrame") == 3
    assert names.count("TTSStartedFrame") == names.count("TTSStoppedFrame") == 3
