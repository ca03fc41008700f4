"""Let the model hear a recording. Print what it answered, and how long its steps took.

PYTHONPATH=. python scripts/moshi_test.py --moshi-weights F --mimi-weights F --tokenizer F [RECORDING] [--output OUT.wav]
"""

from __future__ import annotations

import argparse
import sys

from msh_mlx.cli.options import Parser, whole, within
from msh_mlx.cli.program import guard
from msh_mlx.conversation.load import load_session
from msh_mlx.model.engines import ENGINES
from msh_mlx.model.ranges import TEMPERATURE
from msh_mlx.system.signals import Signals


def main() -> int:
    """Run the script and return its exit code."""
    parser = Parser(prog="moshi_test.py", description="Let the model hear a recording.")
    parser.add_argument(
        "--moshi-weights", metavar="FILE", required=True, help="load the language model from this file (.safetensors)"
    )
    parser.add_argument(
        "--mimi-weights", metavar="FILE", required=True, help="load the codec from this file (.safetensors)"
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", required=True, help="load the text tokenizer from this file (.model)"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="read the configuration from this file (default: config.json beside the model)"
    )
    parser.add_argument("--quantized", type=int, choices=(4, 8), help="require a model with this many bits a weight")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=within(TEMPERATURE),
        default=0.8,
        help="sample the voice at this temperature (default: %(default)s)",
    )
    parser.add_argument(
        "--text-temperature",
        metavar="T",
        type=within(TEMPERATURE),
        default=0.7,
        help="sample the text at this temperature (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole(0, 1 << 64), help="seed the sampling (default: a new seed every time)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="compute with this engine (default: %(default)s)"
    )
    parser.add_argument("--steps", metavar="N", type=whole(1), help="stop after N steps")
    parser.add_argument("--output", metavar="FILE", help="write Moshi's voice to this file (WAV)")
    parser.add_argument(
        "input", metavar="RECORDING", nargs="?", help="play this recording to the model (default: the demo's)"
    )
    return guard(lambda signals: try_model(parser.parse_args(), signals))


def try_model(args: argparse.Namespace, signals: Signals) -> int:
    """Play the recording to the model, and print a report."""
    from msh_mlx.library.files import demo_folder, find_model
    from msh_mlx.system.newfile import check_outputs, output
    from msh_mlx.system.places import user_path

    files = find_model(args.moshi_weights, args.mimi_weights, args.tokenizer, args.config)
    source = args.input or str(demo_folder() / "digits.flac")
    place = output(args.output) if args.output else None
    check_outputs([place] if place else [], [*files.all, user_path(source)])

    from rich.console import Console

    from msh_mlx.cli.display import Display, timing_line
    from msh_mlx.conversation.recordings import Plan, RecordingEvent, converse
    from msh_mlx.sound.recordings import open_recording
    from msh_mlx.weights.checkpoint import open_checkpoint

    with open_recording(source) as recording, Display(Console(highlight=False), plain=True) as display:

        def listener(event: RecordingEvent) -> None:
            signals.check()
            display(event)

        session = load_session(
            files,
            open_checkpoint(files.model, files.config, args.quantized),
            voice={"temperature": args.temperature, "top_k": 250},
            text={"temperature": args.text_temperature, "top_k": 25},
            seed=args.seed,
            engine=args.engine,
        )
        ended = converse(session, recording, Plan(reply=place, max_steps=args.steps), listener)
        for what, stage in (("Encoding", "encode"), ("The model", "step"), ("Decoding", "decode")):
            display.say(timing_line(what, [ended.stages[stage]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
