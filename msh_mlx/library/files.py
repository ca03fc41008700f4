"""The files of a model, and how to find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..system.inputs import existing
from ..system.places import asset
from ..system.words import listed
from ..weights.beside import find_config

# The names of the codec and the tokenizer in the published repositories.
MIMIS = ("tokenizer-*.safetensors", "mimi-*.safetensors")
TOKENIZERS = ("tokenizer*.model",)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model. `config` is None for the published architecture, `voices` for a model without voices."""

    model: Path
    mimi: Path
    tokenizer: Path
    config: Path | None
    voices: Path | None = None

    @property
    def all(self) -> list[Path]:
        """All files; the configuration and the voices only if there are some."""
        return [path for path in (self.model, self.mimi, self.tokenizer, self.config, self.voices) if path]


def beside(model: Path, patterns: Sequence[str], what: str, option: str) -> Path | None:
    """Find the file beside a model that fits a pattern; None if there is none. Raise InputError if there are several."""
    found = {path: pattern for pattern in patterns for path in model.parent.glob(pattern) if path.is_file()}
    if len(found) > 1:
        forms = listed(dict.fromkeys(found.values()))
        raise InputError(f"There are {len(found)} {what}s ({forms}) beside {model}", f"name one with {option}")
    return next(iter(found), None)


def find_model(model: str, mimi: str, tokenizer: str | None = None, config: str | None = None) -> ModelFiles:
    """Find the files of a model. Look beside it for a tokenizer or configuration not given (`TOKENIZERS`, `find_config`).

    Raise InputError if a file is missing, or if there is not exactly one tokenizer beside the model.
    """
    model_file = existing(model, "model")
    mimi_file = existing(mimi, "codec")
    named = None if tokenizer is None else existing(tokenizer, "tokenizer")
    tokenizer_file = named or beside(model_file, TOKENIZERS, "tokenizer", "--tokenizer")
    if tokenizer_file is None:
        raise InputError(f"There is no tokenizer ({listed(TOKENIZERS)}) beside {model}", "give one with --tokenizer")
    return ModelFiles(model_file, mimi_file, tokenizer_file, config_for(model_file, config))


def config_for(model: Path, named: str | None) -> Path | None:
    """Return the configuration that the user named, else the one beside the model, else None."""
    return existing(named, "configuration") if named is not None else find_config(model)


def demo_folder() -> Path:
    """Return the folder of the demo model. Raise MshError if it is not installed."""
    return asset("assets/demo/config.json", "The demo model").parent


# The demo models, by what they are for. A persona is a voice and a role.
_DEMOS = {
    "conversation": "model.q8.safetensors",
    "persona": "persona/model.q8.safetensors",
    "transcription": "stt/model.safetensors",
    "speech": "tts/model.safetensors",
}


DEMO_USES = tuple(_DEMOS)


def find_demo(use: str = "conversation") -> ModelFiles:
    """Find the files of a demo model, by what it is for: a key of `_DEMOS`. Raise MshError if it is not installed.

    They share the codec, and a tokenizer where they have none of their own.
    """
    folder = demo_folder()
    model = folder / _DEMOS[use]
    tokenizer = beside(model, TOKENIZERS, "tokenizer", "--tokenizer") or folder / "tokenizer.model"
    return find_model(str(model), str(folder / "mimi.safetensors"), str(tokenizer))
