"""Measure how fast a step of the language model is, what work it makes, and how much memory it needs.

Each contender is a process of its own: ours, and with --peer the package moshi-mlx, in an environment in .cache. They load the
same seeded random weights, hear the same codes, sample alike (0.7 / 25 and 0.8 / 250), and take turns, some steps each, so that
other load on the machine affects all alike. The program prints tables, and says which aims are met in this run; --json keeps
the figures. It exits with 0, whatever they are.

The sizes: "graph" has the real depth (32 layers, 8 × 6 in the depformer) and hardly any width, so that a step consists of
launches, framework and Python. "1b" has dim 2048, 16 layers, 16 codebooks, 4 bits in groups of 32.

Counted per step: syncs (conversions of an array to values, and calls that wait for the device); evaluations (syncs that found
something to compute); primitives (operations in the graphs that were found, where a compiled, fused one counts once). The peer
runs in the dtype that its program sets (bfloat16) and, at the size "graph", in float32, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from processes import ROOT, Process, make_peer

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.format import FRAME_SECONDS
from msh_mlx.system.newfile import check_outputs
from msh_mlx.system.places import user_path

WORKER = Path(__file__).with_name("lm_worker.py")
PEER_VERSION = "0.3.0"
MODELS: dict[str, dict[str, Any]] = {
    "graph": {
        "dim": 32, "num_layers": 32, "num_heads": 4, "context": 3000, "max_period": 10000.0, "text_card": 512, "n_q": 16,
        "dep_q": 8, "card": 256, "depformer_dim": 32, "depformer_num_layers": 6, "depformer_num_heads": 4,
        "depformer_dim_feedforward": 132,
    },
    "1b": {
        "dim": 2048, "num_layers": 16, "num_heads": 16, "context": 3000, "max_period": 100000.0, "text_card": 48000,
        "n_q": 16, "dep_q": 8, "card": 2048, "depformer_dim": 1024, "depformer_num_layers": 6, "depformer_num_heads": 16,
        "depformer_dim_feedforward": 4224,
    },
}  # fmt: skip
BITS = {"graph": 16, "1b": 4}
GROUP = 32
SEED = 11


@dataclass
class Contender:
    """One way to run one model. Times are in seconds."""

    name: str
    kind: str
    python: Path
    dtype: str
    starts: list[dict[str, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    early: list[float] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def open(self, files: tuple[Path, Path], bits: int) -> Process:
        return Process(self.name, self.python, WORKER, None, self.kind, *files, self.dtype, bits)

    def spread(self) -> dict[str, float]:
        values = np.array(self.times)
        return {"min": float(values.min()), **{f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)}}

    def start(self, key: str) -> float:
        return median(start[key] for start in self.starts)


def make_model(size: str, context: int | None = None) -> tuple[Path, Path]:
    """Make a seeded random model in .cache if it is not there. Return the files of its weights and its configuration."""
    config = {**MODELS[size], "delays": [0, 0, *[1] * 7, 0, *[1] * 7]}
    if context:
        config["context"] = context
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    weights = folder / f"lm-{size}-seed{SEED}.safetensors"
    description = folder / f"lm-{size}{f'-{context}' if context else ''}.json"
    description.write_text(json.dumps(config) + "\n")
    if not weights.exists():
        import mlx.core as mx

        from msh_mlx.model.config import LmConfig
        from msh_mlx.model.mlx.random import random_model

        print(f"Making {weights.name}", flush=True)
        lm = random_model(LmConfig.from_dict(config), BITS[size], GROUP, SEED, mx.bfloat16)
        tensors = dict(lm.module.named_parameters())
        part = weights.with_suffix(".part.safetensors")
        mx.save_safetensors(str(part), tensors)
        part.rename(weights)
    return weights, description


def compare(size: str, contenders: list[Contender], steps: int, block: int, peer_block: int, starts: int) -> None:
    """Let the contenders take turns with one model."""
    files, bits = make_model(size), BITS[size]
    with ExitStack() as stack:
        workers = []
        for turn in range(starts):
            first = turn % len(contenders)
            processes = {}
            for contender in contenders[first:] + contenders[:first]:
                begin = perf_counter()
                processes[contender.name] = process = stack.enter_context(contender.open(files, bits))
                start = process.ask("start", warm_up=True)
                contender.starts.append({**start, "process": perf_counter() - begin})
                if turn < starts - 1:
                    process.close()
            workers = [processes[contender.name] for contender in contenders]
        for contender, worker in zip(contenders, workers, strict=True):
            contender.early = worker.ask("steps", count=1 if contender.kind == "peer" and bits < 16 else 5)
        while len(contenders[0].times) < steps:
            for contender, worker in zip(contenders, workers, strict=True):
                contender.times += worker.ask("steps", count=peer_block if contender.kind == "peer" else block)
        for contender, worker in zip(contenders, workers, strict=True):
            contender.counts = worker.ask("count", count=1 if contender.kind == "peer" and bits < 16 else 5)
            contender.memory = worker.ask("memory")


def age(ours: Contender, context: int, block: int) -> dict[str, float]:
    """Return the median step of ours at several ages, in windows of `context` steps, with the rings at their full size."""
    files = make_model("graph", context)
    ages = (1, 2, 5, 10)
    with ours.open(files, BITS["graph"]) as old, ours.open(files, BITS["graph"]) as young:
        for worker in (old, young):
            worker.ask("start", warm_up=True)
        # Compare every age with a conversation that stays at about one window.
        young.ask("steps", count=context)
        taken, result = 0, {}
        for windows in ages:
            old.ask("steps", count=windows * context - taken)
            taken = windows * context
            pairs = []
            for _ in range(6):
                pairs.append([median(worker.ask("steps", count=block)) for worker in (young, old)])
                taken += block
            result[str(windows)] = median(b / a for a, b in pairs)
    return result


def long_run(ours: Contender, steps: int) -> list[int]:
    """Return the peak of MLX's memory in each tenth of a long conversation."""
    with ours.open(make_model("graph", 1000), BITS["graph"]) as worker:
        worker.ask("start", warm_up=True)
        worker.ask("memory")
        peaks = []
        for _ in range(10):
            worker.ask("steps", count=steps // 10)
            peaks.append(worker.ask("memory")["peak"])
    return peaks


def eight_bits(windows: int = 4) -> dict[str, float]:
    """Return how far 8-bit keys and values move the text logits of the demo model, over several windows of the same input."""
    from msh_mlx.library.files import find_demo
    from msh_mlx.weights.convert import diverge, text_logits
    from msh_mlx.weights.load import load_lm

    files = find_demo()
    lm = load_lm(files.model, files.config, engine="mlx")
    exact = text_logits(lm, windows * lm.config.context)
    found = diverge(exact, text_logits(lm, len(exact), exact.argmax(1), kv_bits=8))
    spread = float(exact.max() - exact.min())
    return {"steps": found.steps, "largest": found.largest, "kl": found.kl, "agree": found.agree, "range": spread}


def memory_table() -> None:
    """Print the memory that the published size takes, as computed, with activations, keys and values in bfloat16."""
    import mlx.core as mx
    import mlx.nn as nn

    from msh_mlx.model.config import LmConfig
    from msh_mlx.model.mlx.attention import Heads, RingFormat, capacities
    from msh_mlx.model.mlx.lm import Lm

    config = LmConfig()
    print(f"{'7 B, GB':<12}{'weights':>10}", end="")
    sizes = capacities(config.context)
    print("".join(f"{f'{n * FRAME_SECONDS:.0f} s':>9}" for n in sizes) + "  of keys and values; with 8 bits at most")
    heads = Heads(config.num_heads, config.dim // config.num_heads)
    forms = [RingFormat(heads, mx.bfloat16, bits) for bits in (None, 8)]
    for name, bits, group in (("q4", 4, 32), ("q8", 8, 64), ("bf16", 16, 0)):
        lm = Lm(config)
        lm.set_dtype(mx.bfloat16)
        if bits < 16:
            nn.quantize(lm, group_size=group, bits=bits)
        weights = sum(array.nbytes for _, array in lm.named_parameters())
        plain, packed = ([form.nbytes(n) * config.num_layers / 1e9 for n in sizes] for form in forms)
        print(f"{name:<12}{weights / 1e9:10.2f}" + "".join(f"{n:9.2f}" for n in plain) + f"{packed[-1]:9.2f}")


def aims(result: dict[str, list[Contender]], ages: dict[str, float], peaks: list[int]) -> list[dict[str, Any]]:
    """Return the aims, each with its figure in this run. Those that compare with the peer are there only if it ran."""
    found: list[dict[str, Any]] = []

    def want(name: str, value: float, limit: float, least: bool = False) -> None:
        met = value >= limit if least else value <= limit
        found.append({"name": name, "value": value, "limit": limit, "least": least, "met": met})

    for size, contenders in result.items():
        ours, *peers = contenders
        for peer in peers:
            if size == "graph":
                want(f"of the time of {peer.name}, {size}", ours.spread()["p50"] / peer.spread()["p50"], 1 / 3)
            else:
                want(
                    f"times as fast as {peer.name}, {size}", peer.spread()["p50"] / ours.spread()["p50"], 7, least=True
                )
        want(f"syncs a step, {size}", ours.counts["syncs"], 1)
        want(f"evaluations a step, {size}", ours.counts["evaluations"], 1)
        want(f"step 1 of the median one, {size}", ours.start("first") / ours.spread()["p50"], 2)
        want(f"peak while loading of what is held then, {size}", ours.start("load_peak") / ours.start("held"), 1.15)
    if ages:
        want("the slowest age of the first window", max(ages.values()), 1.1)
    if peaks:
        # The rings grow in the first tenth.
        want("largest peak of memory of the smallest, by tenths of a long run", max(peaks[1:]) / min(peaks[1:]), 1.01)
    return found


def report(result: dict[str, list[Contender]], ages: dict[str, float], peaks: list[int]) -> None:
    """Print the tables."""
    for size, contenders in result.items():
        last = contenders[-1].spread()["p50"] if len(contenders) > 1 else None
        print(f"\n{size + ', ms a step':<28}{'p50':>9}{'p95':>9}{'p99':>9}{'min':>9}{'times as fast':>15}", end="")
        print(f"{'syncs':>8}{'evaluations':>13}{'primitives':>12}")
        for c in contenders:
            spread = c.spread()
            figures = "".join(f"{1000 * spread[key]:9.2f}" for key in ("p50", "p95", "p99", "min"))
            ratio = f"{last / spread['p50']:15.2f}" if last else f"{'-':>15}"
            counts = f"{c.counts['syncs']:8.1f}{c.counts['evaluations']:13.1f}{c.counts['primitives']:12.0f}"
            print(f"{c.name:<28}{figures}{ratio}{counts}")
        print(f"{size + ', start':<28}{'load, s':>9}{'warm-up':>9}{'step 1':>9}{'in all':>9}", end="")
        print(f"{'held, MB':>10}{'peak while loading':>20}{'process, at most':>18}")
        for c in contenders:
            figures = "".join(f"{c.start(key):9.2f}" for key in ("load", "warm_up", "first", "process"))
            sizes = f"{c.start('held') / 1e6:10.0f}{c.start('load_peak') / 1e6:20.0f}"
            print(f"{c.name:<28}{figures}{sizes}{c.memory['process_peak'] / 1e6:18.0f}")
        print("in all: from the start of the process to the first answered frame")
    if ages:
        print("\nof a step in the first window, after windows: ", end="")
        print(", ".join(f"{windows}: {ratio:.2f}" for windows, ratio in ages.items()))
    if peaks:
        print("peak of memory by tenths of the long run, MB: " + " ".join(f"{peak / 1e6:.1f}" for peak in peaks))


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count: dict[str, Any] = {"metavar": "N", "type": whole(1)}
    parser.add_argument(
        "--sizes", nargs="+", choices=tuple(MODELS), default=list(MODELS), help="measure these models (default: all)"
    )
    parser.add_argument(
        "--steps", default=200, help="measure N of our steps at size graph (default: %(default)s)", **count
    )
    parser.add_argument("--starts", default=3, help="measure the start in N processes (default: %(default)s)", **count)
    parser.add_argument("--long", default=10000, help="make N steps in the long run (default: %(default)s)", **count)
    parser.add_argument("--quick", action="store_true", help="make a few steps of size graph alone, and no long run")
    parser.add_argument(
        "--peer", action="store_true", help=f"measure moshi-mlx {PEER_VERSION}, too; install it if need be"
    )
    parser.add_argument(
        "--memory", action="store_true", help="print the memory that the published size takes, and exit"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    if args.memory:
        memory_table()
        return 0
    output = user_path(args.json) if args.json else None
    check_outputs([output] if output else [], [])
    if args.quick:
        args.sizes, args.steps, args.starts = ["graph"], 40, 1
    # On Linux the library itself comes separately.
    peer = (
        make_peer("moshi_mlx", PEER_VERSION, [*(["mlx-cpu==0.26.5"] if sys.platform == "linux" else []), "mlx==0.26.5"])
        if args.peer
        else None
    )
    from msh_mlx.model.mlx.layers import default_dtype

    result: dict[str, list[Contender]] = {}
    for size in args.sizes:
        own = str(default_dtype()).removeprefix("mlx.core.")
        contenders = [Contender("ours", "ours", Path(sys.executable), own)]
        if peer:
            dtypes = ("float32", "bfloat16") if size == "graph" else ("bfloat16",)
            contenders += [Contender(f"moshi-mlx {PEER_VERSION}, {dtype}", "peer", peer, dtype) for dtype in dtypes]
        result[size] = contenders
        if size == "graph":
            compare(size, contenders, args.steps, 20, 20, args.starts)
        else:
            compare(size, contenders, 20, 10, 2, 1)
    ages: dict[str, float] = {}
    peaks: list[int] = []
    if "graph" in args.sizes and not args.quick:
        ages = age(result["graph"][0], 250, 50)
        peaks = long_run(result["graph"][0], args.long)
    moved = eight_bits()
    with result[args.sizes[0]][0].open(make_model(args.sizes[0]), BITS[args.sizes[0]]) as worker:
        device = worker.ask("device")
    print(f"MLX {device['mlx']} on {device['device']}, {platform.machine()}, {os.cpu_count()} cores")
    report(result, ages, peaks)
    print(
        f"8-bit keys and values, demo model, {moved['steps']} steps: "
        f"logits (which span {moved['range']:.1f}) move by at most {moved['largest']:.3f}, "
        f"KL {moved['kl']:.2g}, the same best token in {moved['agree']:.1%}"
    )
    found = aims(result, ages, peaks)
    print()
    for aim in found:
        word = "at least" if aim["least"] else "at most"
        verdict = "met" if aim["met"] else "NOT met"
        print(f"{aim['value']:6.2f} {aim['name']}: wanted {word} {aim['limit']:.3g}, {verdict}")
    if not args.peer:
        print("The peer was not run; --peer measures it, too.")
    if output:
        sizes = {size: [{**vars(c), "python": "", **c.spread()} for c in cs] for size, cs in result.items()}
        figures = {**device, "machine_kind": platform.machine(), "cores": os.cpu_count(), "peer": args.peer}
        output.write_text(
            json.dumps(
                {**figures, "sizes": sizes, "ages": ages, "peaks": peaks, "eight_bits": moved, "aims": found}, indent=1
            )
            + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
