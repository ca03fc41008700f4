"""One language model in a process of its own, for lm.py. It takes commands as lines of JSON, and answers each with a line.

It needs only numpy, MLX and the model's package, so that the interpreter of any environment runs it.
"""

import io
import json
import re
from pathlib import Path
from time import perf_counter

import mlx.core as mx
import numpy as np
from serving import peak_memory, serve

# The functions that make a program wait for the device, or copy a value to the host.
CONVERSIONS = ("item", "tolist", "__array__", "__bool__", "__int__", "__float__", "__index__", "__iter__")


class Ours:
    """Our model."""

    def __init__(self, weights, config, dtype, bits, kv_bits=None):
        self._weights, self._config, self._dtype, self._kv_bits = weights, config, dtype, kv_bits

    def load(self):
        from msh_mlx import LmGen, load_lm

        self.lm = load_lm(self._weights, self._config, self._dtype, engine="mlx")
        self.gen = LmGen(self.lm, seed=1, kv_bits=self._kv_bits)

    def warm_up(self):
        self.gen.warm_up()

    def step(self, codes):
        return self.gen.step(codes)


class Peer:
    """The peer's model, used as in its own program, with the same interface and shapes as `Ours`."""

    def __init__(self, weights, config, dtype, bits, kv_bits=None):
        self._config = json.loads(Path(config).read_text())
        self._weights, self._dtype, self._bits = weights, dtype, int(bits)

    def load(self):
        import dataclasses

        import mlx.nn as nn
        from moshi_mlx import models, utils

        c, change = self._config, dataclasses.replace
        base = models.config_v0_1()
        inner = change(
            base.depformer.transformer,
            d_model=c["depformer_dim"],
            num_heads=c["depformer_num_heads"],
            num_layers=c["depformer_num_layers"],
            dim_feedforward=4 * c["depformer_dim"],
            context=c["dep_q"],
        )
        config = change(
            base,
            transformer=change(
                base.transformer,
                d_model=c["dim"],
                num_heads=c["num_heads"],
                num_layers=c["num_layers"],
                dim_feedforward=4 * c["dim"],
                context=c["context"],
                max_period=int(c["max_period"]),
            ),
            depformer=change(base.depformer, transformer=inner, num_slices=c["dep_q"]),
            text_in_vocab_size=c["text_card"] + 1,
            text_out_vocab_size=c["text_card"],
            audio_vocab_size=c["card"] + 1,
            audio_codebooks=c["n_q"],
            audio_delays=c["delays"][1:],
        )
        self.lm = models.Lm(config)
        self.lm.set_dtype(getattr(mx, self._dtype))
        if self._bits < 16:
            nn.quantize(self.lm, bits=self._bits, group_size={4: 32, 8: 64}[self._bits])
        self.lm.load_weights(self._weights, strict=True)
        self.gen = models.LmGen(
            self.lm,
            max_steps=c["context"],
            text_sampler=utils.Sampler(temp=0.7, top_k=25),
            audio_sampler=utils.Sampler(temp=0.8, top_k=250),
        )

    def warm_up(self):
        self.lm.warmup()

    def step(self, codes):
        text = self.gen.step(mx.array(codes)[None])[0].item()
        frame = self.gen.last_audio_tokens()
        return text, None if frame is None else np.array(frame).astype(np.uint32)


class Counts:
    """While entered, counts how often values are copied to the host or evaluated, and how many operations are evaluated."""

    def __init__(self):
        self.syncs = self.evaluations = self.primitives = 0

    def __enter__(self):
        self._undo = []
        for name in CONVERSIONS:
            if hasattr(mx.array, name):
                self._wrap(mx.array, name, self._sync)
        for name in ("array", "asarray"):
            self._wrap(np, name, self._sync)
        self._wrap(mx, "eval", self._evaluate)
        self._wrap(mx, "async_eval", self._evaluate)
        self._wrap(mx, "synchronize", lambda: None)
        return self

    def __exit__(self, *_):
        for undo in self._undo:
            undo()

    def _wrap(self, where, name, count):
        original = getattr(where, name)

        def counted(*args, **options):
            arrays = [a for a in flat(args) if isinstance(a, mx.array)]
            if arrays or name == "synchronize":
                if where is not mx or name != "async_eval":
                    self.syncs += 1
                count(*arrays)
            return original(*args, **options)

        setattr(where, name, counted)
        self._undo.append(lambda: setattr(where, name, original))

    def _sync(self, *arrays):
        self._evaluate(*arrays)

    def _evaluate(self, *arrays):
        dot = io.StringIO()
        mx.export_to_dot(dot, *arrays)
        found = len(re.findall(r"shape ?= ?rectangle", dot.getvalue()))
        self.primitives += found
        self.evaluations += found > 0


def flat(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        elif isinstance(value, dict):
            yield from flat(list(value.values()))
        else:
            yield value


class Worker:
    """The commands. Both models have them, except for those whose docstring says "ours only"."""

    def __init__(self, kind, weights, config, dtype, bits, *more):
        self.model = {"ours": Ours, "peer": Peer}[kind](weights, config, dtype, bits, *map(int, more))
        values = json.loads(Path(config).read_text())
        # The user's codes, the same for all: seeded, and repeated after a while.
        self.codes = np.random.default_rng(1).integers(0, values["card"], (256, values["n_q"] - values["dep_q"]))
        self.at = 0

    def start(self, warm_up):
        """Load, and answer the first frame. Return the seconds of each part, and MLX's memory in bytes."""
        times = [perf_counter()]
        self.model.load()
        held, peak = mx.get_active_memory(), mx.get_peak_memory()
        times.append(perf_counter())
        if warm_up:
            self.model.warm_up()
        times.append(perf_counter())
        self.steps(1)
        times.append(perf_counter())
        load, warm, first = np.diff(times).tolist()
        return {"load": load, "warm_up": warm, "first": first, "held": held, "load_peak": peak}

    def steps(self, count):
        """Run `count` steps. Return the seconds of each."""
        seconds = []
        for _ in range(count):
            codes = self.codes[self.at % len(self.codes)].astype(np.int32)
            self.at += 1
            begin = perf_counter()
            self.model.step(codes)
            seconds.append(perf_counter() - begin)
        return seconds

    def count(self, count):
        """Count over `count` steps. Return the figures per step."""
        with Counts() as counts:
            self.steps(count)
        return {k: getattr(counts, k) / count for k in ("syncs", "evaluations", "primitives")}

    def memory(self):
        """Return MLX's memory now, its peak since the last call, and the peak of the process, in bytes."""
        held, peak = mx.get_active_memory(), mx.get_peak_memory()
        mx.reset_peak_memory()
        return {"held": held, "peak": peak, "process_peak": peak_memory()}

    def reset(self):
        """Begin a new conversation (ours only)."""
        self.model.gen.reset()

    def device(self):
        return {"mlx": mx.__version__, "device": str(mx.default_device())}


if __name__ == "__main__":
    serve(Worker)
