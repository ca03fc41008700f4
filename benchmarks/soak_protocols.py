"""Clients of `server_soak.py` that speak other protocols than Moshi's: OpenAI's, and Wyoming's."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import random
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np
import soundfile
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE, Pcm
from msh_mlx.sound.recordings import to_int16

PATIENCE = 30.0  # seconds for an answer
TEXT = "three one four"
_PIECE = 8 * FRAME_SIZE  # bytes of sound in an event: four frames
TRIES = 100  # to get a place, half a second apart


class Refused(Exception):  # noqa: N818
    """The server answered otherwise than it should."""


class Others:
    """A server's other protocols: at a port that needs a token, and at that of Wyoming.

    `pcm` is what is said, `[n]` float32 at 24 kHz. It ends with a frame.
    """

    def __init__(self, port: int, wyoming: int, token: str, pcm: Pcm) -> None:
        self._base = f"http://127.0.0.1:{port}/v1"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._wyoming = wyoming
        self._pcm = to_int16(pcm).tobytes()
        self._wav = io.BytesIO()
        soundfile.write(self._wav, pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")

    def _http(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(PATIENCE))

    # ---- proper ----

    async def talk(self) -> str:
        """Hold a conversation in OpenAI's protocol; return what was said until the first response was done, with its sound."""
        query = {"model": "any", "realtime": "0", "text_temperature": "0", "audio_temperature": "0"}
        async with self._http() as http:
            for _ in range(TRIES):
                async with http.ws_connect(f"{self._base}/realtime", params=query, max_msg_size=0) as ws:
                    words, digest = "", hashlib.sha256()
                    async for message in ws:
                        event = json.loads(message.data)
                        if event["type"] == "session.created":  # what is said before is not heard
                            for begin in range(0, len(self._pcm), _PIECE):
                                sound = base64.b64encode(self._pcm[begin : begin + _PIECE]).decode()
                                await ws.send_json({"type": "input_audio_buffer.append", "audio": sound})
                        elif event["type"] == "response.output_audio_transcript.delta":
                            words += event["delta"]
                        elif event["type"] == "response.output_audio.delta":
                            digest.update(base64.b64decode(event["delta"]))
                        elif event["type"] == "response.done":
                            return f"{words} {digest.hexdigest()}"
                        elif event["type"] == "error" and "line is full" not in event["error"]["message"]:
                            raise Refused(f"A proper client of /v1/realtime got {event['error']}")
                await asyncio.sleep(0.5)
        raise Refused("A proper client of /v1/realtime got no place.")

    async def transcribe(self) -> str:
        """Let a recording be written down; return the words."""
        status, answer = await self._post("audio/transcriptions", data=self._form())
        return str(json.loads(answer)["text"]) if status == 200 else _refused(status, answer)

    async def speak(self, kind: str = "wav") -> str:
        """Let a text be said; return what came."""
        status, answer = await self._post(
            "audio/speech", json={"model": "tts-1", "input": TEXT, "voice": "calm", "response_format": kind}
        )
        if status != 200:
            return _refused(status, answer)
        sound, _ = soundfile.read(io.BytesIO(answer))
        return "sound" if len(sound) > SAMPLE_RATE // 2 and np.abs(sound).max() > 0.01 else "silence"

    async def transcribe_by_wyoming(self) -> str:
        """Let a recording be written down by Wyoming's protocol; return the words."""
        for _ in range(TRIES):
            async with AsyncTcpClient("127.0.0.1", self._wyoming) as client:
                form = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}
                await client.write_event(Transcribe().event())
                await client.write_event(AudioStart(**form).event())
                await client.write_event(AudioChunk(audio=self._pcm, **form).event())
                await client.write_event(AudioStop().event())
                while event := await asyncio.wait_for(client.read_event(), PATIENCE):
                    if Transcript.is_type(event.type):
                        return str(Transcript.from_event(event).text)
            await asyncio.sleep(0.5)
        raise Refused("A proper client of Wyoming's protocol got no answer.")

    # ---- others ----

    async def bad_events(self, rng: random.Random) -> str:
        """Send what is no event, and events that are wrong; then talk on."""
        wrong: list[Any] = [
            "{", "[]", '"x"', '{"type": 1}', '{"type": "no.such.event"}', '{"type": "input_audio_buffer.append", "audio": "%"}',
            '{"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"format": {"type": "mp3"}}}}}',
            '{"type": "conversation.item.delete", "item_id": "none"}', '{"type": "response.cancel"}',
        ]  # fmt: skip
        async with self._http() as http, http.ws_connect(f"{self._base}/realtime", params={"model": "any"}) as ws:
            sent = [rng.choice(wrong) for _ in range(rng.randrange(1, 20))]
            errors = -1  # before the session is created: then sound is not heard, and not looked at
            while errors < len(sent):
                message = await ws.receive(PATIENCE)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    why = f"{ws.close_code}, {message.extra!r}"
                    raise Refused(
                        f"After {errors} errors for {len(sent)} wrong events the connection was closed: {why}."
                    )
                event = json.loads(message.data)
                if event["type"] == "error" and "line is full" in event["error"]["message"]:
                    return "the line was full"
                if event["type"] == "session.created":
                    errors = 0
                    for text in sent:
                        await ws.send_str(text)
                errors += event["type"] == "error"
        return "an error each"

    async def cut(self, rng: random.Random) -> str:
        """Leave in the middle of an upload, of an answer, or of a Wyoming event."""
        which = rng.randrange(3)
        if which == 2:
            _, writer = await asyncio.open_connection("127.0.0.1", self._wyoming)
            data = rng.choice(
                (rng.randbytes(200), b'{"type": "transcribe"}\n{"type": "audio-start", "data_length": 40}\n{')
            )
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(rng.random() / 10)
            writer.close()
            return "left Wyoming"
        work = self.transcribe() if which else self.speak()
        task = asyncio.ensure_future(work)
        await asyncio.sleep(rng.random() / 5)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return "left the answer"

    # ---- what they share ----

    def _form(self) -> aiohttp.FormData:
        form = aiohttp.FormData()
        form.add_field("file", self._wav.getvalue(), filename="said.wav")
        form.add_field("model", "whisper-1")
        return form

    async def _post(self, path: str, **body: Any) -> tuple[int, bytes]:
        """Post a request, again while the server is busy; return the answer's status and body."""
        async with self._http() as http:
            for _ in range(TRIES):
                async with http.post(f"{self._base}/{path}", **body) as answer:
                    if answer.status not in (429, 503):
                        return answer.status, await answer.read()
                if "data" in body:
                    body["data"] = self._form()
                await asyncio.sleep(0.5)
        raise Refused(f"A proper request for {path} got no place.")


def _refused(status: int, answer: bytes) -> str:
    raise Refused(f"A proper request got the status {status}: {answer[:300]!r}")
