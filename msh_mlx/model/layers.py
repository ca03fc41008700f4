"""How a step uses weights: matrices laid out for it once, so that nothing is sliced or transposed in the step itself.

What is laid out shares its memory with the modules that it comes from: their parameters become views of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_PARTS = ("weight", "scales", "biases")


def on_cpu() -> bool:
    """Whether MLX computes on the CPU."""
    return mx.default_device() == mx.cpu


def alike(modules: Iterable[nn.Module]) -> bool:
    """Whether matrices are stored in the same way, and as wide, so that they can be stacked."""

    def how(module: Any) -> object:
        return [(a.dtype, a.shape[1:]) for a in _arrays(module)], getattr(module, "group_size", None)

    first, *rest = (how(module) for module in modules)
    return all(other == first for other in rest)


def _arrays(module: Any) -> list[mx.array]:
    return [module[part] for part in _PARTS if part in module]


class _Stack:
    """The matrices of modules that are `alike`, one below the other: float, or packed with scales and biases."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        first: Any = modules[0]
        self.quantized = "scales" in first
        self.group_size: int | None = getattr(first, "group_size", None)
        self.bits: int | None = getattr(first, "bits", None)
        columns = zip(*(_arrays(module) for module in modules), strict=True)
        self.arrays = [self._laid_out(mx.concatenate(list(part)) if len(part) > 1 else part[0]) for part in columns]
        mx.eval(self.arrays)
        start = 0
        for module in modules:
            end = start + _arrays(module)[0].shape[0]
            for name, array in zip(_PARTS, self._as_stored(), strict=False):
                setattr(module, name, array[start:end])
            mx.eval(module.parameters())
            start = end

    def _laid_out(self, array: mx.array) -> mx.array:
        return array

    def _as_stored(self) -> list[mx.array]:
        return self.arrays


class Projection(_Stack):
    """`x @ W.T` for the weights of linear modules without biases; of several, the results follow each other."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        for module in modules:
            module.projection = self

    def _laid_out(self, array: mx.array) -> mx.array:
        if self.quantized:
            return array
        # The matrix product of MLX's CPU backend is twice as fast where the columns of W lie together.
        return mx.contiguous(array.T) if on_cpu() else array.T

    def _as_stored(self) -> list[mx.array]:
        return self.arrays if self.quantized else [self.arrays[0].T]

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """`[1, in]` to `[1, out]`, added to `onto`, if that is given."""
        if not self.quantized:
            return x @ self.arrays[0] if onto is None else mx.addmm(onto, x, self.arrays[0])
        packed, scales, biases = self.arrays
        y = mx.quantized_matmul(x, packed, scales, biases, transpose=True, group_size=self.group_size, bits=self.bits)
        return y if onto is None else onto + y


class Table(_Stack):
    """The rows of embeddings; those of the second follow those of the first."""

    def __call__(self, rows: mx.array) -> mx.array:
        """`rows` are integers `[n]`; the result is `[n, dim]`."""
        taken = [array[rows] for array in self.arrays]
        if self.quantized:
            packed, scales, biases = taken
            return mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self.bits)
        return taken[0]


def project(linear: nn.Linear, x: mx.array, onto: mx.array | None = None) -> mx.array:
    """`[1, in]` to `[1, out]`, by a linear module that was laid out; added to `onto`, if that is given."""
    return linear.projection(x, onto)  # type: ignore[no-any-return]


def normalize(norm: nn.RMSNorm, x: mx.array) -> mx.array:
    """`x / √(mean(x²) + eps) · weight`, computed in float32; `x` is `[1, dim]`, as is the result."""
    if on_cpu() and x.dtype == mx.float32:
        # MLX composes `rms_norm` of several operations there; a row's product with itself is one, the rest compiles into one.
        return x * mx.rsqrt((x @ x.T) * (1.0 / x.shape[1]) + norm.eps) * norm.weight
    return mx.fast.rms_norm(x, norm.weight, norm.eps)


def attend(query: mx.array, keys: mx.array, values: mx.array, scale: float, seen: mx.array | None = None) -> mx.array:
    """Attend from one query, `[1, heads, 1, head_dim]`, as is the result, to keys and values `[1, heads, n, head_dim]`.

    `seen`, bool `[n]`, says which of them count; None: all.
    """
    if not on_cpu():
        return mx.fast.scaled_dot_product_attention(query, keys, values, scale=scale, mask=seen)
    # What MLX composes that of on the CPU, with scale and mask inside the product.
    mask = mx.array(0.0, query.dtype) if seen is None else mx.where(seen, 0.0, -math.inf).astype(query.dtype)
    scores = mx.addmm(mask, query, keys.swapaxes(-1, -2), alpha=scale)
    return mx.softmax(scores, axis=-1, precise=True) @ values


def lay_out(model: nn.Module) -> None:
    """Prepare every linear module of `model` for `project` that is not prepared yet, one at a time."""
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.QuantizedLinear) and not hasattr(module, "projection"):
            Projection([module])
