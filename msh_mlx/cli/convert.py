"""`msh-mlx convert`: write a model with another number of bits a weight."""

from __future__ import annotations

import argparse
from time import perf_counter

from ..library.files import config_for
from ..system.inputs import existing
from ..system.signals import Signals
from ..system.streams import check_output
from ..system.words import human_size
from .options import Parser, add_config, add_lora, add_printing, check_lora, display, print_json
from .program import import_mlx


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx convert",
        description="Convert a language model in PyTorch's or MLX's layout to another number of bits a weight, for MLX. "
        "The configuration is written beside it, as OUT with .json in place of .safetensors.",
    )
    to = parser.group()
    to.value("model", "IN", "read the language model from this file (.safetensors)")
    to.value("out", "OUT", "write the new model to this file (.safetensors)")
    to.choice("--bits", (4, 6, 8, 16), "store weights in 4, 6 or 8 bits, or 16 for bfloat16", required=True)
    to.choice("--group-size", (32, 64, 128), "let this many weights share a scale (default: 32 with 4 bits, else 64)")
    to.repeated(
        "--keep",
        "PATTERN[=BITS]",
        "store weights whose names fit in other bits (default: 16), as in --keep '*emb*=8' --keep text_linear; can be "
        "repeated, and the first pattern that fits counts",
        type=_rule,
    )
    add_config(to)
    add_lora(to)
    to.flag("--check", "compare the text logits before and after on a fixed input")
    add_printing(to)
    return parser


def _rule(text: str) -> tuple[str, int]:
    """Parse PATTERN or PATTERN=BITS; without bits they are 16."""
    pattern, equals, bits = text.partition("=")
    if not pattern or (equals and bits not in ("4", "6", "8", "16")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a pattern, or a pattern = 4, 6, 8 or 16 bits")
    return pattern, int(bits or 16)


def run(arguments: list[str], signals: Signals) -> int:
    args = parser().parse_args(arguments)
    check_lora(args)
    import_mlx(signals)
    from ..model.engines import prepare
    from ..weights.convert import Rule, check, convert

    model = existing(args.model, "model")
    config = config_for(model, args.config)
    group_size = args.group_size or (32 if args.bits == 4 else 64)
    if args.json:
        check_output()
    if args.check:
        prepare("auto")
    divergence = None
    with display(args, signals) as shown:
        begin = perf_counter()
        with shown.progress(f"Converting {model.name}") as progress:
            result = convert(
                model,
                args.out,
                bits=args.bits,
                group_size=group_size,
                keep=[Rule(*rule) for rule in args.keep],
                config=config,
                lora=args.lora,
                lora_scaling=args.lora_scaling,
                progress=progress,
            )
        seconds = perf_counter() - begin
        if not args.json:
            sizes = f"{human_size(result.bytes_after)}, from {human_size(result.bytes_before)}"
            shown.say(f"Wrote {result.path.name} and {result.config.name} in {seconds:.1f} s: {sizes}")
            if result.scaling:
                shown.say(f"{args.lora} was added with a scaling of {result.scaling.value:g}, {result.scaling.reason}")
            if result.left_out:
                shown.say(f"The prediction of the user's {result.left_out} codebooks is left out: it is never run")
            if result.unpacked:
                some = f"{len(result.unpacked)} weights, such as {result.unpacked[0]}, stay at 16 bits"
                shown.say(f"{some}: their rows cannot be divided into groups of {group_size}")
        if args.check:
            with shown.progress("Comparing before and after") as progress:
                divergence = check(result, model, config, args.lora, args.lora_scaling, progress=progress)
            if not args.json:
                shown.say(
                    f"Text logits of before and after, {divergence.steps} steps: at most {divergence.largest:.3g} apart; "
                    f"mean KL divergence {divergence.kl:.3g}; the same best token in {100 * divergence.agree:.1f} %"
                )
    if args.json:
        outcome = {
            "model": str(result.path),
            "config": str(result.config),
            "bytes_before": result.bytes_before,
            "bytes_after": result.bytes_after,
            "unpacked": result.unpacked,
            "left_out": result.left_out,
            "lora_scaling": result.scaling.value if result.scaling else None,
            "seconds": seconds,
            "divergence": vars(divergence) if divergence else None,
        }
        print_json(outcome)
    return 0
