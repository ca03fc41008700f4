"""Measure the models of the family: speech to text, text to speech, translation, and the beginning of PersonaPlex.

Each contender is a process of its own: ours, and with --peer the package moshi-mlx, in an environment in .cache. They load the
same seeded random weights of a published shape (4 bits in groups of 32, what else there is in bfloat16), hear the same codes or
say the same words, and take turns, some steps each, so that other load on the machine affects all alike. The figures are
medians. A step makes 80 ms of sound. What a step reads is counted from the weights, each matrix once, and is given beside how
fast the machine reads its memory, measured in this run.

Text to speech is measured in three ways (word_machine.py): as the program runs it, in two halves with one wait; with two waits;
and with the word machine on the device; also with the small model that comes with the program.

PersonaPlex: what the depformer costs with 8 and with 16 codebooks; how long a conversation takes to its first answer, after a
prompt step by step, at once, or kept; and how many frames ours is ahead of the original's order of the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from lm import PEER_VERSION, SEED
from processes import ROOT, Process, make_peer

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.format import FRAME_SECONDS
from msh_mlx.system.newfile import NewFile, check_outputs
from msh_mlx.system.places import user_path

WORKER = Path(__file__).with_name("families_worker.py")
BITS, GROUP = 4, 32
EVERY = {
    "causal": True, "layer_scale": None, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 64, "depformer_max_period": 10000,
    "depformer_gating": "silu", "depformer_pos_emb": "none", "depformer_weights_per_step": True, "hidden_scale": 4.125,
    "existing_text_padding_id": 3, "card": 2048, "dim": 2048, "num_heads": 16, "num_layers": 16,
    "depformer_dim": 1024, "depformer_num_heads": 16, "depformer_num_layers": 6, "depformer_dim_feedforward": 4224,
}  # fmt: skip
# The published shapes. Hibiki's condition is left out: it adds one vector to the input.
SHAPES: dict[str, dict[str, Any]] = {
    "stt-1b": {
        **EVERY, "model_type": "stt", "n_q": 32, "dep_q": 0, "delays": [0] * 33, "text_card": 8000, "context": 750,
        "max_period": 100000, "extra_heads_num_heads": 4, "extra_heads_dim": 6, "depformer_dim_feedforward": None,
        "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    },
    "tts-1.6b": {
        **EVERY, "model_type": "tts", "n_q": 32, "dep_q": 32, "delays": [0, 0] + [2] * 31, "text_card": 8000,
        "context": 500, "max_period": 10000, "depformer_num_layers": 4, "depformer_dim_feedforward": 3072,
        "depformer_weights_per_step_schedule": [*range(8), *(8 + i // 8 for i in range(24))],
        "depformer_low_rank_embeddings": 128, "demux_second_stream": True, "cross_attention": True,
        "conditioners": {
            "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
            "cfg": {"type": "lut", "lut": {"n_bins": 7, "dim": 16, "tokenizer": "noop", "possible_values": [
                "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]}},
            "control": {"type": "lut", "lut": {"n_bins": 1, "dim": 2048, "tokenizer": "noop", "possible_values": ["ok"]}},
        },
        "fuser": {"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 1, "sum": ["control", "cfg"],
                  "prepend": [], "cross": ["speaker_wavs"]},
        "tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2}, "model_id": {"sig": "0", "epoch": 1},
    },
    "hibiki-1b": {
        **EVERY, "model_type": "hibiki", "n_q": 16, "dep_q": 8, "delays": [0, *([0] + [2] * 7) * 2], "text_card": 48000,
        "context": 500, "max_period": 100000,
    },
    "hibiki-2b": {
        **EVERY, "model_type": "hibiki", "n_q": 32, "dep_q": 16, "delays": [0, *([0] + [2] * 15) * 2], "text_card": 48000,
        "context": 1500, "max_period": 100000, "dim": 2560, "num_layers": 24, "num_heads": 20,
        "depformer_num_layers": 4, "depformer_dim_feedforward": 3072, "depformer_low_rank_embeddings": 128,
        "depformer_weights_per_step_schedule": [*range(8), *[8] * 8],
    },
}  # fmt: skip
# Of --quick: the same numbers of codebooks and slices, and hardly any width.
SMALL = {
    "dim": 64, "num_heads": 2, "num_layers": 2, "card": 512, "text_card": 512, "depformer_dim": 32, "depformer_num_heads": 2,
    "depformer_num_layers": 2, "depformer_low_rank_embeddings": 32,
}  # fmt: skip
SPEECH = ROOT / "assets" / "demo" / "tts"
DEMO = "tts-demo"  # the small model that comes with the program
PERSONA = ROOT / "assets" / "demo" / "persona"
GOLDEN = ROOT / "tests" / "golden" / "personaplex-small"


# ---- steps -----------------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One way to run one model. Times are in seconds."""

    name: str
    kind: str
    python: Path
    dtype: str
    times: list[float] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    read: int | None = None

    @property
    def step(self) -> float:
        """The median step."""
        return median(self.times)


def family_of(name: str) -> str:
    """Return the family of a shape."""
    return "tts" if name == DEMO else str(SHAPES[name]["model_type"])


def shape(name: str, quick: bool) -> dict[str, Any]:
    """Return the configuration of a shape, with hardly any width if it has to be `quick`."""
    values = SHAPES[name]
    if quick:
        values = {key: SMALL.get(key, value) for key, value in values.items()}
        if values["depformer_dim_feedforward"]:
            values["depformer_dim_feedforward"] = 96
        if "conditioners" in values:
            control = values["conditioners"]["control"]
            control = {**control, "lut": {**control["lut"], "dim": values["dim"]}}
            values["conditioners"] = {**values["conditioners"], "control": control}
    return values


def fits(name: str, module: Any) -> bool:
    """Tell whether a module's rows are a whole number of groups, so that it can be packed."""
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP == 0


def make_model(name: str, quick: bool) -> tuple[Path, Path, Path]:
    """Make a seeded random model in .cache if it is not there. Return the files of its weights, configuration and voice.

    The model that comes with the program is there. Of a model that does not speak, there is no file of a voice.
    """
    if name == DEMO:
        (voice, *_) = sorted(SPEECH.glob("voices/*.safetensors"))
        return SPEECH / "model.safetensors", SPEECH / "config.json", voice
    values = shape(name, quick)
    folder = ROOT / ".cache"
    folder.mkdir(exist_ok=True)
    weights = folder / f"family-{name}{'-small' if quick else ''}-seed{SEED}.safetensors"
    description = weights.with_suffix(".json")
    description.write_text(json.dumps(values) + "\n")
    voice = weights.with_suffix(".voice.safetensors")
    if weights.exists():
        return weights, description, voice
    import mlx.core as mx

    from msh_mlx.model.config import LmConfig
    from msh_mlx.model.mlx.random import random_model
    from msh_mlx.model.parameters import CONDITIONS

    print(f"Making {weights.name}", flush=True)
    config = LmConfig.from_dict(values)

    def packed(module: str, part: Any) -> bool:
        # What the peer packs, too, and what is a whole number of groups.
        parts = ("depformer", "transformer") if config.cross_attention else ("",)
        chosen = module.startswith(parts) and ".cross_attention" not in module
        return chosen and fits(module, part)

    lm = random_model(config, BITS, GROUP, SEED, mx.bfloat16, packed=packed)
    tensors = dict(lm.module.named_parameters())
    tensors |= {f"{CONDITIONS}{name}": mx.array(array) for name, array in lm.conditions._weights.items()}
    # In a file of this layout, each codebook has a copy of the weights that it shares.
    numbers = config.slices[: config.dep_q]
    for k, number in enumerate(numbers):
        owner = f"depformer.slices.{numbers.index(number)}."
        for tensor, array in list(tensors.items()):
            rest = tensor.removeprefix(owner)
            if rest != tensor and rest.startswith(("linear_in.", "transformer.")):
                tensors[f"depformer.slices.{k}.{rest}"] = array
    if "speaker_wavs" in config.conditioners:
        rows = np.random.default_rng(SEED).standard_normal((1, config.conditioners["speaker_wavs"].dim, 125))
        mx.save_safetensors(str(voice), {"speaker_wavs": mx.array(rows, mx.float32)})
    part = weights.with_suffix(".part.safetensors")
    mx.save_safetensors(str(part), tensors)
    part.rename(weights)
    return weights, description, voice


def compare(name: str, contenders: list[Contender], steps: int, quick: bool) -> None:
    """Let the contenders take turns with one model, a few steps each."""
    family, files = family_of(name), make_model(name, quick)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Process(c.name, c.python, WORKER, None, c.kind, family, *files, c.dtype))
            for c in contenders
        ]
        for contender, worker in zip(contenders, workers, strict=True):
            contender.read = worker.ask("start")["read"]
        block = min(steps, 4)
        turn = deque(zip(contenders, workers, strict=True))
        while len(contenders[0].times) < steps:
            for contender, worker in turn:
                # A peer's step takes several times as long.
                contender.times += worker.ask("steps", count=1 if contender.kind == "peer" else block)
            turn.rotate(1)  # so that none always finds the caches as the same other has left them
        ours = [worker.ask("said") for c, worker in zip(contenders, workers, strict=True) if c.kind != "peer"]
        assert all(said == ours[0] for said in ours), "two ways to run one model say different things"
        for contender, worker in zip(contenders, workers, strict=True):
            contender.counts = worker.ask("count", count=1)


# ---- PersonaPlex -----------------------------------------------------------------------------------------------------------


def depformers(quick: bool, times: int = 9) -> dict[int, float]:
    """Return the median seconds of a depformer of the published shape, 4 bits, by the number of codebooks it goes on to."""
    import mlx.core as mx

    from msh_mlx.model.architecture import Architecture
    from msh_mlx.model.mlx.layers import default_dtype
    from msh_mlx.model.mlx.random import random_model

    sizes = {"dim": 64, "num_heads": 2, "depformer_dim": 32, "depformer_num_heads": 2} if quick else {}
    width = 96 if quick else 4224
    functions, h = {}, mx.random.normal((1, sizes.get("dim", 4096)), default_dtype(), key=mx.random.key(SEED))
    for count in (8, 16):
        config = Architecture(num_layers=1, text_card=96, n_q=16, dep_q=count, depformer_dim_feedforward=width, **sizes)
        lm = random_model(config, BITS, GROUP, SEED, default_dtype(), packed=fits).module

        def run(h: mx.array, text: mx.array, lm: Any = lm) -> mx.array:
            return mx.concatenate(lm.depformer(h, text, lambda logits, k: mx.argmax(logits, axis=-1)))

        functions[count] = mx.compile(run)
    taken: dict[int, list[float]] = {count: [] for count in functions}
    for _ in range(times):
        for count, function in functions.items():
            begin = perf_counter()
            mx.eval(function(h, mx.array([3])))
            taken[count].append(perf_counter() - begin)
    return {count: median(seconds[1:]) for count, seconds in taken.items()}


def starts(times: int = 3) -> dict[str, float]:
    """Return the median seconds from a prompt's columns to the first answer, of the small persona, by what was done before."""
    from msh_mlx import LmGen, load_lm
    from msh_mlx.model.families import personaplex
    from msh_mlx.model.grid import Prompt
    from msh_mlx.model.prefill import prefill

    lm = load_lm(PERSONA / "model.q8.safetensors", PERSONA / "config.json", engine="mlx")
    config, rng = lm.config, np.random.default_rng(SEED)
    silence, sine = personaplex.prompt_codes(config)
    voice = rng.integers(0, config.card, (config.dep_q, 50))
    text = rng.integers(4, config.text_card, 40).tolist()
    prompt = personaplex.prompt(config.streams, config.existing_text_padding_id, silence, sine, voice=voice, text=text)
    codes = np.zeros(config.user_q, np.int32)

    def first(gen: LmGen) -> None:
        gen.step(codes)

    def stepwise() -> None:
        gen = LmGen(lm, seed=1)
        for _ in range(len(prompt.columns) - config.max_delay - 1):
            gen.step(codes)
        gen.step(codes)

    ways = {
        "step by step": stepwise,
        "at once": lambda: first(LmGen(lm, seed=1, prompt=Prompt(prompt.columns))),
        "kept": lambda: first(LmGen(lm, seed=1, prompt=kept)),
        "no prompt": lambda: first(LmGen(lm, seed=1)),
    }
    kept = prefill(lm, prompt)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(times + 1):  # the first compiles
        for way, run in ways.items():
            begin = perf_counter()
            run()
            taken[way].append(perf_counter() - begin)
    return {"columns": len(prompt.columns), **{way: median(seconds[1:]) for way, seconds in taken.items()}}


def delay() -> int:
    """Return how many frames later the original hands out what ours hands out, by what both answered to the same."""
    import mlx.core as mx

    golden = {name: np.array(array) for name, array in mx.load(str(GOLDEN / "golden.safetensors")).items()}
    ours, theirs = golden["codes.agent_frames"], golden["codes.nvidia_frames"][1:]
    count = ours.shape[1]
    return next(d for d in range(count) if (theirs[:, d:] == ours[:, : count - d]).all())


# ---- the report ------------------------------------------------------------------------------------------------------------


def report(result: dict[str, list[Contender]], reached: float) -> None:
    """Print the tables."""
    print(f"memory is read with {reached / 1e9:.1f} GB/s")
    for name, contenders in result.items():
        print(
            f"\n{name:<32}{'ms a step':>10}{'at best':>9}{'steps/s':>9}{'x real time':>12}{'of bandwidth':>13}", end=""
        )
        print(f"{'times as fast':>15}{'syncs':>7}{'primitives':>12}")
        slowest = contenders[-1].step
        for c in contenders:
            share = f"{c.read / c.step / reached:13.0%}" if c.read else f"{'':13}"
            times = f"{1000 * c.step:10.1f}{1000 * min(c.times):9.1f}{1 / c.step:9.2f}{FRAME_SECONDS / c.step:12.2f}"
            print(f"{c.name:<32}{times}{share}", end="")
            print(f"{slowest / c.step:15.2f}{c.counts['syncs']:7.1f}{c.counts['primitives']:12.0f}")


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", choices=(*SHAPES, DEMO), default=[*SHAPES, DEMO], help="measure these (default: all)"
    )
    parser.add_argument(
        "--steps", metavar="N", type=whole(1), default=8, help="measure N of our steps (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="give the shapes hardly any width: only to see that all runs"
    )
    parser.add_argument("--no-persona", action="store_true", help="leave PersonaPlex out")
    parser.add_argument(
        "--peer", action="store_true", help=f"measure moshi-mlx {PEER_VERSION}, too; install it if need be"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    output = user_path(args.json) if args.json else None
    check_outputs([output] if output else [], [])

    import mlx.core as mx
    from word_machine import WAYS

    from msh_mlx.library.bandwidth import bandwidth
    from msh_mlx.model.mlx.layers import default_dtype

    # On Linux the library itself comes separately.
    others = [*(["mlx-cpu==0.26.5"] if sys.platform == "linux" else []), "mlx==0.26.5"]
    peer = make_peer("moshi_mlx", PEER_VERSION, others) if args.peer else None
    own = str(default_dtype()).removeprefix("mlx.core.")
    reached = bandwidth()
    result: dict[str, list[Contender]] = {}
    for name in args.shapes:
        speaks = family_of(name) == "tts"
        ways = ("ours", *WAYS) if speaks else ("ours",)
        python = Path(sys.executable)
        contenders = [Contender(f"ours, {way}" if way in WAYS else way, way, python, own) for way in ways]
        if peer and name != DEMO:
            contenders.append(Contender(f"moshi-mlx {PEER_VERSION}, bfloat16", "peer", peer, "bfloat16"))
        result[name] = contenders
        compare(name, contenders, 20 * args.steps if name == DEMO else args.steps, args.quick)
    print(f"MLX {mx.__version__} on {mx.default_device()}, {platform.machine()}, {os.cpu_count()} cores")
    report(result, reached)
    figures: dict[str, Any] = {}
    if not args.no_persona:
        figures = {"depformer": depformers(args.quick), "starts": starts(), "delay": delay()}
        half, whole_one = figures["depformer"].values()
        print(
            f"\nPersonaPlex's depformer: {1000 * half:.1f} ms for 8 codebooks, {1000 * whole_one:.1f} ms for 16 ",
            end="",
        )
        print(f"({whole_one / half:.2f} times)")
        begun = figures["starts"]
        print(f"the small persona, a prompt of {begun['columns']} columns, to the first answer: ", end="")
        print(", ".join(f"{way} {1000 * seconds:.0f} ms" for way, seconds in begun.items() if way != "columns"))
        frames = figures["delay"]
        print(f"the original hands out the same frame {frames} frame later, {1000 * frames * FRAME_SECONDS:.0f} ms")
    if not args.peer:
        print("The peer was not run; --peer measures it, too.")
    if output:
        shapes = {name: [{**asdict(c), "python": ""} for c in cs] for name, cs in result.items()}
        machine = {"machine_kind": platform.machine(), "cores": os.cpu_count(), "bandwidth": reached}
        with NewFile(output) as new:
            new.file.write(json.dumps({**machine, "shapes": shapes, "persona": figures}, indent=1).encode() + b"\n")
            new.commit()
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
