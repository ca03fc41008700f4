"""`msh-mlx bench`: measure a model on this machine."""

from __future__ import annotations

from ..errors import InputError
from ..library.files import config_for, find_demo
from ..system.inputs import existing
from ..system.signals import Signals
from ..system.streams import check_output
from .choice import add_weights, named_files
from .options import (
    Parser,
    add_codec_weights,
    add_config,
    add_engine,
    add_printing,
    add_quantized,
    display,
    print_json,
    whole,
)
from .program import import_mlx


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx bench",
        description="Measure how fast a model is on this machine, and print a table to paste. "
        "Without --variant, --model or --size, measure the demo model.",
    )
    to = parser.group()
    variant = "measure this model of the catalogue, with its codec; it is fetched if it is not on disk"
    to.value("--variant", "NAME", variant)
    add_weights(to)
    to.value("--model", "FILE", "measure the language model in this file (.safetensors)")
    to.value("--mimi", "FILE", "measure the codec in this file, too (.safetensors)")
    add_codec_weights(to)
    add_config(to)
    add_quantized(to)
    to.choice("--size", ("7b", "1b"), "measure random weights of this size, made in memory")
    to.choice("--bits", (4, 6, 8, 16), "make the random weights with this many bits (default: 4)")
    to.value("--steps", "N", "measure N steps (default: %(default)s)", type=whole(1, 1_000_001), default=100)
    add_engine(to)
    add_printing(to)
    return parser


def run(arguments: list[str], signals: Signals) -> int:
    args = parser().parse_args(arguments)
    if args.variant and (args.model or args.mimi or args.config or args.size):
        raise InputError("--variant brings its own files", "leave --model, --mimi, --config and --size out")
    if args.size and (args.model or args.config or args.quantized):
        raise InputError("--size makes a model", "leave --model, --config and --quantized out")
    if args.bits and not args.size:
        raise InputError("--bits is for random weights", "give --size with it")
    if (args.config or args.quantized) and not (args.model or args.variant):
        raise InputError("--config and --quantized are for a model", "give one with --model")
    import_mlx(signals, args.engine)
    from ..bench import SIZES, measure
    from ..conversation.codec import load_mimi
    from ..model.engines import prepare, random_lm
    from ..weights.load import load_lm

    check_output()
    engine = prepare(args.engine)
    codec = existing(args.mimi, "codec") if args.mimi is not None else None
    with display(args, signals) as shown:
        if args.size:
            bits, name = args.bits or 4, f"{args.size}, random weights"
            with shown.progress(f"Making {name}") as progress:
                lm = random_lm(SIZES[args.size], bits, 32 if bits == 4 else 64, 0, engine, progress)
        else:
            if args.model:
                model = existing(args.model, "model")
                config = config_for(model, args.config)
            else:
                files = named_files(args, signals) if args.variant else find_demo()
                model, config, codec = files.model, files.config, codec or files.mimi
            name = model.name
            with shown.progress(f"Loading {name}") as progress:
                lm = load_lm(
                    model, config, engine=engine, quantized=args.quantized, context=args.context, progress=progress
                )
        codebooks = max(lm.config.dep_q, lm.config.user_q)
        mimi = load_mimi(codec, num_codebooks=codebooks, weights=args.codec_weights) if codec else None
        with shown.progress("Measuring") as progress:
            outcome = measure(lm, name, mimi, steps=args.steps, kv_bits=args.kv_bits, progress=progress)
    if args.json:
        print_json(outcome.to_dict())
    else:
        print(outcome.table())
    return 0
