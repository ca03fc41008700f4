"""Ear and Mouth: how good their resampling is beside soxr's, how late it is, and how few calls a frame takes."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import numpy as np
import pytest
import soxr
from loudness import decibels
from mimi import Mimi
from msh_native import Capture, Ear, EchoCanceller, Mouth, Playback, VoiceEnhancer
from paths import DEMO

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE, Pcm
from msh_mlx.sound.devices import Device, Kind
from msh_mlx.sound.echo import EchoFree
from msh_mlx.sound.ends import Loudspeaker, Microphone
from msh_mlx.sound.portaudio import Stream, StreamError

# ---- other rates ---------------------------------------------------------------------------------------------------------


def heard(pcm: Pcm, rate: int) -> Pcm:
    """Return what an ear makes of a second of sound, at 24 kHz, without what waits for more."""
    capture = Capture(rate)
    capture.feed(pcm)
    ear, blocks = Ear(capture), []
    while (block := ear.read(80, 0)) is not None:
        blocks.append(block)
    return np.concatenate(blocks)


def said(pcm: Pcm, rate: int) -> Pcm:
    """Return what a mouth makes of a second of sound at 24 kHz, `[rate]`."""
    playback = Playback(rate, frame=rate * 8 // 100)
    mouth = Mouth(playback)
    mouth.write(pcm)
    mouth.pause()
    return playback.render(rate)[:, 0]


PAIRS = [
    (48000, SAMPLE_RATE),
    (44100, SAMPLE_RATE),
    (16000, SAMPLE_RATE),
    (SAMPLE_RATE, 48000),
    (SAMPLE_RATE, 44100),
    (SAMPLE_RATE, 16000),
]


def resampled(pcm: Pcm, rate: int, new_rate: int) -> Pcm:
    return heard(pcm, rate) if new_rate == SAMPLE_RATE else said(pcm, new_rate)


def tone(hertz: float, rate: int) -> Pcm:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)).astype(np.float32)


@pytest.mark.parametrize(("rate", "new_rate"), PAIRS)
def test_resampling_is_at_least_as_good_as_soxrs(rate: int, new_rate: int) -> None:
    low = min(rate, new_rate) / 2

    def worst(make: Any, share: float) -> float:
        """Return the error of a tone, dB of full scale, with its time; of one that has no place, what is left of it."""
        got = make(tone(share * low, rate))
        wanted = tone(share * low, new_rate) if share < 1 else np.zeros(new_rate, np.float32)
        middle = slice(new_rate // 20, new_rate * 19 // 20)
        return decibels(got[middle] - wanted[middle])

    def theirs(pcm: Pcm) -> Pcm:
        return soxr.resample(pcm, rate, new_rate, quality="HQ")

    def ours(pcm: Pcm) -> Pcm:
        return resampled(pcm, rate, new_rate)

    for share in (0.01, 0.5, 0.8, 0.91, *(share for share in (1.0, 1.02, 1.2, 1.7) if share * low < rate / 2)):
        error = worst(ours, share)
        # -120 dB: a ripple below 0.00002 dB, and an alias that no 16-bit sound has room for.
        assert error < -120
        assert error < worst(theirs, share) + 6 or error < -130, share


@pytest.mark.parametrize("rate", [48000, 44100, 16000])
def test_what_a_resampler_holds_is_short(rate: int) -> None:
    capture, playback = Capture(rate), Playback(rate, frame=rate * 8 // 100)
    ear, mouth = Ear(capture), Mouth(playback)
    look_ahead = 112 / min(rate, SAMPLE_RATE)
    streams = [
        soxr.ResampleStream(*rates, 1, dtype="float32", quality="HQ")
        for rates in ((rate, SAMPLE_RATE), (SAMPLE_RATE, rate))
    ]
    given, taken, most = 0, np.zeros(2), np.zeros(4)
    for block in range(1, 101):
        capture.feed(np.zeros(rate // 100, np.float32))
        mouth.write(np.zeros(240, np.float32))
        while ear.read(24, 0) is not None:
            given += 24
        for i, (stream, count) in enumerate(zip(streams, (rate // 100, 240), strict=True)):
            taken[i] += len(stream.resample_chunk(np.zeros(count, np.float32)))
        held = block / 100 - np.array([given / SAMPLE_RATE, mouth.queued(), taken[0] / SAMPLE_RATE, taken[1] / rate])
        most = np.maximum(most, held)
    # A millisecond more, because that is what was read at a time.
    assert most[0] <= look_ahead + 0.0011
    assert most[1] <= look_ahead + 0.0001
    assert (most[:2] < most[2:]).all()


def test_bad_arguments() -> None:
    capture = Capture(48000, seconds=1)
    ear = Ear(capture)
    for n, timeout, match in ((-1, 0, "n is -1"), (30000, 0, "room"), (1, -1, "timeout"), (1, float("nan"), "timeout")):
        with pytest.raises(ValueError, match=match):
            ear.read(n, timeout)
    assert ear.heard().shape == (0,)
    canceller, enhancer = EchoCanceller(), VoiceEnhancer(noise_suppression=True)
    ear.clean(canceller)
    with pytest.raises(ValueError, match="n is 100, but a multiple of 64"):
        ear.read(100, 0)
    ear.clean(canceller, None, enhancer)
    with pytest.raises(ValueError, match="n is 128, but a multiple of 960"):
        ear.read(128, 0)
    assert ear.read(960, 0) is None
    with pytest.raises(TypeError, match="float32"):
        Mouth(Playback(48000, frame=3840)).write(np.zeros(10))


# ---- calls of native code ------------------------------------------------------------------------------------------------


class System:
    """A sound system whose devices have 48 kHz only."""

    def __init__(self) -> None:
        self.rings: dict[str, Any] = {}
        self.active, self.latency = True, 0.01

    def devices(self) -> list[Device]:
        return []

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass

    def open(self, device: Device, kind: Kind, rate: int, channels: int, ring: Any) -> Stream:
        if rate != 48000:
            raise StreamError(device, kind, "Invalid sample rate", -9997)
        self.rings[kind] = ring
        return self


def test_a_frame_crosses_into_native_code_four_times() -> None:
    """The rest goes on there: the ring, the rate, what was played meanwhile, the canceller."""
    system = System()
    device = Device(0, "USB Audio", "Core Audio", 1, 1, 48000)
    microphone, loudspeaker = Microphone(system), Loudspeaker(system)
    microphone.open(device)
    loudspeaker.open(device)
    source = EchoFree(microphone, loudspeaker, noise_suppression=True)
    codec = Mimi(DEMO / "mimi.safetensors")
    encoder, decoder = codec.encoder(), codec.decoder()
    system.rings["input"].feed(np.zeros(48000, np.float32))
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, function: Any) -> None:
        kind = type(getattr(function, "__self__", None))
        if event == "c_call" and kind.__module__ in ("mimi", "msh_native"):
            calls[f"{kind.__name__}.{function.__name__}"] += 1

    def speak() -> None:
        pcm = source.read(FRAME_SIZE, 0)
        assert pcm is not None
        loudspeaker.write(decoder.step(encoder.step(pcm)))

    speak()
    sys.setprofile(count)
    try:
        for _ in range(5):
            speak()
    finally:
        sys.setprofile(None)
    with_sound = ["Ear.read", "Encoder.step", "Decoder.step", "Mouth.write"]
    # And one that asks how much of an echo there was.
    assert calls == dict.fromkeys([*with_sound, "EchoCanceller.stats"], 5)
    assert system.rings["output"].stats()["written"] > 5 * 2 * FRAME_SIZE
