"""The format of sound in every conversation: mono, 24 kHz, frames of 80 ms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.float32]  # samples of sound, about in [-1, 1]

SAMPLE_RATE = 24_000  # Hz
FRAME_SIZE = 1_920  # samples
FRAME_SECONDS = FRAME_SIZE / SAMPLE_RATE
