"""`ServedPersonas`: the personas that the clients of a server may choose."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ..errors import InputError
from ..system.words import listed, shortened
from .personas import Persona, Personas, read_persona, readable
from .session import Opening

_TOLD, _SHOWN = 30, 40  # voices in a message, and letters of what the client wrote


class OfferedPersonas(Protocol):
    """The personas of a model, whatever it makes of them. Attributes and methods are those of `ServedPersonas`."""

    @property
    def names(self) -> list[str]:
        """The names of the voices, sorted."""

    @property
    def default(self) -> Persona:
        """The persona of a client that chooses nothing."""

    def choose(self, voice: str | None = None, text: str | None = None) -> Persona:
        """Return the persona that a client asks for, or raise InputError."""


class ServedPersonas:
    """The personas that clients may choose: a voice by its name, never by a path, and a role.

    Parameters
    ----------
    personas
        Makes their openings.
    default
        The persona of a client that chooses nothing. A client that chooses only a voice or only a role has the other of this.
    voices
        The voices that may be chosen, by their names, each as a persona without a role.
    """

    def __init__(
        self, personas: Personas, default: Persona | None = None, voices: Mapping[str, Persona] | None = None
    ) -> None:
        self.personas = personas
        self.default = default or Persona()
        self._voices = {**(voices or {}), self.default.name: self.default}
        if not self.default.name:
            del self._voices[""]

    @property
    def names(self) -> list[str]:
        """Return the names of the voices, sorted."""
        return sorted(self._voices)

    def choose(self, voice: str | None = None, text: str | None = None) -> Persona:
        """Return the persona that a client asks for; None stands for what it did not ask for.

        A voice can also be named as its file, with `.pt`, as published pages do. Of the role, the model gets what it can read
        (`readable`).

        Raises
        ------
        InputError
            There is no such voice, or the voice and the role together are too long.
        """
        persona = self.default
        if voice is not None:
            persona = replace(self._voices[find_voice(voice, self._voices)], text=self.default.text)
        if text is not None:
            persona = replace(persona, text=readable(self.personas.tokenizer, text))
        self.personas.check(persona)
        return persona

    def opening_in_turns(self, persona: Persona) -> Iterator[Opening | None]:
        """Make an opening, as `Personas.opening_in_turns` does.

        Only prompts with the role of the default are kept on disk: the roles of clients are nobody's business, and they could
        be any number.
        """
        return self.personas.opening_in_turns(persona, keep=persona.text == self.default.text)


def find_voice(voice: str, names: Collection[str]) -> str:
    """Return the name of a voice that a client asks for, also as the name of its file, with `.pt`.

    Raises
    ------
    InputError
        There is no such voice.
    """
    for name in (voice, voice.removesuffix(".pt")):
        if name in names:
            return name
    raise InputError(f"There is no voice {shortened(voice, _SHOWN)!r} here", _there_are(sorted(names)))


def _there_are(names: list[str]) -> str:
    if len(names) == 1:
        return f"the only one is {names[0]}"
    return f"there are {listed([*names[:_TOLD], f'{len(names) - _TOLD} more'] if len(names) > _TOLD else names)}"


def read_voices(
    files: Mapping[str, Path], personas: Personas, left_out: Callable[[str, InputError], None]
) -> dict[str, Persona]:
    """Read voices that clients may choose, by their names; `left_out` is called for each that is damaged or does not fit."""
    voices = {}
    for name, path in files.items():
        try:
            voice = replace(read_persona(path), name=name)
            personas.check(voice)
        except InputError as error:
            left_out(name, error)
        else:
            voices[name] = voice
    return voices
