"""Formats of sound in OpenAI's protocol, and where speech begins and ends."""

import io

import numpy as np
import pytest
import soundfile

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import demo_folder
from msh_mlx.net.connection import NetworkSource
from msh_mlx.net.realtime_sound import PAUSE, ModelVoice, SoundReader, SoundWriter, SpeechBegan, SpeechEnded, UserVoice

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
SUBTYPES = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}


def pieces(data, seed):
    """Cut into pieces of any size, with some that are empty."""
    random = np.random.default_rng(seed)
    begin = 0
    while begin < len(data):
        size = int(random.integers(0, 700))
        yield data[begin : begin + size]
        begin += size


@pytest.mark.parametrize("seed", range(3))
def test_pcm_in_pieces_is_the_whole(seed):
    samples = np.random.default_rng(seed).integers(-32768, 32768, 5001).astype("<i2")
    reader, writer = SoundReader("audio/pcm"), SoundWriter("audio/pcm")
    read = np.concatenate([reader.read(piece) for piece in pieces(samples.tobytes(), seed)])
    np.testing.assert_array_equal(read, samples / np.float32(32768))
    assert b"".join(writer.write(piece) for piece in pieces(read, seed)) == samples.tobytes()
    assert writer.write(np.array([2.0, -2.0], np.float32)) == np.array([32767, -32768], "<i2").tobytes()


@pytest.mark.parametrize("kind", SUBTYPES)
@pytest.mark.parametrize("seed", range(2))
def test_g711_in_pieces_is_the_whole(kind, seed):
    """A tone of one second, at 8 kHz: as libsndfile reads it in one piece, with the tone's level and pitch."""
    writer = SoundWriter(kind)
    coded = b"".join([*(writer.write(piece) for piece in pieces(TONE, seed)), writer.write(TONE[:0], last=True)])
    assert len(coded) == 8000
    whole, _ = soundfile.read(
        io.BytesIO(coded), format="RAW", subtype=SUBTYPES[kind], samplerate=8000, channels=1, dtype="float32"
    )
    np.testing.assert_allclose(whole[100:-100], TONE[::3][100:-100], atol=0.03)
    reader = SoundReader(kind)
    read = np.concatenate([reader.read(piece) for piece in pieces(coded, seed + 9)])
    assert SAMPLE_RATE - 960 <= len(read) <= SAMPLE_RATE  # the resampler holds back up to 40 ms
    np.testing.assert_allclose(read[500:-500], TONE[: len(read)][500:-500], atol=0.03)
    loud = np.abs(SoundReader(kind).read(SoundWriter(kind).write(np.full(9000, 3, np.float32))))
    assert loud[-1000:] == pytest.approx(1, abs=0.1)  # cut off


def turns(pcm, **options):
    """What `UserVoice` finds in sound, frame by frame, in seconds."""
    voice = UserVoice(**{"threshold": 0.5, "padding": 0.3, "silence": 0.5, **options})
    found = []
    for end in range(FRAME_SIZE, len(pcm) + 1, FRAME_SIZE):
        found += voice.hear(pcm[end - FRAME_SIZE : end], end / SAMPLE_RATE)
    return found


@pytest.fixture(scope="module")
def digits():
    pcm, _ = soundfile.read(demo_folder() / "digits.flac", dtype="float32")
    return np.concatenate([pcm, np.zeros(SAMPLE_RATE, np.float32)])


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_the_three_turns_of_a_recording_are_found(digits, noise):
    """The speech lies, by ear, from 0.6 to 1.5 s, from 4.7 to 5.1 s, and from 7.4 to 9.2 s."""
    noisy = digits + noise * np.random.default_rng(1).standard_normal(len(digits)).astype(np.float32)
    found = turns(noisy)
    assert [type(each) for each in found] == [SpeechBegan, SpeechEnded] * 3
    expected = [0.6 - 0.3, 1.5 + 0.5, 4.7 - 0.3, 5.1 + 0.5, 7.5 - 0.3, 9.2 + 0.5]
    assert [each.at for each in found] == pytest.approx(expected, abs=0.2)


def test_steady_noise_is_not_speech_for_long():
    loud = 0.05 * np.random.default_rng(2).standard_normal(20 * SAMPLE_RATE).astype(np.float32)
    assert turns(loud) == []
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    began, ended = turns(np.concatenate([quiet, np.tile(loud, 4)]))
    assert (type(began), type(ended)) == (SpeechBegan, SpeechEnded)
    assert ended.at < 40


def test_the_settings_of_turn_detection_count(digits):
    assert len(turns(digits, silence=0.05)) > 6
    assert len(turns(digits, silence=4.0)) < 6
    assert turns(digits, threshold=1.0, padding=0.0)[0].at > turns(digits, threshold=0.0, padding=0.0)[0].at
    assert turns(0.01 * digits) == []


def test_the_model_pauses_after_a_second_without_text_and_sound():
    voice, silence, sound = ModelVoice(), np.zeros(FRAME_SIZE, np.float32), np.full(FRAME_SIZE, 0.01, np.float32)
    assert voice.pauses
    assert not voice.say([], silence)
    assert voice.say([" a"], silence)
    for frame in [silence] * (PAUSE - 1):
        assert not voice.say([], frame)
        assert not voice.pauses
    assert voice.say([], sound)
    for _ in range(PAUSE):
        assert not voice.pauses
        voice.say([], silence)
    assert voice.pauses


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_silence_takes_the_place_of_sound_that_does_not_come():
    """At the speed of speech, after a quarter of a second, and only while it is wanted."""
    clock = Clock()
    source = NetworkSource(60.0, clock, by_turns=True)
    source.write(np.ones(FRAME_SIZE + 100, np.float32))
    assert source.read(FRAME_SIZE, 0).sum() == FRAME_SIZE
    source.fills = "live"
    clock.now = 0.24
    assert source.read(FRAME_SIZE, 0) is None
    clock.now = 0.26
    frame = source.read(FRAME_SIZE, 0)
    assert (len(frame), frame.sum()) == (FRAME_SIZE, 100)  # what was there, and then silence
    assert source.read(FRAME_SIZE, 0) is None
    clock.now += 0.081
    assert source.read(FRAME_SIZE, 0).sum() == 0
    source.fills = "fast"
    assert source.read(FRAME_SIZE, 0) is None  # something is not answered yet
    source.answered = 3
    assert source.read(FRAME_SIZE, 0).sum() == 0
    assert source.read(FRAME_SIZE, 0) is None
    source.begin()
    assert source.read(FRAME_SIZE, 0).sum() == 0
    assert source.position == (FRAME_SIZE + 100) / SAMPLE_RATE
    source.fills = "no"
    clock.now += 5
    assert source.read(FRAME_SIZE, 0) is None


@pytest.mark.parametrize("by_turns", [True, False])
def test_a_turn_that_comes_at_once_after_a_gap_is_early_only_where_turns_may(by_turns):
    clock = Clock()
    source = NetworkSource(60.0, clock, by_turns=by_turns)
    for _ in range(2):
        for _ in range(30):
            source.write(np.zeros(FRAME_SIZE, np.float32))
        late = source.backlog() - source.early(0.0)
        while source.read(FRAME_SIZE, 0) is not None:
            pass
        clock.now += 10
        source.early(0.0)
    assert (late < 0.01) is by_turns
