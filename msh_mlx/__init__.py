"""Voice conversations with Moshi, on your own machine.

`load_lm`, `load_mimi` and `load_tokenizer` read the three files of a model. `Session` is one conversation, frame by frame.
`LmGen` is the language model alone: codes in, codes out. A name is loaded when it is first used, so that importing the package
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversation.codec import Mimi, load_mimi
    from .conversation.session import Frame, Session, Timings
    from .conversation.text import TextStream, Words, load_tokenizer
    from .errors import InputError, InUseError, MshError
    from .events import Word
    from .model.config import LmConfig
    from .model.generate import LmGen, Step
    from .model.lm import Lm
    from .model.sampling import Sampler, TextSampler
    from .weights.checkpoint import load_lm

__version__ = "0.1.0"

_HOMES = {
    "Frame": "conversation.session",
    "InUseError": "errors",
    "InputError": "errors",
    "Lm": "model.lm",
    "LmConfig": "model.config",
    "LmGen": "model.generate",
    "Mimi": "conversation.codec",
    "MshError": "errors",
    "Sampler": "model.sampling",
    "Session": "conversation.session",
    "Step": "model.generate",
    "TextSampler": "model.sampling",
    "TextStream": "conversation.text",
    "Timings": "conversation.session",
    "Word": "events",
    "Words": "conversation.text",
    "load_lm": "weights.checkpoint",
    "load_mimi": "conversation.codec",
    "load_tokenizer": "conversation.text",
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
