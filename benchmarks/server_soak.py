"""Test a server with a thousand clients, most of them ill-behaved: does its memory grow, and does it mix up conversations?

The real server runs on the demo models. Clients play against it, several at once, the same every time for a seed: proper
conversations in its protocol and in OpenAI's, transcription, speech, Wyoming, garbage in Ogg, in messages and in HTTP, floods,
stalls, half-open connections, closes at any byte. A reply must be the same, byte for byte, as that to the same words on a
server without other clients. The program prints the kinds of clients and how they ended, and exits with 1 if something is
wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic, perf_counter, sleep
from urllib.parse import urlencode

import numpy as np
import psutil
import soundfile
from soak_protocols import Others

from msh_mlx.cli.program import guard
from msh_mlx.errors import MshError
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE
from msh_mlx.net.messages import Audio, Control, Error, Handshake, MetaData, Ping, Text, decode, encode
from msh_mlx.net.opus import OpusEncoder
from msh_mlx.system.words import human_size

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "assets" / "demo" / "digits.flac"
ONSETS = (7, 15, 58, 93, 101, 110)  # frames in which a digit begins
TOKEN = "soak"
FIRST = 10  # clients, after which the server should not grow any more
IDLE = 2.0  # seconds
LINE = 2
HUNG = 60.0  # seconds within which every connection must end
# How much memory may grow. After the tenth client the allocator's arenas, one per thread, are not full yet.
MORE_SHARE, MORE_MEMORY = 0.05, 64 << 20
# The same from the middle of a long soak on, when they are full.
LONG, MORE_THEN = 500, 8 << 20
BACKGROUND = 8  # slow connections at a time, beside the others

SPOKEN, WAITING = 7, 12  # frames

GREEDY: dict[str, object] = {"text_temperature": 0, "audio_temperature": 0}


class Wrong(MshError):  # noqa: N818 — a finding, not a fault of this program
    """Something is wrong; the message is a sentence."""


class Full(Exception):  # noqa: N818
    """The waiting line was full. Try again."""


# ---- the server ----------------------------------------------------------------------------------------------------------


class ServerProcess:
    """A server in a process of its own, on a free port. Its output goes to files."""

    def __init__(self, *options: object, program: Sequence[str] = (str(ROOT / "server_opus.py"),)) -> None:
        self._out = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._err = tempfile.NamedTemporaryFile()  # noqa: SIM115
        own = [] if "--model" in options else ["--demo"]
        command = [sys.executable, *program, *own, "--port", "0", "--static", "none", "--json", *map(str, options)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err)
        self.port = 0
        self.wyoming = 0  # the port of that protocol, if it is spoken

    def __enter__(self) -> ServerProcess:
        deadline = monotonic() + HUNG
        while not self.port:
            found = re.search(r"listening on https?://\S+:(\d+)", self.printed())
            self.port = int(found[1]) if found else 0
            if self.port and "--wyoming" in self.process.args:  # type: ignore[operator]
                found = re.search(r"Wyoming: listening on \S+:(\d+)", self.printed())
                self.wyoming = int(found[1]) if found else 0
                self.port = self.port if self.wyoming else 0
            if self.process.poll() is not None or monotonic() > deadline:
                self.__exit__()
                raise Wrong(f"The server did not start: {self.complained().strip() or 'it says nothing.'}")
            sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Wrong("The server did not end within 10 s.") from None

    def printed(self) -> str:
        return Path(self._out.name).read_text()

    def complained(self) -> str:
        return Path(self._err.name).read_text()

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.printed().splitlines() if line.startswith("{")]

    def figures(self) -> dict[str, float]:
        """Fetch /metrics: values by name, labels included."""
        address = f"http://127.0.0.1:{self.port}/metrics?worker_auth_id={TOKEN}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def calm_down(self) -> dict[str, float]:
        """Wait until no client is connected, and return the figures then."""
        deadline = monotonic() + HUNG
        while True:
            figures = self.figures()
            if (figures["msh_sessions"], figures["msh_waiting"], figures["msh_connections"]) == (0, 0, 1):
                sleep(0.5)  # threads end a little after what they did
                return figures
            if monotonic() > deadline:
                names = ("msh_sessions", "msh_waiting", "msh_connections")
                left = ", ".join(f"{figures[name]:.0f} {name[4:]}" for name in names)
                raise Wrong(f"A minute after the last client left, the server has {left}, our own included.")
            sleep(0.1)


@dataclass(frozen=True)
class Usage:
    """The server's resources: main memory in bytes, threads and descriptors."""

    memory: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        process = psutil.Process(pid)
        return cls(process.memory_info().rss, process.num_threads(), process.num_fds())

    def __str__(self) -> str:
        return f"{human_size(self.memory)}, {self.threads} threads, {self.descriptors} descriptors"


# ---- a client ------------------------------------------------------------------------------------------------------------


class Client:
    """A connection on which the caller controls every byte, with a websocket on request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rng: random.Random) -> None:
        self._reader, self._writer, self._rng = reader, writer, rng
        self.said: list[bytes] = []  # audio and text messages as they came
        self.error = ""
        self.code: int | None = None

    @classmethod
    async def open(cls, port: int, rng: random.Random, *, greedy: bool = True) -> Client:
        """Connect. Without `greedy`, take as few bytes as possible from the system until they are needed."""
        sock = socket.socket()
        if not greedy:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 22 if greedy else 256), rng)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def request(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> int:
        """Send a request and return the answer's status."""
        await self.write(head(path, headers, method))
        status = int((await self._reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
        if status != 101:
            self.code = status
        return status

    async def chat(self, **parameters: object) -> None:
        """Begin a conversation."""
        status = await self.request(chat_path(parameters), UPGRADE)
        if status != 101:
            raise Wrong(f"A proper request got the status {status}.")

    async def send(self, *messages: bytes, opcode: int = 2) -> None:
        await self.write(b"".join(websocket_frame(message, self._rng, opcode) for message in messages))

    async def receive(self) -> object | None:
        """Wait for a message. None: the server has closed; `code` is its code then, or 0 without one."""
        while True:
            try:
                first, length = await self._reader.readexactly(2)
                size = length
                if length == 126:
                    size = int.from_bytes(await self._reader.readexactly(2), "big")
                elif length == 127:
                    size = int.from_bytes(await self._reader.readexactly(8), "big")
                data = await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                self.code = self.code or 0
                return None
            if first == 0x88:
                self.code = int.from_bytes(data[:2], "big")
                with suppress(ConnectionError):
                    await self.send(data[:2], opcode=8)
                return None
            if first == 0x82:
                message = decode(data)
                if isinstance(message, Audio | Text):
                    self.said.append(data)
                if isinstance(message, Error):
                    self.error = message.text
                return message

    async def until(self, kind: type[object] | None) -> object | None:
        """Receive until a message of a type comes, or the end. With None, receive until the end."""
        while True:
            message = await self.receive()
            if message is None:
                if "line is full" in self.error:
                    raise Full
                return None
            if kind is not None and isinstance(message, kind):
                return message

    async def handshake(self) -> None:
        if await self.until(Handshake) is None:
            raise Wrong(f"There was no handshake, but code {self.code} and the error {self.error!r}.")

    async def answer(self, frames: int) -> None:
        """Receive Moshi's replies to `frames` frames."""
        first = len(self.said)
        while sum(data[0] == 1 for data in self.said[first:]) < frames:
            if await self.receive() is None:
                raise Wrong(f"A proper conversation ended with code {self.code} and the error {self.error!r}.")

    async def bye(self, complaint: str = "-") -> str:
        """Close properly, and return how the server closed. It may complain with a sentence that begins with `complaint`."""
        with suppress(ConnectionError):
            await self.send(struct.pack(">H", 1000), opcode=8)
        await self.until(None)
        if self.error and not self.error.startswith(complaint):
            raise Wrong(f"A client that left heard the error {self.error!r}.")
        return f"closed, {self.code}"

    async def told(self, what: str, *codes: int) -> str:
        """Wait for the end, which must come with an error that contains `what`, and with one of the codes.

        If the client is still sending, a reset of the connection may lose the error.
        """
        await self.until(None)
        if self.code == 0 and not self.error:
            return "reset"
        if what not in self.error or self.code not in codes:
            raise Wrong(f"The end came with code {self.code} and the error {self.error!r}, not {what!r} and {codes}.")
        return f"told, {self.code}"

    def leave(self, how: str) -> None:
        """Leave: "reset" the connection, "close" it, or close "half" of it."""
        with suppress(OSError, RuntimeError):
            if how == "half":
                self._writer.write_eof()
                return
            if how == "reset":
                sock = self._writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._writer.transport.abort()
            self._writer.close()


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}


def head(path: str, headers: dict[str, str] | None = None, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in ({"Host": "localhost"} | (headers or {})).items()]
    return "\r\n".join([*lines, "", ""]).encode()


def chat_path(parameters: dict[str, object]) -> str:
    return "/api/chat?" + urlencode({"worker_auth_id": TOKEN, "realtime": 0, "stats": 1} | parameters)


def websocket_frame(payload: bytes, rng: random.Random, opcode: int = 2, *, first: int = 0x80) -> bytes:
    """Write a masked frame of a websocket."""
    size, key = len(payload), rng.randbytes(4)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xff" + size.to_bytes(8, "big")
    mask = (key * (size // 4 + 1))[:size]
    body = (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")
    return bytes([first | opcode]) + length + key + body


# ---- what is said --------------------------------------------------------------------------------------------------------


@dataclass
class Voice:
    """One speaker: the pages of each frame, the parameters of the conversation, and Moshi's reply."""

    pages: list[bytes]
    parameters: dict[str, object]
    reply: list[bytes] = field(default_factory=list)


@dataclass
class Said:
    """What a server without other clients answers in other protocols."""

    others: Others
    talk: str = ""
    words: str = ""
    words_by_wyoming: str = ""

    async def learn(self) -> None:
        self.talk = await self.others.talk()
        self.words = await self.others.transcribe()
        self.words_by_wyoming = await self.others.transcribe_by_wyoming()
        await self.others.speak()


def others(server: ServerProcess) -> Others:
    """Return how to speak a server's other protocols, with the first digits of the recording."""
    pcm, _ = soundfile.read(DIGITS, dtype="float32", stop=40 * FRAME_SIZE)
    return Others(server.port, server.wyoming, TOKEN, pcm)


def voices() -> list[Voice]:
    """Return six speakers who say a digit and wait for the answer, some with greedy and some with random sampling."""
    pcm, _ = soundfile.read(DIGITS, dtype="float32")
    made = []
    for index, first in enumerate(ONSETS):
        said = pcm[first * FRAME_SIZE : (first + SPOKEN) * FRAME_SIZE]
        heard, encoder = np.concatenate([said, np.zeros((WAITING + index % 3) * FRAME_SIZE, np.float32)]), OpusEncoder()
        pages = [encoder.encode(part) for part in heard.reshape(-1, FRAME_SIZE)]
        made.append(Voice(pages, {"text_seed": index, "audio_seed": index} | (GREEDY if index % 2 else {})))
    return made


def in_pieces(pages: list[bytes], rng: random.Random) -> list[bytes]:
    """Make messages from pages: one for each, one for all, or cut anywhere."""
    whole = b"".join(pages)
    match rng.randrange(3):
        case 0:
            parts = pages
        case 1:
            parts = [whole]
        case _:
            cuts = [0, *sorted(rng.randrange(len(whole)) for _ in range(rng.randrange(1, 40))), len(whole)]
            parts = [whole[a:b] for a, b in pairwise(cuts)]
    return [encode(Audio(part)) for part in parts]


def check(voice: Voice, said: list[bytes], *, whole: bool = True) -> None:
    """Raise Wrong for a reply that differs from the expected one."""
    if said != (voice.reply if whole else voice.reply[: len(said)]):
        at = next((i for i, (a, b) in enumerate(zip(said, voice.reply, strict=False)) if a != b), len(said))
        raise Wrong(f"A reply differs from that of a server with nobody else, from message {at} on.")


async def learn(port: int, voice: Voice) -> None:
    client = await Client.open(port, random.Random(0))
    await client.chat(**voice.parameters)
    await client.handshake()
    await client.send(*in_pieces(voice.pages, random.Random(0)))
    await client.answer(len(voice.pages))
    voice.reply = client.said
    await client.bye()


# ---- who comes -----------------------------------------------------------------------------------------------------------


class Visit:
    """The kinds of clients. Each is a method, which returns how it ended."""

    def __init__(self, port: int, spoken: list[Voice], rng: random.Random, said: Said) -> None:
        self._port, self._rng, self._said = port, rng, said
        self._voice = rng.choice(spoken)
        self._clients: list[Client] = []

    def leave(self) -> None:
        """Close the connections that are still open."""
        for client in self._clients:
            client.leave("close")

    async def _open(self, *, greedy: bool = True) -> Client:
        self._clients.append(await Client.open(self._port, self._rng, greedy=greedy))
        return self._clients[-1]

    async def _chat(self, **parameters: object) -> Client:
        client = await self._open()
        await client.chat(**(self._voice.parameters | parameters))
        return client

    async def _converse(self, client: Client) -> None:
        """Say the words, and check the reply."""
        first = len(client.said)
        for message in in_pieces(self._voice.pages, self._rng):
            await client.send(message)
        await client.answer(len(self._voice.pages))
        check(self._voice, client.said[first:])

    # ---- proper ----

    async def proper(self) -> str:
        client = await self._chat()
        await client.handshake()
        await self._converse(client)
        return await client.bye()

    async def live(self) -> str:
        client = await self._chat(realtime=1)
        await client.handshake()
        for page in self._voice.pages:
            await client.send(encode(Audio(page)))
            await asyncio.sleep(FRAME_SECONDS)
        return await client.bye()

    async def restart(self) -> str:
        client = await self._chat()
        await client.handshake()
        for _ in range(self._rng.randrange(1, 3)):
            first = len(client.said)
            await client.send(*in_pieces(self._voice.pages[: self._rng.randrange(1, 12)], self._rng))
            await client.send(encode(Control.RESTART))
            await client.handshake()
            check(self._voice, client.said[first:], whole=False)
        await self._converse(client)
        return await client.bye()

    async def pause(self) -> str:
        client = await self._chat()
        await client.handshake()
        await client.send(encode(Control.PAUSE), *in_pieces(self._voice.pages[:6], self._rng), encode(Control.START))
        await self._converse(client)
        return await client.bye()

    async def early(self) -> str:
        """Speak before the handshake. After a restart, this must not matter."""
        client = await self._chat()
        await client.send(*in_pieces(self._voice.pages[:8], self._rng))
        await client.handshake()
        await client.send(encode(Control.RESTART))
        await client.handshake()
        await self._converse(client)
        return await client.bye()

    async def steps(self) -> str:
        """Ask the server to end after some steps."""
        most = self._rng.randrange(1, 12)
        client = await self._chat(max_steps=most)
        await client.handshake()
        await client.send(*in_pieces(self._voice.pages, self._rng))
        await client.told("", 1000)
        check(self._voice, client.said, whole=False)
        if (count := sum(data[0] == 1 for data in client.said)) != most:
            raise Wrong(f"A conversation of {most} steps had {count}.")
        return "ended, 1000"

    # ---- other protocols ----

    async def realtime(self) -> str:
        return _same(await self._said.others.talk(), self._said.talk)

    async def transcription(self) -> str:
        return _same(await self._said.others.transcribe(), self._said.words)

    async def wyoming(self) -> str:
        return _same(await self._said.others.transcribe_by_wyoming(), self._said.words_by_wyoming)

    async def speech(self) -> str:
        return _same(await self._said.others.speak(self._rng.choice(("wav", "mp3", "opus"))), "sound")

    async def bad_events(self) -> str:
        return await self._said.others.bad_events(self._rng)

    async def cut_others(self) -> str:
        return await self._said.others.cut(self._rng)

    # ---- nonsense that must not matter ----

    async def nonsense(self) -> str:
        client, rng = await self._chat(), self._rng
        await client.handshake()
        for _ in range(rng.randrange(1, 30)):
            match rng.randrange(4):
                case 0:
                    await client.send(bytes([rng.randrange(8, 256)]) + rng.randbytes(rng.randrange(200)))
                case 1:
                    await client.send(b"")
                case 2:
                    await client.send(rng.randbytes(rng.randrange(126)), opcode=rng.choice((9, 10)))
                case _:
                    await client.send(b"\3" + rng.choice((b"", b"\4", b"\0\0", b"\xff")))
        await self._converse(client)
        return await client.bye()

    async def controls(self) -> str:
        client, rng = await self._chat(), self._rng
        await client.handshake()
        for _ in range(rng.randrange(1, 20)):
            await client.send(encode(rng.choice(list(Control))))
            if rng.random() < 0.5:
                await client.send(encode(Audio(rng.choice(self._voice.pages))))
        return await client.bye()

    async def damaged(self) -> str:
        """Damage the stream: either so that checksums are wrong, or with right checksums."""
        client, rng = await self._chat(), self._rng
        await client.handshake()
        for page in self._voice.pages:
            data = bytearray(page)
            match rng.randrange(6):
                case 0:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 1:
                    del data[rng.randrange(len(data)) :]
                case 2:
                    data *= 2
                case 3:
                    data = bytearray(
                        ogg_page([rng.randbytes(rng.randrange(255)) for _ in range(rng.randrange(20))], rng)
                    )
                case 4:
                    data += b"OggS" + rng.randbytes(rng.randrange(100))
            with suppress(ConnectionError):
                await client.send(encode(Audio(bytes(data))))
        return await client.bye("The audio ")  # where the damage made another stream of it

    # ---- what is told ----

    async def noise(self) -> str:
        client, rng = await self._chat(), self._rng
        if rng.random() < 0.7:
            await client.handshake()
        with suppress(ConnectionError):
            for _ in range(9):
                await client.send(encode(Audio(rng.randbytes(1 << 15))))
        return await client.told("not an Ogg stream", 1003)

    async def faulty(self) -> str:
        client = await self._chat()
        await client.send(
            self._rng.choice((b"\2\xff", b"\4[]", b"\4{", b"\4\xff", b"\5\xc3", b"\7\1\xff", b'\4{"a":1e999}'))
        )
        return await client.told("", 1007)

    async def text(self) -> str:
        client = await self._chat()
        if self._rng.random() < 0.5:
            await client.handshake()
        await client.send(b'{"type": "session.update"}', opcode=1)
        return await client.told("Text messages", 1003)

    async def large(self) -> str:
        client = await self._chat()
        with suppress(ConnectionError):
            await client.send(b"\x63" + bytes(1 << 20))
        return await client.told("are allowed", 1009)

    async def huge(self) -> str:
        """Send a message far over the limit. The server must take only its head."""
        client = await self._chat()
        with suppress(ConnectionError):
            await client.write(b"\x82\xff" + (1 << self._rng.randrange(23, 63)).to_bytes(8, "big") + bytes(1000))
        return await client.told("", 1009)

    async def flood(self) -> str:
        client, pings = await self._chat(), self._rng.random() < 0.5
        with suppress(ConnectionError):
            for _ in range(300):
                await client.send(*[b"\x63"] * 10, opcode=9 if pings else 2)
        return await client.told("messages a second", 1008)

    async def stall(self) -> str:
        client = await self._chat()
        await client.handshake()
        await client.send(*in_pieces(self._voice.pages[: self._rng.randrange(1, 8)], self._rng))
        staying = asyncio.ensure_future(self._stay(client))
        outcome = await client.told("No sound came", 1008)
        staying.cancel()
        check(self._voice, client.said, whole=False)
        return outcome

    async def _stay(self, client: Client) -> None:
        """Send messages without sound. They must not keep the connection open."""
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(IDLE / 4)
                await client.send(
                    self._rng.choice((encode(Ping()), b"", b"\x63", encode(Control.END_TURN), b"\4{}", b"\1"))
                )

    async def broken_frames(self) -> str:
        """Break the rules of the websocket."""
        client, rng = await self._chat(), self._rng
        wrong = rng.choice(
            (
                websocket_frame(b"abc", rng, 2, first=0xC0),  # a reserved bit
                websocket_frame(b"abc", rng, 11),  # an unknown opcode
                websocket_frame(bytes(126), rng, 9),  # a ping that is too long
                websocket_frame(b"abc", rng, 9, first=0),  # a ping in parts
                websocket_frame(b"abc", rng, 0),  # goes on, with what?
                websocket_frame(b"\xff", rng, 1),  # not UTF-8
                websocket_frame(b"a", rng, 2, first=0) + websocket_frame(b"b", rng, 2),  # a beginning in the middle
            )
        )
        with suppress(ConnectionError):
            await client.write(wrong)
        return await client.told("", 1002, 1007)

    # ---- refused ----

    async def refused(self) -> str:
        rng, ok = self._rng, chat_path({})
        path, headers, method, status = rng.choice(
            [
                ("/api/chat", UPGRADE, "GET", 401),
                (chat_path({"worker_auth_id": "soap"}), UPGRADE, "GET", 401),
                ("/metrics", {}, "GET", 401),
                (ok, UPGRADE | {"Host": "example.org"}, "GET", 421),
                (ok, UPGRADE | {"Host": ""}, "GET", 421),
                (ok, UPGRADE | {"Origin": "https://example.org"}, "GET", 403),
                (ok, UPGRADE | {"Origin": "null"}, "GET", 403),
                (chat_path({"text_temperature": "nan"}), UPGRADE, "GET", 400),
                (chat_path({"audio_topk": "-1"}), UPGRADE, "GET", 400),
                (chat_path({"text_seed": 1 << 64}), UPGRADE, "GET", 400),
                (ok, {}, "GET", 426),
                (ok, {}, "POST", 426),
                (ok, {}, "PUT", 405),
                (ok, {"Origin": "https://example.org"}, "POST", 403),
                ("/v1/realtime", UPGRADE, "GET", 401),
                ("/v1/audio/speech", {}, "POST", 401),
                ("/v1/responses", {}, "POST", 404),
                ("/" + "x" * rng.randrange(1, 1000), {}, "GET", 404),
                ("/" + "x" * rng.randrange(1000, 8000), {}, "GET", 414),
                ("/" + "x" * rng.randrange(9000, 50_000), {}, "GET", 414),
                ("/../../etc/passwd", {}, "GET", 404),
            ]
        )
        client = await self._open()
        found = await client.request(path, headers, method)
        client.leave("close")
        if found != status:
            raise Wrong(f"A request that is to be refused with {status} got {found}: {method} {path[:60]} {headers}.")
        return f"refused, {status}"

    async def no_http(self) -> str:
        client, rng = await self._open(), self._rng
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # of TLS
        with suppress(ConnectionError):
            await client.write(rng.choice((hello + rng.randbytes(500), rng.randbytes(2000), b"GET " + b"x" * 100_000)))
        client.leave("half")
        await client.until(None)
        return "closed"

    # ---- gone ----

    async def cut(self) -> str:
        """Leave at any byte of the request, or of what follows."""
        rng, client = self._rng, await self._open()
        request = head(chat_path(self._voice.parameters), UPGRADE)
        stream = request + b"".join(websocket_frame(message, rng) for message in in_pieces(self._voice.pages, rng))
        before = rng.random() < 0.3
        stream = stream[: rng.randrange(len(request) if before else len(stream))]
        how = rng.choice(("reset", "close", "half"))
        await client.write(stream)
        await asyncio.sleep(rng.choice((0.0, 0.05, 0.3)))
        client.leave(how)
        if how == "half" and rng.random() < 0.5:
            client.leave("reset")
        return how

    async def cut_later(self) -> str:
        """Leave at any byte of what is said after the handshake."""
        rng, client = self._rng, await self._chat()
        await client.handshake()
        stream = b"".join(websocket_frame(message, rng) for message in in_pieces(self._voice.pages, rng))
        await client.write(stream[: rng.randrange(len(stream))])
        for _ in range(rng.randrange(3)):
            await client.receive()
        check(self._voice, client.said, whole=False)
        how = rng.choice(("reset", "close"))
        client.leave(how)
        return how

    async def impatient(self) -> str:
        """Leave the waiting line, or a conversation that has just begun."""
        client = await self._chat()
        if await client.until(MetaData) is None:
            raise Wrong(f"A client got nothing but code {client.code} and {client.error!r}.")
        await asyncio.sleep(self._rng.random() / 2)
        how = self._rng.choice(("reset", "close"))
        client.leave(how)
        return how

    async def crowd(self) -> str:
        """Come with more clients than the line takes."""

        async def one() -> str:
            client = await self._chat()
            try:
                await client.handshake()
            except Full:
                return "full"
            client.leave("reset")
            return "in"

        outcomes = await asyncio.gather(*(one() for _ in range(6)))
        return "some in, some told that it is full" if len(set(outcomes)) > 1 else f"all {outcomes[0]}"

    async def deaf(self) -> str:
        """Ask for answers, and never read."""
        client = await self._open(greedy=False)
        await client.write(head(chat_path(self._voice.parameters), UPGRADE))
        with suppress(ConnectionError, TimeoutError, asyncio.TimeoutError):
            for _ in range(30):
                await asyncio.wait_for(client.send(*[bytes(100)] * 20, opcode=9), 0.5)
                await asyncio.wait_for(client.send(*in_pieces(self._voice.pages[:2], self._rng)), 0.5)
        client.leave("reset")
        return "reset"

    # ---- slow: beside the others ----

    async def half_open(self) -> str:
        """Send half of a request, and wait."""
        client, request = await self._open(), head(chat_path({}), UPGRADE)
        await client.write(request[: self._rng.randrange(len(request))])
        await client.until(None)
        return "closed"

    async def drip(self) -> str:
        """Send a request slowly, one byte at a time."""
        client, begin = await self._open(), perf_counter()
        with suppress(ConnectionError):
            for byte in head(chat_path({}), UPGRADE | {"X": "y" * 100}):
                await client.write(bytes([byte]))
                await asyncio.sleep(0.2)
        if (took := perf_counter() - begin) > 25:
            raise Wrong(f"A request could drip in for {took:.0f} s.")
        return "closed"


def _same(answer: str, expected: str) -> str:
    if answer != expected:
        raise Wrong(f"The answer {answer!r} differs from that of a server with nobody else, {expected!r}.")
    return "the same"


SLOW = (Visit.half_open, Visit.drip)
# How often each kind comes, in proportion.
WEIGHTS: dict[Callable[[Visit], Awaitable[str]], int] = {
    Visit.proper: 18,
    Visit.live: 3,
    Visit.restart: 5,
    Visit.pause: 4,
    Visit.early: 3,
    Visit.steps: 3,
    Visit.realtime: 4,
    Visit.transcription: 4,
    Visit.wyoming: 3,
    Visit.speech: 3,
    Visit.bad_events: 3,
    Visit.cut_others: 4,
    Visit.nonsense: 5,
    Visit.controls: 3,
    Visit.damaged: 6,
    Visit.noise: 4,
    Visit.faulty: 4,
    Visit.text: 2,
    Visit.large: 2,
    Visit.huge: 2,
    Visit.flood: 2,
    Visit.stall: 3,
    Visit.broken_frames: 4,
    Visit.refused: 7,
    Visit.no_http: 3,
    Visit.cut: 10,
    Visit.cut_later: 5,
    Visit.impatient: 3,
    Visit.crowd: 1,
    Visit.deaf: 2,
    Visit.half_open: 3,
    Visit.drip: 1,
}


def ogg_page(packets: list[bytes], rng: random.Random) -> bytes:
    """Make a page of packets shorter than 255 bytes, with the right checksum."""
    fields = struct.pack("<4sBBqII", b"OggS", 0, rng.randrange(8), rng.getrandbits(40), rng.choice((0, 42)), 7)
    body = bytes([len(packets), *map(len, packets)]) + b"".join(packets)
    crc = 0
    for byte in fields + bytes(4) + body:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if crc >> 31 else crc << 1
    return fields + struct.pack("<I", crc) + body


# ---- all of them ---------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """The findings: how often each kind of client ended in each way, what is wrong, and the server's use and output."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    noise: str = ""
    seconds: float = 0.0


async def visit(
    kind: Callable[[Visit], Awaitable[str]], port: int, spoken: list[Voice], said: Said, name: str, found: Found
) -> None:
    """Play a client. If the line is full, try again."""

    async def until_there_is_room() -> str:
        while True:
            guest = Visit(port, spoken, random.Random(name), said)
            try:
                return await kind(guest)
            except Full:
                found.outcomes[kind.__name__, "the line was full"] += 1
            finally:
                guest.leave()
            await asyncio.sleep(0.3)

    try:
        outcome = await asyncio.wait_for(until_there_is_room(), HUNG)
    except (TimeoutError, asyncio.TimeoutError):
        outcome = "hung"
        found.wrong.append(f"{kind.__name__} (client {name}): it hung for {HUNG:.0f} s")
    except Exception as error:
        outcome = "wrong"
        found.wrong.append(f"{kind.__name__} (client {name}): {str(error).rstrip('.') or repr(error)}")
    found.outcomes[kind.__name__, outcome] += 1


async def come(
    numbers: Iterator[int], seed: int, port: int, spoken: list[Voice], said: Said, at_once: int, found: Found
) -> None:
    """Play clients, `at_once` at a time, with slow ones beside them."""
    slow, background = asyncio.Semaphore(BACKGROUND), set[asyncio.Task[None]]()

    async def one(number: int) -> None:
        name = f"{seed}/{number}"
        kind = random.Random(f"{name} who").choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind not in SLOW:
            await visit(kind, port, spoken, said, name, found)
            return
        await slow.acquire()
        task = asyncio.ensure_future(visit(kind, port, spoken, said, name, found))
        background.add(task)
        task.add_done_callback(lambda _: slow.release())

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    await asyncio.gather(*background)


def soak(clients: int, seed: int, at_once: int, tell: Callable[[str], None] = lambda _: None) -> Found:
    """Play all clients against a server, and collect what is wrong with it."""
    spoken, found = voices(), Found()
    options = ("--sessions", 2, "--line", LINE, "--idle", IDLE, "--token", TOKEN, "--debug", "--wyoming", "127.0.0.1:0")
    with ServerProcess(*options) as server:
        for voice in spoken:
            asyncio.run(learn(server.port, voice))
        said = Said(others(server))
        asyncio.run(said.learn())
    if len({tuple(voice.reply) for voice in spoken}) != len(spoken):
        raise Wrong("Two of the voices get the same reply, so that nobody could tell them apart.")
    begin = perf_counter()
    with ServerProcess(*options) as server:
        again = Said(others(server))
        asyncio.run(again.learn())  # with it, the server has done each kind of work once
        if (again.talk, again.words, again.words_by_wyoming) != (said.talk, said.words, said.words_by_wyoming):
            raise Wrong("Two servers without other clients give different answers.")
        said.others = again.others

        def some(first: int, last: int) -> None:
            asyncio.run(come(iter(range(first, last)), seed, server.port, spoken, said, at_once, found))
            found.figures = server.calm_down()
            found.usage.append(Usage.of(server.process.pid))
            tell(f"After {last} clients: {found.usage[-1]}")

        marks = [0, FIRST, *(round(FIRST + (clients - FIRST) * part / 4) for part in range(1, 5))]
        for first, last in pairwise(marks):
            some(first, last)
        for voice in spoken:  # a last one each: is everything as in the beginning?
            last = Voice(voice.pages, voice.parameters)
            asyncio.run(learn(server.port, last))
            if last.reply != voice.reply:
                found.wrong.append("after it all, a proper conversation no longer gets the reply of the first")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(HUNG)
        found.wrong += complaints(found, server, clients)
    found.seconds = perf_counter() - begin
    return found


def complaints(found: Found, server: ServerProcess, clients: int) -> list[str]:
    """List what is wrong with the server at the end."""
    wrong = []
    first, last = found.usage[0], found.usage[-1]
    if (more := last.memory - first.memory) > MORE_SHARE * first.memory + MORE_MEMORY:
        wrong.append(f"memory grew by {human_size(more)}, from {human_size(first.memory)} after the tenth client")
    middle = found.usage[len(found.usage) // 2]
    if clients >= LONG and (more := last.memory - middle.memory) > MORE_SHARE * middle.memory + MORE_THEN:
        wrong.append(f"memory still grew by {human_size(more)} in the second half of the clients")
    pool = min(32, (os.cpu_count() or 1) + 4)  # asyncio's threads come when they are needed, and stay
    if last.threads > first.threads + pool:
        wrong.append(f"there are {last.threads} threads and were {first.threads} after the tenth client")
    if last.descriptors > first.descriptors:
        wrong.append(f"there are {last.descriptors} descriptors and were {first.descriptors} after the tenth client")
    if failed := found.figures.get('msh_errors_total{kind="failed"}'):
        wrong.append(f"{failed:.0f} conversations failed in the server itself")
    errors = [event["error"] for event in server.events() if event["event"] == "error"]
    if errors:
        wrong.append(f"the server logged {len(errors)} errors, the first {errors[0]!r}")
    if noise := server.complained().strip().removesuffix("Stopped.").rstrip():
        found.noise = noise
        wrong.append(f"the server wrote to its standard error, at last {noise.splitlines()[-1]!r}")
    if server.process.returncode not in (143, -signal.SIGTERM):
        wrong.append(f"the server's exit code is {server.process.returncode}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1000, help="play so many clients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="choose them by this seed (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=4, help="play so many at once (default: %(default)s)")
    args = parser.parse_args()
    found = soak(max(args.sessions, FIRST + 1), args.seed, args.at_once, lambda text: print(text, flush=True))
    print(f"\n{'who came':<16}{'how it ended':<40}{'times':>6}")
    for (who, how), count in sorted(found.outcomes.items()):
        print(f"{who:<16}{how:<40}{count:>6}")
    kinds = {name.split('"')[1]: count for name, count in found.figures.items() if name.startswith("msh_errors_total{")}
    print("\nThe server's count: " + ", ".join(f"{kind} {count:.0f}" for kind, count in kinds.items()))
    print(f"{sum(found.outcomes.values())} visits in {found.seconds:.0f} s")
    if found.noise:
        print(f"What the server wrote to its standard error:\n{found.noise[-4000:]}")
    for complaint in found.wrong:
        print(f"Wrong: {complaint}.")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
