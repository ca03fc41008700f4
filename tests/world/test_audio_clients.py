"""Clients for transcription and speech that others wrote, as registries have them, with our server: `make check-world`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
from paths import DIGITS, ROOT
from served import serving

sys.path.insert(0, str(ROOT / "benchmarks"))
from processes import make_peer

HERE = Path(__file__).parent
WORDS = json.loads((ROOT / "assets" / "demo" / "stt" / "expected.json").read_text())["words"]
TEXT = "three one four"
LIMIT = 120  # seconds


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of our server, with the demo models: of HTTP, and of Wyoming."""
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, "--plain", "--no-conversations", "--wyoming", "0") as http:
        deadline = time.monotonic() + LIMIT
        while "Wyoming: listening" not in (said := (folder / "server.txt").read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield http, int(said.split("Wyoming: listening on 127.0.0.1:")[1].split()[0])


def told(command: Sequence[str | Path | int]) -> list[dict[str, Any]]:
    """Run a client, print its transcript, and return what it told, a line each."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=LIMIT)
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_openais_package(ports: tuple[int, int]) -> None:
    # With the packages of the other tests with it, so that they share the environment.
    openai = make_peer("openai", "3.57.0", ["websockets", "soundfile"])
    lines = told([openai, HERE / "audio_openai.py", ports[0], DIGITS])
    assert {"models": ["demo-stt", "demo-tts"], "one": "demo-stt"} in lines
    texts = {line["form"]: line["text"].strip() for line in lines if "form" in line and "text" in line}
    assert texts["json"] == texts["text"] == texts["verbose_json"] == " ".join(WORDS)
    assert all(" ".join(WORDS[:2]) in texts[form] for form in ("srt", "vtt"))
    (verbose,) = (line for line in lines if line.get("form") == "verbose_json")
    assert [word for word, _, _ in verbose["words"]] == WORDS
    *deltas, done = (line for line in lines if "event" in line)
    assert "".join(delta["text"] for delta in deltas) == done["text"] == " ".join(WORDS)
    assert (deltas[0]["kind"], done["kind"]) == ("TranscriptionTextDeltaEvent", "TranscriptionTextDoneEvent")
    speeches = [line for line in lines if "pieces" in line]
    assert [line["said"] for line in speeches] == [TEXT] * 4 + [""]
    assert all(line["pieces"] > 5 for line in speeches)
    errors = {line["error"]: line for line in lines if "error" in line}
    assert errors.keys() == {"voice", "aac", "model", "file", "stream", "retrieve"}
    assert {errors[name]["kind"] for name in ("model", "retrieve")} == {"NotFoundError"}


def test_wyomings_client(ports: tuple[int, int], tmp_path: Path) -> None:
    wyoming = make_peer("wyoming", "1.10.2")
    sound, rate = soundfile.read(DIGITS, dtype="int16")
    soundfile.write(tmp_path / "digits.wav", sound, rate, subtype="PCM_16")
    lines = told([wyoming, HERE / "audio_wyoming.py", ports[1], tmp_path / "digits.wav"])
    assert lines[1] == {"asr": ["demo-stt"], "tts": ["default", "brisk", "calm"]}
    assert lines[2]["heard"][-1] == ["transcript", " ".join(WORDS)]
    assert lines[3]["said"][-1] == ["transcript", TEXT]
    assert lines[4]["streamed"] > 24_000 * 2


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(ports: tuple[int, int], tmp_path: Path) -> None:
    url, file = f"http://127.0.0.1:{ports[0]}/v1/audio", tmp_path / "said.mp3"
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    say = json.dumps({"model": "tts-1", "input": TEXT, "voice": "alloy"})
    asked = ["-H", "Content-Type: application/json", "-d", say, "-o", file, f"{url}/speech"]
    subprocess.run(["curl", "-sS", "--fail", *map(str, asked)], check=True, timeout=LIMIT)
    heard = []
    for recording in (DIGITS, file):
        form = ["-F", f"file=@{recording}", "-F", "model=whisper-1", "-F", "response_format=text"]
        done = subprocess.run(
            ["curl", "-sS", *form, f"{url}/transcriptions"], capture_output=True, text=True, check=True
        )
        heard.append(done.stdout)
    print(version, heard)
    assert heard == [" ".join(WORDS) + "\n", TEXT + "\n"]
