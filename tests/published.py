"""Scripted peers that send what the published programs send, byte for byte where it matters.

R is the Rust server and its terminal client, T the PyTorch server and its client, M the MLX web server, W the web page. Servers
decode sound with `OpusDecoder`, and answer each frame with the result of a `voice`. Clients send a recording.
"""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Awaitable, Callable

import aiohttp
import numpy as np
import ogg
from aiohttp import web
from paths import GOLDEN

from msh_mlx.format import FRAME_SIZE
from msh_mlx.net.messages import encode
from msh_mlx.net.opus import OpusDecoder, OpusEncoder
from msh_mlx.sound.ogg import OggSplitter, PageKind

RECORDED = GOLDEN / "wire" / "page_and_torch_server.bin"
LIMIT = 10  # seconds until a test that hangs fails

HANDSHAKES = {"R": bytes(9), "T": b"\0", "M": b"\0", "W": bytes(3)}
# Frames at the beginning without an answer, because of the model's delays.
LAG = {"R": 2, "T": 1, "M": 1, "W": 0}
METADATA = {
    "text_temperature": 0.8,
    "text_topk": 250,
    "audio_temperature": 0.8,
    "audio_topk": 250,
    "pad_mult": 0.0,
    "repetition_penalty_context": 64,
    "repetition_penalty": 1.0,
    "lm_model_file": "$HOME/model.q8.gguf",
    "mimi_model_file": "$HOME/tokenizer-e351c8d8-checkpoint125.safetensors",
    "build_info": {"build_timestamp": "2024-09-18T09:00:00Z", "git_branch": "main", "rustc_version": "1.80.1"},
    "instance_name": "foo",
}


def recorded():
    """Return all messages between the page (0) and the PyTorch server (1) in a real conversation: side, milliseconds, bytes."""
    data, messages, position = RECORDED.read_bytes(), [], 0
    while position < len(data):
        side, milliseconds, length = struct.unpack_from("<BII", data, position)
        position += 9 + length
        messages.append((side, milliseconds, data[position - length : position]))
    assert position == len(data)
    return messages


def said_by(side):
    """Return the messages of one side, as bytes."""
    return [data for other, _, data in recorded() if other == side]


def in_24_khz(page):
    """Return a page with its granule position in samples at 24 kHz, as the Rust programs count."""
    granule, serial, sequence = struct.unpack_from("<qII", page, 6)
    count = page[26]
    return ogg.page(page[27 : 27 + count], page[27 + count :], page[5], granule // 2, sequence, serial)


class Voice:
    """Turns frames into audio messages as the program `kind` sends them."""

    def __init__(self, kind):
        self._kind = kind
        self._encoder = OpusEncoder()
        self._splitter = OggSplitter()
        self._headers = b""

    def messages(self, pcm):
        """Return the messages for a frame `[1920]`."""
        pages = self._splitter.feed(self._encoder.encode(pcm))
        head = b"".join(page.data for page in pages if page.kind is not PageKind.AUDIO)
        sound = [page.data for page in pages if page.kind is PageKind.AUDIO]
        if self._kind == "R":
            head, sound = head and in_24_khz(pages[0].data) + in_24_khz(pages[1].data), list(map(in_24_khz, sound))
            # First the headers alone, then one page per message.
            return [b"\x01" + part for part in ([head] if head else []) + sound]
        if self._kind == "M":  # one page per message, the first with the headers
            return [b"\x01" + (head if i == 0 else b"") + part for i, part in enumerate(sound)]
        return [b"\x01" + head + b"".join(sound)]


# ---- servers -------------------------------------------------------------------------------------------------------------


class Server:
    """A websocket server on the loopback, on its own thread. `talk(socket, request)` holds a conversation.

    `requests` are the requests that came, with their query. `refuse` may answer one in place of a conversation.
    """

    def __init__(self, talk, *, ssl=None, refuse=None, port=0, host="127.0.0.1"):
        self._talk, self._ssl, self._refuse = talk, ssl, refuse
        self._host, self.port = host, port
        self.requests = []
        self.errors = []
        self._sockets = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(LIMIT)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        if self.errors:
            raise self.errors[0]

    def hang_up(self):
        """Cut all connections without a closing message."""

        def cut():
            for transport in list(self._sockets):
                transport.abort()

        self._loop.call_soon_threadsafe(cut)

    async def _serve(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/api/chat", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self.port, ssl_context=self._ssl, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._over.wait()
        await site.stop()  # before anybody connects again
        for transport in list(self._sockets):
            transport.abort()
        await runner.cleanup()

    async def _chat(self, request):
        self.requests.append(request)
        if self._refuse and (answer := self._refuse(request)):
            return answer
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(request.transport)
        transport = request.transport
        try:
            await self._talk(socket, request)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            self._sockets.discard(transport)
        return socket


async def sounds(socket, handshake=HANDSHAKES["T"]):
    """Greet a client, and yield the sound of its messages, each with its number."""
    await socket.send_bytes(handshake)
    decoder, count = OpusDecoder(), 0
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY and message.data[:1] == b"\x01":
            yield count, decoder.decode(message.data[1:])
            count += 1


async def send(socket, *messages):
    """Send messages, as bytes or as objects."""
    for message in messages:
        await socket.send_bytes(message if isinstance(message, bytes) else encode(message))


def echo(count, pcm):
    """A voice that repeats the sound it hears, and says a word every fifth frame."""
    return pcm, f" word{count}" if count % 5 == 0 else ""


def published(kind, voice=echo, lag=None) -> Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]:
    """Handle a connection like a published server. Frame `lag` and later ones are answered with `voice(count, pcm)`.

    It ignores controls and `realtime`.
    """
    lag = LAG[kind] if lag is None else lag

    async def talk(socket, _):
        if kind == "R":
            await socket.send_bytes(b"\x04" + json.dumps(METADATA).encode())
        out, heard, count = Voice(kind), np.zeros(0, np.float32), 0
        async for _, sound in sounds(socket, HANDSHAKES[kind]):
            heard = np.concatenate([heard, sound])
            while len(heard) >= FRAME_SIZE:
                frame, heard = heard[:FRAME_SIZE], heard[FRAME_SIZE:]
                count += 1
                if count <= lag:
                    continue
                pcm, text = voice(count - 1 - lag, frame)
                if text:
                    colour = b"\x07\x03" if kind == "W" else b"\x02"
                    await socket.send_bytes(colour + text.encode())
                await send(socket, *out.messages(pcm))

    return talk


def replay(messages) -> Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]:
    """Send the recorded messages of a server as fast as possible, and wait until the client has gone."""

    async def talk(socket, _):
        await send(socket, *messages)
        async for _ in socket:
            pass

    return talk


# ---- clients -------------------------------------------------------------------------------------------------------------


async def client(kind, url, pcm=None, *, until, pace=0.0, ssl=True):
    """Talk with a server like a published client, until `until(messages)` is true for the messages; return these.

    The terminal clients send `pcm` `[n]`, a frame every `pace` seconds, and then silence. The page sends its recorded messages.
    T's client does not wait for the handshake. R's begins with Restart, and accepts any certificate.
    """
    received = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, ssl=False if kind == "R" else ssl, max_msg_size=0) as socket,
    ):
        begun = asyncio.Event()

        async def hear():
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    received.append(message.data)
                    if message.data[:1] == b"\0":
                        begun.set()
                    if until(received):
                        return

        async def say():
            if kind == "R":
                await socket.send_bytes(b"\x03\x03")
            if kind != "T":
                await begun.wait()
            for messages in _says(kind, pcm):
                await send(socket, *messages)
                await asyncio.sleep(pace)

        saying = asyncio.create_task(say())
        try:
            await asyncio.wait_for(hear(), 6 * LIMIT)
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
    return received


def _says(kind, pcm):
    """Yield the messages of one frame after the other."""
    if kind == "W":
        said = said_by(0)  # 40 ms each
        yield from (said[i : i + 2] for i in range(0, len(said), 2))
        return
    voice = Voice(kind)
    for begin in range(0, len(pcm) - FRAME_SIZE + 1, FRAME_SIZE):
        yield voice.messages(pcm[begin : begin + FRAME_SIZE])
    while True:
        yield voice.messages(np.zeros(FRAME_SIZE, np.float32))
