"""OpenAI's interfaces for recordings and texts, over real sockets, with the demo models."""

import asyncio
import base64
import contextlib
import io
import json
from dataclasses import replace

import aiohttp
import hosts
import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS
from prometheus_client.parser import text_string_to_metric_families

from msh_mlx.conversation.shared import SharedModel
from msh_mlx.library.files import find_demo
from msh_mlx.net.audio_service import AudioLimits
from msh_mlx.net.exchange import Request
from msh_mlx.net.openai_audio import OpenAiAudio
from msh_mlx.net.sound_formats import FORMATS
from msh_mlx.sound.recordings import open_sound

EXPECTED = json.loads((DEMO / "stt" / "expected.json").read_text())
WORDS = EXPECTED["words"]
TEXT = "three one four"
STT, TTS = "/v1/audio/transcriptions", "/v1/audio/speech"


@pytest.fixture(scope="module")
def service():
    with hosts.audio_service(waiting=2, conversation="demo") as made:
        yield made


@contextlib.asynccontextmanager
async def serving(service, *options, ready=True):
    args = hosts.checked("--demo", *options)
    files = None if args.no_conversations else find_demo()
    async with (
        hosts.serving(SharedModel(), args, files, service, ready=ready) as server,
        aiohttp.ClientSession(server.url) as server.http,
    ):
        yield server


def form(data=None, name="digits.flac", **fields):
    made = aiohttp.FormData()
    for key, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            made.add_field(key.replace("__", "[]"), value)
    made.add_field("file", DIGITS.read_bytes() if data is None else data, filename=name)
    return made


async def hear(server, data=None, name="digits.flac", **fields):
    async with server.http.post(STT, data=form(data, name, **fields)) as answer:
        return answer.status, answer.content_type, await answer.text()


async def say(server, input=TEXT, **values):
    async with server.http.post(TTS, json={"input": input, **values}) as answer:
        return answer.status, answer.content_type, await answer.read()


async def refused(answering, status, sentence, param=None):
    got, kind, text = await answering
    assert (got, kind) == (status, "application/json")
    error = json.loads(text)["error"]
    assert sentence in error["message"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events(text):
    assert text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


def sound(data, kind="pcm"):
    if kind == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768
    with open_sound(io.BytesIO(data), f"The {kind}") as recording:
        return np.concatenate(list(recording.blocks()))[:: recording.rate // 24000]


async def eventually(true, timeout=10.0):
    async def wait():
        while not true():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), timeout)


# ---- transcriptions ------------------------------------------------------------------------------------------------------


async def test_a_recording_in_each_format(service):
    text = " ".join(WORDS)
    async with serving(service) as server:
        status, kind, body = await hear(server, model="whisper-1")
        assert (status, kind) == (200, "application/json")
        assert json.loads(body) == {"text": text, "usage": {"type": "duration", "seconds": 14}}
        assert await hear(server, response_format="text") == (200, "text/plain", text + "\n")
        _, kind, body = await hear(server, response_format="srt")
        assert kind == "application/x-subrip"
        assert body.startswith("1\n00:00:00,720 --> 00:00:02,880\nfour one\n\n2\n00:00:04,800 --> ")
        _, kind, body = await hear(server, response_format="vtt")
        assert kind == "text/vtt"
        assert body.startswith("WEBVTT\n\n00:00:00.720 --> 00:00:02.880\nfour one\n")
        both = {"timestamp_granularities__": ["word", "segment"]}
        _, _, body = await hear(server, model="demo-stt", response_format="verbose_json", language="en", **both)
        verbose = json.loads(body)
        assert [word["word"] for word in verbose["words"]] == WORDS
        assert [word["start"] for word in verbose["words"]] == EXPECTED["start"]
        assert all(word["start"] < word["end"] <= verbose["duration"] for word in verbose["words"])
        assert [segment["text"] for segment in verbose["segments"]] == [" four one", " three", " eight nine zero"]
        assert (verbose["text"], verbose["task"], verbose["language"]) == (text, "transcribe", "en")
        assert verbose["duration"] == pytest.approx(13.065, abs=0.001)
        assert "words" not in json.loads((await hear(server, response_format="verbose_json"))[2])


async def test_words_are_streamed_as_they_come(service):
    async with serving(service) as server, server.http.post(STT, data=form(stream="true")) as answer:
        assert answer.content_type == "text/event-stream"
        *deltas, done = events(await answer.text())
    assert [event["type"] for event in deltas] == ["transcript.text.delta"] * len(WORDS)
    assert "".join(event["delta"] for event in deltas) == done["text"] == " ".join(WORDS)
    assert done["type"] == "transcript.text.done"


async def test_recordings_that_are_read(service):
    """Of another rate, in other formats; and one in which nothing is said."""
    pcm, _ = soundfile.read(DIGITS, dtype="float32")
    async with serving(service) as server:
        for kind in FORMATS.keys() - {"pcm"}:
            encoder = FORMATS[kind][1]()
            data = encoder.encode(pcm) + encoder.finish()
            assert json.loads((await hear(server, data, f"x.{kind}"))[2])["text"] == " ".join(WORDS)
        file = io.BytesIO()
        soundfile.write(file, np.zeros((16000, 2)), 16000, format="WAV", subtype="PCM_24")
        assert json.loads((await hear(server, file.getvalue(), "x.wav"))[2]) == {
            "text": "",
            "usage": {"type": "duration", "seconds": 1},
        }
        status, _, body = await hear(server, file.getvalue(), response_format="verbose_json")
        assert (status, json.loads(body)["segments"]) == (200, [])
        assert await hear(server, file.getvalue(), response_format="srt") == (200, "application/x-subrip", "")


async def test_several_at_once_are_as_alone(service):
    async with serving(service) as server:
        answers = await asyncio.gather(*(hear(server, response_format="verbose_json") for _ in range(4)))
        alone = await hear(server, response_format="verbose_json")
        assert answers == [alone] * 4
        sounds = await asyncio.gather(*(say(server, response_format="wav", voice=voice) for voice in ("calm", "brisk")))
        for voice, heard in zip(("calm", "brisk"), sounds, strict=True):
            assert heard == await say(server, response_format="wav", voice=voice)
        assert sounds[0] != sounds[1]


async def test_what_changes_nothing_is_named(service):
    async with serving(service) as server:
        fields = {"temperature": "0.2", "prompt": "digits", "keywords__": "four", "vad_filter": "true"}
        async with server.http.post(STT, data=form(model="gpt-4o-transcribe", **fields)) as answer:
            assert answer.headers["X-Ignored"] == "temperature, prompt, keywords, vad_filter"
        async with server.http.post(TTS, json={"input": TEXT, "user": "me", "speed": 1.0}) as answer:
            assert answer.headers["X-Ignored"] == "user"


async def test_wrong_transcriptions_are_refused(service):
    async with serving(service) as server:
        for fields, sentence, param in (
            (
                {"response_format": "diarized_json"},
                "response_format is 'diarized_json'; json or text",
                "response_format",
            ),
            ({"stream": "perhaps"}, "stream is 'perhaps'; true or false", "stream"),
            ({"stream": "true", "response_format": "srt"}, "srt cannot be streamed", "stream"),
            ({"temperature": "2"}, "a number from 0 to 1", "temperature"),
            ({"temperature": "warm"}, "a number from 0 to 1", "temperature"),
            ({"include__": "logprobs"}, "does not tell 'logprobs'", "include"),
            ({"timestamp_granularities__": "word"}, "json has no timestamps", "timestamp_granularities"),
            ({"language": ["en", "fr"]}, "language comes 2 times", "language"),
            ({"prompt": "x" * 70_000}, "The field 'prompt' has more than 65536 bytes", None),
            ({f"field{i}": "" for i in range(65)}, "more than 64 fields", None),
        ):
            await refused(hear(server, **fields), 400, sentence, param)
        wrong = {"timestamp_granularities__": "syllable", "response_format": "verbose_json"}
        await refused(hear(server, **wrong), 400, "word or segment", "timestamp_granularities")
        error = await refused(hear(server, model="demo-tts"), 404, "use demo-stt", "model")
        assert error["code"] == "model_not_found"
        nothing = aiohttp.FormData()
        nothing.add_field("other", b"x", filename="x.wav")

        async def post_nothing():
            async with server.http.post(STT, data=nothing) as answer:
                return answer.status, answer.content_type, await answer.text()

        await refused(post_nothing(), 400, "There is no file", "file")
        await refused(hear(server, b"", "x.wav"), 400, "x.wav is empty")
        await refused(hear(server, b"", "x.wav", stream="true"), 400, "x.wav is empty")
        await refused(hear(server, b"not a recording", "b.txt"), 400, "b.txt is not a recording")
        await refused(hear(server, (DEMO.parents[1] / "tests/cases/notes.m4a").read_bytes(), "n.m4a"), 400, "n.m4a")
        await refused(hear(server, DIGITS.read_bytes()[:50_000]), 400, "digits.flac")
        counts = server.audio.counts
        assert counts["transcription", "refused"] >= 16


async def test_what_is_wrong_late_ends_the_stream_with_an_error(service):
    """The file is found to be cut off when its end is heard."""
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="WAV", subtype="FLOAT")
    data = bytearray(file.getvalue())
    data[-4:] = np.float32("nan").tobytes()
    async with serving(service) as server:
        status, _, text = await hear(server, bytes(data), stream="true")
        *deltas, error = events(text)
        assert status == 200
        assert "".join(event["delta"] for event in deltas) == " ".join(WORDS)
        assert "not finite numbers" in error["error"]["message"]
        await refused(hear(server, bytes(data)), 400, "not finite numbers")


async def test_bodies_that_are_no_forms(service):
    async with serving(service) as server:

        async def post(data, kind):
            async with server.http.post(STT, data=data, headers={"Content-Type": kind}) as answer:
                return answer.status, answer.content_type, await answer.text()

        part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        for data, kind, sentence in (
            (b"{}", "application/json", "The body is application/json; send multipart/form-data"),
            (b"", "multipart/form-data", "with a boundary"),
            (b"hello", "multipart/form-data; boundary=b", "not a form that can be read"),
            (part, "multipart/form-data; boundary=b", "ends too early"),
            (b"--b\r\nX: y\r\n\r\nm\r\n--b--\r\n", "multipart/form-data; boundary=b", "has no name"),
            (b"--b\r\nX: " + b"y" * 70_000, "multipart/form-data; boundary=b", "not a form that can be read"),
        ):
            await refused(post(data, kind), 400, sentence)
        twice = form()
        twice.add_field("file", b"more", filename="more.wav")
        async with server.http.post(STT, data=twice) as answer:
            assert "two files" in (await answer.json())["error"]["message"]
        async with server.http.post(TTS, data=b"[" * 10_000) as answer:
            assert "not valid JSON" in (await answer.json())["error"]["message"]


async def test_limits(service):
    small = replace(service, limits=AudioLimits(body=1 << 17, seconds=2.0, text=20))
    async with serving(small) as server:
        error = await refused(hear(server), 413, "larger than 128 KiB")
        assert error["code"] == "request_too_large"
        short = io.BytesIO()
        soundfile.write(short, np.zeros(3 * 8000), 8000, format="WAV")
        await refused(hear(server, short.getvalue(), "x.wav"), 400, "x.wav lasts more than")
        await refused(say(server, "one " * 6), 400, "more than 20 characters", "input")
        await refused(say(server, "one", padding="x" * (1 << 20)), 413, "larger than 1 MiB")


# ---- speech --------------------------------------------------------------------------------------------------------------


async def test_speech_in_each_format_is_heard(service):
    async with serving(service) as server:
        _, _, data = await say(server, response_format="pcm")
        plain = sound(data)
        for kind, (name, _) in FORMATS.items():
            status, told, data = await say(server, response_format=kind, model="tts-1", voice="alloy")
            assert (status, told) == (200, name)
            heard = sound(data, kind)
            late = 1152 if kind == "mp3" else 0  # what MP3 puts in front
            assert len(plain) <= len(heard) <= len(plain) + 2500
            tolerance = 0.9 if kind == "opus" else 0.999 if kind == "mp3" else 1 - 1e-6
            assert np.corrcoef(plain, heard[late : late + len(plain)])[0, 1] > tolerance
            if kind != "pcm":
                assert json.loads((await hear(server, data, f"x.{kind}"))[2])["text"] == TEXT
        assert (await say(server))[1] == "audio/mpeg"


async def test_speech_comes_while_it_is_made(service):
    """A text of many minutes begins at once; and when the client leaves, the speech ends."""
    async with serving(service) as server:
        before = service.counts["speech", "gone"]
        text = '<break time="60s"/> one ' * 100
        async with server.http.post(TTS, json={"input": text, "response_format": "wav"}) as answer:
            begin = await answer.content.readexactly(44 + 4000)
            assert begin[:4] == b"RIFF"
            assert begin[4:8] == b"\xff\xff\xff\xff"  # as long as it gets
            assert service.speaker.figures() == (1, 0)
        await eventually(lambda: service.speaker.figures() == (0, 0))
        await eventually(lambda: server.log and server.log[-1]["end"] == "gone")
        assert (server.log[-1]["event"], service.counts["speech", "gone"]) == ("speech", before + 1)


async def test_speech_as_events(service):
    async with serving(service) as server:
        _, _, plain = await say(server, response_format="pcm")
        async with server.http.post(
            TTS, json={"input": TEXT, "response_format": "pcm", "stream_format": "sse"}
        ) as answer:
            *deltas, done = events(await answer.text())
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == plain
    assert len(deltas) > 10
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["total_tokens"] == 3 + done["usage"]["output_tokens"]


async def test_wrong_speeches_are_refused(service):
    async with serving(service) as server:
        for values, sentence, param in (
            ({"input": ""}, "There is nothing to say", "input"),
            ({"input": " ... "[:1]}, "There is nothing to say", "input"),
            ({"input": 3}, "input is 3; a string", "input"),
            ({"input": '<break time="9 weeks"/>'}, "is not a pause", "input"),
            ({"input": "☃ ☂"}, "knows none of these words", "input"),
            ({"input": "\ud800"}, "not valid Unicode", "input"),
            ({"response_format": "aac"}, "mp3 or opus or flac or wav or pcm", "response_format"),
            ({"speed": 2}, "the model has one speed", "speed"),
            ({"speed": "fast"}, "the model has one speed", "speed"),
            ({"instructions": "whisper"}, "takes no instructions", "instructions"),
            ({"voice": "nobody"}, "this server has brisk and calm", "voice"),
            ({"voice": {"id": "voice_1"}}, "There is no voice 'voice_1'", "voice"),
            ({"voice": 3}, "a name is expected", "voice"),
            ({"stream_format": "morse"}, "audio or sse", "stream_format"),
        ):
            await refused(say(server, **values), 400, sentence, param)
        assert (await say(server, voice={"id": "brisk"}))[0] == 200
        await refused(say(server, model="demo-stt"), 404, "use demo-tts", "model")
        async with server.http.post(TTS, data=b"[1]") as answer:
            assert "not a JSON object" in (await answer.json())["error"]["message"]
        assert (await say(server, "one ☃ two"))[0] == 200
        assert server.log[-1]["left_out"] == 1
        assert "☃" not in str(server.log)


# ---- those who wait, and who leave ---------------------------------------------------------------------------------------


def long_recording():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1800 * 24000, np.int16), 24000, format="FLAC")
    return file.getvalue()


async def test_who_leaves_is_not_heard_to_the_end(service):
    """Nor is anything of them left: places, rows, files."""
    data = long_recording()
    async with serving(service) as server:
        tasks = [asyncio.create_task(hear(server, data)) for _ in range(3)]
        await eventually(lambda: sum(service.transcriber.figures()) == 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await eventually(lambda: service.transcriber.figures() == (0, 0))
        await eventually(lambda: [event["end"] for event in server.log] == ["gone"] * 3)
        assert json.loads((await hear(server))[2])["text"] == " ".join(WORDS)


async def test_a_full_line_is_told(service):
    data = long_recording()
    async with serving(service) as server:
        tasks = [asyncio.create_task(hear(server, data)) for _ in range(4)]
        await eventually(lambda: sum(service.transcriber.figures()) == 4)
        async with server.http.post(STT, data=form()) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"], answer.headers["Retry-After"]) == (503, "busy", "2")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await eventually(lambda: service.transcriber.figures() == (0, 0))


# ---- the server ----------------------------------------------------------------------------------------------------------


async def test_models(service):
    async with serving(service) as server:
        async with server.http.get("/v1/models") as answer:
            models = await answer.json()
        assert [model["id"] for model in models["data"]] == ["demo", "demo-stt", "demo-tts"]
        assert models["object"] == "list"
        async with server.http.get("/v1/models/demo-stt") as answer:
            assert await answer.json() == models["data"][1]
        assert set(models["data"][1]) == {"id", "object", "created", "owned_by"}
        async with server.http.get("/v1/models/gpt-5") as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (404, "model_not_found")
        async with server.http.post("/v1/audio/translations", data=form()) as answer:
            assert "does not translate" in (await answer.json())["error"]["message"]


async def test_token_origin_and_method_are_checked(service):
    async with serving(service, "--token", "secret") as server:
        for path in ("/v1/models", STT, TTS):
            method = "GET" if path == "/v1/models" else "POST"
            async with server.http.request(method, path) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["type"]) == (401, "authentication_error")
                assert "needs a token" in error["message"]
        headers = {"Authorization": "Bearer secret"}
        async with server.http.post(TTS, json={"input": TEXT}, headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        async with server.http.post(TTS, headers={**headers, "Origin": "http://evil.example"}) as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (403, "invalid_request_error")
        async with server.http.get(TTS, headers=headers) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    async with serving(service, ready=False) as server:
        await refused(say(server), 503, "not loaded yet")


async def test_without_conversations(service):
    async with serving(service, "--no-conversations") as server:
        async with server.http.get("/api/chat") as answer:
            assert answer.status == 404
            assert "which holds no conversations" in await answer.text()
        assert json.loads((await hear(server))[2])["text"] == " ".join(WORDS)


async def test_figures(service):
    async with serving(service) as server:
        before = dict(service.counts)
        await hear(server)
        await say(server, speed=3)
        async with server.http.get("/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
            found = [sample for family in families for sample in family.samples]
    samples = {(sample.name, sample.labels.get("kind"), sample.labels.get("end")): sample.value for sample in found}
    assert samples["msh_requests_total", "transcription", "ok"] == before.get(("transcription", "ok"), 0) + 1
    assert samples["msh_requests_total", "speech", "refused"] == before.get(("speech", "refused"), 0) + 1
    assert samples["msh_requests_active", "speech", None] == 0


async def test_the_interface_needs_no_server(service):
    """Any server can call the endpoints: here, none does."""

    async def body():
        yield b'{"input": "three '
        yield b'one four", "response_format": "pcm"}'

    _, endpoint, _ = OpenAiAudio(service).endpoints()[TTS]
    answer = await endpoint(Request("POST", TTS, {}, {"content-type": "application/json"}, body()))
    pieces = [piece async for piece in answer.body]
    async with serving(service) as server:
        assert (await say(server, response_format="pcm"))[2] == b"".join(pieces)
