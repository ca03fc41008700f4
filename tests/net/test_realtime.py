"""`/v1/realtime`, OpenAI's protocol, over real sockets, with the demo model."""

import asyncio
import base64
import contextlib
import json

import aiohttp
import numpy as np
import pytest
from talker import WebSocketClient
from test_server import FILE, GREEDY, digits, eventually, get, model, serving

from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.net.connection import Limits
from msh_mlx.net.realtime_sound import SoundReader, SoundWriter

__all__ = ["digits", "model"]

WORDS = [["four", "one"], ["three"], ["eight", "nine", "zero"]]
SILENCE = np.zeros(FRAME_SIZE, np.float32)


def pcm16(pcm):
    return base64.b64encode(SoundWriter("audio/pcm").write(pcm)).decode()


class Client(WebSocketClient):
    """A client in OpenAI's protocol. `events` are those that came, in order."""

    def __init__(self, server, headers=None, protocols=(), **parameters):
        params = {"model": "any", **{key: str(value) for key, value in parameters.items()}}
        super().__init__(f"{server.url}/v1/realtime", headers=headers, protocols=protocols, params=params)
        self.events = []

    async def send(self, kind, **values):
        await self.ws.send_str(json.dumps({"type": kind, **values}))

    async def append(self, pcm, piece=4 * FRAME_SIZE, encode=pcm16):
        for begin in range(0, len(pcm), piece):
            await self.send("input_audio_buffer.append", audio=encode(pcm[begin : begin + piece]))

    async def receive(self, timeout=10.0):
        """Wait for an event, keep it and return it; None when the connection is closed."""
        data = await self.receive_data(aiohttp.WSMsgType.TEXT, timeout)
        if data is None:
            return None
        event = json.loads(data)
        assert event["event_id"]
        self.events.append(event)
        return event

    async def until(self, kind, **wanted):
        while True:
            event = await self.receive()
            assert event, self.events[-1:]
            if event["type"] == kind and all(event[name] == value for name, value in wanted.items()):
                return event

    async def error(self):
        return (await self.until("error"))["error"]

    def of(self, kind):
        return [event for event in self.events if event["type"] == kind]

    def types(self):
        """The types of events, in order, each once where several of one kind follow each other."""
        names = [event["type"] for event in self.events]
        return [name for name, before in zip(names, [None, *names], strict=False) if name != before]

    def said(self, prefix="response.output_"):
        """The words and the sound of each response."""
        answers = {}
        for event in self.events:
            words, sound = answers.setdefault(event.get("response_id"), ([], []))
            if event["type"] == f"{prefix}audio_transcript.delta":
                words.append(event["delta"])
            elif event["type"] == f"{prefix}audio.delta":
                sound.append(base64.b64decode(event["delta"]))
        return [("".join(words).split(), b"".join(sound)) for words, sound in answers.values() if words or sound]

    async def dialogue(self, pcm, responses, prefix="response.output_", **options):
        """Send sound, and receive until so many responses are done."""
        sending = asyncio.ensure_future(self.append(pcm, **options))
        try:
            while len(self.of("response.done")) < responses:
                assert await self.receive(), self.events[-1:]
            await sending
        finally:
            sending.cancel()
        return self.said(prefix)


def loudness(data):
    pcm = np.frombuffer(data, "<i2") / 32768
    return float(np.sqrt(np.mean(pcm**2)))


# ---- conversations -------------------------------------------------------------------------------------------------------


async def test_it_answers_with_the_digits_and_their_sound(model, digits):
    async with serving(model) as server:
        async with Client(server, **FILE) as client:
            said = await client.dialogue(digits, 3)
        await eventually(lambda: server.log)
    assert [words for words, _ in said] == WORDS
    for words, sound in said:
        assert len(sound) / 2 / SAMPLE_RATE > 0.4 * len(words) + 0.9
        assert loudness(sound) > 0.05
    assert [event["response"]["status"] for event in client.of("response.done")] == ["completed"] * 3
    assert not client.of("error")
    (summary,) = server.log
    assert (summary["event"], summary["end"], summary["words"], summary["dropped_s"]) == ("session", "closed", 6, 0)


async def test_in_real_time_it_says_the_same(model, digits):
    """As a microphone gives it: the first turn, in pieces of 40 ms."""
    async with serving(model) as server, Client(server, **GREEDY) as client:

        async def speak():
            for begin in range(0, 60 * FRAME_SIZE, FRAME_SIZE // 2):
                await client.append(digits[begin : begin + FRAME_SIZE // 2])
                await asyncio.sleep(0.04)

        speaking = asyncio.ensure_future(speak())
        await client.until("response.done")
        speaking.cancel()
    ((words, sound),) = client.said()
    assert words == WORDS[0]
    assert loudness(sound) > 0.05


async def test_the_events_around_a_turn_and_a_response(model, digits):
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.dialogue(digits[: 56 * FRAME_SIZE], 1)
    assert client.types() == [
        "session.created",
        "conversation.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        *["response.output_audio.delta", "response.output_audio_transcript.delta"] * 2,
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    started, stopped = (
        client.of("input_audio_buffer.speech_started")[0],
        client.of("input_audio_buffer.speech_stopped")[0],
    )
    committed = client.of("input_audio_buffer.committed")[0]
    assert started["item_id"] == stopped["item_id"] == committed["item_id"]
    assert committed["previous_item_id"] is None
    # The sound is silent but from frame 7 to 19.
    assert started["audio_start_ms"] == pytest.approx(8 * 80 - 300, abs=80)
    assert stopped["audio_end_ms"] == pytest.approx(19 * 80 + 500, abs=120)
    user, assistant = client.of("conversation.item.added")
    assert user["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert (assistant["previous_item_id"], assistant["item"]["content"]) == (user["item"]["id"], [])
    done = client.of("response.done")[0]["response"]
    (item,) = done["output"]
    assert item["content"] == [{"type": "output_audio", "transcript": "four one"}]
    assert item["id"] == assistant["item"]["id"] == client.of("response.output_audio.delta")[0]["item_id"]
    assert (item["status"], item["role"], done["status_details"]) == ("completed", "assistant", None)
    assert client.of("response.output_audio_transcript.done")[0]["transcript"] == "four one"
    assert {event["response_id"] for event in client.events if "response_id" in event} == {done["id"]}


@pytest.mark.parametrize("way", ["header", "protocol"])
async def test_the_names_of_the_beta(model, digits, way):
    asked = {"headers": {"OpenAI-Beta": "realtime=v1"}} if way == "header" else {}
    asked = asked or {"protocols": ("realtime", "openai-beta.realtime-v1")}
    async with serving(model) as server, Client(server, **asked, **FILE) as client:
        assert client.ws.protocol == ("realtime" if way == "protocol" else None)
        await client.send("session.update", session={"modalities": ["audio", "text"], "input_audio_format": "pcm16"})
        said = await client.dialogue(digits[: 56 * FRAME_SIZE], 1, "response.")
    assert said[0][0] == WORDS[0]
    assert loudness(said[0][1]) > 0.05
    assert len(client.of("conversation.item.created")) == 2
    names = " ".join(client.types())
    assert not [
        name
        for name in ("output_audio.", "output_audio_", "conversation.item.added", "conversation.item.done")
        if name in names
    ]
    session = client.of("session.updated")[0]["session"]
    assert (session["modalities"], session["input_audio_format"], session["voice"]) == (
        ["audio", "text"],
        "pcm16",
        None,
    )
    assert "audio" not in session
    done = client.of("response.done")[0]["response"]
    assert done["output"][0]["content"] == [{"type": "audio", "transcript": "four one"}]


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
async def test_g711_both_ways(model, digits, kind):
    async with serving(model) as server, Client(server, **FILE) as client:
        form = {"format": {"type": kind}}
        await client.send("session.update", session={"type": "realtime", "audio": {"input": form, "output": form}})
        audio = (await client.until("session.updated"))["session"]["audio"]
        assert [audio[side]["format"] for side in ("input", "output")] == [{"type": kind}] * 2
        writer = SoundWriter(kind)
        said = await client.dialogue(
            digits[: 56 * FRAME_SIZE], 1, encode=lambda pcm: base64.b64encode(writer.write(pcm)).decode()
        )
    ((words, sound),) = said
    assert words == WORDS[0]
    assert len(sound) / 8000 == pytest.approx(27 * 0.08, abs=0.4)
    assert float(np.sqrt(np.mean(SoundReader(kind).read(sound) ** 2))) > 0.05


async def test_answers_can_be_text_alone(model, digits):
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
        await client.dialogue(digits[: 56 * FRAME_SIZE], 1)
    assert "".join(event["delta"] for event in client.of("response.output_text.delta")) == "four one"
    assert client.of("response.output_text.done")[0]["text"] == "four one"
    assert not client.of("response.output_audio.delta")
    done = client.of("response.done")[0]["response"]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": "four one"}]
    assert done["output_modalities"] == ["text"]


async def test_push_to_talk(model, digits):
    """Without turn detection: a turn at once, a commit, and a wish for a response; then nothing comes until it is done."""
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        for turn, begin, end in ((0, 0, 22), (1, 54, 68)):
            await client.append(digits[begin * FRAME_SIZE : end * FRAME_SIZE])
            await client.send("input_audio_buffer.commit")
            await client.send("response.create", response={"metadata": {"turn": str(turn)}})
            done = (await client.until("response.done"))["response"]
            assert (done["status"], done["metadata"]) == ("completed", {"turn": str(turn)})
            assert done["output"][0]["content"][0]["transcript"].split() == WORDS[turn]
    assert not client.of("input_audio_buffer.speech_started")
    assert len(client.of("input_audio_buffer.committed")) == 2
    assert not client.of("error")


async def test_a_response_without_words_is_done_after_a_while(model):
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.send("response.create")
        created = await client.until("response.created")
        await client.send("response.create", event_id="again")
        error = await client.error()
        done = (await client.until("response.done"))["response"]
    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "again")
    assert (done["id"], done["status"], done["output"]) == (created["response"]["id"], "completed", [])
    assert created["response"]["status"] == "in_progress"


async def test_a_response_is_cancelled_and_the_rest_withheld(model, digits):
    """Until the model's pause; the next turn is answered."""
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.send("response.cancel", event_id="early")
        assert (await client.error())["code"] == "response_cancel_not_active"
        sending = asyncio.ensure_future(client.append(digits[: 30 * FRAME_SIZE], FRAME_SIZE))
        await client.until("response.output_audio.delta")
        await sending
        await client.send("response.cancel")
        done = (await client.until("response.done"))["response"]
        assert (done["status"], done["output"][0]["status"]) == ("cancelled", "incomplete")
        assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        seen = len(client.events)
        sending = asyncio.ensure_future(client.append(digits[30 * FRAME_SIZE : 100 * FRAME_SIZE]))
        await client.until("response.done")
        await sending
    later = [
        event["delta"] for event in client.events[seen:] if event["type"] == "response.output_audio_transcript.delta"
    ]
    assert later == ["three"]


@pytest.mark.parametrize("interrupts", [True, False])
async def test_the_users_voice_interrupts_only_if_asked(model, digits, interrupts):
    """The user begins to speak while the model says its digits."""
    pcm = digits[: 75 * FRAME_SIZE].copy()
    pcm[31 * FRAME_SIZE : 33 * FRAME_SIZE] += digits[59 * FRAME_SIZE : 61 * FRAME_SIZE]
    detection = {"type": "server_vad", "interrupt_response": interrupts}
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.send(
            "session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        )
        session = (await client.until("session.updated"))["session"]
        assert session["audio"]["input"]["turn_detection"]["interrupt_response"] is interrupts
        await client.dialogue(pcm, 1)
    done = client.of("response.done")[0]["response"]
    assert done["status"] == ("cancelled" if interrupts else "completed")
    if interrupts:
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}


async def test_conversations_are_fresh_and_alike(model, digits):
    async with serving(model, "--sessions", "2") as server:

        async def once():
            async with Client(server, **FILE) as client:
                await client.until("session.created")
                return await client.dialogue(digits[: 56 * FRAME_SIZE], 1)

        first = await once()
        assert [first, first] == await asyncio.gather(once(), once())


async def test_sound_that_comes_at_once_after_a_gap_is_heard(model, digits):
    """Live, a turn in one piece, and the next one after the answer: nothing of it is late."""
    async with serving(model) as server:
        async with Client(server, **GREEDY) as client:
            await client.dialogue(digits[: 40 * FRAME_SIZE], 1, piece=100 * FRAME_SIZE)
            await asyncio.sleep(0.5)
            await client.dialogue(digits[54 * FRAME_SIZE : 76 * FRAME_SIZE], 2, piece=100 * FRAME_SIZE)
        await eventually(lambda: server.log)
    assert [words for words, _ in client.said()] == WORDS[:2]
    assert server.log[0]["dropped_s"] == 0


# ---- items ---------------------------------------------------------------------------------------------------------------


async def test_items_are_retrieved_cut_short_and_deleted(model, digits):
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.dialogue(digits[: 56 * FRAME_SIZE], 1)
        (item,) = client.of("response.done")[0]["response"]["output"]
        await client.send("conversation.item.retrieve", item_id=item["id"])
        assert (await client.until("conversation.item.retrieved"))["item"] == item
        await client.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=100_000)
        assert (await client.error())["param"] == "audio_end_ms"
        await client.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=500)
        assert (await client.until("conversation.item.truncated"))["audio_end_ms"] == 500
        await client.send("conversation.item.retrieve", item_id=item["id"])
        assert (await client.until("conversation.item.retrieved"))["item"]["content"][0]["transcript"] == ""
        await client.send("conversation.item.delete", item_id=item["id"])
        assert (await client.until("conversation.item.deleted"))["item_id"] == item["id"]
        for name, code in (("retrieve", "item_retrieve"), ("truncate", "item_truncate"), ("delete", "item_delete")):
            await client.send(f"conversation.item.{name}", item_id=item["id"], content_index=0, audio_end_ms=0)
            assert (await client.error())["code"] == f"{code}_invalid_item_id"


async def test_an_item_with_sound_is_heard_and_one_with_text_is_refused(model, digits):
    async with serving(model) as server, Client(server, **FILE) as client:
        said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
        await client.send("conversation.item.create", item=said, event_id="e1")
        error = await client.error()
        assert (error["code"], error["event_id"], error["param"]) == ("unsupported", "e1", "item")
        sound = {"type": "input_audio", "audio": pcm16(digits[: 22 * FRAME_SIZE])}
        await client.send("conversation.item.create", item={**said, "id": "mine", "content": [sound]})
        assert (await client.until("conversation.item.done"))["item"]["id"] == "mine"
        await client.send("response.create")
        done = (await client.until("response.done"))["response"]
    assert done["output"][0]["content"][0]["transcript"].split() == WORDS[0]


async def test_the_buffer_is_cleared(model, digits):
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.send("input_audio_buffer.commit")
        assert (await client.error())["code"] == "input_audio_buffer_commit_empty"
        await client.append(digits[:FRAME_SIZE])
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        await client.send("input_audio_buffer.commit")
        assert (await client.error())["code"] == "input_audio_buffer_commit_empty"


# ---- settings ------------------------------------------------------------------------------------------------------------


async def test_what_openais_agents_send_of_themselves_is_accepted(model):
    """Their SDK for JavaScript sends all this, and treats an error that nobody handles as one of the program."""
    session = {
        "type": "realtime",
        "instructions": "",
        "model": "gpt-realtime-2.1",
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "noise_reduction": None,
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "turn_detection": {"type": "semantic_vad"},
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "speed": 1},
        },
    }
    async with serving(model) as server, Client(server) as client:
        await client.send("session.update", session=session)
        await client.send("session.update", session={"type": "realtime", "tracing": "auto"})
        await client.until("session.updated")
        updated = (await client.until("session.updated"))["session"]
    assert not client.of("error")
    assert updated["model"] == "model.q8.safetensors"
    assert (updated["tracing"], updated["audio"]["input"]["transcription"]) == (None, None)
    assert updated["audio"]["input"]["turn_detection"]["type"] == "semantic_vad"


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({"instructions": "Be brief."}, "session.instructions"),
        ({"audio": {"output": {"voice": "marin"}}}, "session.audio.output.voice"),
        ({"voice": "alloy"}, "session.voice"),
        ({"tools": [{"type": "function", "name": "f"}]}, "session.tools"),
        ({"max_output_tokens": 100}, "session.max_output_tokens"),
        ({"audio": {"output": {"speed": 1.5}}}, "session.audio.output.speed"),
        ({"prompt": {"id": "p"}}, "session.prompt"),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}}},
            "session.audio.input.turn_detection.create_response",
        ),
    ],
)
async def test_what_the_model_cannot_do_is_told_and_the_rest_counts(model, session, param):
    async with serving(model) as server, Client(server) as client:
        await client.send("session.update", event_id="e7", session={**session, "output_modalities": ["text"]})
        error = await client.error()
        updated = (await client.until("session.updated"))["session"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported")
    assert (error["param"], error["event_id"]) == (param, "e7")
    assert updated["output_modalities"] == ["text"]
    assert (updated["instructions"], updated["audio"]["output"]["voice"]) == ("", None)


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"what": 1}, "unknown_parameter", "session.what"),
        ({"audio": {"input": {"what": 1}}}, "unknown_parameter", "session.audio.input.what"),
        ({"audio": {"input": 3}}, "invalid_type", "session.audio.input"),
        ({"output_modalities": ["video"]}, "invalid_value", "session.output_modalities"),
        ({"output_modalities": []}, "invalid_value", "session.output_modalities"),
        ({"instructions": 3}, "invalid_type", "session.instructions"),
        ({"type": "other"}, "invalid_value", "session.type"),
        ({"type": "transcription"}, "unsupported", "session.type"),
        ({"temperature": "hot"}, "invalid_value", "session.temperature"),
        ({"input_audio_format": "mp3"}, "invalid_value", "session.input_audio_format"),
        (
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
        (
            {"audio": {"input": {"turn_detection": {}}}},
            "missing_required_parameter",
            "session.audio.input.turn_detection.type",
        ),
    ],
)
async def test_what_is_wrong_refuses_the_update(model, session, code, param):
    async with serving(model) as server, Client(server) as client:
        await client.send("session.update", session={**session, "output_audio_format": "g711_ulaw"}, event_id="e")
        error = await client.error()
        assert (error["code"], error["param"], error["event_id"]) == (code, param, "e")
        await client.send("session.update", session={})
        updated = (await client.until("session.updated"))["session"]
    assert updated["audio"]["output"]["format"]["type"] == "audio/pcm"


async def test_the_temperature_is_set_before_the_first_sound(model, digits):
    async with serving(model) as server, Client(server, text_temperature=2, audio_temperature=2, realtime=0) as client:
        await client.send("session.update", session={"temperature": 0})
        said = await client.dialogue(digits[: 56 * FRAME_SIZE], 1)
        await client.send("session.update", session={"temperature": 1})
        error = await client.error()
    assert said[0][0] == WORDS[0]
    assert error["param"] == "session.temperature"
    assert "too late" in error["message"]


# ---- what is wrong -------------------------------------------------------------------------------------------------------


async def test_wrong_events_are_answered_and_survived(model, digits):
    asked = [
        ('{"type": "dance", "event_id": "x"}', "invalid_value", "type"),
        ("{", "invalid_json", None),
        ("[" * 2400, "invalid_json", None),
        ("[]", "invalid_json", None),
        ("{}", "missing_required_parameter", "type"),
        ('{"type": 3}', "invalid_type", "type"),
        ('{"type": "session.update"}', "missing_required_parameter", "session"),
        ('{"type": "session.update", "session": 1}', "invalid_type", "session"),
        ('{"type": "input_audio_buffer.append"}', "missing_required_parameter", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "*"}', "invalid_value", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "\\ud800"}', "invalid_value", "audio"),
        ('{"type": "conversation.item.create", "item": {"content": 3}}', "unsupported", "item"),
        ('{"type": "conversation.item.truncate", "item_id": 3}', "invalid_type", "item_id"),
        ('{"type": "response.create", "response": []}', "invalid_type", "response"),
        ('{"type": "response.create", "response": {"instructions": "x"}}', "unsupported", "response.instructions"),
        ('{"type": "response.create", "response": {"\\ud800": 1}}', "unsupported", "response.\ufffd"),
        ('{"type": "session.update", "session": {"\\ud800": 1}}', "unknown_parameter", "session.\ud800"),
        (json.dumps({"type": "x" * 3000}), "event_too_large", None),
    ]
    async with serving(model, limits=Limits(message=2500)) as server:
        async with Client(server, **FILE) as client:
            for text, code, param in asked:
                await client.ws.send_str(text)
                error = await client.error()
                assert (error["code"], error["param"]) == (code, param), text
            await client.ws.send_bytes(b"\1\2\3")
            assert (await client.error())["code"] == "invalid_message"
            for begin in range(0, 40 * FRAME_SIZE, FRAME_SIZE // 4):
                await client.append(digits[begin : begin + FRAME_SIZE // 4])
            assert (await client.until("response.output_audio_transcript.delta"))["delta"] == "four"
        assert server.errors()["event"] == len(asked) + 1


async def test_a_message_far_too_large_ends_it(model):
    async with serving(model, limits=Limits(message=1000)) as server, Client(server) as client:
        await client.ws.send_str("x" * 5000)
        while await client.receive():
            pass
    assert client.ws.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_it_ends_with_an_event_that_says_why(model):
    async with serving(model, limits=Limits(first=0.1)) as server, Client(server) as client:
        while await client.receive():
            pass
    (error,) = [event["error"] for event in client.of("error")]
    assert (error["code"], error["message"]) == (
        "first",
        "No sound came for 0.1 s; send audio from session.created on.",
    )
    assert client.ws.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION


# ---- tokens, the line, the address ---------------------------------------------------------------------------------------


async def test_a_token_may_be_a_subprotocol_as_browsers_send_it(model, caplog):
    async with serving(model, "--token", "sk-x") as server:
        protocols = ("realtime", "openai-insecure-api-key.sk-x", "openai-agents-sdk.1")
        async with Client(server, protocols=protocols) as client:
            assert client.ws.protocol == "realtime"
            assert (await client.receive())["type"] == "session.created"
        async with Client(server, {"Authorization": "Bearer sk-x"}) as client:
            assert (await client.receive())["type"] == "session.created"
        async with Client(server, protocols=protocols[1:]) as client:
            assert client.ws.protocol is None
        for headers, named in ((None, ("realtime", "openai-insecure-api-key.no")), ({"Authorization": "Bearer y"}, ())):
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                async with Client(server, headers, named):
                    pass
            assert error.value.status == 401
    assert "sk-x" not in str(
        [(record.name, record.getMessage()) for record in caplog.records if "client" not in record.name]
    )


async def test_the_session_is_created_when_the_turn_has_come(model, digits):
    """What the client asked for while it waited counts; the sound it sent was not heard."""
    async with serving(model) as server, Client(server, **FILE) as first:
        await first.until("session.created")
        async with Client(server, **FILE) as second:
            await second.send("session.update", session={"output_modalities": ["text"]})
            await second.append(np.full(10 * FRAME_SIZE, 0.3, np.float32))
            with pytest.raises(asyncio.TimeoutError):
                await second.receive(0.3)
            for _ in range(64):
                await second.send("input_audio_buffer.clear")
            assert (await second.error())["code"] == "too_early"
            await first.ws.close()
            await second.until("session.created")
            assert (await second.until("session.updated"))["session"]["output_modalities"] == ["text"]
            await second.dialogue(digits[: 56 * FRAME_SIZE], 1)
    assert second.of("response.output_text.done")[0]["text"] == "four one"


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("?intent=transcription", 400, "No speech-to-text model is served here"),
        ("?text_topk=-1", 400, "text_topk"),
        ("?model=whatever", 426, "websockets"),
    ],
)
async def test_what_an_address_asks_for(model, query, status, said):
    async with serving(model) as server:
        found, text, _ = await get(f"{server.url}/v1/realtime{query}")
    assert found == status
    assert said in (json.loads(text)["error"]["message"] if status == 400 else text)


async def test_the_end_of_the_server_is_told(model):
    async with serving(model) as server, Client(server) as client:
        await client.until("session.created")
        closing = asyncio.ensure_future(server.end("The server is shutting down."))
        error = await client.error()
        with contextlib.suppress(AssertionError):
            await client.receive()
        await closing
    assert (error["type"], error["message"]) == ("server_error", "The server is shutting down.")
