#!/usr/bin/env python3
"""Draw docs/terminal.svg, the screen of a live conversation with the demo model. `make pictures` calls it.

The model hears the demo's recording in real time, through the rings of sound devices. The figures on the screen are those of
this machine, so every picture is a little different.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter

import numpy as np
from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control

from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.conversation.load import load_session
from msh_mlx.conversation.pipeline import Pipeline
from msh_mlx.conversation.session import Session
from msh_mlx.conversation.warmup import warm
from msh_mlx.events import Event, Failed, Heard, Ready, Said, Spoke
from msh_mlx.library.files import find_demo
from msh_mlx.live.screen.status import Status
from msh_mlx.live.screen.terminal import LiveScreen

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from ends import Clock, Ends, speech  # noqa: E402

RECORDING = ROOT / "assets" / "demo" / "digits.flac"
WORDS = 6  # of the recording, which Moshi repeats
AFTER = 4  # frames from the last word to the picture, when the word is being heard


class Paper(RenderHook):
    """Keeps the lines that a screen has printed, and the footer that it painted last."""

    def __init__(self) -> None:
        self._printed: list[ConsoleRenderable] = []
        self._footer: ConsoleRenderable | None = None

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Take the renderables that the console is about to write. rich.live puts the footer last."""
        *printed, self._footer = renderables
        self._printed += [part for part in printed if not isinstance(part, Control)]
        return renderables

    def svg(self) -> str:
        """Return the picture, without the fonts that browsers would fetch for rich."""
        console = terminal(record=True)
        for part in self._printed:
            console.print(part, soft_wrap=True)
        console.print(self._footer)
        drawn = console.export_svg(title="msh-mlx --demo", unique_id="terminal")
        return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)


def terminal(*, record: bool = False) -> Console:
    """Return a console of 84 columns that is not shown."""
    return Console(
        file=io.StringIO(),
        record=record,
        width=84,
        height=24,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        legacy_windows=False,
        _environ={},
    )


def picture(load: Callable[[object], Session], words: int) -> str:
    """Let a model hear the recording until it has said `words` words, and return a picture of the screen.

    Raises
    ------
    BaseException
        The error with which the model or the codec failed.
    """
    console, paper = terminal(), Paper()
    screen = LiveScreen(console)
    ends, events = Ends(), SimpleQueue[Event]()
    clock = Clock(ends, speech(RECORDING), 1.0)
    pipeline = Pipeline(warm(load), ends.source, ends, events.put)
    with screen:
        console.push_render_hook(paper)
        pipeline.start()
        begun, heard, left, last = 0.0, 0.0, words, 0
        while True:
            event = events.get()
            screen.handle(event)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ready):
                begun = perf_counter()
                clock.start()
            elif isinstance(event, Heard):
                heard = float(np.abs(event.pcm).max())
            elif isinstance(event, Spoke):
                left -= event.text.startswith(" ")
                last = event.index
            elif isinstance(event, Said):
                metrics, memory = pipeline.metrics, pipeline.metrics.memory
                status = Status(
                    elapsed=perf_counter() - begun,
                    microphone=heard,
                    loudspeaker=float(np.abs(event.pcm).max()),
                    step_p50=1000 * metrics.step.recent(50),
                    step_p95=1000 * metrics.step.recent(95),
                    delay=1000 * metrics.delay.recent(50),
                    dropped=metrics.dropped,
                    underruns=ends.stats()["underruns"],
                    memory_active=memory.active,
                    memory_cache=memory.cache,
                    memory_peak=memory.peak,
                )
                screen.tick(status)
                if left == 0 and event.index >= last + AFTER:
                    break
        console.pop_render_hook()
        clock.stop()
        pipeline.stop(10)
        return paper.svg()


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", metavar="FILE", default=ROOT / "docs" / "terminal.svg", type=Path)
    parser.add_argument(
        "--words", metavar="N", default=WORDS, type=int, help="draw after N words (default: %(default)s)"
    )
    args = parser.parse_args()
    greedy = {"temperature": 0.0}
    drawn = picture(lambda _: load_session(find_demo(), None, voice=greedy, text=greedy, seed=None), args.words)
    args.output.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main(), debug=True))
