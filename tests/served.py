"""The server with the demo model, as a user starts it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

LIMIT = 10  # seconds, against hanging
LOADED = 120  # seconds until a busy machine has loaded the model


@contextlib.contextmanager
def serving(folder: Path, *args: str, port: int = 0) -> Iterator[int]:
    """Run the server in a folder, where it also writes what it says; yields its port."""
    command = [sys.executable, str(ROOT / "server_opus.py"), "--demo", "--port", str(port), *args]
    output = folder / "server.txt"
    with output.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        deadline = time.monotonic() + LOADED
        while not (found := re.search(r"listening on \S+:(\d+)", output.read_text())):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
