"""Talk with a server by OpenAI's package, in its environment: `realtime_openai.py PORT RECORDING now|beta`. It prints JSON."""

import asyncio
import base64
import json
import sys
import time

import openai
import soundfile

PIECE = 960  # samples, 40 ms
port, recording, dialect = sys.argv[1:]
beta = dialect == "beta"
pcm, _ = soundfile.read(recording, dtype="int16")


async def send(connection: object) -> None:
    """Send the recording as fast as one speaks, and silence after it."""
    begin, data = time.monotonic(), pcm.tobytes() + bytes(2 * 24_000 * 3)
    for at in range(0, len(data) // 2, PIECE):
        audio = base64.b64encode(data[2 * at : 2 * (at + PIECE)]).decode()
        await connection.input_audio_buffer.append(audio=audio)
        await asyncio.sleep(max(0.0, begin + (at + PIECE) / 24_000 - time.monotonic()))


async def main() -> None:
    urls = {"base_url": f"http://127.0.0.1:{port}/v1", "websocket_base_url": f"ws://127.0.0.1:{port}/v1"}
    client = openai.AsyncOpenAI(api_key="none", **urls)
    realtime = client.beta.realtime if beta else client.realtime
    async with realtime.connect(model="gpt-realtime") as connection:
        own = {"modalities": ["audio", "text"]} if beta else {"type": "realtime", "output_modalities": ["audio"]}
        await connection.session.update(session=own)
        sending, done, sound = asyncio.ensure_future(send(connection)), 0, 0
        async for event in connection:
            if event.type.endswith("audio.delta"):
                sound += len(base64.b64decode(event.delta))
                continue
            shown = {"event": event.type, "class": type(event).__name__}
            if event.type.endswith("transcript.delta"):
                shown["word"] = event.delta
            if event.type == "error":
                shown["error"] = event.error.message
            print(json.dumps(shown))
            done += event.type == "response.done"
            if done == 3:
                break
        sending.cancel()
    print(json.dumps({"version": openai.__version__, "seconds": sound / 48_000}))


asyncio.run(main())
