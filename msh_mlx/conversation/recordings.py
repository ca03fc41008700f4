"""Holds a conversation with a recording: sound in from a file, voice and words out to files, events to whoever listens."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..errors import MshError
from ..events import Event, Heard, Notice, Said, Span, Spoke, SpokeWord, Word
from ..format import Pcm
from ..sound.recordings import Recording, WavWriter, read_frames
from ..system.newfile import Output, open_output
from ..system.streams import StandardOutput
from .text import Words

if TYPE_CHECKING:
    from .session import Session

_STAGES = "encode", "step", "decode"


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


@dataclass
class Ended:
    """A conversation that has ended: `seconds` of sound took `wall` seconds.

    `stages` are "encode", "step" and "decode", with the seconds that each took in every frame; empty if they are not known.
    """

    name: str
    plan: Plan
    seconds: float = 0.0
    wall: float = 0.0
    words: list[Word] = field(default_factory=list)
    stages: dict[str, array[float]] = field(default_factory=lambda: {stage: array("d") for stage in _STAGES})

    @property
    def speed(self) -> float:
        """Seconds of sound per second: above 1 is faster than real time."""
        return self.seconds / self.wall if self.wall else 0.0


RecordingEvent: TypeAlias = Began | Event | Ended


class BrokenOffError(MshError):
    """A conversation that cannot be held again as it was has ended too early; what was said until then is kept."""


def converse(session: Session, recording: Recording, plan: Plan, listener: Callable[[RecordingEvent], None]) -> Ended:
    """Let a fresh `session` hear a recording, as `converse_with` does."""

    def hold(frames: Iterator[Pcm]) -> Iterator[Event]:
        for index, pcm in enumerate(frames):
            begin = perf_counter()
            frame = session.push(pcm)
            yield Heard(index, pcm)
            for stage, seconds in vars(frame.timings).items():
                yield Span(stage, index, begin, begin + seconds)
                begin += seconds
            if frame.text:
                yield Spoke(index, frame.text)
            yield Said(index, frame.pcm)

    return converse_with(hold, session.sample_rate, session.frame_size, recording, plan, listener)


def converse_with(
    hold: Callable[[Iterator[Pcm]], Iterator[Event]],
    rate: int,
    size: int,
    recording: Recording,
    plan: Plan,
    listener: Callable[[RecordingEvent], None],
) -> Ended:
    """Let Moshi hear a recording, write what it says, and tell `listener` about it as it happens.

    `hold` takes the recording in frames of `size` samples, `rate` a second, and yields what happens: for each frame `Heard`,
    what is known of `Span` and `Spoke`, and at last `Said`. Frame t of the reply is what step t said, so that sample n of it
    lies beside sample n of the recording. `listener` gets all that, words and notices, and an `Ended` at the end. The files
    appear together at the end, or not at all; where the conversation breaks off, with what there was of it. Into the standard
    output everything goes at once.

    Raises
    ------
    InputError
        The recording is cut off, damaged or not finite; a file cannot be written.
    BrokenOffError
        As `hold` raised it, when the files are complete.
    MshError
        The reply becomes too long for a WAV file.
    """
    step_seconds = size / rate
    tail = math.ceil(round(plan.tail / step_seconds, 6))
    ended, words = Ended(recording.name, plan), Words()
    heard = np.zeros(size, np.float32)

    def spoke(new: list[Word]) -> None:
        for word in new:
            ended.words.append(word)
            if transcript:
                line = json.dumps({"start": word.start, "text": word.text}, ensure_ascii=False)
                transcript.file.write(line.encode() + b"\n")
            listener(SpokeWord(word))

    with ExitStack() as stack:
        reply = stack.push(open_output(plan.reply)) if plan.reply else None
        transcript = stack.push(open_output(plan.transcript)) if plan.transcript else None
        writer = WavWriter(reply.file, rate, 2 if plan.stereo else 1) if reply else None
        listener(Began(recording.name, _count_steps(recording, rate, size, tail, plan.max_steps), step_seconds))
        begin = perf_counter()
        frames = _with_tail(read_frames(recording, rate, size), tail, size)
        broken: BrokenOffError | None = None
        try:
            for event in hold(frames):
                listener(event)
                match event:
                    case Heard(_, heard):
                        while recording.notes:
                            listener(Notice("recording", recording.notes.pop(0)))
                    case Span():
                        ended.stages[event.stage].append(event.end - event.begin)
                    case Spoke(index, text):
                        spoke(words.push(index * step_seconds, text))
                    case Said(index, pcm):
                        if writer:
                            writer.write(np.stack([heard, pcm], axis=1) if plan.stereo else pcm)
                        for output in (reply, transcript):
                            if isinstance(output, StandardOutput):
                                output.file.flush()
                        ended.seconds, ended.wall = (index + 1) * step_seconds, perf_counter() - begin
                        if index + 1 == plan.max_steps:
                            break
        except BrokenOffError as error:
            broken = error
        spoke(words.flush())
        if reply and writer:
            writer.finish()
            reply.commit()
        if transcript:
            transcript.commit()
    listener(ended)
    if broken:
        raise broken
    return ended


def _with_tail(frames: Iterator[Pcm], tail: int, size: int) -> Iterator[Pcm]:
    yield from frames
    for _ in range(tail):
        yield np.zeros(size, np.float32)


def _count_steps(recording: Recording, rate: int, size: int, tail: int, max_steps: int | None) -> int | None:
    if recording.samples is None:
        return max_steps
    steps = math.ceil(recording.samples * rate / recording.rate / size) + tail
    return min(steps, max_steps or steps)
