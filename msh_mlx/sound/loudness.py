"""The loudness of sound, by ITU-R BS.1770-4."""

from __future__ import annotations

import warnings

import numpy as np

from ..format import Pcm

LEAST = 0.4  # seconds: the block that loudness is measured in


def normalized(pcm: Pcm, rate: int, target: float) -> Pcm | None:
    """Return sound as loud as `target`, in LUFS; None if it is silent, or too short for its loudness to be measured.

    `pcm` is `[samples]` float32 at `rate` samples a second, and so is the result. It is not clipped.
    """
    # The package imports SciPy, which takes a while.
    from pyloudnorm import Meter

    if len(pcm) < LEAST * rate:
        return None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing, where all is silent
        loudness = float(Meter(rate).integrated_loudness(pcm.astype(np.float64)))
    if not np.isfinite(loudness):
        return None
    return (pcm * 10 ** ((target - loudness) / 20)).astype(np.float32)
