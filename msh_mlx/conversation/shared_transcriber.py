"""`SharedTranscriber`: one speech-to-text model for many recordings and live streams at once, on one thread."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np

from ..errors import MshError
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from ..metrics import Durations
from .codec import check_pcm
from .model_worker import Job, ModelWorker
from .session import Parts
from .transcriber import Progress, Rows, Transcribed, Transcriber, check_behind

ROWS = 4  # recordings and streams at once; benchmarks/transcription.py says what more bring
_STEPS = 4  # steps of recordings between two looks at live streams
_ONCE = 4 * FRAME_SIZE  # samples of a live stream that are heard at once
LONGEST_LIVE = 60.0  # seconds of a live stream that may wait to be heard


@dataclass
class LiveProgress:
    """What was heard of a live stream since the last time.

    `words` are those that are complete, `seconds` is how much sound was heard in all, `pause` and `turn_ended` are as for
    `Transcriber`. With `flushed`, they are the last words of a turn that `flush` has ended. With `ended`, nothing more follows;
    `error` says that it ended because something failed.
    """

    seconds: float
    words: list[Transcribed] = field(default_factory=list)
    pause: float | None = None
    turn_ended: bool = False
    flushed: bool = False
    ended: bool = False
    error: MshError | None = None


class Hearing(Job):
    """A recording that is being written down."""

    def __init__(
        self,
        shared: SharedTranscriber,
        number: int,
        sound: Iterator[Pcm],
        told: Callable[[Progress], None],
        released: Callable[[], None],
    ) -> None:
        super().__init__(shared)
        self.number, self.sound, self.released = number, sound, released
        self._told = told
        self._seconds = 0.0

    def tell(self, progress: Progress) -> None:
        self._seconds = progress.seconds
        self._told(progress)

    def fail(self, error: MshError) -> None:
        self._told(Progress(self.number, self._seconds, ended=True, error=error))


class LiveHearing(Job):
    """A live stream that is being written down. Its methods may be called on any thread, and do not wait."""

    def __init__(self, shared: SharedTranscriber, told: Callable[[LiveProgress], None]) -> None:
        super().__init__(shared)
        self._told = told
        self.transcriber: Transcriber | None = None
        # Sound; where a turn ends, the silence behind it; and None where all before is to be forgotten.
        self.pieces: deque[Pcm | float | None] = deque()
        self._waiting = 0  # samples

    def push(self, pcm: Pcm) -> None:
        """Take more of the sound, of any length, as `Transcriber.push` does.

        Raises
        ------
        InputError
            It is not sound.
        MshError
            Too much waits already: the sound comes faster than the model hears.
        """
        check_pcm(pcm, "sound")
        with self._worker._changed:
            if self._waiting + len(pcm) > LONGEST_LIVE * SAMPLE_RATE:
                raise MshError(
                    f"More than {LONGEST_LIVE:.0f} s of sound wait to be heard", "send it as fast as one speaks"
                )
            self._waiting += len(pcm)
            self.pieces.append(pcm)
            self._worker._changed.notify()

    @property
    def waiting(self) -> float:
        """How many seconds of sound wait to be heard."""
        return self._waiting / SAMPLE_RATE

    def flush(self, behind: float = FRAME_SECONDS) -> None:
        """End a turn, as `Transcriber.flush` does: its last words are told with `flushed`.

        Raises
        ------
        InputError
            `behind` is not a number from 0 to 60.
        """
        check_behind(behind)
        with self._worker._changed:
            self.pieces.append(float(behind))
            self._worker._changed.notify()

    def reset(self) -> None:
        """Forget all that was heard, as `Transcriber.reset` does, and what still waits to be. Nothing is told of it."""
        with self._worker._changed:
            self._waiting = 0
            self.pieces.clear()
            self.pieces.append(None)
            self._worker._changed.notify()

    def fail(self, error: MshError) -> None:
        self._told(LiveProgress(0.0, ended=True, error=error))

    def take(self) -> Pcm | float | None:
        """Return what is next to be heard: some sound, the silence behind a turn, or None, as in `pieces`."""
        piece = self.pieces.popleft()
        if not isinstance(piece, np.ndarray):
            return piece
        parts, size = [piece], len(piece)
        while size < _ONCE and self.pieces and isinstance(more := self.pieces[0], np.ndarray):
            self.pieces.popleft()
            parts.append(more)
            size += len(more)
        pcm = np.concatenate(parts)
        if len(pcm) > _ONCE:
            self.pieces.appendleft(pcm[_ONCE:])
        self._waiting -= min(len(pcm), _ONCE)
        return pcm[:_ONCE]

    def hear(self, piece: Pcm | float | None) -> None:
        transcriber = self.transcriber
        assert transcriber
        if piece is None:
            transcriber.reset()
            return
        flushed = isinstance(piece, float)
        words = transcriber.flush(piece) if isinstance(piece, float) else transcriber.push(piece)
        turn_ended = not flushed and transcriber.turn_ended
        self._told(LiveProgress(transcriber.seconds, words, transcriber.pause, turn_ended, flushed))


class SharedTranscriber(ModelWorker[Hearing | LiveHearing, Parts]):
    """Weights, codec and tokenizer of a speech-to-text model, and the one thread that hears for all.

    Recordings are rows of one batch, which they join and leave between steps. A live stream has a `Transcriber` of its own,
    since it cannot go on before its sound has come; its steps come between those of the batch. Together they have the
    places. What each hears is what it would hear alone. `load` raises InputError if the parts do not belong together, or are
    not of a speech-to-text model.

    Parameters
    ----------
    rows
        How many places there are.
    waiting
        How many may wait for one.
    kv_bits
        As for `Session`.
    on_failure
        As for `ModelWorker`.

    Attributes
    ----------
    frames
        How long it takes to hear a frame of a live stream.
    """

    def __init__(
        self,
        *,
        rows: int = ROWS,
        waiting: int = 16,
        kv_bits: int | None = None,
        on_failure: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        super().__init__("speech-to-text", "msh-stt", rows, waiting, on_failure)
        self.frames = Durations()
        self._rows = rows
        self._kv_bits = kv_bits
        self._numbers = itertools.count()
        self._gone: list[Hearing | LiveHearing] = []  # that have left since the last step
        self._idle: list[Transcriber] = []

    def transcribe(
        self,
        sound: Iterator[Pcm],
        told: Callable[[Progress], None],
        client: str = "",
        released: Callable[[], None] = lambda: None,
    ) -> Hearing:
        """Write a recording down. `told` is called on the model's thread with its progress, up to one that has ended.

        `sound` yields as `transcribe` takes it; it is read on other threads. `client` says whose it is. `released` is called
        on some thread when `sound` is not read any more.

        Raises
        ------
        BusyError
            Too many wait.
        MshError
            The model has failed.
        """
        job = Hearing(self, next(self._numbers), sound, told, released)
        self._join(job, client)
        return job

    def listen(self, told: Callable[[LiveProgress], None], client: str = "") -> LiveHearing:
        """Write a live stream down. `told` is called on the model's thread. Errors are those of `transcribe`.

        Sound that is pushed before the stream has a place waits for it.
        """
        job = LiveHearing(self, told)
        self._join(job, client)
        return job

    def _leave(self, job: Hearing | LiveHearing) -> None:
        with self._changed:
            waits = job in self._places.all() and job not in self._places
            if job in self._places:
                self._gone.append(job)
            super()._leave(job)
        if waits and isinstance(job, Hearing):
            job.released()

    # ---- the model's thread ----------------------------------------------------------------------------------------------

    def _prepare(self, load: Callable[[], Parts]) -> Callable[[], None]:
        parts = load()
        lm, mimi, tokenizer = parts.lm, parts.mimi, parts.tokenizer
        rows = Rows(lm, mimi, tokenizer, self._rows, steps=_STEPS, kv_bits=self._kv_bits)
        warm = Transcriber(lm, mimi, tokenizer, kv_bits=self._kv_bits)
        warm.warm_up()
        self._idle.append(warm)
        return partial(self._work, parts, rows)

    def _work(self, parts: Parts, rows: Rows) -> None:
        with ThreadPoolExecutor(1, "msh-stt-codec") as codec:
            while not self._closed:
                self._turn(parts, rows, codec)

    def _turn(self, parts: Parts, rows: Rows, codec: ThreadPoolExecutor) -> None:
        """Wait for something to hear, and hear some of each."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._gone or self._places.following() or self._sounds(rows))
            if self._closed:
                return
            self._clear(rows)
            self._admit(parts, rows)
            live = [(job, job.take()) for job in self._places if isinstance(job, LiveHearing) and job.pieces]
        for job, piece in live:
            begin = perf_counter()
            job.hear(piece)
            if isinstance(piece, np.ndarray) and len(piece):
                self.frames.add((perf_counter() - begin) * FRAME_SIZE / len(piece))
        if len(rows):
            told = rows.step(codec)
            with self._changed:
                hearings = {job.number: job for job in self._places if isinstance(job, Hearing)}
                for progress in told:
                    if progress.ended and progress.index in hearings:
                        self._places.leave(hearings[progress.index])
            for progress in told:
                if hearing := hearings.get(progress.index):
                    if progress.ended:
                        hearing.released()
                    hearing.tell(progress)

    def _clear(self, rows: Rows) -> None:
        """Free what those who have left had."""
        for job in self._gone:
            if isinstance(job, Hearing):
                rows.leave(job.number)
                job.released()
            elif isinstance(job, LiveHearing) and job.transcriber:
                job.transcriber.reset()
                self._idle.append(job.transcriber)
        self._gone.clear()

    def _admit(self, parts: Parts, rows: Rows) -> None:
        while job := self._places.following():
            self._places.admit(job)
            if isinstance(job, Hearing):
                rows.join(job.number, _guarded(job.sound))
            elif isinstance(job, LiveHearing):
                job.transcriber = (
                    self._idle.pop()
                    if self._idle
                    else Transcriber(parts.lm, parts.mimi, parts.tokenizer, kv_bits=self._kv_bits)
                )

    def _sounds(self, rows: Rows) -> bool:
        return len(rows) > 0 or any(isinstance(job, LiveHearing) and job.pieces for job in self._places)


def _guarded(sound: Iterator[Pcm]) -> Iterator[Pcm]:
    """Turn what goes wrong unexpectedly with one sound into an error that ends only this one."""
    try:
        yield from sound
    except MshError:
        raise
    except Exception as error:
        raise MshError(f"The recording cannot be read ({type(error).__name__}: {error}).") from error
