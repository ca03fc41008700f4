"""Reading a prompt: many columns at once, and once for all conversations that begin with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import InputError
from .architecture import Architecture
from .engine import LanguageModel, Prefilled
from .grid import Prompt
from .steering import NO_STEERING, Steering

CHUNK = 64  # columns that are read at once


def prefill(lm: LanguageModel, prompt: Prompt, **options: Any) -> Prefilled:
    """Read a prompt, many columns at once. Wait for the result. Arguments and errors are those of `prefill_in_turns`."""
    return [done for done in prefill_in_turns(lm, prompt, **options) if done][-1]


def prefill_in_turns(
    lm: LanguageModel,
    prompt: Prompt,
    *,
    kv_bits: int | None = None,
    steering: Steering = NO_STEERING,
    chunk: int = CHUNK,
) -> Iterator[Prefilled | None]:
    """Read a prompt, many columns at once. Yield None after each chunk, so that others can have their turn; then the result.

    `kv_bits` and `steering` are those of the conversations, and `chunk` is the number of columns that are read at once.

    Raises
    ------
    InputError
        The prompt does not fit into the model's window, or the conversation has guidance.
    """
    if first_position(lm.config, prompt) and steering.batch > 1:
        raise InputError("A conversation with guidance cannot begin with a prompt", "leave one of them out")
    yield from lm.prefill(prompt, kv_bits, steering, chunk)


def first_position(config: Architecture, prompt: Prompt) -> int:
    """Return the position of a prompt's last column. It is the first at which anything is chosen.

    Raises
    ------
    InputError
        The prompt does not fit into the model's window.
    """
    count = len(prompt.columns) - config.max_delay
    check_length(config, count)
    return count - 1


def check_length(config: Architecture, count: int) -> None:
    """Raise InputError if a prompt of `count` columns does not fit into the model's window."""
    if count > config.context:
        raise InputError(
            f"The prompt takes {count} steps, and the model's window has {config.context}",
            "give a shorter text, or a shorter voice",
        )
