"""The log file: tracebacks, and the messages of native code."""

from __future__ import annotations

import contextlib
import os
import traceback
from datetime import datetime
from pathlib import Path

from ..errors import MshError
from .places import log_folder, temporary_file, temporary_folder


class Log:
    """While entered, collects what native code writes to the standard error, so that it does not disturb the screen."""

    def __enter__(self) -> Log:
        try:
            self._noise = temporary_file()
        except MshError:  # without a temporary file it is lost
            self._noise = Path(os.devnull).open("r+b")
        self._original = os.dup(2)
        os.dup2(self._noise.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._original, 2)
        os.close(self._original)
        self._noise.close()

    def write(self, error: BaseException) -> Path | None:
        """Write a log file: the traceback of `error`, and what was collected. Return its path; None if that is impossible."""
        self._noise.seek(0)
        text = "".join(traceback.format_exception(error)).encode() + self._noise.read()
        for folder in (log_folder, temporary_folder):
            try:
                place = folder()
            except MshError:
                continue
            if place is None:
                continue
            path = place / f"msh-mlx-{datetime.now():%Y-%m-%d-%H.%M.%S}-{os.getpid()}.log"
            with contextlib.suppress(OSError):
                place.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text)
                return path
        return None
