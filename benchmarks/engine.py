"""Measure the native engine of the language models, beside what the machine's memory gives.

A step has to read every weight once. So each way to compute is given as bytes a second, and as a share of what the same threads
read in the same run, when they do nothing else. Models of the published size (7 B) have seeded random weights, made in memory.
The ways take turns, some steps each, so that other load on the machine affects all alike; the figures are medians.

- 7 B at 8 and 4 bits, with the window empty and full, with activations in float32, 16 and 8 bits.
- Several conversations in a step, beside one.
- With --peers: a Llama of 7 B at Q4_0 and Q8_0 through llama.cpp (llama-cpp-python, which is built in an environment in
  .cache, for minutes), with each number of threads; and moshi-mlx with a model of 1 B and one that is all framework
  ("graph": 32 layers, hardly any width). The MLX engine runs these two, too, where MLX is installed.
- The demo model with its codec, as a conversation runs: milliseconds a frame, and times as fast as real time.
- Memory and time of a conversation over ten windows.
- What rounding activations changes: logits of the demo model and of a random one, beside float32.

It exits with 0, whatever the figures are.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from lm import BITS, MODELS, PEER_VERSION, make_model
from lm import GROUP as MLX_GROUP
from lm import WORKER as LM_WORKER
from processes import ROOT, Process, make_peer

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.system.machine import chip
from msh_mlx.system.newfile import check_outputs
from msh_mlx.system.places import user_path

if TYPE_CHECKING:
    from msh_mlx.model.native.model import NativeModel

WORKER = Path(__file__).with_name("engine_worker.py")
LLAMA_VERSION, GGUF_VERSION = "0.3.36", "0.19.0"
GROUP = 64
PUBLISHED: dict[str, Any] = {
    "dim": 4096, "num_layers": 32, "num_heads": 32, "hidden_scale": 4.125, "context": 3000, "max_period": 10000.0,
    "text_card": 32000, "card": 2048, "n_q": 16, "dep_q": 8, "depformer_dim": 1024, "depformer_num_layers": 6,
    "depformer_num_heads": 16, "depformer_dim_feedforward": 4224,
}  # fmt: skip
QUICK = {**PUBLISHED, "dim": 1024, "num_layers": 2, "num_heads": 8, "context": 300, "text_card": 4000}
ACTIVATIONS = ("float32", "int16", "int8")


def native(config: dict[str, Any], bits: int, group: int = GROUP, dtype: str = "bf16") -> Process:
    return Process("native", Path(sys.executable), WORKER, None, "native", json.dumps(config), bits, group, dtype)


def in_turn(ways: dict[str, tuple[Process, dict[str, Any]]], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Let ways take turns, each with the command `begin` and its options. Return the bytes and the median seconds of a step."""
    sizes: dict[str, dict[str, float]] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (worker, options) in ways.items():
            sizes[name] = worker.ask("begin", **options)
            worker.ask("steps", count=1)
            times[name] += worker.ask("steps", count=steps)
    return {name: {**sizes[name], "seconds": median(times[name]), "best": min(times[name])} for name in ways}


def measure_published(config: dict[str, Any], bits: int, rounds: int, steps: int, llama: Path | None) -> dict[str, Any]:
    """Measure a model of the published shape at some bits, and llama.cpp beside it."""
    cores, context = os.cpu_count() or 1, config["context"]
    ways: dict[str, tuple[Process, dict[str, Any]]] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(native(config, bits))
        for activations in ACTIVATIONS:
            for threads in sorted({1, cores}):
                options = {"threads": threads, "activations": activations, "held": 0}
                ways[f"{activations}, {threads} threads"] = ours, options
        for kv in ("int8", "float16"):
            options = {"threads": cores, "activations": "int8", "kv": kv, "held": context}
            ways[f"int8, {cores} threads, window full in {kv}"] = ours, options
        if bits == 4:
            for rows in (1, 2, 4, 8):
                options = {
                    "threads": cores,
                    "activations": "int8",
                    "kv": "int8",
                    "held": min(100, context - 1),
                    "rows": rows,
                }
                ways[f"{rows} conversations"] = ours, options
            for rows in (1, 8):
                options = {"threads": cores, "activations": "int8", "kv": "int8", "held": context, "rows": rows}
                ways[f"{rows} conversations, window full"] = ours, options
        if llama:
            kind = f"Q{bits}_0"
            path = ROOT / ".cache" / f"llama-7b-{kind}.gguf"
            peer = stack.enter_context(Process("llama.cpp", llama, WORKER, None, "llama", path, kind))
            for threads in sorted({1, cores}):
                ways[f"llama.cpp {kind}, {threads} threads"] = peer, {"threads": threads}
        bandwidths = {threads: [ours.ask("bandwidth", threads=threads)] for threads in sorted({1, cores})}
        found = in_turn(ways, rounds, steps)
        for threads, measured in bandwidths.items():
            measured.append(ours.ask("bandwidth", threads=threads))
        return {
            "bits": bits,
            "bandwidth": {threads: max(measured) for threads, measured in bandwidths.items()},
            "ways": found,
            "peak": ours.ask("memory"),
            "threads": {name: options["threads"] for name, (_, options) in ways.items()},
        }


def report_published(result: dict[str, Any]) -> None:
    bandwidths = ", ".join(f"{n} threads {b / 1e9:.1f} GB/s" for n, b in result["bandwidth"].items())
    print(f"\n7 B at {result['bits']} bits; the memory gives: {bandwidths}")
    print(f"{'':<44}{'ms':>9}{'best':>9}{'GB a step':>11}{'GB/s':>8}{'share':>8}")
    for name, way in result["ways"].items():
        size, reads = way["weights"] + way["kept"], result["bandwidth"][result["threads"][name]]
        speed = size / way["seconds"]
        print(
            f"{name:<44}{1000 * way['seconds']:9.1f}{1000 * way['best']:9.1f}{size / 1e9:11.2f}{speed / 1e9:8.1f}"
            f"{speed / reads:8.2f}"
        )
    speeds = {name: way["weights"] / way["seconds"] for name, way in result["ways"].items()}
    if theirs := max((speed for name, speed in speeds.items() if name.startswith("llama.cpp")), default=0):
        for activations in ACTIVATIONS:
            ours = max(speeds[f"{activations}, {threads} threads"] for threads in result["bandwidth"])
            print(
                f"{activations} reads {ours / theirs:.2f} times as many bytes a second as llama.cpp, each with its best threads"
            )
    one = result["ways"].get("1 conversations")
    if one:
        for rows in (2, 4, 8):
            ratio = result["ways"][f"{rows} conversations"]["seconds"] / one["seconds"]
            print(f"{rows} conversations take {ratio:.2f} of the time of one")
        full = [result["ways"][f"{rows} conversations, window full"] for rows in (1, 8)]
        sizes = [way["weights"] + way["kept"] for way in full]
        print(
            f"8 with full windows take {full[1]['seconds'] / full[0]['seconds']:.2f} of the time of one, "
            f"and read {sizes[1] / sizes[0]:.2f} of its bytes"
        )


def measure_peers(size: str, peer: Path | None, rounds: int) -> dict[str, float]:
    """Measure a smaller model with both engines and moshi-mlx. Return the median seconds of a step of each."""
    bits, files = BITS[size], make_model(size)
    config = MODELS[size]
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(native(config, bits, MLX_GROUP))
        workers = {"native": ours}
        if importlib.util.find_spec("mlx"):
            python = Path(sys.executable)
            workers["MLX engine"] = stack.enter_context(Process("MLX", python, WORKER, None, "mlx", *files))
        if peer:
            worker = Process(f"moshi-mlx {PEER_VERSION}", peer, LM_WORKER, None, "peer", *files, "bfloat16", bits)
            workers[worker.name] = stack.enter_context(worker)
            worker.ask("start", warm_up=False)
        ours.ask("begin", threads=os.cpu_count() or 1, activations="int16")
        for _ in range(rounds):
            for name, worker in workers.items():
                slow = name != "native" and bits < 16
                times.setdefault(name, []).extend(worker.ask("steps", count=1 if slow else 20)[-20 if slow else -10 :])
    return {name: median(seconds) for name, seconds in times.items()}


def measure_demo(frames: int) -> dict[str, float]:
    """Return the median milliseconds of a frame with the demo model and its codec, by part, and the real-time factor."""
    from msh_mlx.bench import measure
    from msh_mlx.conversation.codec import load_mimi
    from msh_mlx.library.files import find_demo
    from msh_mlx.weights.load import load_lm

    files = find_demo()
    lm = load_lm(files.model, files.config, engine="native")
    mimi = load_mimi(files.mimi, num_codebooks=max(lm.config.dep_q, lm.config.user_q))
    report = measure(lm, "demo", mimi, steps=frames)
    assert report.encode is not None
    assert report.decode is not None
    parts = {"encode": report.encode.p50, "step": report.step.p50, "decode": report.decode.p50}
    return {**parts, "real_time": report.real_time}


def measure_age(steps: int) -> dict[str, list[float]]:
    """Return the median seconds of a step, and the peak of memory, in each tenth of a conversation of ten windows."""
    config = {**MODELS["graph"], "context": max(steps // 10, 2)}
    seconds, peaks = [], []
    with native(config, 16) as worker:
        worker.ask("begin", threads=1, activations="int8")
        for _ in range(10):
            seconds.append(median(worker.ask("steps", count=steps // 10)))
            peaks.append(float(worker.ask("memory")))
    return {"seconds": seconds, "peaks": peaks}


def differences(name: str, lm: Any, config: Any, steps: int, kv: str = "float32") -> dict[str, dict[str, float]]:
    """Compare logits with activations rounded in each way with those of float32, over the same tokens."""
    kept: dict[str, list[list[npt.NDArray[np.float64]]]] = {}
    first: list[int] = []
    found: dict[str, dict[str, float]] = {}
    times: dict[str, list[float]] = {}
    for way in ("float32", "bfloat16", "int16", "int8"):
        engine = lm.engine(1, activations=way)
        greedy = {"text": (0.0, 0, 1.0, 0.0, 1.0, 0.0), "audio": (0.0, 0, 1.0, 0.0)}
        conversation = lm.conversation(kv=kv, **greedy)
        random, rows, codes = np.random.default_rng(3), [], []
        for step in range(steps):
            cards = [config["text_card"], *[config["card"]] * config["n_q"]]
            tokens = random.integers(0, cards)[None].astype(np.int32)
            begin = perf_counter()
            text = engine.hear([conversation], tokens)
            took = perf_counter() - begin
            if way == "float32":
                first.append(int(text[0]))
            row = [conversation.text_logits().astype(np.float64)]
            if config["dep_q"]:
                begin = perf_counter()
                said = engine.speak([conversation], np.array([first[step]], np.int32))[0]
                took += perf_counter() - begin
                codes.append(said)
                row += list(conversation.audio_logits().astype(np.float64))
            rows.append(row)
            times.setdefault(way, []).append(1000 * took)
        kept[way] = rows
        if way == "float32":
            exact_codes = codes
            continue
        largest = kl = same = count = 0.0
        spread = max(float(np.std(row[0])) for row in kept["float32"])
        for step, (exact, other) in enumerate(zip(kept["float32"], rows, strict=True)):
            for k, (a, b) in enumerate(zip(exact, other, strict=True)):
                # A codebook follows the codes before it: only where these are the same can logits be compared.
                if k > 1 and (exact_codes[step][: k - 1] != codes[step][: k - 1]).any():
                    break
                p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (a, b))
                largest = max(largest, float(np.abs(a - b).max()))
                kl += float((np.exp(p) * (p - q)).sum())
                same += float(a.argmax() == b.argmax())
                count += 1
        found[way] = {"largest": largest, "kl": kl / count, "same": same / count, "spread": spread}
        found[way]["ms"] = median(times[way])
    del kept
    gc.collect()
    print(f"\n{name}: logits beside float32, which takes {median(times['float32']):.2f} ms a step; {steps} steps")
    print(f"{'activations':<14}{'largest difference':>20}{'mean KL':>12}{'same best token':>18}{'ms':>10}")
    for way, figures in found.items():
        print(f"{way:<14}{figures['largest']:20.4f}{figures['kl']:12.2e}{figures['same']:18.2%}{figures['ms']:10.2f}")
    return found


def measure_differences(steps: int, config: dict[str, Any]) -> dict[str, Any]:
    import msh_native

    from msh_mlx.library.files import find_demo
    from msh_mlx.weights.load import load_lm

    files = find_demo()
    demo = cast("NativeModel", load_lm(files.model, files.config, engine="native"))
    result = {"demo": differences("demo model", demo._weights, demo.config.to_dict(), steps)}
    lm = msh_native.Lm.random(json.dumps(config), 4, MLX_GROUP, 7)
    result["random"] = differences("random model, 4 bits", lm, config, max(steps // 4, 4))
    return result


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count: dict[str, Any] = {"metavar": "N", "type": whole(1)}
    parser.add_argument("--rounds", default=3, help="let all take N turns (default: %(default)s)", **count)
    parser.add_argument("--steps", default=5, help="make N steps a turn (default: %(default)s)", **count)
    parser.add_argument("--long", default=10000, help="make N steps in the long run (default: %(default)s)", **count)
    parser.add_argument(
        "--bits", nargs="+", type=int, choices=(4, 8), default=[4, 8], help="measure these (default: both)"
    )
    parser.add_argument("--quick", action="store_true", help="use small models alone, to try the program")
    parser.add_argument(
        "--peers", action="store_true", help="measure llama.cpp and moshi-mlx, too; install them if need be"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    output = user_path(args.json) if args.json else None
    check_outputs([output] if output else [], [])
    llama = peer = None
    if args.peers:
        others = [f"gguf=={GGUF_VERSION}"]
        llama = make_peer("llama_cpp", LLAMA_VERSION, others, package="llama-cpp-python", build=True)
        mlx = [*(["mlx-cpu==0.26.5"] if sys.platform == "linux" else []), "mlx==0.26.5"]
        peer = make_peer("moshi_mlx", PEER_VERSION, mlx)
    if args.quick:
        args.rounds, args.steps, args.long = 1, 2, min(args.long, 200)
    print(f"{chip()}, {platform.machine()}, {os.cpu_count()} cores", flush=True)
    config = QUICK if args.quick else PUBLISHED
    result: dict[str, Any] = {"machine": chip(), "cores": os.cpu_count(), "published": [], "peers": {}}
    for bits in args.bits:
        measured = measure_published(config, bits, args.rounds, args.steps, llama)
        report_published(measured)
        result["published"].append(measured)
    for size in ("graph",) if args.quick else ("graph", "1b"):
        result["peers"][size] = measure_peers(size, peer, args.rounds)
        print(f"\n{size}: ms a step, and times as fast as")
        ours = result["peers"][size]["native"]
        for name, seconds in result["peers"][size].items():
            print(f"{name:<24}{1000 * seconds:10.2f}{seconds / ours:10.1f}")
    result["demo"] = demo = measure_demo(20 if args.quick else 1000)
    print(f"\nthe demo model, {demo['real_time']:.1f} times as fast as real time; ms a frame:")
    print(" ".join(f"{part} {demo[part]:.2f}" for part in ("encode", "step", "decode")))
    result["age"] = age = measure_age(args.long)
    print(f"\n{args.long} steps, ten windows, by tenths:")
    print("ms a step " + " ".join(f"{1000 * seconds:.3f}" for seconds in age["seconds"]))
    print("MB at most " + " ".join(f"{peak / 1e6:.1f}" for peak in age["peaks"]))
    result["differences"] = measure_differences(20 if args.quick else 200, QUICK if args.quick else MODELS["1b"])
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
