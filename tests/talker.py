"""Clients of the server for tests. `Talker` sends a recording, and collects the messages that come back."""

import asyncio
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from msh_mlx.format import FRAME_SIZE
from msh_mlx.net import messages as protocol
from msh_mlx.net.opus import OpusDecoder, OpusEncoder


@dataclass
class Heard:
    """The messages from the server, in order. `raw` are the audio and text messages as they came."""

    messages: list = field(default_factory=list)
    raw: list = field(default_factory=list)
    pcm: list = field(default_factory=list)
    code: int | None = None

    def of(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def text(self):
        return "".join(message.text for message in self.of(protocol.Text))

    @property
    def sound(self):
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.float32)

    @property
    def metadata(self):
        return [message.values for message in self.of(protocol.MetaData)]

    @property
    def error(self):
        return "".join(message.text for message in self.of(protocol.Error))


class WebSocketClient:
    """One connection, `ws`, while `async with` lasts. `options` are those of aiohttp; one that is None is left out."""

    def __init__(self, url, **options):
        self._url = url
        self._options = {key: value for key, value in options.items() if value is not None}

    async def __aenter__(self):
        self._http = aiohttp.ClientSession()
        try:
            self.ws = await self._http.ws_connect(self._url, max_msg_size=0, **self._options)
        except BaseException:
            await self._http.close()
            raise
        return self

    async def __aexit__(self, *_):
        await self.ws.close()
        await self._http.close()

    async def receive_data(self, kind, timeout):
        """Wait for the data of a message, which is of a kind; None when the connection is closed."""
        message = await self.ws.receive(timeout)
        if message.type is kind:
            return message.data
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING), message
        return None


class Talker(WebSocketClient):
    """One connection: `async with Talker(url, **parameters) as talker`. A parameter that is None is not sent, even `stats`."""

    def __init__(self, url, headers=None, ssl=None, **parameters):
        sent = {name: str(value) for name, value in {"stats": 1, **parameters}.items() if value is not None}
        super().__init__(f"{url}/api/chat", headers=headers, params=sent, ssl=ssl)
        self.heard = Heard()
        self._decoder = OpusDecoder()

    async def receive(self, timeout=10.0):
        """Wait for a message, keep it and return it; None when the connection is closed."""
        data = await self.receive_data(aiohttp.WSMsgType.BINARY, timeout)
        if data is None:
            self.heard.code = self.ws.close_code
            return None
        read = protocol.decode(data)
        self.heard.messages.append(read)
        if isinstance(read, protocol.Audio):
            self.heard.pcm.append(self._decoder.decode(read.data))
        if isinstance(read, protocol.Audio | protocol.Text):
            self.heard.raw.append(data)
        return read

    async def until(self, kind, timeout=10.0):
        """Receive until a message of a type comes, and return it; None if the connection is closed first."""
        while True:
            message = await self.receive(timeout)
            if message is None or isinstance(message, kind):
                return message

    async def send(self, message):
        await self.ws.send_bytes(protocol.encode(message))

    async def say(self, pcm, pause=0.0):
        """Send sound, frame by frame."""
        encoder = OpusEncoder()
        for start in range(0, len(pcm) - FRAME_SIZE + 1, FRAME_SIZE):
            await self.send(protocol.Audio(encoder.encode(pcm[start : start + FRAME_SIZE])))
            if pause:
                await asyncio.sleep(pause)

    async def converse(self, pcm, pause=0.0):
        """Wait for the handshake, send sound, and receive until as much sound has come back."""
        await self.until(protocol.Handshake)
        first = len(self.heard.pcm)
        sending = asyncio.ensure_future(self.say(pcm, pause))
        try:
            while sum(map(len, self.heard.pcm[first:])) < len(pcm) // FRAME_SIZE * FRAME_SIZE:
                if await self.receive() is None:
                    break
        finally:
            sending.cancel()
        return self.heard


async def talk(url, pcm, pause=0.0, **parameters):
    """Hold one conversation, and return what came back."""
    async with Talker(url, **parameters) as talker:
        return await talker.converse(pcm, pause)
