"""Play sound that is made faster than it is heard."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic

from ..errors import MshError
from ..format import FRAME_SECONDS, Pcm
from .ends import Loudspeaker

_FIRST = 3  # frames that wait before play begins
_MOST = 24
_GRACE = 0.04  # seconds that a frame may be late: as much is still in the ring
_LATE = 0.5  # seconds: a process that was stopped for longer does not try to catch up
_CLOSE = 1.0  # seconds to wait for the thread


class Player:
    """Passes frames to a loudspeaker at the pace of sound, on a thread of its own.

    A loudspeaker's ring keeps little, and shortens sound that it gets too early: it is made for conversations. So frames wait
    here. If they run out before `finish`, play pauses until more are there, each time twice as many.

    Use it as a context manager; at its end the thread stops, and what is not played is forgotten.
    """

    def __init__(self, loudspeaker: Loudspeaker) -> None:
        self.gaps = 0  # how often frames ran out while somebody listened
        self._loudspeaker = loudspeaker
        self._frames: deque[Pcm] = deque()
        self._news = threading.Condition()
        self._wanted = _FIRST
        self._written = 0  # frames that went to the loudspeaker
        self._expected = False  # more frames are on their way
        self._finished = self._stopping = False
        self._failure: Exception | None = None
        self._suspicions = 0
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._stopping = True
            self._news.notify_all()
        self._thread.join(_CLOSE)

    def put(self, pcm: Pcm) -> None:
        """Play a frame, `[1920]` float32, behind those that wait."""
        with self._news:
            self._frames.append(pcm)
            self._expected = True
            self._news.notify_all()

    def pause(self) -> None:
        """Say that nothing follows for now: what waits is played, and silence behind it is not a gap."""
        with self._news:
            self._expected = False
            self._news.notify_all()

    def finish(self) -> None:
        """Say that no frame follows."""
        with self._news:
            self._finished = True
            self._expected = False
            self._news.notify_all()

    @property
    def waiting(self) -> float:
        """How many seconds of sound wait here."""
        return len(self._frames) * FRAME_SECONDS

    @property
    def heard(self) -> float:
        """How many seconds of sound the device has taken."""
        return max(0.0, self._written * FRAME_SECONDS - self._loudspeaker.queued())

    @property
    def over(self) -> bool:
        """Whether everything was played, after `finish`."""
        return self._finished and not self._frames and self._loudspeaker.queued() <= 0

    def check(self) -> None:
        """Raise MshError if the loudspeaker is lost. Call it a few times a second."""
        if self._failure:
            raise self._failure
        # Look twice: a process that was stopped and goes on has not heard of its devices for a while, either.
        self._suspicions = self._suspicions + 1 if self._loudspeaker.lost else 0
        if self._suspicions >= 2:
            device = self._loudspeaker.device
            name = f' "{device.name}"' if device else ""
            raise MshError(f"The loudspeaker{name} is lost", "connect it again, or name another with --output-device")

    def _run(self) -> None:
        try:
            while self._begins():
                due = monotonic()
                self._write()  # one more than is due, so that the next may come late
                while self._comes(due):
                    self._write()
                    due = max(due + FRAME_SECONDS, monotonic() - _LATE)
        except Exception as error:  # the main thread raises it
            self._failure = error

    def _begins(self) -> bool:
        """Wait until enough frames are there to begin; return False to stop."""
        with self._news:
            self._news.wait_for(lambda: self._stopping or len(self._frames) >= (self._wanted if self._expected else 1))
            return not self._stopping

    def _comes(self, due: float) -> bool:
        """Wait until a frame is due and there. If there is none in time, pause the loudspeaker, and return False."""
        with self._news:
            self._news.wait_for(lambda: self._stopping, max(0.0, due - monotonic()))
            self._news.wait_for(lambda: self._stopping or bool(self._frames), _GRACE)
            if self._frames and not self._stopping:
                return True
            if self._expected and not self._stopping:
                self.gaps += 1
                self._wanted = min(2 * self._wanted, _MOST)
        self._loudspeaker.pause()
        return False

    def _write(self) -> None:
        with self._news:
            frame = self._frames.popleft()
        self._loudspeaker.write(frame)
        self._written += 1
