"""Live conversations with a model elsewhere: `client_opus.py` on virtual devices, `server_opus.py` on this machine."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from served import serving
from test_conversation import (
    DIGITS,
    LIMIT,
    ROOT,
    SIGNALS,
    Talk,
    Terminal,
    is_notice,
    terminal,
    understood,
)

from msh_mlx.format import SAMPLE_RATE

if TYPE_CHECKING:
    from conftest import VirtualAudio

__all__ = ["terminal"]

CLIENT = [sys.executable, str(ROOT / "client_opus.py"), "--temperature", "0", "--text-temperature", "0"]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def is_event(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == name


def client(port: int, *args: str) -> list[str]:
    return [*CLIENT, "--port", str(port), *args]


def test_a_conversation(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """What is said is heard and answered; what is recorded is what was played; the figures are the server's."""
    folder = tmp_path / "talks"
    heard = virtual_audio.listen()
    record = ["--record", str(folder), "--duration", "18"]
    with serving(tmp_path) as port, Talk(virtual_audio, *record, command=client(port)) as talk:
        talk.until_ready()
        virtual_audio.speak(DIGITS)
        talk.end(0)
    played = heard.finish()
    assert understood(talk.words())
    (take,) = folder.iterdir()
    user, moshi = (soundfile.read(take / f"{name}.wav", dtype="float32")[0] for name in ("user", "moshi"))
    assert virtual_audio.align(user, DIGITS)[1] > 0.9
    assert [json.loads(line)["text"] for line in (take / "transcript.jsonl").read_text().splitlines()] == talk.words()
    fits = []
    for event in (event for event in talk.events if event["event"] == "word"):
        begin = round((event["start"] - 0.1) * SAMPLE_RATE)
        word = moshi[begin : begin + SAMPLE_RATE // 2]
        assert np.abs(word).max() > 0.02
        fits.append(virtual_audio.align(played, word)[1])
    assert max(fits) > 0.95  # on a busy machine there are gaps in others
    assert [event["stage"] for event in talk.events if event["event"] == "loading"] == [
        "connecting",
        "connecting",
        "waiting",
        "waiting",  # until the server listens
    ]
    status = [event for event in talk.events if event["event"] == "status"]
    assert status[-1]["step_p50"] > 0
    assert status[-1]["delay"] > 0
    assert status[-1]["memory_peak"] is None
    assert talk.events[-1]["event"] == "summary"
    assert set(talk.events[-1]["stages"]) == {"encode"}


def test_the_server_goes_and_comes_back(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """A new conversation begins by itself; Ctrl-C ends it at once while the server is away, too."""
    with contextlib.ExitStack() as servers:
        port = servers.enter_context(serving(tmp_path))
        with Talk(virtual_audio, command=client(port)) as talk:
            talk.until_ready()
            servers.close()
            lost = talk.until(is_notice("connection-lost"))
            assert f"127.0.0.1:{port}" in lost["message"]
            servers.enter_context(serving(tmp_path, port=port))
            talk.until(is_notice("connection-back"))
            assert [event["conversation"] for event in talk.events if event["event"] == "ready"] == [1, 2]
            virtual_audio.speak(DIGITS)
            talk.until(lambda event: event["event"] == "word")
            servers.close()
            talk.until(lambda event: is_notice("connection-lost")(event) and event is not lost)
            talk.stop(signal.SIGINT)


def test_signals_at_random_moments(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """While it connects, waits in line and talks: it ends, and what was recorded is whole."""
    rng = random.Random(4)
    with serving(tmp_path) as port:
        for trial in range(12):
            folder = tmp_path / str(trial)
            with Talk(virtual_audio, "--record", str(folder), command=client(port)) as talk:
                moment = "ready" if trial % 2 else "loading"
                talk.until(is_event(moment))
                time.sleep(rng.uniform(0, 1.0))
                begin = time.monotonic()
                assert talk.stop(rng.choice(list(SIGNALS))) == "Stopped.\n"
                assert time.monotonic() - begin < LIMIT
            for recorded in folder.glob("*/*.wav"):
                soundfile.read(recorded)


def test_nobody_is_there(virtual_audio: VirtualAudio) -> None:
    with Talk(virtual_audio, command=client(1)) as talk:
        errors = talk.end(1)
    assert errors.startswith("Nothing can be reached at 127.0.0.1:1 ")
    assert len(errors.splitlines()) == 1


def test_keys(virtual_audio: VirtualAudio, terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """R begins a new conversation, m mutes, q ends it; in a terminal, which is left as it was."""
    with serving(tmp_path) as port:
        screen = terminal(100, client(port))
        screen.until("step ")
        screen.press("r")
        screen.until("A new conversation")
        screen.press("m")
        screen.until("muted")
        screen.press("q")
        assert screen.wait() == 0
        assert "Talked for" in screen.left()
