"""LoRA adapters: products of small matrices that are added to a model's weights, and whole weights that come with them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..model.config import LmConfig, read_config, scaling_in
from ..model.ranges import LORA_SCALING
from ..system.inputs import brief
from ..system.places import user_path
from .beside import find_config
from .layout import mlx_names
from .safetensors import FLOATS, TensorInfo, as_float32, read_header, read_tensor

_A, _B = ".lora_A.weight", ".lora_B.weight"
_USUAL = 2.0  # the factor in the published recipe for fine-tuning


@dataclass(frozen=True)
class Adapter:
    """A product to add to one weight: `scaling · b @ a`, with `a` `[rank, in]` and `b` `[out, rank]`, from the file `path`."""

    path: Path
    a: TensorInfo
    b: TensorInfo
    scaling: float

    def merge(self, weight: npt.NDArray[np.float32], row: int = 0) -> npt.NDArray[np.float32]:
        """Add the product to `weight`, `[rows, in]`, the rows from `row` on."""
        a, b = (as_float32(read_tensor(self.path, part)) for part in (self.a, self.b.rows(row, row + weight.shape[0])))
        with np.errstate(over="ignore", invalid="ignore"):  # `Checkpoint.rows` refuses what is not finite
            merged: npt.NDArray[np.float32] = weight + np.float32(self.scaling) * (b @ a)
        return merged


@dataclass(frozen=True)
class Replacement:
    """A stored weight that replaces the model's, such as an embedding that was trained as a whole."""

    path: Path
    info: TensorInfo

    def merge(self, weight: npt.NDArray[np.float32], row: int = 0) -> npt.NDArray[np.float32]:
        """Return the stored rows in place of `weight`, `[rows, in]`, the rows from `row` on."""
        return as_float32(read_tensor(self.path, self.info.rows(row, row + weight.shape[0])))


Change: TypeAlias = Adapter | Replacement


@dataclass(frozen=True)
class Scaling:
    """The factor that adapters are added with, and where it comes from, as a clause: "as lora/config.json says"."""

    value: float
    reason: str


def find_scaling(lora: str | os.PathLike[str], config: LmConfig, given: float | None = None) -> Scaling:
    """Find the factor that the adapters in a file are added with.

    It is `given`; else `lora_scaling` in the configuration beside the adapters (`find_config`), where the published recipe
    writes it; else `lora_scaling` in the model's configuration; else 2.

    Raises
    ------
    InputError
        The factor is not a number from -1e9 to 1e9, or the configuration beside the adapters cannot be read.
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
    slices: Sequence[int],
    linear: Collection[str] | None = None,
    run: int | None = None,
) -> dict[str, Change]:
    """Read the changes to a model's weights from a safetensors file. Return them by the modules' names in the MLX layout.

    The file holds `X.lora_A.weight` `[rank, in]` and `X.lora_B.weight` `[out, rank]` for some linear layers X. It may also hold
    `X.weight` for some matrices X, mostly embeddings, which replace the model's. Names X are those of either layout. Where
    PyTorch's layout stacks all slices of the depformer along the rows of one layer, `lora_B` and `X.weight` are stacked, too.

    Parameters
    ----------
    scaling
        The factor that the adapters are added with.
    shapes
        The shapes `[out, in]` of the model's matrices, by their names in the MLX layout.
    slices
        The slice of the depformer that each codebook uses, as `LmConfig.slices`.
    linear
        The names of the matrices that can have adapters; None: all.
    run
        How many codebooks are run, if not all of `slices`. What is for the others is left out.

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
    run = len(slices) if run is None else run
    gone = tuple(f"depformer.slices.{k}." for k in range(run, len(slices)))

    def places_of(name: str, known: Collection[str]) -> list[list[str]] | None:
        """Return the modules among `known` whose weights the parts of a tensor hold; None: these are not run."""
        parts = mlx_names(name, slices)
        if gone and all(new.startswith(gone) for part in parts for new in part):
            return None
        return [[module for new in part if (module := new.removesuffix(".weight")) in known] for part in parts]

    for name, info in header.items():
        if not name.endswith((_A, _B)):
            places = places_of(name, shapes)
            if places is None:
                continue
            if not any(places):
                raise InputError(
                    f"{path} is not a file of LoRA adapters for the model: {name} is neither a {_A[1:]} nor a {_B[1:]}, and no "
                    "matrix of the model is called so."
                )
            rows, columns = _shape(places, shapes)
            _check_shape(path, name, info, (rows * len(places), columns))
            changes: list[Change] = [Replacement(path, info.rows(k * rows, (k + 1) * rows)) for k in range(len(places))]
        else:
            module = name.removesuffix(_A).removesuffix(_B)
            other = module + (_B if name.endswith(_A) else _A)
            if other not in header:
                raise InputError(f"{path} has {name} but no {other}.")
            if name.endswith(_B):
                continue
            places = places_of(f"{module}.weight", shapes if linear is None else linear)
            if places is None:
                continue
            if not any(places):
                raise InputError(
                    f"{path} does not fit the model: it has no linear layer {module}, which {name} is for."
                )
            rank, (rows, columns) = info.shape[0], _shape(places, shapes)
            if info.shape[1] != columns or not rank:
                raise InputError(f"{path}: {name} has shape {list(info.shape)}", f"[rank, {columns}] is expected")
            b = header[other]
            _check_shape(path, other, b, (rows * len(places), rank))
            changes = [Adapter(path, info, b.rows(k * rows, (k + 1) * rows), scaling) for k in range(len(places))]
        for names, change in zip(places, changes, strict=True):
            for place in names:
                if place in found:
                    raise InputError(f"{path} changes {place} twice, once by {name}.")
                found[place] = change
    if not found:
        raise InputError(f"{path} is not a file of LoRA adapters: it is empty.")
    return found


def _shape(places: list[list[str]], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return next(shapes[module] for part in places for module in part)


def _check_shape(path: Path, name: str, info: TensorInfo, expected: tuple[int, ...]) -> None:
    if info.shape != expected:
        raise InputError(f"{path}: {name} has shape {list(info.shape)}", f"{list(expected)} is expected")
