"""How fast this machine reads its memory."""

from __future__ import annotations

from time import perf_counter

import mlx.core as mx
import numpy as np

from ..model.layers import on_cpu


def bandwidth(size: int = 1 << 28, times: int = 5, seconds: float = 0.5) -> float:
    """Measure how fast the device reads memory, in bytes a second: sum `size` bytes several times, and take the fastest.

    Sum at least `times` times and for at least `seconds`. One sum that nothing disturbs is enough.

    MLX sums on a GPU. On the CPU its sums are bound by arithmetic, and numpy multiplies a vector by itself.
    """
    best = 0.0
    vector = np.ones(size // 4, np.float32)
    array = mx.array(vector).reshape(-1, 4096)
    mx.eval(array)
    end = perf_counter() + seconds
    while times > 0 or perf_counter() < end:
        times -= 1
        begin = perf_counter()
        if on_cpu():
            np.dot(vector, vector)
        else:
            mx.eval(mx.sum(array, axis=-1))
        best = max(best, size / (perf_counter() - begin))
    return best
