"""Mix several channels into one, so that a voice on any of them is heard; say when channels are left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..format import Pcm
from ..system.words import listed


class Mix:
    """Mixes the channels of one recording, block by block, as `msh_native.Mixer` says; one channel passes as it is."""

    def __init__(self, rate: int, channels: int) -> None:
        from msh_native import Mixer

        self._mixer = Mixer(rate, channels)
        self._told = False

    def __call__(self, block: npt.NDArray[Any]) -> Pcm:
        """Return `[n]` float32 of `[n, channels]`."""
        return self._mixer.mix(np.ascontiguousarray(block, np.float32))

    def note(self, name: str) -> str | None:
        """Return a sentence on the channels of `name` that are left out. None: there are none, or it was said before."""
        if self._told or not (left_out := self._mixer.left_out):
            return None
        self._told = True
        return opposed(name, left_out)


def opposed(name: str, channels: Sequence[int]) -> str:
    """Write the sentence that some channels, numbered from 0, are in opposite phase and are left out."""
    numbers = listed(str(channel + 1) for channel in channels)
    if len(channels) == 1:
        return f"Channel {numbers} of {name} is in opposite phase to another, which would silence both; it is left out."
    return (
        f"Channels {numbers} of {name} are in opposite phase to another, which would silence them; they are left out."
    )
