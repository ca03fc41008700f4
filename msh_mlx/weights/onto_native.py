"""Loads a checkpoint for the native engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import InputError
from ..model.families.hibiki import replaced_rows
from ..model.native.model import NativeModel, described
from ..model.parameters import CONDITIONS
from ..system.machine import memory_to_take
from .checkpoint import Checkpoint
from .lora import Adapter, Change
from .safetensors import TensorInfo

# A tensor's place in a file, as the engine takes it: dtype, rows, columns, first byte.
_Place = tuple[str, int, int, int]


def load_onto_native(
    checkpoint: Checkpoint,
    dtype: str | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> NativeModel:
    """Load the model, with adapters merged. `dtype` is as for `load_lm`.

    `threads` read, and compute afterwards; None: as many as there are cores.

    Raises
    ------
    InputError
        The adapters do not fit the model, a file has changed, a number is not finite, or the weights are too large for the
        memory that is free.
    """
    from msh_native import FileError, Lm, ModelError

    checkpoint.check_unchanged()
    checkpoint.check_copies()
    changes = checkpoint.changes()
    modules = {
        module: (*_stored(checkpoint, module), _changed(changes.get(module)))
        for module in checkpoint.shapes
        if not module.startswith(CONDITIONS)
    }
    try:
        weights = Lm(
            checkpoint.path,
            described(checkpoint.config),
            modules,
            replaced=list(replaced_rows(checkpoint.config).items()),
            lora=checkpoint.lora,
            threads=threads,
            memory=memory_to_take(),
            progress=progress,
        )
    except (FileError, ModelError) as error:
        raise InputError(*error.args) if len(error.args) > 1 else InputError(str(error)) from None
    except OSError as error:  # whose message is a whole sentence
        raise InputError(str(error)) from None
    if progress:
        progress(1.0)
    bits = {_bits(checkpoint, module) for module in checkpoint.matrices if not module.startswith(CONDITIONS)}
    # A model whose numbers are float32 keeps keys and values in it, too: then the tokens are those of other programs.
    kept = "float32" if dtype == "float32" or (dtype is None and checkpoint.is_wide) else "float16"
    return NativeModel(
        checkpoint.config,
        weights,
        checkpoint.conditions(),
        tuple(sorted(bits)),
        threads,
        activations="float32" if dtype == "float32" else "int16",
        kept=kept,
    )


def _stored(checkpoint: Checkpoint, module: str) -> tuple[_Place, tuple[int, int, _Place, _Place] | None]:
    """Return where a module's weight is, and how it is packed."""
    parts, how = checkpoint.parts(module), checkpoint.quantizations.get(module)
    weight, *rest = map(_place, parts.values())
    if how is None:
        return weight, None
    scales, biases = rest
    return weight, (how.bits, how.group_size, scales, biases)


def _bits(checkpoint: Checkpoint, module: str) -> int:
    how = checkpoint.quantizations.get(module)
    return how.bits if how else 32 if checkpoint.parts(module)["weight"].dtype == "F32" else 16


def _changed(change: Change | None) -> Any:
    if change is None:
        return None
    if isinstance(change, Adapter):
        return _place(change.a), _place(change.b), change.scaling
    return (_place(change.info),)


def _place(info: TensorInfo) -> _Place:
    rows = info.shape[0] if len(info.shape) == 2 else 1
    return info.dtype, rows, math.prod(info.shape) // max(rows, 1), info.begin
