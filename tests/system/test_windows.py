"""What the package does differently on Windows, as far as other systems can show it; `make check-windows` shows the rest."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import msh_mlx
from msh_mlx.errors import InputError
from msh_mlx.system import inputs

# Modules of Python that are not on Windows.
MISSING = "curses fcntl grp pty pwd readline resource syslog termios tty"

IMPORT_ALL = """
import builtins, importlib, pkgutil, sys, types
import msh_mlx

missing, real = set(sys.argv[1].split()), builtins.__import__

def imported(name, globals=None, *rest, **named):
    if (globals or {}).get("__name__", "").startswith("msh_mlx") and name.partition(".")[0] in missing:
        raise ImportError(f"{globals['__name__']} imports {name}")
    return real(name, globals, *rest, **named)

builtins.__import__ = imported
# Keys are read by another module there, which needs msvcrt.
keys = sys.modules["msh_mlx.live.terminal_keys"] = types.ModuleType("msh_mlx.live.terminal_keys")
keys.TerminalKeys = object
names = [module.name for module in pkgutil.walk_packages(msh_mlx.__path__, "msh_mlx.")]
left_out = "__main__", "live.console_keys", "model.mlx", "weights.onto_mlx", "cli.replica_router"
left_out = tuple(f"msh_mlx.{name}" for name in left_out)
for name in names:
    if not name.startswith(left_out):
        importlib.import_module(name)
print(len(names))
"""


def test_no_module_imports_what_windows_lacks():
    command = [sys.executable, "-c", IMPORT_ALL, MISSING]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(msh_mlx.__path__[0]).parent)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def pieces(descriptor, wait=lambda: None):
    return inputs._read_by_thread(descriptor, "The text", wait)


def test_a_thread_reads_what_comes():
    source, target = os.pipe()
    waits = 0

    def wait():
        nonlocal waits
        waits += 1
        if waits == 2:
            os.write(target, b"two")
            os.close(target)

    os.write(target, b"one ")
    with os.fdopen(source, "rb", buffering=0):
        first, *rest = pieces(source, wait)
        assert (first, b"".join(rest)) == (b"one ", b"two")
        assert rest[-1] == b""
    assert waits >= 2


def test_the_end_of_waiting_ends_the_reading():
    source, target = os.pipe()

    def wait():
        raise KeyboardInterrupt

    with os.fdopen(source, "rb", buffering=0):
        with pytest.raises(KeyboardInterrupt):
            list(pieces(source, wait))
        os.close(target)  # ends the thread
        for thread in threading.enumerate():
            if thread.name == "reading":
                thread.join()


def test_a_thread_tells_what_cannot_be_read(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"x")
    descriptor = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(InputError, match="The text cannot be read"):
            list(pieces(descriptor))
    finally:
        os.close(descriptor)
