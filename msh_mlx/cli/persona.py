"""The options of a persona, for the commands that hold conversations: a voice, and a role in words.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import InputError
from ..system.inputs import decode_text, read_small
from ..system.words import persona_words
from .options import Group, byte_count

if TYPE_CHECKING:
    from ..conversation.personas import Persona
    from ..conversation.session import Opening, Parts
    from ..library.files import ModelFiles
    from ..model.architecture import Architecture

_MAX_TEXT = 1 << 20  # bytes; far more than any window holds
_KEEP = "2 GB"
_PROMPT = "tell Moshi its role: who it is, in words; @FILE reads them from a file"


def add_persona(to: Group) -> None:
    """Add the options of a persona."""
    voice = "give Moshi this voice: a name ('msh-mlx voices' lists them), a file (.pt, .safetensors) or a recording of some 4 s"
    to.value("--voice", "VOICE", f"{voice}; for PersonaPlex models; with --llm, a voice of the model that speaks")
    to.value("--prompt", "TEXT", f"{_PROMPT}; for PersonaPlex models; with --llm, the system prompt")
    keep = f"keep the prompts that were read, for quick starts, in at most so many bytes on disk (default: {_KEEP}; 0: none)"
    to.value("--keep-prompts", "SIZE", keep, type=byte_count, default=byte_count(_KEEP))


def add_remote_persona(to: Group) -> None:
    """Add the options of a persona on a server."""
    to.value(
        "--voice", "NAME", "ask for this voice, by the server's name for it, such as NATF0.pt; for PersonaPlex models"
    )
    to.value("--prompt", "TEXT", f"{_PROMPT}; for PersonaPlex models")


def asked(args: argparse.Namespace) -> list[str]:
    """Return what the user is told about the options of `add_remote_persona`, after `prompt_text`."""
    told = persona_words(args.voice or "", args.prompt or "")
    return [told] if told else []


def is_asked(args: argparse.Namespace) -> bool:
    """Tell whether a voice or a text is given. What can be wrong about them without a model is found here.

    Raises
    ------
    InputError
        The name of the voice is empty, or a path that leads nowhere; or an error of `prompt_text`.
    """
    if args.voice is not None and (not args.voice or os.sep in args.voice):
        from ..library.voices import find_voice

        find_voice(args.voice, {})
    return bool(prompt_text(args)) or args.voice is not None


def prompt_text(args: argparse.Namespace) -> str:
    """Return the text of `--prompt`, or of the file that it names; "" without.

    Raises
    ------
    InputError
        The file cannot be read, is not text, or is empty.
    """
    text: str = args.prompt or ""
    if not text.startswith("@"):
        return text.strip()
    path = text.removeprefix("@")
    if not path:
        raise InputError("--prompt @ names no file", "write it behind the @")
    try:
        read = decode_text(read_small(path, "The role", _MAX_TEXT))
    except UnicodeDecodeError:
        read = "\0"
    if not all(c.isprintable() or c.isspace() for c in read):
        raise InputError(f"The role {path} is not text in UTF-8", "give a text file")
    if not (read := read.strip()):
        raise InputError(f"The role {path} is empty", "write one into it, or leave --prompt out")
    return read


def persona_of(args: argparse.Namespace, files: ModelFiles, config: Architecture) -> Persona | None:
    """Read what the options ask for, and check that it fits the model of some files. None: they ask for nothing.

    Raises
    ------
    InputError
        There is no such voice, the recording or the text is wrong, or the model takes none.
    """
    if not is_asked(args):
        return None
    from ..conversation.personas import check_persona, check_takes_persona, read_persona
    from ..conversation.text import load_tokenizer
    from ..library.suited import load_library
    from ..library.voices import find_voice, known_voices

    check_takes_persona(config)
    path = None
    if args.voice is not None:
        entries = load_library(args.weights).values()
        path = find_voice(args.voice, known_voices(files.model, entries))
    persona = read_persona(path, prompt_text(args))
    check_persona(persona, load_tokenizer(files.tokenizer), config)
    return persona


def opening_of(args: argparse.Namespace, persona: Persona | None) -> Callable[[Parts], Opening] | None:
    """Return what makes the opening of a persona, for `load_session`."""
    if persona is None:
        return None

    def make(parts: Parts) -> Opening:
        from ..conversation.kept import KeptPrompts
        from ..conversation.personas import Personas

        return Personas(parts, kv_bits=args.kv_bits, kept=KeptPrompts.of_user(args.keep_prompts)).opening(persona)

    return make


def sentences(persona: Persona) -> list[str]:
    """Return what the user is told about a persona."""
    said = [str(persona)]
    if persona.recording:
        said.append(CONSENT)
    return said


CONSENT = "The speaker of a recording must have agreed to the use of their voice."
