"""Conversations through a proxy, which knows a host that nobody else does."""

import asyncio
import base64
import socket
import threading

import pytest
from published import Server
from test_pipeline import eventually
from test_remote import PATIENT, Ours, Run, over_opus, tone, unused_port

from msh_mlx.errors import InputError, UnansweredError
from msh_mlx.net.address import Address
from msh_mlx.net.remote import Remote
from msh_mlx.net.tls import folder_fingerprint, server_context
from msh_mlx.net.tunnel import Proxy

HOST = "moshi.example"  # in no DNS


class Tunnels:
    """A proxy that knows CONNECT and nothing else, on a thread of its own; `HOST` is this machine.

    `answer` is what it says in place of letting somebody through; `heads` are the requests.
    """

    def __init__(self, answer=b""):
        self._answer = answer
        self.heads = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(PATIENT)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENT)
        assert not self._thread.is_alive()

    async def _serve(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._tunnel, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _tunnel(self, reader, writer):
        try:
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            method, server, _ = self.heads[-1].partition("\r\n")[0].split(" ")
            host, _, port = server.rpartition(":")
            if self._answer or method != "CONNECT" or host != HOST:
                writer.write(self._answer or b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
                return
            there, back = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _pass_on(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


class Through(Run):
    """A conversation with a host that is behind the proxy."""

    def __init__(self, port, host=HOST, **options):
        super().__init__(port, **options)
        address = Address(host, port, options.get("secure", False))
        self.remote = Remote(address, self.tape, self.reel, self.events.append)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("name", ["own", "ALL_PROXY"])
def test_a_conversation_through_a_proxy(secure, name, environment, tmp_path):
    """Websockets with TLS and without go through a tunnel, the certificate is seen through it, and the password is given."""
    context = server_context(tmp_path / "tls") if secure else None
    ours = Ours()
    with Server(ours, ssl=context) as server, Tunnels() as proxy:
        name = ("HTTPS_PROXY" if secure else "HTTP_PROXY") if name == "own" else name
        environment.setenv(name, f"http://me:h%40sh@127.0.0.1:{proxy.port}")
        with Through(server.port, secure=secure) as run:
            run.ready()
            run.say(tone(3))
            run.answered(3)
        assert len(server.requests) == 1
        assert server.requests[0].host == f"{HOST}:{server.port}"
        if secure:
            (said,) = run.notices("certificate")
            assert folder_fingerprint(tmp_path / "tls") in said
    assert (run.reel.frames == over_opus(over_opus(tone(3)))).all()
    assert proxy.heads
    for head in proxy.heads:
        assert head.startswith(f"CONNECT {HOST}:{server.port} HTTP/1.1\r\n")
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:h@sh').decode()}\r\n" in head


def test_another_certificate_behind_a_proxy_is_not_taken(environment, tmp_path):
    port = unused_port()
    with Tunnels() as proxy:
        environment.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        with Server(Ours(), ssl=server_context(tmp_path / "one"), port=port), Through(port, secure=True) as run:
            run.ready()
        with Server(Ours(), ssl=server_context(tmp_path / "two"), port=port) as other:
            with Through(port, secure=True) as run:
                assert isinstance(run.failed(), InputError)
            assert not other.requests


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not let us through to {server} (403 Forbidden); if the server can"),
        (
            b"HTTP/1.0 407 Who are you\r\n\r\n",
            "needs a name and a password (407 Who are you); give them as http://NAME",
        ),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer as a proxy does; if the server can be reached"),
        (b"\0", "does not answer as a proxy does; "),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_a_proxy_that_refuses(answer, said, secure, environment):
    with Tunnels(answer) as proxy:
        environment.setenv("HTTPS_PROXY" if secure else "HTTP_PROXY", f"http://me:hush@127.0.0.1:{proxy.port}")
        with Through(9998, secure=secure) as run:
            error = run.failed()
    assert isinstance(error, UnansweredError)
    assert str(error).startswith(f"The proxy 127.0.0.1:{proxy.port} {said.format(server=f'{HOST}:9998')}")
    assert "hush" not in str(error)
    assert len(proxy.heads) == 1


def test_a_proxy_that_is_not_there(environment):
    port = unused_port()
    environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    with Through(9998) as run:
        error = str(run.failed())
    assert error.startswith(
        f"The proxy 127.0.0.1:{port} on the way to {HOST}:9998 cannot be reached (Connection refused)"
    )
    environment.setenv("HTTP_PROXY", "http://no-such-host.invalid:1")
    with Through(9998) as run:
        error = str(run.failed())
    assert error.startswith(
        f"The proxy no-such-host.invalid:1 on the way to {HOST}:9998 cannot be reached (there is no"
    )


def test_a_proxy_that_says_nothing_does_not_hold_up_the_end(environment):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with Through(9998) as run:
            eventually(lambda: run.events)


def test_this_machine_is_reached_directly(environment):
    environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    for host in ("127.0.0.1", "localhost"):
        with Server(Ours()) as server, Through(server.port, host) as run:
            run.ready()


@pytest.mark.parametrize(
    ("host", "secure", "variables", "expected"),
    [
        ("a.example", True, {}, None),
        ("a.example", True, {"HTTPS_PROXY": "http://p:1"}, "p:1"),
        ("a.example", False, {"HTTPS_PROXY": "http://p:1"}, None),
        ("a.example", False, {"http_proxy": "p:1"}, "p:1"),
        ("a.example", False, {"HTTP_PROXY": "http://p"}, "p:80"),
        ("a.example", True, {"ALL_PROXY": "http://[::1]:2"}, "[::1]:2"),
        ("a.example", True, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, None),
        ("a.example", True, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.example:9998"}, None),
        ("a.example", True, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "b.example"}, "p:1"),
        ("a.example", True, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ("localhost", True, {"HTTPS_PROXY": "http://p:1"}, None),
        ("x.localhost.", True, {"HTTPS_PROXY": "http://p:1"}, None),
        ("127.3.2.1", True, {"HTTPS_PROXY": "http://p:1"}, None),
        ("::1", True, {"HTTPS_PROXY": "http://p:1"}, None),
        ("192.0.2.1", True, {"HTTPS_PROXY": "http://p:1"}, "p:1"),
    ],
)
def test_which_proxy(host, secure, variables, expected, environment):
    for name, value in variables.items():
        environment.setenv(name, value)
    proxy = Proxy.on_the_way(host, 9998, secure=secure)
    assert (proxy and str(proxy)) == expected


@pytest.mark.parametrize("address", ["socks5://me:hush@p:1", "https://p:1", "http://p:x", "http://", "http://[::1"])
def test_what_is_not_a_proxy(address, environment):
    environment.setenv("HTTPS_PROXY", address)
    with Through(9998, secure=True) as run:
        error = run.failed()
    assert isinstance(error, InputError)
    assert str(error).startswith("The proxy that HTTPS_PROXY names is ")
    assert str(error).endswith("; give one such as http://proxy.example:3128.")
    assert "hush" not in str(error)
