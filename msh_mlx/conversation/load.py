"""From the files of a model to a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..library.files import ModelFiles
    from .session import Parts, Session


def load_session(
    files: ModelFiles,
    quantized: int | None,
    *,
    voice: Mapping[str, Any],
    text: Mapping[str, Any],
    seed: int | None,
    kv_bits: int | None = None,
    lora: str | None = None,
    lora_scaling: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Session:
    """Set MLX's limits and load a model, what is small first.

    `voice` and `text` are the arguments of `Sampler` and `TextSampler`; the others are as for `load_lm` and `Session`,
    `lora_scaling` None what the configurations say.

    Raises
    ------
    InputError
        A file or a value is wrong, or the files do not belong together.
    """
    from ..model.sampling import Sampler, TextSampler
    from .session import Session

    samplers = {"audio_sampler": Sampler(**voice), "text_sampler": TextSampler(**text)}
    parts = load_parts(files, quantized, lora=lora, lora_scaling=lora_scaling, progress=progress)
    return Session(parts.lm, parts.mimi, parts.tokenizer, **samplers, seed=seed, kv_bits=kv_bits)


def load_parts(
    files: ModelFiles,
    quantized: int | None,
    *,
    lora: str | None = None,
    lora_scaling: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Parts:
    """Set MLX's limits and load what sessions share; arguments and errors are those of `load_session`."""
    from ..model.config import LmConfig
    from ..model.step import check_compiling
    from ..system.memory import set_limits
    from ..weights.checkpoint import load_lm, open_checkpoint
    from .codec import load_mimi
    from .session import Parts
    from .text import check_vocabulary, load_tokenizer

    check_compiling()
    set_limits()
    config = LmConfig.of(files.config, lora=lora is not None)
    tokenizer = load_tokenizer(files.tokenizer)
    # Before gigabytes are read; what is wrong with the model itself comes first.
    open_checkpoint(files.model, config, quantized, lora=lora is not None)
    check_vocabulary(tokenizer, config.text_card)
    mimi = load_mimi(files.mimi, num_codebooks=max(config.dep_q, config.user_q))
    lm = load_lm(
        files.model, config=config, quantized=quantized, lora=lora, lora_scaling=lora_scaling, progress=progress
    )
    return Parts(lm, mimi, tokenizer)
