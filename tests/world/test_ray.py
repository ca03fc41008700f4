"""The server on two local nodes of Ray: `make check-world`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
import soundfile
from paths import DIGITS, ROOT
from prometheus_client.parser import text_string_to_metric_families
from served import serving
from talker import Talker, talk

from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE
from msh_mlx.net.messages import Audio, Handshake, encode
from msh_mlx.net.opus import OpusEncoder

sys.path.insert(0, str(ROOT / "benchmarks"))
from processes import make_peer

VERSION = "2.60.0"
LIMIT = 120.0  # seconds
MANY = "--sessions", "64", "--max-connections", "64", "--max-per-address", "64"
DONT_CARE = "--seed", "0", "--text-temperature", "0.7", "--text-top-k", "25", "--top-k", "250"


@pytest.fixture(scope="module")
def python() -> Path:
    """An environment with Ray, and with what the project needs besides itself."""
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    skipped = (
        "hatchling",
        "hypothesis",
        "maturin",
        "mlx",
        "mypy",
        "pip",
        "pyte",
        "pytest",
        "ruff",
        "starlette",
        "uvicorn",
        "anyio",
    )
    wanted = [line for line in pinned if line.split("=")[0] not in skipped]
    return make_peer("ray", VERSION, ["ray[serve]", *wanted])


@pytest.fixture(scope="module")
def environment(python: Path) -> dict[str, str]:
    sources = [ROOT, ROOT / "rust" / "mimi-pyo3" / "python"]
    return {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Both nodes are this machine, so the second one's proxy has a port of its own.
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(free_port()),
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Nodes:
    """Two nodes of Ray on this machine."""

    def __init__(self, python: Path, environment: dict[str, str]) -> None:
        command = [python, Path(__file__).with_name("ray_nodes.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout
        self.address = self._process.stdout.readline().strip()
        assert self.address

    def do(self, what: str) -> None:
        """Obey "remove" or "add": the second node goes or comes."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == "done"

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(LIMIT)


@pytest.fixture(scope="module")
def nodes(python: Path, environment: dict[str, str]) -> Iterator[Nodes]:
    made = Nodes(python, environment)
    yield made
    made.end()


class Served:
    """The server on Ray, as a user starts it."""

    def __init__(self, folder: Path, python: Path, environment: dict[str, str], *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._output = folder / "ray.txt"
        command = [python, "-m", "msh_mlx", "serve", "--demo", "--plain", "--port", str(self.port), *MANY, *DONT_CARE]
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, *options], stdout=out, stderr=out, cwd=folder, env=environment | {"PYTHONUNBUFFERED": "1"}
            )
        deadline = time.monotonic() + LIMIT
        while "worker listening on" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def figures(self, name: str) -> dict[str, float]:
        """Return a figure of each process."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=LIMIT) as answer:
            text = answer.read().decode()
        return {
            sample.labels["replica"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(LIMIT) == 130
        print(self.said()[-6000:])


@pytest.fixture
def on_ray(tmp_path: Path, python: Path, environment: dict[str, str], nodes: Nodes) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*options: str) -> Served:
        started.append(Served(tmp_path, python, environment, "--ray", nodes.address, *options))
        return started[-1]

    yield start
    for each in started:
        each.end()


def processes() -> set[int]:
    """Return the processes of the server on Ray."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "ray::ServeReplica:msh-mlx" in str(process.info["cmdline"])
    }


# ---- clients -------------------------------------------------------------------------------------------------------------


def pages(seconds: float) -> list[bytes]:
    """Return messages of 80 ms with the sound of the digits, again and again."""
    pcm, _ = soundfile.read(DIGITS, dtype="float32")
    pcm = np.resize(pcm, (round(seconds / FRAME_SECONDS) + 1) * FRAME_SIZE)
    encoder = OpusEncoder()
    return [encode(Audio(encoder.encode(pcm[at : at + FRAME_SIZE]))) for at in range(0, len(pcm), FRAME_SIZE)]


@dataclass
class Visit:
    """One conversation: when its frames were sent and answered, and how it ended."""

    sent: list[float] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)  # how many frames had been dropped before each answer
    dropped: float = 0.0
    begun: bool = False
    code: int | None = None
    error: str = ""

    @property
    def delays(self) -> list[float]:
        """Return the time from each frame to its answer, in ms."""
        answers = enumerate(zip(self.heard, self.missing, strict=True))
        return [1000 * (heard - self.sent[i + gone]) for i, (heard, gone) in answers if i + gone < len(self.sent)]


class Caller:
    """A client that talks until it is told to stop, `pace` times as slowly as one speaks."""

    def __init__(self, url: str, said: list[bytes], pace: float = 1.0, patience: float = 60.0) -> None:
        self.visit = Visit()
        self._said, self._pace, self._patience, self._url = said, pace, patience, url
        self.begun = asyncio.Event()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> Visit:
        visit = self.visit
        async with Talker(self._url) as talker:
            while True:
                try:
                    message = await talker.receive(self._patience)
                except (TimeoutError, asyncio.TimeoutError):
                    return visit
                if message is None or isinstance(message, Handshake):
                    break
            if message is not None:
                visit.begun = True
                self.begun.set()
                tasks = [asyncio.ensure_future(each) for each in (self._speak(talker), self._listen(talker))]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    if not tasks[1].done():
                        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                            await asyncio.wait_for(self._until_all_is_heard(), 5)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            visit.code, visit.error = talker.ws.close_code, talker.heard.error
        return visit

    async def _until_all_is_heard(self) -> None:
        while len(self.visit.heard) < len(self.visit.sent):
            await asyncio.sleep(0.01)

    async def _speak(self, talker: Talker) -> None:
        step, begin = FRAME_SECONDS * self._pace, time.perf_counter() + random.random() * FRAME_SECONDS
        for i, message in enumerate(self._said):
            await asyncio.sleep(max(0.0, begin + i * step - time.perf_counter()))
            self.visit.sent.append(time.perf_counter())
            await talker.ws.send_bytes(message)

    async def _listen(self, talker: Talker) -> None:
        while (message := await talker.ws.receive()).type.name == "BINARY":
            if message.data[0] == 1:
                self.visit.heard.append(time.perf_counter())
                self.visit.missing.append(round(self.visit.dropped / FRAME_SECONDS))
            elif message.data[0] == 4 and b"dropped_s" in message.data:
                self.visit.dropped = json.loads(message.data[1:]).get("dropped_s", 0.0)
            elif message.data[0] == 5:
                self.visit.error = message.data[1:].decode()

    async def stop(self) -> Visit:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        return self.visit


async def calls(url: str, said: list[bytes], count: int) -> list[Caller]:
    """Let clients come one after the other, so that each finds the process with the fewest."""
    callers = []
    for _ in range(count):
        callers.append(Caller(url, said))
        await asyncio.wait_for(callers[-1].begun.wait(), LIMIT)
    return callers


async def eventually(true: Callable[[], Any], timeout: float = LIMIT) -> None:
    deadline = time.monotonic() + timeout
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


def p(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent))


# ---- the tests -----------------------------------------------------------------------------------------------------------


async def test_it_is_as_without_ray(on_ray: Callable[..., Served], tmp_path: Path) -> None:
    """A conversation has the same bytes, and protocols, token and figures are there."""
    served = on_ray("--replicas", "2", "--token", "secret")
    pcm, _ = soundfile.read(DIGITS, dtype="float32")
    pcm = np.concatenate([pcm, np.zeros(2 * SAMPLE_RATE, np.float32)])
    pcm = pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE]
    file = {"realtime": 0, "text_temperature": 0, "audio_temperature": 0, "worker_auth_id": "secret"}
    heard = await talk(served.url, pcm, **file)
    print("words:", heard.text)
    (folder := tmp_path / "plain").mkdir()
    with serving(folder, "--plain", "--token", "secret", *MANY, *DONT_CARE) as port:
        alone = await talk(f"http://127.0.0.1:{port}", pcm, **file)
    assert heard.raw == alone.raw
    async with aiohttp.ClientSession() as http:
        for path in ("/api/chat", "/v1/realtime"):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await http.ws_connect(served.url + path)
        headers = {"Authorization": "Bearer secret"}
        async with http.ws_connect(f"{served.url}/v1/realtime?model=demo", headers=headers) as ws:
            assert (await ws.receive_json(timeout=LIMIT))["type"] == "session.created"
        async with http.get(f"{served.url}/metrics", headers=headers) as answer:
            text = await answer.text()
    assert len({line.split('replica="')[1][:8] for line in text.splitlines() if line.startswith("msh_sessions{")}) == 2


async def test_as_many_as_are_admitted_talk_in_real_time(on_ray: Callable[..., Served]) -> None:
    served = on_ray("--replicas", "2", "--line", "64")
    said = pages(40)
    callers = [Caller(served.url, said, patience=20) for _ in range(40)]
    await asyncio.sleep(25)
    inside = [caller for caller in callers if caller.visit.begun]
    marks = [(len(caller.visit.heard), caller.visit.dropped) for caller in inside]
    shares = sorted(served.figures("msh_sessions").values())
    await asyncio.sleep(8)
    heard = [(len(c.visit.heard) - at, c.visit.dropped - gone) for c, (at, gone) in zip(inside, marks, strict=True)]
    delays = [delay for caller in inside for delay in caller.visit.delays[-90:]]
    for caller in callers:
        await caller.stop()
    print(f"{len(inside)} of {len(callers)} admitted, {shares} in the processes")
    print(f"before, {max(at for _, at in marks):.2f} s were dropped at most")
    print(f"in 8 s each heard {min(n for n, _ in heard)} to {max(n for n, _ in heard)} frames of 100")
    print(
        f"delay p50 {p(delays, 50):.1f} ms, p95 {p(delays, 95):.1f} ms, dropped {max(d for _, d in heard):.2f} s at most"
    )
    assert len(inside) >= 4
    assert min(shares) >= 1
    assert min(n for n, _ in heard) >= 90


async def test_thirty_two_at_a_quarter_of_real_time(on_ray: Callable[..., Served]) -> None:
    served = on_ray("--replicas", "2", "--line", "64")
    said = pages(8)
    callers = [Caller(served.url, said, pace=4) for _ in range(32)]
    visits = await asyncio.gather(*(caller.task for caller in callers))
    delays = [delay for visit in visits for delay in visit.delays]
    print(
        f"{sum(visit.begun for visit in visits)} of 32 talked, {len(said)} frames each, delay p95 {p(delays, 95):.1f} ms"
    )
    assert all(visit.begun and not visit.error for visit in visits)
    assert all(len(visit.heard) == len(visit.sent) == len(said) for visit in visits)
    assert max(visit.dropped for visit in visits) == 0


async def test_a_process_that_dies_takes_only_its_own(on_ray: Callable[..., Served]) -> None:
    before = processes()
    served = on_ray("--replicas", "2")
    ours = sorted(processes() - before)
    assert len(ours) == 2
    callers = await calls(served.url, pages(60), 4)
    await eventually(lambda: sorted(served.figures("msh_sessions").values()) == [2, 2], 10)
    os.kill(ours[0], signal.SIGKILL)
    killed = time.monotonic()
    while sum(caller.task.done() for caller in callers) < 2:
        assert time.monotonic() - killed < 10
        await asyncio.sleep(0.01)
    told = time.monotonic() - killed
    gone = [caller for caller in callers if caller.task.done()]
    left = [caller for caller in callers if not caller.task.done()]
    again = [Caller(served.url, pages(60)) for _ in gone]
    await asyncio.gather(*(asyncio.wait_for(caller.begun.wait(), LIMIT) for caller in again))
    print(f"2 of 4 were told after {1000 * told:.0f} ms, with code {[caller.visit.code for caller in gone]}; ", end="")
    print(f"they talked again {time.monotonic() - killed:.1f} s after the end")
    at = [len(caller.visit.heard) for caller in left]
    await asyncio.sleep(4)
    assert [caller.task.done() for caller in left] == [False, False]
    assert all(len(caller.visit.heard) - n >= 40 for caller, n in zip(left, at, strict=True))
    await eventually(lambda: len(processes() - before) == 2)
    for caller in [*left, *again]:
        await caller.stop()


async def test_their_number_follows_the_conversations_and_one_that_ends_is_drained(
    on_ray: Callable[..., Served],
) -> None:
    served = on_ray("--replicas", "1-2", "--sessions", "2", "--scale-down-after", "4")
    said = pages(240)
    assert len(served.figures("msh_sessions")) == 1
    first = [Caller(served.url, said) for _ in range(2)]
    await asyncio.gather(*(asyncio.wait_for(caller.begun.wait(), LIMIT) for caller in first))
    begin = time.monotonic()
    await eventually(lambda: len(served.figures("msh_sessions")) == 2)
    print(f"a second process was there {time.monotonic() - begin:.1f} s after the first was full")
    second = await calls(served.url, said, 2)
    await eventually(lambda: sorted(served.figures("msh_sessions").values()) == [2, 2], 20)
    # One stays in each process, so that whichever ends has one.
    begin = time.monotonic()
    await first[0].stop()
    await second[0].stop()
    await second[1].stop()
    left = first[1]
    before = processes()
    await asyncio.sleep(12)  # one process has begun to end
    at = len(left.visit.heard)
    await asyncio.sleep(4)
    assert not left.task.done()
    assert len(left.visit.heard) - at >= 40
    new = Caller(served.url, said)
    await asyncio.wait_for(new.begun.wait(), LIMIT)
    await left.stop()
    await eventually(lambda: len(before & processes()) < len(before))
    print(
        f"one process ended {time.monotonic() - begin:.1f} s after three had left, when its last conversation was over"
    )
    assert not new.task.done()
    await new.stop()


async def test_a_node_that_goes_takes_only_its_own(on_ray: Callable[..., Served], nodes: Nodes) -> None:
    served = on_ray("--replicas", "2", "--replica-cpus", "2")  # one on each node
    callers = await calls(served.url, pages(90), 4)
    await eventually(lambda: sorted(served.figures("msh_sessions").values()) == [2, 2], 20)
    await asyncio.to_thread(nodes.do, "remove")
    removed = time.monotonic()
    while sum(caller.task.done() for caller in callers) < 2:
        assert time.monotonic() - removed < 60
        await asyncio.sleep(0.05)
    told = time.monotonic() - removed
    left = [caller for caller in callers if not caller.task.done()]
    at = [len(caller.visit.heard) for caller in left]
    await asyncio.sleep(4)
    assert [caller.task.done() for caller in left] == [False, False]
    assert all(len(caller.visit.heard) - n >= 40 for caller, n in zip(left, at, strict=True))
    again = Caller(served.url, pages(60))
    await asyncio.wait_for(again.begun.wait(), LIMIT)
    print(f"2 of 4 were told {told:.1f} s after their node was gone; a new one talked with the other node")
    await again.stop()
    for caller in left:
        await caller.stop()
    await asyncio.to_thread(nodes.do, "add")
    await eventually(lambda: len(served.figures("msh_sessions")) == 2)


async def test_the_delay_that_the_proxy_adds(on_ray: Callable[..., Served], tmp_path: Path) -> None:
    """Two conversations, in turns with a server without Ray."""
    served = on_ray("--replicas", "1")
    (folder := tmp_path / "plain").mkdir()
    said = pages(6)
    with serving(folder, "--plain", *MANY, *DONT_CARE) as port:
        added: dict[int, list[float]] = {50: [], 95: []}
        for _ in range(8):
            delays: dict[str, list[float]] = {}
            for url in (f"http://127.0.0.1:{port}", served.url):
                visits = await asyncio.gather(*(Caller(url, said).task for _ in range(2)))
                assert all(visit.begun for visit in visits)
                delays[url] = [delay for visit in visits for delay in visit.delays]
            plain, proxied = delays.values()
            for percent, values in added.items():
                values.append(p(proxied, percent) - p(plain, percent))
    p50, p95 = (float(np.median(values)) for values in added.values())
    print(f"the proxy adds {p50:.1f} ms (p50) and {p95:.1f} ms (p95), medians of 8 rounds of 2 conversations")
    assert math.isfinite(p95)
