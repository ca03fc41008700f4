"""`SharedSpeaker`: several texts in turns, each as alone; text that still comes; those who leave; what fails."""

import queue
import time

import numpy as np
import pytest
from engines import demo_voices

from msh_mlx import InputError, Transcriber
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.places import BusyError
from msh_mlx.conversation.shared_speaker import SharedSpeaker
from msh_mlx.conversation.speaker import NotYetError
from msh_mlx.conversation.transcriber import BEHIND
from msh_mlx.errors import MshError
from msh_mlx.library.files import find_demo

TEXT = "three one four"
LIMIT = 30  # seconds until a test that hangs fails


@pytest.fixture(scope="module")
def voices(engine):
    return demo_voices(engine)


@pytest.fixture
def shared(voices):
    made = SharedSpeaker(places=2, waiting=1)
    made.load(lambda: voices)
    yield made
    made.close()


class Told:
    """What was made of a speech."""

    def __init__(self):
        self.queue = queue.Queue()
        self.frames, self.notes, self.error, self.saying = [], [], None, None

    def begin(self, shared, text=None, voice=None, client=""):
        self.saying = shared.say(self.queue.put, voice, client)
        if text is not None:
            self.saying.feed(text)
            self.saying.finish()
        return self

    def next(self):
        made = self.queue.get(timeout=LIMIT)
        if made.spoken:
            self.saying.took()
            self.frames.append(made.spoken)
        self.notes += made.notes
        self.error = made.error
        return not made.ended

    def all(self):
        while self.next():
            pass
        return np.concatenate([frame.pcm for frame in self.frames]) if self.frames else np.zeros(0, np.float32)


def alone(voices, text, voice="calm"):
    return np.concatenate([frame.pcm for frame in voices.speakers[voice].say(text)])


def test_each_says_what_it_says_alone(voices, shared):
    told = [Told().begin(shared, TEXT, client="a"), Told().begin(shared, "nine two", "brisk", client="b")]
    late = Told().begin(shared, "five", client="c")  # it waits
    np.testing.assert_array_equal(told[0].all(), alone(voices, TEXT))
    np.testing.assert_array_equal(told[1].all(), alone(voices, "nine two", "brisk"))
    np.testing.assert_array_equal(late.all(), alone(voices, "five"))
    assert [word.text for frame in told[0].frames for word in frame.words] == TEXT.split()
    assert shared.figures() == (0, 0)


def test_what_is_said_is_heard(voices, shared):
    parts = load_parts(find_demo("transcription"))
    sound = Told().begin(shared, TEXT).all()
    transcriber = Transcriber(parts.lm, parts.mimi, parts.tokenizer)
    words = transcriber.push(np.clip(sound, -1, 1)) + transcriber.flush(BEHIND)
    assert [word.text for word in words] == TEXT.split()


def test_text_that_comes_in_pieces_is_said_as_at_once(voices, shared):
    """It waits for text, and others go on meanwhile; the text is cut in the middle of words."""
    expected = alone(voices, "three one four nine two six")
    told = Told().begin(shared)
    for piece in ("thr", "ee one fo", "ur ni"):
        told.saying.feed(piece)
        deadline = time.monotonic() + LIMIT
        while not told.saying.is_dry and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told.saying.is_dry
    other = Told().begin(shared, "five", client="other")
    np.testing.assert_array_equal(other.all(), alone(voices, "five"))
    told.saying.feed("ne two six")
    told.saying.finish()
    np.testing.assert_array_equal(told.all(), expected)


def test_a_speech_that_waits_for_text_goes_on_when_it_is_there(voices):
    pieces = iter(["three ", None, None, "one four"])
    speech = voices.speakers["calm"].say(pieces)
    frames, waited = [], 0
    while not speech.over:
        try:
            frames.append(next(speech, None))
        except NotYetError:
            waited += 1
    assert waited == 2
    np.testing.assert_array_equal(np.concatenate([frame.pcm for frame in frames[:-1]]), alone(voices, TEXT))


def test_frames_that_nobody_takes_are_not_made(voices, shared):
    told = Told().begin(shared, '<break time="60s"/>')
    deadline = time.monotonic() + LIMIT
    while told.saying.ahead < 250 and time.monotonic() < deadline:
        time.sleep(0.01)
    Told().begin(shared, TEXT, client="other").all()  # turns go on
    assert told.saying.ahead == told.queue.qsize() == 250
    while told.next():
        pass
    assert len(told.frames) > 750


def test_who_leaves_makes_room(voices, shared):
    told = [Told().begin(shared, client=name) for name in "ab"]
    third = Told().begin(shared, TEXT, client="c")
    with pytest.raises(BusyError, match="try again later"):
        shared.say(print)
    assert sum(shared.figures()) == 3
    told[0].saying.close()
    np.testing.assert_array_equal(third.all(), alone(voices, TEXT))
    told[1].saying.close()
    assert shared.figures() == (0, 0)


def test_what_is_wrong_is_told(voices, shared):
    with pytest.raises(InputError, match="There is no voice 'nobody'; this server has brisk and calm"):
        shared.say(print, "nobody")
    told = Told().begin(shared, 'one <break time="1000s"/>')
    told.all()
    assert "is too long" in str(told.error)
    told = Told().begin(shared, "one ☃ two")
    told.all()
    assert (told.error, told.notes) == (None, ["The model does not know '☃', which is left out."])


def test_a_failure_of_the_model_is_told_to_all(voices, monkeypatch):
    failures = queue.Queue()
    shared = SharedSpeaker(on_failure=failures.put)
    shared.load(lambda: voices)

    def fail(_):
        raise RuntimeError("no device")

    monkeypatch.setattr("msh_mlx.conversation.speaker.Speech.advance", fail)
    told = Told().begin(shared, TEXT)
    told.all()
    assert "RuntimeError: no device" in str(told.error)
    assert str(failures.get(timeout=LIMIT)) == "no device"
    with pytest.raises(MshError, match="model failed"):
        shared.say(print)
    shared.close()
