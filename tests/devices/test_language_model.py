"""`local_mlx.py --llm` on virtual devices, with a server whose answers are known."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from paths import DIGITS as RECORDING
from paths import ROOT
from test_chat_completions import Server, delta, piece, stream, turns
from test_conversation import Talk, is_notice

from msh_mlx.format import SAMPLE_RATE

if TYPE_CHECKING:
    from conftest import VirtualAudio

FOUR_ONE = soundfile.read(RECORDING, dtype="float32")[0][: round(2.1 * SAMPLE_RATE)]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LOUD = 0.02
FADED = 0.2  # seconds from the user's voice to the end of the other one, with what the recording is late


def program(url: str) -> list[str]:
    return [sys.executable, str(ROOT / "local_mlx.py"), "--llm", url, "--demo", "--engine", "native", "--echo", "off"]


def last_loud(sound: np.ndarray) -> float:
    """When a sound is last loud, in seconds."""
    return float(np.flatnonzero(np.abs(sound) > LOUD)[-1]) / SAMPLE_RATE


def test_what_is_spoken_is_answered(virtual_audio: VirtualAudio) -> None:
    with Server(stream(*(f"{word} " for word in NUMBERS[:3]))) as server:
        with Talk(virtual_audio, command=program(server.url)) as talk:
            talk.until_ready()
            loudspeaker = virtual_audio.listen()
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: event.get("text") == "three")
            talk.stop(signal.SIGINT)
            heard = loudspeaker.finish()
        assert server.bodies[0]["messages"] == [{"role": "user", "content": "four one"}]
    assert [event["text"] for event in talk.events if event["event"] == "turn"] == ["four one"]
    (reply,) = (event for event in talk.events if event["event"] == "reply")
    delays = [reply[name] for name in ("noticed", "written", "thought", "made", "played")]
    assert delays == sorted(delays)
    assert np.abs(heard).max() > LOUD


def test_who_speaks_is_let_speak(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """The recording has both voices on one clock."""
    with Server(stream(*(f"{word} " for word in NUMBERS))) as server:
        command = [*program(server.url), "--record", str(tmp_path)]
        with Talk(virtual_audio, command=command) as talk:
            talk.until_ready()
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: event["event"] == "word" and event["text"] == "two")
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: len(server.bodies) > 1)
            talk.stop(signal.SIGINT)
    kept = server.bodies[1]["messages"][1]["content"].split()
    assert 2 <= len(kept) <= 6
    assert kept == NUMBERS[: len(kept)]
    (folder,) = tmp_path.iterdir()
    words = [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
    assert [word["text"] for word in words if word.get("speaker") == "user"] == ["four", "one"] * 2
    assert [word["text"] for word in words if "speaker" not in word][: len(kept)] == kept
    sound, _ = soundfile.read(folder / "conversation.wav", dtype="float32")
    user, voice = sound.T
    spoken = np.flatnonzero(np.abs(voice) > LOUD)[0]  # the answer has begun
    begin = spoken + np.flatnonzero(np.abs(user[spoken:]) > LOUD)[0]  # the user interrupts
    assert last_loud(voice[: begin + SAMPLE_RATE // 2]) - begin / SAMPLE_RATE < FADED


TOOLS = """
import os
import time

def add(a: int, b: int) -> int:
    print("adding", a, "and", b)
    os.system("echo this is lost")
    time.sleep(1.2)
    return a + b
"""


def test_a_tool_is_called_and_its_result_said(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """What it prints, and a program that it starts, disturbs no line of the output; the filler is said and not kept."""
    file = tmp_path / "tools.py"
    file.write_text(TOOLS)
    calls = stream(delta(piece('{"a": 4, ', "add", index=0, id="c1")), delta(piece('"b": 1}', index=0)))
    with Server(turns(calls, stream("five"), stream("six"))) as server:
        options = ["--tools", str(file), "--filler", "one", "--record", str(tmp_path / "talks")]
        with Talk(virtual_audio, command=[*program(server.url), *options]) as talk:
            talk.until_ready()
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: event["event"] == "word" and event["text"] == "five")
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: event["event"] == "word" and event["text"] == "six")
            talk.stop(signal.SIGINT)
    told = [event for event in talk.events if event["event"] in ("calling", "called", "word", "notice")]
    kinds = [event.get("text") or event.get("kind") or event["event"] for event in told]
    order = ["language-model", "language-model", "recording", "calling", "printed", "one", "called", "five", "six"]
    assert [kind for kind in kinds if kind in order] == order
    (called,) = (event for event in told if event["event"] == "called")
    assert (called["name"], called["result"], called["failed"]) == ("add", "5", False)
    assert 1.2 <= called["seconds"] < 10
    (printed,) = (event for event in told if event.get("kind") == "printed")
    assert printed["message"] == "adding 4 and 1"
    assert [tool["function"]["name"] for tool in server.bodies[0]["tools"]] == ["add"]
    roles = [(message["role"], message["content"]) for message in server.bodies[2]["messages"]]
    assert roles[1:4] == [("assistant", ""), ("tool", "5"), ("assistant", "five")]
    (folder,) = (tmp_path / "talks").iterdir()
    lines = [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines if line.get("speaker") != "user"][:3] == ["one", "5", "five"]


def test_a_server_that_is_gone_is_told(virtual_audio: VirtualAudio) -> None:
    """And when it is back, it is asked again."""
    with contextlib.ExitStack() as stack:
        with Server(stream("two ")) as server:
            talk = stack.enter_context(Talk(virtual_audio, command=program(server.url)))
            talk.until_ready()
        virtual_audio.speak(FOUR_ONE)
        told = talk.until(lambda event: is_notice("language-model")(event) and event["level"] == "error")
        assert told["message"] == f"Nothing answers at {server.url}; start the language model's server."
        with Server(stream("six "), port=server.port):
            virtual_audio.speak(FOUR_ONE)
            talk.until(lambda event: event["event"] == "word" and event["text"] == "six")
        talk.stop(signal.SIGINT)
