"""Measure how a conversation with a persona starts: with a prompt that is read column by column, at once, or was kept.

Four ways lead to the same state, right before the first token: "steps", one step of the model for each column, as the
published programs do it; "prefill", many columns at once; "disk", the keys and values that an earlier conversation has left
there; and "memory", those that an earlier conversation in the same process has left. "keep" is the writing to the disk;
"first" is the step that follows, which all need.

The models: "demo", the persona that comes with the program, and a role of a few words; "7b", random weights of PersonaPlex's
shapes, at 4 bits in groups of 32, with a voice of 50 frames and a prompt of 100 columns (--layers N gives it only N of its 32
layers: a processor computes some seconds for each column of all); or a FOLDER with `config.json` and `lm.safetensors`, with
such a prompt, as long as its window allows. The program exits with 0, whatever the figures are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.conversation.kept import KeptPrompts
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.personas import text_tokens
from msh_mlx.errors import InputError
from msh_mlx.library.files import find_demo
from msh_mlx.model.config import LmConfig
from msh_mlx.model.engine import LanguageModel
from msh_mlx.model.engines import ENGINES, prepare, random_lm
from msh_mlx.model.families import family_of, personaplex
from msh_mlx.model.generate import LmGen
from msh_mlx.model.grid import Prompt
from msh_mlx.model.prefill import first_position, prefill
from msh_mlx.system.newfile import NewFile, check_outputs
from msh_mlx.system.places import user_path
from msh_mlx.system.signals import Signals
from msh_mlx.weights.load import load_lm

VOICE, COLUMNS = 50, 100
ROLE = "say the digits in reverse order"
SEED = 5
GROUP, BITS = 32, 4


@dataclasses.dataclass(frozen=True)
class Start:
    """How long starts take, in seconds: the median of some, by the way (see the module). `columns` are those of the prompt."""

    columns: int
    seconds: dict[str, float]
    kept_bytes: int


def measure_start(lm: LanguageModel, prompt: Prompt, rounds: int = 5, step_rounds: int | None = None) -> Start:
    """Measure how a conversation with a prompt starts, `rounds` times; step by step only `step_rounds` times."""
    config = lm.config
    count = first_position(config, prompt)
    gen = LmGen(lm, seed=0)
    gen.warm_up()
    prefilled = prefill(lm, prompt)
    seconds: dict[str, float] = {}

    def time(way: str, start: Callable[[], object], times: int = rounds) -> None:
        took = []
        for _ in range(times):
            begin = perf_counter()
            start()
            took.append(perf_counter() - begin)
        seconds[way] = median(took)

    def steps() -> None:
        gen.reset()
        for position in range(count):  # its columns are read as any others
            gen._run.step(position, prompt.columns[position], np.zeros(0, np.int32))
            gen._run.take()

    time("steps", steps, step_rounds or rounds)
    time("prefill", lambda: prefill(lm, prompt))
    with tempfile.TemporaryDirectory() as folder:
        kept = KeptPrompts(Path(folder))
        time("keep", lambda: kept.put("a", prefilled, lm, {}))
        (file,) = kept.all()
        time("disk", lambda: kept.get("a", lm, None))
    time("memory", lambda: LmGen(lm, prompt=prefilled, seed=0))
    gen = LmGen(lm, prompt=prefilled, seed=0)

    def first() -> None:
        gen.reset()
        gen.prime()

    first()
    time("first", first)
    return Start(count + 1, seconds, file.size)


def random_prompt(config: LmConfig) -> Prompt:
    """Make a prompt of `COLUMNS` columns, or as many as fit, with random codes and text."""
    random = np.random.default_rng(SEED)
    columns = min(COLUMNS, config.context)
    text = random.integers(4, config.text_card, columns - VOICE - 2 * personaplex.SILENT_FRAMES).tolist()
    voice, silence, sine = (
        random.integers(0, config.card, shape) for shape in ((config.dep_q, VOICE), config.dep_q, config.dep_q)
    )
    return personaplex.prompt(config.streams, config.existing_text_padding_id, silence, sine, voice=voice, text=text)


def demo(engine: str) -> tuple[LanguageModel, Prompt]:
    """Return the demo persona, and a prompt of a role."""
    parts = load_parts(find_demo("persona"), engine=engine)
    config = parts.lm.config
    codes = personaplex.prompt_codes(config)
    text = text_tokens(parts.tokenizer, ROLE)
    return parts.lm, personaplex.prompt(config.streams, config.existing_text_padding_id, *codes, text=text)


def model(name: str, layers: int = 32, engine: str = "auto") -> tuple[LanguageModel, Prompt]:
    """Return the model of a name or a folder, and its prompt. `layers` are those of "7b"."""
    if name == "demo":
        return demo(engine)
    if name == "7b":
        config = LmConfig.from_dict({"model_type": personaplex.NAME, "num_layers": layers})
        lm = random_lm(config, BITS, GROUP, SEED, engine)
    else:
        lm = load_lm(Path(name) / "lm.safetensors", Path(name) / "config.json", engine=engine)
        if (family := family_of(lm.config)).name != personaplex.NAME:
            raise InputError(f"The model in {name} is {family.title}", "give a PersonaPlex")
    return lm, random_prompt(lm.config)


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = Parser(prog="personas.py", description="Measure how a conversation with a persona starts.")
    parser.add_argument("models", metavar="MODEL", nargs="*", default=["demo"], help="demo (default), 7b, or a folder")
    parser.add_argument(
        "--rounds", metavar="N", type=whole(1), default=5, help="measure so often (default: %(default)s)"
    )
    parser.add_argument("--step-rounds", metavar="N", type=whole(1), help="the same for the way step by step")
    parser.add_argument("--layers", metavar="N", type=whole(1, 33), default=32, help="give 7b only N of its 32 layers")
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="compute with this engine (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    return guard(lambda signals: measure(parser.parse_args(), signals))


def measure(args: argparse.Namespace, signals: Signals) -> int:
    """Measure all models, and print a line for each."""
    output = user_path(args.json) if args.json else None
    check_outputs([output] if output else [], [])
    prepare(args.engine)
    figures = {}
    for name in args.models:
        start = measure_start(*model(name, args.layers, args.engine), args.rounds, args.step_rounds)
        signals.check()
        ways = ", ".join(f"{way} {1000 * seconds:.1f}" for way, seconds in start.seconds.items())
        print(
            f"{Path(name).name}: {start.columns} columns, {start.kept_bytes / 1e6:.1f} MB kept; ms: {ways}", flush=True
        )
        figures[name] = dataclasses.asdict(start)
    if output:
        with NewFile(output) as new:
            new.file.write(json.dumps(figures, indent=1).encode() + b"\n")
            new.commit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
