"""Measure the cost of a conversation through the server: more delay, work and waiting, and how many conversations fit.

The pipeline runs in this process and, in turns with it, the same frames go through a server on the loopback. Then a client
connects again and again. Then more and more clients talk in real time, until replies take longer than a frame or sound is
dropped: to a server whose conversations step together, and to one whose steps take turns. --random 1b does so with a model of
random weights, and the codec of published size. The program prints tables; --json keeps the figures. Other load on the machine
changes them, so it is printed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from time import perf_counter, process_time
from typing import Any, TypeAlias

import numpy as np
import psutil
import sentencepiece
from ends import BLOCK, speech
from server_soak import DIGITS, ROOT, TOKEN, Client, ServerProcess

from msh_mlx.bench import SIZES
from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.conversation.live import NullSink
from msh_mlx.conversation.load import load_session
from msh_mlx.conversation.pipeline import Pipeline
from msh_mlx.conversation.warmup import warm
from msh_mlx.errors import MshError
from msh_mlx.events import Event, Failed, Ready, Said
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, Pcm
from msh_mlx.library.files import find_demo
from msh_mlx.net.connection import NetworkSource
from msh_mlx.net.messages import Audio, Control, MetaData, encode
from msh_mlx.net.opus import OpusDecoder, OpusEncoder
from msh_mlx.system.threads import short_turns

PACKET = 0.04  # seconds
TURN = 50  # frames
VOID = 10  # turns with dropped sound, at most
HANDSHAKES = 40
MOST = 16  # clients that come at once, to see how many are let in
MANY = 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64  # clients
SHOWN = 16  # clients of which the processor time is shown by part, or as many as there can be
CROWD = 75  # frames that each of several clients says
PATIENCE = 8.0  # seconds that a client waits to be let in: they come one after the other
LONG, LONG_PATIENCE = (
    250,
    18.0,
)  # the same where the server itself decides: near its limit it lets one in every two seconds
GOAL = 1000 * PACKET + 15  # ms
OPTIONS: tuple[object, ...] = (
    "--max-connections",
    2 * MANY[-1],
    "--max-per-address",
    2 * MANY[-1],
    "--token",
    TOKEN,
    "--text-temperature",
    0.7,
    "--text-top-k",
    25,
    "--top-k",
    250,
    "--seed",
    0,
)
# The time to reply to each frame, and the processor time per second.
Run: TypeAlias = "tuple[list[float], float]"


def spread(values: list[float]) -> dict[str, float]:
    """Return p50 and p95."""
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in (50, 95)}


def cpu_seconds(pid: int) -> float:
    """Return the processor time that another process has taken, in seconds."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def by_the_clock(say: Callable[[int], Awaitable[None]], packets: int, phase: float = 0.0) -> list[float]:
    """Call `say` every 40 ms. Return the times of the calls."""
    begin, spoken = perf_counter() + phase, []
    for i in range(packets):
        await asyncio.sleep(max(0.0, begin + (i + 1) * PACKET - perf_counter()))
        spoken.append(perf_counter())
        await say(i)
    return spoken


class Alone:
    """The pipeline in this process, between a microphone and a loudspeaker that add no delay."""

    def __init__(self) -> None:
        self._source, self._events = NetworkSource(10.0), SimpleQueue[Event]()
        self._said: list[float] = []
        sampling: dict[str, Any] = {
            "voice": {"temperature": 0.8, "top_k": 250},
            "text": {"temperature": 0.7, "top_k": 25},
        }
        self.pipeline = Pipeline(
            warm(lambda _: load_session(find_demo(), None, **sampling, seed=0)), self._source, NullSink(), self._hear
        )

    def __enter__(self) -> Alone:
        self.pipeline.start()
        self._begun()
        return self

    def _begun(self) -> None:
        event = self._events.get()
        if isinstance(event, Failed):
            raise event.error

    def __exit__(self, *_: object) -> None:
        self.pipeline.stop(10)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Ready | Failed):
            self._events.put(event)
        elif isinstance(event, Said):
            self._said.append(perf_counter())

    async def converse(self, packets: list[Pcm]) -> Run | None:
        """Say packets in real time. None: sound was dropped, and the conversation has begun again."""
        self._said, begin, used = [], perf_counter(), process_time()

        async def say(i: int) -> None:
            self._source.write(packets[i])

        spoken = (await by_the_clock(say, len(packets)))[1::2]
        while len(self._said) < len(spoken) and perf_counter() - begin < len(packets) * PACKET + 5:
            await asyncio.sleep(0.005)
        cpu = (process_time() - used) / (perf_counter() - begin)
        if len(self._said) < len(spoken):
            raise MshError(
                f"Of {len(spoken)} frames {len(self._said)} came back: the machine is too busy to compare anything."
            )
        return [heard - said for said, heard in zip(spoken, self._said, strict=True)], cpu


class Through:
    """A conversation through the server. It encodes and decodes as a client does."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._encoder, self._decoder = OpusEncoder(), OpusDecoder()

    async def begin(self) -> None:
        self._client = await Client.open(self._server.port, random.Random(0))
        await self._client.chat(realtime=1)
        await self._client.handshake()

    async def converse(self, packets: list[Pcm]) -> Run | None:
        """As for `Alone`; the processor time is the server's."""
        begin, used = perf_counter(), cpu_seconds(self._server.process.pid)

        async def say(i: int) -> None:
            await self._client.send(encode(Audio(self._encoder.encode(packets[i]))))

        listening = asyncio.ensure_future(self._listen(len(packets) // 2))
        spoken = (await by_the_clock(say, len(packets)))[1::2]
        await asyncio.wait([listening], timeout=3)
        if not listening.done():
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await self._client.send(encode(Control.RESTART))
            await self._client.handshake()
            return None
        heard = listening.result()
        cpu = (cpu_seconds(self._server.process.pid) - used) / (perf_counter() - begin)
        return [there - said for said, there in zip(spoken, heard, strict=True)], cpu

    async def _listen(self, frames: int) -> list[float]:
        heard: list[float] = []
        while len(heard) < frames:
            message = await self._client.receive()
            if message is None:
                raise MshError(f"The server ended the conversation: {self._client.error or self._client.code}.")
            if isinstance(message, Audio):
                self._decoder.decode(message.data)
                heard.append(perf_counter())
        return heard


async def compare(server: ServerProcess, frames: int) -> dict[str, Any]:
    """Hold the same conversation here and through the server, in turns. Return the delays in ms, and the work of each."""
    blocks = speech(DIGITS)
    through = Through(server)
    turns: dict[str, list[Run]] = {"alone": [], "server": []}
    void = -1  # the first turn warms up
    with Alone() as alone:
        await through.begin()
        while len(turns["alone"]) < max(2, frames // TURN):
            packets = [np.concatenate([next(blocks) for _ in range(4)]) for _ in range(2 * TURN)]
            runs = [await way.converse(packets) for way in (alone, through)]
            if void < 0 or None in runs:
                void += 1
                if void > VOID:
                    raise MshError("The machine is too busy to compare anything: sound is dropped in most turns.")
                continue
            for name, run in zip(turns, runs, strict=True):
                assert run
                turns[name].append(run)
    result: dict[str, Any] = {"turns": len(turns["alone"]), "frames_a_turn": TURN, "void": void}
    for name, held in turns.items():
        spreads = [spread([1000 * delay for delay in run[0]]) for run in held]
        result[name] = {key: median(each[key] for each in spreads) for key in ("p50", "p95")}
        result[name]["cpu"] = median(run[1] for run in held)
        result[name]["runs"] = spreads
    for key in ("p50", "p95"):
        pairs = zip(result["server"]["runs"], result["alone"]["runs"], strict=True)
        result[f"added_{key}"] = median(a[key] - b[key] for a, b in pairs)
    result["added_cpu"] = median(a[1] - b[1] for a, b in zip(turns["server"], turns["alone"], strict=True))
    return result


async def handshakes(server: ServerProcess) -> dict[str, float]:
    """Return the time from the beginning of a connection to the handshake, in ms."""
    took = []
    for _ in range(HANDSHAKES):
        begin = perf_counter()
        client = await Client.open(server.port, random.Random(0))
        await client.chat()
        await client.handshake()
        took.append(1000 * (perf_counter() - begin))
        await client.bye()
        await asyncio.sleep(0.05)
    return spread(took)


# ---- how many fit --------------------------------------------------------------------------------------------------------


async def one_of_many(
    server: ServerProcess, pages: list[bytes], phase: float, patience: float
) -> tuple[list[float], float] | None:
    """Talk in real time. Return the delays of the replies and the dropped sound, in seconds; None if not let in."""
    client = await Client.open(server.port, random.Random(0))
    try:
        await client.chat(realtime=1)
        try:
            await asyncio.wait_for(client.handshake(), patience)
        except (TimeoutError, asyncio.TimeoutError):
            return None
        heard, dropped = list[float](), 0.0

        async def listen() -> None:
            nonlocal dropped
            while len(heard) < len(pages) // 2:
                message = await client.receive()
                if message is None:
                    break
                if isinstance(message, Audio):
                    heard.append(perf_counter())
                elif isinstance(message, MetaData):
                    dropped = message.values.get("dropped_s", dropped)

        listening = asyncio.ensure_future(listen())
        spoken = await by_the_clock(lambda i: client.send(encode(Audio(pages[i]))), len(pages), phase)
        await asyncio.wait([listening], timeout=2)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        if len(heard) < len(pages) // 2:  # replies lack where sound was dropped
            dropped = max(dropped, FRAME_SECONDS * (len(pages) // 2 - len(heard)))
        return [there - said for said, there in zip(spoken[1::2], heard, strict=False)], dropped
    finally:
        await client.bye()


def prepared(frames: int) -> list[bytes]:
    """Encode speech in advance, so that this process takes little of the machine."""
    blocks, encoder = speech(DIGITS), OpusEncoder()
    return [
        encoder.encode(np.concatenate([next(blocks) for _ in range(FRAME_SIZE // BLOCK // 2)]))
        for _ in range(2 * frames)
    ]


async def crowd(server: ServerProcess, count: int, pages: list[bytes], patience: float = PATIENCE) -> dict[str, Any]:
    """Let `count` clients talk at once, spread over the time of a frame."""
    phases = [FRAME_SECONDS * i / count for i in range(count)]
    runs = await asyncio.gather(*(one_of_many(server, pages, phase, patience) for phase in phases))
    admitted = [run for run in runs if run is not None]
    delays = [1000 * delay for run in admitted for delay in run[0]]
    dropped = sum(run[1] for run in admitted)
    return {"clients": count, "admitted": len(admitted), "dropped_s": dropped, **spread(delays or [float("nan")])}


class OpenServer(ServerProcess):
    """A server that lets in every client, whose conversations step "together" or "apart"."""

    def __init__(self, way: str, *options: object) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._figures = Path(self._folder.name) / "figures.json"
        super().__init__(*options, program=(str(ROOT / "benchmarks" / "open_server.py"), way, str(self._figures)))

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        self._folder.cleanup()

    def spent(self) -> dict[str, float]:
        """Return the processor time of each part so far, in seconds."""
        return dict(json.loads(self._figures.read_text()))


def own_admission(options: Sequence[object]) -> dict[str, Any]:
    """Let many clients come at once, and the server decide."""
    with ServerProcess("--sessions", MOST, *OPTIONS, *options) as server:
        return asyncio.run(crowd(server, MOST, prepared(LONG), LONG_PATIENCE))


def crowds(way: str, options: Sequence[object], pages: list[bytes], limit: int) -> dict[str, Any]:
    """Find how many clients the machine could serve, and what each of them takes."""
    runs, held = list[dict[str, Any]](), 0
    most = MOST if options else MANY[-1]  # of a larger model, more would need more memory than there is
    with OpenServer(way, "--sessions", most, *OPTIONS, *options) as server:
        memory = psutil.Process(server.process.pid).memory_info().rss
        for count in (count for count in MANY if count <= min(most, limit)):
            # Take the best of three, so that other load on the machine does not decide.
            tries = []
            for _ in range(3):
                before, begin = server.spent(), perf_counter()
                run = asyncio.run(crowd(server, count, pages))
                after, seconds = server.spent(), perf_counter() - begin
                run["cpu"] = {part: (after[part] - before.get(part, 0.0)) / seconds / count for part in after}
                run["memory"] = (psutil.Process(server.process.pid).memory_info().rss - memory) / count
                tries.append(run)
                server.calm_down()
                if fits(run):
                    held = count
                    break
            runs.append(min(tries, key=lambda run: (run["dropped_s"], run["p95"])))
            if held < count:
                break
    return {"held": held, "runs": runs}


def random_model(size: str, folder: Path) -> list[object]:
    """Make a model of random weights, 4 bits, with a codec of published size. Return the options that name them."""
    model, mimi, tokenizer = (folder / name for name in ("model.safetensors", "mimi.safetensors", "tokenizer.model"))
    for script, path, more in (("make_lm_weights", model, ["--size", size]), ("make_mimi_weights", mimi, [])):
        subprocess.run([sys.executable, ROOT / "scripts" / f"{script}.py", path, *more], check=True)
    count = SIZES[size].text_card
    with tokenizer.open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(["a b"]),
            model_writer=file,
            model_type="char",
            vocab_size=count,
            user_defined_symbols=[f"\u2581{i}" for i in range(count - 6)],  # and a, b, the space, and three others
            pad_id=3,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return ["--model", model, "--mimi", mimi, "--tokenizer", tokenizer]


def fits(run: dict[str, Any]) -> bool:
    return bool(run["dropped_s"] == 0 and run["p95"] <= 1000 * FRAME_SECONDS)


def load() -> str:
    return "load average " + ", ".join(f"{value:.1f}" for value in os.getloadavg())


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="talk this long each way (default: %(default)s)")
    parser.add_argument(
        "--most", type=int, default=MANY[-1], help="let at most so many clients talk at once (default: %(default)s)"
    )
    parser.add_argument("--random", choices=("1b", "7b"), help="take a model of this size with random weights")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "load": [os.getloadavg()]}
    name = f"A model of {args.random} with random weights" if args.random else "The demo model"
    print(f"{name} on {platform.machine()}, {os.cpu_count()} cores; {load()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            measure_crowds(result, random_model(args.random, Path(folder)), args.most)
        else:
            measure_one(result, round(args.seconds / FRAME_SECONDS))
            measure_crowds(result, [], args.most)
    result["load"].append(os.getloadavg())
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure_one(result: dict[str, Any], frames: int) -> None:
    """Measure and print what the server adds to a conversation."""
    with ServerProcess("--sessions", MOST, *OPTIONS) as server:
        both = result["delay"] = asyncio.run(compare(server, frames))
        connect = result["handshake"] = asyncio.run(handshakes(server))
    print(f"\n{'ms, medians of ' + str(both['turns']) + ' turns':<48}{'p50':>8}{'p95':>8}")
    for name, key in (("reply, pipeline in this process", "alone"), ("reply, through the server with Opus", "server")):
        print(f"{name:<48}{both[key]['p50']:8.1f}{both[key]['p95']:8.1f}")
    print(f"{'added':<48}{both['added_p50']:8.1f}{both['added_p95']:8.1f}   (goal: p95 at most {GOAL:.0f})")
    if both["void"]:
        print(f"{both['void']} turns more in which sound was dropped are left out")
    print(f"{f'connection to handshake, {HANDSHAKES} times':<48}{connect['p50']:8.1f}{connect['p95']:8.1f}")
    print(
        f"\nProcessor, seconds a second of conversation: {both['alone']['cpu']:.3f} in this process, "
        f"{both['server']['cpu']:.3f} in the server, {both['added_cpu']:+.3f} besides the model; {load()}\n",
        flush=True,
    )


def measure_crowds(result: dict[str, Any], options: Sequence[object], limit: int) -> None:
    """Measure and print how many conversations there can be, and what each takes."""
    pages = prepared(CROWD)
    for way in ("together", "apart"):
        many = result[way] = crowds(way, options, pages, limit)
        print(f"{f'{way}, clients':<20}{'p50, ms':>10}{'p95, ms':>10}{'dropped, s':>12}{'CPU, s/s':>10}{'MB each':>10}")
        for run in many["runs"]:
            figures = f"{run['p50']:10.1f}{run['p95']:10.1f}{run['dropped_s']:12.2f}{run['cpu']['all']:10.3f}"
            print(f"{run['clients']:<20}{figures}{run['memory'] / 1e6:10.1f}")
        print(f"Conversations that the machine holds within {1000 * FRAME_SECONDS:.0f} ms: {many['held']}")
        most = max(1, min(SHOWN, many["held"]))  # of one conversation, even where not even one is held
        shown = max((run for run in many["runs"] if run["clients"] <= most), key=lambda run: run["clients"])
        cpu = dict(shown["cpu"])
        rest = cpu.pop("all") - sum(cpu.values())
        print(f"Processor time of each of {shown['clients']}, seconds a second: ", end="")
        print(
            ", ".join(f"{part} {seconds:.4f}" for part, seconds in cpu.items()),
            f"network and the rest {rest:.4f}",
            sep=", ",
        )
        print(flush=True)
    own = result["own_admission"] = own_admission(options)
    print(
        f"Of {MOST} clients at once the server let {own['admitted']} in, with p95 {own['p95']:.1f} ms "
        f"and {own['dropped_s']:.2f} s dropped; {load()}"
    )


if __name__ == "__main__":
    with short_turns():  # as in a live conversation
        sys.exit(guard(lambda _: main()))
