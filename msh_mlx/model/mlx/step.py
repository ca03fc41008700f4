"""One step of a conversation as one function that MLX compiles: transformers, sampling and state."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...errors import MshError
from ...system.places import check_temporary
from ..grid import AS_SAID
from ..sampling import Sampler, TextSampler
from ..steering import NO_STEERING, Guidance, Steering
from .attention import KvRing, RingFormat, ring_caches, rotation, slots
from .choosing import adjusted, choose, noise_size
from .layers import on_cpu
from .lm import Lm

# The logits of the text token, `[1, text_card]`, and of the codes, `dep_q` times `[1, card]`, before samplers change them; and
# what the extra heads say, each `[1, classes]` probabilities.
StepLogits = tuple[mx.array, list[mx.array], list[mx.array]]

F = TypeVar("F", bound=Callable[..., Any])
_COMPILED = 1 << 20  # bytes on disk that MLX's compiled functions take, at most


def _compiles() -> bool:
    """Whether functions are compiled. For the CPU, MLX needs g++ to compile. Without it they run uncompiled."""
    return not on_cpu() or shutil.which("g++") is not None


def compiled(function: F) -> F:
    """Return a function that MLX compiles, where it can."""
    return cast("F", mx.compile(function)) if _compiles() else function


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


def on_device(array: npt.NDArray[np.float32] | None) -> mx.array | None:
    """Return an array for the device; computed now, for what is not computed yet could be used on this thread only."""
    if array is None:
        return None
    copied = mx.array(array)
    mx.eval(copied)
    return copied


def _mixed(guidance: Guidance, logits: mx.array) -> mx.array:
    """Mix logits `[2, n]`, the given row first: `[1, n]`."""
    given, null = mx.split(logits, 2)
    return null + guidance.coef * (given - null)


class StepFunction:
    """Runs steps of one conversation.

    Values that change from step to step are passed in arrays, because a Python number would become a constant of the compiled
    function. So one trace serves all steps with the same capacity of the rings. MLX keeps traces by thread: the first call on
    another thread traces again.

    A step is one function, or two halves: `hear` chooses the text token, and `speak` the codes. Both ways choose the same.
    """

    def __init__(
        self,
        lm: Lm,
        text_sampler: TextSampler,
        audio_sampler: Sampler,
        form: RingFormat,
        steering: Steering = NO_STEERING,
    ) -> None:
        lm.prepare()
        self._lm = lm
        self._text_sampler = text_sampler
        self._audio_sampler = audio_sampler
        self._form = form
        self._steering = steering
        added = on_device(steering.added)
        self._given = [] if added is None else [added]
        self._given += [array for source in steering.source or () for array in source]
        config = lm.config
        self._codebooks = config.dep_q if steering.codebooks is None else steering.codebooks
        self._text_noise = noise_size(text_sampler, config.text_card_out or config.text_card)
        self._audio_noise = noise_size(audio_sampler, config.card)
        self._whole, self._hear, self._speak = compiled(self._run), compiled(self._temporal), compiled(self._codes)

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
            The input, `[1 + n_q]`, or `[batch, 1 + n_q]` if rows differ. `AS_SAID` stands for the token in `said`, −1 for no
            token.
        said, rings
            Results of the step before. There is one ring per layer, with room for this position. The caller must not keep
            the rings: then they are changed in place.
        key
            The step's random key, as from `mx.random.key`.
        recent
            As for `adjusted`.

        Returns
        -------
        said, rings, logits
            On the device: the text token and the codes, `[1 + dep_q]` int32; the new rings; and the logits of the tokens.
        """
        result: tuple[mx.array, list[KvRing], StepLogits] = self._whole(
            *self._arrays(position, tokens, recent, rings), said, rings, key, self._given
        )
        return result

    def hear(
        self,
        position: int,
        tokens: npt.NDArray[np.int32],
        said: mx.array,
        rings: list[KvRing],
        key: mx.array,
        recent: npt.NDArray[np.int32],
    ) -> tuple[mx.array, mx.array, list[KvRing], mx.array, list[mx.array], mx.array]:
        """Enqueue the first half of a step. Parameters are those of a whole step.

        Returns
        -------
        text, h, rings, text_logits, heads, noise
            The text token `[1]`, the new rings, the text's logits, the extra heads; `h` and `noise` are for `speak`.
        """
        result: tuple[mx.array, mx.array, list[KvRing], mx.array, list[mx.array], mx.array] = self._hear(
            *self._arrays(position, tokens, recent, rings), said, rings, key, self._given
        )
        return result

    def speak(self, h: mx.array, text: mx.array, noise: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Enqueue the second half, with the text token `[1]` that the codes shall follow. Return `said` and their logits."""
        result: tuple[mx.array, list[mx.array]] = self._speak(h, text, noise)
        return result

    def _arrays(
        self, position: int, tokens: npt.NDArray[np.int32], recent: npt.NDArray[np.int32], rings: list[KvRing]
    ) -> tuple[mx.array, mx.array]:
        config = self._lm.config
        numbers = mx.array(np.concatenate([slots(position, config.context, rings), tokens.reshape(-1), recent]))
        return numbers, mx.array(rotation(position, self._form, config.max_period))

    def _run(
        self,
        numbers: mx.array,
        factors: mx.array,
        said: mx.array,
        rings: list[KvRing],
        key: mx.array,
        given: list[mx.array],
    ) -> tuple[mx.array, list[KvRing], StepLogits]:
        text, h, rings, text_logits, heads, noise = self._temporal(numbers, factors, said, rings, key, given)
        said, audio_logits = self._codes(h, text, noise)
        return said, rings, (text_logits, audio_logits, heads)

    def _temporal(
        self,
        numbers: mx.array,
        factors: mx.array,
        said: mx.array,
        rings: list[KvRing],
        key: mx.array,
        given: list[mx.array],
    ) -> tuple[mx.array, mx.array, list[KvRing], mx.array, list[mx.array], mx.array]:
        lm, config, steering = self._lm, self._lm.config, self._steering
        own, width = 1 + config.dep_q, 1 + config.n_q
        size = numbers.shape[0] - 2 - self._text_sampler.recent_size
        slot, tokens, recent = mx.split(numbers, [2, 2 + size])
        if size == width:
            mine, heard = mx.split(tokens, [own])
            tokens = mx.concatenate([mx.where(mine == AS_SAID, said, mine), heard])
            if steering.batch > 1:
                tokens = mx.broadcast_to(tokens, (steering.batch, width))
        else:
            mine, heard = mx.split(tokens.reshape(-1, width), [own], axis=1)
            tokens = mx.concatenate([mx.where(mine == AS_SAID, said, mine), heard], axis=1)
        caches = ring_caches(rings, self._form, slot, factors)
        added = given[0] if steering.added is not None else None
        arrays = given[len(given) - 2 * len(steering.source or ()) :]
        sources = list(zip(arrays[::2], arrays[1::2], strict=True)) or None
        h, text_logits = lm(tokens, caches, added, sources)
        if guidance := steering.guidance:
            text_logits = _mixed(guidance, text_logits) if guidance.text else text_logits[:1]

        draws = self._text_noise + self._codebooks * self._audio_noise
        noise = mx.random.gumbel((draws,), key=key) if draws else mx.zeros((0,))
        text_noise, audio_noise = mx.split(noise, [self._text_noise])
        wanted = adjusted(self._text_sampler, text_logits, recent[None], config.existing_text_padding_id)
        text = choose(self._text_sampler, wanted, text_noise)
        return text, h, [cache.ring for cache in caches], text_logits, lm.heads(h), audio_noise

    def _codes(self, h: mx.array, text: mx.array, noise: mx.array) -> tuple[mx.array, list[mx.array]]:
        lm, guidance = self._lm, self._steering.guidance
        audio_logits: list[mx.array] = []
        parts = mx.split(noise, max(1, self._codebooks))

        def chosen(logits: mx.array, k: int) -> mx.array:
            if guidance:
                logits = _mixed(guidance, logits)
            audio_logits.append(logits)
            return choose(self._audio_sampler, logits, parts[k])

        codes = lm.depformer(h, text, chosen, self._codebooks) if self._codebooks else []
        more = [mx.zeros((lm.config.dep_q - self._codebooks,), mx.uint32)] if self._codebooks < lm.config.dep_q else []
        return mx.concatenate([text, *codes, *more]).astype(mx.int32), audio_logits
