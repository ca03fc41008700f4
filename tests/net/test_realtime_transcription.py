"""Sessions of transcription in `/v1/realtime`, over real sockets, with the demo speech-to-text model."""

import asyncio
import base64
import contextlib
import json

import aiohttp
import hosts
import numpy as np
import pytest
from paths import DEMO
from prometheus_client.parser import text_string_to_metric_families
from test_realtime import WORDS as TURNS
from test_realtime import Client
from test_server import FILE, digits, eventually, get, model

from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.shared import SharedModel
from msh_mlx.conversation.shared_transcriber import SharedTranscriber
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import find_demo
from msh_mlx.net.audio_service import AudioService
from msh_mlx.net.connection import Limits
from msh_mlx.net.realtime_sound import SoundWriter

__all__ = ["digits", "model"]

EXPECTED = json.loads((DEMO / "stt" / "expected.json").read_text())
EVENT = "conversation.item.input_audio_transcription"
ASKED = {"intent": "transcription"}
NO_DETECTION = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}


@pytest.fixture(scope="module")
def transcriber():
    shared = SharedTranscriber(rows=3, waiting=1)  # one address gets all places but the last
    shared.load(lambda: load_parts(find_demo("transcription")))
    yield shared
    shared.close()


def serving(transcriber, *options, model=None, limits=None):
    """A server that writes down; with `model`, it holds a conversation as well."""
    args = hosts.checked("--demo", *options, *([] if model else ["--no-conversations"]))
    files = find_demo() if model else None
    service = AudioService(transcriber, "demo-stt")
    return hosts.serving(model or SharedModel(), args, files, service, limits=limits)


async def figures(server):
    _, text, _ = await get(f"{server.url}/metrics")
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


async def heard(client, pcm, turns, **options):
    """Send sound, and receive until so many turns are complete; return the deltas and the transcript of each."""
    sending = asyncio.ensure_future(client.append(pcm, **options))
    while len(client.of(f"{EVENT}.completed")) < turns:
        assert await client.receive(), client.events[-1:]
    await sending
    return transcripts(client)


def transcripts(client):
    found = []
    for done in client.of(f"{EVENT}.completed"):
        deltas = [each["delta"] for each in client.of(f"{EVENT}.delta") if each["item_id"] == done["item_id"]]
        assert "".join(deltas) == done["transcript"]
        assert done["content_index"] == 0
        found.append([delta.strip() for delta in deltas])
    return found


# ---- turns ---------------------------------------------------------------------------------------------------------------


async def test_turns_are_found_and_written_down(transcriber, digits):
    async with serving(transcriber) as server:
        async with Client(server, **ASKED) as client:
            assert await heard(client, digits, 3) == TURNS
        await eventually(lambda: server.log)
    created = client.events[0]
    assert (created["type"], created["session"]["type"]) == ("session.created", "transcription")
    assert created["session"]["audio"]["input"]["transcription"]["model"] == "demo-stt"
    names = [[event["item_id"] for event in client.of(kind)] for kind in (f"{EVENT}.completed", *VAD)]
    assert names == [names[0]] * 4
    items = [event["item"]["id"] for event in client.of("conversation.item.done")]
    assert items == names[0]
    started, stopped = (client.of(kind)[0] for kind in VAD[:2])
    assert started["audio_start_ms"] == pytest.approx(8 * 80 - 300, abs=80)
    assert stopped["audio_end_ms"] == pytest.approx(19 * 80 + 500, abs=120)
    assert not client.of("error")
    (done,) = server.log
    assert (done["event"], done["end"], done["words"], done["why"]) == ("transcription", "ok", 6, "closed")
    assert done["seconds"] == pytest.approx(len(digits) / SAMPLE_RATE, abs=0.001)


VAD = [f"input_audio_buffer.{name}" for name in ("speech_started", "speech_stopped", "committed")]


async def test_the_order_of_events_and_the_times_of_words(transcriber, digits):
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await heard(client, digits[: 56 * FRAME_SIZE], 1)
    kinds = client.types()
    assert kinds[:2] == ["session.created", VAD[0]]
    assert kinds[-2:] == [f"{EVENT}.segment", f"{EVENT}.completed"]
    assert kinds.index(VAD[1]) < kinds.index(VAD[2]) < kinds.index("conversation.item.added")
    segments = client.of(f"{EVENT}.segment")
    assert [segment["text"] for segment in segments] == TURNS[0]
    assert [segment["start"] for segment in segments] == pytest.approx(EXPECTED["start"][:2], abs=0.1)
    assert all(segment["start"] < segment["end"] for segment in segments)
    usage = client.of(f"{EVENT}.completed")[0]["usage"]
    assert usage == {"type": "duration", "seconds": pytest.approx(client.of(VAD[1])[0]["audio_end_ms"] / 1000, abs=0.1)}


async def test_in_real_time_words_come_before_the_turn_ends(transcriber, digits):
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        for begin in range(0, 18 * FRAME_SIZE, FRAME_SIZE // 2):
            await client.append(digits[begin : begin + FRAME_SIZE // 2])
            await asyncio.sleep(0.04)
        await client.until(f"{EVENT}.delta")
        await client.append(digits[18 * FRAME_SIZE : 40 * FRAME_SIZE])
        await client.until(f"{EVENT}.completed")
    assert transcripts(client) == TURNS[:1]
    assert client.types().index(f"{EVENT}.delta") < client.types().index(VAD[1])


async def test_without_detection_a_commit_ends_a_turn(transcriber, digits):
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await client.send("session.update", session=NO_DETECTION)
        updated = (await client.until("session.updated"))["session"]
        assert updated["audio"]["input"]["turn_detection"] is None
        # Not at the end of a frame.
        await client.append(digits[: 70 * FRAME_SIZE + 700])
        await client.until(f"{EVENT}.delta")
        await client.send("input_audio_buffer.commit")
        await client.until(f"{EVENT}.completed")
        await client.append(digits[70 * FRAME_SIZE + 700 :])
        await client.send("input_audio_buffer.commit")
        await client.until(f"{EVENT}.completed")
        await client.send("input_audio_buffer.commit")
        assert (await client.error())["code"] == "input_audio_buffer_commit_empty"
        item = client.of("conversation.item.done")[0]["item"]["id"]
        await client.send("conversation.item.retrieve", item_id=item)
        kept = (await client.until("conversation.item.retrieved"))["item"]
    first = TURNS[0] + TURNS[1]
    assert transcripts(client) == [first, TURNS[2]]
    assert not client.of(VAD[0])
    assert kept["content"][0]["transcript"] == " ".join(first)


async def test_the_model_tells_the_end_of_a_turn(transcriber, digits):
    """By its pauses, with as much patience for silence as `low` has: eight seconds."""
    detection = {"type": "semantic_vad", "eagerness": "low"}
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        for begin in range(0, 56 * FRAME_SIZE, FRAME_SIZE):
            await client.append(digits[begin : begin + FRAME_SIZE])
            await asyncio.sleep(0.01)
        await client.until(f"{EVENT}.completed")
    assert transcripts(client) == TURNS[:1]
    (stopped,) = client.of(VAD[1])
    assert 1600 < stopped["audio_end_ms"] < 56 * 80
    assert {event["item_id"] for event in client.events if event["type"] in VAD} == {stopped["item_id"]}


async def test_words_too_soft_for_the_detector_are_not_lost(transcriber, digits):
    detection = {"type": "server_vad", "threshold": 1}
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
        await heard(client, 0.2 * digits[: 56 * FRAME_SIZE], 1)
    assert transcripts(client) == TURNS[:1]
    assert len(client.of(VAD[0])) == len(client.of(VAD[1])) == 1


async def test_what_is_cleared_is_in_no_transcript(transcriber, digits):
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await client.send("session.update", session=NO_DETECTION)
        await client.append(digits[: 50 * FRAME_SIZE])
        await client.until(f"{EVENT}.delta")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        await client.append(digits[50 * FRAME_SIZE : 80 * FRAME_SIZE])
        await client.send("input_audio_buffer.commit")
        await client.until(f"{EVENT}.completed")
    assert transcripts(client) == [TURNS[1]]


@pytest.mark.parametrize(("name", "old"), [("audio/pcmu", "g711_ulaw"), ("audio/pcma", "g711_alaw")])
async def test_telephone_sound(transcriber, digits, name, old):
    writer = SoundWriter(name)
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await client.send("session.update", session={"audio": {"input": {"format": {"type": name}}}})
        said = await heard(client, digits, 3, encode=lambda pcm: base64.b64encode(writer.write(pcm)).decode())
    assert said == TURNS
    assert client.of("session.updated")[0]["session"]["audio"]["input"]["format"] == {"type": name}


async def test_the_names_of_the_beta(transcriber, digits):
    async with serving(transcriber) as server, Client(server, {"OpenAI-Beta": "realtime=v1"}, **ASKED) as client:
        own = {"model": "gpt-4o-transcribe", "language": "en", "prompt": ""}
        asked = {"input_audio_format": "pcm16", "input_audio_transcription": own, "include": []}
        await client.send("transcription_session.update", session=asked)
        updated = (await client.until("transcription_session.updated"))["session"]
        assert await heard(client, digits[: 56 * FRAME_SIZE], 1) == TURNS[:1]
    assert client.events[0]["type"] == "transcription_session.created"
    assert updated["input_audio_transcription"] == {"model": "demo-stt", "language": "en", "prompt": ""}
    assert updated["turn_detection"]["type"] == "server_vad"
    assert client.of("conversation.item.created")
    assert not client.of(f"{EVENT}.segment")
    assert not client.of("error")


# ---- beside others -------------------------------------------------------------------------------------------------------


async def test_two_at_once_are_heard_as_alone(transcriber, digits):
    async with serving(transcriber) as server, Client(server, **ASKED) as one, Client(server, **ASKED) as two:
        both = await asyncio.gather(heard(one, digits, 3), heard(two, digits, 3))
    assert both == [TURNS, TURNS]


async def test_it_takes_no_conversations_place(model, transcriber, digits):
    """The one place is taken; the transcription is heard beside it, and so is one whose session was opened without intent."""
    async with serving(transcriber, model=model) as server:
        async with Client(server, **FILE) as talking, Client(server, **ASKED) as client:
            await talking.until("session.created")
            assert await heard(client, digits[: 56 * FRAME_SIZE], 1) == TURNS[:1]
            async with Client(server) as later:
                await later.send("session.update", session={"type": "transcription"})
                assert await heard(later, digits[: 56 * FRAME_SIZE], 1) == TURNS[:1]
                found = await figures(server)
            assert (found["msh_sessions",], found["msh_waiting",]) == (1, 0)
            assert found["msh_requests_active", "transcription"] == 2
        await eventually(lambda: len(server.log) == 3)
        found = await figures(server)
    assert later.types()[:2] == ["session.created", "session.updated"]
    assert found["msh_conversations_total",] == 0
    assert found["msh_requests_total", "ok", "transcription"] == 2


@pytest.mark.parametrize("kind", ["session.update", "transcription_session.update"])
async def test_a_session_becomes_one_of_transcription_first_thing(model, transcriber, digits, kind):
    async with serving(transcriber, model=model) as server:
        async with Client(server) as client:
            assert (await client.until("session.created"))["session"]["type"] == "realtime"
            await client.send(kind, session={"type": "transcription"}, event_id="e")
            await client.append(digits[: 56 * FRAME_SIZE])
            await client.until(f"{EVENT}.completed")
            assert server.figures()[0] == 0
        assert client.of("session.updated")[0]["session"]["type"] == "transcription"
        assert client.of("session.updated")[0]["session"]["id"] == client.events[0]["session"]["id"]
        assert transcripts(client) == TURNS[:1]
        async with Client(server) as client:
            await client.send("session.update", session={"output_modalities": ["text"]})
            await client.until("session.updated")
            await client.send("session.update", session={"type": "transcription"})
            error = await client.error()
    assert (error["code"], error["param"]) == ("unsupported", "session.type")
    assert "first thing" in error["message"]


async def test_when_all_places_are_taken_it_waits_or_is_refused(transcriber, digits):
    async with serving(transcriber) as server, contextlib.AsyncExitStack() as stack:
        # Two have a place, the third is kept for another address, and as many wait as may.
        clients = [await stack.enter_async_context(Client(server, **ASKED)) for _ in range(4)]
        for client in clients:
            await client.until("session.created")
        async with Client(server, **ASKED) as late:
            error = await late.error()
            assert await late.receive() is None
            assert late.ws.close_code == 1013
        sending = asyncio.ensure_future(clients[2].append(digits[: 56 * FRAME_SIZE]))
        await clients[2].until(VAD[0])
        await clients[0].ws.close()
        await clients[2].until(f"{EVENT}.completed")
        await sending
        await eventually(lambda: any(line["end"] == "refused" for line in server.log))
        assert server.errors()["line_full"] == 1
    assert error["code"] == "line_full"
    assert "try again later" in error["message"]
    assert transcripts(clients[2]) == TURNS[:1]


# ---- what is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"type": "realtime"}, "unsupported", "session.type"),
        ({"voice": "alloy"}, "unknown_parameter", "session.voice"),
        ({"instructions": "Be brief."}, "unknown_parameter", "session.instructions"),
        ({"audio": {"input": {"transcription": 3}}}, "invalid_type", "session.audio.input.transcription"),
        ({"audio": {"input": {"transcription": {"a": 1}}}}, "unknown_parameter", "session.audio.input.transcription.a"),
        (
            {"audio": {"input": {"transcription": {"model": "gpt-5"}}}},
            "unsupported",
            "session.audio.input.transcription.model",
        ),
        ({"input_audio_transcription": {"prompt": "x"}}, "unsupported", "session.input_audio_transcription.prompt"),
        ({"input_audio_format": "mp3"}, "invalid_value", "session.input_audio_format"),
        ({"turn_detection": {"type": "none"}}, "invalid_value", "session.turn_detection.type"),
    ],
)
async def test_wrong_settings(transcriber, session, code, param):
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await client.send("session.update", session=session, event_id="e")
        error = await client.error()
    assert (error["code"], error["param"], error["event_id"]) == (code, param, "e")


async def test_events_of_conversations_are_refused_and_survived(transcriber):
    async with serving(transcriber) as server, Client(server) as client:
        for kind in ("response.create", "conversation.item.create"):
            await client.send(kind)
            assert (await client.error())["param"] == "type"
        await client.append(np.zeros(20 * FRAME_SIZE, np.float32))
        await client.send("input_audio_buffer.commit")
        assert (await client.until(f"{EVENT}.completed"))["transcript"] == ""


async def test_more_sound_at_once_than_can_wait_is_refused(transcriber):
    async with serving(transcriber) as server, Client(server, **ASKED) as client:
        await client.send("session.update", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
        await client.send("input_audio_buffer.append", audio=base64.b64encode(b"\xff" * 61 * 8000).decode())
        error = await client.error()
    assert (error["code"], error["param"]) == ("buffer_full", "audio")
    assert "60 s" in error["message"]


async def test_the_token_and_the_limits_are_those_of_conversations(transcriber, digits):
    async with serving(transcriber, "--token", "sk-x", limits=Limits(first=0.1, idle=0.1)) as server:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with Client(server, **ASKED):
                pass
        assert refused.value.status == 401
        for pcm, kind in ((digits[:0], "first"), (digits[:FRAME_SIZE], "idle")):
            async with Client(server, {"Authorization": "Bearer sk-x"}, **ASKED) as client:
                await client.append(pcm)
                assert (await client.error())["code"] == kind
                assert await client.receive() is None
            assert client.ws.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION
        await eventually(lambda: [server.errors()[kind] for kind in ("token", "first", "idle")] == [1, 1, 1])


async def test_without_a_model_for_it(model):
    async with serving(None, model=model) as server:
        for intent in ("transcription", None):
            query = f"?intent={intent}" if intent else ""
            status, text, _ = await get(f"{server.url}/v1/realtime{query}")
            assert status == (400 if intent else 426)
            assert not intent or "No speech-to-text model is served here" in json.loads(text)["error"]["message"]
        async with Client(server) as client:
            await client.send("session.update", session={"type": "transcription"})
            assert (await client.error())["message"].startswith("No speech-to-text model is served here")
    async with serving(None) as server:
        assert (await get(f"{server.url}/v1/realtime"))[0] == 404


async def test_the_end_of_the_model_is_told(digits):
    shared = SharedTranscriber()
    shared.load(lambda: load_parts(find_demo("transcription")))
    async with serving(shared) as server, Client(server, **ASKED) as client:
        await client.append(digits[: 18 * FRAME_SIZE])
        name = (await client.until(f"{EVENT}.delta"))["item_id"]
        await asyncio.to_thread(shared.close)
        failed = await client.until(f"{EVENT}.failed")
        error = await client.error()
        assert await client.receive() is None
    assert (failed["item_id"], failed["error"]["message"]) == (name, "The server is shutting down.")
    assert (error["type"], error["message"]) == ("server_error", "The server is shutting down.")
    assert client.ws.close_code == 1011
