"""The measurements of `msh-mlx bench`: how fast a model is on this machine, with real weights or random ones."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import __version__
from .conversation.codec import Mimi
from .format import FRAME_SECONDS
from .library.bandwidth import bandwidth
from .library.suited import source_bytes
from .model.config import LmConfig
from .model.embeddings import DemuxedEmbedding, Rows
from .model.families import family_of, hibiki, tts
from .model.generate import LmGen
from .model.lm import Lm
from .model.steering import NO_STEERING
from .system.machine import chip, system
from .system.memory import machine_memory
from .system.words import human_size

# Models to make with random weights: the published size, 7 B, and the next smaller one.
SIZES = {
    "7b": LmConfig(),
    "1b": LmConfig(dim=2048, num_layers=16, num_heads=16, max_period=100000.0, text_card=48000),
}


def random_lm(
    config: LmConfig,
    bits: int,
    group_size: int,
    seed: int,
    dtype: mx.Dtype,
    progress: Callable[[float], None] | None = None,
    *,
    packed: Callable[[str, Any], bool] | None = None,
) -> Lm:
    """Make a model of seeded random weights, one matrix after the other. Quantized ones are made in packed form.

    `bits` is 16 for weights in `dtype`, else the bits of all matrices, in groups of `group_size`; of those alone for which
    `packed(name, module)` holds, if it is given. `progress` gets the fraction that has been made. Weights have the variance
    1 / columns, so that activations stay about as large from layer to layer.
    """
    lm = Lm(config)
    if bits < 16:
        nn.quantize(lm, group_size=group_size, bits=bits, class_predicate=packed)
    key = mx.random.key(seed)
    parameters = lm.named_parameters()
    like = dict(parameters)
    made: list[tuple[str, mx.array]] = []
    for name, parameter in parameters:
        if progress:
            progress(len(made) / len(parameters))
        module, _, part = name.rpartition(".")
        columns = parameter.shape[-1]
        if f"{module}.scales" in like:
            columns = like[f"{module}.weight"].shape[-1] * 32 // bits
        # The standard deviation of evenly distributed whole numbers of so many bits.
        scale = columns**-0.5 * (12 / ((1 << bits) ** 2 - 1)) ** 0.5
        if parameter.dtype == mx.uint32:
            key, own = mx.random.split(key)
            low, high = mx.random.randint(0, 1 << 16, (2, *parameter.shape), mx.uint32, own)
            array = low + (high << 16)
        elif part == "scales":
            array = mx.full(parameter.shape, scale, dtype)
        elif part == "biases":
            array = mx.full(parameter.shape, -scale * ((1 << bits) - 1) / 2, dtype)
        elif parameter.ndim == 1:
            array = mx.ones(parameter.shape, dtype)
        else:
            key, own = mx.random.split(key)
            array = mx.random.normal(parameter.shape, dtype, scale=columns**-0.5, key=own)
        mx.eval(array)
        mx.clear_cache()
        made.append((name, array))
    lm.load_weights(made, strict=True)
    made.clear()
    lm.freeze()
    lm.prepare()
    mx.clear_cache()
    return lm


def bytes_per_step(lm: Lm, positions: float = 0, kv_bits: int | None = None, *, rows: int = 1) -> int:
    """Count the bytes that a step has to read: every matrix once, the rows of embeddings, keys and values.

    `positions` is the number of positions that attention sees, on average. With guidance there are two `rows` of keys and
    values. Layers of the depformer that codebooks share are read again for each of them. Conditions, and what makes keys and
    values of a source of cross-attention, are not read: that is done once a conversation.
    """
    config, total = lm.config, 0.0
    for name, module in _modules(lm):
        if name.startswith("condition_provider"):
            continue
        size = sum(array.nbytes for array in module.parameters().values() if isinstance(array, mx.array))
        if isinstance(module, nn.Embedding | nn.QuantizedEmbedding | Rows):
            size = size * (2 if isinstance(module, DemuxedEmbedding) else 1) // module.weight.shape[0]
        elif name.endswith("cross_attention.in_proj"):
            size //= 3  # only the queries'
        elif shared := re.match(r"depformer\.slices\.(\d+)\.transformer\.", name):
            size *= config.slices.count(config.slices[int(shared[1])])
        total += size
    kept = config.num_layers * lm.ring_format(kv_bits).nbytes(1) * positions
    return int(total + rows * (kept + source_bytes(config, lm.out_norm.weight.dtype.size)))


def _modules(lm: Lm) -> list[tuple[str, Any]]:
    return list(cast("Any", lm).named_modules())


@dataclass(frozen=True)
class Percentiles:
    """The percentiles of some times, in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Percentiles:
        """Return the percentiles, in milliseconds, of times in seconds."""
        return cls(*(1000 * float(np.percentile(seconds, p)) for p in (50, 95, 99)))


@dataclass(frozen=True)
class Report:
    """The results of a measurement.

    Times are in milliseconds, sizes in bytes, rates in bytes a second. `real_time` is how many times faster than speech a frame
    is encoded, answered and decoded, one after the other, by the medians; without a codec, it is only answered. `share` is the
    fraction of `bandwidth` that the median step reaches with its `bytes_per_step`.
    """

    version: str
    chip: str
    cores: int
    memory: int
    system: str
    mlx: str
    device: str
    model: str
    bits: str
    dtype: str
    steps: int
    step: Percentiles
    encode: Percentiles | None
    decode: Percentiles | None
    real_time: float
    warm_up: float
    peak: int
    weights: int
    bytes_per_step: int
    bandwidth: float
    share: float

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures for people, as names and values."""

        def times(p: Percentiles | None) -> str:
            return f"{p.p50:.1f} / {p.p95:.1f} / {p.p99:.1f} ms" if p else "not measured"

        return [
            ("msh-mlx", self.version),
            ("chip", f"{self.chip}, {self.cores} cores"),
            ("memory", human_size(self.memory)),
            ("system", self.system),
            ("MLX", f"{self.mlx} on {self.device}"),
            ("model", self.model),
            ("bits", f"{self.bits}, activations {self.dtype}"),
            ("weights", human_size(self.weights, 2)),
            (f"step p50 / p95 / p99 ({self.steps} steps)", times(self.step)),
            ("encode p50 / p95 / p99", times(self.encode)),
            ("decode p50 / p95 / p99", times(self.decode)),
            ("real-time factor", f"{self.real_time:.2f} {'with' if self.encode else 'without'} the codec"),
            ("warm-up", f"{self.warm_up / 1000:.1f} s"),
            ("memory peak", human_size(self.peak, 2)),
            ("bytes read a step", human_size(self.bytes_per_step, 3)),
            ("bandwidth reached", f"{self.share:.0%} of {human_size(self.bandwidth)}/s measured"),
        ]

    def table(self) -> str:
        """Return the figures as an aligned table in Markdown."""
        rows = [("", ""), *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)


def _prepared(
    lm: Lm, kv_bits: int | None, steps: int, rng: np.random.Generator
) -> tuple[LmGen, int, Callable[[], object]]:
    """Make a conversation with `lm`. Return it, how many steps come before those to measure, and what runs one."""
    config, family = lm.config, family_of(lm.config)
    if family.use != "speech":
        steering = hibiki.steering(lm) if family.use == "translation" else NO_STEERING
        gen = LmGen(lm, seed=0, kv_bits=kv_bits, steering=steering)
        return gen, 1, lambda: gen.step(rng.integers(0, config.card, config.user_q))
    # Before its sound begins, a model that speaks chooses only text.
    first = tts.delay_steps(config) + 1
    machine = tts.WordMachine.of(config)
    for tokens in rng.integers(4, config.text_card, (first + steps, 2)):
        machine.entries.append(tts.Entry(tuple(tokens.tolist())))
    script = tts.SpeechScript.of(config, machine)
    gen = LmGen(lm, seed=0, kv_bits=kv_bits, steering=tts.steering(lm), script=script)
    return gen, first, gen.advance


def measure(
    lm: Lm,
    name: str,
    mimi: Mimi | None = None,
    *,
    steps: int = 100,
    kv_bits: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Measure steps of `lm` on seeded random codes, or on random words if it speaks, and the codec on noise, in turn.

    A codec is measured as far as the model needs it: it does not hear if all codes are its own, and has no voice if none is.
    `progress` gets the fraction that has been done.
    """
    config = lm.config
    reached = bandwidth()
    rng = np.random.default_rng(0)
    gen, first, step_once = _prepared(lm, kv_bits, steps, rng)
    mx.reset_peak_memory()
    begin = perf_counter()
    gen.warm_up()
    warm_up = perf_counter() - begin
    times: dict[str, list[float]] = {"step": [], "encode": [], "decode": []}

    def timed(what: str, work: Callable[[Any], Any], given: Any) -> Any:
        begin = perf_counter()
        made = work(given)
        times[what].append(perf_counter() - begin)
        return made

    if mimi:
        encoder, decoder = mimi.encoder(), mimi.decoder()
        noise = 0.1 * rng.standard_normal(mimi.frame_size, np.float32)
        heard = encoder.step(noise)
    for _ in range(first):
        step_once()
    for t in range(steps):
        if progress:
            progress(t / steps)
        timed("step", lambda _: step_once(), None)
        if mimi and config.user_q:
            heard = timed("encode", encoder.step, noise)
        if mimi and config.dep_q:
            timed("decode", decoder.step, heard)
    spreads = {what: Percentiles.of(seconds) for what, seconds in times.items() if seconds}
    step = spreads["step"]
    together = sum(spread.p50 for spread in spreads.values())
    before = first + (config.user_q > 0)  # the priming step of a model that hears
    seen = np.mean([min(before + t + 1, config.context) for t in range(steps)])
    read = bytes_per_step(lm, float(seen), kv_bits)
    packed = [module for _, module in _modules(lm) if "weight" in module and module.weight.ndim == 2]
    kinds = sorted({getattr(module, "bits", 8 * module.weight.dtype.size) for module in packed})
    dtype = str(lm.out_norm.weight.dtype).removeprefix("mlx.core.")
    return Report(
        version=__version__,
        chip=chip(),
        cores=os.cpu_count() or 1,
        memory=machine_memory(),
        system=f"{system()}, Python {platform.python_version()}",
        mlx=version("mlx"),
        device=str(mx.default_device()).removeprefix("Device(").split(",")[0],
        model=name,
        bits=" and ".join(map(str, kinds)),
        dtype=dtype,
        steps=steps,
        step=step,
        encode=spreads.get("encode"),
        decode=spreads.get("decode"),
        real_time=1000 * FRAME_SECONDS / together,
        warm_up=1000 * warm_up,
        peak=mx.get_peak_memory(),
        weights=sum(array.nbytes for _, array in lm.named_parameters()),
        bytes_per_step=read,
        bandwidth=reached,
        share=read / (step.p50 / 1000) / reached,
    )
