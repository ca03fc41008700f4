"""Loads a checkpoint for MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..model.families.hibiki import replaced_rows
from ..model.mlx.embeddings import Rows
from ..model.mlx.layers import default_dtype
from ..model.mlx.lm import Lm
from ..model.mlx.model import MlxModel
from ..model.parameters import CONDITIONS
from .checkpoint import Checkpoint, hidden_widths
from .lora import Change
from .packing import Quantization
from .safetensors import read_tensor


def load_onto_mlx(
    checkpoint: Checkpoint, dtype: str | None = None, progress: Callable[[float], None] | None = None
) -> MlxModel:
    """Load the model, with adapters merged. `dtype` is that of activations and of weights that are not packed.

    Raises
    ------
    InputError
        The adapters do not fit the model, or a file has changed.
    """
    checkpoint.check_unchanged()
    checkpoint.check_copies()
    changes = checkpoint.changes()
    floats: mx.Dtype = default_dtype() if dtype is None else getattr(mx, dtype)
    lm = Lm(checkpoint.config, *hidden_widths(checkpoint.tensors))
    # MLX would make random weights. They are never computed, but its generator's state would remember all of them for ever.
    mx.eval(mx.random.state)
    _quantize(lm, checkpoint.quantizations)
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    done = 0
    weights: list[tuple[str, mx.array]] = []
    for module in checkpoint.shapes:
        if progress:
            progress(done / total)
        if not module.startswith(CONDITIONS):
            arrays = _read(checkpoint, module, changes.get(module), floats)
            mx.eval(list(arrays.values()))
            weights += [(f"{module}.{part}" if part else module, array) for part, array in arrays.items()]
        done += sum(info.nbytes for info in checkpoint.parts(module).values())
        mx.clear_cache()  # otherwise the buffers of one module stay in memory beside those of the next
    lm.load_weights(weights, strict=True)
    weights.clear()
    lm.freeze()
    lm.eval()
    lm.prepare()
    mx.clear_cache()
    if progress:
        progress(1.0)
    return MlxModel(lm, checkpoint.conditions())


def _read(checkpoint: Checkpoint, module: str, change: Change | None, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Read a module's tensors as the model holds them, with `change` made."""
    how, parts = checkpoint.quantizations.get(module), checkpoint.parts(module)
    if change is None:
        arrays = []
        for info in parts.values():
            array = mx.array(read_tensor(checkpoint.path, info))
            if info.dtype == "BF16":
                array = array.view(mx.bfloat16)
            arrays.append(array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array)
    else:
        pieces: list[Any] = []
        for _, rows in checkpoint.rows(module, change):
            weight = mx.array(rows).astype(dtype)
            pieces.append(mx.quantize(weight, how.group_size, how.bits) if how else (weight,))
            mx.eval(pieces[-1])
        arrays = [mx.concatenate(list(column)) for column in zip(*pieces, strict=True)]
    if module == "text_emb":
        for row, other in replaced_rows(checkpoint.config).items():
            arrays = [mx.where(mx.arange(len(array))[:, None] == row, array[other], array) for array in arrays]
    return dict(zip(parts, arrays, strict=True))


def _quantize(lm: Lm, quantizations: Mapping[str, Quantization]) -> None:
    def how(name: str, _: nn.Module) -> bool | dict[str, int]:
        found = quantizations.get(name)
        return {"bits": found.bits, "group_size": found.group_size} if found else False

    if quantizations:
        nn.quantize(lm, class_predicate=how)
    for name, module in lm.named_modules():
        if isinstance(module, Rows) and (found := quantizations.get(name)):
            module.pack(found.bits, found.group_size)
