"""LoRA adapters: small products that are added to a model's weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from .errors import InputError
from .layout import mlx_name, stacked_names
from .places import user_path
from .tensors import FLOATS, read_header, read_tensor

SCALING = 2.0  # that of the published recipe for fine-tuning


@dataclass(frozen=True)
class Adapter:
    """What is added to one weight: `scaling · b @ a`, with `a` `[rank, in]` and `b` `[out, rank]`."""

    a: mx.array
    b: mx.array
    scaling: float

    def merge(self, weight: mx.array, row: int = 0) -> mx.array:
        """Return `weight` `[rows, in]`, the rows from `row` on, with the product added, in float32."""
        b = self.b[row : row + weight.shape[0]].astype(mx.float32)
        return weight.astype(mx.float32) + self.scaling * (b @ self.a.astype(mx.float32))


def read_lora(
    path: str | os.PathLike[str], scaling: float, shapes: Mapping[str, tuple[int, ...]], dep_q: int
) -> dict[str, Adapter]:
    """Read the adapters of a safetensors file, by the names that their modules have in the MLX layout.

    The file holds `X.lora_A.weight` `[rank, in]` and `X.lora_B.weight` `[out, rank]` for some linear layers X, named as in
    either layout. Where PyTorch's has one layer for all slices of the depformer, stacked along the rows, so is `lora_B`.

    Parameters
    ----------
    shapes
        The shapes `[out, in]` of the model's linear layers, by their names in the MLX layout.
    dep_q
        How many slices the depformer has.

    Raises
    ------
    InputError
        The file is wrong, or does not fit the model; the message names the tensor.
    """
    path = user_path(path)
    if not math.isfinite(scaling):
        raise InputError(f"A scaling of {scaling} cannot be used; give a finite number.")
    header = read_header(path)
    if "out_norm.weight" in header or "out_norm.alpha" in header:
        raise InputError(f"{path} is no file of LoRA adapters but a language model; give it as --model.")
    if any(name.startswith("quantizer.") for name in header):
        raise InputError(f"{path} is no file of LoRA adapters but a Mimi codec; give it as --mimi.")
    found: dict[str, Adapter] = {}
    for name, info in header.items():
        module, _, part = name.rpartition(".lora_")
        other = f"{module}.lora_{'B' if part == 'A.weight' else 'A'}.weight"
        if not module or part not in ("A.weight", "B.weight"):
            raise InputError(
                f"{path} is no file of LoRA adapters: {name} is neither a lora_A.weight nor a lora_B.weight."
            )
        if other not in header:
            raise InputError(f"{path} has {name} but no {other}.")
        if info.dtype not in FLOATS or len(info.shape) != 2:
            raise InputError(
                f"{path}: {name} is of type {info.dtype} and shape {list(info.shape)}; a float matrix is expected."
            )
        if part == "B.weight":
            continue
        stacked = stacked_names(f"{module}.weight", dep_q)
        targets = [new.removesuffix(".weight") for new in stacked or [mlx_name(f"{module}.weight")]]
        if targets[0] not in shapes:
            raise InputError(f"{path} does not fit the model: it has no linear layer {module}, which {name} is for.")
        rank, (rows, columns) = info.shape[0], shapes[targets[0]]
        if info.shape[1] != columns:
            raise InputError(f"{path}: {name} has shape {list(info.shape)}; [rank, {columns}] is expected.")
        expected = (rows * len(targets), rank)
        if header[other].shape != expected:
            raise InputError(f"{path}: {other} has shape {list(header[other].shape)}; {list(expected)} is expected.")
        a = read_tensor(path, info)
        for k, target in enumerate(targets):
            if target in found:
                raise InputError(f"{path} has two adapters for {target}, one of them {name}.")
            found[target] = Adapter(a, read_tensor(path, header[other].rows(k * rows, (k + 1) * rows)), scaling)
    if not found:
        raise InputError(f"{path} is no file of LoRA adapters: it is empty.")
    return found
