"""`ChatCompletions`: answers while they come, and one sentence for whatever a server does."""

import asyncio
import json
import threading

import pytest
from aiohttp import web

from msh_mlx.conversation.dialogue import Thought, TooLongError
from msh_mlx.conversation.tools import Tool, Tools
from msh_mlx.errors import InputError, MshError
from msh_mlx.events import Called, Notice
from msh_mlx.net import chat_completions
from msh_mlx.net.chat_completions import ChatCompletions, LanguageServer, find_servers, list_models, server_url

PATIENCE = 10.0  # seconds
ODD = "What URL answers is not a chat completion; give the address of such a server."
ASKED = [{"role": "user", "content": "four one"}]


def chunk(text):
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode()


class Server:
    """A server of one path, on a thread of its own. `handle` answers `/v1/chat/completions`; `bodies` are what was asked."""

    def __init__(self, handle=None, models=("small", "large"), port=0):
        self.port = port
        self.bodies, self.keys, self.gone = [], [], threading.Event()
        self._handle, self._models = handle, models
        self._ready, self._stop = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _answer(self, request):
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        try:
            return await self._handle(request)
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
            raise

    async def _list(self, request):
        if self._models is None:
            return web.Response()
        return web.json_response({"object": "list", "data": [{"id": name} for name in self._models]})

    async def _run(self):
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", self._list)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)


def stream(*parts, end=b"data: [DONE]\n\n", pause=0.0):
    async def handle(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part if isinstance(part, bytes) else chunk(part))
            await asyncio.sleep(pause)
        await response.write(end)
        return response

    return handle


def say(status=200, **body):
    async def handle(request):
        return web.json_response(body, status=status)

    return handle


def raw(body, status):
    async def handle(request):
        return web.Response(body=body, status=status, content_type="application/json")

    return handle


def all_of(thought, changed):
    """The text of an answer; `changed` is set when something has come."""
    text = []
    while not thought.over:
        for piece in thought.pieces():
            if piece is None:
                assert changed.wait(PATIENCE)
                changed.clear()
            else:
                text.append(piece)
    return "".join(text)


def answered(url, *, key="", model="small", tools=None, tell=lambda _: None, **options):
    """Ask once. Return the text, and the error or None."""
    changed = threading.Event()
    thought = Thought(changed.set, tell)
    asking = ChatCompletions(LanguageServer(url, model, key), tools, **options)
    asking.ask(ASKED, thought)
    text = all_of(thought, changed)
    asking.close()
    return text, thought.error


def test_an_answer_comes_word_by_word():
    with Server(stream(b": hello\n\n", b"event: x\n", "", "Four", " and", " one.")) as server:
        assert answered(server.url, key="secret") == ("Four and one.", None)
    assert server.bodies == [{"messages": ASKED, "stream": True, "model": "small"}]
    assert server.keys == ["Bearer secret"]


def test_words_are_there_before_the_answer_ends():
    with Server(stream("one ", "two", pause=0.3)) as server:
        changed = threading.Event()
        thought = Thought(changed.set)
        asking = ChatCompletions(LanguageServer(server.url))
        asking.ask(ASKED, thought)
        assert changed.wait(PATIENCE)
        assert [next(thought.pieces())] == ["one "]
        assert next(thought.pieces()) is None
        asking.close()


def test_a_server_that_does_not_stream():
    with Server(say(choices=[{"message": {"role": "assistant", "content": "Five."}}])) as server:
        assert answered(server.url) == ("Five.", None)


def test_a_cancelled_answer_ends_the_request():
    with Server(stream("one ", *["two "] * 1000, pause=0.05)) as server:
        changed = threading.Event()
        thought = Thought(changed.set)
        asking = ChatCompletions(LanguageServer(server.url))
        asking.ask(ASKED, thought)
        assert changed.wait(PATIENCE)
        thought.cancel()
        said = list(thought.pieces())  # ends, though the server has more to say
        assert len(said) < 100
        assert server.gone.wait(PATIENCE)
        asking.close()


async def breaks_off(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(chunk("one "))
    request.transport.abort()
    return response


async def falls_silent(request):
    await asyncio.sleep(PATIENCE)


@pytest.mark.parametrize(
    ("handle", "error"),
    [
        (
            say(401, error={"message": "Invalid key"}),
            "The server URL refuses the key (401); give its key in MSH_LLM_KEY.",
        ),
        (
            say(404, error={"message": "model not found"}),
            "The server URL answers with 404 for the model small: model not found.",
        ),
        (say(500, detail="Memory."), 'The server URL answers with 500 for the model small: {"detail": "Memory."}.'),
        (
            raw(b'[{"error": {"code": 400, "message": "API key not valid"}}]', 400),
            "The server URL answers with 400 for the model small: 400 API key not valid.",
        ),
        (raw(b"null", 400), "The server URL answers with 400 for the model small: null."),
        (raw(b"[" * 50_000, 200), ODD),
        (say(200, hello="world"), ODD),
        (stream(b"data: {not json\n\n"), ODD),
        (stream(b"hello\n\n", end=b"bye\n"), ODD),
        (stream(b"data: " + b"x" * (3 << 20)), ODD),
        (stream(b'data: {"choices": "x"}\n\n'), ODD),
        (stream(b"data: " + b"[" * 50_000 + b"\n\n"), ODD),
        (stream(b'data: {"error": {"message": "no memory"}}\n\n'), "The language model failed: no memory."),
        (falls_silent, "The language model at URL said nothing for too long; ask again, or take a smaller model."),
    ],
)
def test_what_goes_wrong_is_one_sentence(handle, error):
    with Server(handle) as server:
        text, told = answered(server.url, silent=1.0)
        assert (text, str(told)) == ("", error.replace("URL", server.url))


def test_what_came_before_a_break_is_said():
    with Server(breaks_off) as server:
        text, error = answered(server.url)
    assert text == "one "
    assert str(error).startswith(f"The connection to the language model at {server.url} broke off (")


def test_nobody_is_there():
    with Server() as server:
        url = server.url
    assert str(answered(url)[1]) == f"Nothing answers at {url}; start the language model's server."


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": "context_length_exceeded", "message": "Too many tokens."}},
        {"error": {"message": "the request exceeds the available context size, try increasing it"}},
        {"error": "This model's maximum context length is 4096 tokens"},
    ],
)
def test_too_long_a_conversation_is_known(body):
    with Server(say(400, **body)) as server:
        assert isinstance(answered(server.url)[1], TooLongError)


# ---- tools -----------------------------------------------------------------------------------------------------------------


async def added(arguments):
    return str(arguments["a"] + arguments["b"])


ADD = Tool("add", "Add two numbers.", {"type": "object", "properties": {"a": {"type": "integer"}}}, added)


def delta(*calls, **more):
    """A chunk with pieces of calls."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": None, "tool_calls": list(calls)}, **more}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def piece(arguments, name=None, **more):
    return {**more, "function": {"arguments": arguments, **({"name": name} if name else {})}}


FIRST, SECOND = '{"a": 4, "b": 1}', '{"a": 3, "b": 5}'
DIALECTS = {
    "OpenAI, in pieces": stream(
        delta(piece("", "add", index=0, id="c1", type="function")),
        *(delta(piece(FIRST[at : at + 3], index=0)) for at in range(0, len(FIRST), 3)),
        delta(piece("", "add", index=1, id="c2", type="function")),
        *(delta(piece(SECOND[at : at + 5], index=1)) for at in range(0, len(SECOND), 5)),
        delta(finish_reason="tool_calls"),
    ),
    "pieces that come in turns": stream(
        delta(piece("", "add", index=0, id="c1"), piece("", "add", index=1, id="c2")),
        delta(piece(FIRST[:5], index=0), piece(SECOND[:7], index=1)),
        delta(piece(SECOND[7:], index=1), piece(FIRST[5:], index=0)),
    ),
    "pieces that repeat the name and the identifier": stream(
        delta(piece(FIRST[:5], "add", index=0, id="c1")),
        delta(piece(FIRST[5:], "add", index=0, id="c1")),
        delta(piece(SECOND, "add", index=1, id="c2")),
    ),
    "a name in pieces": stream(
        delta(piece("", "a", index=0, id="c1")),
        delta(piece(FIRST, "dd", index=0)),
        delta(piece(SECOND, "add", index=1, id="c2")),
    ),
    "Ollama, whole calls with one index": stream(
        delta(piece(FIRST, "add", index=0, id="c1", type="function")),
        delta(piece(SECOND, "add", index=0, id="c2", type="function"), finish_reason="stop"),
    ),
    "whole calls without an index, with objects": stream(
        delta(piece(json.loads(FIRST), "add", id="c1"), piece(json.loads(SECOND), "add", id="c2"))
    ),
    "whole calls without an index and an identifier": stream(
        delta(piece(FIRST, "add"), piece(SECOND, "add")), delta(finish_reason="tool_calls")
    ),
    "not streamed": say(
        choices=[
            {
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [piece(FIRST, "add", id="c1"), piece(SECOND, "add", id="c2")],
                },
            }
        ]
    ),
}


def turns(*handles):
    """Handle one request after the other."""
    rest = list(handles)

    async def handle(request):
        return await rest.pop(0)(request)

    return handle


@pytest.mark.parametrize("dialect", DIALECTS)
def test_calls_of_tools_are_read_as_servers_send_them(dialect):
    told = []
    with Server(turns(DIALECTS[dialect], stream("Five and eight."))) as server:
        assert answered(server.url, tools=Tools([ADD]), tell=told.append) == ("Five and eight.", None)
    first, second = server.bodies
    function = {"name": "add", "description": "Add two numbers.", "parameters": ADD.parameters}
    assert first["tools"] == second["tools"] == [{"type": "function", "function": function}]
    asked, *results = second["messages"][1:]
    assert (asked["role"], asked["content"]) == ("assistant", "")
    ids = [call["id"] for call in asked["tool_calls"]]
    assert len(set(ids)) == 2
    assert ids == ["c1", "c2"] or dialect == "whole calls without an index and an identifier"
    assert [json.loads(call["function"]["arguments"]) for call in asked["tool_calls"]] == [
        json.loads(FIRST),
        json.loads(SECOND),
    ]
    assert results == [
        {"role": "tool", "content": result, "tool_call_id": id} for result, id in zip(("5", "8"), ids, strict=True)
    ]
    assert [event.result for event in told if isinstance(event, Called)] == ["5", "8"]


def test_what_is_called_is_valid_unicode():
    """A server may send the halves of a picture apart, or one alone."""
    told = []
    calls = delta(piece('{"x": "\ud83d', "n\ud83d", index=0)), delta(piece('\ude42\ud83d"}', index=0))
    with Server(turns(stream("\ud83d ", *calls), stream("No."))) as server:
        assert answered(server.url, tools=Tools([ADD]), tell=told.append)[1] is None
    assert server.bodies[1]["messages"][1]["content"] == "\ufffd "
    (called,) = [event for event in told if isinstance(event, Called)]
    assert (called.name, called.arguments) == ("n\ufffd", '{"x": "🙂\ufffd"}')


def test_without_tools_none_are_offered():
    with Server(stream("Four.")) as server:
        answered(server.url)
    assert "tools" not in server.bodies[0]


def test_what_is_no_call_is_told():
    with Server(stream(delta("add"))) as server:
        assert str(answered(server.url)[1]) == ODD.replace("URL", server.url)


def test_a_cancelled_answer_cancels_the_tool():
    begun, ended = threading.Event(), threading.Event()

    async def wait(_):
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            ended.set()

    with Server(stream(delta(piece("{}", "wait", id="c1")))) as server:
        thought = Thought(lambda: None)
        asking = ChatCompletions(LanguageServer(server.url), Tools([Tool("wait", "", {}, wait)]))
        asking.ask(ASKED, thought)
        assert begun.wait(PATIENCE)
        thought.cancel()
        assert ended.wait(PATIENCE)
        asking.close()
    assert len(server.bodies) == 1
    assert thought.over


def test_several_conversations_share_the_tools():
    """Each is told of its own calls."""

    async def handle(request):
        messages = (await request.json())["messages"]
        number = messages[0]["content"]
        if len(messages) == 1:
            return await stream(delta(piece(f'{{"a": {number}, "b": {number}}}', "add", id="c1")))(request)
        return await stream(messages[-1]["content"])(request)

    thoughts = {}
    with Server(handle) as server:
        asking = ChatCompletions(LanguageServer(server.url), Tools([ADD]))
        for number in range(8):
            changed, told = threading.Event(), []
            thought = Thought(changed.set, told.append)
            thoughts[number] = thought, changed, told
            asking.ask([{"role": "user", "content": str(number)}], thought)
        for number, (thought, changed, told) in thoughts.items():
            assert all_of(thought, changed) == str(2 * number)
            assert [event.result for event in told if isinstance(event, Called)] == [str(2 * number)]
        asking.close()


def test_who_waits_long_for_an_answer_is_told_once():
    """But not while a tool runs."""

    async def slow(_):
        await asyncio.sleep(0.3)
        return "5"

    async def late(request):
        await asyncio.sleep(0.3)
        return await stream("Five.")(request)

    tools, told = Tools([Tool("slow", "", {}, slow)]), []
    called = stream(delta(piece("{}", "slow", id="c1")))
    with Server(turns(called, stream("Five."))) as server:
        answered(server.url, tools=tools, tell=told.append, slow=0.2)
    assert not [event for event in told if isinstance(event, Notice)]
    with Server(turns(late, called, late)) as server:
        answered(server.url, tools=tools, tell=told.append, slow=0.1)
        (notice,) = (event for event in told if isinstance(event, Notice))
        assert notice.message == f"The language model at {server.url} has not answered yet."
        assert notice.level == "info"


def test_a_proxy_is_not_for_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with Server(stream("Four.")) as server:
        assert answered(server.url) == ("Four.", None)


def test_the_models_of_a_server(monkeypatch):
    with Server() as server, Server(models=None) as empty:
        assert list_models(LanguageServer(server.url)) == ["small", "large"]
        assert list_models(LanguageServer(empty.url)) == []
        monkeypatch.setattr(
            chat_completions, "USUAL", {"Gone": "http://127.0.0.1:1/v1", "Empty": empty.url, "Here": server.url}
        )
        assert find_servers() == {"Empty": LanguageServer(empty.url), "Here": LanguageServer(server.url, "small")}
    with pytest.raises(MshError, match="Nothing answers"):
        list_models(LanguageServer(server.url))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8080", "http://localhost:8080/v1"),
        ("http://localhost:8080/", "http://localhost:8080/v1"),
        ("https://example.com/api/v1/", "https://example.com/api/v1"),
        ("http://[::1]:1234/v1/chat/completions", "http://[::1]:1234/v1"),
    ],
)
def test_addresses(text, url):
    assert server_url(text) == url


@pytest.mark.parametrize(
    "text", ["ftp://x", "http://", "http://x:99999", "http://x/v1?a=b", "http://[x", "http://a..b"]
)
def test_wrong_addresses(text):
    with pytest.raises(InputError, match="is not the address of a server"):
        server_url(text)


def test_an_address_with_a_password_is_refused_and_not_shown():
    with pytest.raises(InputError) as raised:
        server_url("http://me:secret@example.com/v1")
    assert (
        str(raised.value) == "The address of example.com has a name or a password; give a key in MSH_LLM_KEY instead."
    )
