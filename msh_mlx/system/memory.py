"""How much of the machine's memory MLX may keep."""

from __future__ import annotations

import mlx.core as mx

from .machine import physical_memory

_MB = 1 << 20


def machine_memory() -> int:
    """Return the bytes of memory that the device has, or the machine where the device does not say."""
    size = mx.device_info().get("memory_size") or mx.device_info().get("total_memory")
    return int(size) if size else physical_memory()


def cache_limit(memory: int) -> int:
    """Return how many bytes of freed buffers MLX keeps for reuse: a 32nd of the memory, from 64 to 512 MiB.

    A step frees and takes the same few megabytes every time. Unlimited, the cache keeps what loading and converting go through,
    which is as much as there is.
    """
    return min(max(memory // 32, 64 * _MB), 512 * _MB)


def set_limits() -> None:
    """Set MLX's limits from the machine's memory; called before anything is loaded.

    The cache's is `cache_limit`. Where the device can wire memory, as Metal can, so that the system does not page out weights
    that wait for somebody to speak, MLX may wire as much as the system recommends; only what is allocated is wired.
    """
    mx.set_cache_limit(cache_limit(machine_memory()))
    if most := mx.device_info().get("max_recommended_working_set_size"):
        mx.set_wired_limit(int(most))
