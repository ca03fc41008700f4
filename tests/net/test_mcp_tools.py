"""The tools of real MCP servers, over their standard streams and over HTTP."""

import asyncio
import contextlib
import shlex
import socket
import sys
import threading
import time
from pathlib import Path

import mcp_numbers
import pytest
import uvicorn
from test_chat_completions import Server

from msh_mlx.errors import InputError, MshError
from msh_mlx.net.mcp_tools import McpServers

PATIENCE = 20.0  # seconds
COMMAND = shlex.join([sys.executable, mcp_numbers.__file__])
NAMES = ["add", "pairs", "fail", "wait", "leave", "token"]


@contextlib.contextmanager
def over_http(port=0):
    sock = socket.create_server(("127.0.0.1", port))
    port = sock.getsockname()[1]
    app = mcp_numbers.server.streamable_http_app()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        sock.close()


@pytest.fixture(scope="module", params=["stdio", "http"])
def tools(request):
    with contextlib.ExitStack() as stack:
        place = COMMAND if request.param == "stdio" else stack.enter_context(over_http())
        ((said, tools),) = stack.enter_context(McpServers([place])).tools
        assert said == place.split("?")[0]
        yield {tool.name: tool for tool in tools}


def result(tool, **arguments):
    return asyncio.run(tool.run(arguments))


def test_the_tools_of_a_server(tools):
    assert list(tools) == NAMES
    assert tools["add"].description == "Add two numbers."
    assert tools["add"].parameters["required"] == ["a", "b"]
    assert result(tools["add"], a=4, b=1) == "5"
    assert result(tools["pairs"]) == "one two\nthree four"


def test_calls_from_several_loops_at_once(tools):
    """As from several conversations."""
    got = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: result(tools["add"], a=n, b=n)}), daemon=True)
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert got == {n: str(2 * n) for n in range(8)}


def test_a_tool_that_fails_says_why(tools):
    with pytest.raises(MshError, match="no luck today"):
        result(tools["fail"])
    with pytest.raises(MshError, match="valid integer"):
        result(tools["add"], a="x", b=1)


def test_a_call_that_is_given_up_is_cancelled_at_the_server(tools, tmp_path):
    path = tmp_path / "cancelled"

    async def give_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(tools["wait"].run({"path": str(path)}), 0.5)

    asyncio.run(give_up())
    end = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    assert path.read_text() == "cancelled"


def test_a_server_that_has_ended_is_started_again(monkeypatch, capfd):
    """And what it writes to its standard error is not printed, and it does not get the key of the language model."""
    monkeypatch.setenv("MSH_LLM_KEY", "secret")
    with McpServers([COMMAND]) as servers:
        tools = {tool.name: tool for tool in servers.tools[0][1]}
        with pytest.raises(MshError, match=r"The MCP server numbers has ended; the next call tries it again\."):
            result(tools["leave"])
        assert result(tools["add"], a=4, b=1) == "5"
        assert result(tools["token"]) == "none"
    assert capfd.readouterr() == ("", "")


def test_a_server_on_http_that_is_gone_and_comes_back():
    with contextlib.ExitStack() as stack:
        with over_http() as url:
            servers = stack.enter_context(McpServers([url]))
            (_, (add, *_)) = servers.tools[0]
            assert result(add, a=4, b=1) == "5"
        for _ in range(2):
            with pytest.raises(MshError, match=r"has ended|No MCP server answers at"):
                result(add, a=4, b=1)
        with over_http(int(url.rsplit(":", 1)[1].split("/")[0])):
            assert result(add, a=4, b=2) == "6"


def python(code):
    return shlex.join([sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("place", "kind", "error"),
    [
        ("no-such-command --x", InputError, r"The MCP server no-such-command --x cannot be started: No such file"),
        ("'", InputError, r"--mcp \"'\" is no command; give the command of an MCP server, or its address\."),
        ("", InputError, r"--mcp '' is no command"),
        (
            python("import nothing_like_this"),
            MshError,
            r"ended at its start \(ModuleNotFoundError: .*\); try its command",
        ),
        (python("print('hello')"), MshError, r"The MCP server .* ended at its start; try its command\."),
        (python("import time; time.sleep(60)"), MshError, r"did not answer within 2 s; check that it is one\."),
        (python("import sys\nfor x in sys.stdin: print('?', flush=True)"), MshError, r"did not answer within 2 s"),
        ("http://127.0.0.1:1/mcp", MshError, r"No MCP server answers at http://127\.0\.0\.1:1/mcp; start it"),
    ],
)
def test_what_is_wrong_with_a_server_is_one_sentence(place, kind, error):
    with pytest.raises(MshError, match=error) as caught, McpServers([place], patience=2.0):
        pass
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_an_address_that_is_no_mcp_server():
    with Server() as server, pytest.raises(MshError, match=r"is not an MCP server \(.*\); check the address\."):
        McpServers([server.url]).__enter__()


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("env TOKEN=secret KEY='a b' no-such-program --x=secret", "env TOKEN=… KEY=… no-such-program --x=…"),
        (
            "env TOKEN=secret no-such-program https://me:secret@host/mcp?key=secret --header 'Auth: secret' -v --key=secret x",
            "env TOKEN=… no-such-program https://host/mcp --header … -v --key=… x",
        ),
        ("http://me:secret@127.0.0.1:1/mcp?key=secret", "http://127.0.0.1:1/mcp"),
    ],
)
def test_secrets_are_not_shown(place, shown):
    with pytest.raises(MshError) as caught, McpServers([place], patience=2.0):
        pass
    assert shown in str(caught.value)
    assert "secret" not in str(caught.value)


def test_servers_end_with_the_program(tmp_path):
    """Also one that does not listen any more."""
    path = tmp_path / "pid"
    text = Path(mcp_numbers.__file__).read_text()
    slow = tmp_path / "slow.py"
    slow.write_text(
        f"import os, pathlib, time\npathlib.Path({str(path)!r}).write_text(str(os.getpid()))\n{text}\ntime.sleep(60)\n"
    )
    with McpServers([shlex.join([sys.executable, str(slow)])]):
        pid = int(path.read_text())
    assert not Path(f"/proc/{pid}").exists() or sys.platform != "linux"
