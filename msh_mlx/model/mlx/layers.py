"""The weights as a step uses them. They are laid out once, so that a step does not have to slice or transpose them.

Memory holds the weights only once: after that, the parameters of the modules are views of the arrays that a step uses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

_PARTS = ("weight", "scales", "biases")


def on_cpu() -> bool:
    """Whether MLX computes on the CPU."""
    return mx.default_device() == mx.cpu


def default_dtype() -> mx.Dtype:
    """Return the dtype of the activations: float32 on the CPU, where bfloat16 is ten times slower, else bfloat16."""
    return mx.float32 if on_cpu() else mx.bfloat16


class Stack:
    """The matrices of several modules, one below the other: as floats, or packed, with scales and biases."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        first: Any = modules[0]
        self.quantized = "scales" in first
        self.group_size: int | None = getattr(first, "group_size", None)
        self.bits: int | None = getattr(first, "bits", None)
        columns = zip(*(_arrays(module) for module in modules), strict=True)
        self.arrays = [self._laid_out(mx.concatenate(list(part)) if len(part) > 1 else part[0]) for part in columns]
        self._rows = [_arrays(module)[0].shape[0] for module in modules]

    def parameters(self) -> list[dict[str, mx.array]]:
        """Return the parameters of each module, as views."""
        parts, end, found = self._as_stored(), 0, []
        for rows in self._rows:
            begin, end = end, end + rows
            found.append({name: part[begin:end] for name, part in zip(_PARTS, parts, strict=False)})
        return found

    def _laid_out(self, array: mx.array) -> mx.array:
        return array

    def _as_stored(self) -> list[mx.array]:
        return self.arrays


class Projection(Stack):
    """Computes `x @ W.T` with the weights of linear modules, which have no biases. Results of several follow each other."""

    def _laid_out(self, array: mx.array) -> mx.array:
        if self.quantized:
            return array
        # MLX's matrix product on the CPU is twice as fast if each column of W is contiguous.
        return mx.contiguous(array.T) if on_cpu() else array.T

    def _as_stored(self) -> list[mx.array]:
        return self.arrays if self.quantized else [self.arrays[0].T]

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """Return `[1, out]` for `x` `[1, in]`, added to `onto` if that is given."""
        if not self.quantized:
            return x @ self.arrays[0] if onto is None else mx.addmm(onto, x, self.arrays[0])
        packed, scales, biases = self.arrays
        y = mx.quantized_matmul(x, packed, scales, biases, transpose=True, group_size=self.group_size, bits=self.bits)
        return y if onto is None else onto + y


class RowProjection(Projection):
    """A projection of which steps use only the first results: their weights are a view, so that memory holds all once."""

    def _laid_out(self, array: mx.array) -> mx.array:
        return array if self.quantized else array.T

    def first(self, count: int) -> Projection:
        """Return the projection to the first `count` results."""
        part = copy.copy(self)
        part.arrays = [array[:count] if self.quantized else array[:, :count] for array in self.arrays]
        mx.eval(part.arrays)
        return part


class Table(Stack):
    """Looks up rows of embeddings. The rows of the second follow those of the first."""

    def __call__(self, rows: mx.array) -> mx.array:
        """Return the rows with the numbers `rows`, integers `[n]`: `[n, dim]`."""
        taken = [array[rows] for array in self.arrays]
        if self.quantized:
            packed, scales, biases = taken
            return mx.dequantize(packed, scales, biases, group_size=self.group_size, bits=self.bits)
        return taken[0]


_S = TypeVar("_S", bound=Stack)


def lay_out(kind: type[_S], modules: Sequence[nn.Module]) -> list[_S]:
    """Make one stack of all modules if they store their matrices alike, else one of each. Return the stacks.

    The parameters of a module become views of its stack, which is `module.stack` afterwards.
    """
    stacks = []
    for group in [modules] if _alike(modules) else [[module] for module in modules]:
        stack = kind(group)
        mx.eval(stack.arrays)
        for module, parameters in zip(group, stack.parameters(), strict=True):
            module.update(parameters)
            mx.eval(parameters)
            module.stack = stack
        stacks.append(stack)
    return stacks


def lay_out_linear(model: nn.Module) -> None:
    """Lay out every linear module of `model` that is not laid out yet, one at a time."""
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.QuantizedLinear) and not hasattr(module, "stack"):
            lay_out(Projection, [module])


def _alike(modules: Sequence[nn.Module]) -> bool:
    """Whether the matrices of modules have the same type and width, and are packed in the same way."""

    def how(module: Any) -> object:
        return [(a.dtype, a.shape[1:]) for a in _arrays(module)], getattr(module, "group_size", None)

    return all(how(module) == how(modules[0]) for module in modules)


def _arrays(module: Any) -> list[mx.array]:
    return [module[part] for part in _PARTS if part in module]


def project(linear: nn.Linear, x: mx.array, onto: mx.array | None = None) -> mx.array:
    """Apply a linear module that was laid out to `x` `[1, in]`. Return `[1, out]`, added to `onto` if that is given."""
    return linear.stack(x, onto)  # type: ignore[no-any-return]


def normalize(norm: nn.RMSNorm, x: mx.array) -> mx.array:
    """Return `x / √(mean(x²) + eps) · weight` of every row, computed in float32. `x` and the result are `[..., rows, dim]`."""
    if on_cpu() and x.dtype == mx.float32 and x.shape[-2] == 1:
        # There, MLX's `rms_norm` is several operations. The product of a row with itself is one operation, and the rest
        # compiles into another. With several rows, that product would be of all pairs of rows.
        mean = (x @ x.swapaxes(-1, -2)) * (1.0 / x.shape[-1])
        return x * mx.rsqrt(mean + norm.eps) * norm.weight
    return mx.fast.rms_norm(x, norm.weight, norm.eps)
