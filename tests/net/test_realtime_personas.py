"""Voices and instructions in OpenAI's protocol, with the demo model that takes them."""

import pytest
from test_realtime import Client
from test_server_personas import FILE, WORDS, digits, eventually, model, plain, recording, serving

__all__ = ["digits", "model", "plain", "recording"]


async def answered(server, digits, *sessions):
    """What is said to the first turn after some updates, and the events that came."""
    async with Client(server, **FILE) as client:
        await client.until("session.created")
        for session in sessions:
            await client.send("session.update", session={"type": "realtime", **session})
            await client.until("session.updated")
        ((words, _),) = await client.dialogue(digits, 1)
    return words, client


@pytest.mark.parametrize("role", ["say each digit plus one", "backwards"])
async def test_instructions_are_the_role(model, digits, role):
    async with serving(model) as server:
        words, client = await answered(server, digits, {"instructions": f"{role}\n"})
        await eventually(lambda: server.log)
    assert words == WORDS[{"say each digit plus one": "next"}.get(role, role)]
    assert client.of("session.updated")[0]["session"]["instructions"] == role
    assert not client.of("error")
    assert role not in str(server.log)


async def test_the_last_update_before_sound_counts(model, digits):
    """Whether or not the session was made already for one before."""
    async with serving(model) as server:
        words, client = await answered(
            server,
            digits,
            {"instructions": "next"},
            {"instructions": "backwards", "audio": {"output": {"voice": "Anna"}}},
            {"output_modalities": ["audio"]},
        )
        await eventually(lambda: server.log)
    assert words == WORDS["backwards"]
    assert client.of("session.updated")[2]["session"]["audio"]["output"]["voice"] == "Anna"
    assert client.of("response.done")[0]["response"]["audio"]["output"]["voice"] == "Anna"
    assert server.log[0]["voice"] == "Anna"


async def test_after_sound_it_is_too_late(model, digits):
    async with serving(model) as server, Client(server, **FILE) as client:
        await client.append(digits[:1920])
        await client.send("session.update", session={"instructions": "next", "voice": "Anna"})
        errors = [await client.error() for _ in range(2)]
        session = (await client.until("session.updated"))["session"]
    assert {error["param"] for error in errors} == {"session.instructions", "session.voice"}
    assert all("too late" in error["message"] for error in errors)
    assert session["instructions"] == ""


@pytest.mark.parametrize(
    ("session", "param", "said"),
    [
        ({"voice": "marin"}, "session.voice", "There is no voice 'marin' here; the only one is Anna."),
        ({"audio": {"output": {"voice": {"id": "v"}}}}, "session.audio.output.voice", "There is no voice 'v' here"),
        ({"instructions": "x" * 1001}, "session.instructions", "1000 characters"),
    ],
)
async def test_what_is_not_there_is_told_and_the_conversation_goes_on(model, digits, session, param, said):
    async with serving(model) as server:
        words, client = await answered(server, digits, {"instructions": "next"}, session)
    (error,) = client.of("error")
    assert (error["error"]["code"], error["error"]["param"]) == ("unsupported", param)
    assert said in error["error"]["message"]
    assert words == WORDS["next"]


async def test_a_server_without_voices_says_so(plain, digits):
    async with serving(plain) as server:
        words, client = await answered(server, digits, {"voice": "alloy", "instructions": "backwards"})
    assert [event["error"]["message"] for event in client.of("error")] == ["The server has no voices to choose from."]
    assert words == WORDS["backwards"]


async def test_the_address_may_ask_as_for_a_chat(model, digits):
    async with serving(model) as server, Client(server, text_prompt="next", voice_prompt="Anna", **FILE) as client:
        session = (await client.until("session.created"))["session"]
        ((words, _),) = await client.dialogue(digits, 1)
    assert (session["instructions"], session["audio"]["output"]["voice"]) == ("next", "Anna")
    assert words == WORDS["next"]
