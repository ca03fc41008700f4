"""Measure Opus on speech: the time of a packet of 40 ms, its size, and how close the sound that comes back is.

The rows are our encoder at several bitrates and complexities, with the one in use marked, and, with --peer, sphn: Kyutai's
package, which can do it in one way. The signal-to-noise ratio is that of the sound to its difference, with the codec's delay
taken out. The program prints a table; --json keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from time import thread_time
from typing import Any

import msh_native
import numpy as np
import numpy.typing as npt
import soundfile
from codec import DIGITS
from processes import make_peer

from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.format import SAMPLE_RATE
from msh_mlx.net.opus import BITRATE, COMPLEXITY, PACKET

Sound = npt.NDArray[np.float32]

WAYS = [(bitrate, complexity) for bitrate in (24_000, 32_000, BITRATE) for complexity in (0, COMPLEXITY, 10)]
LATEST = 400  # samples that any way may be late


def decibels(said: Sound, heard: Sound) -> float:
    """Return the largest signal-to-noise ratio at any delay."""
    count = len(said) - LATEST
    heard = np.pad(heard, (0, max(0, len(said) - len(heard))))
    noise = [np.sum((said[:count] - heard[late : late + count]) ** 2) for late in range(LATEST)]
    return float(10 * np.log10(np.sum(said[:count] ** 2) / min(noise)))


def ours(said: Sound, bitrate: int, complexity: int) -> dict[str, Any]:
    """Encode and decode packet by packet."""
    encoder = msh_native.OpusEncoder(SAMPLE_RATE, bitrate=bitrate, complexity=complexity)
    decoder = msh_native.OpusDecoder(SAMPLE_RATE, 1)
    times, size, heard = [0.0, 0.0], 0, []
    for begin in range(0, len(said), PACKET):
        moments = [thread_time()]
        packet = encoder.encode(said[begin : begin + PACKET])
        moments.append(thread_time())
        heard.append(decoder.decode(packet)[:, 0])
        moments.append(thread_time())
        times = [total + time for total, time in zip(times, np.diff(moments), strict=True)]
        size += len(packet)
    return figures(times, size, said, np.concatenate(heard))


PEER = """
import json, sys, time
import numpy as np, sphn
said = np.frombuffer(sys.stdin.buffer.read(), np.float32)
writer, reader = sphn.OpusStreamWriter(24000), sphn.OpusStreamReader(24000)
times, size, heard = [0.0, 0.0], 0, []
for begin in range(0, len(said), 960):
    moments = [time.thread_time()]
    pages = writer.append_pcm(said[begin : begin + 960])
    moments.append(time.thread_time())
    heard.append(reader.append_bytes(pages))
    moments.append(time.thread_time())
    times = [total + time for total, time in zip(times, np.diff(moments))]
    size += len(pages)
print(json.dumps([times, size, np.concatenate(heard).tolist()]))
"""


def sphn(said: Sound) -> dict[str, Any]:
    """The same with the peer, in an environment of its own."""
    python = make_peer("sphn", "0.2.1", ["numpy"])
    done = subprocess.run([python, "-c", PEER], input=said.tobytes(), stdout=subprocess.PIPE, check=True)
    times, size, heard = json.loads(done.stdout)
    return figures(times, size, said, np.asarray(heard, np.float32))


def figures(times: list[float], size: int, said: Sound, heard: Sound) -> dict[str, Any]:
    packets = len(said) // PACKET
    encode, decode = (1000 * seconds / packets for seconds in times)
    rate = 8 * size * SAMPLE_RATE / len(said) / 1000
    return {"encode_ms": encode, "decode_ms": decode, "kbit_s": rate, "decibels": decibels(said, heard)}


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", nargs="?", type=Path, default=DIGITS, help="of 24 kHz (default: the demo's)")
    parser.add_argument("--peer", action="store_true", help="measure sphn, too")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    said = soundfile.read(args.recording, dtype="float32")[0]
    said = said[: len(said) - len(said) % PACKET]
    rows: dict[str, dict[str, Any]] = {}
    ours(said, BITRATE, COMPLEXITY)  # warm up
    for bitrate, complexity in WAYS:
        used = " (in use)" if (bitrate, complexity) == (BITRATE, COMPLEXITY) else ""
        rows[f"{bitrate // 1000} kbit/s, complexity {complexity}{used}"] = ours(said, bitrate, complexity)
    if args.peer:
        rows["sphn 0.2.1"] = sphn(said)
    print(f"{'':<36}{'encode, ms':>12}{'decode, ms':>12}{'kbit/s':>8}{'dB':>8}")
    for name, row in rows.items():
        print(f"{name:<36}{row['encode_ms']:12.3f}{row['decode_ms']:12.3f}{row['kbit_s']:8.1f}{row['decibels']:8.1f}")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
