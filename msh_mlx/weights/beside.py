"""The configuration beside a model's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# By roles: the keys of a configuration that name the files which belong to the model.
NAME_KEYS = {"mimi": "mimi_name", "tokenizer": "tokenizer_name"}


def names_in(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the codec's and the tokenizer's file that a configuration says, by roles. Paths are not names."""
    said = {role: values.get(key) for role, key in NAME_KEYS.items()}
    return {role: name for role, name in said.items() if isinstance(name, str) and name and Path(name).name == name}


def config_beside(model: Path) -> Path:
    """Return the path of the configuration of this model's file alone: model.json for model.safetensors."""
    return model.parent / f"{model.stem}.json"  # also of a folder without a name, such as "/"


def is_merged(model: Path) -> bool:
    """Tell whether a model's file is a fine-tune with its adapters added already, by the name that the published recipe gives.

    The configuration beside it says that there are adapters, all the same.
    """
    return model.stem.startswith("consolidated")


def find_config(model: Path) -> Path | None:
    """Find the configuration beside a model: the one with its own name, else the folder's `config.json`, else None."""
    for path in (config_beside(model), model.parent / "config.json"):
        if path.is_file():
            return path
    return None
