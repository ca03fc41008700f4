"""Which engine computes a model: MLX, or the native one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ..errors import InputError, MshError

if TYPE_CHECKING:
    from .config import LmConfig
    from .engine import LanguageModel

ENGINES = ("auto", "mlx", "native")


def chosen(engine: str) -> str:
    """Return "mlx" or "native" for one of `ENGINES`: "auto" is MLX where it has a GPU, else native.

    Raises
    ------
    InputError
        There is no such engine, or MLX is wanted and cannot be imported.
    """
    if engine not in ENGINES:
        raise InputError(f"There is no engine {engine!r}", f"give one of {', '.join(ENGINES)}")
    if engine == "mlx" and not _has_mlx():
        raise InputError("MLX cannot be imported here", "leave --engine out, or give --engine native")
    if engine == "auto":
        return "mlx" if has_gpu() else "native"
    return engine


def prepare(engine: str) -> str:
    """Check that an engine can work here, and make it ready, before anything large is fetched or loaded.

    Return "mlx" or "native", as `chosen`.

    Raises
    ------
    MshError
        MLX has no place for what it compiles.
    InputError
        As `chosen`.
    """
    name = chosen(engine)
    if name == "mlx":
        from ..system.memory import set_limits
        from .mlx.step import check_compiling

        check_compiling()
        set_limits()
    return name


def random_lm(
    config: LmConfig,
    bits: int,
    group_size: int,
    seed: int,
    engine: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> LanguageModel:
    """Make a model of seeded random weights for an engine, to be measured.

    `bits` is 16 for weights that are not packed, else the bits of all matrices, in groups of `group_size`. `progress` gets the
    fraction that has been made.

    Raises
    ------
    InputError
        As `chosen`; or the weights are too large for the memory that is free, with the native engine.
    """
    if chosen(engine) == "mlx":
        from .mlx.layers import default_dtype
        from .mlx.random import random_model

        return random_model(config, bits, group_size, seed, default_dtype(), progress)
    from .native.model import NativeModel

    return NativeModel.random(config, bits, group_size, seed, progress)


@dataclass(frozen=True)
class Sizes:
    """The bytes of a float in weights (None: as many as in the file), in keys and values, and in what cross-attention sees."""

    weights: int | None
    kept: int
    seen: int


def sizes(engine: str, *, wide: bool) -> Sizes:
    """Return the sizes of numbers with "mlx" or "native". `wide`: the model's numbers are float32."""
    if engine == "native":
        return Sizes(None, 4 if wide else 2, 4)
    from .mlx.layers import default_dtype

    size = default_dtype().size
    return Sizes(size, size, size)


def explain(error: BaseException) -> MshError | None:
    """Return the error to show in place of `error` if an engine's place for what it compiles is to blame, else None."""
    if "mlx.core" not in sys.modules:
        return None
    from .mlx.step import explain

    return explain(error)


@cache
def _has_mlx() -> bool:
    try:
        import mlx.core  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def has_gpu() -> bool:
    """Whether MLX is there and computes on a GPU."""
    if not _has_mlx():
        return False
    import mlx.core as mx

    return bool(mx.default_device() != mx.cpu)
