"""Limits on the memory that MLX may keep."""

from __future__ import annotations

import sys

from .machine import physical_memory

_MB = 1 << 20


def machine_memory() -> int:
    """Return the device's memory in bytes, or the machine's if the device does not say."""
    if (mx := sys.modules.get("mlx.core")) is None:
        return physical_memory()
    size = mx.device_info().get("memory_size") or mx.device_info().get("total_memory")
    return int(size) if size else physical_memory()


def cache_limit(memory: int) -> int:
    """Return how many bytes of freed buffers MLX may keep for reuse: a 32nd of the memory, from 64 to 512 MiB.

    Each step frees and takes the same few megabytes. Without a limit, the cache would also keep all buffers of loading and
    converting, which can fill the memory.
    """
    return min(max(memory // 32, 64 * _MB), 512 * _MB)


def set_limits() -> None:
    """Set MLX's limits from the machine's memory. Call it before anything is loaded.

    The limit of MLX's cache is `cache_limit`. On a device that can wire memory, as Metal can, MLX may wire as much as the
    system recommends: so the system does not page out the weights while nobody speaks. Only allocated memory is wired.
    """
    import mlx.core as mx

    mx.set_cache_limit(cache_limit(machine_memory()))
    if most := mx.device_info().get("max_recommended_working_set_size"):
        mx.set_wired_limit(int(most))
