"""Reading a prompt: many columns at once, and once for all conversations that begin with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from .architecture import Architecture
from .attention import KvRing, PrefillCache, RingFormat, capacities, rotation
from .grid import Prompt
from .lm import Lm
from .steering import NO_STEERING, Steering

_CHUNK = 64  # columns that are read at once


@dataclass(frozen=True)
class Prefilled:
    """A prompt that was read, so that conversations can begin behind it at once.

    `rings`, in the format `form`, are those of all layers behind all columns of the prompt but the last, from which the first
    token is chosen. They are shared, and not changed.
    """

    prompt: Prompt
    form: RingFormat
    rings: tuple[KvRing, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that the rings take."""
        return sum(array.nbytes for ring in self.rings for array in ring)


def prefill(lm: Lm, prompt: Prompt, **options: Any) -> Prefilled:
    """Read a prompt, many columns at once. Wait for the result. Arguments and errors are those of `prefill_in_turns`."""
    return [done for done in prefill_in_turns(lm, prompt, **options) if done][-1]


def prefill_in_turns(
    lm: Lm, prompt: Prompt, *, kv_bits: int | None = None, steering: Steering = NO_STEERING, chunk: int = _CHUNK
) -> Iterator[Prefilled | None]:
    """Read a prompt, many columns at once. Yield None after each chunk, so that others can have their turn; then the result.

    `kv_bits` and `steering` are those of the conversations, and `chunk` is the number of columns that are read at once.

    Raises
    ------
    InputError
        The prompt does not fit into the model's window, or the conversation has guidance.
    """
    form = lm.ring_format(kv_bits, steering.batch)
    count, sizes = first_position(lm.config, prompt), capacities(lm.config.context)
    if count and form.batch > 1:
        raise InputError("A conversation with guidance cannot begin with a prompt", "leave one of them out")
    lm.prepare()
    rings = [form.empty(next(size for size in sizes if size > count)) for _ in range(lm.config.num_layers)]
    x = lm.embed(mx.array(prompt.columns[:count])) if count else None
    if x is not None and (embedded := prompt.embedded) is not None:
        x = mx.concatenate([embedded.astype(x.dtype), x[embedded.shape[0] :]])
    for begin in range(0, count, chunk):
        assert x is not None
        end = min(begin + chunk, count)
        factors = [rotation(p, form, lm.config.max_period, alone=False) for p in range(begin, end)]
        caches = [PrefillCache(ring, form, begin, mx.array(np.stack(factors))) for ring in rings]
        lm.run(x[begin:end], caches, steering.added, steering.sources or None)
        rings = [cache.ring for cache in caches]
        mx.eval(rings)
        if end < count:
            yield None
    yield Prefilled(prompt, form, tuple(rings))


def first_position(config: Architecture, prompt: Prompt) -> int:
    """Return the position of a prompt's last column. It is the first at which anything is chosen.

    Raises
    ------
    InputError
        The prompt does not fit into the model's window.
    """
    count = len(prompt.columns) - config.max_delay
    check_length(config, count)
    return count - 1


def check_length(config: Architecture, count: int) -> None:
    """Raise InputError if a prompt of `count` columns does not fit into the model's window."""
    if count > config.context:
        raise InputError(
            f"The prompt takes {count} steps, and the model's window has {config.context}",
            "give a shorter text, or a shorter voice",
        )
