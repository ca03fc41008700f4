"""`/v1/realtime` with a language model: turns and answers in OpenAI's protocol."""

import asyncio
import base64

import numpy as np
import pytest
from test_chat_completions import Server, breaks_off, stream, turns
from test_realtime import Client, pcm16
from test_served_cascade import FADED, FOUR_ONE, LOUD, NUMBERS, ONSET, PATIENCE, SILENCE, THREE, audio, parts, serving
from test_server import eventually

from msh_mlx.conversation import cascade
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE
from msh_mlx.net.realtime_sound import SoundReader

__all__ = ["audio", "parts"]

WRITTEN = "conversation.item.input_audio_transcription"
MANUAL = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
LONG = [f"{word} " for word in 9 * NUMBERS.split()]


class Caller(Client):
    """A client whose microphone is open, as most are: it sends a frame each 80 ms, and keeps when sound came, by them."""

    def __init__(self, server, **options):
        super().__init__(server, **options)
        self._queue, self.sent, self.sound = [], 0, []

    async def __aenter__(self):
        await super().__aenter__()
        await self.until("conversation.created")
        self._task = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await super().__aexit__(*_)

    async def _send(self):
        while True:
            frame = self._queue.pop(0) if self._queue else SILENCE
            await self.send("input_audio_buffer.append", audio=pcm16(frame))
            self.sent += 1
            await asyncio.sleep(FRAME_SECONDS)

    def speak(self, pcm):
        self._queue += list(pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE].reshape(-1, FRAME_SIZE))

    async def receive(self, timeout=10.0):
        event = await super().receive(timeout)
        if event and event["type"] == "response.output_audio.delta":
            pcm = SoundReader("audio/pcm").read(base64.b64decode(event["delta"]))
            self.sound.append((self.sent * FRAME_SECONDS, pcm))
        return event

    def last_loud(self):
        """When the last loud sound was over, by the frames that were sent."""
        return max(
            at + np.flatnonzero(np.abs(pcm) > LOUD)[-1] / SAMPLE_RATE for at, pcm in self.sound if pcm.max() > LOUD
        )


def transcript(client):
    return "".join(event["delta"] for event in client.of("response.output_audio_transcript.delta"))


async def until_said(caller, word):
    """Go on until the answer has a word."""
    while word not in transcript(caller):
        await caller.receive()


async def test_a_turn_is_written_down_and_answered(audio):
    with Server(stream("two ", "seven ")) as llm:
        async with serving(audio, llm) as server, Caller(server) as caller:
            caller.speak(FOUR_ONE)
            done = await caller.until("response.done")
    (started,), (stopped,) = (caller.of(f"input_audio_buffer.speech_{name}") for name in ("started", "stopped"))
    (committed,), (written,) = caller.of("input_audio_buffer.committed"), caller.of(f"{WRITTEN}.completed")
    assert started["item_id"] == stopped["item_id"] == committed["item_id"] == written["item_id"]
    assert 0 <= 1000 * ONSET - started["audio_start_ms"] < 500
    assert 1500 < stopped["audio_end_ms"] < 3500
    assert [event["delta"] for event in caller.of(f"{WRITTEN}.delta")] == ["four", " one"]
    assert (written["transcript"], transcript(caller)) == ("four one", "two seven")
    assert done["response"]["status"] == "completed"
    assert done["response"]["output"][0]["content"][0]["transcript"] == "two seven"
    order = [
        "input_audio_buffer.speech_started",
        f"{WRITTEN}.delta",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        f"{WRITTEN}.completed",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    assert caller.types()[2 : 2 + len(order)] == order
    ((words, sound),) = caller.said()
    assert (words, len(sound) % (2 * FRAME_SIZE)) == (["two", "seven"], 0)
    session = caller.of("session.created")[0]["session"]
    assert session["model"] == "small"
    assert session["audio"]["input"]["transcription"]["model"] == "demo-stt"
    assert session["audio"]["input"]["turn_detection"]["interrupt_response"]


async def test_who_interrupts_cancels_the_response(audio):
    with Server(stream(*LONG, pause=0.3)) as llm:
        async with serving(audio, llm) as server, Caller(server) as caller:
            caller.speak(FOUR_ONE)
            await until_said(caller, "three")
            onset = caller.sent * FRAME_SECONDS + ONSET
            caller.speak(FOUR_ONE)
            done = await caller.until("response.done")
            assert await asyncio.to_thread(llm.gone.wait, PATIENCE)
            last = caller.last_loud()
            await eventually(lambda: len(llm.bodies) == 2)
    assert (done["response"]["status"], done["response"]["status_details"]["reason"]) == ("cancelled", "turn_detected")
    assert last - onset < FADED
    kept = llm.bodies[1]["messages"][1]["content"]
    assert done["response"]["output"][0]["content"][0]["transcript"] == kept


async def test_who_only_listens_has_a_turn_that_nobody_answers(audio, monkeypatch):
    monkeypatch.setattr(cascade, "_LISTENING", {"three"})
    monkeypatch.setattr(cascade, "_INTERRUPTED", 2.0)  # the demo's voice is slow
    with Server(turns(stream(*LONG[:12]), stream("six "))) as llm:
        async with serving(audio, llm) as server, Caller(server) as caller:
            caller.speak(FOUR_ONE)
            await until_said(caller, "two")
            caller.speak(THREE)
            first = await caller.until("response.done")
            caller.speak(FOUR_ONE)
            second = await caller.until("response.done")
    assert [each["response"]["status"] for each in (first, second)] == ["completed", "completed"]
    written = caller.of(f"{WRITTEN}.completed")
    assert [each["transcript"] for each in written] == ["four one", "three", "four one"]
    for name in ("started", "stopped"):
        told = [each["item_id"] for each in caller.of(f"input_audio_buffer.speech_{name}")]
        assert told == [each["item_id"] for each in written]
    assert [each["content"] for each in llm.bodies[1]["messages"]][2:] == ["four one"]


async def test_a_response_is_cancelled_on_request(audio):
    with Server(stream(*LONG, pause=0.3)) as llm:
        async with serving(audio, llm) as server, Caller(server) as caller:
            caller.speak(FOUR_ONE)
            await until_said(caller, "two")
            await caller.send("response.cancel")
            done = await caller.until("response.done")
            sound = len(caller.sound)
            assert await asyncio.to_thread(llm.gone.wait, PATIENCE)
            await caller.send("response.cancel")
            assert (await caller.error())["code"] == "response_cancel_not_active"
            assert len(caller.sound) == sound
            caller.speak(FOUR_ONE)
            await eventually(lambda: len(llm.bodies) == 2)
    assert (done["response"]["status"], done["response"]["status_details"]["reason"]) == (
        "cancelled",
        "client_cancelled",
    )
    kept = done["response"]["output"][0]["content"][0]["transcript"]
    assert [each["content"] for each in llm.bodies[1]["messages"]] == ["four one", kept, "four one"]


async def test_what_was_asked_for_can_be_cancelled_before_it_begins(audio):
    with Server(stream("two ")) as llm:
        async with serving(audio, llm) as server, Client(server) as client:
            for _ in range(2):  # before there is a conversation, and in it
                await client.send("response.create")
                await client.send("response.cancel")
                assert (await client.until("response.done"))["response"]["status"] == "cancelled"
                await asyncio.sleep(0.5)
    assert not llm.bodies
    assert len(client.of("response.created")) == 2


async def test_push_to_talk(audio):
    """A turn at once, without turn detection; and a response that nobody has asked anything for."""
    with Server(stream("two ")) as llm:
        async with serving(audio, llm) as server, Client(server) as client:
            await client.send("session.update", session=MANUAL)
            await client.append(FOUR_ONE)
            await client.send("input_audio_buffer.commit")
            await client.send("response.create")
            committed = await client.until("input_audio_buffer.committed")
            written = await client.until(f"{WRITTEN}.completed")
            await client.until("response.done")
            await client.send("response.create")
            await client.until("response.done")
    assert (written["item_id"], written["transcript"]) == (committed["item_id"], "four one")
    assert [words for words, _ in client.said()] == [["two"], ["two"]]
    assert [each["content"] for each in llm.bodies[1]["messages"]] == ["four one", "two", "..."]
    assert not client.of("input_audio_buffer.speech_started")


async def test_what_is_written_is_answered_when_that_is_asked_for(audio):
    """At once, or with what is said next; and the answer to what had no answer is asked for again."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say two."}]}
    with Server(stream("two ")) as llm:
        async with serving(audio, llm) as server, Client(server) as client:
            await client.send("conversation.item.create", item=item)
            await client.send("response.create")
            await client.until("response.done")
            await client.send("conversation.item.create", item={**item, "id": "more"})
            await client.append(FOUR_ONE)
            await client.until("response.done")
            await client.send("conversation.item.create", item={**item, "role": "system"})
            assert (await client.error())["code"] == "unsupported"
            texts = [{"type": "input_text"}], [{"type": "input_text", "text": 3}], [*item["content"], "x"]
            for content in (None, [], ["x"], [{"type": ["x"]}], [{"type": "input_image"}], *texts):
                await client.send("conversation.item.create", item={**item, "content": content})
                assert (await client.error())["type"] == "invalid_request_error"
    added = client.of("conversation.item.added")
    assert added[0]["item"]["content"] == [{"type": "input_text", "text": "Say two."}]
    assert [event["item"]["role"] for event in added] == ["user", "assistant", "user", "user", "assistant"]
    assert added[2]["item"]["id"] == "more"
    asked = [[each["content"] for each in body["messages"]] for body in llm.bodies]
    assert asked == [["Say two."], ["Say two.", "two", "Say two. four one"]]


@pytest.mark.parametrize("beta", [False, True])
async def test_an_error_of_the_language_model_is_told_and_the_session_goes_on(audio, beta):
    headers = {"OpenAI-Beta": "realtime=v1"} if beta else None
    with Server(breaks_off) as llm:
        async with serving(audio, llm) as server, Client(server, headers=headers) as client:
            await client.append(FOUR_ONE)
            error = await client.error()
            done = await client.until("response.done")
            llm._handle = stream("two ")
            await client.append(FOUR_ONE)
            await client.until("response.done")
    assert (error["type"], error["code"]) == ("server_error", "language_model")
    assert error["message"].startswith(f"The connection to the language model at {llm.url} broke off")
    assert done["response"]["status"] == "failed"
    assert client.said("response." if beta else "response.output_")[-1][0] == ["two"]


async def test_instructions_and_voices(audio):
    with Server(stream("two ")) as llm:
        async with serving(audio, llm, instructions="usual") as server, Client(server) as client:
            await client.until("session.created")
            given = {"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "brisk"}}}
            await client.send("session.update", session=given)
            session = (await client.until("session.updated"))["session"]
            await client.append(FOUR_ONE)
            await client.until("response.done")
    assert (session["instructions"], session["audio"]["output"]["voice"]) == ("Be brief.", "brisk")
    assert llm.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_a_noise_is_a_turn_without_words(audio):
    hum = 0.05 * np.sin(0.02 * np.arange(SAMPLE_RATE // 10))  # 76 Hz
    with Server() as llm:
        async with serving(audio, llm) as server, Caller(server) as caller:
            caller.speak(np.pad(hum, (SAMPLE_RATE, FRAME_SIZE)).astype(np.float32))
            written = await caller.until(f"{WRITTEN}.completed")
    assert written["transcript"] == ""
    assert not llm.bodies
    assert not caller.of("response.created")
