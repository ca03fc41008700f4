"""The address of a conversation with a server."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from yarl import URL

from ..errors import InputError

HOST, PORT = "127.0.0.1", 9998
PATH = "/api/chat"


@dataclass(frozen=True)
class Address:
    """The address of a conversation, with its parameters. `str` gives host and port only, without the token."""

    host: str = HOST
    port: int = PORT
    secure: bool = False
    path: str = PATH
    query: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, host: str, port: int, *, secure: bool, query: Mapping[str, str]) -> Address:
        """Return the address of a host, given by name or IP address; an IPv6 address may have brackets.

        Raises
        ------
        InputError
            `host` is neither a name nor an IP address.
        """
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or any(c in "/?#@[]\\" or c.isspace() or not c.isprintable() for c in bare):
            raise InputError(f"{host!r} is not the name of a host", "a whole address goes with --url")
        address = cls(bare, port, secure, query=query)
        address.url()
        return address

    @classmethod
    def from_url(cls, url: str, query: Mapping[str, str]) -> Address:
        """Read an address that begins with ws://, wss://, http:// or https://.

        Parameters in `query` override those in the address. `/api/chat` is added if the path does not end with it.

        Raises
        ------
        InputError
            `url` is not such an address, or has a user's name in it.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        # Do not repeat the address itself: it may hold a token.
        if not host or parts.scheme not in ("ws", "wss", "http", "https"):
            raise InputError("--url is not a whole address", "give one such as wss://moshi.example:9998")
        if parts.username is not None or parts.password is not None:
            raise InputError("--url has a user's name in it, which these servers do not know", "leave it out")
        secure = parts.scheme in ("wss", "https")
        path = parts.path.rstrip("/")
        path = path if path.endswith(PATH) else path + PATH
        values = {**dict(parse_qsl(parts.query)), **query}
        address = cls(host, (443 if secure else 80) if port is None else port, secure, path, values)
        address.url()
        return address

    def url(self) -> URL:
        """Return the whole address with its parameters; raise InputError if the parts do not make one."""
        try:
            return URL.build(
                scheme="wss" if self.secure else "ws",
                host=self.host,
                port=self.port,
                path=self.path,
                query=self.query,
            )
        except ValueError:  # as for Unicode or numbers that an address cannot have
            raise InputError(f"{self.host!r} is not the name of a host", "give its name or number") from None

    def __str__(self) -> str:
        return server_name(self.host, self.port)


def server_name(host: str, port: int) -> str:
    """Return HOST:PORT, in lower case, with brackets around an IPv6 address."""
    host = host.lower()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address without its zone, an IPv4-mapped one as IPv4; return None if `text` is not one."""
    try:
        number = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return mapped or number
