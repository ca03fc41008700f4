"""The families of models: one module for each, with what its configuration must say, and the script that goes with it.

They differ in numbers; in which cells of the token grid are given, and which are chosen; in what is added to the input or
attended to; and in how rows of logits are mixed. All else is the model's (`msh_mlx.model`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..engine import LanguageModel
    from ..grid import Prompt
    from ..sampling import Sampler
    from ..steering import Steering


@dataclass(frozen=True)
class Family:
    """A family: its name, which is that of its module, and what its models are for.

    The module is imported when it is needed first: the catalogue names families where MLX cannot be imported.
    """

    name: str
    use: str

    @property
    def title(self) -> str:
        """What its models are called in messages."""
        return str(self._module.TITLE)

    def known(self, config: Architecture) -> bool:
        """Tell whether a configuration is of this family."""
        return bool(self._module.known(config))

    def adapted(self, config: Architecture) -> Architecture:
        """Check a configuration of this family, and return it as it is run."""
        adapted: Architecture = self._module.adapted(config)
        return adapted

    def samplers(self, config: Architecture) -> tuple[Sampler, Sampler]:
        """Return how the text and the codes of its models are chosen if nobody says it."""
        from ..sampling import AUDIO_SAMPLER, TEXT_SAMPLER

        own = getattr(self._module, "samplers", None)
        return own(config) if own else (TEXT_SAMPLER, AUDIO_SAMPLER)

    def steering(self, lm: LanguageModel) -> Steering:
        """Return the conditions of a conversation with one of its models if nobody says others."""
        from ..steering import NO_STEERING

        steering: Steering = self._module.steering(lm) if self.use == "translation" else NO_STEERING
        return steering

    def prompt(self, config: Architecture) -> Prompt | None:
        """Return what comes before a conversation with one of its models if nobody says more; None: nothing does."""
        own = getattr(self._module, "prompt_for", None)
        prompt: Prompt | None = own(config) if own else None
        return prompt

    @property
    def _module(self) -> Any:
        return import_module(f".{self.name}", __package__)


# The first that knows a configuration counts; Moshi knows all that are left.
FAMILIES = (
    Family("stt", "transcription"),
    Family("tts", "speech"),
    Family("hibiki", "translation"),
    Family("personaplex", "conversation"),
    Family("moshi", "conversation"),
)


def family_of(config: Architecture) -> Family:
    """Return the family of a configuration."""
    return next(family for family in FAMILIES if family.known(config))
