"""The keyboard: what counts as a key, and how the terminal is left."""

from __future__ import annotations

import io
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from paths import ROOT

from msh_mlx.live.keys import KEYS, Keys, action
from msh_mlx.live.terminal_keys import KeyStream

LIMIT = 10.0


def test_the_table_names_every_key_once() -> None:
    assert "".join(key.character for key in KEYS) == "m rsde?q"
    assert len({key.word for key in KEYS}) == len(KEYS)
    assert [action(c) for c in "mM q?xé"] == ["mute", "mute", "talk", "quit", "help", None, None]


# ---- bytes to keys -------------------------------------------------------------------------------------------------------

SWALLOWED = {
    "arrow": b"\x1b[A",
    "arrow, application mode": b"\x1bOD",
    "arrow with a modifier": b"\x1b[1;5D",
    "delete": b"\x1b[3~",
    "function key": b"\x1bOR",
    "function key of the Linux console": b"\x1b[[D",
    "Alt and a letter": b"\x1bq",
    "mouse": b"\x1b[<0;12;5M\x1b[<0;12;5m",
    "old mouse": b"\x1b[M qm",
    "paste": b"\x1b[200~quit\x1b[Ams\r\x1b[201~",
    "colour report": b"\x1b]11;rgb:dddd/mmmm/ssss\x07",
    "colour report, other end": b"\x1b]11;rgb:dddd/mmmm/ssss\x1b\\",
    "device attributes": b"\x1bP>|msd\x1b\\",
    "focus": b"\x1b[I\x1b[O",
    "control characters": b"\x04\r\n\t\x7f",
}


@pytest.mark.parametrize("data", SWALLOWED.values(), ids=SWALLOWED)
def test_what_is_not_a_key_is_swallowed(data: bytes) -> None:
    assert KeyStream().push(b"m" + data + b"q", 1.0) == ["m", "q"]


def test_any_mixture_in_any_pieces() -> None:
    rng = random.Random(1)
    for _ in range(200):
        expected: list[str] = []
        data = b""
        for _ in range(20):
            if rng.random() < 0.5:
                expected.append(rng.choice("m rsd?qé語"))
                data += expected[-1].encode()
            else:
                data += rng.choice(list(SWALLOWED.values()))
        stream, keys = KeyStream(), []
        while data:
            size = rng.randint(1, 5)
            keys += stream.push(data[:size], 1.0)
            data = data[size:]
        assert keys == expected


def test_the_escape_key_alone_takes_nothing_with_it() -> None:
    stream = KeyStream()
    assert stream.push(b"\x1b", 1.0) == []
    assert stream.push(b"q", 1.5) == ["q"]
    assert stream.push(b"\x1b[200~ms", 2.0) == []  # a paste whose end got lost
    assert stream.push(b"q", 4.0) == ["q"]


# ---- a terminal ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The master's descriptor, and the program's side as a file."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as file:
        yield master, file
    os.close(master)


def wait_for_key(keys: Keys) -> str | None:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and not keys.closed:
        if key := keys.poll(0.05):
            return key
    return None


def test_keys_come_without_return_and_the_terminal_is_restored(terminal: tuple[int, io.TextIOWrapper]) -> None:
    master, file = terminal
    before = termios.tcgetattr(file)
    handlers = [signal.getsignal(n) for n in (signal.SIGTSTP, signal.SIGCONT)]
    with suppress(KeyError), Keys(file) as keys:
        during = termios.tcgetattr(file)
        assert not during[3] & (termios.ECHO | termios.ICANON)
        assert during[3] & termios.ISIG
        os.write(master, "mé\x1b[A q".encode())
        assert [wait_for_key(keys) for _ in range(4)] == ["m", "é", " ", "q"]
        assert keys.poll(0.01) is None
        raise KeyError
    assert termios.tcgetattr(file) == before
    assert [signal.getsignal(n) for n in (signal.SIGTSTP, signal.SIGCONT)] == handlers


def test_a_closed_terminal_is_noticed() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as file, Keys(file) as keys:
        assert not keys.closed
        os.close(master)
        assert wait_for_key(keys) is None
        assert keys.closed
        begin = time.monotonic()
        assert keys.poll(0.05) is None
        assert time.monotonic() - begin > 0.04  # it waits, it does not spin


def test_no_terminal_no_keys() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"q")
    with os.fdopen(reader, "r") as file, Keys(file) as keys:
        assert keys.poll(0.01) is None
        assert not keys.closed
    with Keys(io.StringIO("q")) as keys:
        assert keys.poll(0) is None
    os.close(writer)


CHILD = """
import sys, termios
from msh_mlx.live.keys import Keys

def say(*words):
    print(*words, flush=True)

say("mode", bool(termios.tcgetattr(0)[3] & termios.ICANON))
with Keys(suspend=lambda: say("suspend"), resume=lambda: say("resume")) as keys:
    say("ready")
    while (key := keys.poll(0.05)) != "q":
        if key:
            say("key", key, bool(termios.tcgetattr(0)[3] & termios.ICANON))
say("end", bool(termios.tcgetattr(0)[3] & termios.ICANON))
"""


def test_stopped_and_continued_by_a_shell() -> None:
    # A shell with job control on a terminal of its own, as a user has it.
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        [sys.executable, "-c", SHELL],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, "PROGRAM": CHILD, "TERM": "xterm"},
    )
    os.close(slave)
    read = b""

    def until(text: bytes) -> None:
        nonlocal read
        end = time.monotonic() + LIMIT
        while text not in read and time.monotonic() < end:
            read += os.read(master, 4096)
        assert text in read, read
        read = read[read.index(text) + len(text) :]

    try:
        until(b"mode True")
        until(b"\x1b[?2004h")
        until(b"ready")
        os.write(master, b"m")
        until(b"key m False")
        os.write(master, b"\x1a")  # Ctrl-Z
        until(b"suspend")
        until(b"\x1b[?2004l")
        until(b"shell sees True")
        until(b"resume")
        os.write(master, b"s")
        until(b"key s False")
        os.write(master, b"q")
        until(b"\x1b[?2004l")
        until(b"end True")
        until(b"shell ends 0")
    finally:
        shell.kill()
        shell.wait()
        os.close(master)


SHELL = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)

def own_group():
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)

child = subprocess.Popen([sys.executable, "-c", os.environ["PROGRAM"]], preexec_fn=own_group)
_, status = os.waitpid(child.pid, os.WUNTRACED)
assert os.WIFSTOPPED(status), status
os.tcsetpgrp(0, os.getpgrp())
print("shell sees", bool(termios.tcgetattr(0)[3] & termios.ICANON), flush=True)
os.tcsetpgrp(0, child.pid)
os.kill(child.pid, signal.SIGCONT)
_, status = os.waitpid(child.pid, 0)
print("shell ends", os.waitstatus_to_exitcode(status), flush=True)
"""
