"""A microphone and a loudspeaker without a sound card: the rings of real devices, with clocks that a program moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import soundfile
from msh_native import Capture, Ear, Playback

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE, Pcm

BLOCK = SAMPLE_RATE // 100  # samples of a device's callback


def speech(path: Path) -> Iterator[Pcm]:
    """Yield a recording (24 kHz mono) again and again, in blocks `[240]` float32."""
    pcm, rate = soundfile.read(path, dtype="float32")
    assert rate == SAMPLE_RATE
    blocks = pcm[: len(pcm) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return (blocks[i % len(blocks)] for i in count())


class Ends:
    """A microphone and a loudspeaker. The user of this class moves their clocks with `hear` and `play`."""

    def __init__(self) -> None:
        self.capture = Capture(SAMPLE_RATE)
        self.playback = Playback(SAMPLE_RATE, frame=FRAME_SIZE)
        self.source = Ear(self.capture)
        self.answers = threading.Semaphore(0)  # one for each frame written

    def hear(self, pcm: Pcm) -> None:
        """Let the microphone's callback deliver some samples."""
        self.capture.feed(pcm)

    def play(self, samples: int) -> Pcm:
        """Let the loudspeaker's callback fetch some samples; return them, `[samples]`."""
        return self.playback.render(samples)[:, 0]

    # As the pipeline's sink.

    def write(self, pcm: Pcm) -> None:
        self.playback.write(pcm)
        self.answers.release()

    def pause(self) -> None:
        self.playback.pause()

    def clear(self) -> None:
        self.playback.clear()

    def queued(self) -> float:
        return self.playback.queued / SAMPLE_RATE

    def stats(self) -> dict[str, Any]:
        return self.playback.stats()


class Clock(threading.Thread):
    """Moves the clocks of both ends with real time, `speed` times as fast, in steps of 10 ms."""

    def __init__(self, ends: Ends, blocks: Iterator[Pcm], speed: float) -> None:
        super().__init__(name="clock", daemon=True)
        self._ends, self._blocks, self._seconds = ends, blocks, BLOCK / SAMPLE_RATE / speed
        self._ending = threading.Event()
        self.late = 0.0  # seconds, the most

    def run(self) -> None:
        begin = perf_counter()
        for i in count():
            due = begin + i * self._seconds
            if self._ending.wait(max(0.0, due - perf_counter())):
                break
            self.late = max(self.late, perf_counter() - due)
            self._ends.hear(next(self._blocks))
            self._ends.play(BLOCK)

    def stop(self) -> None:
        self._ending.set()
        self.join()
