"""Hold a conversation between a recording and a server."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from time import perf_counter

import numpy as np

from ..conversation.live import NullSink
from ..conversation.recordings import BrokenOffError
from ..errors import MshError
from ..events import Dropped, Event, Failed, Heard, Notice, Said, Spoke
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from .address import Address
from .remote import LAST_WORDS, STALLED, TOGETHER, UNANSWERED, EndedError, Remote

_ROOM = 2 * UNANSWERED  # frames of a recording that are read ahead


class _Feed:
    """A source with the frames of a recording, in real time or as fast as they are read, and then silence without end.

    Published servers answer a little less than they hear; with the silence they answer all of the recording. If the sound is
    not in real time, a frame of silence comes only after a second in which no frame was read.

    One thread gives the frames, and another reads them.
    """

    def __init__(self, realtime: bool) -> None:
        self.frames: deque[Pcm] = deque()  # those of the recording that were not read yet
        self.ended = False  # whether no more frames of the recording come
        self.latest = 0.0  # when one of them was last read
        self._realtime = realtime
        self._due = 0.0  # when the next frame is due: any frame in real time, else a frame of silence

    def read(self, n: int, timeout: float) -> Pcm | None:
        now = perf_counter()
        if self._realtime and not self._due:
            self._due = now + n / SAMPLE_RATE
        if now < self._due and (self._realtime or not self.frames):
            return None
        if self.frames:
            pcm = self.frames.popleft()
            self.latest = now
        elif self.ended:
            pcm = np.zeros(n, np.float32)
        else:
            return None
        self._due = self._due + n / SAMPLE_RATE if self._realtime else now + STALLED
        return pcm

    def backlog(self) -> float:
        return 0.0

    def trim(self, keep: float) -> float:
        return 0.0


class _Reply:
    """Pairs a server's reply with what it heard, frame by frame."""

    def __init__(self, address: Address, notify: Callable[[str], None]) -> None:
        self.heard: deque[Pcm] = deque()  # frames that were not answered yet
        self.error: BaseException | None = None
        self.answered = 0  # frames that were answered
        self.latest = 0.0  # when a frame of the reply last came
        self._address = address
        self._notify = notify
        self._said: deque[tuple[Pcm, str]] = deque()
        self._text = ""  # of the next frame
        self._dropped = 0.0  # seconds

    @property
    def is_complete(self) -> bool:
        return len(self._said) >= len(self.heard)

    def add(self, event: Event) -> None:
        """Take an event of the conversation."""
        match event:
            case Spoke(_, piece):
                self._text += piece
            case Said(_, pcm):
                self._said.append((pcm, self._text))
                self._text, self.latest = "", perf_counter()
            case Dropped(_, seconds):
                # The server does not answer what it did not hear: put silence there, so that what follows keeps its place.
                self._said.extend([(_SILENCE, "")] * round(seconds / FRAME_SECONDS))
                self._dropped += seconds
                self._notify(f"{self._address} was too slow and did not hear {self._dropped:.2f} s of the recording.")
            case Notice(_, message):
                self._notify(message)
            case Failed(_, error):
                self.error = error

    def answer(self, pcm: Pcm, text: str) -> Iterator[Event]:
        """Yield the events of the next frame: what was heard, and `text` and `pcm` as the answer."""
        index, self.answered = self.answered, self.answered + 1
        yield Heard(index, self.heard.popleft())
        if text:
            yield Spoke(index, text)
        yield Said(index, pcm)

    def take(self, keep: int) -> Iterator[Event]:
        """Yield the events of the frames that are answered, except for the last `keep` frames that were heard."""
        while self._said and len(self.heard) > keep:
            yield from self.answer(*self._said.popleft())

    def rest(self) -> Iterator[Event]:
        """Yield the events of the frames that are left; text that came last goes with the last of them."""
        while self.heard and (self._said or self._text):
            pcm, text = self._said.popleft() if self._said else (_SILENCE, "")
            if not self._said or len(self.heard) == 1:
                text, self._text = text + self._text, ""
            yield from self.answer(pcm, text)


def _behind(events: SimpleQueue[Event]) -> list[Event]:
    """Wait for the events behind the last frame and return them, without the text of a frame that follows."""
    came: list[tuple[float, Event]] = []
    begin = now = perf_counter()
    with contextlib.suppress(Empty):
        while (left := begin + LAST_WORDS - now) > 0:
            event = events.get(timeout=left)
            now = perf_counter()
            if isinstance(event, Said):
                return [event for at, event in came if now - at > TOGETHER or not isinstance(event, Spoke)]
            came.append((now, event))
    return [event for _, event in came]


_SILENCE: Pcm = np.zeros(FRAME_SIZE, np.float32)


def answers(
    address: Address,
    frames: Iterator[Pcm],
    *,
    realtime: bool,
    notify: Callable[[str], None],
    check: Callable[[], None],
) -> Iterator[Event]:
    """Let a server hear `frames`, each `[1920]` float32 at 24 kHz, and yield the events of each frame for `converse_with`.

    Parameters
    ----------
    address
        The server's address.
    frames
        The recording.
    realtime
        Whether to send in real time, as published servers need it. Without it, the address must have `realtime=0`, so that the
        server drops nothing and takes its time.
    notify
        Called with each sentence that the user should see.
    check
        Called several times a second; it may raise an error to end the conversation.

    Raises
    ------
    BrokenOffError
        The conversation is lost after something was said; the events until then were yielded.
    MshError
        The conversation cannot begin, or is lost before anything was said.
    Exception
        `frames` or `check` raised it.
    """
    events: SimpleQueue[Event] = SimpleQueue()
    feed = _Feed(realtime)
    remote = Remote(address, feed, NullSink(), events.put, recording=True)
    reply = _Reply(address, notify)
    remote.start()
    try:
        while not (feed.ended and reply.is_complete) and reply.error is None:
            check()
            while len(feed.frames) < _ROOM and not feed.ended:
                if (pcm := next(frames, None)) is None:
                    feed.ended = True
                else:
                    reply.heard.append(pcm)
                    feed.frames.append(pcm)
            # Hold back the last frame: its text may come after its sound.
            yield from reply.take(1 if feed.ended else 0)
            with contextlib.suppress(Empty):
                reply.add(events.get(timeout=0.1))
        if reply.heard and reply.error is None:
            for event in _behind(events):
                reply.add(event)
    finally:
        remote.stop()
    while not events.empty():
        if isinstance(event := events.get(), Notice):
            reply.add(event)
    yield from reply.rest()
    if (error := reply.error) is None:
        return
    if not reply.answered or not isinstance(error, MshError):
        raise error
    # Some servers do not answer all that they hear. One that answered to the end, or nearly, has not failed.
    to_the_end = len(reply.heard) <= UNANSWERED or reply.latest > feed.latest - STALLED
    if not (isinstance(error, EndedError) and error.over and feed.ended and not feed.frames and to_the_end):
        what = error.what if isinstance(error, EndedError) else error.clause
        raise BrokenOffError(what, "what was said until then is kept") from None
    seconds = len(reply.heard) * FRAME_SECONDS
    notify(f"{address} answered {seconds:.2f} s less than it heard; the reply ends in silence.")
    while reply.heard:
        yield from reply.answer(_SILENCE, "")
