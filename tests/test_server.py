"""The server, over real sockets, with the demo model."""

import asyncio
import contextlib
import json
import socket
import ssl
from dataclasses import replace
from functools import partial

import aiohttp
import numpy as np
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families
from talker import FRAME, Talker, talk

from msh_mlx import load_mimi, load_tokenizer
from msh_mlx.commands import serve
from msh_mlx.connection import Limits, NetworkSource
from msh_mlx.files import demo_folder, find_demo
from msh_mlx.options import load_parts
from msh_mlx.opus import OpusDecoder, OpusEncoder
from msh_mlx.protocol import Audio, Control, Error, Handshake, MetaData, Ping, Text, encode
from msh_mlx.server import Server
from msh_mlx.shared import SharedModel

RATE = 24_000
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
    pcm = np.concatenate([pcm, np.zeros(2 * RATE, np.float32)])
    return pcm[: len(pcm) // FRAME * FRAME]


@contextlib.asynccontextmanager
async def serving(model, *options, limits=None, static=None, ready=True, context=None):
    args = serve.parser().parse_args(["--demo", *options])
    serve.check(args)
    settings = serve.settings(args, find_demo(), static=static)
    if limits:
        settings = replace(settings, limits=limits)
    log = []
    server = Server(model, settings, partial(serve.samplers, args), log.append)
    server.log = log
    sock = socket.create_server(("127.0.0.1", 0))
    server.port = sock.getsockname()[1]
    server.url = f"http{'s' if context else ''}://127.0.0.1:{server.port}"
    await server.listen(sock, context)
    server.ready = ready
    try:
        yield server
    finally:
        await server.close("The test is over.")


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


def alone(model, pcm, **parameters):
    """What is heard on a server of one's own."""

    async def scenario():
        async with serving(model) as server:
            return await talk(server.url, pcm, **parameters)

    return run(scenario())


@pytest.fixture(scope="module")
def reference(model, digits):
    return alone(model, digits, **FILE)


async def get(url, **options):
    async with aiohttp.ClientSession() as http, http.get(url, **options) as response:
        return response.status, await response.text(), response.headers


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
    for index in range(len(digits) // FRAME):
        frame = session.push(decoder.decode(encoder.encode(digits[index * FRAME :][:FRAME])))
        said.append(frame.pcm)
        if frame.text:
            expected.append((index, frame.text))
    assert words == expected
    encoder, decoder = OpusEncoder(), OpusDecoder()
    np.testing.assert_array_equal(reference.sound, np.concatenate([decoder.decode(encoder.encode(x)) for x in said]))


def test_every_conversation_is_as_the_first(model, digits, reference):
    async def scenario():
        async with serving(model) as server:
            await talk(server.url, digits[: 40 * FRAME], realtime=0)  # another one, by chance
            await talk(server.url, digits[: 7 * FRAME], realtime=0, text_temperature=2, text_topk=3)
            return await talk(server.url, digits, **FILE)

    assert run(scenario()).raw == reference.raw


def test_conversations_at_the_same_time_do_not_hear_each_other(model, digits, reference):
    other = np.roll(digits, 40 * FRAME)
    expected = alone(model, other, **FILE)

    async def scenario():
        async with serving(model, "--sessions", "3") as server:
            pcms = digits, other, digits
            return await asyncio.gather(*(talk(server.url, pcm, **FILE) for pcm in pcms))

    first, second, third = run(scenario())
    assert first.raw == third.raw == reference.raw
    assert second.raw == expected.raw != reference.raw


def test_in_real_time_it_says_the_same(model, digits, reference):
    """Frame by frame, each when the one before was answered, so that nothing is late."""

    async def scenario():
        async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
            await talker.until(Handshake)
            encoder = OpusEncoder()
            for start in range(0, 50 * FRAME, FRAME):
                await talker.send(Audio(encoder.encode(digits[start : start + FRAME])))
                await talker.until(Audio)
            return talker.heard

    heard = run(scenario())
    assert len(heard.pcm) == 50
    assert heard.raw == reference.raw[: len(heard.raw)]


def test_a_seed_decides(model, digits):
    short = digits[: 40 * FRAME]
    hot = {"realtime": 0, "text_temperature": 2, "audio_temperature": 3}
    heard = [alone(model, short, text_seed=seed, audio_seed=seed, **hot).raw for seed in (3, 3, 4)]
    assert heard[0] == heard[1] != heard[2]


def test_restart_is_a_new_conversation_on_the_same_connection(model, digits, reference):
    async def scenario():
        async with serving(model) as server, Talker(server.url, **FILE) as talker:
            await talker.converse(digits[: 30 * FRAME])
            await talker.send(Control.RESTART)
            before = len(talker.heard.raw)
            heard = await talker.converse(digits)
            return heard.raw[before:], heard.of(Handshake)

    raw, handshakes = run(scenario())
    late = len(raw) - len(reference.raw)  # frames of the old one that were on their way
    assert raw[late:] == reference.raw
    assert len(handshakes) == 2


def test_pause_and_start(model, digits):
    async def scenario():
        async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
            await talker.until(Handshake)
            await talker.send(Control.END_TURN)
            await talker.send(Control.PAUSE)
            await talker.say(digits[: 20 * FRAME], 0.01)
            with pytest.raises(asyncio.TimeoutError):
                await talker.until(Audio, 0.7)
            await talker.send(Control.START)
            sending = asyncio.ensure_future(talker.say(digits[: 20 * FRAME], 0.08))
            while len(talker.heard.pcm) < 10:  # all of it, where the machine has nothing else to do
                assert await talker.receive()
            await sending
            return talker.heard

    assert not run(scenario()).error


def test_max_steps_ends_it_after_so_many_frames(model, digits):
    heard = alone(model, digits, max_steps=12, **FILE)
    assert len(heard.pcm) == 12
    assert heard.code == aiohttp.WSCloseCode.OK
    assert not heard.error


def test_early_audio_is_not_heard(model, digits, reference):
    async def scenario():
        async with serving(model) as server, Talker(server.url, realtime=0) as first:
            await first.until(Handshake)
            async with Talker(server.url, **FILE) as second:
                encoder = OpusEncoder()
                for _ in range(30):
                    await second.send(Audio(encoder.encode(np.full(FRAME, 0.3, np.float32))))
                await second.until(MetaData)
                await asyncio.sleep(0.1)
                await first.ws.close()
                return await second.converse(digits)

    heard = run(scenario())
    assert {"waiting": 1} in heard.metadata
    assert heard.raw == reference.raw


def test_late_audio_is_dropped_and_told(model, digits):
    async def scenario():
        async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
            await talker.until(Handshake)
            await talker.say(digits[: 100 * FRAME])  # 8 s at once
            while not any(values.get("dropped_s", 0) > 5 for values in talker.heard.metadata):
                assert await talker.receive()
            return talker.heard.metadata[-1]

    told = run(scenario())
    assert told["drops"] >= 1
    assert told["step_p95_ms"] >= told["step_p50_ms"] > 0
    assert told["backlog_ms"] <= 400


def test_a_file_is_read_no_faster_than_it_is_heard(model, digits):
    async def scenario():
        long = np.tile(digits, 6)[: 60 * RATE // FRAME * FRAME]
        async with serving(model) as server, Talker(server.url, **FILE) as talker:
            heard = await talker.converse(long)
            return heard, long

    heard, long = run(scenario())
    assert len(heard.sound) == len(long)
    told = [values for values in heard.metadata if "backlog_ms" in values]
    assert told
    assert max(values["backlog_ms"] for values in told) < 3000
    assert told[-1]["dropped_s"] == 0


# ---- the line ------------------------------------------------------------------------------------------------------------


def test_the_line_is_told_places_and_let_in_by_turn(model, digits):
    async def scenario():
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

    run(scenario())


def test_nobody_is_let_in_without_room_in_the_time_of_a_frame():
    model = SharedModel()
    model._frame_seconds = 0.08
    for _ in range(250):
        model.step.add(0.025)
    assert [model.has_room(others) for others in range(4)] == [True, True, False, False]
    for _ in range(250):
        model.step.add(0.2)
    assert [model.has_room(others) for others in range(2)] == [True, False]


def test_a_slow_model_makes_the_second_wait(model, monkeypatch):
    async def scenario():
        async with serving(model, "--sessions", "2") as server, Talker(server.url) as first:
            await first.until(Handshake)
            monkeypatch.setattr(model, "_frame_seconds", 1e-6)
            async with Talker(server.url) as second:
                assert (await second.until(MetaData)).values == {"waiting": 1}
                monkeypatch.setattr(model, "_frame_seconds", 10.0)
                assert await second.until(Handshake)

    run(scenario())


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "named"),
    [("text_topk=-1", "text_topk"), ("audio_temperature=hot", "audio_temperature"), ("realtime=2", "realtime")],
)
def test_a_bad_parameter_is_a_sentence(model, query, named):
    async def scenario():
        async with serving(model) as server:
            return await get(f"{server.url}/api/chat?{query}")

    status, text, _ = run(scenario())
    assert status == 400
    assert named in text
    assert text.endswith(".\n")


def test_the_token_is_wanted(model):
    async def scenario():
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
            return text, server.log

    text, log = run(scenario())
    assert 'msh_errors_total{kind="token"} 4.0' in text
    assert "s3cret" not in json.dumps(log)


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
def test_only_our_own_pages(model, origin, status):
    async def scenario():
        async with serving(model, "--allow-origin", "https://friend.example") as server:
            headers = {"Origin": origin.format(port=server.port)} if origin else {}
            try:
                async with Talker(server.url, headers=headers) as talker:
                    assert await talker.until(Handshake)
                    return 101
            except aiohttp.WSServerHandshakeError as error:
                return error.status

    assert run(scenario()) == status


def test_pages_that_are_allowed_may_read_why_they_were_refused(model):
    async def scenario():
        async with serving(model, "--allow-origin", "https://friend.example", "--token", "x") as server:
            pages = [
                await get(f"{server.url}/api/chat", headers={"Origin": f"https://{name}.example"})
                for name in ("friend", "evil")
            ]
            odd = await get(f"{server.url}/metrics", headers={"Authorization": "Bearer \u00e9"})
            return [(status, headers.get("Access-Control-Allow-Origin")) for status, _, headers in pages], odd[0]

    assert run(scenario()) == ([(401, "https://friend.example"), (403, None)], 401)


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
def test_only_our_own_names(model, host, status):
    async def scenario():
        async with serving(model, "--allow-host", "Mac.lan") as server:
            return await get(f"{server.url}/health", headers={"Host": host})

    assert run(scenario())[0] == status


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
    await talker.say(digits[: 2 * FRAME])


@pytest.mark.parametrize(
    ("act", "kind", "limits", "said"),
    [
        (flood, "rate", FEW, "messages a second"),
        (garbage, "audio", Limits(), "no Ogg stream"),
        (too_large, "message_size", FEW, "3000 bytes"),
        (nothing, "first", FEW, "Nothing came for 0.3 s"),
        (once, "idle", FEW, "Nothing came for 0.6 s"),
    ],
)
def test_limits_end_it_with_an_error(model, digits, act, kind, limits, said):
    async def scenario():
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
            return error, server.log[-1], text

    error, logged, text = run(scenario())
    assert said in error.text
    assert logged["end"] == kind
    assert f'msh_errors_total{{kind="{kind}"}} 1.0' in text


def test_a_reader_that_does_not_read_is_closed(model, digits):
    """A client by hand, whose window is small."""

    def frame(data):
        mask = b"\1\2\3\4"
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        return bytes((0x82, 0x80 | 126, *len(data).to_bytes(2, "big"))) + mask + masked

    async def scenario():
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
                connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                encoder = OpusEncoder()
                await asyncio.sleep(0.2)
                while not server.log:
                    with contextlib.suppress(ConnectionError):
                        await loop.sock_sendall(sock, frame(encode(Audio(encoder.encode(digits[:FRAME])))))
                    await asyncio.sleep(0.02)
            return server.log

    assert run(scenario())[-1]["end"] == "unsent"


def test_too_many_connections(model):
    async def scenario(*options):
        async with serving(model, *options) as server, Talker(server.url) as first, Talker(server.url) as second:
            await first.until(Handshake)
            async with Talker(server.url) as third:
                error = await third.until(Error)
                assert await third.receive() is None
            assert await second.until(MetaData)  # those that were there are not disturbed
            return error.text

    assert "too many connections;" in run(scenario("--max-connections", "2"))
    assert "from your address" in run(scenario("--max-per-address", "2"))


def test_a_connection_without_a_request_is_closed(model, monkeypatch):
    monkeypatch.setattr("msh_mlx.server._HEAD_WITHIN", 0.2)

    async def scenario():
        async with serving(model) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /api/chat HTTP/1.1\r\nHost: loc")
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            return await get(f"{server.url}/health")

    assert run(scenario())[0] == 200


def test_text_frames_and_unknown_messages_are_discarded(model, digits, reference):
    async def scenario():
        async with serving(model) as server, Talker(server.url, **FILE) as talker:
            for data in (b"", b"\xff", b"\x03\x09", b"\x02hello", encode(Handshake())):
                await talker.ws.send_bytes(data)
            await talker.ws.send_str("hello")
            return await talker.converse(digits)

    assert run(scenario()).raw == reference.raw


# ---- what it tells -------------------------------------------------------------------------------------------------------


def test_health_and_figures(model, digits):
    async def scenario():
        async with serving(model, ready=False) as server:
            loading = (await get(f"{server.url}/health"))[0], (await get(f"{server.url}/api/chat"))[0]
            server.ready = True
            await talk(server.url, digits[: 10 * FRAME], **FILE)
            await eventually(lambda: server.log)
            _, text, headers = await get(f"{server.url}/metrics")
            return loading, (await get(f"{server.url}/health"))[0], text, headers, server.log

    loading, ready, text, headers, log = run(scenario())
    assert loading == (503, 503)
    assert ready == 200
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
    (line,) = log
    assert (line["event"], line["end"], line["steps"]) == ("session", "closed", 10)
    assert line["step_p95_ms"] > 0


def test_sessions_are_kept_if_asked(model, digits, tmp_path):
    async def scenario():
        async with serving(model, "--log-dir", str(tmp_path / "logs"), "--token", "s3cret") as server:
            heard = await talk(server.url, digits, worker_auth_id="s3cret", email="a@example.org", **FILE)
            await eventually(lambda: server.log)
            return heard

    heard = run(scenario())
    (summary,) = (tmp_path / "logs").glob("*.json")
    (tokens,) = (tmp_path / "logs").glob("*.npy")
    kept = json.loads(summary.read_text())
    assert kept["steps"] == len(digits) // FRAME
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
    for row, start in zip(rows, range(0, len(digits), FRAME), strict=True):
        codes = encoder.step(decoder.decode(codec.encode(digits[start : start + FRAME])))[:, 0]
        assert row[1 + half :].tolist() == codes[:half].tolist()


def test_the_page_and_its_headers(model, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html><title>x</title>")
    (tmp_path / "a.js").write_text("1")

    async def scenario():
        async with serving(model, static=tmp_path) as server:
            pages = [
                await get(f"{server.url}/{name}") for name in ("", "a.js", "../test_server.py", "%2e%2e/x", "b.js")
            ]
        async with serving(model) as server:
            return [*pages, await get(f"{server.url}/")]

    page, script, *missing = run(scenario())
    assert page[0] == script[0] == 200
    assert "<title>" in page[1]
    for headers in (page[2], script[2]):
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
    assert {status for status, _, _ in missing} <= {403, 404}


def test_our_page_has_a_strict_policy_and_one_that_the_user_names_a_lenient_one(model, tmp_path, monkeypatch):
    ours, link, named = tmp_path / "ours", tmp_path / "link", tmp_path / "named"
    for folder in (ours, named):
        folder.mkdir()
        (folder / "index.html").write_text("<!doctype html><title>x</title>")
    link.symlink_to(ours)
    monkeypatch.setattr(serve, "client_folder", lambda: ours)

    async def policy(folder):
        async with serving(model, static=folder) as server:
            return (await get(f"{server.url}/"))[2]["Content-Security-Policy"]

    for folder in (ours, link):
        assert "script-src 'self' 'wasm-unsafe-eval';" in run(policy(folder))
    lenient = run(policy(named))
    assert "'unsafe-eval'" in lenient
    assert "'unsafe-inline'" in lenient
    assert "frame-ancestors 'none'" in lenient


def test_over_tls(model, digits, tmp_path):
    from msh_mlx.tls import server_context

    context = server_context(tmp_path, ["localhost"], ["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    async def scenario():
        async with serving(model, context=context) as server, Talker(server.url, ssl=trusting, **FILE) as talker:
            return await talker.converse(digits[: 30 * FRAME])

    assert len(run(scenario()).pcm) == 30


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
    assert source.backlog() == pytest.approx((len(sound) - sum(map(len, got))) / RATE)


def test_the_source_forgets_the_oldest_and_fades_in():
    source = NetworkSource(1.0)
    source.write(np.arange(RATE, dtype=np.float32))
    assert source.trim(0.1) == pytest.approx(0.9)
    pcm = source.read(1920, 0)
    assert pcm[0] == 0
    assert pcm[60] == pytest.approx((RATE - 2400 + 60) / 2)
    np.testing.assert_array_equal(pcm[120:], np.arange(RATE - 2400 + 120, RATE - 2400 + 1920))
    source.write(np.zeros(2 * RATE, np.float32))
    assert source.backlog() <= 1.0
    assert source.refused > 0.5
