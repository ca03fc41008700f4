"""`MlxRun`: one conversation's state on MLX."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..engine import Manner, Prefilled
from ..grid import Column
from ..sampling import mixed_seed
from .attention import KvRing, capacities
from .layers import on_cpu
from .lm import Lm
from .step import StepFunction, StepLogits, on_device


class Chosen:
    """What one step has chosen, `[1 + dep_q]`, or several that were computed together, `[conversations, 1 + dep_q]`.

    `said` is on the device, and copied to the host once.
    """

    def __init__(self, said: mx.array) -> None:
        self.said = said
        self._copy: npt.NDArray[np.int32] | None = None

    def on_host(self) -> npt.NDArray[np.int32]:
        """Wait for the values, and return them."""
        if self._copy is None:
            self._copy = to_host(self.said)
        return self._copy


@dataclass(frozen=True)
class _Half:
    """A step whose codes are not on the host yet: what it has chosen, `[1 + dep_q]` on the device, and its logits."""

    said: mx.array
    logits: StepLogits


class MlxRun:
    """As `Run`. The state on the device is the rings of the layers, and the last text token and own codes."""

    def __init__(self, lm: Lm, manner: Manner) -> None:
        self._lm = lm
        self.manner = manner
        self.added = on_device(manner.steering.added)
        self._form = lm.ring_format(manner.kv_bits, manner.steering.batch)
        self._function = StepFunction(lm, manner.text_sampler, manner.audio_sampler, self._form, manner.steering)

    def begin(self, seed: int, prefilled: Prefilled | None) -> None:
        """As `Run.begin`."""
        self._seed, self._prefilled = seed, prefilled
        self._said: mx.array | None = None
        self._rings: list[KvRing] = []
        self._started: list[tuple[Chosen, int | None]] = []  # and its row there, if it was not alone
        self._newest: StepLogits | None = None
        self._row = 0  # of the logits
        self._heard: tuple[mx.array, mx.array, mx.array, list[mx.array]] | None = None
        self._half: _Half | None = None

    def step(self, position: int, column: Column, recent: Column) -> None:
        """As `Run.step`. It does not wait for anything."""
        rings, said = self._rings_for(position), self._said
        assert said is not None
        self._newest = None
        self._said, self._rings, self._newest = self._function(
            position, column, said, rings, self.key(position), recent
        )
        self._row = 0
        self._started.append((Chosen(self._said), None))

    def take(self) -> npt.NDArray[np.int32]:
        """As `Run.take`."""
        started, self._started = self._started, []
        if all(row is None for _, row in started):
            return to_host(mx.concatenate([chosen.said for chosen, _ in started])).reshape(len(started), -1)
        # The last one first: it waits for all.
        found = np.stack([np.atleast_2d(chosen.on_host())[row or 0] for chosen, row in reversed(started)])[::-1]
        self._said = mx.array(found[-1])  # not a part of what others have chosen, which is computed on this thread only
        return found

    def hear(self, position: int, rows: Column, recent: Column) -> tuple[int, Column | None]:
        """As `Run.hear`. It waits once, for both."""
        rings, said, before = self._rings_for(position), self._said, self._half
        assert said is not None
        text, h, self._rings, logits, heads, noise = self._function.hear(
            position, rows, said, rings, self.key(position), recent
        )
        del rings  # so that they are changed in place
        values = to_host(mx.concatenate([text.astype(mx.int32), *([before.said] if before else [])]))
        self._heard, self._half = (h, noise, logits, heads), None
        if before:
            self._newest, self._row = before.logits, 0
        return int(values[0]), values[1:] if before else None

    def speak(self, token: int, codes: bool) -> None:
        """As `Run.speak`. It does not wait for anything."""
        assert self._heard is not None
        h, noise, logits, heads = self._heard
        audio_logits: list[mx.array] = []
        if codes:
            self._said, audio_logits = self._function.speak(h, mx.array([token]), noise)
        else:
            self._said = mx.array([token, *[0] * self._lm.config.dep_q], mx.int32)
        self._heard, self._half = None, _Half(self._said, (logits, audio_logits, heads))

    def rest(self) -> Column | None:
        """As `Run.rest`."""
        half, self._half = self._half, None
        if half is None:
            return None
        self._newest, self._row = half.logits, 0
        return to_host(half.said)

    def fill_window(self) -> None:
        """As `Run.fill_window`."""
        config = self._lm.config
        self._said = mx.zeros((1 + config.dep_q,), mx.int32)
        self._rings = self._empty_rings(config.context)

    def warm_up(self, rows: Column | None) -> None:
        """As `Run.warm_up`. For a moment it takes the memory of the full key/value cache."""
        sizes = capacities(self._lm.config.context)
        for capacity in sizes:
            # A GPU builds kernels when they first run, and others for longer rings. On the CPU the first size is enough.
            self._compile(capacity, rows, run=capacity == sizes[0] or not on_cpu())
        mx.clear_cache()

    def text_logits(self) -> mx.array:
        """As `Run.text_logits`, on the device."""
        assert self._newest is not None
        return self._newest[0][self._row].astype(mx.float32)

    def audio_logits(self) -> mx.array:
        """As `Run.audio_logits`, on the device."""
        assert self._newest is not None
        logits = [array[self._row : self._row + 1] for array in self._newest[1]]
        return mx.concatenate(logits).astype(mx.float32) if logits else mx.zeros((0, self._lm.config.card))

    def extra_heads(self) -> mx.array:
        """As `Run.extra_heads`, on the device."""
        assert self._newest is not None
        heads = [array[self._row : self._row + 1] for array in self._newest[2]]
        return mx.concatenate(heads).astype(mx.float32) if heads else mx.zeros((0, self._lm.config.extra_heads_dim))

    @property
    def kv_bytes(self) -> int:
        """As `Run.kv_bytes`."""
        return sum(array.nbytes for ring in self._rings for array in ring)

    # What `Together` takes and gives.

    @property
    def said(self) -> mx.array:
        """What the newest step has chosen, `[1 + dep_q]` on the device."""
        assert self._said is not None
        return self._said

    def give_rings(self, position: int) -> list[KvRing]:
        """Return the rings, with room for a position, and keep none: so they can be changed in place."""
        rings = self._rings_for(position)
        self._newest = None
        return rings

    def take_result(self, chosen: Chosen, row: int, rings: list[KvRing], logits: StepLogits) -> None:
        """Take what a step with others has chosen, in a row of its own; the new rings; and the logits of all."""
        self._said, self._rings, self._newest, self._row = chosen.said[row], rings, logits, row
        self._started.append((chosen, row))

    def key(self, position: int) -> mx.array:
        """Make the random key of the step at a position, from the seed and the position."""
        # Threefry makes unrelated streams of different keys.
        return mx.random.key(mixed_seed(self._seed, position))

    def _compile(self, capacity: int, rows: Column | None, *, run: bool) -> None:
        """Compile a step with rings of some capacity, and perhaps run it."""
        config = self._lm.config
        recent = np.zeros(self.manner.text_sampler.recent_size, np.int32)
        rest = (mx.zeros((1 + config.dep_q,), mx.int32), self._empty_rings(capacity), mx.random.key(0), recent)
        if rows is None:
            said, *_ = self._function(0, np.zeros(1 + config.n_q, np.int32), *rest)
        else:
            text, h, *_, noise = self._function.hear(0, rows, *rest)
            said, _ = self._function.speak(h, text, noise)
        if run:
            to_host(said)

    def _rings_for(self, position: int) -> list[KvRing]:
        """Take the rings for a position, with room for it; at the first, those that the prompt leaves."""
        config = self._lm.config
        if self._said is None:
            self._said = mx.full((1 + config.dep_q,), config.card, mx.int32)
            if self._prefilled is None:
                self._rings = self._empty_rings(capacities(config.context)[0])
            else:
                # They are kept for the next conversation, too, so the first step copies them.
                self._rings = list(self._prefilled.state)
        elif position % config.context == (capacity := self._rings[0][0].shape[2]):
            larger = min(2 * capacity, config.context)
            self._rings = [self._form.grown(ring, larger) for ring in self._rings]
        rings, self._rings = self._rings, []
        return rings

    def _empty_rings(self, capacity: int) -> list[KvRing]:
        return [self._form.empty(capacity) for _ in range(self._lm.config.num_layers)]


def to_host(array: mx.array) -> npt.NDArray[np.int32]:
    """Copy values to the host. This is the only place where a conversation waits for the device."""
    return np.array(array)
