"""Reach a server through an HTTP proxy that the environment or the system names: a tunnel made with CONNECT."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.client_proto import ResponseHandler

from ..errors import InputError, UnansweredError
from ..system.words import shortened
from .address import ip_address, server_name

_LONGEST_ANSWER = 1 << 14  # bytes


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy. `str` gives its host and port, without the password."""

    host: str
    port: int
    authorization: str = ""  # the value of the header `Proxy-Authorization`

    @classmethod
    def on_the_way(cls, host: str, port: int, *, secure: bool) -> Proxy | None:
        """Return the proxy for a host, or None if the connection is direct.

        HTTPS_PROXY (if `secure`) or HTTP_PROXY names the proxy, else ALL_PROXY; without these variables macOS's settings count.
        Connections to this machine and to the hosts in NO_PROXY are direct.

        Raises
        ------
        InputError
            The variable does not hold the address of a proxy that speaks HTTP.
        """
        proxies = getproxies()
        address = proxies.get("https" if secure else "http") or proxies.get("all")
        if not address or is_here(host) or proxy_bypass(server_name(host, port)) or proxy_bypass(host):
            return None
        what = f"The proxy that {'HTTPS_PROXY' if secure else 'HTTP_PROXY'} names"
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            name, number = parts.hostname, parts.port or 80
        except ValueError:
            raise InputError(f"{what} is not an address", _EXAMPLE) from None
        if parts.scheme != "http" or not name:
            raise InputError(f"{what} is not one of HTTP", _EXAMPLE)
        authorization = ""
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = f"Basic {base64.b64encode(user.encode()).decode()}"
        return cls(name, number, authorization)

    def __str__(self) -> str:
        return server_name(self.host, self.port)

    async def connect(self, host: str, port: int) -> socket.socket:
        """Return a socket that is connected to `host` through the proxy; an IPv6 address has no brackets.

        Raises
        ------
        UnansweredError
            The proxy cannot be reached, refuses the connection, or does not answer as a proxy.
        """
        server = server_name(host, port)
        loop = asyncio.get_running_loop()
        lines = [f"CONNECT {server} HTTP/1.1", f"Host: {server}"]
        if self.authorization:
            lines.append(f"Proxy-Authorization: {self.authorization}")
        with contextlib.ExitStack() as opened:
            tunnel = opened.enter_context(await self._reach(server))
            try:
                await loop.sock_sendall(tunnel, "".join(f"{line}\r\n" for line in [*lines, ""]).encode())
                answer = b""
                # Read byte by byte: the bytes behind the proxy's answer come from the server.
                while not answer.endswith(b"\r\n\r\n") and len(answer) < _LONGEST_ANSWER:
                    if not (byte := await loop.sock_recv(tunnel, 1)):
                        break
                    answer += byte
            except OSError as error:
                raise UnansweredError(f"The proxy {self} broke off ({reason(error)})", _OTHERWISE) from None
            version, _, status = answer.partition(b"\r\n")[0].decode("latin-1").partition(" ")
            if not version.startswith("HTTP/1.") or not status.startswith("2"):
                raise self._refusal(server, version, status)
            opened.pop_all()
            return tunnel

    async def _reach(self, server: str) -> socket.socket:
        loop = asyncio.get_running_loop()
        why = "there is no such host"
        with contextlib.suppress(socket.gaierror):
            for family, kind, protocol, _, address in await loop.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM
            ):
                tunnel = socket.socket(family, kind, protocol)
                tunnel.setblocking(False)
                try:
                    await loop.sock_connect(tunnel, address)
                except OSError as error:
                    tunnel.close()
                    why = reason(error)
                except BaseException:
                    tunnel.close()
                    raise
                else:
                    return tunnel
        raise UnansweredError(f"The proxy {self} on the way to {server} cannot be reached ({why})", _OTHERWISE)

    def _refusal(self, server: str, version: str, status: str) -> UnansweredError:
        if not version.startswith("HTTP/1.") or not status:
            return UnansweredError(f"The proxy {self} does not answer as a proxy does", _OTHERWISE)
        said = shortened(status, 80)
        if status.startswith("407"):
            return UnansweredError(
                f"The proxy {self} needs a name and a password ({said})", f"give them as http://NAME:PASSWORD@{self}"
            )
        return UnansweredError(f"The proxy {self} does not let us through to {server} ({said})", _OTHERWISE)


_EXAMPLE = "give one such as http://proxy.example:3128"
_OTHERWISE = "if the server can be reached without it, name it in NO_PROXY"


def reason(error: BaseException) -> str:
    """Return the system's reason in a few words. The whole message is not used: it may hold the address, with a token."""
    while isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__


def is_here(host: str) -> bool:
    """Return whether a host is this machine, which a proxy cannot reach for us."""
    number, name = ip_address(host), host.rstrip(".").lower()
    return number.is_loopback if number else name == "localhost" or name.endswith(".localhost")


class ProxyConnector(aiohttp.TCPConnector):
    """Makes aiohttp's connections through a proxy. aiohttp itself tunnels only https; a websocket always needs a tunnel."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    async def _create_connection(self, req: aiohttp.ClientRequest, traces: Any, timeout: Any) -> ResponseHandler:
        host, port = req.url.raw_host or "", req.url.port or 0
        tunnel = await self._proxy.connect(host, port)
        context = self._get_ssl_context(req)
        name = host if context else None
        try:
            transport, protocol = await self._wrap_existing_connection(
                self._factory, req=req, timeout=timeout, sock=tunnel, ssl=context, server_hostname=name
            )
        except BaseException:
            tunnel.close()
            raise
        if fingerprint := self._get_fingerprint(req):
            fingerprint.check(transport)
        return protocol
