"""Try the codec on a recording: its codes, streaming against the whole at once, and the time that a frame takes.

PYTHONPATH=. python scripts/mimi_test.py --weights mimi.safetensors [RECORDING] [--output OUT.wav]
"""

from __future__ import annotations

import argparse
import sys
from array import array
from time import perf_counter

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.system.signals import Signals


def main() -> int:
    """Run the script and return its exit code."""
    parser = Parser(prog="mimi_test.py", description="Try the codec on a recording.")
    parser.add_argument("--weights", metavar="FILE", required=True, help="load the codec from this file (.safetensors)")
    parser.add_argument(
        "--codebooks", metavar="N", type=whole(1), default=8, help="use N codebooks (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", help="write the recording, coded and decoded, to this file (WAV)")
    parser.add_argument("input", metavar="RECORDING", nargs="?", help="code this recording (default: the demo's)")
    return guard(lambda signals: try_codec(parser.parse_args(), signals))


def try_codec(args: argparse.Namespace, signals: Signals) -> int:
    """Code and decode the recording, and print a report."""
    from msh_mlx.library.files import demo_folder
    from msh_mlx.system.newfile import check_outputs, open_output, output
    from msh_mlx.system.places import user_path

    source = args.input or str(demo_folder() / "digits.flac")
    inputs = [user_path(path) for path in (source, args.weights)]
    place = output(args.output) if args.output else None
    check_outputs([place] if place else [], inputs)

    import numpy as np

    from msh_mlx.cli.display import timing_line
    from msh_mlx.conversation.codec import load_mimi
    from msh_mlx.sound.recordings import WavWriter, open_recording, read_frames
    from msh_mlx.system.words import printable

    mimi = load_mimi(args.weights, num_codebooks=args.codebooks)
    with open_recording(source) as recording:
        frames = list(read_frames(recording, mimi.sample_rate, mimi.frame_size))

    encoder, decoder = mimi.encoder(), mimi.decoder()
    encode, decode = array("d"), array("d")
    codes, decoded = [], []
    for frame in frames:
        signals.check()
        begin = perf_counter()
        codes.append(encoder.step(frame))
        middle = perf_counter()
        decoded.append(decoder.step(codes[-1]))
        encode.append(middle - begin)
        decode.append(perf_counter() - middle)
    pcm, voice, streamed = np.concatenate(frames), np.concatenate(decoded), np.concatenate(codes, axis=1)

    seconds = len(pcm) / mimi.sample_rate
    print(printable(f"{source}: {seconds:.2f} s, {len(frames)} frames, {mimi.num_codebooks} codebooks"))
    print("codebook  distinct codes  entropy (bits)")
    for index, row in enumerate(streamed):
        shares = np.unique(row, return_counts=True)[1] / len(row)
        print(f"{index:8}  {len(shares):14}  {-np.sum(shares * np.log2(shares)):14.2f}")
    same = np.array_equal(mimi.encode(pcm), streamed)
    difference = float(np.abs(mimi.decode(streamed) - voice).max())
    print(f"Streamed codes and those of the whole: {'the same' if same else 'DIFFERENT'}")
    print(f"Streamed sound and that of the whole: differ by {difference:.1e} at most")
    noise = float(np.square(pcm - voice).sum())
    print(
        f"Signal to noise of the round trip: {10 * np.log10(float(np.square(pcm).sum()) / noise):.1f} dB"
        if noise
        else "No noise"
    )
    print(timing_line("Encoding a frame", [encode]))
    print(timing_line("Decoding a frame", [decode]))
    if place:
        with open_output(place) as new:
            writer = WavWriter(new.file, mimi.sample_rate, 1)
            writer.write(voice)
            writer.finish()
            new.commit()
        print(printable(f"Sound: {place}"))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
