"""Where things go that no user should have to read: noise of native code, and tracebacks."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from datetime import datetime
from pathlib import Path


def log_folder() -> Path:
    """Name the folder for log files; it may not be there yet."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Logs" / "msh-mlx"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "msh-mlx"


class Log:
    """While entered, keeps to itself what native code writes to the standard error, which would spoil the screen."""

    def __enter__(self) -> Log:
        self._noise = tempfile.TemporaryFile()
        self._original: int | None = None
        with contextlib.suppress(OSError):  # there may be no standard error
            self._original = os.dup(2)
            os.dup2(self._noise.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._original is not None:
            os.dup2(self._original, 2)
            os.close(self._original)
        self._noise.close()

    def write(self, error: BaseException) -> Path | None:
        """Write a log file with the traceback of `error` and the noise where logs belong; None if that is impossible."""
        self._noise.seek(0)
        text = "".join(traceback.format_exception(error)).encode() + self._noise.read()
        for place in (log_folder(), Path(tempfile.gettempdir())):
            path = place / f"msh-mlx-{datetime.now():%Y-%m-%d-%H.%M.%S}-{os.getpid()}.log"
            with contextlib.suppress(OSError):
                place.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text)
                return path
        return None
