"""The sentences and figures that the screens share."""

from __future__ import annotations

import json

from rich.cells import cell_len, chop_cells

from ...events import Called, Calling, EchoState, Loading
from ...system.words import human_size, printable, shortened
from .status import Summary

PAUSE = 2.0  # seconds without a word that are worth showing
_SHOWN = 200  # characters of a tool's arguments or result
_STAGES = {
    "files": ("Looking for the files", "Files found"),
    "loading": ("Loading the model", "Model loaded"),
    "warm-up": ("Warming up", "Warmed up"),
    "connecting": ("Connecting", "Connected"),
    "waiting": ("Waiting for the server to listen", "Server ready"),
}


def stage_line(event: Loading) -> str:
    doing, done = _STAGES.get(event.stage, (event.stage.capitalize(), event.stage.capitalize()))
    return printable(doing if event.seconds is None else f"{done} in {event.seconds:.1f} s")


def call_line(event: Calling | Called) -> str:
    if isinstance(event, Called):
        return f"{shortened(f'{event.name}: {event.result}', _SHOWN)} ({event.seconds:.1f} s)"
    arguments = event.arguments
    try:
        given = json.loads(arguments)
        arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items())
    except (ValueError, AttributeError, RecursionError):  # shown as it is
        pass
    return f"Calling {shortened(f'{event.name}({arguments})', _SHOWN)}"


def clock(seconds: float) -> str:
    """Return a length of time as minutes and seconds, with hours if there are any."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def lost(dropped: float, underruns: int) -> str:
    return f"Dropped {dropped:.2f} s of your speech, {counted(underruns, 'underrun')}"


def echo_line(echo: EchoState) -> str:
    if echo.mode == "off":
        return "echo: off"
    if not echo.found or echo.level is None:
        return "no echo"
    return f"echo {round(echo.level)} dB, {round(echo.removed)} dB removed"


def summary_lines(summary: Summary) -> list[str]:
    """Return the summary of a conversation as lines of text."""
    lines = [f"Talked for {clock(summary.seconds)}: {counted(summary.words, 'word')} of Moshi's"]
    for name, stage in summary.stages.items():
        lines.append(
            f"  {name:7} {stage.p50:7.1f} ms p50 {stage.p95:7.1f} p95 {stage.p99:7.1f} p99 {stage.max:7.1f} max"
        )
    lines.append(lost(summary.dropped, summary.underruns))
    if summary.memory_peak is not None:
        lines.append(f"Memory: {human_size(summary.memory_peak)} at most")
    if echo := summary.echo:
        lines.append(
            f"Echo for {clock(echo.seconds)}: {round(echo.level)} dB (most {round(echo.level_most)}), "
            f"{round(echo.removed)} dB removed (most {round(echo.removed_most)})"
        )
    lines += [f"Written: {file}" for file in summary.files]
    return [printable(line) for line in lines]


class Flow:
    """Breaks text that comes in pieces into lines."""

    def __init__(self) -> None:
        self.line = ""

    def push(self, text: str, width: int) -> list[str]:
        """Add `text` to the line; return the lines that are full, of at most `width` cells each."""
        self.line = (self.line + printable(text)).lstrip(" ")
        full = []
        while cell_len(self.line.rstrip(" ")) > width:
            # Take at least one character, even if the terminal is narrower than that.
            room = max(len(chop_cells(self.line[: width + 1], width)[0]), 1)
            # A space right behind the room ends the last word that fits.
            end = self.line.rfind(" ", 0, room + 1)
            end = room if end <= 0 else end
            full.append(self.line[:end].rstrip(" "))
            self.line = self.line[end:].lstrip(" ")
        return full

    def flush(self) -> list[str]:
        """Return the line, if there is text on it, and begin a new one."""
        line, self.line = self.line.rstrip(" "), ""
        return [line] if line else []


def wrapped(text: str, width: int) -> list[str]:
    flow = Flow()
    return [*flow.push(text, width), *flow.flush()]
