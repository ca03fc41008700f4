"""Load a language model for an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError
from ..model.config import LmConfig
from ..model.engine import LanguageModel
from ..model.engines import chosen
from ..system.inputs import brief
from .checkpoint import Checkpoint, open_checkpoint

DTYPES = ("float32", "bfloat16", "float16")


def load(
    checkpoint: Checkpoint,
    engine: str = "auto",
    *,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> LanguageModel:
    """Load a checkpoint for an engine. Arguments and errors are those of `load_lm`."""
    if dtype not in (None, *DTYPES):
        raise InputError(f"A model cannot be computed in {brief(dtype)}", f"give one of {', '.join(DTYPES)}")
    if chosen(engine) == "mlx":
        from .onto_mlx import load_onto_mlx

        return load_onto_mlx(checkpoint, dtype, progress)
    from .onto_native import load_onto_native

    return load_onto_native(checkpoint, dtype, threads=threads, progress=progress)


def load_lm(
    path: str | os.PathLike[str],
    config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    *,
    engine: str = "auto",
    quantized: int | None = None,
    lora: str | os.PathLike[str] | None = None,
    lora_scaling: float | None = None,
    context: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> LanguageModel:
    """Load a Moshi language model from a safetensors file in the MLX or the PyTorch layout.

    The stored tensors tell which weights are quantized, with how many bits and in what groups. Modules are read one after the
    other: besides the weights of the model itself, never more than one module is in memory.

    Parameters
    ----------
    path
        The file.
    config
        A path to a `config.json`, its contents as a dict, an `LmConfig`, or None for v0.1.
    dtype
        On MLX, the dtype of the activations and of the weights that are not quantized: "float32", "bfloat16" or "float16";
        None chooses by the device (`default_dtype`). The native engine computes in float32, and keeps weights as they are
        stored. There, "float32" keeps keys and values in it, and activations in products with packed weights; another dtype
        keeps keys and values in float16; and None goes by the model's numbers: float32 if they are, else float16.
    engine
        "mlx", "native", or "auto": MLX where it has a GPU, else the native engine.
    quantized
        The bits that the caller expects; if the file has another number, that is an error.
    lora
        A file of adapters to add to the weights, and of weights that replace the model's (`read_lora`). Sums are computed in
        float32. A quantized weight is quantized again afterwards, in the same way.
    lora_scaling
        The factor that adapters are added with. None: the factor in the configuration beside them, or in the model's, else
        2 (`lora.find_scaling`).
    context
        The seconds that the model remembers; None, or more than its window: its window.
    progress
        Called with the fraction of the bytes that have been loaded, from 0 to 1.

    Raises
    ------
    InputError
        A file or the configuration is wrong, or they do not fit each other; the message names the tensor.
    """
    checkpoint = open_checkpoint(path, config, quantized, lora=lora, lora_scaling=lora_scaling, context=context)
    return load(checkpoint, engine, dtype=dtype, progress=progress)
