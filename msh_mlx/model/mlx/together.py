"""One step of each of several conversations as one function that MLX compiles: every matrix is read once for all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock
from typing import cast

import mlx.core as mx
import numpy as np

from ..engine import NextStep
from ..grid import AS_SAID
from .attention import KvRing, RingFormat, RingsCache, rotation, slots
from .choosing import Numbers, adjusted, choose, noise_size, numbers_of, operations
from .lm import Lm
from .run import Chosen, MlxRun
from .step import StepLogits, compiled

# Conversations that are computed at once, at most. For each number of them, and each size of their rings, there is a trace.
MOST = 16
_KINDS = 8  # functions that are kept, at most: each has traces


class Together:
    """Starts steps of several conversations with one model: those of one kind with one pass over the weights.

    Steps are of one kind if the same operations compute them: they may differ in all numbers, such as seeds, positions and
    temperatures, but not in the number of tokens that a sampler keeps. Steps with guidance or cross-attention are computed by
    themselves, and so is one that is alone.

    On a processor, MLX computes products with packed weights row by row, so that little is gained there.
    """

    def __init__(self, lm: Lm) -> None:
        self._lm = lm
        self._functions: OrderedDict[Hashable, TogetherFunction] = OrderedDict()
        self._lock = Lock()

    def step(self, steps: Sequence[NextStep]) -> None:
        """Start a step of each conversation, without waiting for anything."""
        kinds: dict[Hashable, list[NextStep]] = {}
        for step in steps:
            kinds.setdefault(_kind(cast("MlxRun", step.run)), []).append(step)
        for kind, alike in kinds.items():
            for begin in range(0, len(alike), MOST):
                some = alike[begin : begin + MOST]
                if len(some) == 1:
                    some[0].run.step(some[0].position, some[0].column, some[0].recent)
                else:
                    self._function(kind, cast("MlxRun", some[0].run))(some)
        if len(kinds) > 1:  # so that one wait is for all
            mx.async_eval([run.said for run in (cast("MlxRun", step.run) for step in steps)])

    def _function(self, kind: Hashable, run: MlxRun) -> TogetherFunction:
        with self._lock:
            function = self._functions.pop(kind, None) or TogetherFunction(self._lm, run)
            self._functions[kind] = function  # the newest
            if len(self._functions) > _KINDS:
                self._functions.popitem(last=False)
        return function


def _kind(run: MlxRun) -> Hashable:
    """Return what steps have in common that are computed together. A run that is computed by itself is of its own kind."""
    manner, steering = run.manner, run.manner.steering
    if steering.guidance or steering.source:
        return id(run)
    samplers = operations(manner.text_sampler), operations(manner.audio_sampler)
    return samplers, manner.kv_bits, steering.codebooks, steering.added is not None


class TogetherFunction:
    """Runs steps of several conversations of one kind, of which `like` is one.

    As for `StepFunction`, what changes from step to step, or from conversation to conversation, is passed in arrays.
    """

    def __init__(self, lm: Lm, like: MlxRun) -> None:
        manner, config = like.manner, lm.config
        self._lm = lm
        self._text_sampler, self._audio_sampler = manner.text_sampler, manner.audio_sampler
        self._form: RingFormat = lm.ring_format(manner.kv_bits)
        codebooks = manner.steering.codebooks
        self._codebooks = config.dep_q if codebooks is None else codebooks
        self._text_noise = noise_size(manner.text_sampler, config.text_card_out or config.text_card)
        self._audio_noise = noise_size(manner.audio_sampler, config.card)
        self._run = compiled(self._step)

    def __call__(self, steps: Sequence[NextStep]) -> None:
        """Enqueue a step of each conversation on the device, without waiting for anything."""
        runs, config, form = [cast("MlxRun", step.run) for step in steps], self._lm.config, self._form
        rings = [run.give_rings(step.position) for run, step in zip(runs, steps, strict=True)]
        capacity = max(own[0][0].shape[2] for own in rings)
        for own in rings:
            if own[0][0].shape[2] < capacity:
                own[:] = [form.grown(ring, capacity) for ring in own]
        whole = [
            np.concatenate([slots(step.position, config.context, own), step.column, step.recent])
            for step, own in zip(steps, rings, strict=True)
        ]
        factors = [rotation(step.position, form, config.max_period, alone=False) for step in steps]
        samplers = [[*numbers_of(run.manner.text_sampler), *numbers_of(run.manner.audio_sampler)[:3]] for run in runs]
        said, rings, logits = self._run(
            mx.array(np.stack(whole)),
            mx.array(np.stack(factors, axis=1)),
            mx.array(samplers, mx.float32),
            [run.said for run in runs],
            rings,
            mx.stack([run.key(step.position) for run, step in zip(runs, steps, strict=True)]),
            [added for run in runs if (added := run.added) is not None],
        )
        chosen = Chosen(said)
        for row, (run, own) in enumerate(zip(runs, rings, strict=True)):
            run.take_result(chosen, row, own, logits)

    def _step(
        self,
        whole: mx.array,
        factors: mx.array,
        samplers: mx.array,
        said: list[mx.array],
        rings: list[list[KvRing]],
        keys: mx.array,
        added: list[mx.array],
    ) -> tuple[mx.array, list[list[KvRing]], StepLogits]:
        lm, config, count = self._lm, self._lm.config, len(said)
        own, width = 1 + config.dep_q, 1 + config.n_q
        places, mine, heard, recent = mx.split(whole, [2, 2 + own, 2 + width], axis=1)
        tokens = mx.concatenate([mx.where(mine == AS_SAID, mx.stack(said), mine), heard], axis=1)
        caches = [RingsCache(layer, self._form, places, factors) for layer in zip(*rings, strict=True)]
        h, text_logits = lm(tokens, caches, mx.concatenate(added) if added else None)

        draws = self._text_noise + self._codebooks * self._audio_noise
        noise = mx.concatenate(
            [mx.random.gumbel((1, draws), key=key.reshape(-1)) for key in mx.split(keys, count)]
            if draws
            else [mx.zeros((count, 0))]
        )
        text_noise, audio_noise = mx.split(noise, [self._text_noise], axis=1)
        by_row = mx.split(samplers, samplers.shape[1], axis=1)
        text_numbers, audio_numbers = Numbers(*by_row[:5]), Numbers(*by_row[5:])
        wanted = adjusted(self._text_sampler, text_logits, recent, config.existing_text_padding_id, text_numbers)
        text = choose(self._text_sampler, wanted, text_noise, text_numbers)
        audio_logits: list[mx.array] = []
        parts = mx.split(audio_noise, max(1, self._codebooks), axis=1)

        def chosen(logits: mx.array, k: int) -> mx.array:
            audio_logits.append(logits)
            return choose(self._audio_sampler, logits, parts[k], audio_numbers)

        codes = lm.depformer(h, text, chosen, self._codebooks) if self._codebooks else []
        more = [mx.zeros((count,), mx.uint32)] * (config.dep_q - self._codebooks)
        result = mx.stack([text, *codes, *more], axis=1).astype(mx.int32)
        layers = [cache.rings for cache in caches]
        return result, [list(own) for own in zip(*layers, strict=True)], (text_logits, audio_logits, lm.heads(h))
