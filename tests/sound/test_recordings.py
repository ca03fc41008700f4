"""Sound files: every format against what soundfile and soxr make of it in one go, and every kind of damage."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import ogg
import pytest
import soundfile
import soxr
from msh_native import Mixer
from paths import CASES

from msh_mlx.errors import InputError, MshError
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.sound import recordings
from msh_mlx.sound.ogg import page_checksum
from msh_mlx.sound.recordings import Recording, WavWriter, open_recording, read_frames, resample


def sound(rate: int, channels: int, seconds: float = 1.3, seed: int = 0) -> np.ndarray:
    """Tones below 3 kHz and a little noise, `[samples, channels]` float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds))[:, None] / rate
    tones = sum(np.sin(2 * np.pi * (f * time + rng.random(channels))) for f in rng.uniform(100, 3000, 5))
    return (0.1 * tones + 0.003 * rng.normal(size=(len(time), channels))).astype(np.float32)


def read_all(path: Path) -> np.ndarray:
    with open_recording(str(path)) as recording:
        return np.concatenate(list(recording.blocks()))


def mixed(pcm: np.ndarray, rate: int) -> np.ndarray:
    """One channel of `[samples, channels]`, in one go."""
    return Mixer(rate, pcm.shape[1]).mix(pcm)


def frames_of(path: Path) -> np.ndarray:
    with open_recording(str(path)) as recording:
        return np.concatenate(list(read_frames(recording, SAMPLE_RATE, FRAME_SIZE)))


FORMATS = [
    *[("wav", "WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "MS_ADPCM")],
    *[("wav", "WAVEX", s) for s in ("PCM_16", "PCM_24", "FLOAT")],
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_16"),
]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "form", "subtype"), FORMATS)
def test_reads_what_soundfile_reads(tmp_path: Path, suffix: str, form: str, subtype: str, channels: int) -> None:
    path = tmp_path / f"in.{suffix}"
    soundfile.write(path, sound(48000, channels), 48000, format=form, subtype=subtype)
    expected, rate = soundfile.read(path, dtype="float32", always_2d=True)
    with open_recording(str(path)) as recording:
        assert (recording.rate, recording.channels, recording.samples) == (rate, channels, len(expected))
        assert recording.can_reopen
        got = np.concatenate(list(recording.blocks()))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, mixed(expected, rate), atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "suffix"), [(8000, "wav"), (16000, "mp3"), (44100, "flac"), (48000, "ogg"), (96000, "wav")]
)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_resamples_as_in_one_go(tmp_path: Path, rate: int, suffix: str, channels: int) -> None:
    if suffix == "mp3" and channels > 2:
        pytest.skip("MP3 has two channels at most")
    path = tmp_path / f"in.{suffix}"
    soundfile.write(path, sound(rate, channels, 2.03), rate)
    mono = mixed(soundfile.read(path, dtype="float32", always_2d=True)[0], rate)
    expected = soxr.resample(mono, rate, SAMPLE_RATE)
    got = frames_of(path)
    assert len(got) == -(-len(expected) // FRAME_SIZE) * FRAME_SIZE
    np.testing.assert_allclose(got[: len(expected)], expected, atol=2e-6)
    assert not got[len(expected) :].any()


@pytest.mark.parametrize("seed", range(5))
def test_resampling_does_not_depend_on_the_blocks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rate = int(rng.choice([8000, 11025, 22050, 44100, 48000]))
    pcm = sound(rate, 1)[:, 0]
    cuts = np.sort(rng.integers(0, len(pcm), rng.integers(1, 60)))
    got = np.concatenate(list(resample(np.split(pcm, cuts), rate, SAMPLE_RATE)))
    np.testing.assert_allclose(got, soxr.resample(pcm, rate, SAMPLE_RATE), atol=2e-6)


def test_the_right_rate_passes_unchanged_and_the_last_frame_is_filled_up(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(-32768, 32768, 2 * FRAME_SIZE + 1).astype(np.int16)
    soundfile.write(tmp_path / "in.wav", numbers, SAMPLE_RATE)
    got = frames_of(tmp_path / "in.wav")
    assert len(got) == 3 * FRAME_SIZE
    assert np.array_equal(got[: len(numbers)], numbers / np.float32(32768))
    assert not got[len(numbers) :].any()


def test_a_whole_number_of_frames_gets_no_further_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", sound(SAMPLE_RATE, 1)[: 3 * FRAME_SIZE], SAMPLE_RATE)
    assert len(frames_of(tmp_path / "in.wav")) == 3 * FRAME_SIZE


def test_a_single_sample_is_a_frame(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", np.ones(1, np.float32), 192000)
    assert len(frames_of(tmp_path / "in.wav")) == FRAME_SIZE


def test_tilde_and_at_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    soundfile.write(tmp_path / "a@b.wav", sound(SAMPLE_RATE, 1), SAMPLE_RATE)
    assert len(read_all(Path("~/a@b.wav"))) == len(sound(SAMPLE_RATE, 1))


def test_the_name_does_not_decide_the_format(tmp_path: Path) -> None:
    for name in ("a.raw", "a.txt", "a"):
        soundfile.write(tmp_path / "a.flac", sound(SAMPLE_RATE, 1), SAMPLE_RATE)
        (tmp_path / name).write_bytes((tmp_path / "a.flac").read_bytes())
        assert len(read_all(tmp_path / name)) == len(sound(SAMPLE_RATE, 1))


# ---- pipes ---------------------------------------------------------------------------------------------------------------


def through_pipe(data: bytes) -> tuple[Recording, threading.Thread]:
    """Open a named pipe through which `data` comes."""
    read_end, write_end = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(write_end, "wb") as file:
                file.write(data)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        return open_recording(f"/dev/fd/{read_end}"), thread
    finally:
        os.close(read_end)


def streamed(data: bytes, riff: int, size: int) -> bytes:
    """A WAV file with other sizes in its header."""
    at = data.index(b"data")
    return data[:4] + struct.pack("<I", riff) + data[8 : at + 4] + struct.pack("<I", size) + data[at + 8 :]


def encoded(form: str, subtype: str | None = None, rate: int = 48000, channels: int = 2) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(rate, channels), rate, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_reads_every_format_from_a_pipe(form: str) -> None:
    data = encoded(form)
    recording, thread = through_pipe(data)
    with recording:
        assert not recording.can_reopen
        got = np.concatenate(list(recording.blocks()))
    thread.join(10)
    expected = mixed(*soundfile.read(io.BytesIO(data), dtype="float32"))
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("subtype", ["ULAW", "IMA_ADPCM"])
def test_reads_compressed_wav_from_a_pipe(subtype: str) -> None:
    data = encoded("WAV", subtype)
    recording, _ = through_pipe(data)
    with recording:
        got = np.concatenate(list(recording.blocks()))
    np.testing.assert_allclose(got, mixed(*soundfile.read(io.BytesIO(data), dtype="float32")), atol=1e-6)


# Left behind by: a pipe that was never told, ffmpeg, ffmpeg's neighbours, sox, arecord, Python's wave.
MARKERS = [
    (0, 0),
    (0xFFFFFFFF, 0xFFFFFFFF),
    (0xFFFFFFFF, 0xFFFFFFDB),
    (0x7FFFF024, 0x7FFFF000),
    (0x80000024, 0x80000000),
    (36, 0),
]


@pytest.mark.parametrize(("riff", "size"), MARKERS)
@pytest.mark.parametrize("piped", [False, True])
def test_wav_streams_of_unknown_length(tmp_path: Path, riff: int, size: int, piped: bool) -> None:
    data = encoded("WAV", "PCM_16")
    expected = read_all(write(tmp_path / "in.wav", data))
    changed = streamed(data, riff, size)
    if piped:
        recording, _ = through_pipe(changed)
        with recording:
            got = np.concatenate(list(recording.blocks()))
    else:
        got = read_all(write(tmp_path / "in.wav", changed))
    assert np.array_equal(got, expected)


def test_a_wav_stream_is_heard_before_it_ends() -> None:
    data = streamed(encoded("WAV", "PCM_16", SAMPLE_RATE, 1), 0xFFFFFFFF, 0xFFFFFFFF)
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, data[: 44 + 2 * 8192])
        with open_recording(f"/dev/fd/{read_end}") as recording:
            frames = read_frames(recording, SAMPLE_RATE, FRAME_SIZE)
            first = [next(frames) for _ in range(4)]
            os.write(write_end, data[44 + 2 * 8192 :])
            os.close(write_end)
            got = np.concatenate([*first, *frames])
    finally:
        os.close(read_end)
    expected = np.frombuffer(data[44:], "<i2") / np.float32(32768)
    assert np.array_equal(got[: len(expected)], expected)


def test_a_long_stream_needs_no_memory() -> None:
    """Half an hour, 690 MB of it, passes through less than 60 MB."""
    code = """
import resource, sys
import numpy as np
from msh_mlx.sound.recordings import open_recording, read_frames
with open_recording("-") as recording:
    frames = read_frames(recording, 24000, 1920)
    next(frames)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 1 + sum(1 for _ in frames)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print(count, (after - before) * unit)
"""
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 3, 1, 96000, 384000, 4, 32, b"data", 0)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(header)
        second = np.zeros(96000, np.float32).tobytes()
        for _ in range(1800):
            process.stdin.write(second)
        process.stdin.close()
        count, grown = map(int, process.stdout.read().split())
    assert count == 1800 * 12.5
    assert grown < 60e6


# ---- damage --------------------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "ULAW"),
        ("FLAC", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
    ],
)
def test_cut_off(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str, subtype: str | None, part: float, piped: bool
) -> None:
    data = encoded(form, subtype)
    cut = data[: max(1, int(part * len(data)))]
    assert_refused(tmp_path, cut, piped)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("seed", range(3))
def test_damaged_in_the_middle(tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str, seed: int) -> None:
    data = bytearray(encoded(form))
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(seed).bytes(3000)
    with pytest.raises(InputError) as caught, open_recording(str(write(tmp_path / "in", bytes(data)))) as recording:
        recording.check()
    assert_sentence(caught.value)
    assert capfd.readouterr().err == ""


def test_ogg_streams_one_behind_the_other(tmp_path: Path) -> None:
    vorbis, opus, other = encoded("OGG"), encoded("OGG", "OPUS"), encoded("OGG", "VORBIS", 24000, 1)
    alone = [read_all(write(tmp_path / "in.ogg", data)) for data in (vorbis, opus, other)]
    assert len(read_all(write(tmp_path / "in.ogg", vorbis + b"something else"))) == len(sound(48000, 2))
    with open_recording(str(write(tmp_path / "in.ogg", vorbis + opus + other))) as recording:
        assert recording.samples == len(alone[0]) + len(alone[1]) + 2 * len(alone[2])
        got = np.concatenate(list(recording.blocks()))
    alone[2] = np.concatenate(list(resample([alone[2]], 24000, 48000)))
    np.testing.assert_allclose(got, np.concatenate(alone), atol=1e-6)


def test_an_mp3_without_a_count_of_frames(tmp_path: Path) -> None:
    data = encoded("MP3", channels=1)
    bare = data[data.index(b"\xff\xfb", 100) :]
    # Without the count the decoder neither knows the length nor cuts its own delay away.
    got, expected = read_all(write(tmp_path / "in.mp3", bare)), read_all(write(tmp_path / "whole.mp3", data))
    delay = 576
    assert len(got) >= len(expected) + delay
    np.testing.assert_allclose(got[delay : delay + len(expected)], expected, atol=1e-6)
    with pytest.raises(InputError):
        read_all(write(tmp_path / "in.mp3", bare[:-100]))
    # A tag behind the sound is not damage.
    tagged = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + data + b"TAG" + bytes(125)
    assert len(read_all(write(tmp_path / "in.mp3", tagged))) == len(sound(48000, 2))


def test_a_flac_that_was_piped_does_not_know_its_length(tmp_path: Path) -> None:
    data = bytearray(encoded("FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path = write(tmp_path / "in.flac", bytes(data))
    with open_recording(str(path)) as recording:
        assert recording.samples is None
    assert len(read_all(path)) == len(sound(48000, 2))


SIGNALLING = np.array(0x7FF0000000000001, np.uint64).view(np.float64)  # a NaN of which numpy's casts warn


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, SIGNALLING], ids=str)
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_not_finite(tmp_path: Path, subtype: str, value: float) -> None:
    pcm = sound(SAMPLE_RATE, 2).astype(np.float64)
    pcm[12000, 1] = value
    with np.errstate(invalid="ignore"):
        pcm = pcm.astype(np.float32 if subtype == "FLOAT" else np.float64)
    soundfile.write(tmp_path / "in.wav", pcm, SAMPLE_RATE, subtype=subtype)
    with pytest.raises(InputError, match=r"first at 0\.500 s"):
        read_all(tmp_path / "in.wav")


def test_samples_in_other_units(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", 10 * sound(SAMPLE_RATE, 1), SAMPLE_RATE, subtype="FLOAT")
    assert np.abs(read_all(tmp_path / "in.wav")).max() > 1
    soundfile.write(tmp_path / "in.wav", 32768 * sound(SAMPLE_RATE, 1), SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(InputError, match="between -1 and 1"):
        read_all(tmp_path / "in.wav")


def odd_wav(rate: int = SAMPLE_RATE, channels: int = 1, chunks: bytes = b"", size: int = 0) -> bytes:
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2, 2 * max(channels, 1), 16)
    body = b"WAVE" + chunks + fmt + struct.pack("<4sI", b"data", size) + bytes(size)
    return b"RIFF" + struct.pack("<I", len(body)) + body


NOT_RECORDINGS = {
    "empty": b"",
    "one byte": b"R",
    "text": b"This is a letter, not a recording.\n" * 50,
    "0 samples": odd_wav(),
    "0 samples and a tag": odd_wav() + b"LIST\x04\0\0\0INFO",
    "a rate of 0": odd_wav(rate=0, size=4000),
    "a rate of a GHz": odd_wav(rate=10**9, size=4000),
    "0 channels": odd_wav(channels=0, size=4000),
    "no format": b"RIFF\x24\0\0\0WAVEdata\x10\0\0\0" + bytes(16),
    "a header alone": odd_wav(size=4000)[:40],
    "a huge chunk": odd_wav(chunks=struct.pack("<4sI", b"junk", 0xF0000000)),
    "zeros": bytes(10000),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "no FLAC": b"fLaC" + bytes(1000),
    "no OGG": b"OggS" + bytes(1000),
    "no MP3": b"ID3" + bytes(1000),
    "hardly MP3": b"\xff\xfb" + bytes(1000),
}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("what", NOT_RECORDINGS)
def test_not_a_recording(tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str, piped: bool) -> None:
    data = NOT_RECORDINGS[what]
    if what == "0 samples and a tag":
        data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert_refused(tmp_path, data, piped)
    assert capfd.readouterr().err == ""


def test_a_recording_without_a_byte_is_called_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in is empty \(0 bytes\)\.$"):
        open_recording(str(write(tmp_path / "in", b"")))
    with pytest.raises(InputError, match=r" is empty \(0 bytes\)\.$"):
        through_pipe(b"")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path, tmp_path / "none" / "x.wav", "", f"{tmp_path}\0"):
        with pytest.raises(InputError) as caught:
            open_recording(str(path))
        assert_sentence(caught.value)


class Failing(io.FileIO):
    """A file on a disk that cannot be read behind its first bytes."""

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        if self.tell() >= 1 << 13:
            raise OSError(errno.EIO, "Input/output error")
        return super().readinto(memoryview(buffer)[: 1 << 13])


@pytest.mark.parametrize("form", ["WAV", "W64", "FLAC", "OGG", "MP3"])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path = write(tmp_path / "in", encoded(form))
    monkeypatch.setattr(recordings, "open", lambda *_, **__: io.BufferedReader(Failing(path)), raising=False)
    with (
        pytest.raises(InputError, match=r"in cannot be read: Input/output error\.$"),
        open_recording("in") as recording,
    ):
        list(recording.blocks())


def assert_refused(tmp_path: Path, data: bytes, piped: bool) -> None:
    def check() -> None:
        recording = through_pipe(data)[0] if piped else open_recording(str(write(tmp_path / "in", data)))
        with recording:
            recording.check()

    with pytest.raises(InputError) as caught:
        check()
    assert_sentence(caught.value)


def assert_sentence(error: InputError) -> None:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert text[0].isupper() or text[0] == "/"


# ---- all that is there is heard, and what is missing is said ------------------------------------------------------------


# Formats in which plain numbers have a length in front of them.
PLAIN = [
    ("WAV", "PCM_16", "LITTLE"),
    ("WAV", "PCM_24", "LITTLE"),
    ("WAV", "PCM_16", "BIG"),
    ("WAV", "ULAW", "LITTLE"),
    ("RF64", "PCM_16", "FILE"),
    ("W64", "PCM_24", "FILE"),
    ("W64", "FLOAT", "FILE"),
    ("AIFF", "PCM_24", "BIG"),
    ("AIFF", "PCM_16", "LITTLE"),
    ("AIFF", "FLOAT", "FILE"),
    ("AIFF", "ULAW", "FILE"),
    ("AU", "PCM_S8", "BIG"),
    ("AU", "PCM_16", "BIG"),
    ("AU", "PCM_24", "BIG"),
    ("AU", "DOUBLE", "BIG"),
    ("AU", "ULAW", "BIG"),
    ("CAF", "PCM_16", "BIG"),
    ("CAF", "PCM_24", "LITTLE"),
    ("CAF", "FLOAT", "BIG"),
    ("CAF", "ULAW", "BIG"),
]


def plain(form: str, subtype: str, endian: str, seconds: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(
        buffer, sound(SAMPLE_RATE, 1, seconds)[:12000], SAMPLE_RATE, format=form, subtype=subtype, endian=endian
    )
    return buffer.getvalue()


def heard(tmp_path: Path, data: bytes, piped: bool = False) -> np.ndarray:
    recording = through_pipe(data)[0] if piped else open_recording(str(write(tmp_path / "in", data)))
    with recording:
        return np.concatenate(list(recording.blocks()))


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize(("form", "subtype", "endian"), PLAIN)
def test_plain_numbers_of_every_kind(tmp_path: Path, form: str, subtype: str, endian: str, piped: bool) -> None:
    data = plain(form, subtype, endian)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    np.testing.assert_allclose(heard(tmp_path, data, piped), expected, atol=1e-6)
    # Half of it, and nothing of it.
    for size in (len(data) // 2, 60):
        assert_refused(tmp_path, data[:size], piped)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("form", ["WAV", "AU", "AIFF"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_sizes_that_say_less_than_there_is(tmp_path: Path, form: str, subtype: str, part: float) -> None:
    data = plain(form, subtype, "FILE")
    expected = heard(tmp_path, data)
    assert len(expected) == 12000
    at = {"WAV": data.find(b"data") + 4, "AU": 8, "AIFF": data.find(b"SSND") + 4}[form]
    order = "<I" if form == "WAV" else ">I"
    more = 8 if form == "AIFF" else 0
    stated = struct.unpack(order, data[at : at + 4])[0] - more
    # Not to the bytes of a sample, even.
    changed = data[:at] + struct.pack(order, int(part * stated) | 1 + more) + data[at + 4 :]
    for piped in (False, True):
        if not (piped and subtype == "ULAW"):
            np.testing.assert_allclose(heard(tmp_path, changed, piped)[:12000], expected, atol=1e-6)


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("count", [12000, 11999])
def test_what_is_behind_the_sound_is_not_heard(tmp_path: Path, count: int, piped: bool) -> None:
    # Bytes: an odd number of them.
    numbers = np.random.default_rng(0).integers(-30, 30, count).astype("i1").astype("u1")
    sizes = [len(numbers), 0xFFFFFFFF] if not piped else [len(numbers)]
    for size in sizes:
        head = struct.pack(
            "<4sI8sIHHIIHH4sI", b"RIFF", 0, b"WAVEfmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE, 1, 8, b"data", size
        )
        body = head + numbers.tobytes()
        got = [heard(tmp_path, body + bytes(len(numbers) % 2), piped)[: len(numbers)]]
        if size == len(numbers):
            listed = b"LIST" + struct.pack("<I", 5) + b"INFO!\0" + b"id3 " + struct.pack("<I", 4) + b"ID3\4"
            got.append(heard(tmp_path, body + bytes(len(numbers) % 2) + listed, piped))
            got.append(heard(tmp_path, body + (b"" if piped else b"TAG" + bytes(125)), piped))
            assert_refused(tmp_path, body + bytes(len(numbers) % 2) + listed[:-3], piped)
        for pcm in got:
            np.testing.assert_array_equal(pcm, (numbers.astype(np.float32) - 128) / 128)


def test_a_wav_file_of_more_than_4_gib(tmp_path: Path) -> None:
    """Its sizes are what is left of them in 32 bits; a chunk follows. The file is sparse."""
    step, rate = 64, 768_000
    size = (1 << 32) + 640 * step
    path = tmp_path / "in.wav"
    with path.open("wb") as file:
        fmt = struct.pack("<HHIIHH", 1, 32, rate, rate * step, step, 16)
        file.write(
            struct.pack(
                "<4sI8sI16s4sI", b"RIFF", 36 + (size & 0xFFFFFFFF), b"WAVEfmt ", 16, fmt, b"data", size & 0xFFFFFFFF
            )
        )
        file.seek(44 + size)
        file.write(b"LIST\4\0\0\0INFO")
    with open_recording(str(path)) as recording:
        assert recording.samples == size // step


def test_the_cases_that_went_wrong(tmp_path: Path) -> None:
    seconds = {"size_wrapped_small.wav": 1.875, "cat.mp3": 144000 / 44100, "no_eos.opus": 3.0}
    for name, length in seconds.items():
        with open_recording(str(CASES / name)) as recording:
            assert recording.samples == round(length * recording.rate)
            assert sum(map(len, recording.blocks())) == recording.samples
            assert recording.notes == []
    for name, words in {
        "cut.au": "promises 144024 bytes and holds 9000",
        "cut.w64": "promises 144104 bytes and holds 9000",
        "bad_crc.opus": "is damaged at byte 869",
        "notes.m4a": r"is M4A \(AAC\)",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            open_recording(str(CASES / name))
        assert_sentence(caught.value)


def pages(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = 27 + data[26] + sum(data[27 : 27 + data[26]])
        found.append(data[:size])
        data = data[size:]
    return found


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_every_page_of_an_ogg_file(tmp_path: Path, subtype: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(48000, 1, 5.0), 48000, format="OGG", subtype=subtype)
    whole = pages(buffer.getvalue())
    assert len(whole) > 4
    for number, page in enumerate(whole):
        damaged = page[:-1] + bytes([page[-1] ^ 1])
        for instead in (damaged, b"" if number < len(whole) - 1 else page[:-1]):
            with pytest.raises(InputError, match=r"damaged|cut off"):
                open_recording(
                    str(write(tmp_path / "in.ogg", b"".join([*whole[:number], instead, *whole[number + 1 :]])))
                )
    # Who does not mark the last page has left out nothing.
    last = bytearray(whole[-1])
    last[5] &= ~4
    last[22:26] = page_checksum(bytes(last))
    unmarked = b"".join(whole[:-1]) + bytes(last)
    np.testing.assert_array_equal(heard(tmp_path, unmarked), heard(tmp_path, b"".join(whole)))


def test_flac_within_ogg(tmp_path: Path) -> None:
    data = encoded("FLAC", channels=1)
    head, rest = data[:42], data[42:]
    # The mapping: a packet with the first block, then the other blocks and the frames as they are.
    blocks = ogg.whole([b"\x7fFLAC\1\0\0\1" + head], flags=2)
    for number, begin in enumerate(range(0, len(rest), 20000), 1):
        blocks += ogg.whole([rest[begin : begin + 20000]], sequence=number, granule=1)
    np.testing.assert_array_equal(heard(tmp_path, blocks), heard(tmp_path, data))
    assert_refused(tmp_path, blocks[: len(blocks) // 2], False)


@pytest.mark.parametrize("known", [True, False])
def test_flac_files_one_behind_the_other(tmp_path: Path, known: bool) -> None:
    first, second = encoded("FLAC", channels=1), encoded("FLAC", "PCM_24", 24000, 2)
    lengths = len(sound(48000, 1)), len(sound(24000, 1))
    if not known:
        first = first[:21] + bytes([first[21] & 0xF0]) + bytes(4) + first[26:]
    assert len(heard(tmp_path, first + second)) == lengths[0] + 2 * lengths[1]
    # More than it counts, and tags before and behind.
    short = first[:22] + struct.pack(">I", 5000) + first[26:]
    tagged = b"ID3\4\0\0\0\0\0\5" + bytes(5) + short + b"TAG" + bytes(125)
    np.testing.assert_array_equal(heard(tmp_path, tagged), heard(tmp_path, first))
    assert_refused(tmp_path, first[:-50], False)


APE = b"APETAGEX" + struct.pack("<4I8x", 2000, 32 + 10, 1, 0)  # a footer; the header has other flags
APE_2 = b"APETAGEX" + struct.pack("<4I8x", 2000, 32 + 10, 1, 1 << 31 | 1 << 29) + bytes(10)
APE_2 += b"APETAGEX" + struct.pack("<4I8x", 2000, 32 + 10, 1, 1 << 31)
ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\4\0\0\0\0\1\0" + bytes(128)
TAGS = {
    "ID3v2": (ID3V2, b""),
    "two ID3v2": (ID3V2 + ID3V2, b""),
    "ID3v2 and padding": (ID3V2 + bytes(700), b""),
    "ID3v2 with a footer, behind": (b"", b"ID3\4\0\x10\0\0\0\x0a" + bytes(10) + b"3DI\4\0\x10\0\0\0\x0a"),
    "ID3v1": (b"", ID3V1),
    "ID3v1 enhanced": (b"", b"TAG+" + bytes(223) + ID3V1),
    "APEv1": (b"", bytes(10) + APE),
    "APEv2": (b"", APE_2),
    "APEv2 and ID3v1": (b"", APE_2 + ID3V1),
    "APEv2 in front": (APE_2[:32] + bytes(10) + APE_2[-32:], b""),
    "Lyrics3": (b"", b"LYRICSBEGIN" + b"la la" * 50 + b"LYRICSEND" + ID3V1),
    "Lyrics3v2": (b"", b"LYRICSBEGIN" + b"IND0000200" + b"000021LYRICS200" + ID3V1),
    "padding": (b"", bytes(5000)),
    "all": (ID3V2 + ID3V2, APE_2 + b"LYRICSBEGIN" + b"IND0000200" + b"000021LYRICS200" + ID3V1),
}


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("name", TAGS)
def test_mp3_with_tags_is_whole(tmp_path: Path, name: str, counted: bool) -> None:
    data = encoded("MP3", channels=1)
    if not counted:
        data = data[data.index(b"\xff\xfb", 100) :]
    before, behind = TAGS[name]
    expected = heard(tmp_path, data)
    np.testing.assert_array_equal(heard(tmp_path, before + data + behind), expected)
    if not before:
        joined = heard(tmp_path, data + behind + ID3V2 + encoded("MP3", channels=1) + behind)
        assert len(joined) == len(expected) + len(sound(48000, 1))
        np.testing.assert_allclose(joined[: len(expected) - 2000], expected[:-2000], atol=1e-6)


def test_mp3_files_one_behind_the_other(tmp_path: Path) -> None:
    parts = [encoded("MP3", rate=rate, channels=channels) for rate, channels in [(48000, 1), (24000, 2), (48000, 2)]]
    expected = [heard(tmp_path, part) for part in parts]
    expected[1] = np.concatenate(list(resample([expected[1]], 24000, 48000)))
    np.testing.assert_allclose(heard(tmp_path, b"".join(parts)), np.concatenate(expected), atol=1e-6)
    # One that counts fewer frames than it has, and one that counts more.
    at = parts[0].index(b"Info") if b"Info" in parts[0] else parts[0].index(b"Xing")
    (frames,) = struct.unpack(">I", parts[0][at + 8 : at + 12])
    fewer = parts[0][: at + 8] + struct.pack(">I", frames // 2) + parts[0][at + 12 :]
    np.testing.assert_array_equal(heard(tmp_path, fewer), expected[0])
    for cut in (1, 500, len(parts[2]) // 2):
        assert_refused(tmp_path, parts[0] + parts[2][:-cut], False)


FOREIGN = {
    "M4A (AAC)": (b"\0\0\0\x20ftypM4A " + bytes(200), "m4a", True),
    "M4A (Apple Lossless)": (b"\0\0\0\x20ftypM4A " + bytes(20) + b"alac" + bytes(90), "m4a", True),
    "MP4 (AAC)": (b"\0\0\0\x20ftypisom" + bytes(200), "mp4", True),
    "QuickTime": (b"\0\0\0\x20ftypqt  " + bytes(200), "mov", True),
    "3GP": (b"\0\0\0\x20ftyp3gp4" + bytes(200), "3gp", True),
    "AAC": (b"\xff\xf1\x50\x80\x43\xff\xfc" + bytes(200), "aac", True),
    "AMR": (b"#!AMR-WB\n" + bytes(200), "amr", True),
    "WebM or Matroska": (b"\x1aE\xdf\xa3" + bytes(200), "webm", False),
    "WMA": (b"0&\xb2u\x8ef\xcf\x11" + bytes(200), "wma", False),
    "Speex": (ogg.whole([b"Speex   1.2" + bytes(69)], flags=2), "spx", False),
    "CAF in the coding aac": (
        b"caff\0\1\0\0desc"
        + struct.pack(">qd4s5I", 32, 24000, b"aac ", 0, 0, 1024, 1, 0)
        + b"data"
        + struct.pack(">q", 40)
        + bytes(40),
        "caf",
        True,
    ),
}


@pytest.mark.parametrize("platform", ["darwin", "linux"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, platform: str) -> None:
    data, suffix, apple = FOREIGN[name]
    monkeypatch.setattr(sys, "platform", platform)
    path = write(tmp_path / f"my notes.{suffix}", data)
    with pytest.raises(InputError) as caught:
        open_recording(str(path))
    assert_sentence(caught.value)
    afconvert = apple and platform == "darwin"
    command = "afconvert -f WAVE -d LEI16" if afconvert else "ffmpeg -i"
    wav = path.with_suffix(".wav")
    assert (
        str(caught.value) == f"{path} is {name}, which is not read here; convert it with `{command} '{path}' '{wav}'`."
    )


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_are_refused_or_read(tmp_path: Path, capfd: pytest.CaptureFixture[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    wholes = [plain(*kind) for kind in PLAIN] + [encoded(form) for form in ("FLAC", "OGG", "MP3")]
    for whole in wholes:
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(0, 120))] = int(rng.integers(0, 256))
        try:
            heard(tmp_path, bytes(data))
        except InputError as error:
            assert_sentence(error)
    assert capfd.readouterr().err == ""


def test_a_voice_on_any_channel(tmp_path: Path) -> None:
    voice = sound(SAMPLE_RATE, 1)[:, 0]
    numbers = np.rint(voice * 32768) / np.float32(32768)
    for channels, place in [(2, 0), (2, 1), (16, 15)]:
        pcm = np.zeros((len(voice), channels), np.float32)
        pcm[:, place] = numbers
        soundfile.write(tmp_path / "in.wav", pcm, SAMPLE_RATE)
        np.testing.assert_array_equal(read_all(tmp_path / "in.wav"), numbers)
    soundfile.write(tmp_path / "in.wav", np.stack([numbers] * 6, 1), SAMPLE_RATE)
    np.testing.assert_array_equal(read_all(tmp_path / "in.wav"), numbers)


@pytest.mark.parametrize("name", ["in.wav", "stereo_opposite_phase.opus"])
def test_opposite_phase_is_heard_and_told(tmp_path: Path, name: str) -> None:
    if name == "in.wav":
        voice = sound(SAMPLE_RATE, 1)[:, 0]
        soundfile.write(tmp_path / name, np.stack([voice, -voice], 1), SAMPLE_RATE, subtype="FLOAT")
    path = (tmp_path if name == "in.wav" else CASES) / name
    left = soundfile.read(path, dtype="float32")[0][:, 0]
    with open_recording(str(path)) as recording:
        got = np.concatenate(list(recording.blocks()))
        assert recording.notes == [
            f"Channel 2 of {path} is in opposite phase to another, which would silence both; it is left out."
        ]
    off = np.sqrt(np.mean((got[2400:] - left[2400:]) ** 2) / np.mean(left**2))
    assert off < 0.01


# ---- several recordings in a file ----------------------------------------------------------------------------------------


def bare_mp3() -> bytes:
    data = encoded("MP3", channels=1)
    return data[data.index(b"\xff\xfb", 100) :]


PARTS = {
    "WAV": lambda: plain("WAV", "PCM_16", "LITTLE"),
    "float WAV": lambda: plain("WAV", "FLOAT", "LITTLE"),
    "RIFX": lambda: plain("WAV", "PCM_16", "BIG"),
    "u-law WAV": lambda: plain("WAV", "ULAW", "LITTLE"),
    "IMA WAV": lambda: plain("WAV", "IMA_ADPCM", "LITTLE"),
    "ADPCM WAV": lambda: plain("WAV", "MS_ADPCM", "LITTLE"),
    "GSM WAV": lambda: plain("WAV", "GSM610", "LITTLE"),
    "RF64": lambda: plain("RF64", "PCM_16", "FILE"),
    "W64": lambda: plain("W64", "PCM_16", "FILE"),
    "AIFF": lambda: plain("AIFF", "PCM_16", "BIG"),
    "AIFC": lambda: plain("AIFF", "PCM_16", "LITTLE"),
    "u-law AIFC": lambda: plain("AIFF", "ULAW", "FILE"),
    "AU": lambda: plain("AU", "PCM_16", "BIG"),
    "CAF": lambda: plain("CAF", "PCM_16", "BIG"),
    "FLAC": lambda: encoded("FLAC", channels=1),
    "Vorbis": lambda: encoded("OGG", "VORBIS", channels=1),
    "Opus": lambda: encoded("OGG", "OPUS", channels=1),
    "MP3": lambda: encoded("MP3", channels=1),
    "bare MP3": bare_mp3,
}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("first", PARTS)
def test_recordings_of_any_formats_one_behind_the_other(tmp_path: Path, first: str, piped: bool) -> None:
    data = PARTS[first]()
    (_, rate, alone) = (path := write(tmp_path / "alone", data), open_recording(str(path)).rate, read_all(path))
    for second in dict.fromkeys((first, "WAV", "AU", "FLAC", "Vorbis", "MP3", "bare MP3")):
        if first == "bare MP3" and second == "bare MP3":
            continue  # which is one recording
        more = PARTS[second]()
        if first == "FLAC" and "MP3" in second:
            with pytest.raises(InputError, match=r"goes on after 1\.30 s with MP3 sound"):
                heard(tmp_path, data + more, piped)
            continue
        with open_recording(str(write(tmp_path / "second", more))) as recording:
            expected = [alone, *resample(recording.blocks(), recording.rate, rate)]
        got = heard(tmp_path, data + more, piped)
        length = sum(map(len, expected))
        # Nothing less, and nothing of a header: the decoder of MP3 alone may be some samples off where counts are missing.
        assert abs(len(got) - length) <= (1200 if "MP3" in first + second else 1), second
        np.testing.assert_allclose(got[: len(alone) - 1200], alone[:-1200], atol=1e-6)
        if "MP3" not in first + second:
            np.testing.assert_allclose(got[-len(alone) :], np.concatenate(expected)[-len(alone) :], atol=1e-6)


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 5000])
def test_recordings_behind_one_of_unknown_length(tmp_path: Path, size: int, piped: bool) -> None:
    data = plain("WAV", "PCM_16", "LITTLE")
    expected = heard(tmp_path, data)
    joined = streamed(data, size, size) + plain("AU", "PCM_16", "BIG")
    np.testing.assert_array_equal(heard(tmp_path, joined, piped), np.concatenate([expected, expected]))


def test_chunks_between_recordings(tmp_path: Path) -> None:
    data = plain("WAV", "PCM_16", "LITTLE")
    expected = heard(tmp_path, data)
    joined = data + b"LIST\4\0\0\0INFO" + bytes(1001) + data + b"TAG" + bytes(125)
    for piped in (False, True):
        got = heard(tmp_path, joined[: -128 if piped else None], piped)
        np.testing.assert_array_equal(got, np.concatenate([expected, expected]))


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("form", PARTS)
def test_a_tag_alone_behind_a_recording(tmp_path: Path, form: str, piped: bool) -> None:
    data = PARTS[form]()
    np.testing.assert_array_equal(heard(tmp_path, data + ID3V2, piped), heard(tmp_path, data))


@pytest.mark.parametrize("first", ["WAV", "AU", "u-law WAV", "FLAC", "Vorbis", "MP3"])
def test_what_cannot_be_read_behind_a_recording_is_said(tmp_path: Path, first: str) -> None:
    data = PARTS[first]()
    with open_recording(str(write(tmp_path / "alone", data))) as alone:
        seconds = alone.samples / alone.rate
    other = b"\0\0\0\x20ftypM4A " + bytes(20) + b"isomiso2" + bytes(200)
    for count, piped in ((1, False), (1, True), (3, False), (3, True)):
        after = rf"goes on after {count * seconds:.2f} s with .* M4A \(AAC\)"
        with pytest.raises(InputError, match=after) as caught:
            heard(tmp_path, count * data + other, piped)
        assert_sentence(caught.value)
    # One that is cut off and goes on with another.
    for part in (0.6, 0.95):
        assert_refused(tmp_path, data[: int(part * len(data))] + data, False)


def wav_of_mp3() -> bytes:
    frames = bare_mp3()
    fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 48000, 8000, 1, 0, 12, 1, 2, 384, 1, 0)
    chunks = struct.pack("<4sI", b"fmt ", len(fmt)) + fmt + struct.pack("<4sII", b"fact", 4, 99999)
    return (
        b"RIFF"
        + struct.pack("<I", 12 + len(chunks) + len(frames))
        + b"WAVE"
        + chunks
        + (struct.pack("<4sI", b"data", len(frames)) + frames + bytes(len(frames) % 2))
    )


def test_mp3_in_wav(tmp_path: Path) -> None:
    data = wav_of_mp3()
    expected = heard(tmp_path, bare_mp3())
    for piped in (False, True):
        np.testing.assert_array_equal(heard(tmp_path, data, piped), expected)
        assert len(heard(tmp_path, data + data, piped)) == 2 * len(expected)
    assert_refused(tmp_path, data[:-500], False)


FILLERS = {
    "a zero": b"\0",
    "a line's end": b"\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 2000,
    "text": b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>\n' * 5,
}


@pytest.mark.parametrize("form", ["FLAC", "Vorbis", "Opus", "MP3", "bare MP3"])
@pytest.mark.parametrize("filler", FILLERS)
def test_what_is_put_behind_a_whole_recording(tmp_path: Path, form: str, filler: str) -> None:
    data = PARTS[form]()
    for piped in (False, True):
        np.testing.assert_array_equal(heard(tmp_path, data + FILLERS[filler], piped), heard(tmp_path, data))
    if form != "bare MP3":  # which does not say how long it is, so that its last frame may hold anything
        for part in (0.5, 0.9):
            assert_refused(tmp_path, data[: int(part * len(data))] + FILLERS[filler], False)


@pytest.mark.parametrize("form", ["FLAC", "Vorbis", "Opus", "MP3", "bare MP3"])
def test_holes_of_zeros(tmp_path: Path, form: str) -> None:
    """As downloads leave them that were not ended, of files that had their size from the beginning."""
    data = PARTS[form]()
    size = len(data)
    for begin, end in ((0.5, 1.0), (0.4, 0.6), (0.3, 0.35)):
        first, last = int(begin * size), int(end * size)
        assert_refused(tmp_path, data[:first] + bytes(last - first) + data[last:], False)
    if form == "bare MP3":
        # Where frames end, so that only the zeros tell.
        kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
        starts = [0]
        while starts[-1] < size:
            starts.append(starts[-1] + 3 * kbits[data[starts[-1] + 2] >> 4])  # at 48 kHz
        for first, last in ((starts[10], starts[14]), (starts[len(starts) // 2], size)):
            assert_refused(tmp_path, data[:first] + bytes(last - first) + data[last:], False)


def test_a_flac_may_hold_another_recordings_header(tmp_path: Path) -> None:
    data = encoded("FLAC", channels=1)
    block = b"riff" + plain("WAV", "PCM_16", "LITTLE")[:44]  # as `flac --keep-foreign-metadata` writes it
    kept = data[:42] + b"\2" + len(block).to_bytes(3, "big") + block + data[42:]
    np.testing.assert_array_equal(heard(tmp_path, kept), heard(tmp_path, data))


def test_a_flac_whose_header_does_not_end(tmp_path: Path) -> None:
    data = encoded("FLAC", channels=1)
    long = data[:43] + b"\xff" + data[44:]  # the length of the second block
    within_ogg = ogg.whole([b"\x7fFLAC\1\0\0\1" + data[:20]], flags=2)
    for damaged in (long, within_ogg):
        with pytest.raises(InputError, match="ends within its header: it is cut off or damaged"):
            heard(tmp_path, damaged)


# ---- writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
def test_writes_and_clips(tmp_path: Path, channels: int) -> None:
    pcm = np.array([[0.0, 0.5], [1.0, -1.0], [1.5, -1.5], [100.0, -100.0], [-0.25, 3e38]], np.float32)[:, :channels]
    with (tmp_path / "out.wav").open("wb") as file:
        writer = WavWriter(file, SAMPLE_RATE, channels)
        for row in pcm:
            writer.write(row[None])
        writer.finish()
    got, rate = soundfile.read(tmp_path / "out.wav", dtype="int16", always_2d=True)
    info = soundfile.info(tmp_path / "out.wav")
    assert (rate, info.format, info.subtype, info.channels) == (SAMPLE_RATE, "WAV", "PCM_16", channels)
    expected = [[0, 16384], [32767, -32768], [32767, -32768], [32767, -32768], [-8192, 32767]]
    assert np.array_equal(got, np.array(expected)[:, :channels])


def test_16_bit_sound_survives(tmp_path: Path) -> None:
    numbers = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(tmp_path / "in.wav", numbers, SAMPLE_RATE)
    with (tmp_path / "out.wav").open("wb") as file:
        writer = WavWriter(file, SAMPLE_RATE, 1)
        writer.write(read_all(tmp_path / "in.wav"))
        writer.finish()
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "in.wav").read_bytes()


def test_a_wav_file_ends_at_4_gib(tmp_path: Path) -> None:
    class Nowhere(io.BytesIO):
        def write(self, data: object) -> int:
            return 0

    writer = WavWriter(Nowhere(), SAMPLE_RATE, 2)
    block = np.zeros((1 << 24, 2), np.float32)

    for _ in range(63):
        writer.write(block)
    with pytest.raises(MshError, match="4 GiB"):
        writer.write(block)
