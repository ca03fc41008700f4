"""The options of a persona, for the commands that hold conversations: a voice, and a role in words.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import InputError
from ..system.inputs import decode_text, read_small
from ..system.words import persona_words
from .options import Group, byte_count

if TYPE_CHECKING:
    from ..conversation.personas import Persona
    from ..conversation.session import Opening, Parts
    from .choice import Choice

_MAX_TEXT = 1 << 20  # bytes; far more than any window holds
_KEEP = "2 GB"
_PROMPT = "tell Moshi its role: who it is, in words; @FILE reads them from a file"


def add_persona(to: Group) -> None:
    """Add the options of a persona."""
    voice = "give Moshi this voice: a name ('msh-mlx voices' lists them), a file (.pt, .safetensors) or a recording of some 4 s"
    to.value("--voice", "VOICE", f"{voice}; for PersonaPlex models")
    to.value("--prompt", "TEXT", f"{_PROMPT}; for PersonaPlex models")
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
    """Tell whether a voice or a role is given."""
    return args.voice is not None or bool(prompt_text(args))


def prompt_text(args: argparse.Namespace) -> str:
    """Return the text of `--prompt`, or of the file that it names; "" without.

    Raises
    ------
    InputError
        The file cannot be read, or is not text.
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
    return read.strip()


def persona_of(args: argparse.Namespace, choice: Choice) -> Persona | None:
    """Read what the options ask for, and check that it fits the model. None: they ask for nothing.

    Raises
    ------
    InputError
        There is no such voice, the recording or the text is wrong, or the model takes none.
    """
    text = prompt_text(args)
    if args.voice is None and not text:
        return None
    from ..conversation.personas import check_persona, check_takes_persona, read_persona
    from ..conversation.text import load_tokenizer
    from ..library.named_voices import find_voice, known_voices
    from ..library.suited import load_library

    config = choice.checkpoint.config
    check_takes_persona(config)
    path = None
    if args.voice is not None:
        entries = load_library(args.weights).values()
        path = find_voice(args.voice, known_voices(choice.files.model, entries))
    persona = read_persona(path, text)
    check_persona(persona, load_tokenizer(choice.files.tokenizer), config)
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
