"""Measure how fast the codec is, how much memory it needs, and how close its parts come to the limits of the machine.

Each contender is a process of its own: ours with each number of threads, and with --peer the package rustymimi, in an
environment in .cache. They take turns, some frames each, so that other load on the machine affects all alike. The input is
speech, and all decode the same codes. In each turn numpy reads as many bytes as our weights have, with as many threads. The
program prints tables, and says which aims are met in this run; --json keeps the figures. It exits with 0, whatever they are.

The cost of a frame is counted from the configuration. A convolution or product of weights [out, in] at n places takes
2·n·out·in operations, and reads its weights once, 4·out·in bytes, or 2·out·in in float16. seanet: its convolutions, at their
own rates. transformer: two steps through 4·d² + 2·d·feedforward weights a layer, and for each step the keys and values in the
window so far, 2·window·d numbers, with 2 operations each. quantizer: the resampling convolution, the projections and, to
encode, the distances to every vector of each codebook. State that is kept from step to step counts as free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import soundfile
from processes import ROOT, Process, make_peer

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.errors import InputError
from msh_mlx.format import FRAME_SIZE
from msh_mlx.system.newfile import check_outputs
from msh_mlx.system.places import user_path
from msh_mlx.system.words import printable

WORKER = Path(__file__).with_name("codec_worker.py")
DIGITS = ROOT / "assets" / "demo" / "digits.flac"
WEIGHTS = ROOT / ".cache" / "mimi-full-seed7.safetensors"
PEER_VERSION = "0.4.1"
BLOCK = 10  # frames of one turn
CODES = 150  # frames that are decoded, again and again
AGES = 1_000, 100_000  # frames
QUIET = 0.1  # cores that others may take
WAYS = "encode", "decode"
STAGES = "seanet", "transformer", "quantizer"


@dataclass
class Contender:
    """One codec with one number of threads; seconds and bytes."""

    kind: str
    threads: int
    python: Path
    weights: str = "float32"
    loads: list[dict[str, float]] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    peak: int = 0

    @property
    def name(self) -> str:
        half = " in float16" if self.weights == "float16" else ""
        name = f"ours{half}" if self.kind == "ours" else f"rustymimi {PEER_VERSION}"
        return f"{name}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def load(self) -> float:
        """The seconds from the call to the first encoded frame, the median of several processes."""
        return median(load["encoded"] for load in self.loads)

    def spread(self, way: str) -> dict[str, float]:
        values = np.array(self.times[way])
        return {"min": float(values.min()), **{f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)}}

    @property
    def total(self) -> float:
        """The seconds of a frame in both directions, by the medians."""
        return sum(self.spread(way)["p50"] for way in WAYS)

    def start(self, path: Path, pcm: Path) -> Process:
        arguments = self.kind, path, self.threads, pcm, self.weights
        return Process(self.name, self.python, WORKER, self.threads, *arguments)

    def summary(self) -> dict[str, Any]:
        spreads = {way: self.spread(way) for way in WAYS}
        figures = {"kind": self.kind, "threads": self.threads, **spreads, "sum": self.total}
        return {**figures, "loads": self.loads, "load": self.load, "peak": self.peak, "times": self.times}


def make_weights() -> Path:
    """Make the full-size checkpoint with seeded random weights if it is not there. Return its path."""
    if not WEIGHTS.exists():
        sys.path.insert(0, str(ROOT / "scripts"))
        from make_mimi_weights import V01, tensors
        from safetensors.numpy import save_file

        print(f"Making {WEIGHTS.name}", flush=True)
        WEIGHTS.parent.mkdir(exist_ok=True)
        part = WEIGHTS.with_suffix(".part")
        save_file(tensors(V01, 7), part)
        part.rename(WEIGHTS)
    return WEIGHTS


@contextlib.contextmanager
def recording() -> Iterator[Path]:
    """Yield a file with the recording as float32, cut to whole frames."""
    pcm, _ = soundfile.read(DIGITS, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pcm.npy"
        np.save(path, pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE])
        yield path


def run(contenders: list[Contender], weights: Path, frames: int, warm_up: int, loads: int) -> dict[str, Any]:
    """Let the contenders take turns. Return the measurements of ours alone, by number of threads, and facts on the run."""
    result: dict[str, Any] = {"stages": {}, "together": {}, "inputs": {}, "ages": {}, "reading": {}}
    with contextlib.ExitStack() as stack:
        pcm = stack.enter_context(recording())
        workers: list[Process] = []
        for turn in range(loads):
            # The first in a turn may find the machine in another state than the others, so each is first in turn.
            first = turn % len(contenders)
            processes = {}
            for contender in contenders[first:] + contenders[:first]:
                processes[contender.name] = process = contender.start(weights, pcm)
                stack.callback(process.close)
                touch_memory()
                contender.loads.append(process.ask("load"))
                if turn < loads - 1:
                    process.close()
            workers = [processes[contender.name] for contender in contenders]
        ours = [(c, w) for c, w in zip(contenders, workers, strict=True) if c.kind == "ours"]
        result["config"] = config = ours[0][1].ask("config")
        if config["sample_rate"] / config["frame_rate"] != FRAME_SIZE:
            raise InputError(f"{printable(weights.name)} has other frames than those of {FRAME_SIZE} samples.")
        with contenders[0].start(weights, pcm) as fresh:  # so that its codes are those of the recording's beginning
            fresh.ask("load")
            codes = fresh.ask("codes", count=CODES)
        for worker in workers:
            worker.ask("take_codes", codes=codes)
        machine = {
            c.threads: stack.enter_context(Process("numpy", c.python, WORKER, c.threads, "machine")) for c, _ in ours
        }
        size = result["weights_size"] = round(weights_size(config, contenders[0].weights))
        reading = result["reading"] = {threads: [] for threads in machine}
        limits = {threads: {"product": 0.0, "read": 0.0} for threads in machine}

        def look_at_machine(times: int) -> None:
            for threads, process in machine.items():
                limit = limits[threads]
                limit["product"] = max(limit["product"], process.ask("product", threads=threads))
                seconds = process.ask("read", threads=threads, size=size, times=times)
                limit["read"] = max(limit["read"], size / seconds)

        look_at_machine(3)
        seconds = {c.threads: {way: dict.fromkeys(STAGES, 0.0) for way in WAYS} for c, _ in ours}
        for worker in workers:
            for way in WAYS:
                worker.ask(way, count=warm_up)
        clock = Clock(workers)
        for at in range(0, frames, BLOCK):
            for threads, process in machine.items():
                reading[threads].append(process.ask("read", threads=threads, size=size))
            for contender, worker in zip(contenders, workers, strict=True):
                before = worker.ask("stages") if contender.kind == "ours" else None
                for way in WAYS:
                    contender.times[way] += worker.ask(way, count=min(BLOCK, frames - at))
                if before:
                    after = worker.ask("stages")
                    for way in WAYS:
                        for stage in STAGES:
                            seconds[contender.threads][way][stage] += after[way][stage] - before[way][stage]
        result["busy_elsewhere"] = {"in turns": clock.busy_elsewhere()}
        for contender, worker in zip(contenders, workers, strict=True):
            contender.peak = worker.ask("peak")
        for contender, worker in ours:
            threads = contender.threads
            result["stages"][threads] = {
                way: {stage: s / frames for stage, s in stages.items()} for way, stages in seconds[threads].items()
            }
            runs = [worker.ask("together", count=BLOCK) for _ in range(max(1, frames // BLOCK // 2))]
            result["together"][threads] = {key: median(r[key] for r in runs) / BLOCK for key in (*WAYS, "both")}
            result["together"][threads]["reads"] = machine[threads].ask("reads_together", threads=threads)
            kinds = worker.ask("inputs", count=max(BLOCK, frames // 2))
            result["inputs"][threads] = {kind: medians(times) for kind, times in kinds.items()}
            ages = worker.ask("ages", count=frames, ages=AGES)
            result["ages"][threads] = dict(zip(AGES, map(medians, ages), strict=True))
        result["busy_elsewhere"]["afterwards"] = clock.busy_elsewhere()
        look_at_machine(3)
        result["machine"] = limits
    return result


def touch_memory(size: int = 1 << 30) -> None:
    """Use and free some memory, so that the next load gets pages that are there.

    A virtual machine often has to ask its host for pages that were free for a while. That takes several times as long as the
    rest of loading.
    """
    np.ones(size, np.uint8)


class Clock:
    """Measures how much of the machine other programs take while the workers are measured."""

    def __init__(self, workers: list[Process]) -> None:
        self._workers = workers
        self._last = self._read()

    def busy_elsewhere(self) -> float | None:
        """Return how many processors worked for other programs since the last call, on average. None: not known."""
        (then, before), (now, after) = self._last, self._read()
        self._last = now, after
        return None if before is None or after is None else max(0.0, after - before) / (now - then)

    def _read(self) -> tuple[float, float | None]:
        try:
            numbers = list(map(int, Path("/proc/stat").read_text().split()[1:9]))
            stats = [Path(f"/proc/{w.pid}/stat").read_text().rpartition(")")[2].split() for w in self._workers]
        except OSError:
            return perf_counter(), None
        busy = sum(numbers) - numbers[3] - numbers[4]  # less idle, and waiting for disks
        return perf_counter(), (busy - sum(int(s[11]) + int(s[12]) for s in stats)) / os.sysconf("SC_CLK_TCK")


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {way: median(seconds) for way, seconds in times.items()}


def weights_size(config: dict[str, Any], weights: str) -> float:
    """Return the bytes of the weights that a frame reads in both directions."""
    stages = costs(config, 0, weights)
    return sum(read for way in WAYS for _, read in stages[way].values())


def costs(config: dict[str, Any], window: float, weights: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the operations and bytes of a frame, by direction and stage, counted as the module's docstring says.

    `window` is the number of steps that a step of the transformer sees, on average. `weights` is how matrices are held.
    """
    bytes_each = 2 if weights == "float16" else 4
    d, filters, compress = config["dimension"], config["n_filters"], config["compress"]
    rate = config["sample_rate"] / config["frame_rate"]  # samples a frame

    def conv(into: float, out: float, kernel: float, places: float) -> tuple[float, float]:
        return 2 * places * into * out * kernel, bytes_each * into * out * kernel

    def add(*parts: tuple[float, float]) -> tuple[float, float]:
        operations, read = zip(*parts, strict=True)
        return sum(operations), sum(read)

    def block(channels: float, places: float) -> tuple[float, float]:
        narrow = channels // compress
        return add(conv(channels, narrow, config["residual_kernel_size"], places), conv(narrow, channels, 1, places))

    ends = conv(filters * config["channels"], 1, config["kernel_size"], rate)
    inner = conv(filters * config["channels"], 1, config["last_kernel_size"], rate)
    down, up, channels, places = [ends], [inner], filters, rate
    for ratio in reversed(config["ratios"]):
        # The decoder's transposed convolution is the same in reverse: each place on the slower side uses every weight.
        resample = conv(channels, 2 * channels, 2 * ratio, places / ratio)
        down += [block(channels, places), resample]
        up += [block(channels, places), resample]
        channels, places = 2 * channels, places / ratio
    down.append(conv(channels, d, config["last_kernel_size"], places))
    up.append(conv(channels, d, config["kernel_size"], places))

    steps = places  # at the transformer's rate
    layer = add(
        conv(4 * d + 2 * config["dim_feedforward"], d, 1, steps),
        (steps * 2 * 2 * window * d, 4 * 2 * window * d),
    )
    transformer = add(*[layer] * config["num_layers"])

    codebooks, width = config["num_codebooks"], config["codebook_dim"]
    projections = conv(d, width, 1, 1 if codebooks == 1 else 2)
    if codebooks > 1:
        projections = projections[0], 2 * projections[1]
    search = 2.0 * config["bins"] * width, 4.0 * config["bins"] * width
    lookup = (float(width), 4.0 * width)
    return {
        "encode": {
            "seanet": add(*down),
            "transformer": transformer,
            "quantizer": add(conv(d, d, 4, 1), projections, *[search] * codebooks),
        },
        "decode": {
            "seanet": add(*up),
            "transformer": transformer,
            "quantizer": add(conv(d, 1, 4, 1), projections, *[lookup] * codebooks),
        },
    }


def aims(contenders: list[Contender], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the aims, each with its figure in this run. Those that compare with the peer are there only if it ran."""
    found: list[dict[str, Any]] = []

    def want(name: str, value: float, limit: float, least: bool = False) -> None:
        met = value >= limit if least else value <= limit
        found.append({"name": name, "value": value, "limit": limit, "least": least, "met": met})

    ours = {c.threads: c for c in contenders if c.kind == "ours"}
    peers = [c for c in contenders if c.kind == "peer"]
    if peers:
        best = min(peers, key=lambda c: c.total)
        for threads, times in ((1, 4.0), (2, 7.0)):
            if threads in ours:
                name = f"times as fast as the peer at its best, {ours[threads].name}"
                want(name, best.total / ours[threads].total, times, least=True)
    for contender in ours.values():
        reading = median(result["reading"][contender.threads])
        want(f"of the time to read the weights, {contender.name}", contender.total / reading, 1.3)
        if peers:
            want(f"of the peer's memory, {contender.name}", contender.peak / min(c.peak for c in peers), 0.6)
            want(f"of the peer's time to load, {contender.name}", contender.load / min(c.load for c in peers), 0.5)
        for way in WAYS:
            spread = contender.spread(way)
            want(f"p99 / median, {way}, {contender.name}", spread["p99"] / spread["p50"], 1.5)
        kinds = result["inputs"][contender.threads]
        worst = max(kinds[kind][way] / kinds["speech"][way] for kind in kinds for way in WAYS)
        want(f"of speech: the slowest of silence, denormals and a square wave, {contender.name}", worst, 1.5)
        young, old = (result["ages"][contender.threads][age] for age in AGES)
        worst = max(old[way] / young[way] for way in WAYS)
        want(f"at frame {AGES[1]:,} of frame {AGES[0]:,}, {contender.name}", worst, 1.1)
        both = result["together"][contender.threads]
        slower = max(both[way] for way in WAYS)
        if 2 * contender.threads <= (os.cpu_count() or 1):  # with fewer cores they cannot but wait for each other
            # Both are bound by memory: what two plain reads at once lose here, they cannot but lose.
            limit = max(1.1, both["reads"])
            want(
                f"of the slower one: encoder and decoder at the same time, {contender.name}",
                both["both"] / slower,
                limit,
            )
    if 1 in ours and 2 in ours:
        want("of one thread's time, two threads", ours[2].total / ours[1].total, 1.0)
    return found


def report(contenders: list[Contender], result: dict[str, Any]) -> None:
    """Print the tables."""
    peers = [c for c in contenders if c.kind == "peer"]
    busy = [f"{share:.2f} {when}" for when, share in result["busy_elsewhere"].items() if share is not None]
    if busy:
        print(f"Cores that worked for others meanwhile: {', '.join(busy)}")
    peer = min((c.total for c in peers), default=None)
    columns = "".join(f"{column:>8}" for _ in WAYS for column in ("p50", "p95", "p99", "min"))
    print(f"\n{'ms a frame':<28}{'encode':>8}{'':24}{'decode':>8}{'':24}")
    print(f"{'':<28}{columns}{'sum':>8}{'p99/p50':>12}{'times as fast':>15}")
    for c in contenders:
        spreads = [c.spread(way) for way in WAYS]
        figures = "".join(f"{1000 * s[key]:8.2f}" for s in spreads for key in ("p50", "p95", "p99", "min"))
        tails = "/".join(f"{s['p99'] / s['p50']:.2f}" for s in spreads)
        ratio = f"{peer / c.total:15.2f}" if peer else f"{'-':>15}"
        print(f"{c.name:<28}{figures}{1000 * c.total:8.2f}{tails:>12}{ratio}")
    least_load, least_peak = (min((getattr(c, k) for c in peers), default=None) for k in ("load", "peak"))
    print(f"\n{'':<28}{'load, ms':>12}{'of peer':>10}{'peak, MB':>12}{'of peer':>10}")
    for c in contenders:
        load, peak = (f"{v / w:10.2f}" if w else f"{'-':>10}" for v, w in ((c.load, least_load), (c.peak, least_peak)))
        print(f"{c.name:<28}{1000 * c.load:12.0f}{load}{c.peak / 1e6:12.0f}{peak}")
    print(
        "load: from the call to the first encoded frame; peak: resident memory of the process, Python and numpy included"
    )

    for c in contenders:
        if c.kind != "ours":
            continue
        limits = result["machine"][c.threads]
        rates = f"product {limits['product'] / 1e9:.0f} GFLOP/s, read {limits['read'] / 1e9:.1f} GB/s"
        print(f"\n{c.name}; numpy with as many on this machine now: {rates}")
        print(f"{'':<22}{'ms':>8}{'GFLOP':>8}{'MB':>8}{'GFLOP/s':>10}{'of it':>7}{'GB/s':>8}{'of it':>7}")
        for way in WAYS:
            for stage in STAGES:
                seconds = result["stages"][c.threads][way][stage]
                operations, read = result["costs"][way][stage]
                speed, flow = operations / seconds, read / seconds
                cost = f"{1000 * seconds:8.2f}{operations / 1e9:8.3f}{read / 1e6:8.1f}"
                shares = (
                    f"{speed / 1e9:10.1f}{speed / limits['product']:7.0%}{flow / 1e9:8.1f}{flow / limits['read']:7.0%}"
                )
                print(f"{way + ', ' + stage:<22}{cost}{shares}")
        reading, size = result["reading"][c.threads], result["weights_size"]
        best = sum(c.spread(way)["min"] for way in WAYS)
        print(
            f"A frame takes {c.total / median(reading):.2f} times as long as reading its weights, {size / 1e6:.0f} MB: "
            f"{1000 * c.total:.2f} ms of {1000 * median(reading):.2f} ms (medians), "
            f"{1000 * best:.2f} of {1000 * min(reading):.2f} at best"
        )
        both = result["together"][c.threads]
        alone = [both[way] for way in WAYS]
        print(f"At the same time from two Python threads: {1000 * both['both']:.2f} ms a frame;", end=" ")
        print(
            f"alone {1000 * alone[0]:.2f} and {1000 * alone[1]:.2f}: {both['both'] / max(alone):.2f} of the slower one,",
            end=" ",
        )
        print(
            f"{both['both'] / sum(alone):.2f} of their sum (two plain reads of memory at once: {both['reads']:.2f} of one)"
        )
        kinds = result["inputs"][c.threads]
        for kind, times in kinds.items():
            shares = ", ".join(
                f"{way} {1000 * times[way]:.2f} ms ({times[way] / kinds['speech'][way]:.2f})" for way in WAYS
            )
            print(f"On {kind}: {shares}")
        for age, times in result["ages"][c.threads].items():
            print(f"At frame {age:,}: " + ", ".join(f"{way} {1000 * times[way]:.2f} ms" for way in WAYS))

    print()
    for aim in result["aims"]:
        word = "at least" if aim["least"] else "at most"
        verdict = "met" if aim["met"] else "NOT met"
        print(f"{aim['value']:6.2f} {aim['name']}: wanted {word} {aim['limit']:g}, {verdict}")
    if any(share and share > QUIET for share in result["busy_elsewhere"].values()):
        print("The machine was not quiet: others worked on it, see above.")
    if not peers:
        print("The peer was not run; --peer measures it, too.")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", metavar="FILE", help="measure this codec (default: full-size random weights, made in .cache)"
    )
    count: dict[str, Any] = {"metavar": "N", "type": whole(1)}
    parser.add_argument(
        "--codec-weights",
        choices=("float32", "float16"),
        default="float32",
        help="hold our codec's weights as this (default: %(default)s)",
    )
    parser.add_argument(
        "--frames", default=100, help="measure N frames in each direction (default: %(default)s)", **count
    )
    parser.add_argument("--warm-up", default=20, help="run N frames before them (default: %(default)s)", **count)
    parser.add_argument(
        "--threads", default=[1, 2], nargs="+", help="measure with each number of threads (default: 1 2)", **count
    )
    parser.add_argument("--loads", default=3, help="measure loading in N processes (default: %(default)s)", **count)
    parser.add_argument(
        "--peer", action="store_true", help=f"measure rustymimi {PEER_VERSION}, too; install it if need be"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    given = user_path(args.weights) if args.weights else None
    output = user_path(args.json) if args.json else None
    check_outputs([output] if output else [], [given or WEIGHTS])
    weights = given or make_weights()
    try:
        with weights.open("rb") as file:
            while file.read(1 << 24):  # all of them find it in the system's cache
                pass
    except OSError as error:
        raise InputError(f"{printable(str(weights))} cannot be read: {error.strerror}.") from None

    threads = sorted(set(args.threads))
    contenders = [Contender("ours", n, Path(sys.executable), args.codec_weights) for n in threads]
    if args.peer:
        python = make_peer("rustymimi", PEER_VERSION)
        contenders += [Contender("peer", n, python) for n in threads]
    print(
        f"{printable(weights.name)} on {platform.machine()}, {os.cpu_count()} cores",
        end="; ",
    )
    print(f"{args.frames} frames of 80 ms after {args.warm_up}, in turns of {BLOCK}", flush=True)
    result = run(contenders, weights, args.frames, args.warm_up, args.loads)
    config = result["config"]
    # Two steps a frame; loading has encoded one.
    window = np.mean([min(config["context"], 2 * (1 + args.warm_up + i) + 1.5) for i in range(args.frames)])
    result["costs"] = costs(config, float(window), args.codec_weights)
    result["aims"] = aims(contenders, result)
    report(contenders, result)
    if output:
        facts = {"weights": weights.name, "machine_kind": platform.machine(), "cores": os.cpu_count()}
        facts |= {"frames": args.frames, "warm_up": args.warm_up, "peer": args.peer, "precision": args.codec_weights}
        figures = {**facts, "contenders": [c.summary() for c in contenders], **result}
        output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
