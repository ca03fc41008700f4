"""A voice conversation with Moshi, on your own machine.

`load_lm`, `load_mimi` and `load_tokenizer` read the three files of a model; `Session` is one conversation, frame by frame.
`LmGen` is the language model alone, codes in and codes out. Names are loaded when they are first used, so that importing
the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codec import Mimi, load_mimi
    from .config import LmConfig
    from .errors import InputError, InUseError, MshError
    from .generate import LmGen, Step
    from .models.lm import Lm
    from .sampling import Sampler, TextSampler
    from .session import Frame, Session, Timings
    from .text import TextStream, Word, Words, load_tokenizer
    from .weights import load_lm

__version__ = "0.1.0"

_HOMES = {
    "Frame": "session",
    "InUseError": "errors",
    "InputError": "errors",
    "Lm": "models.lm",
    "LmConfig": "config",
    "LmGen": "generate",
    "Mimi": "codec",
    "MshError": "errors",
    "Sampler": "sampling",
    "Session": "session",
    "Step": "generate",
    "TextSampler": "sampling",
    "TextStream": "text",
    "Timings": "session",
    "Word": "text",
    "Words": "text",
    "load_lm": "weights",
    "load_mimi": "codec",
    "load_tokenizer": "text",
}

__all__ = [
    "Frame",
    "InUseError",
    "InputError",
    "Lm",
    "LmConfig",
    "LmGen",
    "Mimi",
    "MshError",
    "Sampler",
    "Session",
    "Step",
    "TextSampler",
    "TextStream",
    "Timings",
    "Word",
    "Words",
    "load_lm",
    "load_mimi",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
