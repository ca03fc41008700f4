"""Which engine computes a model: MLX, or the native one."""

from __future__ import annotations

import sys
from functools import cache

from ..errors import InputError, MshError

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
