"""The format of sound in every conversation: mono, 24 kHz, frames of 80 ms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.float32]

RATE = 24_000  # Hz, of the sound that the conversation hears and says
FRAME = 0.08  # seconds
