"""Voice conversations with Moshi, on your own machine.

`load_lm`, `load_mimi` and `load_tokenizer` read the three files of a model. `Session` is one conversation, frame by frame.
`Transcriber` writes down what it hears, `Speaker` says text. `LmGen` is the language model alone: codes in, codes out. A name
is loaded when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversation.codec import Mimi, load_mimi
    from .conversation.personas import Persona, Personas, read_persona
    from .conversation.session import Frame, Opening, Parts, Session, Timings
    from .conversation.speaker import Speaker, Speech, Spoken, voice_codes
    from .conversation.spoken import Turn
    from .conversation.text import TextStream, Words, load_tokenizer
    from .conversation.transcriber import Transcribed, Transcriber
    from .errors import InputError, InUseError, MshError
    from .events import Word
    from .model.config import LmConfig
    from .model.engine import LanguageModel
    from .model.generate import LmGen, Step
    from .model.sampling import Sampler, TextSampler
    from .weights.load import load_lm
    from .weights.voice import read_speaker

__version__ = "0.1.0"

_HOMES = {
    "conversation.codec": ("Mimi", "load_mimi"),
    "conversation.personas": ("Persona", "Personas", "read_persona"),
    "conversation.session": ("Frame", "Opening", "Parts", "Session", "Timings"),
    "conversation.speaker": ("Speaker", "Speech", "Spoken", "voice_codes"),
    "conversation.text": ("TextStream", "Words", "load_tokenizer"),
    "conversation.spoken": ("Turn",),
    "conversation.transcriber": ("Transcribed", "Transcriber"),
    "errors": ("InUseError", "InputError", "MshError"),
    "events": ("Word",),
    "model.config": ("LmConfig",),
    "model.engine": ("LanguageModel",),
    "model.generate": ("LmGen", "Step"),
    "model.sampling": ("Sampler", "TextSampler"),
    "weights.load": ("load_lm",),
    "weights.voice": ("read_speaker",),
}

__all__ = [
    "Frame",
    "InUseError",
    "InputError",
    "LanguageModel",
    "LmConfig",
    "LmGen",
    "Mimi",
    "MshError",
    "Opening",
    "Parts",
    "Persona",
    "Personas",
    "Sampler",
    "Session",
    "Speaker",
    "Speech",
    "Spoken",
    "Step",
    "TextSampler",
    "TextStream",
    "Timings",
    "Transcribed",
    "Transcriber",
    "Turn",
    "Word",
    "Words",
    "load_lm",
    "load_mimi",
    "load_tokenizer",
    "read_persona",
    "read_speaker",
    "voice_codes",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f".{home}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
