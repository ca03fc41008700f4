"""The codec in Rust, from the package `mimi`, with types and with our errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mimi import Decoder, Encoder, Mimi, MimiError

from ..errors import InputError
from ..system.inputs import check_file
from ..system.places import user_path
from ..weights.kinds import check_mimi
from ..weights.safetensors import read_header

__all__ = ["Decoder", "Encoder", "Mimi", "load_mimi"]


def load_mimi(
    path: str | os.PathLike[str],
    *,
    num_codebooks: int = 8,
    num_threads: int | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> Mimi:
    """Load a Mimi checkpoint as `mimi.Mimi` does; paths may begin with `~`.

    Raises
    ------
    InputError
        The file cannot be read or is not a Mimi checkpoint, or an argument is out of range; the message says which.
    """
    path = user_path(path)
    check_file(path)
    if isinstance(config, str | os.PathLike):
        config = user_path(config)
        check_file(config)
    elif config is not None:
        config = dict(config)
    try:
        return Mimi(path, num_codebooks=num_codebooks, num_threads=num_threads, config=config)
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
