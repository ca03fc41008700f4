"""Loudspeakers: what the loudspeaker plays gets into the microphone, late and loud."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from test_conversation import DIGITS, LIMIT, Talk

from msh_mlx.format import SAMPLE_RATE

if TYPE_CHECKING:
    from conftest import VirtualAudio

QUESTION = DIGITS[: int(2.2 * SAMPLE_RATE)]  # "four one"
ANSWERED = 6.0  # seconds from the end of the question within which it is answered
SILENT = 12.0  # seconds in which a loop would go on


@contextmanager
def loop(milliseconds: int) -> Iterator[None]:
    """Lead the loudspeaker's sound into the microphone, as loud as it is and so many milliseconds late."""
    command = ["pactl", "load-module", "module-loopback", "source=speaker.monitor", "sink=micsrc", "adjust_time=0"]
    loaded = subprocess.run(
        [*command, f"latency_msec={milliseconds}"], check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT
    )
    try:
        yield
    finally:
        subprocess.run(["pactl", "unload-module", loaded.stdout.strip()], check=True, timeout=LIMIT)


def ask(audio: VirtualAudio, mode: str) -> tuple[list[str], list[str], Talk]:
    """Return the words of the answer, those that came later, and the conversation, which has ended."""
    with loop(120), Talk(audio, "--echo", mode, "--duration", str(3 + ANSWERED + SILENT)) as talk:
        talk.until_ready()
        audio.speak(QUESTION)
        talk.end(0)
    words = [event for event in talk.events if event["event"] == "word"]
    limit = 3 + ANSWERED
    early = [event["text"] for event in words if event["start"] <= limit]
    return early, [event["text"] for event in words if event["start"] > limit], talk


@pytest.mark.skipif(not shutil.which("pactl"), reason="there is no pactl (Debian: pulseaudio-utils)")
def test_one_answer_then_silence(virtual_audio: VirtualAudio) -> None:
    # A busy machine tears holes into virtual sound, which no canceller can foresee.
    for _ in range(3):
        early, late, talk = ask(virtual_audio, "auto")
        removed = (talk.events[-1].get("echo") or {}).get("removed_most") or 0.0
        if 1 <= len(early) <= 3 and not late and removed > 10:
            break
    assert 1 <= len(early) <= 3, early
    assert late == []
    states = [event for event in talk.events if event["event"] == "status"]
    assert any(state["echo"]["found"] and state["echo"]["removed"] > 10 for state in states)
    summary = talk.events[-1]
    assert summary["event"] == "summary"
    assert summary["echo"]["level"] < 0
    assert summary["echo"]["removed_most"] > 10


@pytest.mark.skipif(not shutil.which("pactl"), reason="there is no pactl (Debian: pulseaudio-utils)")
def test_without_cancelling_it_answers_itself(virtual_audio: VirtualAudio) -> None:
    early, late, talk = ask(virtual_audio, "off")
    assert talk.events[-1]["echo"] is None
    assert len(early) + len(late) > 3, (early, late)
