"""One step of a conversation as one function that MLX compiles: transformers, sampling and state."""

from __future__ import annotations

import importlib.metadata
import re
import shutil

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..errors import MshError
from ..system.places import check_temporary
from .attention import KvRing, RingFormat, ring_caches, rotation, slots
from .layers import on_cpu
from .lm import Lm
from .sampling import Sampler, TextSampler

# Stands for a token that the step before has chosen.
AS_SAID = -2

# The logits of the text token, `[1, text_card]`, and of the codes, `dep_q` times `[1, card]`, before samplers change them.
StepLogits = tuple[mx.array, list[mx.array]]

_COMPILED = 1 << 20  # bytes on disk that MLX's compiled functions take, at most


def _compiles() -> bool:
    """Whether functions are compiled. For the CPU, MLX needs g++ to compile. Without it they run uncompiled."""
    return not on_cpu() or shutil.which("g++") is not None


def check_compiling() -> None:
    """Check that there is room for the functions that MLX compiles for the CPU, before anything large is fetched or loaded.

    Raises
    ------
    MshError
        The folder for temporary files, where MLX keeps them, is missing, is full, or cannot be written to.
    """
    if on_cpu() and _compiles():
        check_temporary(f"mlx/{importlib.metadata.version('mlx')}/cpu", _COMPILED)


def explain(error: BaseException) -> MshError | None:
    """Return the error to show in place of `error` if MLX failed to compile for the CPU, else None."""
    if not isinstance(error, RuntimeError) or not re.search("filesystem error|Compile::eval_cpu", str(error)):
        return None
    try:
        check_compiling()
    except MshError as found:
        return found
    return MshError(
        "A function of the model could not be compiled", "'msh-mlx doctor' says what is wrong with the compiler"
    )


class StepFunction:
    """Runs steps of one conversation.

    Values that change from step to step are passed in arrays, because a Python number would become a constant of the compiled
    function. So one trace serves all steps with the same capacity of the rings. MLX keeps traces by thread: the first call on
    another thread traces again.
    """

    def __init__(self, lm: Lm, text_sampler: TextSampler, audio_sampler: Sampler, form: RingFormat) -> None:
        lm.prepare()
        self._lm = lm
        self._text_sampler = text_sampler
        self._audio_sampler = audio_sampler
        self._form = form
        config = lm.config
        self._text_noise = text_sampler.noise_size(config.text_card)
        self._audio_noise = audio_sampler.noise_size(config.card)
        self._function = mx.compile(self._run) if _compiles() else self._run

    def __call__(
        self,
        position: int,
        tokens: npt.NDArray[np.int32],
        said: mx.array,
        rings: list[KvRing],
        key: mx.array,
        recent: npt.NDArray[np.int32],
    ) -> tuple[mx.array, list[KvRing], StepLogits]:
        """Enqueue a step on the device, without waiting for anything.

        Parameters
        ----------
        position
            The number of steps before this one.
        tokens
            The input, `[1 + n_q]`. `AS_SAID` stands for the token in `said`, −1 for no token.
        said, rings
            Results of the step before. There is one ring per layer, with room for this position. The caller must not keep
            the rings: then they are changed in place.
        key
            The step's random key, as from `mx.random.key`.
        recent
            As for `TextSampler.adjusted`.

        Returns
        -------
        said, rings, logits
            On the device: the text token and the codes, `[1 + dep_q]` int32; the new rings; and the logits of the tokens.
        """
        config = self._lm.config
        numbers = mx.array(np.concatenate([slots(position, config.context, rings), tokens, recent]))
        factors = mx.array(rotation(position, self._form, config.max_period))
        result: tuple[mx.array, list[KvRing], StepLogits] = self._function(numbers, factors, said, rings, key)
        return result

    def _run(
        self, numbers: mx.array, factors: mx.array, said: mx.array, rings: list[KvRing], key: mx.array
    ) -> tuple[mx.array, list[KvRing], StepLogits]:
        lm, config = self._lm, self._lm.config
        own = 1 + config.dep_q
        slot, tokens, recent = mx.split(numbers, [2, 3 + config.n_q])
        mine, user = mx.split(tokens, [own])
        tokens = mx.concatenate([mx.where(mine == AS_SAID, said, mine), user])
        caches = ring_caches(rings, self._form, slot, factors)
        h, text_logits = lm(tokens[None], caches)

        draws = self._text_noise + config.dep_q * self._audio_noise
        noise = mx.random.gumbel((draws,), key=key) if draws else mx.zeros((0,))
        text_noise, audio_noise = mx.split(noise, [self._text_noise])
        audio_parts = mx.split(audio_noise, config.dep_q)
        adjusted = self._text_sampler.adjusted(text_logits, recent, config.existing_text_padding_id)
        text = self._text_sampler(adjusted, text_noise)
        audio_logits: list[mx.array] = []

        def choose(logits: mx.array, k: int) -> mx.array:
            audio_logits.append(logits)
            return self._audio_sampler(logits, audio_parts[k])

        codes = lm.depformer(h, text, choose)
        said = mx.concatenate([text, *codes]).astype(mx.int32)
        return said, [cache.ring for cache in caches], (text_logits, audio_logits)


class Reader:
    """Runs the temporal transformer alone on given tokens, to compare the text logits of models."""

    def __init__(self, lm: Lm, kv_bits: int | None = None) -> None:
        lm.prepare()
        self._lm = lm
        self._form = lm.ring_format(kv_bits)
        self._rings = [self._form.empty(lm.config.context) for _ in range(lm.config.num_layers)]
        self._position = 0

    def read(self, tokens: npt.NDArray[np.int32]) -> mx.array:
        """Read one position's tokens, `[1 + n_q]`, and return the text logits `[text_card]`, on the device."""
        config = self._lm.config
        slot = mx.array(slots(self._position, config.context, self._rings))
        factors = mx.array(rotation(self._position, self._form, config.max_period))
        caches = ring_caches(self._rings, self._form, slot, factors)
        _, logits = self._lm(mx.array(tokens)[None], caches)
        self._rings = [cache.ring for cache in caches]
        self._position += 1
        return logits[0]
