"""A conversation with a recording: the user's sound comes from a file, Moshi's voice and words go to files."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..errors import MshError
from ..events import Event, Heard, Notice, Said, Span, Spoke, SpokeWord, Word
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from ..sound.recordings import Recording, WavWriter, read_frames
from ..system.newfile import Output, open_output
from ..system.streams import StandardOutput
from .text import Words, transcript_line

if TYPE_CHECKING:
    from .session import Frame, Session

_STAGES = "encode", "step", "decode"
PATIENCE = 30.0  # seconds of silence in which a translation must end; it is some seconds behind the speech


@dataclass(frozen=True)
class Plan:
    """What to do with a recording.

    `reply` and `transcript` are the files to write, or None. `stereo` puts the user on the left channel of the reply. `tail` is
    how much silence follows the recording, in seconds. If it is a translation, silence follows until it has ended, for at most
    so long; None: no silence, or for at most `PATIENCE`. `max_steps` is the most steps to take, or None for all.
    """

    reply: Output | None = None
    transcript: Output | None = None
    stereo: bool = False
    tail: float | None = None
    max_steps: int | None = None


@dataclass(frozen=True)
class Began:
    """A conversation begins. `name` is the recording's, `steps` how many steps it takes (None if not known)."""

    name: str
    steps: int | None


@dataclass
class Ended:
    """A conversation has ended: `seconds` of sound took `wall` seconds.

    `stages` maps "encode", "step" and "decode" to the seconds that each took, frame by frame; the arrays are empty if the times
    are not known.
    """

    name: str
    plan: Plan
    seconds: float = 0.0
    wall: float = 0.0
    words: list[Word] = field(default_factory=list)
    stages: dict[str, array[float]] = field(default_factory=lambda: {stage: array("d") for stage in _STAGES})

    @property
    def speed(self) -> float:
        """Return the seconds of sound per second of work: above 1 is faster than real time."""
        return self.seconds / self.wall if self.wall else 0.0


RecordingEvent: TypeAlias = Began | Event | Ended


class BrokenOffError(MshError):
    """A conversation ended too early and cannot be repeated as it was; the files keep what was said until then."""


def converse(session: Session, recording: Recording, plan: Plan, listener: Callable[[RecordingEvent], None]) -> Ended:
    """Let `session`, in fresh state, hear a recording; arguments, result and errors are those of `converse_with`."""

    def answer(index: int, pcm: Pcm, reply: Callable[[Pcm], Frame]) -> Iterator[Event]:
        begin = perf_counter()
        frame = reply(pcm)
        yield Heard(index, pcm)
        for stage, seconds in vars(frame.timings).items():
            yield Span(stage, index, begin, begin + seconds)
            begin += seconds
        if frame.text:
            yield Spoke(index, frame.text)
        yield Said(index, frame.pcm)

    def hold(frames: Iterator[Pcm]) -> Iterator[Event]:
        count = 0
        for count, pcm in enumerate(frames, 1):
            yield from answer(count - 1, pcm, session.push)
        if session.translates:
            yield from end(count)

    def end(index: int) -> Iterator[Event]:
        """Wait for the end of a translation. The speech ends in frame `index`."""
        silence = np.zeros(FRAME_SIZE, np.float32)
        yield from answer(index, silence, lambda _: session.end_input())
        for later in range(1, _frames(patience) + 1):
            if session.ended:
                return
            yield from answer(index + later, silence, session.push)
        if not session.ended:
            what = f"The translation of {recording.name} has not ended after {patience:g} s of silence"
            yield Notice("translation", f"{what}; --tail sets how long to wait.", "warning")

    if not session.translates:
        return converse_with(hold, recording, plan, listener)
    patience = PATIENCE if plan.tail is None else plan.tail
    return converse_with(hold, recording, replace(plan, tail=None), listener)


def converse_with(
    hold: Callable[[Iterator[Pcm]], Iterator[Event]],
    recording: Recording,
    plan: Plan,
    listener: Callable[[RecordingEvent], None],
) -> Ended:
    """Let Moshi hear a recording, write what it says, and call `listener` with the events as they happen.

    `hold` takes the frames of the recording, each `[1920]` float32 at 24 kHz, and yields events: for each frame first `Heard`,
    then `Span` and `Spoke` as far as they are known, and last `Said`. Frame t of the reply is what step t said, so sample n of
    the reply belongs to sample n of the recording. `listener` gets a `Began`, these events, words and notices, and an `Ended`
    at the end.

    The files appear together at the end, or not at all. If the conversation breaks off, they hold what was said until then.
    What goes to the standard output is written at once.

    Raises
    ------
    InputError
        The recording is cut off, damaged or not finite, or a file cannot be written.
    BrokenOffError
        `hold` raised it; the files are complete by then.
    MshError
        The reply becomes too long for a WAV file.
    """
    tail = _frames(plan.tail or 0.0)
    ended, words = Ended(recording.name, plan), Words()
    heard = silence = np.zeros(FRAME_SIZE, np.float32)

    def spoke(new: list[Word]) -> None:
        for word in new:
            ended.words.append(word)
            if transcript:
                transcript.file.write(transcript_line(word))
            listener(SpokeWord(word))

    with ExitStack() as stack:
        reply = stack.push(open_output(plan.reply)) if plan.reply else None
        transcript = stack.push(open_output(plan.transcript)) if plan.transcript else None
        writer = WavWriter(reply.file, SAMPLE_RATE, 2 if plan.stereo else 1) if reply else None
        listener(Began(recording.name, _count_steps(recording, tail, plan.max_steps)))
        begin = perf_counter()
        frames = chain(read_frames(recording, SAMPLE_RATE, FRAME_SIZE), repeat(silence, tail))
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
                        spoke(words.push(index * FRAME_SECONDS, text))
                    case Said(index, pcm):
                        if writer:
                            writer.write(np.stack([heard, pcm], axis=1) if plan.stereo else pcm)
                        for output in (reply, transcript):
                            if isinstance(output, StandardOutput):
                                output.file.flush()
                        ended.seconds, ended.wall = (index + 1) * FRAME_SECONDS, perf_counter() - begin
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


def _frames(seconds: float) -> int:
    return math.ceil(round(seconds / FRAME_SECONDS, 6))


def _count_steps(recording: Recording, tail: int, max_steps: int | None) -> int | None:
    if recording.samples is None:
        return max_steps
    steps = math.ceil(recording.samples * SAMPLE_RATE / recording.rate / FRAME_SIZE) + tail
    return min(steps, max_steps or steps)
