"""Write when the stages of a live conversation worked, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from ..errors import InputError
from ..events import Dropped, EchoState, Event, Failed, Loading, Notice, Queues, Ready, Span, SpokeWord, Underrun
from ..system.newfile import check_outputs
from .background import Background, disk_error

_TRACKS = {
    name: number for number, name in enumerate(["start", "encode", "step", "decode", "events", "words"], start=1)
}
_NO_ECHO = -100.0  # dB of full scale, written where the level of the echo is not known
_QUEUE = 50_000  # events that may wait for the disk
_BUFFER = 1 << 16  # characters that are written at once

_Traced = Loading | Ready | SpokeWord | Span | Queues | EchoState | Dropped | Underrun | Notice | Failed


class Trace:
    """Writes events in the Chrome trace format. Any thread may call `trace(event)`; the call never waits.

    Each stage ("encode", "step", "decode") has a track with a span for every frame. There are tracks for the start, for words
    and for other events (drops, underruns, notices), and counters for the queues and the echo. Times are microseconds since the
    trace was opened. The file is written about twice a second. After a crash it lacks only the `]` at its end, and the viewers
    read it as it is. When the disk is full or too slow, the trace ends with a `Notice` ("trace-ended"), and the conversation
    goes on.

    Parameters
    ----------
    path
        The file to write; an existing one is replaced.
    notify
        Called with the `Notice`, on the trace's thread or on a thread that calls the trace.
    queue
        How many events may wait for the disk; with more, the disk counts as too slow.

    Raises
    ------
    InputError
        The file cannot be written.
    """

    def __init__(self, path: Path, notify: Callable[[Notice], None], *, queue: int = _QUEUE) -> None:
        self.path = path
        check_outputs([self.path], [])
        try:
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
        self._notify = notify
        self._begin = perf_counter()
        self._ended = False
        self._ending = threading.Lock()
        self._size = 0
        self._lines: list[str] = []
        self._length = 0
        self._background = Background[tuple[float, _Traced]]("trace", self._handle, self._flush, queue)
        self._add({"ph": "M", "name": "process_name", "args": {"name": "msh-mlx"}})
        for name, number in _TRACKS.items():
            self._add({"ph": "M", "name": "thread_name", "tid": number, "args": {"name": name}})
            self._add({"ph": "M", "name": "thread_sort_index", "tid": number, "args": {"sort_index": number}})

    def __call__(self, event: Event) -> None:
        """Trace an event; events with sound are ignored."""
        if self._ended or not isinstance(event, _Traced):
            return
        if not self._background.put((perf_counter(), event)):
            self._end("the disk is too slow")

    def close(self, timeout: float = 1.0) -> bool:
        """Complete the file and end the thread; return whether that is done within `timeout` seconds."""
        if not self._background.close(timeout):
            return False
        self._flush("\n]\n")
        self._file.close()
        return True

    # ---- on the trace's thread -------------------------------------------------------------------------------------------

    def _handle(self, thing: tuple[float, _Traced]) -> None:
        time, event = thing
        if isinstance(event, Span):
            self._span(event.stage, f"{event.stage} {event.index}", event.begin, event.end, {"frame": event.index})
        elif isinstance(event, Queues):
            waiting = {
                "microphone": event.microphone,
                "codes": event.model,
                "frames": event.decoder,
                "loudspeaker": event.loudspeaker,
                "cushion": event.cushion,
            }
            self._counter("queue ms", event.time, {name: round(1000 * size, 3) for name, size in waiting.items()})
            self._counter(
                "lost", event.time, {"dropped ms": round(1000 * event.dropped, 3), "underruns": event.underruns}
            )
        elif isinstance(event, EchoState):
            level = _NO_ECHO if event.level is None else round(event.level, 1)
            self._counter("echo dB", time, {"level": level, "taken away": round(event.removed, 1)})
        elif isinstance(event, Loading):
            if event.seconds is not None:
                self._span("start", event.stage, time - event.seconds, time, {})
        elif isinstance(event, SpokeWord):
            self._instant("words", event.word.text, time, {"start": event.word.start})
        elif isinstance(event, Ready):
            self._instant("events", f"conversation {event.conversation}", time, {})
        elif isinstance(event, Dropped):
            self._instant("events", "dropped", time, {"frame": event.index, "ms": round(1000 * event.seconds, 3)})
        elif isinstance(event, Underrun):
            self._instant("events", "underrun", time, {"count": event.count})
        elif isinstance(event, Notice):
            self._instant("events", event.kind, time, {"message": event.message, "level": event.level})
        else:
            self._instant("events", f"{event.where} failed", time, {"message": str(event.error)})

    def _span(self, track: str, name: str, begin: float, end: float, args: dict[str, Any]) -> None:
        # Round both ends, not the duration, so that spans that touch do not overlap.
        start, stop = self._microseconds(begin), self._microseconds(end)
        self._add(
            {
                "ph": "X",
                "name": name,
                "cat": track,
                "tid": _TRACKS[track],
                "ts": start,
                "dur": round(stop - start, 3),
                "args": args,
            }
        )

    def _instant(self, track: str, name: str, time: float, args: dict[str, Any]) -> None:
        tid = _TRACKS[track]
        self._add({"ph": "i", "s": "t", "name": name, "tid": tid, "ts": self._microseconds(time), "args": args})

    def _counter(self, name: str, time: float, args: dict[str, float]) -> None:
        self._add({"ph": "C", "name": name, "ts": self._microseconds(time), "args": args})

    def _microseconds(self, time: float) -> float:
        return round(1e6 * (time - self._begin), 3)

    def _add(self, entry: dict[str, Any]) -> None:
        line = json.dumps({"pid": 1, **entry}, ensure_ascii=False)
        self._lines.append(line)
        self._length += len(line)
        if self._length > _BUFFER:
            self._flush()

    def _flush(self, end: str = "") -> None:
        """Write whole entries. The comma goes before each, not after, so that the file only ever lacks the last bracket."""
        if self._ended:
            self._lines.clear()
            return
        data = "".join((",\n" if self._size or i else "[\n") + line for i, line in enumerate(self._lines)) + end
        self._lines.clear()
        self._length = 0
        rest = memoryview(data.encode(errors="replace"))
        whole = self._size + len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._size = whole
        except OSError as error:
            self._end(disk_error(error))
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)

    def _end(self, reason: str) -> None:
        with self._ending:
            if self._ended:
                return
            self._ended = True
        self._notify(
            Notice("trace-ended", f"The trace ended: {reason}. What came before is in {self.path}.", "warning")
        )
