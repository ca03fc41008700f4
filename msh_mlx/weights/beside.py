"""The configuration beside a model's file."""

from __future__ import annotations

from pathlib import Path


def config_beside(model: Path) -> Path:
    """Return the path of the configuration of this model's file alone: model.json for model.safetensors."""
    return model.with_suffix(".json")


def is_merged(model: Path) -> bool:
    """Tell whether a model's file is a fine-tune with its adapters added already, by the name that the published recipe gives.

    The configuration beside it says that there are adapters, all the same.
    """
    return model.stem.startswith("consolidated")


def find_config(model: Path) -> Path | None:
    """Find the configuration beside a model: the one with its own name, else the folder's `config.json`, else None."""
    for path in (config_beside(model), model.with_name("config.json")):
        if path.is_file():
            return path
    return None
