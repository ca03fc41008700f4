"""`EchoFree`: what the microphone hears without what the loudspeaker plays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from .events import EchoLevels, Event, Pcm

if TYPE_CHECKING:
    from mimi import Capture, EchoCanceller, Playback, Reference

    from .devices import Loudspeaker, Microphone

Mode = Literal["auto", "on", "off"]
MODES: tuple[Mode, ...] = get_args(Mode)

_EVERY = 0.2  # seconds between two events


@dataclass(frozen=True)
class EchoState:
    """How it is with the echo: the `mode`, its `level` in the microphone's sound while Moshi speaks (dB of full scale, None
    without an echo), and how much of it is taken away (`removed`, dB, None where none is).
    """

    mode: Mode
    level: float | None = None
    removed: float | None = None


class EchoFree:
    """A source for the pipeline between the devices' rings and the codec; see `pipeline.Source`.

    `read` and `trim` belong to one thread; the mode may be set, and the state asked for, by any.

    Parameters
    ----------
    microphone, loudspeaker
        They may be closed and opened again meanwhile.
    events
        Gets `EchoLevels` a few times a second while there is an echo, on the thread that reads.
    mode
        When to take the echo away: "auto", if there is one; "on", always; "off", never.
    """

    def __init__(
        self,
        microphone: Microphone,
        loudspeaker: Loudspeaker,
        events: Callable[[Event], None],
        mode: Mode = "auto",
    ) -> None:
        from mimi import EchoCanceller

        self._microphone = microphone
        self._loudspeaker = loudspeaker
        self._events = events
        self._mode = mode
        self._canceller: EchoCanceller = EchoCanceller(mode=mode)
        self._reference: Reference | None = None
        self._rings: tuple[Capture, Playback] | None = None
        self._told = 0.0
        self._frames = 0  # in which there was an echo
        self._level = self._removed = 0.0  # summed over these

    # ---- as the pipeline's source ----------------------------------------------------------------------------------------

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for the next `n` samples (a multiple of 64) and return them without the echo, `[n]` float32.

        None if they are not there after `timeout` seconds; then nothing is lost.
        """
        place = self._microphone.place()
        pcm = self._microphone.read(n, timeout)
        if pcm is None:
            return None
        pcm = self._canceller.process(pcm, self._played(place, n))
        self._note()
        return pcm

    def backlog(self) -> float:
        """Return how much sound waits, in seconds."""
        return self._microphone.backlog()

    def trim(self, keep: float) -> float:
        """Forget the oldest sound so that `keep` seconds wait; return how many were lost."""
        return self._microphone.trim(keep)

    def _played(self, place: tuple[Capture, float] | None, n: int) -> Pcm:
        """Return what the loudspeaker played meanwhile, `[n]` float32."""
        playback = self._loudspeaker.ring
        if place is None or playback is None:
            return np.zeros(n, np.float32)
        capture, position = place
        if self._reference is None or self._rings != (capture, playback):
            from mimi import Reference

            if self._reference:
                self._canceller.reset()
            self._rings = capture, playback
            self._reference = Reference(capture, playback)
        return self._reference.read(position, n)

    def _note(self) -> None:
        state = self.state()
        if state.level is None:
            return
        self._frames += 1
        self._level += state.level
        self._removed += state.removed or 0.0
        now = perf_counter()
        if now - self._told > _EVERY:
            self._told = now
            self._events(EchoLevels(now, state.level, state.removed or 0.0))

    # ---- for whoever watches ---------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """When the echo is taken away."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = self._canceller.mode = mode

    def state(self) -> EchoState:
        """Return how it is now."""
        stats = self._canceller.stats()
        if self._mode == "off" or not stats["echo"] or not isfinite(stats["level"]):
            return EchoState(self._mode)
        return EchoState(self._mode, stats["level"], stats["removed"] or None)

    def mean(self) -> EchoState:
        """Return how it was, in the mean over the time in which there was an echo."""
        if not self._frames:
            return EchoState(self._mode)
        return EchoState(self._mode, self._level / self._frames, self._removed / self._frames)
