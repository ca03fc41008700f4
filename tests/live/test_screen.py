"""What a conversation looks like: in terminals of several kinds, as plain lines, as JSON."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import random
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pyte
import pytest
from paths import ROOT
from rich.cells import cell_len
from rich.console import Console

from msh_mlx.events import (
    Called,
    Calling,
    Dropped,
    EchoState,
    Failed,
    Loading,
    Notice,
    Ready,
    Spoke,
    SpokeWord,
    Underrun,
    Word,
)
from msh_mlx.format import FRAME_SECONDS
from msh_mlx.live.screen.json import JsonScreen
from msh_mlx.live.screen.open import open_screen
from msh_mlx.live.screen.plain import PlainScreen
from msh_mlx.live.screen.sentences import Flow, clock
from msh_mlx.live.screen.status import EchoSummary, Screen, StageTimes, Status, Summary
from msh_mlx.live.screen.terminal import LiveScreen, Meter

LIMIT = 10.0

STATUS = Status(
    elapsed=3725.4,
    microphone=0.1,
    loudspeaker=0.001,
    step_p50=41.2,
    step_p95=62.6,
    delay=168.4,
    dropped=0.24,
    underruns=1,
    memory_active=4_100_000_000,
    memory_cache=200_000_000,
    memory_peak=4_400_000_000,
    input_device="MacBook Pro Microphone",
    output_device="MacBook Pro Speakers",
    recording="/somewhere/talks/monday",
    echo=EchoState("auto", found=True, level=-18.4, removed=31.6, delay=0.05),
    hints=("Moshi hears itself: use headphones.",),
)

SUMMARY = Summary(
    seconds=151.2,
    words=312,
    stages={"encode": StageTimes(3, 4, 5, 9), "step": StageTimes(41.25, 62, 70, 120)},
    dropped=0.24,
    underruns=1,
    memory_peak=4_400_000_000,
    echo=EchoSummary(90.5, -31, -18, 28, 36),
    files=("talks/monday/user.wav",),
)


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A terminal in memory, and a console that writes to it."""

    def __init__(self, width: int, height: int = 24, *, encoding: str = "utf-8", colour: bool = False) -> None:
        self._bytes = io.BytesIO()
        file = io.TextIOWrapper(self._bytes, encoding=encoding, errors="replace", write_through=True)
        self.console = Console(
            file=file,
            width=width,
            height=height,
            force_terminal=True,
            color_system="standard" if colour else None,
            highlight=False,
            legacy_windows=False,
        )
        self._encoding = encoding
        self.screen = pyte.HistoryScreen(width, height, history=1000)
        self.screen.set_mode(pyte.modes.LNM)  # what a terminal's driver does with a line feed
        self._stream = pyte.Stream(self.screen)
        self.output = ""

    def lines(self) -> list[str]:
        """What is on the screen, and above it, without empty lines at the end."""
        text = self._bytes.getvalue().decode(self._encoding)
        self._stream.feed(text[len(self.output) :])
        self.output = text
        above = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        lines = [line.rstrip() for line in [*above, *self.screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def live(terminal: Terminal, now: Time) -> LiveScreen:
    return LiveScreen(terminal.console, now=now)


def say(screen: Screen, now: Time, text: str, index: int) -> int:
    """Let Moshi say words, one every four frames; return the frame after them."""
    for word in text.split():
        screen.handle(Spoke(index, f" {word}"))
        index += 4
        now.now += 4 * FRAME_SECONDS
        screen.tick()
    return index


# ---- parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 7, 60])
def test_lines_break_between_words_and_fit(width: int) -> None:
    rng = random.Random(width)
    for _ in range(100):
        text = "".join(rng.choice("abc  é日本,\n\x1b") for _ in range(200))
        flow, lines = Flow(), []
        position = 0
        while position < len(text):
            size = rng.randint(1, 9)
            lines += flow.push(text[position : position + size], width)
            position += size
        lines += flow.flush()
        assert not flow.flush()
        if width > 1:
            assert max(map(cell_len, lines)) <= width
        shown = "".join(lines).replace(" ", "")
        assert shown == "".join("\N{REPLACEMENT CHARACTER}" if c == "\x1b" else c for c in text if not c.isspace())


def test_words_stay_whole_where_they_can() -> None:
    flow = Flow()
    # The third word comes in two pieces, the second of which does not fit.
    assert [flow.push(piece, 11) for piece in (" one", " two", " thr", "ee", " four")] == [[], [], [], ["one two"], []]
    assert flow.push(" x", 11) == ["three four"]
    assert flow.flush() == ["x"]


def test_a_meter_holds_its_peak_and_lets_it_fall() -> None:
    meter = Meter()

    def bar() -> str:
        from msh_mlx.live.screen.terminal import _UNICODE

        return "".join(segment.text for segment in meter.draw(60, _UNICODE))

    meter.push(1.0, True, 0.0)
    assert bar() == "█" * 60
    assert meter.clipped
    meter.push(0.0, False, 1.0)
    assert bar().index("│") == 59
    assert bar().rstrip(" │") == "█" * 30  # 30 dB in a second
    meter.push(0.0, False, 2.0)
    assert not meter.clipped
    assert 20 < bar().index("│") < 59
    meter.push(0.0, False, 10.0)
    assert bar().strip() == ""
    meter.push(10 ** (-30 / 20), False, 11.0)
    assert bar().rstrip() == "█" * 30 + "│"


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3599, 3600, 36000)] == [
        "0:00",
        "0:59",
        "1:00",
        "59:59",
        "1:00:00",
        "10:00:00",
    ]


# ---- a terminal ----------------------------------------------------------------------------------------------------------

WORDS = (
    "It is a pleasure to talk to you about the weather in [bold]Paris[/], or 日本語 or th\x1b[2Jis or any other thing"
)


@pytest.mark.parametrize("width", [60, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_conversation_in_a_terminal(width: int, encoding: str) -> None:
    now, terminal = Time(), Terminal(width, encoding=encoding)
    with live(terminal, now) as screen:
        screen.handle(Notice("about", "Moshi"))
        screen.handle(Loading("loading"))
        now.now += 1.5
        screen.tick()
        assert "Loading the model  1.5 s" in "\n".join(terminal.lines())
        screen.handle(Loading("loading", fraction=0.426))
        now.now += 0.5
        screen.tick()
        assert "Loading the model  43 %  2.0 s" in "\n".join(terminal.lines())
        screen.handle(Loading("loading", 2.25))
        screen.handle(Ready(1))
        now.now += 1
        screen.tick(STATUS)
        assert "Moshi is listening" in terminal.lines()
        index = say(screen, now, WORDS, 10)
        screen.tick(STATUS)
        say(screen, now, "after a pause", index + 50)
        now.now += 1
        screen.tick(STATUS)
        lines = terminal.lines()
    text = "\n".join(lines)
    assert max(map(cell_len, lines)) < width
    assert ("Moshi\n✓ Model loaded in 2.2 s\n\nIt is" if encoding == "utf-8" else "Moshi\n* Model") in text
    spoken = text[text.index("It is") : text.index("mic")]
    expected = WORDS.replace("\x1b", "\N{REPLACEMENT CHARACTER}") + " ⋯ 4 s after a pause"
    if encoding == "ascii":
        expected = expected.replace("⋯", "...").encode("ascii", "replace").decode()
    assert spoken.split() == expected.split()
    figures = [
        "1:02:05",
        "step 41/63 of 80 ms",
        "delay 168 ms",
        "dropped 0.2 s",
        "1 underrun",
        "echo -18 dB, 32 dB removed",
        "memory 4.1 GB + 200.0 MB, peak 4.4 GB",
        "recording to monday",
    ]
    separator = " · " if encoding == "utf-8" else " | "
    start = next(i for i, line in enumerate(lines) if line.startswith(figures[0]))
    assert separator.join(lines[start:-2]).split(separator) == figures
    assert lines[-2:] == [
        "! Moshi hears itself: use headphones.",
        f"m mute  space talk  r new  s save  d device{'  e echo' if width > 67 else ''}  ? help  q quit",
    ]
    meters = lines[start - 1]
    full = "█" if encoding == "utf-8" else "#"
    assert re.match(f"mic {full}+", meters)
    assert re.search("speaker *(MacBook|$)", meters)
    assert ("MacBook Pro Microphone" in meters) == (width == 200)
    assert terminal.screen.cursor.hidden
    # Afterwards: the words only, and a cursor.
    lines = terminal.lines()
    assert "\n".join(lines) + "\n" == text[: text.index("mic")].rstrip() + "\n"
    assert not terminal.screen.cursor.hidden


SIZES = (80, 24), (60, 24), (50, 20), (80, 14), (60, 14), (80, 12), (40, 12), (80, 10)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("muted", [False, True])
def test_the_status_stays_beside_the_help(width: int, height: int, muted: bool) -> None:
    now, terminal = Time(), Terminal(width, height)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        screen.tick(replace(STATUS, muted=muted))
        screen.help()
        text = "\n".join(terminal.lines())
    assert re.search("^mic +muted" if muted else "^mic +█", text, re.MULTILINE)
    assert ("m unmute" in text, "Muted: m lets Moshi hear you" in text) == (muted, muted)
    assert "push to talk" in text
    assert "1:02:05 · step 41/63 of 80 ms" in text
    assert "! Moshi hears itself: use headphones." in text
    assert text.splitlines()[-1].endswith("q quit")
    if height >= 20:
        assert re.search("^q +end the conversation", text, re.MULTILINE)


def test_what_is_wrong_and_the_keys_stay_in_low_windows() -> None:
    now, terminal = Time(), Terminal(30, 8)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        screen.tick(STATUS)
        text = "\n".join(terminal.lines())
    assert "! Moshi hears itself: use" in text
    assert text.endswith("q quit")


@pytest.mark.parametrize("height", range(6, 12))
def test_what_is_wrong_stays_beside_the_help_in_the_lowest_windows(height: int) -> None:
    now, terminal = Time(), Terminal(60, height)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        screen.tick(STATUS)
        screen.help()
        text = "\n".join(terminal.lines())
    assert "! Moshi hears itself: use headphones." in text
    assert ("mute the microphone" in text) == (height >= 7)


@pytest.mark.parametrize(("width", "height"), [(60, 24), (200, 50), (20, 8), (1, 1), (34, 3)])
def test_the_footer_never_fills_the_terminal(width: int, height: int) -> None:
    now, terminal = Time(), Terminal(width, height)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        for toggles in range(2):
            now.now += 1
            screen.tick(STATUS)
            assert len(screen._footer()) <= max(height - 1, 1)
            assert all(sum(cell_len(s.text) for s in line) <= max(width - 1, 1) for line in screen._footer())
            screen.help()
            if toggles == 0 and width > 30 and height > 20:
                text = "\n".join(terminal.lines())
                for phrase in ("begin a new conversation", "median and 95th percentile"):
                    assert phrase in text
                assert text.endswith("q quit")
        say(screen, now, "words " * 40, 0)
    assert " ".join(terminal.lines()).split().count("words") == 40 or width == 1


def test_the_footer_says_what_is_wrong() -> None:
    now, terminal = Time(), Terminal(60, colour=True)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        screen.tick(Status(muted=True, loudspeaker_clipped=True, step_p50=70, step_p95=90))
        text = "\n".join(terminal.lines())
    assert re.search(r"mic muted .*CLIP", text)
    assert "step 70/90 of 80 ms !" in text
    assert "\x1b[1;31m" in terminal.output


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "xterm-mono"}, {"TERM": "ansi-m"}])
def test_terminals_without_colours(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)

    class File(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = File()
    with open_screen(plain=False, as_json=False, out=file) as screen:
        assert isinstance(screen, LiveScreen)
        screen.handle(Ready(1))
        screen.handle(Notice("device-lost", "Gone", "error"))
        screen.tick(STATUS)
    styles = {int(n) for codes in re.findall(r"\x1b\[([\d;]*)m", file.getvalue()) for n in codes.split(";") if n}
    assert styles <= {0, 1, 2}


@pytest.mark.parametrize(
    ("echo", "figure"),
    [
        (None, None),
        (EchoState("off"), "echo: off"),
        (EchoState("on"), "no echo"),
        (EchoState("auto", found=True), "no echo"),  # not known yet
        (EchoState("auto", found=True, level=-0.2, removed=0.1, delay=0.1), "echo 0 dB, 0 dB removed"),
    ],
)
def test_the_echo_among_the_figures(echo: EchoState | None, figure: str | None) -> None:
    now, terminal = Time(), Terminal(200)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        screen.tick(Status(echo=echo))
        figures = terminal.lines()[-2].split(" · ")
    assert [text for text in figures if "echo" in text] == ([] if figure is None else [figure])


def test_frames_are_few_and_cheap_to_send() -> None:
    now, terminal = Time(), Terminal(60)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        screen.tick(STATUS)
        frames = []
        for _ in range(1000):
            before = len(terminal._bytes.getvalue())
            now.now += 0.005
            screen.tick(Status(elapsed=now.now, microphone=now.now % 1))
            frames.append(len(terminal._bytes.getvalue()) - before)
    drawn = [size for size in frames if size]
    assert 40 <= len(drawn) <= 75  # of 5 seconds
    assert max(drawn) < 2000
    # Nothing changes, nothing is sent.
    with live(terminal, now) as screen:
        for _ in range(100):
            now.now += 1
            screen.tick()
            before = len(terminal._bytes.getvalue())
            now.now += 1
            screen.tick()
            assert len(terminal._bytes.getvalue()) == before


CALLS = [
    Calling("add", '{"a": 4, "b": "one"}'),
    Called("add", '{"a": 4, "b": "one"}', "5\n\x1b[2J", False, 0.26),
    Calling("look", "{not json"),
    Called("look", "{not json", f"Error: {'x' * 300}", True, 1.0),
    Calling("look", "[" * 100_000),
]
CALL_LINES = [
    'Calling add(a=4, b="one")',
    "add: 5 \N{REPLACEMENT CHARACTER}[2J (0.3 s)",
    "Calling look({not json)",
    f"look: Error: {'x' * 186}… (1.0 s)",
    f"Calling look({'[' * 194}…",
]


def test_calls_of_tools_stand_between_the_words() -> None:
    now, terminal = Time(), Terminal(230)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        say(screen, now, "one two", 900)
        for event in CALLS:
            screen.handle(event)
        say(screen, now, "three", 910)
        screen.summary(SUMMARY)
    assert terminal.lines()[1:8] == ["one two", *CALL_LINES, "three"]


def test_calls_of_tools_as_plain_lines_and_as_json() -> None:
    out = io.StringIO()
    screen = PlainScreen(Console(file=out, highlight=False))
    for event in CALLS:
        screen.handle(event)
    assert out.getvalue().splitlines() == CALL_LINES
    out = io.StringIO()
    for event in CALLS[:2]:
        JsonScreen(out).handle(event)
    called = {"name": "add", "arguments": '{"a": 4, "b": "one"}'}
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"event": "calling", **called},
        {"event": "called", **called, "result": "5\n\x1b[2J", "failed": False, "seconds": 0.26},
    ]


def test_notices_and_new_conversations_stand_between_the_words() -> None:
    now, terminal = Time(), Terminal(60)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        say(screen, now, "one two", 900)
        screen.handle(Notice("device-lost", "The microphone is gone.", "warning"))
        say(screen, now, "three", 910)
        screen.handle(Ready(2))
        say(screen, now, "four", 5)
        screen.handle(Failed("model", ValueError("bad")))
        screen.summary(SUMMARY)
    assert terminal.lines() == [
        "",
        "one two",
        "The microphone is gone.",
        "three",
        "A new conversation",
        "",
        "four",
        "",
        "Talked for 2:31: 312 words of Moshi's",
        "  encode      3.0 ms p50     4.0 p95     5.0 p99     9.0 max",
        "  step       41.2 ms p50    62.0 p95    70.0 p99   120.0 max",
        "Dropped 0.24 s of your speech, 1 underrun",
        "Memory: 4.4 GB at most",
        "Echo for 1:30: -31 dB (most -18), 28 dB removed (most 36)",
        "Written: talks/monday/user.wav",
    ]


def test_what_is_printed_meanwhile_stands_above_the_footer() -> None:
    now, terminal = Time(), Terminal(60)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        screen.tick(STATUS)
        print("a library's remark")
        now.now += 1
        screen.tick(STATUS)
        assert terminal.lines()[1] == "a library's remark"
        assert terminal.lines()[-1].endswith("q quit")


def test_other_widths_while_it_runs() -> None:
    # pyte cuts lines where other terminals break them anew, so that what is checked is where the cursor goes.
    now, terminal = Time(), Terminal(100)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        say(screen, now, "these words remain", 0)
        now.now += 1
        screen.tick(STATUS)
        footer = screen._footer()
        terminal.console.width = 50
        rows = sum(max(1, -(-sum(cell_len(s.text) for s in line) // 50)) for line in footer)
        terminal.lines()
        seen = len(terminal.output)
        now.now += 1
        screen.tick(STATUS)
        terminal.lines()
        assert terminal.output[seen:].startswith(f"\r\x1b[{rows - 1}A\x1b[J\x1b[{len(footer) - 1}B")
        terminal.console.width = 80
        seen = len(terminal.output)
        now.now += 1
        screen.tick(STATUS)
        terminal.lines()
        assert "\x1b[J" not in terminal.output[seen:]
        assert terminal.lines()[-1].endswith("q quit")


def test_suspended_and_resumed() -> None:
    now, terminal = Time(), Terminal(60)
    with live(terminal, now) as screen:
        screen.handle(Ready(1))
        say(screen, now, "before", 0)
        screen.tick(STATUS)
        screen.suspend()
        assert terminal.lines() == ["", "before"]
        assert not terminal.screen.cursor.hidden
        screen.resume()
        assert terminal.lines()[-1].endswith("q quit")
        assert terminal.screen.cursor.hidden
    assert terminal.lines() == ["", "before"]


def test_the_terminal_is_restored_when_something_fails() -> None:
    terminal = Terminal(60)
    stdout = sys.stdout
    with pytest.raises(KeyError), live(terminal, Time()) as screen:
        fail(screen)
    assert terminal.lines() == ["", "half a"]
    assert not terminal.screen.cursor.hidden
    assert sys.stdout is stdout


def fail(screen: Screen) -> None:
    screen.handle(Ready(1))
    screen.handle(Spoke(1, " half a"))
    screen.tick(STATUS)
    raise KeyError


PROGRAM = """
import os, sys
from msh_mlx.events import Ready, Spoke
from msh_mlx.live.keys import Keys, action
from msh_mlx.live.screen.terminal import LiveScreen
from msh_mlx.live.screen.status import Status, Summary
from msh_mlx.live.screen.open import open_screen
with open_screen(plain=False, as_json=False, out=sys.stdout) as screen, Keys(sys.stdin) as keys:
    assert isinstance(screen, LiveScreen)
    screen.handle(Ready(1))
    for index in range(40):
        screen.handle(Spoke(index, f" word{index}"))
    while not keys.closed:
        screen.tick(Status(elapsed=5, microphone=0.5))
        key = keys.poll(0.03)
        if key and action(key) == "help":
            screen.help()
        if key and action(key) == "quit":
            break
    screen.summary(Summary(5.0, 40))
"""


def test_in_a_real_terminal() -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 60, 0, 0))
    before = termios.tcgetattr(slave)
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        env={**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )
    screen = pyte.Screen(60, 30)
    stream = pyte.ByteStream(screen)

    def until(done: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not done():
            assert time.monotonic() < end, "\n".join(screen.display)
            if select.select([master], [], [], 0.1)[0]:
                stream.feed(os.read(master, 65536))

    try:
        until(lambda: any("mic" in line for line in screen.display) and "q quit" in " ".join(screen.display))
        words = " ".join(screen.display).split("mic")[0].split()
        assert words == [f"word{n}" for n in range(40)]
        assert any(line.startswith("mic █") for line in screen.display)
        assert screen.cursor.hidden
        assert not termios.tcgetattr(slave)[3] & termios.ECHO
        os.write(master, b"?")
        until(lambda: any("begin a new conversation" in line for line in screen.display))
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        screen.resize(30, 100)
        os.write(master, b"?")
        until(lambda: not any("begin a new conversation" in line for line in screen.display))
        until(
            lambda: any("mic █" in line and "speaker" in line and line.index("speaker") > 45 for line in screen.display)
        )
        os.write(master, b"q")
        until(lambda: process.poll() is not None)
        until(lambda: not screen.cursor.hidden)
        assert process.returncode == 0, process.stderr and process.stderr.read()
        assert not any("q quit" in line for line in screen.display)
        assert any(line.startswith("Talked for 0:05: 40 words") for line in screen.display)
        assert termios.tcgetattr(slave) == before
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


# ---- plain lines ---------------------------------------------------------------------------------------------------------


def plain(draw: Callable[[PlainScreen, Time], None]) -> list[str]:
    now, out = Time(), io.StringIO()
    with PlainScreen(Console(file=out, width=60, highlight=False), now=now) as screen:
        draw(screen, now)
    return out.getvalue().splitlines()


def test_plain_lines() -> None:
    def draw(screen: PlainScreen, now: Time) -> None:
        screen.handle(Notice("about", "Moshi [bold]live[/]"))
        screen.handle(Loading("warm-up"))
        screen.handle(Loading("warm-up", 0.5))
        screen.handle(Ready(1))
        screen.handle(Spoke(25, " Hel"))
        screen.handle(Spoke(26, "lo."))
        screen.handle(Spoke(27, " How are"))
        screen.handle(Notice("device-lost", "The microphone\nis gone."))
        screen.handle(Spoke(28, " you\x1b"))
        screen.handle(Spoke(75, " today"))
        screen.tick(STATUS)
        screen.tick(STATUS)
        now.now += 2
        screen.tick(Status(muted=True, dropped=0.3, underruns=1))
        now.now += 20
        screen.tick(Status(dropped=0.4, underruns=2))
        screen.tick(Status(dropped=0.4, underruns=2))
        screen.handle(Spoke(400, " " + "word " * 30))
        screen.handle(Spoke(401, "rd"))
        screen.handle(Spoke(402, " end"))

    assert plain(draw) == [
        "Moshi [bold]live[/]",
        "Warmed up in 0.5 s",
        "Listening",
        "    2.00 s  Hello.",
        "    2.16 s  How are",
        "The microphone is gone.",
        "    2.24 s  you\N{REPLACEMENT CHARACTER}",
        "    6.00 s  today",
        "Moshi hears itself: use headphones.",
        "Dropped 0.24 s of your speech, 1 underrun so far",
        "Echo -18 dB, 32 dB removed",
        "The microphone is muted",
        "The microphone is heard",
        "Dropped 0.40 s of your speech, 2 underruns so far",
        "   32.00 s  " + "word " * 30 + "rd",
        "   32.16 s  end",
    ]


def test_plain_lines_about_the_echo() -> None:
    def draw(screen: PlainScreen, now: Time) -> None:
        for mode, level, removed in [
            ("auto", None, 0),
            ("auto", -20, 8),
            ("auto", -21, 12),
            ("auto", -22, 25),
            ("off", None, 0),
            ("on", -22, 26),
            ("on", None, 0),
        ]:
            now.now += 8
            screen.tick(Status(echo=EchoState(mode, found=level is not None, level=level, removed=removed)))
            now.now += 8
            screen.tick(Status(echo=EchoState(mode, found=level is not None, level=level, removed=removed)))

    assert plain(draw) == ["Echo -20 dB, 8 dB removed", "Echo -22 dB, 25 dB removed", "No echo"]


def test_a_plain_line_does_not_wait_for_the_next_word() -> None:
    now, out = Time(), io.StringIO()
    with PlainScreen(Console(file=out, width=60), now=now) as screen:
        screen.handle(Spoke(0, " Hello"))
        now.now += 1
        screen.tick()
        assert not out.getvalue()
        now.now += 1
        screen.tick()
        assert out.getvalue() == "    0.00 s  Hello\n"


def test_plain_summary_and_help() -> None:
    def draw(screen: PlainScreen, _: Time) -> None:
        screen.help()
        screen.summary(SUMMARY)

    lines = plain(draw)
    assert lines[:2] == [
        "  m      mute the microphone, or unmute it",
        "  space  push to talk: press, speak, press again",
    ]
    assert lines[-1] == "Written: talks/monday/user.wav"


@pytest.mark.parametrize("kind", ["pipe", "plain", "dumb"])
def test_where_plain_lines_are_chosen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    out = io.StringIO()
    if kind != "pipe":
        monkeypatch.setattr(out, "isatty", lambda: True)
    screen = open_screen(plain=kind == "plain", as_json=False, out=out)
    assert isinstance(screen, PlainScreen)


# ---- for programs --------------------------------------------------------------------------------------------------------


def test_json_lines() -> None:
    now, out = Time(), io.StringIO()
    with JsonScreen(out, now=now) as screen:
        screen.handle(Loading("files"))
        screen.handle(Loading("files", 0.5))
        screen.handle(Ready(1))
        screen.handle(Spoke(3, " hé"))
        screen.handle(SpokeWord(Word(0.24, "hé\n\x1b")))
        screen.handle(Dropped(7, 0.08))
        screen.handle(Underrun(2))
        screen.handle(Notice("device-lost", "Gone.", "warning"))
        screen.handle(Failed("model", ValueError("bad")))
        screen.help()
        screen.summary(SUMMARY)
    lines = out.getvalue().splitlines()
    assert out.getvalue().isascii()
    assert [json.loads(line) for line in lines] == [
        {"event": "loading", "stage": "files", "seconds": None},
        {"event": "loading", "stage": "files", "seconds": 0.5},
        {"event": "ready", "conversation": 1},
        {"event": "word", "start": 0.24, "text": "hé\n\x1b"},
        {"event": "dropped", "seconds": 0.08},
        {"event": "underrun", "count": 2},
        {"event": "notice", "kind": "device-lost", "message": "Gone.", "level": "warning"},
        {"event": "failed", "where": "model", "message": "bad"},
        {
            "event": "summary",
            "seconds": 151.2,
            "words": 312,
            "stages": {
                "encode": {"p50": 3, "p95": 4, "p99": 5, "max": 9},
                "step": {"p50": 41.25, "p95": 62, "p99": 70, "max": 120},
            },
            "dropped": 0.24,
            "underruns": 1,
            "memory_peak": 4_400_000_000,
            "echo": {"seconds": 90.5, "level": -31, "level_most": -18, "removed": 28, "removed_most": 36},
            "files": ["talks/monday/user.wav"],
        },
    ]


def test_json_status_once_a_second() -> None:
    now, out = Time(), io.StringIO()
    screen = JsonScreen(out, now=now)
    for _ in range(100):
        screen.tick(STATUS)
        now.now += 0.1
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) == 10
    assert set(lines[0]) == {"event", *(field.name for field in fields(Status))}
    assert lines[0]["hints"] == list(STATUS.hints)
    assert lines[0]["echo"] == {"mode": "auto", "found": True, "level": -18.4, "removed": 31.6, "delay": 0.05}


def test_json_is_flushed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with path.open("w") as out:
        JsonScreen(out).handle(Ready(1))
        assert path.read_text() == '{"event": "ready", "conversation": 1}\n'


def test_the_screen_knows_nothing_of_the_model() -> None:
    code = "import sys, msh_mlx.live.screen.open, msh_mlx.live.screen.terminal, msh_mlx.live.hints; print(sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    for module in ("mlx", "mimi", "msh_native", "sounddevice", "msh_mlx.conversation.session", "msh_mlx.model"):
        assert f"'{module}'" not in result.stdout
