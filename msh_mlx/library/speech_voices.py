"""Voices of text-to-speech models: beside a model, or published, and what their licences forbid."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path, PurePath

from ..errors import InputError
from ..system.inputs import brief
from ..system.places import user_path
from ..system.words import listed
from .catalogue import HubFile

REPOSITORY = "kyutai/tts-voices"
# Folders of published voices that must not be used commercially, and their licences.
_NOT_COMMERCIAL = {"ears": "CC BY-NC 4.0", "expresso": "CC BY-NC 4.0"}
_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)+", re.ASCII)
# What is behind the name of a voice: the model that it was made for.
_OWN = re.compile(r"\.[0-9a-f]+@\d+\.safetensors$")


def voices_beside(model: Path) -> dict[str, Path]:
    """Return the voices in the folder `voices` beside a model, by their names."""
    folder = model.parent / "voices"
    found = sorted(path for path in folder.glob("**/*.safetensors") if path.is_file())
    return {_OWN.sub("", str(path.relative_to(folder))).removesuffix(".safetensors"): path for path in found}


def find_voice(text: str, model: Path, ending: str) -> Path | HubFile:
    """Find a voice: a file, the name of one beside the model, or FOLDER/NAME in the repository of published voices.

    `ending` is what follows the names there.

    Raises
    ------
    InputError
        There is no such voice.
    """
    if not text:
        raise InputError("The name of the voice is empty", "give a name or a file")
    path = user_path(text)
    with contextlib.suppress(OSError, ValueError):  # a text that cannot be the name of a file
        if path.is_file():
            return path
    known = voices_beside(model)
    if text in known:
        return known[text]
    if _NAME.fullmatch(text) and ".." not in text and path.suffix != ".safetensors":
        return HubFile(REPOSITORY, text + ending)
    beside = f"the model has {listed(known)}" if known else f"give a file, or FOLDER/NAME of {REPOSITORY}"
    raise InputError(f"There is no voice {brief(text)}", beside)


def forbidden(voice: Path | HubFile) -> str | None:
    """Return the licence of a published voice that must not be used commercially; None: it may, or that is not known."""
    folders = PurePath(voice.path).parent.parts if isinstance(voice, HubFile) else voice.parent.parts
    return next((_NOT_COMMERCIAL[folder] for folder in folders if folder in _NOT_COMMERCIAL), None)
