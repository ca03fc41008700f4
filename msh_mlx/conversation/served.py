"""`ServedPersonas`: the personas that the clients of a server may choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ..errors import InputError, MshError
from ..system.words import listed, shortened
from .personas import Persona, Personas, read_persona

_READ = 8  # voices in memory
_TOLD, _SHOWN = 30, 40  # voices in a message, and letters of what the client wrote


class ServedPersonas:
    """The personas that clients may choose: a voice by its name, never by a path, and a text.

    Like `Personas`, one thread at a time uses it: the one that does the work of MLX.

    Parameters
    ----------
    personas
        Makes their openings.
    default
        The persona of a client that chooses nothing. A client that chooses only a voice or only a text has the other of this.
    voices
        Returns the file of each voice that may be chosen, by its name. It is asked again for each choice, so that new voices
        can be chosen at once.
    """

    def __init__(
        self, personas: Personas, default: Persona = Persona(), voices: Callable[[], Mapping[str, Path]] = dict
    ) -> None:
        self.personas = personas
        self.default = default
        self._voices = voices
        self._read = lru_cache(_READ)(lambda path, _changed: read_persona(path))

    @property
    def names(self) -> list[str]:
        """Return the names of the voices, sorted."""
        return sorted({*self._voices(), self.default.name} - {""})

    def choose(self, voice: str | None = None, text: str | None = None) -> Persona:
        """Return the persona that a client asks for; None stands for what it did not ask for.

        A voice can also be named as its file, with `.pt`, as published pages do.

        Raises
        ------
        InputError
            There is no such voice, or the voice or the text does not fit the model. The message is for the client.
        MshError
            The voice cannot be read. The message is for the client; the cause says why, and names the file.
        """
        persona = self.default if text is None else replace(self.default, text=text)
        if voice is not None and voice.removesuffix(".pt") != self.default.name:
            persona = self._with_voice(persona, voice)
        self.personas.check(persona)
        return persona

    def _with_voice(self, persona: Persona, voice: str) -> Persona:
        voices = self._voices()
        name = voice if voice in voices else voice.removesuffix(".pt")
        if name not in voices:
            names = self.names
            more = "" if len(names) <= _TOLD else f" and {len(names) - _TOLD} more"
            told = f"{', '.join(names[:_TOLD])}{more}" if more else listed(names)
            raise InputError(f"There is no voice {shortened(voice, _SHOWN)!r} here", f"there are {told}")
        try:
            read = self._read(voices[name], voices[name].stat().st_mtime_ns)
            return replace(persona, voice=read.voice, name=name)
        except (InputError, OSError) as error:
            raise MshError(f"The server cannot read its voice {name}", "choose another one") from error
