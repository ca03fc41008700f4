"""Where a conversation with a server is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from yarl import URL

from ..errors import InputError
from .tls import server_name

HOST, PORT = "127.0.0.1", 9998
PATH = "/api/chat"


@dataclass(frozen=True)
class Address:
    """Where a conversation is held, and with which parameters; as text it is host and port, without the token."""

    host: str = HOST
    port: int = PORT
    secure: bool = False
    path: str = PATH
    query: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, host: str, port: int, *, secure: bool, query: Mapping[str, str]) -> Address:
        """Check a host's name or number, an IPv6 one with or without brackets.

        Raises
        ------
        InputError
            It is something else.
        """
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or any(c in "/?#@[]\\" or c.isspace() or not c.isprintable() for c in bare):
            raise InputError(f"{host!r} is not the name of a host; a whole address goes with --url.")
        address = cls(bare, port, secure, query=query)
        address.url()
        return address

    @classmethod
    def from_url(cls, url: str, query: Mapping[str, str]) -> Address:
        """Read an address that begins with ws://, wss://, http:// or https://; `query` goes before the parameters in it.

        Without `/api/chat` at its end, that is added.

        Raises
        ------
        InputError
            It is no such address.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        # The address itself is not repeated: there may be a token in it.
        if not host or parts.scheme not in ("ws", "wss", "http", "https"):
            raise InputError("--url is not a whole address; give one such as wss://moshi.example:9998.")
        if parts.username is not None or parts.password is not None:
            raise InputError("--url has a user's name in it, which these servers do not know; leave it out.")
        secure = parts.scheme in ("wss", "https")
        path = parts.path.rstrip("/")
        path = path if path.endswith(PATH) else path + PATH
        values = {**dict(parse_qsl(parts.query)), **query}
        address = cls(host, (443 if secure else 80) if port is None else port, secure, path, values)
        address.url()
        return address

    def url(self) -> URL:
        """Return the whole address, with the parameters; raises InputError if it cannot be one."""
        try:
            return URL.build(
                scheme="wss" if self.secure else "ws",
                host=self.host,
                port=self.port,
                path=self.path,
                query=self.query,
            )
        except ValueError:  # of Unicode, of numbers
            raise InputError(f"{self.host!r} is not the name of a host; give its name or number.") from None

    def __str__(self) -> str:
        return server_name(self.host, self.port)
