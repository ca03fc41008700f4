"""Play sound to its end, without a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from time import sleep

from ..errors import MshError
from ..format import Pcm
from .devices import Device
from .ends import Loudspeaker

_AHEAD = 2.0  # seconds that wait to be played
_TICK = 0.02  # seconds


def play(frames: Iterable[Pcm], device: Device, check: Callable[[], None]) -> None:
    """Play frames, each `[1920]` float32 at 24 kHz, and wait for their end. `check` is called often; it ends play by raising.

    Raises
    ------
    MshError
        The loudspeaker cannot be opened, or is lost.
    """
    loudspeaker = Loudspeaker(ahead=True)
    suspicions = 0

    def wait(queued: float) -> None:
        nonlocal suspicions
        while loudspeaker.queued() > queued:
            check()
            # Look twice: a process that was stopped and goes on has not heard of its devices for a while, either.
            suspicions = suspicions + 1 if loudspeaker.lost else 0
            if suspicions > 1:
                raise MshError("The loudspeaker is lost", "connect it again, or name another with --output-device")
            sleep(_TICK)

    with closing(loudspeaker):
        loudspeaker.open(device)
        for frame in frames:
            wait(_AHEAD)
            loudspeaker.write(frame)
        loudspeaker.pause()
        wait(0)
        sleep(loudspeaker.latency)
