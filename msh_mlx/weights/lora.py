"""LoRA adapters: small products that are added to a model's weights, and weights that come beside them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import mlx.core as mx

from ..errors import InputError
from ..model.config import LmConfig, read_config, scaling_in
from ..model.ranges import LORA_SCALING
from ..system.inputs import brief
from ..system.places import user_path
from .beside import find_config
from .layout import mlx_name, stacked_names
from .safetensors import FLOATS, TensorInfo, read_header, read_tensor

_A, _B = ".lora_A.weight", ".lora_B.weight"
_USUAL = 2.0  # that of the published recipe for fine-tuning


@dataclass(frozen=True)
class Adapter:
    """What is added to one weight: `scaling · b @ a`, with `a` `[rank, in]` and `b` `[out, rank]`; `path` is its file."""

    path: Path
    a: mx.array
    b: mx.array
    scaling: float

    def merge(self, weight: mx.array, row: int = 0) -> mx.array:
        """Return `weight` `[rows, in]`, the rows from `row` on, with the product added, in float32."""
        b = self.b[row : row + weight.shape[0]].astype(mx.float32)
        return weight.astype(mx.float32) + self.scaling * (b @ self.a.astype(mx.float32))


@dataclass(frozen=True)
class Replacement:
    """A weight that takes the place of the model's, such as an embedding that was trained as a whole: where it is stored."""

    path: Path
    info: TensorInfo

    def merge(self, weight: mx.array, row: int = 0) -> mx.array:
        """Return, in place of `weight` `[rows, in]`, the rows from `row` on, those that are stored, in float32."""
        return read_tensor(self.path, self.info.rows(row, row + weight.shape[0])).astype(mx.float32)


Change: TypeAlias = Adapter | Replacement


@dataclass(frozen=True)
class Scaling:
    """How much of the adapters is added, and why, as a clause: "as lora/config.json says"."""

    value: float
    reason: str


def find_scaling(lora: str | os.PathLike[str], config: LmConfig, given: float | None = None) -> Scaling:
    """Find out how much of the adapters in a file is added.

    What is `given` comes first; then `lora_scaling` in the configuration beside the adapters, of their own name (`find_config`)
    or `config.json`, where the published recipe writes it; then the same in the model's configuration; then 2.

    Raises
    ------
    InputError
        It is not a number from -1e9 to 1e9, or the configuration beside the adapters cannot be read.
    """
    if given is not None:
        if not LORA_SCALING.has(given):
            raise InputError(f"The scaling {brief(given)} of the adapters is not {LORA_SCALING}.")
        return Scaling(given, "as was asked for")
    beside = find_config(user_path(lora))
    own = scaling_in(read_config(beside), f"The configuration {beside}") if beside else None
    if own is not None:
        return Scaling(own, f"as {beside} says")
    if config.lora_scaling is not None:
        return Scaling(config.lora_scaling, "as the model's configuration says")
    return Scaling(_USUAL, "the usual one, since no configuration says another")


def read_lora(
    path: str | os.PathLike[str],
    scaling: float,
    shapes: Mapping[str, tuple[int, ...]],
    dep_q: int,
    linear: Collection[str] | None = None,
) -> dict[str, Change]:
    """Read the changes of a model's weights from a safetensors file, by the names of the modules in the MLX layout.

    The file holds `X.lora_A.weight` `[rank, in]` and `X.lora_B.weight` `[out, rank]` for some linear layers X, and `X.weight`
    for some matrices X, mostly embeddings, which take the place of the model's. X is named as in either layout. Where PyTorch's
    has one layer for all slices of the depformer, stacked along the rows, so are `lora_B` and `X.weight`.

    Parameters
    ----------
    scaling
        How much of the adapters is added.
    shapes
        The shapes `[out, in]` of the model's matrices, by their names in the MLX layout.
    dep_q
        How many slices the depformer has.
    linear
        Those of the matrices that can have adapters; None: all.

    Raises
    ------
    InputError
        The file is wrong, or does not fit the model; the message names the tensor.
    """
    path = user_path(path)
    header = read_header(path)
    if "out_norm.weight" in header or "out_norm.alpha" in header:
        raise InputError(f"{path} is a language model, not a file of LoRA adapters", "give it as --model")
    if any(name.startswith("quantizer.") for name in header):
        raise InputError(f"{path} is a Mimi codec, not a file of LoRA adapters", "give it as --mimi")
    for name, info in header.items():
        if info.dtype not in FLOATS or len(info.shape) != 2:
            raise InputError(
                f"{path}: {name} is of type {info.dtype} and shape {list(info.shape)}", "a float matrix is expected"
            )
    found: dict[str, Change] = {}
    for name, info in header.items():
        if not name.endswith((_A, _B)):
            places = _places(name, dep_q)
            if places[0] not in shapes:
                raise InputError(
                    f"{path} is not a file of LoRA adapters for the model: {name} is neither a {_A[1:]} nor a {_B[1:]}, and no "
                    "matrix of the model is called so."
                )
            rows, columns = shapes[places[0]]
            _check_shape(path, name, info, (rows * len(places), columns))
            changes: list[Change] = [Replacement(path, info.rows(k * rows, (k + 1) * rows)) for k in range(len(places))]
        else:
            module = name.removesuffix(_A).removesuffix(_B)
            other = module + (_B if name.endswith(_A) else _A)
            if other not in header:
                raise InputError(f"{path} has {name} but no {other}.")
            if name.endswith(_B):
                continue
            places = _places(f"{module}.weight", dep_q)
            if places[0] not in (shapes if linear is None else linear):
                raise InputError(
                    f"{path} does not fit the model: it has no linear layer {module}, which {name} is for."
                )
            rank, (rows, columns) = info.shape[0], shapes[places[0]]
            if info.shape[1] != columns:
                raise InputError(f"{path}: {name} has shape {list(info.shape)}", f"[rank, {columns}] is expected")
            b = header[other]
            _check_shape(path, other, b, (rows * len(places), rank))
            a = read_tensor(path, info)
            changes = [
                Adapter(path, a, read_tensor(path, b.rows(k * rows, (k + 1) * rows)), scaling)
                for k in range(len(places))
            ]
        for place, change in zip(places, changes, strict=True):
            if place in found:
                raise InputError(f"{path} changes {place} twice, once by {name}.")
            found[place] = change
    if not found:
        raise InputError(f"{path} is not a file of LoRA adapters: it is empty.")
    return found


def _places(name: str, dep_q: int) -> list[str]:
    """Name the modules of the MLX layout whose weights a tensor of either layout holds, stacked along its rows if several."""
    return [new.removesuffix(".weight") for new in stacked_names(name, dep_q) or [mlx_name(name)]]


def _check_shape(path: Path, name: str, info: TensorInfo, expected: tuple[int, ...]) -> None:
    if info.shape != expected:
        raise InputError(f"{path}: {name} has shape {list(info.shape)}", f"{list(expected)} is expected")
