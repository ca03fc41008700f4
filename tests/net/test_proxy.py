"""The server behind nginx and Caddy: with the configurations of docs/proxy.md, and with others that people use."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import aiohttp
import pytest
from paths import ROOT
from talker import Talker
from test_server import FILE, digits, eventually, model, serving, upgraded
from yarl import URL

from msh_mlx.format import FRAME_SIZE
from msh_mlx.net.address import Address

__all__ = ["digits", "model"]

DOCS = ROOT / "docs" / "proxy.md"
PATIENCE = 10  # seconds for a proxy to start
# What the server is told for a proxy on this machine that is asked as 127.0.0.1.
OPTIONS = "--trusted-proxy", "127.0.0.1"


def documented(language):
    """The blocks of lines for a proxy: with a name of its own, and under a path."""
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


def program(name):
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if not found:
        if os.environ.get("MSH_REQUIRE_PROXY"):
            pytest.fail(f"{name} is not installed, though MSH_REQUIRE_PROXY wants it")
        pytest.skip(f"{name} is not installed; sh scripts/setup.sh proxy does that on Debian")
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@contextlib.contextmanager
def started(command, port, log):
    environment = os.environ | {name: str(log.parent) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{command[0]} did not start: {log.read_text()}")
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


@contextlib.contextmanager
def nginx(tmp_path, lines):
    """Nginx on a free port of the loopback, run by this user, with all its files in a folder."""
    command, port = program("nginx"), free_port()
    temporary = "".join(f"{name}_temp_path {name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid nginx.pid; error_log stderr; events {{ worker_connections 64; }}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port};\n{lines}\n}} }}\n"
    )
    log = tmp_path / "nginx.log"
    with started([command, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"], port, log) as url:
        yield url


@contextlib.contextmanager
def caddy(tmp_path, lines):
    command, port = program("caddy"), free_port()
    # No certificate for a name that is not ours, and no door for its operator.
    site = lines.replace("moshi.example", f"http://127.0.0.1:{port}")
    (tmp_path / "Caddyfile").write_text(f"{{\n admin off\n}}\n{site}")
    with started(
        [command, "run", "--config", "Caddyfile", "--adapter", "caddyfile"], port, tmp_path / "caddy.log"
    ) as url:
        yield url


PROXIES = {"nginx": nginx, "caddy": caddy}


def to(server, lines):
    """Lines that lead to our server; the port is all that differs from what a reader would have."""
    assert "127.0.0.1:9998" in lines
    return lines.replace("127.0.0.1:9998", f"127.0.0.1:{server.port}")


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text('<title>x</title><script src="./part.js"></script>')
    (folder / "part.js").write_bytes(b"//" + b"x" * 300_000)  # more than a proxy keeps in memory
    return folder


@contextlib.asynccontextmanager
async def client(host=None):
    """A client of an address of its own, where the loopback has several."""
    local = (host, 0) if host and sys.platform == "linux" else None
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=local)) as http:
        yield http


async def visit(url, digits):
    """Do what a browser does: the page, its part beside it, the websocket beside that; return what is heard."""
    async with client("127.0.0.3") as http:
        async with http.get(url) as answer:
            assert answer.status == 200
            assert "<title>" in await answer.text()
            place = str(answer.url)  # after what the proxy made of it
        async with http.get(URL(place).join(URL("./part.js"))) as answer:
            assert (answer.status, len(await answer.read())) == (200, 300_002)
    origin = str(URL(place).origin())
    talker = Talker(place.rstrip("/"), headers={"Origin": origin}, **FILE)
    async with talker:
        return await talker.converse(digits)


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize(("block", "path"), [(0, "/"), (1, "/moshi/"), (1, "/moshi")])
async def test_the_documented_lines_work_as_they_stand(model, digits, tmp_path, page, proxy, block, path):
    short = digits[: 5 * FRAME_SIZE]
    async with serving(model, *OPTIONS, static=page) as server:
        with PROXIES[proxy](tmp_path, to(server, documented(proxy)[block])) as url:
            heard = await visit(f"{url}{path}", short)
    assert len(heard.pcm) == 5
    assert not heard.error


@pytest.mark.parametrize("path", ["", "/", "/api/chat"])
async def test_our_client_knows_base_paths(model, digits, tmp_path, path):
    async with serving(model, *OPTIONS) as server:
        with nginx(tmp_path, to(server, documented("nginx")[1])) as url:
            address = Address.from_url(f"{url}/moshi{path}", {})
            async with aiohttp.ClientSession() as http, http.ws_connect(address.url()) as ws:
                while (message := await ws.receive(PATIENCE)).data[:1] != bytes([0]):
                    assert message.type is aiohttp.WSMsgType.BINARY


LINES = """
location / {{
    proxy_pass http://127.0.0.1:9998;
    {}
}}
"""
UPGRADE = 'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'


@pytest.mark.parametrize(
    ("options", "lines", "status", "said"),
    [
        ((), UPGRADE + "proxy_set_header Host $host;", 426, "This address is for websockets."),  # without its port
        ((), UPGRADE + "proxy_set_header Host $http_host;", 426, "This address is for websockets."),
        (
            (),
            UPGRADE,
            403,
            "Pages of 'http://127.0.0.2:{port}' may not use this server, which was asked for as '127.0.0.1'",
        ),
        (("--allow-origin", "http://127.0.0.2:{port}"), UPGRADE, 426, "This address is for websockets."),
        (OPTIONS, UPGRADE + "proxy_set_header X-Forwarded-Host $http_host;", 426, "This address is for websockets."),
        (
            (),
            "proxy_set_header Host moshi.example;" + UPGRADE,
            421,
            "the name 'moshi.example'; start it with --allow-host",
        ),
        (("--token", "s3cret"), UPGRADE + "proxy_set_header Host $host;", 401, "This server needs a token."),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="of Linux: a loopback with several addresses")
async def test_what_the_websocket_was_refused_for_a_plain_request_is_told(
    model, tmp_path, options, lines, status, said
):
    """Under another address than the server's own, as a name would be."""
    port = free_port()  # of nginx; an option of the server names it
    options = [option.format(port=port) for option in options]
    async with serving(model, *options) as server, aiohttp.ClientSession() as http:
        with nginx(tmp_path, to(server, LINES.format(lines)) + f"listen 127.0.0.2:{port};"):
            url, headers = f"http://127.0.0.2:{port}/api/chat", {"Origin": f"http://127.0.0.2:{port}"}
            async with http.post(url, headers=headers) as answer:
                assert said.format(port=port) in await answer.text()
            assert answer.status == await upgraded(http, url, headers) == status


async def test_no_websocket_comes_through_without_its_lines(model, tmp_path):
    async with serving(model) as server, aiohttp.ClientSession() as http:
        with nginx(tmp_path, to(server, LINES.format("proxy_set_header Host $http_host;"))) as url:
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await http.ws_connect(f"{url}/api/chat")
            async with http.post(f"{url}/api/chat", headers={"Origin": url}) as answer:
                assert (error.value.status, answer.status, server.errors()["upgrade"]) == (426, 426, 1)


async def test_a_path_that_is_taken_away_with_its_slash(model, digits, tmp_path, page):
    """`location /moshi` with `proxy_pass …/`, a slash short: what is asked for begins with two."""
    lines = documented("nginx")[1].replace("location /moshi/", "location /moshi")
    async with serving(model, *OPTIONS, static=page) as server:
        with nginx(tmp_path, to(server, lines)) as url:
            heard = await visit(f"{url}/moshi/", digits[: 3 * FRAME_SIZE])
    assert len(heard.pcm) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux: a loopback with several addresses")
async def test_visitors_behind_the_proxy_are_counted_apart(model, tmp_path):
    options = *OPTIONS, "--max-per-address", "1"
    async with serving(model, *options) as server, contextlib.AsyncExitStack() as stack:
        url = stack.enter_context(nginx(tmp_path, to(server, documented("nginx")[0])))

        async def come(host):
            http = await stack.enter_async_context(client(host))
            # One that is made up does not help.
            headers = {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1"}
            return await stack.enter_async_context(http.ws_connect(f"{url}/api/chat", headers=headers))

        async def first_of(ws, kind):
            while (message := await ws.receive(PATIENCE)).type is aiohttp.WSMsgType.BINARY:
                if message.data[0] == kind:
                    return message.data[1:].decode()
            return None

        first, other = await come("127.0.0.3"), await come("127.0.0.4")
        assert await first_of(first, 0) is not None
        again = await come("127.0.0.3")
        assert "from your address" in await first_of(again, 5)
        await first.close()
        assert await first_of(other, 0) is not None
        await other.close()
        await eventually(lambda: len(server.log) == 3)
    assert sorted((line["address"], line["end"]) for line in server.log) == [
        ("127.0.0.3", "closed"),
        ("127.0.0.3", "per_address"),
        ("127.0.0.4", "closed"),
    ]
