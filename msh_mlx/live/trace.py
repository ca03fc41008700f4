"""Write when the stages of a live conversation worked, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import events
from ..errors import InputError
from ..system.newfile import check_outputs
from .background import Background

_TRACKS = {
    name: number
    for number, name in enumerate(["start", "encode", "step", "decode", "events", "words", "reply", "tools"], start=1)
}
_STAGES = "end of turn", "last words", "language model", "speech", "loudspeaker"  # of a reply
_NO_ECHO = -100.0  # dB of full scale, written where the level of the echo is not known
_QUEUE = 50_000  # events that may wait for the disk
_BUFFER = 1 << 16  # characters that are written at once


class Trace:
    """Writes events in the Chrome trace format. Any thread may call `trace(event)`; the call never waits.

    Each stage ("encode", "step", "decode") has a track with a span for every frame. There are tracks for the start, for words,
    for a language model's replies and calls of tools, and for other events (drops, underruns, notices), and counters for the
    queues and the echo. Times are microseconds since the trace was opened. The file is written about twice a second. After a
    crash it lacks only the `]` at its end, and the viewers read it as it is. When the disk is full or too slow, the trace ends
    with a `Notice` ("trace-ended"), and the conversation goes on.

    `path` is the file to write; an existing one is replaced, and an `InputError` says that it cannot be written. `notify` is
    called with the `Notice`, on the trace's thread or on a thread that calls the trace. `queue` is how many events may wait for
    the disk.
    """

    def __init__(self, path: Path, notify: Callable[[events.Notice], None], *, queue: int = _QUEUE) -> None:
        self.path = path
        check_outputs([self.path], [])
        try:
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
        self._notify = notify
        self._begin = perf_counter()
        self._size = 0
        self._lines: list[str] = []
        self._length = 0
        self._add("M", "process_name", {"name": "msh-mlx"})
        for name, number in _TRACKS.items():
            self._add("M", "thread_name", {"name": name}, tid=number)
            self._add("M", "thread_sort_index", {"sort_index": number}, tid=number)
        self._background = Background("trace", self._flush, self._report_end, queue)

    def __call__(self, event: events.Event) -> None:
        """Trace an event; events with sound are ignored."""
        if not isinstance(event, events.Heard | events.Said):
            time = perf_counter()
            self._background.put(lambda: self._write(time, event))

    def close(self, timeout: float = 1.0) -> bool:
        """Complete the file and end the thread; return whether that is done within `timeout` seconds."""
        self._background.force(lambda: self._flush("\n]\n"))
        if not self._background.close(timeout):
            return False
        self._file.close()
        return True

    # ---- on the trace's thread -------------------------------------------------------------------------------------------

    def _write(self, time: float, event: events.Event) -> None:
        match event:
            case events.Span(stage, index, begin, end):
                self._span(stage, f"{stage} {index}", begin, end, {"frame": index})
            case events.Queues():
                names = "microphone", "model", "decoder", "loudspeaker", "cushion"
                waiting = {name: round(1000 * getattr(event, name), 3) for name in names}
                lost = {"dropped ms": round(1000 * event.dropped, 3), "underruns": event.underruns}
                self._counter("queue ms", event.time, waiting)
                self._counter("lost", event.time, lost)
            case events.EchoState():
                level = _NO_ECHO if event.level is None else round(event.level, 1)
                self._counter("echo dB", time, {"level": level, "removed": round(event.removed, 1)})
            case events.Loading(stage, seconds) if seconds is not None:
                self._span("start", stage, time - seconds, time, {})
            case events.SpokeWord(word):
                self._instant("words", word.text, time, {"start": word.start})
            case events.Replied():
                ends = [event.noticed, event.written, event.thought, event.made, event.played]
                for name, begin, end in zip(_STAGES, [event.voice_ended, *ends], ends, strict=False):
                    self._span("reply", name, begin, max(begin, end), {})
            case events.Called(name, arguments, result, failed, seconds):
                args = {"arguments": arguments, "result": result, "failed": failed}
                self._span("tools", name, time - seconds, time, args)
            case events.Turned(text):
                self._instant("events", "turn", time, {"text": text})
            case events.Ready(conversation):
                self._instant("events", f"conversation {conversation}", time, {})
            case events.Dropped(index, seconds):
                self._instant("events", "dropped", time, {"frame": index, "ms": round(1000 * seconds, 3)})
            case events.Underrun(count):
                self._instant("events", "underrun", time, {"count": count})
            case events.Notice(kind, message, level):
                self._instant("events", kind, time, {"message": message, "level": level})
            case events.Failed(where, error):
                self._instant("events", f"{where} failed", time, {"message": str(error)})

    def _span(self, track: str, name: str, begin: float, end: float, args: dict[str, Any]) -> None:
        # Round both ends, not the duration, so that spans that touch do not overlap.
        start, stop = self._microseconds(begin), self._microseconds(end)
        self._add("X", name, args, cat=track, tid=_TRACKS[track], ts=start, dur=round(stop - start, 3))

    def _instant(self, track: str, name: str, time: float, args: dict[str, Any]) -> None:
        self._add("i", name, args, s="t", tid=_TRACKS[track], ts=self._microseconds(time))

    def _counter(self, name: str, time: float, args: dict[str, float]) -> None:
        self._add("C", name, args, ts=self._microseconds(time))

    def _microseconds(self, time: float) -> float:
        return round(1e6 * (time - self._begin), 3)

    def _add(self, kind: str, name: str, args: dict[str, Any], **fields: object) -> None:
        line = json.dumps({"ph": kind, "name": name, "pid": 1, **fields, "args": args}, ensure_ascii=False)
        self._lines.append(line)
        self._length += len(line)
        if self._length > _BUFFER:
            self._flush()

    def _flush(self, end: str = "") -> None:
        """Write whole entries. The comma goes before each, not after, so that the file only ever lacks the last bracket."""
        lines, self._lines, self._length = self._lines, [], 0
        if self._background.ended:
            return
        data = "".join((",\n" if self._size or i else "[\n") + line for i, line in enumerate(lines)) + end
        rest = memoryview(data.encode(errors="replace"))
        whole = self._size + len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size = whole

    def _report_end(self, reason: str) -> None:
        self._notify(
            events.Notice("trace-ended", f"The trace ended: {reason}. What came before is in {self.path}.", "warning")
        )
