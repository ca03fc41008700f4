"""Measure on speech what holding the codec's weights in float16 changes: the codes, and the decoded sound.

Each codec encodes a recording with weights in float32 and in float16. The share of equal codes counts all codebooks; a code of
a later codebook depends on those before it. Then both decode the codes of float32, and the signal-to-noise ratio is that of the
sound to its difference. The program prints a table, and whether all codes were equal; --json prints the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from codec import DIGITS, ROOT, make_weights
from safetensors.numpy import load_file

from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.conversation.codec import load_mimi
from msh_mlx.system.places import user_path

GOLDEN = ROOT / "tests" / "golden"


@dataclass
class Result:
    """One recording through one codec, with weights in float16 against float32."""

    codec: str
    recording: str
    codes: int
    different: int
    first_equal: float  # the share of equal codes of the first codebook
    decibels: float  # signal to noise

    @property
    def equal(self) -> float:
        return 1 - self.different / self.codes


def compare(codec: Path, recording: str, pcm: npt.NDArray[np.float32], config: Path | None = None) -> Result:
    """Encode and decode `pcm [samples]`, sound at 24 kHz, both ways."""
    exact, half = (load_mimi(codec, config=config, weights=weights) for weights in ("float32", "float16"))
    codes = exact.encode(pcm)
    same = codes == half.encode(pcm)
    sound = exact.decode(codes).astype(np.float64)
    noise = sound - half.decode(codes)
    decibels = 10 * np.log10(np.sum(sound**2) / np.sum(noise**2))
    name = codec.name if codec.parent.name == ".cache" else f"{codec.parent.name}/{codec.name}"
    return Result(name, recording, same.size, int(np.sum(~same)), float(np.mean(same[0])), float(decibels))


def recordings(own: Path | None) -> list[tuple[Path, str, npt.NDArray[np.float32], Path | None]]:
    """Return the codecs with the recordings for them: the demo's, the golden ones and, for speech, random ones of full size."""
    speech, _ = soundfile.read(DIGITS, dtype="float32")
    tiny, full = (load_file(GOLDEN / name / "golden.safetensors")["pcm"] for name in ("mimi-tiny", "mimi-full"))
    weights = make_weights()
    found: list[tuple[Path, str, Any, Path | None]] = [
        (ROOT / "assets" / "demo" / "mimi.safetensors", DIGITS.name, speech, None),
        (weights, DIGITS.name, speech, None),
        (weights, "golden", full.astype(np.float32) / 32768, None),
        (GOLDEN / "mimi-tiny" / "mimi.safetensors", "golden", tiny, GOLDEN / "mimi-tiny" / "config.json"),
    ]
    if own:
        found.append((own, DIGITS.name, speech, None))
    return found


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="FILE", help="compare this codec on the demo recording, too")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    results = [compare(*each) for each in recordings(user_path(args.weights) if args.weights else None)]
    if args.json:
        print(json.dumps([{**asdict(result), "equal": result.equal} for result in results]))
        return 0
    print(
        f"{'codec':<34}{'recording':<14}{'codes':>7}{'different':>11}{'equal':>10}{'first book':>12}{'signal/noise':>14}"
    )
    for r in results:
        shares = f"{r.equal:>10.3%}{r.first_equal:>12.3%}"
        print(f"{r.codec:<34}{r.recording:<14}{r.codes:>7}{r.different:>11}{shares}{r.decibels:>11.1f} dB")
    all_equal = not any(result.different for result in results)
    print("All codes are equal." if all_equal else "Not all codes are equal: float32 stays the default.")
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
