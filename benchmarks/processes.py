"""Workers that take turns, and environments for packages, for benchmarks that compare packages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msh_mlx.errors import InputError
from msh_mlx.system.words import printable

ROOT = Path(__file__).parents[1]


class Process:
    """A worker process. Requests and answers are lines of JSON."""

    def __init__(self, name: str, python: Path, worker: Path, threads: int | None, *arguments: object) -> None:
        """Start `worker` with `python`. `threads` limits the thread pools of its libraries."""
        self.name = name
        env = {**os.environ, "RUST_BACKTRACE": "0"}
        if threads is not None:
            # The thread pools of the codecs, and of numpy's libraries.
            pools = ("RAYON", "OPENBLAS", "OMP", "MKL")
            env |= {f"{pool}_NUM_THREADS": str(threads) for pool in pools} | {"VECLIB_MAXIMUM_THREADS": str(threads)}
        # A session of its own: Ctrl-C is for the benchmark, and the workers end with their input.
        self._process = subprocess.Popen(
            [str(python), str(worker), *map(str, arguments)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: str, **options: Any) -> Any:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([command, options]) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        answer = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        if "error" in answer:
            raise InputError(f"{self.name} failed: {answer['error'].rstrip('.')}.")
        return answer["result"]

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_peer(
    name: str, version: str, others: Sequence[str] = (), *, package: str | None = None, build: bool = False
) -> Path:
    """Make an environment in .cache with a package from the index, if it is not there. Return its interpreter.

    `name` is what is imported, and `package` what the index calls it, if that is another name. `others` are installed, too.
    With `build`, packages may be built here.
    """
    folder, package = ROOT / ".cache" / f"peer-{name}", package or name
    python = folder / "bin" / "python"
    check = f"import {name}, numpy, importlib.metadata as m; assert m.version('{package}') == {version!r}"
    if python.exists() and not subprocess.run([python, "-c", check], capture_output=True).returncode:
        return python
    print(f"Installing {package} {version} in an environment of its own", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    commands: list[list[Any]] = [
        [sys.executable, "-m", "venv", folder],
        [*pip, *([] if build else ["--only-binary=:all:"]), f"{package}=={version}", "numpy", *others],
    ]
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("ERROR: ")
            raise InputError(f"The environment of {name} cannot be made: {printable(reason).rstrip('.')}.")
    return python
