"""How fast this machine reads its memory."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from ..model.engines import has_gpu


def bandwidth(size: int = 1 << 28, times: int = 5, seconds: float = 0.5) -> float:
    """Measure how fast the device reads memory, in bytes a second: sum `size` bytes several times, and take the fastest.

    Sum at least `times` times and for at least `seconds`. One sum that nothing disturbs is enough.

    MLX sums on its GPU; without one, numpy multiplies a vector by itself.
    """
    best = 0.0
    vector = np.ones(size // 4, np.float32)
    on_gpu = has_gpu()
    if on_gpu:
        import mlx.core as mx

        array = mx.array(vector).reshape(-1, 4096)
        mx.eval(array)
    end = perf_counter() + seconds
    while times > 0 or perf_counter() < end:
        times -= 1
        begin = perf_counter()
        if on_gpu:
            mx.eval(mx.sum(array, axis=-1))
        else:
            np.dot(vector, vector)
        best = max(best, size / (perf_counter() - begin))
    return best
