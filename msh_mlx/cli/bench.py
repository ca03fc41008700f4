"""`msh-mlx bench`: measure a model on this machine."""

from __future__ import annotations

import json

from ..errors import InputError
from ..system.signals import Signals
from ..system.streams import check_output
from .choice import add_weights, named_files
from .options import Parser, add_config, add_printing, display, whole
from .program import interruptible


def _parser() -> Parser:
    parser = Parser(
        prog="msh-mlx bench",
        description="Measure how fast a model is on this machine, and print a table to paste. "
        "Without --model or --size it is the small model that comes with the program.",
    )
    add = parser.add_argument
    add(
        "--variant", metavar="NAME", help="a model of the catalogue, with its codec; it is fetched if it is not on disk"
    )
    add_weights(add)
    add("--model", metavar="FILE", help="the language model (.safetensors)")
    add("--mimi", metavar="FILE", help="the codec (.safetensors), to be measured, too")
    add_config(add)
    add("--quantized", type=int, choices=(4, 8), help="insist that the model has so many bits")
    add("--size", choices=("7b", "1b"), help="random weights of this size, made in memory, in place of a model")
    add("--bits", type=int, choices=(4, 6, 8, 16), help="of the random weights (default: 4)")
    add("--steps", metavar="N", type=whole(1, 1_000_001), default=100, help="to measure (default: %(default)s)")
    add("--kv-bits", type=int, choices=(8,), help="keep keys and values in 8 bits")
    add_printing(add)
    return parser


def run(arguments: list[str], signals: Signals) -> int:
    args = _parser().parse_args(arguments)
    if args.variant and (args.model or args.mimi or args.config or args.size):
        raise InputError("--variant brings its own files; leave --model, --mimi, --config and --size out.")
    if args.size and (args.model or args.config or args.quantized):
        raise InputError("--size makes a model; leave --model, --config and --quantized out.")
    if args.bits and not args.size:
        raise InputError("--bits is for random weights; give --size with it.")
    if (args.config or args.quantized) and not (args.model or args.variant):
        raise InputError("--config and --quantized are for a model; give one with --model.")
    from ..bench import SIZES, measure, random_lm
    from ..conversation.codec import load_mimi
    from ..library.files import find_demo
    from ..model.config import LmConfig
    from ..model.step import check_compiling
    from ..system.memory import set_limits
    from ..system.newfile import existing
    from ..weights.beside import find_config
    from ..weights.checkpoint import default_dtype, load_lm

    check_output()
    check_compiling()
    set_limits()
    codec = existing(args.mimi, "codec") if args.mimi is not None else None
    with display(args) as shown:
        if args.size:
            bits = args.bits or 4
            config, name = SIZES[args.size], f"{args.size}, random weights"
            with shown.progress(f"Making {name}") as progress:
                group = 32 if bits == 4 else 64
                lm = random_lm(config, bits, group, 0, default_dtype(), interruptible(progress, signals))
        else:
            if args.model:
                model = existing(args.model, "model")
                given = existing(args.config, "configuration") if args.config is not None else find_config(model)
            else:
                files = named_files(args, signals) if args.variant else find_demo()
                model, given, codec = files.model, files.config, codec or files.mimi
            config, name = LmConfig.of(given), model.name
            with shown.progress(f"Loading {name}") as progress:
                lm = load_lm(model, config, quantized=args.quantized, progress=interruptible(progress, signals))
        mimi = load_mimi(codec, num_codebooks=max(config.dep_q, config.user_q)) if codec else None
        with shown.progress("Measuring") as progress:
            outcome = measure(
                lm, name, mimi, steps=args.steps, kv_bits=args.kv_bits, progress=interruptible(progress, signals)
            )
    print(json.dumps(outcome.as_dict(), ensure_ascii=False) if args.json else outcome.table())
    return 0
