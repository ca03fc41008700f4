"""The codec in Rust, from the package `mimi`, with types and with our errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from mimi import Decoder, Encoder, Mimi, MimiError

from ..errors import InputError
from ..format import FRAME_SIZE, SAMPLE_RATE
from ..model.architecture import Architecture
from ..system.inputs import check_file
from ..system.machine import memory_to_take
from ..system.places import user_path
from ..system.words import human_size
from ..weights.kinds import check_mimi, kind_of
from ..weights.safetensors import read_header

__all__ = ["Decoder", "Encoder", "Mimi", "check_codec", "check_pcm", "load_mimi"]


def load_mimi(
    path: str | os.PathLike[str],
    *,
    num_codebooks: int = 8,
    num_threads: int | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    weights: str = "float32",
) -> Mimi:
    """Load a Mimi checkpoint as `mimi.Mimi` does; paths may begin with `~`.

    `weights` is how the matrices are held, "float32" or "float16", whatever type they have in the file.

    Raises
    ------
    InputError
        The file cannot be read or is not a Mimi checkpoint, an argument is out of range, or there is too little memory; the
        message says which.
    """
    path = user_path(path)
    check_file(path)
    size, free = path.stat().st_size, memory_to_take()
    need = size // 2 if weights == "float16" else size
    if need > free and kind_of(read_header(path)) == "mimi":  # another file is refused by its kind
        what = f"The codec takes {human_size(need)} of memory, and {human_size(free)} can be had"
        raise InputError(what, "close other programs")
    if isinstance(config, str | os.PathLike):
        config = user_path(config)
        check_file(config)
    elif config is not None:
        config = dict(config)
    try:
        return Mimi(path, num_codebooks=num_codebooks, num_threads=num_threads, config=config, weights=weights)
    except ValueError as error:
        if isinstance(error, MimiError):
            check_mimi(path, read_header(path))  # which may know what the file is
        raise InputError(str(error)) from None
    except OSError as error:
        # Without `errno` the error comes from the extension, and its sentence is complete.
        message = str(error).replace("\0", "?").rstrip(".")
        raise InputError(
            f"{message}." if error.errno is None else f"{path} cannot be read: {error.strerror}."
        ) from None


def check_pcm(pcm: object, what: str, samples: int | None = None) -> None:
    """Raise InputError if `pcm` is not sound: float32 `[samples]`, all finite. `samples` None: any number. `what` names it."""
    if not isinstance(pcm, np.ndarray) or pcm.dtype != np.float32 or pcm.ndim != 1 or samples not in (None, len(pcm)):
        given = f"{pcm.dtype}{list(pcm.shape)}" if isinstance(pcm, np.ndarray) else type(pcm).__name__
        raise InputError(f"The {what} is {given}", f"float32[{samples or 'samples'}] is expected")
    if not np.isfinite(pcm).all():
        raise InputError(f"Sample {int(np.argmin(np.isfinite(pcm)))} of the {what} is not a finite number.")


def check_codec(mimi: Mimi, config: Architecture, codebooks: int | None = None) -> None:
    """Check that a codec has the codes of a model and the frames of a conversation, and enough codebooks.

    `codebooks` is how many are needed; None: all that the model speaks or hears.

    Raises
    ------
    InputError
        It does not.
    """
    need = max(config.dep_q, config.user_q) if codebooks is None else codebooks
    if mimi.num_codebooks < need:
        raise InputError(
            f"The codec has {mimi.num_codebooks} codebooks and the model needs {need}", "load it with as many"
        )
    if mimi.config["bins"] != config.card:
        raise InputError(
            f"The codec has {mimi.config['bins']} codes a codebook and the model {config.card}",
            "give the model's own codec",
        )
    if (mimi.sample_rate, mimi.frame_size) != (SAMPLE_RATE, FRAME_SIZE):
        raise InputError(
            f"The codec has frames of {mimi.frame_size} samples at {mimi.sample_rate} Hz, and a conversation has "
            f"{FRAME_SIZE} at {SAMPLE_RATE}",
            "give the model's own codec",
        )
