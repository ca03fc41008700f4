"""Streams of real devices: what is said into the microphone and played by the loudspeaker, and what can happen to them."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from paths import ROOT

from msh_mlx.errors import MshError
from msh_mlx.events import Notice
from msh_mlx.format import FRAME_SIZE
from msh_mlx.sound.both import Devices
from msh_mlx.sound.devices import choose_device
from msh_mlx.sound.ends import Loudspeaker, Microphone
from msh_mlx.sound.latency import measure_latency
from msh_mlx.sound.portaudio import PORTAUDIO, find_devices, list_devices

if TYPE_CHECKING:
    from conftest import VirtualAudio

SCRIPT = ROOT / "scripts" / "virtual_audio.sh"
LIMIT = 20  # seconds
SPEECH = soundfile.read(ROOT / "assets" / "demo" / "digits.flac", frames=36000, dtype="float32")[0]
FORMATS: list[Any] = [None, [(48000, 2)], [(44100, 2)], [(16000, 1)]]


@pytest.fixture
def audio(virtual_audio: VirtualAudio) -> Iterator[VirtualAudio]:
    """The virtual devices, found by PortAudio whenever this process began to use it; no stream stays open."""
    PORTAUDIO.refresh()
    yield virtual_audio
    PORTAUDIO.refresh()  # fails if one is open


def until(condition: Callable[[], object], each: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        each()
        time.sleep(0.01)


def say(loudspeaker: Loudspeaker, sound: npt.NDArray[np.float32]) -> None:
    """Play a sound to its end."""
    loudspeaker.write(sound)
    loudspeaker.pause()
    until(lambda: not loudspeaker.queued())
    time.sleep(0.2)  # in the device


def hear(microphone: Microphone, seconds: float) -> npt.NDArray[np.float32]:
    frames = []
    for _ in range(round(seconds / 0.08)):
        pcm = microphone.read(FRAME_SIZE, LIMIT)
        assert pcm is not None
        frames.append(pcm)
    return np.concatenate(frames)


def test_the_devices_are_listed(audio: VirtualAudio) -> None:
    devices = {device.name: device for device in find_devices()}
    assert devices["moshi_mic"].input_channels
    assert not devices["moshi_mic"].output_channels
    assert devices["moshi_speaker"].output_channels
    assert not devices["moshi_speaker"].input_channels
    assert devices["default"].default_input
    assert devices["default"].default_output
    assert re.search(r"moshi_spare +ALSA +0 +\d+ +\d+ Hz$", list_devices(), re.MULTILINE)
    assert choose_device(list(devices.values()), "MIC", "input").name == "moshi_mic"


@pytest.mark.parametrize("formats", FORMATS)
def test_the_microphone(audio: VirtualAudio, formats: Any) -> None:
    microphone = Microphone()
    if formats:
        microphone._formats = lambda device: formats  # type: ignore[method-assign]
    microphone.open(choose_device(find_devices(), "moshi_mic", "input"))
    try:
        rate, channels = (formats or [(24000, 2)])[0]
        assert microphone.describe().startswith(f"moshi_mic, {rate} Hz {'mono' if channels == 1 else 'stereo'}, ")
        speaking = audio.speak(SPEECH)
        heard = hear(microphone, 2.4)
        speaking.wait(LIMIT)
        assert audio.match(heard, SPEECH) > (
            0.97 if rate >= 24000 else 0.9
        )  # at 16 kHz some is above what can be heard
        stats, level = microphone.stats(), microphone.level()
        assert stats["lost"] == 0
        assert stats["samples"] >= len(heard)
        assert level.peak >= 0.9 * np.abs(SPEECH).max()
        assert not microphone.lost
    finally:
        microphone.close()
    assert microphone.read(FRAME_SIZE, 0.01) is None


@pytest.mark.parametrize("formats", FORMATS)
def test_the_loudspeaker(audio: VirtualAudio, formats: Any) -> None:
    loudspeaker = Loudspeaker()
    if formats:
        loudspeaker._formats = lambda device: formats  # type: ignore[method-assign]
    loudspeaker.open(choose_device(find_devices(), "moshi_speaker", "output"))
    try:
        recorder = audio.listen()
        time.sleep(0.3)
        say(loudspeaker, SPEECH)
        played = recorder.finish()
        rate = (formats or [(24000, 1)])[0][0]
        assert audio.match(played, SPEECH) > (0.97 if rate >= 24000 else 0.9)
        assert loudspeaker.level().peak >= 0.9 * np.abs(SPEECH).max() * (rate >= 24000)
        assert not loudspeaker.lost
    finally:
        loudspeaker.close()


def test_while_python_is_busy_no_callback_is_late(audio: VirtualAudio) -> None:
    """The interpreter's lock is held 50 ms at a time, by which a callback that wants it is late."""
    import sounddevice  # not earlier: it looks for devices

    sleep = ctypes.PyDLL(None).usleep  # unlike CDLL, it keeps the lock
    devices = find_devices()
    gaps, flows, attempts = [1.0, 1.0], 1, 0
    times: list[float] = []
    while max(gaps) > 0.04 or flows:  # on a busy machine anything may be late, but not every time
        assert (attempts := attempts + 1) < 10, (gaps, flows)
        microphone, loudspeaker = ends = Microphone(), Loudspeaker()
        for end, name in zip(ends, ("moshi_mic", "moshi_speaker"), strict=True):
            end.open(choose_device(devices, name, end.kind))
        times.clear()
        with sounddevice.InputStream(
            24000, device="moshi_echo", channels=1, callback=lambda *_: times.append(time.perf_counter())
        ):
            for _ in range(15):
                sleep(50_000)
                time.sleep(0)
        gaps = [end.stats()["longest_gap"] for end in ends]
        flows = microphone.stats()["device_overflows"] + loudspeaker.stats()["device_underflows"]
        for end in ends:
            end.close()
        assert np.diff(times).max() > 0.045


class Watched:
    """Devices with names, polled, and what they told."""

    def __init__(self, *wanted: str | None) -> None:
        self.notices: list[Notice] = []
        self.devices = Devices(*wanted, self.notices.append)
        self.devices.open()

    def live(self) -> None:
        self.devices.poll()
        self.devices.loudspeaker.write(np.zeros(240, np.float32))

    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.notices]


def test_the_loudspeaker_is_unplugged_and_plugged_in(audio: VirtualAudio) -> None:
    watched = Watched("moshi_mic", "moshi_speaker")
    devices = watched.devices
    try:
        until(lambda: hear(devices.microphone, 0.08) is not None)
        audio.unplug()
        try:
            until(lambda: watched.kinds() == ["device-lost"], watched.live)
            assert "moshi_speaker" in watched.notices[0].message
            for _ in range(120):
                watched.live()
                time.sleep(0.01)
            assert devices.lost
            assert devices.microphone.read(FRAME_SIZE, 0.01) is None
        finally:
            audio.plug()
        until(lambda: not devices.lost, watched.live)
        assert watched.kinds() == ["device-lost", "device-back"]
        recorder = audio.listen()
        speaking = audio.speak(SPEECH)
        say(devices.loudspeaker, SPEECH)
        heard = hear(devices.microphone, 3.2)
        speaking.wait(LIMIT)
        assert audio.match(recorder.finish(), SPEECH) > 0.9
        assert audio.match(heard, SPEECH) > 0.9
        assert not devices.lost
    finally:
        devices.close()


def test_the_next_microphone(audio: VirtualAudio) -> None:
    watched = Watched("moshi_mic", None)
    try:
        watched.devices.next_input()
        until(lambda: not watched.devices.lost, watched.live)
        assert watched.kinds() == ["device-changed"]
        assert watched.devices.microphone.device
        assert watched.devices.microphone.device.name == "moshi_echo"
        assert len(hear(watched.devices.microphone, 0.4)) == 9600
    finally:
        watched.devices.close()


def test_the_round_trip(audio: VirtualAudio) -> None:
    watched = Watched("moshi_echo", "moshi_speaker")
    try:
        result = measure_latency(watched.devices.microphone, watched.devices.loudspeaker, rounds=3)
        assert result.heard >= 2
        assert 0 < result.median < 500
    finally:
        watched.devices.close()
    watched = Watched("moshi_mic", "moshi_speaker")
    try:
        with pytest.raises(MshError, match="does not hear the loudspeaker"):
            measure_latency(watched.devices.microphone, watched.devices.loudspeaker, rounds=1)
    finally:
        watched.devices.close()


def test_portaudio_stays_while_a_stream_is_open(audio: VirtualAudio) -> None:
    microphone = Microphone()
    microphone.open(choose_device(find_devices(), None, "input"))
    try:
        with pytest.raises(MshError, match="while one is open"):
            PORTAUDIO.refresh()
        assert len(hear(microphone, 0.4)) == 9600
    finally:
        microphone.close()


def python(code: str, env: dict[str, str], *before: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*map(str, before), sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT)


def test_no_device_at_all(audio: VirtualAudio, tmp_path: Path) -> None:
    (tmp_path / "alsa.conf").write_text("pcm.moshi_mic { type hw card 99 }")
    env = {**audio.env, "ALSA_CONFIG_PATH": str(tmp_path / "alsa.conf")}
    for code, word in (
        ("Devices(None, None, print).open()", "microphone"),
        ("Devices('x', None, print).open()", "microphone"),
        ("print(list_devices())", "sound device"),
    ):
        names = "from msh_mlx.errors import *; from msh_mlx.sound.both import *; from msh_mlx.sound.portaudio import *"
        result = python(f"{names}\ntry: {code}\nexcept MshError as error: print(error)", env)
        assert result.returncode == 0, result.stderr
        assert re.fullmatch(rf"There is no {word} .*--input FILE.*\.\n", result.stdout)


def test_the_sound_system_dies(virtual_audio: VirtualAudio) -> None:
    """Both streams end with their server; they are lost, it does not come back, and nothing hangs, not even the exit."""
    code = """
import subprocess, time
from msh_mlx.sound.both import Devices
devices = Devices("moshi_mic", "moshi_speaker", lambda notice: print(notice.kind, flush=True))
devices.open()
assert devices.microphone.read(1920, 5) is not None
subprocess.run(["pulseaudio", "--kill"], check=True)
end = time.monotonic() + 10
while not devices.lost and time.monotonic() < end:
    devices.poll()
    time.sleep(0.05)
time.sleep(1.5)
devices.poll()
devices.close()
print("closed")
"""
    result = python(code, dict(os.environ), SCRIPT, "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "device-lost\nclosed\n"
