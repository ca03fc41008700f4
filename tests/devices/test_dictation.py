"""`msh-mlx transcribe --live` on virtual devices."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from paths import DEMO, ROOT
from paths import DIGITS as RECORDING
from test_conversation import LOADED, Talk

from msh_mlx.format import SAMPLE_RATE

if TYPE_CHECKING:
    from conftest import VirtualAudio

DIGITS = soundfile.read(RECORDING, dtype="float32")[0]
EXPECTED = json.loads((DEMO / "stt" / "expected.json").read_text())
PROGRAM = [sys.executable, str(ROOT / "local_mlx.py"), "transcribe", "--live", "--demo"]


def test_words_and_turns_as_they_come(virtual_audio: VirtualAudio) -> None:
    """Words come while the user speaks; a turn ends in a pause; Ctrl-C brings the words that are on their way."""
    with Talk(virtual_audio, command=PROGRAM) as talk:
        talk.until_ready()
        speaking = virtual_audio.speak(DIGITS)
        talk.until(lambda event: event["event"] == "turn")
        assert speaking.poll() is None
        assert talk.words() == ["four", "one"]
        assert talk.events[-1]["end"] - talk.events[-2]["start"] < 1.5
        # "eight" is heard, "nine" was begun.
        talk.until(lambda event: event.get("text") == "eight")
        assert talk.stop(signal.SIGINT) == "Stopped.\n"
        speaking.kill()
        speaking.wait()
    assert talk.words()[:4] == EXPECTED["words"][:4]
    assert talk.events[-1]["event"] == "turn"
    starts = np.array([event["start"] for event in talk.events if event["event"] == "word"])[:4]
    shift = starts - EXPECTED["start"][:4]  # until the recording begins to play
    assert np.abs(shift - np.median(shift)).max() < 0.25


def test_a_line_for_each_turn(virtual_audio: VirtualAudio) -> None:
    """What is not a terminal gets the text alone, a line for each turn, for the time that was asked for."""
    process = subprocess.Popen(
        [*PROGRAM, "--duration", "8"], env=virtual_audio.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    for line in process.stderr:
        if "Listening" in line:
            break
    begin = time.monotonic()
    virtual_audio.speak(DIGITS[: 6 * SAMPLE_RATE])
    output, errors = process.communicate(timeout=LOADED)
    assert process.returncode == 0, errors
    assert time.monotonic() - begin > 7
    assert output == "four one\nthree\n"


def test_a_terminal(virtual_audio: VirtualAudio) -> None:
    """Words appear on the line of their turn."""
    master, slave = pty.openpty()
    process = subprocess.Popen(PROGRAM, env=virtual_audio.env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown, end, spoken = b"", time.monotonic() + LOADED, False
    while not re.search(rb"four one\r\n", shown):
        ready, _, _ = select.select([master], [], [], max(0.0, end - time.monotonic()))
        assert ready, shown
        shown += os.read(master, 4096)
        if b"Listening" in shown and not spoken:
            spoken = True
            virtual_audio.speak(DIGITS[: 4 * SAMPLE_RATE])
    process.send_signal(signal.SIGTERM)
    assert process.wait(LOADED) == 128 + signal.SIGTERM
    os.close(master)


def test_a_microphone_that_is_not_there(virtual_audio: VirtualAudio) -> None:
    result = subprocess.run(
        [*PROGRAM, "--input-device", "none such"], env=virtual_audio.env, capture_output=True, text=True, timeout=LOADED
    )
    assert result.returncode == 2
    assert re.fullmatch(r"There is no microphone called 'none such'; there is .*\.\n", result.stderr)
    assert result.stdout == ""
