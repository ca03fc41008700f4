"""Conversations without threads of their own: against a session driven by hand, alone and beside others."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from paths import DEMO, DIGITS

from msh_mlx import load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation.pooled import Pooled
from msh_mlx.conversation.session import Parts
from msh_mlx.conversation.shared import SharedModel, Tick
from msh_mlx.events import Dropped, Event, Failed, Heard, Ready, Said, Spoke
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from msh_mlx.model.sampling import Sampler

PATIENT = 30  # seconds: much longer than anything here takes
Frames = npt.NDArray[np.float32]  # [frames, 1920]
FRAMES = 40


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class Tape:
    """A source that has what a test gives it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting = np.zeros(0, np.float32)
        self.watch: Callable[[], None] = lambda: None

    def give(self, *frames: Pcm) -> None:
        with self.lock:
            self.waiting = np.concatenate([self.waiting, *frames])
        self.watch()

    def read(self, n: int, timeout: float) -> Pcm | None:
        assert timeout == 0, "a thread that others share must not wait"
        with self.lock:
            if len(self.waiting) < n:
                return None
            pcm, self.waiting = self.waiting[:n], self.waiting[n:]
            return pcm

    def backlog(self) -> float:
        return len(self.waiting) / SAMPLE_RATE

    def trim(self, keep: float) -> float:
        with self.lock:
            n = max(0, len(self.waiting) - round(keep * SAMPLE_RATE))
            self.waiting = self.waiting[n:]
            return n / SAMPLE_RATE


class Talk:
    """A conversation, and what came of it."""

    def __init__(
        self, model: SharedModel, seed: int = 5, on: Callable[[Event], None] = lambda _: None, **sampling: Any
    ) -> None:
        self.events: list[Event] = []
        self.tape = Tape()
        self.tokens: list[int] = []
        samplers = {"text_sampler": Sampler(0.7, 25), "audio_sampler": Sampler(0.8, 250)} | sampling

        def events(event: Event) -> None:
            self.events.append(event)
            on(event)

        self.seat = model.seat(seed=seed, tokens=lambda _, text, __: self.tokens.append(text), **samplers)
        self.pooled = Pooled(self.seat, self.tape, events, delay_limit=1e9)
        self.pooled.start()
        eventually(lambda: self.of(Ready))

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.pooled.stop(PATIENT)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def answered(self, count: int) -> None:
        eventually(lambda: len(self.of(Said)) >= count or self.pooled.failure)
        assert self.pooled.failure is None

    def said(self) -> tuple[list[int], bytes, list[tuple[int, str]]]:
        """Everything that was said: tokens, sound, and text."""
        said = self.of(Said)
        assert [event.index for event in said] == list(range(len(said)))
        return (
            self.tokens,
            np.concatenate([event.pcm for event in said]).tobytes(),
            [(e.index, e.text) for e in self.of(Spoke)],
        )


@pytest.fixture(scope="module")
def model() -> Iterator[SharedModel]:
    made = SharedModel(sessions=16)
    made.load(lambda: Parts(load_lm(DEMO / "model.q8.safetensors", DEMO / "config.json", engine="native"),
                            load_mimi(DEMO / "mimi.safetensors"), load_tokenizer(DEMO / "tokenizer.model")))  # fmt: skip
    yield made
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("msh-")]


@pytest.fixture(scope="module")
def speech() -> Frames:
    return soundfile.read(DIGITS, dtype="float32")[0][: FRAMES * FRAME_SIZE].reshape(FRAMES, FRAME_SIZE)


def alone(model: SharedModel, frames: Frames, **options: Any) -> tuple[list[int], bytes, list[tuple[int, str]]]:
    with Talk(model, **options) as talk:
        for i, pcm in enumerate(frames, 1):
            talk.tape.give(pcm)
            talk.answered(i)
        return talk.said()


def test_it_says_what_a_session_says(model: SharedModel, speech: Frames) -> None:
    session = model.seat(text_sampler=Sampler(0.7, 25), audio_sampler=Sampler(0.8, 250), seed=5).session
    frames = [session.push(pcm) for pcm in speech]
    tokens, sound, texts = alone(model, speech)
    assert tokens == [frame.token for frame in frames]
    assert sound == np.concatenate([frame.pcm for frame in frames]).tobytes()
    assert texts == [(i, frame.text) for i, frame in enumerate(frames) if frame.text]


def test_beside_15_others_it_says_the_same_bytes(
    model: SharedModel, speech: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have sound, seeds and samplers of their own; some restart, come late, pause, or leave in the middle."""
    expected = alone(model, speech)
    sizes: list[int] = []
    monkeypatch.setattr(model, "on_tick", lambda tick: sizes.append(tick.size))
    others = [
        Talk(model, seed=i, text_sampler=Sampler(0.1 * i, i + 1), audio_sampler=Sampler(0.1 * i, 10 * i + 1))
        for i in range(15)
    ]
    with Talk(model) as talk:
        talks = [talk, *others]
        for i, pcm in enumerate(speech):
            for k, each in enumerate(talks):
                if k == 3 and i == FRAMES // 2:
                    assert each.pooled.stop(PATIENT)
                elif k == 4 and i == FRAMES // 3:
                    each.pooled.reset()
                elif k == 5 and i % 3:
                    continue
                each.tape.give(pcm if k == 0 else speech[(7 * k + i) % FRAMES])
            if i % 4 == 3:  # now and then all are there; else they are, by chance, in any tick
                talk.answered(i + 1)
        talk.answered(FRAMES)
        assert talk.said() == expected
    for other in others:
        assert other.pooled.stop(PATIENT)
    assert max(sizes) > 8


def test_a_reset_begins_anew_behind_what_was_said(model: SharedModel, speech: Frames) -> None:
    expected = alone(model, speech[:20])
    with Talk(model) as talk:
        talk.tape.give(*speech[20:27])
        talk.answered(7)
        talk.tape.give(speech[27])
        talk.pooled.reset()
        eventually(lambda: Ready(2) in talk.events)
        before = talk.events.index(Ready(2))
        assert len([event for event in talk.events[:before] if isinstance(event, Said)]) in (7, 8)
        del talk.events[: before + 1]
        talk.tokens.clear()
        talk.tape.give(*speech[:20])
        talk.answered(20)
        assert talk.said() == expected


def test_a_reset_waits_until_the_last_frame_was_told(model: SharedModel, speech: Frames) -> None:
    """Else what the old conversation said last would be taken for the beginning of the new one."""
    begun_meanwhile: list[int] = []

    def linger(event: Event) -> None:
        if isinstance(event, Said) and event.index == 2 and not begun_meanwhile:
            talk.pooled.reset()
            time.sleep(0.1)
            begun_meanwhile.append(len(talk.of(Ready)) - 1)

    with Talk(model, on=linger) as talk:
        talk.tape.give(*speech[:3])
        eventually(lambda: len(talk.of(Ready)) == 2)
    assert begun_meanwhile == [0]


def test_sound_that_is_late_is_dropped_and_told(model: SharedModel, speech: Frames) -> None:
    with Talk(model) as talk:
        talk.pooled._delay_limit = 0.4
        talk.tape.give(*speech[:30])
        eventually(lambda: talk.of(Dropped))
        eventually(lambda: talk.tape.backlog() < FRAME_SECONDS)
        dropped = sum(event.seconds for event in talk.of(Dropped))
        eventually(lambda: len(talk.of(Said)) + round(dropped / FRAME_SECONDS) == 30)
        assert talk.pooled.metrics.dropped == pytest.approx(dropped)


def test_it_hears_silence_while_it_is_muted(model: SharedModel, speech: Frames) -> None:
    with Talk(model) as talk:
        talk.pooled.muted = True
        talk.tape.give(speech[12])
        talk.answered(1)
        assert not talk.of(Heard)[0].pcm.any()


@pytest.mark.parametrize(("kind", "where"), [(Heard, "encoder"), (Spoke, "model"), (Said, "decoder")])
def test_a_failure_ends_only_its_own_conversation(model: SharedModel, speech: Frames, kind: type, where: str) -> None:
    def fail(event: Event) -> None:
        if isinstance(event, kind):
            raise OSError("no more")

    with Talk(model) as other, Talk(model, on=fail) as talk:
        for i in range(FRAMES):
            talk.tape.give(speech[i])
            other.tape.give(speech[i])
        eventually(lambda: talk.pooled.failure)
        assert talk.pooled.failure
        assert talk.pooled.failure.where == where
        assert [str(event.error) for event in talk.of(Failed)] == ["no more"]
        other.answered(FRAMES)


def test_a_step_that_fails_is_told_to_all_in_it(
    model: SharedModel, speech: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError("the weights are gone")

    with Talk(model) as one, Talk(model) as two:
        monkeypatch.setattr("msh_mlx.conversation.shared.step_together", fail)
        for talk in (one, two):
            talk.tape.give(speech[0])
            eventually(lambda talk=talk: talk.pooled.failure)
            assert talk.pooled.failure.where == "model"
            assert "gone" in str(talk.pooled.failure.error)


def test_it_has_no_thread_of_its_own(model: SharedModel, speech: Frames) -> None:
    before = threading.active_count()
    talks = [Talk(model, seed=i) for i in range(10)]
    for talk in talks:
        talk.tape.give(*speech[:2])
    for talk in talks:
        talk.answered(2)
    assert threading.active_count() <= max(before, model.workers + 2)
    for talk in talks:
        assert talk.pooled.stop(PATIENT)


def test_its_memory_is_free_when_it_has_ended(model: SharedModel, speech: Frames) -> None:
    """At once, not when Python's collector runs: with a real model it may be gigabytes."""
    gc.collect()
    gc.disable()
    try:
        talk = Talk(model)
        talk.tape.give(*speech[:3])
        talk.answered(3)
        talk.pooled.reset()
        eventually(partial(talk.events.__contains__, Ready(2)))
        session = weakref.ref(talk.seat.session)
        assert talk.pooled.stop(PATIENT)
        del talk.pooled, talk.seat  # what has the events and the source may live on
        eventually(lambda: session() is None)
        talk.tape.watch()
    finally:
        gc.enable()


def test_ticks_are_told(model: SharedModel, speech: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[Tick] = []
    monkeypatch.setattr(model, "on_tick", ticks.append)
    with Talk(model) as talk:
        talk.tape.give(*speech[:5])
        talk.answered(5)
    assert [tick.size for tick in ticks] == [1] * 5
    assert all(tick.seconds > 0 and len(tick.waits) == 1 and tick.waits[0] >= 0 for tick in ticks)


def test_what_a_step_costs_is_measured_for_as_many_as_may_come(model: SharedModel) -> None:
    assert [size for size, _ in model.costs._curve] == [1, 2, 4, 8, 16]
