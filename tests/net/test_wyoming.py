"""The Wyoming protocol, over real sockets, with the demo models and the package's own client."""

import asyncio
import contextlib
import json
import socket
import sys
from dataclasses import replace

import hosts
import numpy as np
import pytest
import soundfile
import soxr
from paths import DEMO, DIGITS
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from msh_mlx import Transcriber
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.transcriber import BEHIND
from msh_mlx.library.files import find_demo
from msh_mlx.net.audio_service import AudioLimits
from msh_mlx.net.wyoming_server import SERVICE, WyomingServer

PCM = soundfile.read(DIGITS, dtype="float32")[0]
WORDS = json.loads((DEMO / "stt" / "expected.json").read_text())["words"]
TEXT = "three one four"
LIMIT = 30  # seconds


@pytest.fixture(scope="module")
def service():
    with hosts.audio_service(waiting=1) as made:
        yield made


@contextlib.asynccontextmanager
async def serving(service, **options):
    log = []
    server = WyomingServer(replace(service, log=log.append), **options)
    server.log = log
    sock = socket.create_server(("127.0.0.1", 0))
    server.port = sock.getsockname()[1]
    await server.listen(sock)
    try:
        yield server
    finally:
        await server.close()


async def read(client, *kinds):
    """Return the next event of one of the kinds, and all before it."""
    before = []
    while True:
        event = await asyncio.wait_for(client.read_event(), LIMIT)
        assert event is not None, "the server has closed the connection"
        before.append(event)
        if event.type in kinds:
            return event, before


def chunks(pcm, rate=16000, width=2, channels=1, size=1024):
    pcm = soxr.resample(pcm, 24000, rate) if rate != 24000 else pcm
    kind, scale = {1: ("u1", 127), 2: ("<i2", 32767), 4: ("<i4", 2**31 - 1)}[width]
    data = np.repeat((pcm.astype(np.float64) * scale + (128 if width == 1 else 0)).astype(kind)[:, None], channels, 1)
    form = {"rate": rate, "width": width, "channels": channels}
    yield AudioStart(**form)
    for i in range(0, len(data), size):
        yield AudioChunk(audio=data[i : i + size].tobytes(), **form)
    yield AudioStop()


async def hear(server, pcm=PCM, **form):
    async with AsyncTcpClient("127.0.0.1", server.port) as client:
        await client.write_event(Transcribe(language="en").event())
        for event in chunks(pcm, **form):
            await client.write_event(event.event())
        event, before = await read(client, "transcript-stop", "error")
        return event, before


async def say(client):
    """Return the sound of a speech, and the events about it."""
    event, before = await read(client, "audio-stop", "error")
    assert event.type == "audio-stop", event
    assert before[0].type == "audio-start"
    assert before[0].data | {"rate": 24000, "width": 2, "channels": 1} == before[0].data
    return b"".join(event.payload for event in before if event.type == "audio-chunk")


async def refused(client, sentence, code="invalid"):
    event, _ = await read(client, "error")
    error = Error.from_event(event)
    assert sentence in error.text
    assert error.code == code


async def eventually(true):
    async def wait():
        while not true():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), LIMIT)


async def test_what_there_is(service):
    languages = ["en", "fr"], ["en"]
    async with serving(service, languages=languages) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
        await client.write_event(Describe().event())
        info = Info.from_event((await read(client, "info"))[0])
        await client.write_event(Ping("hello").event())
        assert Pong.from_event((await read(client, "pong"))[0]).text == "hello"
    (asr,), (tts,) = info.asr, info.tts
    assert [(model.name, model.languages) for model in asr.models] == [("demo-stt", ["en", "fr"])]
    assert [(voice.name, voice.languages) for voice in tts.voices] == [("calm", ["en"]), ("brisk", ["en"])]
    assert asr.supports_transcript_streaming
    assert tts.supports_synthesize_streaming
    assert asr.installed


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loopback interface has no multicast")
async def test_it_is_announced(service):
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    async with serving(service) as server:
        await server.announce("test of msh-mlx", ["127.0.0.1"], server.port)
        looking, found = AsyncZeroconf(interfaces=["127.0.0.1"]), []
        handlers = [lambda zeroconf, service_type, name, state_change: found.append(name)]
        browser = AsyncServiceBrowser(looking.zeroconf, [SERVICE], handlers=handlers)
        info = AsyncServiceInfo(SERVICE, f"test of msh-mlx.{SERVICE}")
        await eventually(lambda: info.name in found)
        assert await info.async_request(looking.zeroconf, 10_000)
        assert (info.parsed_addresses(), info.port) == (["127.0.0.1"], server.port)
        await browser.async_cancel()
        await looking.async_close()


# ---- speech to text ------------------------------------------------------------------------------------------------------


async def test_sound_becomes_words(service):
    """As Home Assistant sends it; words come as chunks, and all together."""
    async with serving(service) as server:
        _, before = await hear(server)
    assert [event.type for event in before] == [
        "transcript-start",
        *["transcript-chunk"] * 6,
        "transcript",
        "transcript-stop",
    ]
    text = "".join(TranscriptChunk.from_event(event).text for event in before[1:-2])
    assert text == Transcript.from_event(before[-2]).text == " ".join(WORDS)
    assert server.log[-1]["end"] == "ok"
    assert service.transcriber.figures() == (0, 0)


async def test_other_forms_of_sound(service):
    async with serving(service) as server:
        for form in ({"rate": 24000, "channels": 2}, {"rate": 48000, "width": 4}, {"rate": 22050, "width": 1}):
            _, before = await hear(server, **form)
            assert Transcript.from_event(before[-2]).text == " ".join(WORDS)
        _, before = await hear(server, np.zeros(24000, np.float32))
        assert [event.type for event in before] == ["transcript-start", "transcript", "transcript-stop"]


async def test_several_at_once(service):
    async with serving(service) as server:
        answers = await asyncio.gather(*(hear(server) for _ in range(3)))
        assert [Transcript.from_event(before[-2]).text for _, before in answers] == [" ".join(WORDS)] * 3


async def test_one_connection_can_ask_again(service):
    async with serving(service) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
        for _ in range(2):  # the second one is sent before the first one is answered
            for event in chunks(PCM):
                await client.write_event(event.event())
        for _ in range(2):
            _, before = await read(client, "transcript-stop")
            assert Transcript.from_event(before[-2]).text == " ".join(WORDS)


async def test_wrong_sound_is_told_and_survived(service):
    form = {"rate": 16000, "width": 2, "channels": 1}
    async with serving(service) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
        for events, sentence in (
            ([AudioChunk(audio=b"ab", **form)], "without audio-start"),
            ([AudioStart(**{**form, "rate": 3})], "rate 3"),
            ([AudioStart(**{**form, "width": 3})], "width 3"),
            ([AudioStart(**{**form, "channels": 99})], "99 channels"),
            ([AudioStart(**form), AudioChunk(audio=b"abc", **form)], "in whole samples"),
            ([AudioStart(**form), AudioChunk(audio=b"ab", **{**form, "rate": 8000})], "not in the form"),
            ([Transcribe(name="whisperer")], "There is no model 'whisperer'; use demo-stt"),
            ([Event("audio-start", {})], "lacks something"),
            ([Event("audio-start", {"rate": "x", "width": [], "channels": None})], "rate 'x'"),
        ):
            for event in events:
                await client.write_event(event if isinstance(event, Event) else event.event())
            await refused(client, sentence)
        await client.write_event(Event("intent", {"later": "versions"}))
        for event in chunks(PCM):
            await client.write_event(event.event())
        _, before = await read(client, "transcript-stop")
        assert Transcript.from_event(before[-2]).text == " ".join(WORDS)
    await eventually(lambda: service.transcriber.figures() == (0, 0))


async def test_limits(service):
    small = replace(service, limits=AudioLimits(seconds=2.0, text=20))
    async with serving(small, connections=3, per_address=2) as server:
        event, _ = await hear(server)
        assert "lasts more than" in Error.from_event(event).text
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(AsyncTcpClient("127.0.0.1", server.port)) for _ in range(2)]
            for client in clients:
                await client.write_event(Ping().event())
                await read(client, "pong")
            third = await stack.enter_async_context(AsyncTcpClient("127.0.0.1", server.port))
            await refused(third, "too many connections", "busy")
            await clients[0].write_event(Synthesize("one " * 6).event())
            await refused(clients[0], "more than 20 characters")


async def test_a_full_line_is_told(service):
    async with serving(service) as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncTcpClient("127.0.0.1", server.port)) for _ in range(4)]
        for i, client in enumerate(clients):
            await client.write_event(AudioStart(16000, 2, 1).event())
            if i < 3:
                await eventually(lambda i=i: sum(service.transcriber.figures()) == i + 1)
        await refused(clients[3], "waiting line is full", "busy")
    await eventually(lambda: service.transcriber.figures() == (0, 0))  # all have left


# ---- text to speech ------------------------------------------------------------------------------------------------------


async def test_a_text_becomes_speech(service):
    async with serving(service) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
        sounds = []
        for voice in (None, SynthesizeVoice("calm"), SynthesizeVoice("brisk"), SynthesizeVoice("alloy")):
            await client.write_event(Synthesize(TEXT, voice).event())
            sounds.append(await say(client))
    assert sounds[0] == sounds[1] == sounds[3] != sounds[2]
    parts = load_parts(find_demo("transcription"))
    transcriber = Transcriber(parts.lm, parts.mimi, parts.tokenizer)
    words = transcriber.push(np.frombuffer(sounds[0], "<i2").astype(np.float32) / 32768) + transcriber.flush(BEHIND)
    assert [word.text for word in words] == TEXT.split()


async def test_a_text_that_comes_in_pieces(service):
    """As Home Assistant sends what a language model writes; the whole text comes, too, for older servers."""
    text = "three one four nine two six five three eight seven"
    async with serving(service) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
        await client.write_event(Synthesize(text).event())
        whole = await say(client)
        await client.write_event(SynthesizeStart().event())
        for piece in (text[:8], text[8:-12]):
            await client.write_event(SynthesizeChunk(piece).event())
        begin, _ = await read(client, "audio-chunk")  # before the text is complete
        for event in (SynthesizeChunk(text[-12:]), Synthesize(text), SynthesizeStop()):
            await client.write_event(event.event())
        _, events = await read(client, "synthesize-stopped")
    assert [event.type for event in events[-2:]] == ["audio-stop", "synthesize-stopped"]
    assert begin.payload + b"".join(event.payload for event in events if event.type == "audio-chunk") == whole


async def test_wrong_texts_are_told_and_survived(service):
    async with serving(service) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
        for event, sentence in (
            (Synthesize(TEXT, SynthesizeVoice("nobody")), "There is no voice 'nobody'"),
            (Event("synthesize", {"text": TEXT, "text_format": "ssml"}), "not plain text"),
            (Synthesize(""), "nothing to say"),
            (Synthesize("☃"), "nothing to say"),
            (Synthesize('<break time="9 weeks"/>'), "is not a pause"),
            (SynthesizeChunk("one"), "without synthesize-start"),
            (Event("synthesize", {"text": 3}), "not a text"),
            (Event("synthesize", {}), "lacks something"),
        ):
            await client.write_event(event if isinstance(event, Event) else event.event())
            await refused(client, sentence)
        await client.write_event(Synthesize(TEXT).event())
        assert len(await say(client)) > 50_000
    await eventually(lambda: service.speaker.figures() == (0, 0))


async def test_who_leaves_is_not_spoken_to(service):
    async with serving(service) as server:
        async with AsyncTcpClient("127.0.0.1", server.port) as client:
            await client.write_event(Synthesize('one <break time="60s"/> ' * 20).event())
            await read(client, "audio-chunk")
        await eventually(lambda: service.speaker.figures() == (0, 0))
        await eventually(lambda: [event["end"] for event in server.log] == ["gone"])


async def test_a_service_that_is_missing(service):
    for missing, event, sentence in (
        ({"speaker": None}, Synthesize(TEXT), "does not speak"),
        ({"transcriber": None}, AudioStart(16000, 2, 1), "does not write speech down"),
    ):
        async with serving(replace(service, **missing)) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
            await client.write_event(event.event())
            await refused(client, sentence)


# ---- bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence", "goes_on"),
    [
        (b"GET / HTTP/1.1\n", "not JSON", True),
        (b"[]\n", "has no type", True),
        (b'{"type": 3}\n', "has no type", True),
        (b'{"type": "ping", "data": 3}\n', "not a JSON object", True),
        (b'{"type": "ping", "data_length": 2}\n[]', "not a JSON object", True),
        (b'{"type": "ping", "data_length": 2}\n{,', "not a JSON object", True),
        (b'{"type": "ping", "payload_length": 99999999999}\n', "payload_length is 99999999999", False),
        (b'{"type": "ping", "data_length": -1}\n', "data_length is -1", False),
        (b'{"type": "ping", "data_length": "x"}\n', "data_length is 'x'", False),
        (b'{"type": "ping", "data_length": true}\n', "data_length is True", False),
        (b"x" * 200_000, "longer than 65536 bytes", False),
    ],
)
async def test_bytes_that_are_no_events(service, data, sentence, goes_on):
    async with serving(service) as server, AsyncTcpClient("127.0.0.1", server.port) as client:
        client._writer.write(data)
        await refused(client, sentence)
        if goes_on:
            client._writer.write(b"\n")  # an empty line changes nothing
            await client.write_event(Ping("still here").event())
            await read(client, "pong")
        else:
            with contextlib.suppress(ConnectionError):
                assert await client.read_event() is None


async def test_random_bytes_do_no_harm(service):
    rng = np.random.default_rng(7)
    good = b"".join(
        json.dumps({"type": kind, "data": {"text": "one", "rate": 16000, "width": 2, "channels": 1}}).encode() + b"\n"
        for kind in ("describe", "synthesize-start", "synthesize-chunk", "audio-start", "audio-stop", "synthesize")
    )
    async with serving(service) as server:
        for _ in range(30):
            data = bytearray(good)
            for place in rng.integers(0, len(data), 5):
                data[place] = rng.integers(0, 256)
            async with AsyncTcpClient("127.0.0.1", server.port) as client:
                with contextlib.suppress(ConnectionError):
                    client._writer.write(bytes(data))
                    await client._writer.drain()
                    client._writer.write_eof()
                    while await asyncio.wait_for(client._reader.read(1 << 16), LIMIT):
                        pass
        await eventually(lambda: service.speaker.figures() == service.transcriber.figures() == (0, 0))
        assert not [event for event in server.log if event["event"] == "error"]
        _, before = await hear(server)
        assert Transcript.from_event(before[-2]).text == " ".join(WORDS)


async def test_the_end_closes_all(service):
    async with serving(service) as server:
        client = AsyncTcpClient("127.0.0.1", server.port)
        await client.connect()
        await client.write_event(Synthesize('one <break time="60s"/>').event())
        await read(client, "audio-chunk")
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(client.read_event(), LIMIT):
            pass
    assert service.speaker.figures() == (0, 0)
    await client.disconnect()
