"""Measure the stages of a live conversation, the gain from overlapping them, and whether the screen costs sound.

The whole pipeline runs with synthetic devices: first as fast as possible, against the same stages one after the other in the
same run; then in real time, without a screen, with one that repaints, and with one on a terminal that cannot keep up. The
program prints tables; --json keeps the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pty
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter, sleep
from typing import Any

import numpy as np
from ends import BLOCK, Clock, Ends, speech

from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.conversation.load import load_session
from msh_mlx.conversation.pipeline import Pipeline
from msh_mlx.conversation.session import Session
from msh_mlx.conversation.warmup import warm
from msh_mlx.errors import InputError
from msh_mlx.events import Event, Failed, Ready, Span
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE
from msh_mlx.library.files import ModelFiles, find_demo, find_model
from msh_mlx.live.screen.open import open_screen
from msh_mlx.live.screen.status import Screen, Status
from msh_mlx.metrics import Metrics
from msh_mlx.system.threads import short_turns

DIGITS = Path(__file__).parents[1] / "assets" / "demo" / "digits.flac"
TURN = 25  # frames
REPAINTS = 15  # a second
SLOW_READ = 256, 0.02  # the busy terminal takes so many bytes in so many seconds
ROWS = {
    "encode": "encode",
    "step": "step",
    "decode": "decode",
    "model_wait": "wait for the model",
    "decoder_wait": "wait for the decoder",
    "reply": "reply: from last sample heard to first written",
    "delay": "delay: that, and what waits to be played",
}


class Conversation:
    """A pipeline between a synthetic microphone and loudspeaker, with its events in a queue."""

    def __init__(self, load: Callable[[], Session]) -> None:
        self.ends = Ends()
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.pipeline = Pipeline(warm(lambda _: load()), self.ends.source, self.ends, self.events.put)

    def __enter__(self) -> Conversation:
        self.pipeline.start()
        while not isinstance(event := self.events.get(), Ready):
            self.check(event)
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.stop(10)

    def check(self, event: Event) -> None:
        if isinstance(event, Failed):
            raise event.error

    def drain(self, handle: Callable[[Event], None]) -> None:
        with contextlib.suppress(Empty):
            while True:
                event = self.events.get_nowait()
                self.check(event)
                handle(event)


def as_fast_as_it_goes(load: Callable[[], Session], frames: int) -> dict[str, float]:
    """Return the seconds per frame: of each stage without overlap, and of all together with overlap.

    Both run in turns, so that other load on the machine affects both.
    """
    blocks, spent = speech(DIGITS), dict.fromkeys(("encode", "step", "decode", "overlapped"), 0.0)
    turns = max(1, frames // TURN)

    def note(event: Event) -> None:
        if isinstance(event, Span) and event.index // TURN % 2 == 0:
            spent[event.stage] += event.end - event.begin

    with Conversation(load) as talk:

        def converse(ahead: int) -> float:
            begin = perf_counter()
            for i in range(TURN + ahead):
                if i >= ahead:
                    while not talk.ends.answers.acquire(timeout=1):
                        talk.drain(note)
                    talk.ends.play(FRAME_SIZE)
                if i < TURN:
                    for _ in range(FRAME_SIZE // BLOCK):
                        talk.ends.hear(next(blocks))
            return perf_counter() - begin

        for _ in range(turns):
            converse(1)
            spent["overlapped"] += converse(4)  # enough for each thread to have a frame, too few for one to be dropped
            talk.drain(note)
    talk.drain(note)
    return {name: seconds / turns / TURN for name, seconds in spent.items()}


def by_the_clock(load: Callable[[], Session], seconds: float, speed: float, ui: str) -> tuple[Metrics, float]:
    """Return the pipeline's figures, and the largest delay of the clock, in seconds."""
    with Conversation(load) as talk, screen(ui) as painted:
        clock = Clock(talk.ends, speech(DIGITS), speed)
        clock.start()
        begin, metrics, level = perf_counter(), talk.pipeline.metrics, np.random.default_rng(0)
        while (elapsed := perf_counter() - begin) < seconds / speed:
            talk.drain(painted.handle if painted else lambda event: None)
            if painted:
                memory = metrics.memory
                painted.tick(
                    Status(
                        elapsed,
                        microphone=level.uniform(),
                        loudspeaker=level.uniform(),
                        step_p50=1000 * metrics.step.recent(50),
                        step_p95=1000 * metrics.step.recent(95),
                        delay=1000 * metrics.delay.recent(50),
                        dropped=metrics.dropped,
                        underruns=metrics.underruns,
                        memory_active=memory.active,
                        memory_cache=memory.cache,
                        memory_peak=memory.peak,
                    )
                )
            sleep(1 / REPAINTS)
        clock.stop()
        metrics.underruns = talk.ends.stats()["underruns"]
    return metrics, clock.late


@contextlib.contextmanager
def screen(ui: str) -> Iterator[Screen | None]:
    """Yield a screen on its own terminal, which reads all output ("on") or falls behind ("busy"); None for "off"."""
    if ui == "off":
        yield None
        return
    os.environ |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    reader, writer = pty.openpty()
    size, pause = SLOW_READ if ui == "busy" else (1 << 16, 0.0)

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while os.read(reader, size):
                sleep(pause)

    thread = threading.Thread(target=read)
    thread.start()
    with (
        os.fdopen(writer, "w") as out,
        open_screen(plain=False, as_json=False, out=out) as painted,
    ):
        yield painted
    thread.join()
    os.close(reader)


def table(metrics: Metrics) -> str:
    lines = [f"{'ms':<48}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}"]
    for stage, name in ROWS.items():
        spread = getattr(metrics, stage).all()
        figures = (spread.p50, spread.p95, spread.p99, spread.most)
        lines.append(f"{name:<48}" + "".join(f"{1000 * value:8.1f}" for value in figures))
    losses = f"{metrics.dropped:.2f} s dropped in {metrics.drops} cuts, {metrics.underruns} underruns"
    return "\n".join([*lines, f"{metrics.frames} frames, {metrics.words} words, {losses}"])


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="FILE", help="measure this language model (default: the demo's)")
    parser.add_argument("--mimi", metavar="FILE", help="load its codec from this file")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="load its tokenizer from this file (default: the one beside the model)"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="read its configuration from this file (default: the one beside the model)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="hear this much sound in each run (default: %(default)s)"
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="run the clock at this speed; 1 is real time (default: %(default)s)"
    )
    parser.add_argument(
        "--ui", choices=("off", "on", "busy", "all"), default="all", help="paint these screens (default: all)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    if args.model and not args.mimi:
        raise InputError("There is no codec; give one with --mimi.")
    files: ModelFiles = find_model(args.model, args.mimi, args.tokenizer, args.config) if args.model else find_demo()

    def load() -> Session:
        return load_session(
            files, None, voice={"temperature": 0.8, "top_k": 250}, text={"temperature": 0.7, "top_k": 25}, seed=0
        )

    fast = as_fast_as_it_goes(load, round(args.seconds / FRAME_SECONDS))
    overlapped, parts = fast["overlapped"], [fast[stage] for stage in ("encode", "step", "decode")]
    print(
        f"{files.model.name} on {platform.machine()}, {os.cpu_count()} cores; a frame lasts {1000 * FRAME_SECONDS:.0f} ms"
    )
    print("One after the other: " + " + ".join(f"{1000 * part:.2f}" for part in parts), end=" ")
    print(f"= {1000 * sum(parts):.2f} ms a frame; overlapped, as fast as it goes: {1000 * overlapped:.2f} ms,", end=" ")
    print(f"{sum(parts) / overlapped:.2f} times as fast\n")
    result: dict[str, Any] = {
        "model": files.model.name,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "as_fast_as_it_goes": fast,
        "speed": args.speed,
        "ui": {},
    }
    for ui in ("off", "on", "busy") if args.ui == "all" else (args.ui,):
        metrics, late = by_the_clock(load, args.seconds, args.speed, ui)
        print(f"By the clock, {args.speed:g} times real time, screen: {ui}")
        print(f"{table(metrics)}; clock at most {1000 * late:.1f} ms late\n")
        result["ui"][ui] = {"clock_late": late, **metrics.summary()}
    print("Underruns by screen:", ", ".join(f"{ui} {run['underruns']}" for ui, run in result["ui"].items()))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    with short_turns():  # as in a live conversation
        sys.exit(guard(lambda _: main()))
