"""Which device is meant, sound at other rates, and devices that go and come back, without devices."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from msh_native import Capture, Ear, Mixer, Mouth, Playback

from msh_mlx.errors import InputError, MshError
from msh_mlx.events import Notice
from msh_mlx.sound import both, ends
from msh_mlx.sound.both import Devices
from msh_mlx.sound.devices import Device, choose_device
from msh_mlx.sound.ends import Loudspeaker, Microphone
from msh_mlx.sound.latency import measure_latency
from msh_mlx.sound.portaudio import PortAudio, StreamError, list_devices

DEADLINE = 10  # seconds

BUILT_IN = Device(0, "MacBook Pro Microphone", "Core Audio", 1, 0, 48000, default_input=True)
SPEAKERS = Device(1, "MacBook Pro Speakers", "Core Audio", 0, 2, 48000, default_output=True)
HEADSET = Device(2, "Ärger's AirPods", "Core Audio", 1, 0, 24000)
HEADPHONES = Device(3, "Ärger's AirPods", "Core Audio", 0, 2, 48000)
USB = Device(4, "USB Audio", "Core Audio", 2, 2, 44100)
USB_2 = Device(5, "USB Audio 2", "Core Audio", 2, 2, 44100)
ALL = [BUILT_IN, SPEAKERS, HEADSET, HEADPHONES, USB, USB_2]


class FakeStream:
    def __init__(self, system: FakeSystem, ring: Any) -> None:
        self.system, self.ring = system, ring
        self.active, self.latency = True, 0.01

    def close(self) -> None:
        self.system.closing()
        self.system.streams.remove(self)


class FakeSystem:
    """A sound system whose devices the test plugs and unplugs."""

    def __init__(self, devices: list[Device]) -> None:
        self.present = devices
        self.streams: list[FakeStream] = []
        self.log: list[tuple[object, ...]] = []
        self.opened = 0
        self.refuse: Callable[[Device, str, int, int], int] = lambda *_: 0
        self.closing: Callable[[], object] = lambda: None
        self.opening: Callable[[], object] = lambda: None

    def devices(self) -> list[Device]:
        return list(self.present)

    def open(self, device: Device, kind: str, rate: int, channels: int, ring: Any) -> FakeStream:
        self.log.append((device.name, kind, rate, channels))
        self.opening()
        code = self.refuse(device, kind, rate, channels) or (0 if device in self.present else -9996)
        if code:
            raise StreamError(device, kind, "Refused", code)
        stream = FakeStream(self, ring)
        self.streams.append(stream)
        self.opened += 1
        return stream

    def refresh(self) -> None:
        assert not self.streams, "PortAudio must not be initialised while a stream is open"
        self.log.append(("refresh",))


def until(condition: Callable[[], object], each: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        each()
        time.sleep(0.005)


# ---- choosing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "kind", "device"),
    [
        (None, "input", BUILT_IN),
        (None, "output", SPEAKERS),
        ("2", "input", HEADSET),
        (" 5 ", "output", USB_2),
        ("macbook", "input", BUILT_IN),
        ("macbook", "output", SPEAKERS),
        ("ÄRGER", "output", HEADPHONES),
        ("usb audio", "input", USB),
        ("audio 2", "input", USB_2),
    ],
)
def test_the_device_that_is_meant(wanted: str | None, kind: Any, device: Device) -> None:
    assert choose_device(ALL, wanted, kind) == device


def test_without_a_default_the_first_is_taken() -> None:
    assert choose_device([USB_2, USB], None, "output") == USB_2


@pytest.mark.parametrize(
    ("wanted", "kind", "names", "not_names"),
    [
        ("usb", "input", [USB, USB_2], [BUILT_IN]),
        ("1", "input", [BUILT_IN, HEADSET, USB, USB_2], [SPEAKERS]),
        ("77", "output", [SPEAKERS, HEADPHONES, USB, USB_2], [BUILT_IN]),
        ("piano", "output", [SPEAKERS, HEADPHONES, USB, USB_2], [BUILT_IN]),
        ("", "input", [BUILT_IN, HEADSET, USB, USB_2], [SPEAKERS]),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(
    wanted: str, kind: Any, names: list[Device], not_names: list[Device]
) -> None:
    with pytest.raises(InputError) as error:
        choose_device(ALL, wanted, kind)
    message = str(error.value)
    assert re.fullmatch(r"[^\n]*[^.]\.", message)
    assert repr(wanted) in message or f"number {wanted}" in message
    assert all(f'{device.number} "{device.name}"' in message for device in names)
    assert not any(device.name in message for device in not_names)


@pytest.mark.parametrize(("kind", "noun"), [("input", "microphone"), ("output", "loudspeaker")])
@pytest.mark.parametrize("wanted", [None, "usb"])
def test_no_device_at_all(kind: Any, noun: str, wanted: str | None) -> None:
    others = [device for device in ALL if not device.channels(kind)]
    with pytest.raises(MshError, match=rf"^There is no {noun} .* --input FILE.*\.$"):
        choose_device(others, wanted, kind)
    with pytest.raises(MshError, match=rf"no {noun} .* --input FILE"):
        Devices(None, None, print, system=FakeSystem(others)).open()


def test_the_list() -> None:
    lines = list_devices(system=FakeSystem(ALL)).splitlines()
    assert len(lines) == 1 + len(ALL)
    for line, device in zip(lines[1:], ALL, strict=True):
        assert line.split()[0] == str(device.number)
        assert device.name in line
        assert f"{device.rate:.0f} Hz" in line
    assert [line.split("  ")[-1] for line in lines if "default" in line] == ["default input", "default output"]
    both = replace(USB, default_input=True, default_output=True)
    assert "default input and output" in list_devices(system=FakeSystem([both]))
    rows = [json.loads(line) for line in list_devices(as_json=True, system=FakeSystem(ALL)).splitlines()]
    assert [Device(**row) for row in rows] == ALL
    with pytest.raises(MshError, match=r"^There is no sound device .* --input FILE.*\.$"):
        list_devices(system=FakeSystem([]))


def test_portaudio_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(MshError, match=r"^The PortAudio library is missing; .*libportaudio2.*\.$"):
        list_devices(system=PortAudio())


# ---- other rates ---------------------------------------------------------------------------------------------------------


def noise(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def assert_same_sound(got: Any, expected: Any, rate: int, other: int) -> None:
    """Compare two sounds of `rate` up to 0.8 of the lower Nyquist frequency; beyond, soxr takes some thousandths away."""
    spectrum = np.fft.rfft((got - expected) * np.hanning(len(got)))
    spectrum[np.fft.rfftfreq(len(got), 1 / rate) > 0.4 * min(rate, other)] = 0
    assert np.abs(np.fft.irfft(spectrum)).max() < 1e-5


@pytest.mark.parametrize(("rate", "channels"), [(24000, 1), (48000, 2), (44100, 2), (16000, 1), (96000, 3)])
def test_a_microphone_of_another_rate(rate: int, channels: int) -> None:
    rng = np.random.default_rng(rate)
    sound = noise(rate, 2 * rate, channels)
    capture = Capture(rate, channels=channels)
    source = Ear(capture)
    heard, fed = [], 0
    while fed < len(sound):
        block = sound[fed : fed + int(rng.integers(1, rate // 20))]
        capture.feed(block)
        fed += len(block)
        while (pcm := source.read(1920, 0)) is not None:
            assert (pcm.shape, pcm.dtype) == ((1920,), np.float32)
            heard.append(pcm)
        assert 0 <= source.backlog() < 0.08 + 0.05
    mono = Mixer(rate, channels).mix(sound)
    got = np.concatenate(heard)
    if rate == 24000:
        assert len(got) > len(mono) - 1920
        np.testing.assert_array_equal(got, mono[: len(got)])
        return
    # A frame, and what the resampler waits for.
    expected = soxr.resample(mono, rate, 24000, quality="HQ")
    assert len(got) > len(expected) - 1920 - 24000 // 100
    assert_same_sound(got, expected[: len(got)], 24000, rate)


@pytest.mark.parametrize("rate", [24000, 48000, 44100, 16000])
def test_a_loudspeaker_of_another_rate(rate: int) -> None:
    sound = noise(rate, 20 * 1920)
    playback = Playback(rate, channels=2, frame=rate * 8 // 100)
    sink = Mouth(playback)
    for begin in range(0, len(sound), 1920):
        sink.write(sound[begin : begin + 1920])
    sink.pause()
    assert sink.queued() == pytest.approx(len(sound) / 24000, abs=0.001)
    played = playback.render(2 * rate)
    assert sink.queued() == 0
    assert playback.stats()["underruns"] == 0
    expected = sound if rate == 24000 else soxr.resample(sound, 24000, rate, quality="HQ")
    assert (played[:, 0] == played[:, 1]).all()
    fade = rate // 200 + 1
    assert_same_sound(played[fade : len(expected) - fade, 0], expected[fade:-fade], rate, 24000)
    assert not played[len(expected) + fade :].any()
    # What comes after a pause begins anew, with nothing of before.
    sink.write(np.zeros(9600, np.float32))
    assert not playback.render(rate // 5).any()


def test_trimming_forgets_the_oldest() -> None:
    for rate in (24000, 48000):
        capture = Capture(rate)
        source = Ear(capture)
        capture.feed(np.repeat(np.linspace(0, 0.9, 10, dtype=np.float32), rate // 10))
        assert source.read(480, 0) is not None
        assert source.backlog() == pytest.approx(0.98, abs=0.01)
        dropped = source.trim(0.3)
        assert dropped == pytest.approx(0.68, abs=0.01)
        assert source.backlog() == pytest.approx(0.3, abs=0.001)
        assert source.trim(0.5) == 0
        assert source.backlog() == pytest.approx(0.3, abs=0.001)
        pcm = source.read(4800, 0)
        assert pcm is not None
        # The last 0.3 s, less what the resampler held: 0.7 from there to 0.8 s, then 0.8.
        assert pcm[3400:4700].min() == pytest.approx(0.8, abs=0.01)
        assert pcm[3400:4700].max() == pytest.approx(0.8, abs=0.01)


# ---- opening -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("takes", "opened"),
    [
        ((24000, 1), (24000, 1)),
        ((44100, 1), (44100, 1)),
        ((44100, 2), (44100, 2)),
        ((44100, 8), (44100, 8)),
    ],
)
def test_what_a_device_can(takes: tuple[int, int], opened: tuple[int, int]) -> None:
    device = replace(USB, input_channels=8, output_channels=8)
    system = FakeSystem([device])
    system.refuse = lambda _device, _kind, *form: 0 if form == takes else -9997 if form[0] != takes[0] else -9998
    for end in (Microphone(system), Loudspeaker(system)):
        end.open(device)
        assert system.log[-1][2:] == opened
        assert end.device == device
        assert end.describe().startswith(f"USB Audio, {opened[0]} Hz ")
        end.close()
        assert end.device is None
    assert not system.streams


def test_a_microphone_is_opened_with_all_of_its_channels() -> None:
    for device, channels in [
        (BUILT_IN, 1),
        (replace(USB, input_channels=16), 16),
        (Device(6, "Interface: USB Audio (hw:1,0)", "ALSA", 8, 0, 48000), 8),
        # The number that ALSA's plugins could make is not one of microphones.
        (Device(7, "pulse", "ALSA", 32, 32, 44100), 2),
    ]:
        system = FakeSystem([device])
        microphone = Microphone(system)
        microphone.open(device)
        assert system.log == [(device.name, "input", 24000, channels)]
        microphone.close()


def test_channels_that_are_not_heard_are_told_once() -> None:
    device = replace(USB, input_channels=8, default_input=True)
    system = FakeSystem([device, SPEAKERS])
    told: list[Notice] = []
    devices = Devices(None, None, told.append, system=system)
    devices.open()
    voice = noise(0, 24000)
    sound = np.zeros((24000, 8), np.float32)
    sound[:, 7] = voice
    system.streams[-1].ring.feed(sound)
    assert np.array_equal(devices.microphone.read(24000, 0), voice)
    devices.poll()
    assert told == []
    sound[:, 2] = -voice
    system.streams[-1].ring.feed(sound)
    for _ in range(2):
        devices.poll()
    [notice] = told
    assert (notice.kind, notice.level) == ("channels", "warning")
    assert notice.message.startswith('Channel 3 of the microphone "USB Audio" is in opposite phase')
    devices.close()

    system.refuse = lambda _device, kind, _rate, channels: -9998 if kind == "input" and channels > 2 else 0
    devices = Devices(None, None, told.append, system=system)
    devices.open()
    for _ in range(2):
        devices.poll()
    devices.close()
    assert [notice.message.split(";")[0] for notice in told[1:]] == [
        'Only 2 of the 8 channels of the microphone "USB Audio" can be opened'
    ]


@pytest.mark.parametrize(
    ("details", "word"),
    [
        (("Device unavailable", -9985), "in use by another program"),
        (("Invalid sample rate", -9997), "rate"),
        (("Invalid device", -9996), "not there any more"),
        (("Unanticipated host error", -9999, (0, -13, "Permission denied")), "privacy settings"),
        (("Unanticipated host error", -9999, (0, -5, "Input/output error")), "Input/output error"),
        (("Internal PortAudio error",), "Internal PortAudio error"),
    ],
)
def test_why_a_stream_does_not_open(details: tuple[Any, ...], word: str) -> None:
    message = str(StreamError(USB, "output", *details))
    assert re.fullmatch(r'The loudspeaker "USB Audio" [^\n]*[^.]\.', message)
    assert word in message


def test_a_microphone_alone_is_opened_and_got_back() -> None:
    """No loudspeaker is needed, and none is opened or spoken of."""
    system = FakeSystem([BUILT_IN])
    told: list[Notice] = []
    devices = Devices(None, None, told.append, alone=True, system=system)
    devices.open()
    assert [entry[:2] for entry in system.log] == [(BUILT_IN.name, "input")]
    system.streams[0].active = False
    until(lambda: len(told) == 2, devices.poll)
    assert [notice.message for notice in told] == [
        'The microphone "MacBook Pro Microphone" is lost; listening pauses until there is one again.',
        'Listening to "MacBook Pro Microphone".',
    ]
    devices.close()
    assert not system.streams


def test_a_busy_device_is_tried_once_and_named() -> None:
    system = FakeSystem(ALL)
    system.refuse = lambda _device, kind, *_: -9985 if kind == "input" else 0
    with pytest.raises(MshError, match='"MacBook Pro Microphone" is in use'):
        Devices(None, None, print, system=system).open()
    assert [entry[1] for entry in system.log] == ["output", "input"]
    assert not system.streams


def test_a_sound_system_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "ANSWER", 0.05)
    monkeypatch.setattr(ends, "CLOSE", 0.05)
    go_on = threading.Event()
    system = FakeSystem(ALL)
    microphone = Microphone(system)
    system.opening = lambda: go_on.wait(DEADLINE)
    with pytest.raises(MshError, match="has not answered"):
        microphone.open(BUILT_IN)
    go_on.set()
    until(lambda: system.opened and not system.streams)  # what was opened too late was closed again
    monkeypatch.setattr(ends, "ANSWER", DEADLINE)
    microphone.open(BUILT_IN)
    go_on.clear()
    system.closing = lambda: go_on.wait(DEADLINE)
    begin = time.monotonic()
    microphone.close()
    assert time.monotonic() - begin < DEADLINE / 2
    assert len(system.streams) == 1
    assert microphone.read(1920, 0) is None
    go_on.set()
    until(lambda: not system.streams)


# ---- stats ---------------------------------------------------------------------------------------------------------------


def test_stats_and_levels_over_several_streams() -> None:
    system = FakeSystem([USB])
    system.refuse = lambda _device, _kind, rate, _channels: -9997 if rate == 24000 else 0
    microphone = Microphone(system)
    assert microphone.stats() == {}
    for again in range(2):
        microphone.open(USB)
        ring = system.streams[0].ring
        ring.feed(np.full(44100, 0.5, np.float32))
        assert microphone.stats()["samples"] == 24000 * (again * 2 + 1)
        ring.feed(np.full(44100, -1, np.float32))
        assert microphone.stats()["samples"] == 24000 * (again * 2 + 2)
        assert microphone.stats()["callbacks"] == 2 * (again + 1)
        assert not {"peak", "rms", "clipped"} & microphone.stats().keys()
    microphone.close()
    level = microphone.level()  # of both streams, and of all of it though the rings were asked often
    assert level.peak == 1
    assert level.clipped == 2 * 44100
    assert level.rms == pytest.approx(np.sqrt((0.25 + 1) / 2), rel=1e-4)
    assert microphone.level() == ends.Level()


def test_the_loudspeaker_in_seconds() -> None:
    system = FakeSystem([USB])
    system.refuse = lambda _device, _kind, rate, _channels: -9997 if rate == 24000 else 0
    loudspeaker = Loudspeaker(system)
    assert (loudspeaker.queued(), loudspeaker.cushion()) == (0, 0)
    loudspeaker.write(np.zeros(1920, np.float32))  # goes nowhere
    loudspeaker.open(USB)
    assert loudspeaker.cushion() == pytest.approx(0.08, abs=1e-4)
    for again in range(2):
        loudspeaker.write(noise(again, 4800))
        assert 0.2 - 0.005 < loudspeaker.queued() <= 0.2  # the resampler holds 4.7 ms
        system.streams[0].ring.render(44100)
        assert loudspeaker.stats()["underruns"] == again + 1
        loudspeaker.open(USB)
    assert loudspeaker.stats()["samples"] == 2 * 24000
    loudspeaker.close()


# ---- lost and found ------------------------------------------------------------------------------------------------------


class Watched:
    """Devices on a fake system, and what they said. Their streams are fed as long as `alive` names their kind."""

    def __init__(self, system: FakeSystem, *wanted: str | None) -> None:
        self.system = system
        self.notices: list[Notice] = []
        self.devices = Devices(*wanted, self.notices.append, system=system)
        self.devices.open()

    def feed(self) -> None:
        for stream in list(self.system.streams):
            if isinstance(stream.ring, Capture):
                stream.ring.feed(np.full(480, 0.25, np.float32))
            else:
                stream.ring.render(480)
        self.devices.poll()

    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.notices]

    def names(self) -> list[str | None]:
        ends = self.devices.microphone, self.devices.loudspeaker
        return [end.device.name if end.device else None for end in ends]


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(both, "_RETRY", 0.02)


def unplug(system: FakeSystem, *devices: Device) -> None:
    """Take devices away; the streams end, whosever they are."""
    system.present = [device for device in system.present if device not in devices]
    for stream in system.streams:
        stream.active = False


def test_a_chosen_device_is_waited_for() -> None:
    system = FakeSystem(ALL)
    watched = Watched(system, "audio 2", None)
    devices, microphone = watched.devices, watched.devices.microphone
    unplug(system, USB_2)
    until(lambda: devices.lost, watched.feed)
    assert watched.kinds() == ["device-lost"]
    assert "USB Audio 2" in watched.notices[0].message
    assert watched.notices[0].level == "warning"
    tries = len(system.log)
    until(lambda: len(system.log) > tries + 3, watched.feed)
    assert devices.lost
    assert microphone.read(1920, 0.01) is None
    assert not system.streams
    # It comes back with another number, as the default, or not: that is all the same.
    system.present = [replace(USB_2, number=0), *(replace(device, number=device.number + 1) for device in ALL[:-1])]
    until(lambda: not devices.lost, watched.feed)
    assert watched.kinds() == ["device-lost", "device-back"]
    assert watched.names() == ["USB Audio 2", "MacBook Pro Speakers"]
    until(lambda: microphone.read(1920, 0.01) is not None, watched.feed)
    devices.close()
    assert not system.streams


def test_a_default_device_is_replaced_by_the_new_default() -> None:
    system = FakeSystem(ALL)
    watched = Watched(system, None, None)
    unplug(system, SPEAKERS)
    system.present = [replace(device, default_output=device is HEADPHONES) for device in system.present]
    until(lambda: watched.kinds() == ["device-lost", "device-back"], watched.feed)
    assert watched.names() == ["MacBook Pro Microphone", "Ärger's AirPods"]
    assert "Ärger's AirPods" in watched.notices[1].message
    watched.devices.close()


def test_linux_renumbers_the_names() -> None:
    before = replace(USB, name="USB Audio: - (hw:1,0)")
    system = FakeSystem([before, SPEAKERS])
    watched = Watched(system, "usb", None)
    unplug(system, before)
    system.present += [replace(USB, name="Other: - (hw:1,0)"), replace(USB_2, name="USB Audio: - (hw:2,0)")]
    until(lambda: "device-back" in watched.kinds(), watched.feed)
    assert watched.names()[0] == "USB Audio: - (hw:2,0)"
    watched.devices.close()


def test_a_device_that_wants_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "_SILENT", 0.2)
    monkeypatch.setattr(ends, "_SETTLING", 0.4)
    for kind in (Capture, Playback):
        system = FakeSystem(ALL)
        watched = Watched(system, None, None)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.6:
            watched.feed()
            time.sleep(0.005)
        assert watched.notices == []
        system.streams = [stream for stream in system.streams if not isinstance(stream.ring, kind)]
        system.closing = lambda system=system: system.streams.append(FakeStream(system, None))  # type: ignore[misc]
        until(lambda watched=watched: watched.notices, watched.feed)  # type: ignore[misc]
        assert ("microphone" if kind is Capture else "loudspeaker") in watched.notices[0].message
        watched.devices.close()


def test_looking_late_once_is_not_a_loss() -> None:
    system = FakeSystem(ALL)
    watched = Watched(system, None, None)
    for _ in range(5):
        system.streams[0].active = False
        watched.devices.poll()
        system.streams[0].active = True
        watched.devices.poll()
    assert watched.notices == []
    watched.devices.close()


def test_other_microphones_by_key() -> None:
    system = FakeSystem(ALL)
    watched = Watched(system, None, None)
    for name in ("Ärger's AirPods", "USB Audio", "USB Audio 2", "MacBook Pro Microphone"):
        watched.devices.next_input()
        until(lambda: not watched.devices.lost, watched.feed)
        assert watched.names() == [name, "MacBook Pro Speakers"]
        assert name in watched.notices[-1].message
    assert set(watched.kinds()) == {"device-changed"}
    # One that was plugged in meanwhile is found, one that is the only one stays.
    new = replace(USB, number=9, name="New", output_channels=0)
    system.present = [BUILT_IN, SPEAKERS, new]
    watched.devices.next_input()
    until(lambda: not watched.devices.lost, watched.feed)
    assert watched.names()[0] == "New"
    system.present = [new, SPEAKERS]
    watched.devices.next_input()
    until(lambda: not watched.devices.lost, watched.feed)
    assert watched.names()[0] == "New"
    assert "no other microphone" in watched.notices[-1].message
    watched.devices.close()


def test_the_key_counts_while_devices_change() -> None:
    system = FakeSystem(ALL)
    watched = Watched(system, None, None)
    opening, go_on = threading.Event(), threading.Event()
    system.opening = lambda: (opening.set(), go_on.wait(DEADLINE))
    watched.devices.next_input()
    assert opening.wait(DEADLINE)
    watched.devices.next_input()
    go_on.set()
    until(lambda: len(watched.notices) == 2, watched.feed)
    assert watched.names()[0] == "USB Audio"
    watched.devices.close()


def test_a_microphone_that_is_in_use_is_passed_over() -> None:
    system = FakeSystem(ALL)
    watched = Watched(system, "airpods", None)
    system.refuse = lambda device, *_: -9985 if device == USB else 0
    watched.devices.next_input()
    until(lambda: not watched.devices.lost, watched.feed)
    assert watched.names()[0] == "USB Audio 2"
    watched.devices.close()


def test_the_key_ends_the_waiting_for_a_chosen_microphone() -> None:
    system = FakeSystem(ALL)
    watched = Watched(system, "AirPods", None)
    unplug(system, HEADSET)
    until(lambda: watched.devices.lost, watched.feed)
    watched.devices.next_input()
    until(lambda: not watched.devices.lost, watched.feed)
    assert watched.names()[0] == "MacBook Pro Microphone"
    watched.devices.close()


def test_closing_while_devices_are_looked_for() -> None:
    before = threading.active_count()
    for _ in range(20):
        system = FakeSystem(ALL)
        watched = Watched(system, "AirPods", None)
        watched.devices.next_input()
        watched.devices.close()
        until(lambda: threading.active_count() == before)
        assert not system.streams
        assert watched.devices.microphone.read(1920, 0) is None


# ---- round trip ----------------------------------------------------------------------------------------------------------


class Room:
    """A loudspeaker and a microphone in a room, in simulated time: blocks of the device, a delay, an echo, noise."""

    def __init__(self, delay: int, *, block: int = 240, gain: float = 0.1, noise: float = 0.0, seed: int = 0) -> None:
        self.now = self._device = 100.0
        self._block, self._gain, self._noise = block, gain, noise
        self._rng = np.random.default_rng(seed)
        self._capture = Capture(24000)
        self._playback = Playback(24000, frame=1920)
        self._air = np.zeros(delay, np.float32)
        self._source = Ear(self._capture)
        self._sink = Mouth(self._playback)
        self.write, self.queued, self.backlog = self._sink.write, self._sink.queued, self._source.backlog

    def cushion(self) -> float:
        return float(self._playback.stats()["cushion"]) / 24000

    def read(self, n: int, timeout: float) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        self._live()
        while (pcm := self._source.read(n, 0)) is None:
            self.now = max(self.now, self._device + self._block / 24000)
            self._live()
        self.now += float(self._rng.uniform(0, 0.005))  # a reader is not always quick
        return pcm

    def _live(self) -> None:
        """Let the device do what it did until now."""
        while self._device + self._block / 24000 <= self.now:
            self._device += self._block / 24000
            self._air = np.append(self._air, self._gain * self._playback.render(self._block)[:, 0])
            heard, self._air = self._air[: self._block], self._air[self._block :]
            self._capture.feed(heard + self._noise * self._rng.standard_normal(self._block).astype(np.float32))


@pytest.mark.parametrize(
    ("delay", "block", "gain", "level"),
    [
        (0, 240, 1.0, 0.0),
        (480, 240, 0.1, 1e-3),
        (2400, 64, -0.05, 0.01),
        (19200, 1024, 0.02, 0.005),
        (7777, 240, 0.3, 0.1),
    ],
)
def test_a_round_trip_that_is_known(delay: int, block: int, gain: float, level: float) -> None:
    room = Room(delay, block=block, gain=gain, noise=level, seed=delay)
    result = measure_latency(room, room, rounds=5, clock=lambda: room.now)
    # The device takes a block before it plays it, and gives it when it is full.
    assert result.median == pytest.approx((delay + block) / 24, abs=block / 24 + 2)
    assert 0 <= result.spread < 5
    assert result.heard >= 4
    assert result.played == 5


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_headphones(level: float, seed: int) -> None:
    room = Room(480, gain=0.0, noise=level, seed=seed)
    with pytest.raises(MshError, match=r"^The microphone does not hear the loudspeaker: .*headphones.*\.$"):
        measure_latency(room, room, rounds=5, clock=lambda: room.now)


def test_a_dead_microphone() -> None:
    room = Room(480)
    room.read = lambda n, timeout: None  # type: ignore[method-assign]
    with pytest.raises(MshError, match="gives no sound"):
        measure_latency(room, room, clock=lambda: room.now)
