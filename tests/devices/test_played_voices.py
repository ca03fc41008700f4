"""Voices on the loudspeaker, as a user hears them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile
from paths import DIGITS, ROOT

if TYPE_CHECKING:
    from conftest import VirtualAudio

PLAY = [sys.executable, str(ROOT / "local_mlx.py"), "voices", "play"]
LIMIT = 60  # seconds, against hanging on a busy machine


def test_a_voice_is_heard(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    soundfile.write(tmp_path / "voice.wav", pcm[: int(1.7 * rate)], rate)
    env = {**virtual_audio.env, "XDG_CONFIG_HOME": str(tmp_path)}
    agreement = 0.0
    for _ in range(4):  # a busy machine may break the sound off
        heard = virtual_audio.listen()
        result = subprocess.run([*PLAY, tmp_path / "voice.wav"], env=env, capture_output=True, timeout=LIMIT)
        assert (result.returncode, result.stderr) == (0, b"")
        played = heard.finish()
        agreement = virtual_audio.align(played, pcm[: int(1.7 * rate)])[1]
        if agreement > 0.99:
            break
    assert agreement > 0.99


def test_no_loudspeaker(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    (tmp_path / "alsa.conf").write_text("pcm.moshi_mic { type hw card 99 }")
    for args, env, code, sentence in (
        (["--output-device", "nothing"], {}, 2, "There is no loudspeaker called 'nothing'; there is "),
        ([], {"ALSA_CONFIG_PATH": str(tmp_path / "alsa.conf")}, 1, "There is no "),
    ):
        result = subprocess.run(
            [*PLAY, DIGITS, *args], env={**virtual_audio.env, **env}, capture_output=True, timeout=LIMIT
        )
        assert result.returncode == code
        assert result.stderr.decode().startswith(sentence), result.stderr
        assert "--output FILE" in result.stderr.decode() or code == 2
