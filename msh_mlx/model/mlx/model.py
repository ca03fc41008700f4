"""`MlxModel`: a model that is computed by MLX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..conditions import Conditions
from ..engine import About, Manner, NextStep, Prefilled
from ..grid import Prompt
from ..prefill import first_position
from ..steering import Steering
from .attention import KvRing, Source, capacities
from .embeddings import DemuxedEmbedding, Rows
from .listen import MlxListeners
from .lm import Lm
from .prefill import prefilled, read_prompt
from .run import MlxRun
from .together import Together

# The types of numpy that arrays are written as. It has no bfloat16, so that is written as its bits.
_NUMBERS: dict[mx.Dtype, Any] = {
    mx.bfloat16: np.uint16,
    mx.float16: np.float16,
    mx.float32: np.float32,
    mx.uint32: np.uint32,
}


class MlxModel:
    """As `LanguageModel`. `module` has the weights."""

    engine = "mlx"

    def __init__(self, module: Lm, conditions: Conditions) -> None:
        self.module = module
        self.config = module.config
        self.conditions = conditions
        self._together = Together(module)

    def about(self) -> About:
        """As `LanguageModel.about`."""
        modules = [part for _, part in self.module.named_modules() if "weight" in part and part.weight.ndim == 2]
        bits = {getattr(part, "bits", 8 * part.weight.dtype.size) for part in modules}
        return About(
            f"MLX {version('mlx')}",
            str(mx.default_device()).removeprefix("Device(").split(",")[0],
            str(self.module.out_norm.weight.dtype).removeprefix("mlx.core."),
            tuple(sorted(bits)),
        )

    def peak_bytes(self) -> int:
        """As `LanguageModel.peak_bytes`."""
        return mx.get_peak_memory()

    def converse(self, manner: Manner) -> MlxRun:
        """As `LanguageModel.converse`."""
        return MlxRun(self.module, manner)

    def step(self, steps: Sequence[NextStep]) -> None:
        """As `LanguageModel.step`, for conversations of one kind, as `Together` says; others step one after the other.

        A conversation that is beside others gets the same random numbers as alone. But MLX multiplies a matrix by several rows
        in another order than by one. So logits may differ in the last bits; then a token differs where two of them were as
        good as equal, and with it what follows. With the same neighbours a conversation says the same again.
        """
        self._together.step(steps)

    def listen(self, rows: int = 1, kv_bits: int | None = None) -> MlxListeners:
        """As `LanguageModel.listen`."""
        return MlxListeners(self.module, rows, kv_bits)

    def source(self, sequence: npt.NDArray[np.float32]) -> list[Source]:
        """As `LanguageModel.source`."""
        sources = self.module.read_source(mx.array(sequence)[None])
        mx.eval(sources)  # now: what is not computed yet could be used on this thread only
        return sources

    def prefill(
        self, prompt: Prompt, kv_bits: int | None, steering: Steering, chunk: int
    ) -> Iterator[Prefilled | None]:
        """As `LanguageModel.prefill`."""
        return read_prompt(self.module, prompt, kv_bits, steering, chunk)

    def kept(self, read: Prefilled) -> list[npt.NDArray[Any]]:
        """As `LanguageModel.kept`: the first slots of each ring, up to the last column."""
        count, arrays = first_position(self.config, read.prompt), []
        for ring in read.state:
            for part in ring:
                used = mx.contiguous(part[:, :, :count])
                arrays.append(np.array(used.view(mx.uint16) if used.dtype == mx.bfloat16 else used))
        return arrays

    def restored(self, prompt: Prompt, kv_bits: int | None, data: memoryview) -> Prefilled:
        """As `LanguageModel.restored`."""
        form, count, begin = self.module.ring_format(kv_bits), first_position(self.config, prompt), 0
        capacity = next(size for size in capacities(self.config.context) if size > count)
        rings: list[KvRing] = []
        for _ in range(self.config.num_layers):
            ring = []
            for part in form.empty(count):
                numbers = np.frombuffer(data, _NUMBERS[part.dtype], math.prod(part.shape), begin)
                begin += numbers.nbytes
                array = mx.array(numbers.reshape(part.shape))
                ring.append(array.view(mx.bfloat16) if part.dtype == mx.bfloat16 else array)
            rings.append(form.grown(ring, capacity))
        if begin != len(data):
            raise ValueError
        mx.eval(rings)
        return prefilled(prompt, kv_bits, rings)

    def form(self, kv_bits: int | None) -> str:
        """As `LanguageModel.form`."""
        return f"{self.engine} {self.module.ring_format(kv_bits)}"

    def kv_bytes(self, positions: int, kv_bits: int | None = None) -> int:
        """As `LanguageModel.kv_bytes`."""
        return self.config.num_layers * self.module.ring_format(kv_bits).nbytes(positions)

    @property
    def float_bytes(self) -> int:
        """As `LanguageModel.float_bytes`."""
        return self.module.out_norm.weight.dtype.size

    @property
    def weights_bytes(self) -> int:
        """As `LanguageModel.weights_bytes`."""
        return sum(array.nbytes for _, array in self.module.named_parameters())

    @property
    def step_bytes(self) -> int:
        """As `LanguageModel.step_bytes`."""
        total, slices = 0.0, self.config.slices
        for name, part in self.module.named_modules():
            size = sum(array.nbytes for array in part.parameters().values() if isinstance(array, mx.array))
            if isinstance(part, nn.Embedding | nn.QuantizedEmbedding | Rows):
                # Its rows are looked up.
                size = size * (2 if isinstance(part, DemuxedEmbedding) else 1) // part.weight.shape[0]
            elif name.endswith("cross_attention.in_proj"):
                size //= 3  # only the queries'
            elif shared := re.match(r"depformer\.slices\.(\d+)\.transformer\.", name):
                size *= slices.count(slices[int(shared[1])])
            total += size
        return int(total)
