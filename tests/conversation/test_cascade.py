"""A conversation with a language model, from sound to sound: demo ears and mouth in a room whose clock is the sound's."""

import itertools
import threading
import time

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS

from msh_mlx import Speaker, Transcriber, load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation import cascade as cascade_module
from msh_mlx.conversation.cascade import Cascade, Models
from msh_mlx.conversation.dialogue import Dialogue, TooLongError
from msh_mlx.conversation.speakable import Speakable
from msh_mlx.conversation.voice_activity import PIECE, VoiceActivity
from msh_mlx.errors import MshError
from msh_mlx.events import Heard, Listened, Notice, Replied, Said, SpokeWord, Turned
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE

SOUND = soundfile.read(DIGITS, dtype="float32")[0]
TURNS = ["four one", "three", "eight nine zero"]
FOUR_ONE = SOUND[: round(2.1 * SAMPLE_RATE)]
THREE = SOUND[round(2.1 * SAMPLE_RATE) : 6 * SAMPLE_RATE]
NUMBERS = "one two three four five six seven eight nine"
FASTER = 3.0  # than real time
PATIENCE = 60.0  # seconds, until a conversation that hangs fails


def silence(seconds):
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


class Room:
    """A microphone that plays a sound, and a loudspeaker that is recorded; both go by the samples that were read.

    Time stands still while `busy` says that there is something to say, and it is not made yet: machines differ.
    """

    def __init__(self, *sounds):
        self.sound = np.concatenate(sounds)
        self.at = 0
        self.over = threading.Event()
        self.busy = lambda: False
        self._played = []
        self._queue = silence(0)
        self._lock = threading.Lock()

    def read(self, n, timeout):
        if self.at + n > len(self.sound):
            self.over.set()
            time.sleep(timeout)
            return None
        time.sleep(n / SAMPLE_RATE / FASTER)
        while self.queued() < n / SAMPLE_RATE and self.busy():
            time.sleep(0.001)
        with self._lock:
            out, self._queue = self._queue[:n], self._queue[n:]
            self._played.append(np.concatenate([out, np.zeros(n - len(out), np.float32)]))
            self.at += n
            return self.sound[self.at - n : self.at]

    def backlog(self):
        return 0.0

    def trim(self, keep):
        return 0.0

    def write(self, pcm):
        with self._lock:
            self._queue = np.concatenate([self._queue, pcm])

    def pause(self):
        pass

    def clear(self):
        with self._lock:
            self._queue = self._queue[:0]

    def queued(self):
        return len(self._queue) / SAMPLE_RATE

    def stats(self):
        return {}

    @property
    def played(self):
        return np.concatenate(self._played)


class Thinker:
    """Answers turn by turn, a word each 20 ms; an error in place of an answer ends it."""

    def __init__(self, *answers):
        self._answers = list(answers)
        self.asked = []
        self.cancelled = []

    def ask(self, messages, thought):
        self.asked.append([(message["role"], message["content"]) for message in messages])
        answer, stop, number = self._answers.pop(0), threading.Event(), len(self.asked)

        def think():
            error = answer if isinstance(answer, MshError) else None
            for word in () if error else answer.split():
                if stop.wait(0.02):
                    return
                thought.add(f"{word} ")
            thought.end(error)

        def cancel():
            if not stop.is_set():
                self.cancelled.append(number)
            stop.set()
            thought.end()

        thought.cancel = cancel
        threading.Thread(target=think, daemon=True).start()


@pytest.fixture(scope="module")
def models():
    mimi, tokenizer = load_mimi(DEMO / "mimi.safetensors"), load_tokenizer(DEMO / "tokenizer.model")
    stt, tts = (
        load_lm(DEMO / name / "model.safetensors", DEMO / name / "config.json", engine="native")
        for name in ("stt", "tts")
    )
    return lambda *_: Models(Transcriber(stt, mimi, tokenizer), Speaker(tts, mimi, tokenizer, seed=1))


def speaks(cascade):
    """Whether there is something to be said now, or to be made."""
    answer = cascade._answer
    return answer is not None and not cascade._held and not answer.thought.waits and cascade.failure is None


CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1"}]}


class Caller(Thinker):
    """Calls a tool in the middle of its answer. The result comes some seconds after `until` has been said."""

    def __init__(self, before, after, *answers, until="", aside="", pause=0.0):
        super().__init__(*answers)
        self.before, self.after, self.until, self.aside, self.pause = before, after, until, aside, pause

    def ask(self, messages, thought):
        if self.asked:
            super().ask(messages, thought)
            return
        self.asked.append(messages)

        def think():
            thought.add(self.before)
            result = {"role": "tool", "content": "given up", "tool_call_id": "c1"}
            thought.call(CALL, [result])
            if self.aside:
                thought.aside(self.aside)
            end = time.monotonic() + PATIENCE
            while self.until and self.until not in self.said() and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(self.pause)
            self.before_result = self.said()
            thought.result(result, "5")
            thought.add(self.after)
            thought.end()

        thought.cancel = thought.end
        threading.Thread(target=think, daemon=True).start()


class Talked:
    """A conversation that is over: its events, with the second of the sound in which each came."""

    def __init__(self, models, room, thinker, instructions="", speak_up=None):
        self.room, self.thinker, self.events = room, thinker, []
        thinker.said = lambda: [event.word.text for event in self.of(SpokeWord)]
        cascade = Cascade(models, thinker, room, room, self._hear, instructions=instructions, speak_up=speak_up)
        room.busy = lambda: speaks(cascade)
        cascade.start()
        assert room.over.wait(PATIENCE)
        assert cascade.stop(PATIENCE)
        assert cascade.failure is None

    def _hear(self, event):
        self.events.append((self.room.at / SAMPLE_RATE, event))

    def of(self, kind):
        return [event for _, event in self.events if isinstance(event, kind)]

    @property
    def said(self):
        return " ".join(event.word.text for event in self.of(SpokeWord))

    def loud(self, begin, end):
        """How loud the voice is from one second to another."""
        part = self.room.played[round(begin * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        return float(np.sqrt(np.mean(part**2)))


# ---- the conversation ------------------------------------------------------------------------------------------------------


def test_turns_are_answered_with_what_was_said_before(models):
    talked = Talked(models, Room(SOUND, silence(4)), Thinker("two", "seven", "zero one"), "Answer in digits.")
    assert [event.text for event in talked.of(Turned)] == TURNS
    assert talked.said == "two seven zero one"
    assert talked.thinker.asked[-1] == [
        ("system", "Answer in digits."),
        ("user", "four one"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "seven"),
        ("user", "eight nine zero"),
    ]


def test_what_is_said_is_heard(models):
    """The loudspeaker's sound, written down again; the recording has the same, frame by frame."""
    talked = Talked(models, Room(FOUR_ONE, silence(9)), Thinker(NUMBERS))
    ears = models().ears
    words = ears.push(talked.room.played) + ears.flush()
    assert [word.text for word in words] == NUMBERS.split()
    frames = {event.index: event.pcm for event in talked.of(Said)}
    recorded = np.concatenate([frames[index] for index in sorted(frames)])
    assert sorted(frames) == list(range(min(frames), max(frames) + 1))
    at = int(np.argmax(talked.room.played != 0))
    np.testing.assert_array_equal(
        talked.room.played[at : at + len(recorded) - FRAME_SIZE],
        recorded[int(np.argmax(recorded != 0)) :][: len(recorded) - FRAME_SIZE],
    )


def test_the_stages_of_a_reply_follow_one_another(models):
    talked = Talked(models, Room(FOUR_ONE, silence(5)), Thinker("two"))
    (reply,) = talked.of(Replied)
    delays = list(reply.delays().values())
    assert delays == sorted(delays)
    assert delays[0] > 0


def test_an_answer_begins_with_its_first_word(models):
    """The silence that the model that speaks makes in front is not played."""
    first = next(iter(spoken for spoken in models().mouth.say("two") if spoken))
    assert np.abs(first.pcm).max() < 0.005
    talked = Talked(models, Room(FOUR_ONE, silence(5)), Thinker("two three"))
    frame = talked.of(Said)[0]
    assert np.abs(frame.pcm).max() > 0.02
    assert talked.of(SpokeWord)[0].word.start == pytest.approx(frame.index * 0.08)


def test_who_interrupts_is_heard_and_the_rest_is_forgotten(models):
    begin = 4.6  # seconds, in the middle of the answer
    talked = Talked(models, Room(FOUR_ONE, silence(begin - 2.1), FOUR_ONE, silence(5)), Thinker(NUMBERS, "nine"))
    onset = begin + int(np.argmax(np.abs(FOUR_ONE) > 0.01)) / SAMPLE_RATE
    assert talked.loud(onset - 0.5, onset) > 0.01
    assert talked.loud(onset + 0.1, onset + 1.2) < 1e-4
    role, kept = talked.thinker.asked[1][1]
    assert role == "assistant"
    assert 2 <= len(kept.split()) <= 7
    assert NUMBERS.startswith(kept)
    assert talked.said == f"{kept} nine"
    heard = models().ears
    assert [word.text for word in heard.push(talked.room.played) + heard.flush()][: len(kept.split())] == kept.split()


def test_a_short_noise_stops_nothing(models):
    rng = np.random.default_rng(1)
    noise = (0.2 * rng.standard_normal(round(0.1 * SAMPLE_RATE))).astype(np.float32)
    talked = Talked(models, Room(FOUR_ONE, silence(2.5), noise, silence(9)), Thinker(NUMBERS))
    assert talked.said == NUMBERS
    assert not talked.thinker.cancelled
    assert talked.loud(4.75, 5.0) < 1e-4  # it was silent meanwhile


def test_a_word_that_only_shows_that_the_user_listens_stops_nothing(models, monkeypatch):
    """It is told as such, and is no part of the next turn."""
    monkeypatch.setattr(cascade_module, "_LISTENING", {"three"})
    monkeypatch.setattr(cascade_module, "_INTERRUPTED", 2.0)  # the demo's voice is slow
    room = Room(FOUR_ONE, silence(2.5), THREE, silence(9), FOUR_ONE, silence(4))
    talked = Talked(models, room, Thinker(NUMBERS, "six"))
    assert talked.said == f"{NUMBERS} six"
    assert [event.text for event in talked.of(Listened)] == ["three"]
    assert talked.thinker.asked[1] == [("user", "four one"), ("assistant", NUMBERS), ("user", "four one")]


def test_an_answer_that_has_not_begun_gives_way_to_the_rest_of_the_turn(models):
    class Slow(Thinker):
        def ask(self, messages, thought):
            if self.asked:
                super().ask(messages, thought)
            else:
                self.asked.append(messages)

    talked = Talked(models, Room(SOUND[: 6 * SAMPLE_RATE], silence(4)), Slow("nine"))
    assert talked.thinker.asked[1] == [("user", "four one three")]
    assert talked.said == "nine"


def test_an_error_is_told_and_the_conversation_goes_on(models):
    error = MshError("The key is wrong.")
    talked = Talked(models, Room(SOUND[: 6 * SAMPLE_RATE], silence(4)), Thinker(error, "six"))
    assert [event.message for event in talked.of(Notice)] == ["The key is wrong."]
    assert talked.said == "six"
    assert talked.thinker.asked[1] == [("user", "four one three")]


def test_what_is_too_long_is_shortened(models):
    answers = "two", TooLongError("The conversation is too long", "begin a new one"), "six"
    talked = Talked(models, Room(SOUND[: 6 * SAMPLE_RATE], silence(4)), Thinker(*answers))
    assert talked.thinker.asked[2] == [("user", "three")]
    assert talked.said == "two six"
    assert [event.kind for event in talked.of(Notice)] == ["forgotten"]


def test_an_answer_without_words_is_told(models):
    talked = Talked(models, Room(FOUR_ONE, silence(3)), Thinker("** 🙂 **"))
    assert [event.kind for event in talked.of(Notice)] == ["no-answer"]


class Mouth:
    """A mouth that keeps all that it says. `begins` is called with the number of each text, the first one to warm up."""

    def __init__(self, mouth, begins):
        self._mouth, self._begins = mouth, begins
        self.said = []

    def say(self, text):
        self.said.append(self._mouth.say(text))
        self._begins(len(self.said))
        return self.said[-1]


def test_what_cannot_be_said_is_not_asked_for_any_longer(models):
    def fail(number):
        if number == 2:
            mouth.said[-1].advance = raises

    def raises():
        raise MshError("The voice is gone.")

    made = models()
    mouth = Mouth(made.mouth, fail)
    talked = Talked(
        lambda *_: Models(made.ears, mouth), Room(SOUND[: 6 * SAMPLE_RATE], silence(4)), Thinker(20 * NUMBERS, "six")
    )
    assert [event.message for event in talked.of(Notice)] == ["The voice is gone."]
    assert talked.thinker.cancelled[0] == 1
    assert talked.said == "six"


def test_it_speaks_up_once_in_a_silence(models):
    talked = Talked(models, Room(silence(6), FOUR_ONE, silence(7)), Thinker("nine", "two", "three"), speak_up=2.0)
    assert [asked[-1] for asked in talked.thinker.asked] == [("user", "..."), ("user", "four one"), ("user", "...")]
    assert talked.said == "nine two three"
    assert [event.text for event in talked.of(Turned)] == ["four one"]


def test_all_of_the_user_is_told_in_order(models):
    talked = Talked(models, Room(SOUND, silence(2)), Thinker("one", "two", "three"))
    heard = talked.of(Heard)
    assert [event.index for event in heard] == list(range(len(heard)))
    sound = np.concatenate([event.pcm for event in heard])
    np.testing.assert_array_equal(sound, talked.room.sound[: len(sound)])


def test_a_new_conversation_knows_nothing(models):
    room, thinker = Room(SOUND, silence(3)), Thinker("two", "three", "four")
    cascade = Cascade(
        models,
        thinker,
        room,
        room,
        lambda event: cascade.reset() if isinstance(event, Turned) and event.text == "three" else None,
    )
    cascade.start()
    assert room.over.wait(PATIENCE)
    assert cascade.stop(PATIENCE)
    assert thinker.asked[-1] == [("user", "eight nine zero")]


# ---- tools -----------------------------------------------------------------------------------------------------------------


def test_what_comes_before_a_call_is_said_while_the_tool_runs(models):
    """To its last word, though nobody knows what comes next. The dialogue has all of it in its order."""
    thinker = Caller("one two three ", "four five", "six", until="three")
    talked = Talked(
        models, Room(SOUND[: round(2.1 * SAMPLE_RATE)], silence(9), SOUND[: 2 * SAMPLE_RATE], silence(4)), thinker
    )
    assert thinker.before_result == ["one", "two", "three"]
    assert talked.said == "one two three four five six"
    assert thinker.asked[1][:1] == [("user", "four one")]
    assert [role for role, _ in thinker.asked[1]] == ["user", "assistant", "tool", "assistant", "user"]
    assert [content for _, content in thinker.asked[1][1:4]] == ["one two three", "5", "four five"]


def test_what_is_said_meanwhile_is_heard_and_not_kept(models):
    thinker = Caller("", "four five", "six", until="two", aside="one two")
    talked = Talked(models, Room(FOUR_ONE, silence(9), FOUR_ONE, silence(4)), thinker)
    assert thinker.before_result == ["one", "two"]
    assert talked.said == "one two four five six"
    assert thinker.asked[1][1:4] == [("assistant", ""), ("tool", "5"), ("assistant", "four five")]


def test_what_is_given_up_between_two_parts_ends(models):
    closed = threading.Event()

    def give_up(number):
        if number == 3:  # the second part
            mouth.said[-1].close = closed.set
            threading.Thread(target=cascade.give_up).start()
            time.sleep(0.3)

    made, room = models(), Room(FOUR_ONE, silence(6))
    mouth = Mouth(made.mouth, give_up)
    thinker = Caller("one ", "two three", until="one")
    events = []
    cascade = Cascade(lambda *_: Models(made.ears, mouth), thinker, room, room, events.append)
    thinker.said = lambda: [event.word.text for event in events if isinstance(event, SpokeWord)]
    cascade.start()
    assert room.over.wait(PATIENCE)
    assert cascade.stop(PATIENCE)
    assert cascade.failure is None
    assert closed.is_set()


def test_the_recording_has_the_pause_of_a_tool(models):
    """What is said behind it stands where it was heard."""
    talked = Talked(
        models, Room(FOUR_ONE, silence(12)), Caller("one two three ", "four five", until="three", pause=0.7)
    )
    frames = {event.index: event.pcm for event in talked.of(Said)}
    assert len(frames) == len(talked.of(Said))
    played = talked.room.played
    recorded = np.zeros(len(played) + SAMPLE_RATE, np.float32)
    for index, pcm in frames.items():
        recorded[index * FRAME_SIZE : (index + 1) * FRAME_SIZE] = pcm
    for sound in (played, recorded[: len(played)]):
        assert np.abs(sound).max() > 0.01
    last = [np.flatnonzero(np.abs(sound) > 0.01)[-1] / SAMPLE_RATE for sound in (played, recorded)]
    assert abs(last[0] - last[1]) < 0.5


def test_a_result_of_which_nothing_was_said_is_kept(models):
    """What the tool did was done: the model knows of it when it is asked again."""
    thinker = Caller("", "", "six")
    talked = Talked(models, Room(SOUND[: 6 * SAMPLE_RATE], silence(4)), thinker)
    assert talked.said == "six"
    assert [role for role, _ in thinker.asked[1]] == ["user", "assistant", "tool", "assistant", "user"]
    assert thinker.asked[1][3:] == [("assistant", "..."), ("user", "three")]


def test_results_are_kept_where_the_dialogue_is_shortened(models):
    """The tool is not called again: the model goes on from its result."""

    class Full(Caller):
        def ask(self, messages, thought):
            if len(self.asked) != 1:
                Thinker.ask(self, messages, thought)
                return
            self.asked.append([(message["role"], message["content"]) for message in messages])
            result = {"role": "tool", "content": "5", "tool_call_id": "c1"}
            thought.call(CALL, [result])
            thought.end(TooLongError("The conversation is too long", "begin a new one"))

    thinker = Full("", "", "two", "six")
    talked = Talked(models, Room(SOUND[: 6 * SAMPLE_RATE], silence(4)), thinker)
    assert talked.said == "two six"
    assert [event.kind for event in talked.of(Notice)] == ["forgotten"]
    assert thinker.asked[2] == [("user", "three"), ("assistant", ""), ("tool", "5")]


# ---- its parts -------------------------------------------------------------------------------------------------------------


def test_a_dialogue_keeps_the_order_of_roles():
    dialogue = Dialogue("Be brief.")
    for role, text in [("user", "one"), ("user", "two "), ("assistant", ""), ("user", "three"), ("assistant", "four")]:
        dialogue.say(role, text)
    assert [message["content"] for message in dialogue.messages] == ["Be brief.", "one two three", "four"]
    dialogue.say("user", "five")
    assert dialogue.forget()
    assert [message["content"] for message in dialogue.messages] == ["Be brief.", "five"]
    assert not dialogue.forget()
    dialogue.reset()
    assert [message["role"] for message in dialogue.messages] == ["system"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is *very* **good**.", "It is very good."),
        ("<think>How?\nSo.</think>\nYes.", "Yes."),
        ("<think>for ever", ""),
        ("# Title\n- one\n- two\n1. three", "Title one two three"),
        ("five - two is 3.5", "five - two is 3.5"),
        ("See [the page](https://example.com/a) now", "See the page now"),
        ("a [note] b", "a note b"),
        ("Fine 🙂 → good", "Fine good"),
        ("Fine \ud83d\ude42 \ud83d good", "Fine good"),  # in halves, and a half
        ("`code` <break time='9s'/> x", "code break time='9s'/ x"),
        ("x" * 450, "x" * 200 + " " + "x" * 200 + " " + "x" * 50),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_can_be_said(text, said, size):
    """However it comes."""
    speakable = Speakable()
    pieces = [speakable.push(text[at : at + size]) for at in range(0, len(text), size)]
    assert "".join([*pieces, speakable.flush()]).split() == said.split()


def test_words_are_said_as_soon_as_they_are_whole():
    speakable = Speakable()
    assert [speakable.push(piece) for piece in ("Good ", "mor", "ning ", "all")] == ["Good ", "", "morning ", ""]


def test_voice_begins_and_ends():
    rng = np.random.default_rng(2)
    voice = VoiceActivity()
    quiet = (1e-4 * rng.standard_normal(2 * SAMPLE_RATE)).astype(np.float32)
    told = []
    for at in range(0, len(sound := np.concatenate([quiet, FOUR_ONE, quiet])) - PIECE, PIECE):
        voice.hear(sound[at : at + PIECE])
        told.append((at / SAMPLE_RATE, voice.speaking))
    onsets = [time for (_, before), (time, now) in itertools.pairwise(told) if now and not before]
    assert 2.6 < onsets[0] < 2.85
    assert not told[-1][1]


def test_a_click_is_no_voice():
    voice = VoiceActivity()
    for at in range(100):
        voice.hear(np.full(PIECE, 0.5 if at == 50 else 1e-4, np.float32))
        assert not voice.speaking
