"""Virtual sound devices for the tests in this folder, made by `scripts/virtual_audio.sh`."""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from msh_mlx.format import Pcm

SCRIPT = ROOT / "scripts" / "virtual_audio.sh"
RAW = ("--raw", "--format=float32le", "--rate=24000", "--channels=1")
LIMIT = 10  # seconds


class Recorder:
    """Records a PulseAudio source, 24 kHz mono, until `finish`."""

    def __init__(self, source: str) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        command = ["parec", f"--device={source}", "--latency-msec=20", *RAW]
        self._process = subprocess.Popen(command, stdout=self._file)

    def finish(self) -> Pcm:
        self._process.terminate()
        self._process.wait(LIMIT)
        self._file.seek(0)
        data = self._file.read()
        self._file.close()
        return np.frombuffer(data[: len(data) // 4 * 4], np.float32)


class VirtualAudio:
    """A microphone to speak into, and a loudspeaker to listen to. A process finds them with the variables of `env`."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env

    def speak(self, pcm: Pcm, *, at_once: bool = False) -> subprocess.Popen[bytes]:
        """Play 24 kHz mono into the microphone. The process ends when all is played; with `at_once`, return when it begins."""
        command = ["pacat", "--playback", "--device=micsrc", *RAW]
        if at_once:
            with tempfile.TemporaryFile() as file:
                file.write(pcm.astype("<f4").tobytes())
                file.seek(0)
                return subprocess.Popen(command, stdin=file)
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert process.stdin
        # If it does not fit into PulseAudio's buffer and the pipe, this waits for the rest.
        process.stdin.write(pcm.astype("<f4").tobytes())
        process.stdin.close()
        return process

    def listen(self) -> Recorder:
        """Record what the loudspeaker plays from now on."""
        return Recorder("speaker.monitor")

    def unplug(self) -> None:
        """Take the loudspeaker away."""
        subprocess.run([SCRIPT, "unplug"], check=True, timeout=LIMIT)

    def plug(self) -> None:
        """Bring the loudspeaker back."""
        subprocess.run([SCRIPT, "plug"], check=True, timeout=LIMIT)

    @staticmethod
    def align(heard: Pcm, sound: Pcm) -> tuple[int, float]:
        """Find `sound` in `heard`. Return its first sample, and how well it fits there (the correlation, 1 at best)."""
        size = 1 << (len(heard) + len(sound)).bit_length()
        spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sound, size))
        at = int(np.argmax(np.fft.irfft(spectrum, size)[: max(1, len(heard) - len(sound) + 1)]))
        part = heard[at : at + len(sound)].astype(np.float64)
        scale = np.linalg.norm(part) * np.linalg.norm(sound[: len(part)])
        return at, float(part @ sound[: len(part)] / scale) if scale else 0.0

    @classmethod
    def match(cls, heard: Pcm, sound: Pcm) -> float:
        """Say how well `sound` can be found in `heard`, 1 at best: the median of its pieces of a quarter second.

        In pieces, because on a busy machine a gap of some milliseconds may come between them.
        """
        pieces = [sound[begin : begin + 6000] for begin in range(0, len(sound) - 5999, 6000)]
        loud = [piece for piece in pieces if np.abs(piece).max() > 0.1 * np.abs(sound).max()]
        return float(np.median([cls.align(heard, piece)[1] for piece in loud]))


def missing() -> str:
    """Return what this machine lacks for these tests, or an empty text."""
    tools = [tool for tool in ("pulseaudio", "pactl", "pacat", "parec") if not shutil.which(tool)]
    if tools:
        return f"there is no {', '.join(tools)} (Debian: pulseaudio pulseaudio-utils)"
    if not ctypes.util.find_library("portaudio"):
        return "there is no PortAudio library (Debian: libportaudio2)"
    folders = [Path(folder) for folder in ("/usr/lib", "/usr/lib64")]
    if not any(next(folder.glob("**/libasound_module_pcm_pulse.so"), None) for folder in folders if folder.is_dir()):
        return "ALSA has no way to PulseAudio (Debian: libasound2-plugins)"
    return ""


@pytest.fixture(scope="session")
def virtual_audio() -> Iterator[VirtualAudio]:
    """Make virtual sound devices, also for this process and those it starts. Skip the test without PulseAudio."""
    if reason := missing():
        if os.environ.get("MSH_REQUIRE_LIVE") == "1":
            pytest.fail(f"MSH_REQUIRE_LIVE is set, and {reason}")
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:  # not pytest's: the path of a socket must be short
        started = subprocess.run(
            [SCRIPT, "start", folder], check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT
        )
        env = dict(re.findall(r"export (\w+)='(.*)'", started.stdout))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            for name in ("PULSE_SERVER", "PULSE_RUNTIME_PATH", "PULSE_SINK", "PULSE_SOURCE"):
                patch.delenv(name, raising=False)
            try:
                yield VirtualAudio({**os.environ})
            finally:
                subprocess.run([SCRIPT, "stop", folder], check=True, timeout=LIMIT)
                Path(folder).mkdir(exist_ok=True)
