"""Reading a prompt on MLX, many columns at once."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from ..engine import Prefilled
from ..grid import Prompt
from ..prefill import CHUNK, first_position
from ..steering import Steering
from .attention import KvRing, PrefillCache, capacities, rotation
from .lm import Lm
from .step import on_device


def read_prompt(
    lm: Lm, prompt: Prompt, kv_bits: int | None, steering: Steering, chunk: int = CHUNK
) -> Iterator[Prefilled | None]:
    """As `LanguageModel.prefill`. The state of the result are the rings of all layers, as the key/value caches have them."""
    form = lm.ring_format(kv_bits, steering.batch)
    count, sizes = first_position(lm.config, prompt), capacities(lm.config.context)
    lm.prepare()
    rings = [form.empty(next(size for size in sizes if size > count)) for _ in range(lm.config.num_layers)]
    x = lm.embed(mx.array(prompt.columns[:count])) if count else None
    if x is not None and (embedded := prompt.embedded) is not None:
        x = mx.concatenate([mx.array(embedded).astype(x.dtype), x[len(embedded) :]])
    added = on_device(steering.added)
    for begin in range(0, count, chunk):
        assert x is not None
        end = min(begin + chunk, count)
        factors = [rotation(p, form, lm.config.max_period, alone=False) for p in range(begin, end)]
        caches = [PrefillCache(ring, form, begin, mx.array(np.stack(factors))) for ring in rings]
        lm.run(x[begin:end], caches, added, steering.source)
        rings = [cache.ring for cache in caches]
        mx.eval(rings)
        if end < count:
            yield None
    yield prefilled(prompt, kv_bits, rings)


def prefilled(prompt: Prompt, kv_bits: int | None, rings: list[KvRing]) -> Prefilled:
    """Return a prompt that was read, with its rings."""
    return Prefilled(prompt, kv_bits, tuple(rings), sum(array.nbytes for ring in rings for array in ring))
