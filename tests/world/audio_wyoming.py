"""Transcription and speech with the client of the package `wyoming`: the arguments are the server's port and a recording (WAV).

A line of JSON for each thing that came back.
"""

import asyncio
import json
import sys
import wave

from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop, wav_to_chunks
from wyoming.client import AsyncClient
from wyoming.info import Describe, Info
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice
from wyoming.version import __version__


def tell(**values):
    print(json.dumps(values), flush=True)


async def speech(client, last):
    data = b""
    while event := await client.read_event():
        if AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
        elif AudioChunk.is_type(event.type):
            data += AudioChunk.from_event(event).audio
        elif event.type in (last, "error"):
            return start, data
    return None


async def hear(client, chunks, rate, width, channels):
    await client.write_event(Transcribe(language="en").event())
    await client.write_event(AudioStart(rate, width, channels).event())
    for chunk in chunks:
        await client.write_event(chunk.event())
    await client.write_event(AudioStop().event())
    heard = []
    while (event := await client.read_event()) and event.type != "transcript-stop":
        heard.append([event.type, event.data.get("text")])
    return heard


async def main():
    tell(version=__version__)
    async with AsyncClient.from_uri(f"tcp://127.0.0.1:{sys.argv[1]}") as client:
        await client.write_event(Describe().event())
        info = Info.from_event(await client.read_event())
        tell(asr=[model.name for model in info.asr[0].models], tts=[voice.name for voice in info.tts[0].voices])
        with wave.open(sys.argv[2]) as file:
            form = file.getframerate(), file.getsampwidth(), file.getnchannels()
            heard = await hear(client, list(wav_to_chunks(file, 1024)), *form)
        tell(heard=heard)
        await client.write_event(Synthesize("three one four", SynthesizeVoice("calm")).event())
        start, data = await speech(client, "audio-stop")
        chunks = [
            AudioChunk(start.rate, start.width, start.channels, data[i : i + 2048]) for i in range(0, len(data), 2048)
        ]
        tell(bytes=len(data), said=await hear(client, chunks, start.rate, start.width, start.channels))
        text = "nine two six five three eight"
        await client.write_event(SynthesizeStart().event())
        for word in text.split():
            await client.write_event(SynthesizeChunk(f"{word} ").event())
        await client.write_event(Synthesize(text).event())
        await client.write_event(SynthesizeStop().event())
        start, data = await speech(client, "synthesize-stopped")
        tell(streamed=len(data))


asyncio.run(main())
