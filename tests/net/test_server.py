"""The server, over real sockets, with the demo model."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from dataclasses import replace

import aiohttp
import hosts
import numpy as np
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families
from talker import Talker, talk
from yarl import URL

from msh_mlx import load_mimi, load_tokenizer
from msh_mlx.cli import server_program
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.session import step_together
from msh_mlx.conversation.shared import SharedModel
from msh_mlx.conversation.ticks import Costs
from msh_mlx.events import Failed
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import demo_folder, find_demo
from msh_mlx.model.sampling import Sampler
from msh_mlx.net.connection import Limits, NetworkSource
from msh_mlx.net.listener import _Gate, _Gates
from msh_mlx.net.messages import Audio, Control, Error, Handshake, MetaData, Ping, Text, encode
from msh_mlx.net.opus import OpusDecoder, OpusEncoder
from msh_mlx.net.visitor import read_network

GREEDY = {"text_temperature": 0, "audio_temperature": 0, "text_seed": 5, "audio_seed": 5}
FILE = {"realtime": 0, **GREEDY}


@pytest.fixture(scope="module")
def model():
    shared = SharedModel()
    shared.load(lambda: load_parts(find_demo(), None))
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def digits():
    pcm, _ = soundfile.read(demo_folder() / "digits.flac", dtype="float32")
    pcm = np.concatenate([pcm, np.zeros(2 * SAMPLE_RATE, np.float32)])
    return pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE]


def serving(model, *options, **more):
    return hosts.serving(model, hosts.checked("--demo", *options), find_demo(), **more)


async def alone(model, pcm, **parameters):
    """What is heard on a server of one's own."""
    async with serving(model) as server:
        return await talk(server.url, pcm, **parameters)


@pytest.fixture(scope="module")
def reference(model, digits):
    return asyncio.run(alone(model, digits, **FILE))


async def get(url, **options):
    async with aiohttp.ClientSession() as http, http.get(url, **options) as response:
        return response.status, await response.text(), response.headers


async def upgraded(http, url, headers):
    """Ask for a websocket, and return the status: 426, as for a plain request, if it opens."""
    try:
        async with http.ws_connect(url, headers=headers):
            return 426
    except aiohttp.WSServerHandshakeError as error:
        return error.status


async def eventually(true, timeout=10.0):
    async def wait():
        while not true():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), timeout)


# ---- conversations -------------------------------------------------------------------------------------------------------


def test_it_answers_with_the_digits(reference, digits):
    expected = json.loads((demo_folder() / "expected.json").read_text())
    words = expected["words"] if isinstance(expected, dict) else [word["text"] for word in expected]
    assert reference.text.split() == [word if isinstance(word, str) else word["text"] for word in words]
    assert len(reference.sound) == len(digits)
    assert [type(message) for message in reference.messages[:2]] == [MetaData, Handshake]


def test_text_comes_right_before_the_sound_of_its_frame(reference, digits, model):
    """So that a client knows the time of a word: that of the live app's transcript."""
    frames, words = 0, []
    for message in reference.messages:
        if isinstance(message, Audio):
            frames += 1
        elif isinstance(message, Text):
            words.append((frames, message.text))
    parts = load_parts(find_demo(), None)
    from msh_mlx import Sampler, Session

    greedy = Sampler(temperature=0)
    session = Session(parts.lm, parts.mimi, parts.tokenizer, text_sampler=greedy, audio_sampler=greedy)
    encoder, decoder = OpusEncoder(), OpusDecoder()
    expected, said = [], []
    for index in range(len(digits) // FRAME_SIZE):
        frame = session.push(decoder.decode(encoder.encode(digits[index * FRAME_SIZE :][:FRAME_SIZE])))
        said.append(frame.pcm)
        if frame.text:
            expected.append((index, frame.text))
    assert words == expected
    encoder, decoder = OpusEncoder(), OpusDecoder()
    np.testing.assert_array_equal(reference.sound, np.concatenate([decoder.decode(encoder.encode(x)) for x in said]))


async def test_every_conversation_is_as_the_first(model, digits, reference):
    async with serving(model) as server:
        await talk(server.url, digits[: 40 * FRAME_SIZE], realtime=0)  # another one, by chance
        await talk(server.url, digits[: 7 * FRAME_SIZE], realtime=0, text_temperature=2, text_topk=3)
        last = await talk(server.url, digits, **FILE)
    assert last.raw == reference.raw


async def test_conversations_at_the_same_time_do_not_hear_each_other(model, digits, reference):
    other = np.roll(digits, 40 * FRAME_SIZE)
    expected = await alone(model, other, **FILE)
    async with serving(model, "--sessions", "3") as server:
        pcms = digits, other, digits
        first, second, third = await asyncio.gather(*(talk(server.url, pcm, **FILE) for pcm in pcms))
    assert first.raw == third.raw == reference.raw
    assert second.raw == expected.raw != reference.raw


async def test_in_real_time_it_says_the_same(model, digits, reference):
    """Frame by frame, each when the one before was answered, so that nothing is late."""
    async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
        await talker.until(Handshake)
        encoder = OpusEncoder()
        for start in range(0, 50 * FRAME_SIZE, FRAME_SIZE):
            await talker.send(Audio(encoder.encode(digits[start : start + FRAME_SIZE])))
            await talker.until(Audio)
    assert len(talker.heard.pcm) == 50
    assert talker.heard.raw == reference.raw[: len(talker.heard.raw)]


async def test_a_seed_decides(model, digits):
    short = digits[: 40 * FRAME_SIZE]
    hot = {"realtime": 0, "text_temperature": 2, "audio_temperature": 3}
    heard = [await alone(model, short, text_seed=seed, audio_seed=seed, **hot) for seed in (3, 3, 4)]
    assert heard[0].raw == heard[1].raw != heard[2].raw


async def test_restart_is_a_new_conversation_on_the_same_connection(model, digits, reference):
    async with serving(model) as server, Talker(server.url, **FILE) as talker:
        await talker.converse(digits[: 30 * FRAME_SIZE])
        await talker.send(Control.RESTART)
        before = len(talker.heard.raw)
        heard = await talker.converse(digits)
    late = len(heard.raw) - before - len(reference.raw)  # frames of the old one that were on their way
    assert heard.raw[before + late :] == reference.raw
    assert len(heard.of(Handshake)) == 2


async def test_pause_and_start(model, digits):
    async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
        await talker.until(Handshake)
        await talker.send(Control.END_TURN)
        await talker.send(Control.PAUSE)
        await talker.say(digits[: 20 * FRAME_SIZE], 0.01)
        with pytest.raises(asyncio.TimeoutError):
            await talker.until(Audio, 0.7)
        await talker.send(Control.START)
        sending = asyncio.ensure_future(talker.say(digits[: 20 * FRAME_SIZE], 0.08))
        while len(talker.heard.pcm) < 10:  # all of it, where the machine has nothing else to do
            assert await talker.receive()
        await sending
    assert not talker.heard.error


async def test_max_steps_ends_it_after_so_many_frames(model, digits):
    heard = await alone(model, digits, max_steps=12, **FILE)
    assert len(heard.pcm) == 12
    assert heard.code == aiohttp.WSCloseCode.OK
    assert not heard.error


async def test_early_audio_is_not_heard(model, digits, reference):
    async with serving(model) as server, Talker(server.url, realtime=0) as first:
        await first.until(Handshake)
        async with Talker(server.url, **FILE) as second:
            encoder = OpusEncoder()
            for _ in range(30):
                await second.send(Audio(encoder.encode(np.full(FRAME_SIZE, 0.3, np.float32))))
            await second.until(MetaData)
            await asyncio.sleep(0.1)
            await first.ws.close()
            heard = await second.converse(digits)
    assert {"waiting": 1} in heard.metadata
    assert heard.raw == reference.raw


async def test_late_audio_is_dropped_and_told(model, digits):
    """What a network gives at once after a while of nothing."""
    async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
        await talker.until(Handshake)
        await talker.say(digits[:FRAME_SIZE])
        await asyncio.sleep(3)
        await talker.say(digits[FRAME_SIZE : 38 * FRAME_SIZE])
        told: dict[str, float] = {}
        while told.get("dropped_s", 0) <= 1.5 or told["backlog_ms"] > 400:  # what was dropped does not wait for long
            assert await talker.receive()
            told = talker.heard.metadata[-1] if talker.heard.metadata else told
    assert told["drops"] >= 1
    assert told["step_p95_ms"] >= told["step_p50_ms"] > 0


async def test_a_file_is_read_no_faster_than_it_is_heard(model, digits, monkeypatch):
    monkeypatch.setattr("msh_mlx.net.connection._STATS_EVERY", 0.1)
    long = np.tile(digits, 6)[: 60 * SAMPLE_RATE // FRAME_SIZE * FRAME_SIZE]
    async with serving(model) as server, Talker(server.url, **FILE) as talker:
        heard = await talker.converse(long)
    assert len(heard.sound) == len(long)
    told = [values for values in heard.metadata if "backlog_ms" in values]
    assert told
    assert max(values["backlog_ms"] for values in told) < 3000
    assert told[-1]["dropped_s"] == 0


# ---- the line ------------------------------------------------------------------------------------------------------------


async def test_the_line_is_told_places_and_let_in_by_turn(model, digits):
    async with serving(model, "--line", "2") as server, contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        first = await enter(Talker(server.url))
        await first.until(Handshake)
        second = await enter(Talker(server.url))
        assert (await second.until(MetaData)).values == {"waiting": 1}
        third = await enter(Talker(server.url))
        assert (await third.until(MetaData)).values == {"waiting": 2}
        refused = await enter(Talker(server.url))
        assert "full" in (await refused.until(Error)).text
        assert await refused.receive() is None
        assert refused.heard.code == aiohttp.WSCloseCode.TRY_AGAIN_LATER
        assert await third.until(Ping, 6)  # a sign of life while nothing changes
        await second.ws.close()
        assert (await third.until(MetaData)).values == {"waiting": 1}
        await first.ws.close()
        assert await third.until(Handshake)


def test_nobody_is_let_in_without_room_in_the_time_of_a_frame():
    model = SharedModel()
    for _ in range(250):
        model.costs.add(1, 0.025)
    assert [model.has_room(others) for others in range(4)] == [True, True, False, False]
    assert [model.places(others, most=100) for others in range(4)] == [2, 2, 2, 3]
    for _ in range(250):
        model.costs.add(1, 0.2)
    assert [model.has_room(others) for others in range(2)] == [True, False]
    assert [model.places(others, most=100) for others in range(2)] == [1, 1]  # the first of all always has room
    model.close()


def test_together_there_is_room_for_more_until_answers_or_sound_take_the_time():
    model = SharedModel()
    model.costs.measure(1, 0.02)
    model.costs.measure(4, 0.026)
    assert [model.has_room(others) for others in (3, 10, 20, 21)] == [True, True, True, False]  # 2 ms each
    assert [model.places(others, most=100) for others in (0, 20, 21)] == [21, 21, 21]
    for _ in range(250):
        model.sound.add(0.008 * model.workers)
    assert [model.has_room(others) for others in (1, 3, 4)] == [True, True, False]
    assert [model.places(others, most=100) for others in (0, 4)] == [4, 4]
    for _ in range(250):
        model.replies.add(0.05)
    assert [model.has_room(others) for others in (0, 1, 3, 5)] == [True, False, False, False]
    assert [model.places(others, most=100) for others in (0, 1, 3, 5)] == [4, 1, 3, 5]
    model.close()


def test_new_conversations_show_in_what_is_measured_before_many_more_come():
    model = SharedModel()
    model.load(lambda: load_parts(find_demo(), None))
    model.replies.add(1.0)  # of those who were there before
    model.seat(text_sampler=Sampler(0), audio_sampler=Sampler(0), seed=1)
    assert model.has_room(1)
    model.costs = Costs()
    model.costs.measure(1, 0.001)
    model.costs.measure(2, 0.001)
    assert [model.has_room(others, fresh=others) for others in (0, 3, 4)] == [True, True, False]
    # Twice as many as had settled:
    assert [model.has_room(16, fresh=fresh) for fresh in (0, 7, 8)] == [True, True, False]
    model.costs.measure(3, 0.02)
    assert [model.has_room(2, fresh=fresh) for fresh in (0, 1)] == [True, True]
    model.costs.measure(4, 0.031)
    assert [model.has_room(3, fresh=fresh) for fresh in (0, 1)] == [True, False]
    model.close()


async def test_many_that_come_at_once_are_let_in_one_after_the_other(model, monkeypatch):
    monkeypatch.setattr("msh_mlx.net.server.SETTLED", 1.0)
    async with serving(model, "--sessions", "8") as server, contextlib.AsyncExitStack() as stack:
        talkers = [await stack.enter_async_context(Talker(server.url)) for _ in range(8)]
        begin = time.monotonic()
        assert all([await talker.until(Handshake) for talker in talkers])
        assert time.monotonic() - begin > 0.5  # four at once, and the others when those have settled


async def test_who_is_let_in_and_silent_keeps_nobody_out(model, monkeypatch):
    """In OpenAI's protocol a session is made only when the client wants something."""
    monkeypatch.setattr("msh_mlx.net.server.SETTLED", 0.5)
    async with serving(model, "--sessions", "8") as server, contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for _ in range(4):
            silent = await stack.enter_async_context(http.ws_connect(f"{server.url}/v1/realtime"))
            assert (await silent.receive_json(timeout=10))["type"] == "session.created"
        talker = await stack.enter_async_context(Talker(server.url))
        assert await talker.until(Handshake)


async def test_a_server_that_ends_or_has_failed_has_no_places(model):
    async with serving(model, "--sessions", "2") as server:
        assert server.places() == {"places": 2, "taken": 0, "free": 2}
        async with Talker(server.url) as talker:
            await talker.until(Handshake)
            assert server.places() == {"places": 2, "taken": 1, "free": 1}
            server.failure = Failed("model", RuntimeError("x"))
            assert server.places() == {"places": 1, "taken": 1, "free": 0}
            server.failure = None
    assert server.places()["free"] == 0


@pytest.mark.parametrize(
    "lines",
    [
        ["GET / HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: é"],
        ["GET /api/chat HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Sec-WebSocket-Key: é"],
        ["GET /health HTTP/1.1", "Host: localhost", "Expect: foo"],
    ],
)
async def test_odd_requests_get_an_answer_with_all_headers(model, lines):
    async with serving(model, "--static", "none") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert int(answer.split()[1]) in (404, 417, 426)
    assert b"X-Content-Type-Options: nosniff" in answer
    assert not [event for event in server.log if event["event"] == "error"]


async def test_a_slow_model_makes_the_second_wait(model, monkeypatch):
    async with serving(model, "--sessions", "2") as server, Talker(server.url) as first:
        await first.until(Handshake)
        monkeypatch.setattr("msh_mlx.conversation.shared.FRAME_SECONDS", 1e-6)
        async with Talker(server.url) as second:
            assert (await second.until(MetaData)).values == {"waiting": 1}
            monkeypatch.setattr("msh_mlx.conversation.shared.FRAME_SECONDS", 10.0)
            assert await second.until(Handshake)


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "named"),
    [("text_topk=-1", "text_topk"), ("audio_temperature=hot", "audio_temperature"), ("realtime=2", "realtime")],
)
async def test_a_bad_parameter_is_a_sentence(model, query, named):
    async with serving(model) as server:
        status, text, _ = await get(f"{server.url}/api/chat?{query}")
    assert status == 400
    assert named in text
    assert text.endswith(".\n")


async def test_the_token_is_wanted(model):
    async with serving(model, "--token", "s3cret") as server:
        wrong = {"Authorization": "Bearer s3cre"}
        for options in ({}, {"worker_auth_id": "s3cret2"}, {"headers": wrong}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                async with Talker(server.url, **options):
                    pass
            assert error.value.status == 401
        assert (await get(f"{server.url}/metrics"))[0] == 401
        assert (await get(f"{server.url}/health"))[0] == 200
        for options in ({"worker_auth_id": "s3cret"}, {"headers": {"Authorization": "bearer s3cret"}}):
            async with Talker(server.url, **options) as talker:
                assert await talker.until(Handshake)
        _, text, _ = await get(f"{server.url}/metrics?worker_auth_id=s3cret")
        await eventually(lambda: len(server.log) == 2)
    assert 'msh_errors_total{kind="token"} 4.0' in text
    assert "s3cret" not in json.dumps(server.log)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
        ("https://friend.example", 101),
        ("http://127.0.0.1:{port}", 101),
        (None, 101),
    ],
)
async def test_only_our_own_pages(model, origin, status):
    async with serving(model, "--allow-origin", "https://friend.example") as server:
        headers = {"Origin": origin.format(port=server.port)} if origin else {}
        found = 101
        try:
            async with Talker(server.url, headers=headers) as talker:
                assert await talker.until(Handshake)
        except aiohttp.WSServerHandshakeError as error:
            found = error.status
    assert found == status


async def test_pages_that_are_allowed_may_read_why_they_were_refused(model):
    async with serving(model, "--allow-origin", "https://friend.example", "--token", "x") as server:
        pages = [
            await get(f"{server.url}/api/chat", headers={"Origin": f"https://{name}.example"})
            for name in ("friend", "evil")
        ]
        odd = await get(f"{server.url}/metrics", headers={"Authorization": "Bearer \u00e9"})
    allowed = [(status, headers.get("Access-Control-Allow-Origin")) for status, _, headers in pages]
    assert (allowed, odd[0]) == ([(401, "https://friend.example"), (403, None)], 401)


async def test_pages_that_are_allowed_may_ask_before_they_send_a_token(model):
    """As browsers do: without the token that they ask about."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with serving(model, "--allow-origin", "https://friend.example", "--token", "x") as server:
        for name, expected in (("friend", 204), ("evil", 405)):
            headers = {"Origin": f"https://{name}.example", **asked}
            async with (
                aiohttp.ClientSession() as http,
                http.options(f"{server.url}/api/chat", headers=headers) as answer,
            ):
                assert answer.status == expected
                told = [answer.headers.get(f"Access-Control-Allow-{what}") for what in ("Origin", "Methods", "Headers")]
            if name == "friend":
                assert told == ["https://friend.example", "GET, HEAD, POST", "Authorization, Content-Type"]
            else:
                assert told == [None, None, None]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("WS", "/v1/realtime/x", 404),
        ("WS", "/api/asr-streaming", 404),
        ("WS", "/api/tts_streaming", 404),
        ("POST", "/v1/audio/speech", 404),
        ("POST", "/v1/audio/transcriptions", 404),
        ("DELETE", "/v1", 404),
        ("GET", "/api/", 404),
        ("GET", "/api/chat/x", 404),
        ("PUT", "/api/chat", 405),
    ],
)
@pytest.mark.parametrize("has_page", [True, False])
async def test_programs_for_other_interfaces_are_told_what_is_here(model, tmp_path, method, path, status, has_page):
    (tmp_path / "index.html").touch()
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "A" * 22,
    }
    async with serving(model, static=tmp_path if has_page else None) as server, aiohttp.ClientSession() as http:
        asked = "GET" if method == "WS" else method
        async with http.request(
            asked,
            f"{server.url}{path}",
            headers=headers if method == "WS" else {},
            data=b"{}" if asked == "POST" else None,
        ) as answer:
            found, headers, body = answer.status, answer.headers, await answer.json()
    assert found == status
    assert headers["Content-Type"].startswith("application/json")
    assert "/api/chat" in body["error"]["message"]
    assert path.partition("?")[0] in body["error"]["message"]
    assert set(body["served"]) == {"/api/chat", "/v1/realtime", "/api/voices", "/health", "/metrics", "/v1/models"}
    assert headers.get("Allow") == ("GET, HEAD, POST" if status == 405 else None)


async def test_what_is_not_there_is_a_sentence(model, tmp_path):
    (tmp_path / "index.html").write_text("<title>x</title>")
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").symlink_to("/etc")
    asked = [
        "b.js",
        "folder",
        "outside/passwd",
        "moshi/index.html",
        "a%00b",
        "%2e%2e%2f%2e%2e%2fetc/passwd",
        "x" * 900,
    ]
    async with serving(model, static=tmp_path) as server, aiohttp.ClientSession() as http:
        with_page = [await get(f"{server.url}/{name}") for name in asked]
        async with http.post(f"{server.url}/index.html") as answer:
            posted = answer.status, await answer.text(), answer.headers
    async with serving(model) as server:
        without = await get(f"{server.url}/")
    for status, text, _ in with_page:
        assert status == 404
        assert "the page is at /" in text
        assert text.endswith(".\n")
        assert len(text) < 300
    assert without[:2] == (
        404,
        "There is no / here, and no page; `make page` builds it. Conversations are at /api/chat.\n",
    )
    assert posted[:2] == (405, "/index.html does not answer POST; use GET.\n")
    assert posted[2]["Allow"] == "GET, HEAD"


async def test_a_slash_too_many_does_not_change_an_address(model, tmp_path, digits):
    """As a proxy leaves it, where `location /moshi` is passed on to `…/`."""
    (tmp_path / "index.html").write_text("<title>x</title>")
    (tmp_path / "a.js").write_text("1")
    async with serving(model, static=tmp_path) as server:
        pages = [(await get(URL(f"{server.url}{path}", encoded=True)))[0] for path in ("//", "//a.js", "//health")]
        async with aiohttp.ClientSession() as http, http.ws_connect(URL(f"{server.url}//api/chat", encoded=True)):
            pass
    assert pages == [200, 200, 200]


async def raw(server, request):
    """Send bytes, and return the status and the body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body.decode()


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n", 414, "The path is longer than"),
        (b"GET /?" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n", 414, "longer than 8190 bytes"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"x" * 50_000 + b"\r\n", 431, "longer than 32768 bytes"),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Some: 1\r\n" * 200,
            431,
            "has more headers than this server reads",
        ),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\x01\x02\r\n", 400, "not HTTP that this server can read"),
        (b"GET / HTTP/1.1\r\nHost: " + b"h" * 5000 + b"\r\n", 421, "does not go by the name 'hhh"),
        (
            b"GET /api/chat HTTP/1.1\r\nHost: localhost\r\nOrigin: http://" + b"o" * 5000 + b"\r\n",
            403,
            "may not use this",
        ),
        (b"M" * 5000 + b" /health HTTP/1.1\r\nHost: localhost\r\n", 400, "not HTTP"),
        (b"GET /api/chat?text_topk=" + b"9" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n", 400, "text_topk"),
        (b"GET /v1/" + b"x" * 900 + b" HTTP/1.1\r\nHost: localhost\r\n", 404, "There is no /v1/xxx"),
    ],
    ids=["path", "line", "header", "headers", "damaged", "host", "origin", "method", "parameter", "interface"],
)
async def test_whatever_is_asked_the_answer_and_the_log_are_short(model, request_, status, said):
    async with serving(model) as server:
        found, body = await raw(server, request_ + b"Connection: close\r\n\r\n")
    assert found == status
    assert said in body
    assert len(body) < 1000
    assert "bytearray" not in body
    assert "Traceback" not in body
    assert server.log == []


async def test_what_a_client_sent_is_cut_and_clean_in_the_log(model, digits, monkeypatch):
    def fail(*_):
        raise ValueError("\x1b[31m" + "x" * 5000 + "\n")

    monkeypatch.setattr("msh_mlx.net.server.describe_server", fail)
    async with serving(model) as server:
        with contextlib.suppress(aiohttp.ClientError):
            async with Talker(server.url) as talker:
                await talker.receive()
        await eventually(lambda: server.log)
    (line,) = server.log
    assert line["error"].startswith("ValueError: \ufffd[31mxxx")
    assert len(line["error"]) <= 300
    assert line["error"].isprintable()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:9998", 200),
        ("192.168.1.7", 200),
        ("mac.lan:80", 200),
        ("evil.example:9998", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
async def test_only_our_own_names(model, host, status):
    async with serving(model, "--allow-host", "Mac.lan") as server:
        found, _, _ = await get(f"{server.url}/health", headers={"Host": host})
    assert found == status


PROXY = "--trusted-proxy", "127.0.0.1", "--allow-host", "moshi.example"
FORWARDED = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": "moshi.example", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        (PROXY, {"Origin": "https://moshi.example", **FORWARDED}, 426),
        (PROXY, {"Origin": "https://moshi.example", "Host": "moshi.example"}, 426),  # Host $host
        (PROXY[:2], {"Origin": "https://moshi.example", **FORWARDED}, 421),  # not a name of ours
        ((), {"Origin": "https://moshi.example", **FORWARDED}, 403),
        ((), {"Origin": "https://moshi.example"}, 403),  # no Host line
        (("--allow-origin", "https://Moshi.example:443"), {"Origin": "https://moshi.example"}, 426),
        (PROXY, {"Origin": "http://moshi.example", **FORWARDED}, 403),
        (PROXY, {"Origin": "https://evil.example", **FORWARDED}, 403),
        (PROXY, {"Origin": "https://evil.example", **FORWARDED, "X-Forwarded-Host": "evil.example"}, 421),
        # A page whose name leads to this machine, and that can send all headers but Host.
        (PROXY, {"Origin": "http://evil.example", **FORWARDED, "Host": "evil.example"}, 421),
        (("--token", "x", *PROXY), {"Origin": "https://moshi.example", **FORWARDED}, 401),
    ],
)
async def test_a_plain_request_is_told_what_the_websocket_was(model, options, headers, status):
    """By POST, with which browsers send Origin, as with a websocket: one answer for both."""
    async with serving(model, *options) as server, aiohttp.ClientSession() as http:
        async with http.post(f"{server.url}/api/chat", headers=headers) as answer:
            text = await answer.text()
        assert answer.status == await upgraded(http, f"{server.url}/api/chat", headers) == status
    assert text.endswith(".\n")
    assert "Traceback" not in text


async def test_a_proxy_that_lets_no_websocket_through_is_named(model):
    """As nginx sends it without the lines for it: all headers but those from hop to hop."""
    headers = {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 22, "Connection": "close"}
    async with serving(model) as server:
        proxied, plain = await get(f"{server.url}/api/chat", headers=headers), await get(f"{server.url}/api/chat")
    assert (proxied[0], plain[0], server.errors()["upgrade"]) == (426, 426, 1)
    assert "A proxy has removed the header Upgrade" in proxied[1]
    assert plain[1] == "This address is for websockets.\n"


async def test_behind_a_proxy_visitors_are_told_apart(model):
    options = *PROXY, "--max-per-address", "1"
    async with serving(model, *options) as server, contextlib.AsyncExitStack() as stack:

        async def come(address):
            return await stack.enter_async_context(
                Talker(server.url, headers={**FORWARDED, "X-Forwarded-For": f"6.6.6.6, {address}"})
            )

        first, second = await come("192.0.2.1"), await come("192.0.2.2")
        await first.until(Handshake)
        assert (await second.until(MetaData)).values == {"waiting": 1}
        again = await come("192.0.2.1")
        assert "from your address" in (await again.until(Error)).text
        await eventually(lambda: server.log)
        await first.ws.close()
        await eventually(lambda: len(server.log) == 2)
        log = server.log[:2]
    assert [line["address"] for line in log] == ["192.0.2.1", "192.0.2.1"]
    assert log[0]["end"] == "per_address"


async def test_a_proxy_that_is_not_trusted_is_named_once(model):
    async with serving(model) as server:
        for _ in range(3):
            await get(f"{server.url}/health", headers=FORWARDED)
        async with Talker(server.url, headers=FORWARDED) as talker:
            await talker.until(Handshake)
        await eventually(lambda: len(server.log) == 2)
    told, visit = server.log
    assert told["event"] == "proxy"
    assert told["hint"] == "If 127.0.0.1 is a proxy of yours, start with --trusted-proxy 127.0.0.1."
    assert visit["address"] == "127.0.0.1"


FEW = Limits(message=2000, rate=50, first=0.3, idle=0.6, unsent=60_000)


async def flood(talker, _):
    for _ in range(300):
        await talker.send(Ping())


async def garbage(talker, _):
    for seed in range(1000):
        await talker.send(Audio(np.random.default_rng(seed).bytes(1000)))
        await asyncio.sleep(0)


async def too_large(talker, _):
    await talker.ws.send_bytes(bytes([1]) * 3000)


async def nothing(*_):
    pass


async def once(talker, digits):
    await talker.say(digits[: 2 * FRAME_SIZE])


@pytest.mark.parametrize(
    ("act", "kind", "limits", "said"),
    [
        (flood, "rate", FEW, "messages a second"),
        (garbage, "audio", Limits(), "not an Ogg stream"),
        (too_large, "message_size", FEW, "3000 bytes"),
        (nothing, "first", FEW, "No sound came for 0.3 s"),
        (once, "idle", FEW, "No sound came for 0.6 s"),
    ],
)
async def test_limits_end_it_with_an_error(model, digits, act, kind, limits, said):
    async with serving(model, limits=limits) as server:
        async with Talker(server.url) as talker:
            await talker.until(Handshake)
            acting = asyncio.ensure_future(act(talker, digits))
            error = await talker.until(Error)
            assert await talker.until(Error) is None
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
        await eventually(lambda: server.log)
        _, text, _ = await get(f"{server.url}/metrics")
    assert said in error.text
    assert server.log[-1]["end"] == kind
    assert f'msh_errors_total{{kind="{kind}"}} 1.0' in text


async def test_a_reader_that_does_not_read_is_closed(model, digits):
    """A client by hand, whose window is small."""

    def masked(data):
        mask = b"\1\2\3\4"
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        return bytes((0x82, 0x80 | 126, *len(data).to_bytes(2, "big"))) + mask + payload

    async with serving(model, limits=Limits(unsent=20_000)) as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            await loop.sock_sendall(
                sock,
                b"GET /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            )
            await eventually(lambda: server._connections)
            (connection,) = server._connections
            connection._wire.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            encoder = OpusEncoder()
            await asyncio.sleep(0.2)
            while not server.log:
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(sock, masked(encode(Audio(encoder.encode(digits[:FRAME_SIZE])))))
                await asyncio.sleep(0.02)
    assert server.log[-1]["end"] == "unsent"


@pytest.mark.parametrize(
    ("option", "said"), [("--max-connections", "too many connections;"), ("--max-per-address", "from your address")]
)
async def test_too_many_connections(model, option, said):
    async with serving(model, option, "2") as server, Talker(server.url) as first, Talker(server.url) as second:
        await first.until(Handshake)
        async with Talker(server.url) as third:
            assert said in (await third.until(Error)).text
            assert await third.receive() is None
        assert await second.until(MetaData)  # those that were there are not disturbed


async def test_kept_connections_of_one_address_lock_nobody_out(model, tmp_path):
    """140 that were asked something once, without the token; somebody else still comes in, and so does this address."""
    (tmp_path / "index.html").write_text("<title>x</title>")

    async def keep(server):
        reader, writer = await asyncio.open_connection("127.0.0.2", server.port, local_addr=("127.0.0.2", 0))
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"</title>")
        return writer

    async with serving(model, static=tmp_path, address="127.0.0.2") as server:
        kept = [await keep(server) for _ in range(140)]
        assert len(server.gates) == 64  # those of 32 clients, and 32 more
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.1", 0))
        url = server.url.replace("127.0.0.1", "127.0.0.2")
        async with aiohttp.ClientSession(connector=connector) as http:
            async with http.get(f"{url}/") as answer:
                assert answer.status == 200
            async with http.ws_connect(f"{url}/api/chat") as ws:
                while (await ws.receive(10)).data[:1] != bytes([0]):
                    pass
        kept.append(await keep(server))
        alive = [writer for writer in kept if not writer.transport.is_closing()]
        assert kept[-1] in alive
        for writer in kept:
            writer.close()


async def test_one_conversation_has_its_page(model, tmp_path, digits):
    """A browser keeps several connections for the page's files, besides the conversation's."""
    (tmp_path / "index.html").write_text("<title>x</title>")
    async with (
        serving(model, "--max-connections", "1", static=tmp_path) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(6):
            http = await stack.enter_async_context(aiohttp.ClientSession())
            async with http.get(f"{server.url}/") as answer:
                await answer.read()
        heard = await talk(server.url, digits[: 3 * FRAME_SIZE], **FILE)
        assert len(heard.pcm) == 3
        assert len(server.gates) >= 6


class FakeTransport(asyncio.Transport):
    def __init__(self, address):
        super().__init__({"peername": (address, 1)})
        self.is_open = True

    def close(self):
        pass  # as long as something is to be sent

    def abort(self):
        self.is_open = False


async def test_idle_ones_of_the_address_with_the_most_are_closed():
    gates = _Gates(4, 3, [read_network("10.0.0.0/8")])

    manager = aiohttp.web.Server(lambda _: None)

    def come(address, busy=False):
        gate = _Gate(manager, asyncio.get_running_loop(), gates, None)
        gate.connection_made(FakeTransport(address))
        if busy:
            gate.begin()
        return gate

    def are_open(*those):
        return [gate.transport.is_open for gate in those]

    one = [come("1.1.1.1", busy) for busy in (True, False, False)]
    one.append(come("1.1.1.1"))  # more than an address may have: its oldest that is idle
    assert are_open(*one) == [True, False, True, True]
    two = come("2.2.2.2")
    three = come("3.3.3.3")  # more than there may be
    assert are_open(*one, two, three) == [True, False, False, True, True, True]
    four = come("4.4.4.4")
    assert are_open(*one, two, three, four) == [True, False, False, False, True, True, True]
    assert len(gates) == 4
    for gate in (two, three, four):
        gate.begin()
    assert are_open(come("5.5.5.5")) == [False]  # where nobody is idle, there is no room
    two.end()
    assert are_open(come("5.5.5.5"), two) == [True, False]
    proxied = _Gates(10, 3, [read_network("10.0.0.0/8")])
    gates = proxied
    assert are_open(*[come("10.1.2.3") for _ in range(8)]) == [True] * 8


async def test_a_connection_that_is_being_closed_can_still_be_dropped():
    transport = FakeTransport("1.1.1.1")
    gate = _Gate(aiohttp.web.Server(lambda _: None), asyncio.get_running_loop(), _Gates(1, 1, ()), None)
    gate.connection_made(transport)
    gate.force_close()
    assert transport.is_open
    gate.drop()
    assert not transport.is_open


async def test_who_does_not_take_an_answer_is_left(model, tmp_path, monkeypatch):
    monkeypatch.setattr("msh_mlx.net.listener._TAKEN_WITHIN", 0.3)
    monkeypatch.setattr("msh_mlx.net.listener._SEND_BUFFER", 4096)
    (tmp_path / "index.html").write_bytes(bytes(30_000_000))
    async with serving(model, static=tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: len(server.gates) == 1)
            await eventually(lambda: len(server.gates) == 0)


async def test_a_kept_connection_that_is_closed_is_not_an_error(model, monkeypatch):
    monkeypatch.setattr("msh_mlx.net.listener._HEAD_WITHIN", 0.2)
    async with serving(model) as server, aiohttp.ClientSession() as http:
        async with http.get(f"{server.url}/health") as answer:
            await answer.read()
        await eventually(lambda: len(server.gates) == 0)
        assert server.errors()["request"] == 0


async def test_a_connection_without_a_request_is_closed(model, monkeypatch):
    monkeypatch.setattr("msh_mlx.net.listener._HEAD_WITHIN", 0.2)
    async with serving(model) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /api/chat HTTP/1.1\r\nHost: loc")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert (await get(f"{server.url}/health"))[0] == 200


async def test_unknown_messages_are_discarded(model, digits, reference):
    async with serving(model) as server, Talker(server.url, **FILE) as talker:
        for data in (b"", b"\xff", b"\x03\x09", b"\x02hello", encode(Handshake())):
            await talker.ws.send_bytes(data)
        heard = await talker.converse(digits)
    assert heard.raw == reference.raw


@pytest.mark.parametrize("waits", [False, True])
async def test_a_text_message_is_answered_and_keeps_no_place(model, waits):
    """As programs for other protocols send them, which would wait for ever."""
    async with serving(model) as server, Talker(server.url) as first, Talker(server.url) as second:
        await first.until(Handshake)
        await second.until(MetaData)
        other, one = (first, second) if waits else (second, first)
        await one.ws.send_str('{"type": "session.update"}')
        error = await one.until(Error)
        assert await one.until(Error) is None
        assert one.heard.code == aiohttp.WSCloseCode.UNSUPPORTED_DATA
        if not waits:
            assert await other.until(Handshake)
        await eventually(lambda: server.log)
    assert error.text == "Text messages have no meaning here; send binary messages: a type byte and a payload."
    assert server.log[0]["end"] == "text"


BESIDES_SOUND = {
    "nothing": b"",
    "unknown": b"\xff",
    "ping": encode(Ping()),
    "metadata": b"\x04{}",
    "text": encode(Text("hello")),
    "control": encode(Control.END_TURN),
    "no sound": encode(Audio(b"")),
    "headers": encode(Audio(OpusEncoder().encode(np.zeros(FRAME_SIZE, np.float32))[:100])),
    "restart": encode(Control.RESTART),
}


@pytest.mark.parametrize("spoke", [False, True])
@pytest.mark.parametrize("what", BESIDES_SOUND)
async def test_nothing_but_sound_keeps_a_conversation(model, digits, what, spoke):
    limits = replace(FEW, first=0.8, idle=0.8, rate=1000)
    async with serving(model, limits=limits) as server, Talker(server.url) as talker:
        await talker.until(Handshake)
        if spoke:
            await talker.say(digits[: 2 * FRAME_SIZE])

        async def stay():
            with contextlib.suppress(ConnectionError):
                while True:
                    await asyncio.sleep(0.1)
                    await talker.ws.send_bytes(BESIDES_SOUND[what])
                    await talker.ws.ping()

        staying = asyncio.ensure_future(stay())
        error = await talker.until(Error)
        staying.cancel()
        await asyncio.gather(staying, return_exceptions=True)
        await eventually(lambda: server.log)
    assert error.text.startswith("No sound came for 0.8 s")
    assert server.log[0]["end"] == ("idle" if spoke else "first")


async def test_who_has_paused_has_as_long_as_the_others(model, digits):
    """What a paused client sends is not heard, so it keeps nothing; sound after it has started again does."""
    limits = replace(FEW, first=1.0, idle=1.0, rate=1000)
    async with serving(model, limits=limits) as server, Talker(server.url, **GREEDY) as talker:
        await talker.until(Handshake)
        await talker.say(digits[:FRAME_SIZE])
        await talker.send(Control.PAUSE)
        await asyncio.sleep(0.3)
        await talker.send(Control.START)
        await talker.say(digits[: 20 * FRAME_SIZE], 0.08)  # longer than the limit
        await talker.send(Control.PAUSE)
        staying = asyncio.ensure_future(talker.say(digits, 0.05))
        error = await talker.until(Error)
        staying.cancel()
        await asyncio.gather(staying, return_exceptions=True)
    assert error.text == "No sound came for 1 s, so the conversation is over."
    assert len(talker.heard.pcm) > 5


async def test_a_slow_model_does_not_make_a_client_silent(model, digits, monkeypatch):
    """All has been sent, and the answers take longer than the limit."""
    slow = lambda *given: (time.sleep(0.3), step_together(*given))[1]  # noqa: E731
    monkeypatch.setattr("msh_mlx.conversation.shared.step_together", slow)
    async with serving(model, limits=replace(FEW, idle=0.6, rate=1000)) as server:
        heard = await talk(server.url, digits[: 8 * FRAME_SIZE], **FILE)
    assert len(heard.pcm) == 8
    assert not heard.error


# ---- clients that do not ask for it get only what published servers send --------------------------------------------------


async def test_figures_and_places_are_for_those_who_ask(model, digits, monkeypatch):
    monkeypatch.setattr("msh_mlx.net.connection._STATS_EVERY", 0.1)
    monkeypatch.setattr("msh_mlx.net.connection._PING_EVERY", 0.4)
    short = digits[: 25 * FRAME_SIZE]

    async def converse(stats):
        async with serving(model) as server, Talker(server.url, stats=None) as first:
            await first.until(Handshake)
            async with Talker(server.url, stats=stats, **FILE) as talker:
                await asyncio.sleep(1.0)
                await first.ws.close()
                return await talker.converse(short, 0.05)

    asked, published = await converse(1), await converse(None)
    for heard in (asked, published):
        assert len(heard.pcm) == 25
        about = [values for values in heard.metadata if "build_info" in values]
        assert len(about) == 1
    assert {"waiting": 1} in asked.metadata
    assert any("step_p50_ms" in values for values in asked.metadata)
    assert asked.of(Ping)
    kinds = [type(message) for message in published.messages]
    assert kinds[:2] == [MetaData, Handshake]
    assert set(kinds[2:]) <= {Audio, Text}


@pytest.mark.parametrize(("stats", "told"), [(1, ["voice_prompt", "text_topK", "a\ufffd b"]), (None, None)])
async def test_parameters_that_change_nothing_are_told(model, digits, stats, told):
    async with serving(model) as server:
        query = {**FILE, "stats": stats, "voice_prompt": "NATF2.pt", "text_topK": 3, "a\x1b\nb": 1}
        heard = await talk(server.url, digits[: 3 * FRAME_SIZE], **query)
        await eventually(lambda: server.log)
    assert heard.metadata[0].get("ignored") == told
    assert server.log[0]["ignored"] == "voice_prompt, text_topK, a\ufffd b"


# ---- what it tells -------------------------------------------------------------------------------------------------------


async def test_health_and_figures(model, digits):
    async with serving(model, ready=False) as server:
        loading = (await get(f"{server.url}/health"))[0], (await get(f"{server.url}/api/chat"))[0]
        server.ready = True
        await talk(server.url, digits[: 10 * FRAME_SIZE], **FILE)
        await eventually(lambda: server.log)
        _, text, headers = await get(f"{server.url}/metrics")
        assert (await get(f"{server.url}/health"))[0] == 200
    assert loading == (503, 503)
    assert headers["Content-Type"].startswith("text/plain")
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["msh_conversations_total", None] == 1
    assert samples["msh_step_seconds_count", None] == samples["msh_step_seconds_bucket", "+Inf"] == 10
    assert (
        samples["msh_sessions", None] == samples["msh_waiting", None] == samples["msh_dropped_seconds_total", None] == 0
    )
    (line,) = server.log
    assert (line["event"], line["end"], line["steps"]) == ("session", "closed", 10)
    assert line["step_p95_ms"] > 0


async def test_connections_are_kept_if_asked(model, digits, tmp_path):
    async with serving(model, "--log-dir", str(tmp_path / "logs"), "--token", "s3cret") as server:
        heard = await talk(server.url, digits, worker_auth_id="s3cret", email="a@example.org", **FILE)
        await eventually(lambda: server.log)
    (summary,) = (tmp_path / "logs").glob("*.json")
    (tokens,) = (tmp_path / "logs").glob("*.npy")
    kept = json.loads(summary.read_text())
    assert kept["steps"] == len(digits) // FRAME_SIZE
    assert kept["parameters"]["text_seed"] == 5
    assert "s3cret" not in summary.read_text()
    assert "example.org" not in summary.read_text()
    rows = np.load(tokens)
    assert rows.shape[0] == kept["steps"]
    tokenizer = load_tokenizer(demo_folder() / "tokenizer.model")
    pieces = [tokenizer.IdToPiece(int(token)) for token in rows[:, 0]]
    said = "".join(piece.replace("\u2581", " ") for piece in pieces if piece.startswith("\u2581") or piece.isalpha())
    assert said.split() == heard.text.split()
    half = (rows.shape[1] - 1) // 2
    mimi = load_mimi(demo_folder() / "mimi.safetensors", num_codebooks=half)
    encoder, decoder, codec = mimi.encoder(), OpusDecoder(), OpusEncoder()
    for row, start in zip(rows, range(0, len(digits), FRAME_SIZE), strict=True):
        codes = encoder.step(decoder.decode(codec.encode(digits[start : start + FRAME_SIZE])))[:, 0]
        assert row[1 + half :].tolist() == codes[:half].tolist()


async def test_the_page_and_its_headers(model, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html><title>x</title>")
    (tmp_path / "a.js").write_text("1")
    async with serving(model, static=tmp_path) as server:
        pages = [await get(f"{server.url}/{name}") for name in ("", "a.js", "../test_server.py", "%2e%2e/x", "b.js")]
    async with serving(model) as server:
        pages.append(await get(f"{server.url}/"))
    page, script, *missing = pages
    assert page[0] == script[0] == 200
    assert "<title>" in page[1]
    for headers in (page[2], script[2]):
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
    assert {status for status, _, _ in missing} <= {403, 404}


async def test_our_page_has_a_strict_policy_and_one_that_the_user_names_a_lenient_one(model, tmp_path, monkeypatch):
    ours, link, named = tmp_path / "ours", tmp_path / "link", tmp_path / "named"
    for folder in (ours, named):
        folder.mkdir()
        (folder / "index.html").write_text("<!doctype html><title>x</title>")
    link.symlink_to(ours)
    monkeypatch.setattr(server_program, "client_folder", lambda: ours)

    async def policy(folder):
        async with serving(model, static=folder) as server:
            return (await get(f"{server.url}/"))[2]["Content-Security-Policy"]

    for folder in (ours, link):
        assert "script-src 'self' 'wasm-unsafe-eval';" in await policy(folder)
    lenient = await policy(named)
    assert "'unsafe-eval'" in lenient
    assert "'unsafe-inline'" in lenient
    assert "frame-ancestors 'none'" in lenient


async def test_over_tls(model, digits, tmp_path):
    from msh_mlx.net.tls import server_context

    context = server_context(tmp_path, ["localhost"], ["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with serving(model, context=context) as server, Talker(server.url, ssl=trusting, **FILE) as talker:
        assert len((await talker.converse(digits[: 30 * FRAME_SIZE])).pcm) == 30


# ---- the source ----------------------------------------------------------------------------------------------------------


def test_the_source_gives_what_was_written_in_any_pieces():
    rng = np.random.default_rng(3)
    sound = rng.standard_normal(20_000).astype(np.float32)
    source = NetworkSource(10.0)
    got, start = [], 0
    while start < len(sound):
        size = int(rng.integers(1, 4000))
        source.write(sound[start : start + size])
        start += size
        while (pcm := source.read(1920, 0)) is not None:
            got.append(pcm)
    np.testing.assert_array_equal(np.concatenate(got), sound[: sum(map(len, got))])
    assert source.backlog() == pytest.approx((len(sound) - sum(map(len, got))) / SAMPLE_RATE)


def test_the_source_forgets_the_oldest_and_fades_in():
    source = NetworkSource(1.0)
    source.write(np.arange(SAMPLE_RATE, dtype=np.float32))
    assert source.trim(0.1) == pytest.approx(0.9)
    pcm = source.read(1920, 0)
    assert pcm[0] == 0
    assert pcm[60] == pytest.approx((SAMPLE_RATE - 2400 + 60) / 2)
    np.testing.assert_array_equal(pcm[120:], np.arange(SAMPLE_RATE - 2400 + 120, SAMPLE_RATE - 2400 + 1920))
    source.write(np.zeros(2 * SAMPLE_RATE, np.float32))
    assert source.backlog() <= 1.0
    assert source.refused > 0.5
