"""The voices of a text-to-speech model, as a command line names them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..format import FRAME_SIZE, SAMPLE_RATE
from ..system.signals import Signals
from .choice import Choice, watching

if TYPE_CHECKING:
    from ..conversation.session import Parts
    from ..format import Pcm

_VOICES = "give the name of one, or a .safetensors file"
_LONGEST = 15.0  # seconds of a recording for a voice; some 10 s are usual


def _ending(choice: Choice) -> str:
    """Return what follows the names of published voices for a model: they are of this model alone, or recordings."""
    config = choice.checkpoint.config
    if not config.cross_attention or not isinstance(config.model_id, dict):
        return ""
    return f".{config.model_id.get('sig')}@{config.model_id.get('epoch')}.safetensors"


def find_voices(names: Sequence[str], args: argparse.Namespace, choice: Choice, signals: Signals) -> list[Path]:
    """Find the files of the voices, and fetch those that are published and not on disk.

    If none is named, the voice is that of the catalogue, if the model has one there.
    """
    from ..library.speech_voices import find_voice, forbidden
    from ..library.suited import load_library, obtain_file

    entries, ending, files = load_library(args.weights), _ending(choice), choice.files
    attends = choice.checkpoint.config.cross_attention
    found = [find_voice(text, files.model, ending) for text in names] or [*filter(None, [files.voices])]
    paths = []
    with watching(args, signals) as watch:
        for voice in found:
            path = voice if isinstance(voice, Path) else obtain_file(voice, "voice", entries, watch)
            if isinstance(voice, Path) and attends and path.suffix.lower() != ".safetensors":
                raise InputError(f"{path} is not a voice of this model, which takes no recordings", _VOICES)
            if licence := forbidden(voice):
                watch.say(f"The licence of the voice {path.name}, {licence}, forbids commercial use.")
            if isinstance(voice, Path) and not attends:
                watch.say(f"The voice is taken from {path.name}; its speaker must have agreed.")
            paths.append(path)
    return paths


def read_voice(path: Path, choice: Choice) -> Any:
    """Read a voice, before the model is loaded: as the model takes it, or the sound that it goes on from."""
    if not choice.checkpoint.config.cross_attention:
        return _sound(path)
    from ..weights.voice import read_speaker

    return read_speaker(path)


def as_model_takes(voice: Any, parts: Parts) -> Any:
    """Return a voice in the form that the model takes."""
    from ..conversation.speaker import voice_codes

    return voice if parts.lm.config.cross_attention else voice_codes(parts.mimi, voice)


def _sound(path: Path) -> Pcm:
    """Read a recording of a voice."""
    import numpy as np

    from ..sound.recordings import open_recording, read_frames

    frames = []
    with open_recording(str(path)) as recording:
        for frame in read_frames(recording, SAMPLE_RATE, FRAME_SIZE):
            frames.append(frame)
            if len(frames) * FRAME_SIZE > _LONGEST * SAMPLE_RATE:
                raise InputError(
                    f"{recording.name} lasts more than {_LONGEST:g} s, which is too long for a voice", "cut it"
                )
    return np.concatenate(frames)
