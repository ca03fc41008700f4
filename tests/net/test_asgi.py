"""The server as an ASGI application: what tests of the server show with aiohttp holds there too, and what differs."""

# ruff: noqa: F401, F811, I001 — the tests that are imported run here, too

import asyncio

import aiohttp
import hosts
import pytest
from talker import Talker, talk

from test_openai_audio import (
    service,
    test_a_recording_in_each_format,
    test_bodies_that_are_no_forms,
    test_models,
    test_speech_as_events,
    test_speech_comes_while_it_is_made,
    test_token_origin_and_method_are_checked,
    test_what_is_wrong_late_ends_the_stream_with_an_error,
    test_who_leaves_is_not_heard_to_the_end,
    test_words_are_streamed_as_they_come,
    test_wrong_transcriptions_are_refused,
)
from test_realtime import (
    test_a_message_far_too_large_ends_it,
    test_a_token_may_be_a_subprotocol_as_browsers_send_it,
    test_it_answers_with_the_digits_and_their_sound,
    test_it_ends_with_an_event_that_says_why,
    test_the_end_of_the_server_is_told,
    test_what_an_address_asks_for,
)
from test_server import (
    FILE,
    digits,
    model,
    reference,
    serving,
    test_a_bad_parameter_is_a_sentence,
    test_a_plain_request_is_told_what_the_websocket_was,
    test_a_slash_too_many_does_not_change_an_address,
    test_behind_a_proxy_visitors_are_told_apart,
    test_conversations_at_the_same_time_do_not_hear_each_other,
    test_health_and_figures,
    test_limits_end_it_with_an_error,
    test_only_our_own_names,
    test_only_our_own_pages,
    test_pages_that_are_allowed_may_read_why_they_were_refused,
    test_restart_is_a_new_conversation_on_the_same_connection,
    test_the_line_is_told_places_and_let_in_by_turn,
    test_the_page_and_its_headers,
    test_the_token_is_wanted,
    test_too_many_connections,
    test_what_is_not_there_is_a_sentence,
)

from msh_mlx.net.asgi_face import AsgiServer, AsgiWire, _Ahead
from msh_mlx.net.messages import Handshake
from msh_mlx.net.wire import BrokenError


@pytest.fixture(autouse=True)
def uvicorn(monkeypatch):
    monkeypatch.setattr(hosts, "host", hosts.Uvicorn)


async def test_a_conversation_is_as_with_aiohttp(model, digits, reference, monkeypatch):
    async with serving(model) as server:
        heard = await talk(server.url, digits, **FILE)
    monkeypatch.undo()
    async with serving(model) as server:
        assert server.gates is not None  # this one is aiohttp
        assert (await talk(server.url, digits, **FILE)).raw == heard.raw == reference.raw


async def test_a_websocket_is_refused_with_the_sentence(model):
    async with serving(model, "--token", "x") as server, aiohttp.ClientSession() as http:
        for path, status in (("/api/chat", 401), ("/v1/realtime", 401), ("/nothing", 404), ("/v1/nothing", 404)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await http.ws_connect(server.url + path)
            assert caught.value.status == status
            assert caught.value.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_end_of_the_program_is_told(model):
    """As the program ends the application, and not as somebody calls the server."""
    async with serving(model) as server, Talker(server.url) as talker:
        await talker.until(Handshake)
        application, sent, messages = AsgiServer(server), [], asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        messages.put_nowait({"type": "lifespan.shutdown"})

        async def send(message):
            sent.append(message["type"])

        await application({"type": "lifespan"}, messages.get, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        while await talker.receive():
            pass
        assert talker.heard.error == "The server is shutting down."
        assert talker.heard.code == aiohttp.WSCloseCode.GOING_AWAY


async def called(model, scope, *options):
    """Call the application as a program would that knows no extension; return what it sends."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    base = {"path": "/api/chat", "query_string": b"", "headers": [(b"host", b"localhost")], "subprotocols": []}
    async with serving(model, *options) as server:
        await AsgiServer(server)({**base, **scope}, receive, send)
    return sent


async def test_without_the_extension_a_refused_websocket_is_closed(model):
    (closed,) = await called(model, {"type": "websocket"}, "--token", "x")
    assert closed["type"] == "websocket.close"
    assert closed["code"] == 1008
    assert "This server needs a token." in closed["reason"]


async def test_headers_that_come_twice_count_as_one(model):
    """So that a second one cannot change the meaning of the first."""
    twice = [(b"host", b"localhost"), (b"Origin", b"http://localhost"), (b"origin", b"http://evil.example")]
    (closed,) = await called(model, {"type": "websocket", "headers": twice})
    assert "may not use this server" in closed["reason"]


async def test_a_file_that_the_client_has_is_not_sent_again(model, tmp_path):
    (tmp_path / "index.html").write_text("page")
    async with serving(model, static=tmp_path) as server, aiohttp.ClientSession() as http:
        async with http.get(f"{server.url}/") as answer:
            assert (answer.status, await answer.text()) == (200, "page")
            assert answer.headers["Cache-Control"] == "no-cache"
        headers = {"If-None-Match": answer.headers["ETag"]}
        async with http.get(f"{server.url}/", headers=headers) as answer:
            assert (answer.status, await answer.text()) == (304, "")


async def test_who_sends_too_much_ahead_is_left():
    """Where the program takes whatever comes."""
    messages = asyncio.Queue()
    async with _Ahead(messages.get, 100) as ahead:
        for _ in range(3):
            messages.put_nowait({"type": "websocket.receive", "bytes": bytes(50)})
            assert len((await ahead.receive())["bytes"]) == 50  # what was read does not count
        for _ in range(3):
            messages.put_nowait({"type": "websocket.receive", "text": "x" * 50})
        await asyncio.sleep(0.05)
        for _ in range(2):
            assert (await ahead.receive())["text"]
        with pytest.raises(BrokenError) as caught:
            await ahead.receive()
    assert caught.value.code == 1013
    async with _Ahead(messages.get, 100) as ahead:
        messages.put_nowait({"type": "websocket.disconnect", "code": 1000})
        assert (await ahead.receive())["code"] == 1000


async def test_another_protocol_is_an_error(model):
    with pytest.raises(ValueError, match="does not know the protocol 'mqtt'"):
        await called(model, {"type": "mqtt"})


async def test_a_wire_says_how_it_ended():
    def wire(*messages, largest=10):
        left = list(messages)

        async def receive():
            return left.pop(0)

        async def send(message):
            raise OSError("gone")

        return AsgiWire(receive, send, largest)

    assert await wire({"type": "websocket.receive", "bytes": b"0123456789"}).receive() == b"0123456789"
    assert await wire({"type": "websocket.receive", "bytes": None, "text": ""}).receive() == ""
    with pytest.raises(BrokenError) as caught:
        await wire({"type": "websocket.receive", "text": "01234567890"}).receive()
    assert caught.value.code == 1009
    assert await wire({"type": "websocket.disconnect", "code": 1005}).receive() is None
    lost = wire({"type": "websocket.disconnect", "code": 1006})
    with pytest.raises(BrokenError) as caught:
        await lost.receive()
    assert (caught.value.code, lost.closed) == (None, True)
    with pytest.raises(ConnectionError):
        await lost.send(b"")
    with pytest.raises(ConnectionError):
        await wire().send("x")
