"""`SharedTranscriber`: many at once, each as alone; a fair line; those who leave; what fails."""

import json
import queue
import threading

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS

from msh_mlx import InputError, Transcriber
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.places import BusyError, Places
from msh_mlx.conversation.shared_transcriber import SharedTranscriber
from msh_mlx.conversation.transcriber import BEHIND
from msh_mlx.errors import MshError
from msh_mlx.format import SAMPLE_RATE
from msh_mlx.library.files import find_demo

SOUND = soundfile.read(DIGITS, dtype="float32")[0]
WORDS = json.loads((DEMO / "stt" / "expected.json").read_text())["words"]
LIMIT = 30  # seconds until a test that hangs fails


@pytest.fixture(scope="module")
def parts(engine):
    return load_parts(find_demo("transcription"), engine=engine)


@pytest.fixture
def shared(parts):
    made = SharedTranscriber(rows=3, waiting=2)
    made.load(lambda: parts)
    yield made
    made.close()


class Told:
    """What was told of one, up to its end."""

    def __init__(self):
        self.queue = queue.Queue()
        self.words = []
        self.error = None

    def __call__(self, progress):
        self.queue.put(progress)

    def next(self):
        progress = self.queue.get(timeout=LIMIT)
        self.words += progress.words
        self.error = progress.error
        return progress

    def until(self, true):
        while not true(progress := self.next()):
            pass
        return progress

    def plain(self):
        return plain(self.words)


def plain(words):
    return [(word.text, word.start, word.end) for word in words]


def ended(progress):
    return progress.ended


def blocks(sound, size=4096):
    return iter(np.split(sound, range(size, len(sound), size)))


def alone(parts, sound):
    transcriber = Transcriber(parts.lm, parts.mimi, parts.tokenizer)
    return plain(transcriber.push(sound) + transcriber.flush(BEHIND))


def endless(stop):
    while not stop.is_set():
        yield np.zeros(1920, np.float32)


# ---- places ----------------------------------------------------------------------------------------------------------------


def test_the_line_is_fair():
    places = Places(3, 4)
    for one in ["a1", "a2", "a3", "a4", "b1", "b2"]:
        places.join(one, one[0])
    came = []
    while (one := places.following()) is not None:
        places.admit(one)
        came.append(one)
    assert came == ["a1", "b1"]  # each client's first; and the last place is kept for somebody else
    places.join("c1", "c")
    assert places.following() == "c1"
    places.admit("c1")
    assert (places.following(), places.taken, places.waiting) == (None, 3, 4)
    with pytest.raises(BusyError, match="line is full"):
        places.join("d1", "d")
    places.leave("a1")
    assert places.following() == "a2"
    places.leave("a2")
    assert places.following() == "a3"
    assert places.all() == ["b1", "c1", "a3", "a4", "b2"]


def test_a_single_place_is_for_everybody():
    places = Places(1, 1)
    places.join("a1", "a")
    places.join("a2", "a")
    places.admit("a1")
    assert places.following() is None
    places.leave("a1")
    assert places.following() == "a2"


# ---- recordings and live streams -------------------------------------------------------------------------------------------


def test_many_at_once_hear_what_each_hears_alone(parts, shared):
    """Recordings of several lengths that come and go, beside live streams in pieces of random sizes."""
    sounds = [SOUND, SOUND[: 6 * SAMPLE_RATE], np.roll(SOUND, 5000)]
    expected = [alone(parts, sound) for sound in sounds]
    assert [word[0] for word in expected[0]] == WORDS
    files, streams = [Told() for _ in sounds], [Told() for _ in sounds]
    for i, sound in enumerate(sounds[:2]):
        shared.transcribe(blocks(sound), files[i], f"file {i}")
    lives = [shared.listen(streams[0], "live"), shared.listen(streams[1], "other")]
    rng = np.random.default_rng(5)
    for live, sound in zip(lives, sounds, strict=False):
        for piece in np.split(sound, np.sort(rng.integers(0, len(sound) + 1, 40))):
            live.push(piece)
        live.flush(BEHIND)
    for i in range(2):
        assert files[i].until(ended).seconds == len(sounds[i]) / SAMPLE_RATE
        assert streams[i].until(lambda progress: progress.flushed).error is None
        lives[i].close()
    shared.transcribe(blocks(sounds[2]), files[2], "late")
    files[2].until(ended)
    last = shared.listen(streams[2])  # in what another stream has left
    last.push(sounds[2])
    last.flush(BEHIND)
    streams[2].until(lambda progress: progress.flushed)
    last.close()
    for i, words in enumerate(expected):
        assert files[i].plain() == words
        assert streams[i].plain() == words
    assert shared.figures() == (0, 0)


def test_a_live_stream_tells_turns(parts, shared):
    told = Told()
    live = shared.listen(told)
    live.push(SOUND[: 4 * SAMPLE_RATE])
    assert told.until(lambda progress: progress.turn_ended).pause > 0.5
    live.flush()
    told.until(lambda progress: progress.flushed)
    assert [word.text for word in told.words] == WORDS[:2]
    live.push(SOUND[4 * SAMPLE_RATE :])
    live.flush(BEHIND)
    told.until(lambda progress: progress.flushed)
    assert [word.text for word in told.words] == WORDS
    live.close()


def test_a_live_stream_begins_anew(parts, shared):
    """Nothing of before is heard any more, nor told, and the times begin at 0."""
    first, told = SOUND[: 2 * SAMPLE_RATE], Told()
    live = shared.listen(told)
    live.push(first)
    told.until(lambda progress: progress.seconds == 2)
    live.push(SOUND)
    live.reset()
    live.push(first)
    assert live.waiting <= 2
    told.words.clear()
    told.until(lambda progress: progress.seconds < 2)  # none between, or one that was being heard
    told.until(lambda progress: progress.seconds == 2)
    live.flush(BEHIND)
    told.until(lambda progress: progress.flushed)
    assert told.plain()[-2:] == alone(parts, first)
    live.close()


def test_what_is_not_sound_is_refused(shared):
    live = shared.listen(Told())
    with pytest.raises(InputError, match="float32"):
        live.push(np.zeros(10))
    with pytest.raises(InputError, match="silence behind"):
        live.flush(-1)
    live.close()


def test_a_live_stream_that_is_not_heard_does_not_grow(parts):
    shared = SharedTranscriber(rows=1)
    shared.load(lambda: parts)
    stop, told = threading.Event(), Told()
    hearing = shared.transcribe(endless(stop), told)
    told.next()
    live = shared.listen(Told())  # it waits
    live.push(np.zeros(60 * SAMPLE_RATE, np.float32))
    with pytest.raises(MshError, match="More than 60 s of sound wait"):
        live.push(np.zeros(1, np.float32))
    live.close()
    hearing.close()
    shared.close()


# ---- those who leave, and what fails ---------------------------------------------------------------------------------------


def test_who_leaves_makes_room(parts, shared):
    """Three that never end have all places; two wait, a sixth is refused. Then they leave, and those who wait are served."""
    stop = threading.Event()
    told = [Told() for _ in range(5)]
    first = [shared.transcribe(endless(stop), told[i], str(i)) for i in range(3)]
    for one in told[:3]:
        one.next()
    released = queue.Queue()
    waiting = shared.transcribe(blocks(SOUND), told[3], "3", lambda: released.put("3"))
    gone = shared.transcribe(endless(stop), told[4], "4", lambda: released.put("4"))
    assert sum(shared.figures()) == 5
    with pytest.raises(BusyError, match="try again later"):
        shared.listen(Told(), "5")
    gone.close()
    assert released.get(timeout=LIMIT) == "4"
    assert sum(shared.figures()) == 4
    first[0].close()
    first[0].close()  # it may do so twice
    told[3].until(ended)
    assert told[3].plain() == alone(parts, SOUND)
    assert told[4].queue.empty()
    waiting.close()
    assert released.get(timeout=LIMIT) == "3"
    for one in first:
        one.close()
    last = shared.transcribe(endless(stop), told[4], "4", lambda: released.put("last"))
    told[4].next()
    last.close()
    assert released.get(timeout=LIMIT) == "last"
    assert released.empty()
    assert shared.figures() == (0, 0)


def test_an_error_of_one_sound_ends_only_this_one(parts, shared):
    def broken(error):
        yield SOUND[:SAMPLE_RATE]
        raise error

    told = [Told() for _ in range(3)]
    shared.transcribe(broken(InputError("The recording is cut off.")), told[0], "a")
    shared.transcribe(broken(RuntimeError("surprise")), told[1], "b")
    shared.transcribe(blocks(SOUND), told[2], "c")
    for one in told:
        one.until(ended)
    assert str(told[0].error) == "The recording is cut off."
    assert str(told[1].error) == "The recording cannot be read (RuntimeError: surprise)."
    assert told[2].plain() == alone(parts, SOUND)


def test_the_end_is_told_to_all(parts):
    shared = SharedTranscriber(rows=2)
    shared.load(lambda: parts)
    told = [Told(), Told()]
    shared.transcribe(endless(threading.Event()), told[0], "a")
    shared.listen(told[1], "b")
    told[0].next()
    shared.close()
    assert [str(one.until(ended).error) for one in told] == ["The server is shutting down."] * 2
    with pytest.raises(MshError, match="shutting down"):
        shared.listen(Told())


def test_a_failure_of_the_model_is_told_to_all(parts, monkeypatch):
    failures = queue.Queue()
    shared = SharedTranscriber(rows=2, on_failure=failures.put)
    shared.load(lambda: parts)

    def fail(*_):
        raise RuntimeError("no device")

    monkeypatch.setattr("msh_mlx.conversation.transcriber.Rows.step", fail)
    told = Told()
    shared.transcribe(blocks(SOUND), told)
    assert "RuntimeError: no device" in str(told.until(ended).error)
    assert str(failures.get(timeout=LIMIT)) == "no device"
    with pytest.raises(MshError, match="model failed"):
        shared.listen(Told())
    shared.close()


def test_other_models_are_refused():
    with pytest.raises(InputError, match="not one that writes down speech"):
        SharedTranscriber().load(lambda: load_parts(find_demo()))
