"""The three threads: against `Session.push`, and with ends and a session that do what a test wants."""

import itertools
import random
import threading
import time
import weakref
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from msh_native import Capture, Ear, Mouth, Playback
from paths import DEMO, DIGITS

from msh_mlx import Session, Step, load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation.pipeline import Pipeline
from msh_mlx.conversation.text import Words
from msh_mlx.conversation.warmup import warm
from msh_mlx.events import Dropped, Failed, Heard, Loading, Queues, Ready, Said, Span, Spoke, SpokeWord, Underrun
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE

PATIENT = 10  # seconds: much longer than anything here takes


def eventually(condition):
    """Wait until `condition()` holds and return what it gives."""
    deadline = time.monotonic() + PATIENT
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    return result


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("msh-")]


class Tape:
    """A source that has what a test gives it."""

    def __init__(self, frames=()):
        self.changed = threading.Condition()
        self.waiting = np.zeros(0, np.float32)
        self.trimmed = []
        for pcm in frames:
            self.give(pcm)

    def give(self, pcm):
        with self.changed:
            self.waiting = np.concatenate([self.waiting, pcm])
            self.changed.notify()

    def read(self, n, timeout):
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.waiting) >= n, timeout):
                return None
            pcm, self.waiting = self.waiting[:n], self.waiting[n:]
            return pcm

    def backlog(self):
        return len(self.waiting) / SAMPLE_RATE

    def trim(self, keep):
        with self.changed:
            n = max(0, len(self.waiting) - round(keep * SAMPLE_RATE))
            self.waiting = self.waiting[n:]
            self.trimmed.append(n)
            return n / SAMPLE_RATE


class Reel:
    """A sink that remembers."""

    def __init__(self):
        self.calls = []
        self.underruns = 0
        self.asked = set()  # the threads that asked for the figures
        self.frames = []

    def write(self, pcm):
        self.calls.append("frame")
        self.frames.append(pcm)

    def pause(self):
        self.calls.append("pause")

    def clear(self):
        self.calls.append("clear")

    def queued(self):
        return 0.1

    def stats(self):
        self.asked.add(threading.current_thread().name)
        return {"underruns": self.underruns, "cushion": 1920}


class Toy:
    """A session that says what it hears, at once; counts its steps as state. `on(stage)` is called as each stage begins."""

    sample_rate, frame_size, frame_rate = SAMPLE_RATE, FRAME_SIZE, 12.5
    TIMINGS = SimpleNamespace(total=0.001, step=0.0005)

    def __init__(self, on=lambda stage: None):
        self.on = on
        self.steps = 0
        self.resets = Counter()
        self.pushed = 0

    def encode(self, pcm):
        self.on("encode")
        return np.array([round(float(pcm[0]) * 1000)], np.uint32)

    def step(self, codes):
        self.on("step")
        self.steps += 1
        return Step(self.steps, codes), f" {int(codes[0])}"

    def decode(self, codes):
        self.on("decode")
        return np.full(FRAME_SIZE, codes[0] / 1000, np.float32)

    def warm_up(self):
        self.on("warm_up")

    def push(self, pcm):
        self.on("push")
        self.pushed += 1
        return SimpleNamespace(timings=self.TIMINGS)

    def reset(self):
        self.steps = 0
        self.on("reset")

    def reset_encoder(self):
        self.on("reset_encoder")

    def reset_model(self):
        self.on("reset_model")
        self.steps = 0

    def reset_decoder(self):
        self.on("reset_decoder")


class Run:
    """A pipeline and what came of it."""

    def __init__(self, session=None, tape=None, reel=None, load=None, lighter=None, on=lambda event: None, **options):
        self.events = []
        self.tape, self.reel = tape or Tape(), reel or Reel()
        self.session = session or Toy()

        def events(event):
            self.events.append(event)
            on(event)

        make = warm(load or (lambda progress: self.session), lighter)
        self.pipeline = Pipeline(make, self.tape, self.reel, events, **options)

    def __enter__(self):
        self.pipeline.start()
        return self

    def __exit__(self, *_):
        assert self.pipeline.stop(PATIENT)
        assert not our_threads()

    def of(self, *kinds):
        return [event for event in self.events if isinstance(event, kinds)]

    def ready(self, conversation=1):
        eventually(lambda: Ready(conversation) in self.events)

    def answered(self, count):
        eventually(lambda: len(self.of(Said)) >= count)


def number(i):
    """A frame that a `Toy` hears as i."""
    return np.full(FRAME_SIZE, i / 1000, np.float32)


def numbers(frames):
    return [round(float(pcm[0]) * 1000) for pcm in frames]


# ---- the demo model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech():
    """[80, 1920] of the demo recording."""
    pcm = soundfile.read(DIGITS, dtype="float32")[0]
    return pcm[: 80 * FRAME_SIZE].reshape(80, FRAME_SIZE)


def load_demo(progress=None, seed=5, engine="auto"):
    lm = load_lm(DEMO / "model.q8.safetensors", DEMO / "config.json", engine=engine)
    return Session(lm, load_mimi(DEMO / "mimi.safetensors"), load_tokenizer(DEMO / "tokenizer.model"), seed=seed)


@pytest.fixture(scope="module")
def by_hand(speech):
    """What a session says to the recording, frame by frame."""
    session = load_demo()
    return [session.push(pcm) for pcm in speech]


def test_the_reply_is_that_of_a_session_driven_by_hand(speech, by_hand):
    with Run(load=load_demo, delay_limit=PATIENT) as run:
        run.ready()
        for pcm in speech:
            eventually(lambda: run.tape.backlog() < 2 * FRAME_SECONDS)
            run.tape.give(pcm)
        run.answered(len(speech))
    assert len(run.reel.frames) == len(by_hand)
    assert all((ours == theirs.pcm).all() for ours, theirs in zip(run.reel.frames, by_hand, strict=True))
    said = [(i, frame.text) for i, frame in enumerate(by_hand) if frame.text]
    assert [(event.index, event.text) for event in run.of(Spoke)] == said
    words = Words()
    expected = [word for i, text in said for word in words.push(i * FRAME_SECONDS, text)] + words.flush()
    assert [event.word.text for event in run.of(SpokeWord)] == [word.text for word in expected]
    assert [event.word.start for event in run.of(SpokeWord)] == pytest.approx([word.start for word in expected])
    assert len(expected) == run.pipeline.metrics.words == 3
    for kind, frames in ((Heard, speech), (Said, run.reel.frames)):
        assert [event.index for event in run.of(kind)] == list(range(len(speech)))
        assert all((event.pcm == pcm).all() for event, pcm in zip(run.of(kind), frames, strict=True))
    assert run.pipeline.metrics.drops == 0
    assert run.pipeline.metrics.memory.rss > 8_000_000


def test_the_memory_of_mlx_is_measured(speech):
    pytest.importorskip("mlx.core")
    with Run(load=partial(load_demo, engine="mlx"), delay_limit=PATIENT) as run:
        run.ready()
        run.tape.give(speech[0])
        run.answered(1)
    memory = run.pipeline.metrics.memory
    assert memory.rss > memory.peak >= memory.active > 8_000_000


def test_a_reset_in_mid_conversation_starts_afresh(speech, by_hand):
    with Run(load=load_demo) as run:
        run.ready()
        for pcm in speech[40:60]:
            run.tape.give(pcm[::-1])
            eventually(lambda: run.tape.backlog() == 0)
        run.pipeline.reset()
        run.ready(2)
        before = len(run.reel.frames)
        assert before == 20
        for pcm in speech[:40]:
            run.tape.give(pcm)
            eventually(lambda: run.tape.backlog() == 0)
        run.answered(before + 40)
    assert all((ours == theirs.pcm).all() for ours, theirs in zip(run.reel.frames[before:], by_hand, strict=False))
    assert [event.word.text for event in run.of(SpokeWord)][-2:] == ["four", "one"]


def test_between_the_rings_of_devices(speech, by_hand):
    """In blocks of any size; what is played begins when the first reply is there, fades in, and is the reply."""
    chance = random.Random(1)
    capture, playback = Capture(SAMPLE_RATE), Playback(SAMPLE_RATE, frame=FRAME_SIZE)
    mouth = Mouth(playback)
    sink = SimpleNamespace(
        write=mouth.write, pause=mouth.pause, clear=mouth.clear, queued=mouth.queued, stats=playback.stats
    )
    frames = 25
    with Run(load=load_demo, tape=Ear(capture), reel=sink) as run:
        run.ready()
        pcm, played = speech[:frames].ravel(), []
        while len(pcm):
            block = chance.randrange(1, 1500)
            capture.feed(pcm[:block])
            pcm = pcm[block:]
            run.answered((frames * FRAME_SIZE - len(pcm)) // FRAME_SIZE)
            played.append(playback.render(min(block, playback.queued))[:, 0])
        played.append(playback.render(playback.queued)[:, 0])
        assert run.pipeline.metrics.drops == run.pipeline.metrics.underruns == 0
    played, said = np.concatenate(played), np.concatenate([frame.pcm for frame in by_hand[:frames]])
    fade = SAMPLE_RATE // 200
    assert len(played) == len(said)
    assert np.array_equal(played[fade:], said[fade:])


# ---- a conversation's course ---------------------------------------------------------------------------------------------


def test_loading_and_the_warm_up_are_told_and_all_model_work_is_on_one_thread():
    where = {}

    def note(stage):
        where.setdefault(stage, set()).add(threading.current_thread().name)

    session = Toy(note)

    def load(progress):
        note("load")
        progress(0.5)
        return session

    with Run(load=load, tape=Tape([number(999)])) as run:
        run.ready()
        assert session.steps == 0
        assert 5 <= session.pushed <= 25
        # What the microphone heard while the model was loaded is not for the conversation.
        run.tape.give(number(1))
        run.answered(1)
        run.pipeline.reset()
        run.ready(2)
    told = run.events[: run.events.index(Ready(1))]
    assert [(event.stage, event.seconds is None, event.fraction) for event in told] == [
        ("loading", True, None),
        ("loading", True, 0.5),
        ("loading", False, None),
        ("warm-up", True, None),
        ("warm-up", False, None),
    ]
    assert all(isinstance(event, Loading) for event in told)
    assert numbers(run.reel.frames) == [1]
    model, encoder, decoder = {"msh-model"}, {"msh-encoder"}, {"msh-decoder"}
    assert where == {
        **dict.fromkeys(["load", "warm_up", "push", "reset", "step", "reset_model"], model),
        **dict.fromkeys(["encode", "reset_encoder"], encoder),
        **dict.fromkeys(["decode", "reset_decoder"], decoder),
    }


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_lighter_model_takes_the_place_of_one_that_is_too_slow(slow):
    loaded, times = [], []

    def load(progress):
        loaded.append(Toy())
        return loaded[-1]

    def lighter(pace):
        times.append(pace)
        assert threading.current_thread().name == "msh-model"
        assert loaded[-1].pushed >= 25
        return load if len(times) <= slow else None

    with Run(load=load, lighter=lighter) as run:
        run.ready()
        run.tape.give(number(1))
        run.answered(1)
    assert len(loaded) == len(times) == slow + 1
    # What a toy says of its steps.
    assert times == [Toy.TIMINGS.step] * len(times)
    assert [session.steps for session in loaded] == [0] * slow + [1]
    stages = [event.stage for event in run.of(Loading) if event.seconds is None]
    assert stages == ["loading", "warm-up"] * (slow + 1)
    assert numbers(run.reel.frames) == [1]


def test_what_else_runs_does_not_make_a_model_too_slow():
    class Disturbed(Toy):
        def push(self, pcm):
            self.pushed += 1
            # Two steps in three take a hundred times as long.
            step = 0.04 if self.pushed % 3 == 0 else 4.0
            return SimpleNamespace(timings=SimpleNamespace(total=0.1, step=step))

    paces = []
    with Run(Disturbed(), lighter=lambda pace: paces.append(pace)) as run:
        run.ready()
    assert paces == [pytest.approx(0.04)]


def test_a_model_that_is_far_too_slow_is_judged_soon(monkeypatch):
    monkeypatch.setattr("msh_mlx.conversation.warmup._JUDGING", 0.0)
    session, paces = Toy(), []
    with Run(session, lighter=lambda pace: paces.append(pace)) as run:
        run.ready()
    assert paces == [Toy.TIMINGS.step]
    assert session.pushed == 10  # five to warm up, five to judge it by


def test_the_next_model_is_loaded_when_the_last_one_has_gone():
    sessions = []

    def load(progress):
        assert all(session() is None for session in sessions)
        session = load_demo()
        sessions.append(weakref.ref(session))
        return session

    with Run(load=load, lighter=lambda pace: load if pace > 0 and len(sessions) < 2 else None) as run:
        run.ready()
    assert len(sessions) == 2


def test_a_lighter_model_that_cannot_be_loaded():
    def fail(progress):
        raise ValueError("gone")

    run = Run(lighter=lambda pace: fail)
    run.pipeline.start()
    eventually(lambda: run.pipeline.failure)
    assert (run.pipeline.failure.where, str(run.pipeline.failure.error)) == ("start", "gone")
    assert run.pipeline.stop(PATIENT)


def test_every_frame_is_told_and_measured():
    reel = Reel()
    with Run(reel=reel) as run:
        run.ready()
        for i in range(50):
            run.tape.give(number(i))
            run.answered(i + 1)
        reel.underruns = 2
        eventually(lambda: run.of(Underrun))
        eventually(lambda: run.of(Queues)[-1].underruns)
    spans = run.of(Span)
    for stage in ("encode", "step", "decode"):
        ours = [span for span in spans if span.stage == stage]
        assert [span.index for span in ours] == list(range(50))
        assert all(span.begin <= span.end for span in ours)
    for i in range(50):
        encode, step, decode = (
            next(s for s in spans if (s.stage, s.index) == (stage, i)) for stage in ("encode", "step", "decode")
        )
        assert encode.end <= step.begin <= step.end <= decode.begin
    summary = run.pipeline.metrics.summary()
    assert {summary[stage]["count"] for stage in run.pipeline.metrics.STAGES} == {50}
    assert summary["delay"]["p50"] == pytest.approx(summary["reply"]["p50"] + 0.1, rel=0.02)
    assert summary["frames"] == summary["words"] == 50
    assert run.of(Underrun) == [Underrun(2)]
    levels = run.of(Queues)[-1]
    assert (levels.loudspeaker, levels.cushion, levels.underruns) == (0.1, 0.08, 2)
    assert reel.asked == {"msh-encoder"}  # not the decoder, for every answer
    times = [event.time for event in run.of(Queues)]
    assert all(b - a >= 0.05 for a, b in itertools.pairwise(times))


def test_the_last_word_does_not_wait_for_another():
    session = Toy()
    session.step = lambda codes: (Step(0, codes), " one" if codes[0] == 1 else "")
    with Run(session) as run:
        run.ready()
        run.tape.give(number(1))
        for _ in range(11):
            run.tape.give(number(0))
            eventually(lambda: run.tape.backlog() == 0)
        run.answered(12)
        assert not run.of(SpokeWord)
        run.tape.give(number(0))
        run.answered(13)
        assert [event.word.text for event in run.of(SpokeWord)] == ["one"]


def test_while_muted_the_model_hears_silence():
    with Run() as run:
        run.ready()
        for i in range(1, 31):
            if i % 10 == 1:
                run.pipeline.muted = i == 11
            run.tape.give(number(i))
            run.answered(i)
    expected = [i if not 11 <= i <= 20 else 0 for i in range(1, 31)]
    assert numbers(run.reel.frames) == expected == numbers(event.pcm for event in run.of(Heard))


def test_a_reset_goes_through_the_queues_in_order():
    step = threading.Semaphore(0)
    session = Toy(lambda stage: stage == "step" and step.acquire(timeout=PATIENT))
    with Run(session) as run:
        run.ready()
        for i in range(3):
            run.tape.give(number(i))
            eventually(lambda: run.tape.backlog() == 0)
        run.pipeline.reset()
        # The encoder, which waits for room, looks around ten times per second: from then on, sound is for nobody.
        time.sleep(0.5)
        run.tape.give(number(77))
        step.release(3)
        run.ready(2)
        eventually(lambda: run.tape.backlog() == 0)
        step.release(2)
        for i in range(2):
            run.tape.give(number(10 + i))
            run.answered(4 + i)
    assert numbers(run.reel.frames) == [0, 1, 2, 10, 11]
    assert run.reel.calls == [
        *["frame"] * 3,
        "clear",
        *["frame"] * 2,
    ]
    course = [event for event in run.events if isinstance(event, Ready | Heard | Said | SpokeWord)]
    first, second = course[: course.index(Ready(2))], course[course.index(Ready(2)) :]
    for events, count in ((first, 3), (second, 2)):
        for kind in (Heard, Said):
            assert [event.index for event in events if isinstance(event, kind)] == list(range(count))
        assert sum(isinstance(event, SpokeWord) for event in events) == count
    assert run.pipeline.metrics.drops == 0
    assert session.steps == 2


def test_a_microphone_that_gives_nothing_pauses_the_loudspeaker_once():
    with Run() as run:
        run.ready()
        for again in range(2):
            run.tape.give(number(again))
            run.answered(again + 1)
            eventually(lambda again=again: run.reel.calls.count("pause") == again + 1)
            time.sleep(0.4)
    assert run.reel.calls == ["frame", "pause"] * 2


# ---- a model that is too slow --------------------------------------------------------------------------------------------


def test_queues_are_bounded():
    gate = threading.Event()
    session = Toy(lambda stage: stage == "step" and gate.wait(PATIENT))
    with Run(session, delay_limit=1e9) as run:
        run.ready()
        for i in range(20):
            run.tape.give(number(i))
        eventually(lambda: len(run.of(Heard)) == 3)
        time.sleep(0.15)
        assert len(run.of(Heard)) == 3  # two wait, and the model has one
        assert run.tape.backlog() == pytest.approx(17 * FRAME_SECONDS)
        gate.set()
        run.answered(20)
    assert numbers(run.reel.frames) == list(range(20))


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_model_costs_the_oldest_sound_and_no_more_delay(seed):
    chance = random.Random(seed)
    step = threading.Semaphore(0)
    session = Toy(lambda stage: stage == "step" and step.acquire(timeout=PATIENT))
    dropping = []

    def on(event):
        if isinstance(event, Dropped):
            dropping.append((event.index, run.tape.backlog()))

    with Run(session, on=on) as run:
        run.ready()
        given = 0

        def give(count):
            nonlocal given
            for _ in range(count):
                given += 1
                run.tape.give(number(given))

        def settled():
            """The encoder has done all it can: what is late has been given up."""
            late = len(run.of(Heard)) - len(run.of(Said))
            return run.tape.backlog() + FRAME_SECONDS * late <= 0.4 + 1e-9

        for _ in range(6):
            give(chance.randrange(1, 12))
            eventually(settled)
            for _ in range(chance.randrange(4)):
                answered = len(run.of(Said))
                step.release()
                eventually(lambda answered=answered: len(run.of(Said)) > answered or not run.tape.backlog())
        give(20)
        eventually(settled)
        # The model is quick again: nothing more is lost, and the delay is gone.
        lost = run.pipeline.metrics.dropped
        step.release(1000)
        eventually(lambda: run.tape.backlog() == 0 and len(run.of(Said)) == len(run.of(Heard)))
        for _ in range(20):
            give(1)
            eventually(lambda: run.tape.backlog() == 0 and len(run.of(Said)) == len(run.of(Heard)))
        assert run.pipeline.metrics.dropped == lost > 0
    heard = numbers(event.pcm for event in run.of(Heard))
    assert heard == sorted(set(heard))
    assert heard[-20:] == list(range(given - 19, given + 1))
    metrics = run.pipeline.metrics
    assert len(heard) + round(metrics.dropped / FRAME_SECONDS) == given
    assert metrics.drops == len(run.of(Dropped))
    assert metrics.dropped == pytest.approx(sum(event.seconds for event in run.of(Dropped)))
    # What was given up lies just before the frame that the event names, and one frame was kept.
    assert all(backlog == pytest.approx(FRAME_SECONDS) for _, backlog in dropping)
    gaps = {i: heard[i] - heard[i - 1] - 1 for i in range(1, len(heard)) if heard[i] > heard[i - 1] + 1}
    told = Counter()
    for event in run.of(Dropped):
        told[event.index] += round(event.seconds / FRAME_SECONDS)
    told.pop(0, None)
    assert gaps == told


# ---- how it ends ---------------------------------------------------------------------------------------------------------


class BrokenError(Exception):
    pass


def broken_at(place, on_call=1):
    """Return a `Run` where `place` breaks, and where that is."""
    calls = itertools.count(1)

    def break_(*_):
        if next(calls) == on_call:
            raise BrokenError

    session, tape, reel = Toy(lambda stage: stage == place and break_()), Tape(), Reel()
    options = {}
    if place == "load":
        options["load"] = break_
    elif place == "events":
        options["on"] = lambda event: isinstance(event, Spoke) and break_()
    for end, name in ((tape, "read"), (tape, "trim"), (tape, "backlog"), (reel, "write"), (reel, "clear")):
        if place == name:
            whole = getattr(end, name)
            setattr(end, name, lambda *args, whole=whole: break_() or whole(*args))
    return Run(session, tape, reel, **options)


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("load", "start"),
        ("push", "start"),
        ("reset", "start"),
        ("trim", "start"),
        *((place, "encoder") for place in ("encode", "read", "backlog", "reset_encoder")),
        *((place, "model") for place in ("step", "events", "reset_model")),
        *((place, "decoder") for place in ("decode", "write", "clear", "reset_decoder")),
    ],
)
def test_a_failure_anywhere_ends_everything(place, where):
    with broken_at(place) as run:
        for i in range(3):
            run.tape.give(number(i))
        run.pipeline.reset()
        deadline = time.monotonic() + PATIENT
        while not run.pipeline.join(0.02):
            assert time.monotonic() < deadline
            run.tape.give(number(9))
        assert not our_threads()
    (failed,) = run.of(Failed)
    assert failed is run.pipeline.failure
    assert failed.where == where
    assert type(failed.error) is BrokenError


def test_a_listener_that_always_breaks_ends_the_conversation_too():
    def on(event):
        raise BrokenError

    with Run(on=on) as run:
        assert run.pipeline.join(PATIENT)
    assert run.pipeline.failure.where == "start"


def test_a_stop_is_not_a_failure_and_may_come_again():
    run = Run()
    assert run.pipeline.stop()
    run.pipeline.start()  # too late
    assert not our_threads()
    with Run() as run:
        run.ready()
        run.tape.give(number(1))
        run.answered(1)
        assert run.pipeline.stop(PATIENT)
        assert run.pipeline.stop(PATIENT)
    assert run.pipeline.failure is None
    assert not run.of(Failed)
    assert [event.word.text for event in run.of(SpokeWord)] == ["1"]


def test_a_listener_may_stop_the_conversation():
    run = Run(on=lambda event: isinstance(event, Said) and run.pipeline.stop(PATIENT))
    with run:
        run.ready()
        run.tape.give(number(1))
        assert run.pipeline.join(PATIENT)
    assert run.pipeline.failure is None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
def test_after_a_stop_the_system_knows_no_thread_of_ours_either():
    """MLX cleans up behind the back of Python, which must not end meanwhile."""
    mx = pytest.importorskip("mlx.core")

    def compile_on_the_way(stage):
        if stage == "push":
            for _ in range(20):
                mx.compile(lambda x: x + 1)(mx.ones(3))

    for _ in range(20):
        with Run(Toy(compile_on_the_way)) as run:
            run.ready()
            threads = [Path(f"/proc/self/task/{thread.native_id}") for thread in our_threads()]
            assert run.pipeline.stop(PATIENT)
            assert not any(thread.exists() for thread in threads)


def test_a_stage_that_hangs_does_not_hang_the_stop():
    hangs, gate = threading.Event(), threading.Event()

    def hang(stage):
        if stage == "step":
            hangs.set()
            gate.wait(PATIENT)

    with Run(Toy(hang)) as run:
        run.ready()
        run.tape.give(number(1))
        assert hangs.wait(PATIENT)
        begin = time.monotonic()
        assert not run.pipeline.stop(0.1)
        assert time.monotonic() - begin < PATIENT / 2
        eventually(lambda: [thread.name for thread in our_threads()] == ["msh-model"])
        assert all(thread.daemon for thread in our_threads())
        gate.set()
        assert run.pipeline.join(PATIENT)


@pytest.mark.parametrize("seed", range(50))
def test_a_stop_at_any_moment_leaves_no_thread(seed):
    chance = random.Random(seed)
    pauses = {stage: chance.choice([0, 0, 0.001, 0.005]) for stage in ("load", "push", "encode", "step", "decode")}
    session = Toy(lambda stage: time.sleep(pauses.get(stage, 0)))
    with Run(session, delay_limit=chance.choice([0.1, 0.4])) as run:
        until = time.monotonic() + chance.choice([0, 0.005, 0.02, 0.08])
        while time.monotonic() < until:
            run.tape.give(number(1))
            if chance.random() < 0.2:
                run.pipeline.reset()
            time.sleep(chance.choice([0, 0.002]))
        assert run.pipeline.stop(PATIENT)
        assert not our_threads()
    assert run.pipeline.failure is None
