"""`NativeModel`: a model that is computed by the native engine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...metrics import peak_resident_bytes
from ..conditions import Conditions
from ..config import LmConfig
from ..engine import About, Manner, Prefilled
from ..grid import Prompt
from ..prefill import CHUNK, first_position
from ..randomly import random_conditions
from ..sampling import SMALLEST_SHARE, Sampler, TextSampler
from ..steering import NO_STEERING, Guidance, Steering
from .listen import NativeListeners
from .run import NativeRun

if TYPE_CHECKING:
    import msh_native

_ROWS = CHUNK  # conversations, or columns of a prompt, that are computed at once, at most


class NativeModel:
    """As `LanguageModel`. All conversations share one engine: its threads, and its room for some rows.

    Parameters
    ----------
    config
        The model's.
    weights
        The loaded weights.
    conditions
        The weights of the conditions.
    bits
        The bits of the weights in matrices.
    threads
        How many threads compute; None: as many as there are cores.
    exact
        Keep keys and values, and activations in products with packed weights, in float32; else in float16 and int16.
    """

    engine = "native"

    def __init__(
        self,
        config: LmConfig,
        weights: msh_native.Lm,
        conditions: Conditions,
        bits: tuple[int, ...],
        threads: int | None = None,
        exact: bool = False,
    ) -> None:
        self.config = config
        self.conditions = conditions
        self._weights = weights
        self._bits = bits
        self._activations = "float32" if exact else "int16"
        self._floats = "float32" if exact else "float16"
        self.rows = weights.engine(_ROWS, activations=self._activations, threads=threads)
        self.lock = Lock()  # of the engine, which works for one thread at a time

    @classmethod
    def random(cls, config: LmConfig, bits: int, group_size: int, seed: int) -> NativeModel:
        """Make a model of seeded random weights."""
        from msh_native import Lm

        weights = Lm.random(described(config), bits, group_size, seed)
        return cls(config, weights, random_conditions(config, seed), (bits,))

    def about(self) -> About:
        """As `LanguageModel.about`."""
        from msh_native import dots

        return About(f"native, {dots()[0]}", "cpu", self._activations, self._bits)

    def peak_bytes(self) -> int:
        """As `LanguageModel.peak_bytes`: of the process."""
        return peak_resident_bytes()

    def conversation(self, manner: Manner) -> msh_native.LmConversation:
        """Make the keys and values of a conversation, with its samplers."""
        text, audio, steering = manner.text_sampler, manner.audio_sampler, manner.steering
        conversation = self._weights.conversation(
            kv=self.kept_as(manner.kv_bits),
            batch=steering.batch,
            text=(*_filters(text), text.repetition_penalty, text.padding_bonus),
            audio=_filters(audio),
            guidance=_guided(steering.guidance),
            codebooks=steering.codebooks,
            padding=self.config.existing_text_padding_id,
        )
        if steering.added is not None:
            conversation.add_to_input(np.ascontiguousarray(steering.added, np.float32))
        if steering.source is not None:
            conversation.attend_to(steering.source)
        return conversation

    def converse(self, manner: Manner) -> NativeRun:
        """As `LanguageModel.converse`."""
        return NativeRun(self, manner)

    def listen(self, rows: int = 1, kv_bits: int | None = None) -> NativeListeners:
        """As `LanguageModel.listen`."""
        return NativeListeners(self, rows, kv_bits)

    def source(self, sequence: npt.NDArray[np.float32]) -> Any:
        """As `LanguageModel.source`."""
        with self.lock:
            return self.rows.source(np.ascontiguousarray(sequence, np.float32))

    def prefill(
        self, prompt: Prompt, kv_bits: int | None, steering: Steering, chunk: int
    ) -> Iterator[Prefilled | None]:
        """As `LanguageModel.prefill`."""
        count = first_position(self.config, prompt)
        conversation = self.conversation(Manner(TextSampler(0), Sampler(0), kv_bits, steering))
        columns = np.ascontiguousarray(prompt.columns[:count], np.int32)
        embedded = None if prompt.embedded is None else np.ascontiguousarray(prompt.embedded, np.float32)
        for begin in range(0, count, chunk):
            given = None if embedded is None else embedded[begin : begin + chunk]
            with self.lock:
                self.rows.read(conversation, columns[begin : begin + chunk], given)
            if begin + chunk < count:
                yield None
        arrays = conversation.state()
        yield Prefilled(prompt, kv_bits, arrays, sum(array.nbytes for array in arrays))

    def kept(self, read: Prefilled) -> list[npt.NDArray[Any]]:
        """As `LanguageModel.kept`."""
        return list(read.state)

    def restored(self, prompt: Prompt, kv_bits: int | None, data: memoryview) -> Prefilled:
        """As `LanguageModel.restored`."""
        count = first_position(self.config, prompt)
        conversation = self.conversation(Manner(TextSampler(0), Sampler(0), kv_bits, NO_STEERING))
        arrays, begin = [], 0
        for empty in conversation.state():  # [heads, no positions, numbers]
            shape = (empty.shape[0], count, empty.shape[2])
            array = np.frombuffer(data, empty.dtype, math.prod(shape), begin).reshape(shape)
            begin += array.nbytes
            arrays.append(array)
        if begin != len(data):
            raise ValueError
        conversation.restore(arrays, count)  # refuses what does not fit
        return Prefilled(prompt, kv_bits, arrays, begin)

    def form(self, kv_bits: int | None) -> str:
        """As `LanguageModel.form`."""
        return f"{self.engine} {self.kept_as(kv_bits)}"

    def kv_bytes(self, positions: int, kv_bits: int | None = None) -> int:
        """As `LanguageModel.kv_bytes`."""
        conversation = self._weights.conversation(kv=self.kept_as(kv_bits))
        position = sum(part.shape[0] * part.shape[2] * part.dtype.itemsize for part in conversation.state())
        return int(positions * position)

    def kept_as(self, kv_bits: int | None) -> str:
        """Return how keys and values are kept.

        Raises
        ------
        InputError
            They cannot have so many bits.
        """
        if kv_bits not in (None, 8):
            raise InputError(f"The key/value cache cannot have {kv_bits!r} bits", "give 8, or leave it out")
        return "int8" if kv_bits else self._floats

    @property
    def weights_bytes(self) -> int:
        """As `LanguageModel.weights_bytes`."""
        return int(self._weights.held_bytes)

    @property
    def step_bytes(self) -> int:
        """As `LanguageModel.step_bytes`."""
        return int(self._weights.step_bytes)


def described(config: LmConfig) -> str:
    """Return a configuration as the engine takes it."""
    return json.dumps(config.to_dict(), default=str)


def _filters(sampler: Sampler) -> tuple[float, int, float, float]:
    return sampler.temperature, sampler.top_k, max(sampler.top_p, SMALLEST_SHARE), sampler.min_p


def _guided(guidance: Guidance | None) -> tuple[float, bool] | None:
    return (guidance.coef, guidance.text) if guidance else None
