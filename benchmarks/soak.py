"""Hold hours of conversation: does memory grow, do steps become slower, do microphone and loudspeaker drift apart?

The pipeline runs on the demo model as fast as possible, between a microphone and a loudspeaker with clocks that differ by
100 ppm. Then the rings run alone, for hours, with the microphone too fast and too slow. Sound and sampling are the same every
time. The program prints its findings, and exits with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from ends import BLOCK, Ends, speech

from msh_mlx.cli.program import guard
from msh_mlx.conversation.codec import load_mimi
from msh_mlx.conversation.pipeline import Pipeline
from msh_mlx.conversation.session import Session
from msh_mlx.conversation.text import load_tokenizer
from msh_mlx.conversation.warmup import warm
from msh_mlx.events import Event, Failed, Ready, Span
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import find_demo
from msh_mlx.metrics import Durations
from msh_mlx.model.config import LmConfig
from msh_mlx.model.engines import ENGINES, prepare
from msh_mlx.model.native.run import NativeRun
from msh_mlx.system.threads import short_turns
from msh_mlx.weights.load import load_lm

DIGITS = Path(__file__).parents[1] / "assets" / "demo" / "digits.flac"
DRIFT = 100e-6
PARTS = 10  # parts of a conversation to compare; the first is for warming up
SLOWER = 1.5  # times, at most: the machine may do other things meanwhile
MORE_MAIN_MEMORY = 16 << 20  # bytes, at most, after the warm-up
MORE_MLX_MEMORY = 1 << 20
UNDERRUNS = 2  # at most


class Aged(Session):
    """A session that has talked for `hours` already: its positions are high, and the model's rings are full."""

    def __init__(self, *parts: Any, hours: float, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._hours = hours
        # The codec's transformers go at 25 steps a second, two a frame.
        self._codec_position = 2 * int(hours * 3600 / FRAME_SECONDS)

    def reset_encoder(self) -> None:
        self._encoder.reset(position=self._codec_position)

    def reset_decoder(self) -> None:
        self._decoder.reset(position=self._codec_position)

    def reset_model(self) -> None:
        super().reset_model()
        if self._hours:
            config, gen = self._gen.lm.config, self._gen
            hear = np.zeros(config.user_q, np.int32)
            for _ in range(config.max_delay + 1 + config.context):
                gen.step(hear)
            # Whole turns of the rings: the next slot stays the same.
            more = int(self._hours * 3600 / FRAME_SECONDS) // config.context * config.context
            gen._position += more
            if isinstance(gen._run, NativeRun):  # which counts positions itself
                conversation = gen._run._conversation
                conversation.restore(conversation.state(), conversation.position + more)


def load(hours: float, engine: str) -> Session:
    files = find_demo()
    engine = prepare(engine)
    config = LmConfig.of(files.config)
    lm = load_lm(files.model, config=config, engine=engine)
    parts = lm, load_mimi(files.mimi), load_tokenizer(files.tokenizer)
    return Aged(*parts, hours=hours, seed=0)


class Clocks:
    """Moves the clocks of both ends. While the loudspeaker plays a block, the microphone hears one by its own clock."""

    def __init__(self, ends: Ends, drift: float) -> None:
        self._ends, self._drift, self._blocks = ends, drift, speech(DIGITS)
        self._left = np.zeros(0, np.float32)
        self._heard = self._played = 0  # samples
        self._delay, self._blocks_played = 0.0, 0

    def move(self, answer: Callable[[int], None]) -> None:
        """Move on by 10 ms. `answer` gets the number of frames heard, and returns when as many replies are written."""
        n = round((self._played + BLOCK) * (1 + self._drift)) - self._heard
        while len(self._left) < n:
            self._left = np.concatenate([self._left, next(self._blocks)])
        self._ends.hear(self._left[:n])
        self._left, self._heard = self._left[n:], self._heard + n
        answer(self._heard // FRAME_SIZE)
        self._ends.play(BLOCK)
        self._played += BLOCK
        self._delay += (self._ends.capture.available + self._ends.playback.queued) / SAMPLE_RATE
        self._blocks_played += 1

    def delay(self) -> float:
        """Return how much sound waited in the rings on average since the last call, in seconds."""
        delay = self._delay / self._blocks_played
        self._delay, self._blocks_played = 0.0, 0
        return delay


@dataclass(frozen=True)
class Part:
    """A tenth of a conversation: the median step and the mean delay in the rings in seconds, memory at its end in bytes."""

    step: float
    mlx: int
    main: int
    delay: float


def converse(frames: int, hours: float, engine: str) -> tuple[list[Part], dict[str, Any]]:
    """Hold a conversation of `frames` frames, as if after `hours`. Return its tenths, and the figures of the whole."""
    ends, ready, parts = Ends(), threading.Event(), list[Part]()
    steps = [Durations() for _ in range(PARTS)]

    def note(event: Event) -> None:
        if isinstance(event, Span) and event.stage == "step":
            steps[min(event.index * PARTS // frames, PARTS - 1)].add(event.end - event.begin)
        elif isinstance(event, Ready | Failed):
            ready.set()

    pipeline = Pipeline(warm(lambda _: load(hours, engine)), ends.source, ends, note)
    answered = 0

    def answer(heard: int) -> None:
        nonlocal answered
        while answered < heard:
            if ends.answers.acquire(timeout=1):
                answered += 1
            elif pipeline.failure:
                raise pipeline.failure.error

    pipeline.start()
    ready.wait()
    clocks, begin = Clocks(ends, DRIFT), perf_counter()
    for part in range(PARTS):
        while answered < frames * (part + 1) // PARTS:
            clocks.move(answer)
        memory = pipeline.metrics.memory
        parts.append(Part(steps[part].all().p50, memory.active, memory.rss, clocks.delay()))
        show(
            f"{(part + 1) / PARTS:4.0%}",
            parts[-1],
            frames * (part + 1) // PARTS * FRAME_SECONDS / (perf_counter() - begin),
        )
    pipeline.stop(10)
    return parts, {**pipeline.metrics.summary(), "speaker": ends.stats()}


def show(name: str, part: Part, speed: float) -> None:
    memory = f"MLX {part.mlx / 1e6:.2f} MB, main memory {part.main / 1e6:.1f} MB"
    print(
        f"{name}  step {1000 * part.step:.1f} ms, {memory}, {1000 * part.delay:.1f} ms in the rings, {speed:.1f} x",
        flush=True,
    )


def echo(hours: float, drift: float) -> tuple[list[float], dict[str, Any]]:
    """Run the rings alone for so many hours. Return the delay of each tenth in seconds, and their figures."""
    ends, delays = Ends(), list[float]()

    def answer(_: int) -> None:
        while (pcm := ends.source.read(FRAME_SIZE, 0.0)) is not None:
            ends.write(pcm)

    clocks = Clocks(ends, drift)
    for _ in range(PARTS):
        for _ in range(round(hours * 3600 * SAMPLE_RATE / BLOCK / PARTS)):
            clocks.move(answer)
        delays.append(clocks.delay())
    return delays, ends.stats()


def complaints(parts: list[Part], figures: dict[str, Any]) -> list[str]:
    """List what is wrong with a conversation."""
    first, last = parts[1], parts[-1]
    wrong = check_rings([part.delay for part in parts], figures["speaker"]["underruns"])
    if last.step > SLOWER * first.step:
        wrong.append(f"a step takes {1000 * last.step:.1f} ms at the end and took {1000 * first.step:.1f} ms")
    for name, limit in (("mlx", MORE_MLX_MEMORY), ("main", MORE_MAIN_MEMORY)):
        more = max(getattr(part, name) for part in parts[PARTS // 2 :]) - getattr(parts[0], name)
        if more > limit:
            wrong.append(f"{name} memory grew by {more / 1e6:.1f} MB")
    if figures["drops"]:
        wrong.append(f"{figures['dropped']:.2f} s were dropped")
    return wrong


def check_rings(delays: list[float], underruns: int) -> list[str]:
    wrong = []
    if max(delays[1:]) - min(delays[1:]) > FRAME_SECONDS:
        wrong.append(
            f"the delay in the rings went from {1000 * min(delays[1:]):.0f} to {1000 * max(delays[1:]):.0f} ms"
        )
    if underruns > UNDERRUNS:
        wrong.append(f"the loudspeaker ran dry {underruns} times")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=10.0, help="talk for so many hours (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="talk for so many minutes instead")
    parser.add_argument(
        "--from-hour", type=float, default=0.0, help="start at this hour of a conversation (default: %(default)s)"
    )
    parser.add_argument(
        "--rings", type=float, default=10.0, help="run the rings alone for so many hours (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="compute with this engine (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    seconds = args.hours * 3600 if args.minutes is None else args.minutes * 60
    frames = max(PARTS, round(seconds / FRAME_SECONDS))

    print(f"{frames} frames from hour {args.from_hour:g}, clocks {1e6 * DRIFT:g} ppm apart", flush=True)
    parts, figures = converse(frames, args.from_hour, args.engine)
    wrong = complaints(parts, figures)
    result: dict[str, Any] = {"frames": frames, "from_hour": args.from_hour, "parts": list(map(asdict, parts))}
    result |= {"figures": figures, "rings": []}
    for drift in (DRIFT, -DRIFT):
        delays, stats = echo(args.rings, drift)
        low, high = (1000 * end(delays[1:]) for end in (min, max))
        spliced = f"{stats['trimmed']} samples trimmed, {stats['inserted']} inserted, {stats['underruns']} underruns"
        print(f"Rings alone, {args.rings:g} h, {1e6 * drift:+g} ppm: {low:.1f} to {high:.1f} ms, {spliced}", flush=True)
        wrong += check_rings(delays, stats["underruns"])
        result["rings"].append({"drift": drift, "delays": delays, "speaker": stats})
    for complaint in wrong:
        print(f"Wrong: {complaint}.")
    if args.json:
        Path(args.json).write_text(json.dumps({**result, "wrong": wrong}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    with short_turns():  # as in a live conversation
        sys.exit(guard(lambda _: main()))
