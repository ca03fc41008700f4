"""Play sound to its end, without a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from time import sleep

from ..errors import MshError
from ..format import FRAME_SECONDS, Pcm
from .devices import Device
from .ends import Loudspeaker

_AHEAD = 2.0  # seconds that wait to be played
_TICK = 0.02  # seconds


class Player:
    """Plays frames that are made before they are heard.

    Parameters
    ----------
    device
        The loudspeaker. It is opened now, and must be closed with `close`.
    check
        Called often while sound is played. What it raises ends the call of `put`, `pause` or `finish`.

    Raises
    ------
    MshError
        The loudspeaker cannot be opened.
    """

    def __init__(self, device: Device, check: Callable[[], None]) -> None:
        self._device = device
        self._check = check
        self._loudspeaker = Loudspeaker(ahead=True)
        self._written = 0.0  # seconds
        self._suspicions = 0
        self._loudspeaker.open(device)

    def put(self, pcm: Pcm) -> None:
        """Play a frame, `[1920]` float32, behind those that wait; wait while they are many.

        Raises
        ------
        MshError
            The loudspeaker is lost.
        """
        self._wait(_AHEAD)
        self._loudspeaker.write(pcm)
        self._written += FRAME_SECONDS

    def pause(self) -> None:
        """Say that nothing follows for now, so that silence is not a gap. Call it again while that lasts; raises as `put`."""
        self._loudspeaker.pause()
        self._look()

    def finish(self) -> None:
        """Wait until all is heard. Raises as `put`."""
        self._loudspeaker.pause()
        self._wait(0.0)
        sleep(self._loudspeaker.latency)

    def close(self) -> None:
        """Fade out what is playing, and close the loudspeaker."""
        self._loudspeaker.close()

    @property
    def heard(self) -> float:
        """How many seconds of the sound the device has taken."""
        return self._written - self._loudspeaker.queued()

    @property
    def gaps(self) -> int:
        """How often the sound broke off because the next frame was not there."""
        return int(self._loudspeaker.stats()["underruns"])

    def _wait(self, seconds: float) -> None:
        """Wait until at most so much waits to be played."""
        self._look()
        while self._loudspeaker.queued() > seconds:
            sleep(_TICK)
            self._look()

    def _look(self) -> None:
        self._check()
        # Look twice: a process that was stopped and goes on has not heard of its devices for a while, either.
        self._suspicions = self._suspicions + 1 if self._loudspeaker.lost else 0
        if self._suspicions > 1:
            what = f'The loudspeaker "{self._device.name}" is lost'
            raise MshError(what, "connect it again, or name another with --output-device")


def play(frames: Iterable[Pcm], device: Device, check: Callable[[], None]) -> None:
    """Play frames, each `[1920]` float32 at 24 kHz, and wait for their end. `check` is called often; it ends play by raising.

    Raises
    ------
    MshError
        The loudspeaker cannot be opened, or is lost.
    """
    with closing(Player(device, check)) as player:
        for frame in frames:
            player.put(frame)
        player.finish()
