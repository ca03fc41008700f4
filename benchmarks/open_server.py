"""A server that lets in every client, whether there is time or not: `open_server.py together|apart FIGURES OPTION…`.

"apart", each conversation has three threads of its own, and the steps take turns, as it was before they were made together.
The processor time that went to each part is kept in the file FIGURES, by part, in seconds: "model", "codec", "Opus", "all".
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time, sleep, thread_time
from typing import Any

from msh_mlx.cli import main as cli
from msh_mlx.conversation import codec, load, shared
from msh_mlx.conversation.live import NullSink
from msh_mlx.conversation.pipeline import Pipeline
from msh_mlx.conversation.session import Session
from msh_mlx.net import connection, opus

_EVERY = 0.2  # seconds between two times that the figures are written
_TASKS = Path("/proc/self/task")  # of Linux; elsewhere, threads of the kernels count as neither model nor codec


def apart(seat: shared.Seat, source: Any, events: Any, **options: Any) -> Pipeline:
    """Make a conversation with threads of its own, whose steps take turns with those of others."""
    session, turn = seat.session, seat.model.take_turn
    step, reset = session.step, session.reset_model
    own: Any = session
    own.step = lambda codes: turn(lambda: step(codes))
    own.reset_model = lambda: turn(reset)
    return Pipeline(lambda *_: session, source, NullSink(), events, **options)


class Parts:
    """The processor time of each part."""

    def __init__(self) -> None:
        self._spent: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._workers: dict[str, str] = {}  # the part of each thread of the kernels
        self._watch(Session, "encode", "codec")
        self._watch(Session, "decode", "codec")
        self._watch(opus.OpusEncoder, "encode", "Opus")
        self._watch(opus.OpusDecoder, "decode", "Opus")
        self._own(codec, "Mimi", "codec")
        self._own(load, "load_parts", "model")  # those that were not the codec's

    def _watch(self, owner: Any, name: str, part: str) -> None:
        work = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            begin = thread_time()
            try:
                return work(*args, **options)
            finally:
                spent = thread_time() - begin
                with self._lock:
                    self._spent[part] += spent

        setattr(owner, name, timed)

    def _own(self, owner: Any, name: str, part: str) -> None:
        """Let the threads that a function starts, those of the kernels, belong to a part."""
        work = getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            result = work(*args, **options)
            for task in _kernels():
                self._workers.setdefault(task, part)
            return result

        setattr(owner, name, noted)

    def figures(self) -> dict[str, float]:
        """Return the seconds of each part so far."""
        with self._lock:
            spent = Counter(self._spent)
        for task, part in self._workers.items():
            spent[part] += _seconds(task)
        for thread in threading.enumerate():
            if thread.name == "msh-model":
                spent["model"] += _seconds(str(thread.native_id))
        return {**spent, "all": process_time()}

    def write(self, path: Path) -> None:
        """Write them again and again."""
        new = path.with_suffix(".new")
        while True:
            new.write_text(json.dumps(self.figures()))
            new.replace(path)
            sleep(_EVERY)


def _kernels() -> list[str]:
    return [task.name for task in _TASKS.glob("*") if (task / "comm").read_text().startswith("kernels-")]


def _seconds(task: str) -> float:
    """Return the processor time of a thread, in seconds; 0 if it has ended."""
    try:
        return int((_TASKS / task / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


def main(way: str, figures: str, *options: str) -> int:
    """Serve."""
    admits: Callable[..., bool] = lambda *_, **__: True  # noqa: E731
    shared.SharedModel.has_room = admits  # type: ignore[method-assign]
    if way == "apart":
        connection.Pooled = apart  # type: ignore[assignment,misc]
    parts = Parts()
    threading.Thread(target=parts.write, args=[Path(figures)], daemon=True).start()
    return cli.main(["serve", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
