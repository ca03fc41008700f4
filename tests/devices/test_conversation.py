"""Live conversations as a user holds them: `local_mlx.py` on virtual devices, in terminals, with all that can go wrong."""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import pty
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyte
import pytest
import soundfile
from paths import DEMO, DIGITS, ROOT

from msh_mlx.format import SAMPLE_RATE

if TYPE_CHECKING:
    from conftest import VirtualAudio

DIGITS = soundfile.read(DIGITS, dtype="float32")[0]
EXPECTED = json.loads((DEMO / "expected.json").read_text())["words"]
PROGRAM = [sys.executable, str(ROOT / "local_mlx.py"), "--demo", "--temperature", "0", "--text-temperature", "0"]
LIMIT = 10  # seconds, against hanging
LOADED = 60  # seconds until a busy machine has loaded the model

# What a program of one's own may do to a session. It is run in place of local_mlx.py.
WRAPPER = """
import sys, time
from msh_mlx.cli import main as cli
from msh_mlx.conversation import session

def every(method, frame, action):
    original, count = getattr(session.Session, method), [0]
    def replaced(self, *args):
        count[0] += 1
        if count[0] >= frame:
            action(count[0])
        return original(self, *args)
    setattr(session.Session, method, replaced)

def fail(count):
    raise RuntimeError("it broke")

{change}
sys.exit(cli.main(sys.argv[1:]))
"""


def wrapped(change: str) -> list[str]:
    return [sys.executable, "-c", WRAPPER.format(change=change), *PROGRAM[2:]]


class Talk:
    """A conversation whose output is a pipe: JSON, one event a line."""

    def __init__(self, audio: VirtualAudio, *args: str, command: list[str] = PROGRAM, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [*command, "--json", *args],
            env=audio.env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # so that `select` sees what has come
            start_new_session=True,
        )
        self.events: list[dict[str, Any]] = []

    def until(self, condition: Callable[[dict[str, Any]], object], limit: float = LOADED) -> dict[str, Any]:
        """Read events until one fulfils the condition, and return it."""
        end = time.monotonic() + limit
        assert self.process.stdout
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            assert ready, f"not within {limit} s; so far: {self.events[-20:]}"
            line = self.process.stdout.readline()
            assert line, (self.events[-20:], self.process.stderr and self.process.stderr.read())
            self.events.append(json.loads(line))
            if condition(self.events[-1]):
                return self.events[-1]

    def until_ready(self) -> None:
        self.until(lambda event: event["event"] == "ready")

    def stop(self, number: signal.Signals) -> str:
        """Send a signal; return what was complained."""
        begin = time.monotonic()
        self.process.send_signal(number)
        return self.end(128 + number, begin)

    def end(self, code: int, begin: float | None = None) -> str:
        begin = begin or time.monotonic()
        output, errors = self.process.communicate(timeout=LIMIT + 60)
        self.events += [json.loads(line) for line in output.splitlines()]
        assert self.process.returncode == code, errors.decode()
        assert b"Traceback" not in errors
        with pytest.raises(ProcessLookupError):  # nobody of its session is left
            os.killpg(self.process.pid, 0)
        return errors.decode()

    def words(self) -> list[str]:
        return [event["text"] for event in self.events if event["event"] == "word"]

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def understood(words: list[str]) -> bool:
    """Whether the words are those expected but for one or two: where frames begin is chance, and the model is small."""
    return difflib.SequenceMatcher(None, words, EXPECTED).ratio() > 0.75


def is_notice(kind: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "notice" and event["kind"] == kind


# ---- the conversation ----------------------------------------------------------------------------------------------------


def test_a_conversation(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """What is said is heard and answered; the loudspeaker plays what the recording holds; the trace has every frame."""
    trace, folder = tmp_path / "trace.json", tmp_path / "talks"
    heard = virtual_audio.listen()
    with Talk(virtual_audio, "--record", str(folder), "--trace", str(trace), "--duration", "18") as talk:
        talk.until_ready()
        virtual_audio.speak(DIGITS)
        talk.end(0)
    played = heard.finish()
    assert understood(talk.words())

    (take,) = folder.iterdir()
    user, moshi = (soundfile.read(take / f"{name}.wav", dtype="float32")[0] for name in ("user", "moshi"))
    both, rate = soundfile.read(take / "conversation.wav", dtype="float32")
    assert rate == SAMPLE_RATE
    assert 16 < len(both) / rate < 18.5
    length = min(len(user), len(moshi))
    np.testing.assert_array_equal(both[:length], np.stack([user[:length], moshi[:length]], axis=1))
    assert [json.loads(line)["text"] for line in (take / "transcript.jsonl").read_text().splitlines()] == talk.words()
    assert virtual_audio.align(user, DIGITS)[1] > 0.95
    # Word for word, as the cushion may have moved in between; in the midst of a word, too, on a busy machine.
    fits = []
    for event in (event for event in talk.events if event["event"] == "word"):
        begin = round((event["start"] - 0.1) * SAMPLE_RATE)
        word = moshi[begin : begin + SAMPLE_RATE // 2]
        assert np.abs(word).max() > 0.02
        fits.append(virtual_audio.align(played, word)[1])
    assert np.median(fits) > 0.9

    events = json.loads(trace.read_text())
    spans = {
        name: sum(e.get("ph") == "X" and e["name"].startswith(name) for e in events) for name in ("step", "encode")
    }
    assert all(abs(count - len(user) / 1920) <= 2 for count in spans.values()), spans
    summary = talk.events[-1]
    assert summary["event"] == "summary"
    assert summary["words"] == len(talk.words())
    assert summary["dropped"] == 0


def test_plain_lines(virtual_audio: VirtualAudio) -> None:
    """What is not a terminal gets lines; the answer is complete when the time is over."""
    process = subprocess.Popen(
        [*PROGRAM, "--duration", "14"], env=virtual_audio.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if "Listening" in line:
            break
    virtual_audio.speak(DIGITS[: 5 * SAMPLE_RATE])
    output, errors = process.communicate(timeout=LOADED)
    assert process.returncode == 0, errors
    assert EXPECTED[0] in output
    assert "Talked for 0:14" in output
    assert "\x1b" not in output


def test_the_round_trip_is_measured(virtual_audio: VirtualAudio) -> None:
    command = [
        *PROGRAM,
        "--measure-latency",
        "--json",
        "--input-device",
        "moshi_echo",
        "--output-device",
        "moshi_speaker",
    ]
    result = subprocess.run(command, env=virtual_audio.env, capture_output=True, timeout=LOADED, check=True)
    trip = json.loads(result.stdout)
    assert trip["heard"] >= 5
    assert 0 < trip["median"] < 500
    # A microphone that hears nothing.
    command[command.index("moshi_echo")] = "moshi_mic"
    result = subprocess.run(command, env=virtual_audio.env, capture_output=True, timeout=LOADED, check=False)
    assert result.returncode == 1
    assert b"does not hear" in result.stderr


def test_devices_by_name(virtual_audio: VirtualAudio) -> None:
    command = [*PROGRAM, "--list-devices"]
    listed = subprocess.run(command, env=virtual_audio.env, capture_output=True, text=True, timeout=LOADED, check=True)
    assert "moshi_mic" in listed.stdout
    assert "default" in listed.stdout
    for name in ("nowhere", "moshi_", "moshi_speaker"):  # none, several, one that is not a microphone
        command = [*PROGRAM, "--plain", "--input-device", name]
        result = subprocess.run(
            command, env=virtual_audio.env, capture_output=True, text=True, timeout=LOADED, check=False
        )
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert f"'{name}'" in result.stderr
        assert '1 "moshi_mic"' in result.stderr  # what there is to choose from


# ---- when things go wrong ------------------------------------------------------------------------------------------------


def test_the_loudspeaker_is_unplugged(virtual_audio: VirtualAudio) -> None:
    """The conversation pauses, says so, and goes on by itself when the chosen device is back."""
    with Talk(virtual_audio, "--input-device", "moshi_mic", "--output-device", "moshi_speaker") as talk:
        talk.until_ready()
        virtual_audio.unplug()
        try:
            lost = talk.until(is_notice("device-lost"), 30)
            assert "moshi_speaker" in lost["message"]
        finally:
            virtual_audio.plug()
        talk.until(is_notice("device-back"), 30)
        heard = virtual_audio.listen()
        virtual_audio.speak(DIGITS)
        begin = time.monotonic()
        talk.until(
            lambda event: event["event"] == "status" and time.monotonic() - begin > len(DIGITS) / SAMPLE_RATE + 3, 40
        )
        assert understood(talk.words())
        talk.until(lambda event: event["event"] == "status")
        talk.stop(signal.SIGINT)
        assert np.abs(heard.finish()).max() > 0.02
    assert len([event for event in talk.events if event["event"] == "ready"]) == 1


def test_a_model_that_is_too_slow(virtual_audio: VirtualAudio) -> None:
    """The delay stays bounded, and what is given up is counted."""
    slow = wrapped("every('step', 60, lambda count: time.sleep(0.2))")
    with Talk(virtual_audio, command=slow) as talk:
        talk.until_ready()
        talk.until(lambda event: event["event"] == "status" and event["elapsed"] > 14, 40)
        talk.stop(signal.SIGINT)
    late = [event for event in talk.events if event["event"] == "status" and event["elapsed"] > 10]
    assert late[-1]["dropped"] > 1
    assert max(event["delay"] for event in late) < 1200
    assert any("too slow" in hint for event in late for hint in event["hints"])
    assert any(event["event"] == "dropped" for event in talk.events)


@pytest.mark.parametrize("stage", ["encode", "step", "decode"])
def test_a_part_that_fails(virtual_audio: VirtualAudio, tmp_path: Path, stage: str) -> None:
    """The conversation ends with one sentence, its details in a log file; what was recorded is whole."""
    virtual_audio = type(virtual_audio)({**virtual_audio.env, "XDG_STATE_HOME": str(tmp_path / "state")})
    with Talk(virtual_audio, "--record", str(tmp_path), command=wrapped(f"every('{stage}', 40, fail)")) as talk:
        talk.until_ready()
        errors = talk.end(1)
    assert len(errors.splitlines()) == 1
    assert "it broke" in errors
    (failed,) = (event for event in talk.events if event["event"] == "failed")
    assert failed["message"] == "it broke"
    (log,) = (tmp_path / "state" / "msh-mlx").iterdir()
    assert str(log) in errors
    assert "RuntimeError: it broke" in log.read_text()
    (recorded,) = tmp_path.glob("*/user.wav")
    assert soundfile.info(recorded).duration > 1


def test_a_model_that_does_not_load(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((DEMO / "model.q8.safetensors").read_bytes()[:100_000])
    files = ["--mimi", str(DEMO / "mimi.safetensors"), "--tokenizer", str(DEMO / "tokenizer.model")]
    command = [*PROGRAM[:2], "--model", str(cut), *files, "--config", str(DEMO / "config.json")]
    with Talk(virtual_audio, command=command) as talk:
        errors = talk.end(2)
    assert "cut.safetensors" in errors
    assert len(errors.splitlines()) == 1


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def test_signals_at_random_moments(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """Fifty times, from the first moment on: the exit code tells the signal, and nothing is left, broken or running."""
    rng = random.Random(4)
    took = []
    for trial in range(50):
        number = rng.choice(list(SIGNALS))
        folder = tmp_path / str(trial)
        with Talk(virtual_audio, "--record", str(folder)) as talk:
            if trial % 3:
                talk.until_ready()
                time.sleep(rng.uniform(0, 1.0))
            else:
                # Python itself looks after signals only once it has started.
                talk.until(lambda event: event["event"] == "loading")
                time.sleep(rng.uniform(0, 0.6))
            begin = time.monotonic()
            assert talk.stop(number) == "Stopped.\n"
            took.append(time.monotonic() - begin)
            assert took[-1] < LIMIT
        for recorded in folder.glob("*/*.wav"):
            soundfile.read(recorded)
        shutil.rmtree(folder)
    print(f"From the signal to the end: {np.median(took):.2f} s, {max(took):.2f} s at most")  # shown by pytest -rP


def test_a_model_that_is_still_loading(virtual_audio: VirtualAudio) -> None:
    """What cannot be interrupted does not hold the program up."""
    with Talk(virtual_audio, command=wrapped("cli._load = lambda *_: time.sleep(60)")) as talk:
        talk.until(lambda event: event["event"] == "loading" and event["stage"] == "loading")
        time.sleep(0.5)
        begin = time.monotonic()
        assert talk.stop(signal.SIGINT) == "Stopped.\n"
        assert time.monotonic() - begin < LIMIT


def test_a_second_signal_ends_at_once(virtual_audio: VirtualAudio) -> None:
    """Also where the first one's cleaning up takes long."""
    change = "from msh_mlx.live import talk; talk._Conversation._stop = lambda self: time.sleep(60)"
    with Talk(virtual_audio, command=wrapped(change)) as talk:
        talk.until_ready()
        talk.process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert talk.process.poll() is None
        begin = time.monotonic()
        talk.stop(signal.SIGINT)
        assert time.monotonic() - begin < LIMIT


# ---- the terminal --------------------------------------------------------------------------------------------------------


class Terminal:
    """A conversation in a terminal of its own, whose screen is read back."""

    def __init__(self, audio: VirtualAudio, columns: int, command: list[str], cwd: Path, rows: int = 30) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.chdir(cwd)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execvpe(command[0], command, {**audio.env, "TERM": "xterm-256color"})
        self.before = termios.tcgetattr(self._fd)

    def until(self, *words: str, limit: float = LOADED) -> str:
        """Wait until the screen shows all the words, and return it."""
        end = time.monotonic() + limit
        while not all(word in self.text for word in words):
            assert time.monotonic() < end, f"no {words} in:\n{self.text}"
            self.read(0.1)
        return self.text

    def read(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                if select.select([self._fd], [], [], left)[0]:
                    self._stream.feed(os.read(self._fd, 65536))
            except OSError:  # the other side has gone, or this one
                time.sleep(left)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def close(self) -> None:
        os.close(self._fd)

    def wait(self, limit: float = LOADED) -> int:
        """Read until the program ends, and return its exit code."""
        end = time.monotonic() + limit
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, "it does not end"
            self.read(0.02)

    def left(self) -> str:
        """Return what is on the screen after the end, and make sure that the terminal is as it was."""
        self.read(0.3)
        assert not self.screen.cursor.hidden
        assert pyte.modes.DECTCEM in self.screen.mode
        assert termios.tcgetattr(self._fd) == self.before
        return self.text


@pytest.fixture
def terminal(virtual_audio: VirtualAudio, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(columns: int, command: list[str] = PROGRAM) -> Terminal:
        opened.append(Terminal(virtual_audio, columns, command, tmp_path))
        return opened[-1]

    yield open_terminal
    for one in opened:
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(one.pid, 0)


@pytest.mark.parametrize("columns", [60, 200])
def test_keys(virtual_audio: VirtualAudio, terminal: Callable[..., Terminal], tmp_path: Path, columns: int) -> None:
    """Every key does what it says, at any width, and the terminal is left as it was."""
    one = terminal(columns)
    shown = one.until("mic", "q quit", "step")
    assert all(len(line) <= columns for line in shown.splitlines())
    virtual_audio.speak(DIGITS)
    one.until(EXPECTED[0], EXPECTED[1], limit=30)
    one.press("m")
    one.until("muted")
    one.press("m")
    one.read(0.5)
    assert "muted" not in one.text
    one.press(" ")
    one.until("muted")
    one.press(" ")
    one.press("?")
    one.until("push to talk")
    one.press("?")
    one.press("s")
    one.until("Saved")
    (saved,) = (tmp_path / "conversations").iterdir()
    assert {path.name for path in saved.iterdir()} == {"user.wav", "moshi.wav", "conversation.wav", "transcript.jsonl"}
    assert soundfile.info(saved / "user.wav").duration > 1
    one.press("r")
    one.read(1.0)
    one.press("e")
    one.until("Echo: on.")
    one.press("e")
    one.until("echo: off")
    one.press("d")
    one.until("Listening to")
    one.press("q")
    assert one.wait() == 0
    assert "Talked for" in one.left()


def test_a_failure_in_a_terminal(terminal: Callable[..., Terminal]) -> None:
    one = terminal(80, wrapped("every('decode', 40, fail)"))
    assert one.wait() == 1
    assert "it broke" in one.left()


def test_ctrl_c_in_a_terminal(virtual_audio: VirtualAudio, terminal: Callable[..., Terminal]) -> None:
    one = terminal(80)
    one.until("Warmed up", "mic")
    one.read(0.5)
    one.press("\x03")
    assert one.wait() == 130
    assert "Talked for" in one.left()


def test_a_terminal_that_is_closed(virtual_audio: VirtualAudio, terminal: Callable[..., Terminal]) -> None:
    one = terminal(80)
    one.until("q quit")
    one.close()
    assert one.wait() == 129


def test_a_model_that_is_too_slow_gives_way_to_a_lighter_one(virtual_audio: VirtualAudio, tmp_path: Path) -> None:
    """Real models and times; the limit is one that the first of them cannot keep."""
    entry = "quantization = '{0}'\nmemory = 100_000_000\nstep-bytes = {1}\n" + "".join(
        f"files.{role} = '{DEMO}/{file}'\n"
        for role, file in (("lm", "model.q8.safetensors"), ("mimi", "mimi.safetensors"),
                           ("tokenizer", "tokenizer.model"), ("config", "config.json"))
    )  # fmt: skip
    models = (("digits-bf16", "bf16", 9000), ("digits-q8", "q8", 8000))
    weights = tmp_path / "weights.toml"
    weights.write_text("".join(f"[{name}]\n{entry.format(kind, size)}\n" for name, kind, size in models))
    change = "from msh_mlx.library import suited; suited.SLOW = 0.0001"
    command = [sys.executable, "-c", WRAPPER.format(change=change), "--weights", str(weights)]
    with Talk(virtual_audio, "--duration", "1", command=command) as talk:
        talk.until_ready()
        errors = talk.end(0)
    assert errors == "The model is digits-bf16.\n"
    notices = [(event["kind"], event["message"]) for event in talk.events if event["event"] == "notice"]
    assert [kind for kind, _ in notices] == ["lighter", "slow"]
    assert notices[0][1].startswith("digits-bf16 is too slow here: three steps in four take ")
    assert notices[0][1].endswith("; taking digits-q8.")
    assert "digits-q8 is too slow here" in notices[1][1]
    assert [event["stage"] for event in talk.events if event["event"] == "loading"].count("warm-up") == 3


def test_the_launcher(virtual_audio: VirtualAudio) -> None:
    """From a double click to a conversation; here with the demo model, because no weights are on this disk."""
    command = ["sh", str(ROOT / "Moshi.command"), "--duration", "2", "--plain"]
    env = {**virtual_audio.env, "HF_HOME": "/nonexistent"}
    result = subprocess.run(
        command, env=env, cwd="/", capture_output=True, text=True, timeout=300, input="\n", check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Talked for 0:02" in result.stdout
