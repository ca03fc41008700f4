"""How loud sound is."""

import numpy as np


def decibels(pcm: np.ndarray) -> float:
    """Return the power of a sound, in dB of full scale."""
    return float(10 * np.log10(np.mean(np.square(pcm, dtype=np.float64)) + 1e-30))
