"""Measure how many times faster than real time recordings are written down, by how many are heard at once.

The demo model hears the demo's recording again and again, from sound to words; what the codec and the model take is told apart.
For the published shape "stt-1b" the model alone is measured, with seeded random weights of 8 and 4 bits and random codes, in a
stream as long as its window. A figure is the best of some rounds, which take turns, so that other load on the machine affects
all alike. The program says how many rows are the fastest, and exits with 0, whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
from families import SHAPES
from processes import ROOT

from msh_mlx import LmConfig, load_lm, load_mimi, load_tokenizer
from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.conversation.transcriber import transcribe
from msh_mlx.format import FRAME_SECONDS, SAMPLE_RATE, Pcm
from msh_mlx.model.engines import ENGINES, prepare, random_lm
from msh_mlx.sound.recordings import open_recording
from msh_mlx.system.newfile import NewFile, check_outputs
from msh_mlx.system.places import user_path

DEMO = ROOT / "assets" / "demo"
ROWS = (1, 4, 8, 16)
GROUP = 32
SEED = 5
SHAPE = LmConfig.from_dict(SHAPES["stt-1b"])


def demo(repeats: int, engine: str) -> Callable[[int], float]:
    """Return a function that hears recordings, so many at once, and returns how many times faster than real time."""
    lm = load_lm(DEMO / "stt" / "model.safetensors", DEMO / "stt" / "config.json", engine=engine)
    mimi, tokenizer = load_mimi(DEMO / "mimi.safetensors"), load_tokenizer(DEMO / "tokenizer.model")
    with open_recording(str(DEMO / "digits.flac")) as recording:
        pcm = np.concatenate(list(recording.blocks()))

    def sound() -> Iterator[Pcm]:
        yield from [pcm] * repeats

    def hear(rows: int) -> float:
        begin = perf_counter()
        for _ in transcribe(lm, mimi, tokenizer, (sound() for _ in range(max(ROWS))), rows=rows):
            pass
        return max(ROWS) * repeats * len(pcm) / SAMPLE_RATE / (perf_counter() - begin)

    return hear


def shape(bits: int, steps: int, engine: str) -> Callable[[int], float]:
    """Return a function that runs steps of a model with random weights, and returns how many times faster than real time."""
    lm = random_lm(SHAPE, bits, GROUP, SEED, engine)
    codes = np.random.default_rng(SEED).integers(0, SHAPE.card, (1 + steps, max(ROWS), SHAPE.n_q))

    def hear(rows: int) -> float:
        listeners = lm.listen(rows)
        listeners.hear(np.full((1, rows, SHAPE.n_q), SHAPE.card))
        listeners.hear(codes[:1, :rows])
        begin = perf_counter()
        listeners.hear(codes[1:, :rows])
        return rows * steps * FRAME_SECONDS / (perf_counter() - begin)

    return hear


def measure(name: str, hear: Callable[[int], float], rows: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Measure one model, and print a line."""
    best = dict.fromkeys(rows, 0.0)
    for _ in range(rounds):
        for count in rows:
            best[count] = max(best[count], hear(count))
    fastest = max(rows, key=lambda count: best[count])
    listing = ", ".join(f"{best[count]:.3g} ({count})" for count in rows)
    print(f"{name}: {listing} × real time with so many at once; {fastest} is the fastest", flush=True)
    return {"name": name, "speed": best, "fastest": fastest}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=(__doc__ or "").split("\n\n")[0])
    to = parser.group()
    to.value("--rounds", "N", "rounds (default: 2)", type=whole(1), default=2)
    to.value("--repeats", "N", "how often a recording holds the demo's 13 s (default: 1)", type=whole(1), default=1)
    to.value("--steps", "N", "steps of the shape 1b in a round (default: 8)", type=whole(1), default=8)
    to.value("--engine", "NAME", "the engine (default: auto)", choices=ENGINES, default="auto")
    to.flag("--demo", "measure only the demo")
    to.value("--json", "FILE", "keep the figures in this file")
    args = parser.parse_args(argv)
    return guard(lambda _: _measured(args))


def _measured(args: argparse.Namespace) -> int:
    output = user_path(args.json) if args.json else None
    check_outputs([output] if output else [], [])
    engine = prepare(args.engine)
    found = [measure("demo, sound to words", demo(args.repeats, engine), ROWS, args.rounds)]
    for bits in () if args.demo else (8, 4):
        found.append(measure(f"1b, {bits} bits, the model alone", shape(bits, args.steps, engine), ROWS, args.rounds))
    if output:
        with NewFile(output) as new:
            new.file.write(json.dumps(found, indent=1).encode() + b"\n")
            new.commit()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
