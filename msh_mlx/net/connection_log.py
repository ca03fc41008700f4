"""The files of `--log-dir`: a summary of each connection, and its tokens."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..system.newfile import NewFile

_NOTHING = -1  # in place of codes that do not exist yet


class ConnectionLog:
    """Collects the tokens of a connection's conversations and writes them at its end; without a folder it does nothing.

    `NAME.json` has the summary. `NAME.npy` has the tokens, `[steps, 1 + K + K']` int32: the text token, Moshi's K codes of the
    frame that the step completed (−1 if it completed none), and the K' codes of the user's frame. An hour takes 3 MB.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self._folder = folder
        self._name = name
        self._rows = array("i")
        self._width = 0

    def add(self, heard: npt.NDArray[np.uint32], token: int, said: npt.NDArray[np.uint32] | None) -> None:
        """Add the tokens of a step; called on the session's thread."""
        if self._folder:
            own = [_NOTHING] * len(heard) if said is None else said.tolist()
            row = [token, *own, *heard.tolist()]
            self._width = len(row)
            self._rows.extend(row)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write both files.

        Raises
        ------
        InputError
            The folder cannot be written to.
        """
        if not self._folder:
            return
        tokens = np.frombuffer(self._rows, np.int32).reshape(-1, self._width or 1)
        with NewFile(self._folder / f"{self._name}.npy") as new:
            data = io.BytesIO()  # numpy would write to the file without Python, and would not say which error it met
            np.save(data, tokens)
            new.file.write(data.getbuffer())
            new.commit()
        with NewFile(self._folder / f"{self._name}.json") as new:
            new.file.write(json.dumps(dict(summary), indent=2).encode() + b"\n")
            new.commit()
