"""`Shared`: what all conversations with one model share, in the native engine."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ..config import LmConfig
from ..engine import Manner
from ..prefill import CHUNK
from ..sampling import SMALLEST_SHARE, Sampler
from ..steering import Guidance

if TYPE_CHECKING:
    import msh_native

ROWS = CHUNK  # conversations, or columns of a prompt, that are computed at once, at most


class Shared:
    """The weights, and an engine: its threads, and its room for some rows.

    `activations` and `kept` are as for `NativeModel`.
    """

    def __init__(
        self, config: LmConfig, weights: msh_native.Lm, threads: int | None, activations: str, kept: str
    ) -> None:
        self.config = config
        self.activations = activations
        self.rows = weights.engine(ROWS, activations=self.activations, threads=threads)
        self.lock = Lock()  # of the engine, which works for one thread at a time
        self._weights = weights
        self._kept = kept

    def conversation(self, manner: Manner) -> msh_native.LmConversation:
        """Make the keys and values of a conversation, with its samplers.

        Raises
        ------
        InputError
            Keys and values cannot have so many bits, or there is too little memory for them.
        """
        from msh_native import ModelError

        text, audio, steering = manner.text_sampler, manner.audio_sampler, manner.steering
        try:
            conversation = self._weights.conversation(
                kv=self.kept_as(manner.kv_bits),
                batch=steering.batch,
                text=(*_filters(text), text.repetition_penalty, text.padding_bonus),
                audio=_filters(audio),
                guidance=_guided(steering.guidance),
                codebooks=steering.codebooks,
                padding=self.config.existing_text_padding_id,
            )
        except ModelError as error:
            raise InputError(str(error)) from None
        if steering.added is not None:
            conversation.add_to_input(np.ascontiguousarray(steering.added, np.float32))
        if steering.source is not None:
            conversation.attend_to(steering.source)
        return conversation

    def kept_as(self, kv_bits: int | None) -> str:
        """Return how keys and values are kept.

        Raises
        ------
        InputError
            They cannot have so many bits.
        """
        if kv_bits not in (None, 8):
            raise InputError(f"The key/value cache cannot have {kv_bits!r} bits", "give 8, or leave it out")
        return "int8" if kv_bits else self._kept


def _filters(sampler: Sampler) -> tuple[float, int, float, float]:
    return sampler.temperature, sampler.top_k, max(sampler.top_p, SMALLEST_SHARE), sampler.min_p


def _guided(guidance: Guidance | None) -> tuple[float, bool] | None:
    return (guidance.coef, guidance.text) if guidance else None
