"""Holds a conversation with a recording: sound in from a file, voice and words out to files, events to whoever listens."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MshError
from ..events import Word
from ..format import Pcm
from ..sound.recordings import Recording, WavWriter, read_frames
from ..system.newfile import Output, open_output
from ..system.streams import StandardOutput
from .text import Words

if TYPE_CHECKING:
    from .session import Session, Timings


@dataclass(frozen=True)
class Plan:
    """What to do with a recording.

    `reply` and `transcript` are what to write, if anything; `stereo` puts the user on the left of the reply; `tail` is
    silence to hear after the recording, in seconds; `max_steps` ends the conversation early.
    """

    reply: Output | None = None
    transcript: Output | None = None
    stereo: bool = False
    tail: float = 0.0
    max_steps: int | None = None


@dataclass(frozen=True)
class Began:
    """A conversation begins: with which recording, and of how many steps (None: unknown) of how many seconds each."""

    name: str
    steps: int | None
    step_seconds: float


@dataclass(frozen=True)
class Stepped:
    """A step was made; `count` steps so far took `wall` seconds."""

    count: int
    wall: float


@dataclass(frozen=True)
class Spoke:
    """Moshi has spoken a word."""

    word: Word


@dataclass(frozen=True)
class Noted:
    """Something of the recording is not heard, says `sentence`."""

    sentence: str


@dataclass
class Summary:
    """A conversation that has ended: `seconds` of sound took `wall` seconds; the times of its steps are in seconds."""

    name: str
    plan: Plan
    seconds: float = 0.0
    wall: float = 0.0
    words: list[Word] = field(default_factory=list)
    encode: array[float] = field(default_factory=lambda: array("d"))
    step: array[float] = field(default_factory=lambda: array("d"))
    decode: array[float] = field(default_factory=lambda: array("d"))

    @property
    def speed(self) -> float:
        """Seconds of sound per second: above 1 is faster than real time."""
        return self.seconds / self.wall if self.wall else 0.0

    def add(self, timings: Timings) -> None:
        """Note how long a step took."""
        self.encode.append(timings.encode)
        self.step.append(timings.step)
        self.decode.append(timings.decode)


Event = Began | Stepped | Spoke | Noted | Summary


@dataclass(frozen=True)
class Answer:
    """What Moshi said while it heard a frame: both sounds, `[1920]` float32, its text, and how long that took, if known."""

    heard: Pcm
    pcm: Pcm
    text: str
    timings: Timings | None = None


class BrokenOffError(MshError):
    """A conversation that cannot be held again as it was has ended too early; what was said until then is kept."""


def converse(session: Session, recording: Recording, plan: Plan, listener: Callable[[Event], None]) -> Summary:
    """Let a fresh `session` hear a recording, as `converse_with` does."""

    def answers(frames: Iterator[Pcm]) -> Iterator[Answer]:
        for pcm in frames:
            frame = session.push(pcm)
            yield Answer(pcm, frame.pcm, frame.text, frame.timings)

    return converse_with(answers, session.sample_rate, session.frame_size, recording, plan, listener)


def converse_with(
    answers: Callable[[Iterator[Pcm]], Iterator[Answer]],
    rate: int,
    size: int,
    recording: Recording,
    plan: Plan,
    listener: Callable[[Event], None],
) -> Summary:
    """Let Moshi hear a recording, write what it says, and tell `listener` about it as it happens.

    `answers` takes the recording in frames of `size` samples, `rate` a second, and yields what is said to each. Frame t of the
    reply is what step t said, so that sample n of it lies beside sample n of the recording. The files appear together at the
    end, or not at all; where the answers break off, with what there was of them. Into the standard output everything goes at
    once.

    Raises
    ------
    InputError
        The recording is cut off, damaged or not finite; a file cannot be written.
    BrokenOffError
        As `answers` raised it, when the files are complete.
    MshError
        The reply becomes too long for a WAV file.
    """
    step_seconds = size / rate
    tail = math.ceil(round(plan.tail / step_seconds, 6))
    summary, words = Summary(recording.name, plan), Words()

    def spoke(new: list[Word]) -> None:
        for word in new:
            # A time on the clock of the recording, without the noise of binary fractions.
            word = Word(round(word.start, 3), word.text)
            summary.words.append(word)
            if transcript:
                line = json.dumps({"start": word.start, "text": word.text}, ensure_ascii=False)
                transcript.file.write(line.encode() + b"\n")
            listener(Spoke(word))

    with ExitStack() as stack:
        reply = stack.push(open_output(plan.reply)) if plan.reply else None
        transcript = stack.push(open_output(plan.transcript)) if plan.transcript else None
        writer = WavWriter(reply.file, rate, 2 if plan.stereo else 1) if reply else None
        listener(Began(recording.name, _count_steps(recording, rate, size, tail, plan.max_steps), step_seconds))
        begin = perf_counter()
        frames = _with_tail(read_frames(recording, rate, size), tail, size)
        broken: BrokenOffError | None = None
        try:
            for count, answer in enumerate(answers(frames)):
                if writer:
                    writer.write(np.stack([answer.heard, answer.pcm], axis=1) if plan.stereo else answer.pcm)
                while recording.notes:
                    listener(Noted(recording.notes.pop(0)))
                if answer.timings:
                    summary.add(answer.timings)
                spoke(words.push(count * step_seconds, answer.text))
                for output in (reply, transcript):
                    if isinstance(output, StandardOutput):
                        output.file.flush()
                summary.seconds, summary.wall = (count + 1) * step_seconds, perf_counter() - begin
                listener(Stepped(count + 1, summary.wall))
                if count + 1 == plan.max_steps:
                    break
        except BrokenOffError as error:
            broken = error
        spoke(words.flush())
        if reply and writer:
            writer.finish()
            reply.commit()
        if transcript:
            transcript.commit()
    listener(summary)
    if broken:
        raise broken
    return summary


def _with_tail(frames: Iterator[Pcm], tail: int, size: int) -> Iterator[Pcm]:
    yield from frames
    for _ in range(tail):
        yield np.zeros(size, np.float32)


def _count_steps(recording: Recording, rate: int, size: int, tail: int, max_steps: int | None) -> int | None:
    if recording.samples is None:
        return max_steps
    steps = math.ceil(recording.samples * rate / recording.rate / size) + tail
    return min(steps, max_steps or steps)
