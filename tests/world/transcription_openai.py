"""Have a recording written down by OpenAI's package, in its environment, in a realtime session of transcription.

`transcription_openai.py PORT RECORDING now|beta`. It prints JSON.
"""

import asyncio
import base64
import json
import sys
import time

import openai
import soundfile

PIECE = 960  # samples, 40 ms
TURNS = 3
port, recording, dialect = sys.argv[1:]
beta = dialect == "beta"
pcm, _ = soundfile.read(recording, dtype="int16")


async def send(connection: object) -> None:
    """Send the recording as fast as one speaks, and silence after it."""
    begin, data = time.monotonic(), pcm.tobytes() + bytes(2 * 24_000 * 2)
    for at in range(0, len(data) // 2, PIECE):
        audio = base64.b64encode(data[2 * at : 2 * (at + PIECE)]).decode()
        await connection.input_audio_buffer.append(audio=audio)
        await asyncio.sleep(max(0.0, begin + (at + PIECE) / 24_000 - time.monotonic()))


async def ask(connection: object) -> None:
    """Say what is wanted."""
    writes = {"model": "gpt-4o-transcribe", "language": "en"}
    detection = {"type": "server_vad", "silence_duration_ms": 400}
    if beta:
        own = {"input_audio_format": "pcm16", "input_audio_transcription": writes, "turn_detection": detection}
        await connection.transcription_session.update(session=own)
    else:
        heard = {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": writes, "turn_detection": detection}
        await connection.session.update(session={"type": "transcription", "audio": {"input": heard}})


async def main() -> None:
    urls = {"base_url": f"http://127.0.0.1:{port}/v1", "websocket_base_url": f"ws://127.0.0.1:{port}/v1"}
    client = openai.AsyncOpenAI(api_key="none", **urls)
    query = {"extra_query": {"intent": "transcription"}}
    opening = client.beta.realtime.connect(model="any", **query) if beta else client.realtime.connect(**query)
    async with opening as connection:
        await ask(connection)
        sending, turns = asyncio.ensure_future(send(connection)), 0
        async for event in connection:
            shown = {"event": event.type, "class": type(event).__name__}
            if event.type.endswith("transcription.delta"):
                shown["delta"] = event.delta
            if event.type.endswith("transcription.segment"):
                shown["times"] = [event.text, event.start, event.end]
            if event.type.endswith("transcription.completed"):
                shown["turn"] = event.transcript
                turns += 1
            if event.type == "error":
                shown["error"] = event.error.message
            print(json.dumps(shown))
            if turns == TURNS:
                break
        sending.cancel()
    print(json.dumps({"version": openai.__version__}))


asyncio.run(main())
