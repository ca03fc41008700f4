"""`NativeModel`: a model that is computed by the native engine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...metrics import peak_resident_bytes
from ...system.machine import memory_to_take
from ..conditions import Conditions
from ..config import LmConfig
from ..engine import About, Manner, NextStep, Prefilled
from ..grid import Prompt
from ..prefill import first_position
from ..randomly import random_conditions
from ..sampling import Sampler, TextSampler
from ..steering import NO_STEERING, Steering
from .listen import NativeListeners
from .run import NativeRun, step_together
from .shared import Shared

if TYPE_CHECKING:
    import msh_native


class NativeModel:
    """As `LanguageModel`. All conversations share one engine: its threads, and its room for some rows.

    Parameters
    ----------
    config
        The model's.
    weights
        The loaded weights.
    conditions
        The weights of the conditions.
    bits
        The bits of the weights in matrices.
    threads
        How many threads compute; None: as many as there are cores.
    activations
        What the inputs of products with packed weights are rounded to: "int16", or "float32", which rounds nothing.
    kept
        What keys and values are kept in, unless a conversation has 8 bits for them: "float16" or "float32".
    """

    engine = "native"

    def __init__(
        self,
        config: LmConfig,
        weights: msh_native.Lm,
        conditions: Conditions,
        bits: tuple[int, ...],
        threads: int | None = None,
        *,
        activations: str = "int16",
        kept: str = "float16",
    ) -> None:
        self.config = config
        self.conditions = conditions
        self._weights = weights
        self._bits = bits
        self._shared = Shared(config, weights, threads, activations, kept)

    @classmethod
    def random(
        cls,
        config: LmConfig,
        bits: int,
        group_size: int,
        seed: int,
        progress: Callable[[float], None] | None = None,
    ) -> NativeModel:
        """Make a model of seeded random weights. `progress` gets the fraction that has been made.

        Raises
        ------
        InputError
            They cannot be packed so, or are too large for the memory that is free.
        """
        from msh_native import Lm, ModelError

        memory = memory_to_take()
        try:
            weights = Lm.random(described(config), bits, group_size, seed, memory=memory, progress=progress)
        except ModelError as error:
            raise InputError(str(error)) from None
        return cls(config, weights, random_conditions(config, seed), (bits,))

    def about(self) -> About:
        """As `LanguageModel.about`."""
        from msh_native import dots

        # Only products with packed weights round them.
        activations = self._shared.activations if min(self._bits) < 16 else "float32"
        return About(f"native, {dots()[0]}", "cpu", activations, self._bits)

    def peak_bytes(self) -> int:
        """As `LanguageModel.peak_bytes`: of the process."""
        return peak_resident_bytes()

    def converse(self, manner: Manner) -> NativeRun:
        """As `LanguageModel.converse`."""
        return NativeRun(self._shared, manner)

    def step(self, steps: Sequence[NextStep]) -> None:
        """As `LanguageModel.step`. A conversation says the same, bit for bit, alone and beside any others."""
        step_together(self._shared, steps)

    def listen(self, rows: int = 1, kv_bits: int | None = None) -> NativeListeners:
        """As `LanguageModel.listen`."""
        return NativeListeners(self._shared, rows, kv_bits)

    def source(self, sequence: npt.NDArray[np.float32]) -> Any:
        """As `LanguageModel.source`."""
        with self._shared.lock:
            return self._shared.rows.source(np.ascontiguousarray(sequence, np.float32))

    def prefill(
        self, prompt: Prompt, kv_bits: int | None, steering: Steering, chunk: int
    ) -> Iterator[Prefilled | None]:
        """As `LanguageModel.prefill`."""
        count = first_position(self.config, prompt)
        conversation = self._shared.conversation(Manner(TextSampler(0), Sampler(0), kv_bits, steering))
        columns = np.ascontiguousarray(prompt.columns[:count], np.int32)
        embedded = None if prompt.embedded is None else np.ascontiguousarray(prompt.embedded, np.float32)
        for begin in range(0, count, chunk):
            given = None if embedded is None else embedded[begin : begin + chunk]
            with self._shared.lock:
                self._shared.rows.read(conversation, columns[begin : begin + chunk], given)
            if begin + chunk < count:
                yield None
        arrays = conversation.state()
        yield Prefilled(prompt, kv_bits, arrays, sum(array.nbytes for array in arrays))

    def kept(self, read: Prefilled) -> list[npt.NDArray[Any]]:
        """As `LanguageModel.kept`."""
        return list(read.state)

    def restored(self, prompt: Prompt, kv_bits: int | None, data: memoryview) -> Prefilled:
        """As `LanguageModel.restored`."""
        count = first_position(self.config, prompt)
        conversation = self._shared.conversation(Manner(TextSampler(0), Sampler(0), kv_bits, NO_STEERING))
        arrays, begin = [], 0
        for empty in conversation.state():  # [heads, no positions, numbers]
            shape = (empty.shape[0], count, empty.shape[2])
            array = np.frombuffer(data, empty.dtype, math.prod(shape), begin).reshape(shape)
            begin += array.nbytes
            arrays.append(array)
        if begin != len(data):
            raise ValueError
        conversation.restore(arrays, count)  # refuses what does not fit
        return Prefilled(prompt, kv_bits, arrays, begin)

    def form(self, kv_bits: int | None) -> str:
        """As `LanguageModel.form`."""
        return f"{self.engine} {self._shared.kept_as(kv_bits)}"

    def kv_bytes(self, positions: int, kv_bits: int | None = None) -> int:
        """As `LanguageModel.kv_bytes`."""
        conversation = self._shared.conversation(Manner(TextSampler(0), Sampler(0), kv_bits))
        position = sum(part.shape[0] * part.shape[2] * part.dtype.itemsize for part in conversation.state())
        return int(positions * position)

    @property
    def float_bytes(self) -> int:
        """As `LanguageModel.float_bytes`."""
        return 4

    @property
    def weights_bytes(self) -> int:
        """As `LanguageModel.weights_bytes`."""
        return int(self._weights.held_bytes)

    @property
    def step_bytes(self) -> int:
        """As `LanguageModel.step_bytes`."""
        return int(self._weights.step_bytes)


def described(config: LmConfig) -> str:
    """Return a configuration as the engine takes it."""
    return json.dumps(config.to_dict(), default=str)
