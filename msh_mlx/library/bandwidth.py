"""How fast this machine reads its memory."""

from __future__ import annotations

from time import perf_counter

from ..errors import MshError
from ..model.engines import has_gpu

_SIZE = 1 << 28  # bytes


def bandwidth(engine: str = "auto", seconds: float = 0.5) -> float:
    """Measure how fast an engine can read memory, in bytes a second: `seconds` long, the fastest of at least five times.

    The native engine reads with as many threads as it computes with. MLX sums on its GPU; without one, the native threads read.

    Raises
    ------
    MshError
        There is too little memory.
    """
    if engine != "native" and has_gpu():
        return _on_gpu(seconds)
    from msh_native import ModelError, read_bandwidth

    try:
        return float(read_bandwidth(None, _SIZE, seconds))
    except ModelError as error:
        raise MshError(str(error).removesuffix("."), "close other programs") from None


def _on_gpu(seconds: float) -> float:
    import mlx.core as mx

    array = mx.ones((_SIZE // (4 * 4096), 4096))
    mx.eval(array)
    best, times, end = 0.0, 5, perf_counter() + seconds
    while times > 0 or perf_counter() < end:
        times -= 1
        begin = perf_counter()
        mx.eval(mx.sum(array, axis=-1))
        best = max(best, _SIZE / (perf_counter() - begin))
    return best
