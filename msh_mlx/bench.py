"""The measurements of `msh-mlx bench`: how fast a model is on this machine, with real weights or random ones."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from . import __version__
from .conversation.codec import Mimi
from .format import FRAME_SECONDS
from .library.bandwidth import bandwidth
from .library.catalogue import load_catalogue, of_use
from .library.suited import STEP_LIMIT, TRIAL_LIMIT, reading, source_bytes
from .model.config import LmConfig
from .model.engine import LanguageModel
from .model.families import family_of, hibiki, tts
from .model.generate import LmGen
from .model.steering import NO_STEERING
from .system.machine import chip, system
from .system.memory import machine_memory
from .system.words import human_size, listed

# Models to make with random weights: the published size, 7 B, and the next smaller one.
SIZES = {
    "7b": LmConfig(),
    "1b": LmConfig(dim=2048, num_layers=16, num_heads=16, max_period=100000.0, text_card=48000),
}


def bytes_per_step(lm: LanguageModel, positions: float = 0, kv_bits: int | None = None, *, rows: int = 1) -> int:
    """Count the bytes that a step has to read: every matrix once, the rows of embeddings, keys and values.

    `positions` is the number of positions that attention sees, on average. With guidance there are two `rows` of keys and
    values. Layers of the depformer that codebooks share are read again for each of them. Conditions, and what makes keys and
    values of a source of cross-attention, are not read: that is done once a conversation.
    """
    config = lm.config
    kept = lm.kv_bytes(1, kv_bits) * positions
    return int(lm.step_bytes + rows * (kept + source_bytes(config, lm.float_bytes)))


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


def able(times: Mapping[str, float]) -> str:
    """Say which models hold a conversation, by how many steps of each could be read while a frame lasts."""
    held = {name: many for name, many in times.items() if many >= FRAME_SECONDS / STEP_LIMIT}
    if held:
        return listed(f"{name} ({many:.1f} times)" for name, many in held.items())
    name, most = max(times.items(), key=lambda item: item[1])
    perhaps = most >= FRAME_SECONDS / TRIAL_LIMIT
    return f"{'perhaps' if perhaps else 'none;'} {name}, the lightest ({most:.1f} times)"


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
    engine: str
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
    # How many steps of each model for conversations could be read at that bandwidth while a frame lasts.
    conversations: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures; those that tell how near a step comes to the machine's limit also under their own names."""
        limits = {"step_ms": self.step.p50, "read_bandwidth": self.bandwidth, "share_of_bandwidth": self.share}
        return {**asdict(self), **limits}

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures for people, as names and values."""

        def times(p: Percentiles | None) -> str:
            return f"{p.p50:.1f} / {p.p95:.1f} / {p.p99:.1f} ms" if p else "not measured"

        return [
            ("msh-mlx", self.version),
            ("chip", f"{self.chip}, {self.cores} cores"),
            ("memory", human_size(self.memory)),
            ("system", self.system),
            ("engine", f"{self.engine} on {self.device}"),
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
            ("conversations with", able(self.conversations)),
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
    lm: LanguageModel, kv_bits: int | None, steps: int, rng: np.random.Generator
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
    lm: LanguageModel,
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
    config, known = lm.config, of_use(load_catalogue(), "conversation")
    rng = np.random.default_rng(0)
    gen, first, step_once = _prepared(lm, kv_bits, steps, rng)
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
    read, about = bytes_per_step(lm, float(seen), kv_bits), lm.about()
    peak = lm.peak_bytes()  # before the memory that is only there to be read
    reached = bandwidth(about.engine.partition(",")[0])
    return Report(
        version=__version__,
        chip=chip(),
        cores=os.cpu_count() or 1,
        memory=machine_memory(),
        system=f"{system()}, Python {platform.python_version()}",
        engine=about.engine,
        device=about.device,
        model=name,
        bits=" and ".join(map(str, about.bits)),
        dtype=about.dtype,
        steps=steps,
        step=step,
        encode=spreads.get("encode"),
        decode=spreads.get("decode"),
        real_time=1000 * FRAME_SECONDS / together,
        warm_up=1000 * warm_up,
        peak=peak,
        weights=lm.weights_bytes,
        bytes_per_step=read,
        bandwidth=reached,
        share=read / (step.p50 / 1000) / reached,
        conversations={name: FRAME_SECONDS / seconds for name, seconds in reading(known, reached).items()},
    )
