"""The models that hold conversations on one server: choosing one, and room for one more conversation with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Protocol

from ..conversation.live import LiveConversation
from ..conversation.personas import Persona
from ..conversation.pooled import Pooled
from ..conversation.served import OfferedPersonas
from ..conversation.served_cascade import ServedCascade, SharedCascade
from ..conversation.shared import SharedModel, Tick, Tokens
from ..errors import InputError
from ..system.words import listed, shortened
from .connection import NetworkSource, Seated
from .parameters import ChatParameters

# Makes the arguments `text_sampler`, `audio_sampler` and `seed` of a session from a client's parameters.
Samplers = Callable[[ChatParameters], "dict[str, Any]"]

_SHOWN = 60  # characters of what a client sent
# The parameters that count in a conversation with a language model.
_HEEDED = "max_steps", "email", "worker_auth_id", "stats", "voice_prompt", "text_prompt"


class Shared(Protocol):
    """What all conversations with a model share. Attributes and methods are those of `SharedModel`."""

    on_tick: Callable[[Tick], None]

    @property
    def personas(self) -> OfferedPersonas | None:
        """As of `SharedModel`."""

    def has_room(self, others: int, beside: Mapping[Any, int] | None = None, fresh: int = 0) -> bool:
        """As of `SharedModel`."""

    def places(self, others: int, beside: Mapping[Any, int] | None = None, most: int = 1) -> int:
        """As of `SharedModel`."""


class TalkingModel(ABC):
    """What holds conversations, under its name.

    `defaults` are the parameters that a conversation's address does not set, and `about` the names of the model's file, of the
    codec's file and of the server.
    """

    def __init__(self, name: str, shared: Shared, defaults: ChatParameters, about: tuple[str, str, str]) -> None:
        self.name, self.shared, self.defaults, self.about = name, shared, defaults, about

    @property
    @abstractmethod
    def meaningless(self) -> tuple[str, ...]:
        """The parameters that change nothing with this model."""

    def check(self, parameters: ChatParameters) -> None:
        """Raise InputError for parameters that the model cannot have."""
        return

    @abstractmethod
    def seat(self, parameters: ChatParameters, persona: Persona | None, tokens: Tokens) -> Seated:
        """Make a place for a conversation. `tokens` is called with the tokens of each step, if there are any.

        Raises
        ------
        InputError
            The model cannot have what is asked for.
        """

    def persona(self, parameters: ChatParameters) -> Persona | None:
        """Return the persona that a client asks for; None if the model takes none. Raise InputError for one it cannot have."""
        personas = self.shared.personas
        return personas.choose(parameters.voice_prompt, parameters.text_prompt) if personas else None

    def voices(self) -> dict[str, Any]:
        """Return what a conversation's parameters `voice_prompt` and `text_prompt` may be."""
        personas = self.shared.personas
        return {
            "prompt": personas is not None,
            "voices": personas.names if personas else [],
            "voice": personas.default.name if personas else "",
        }


class Duplex(TalkingModel):
    """A model that hears and speaks at once, such as Moshi."""

    def __init__(
        self,
        name: str,
        shared: SharedModel,
        samplers: Samplers,
        defaults: ChatParameters,
        about: tuple[str, str, str],
    ) -> None:
        super().__init__(name, shared, defaults, about)
        self._model, self._samplers = shared, samplers

    @property
    def meaningless(self) -> tuple[str, ...]:
        """The parameters that change nothing with this model."""
        personas = self.shared.personas
        if not personas:
            return "voice_prompt", "text_prompt"
        # Published pages name a voice always. It is left out where there are none.
        return () if personas.names else ("voice_prompt",)

    def check(self, parameters: ChatParameters) -> None:
        self._samplers(parameters)

    def seat(self, parameters: ChatParameters, persona: Persona | None, tokens: Tokens) -> Seated:
        return partial(Pooled, self._model.seat(**self._samplers(parameters), tokens=tokens, persona=persona))


class LanguageModel(TalkingModel):
    """A language model, between a model that hears and one that speaks."""

    def __init__(self, name: str, shared: SharedCascade, defaults: ChatParameters, about: tuple[str, str, str]) -> None:
        super().__init__(name, shared, defaults, about)
        self._cascade = shared

    @property
    def meaningless(self) -> tuple[str, ...]:
        """The parameters that change nothing: those of sampling, and `realtime`, since all of this happens in time."""
        return tuple(each.name for each in fields(ChatParameters) if each.name not in _HEEDED)

    def voices(self) -> dict[str, Any]:
        return {**super().voices(), "sampling": False}

    def seat(self, parameters: ChatParameters, persona: Persona | None, tokens: Tokens) -> Seated:
        personas = self._cascade.personas

        def begin(source: NetworkSource, *arguments: Any, **options: Any) -> LiveConversation:
            source.fills = "live"  # who sends nothing is silent, and has ended a turn at some time
            return ServedCascade(self._cascade, persona or personas.default, source, *arguments, **options)

        return begin


class TalkingModels:
    """All of them; the first is the default."""

    def __init__(self, models: Iterable[TalkingModel]) -> None:
        self._models = {model.name: model for model in models}
        self.default = next(iter(self._models.values()))

    def __iter__(self) -> Iterator[TalkingModel]:
        return iter(self._models.values())

    @property
    def names(self) -> list[str]:
        """Return their names, that of the default first."""
        return list(self._models)

    def find(self, name: str) -> TalkingModel | None:
        """Return the model of this name, or None."""
        return self._models.get(name)

    def choose(self, name: str) -> TalkingModel:
        """Return the model that a client asks for; with an empty name, the default. Raise InputError if there is none."""
        model = self._models.get(name) if name else self.default
        if model is None:
            there = f"there is {listed(self.names)}" if len(self.names) > 1 else f"the only one is {self.default.name}"
            raise InputError(f"There is no model {shortened(name, _SHOWN)!r} here", there)
        return model

    def places(self, talking: Iterable[TalkingModel], most: int) -> int:
        """Return how many conversations there can be, up to `most`; `talking` are those now, others take the default model."""
        counts: Mapping[Shared, int] = Counter(each.shared for each in talking)
        own = self.default.shared
        beside = {shared: count for shared, count in counts.items() if shared is not own}
        return sum(beside.values()) + own.places(counts.get(own, 0), beside, most - sum(beside.values()))

    def has_room(self, model: TalkingModel, talking: Iterable[TalkingModel], fresh: int = 0) -> bool:
        """Return whether one more conversation with `model` leaves all in real time; `talking` are the models of the others.

        `fresh` of those others have come a short time ago, as for `SharedModel`.
        """
        counts: Mapping[Shared, int] = Counter(each.shared for each in talking)
        beside = {shared: count for shared, count in counts.items() if shared is not model.shared}
        return model.shared.has_room(counts.get(model.shared, 0), beside, fresh)
