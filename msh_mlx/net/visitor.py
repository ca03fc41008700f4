"""Find out who sends a request, and under which name of the server, directly or through proxies."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import InputError
from .address import ip_address
from .exchange import Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
# The headers in which proxies describe their clients: three in common use, and that of RFC 7239.
_FORWARDED = "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"
# A pair in the last of them: its value is a token or quoted, and proxies forget to quote addresses with a port. No value that
# means something has a comma; where a quote is not closed, the next proxy's part must not be taken for a part of it.
_PAIR = re.compile(
    r"""[ \t]*([!#$%&'*+.^_`|~\w-]+)=("(?:[^"\\,]|\\[^,])*"|[!#$%&'*+.^_`|~\w:\[\]-]+)[ \t]*""", re.ASCII
)


@dataclass(frozen=True)
class Origin:
    """An origin: the scheme, the name and the port under which a server is reached."""

    scheme: str | None  # "http" or "https", or None if it is not known
    name: str  # a name, or an address without brackets, in lower case
    port: int | None  # None if it is not known; 0 is the scheme's default port, whatever the scheme is

    @classmethod
    def parse(cls, origin: str) -> Origin | None:
        """Read an origin such as `https://example.org:8443`; return None if `origin` is something else, such as "null"."""
        scheme, _, host = origin.lower().partition("://")
        made = cls.of_host(host, scheme, port=_DEFAULT_PORTS.get(scheme))
        return made if scheme in _DEFAULT_PORTS and made.name else None

    @classmethod
    def of_host(cls, host: str, scheme: str | None = None, *, port: int | None = None) -> Origin:
        """Read a Host header; `port` is used if it does not name one."""
        match = _HOST.fullmatch(host.strip())
        if not match:
            return cls(scheme, host.lower(), port)
        return cls(scheme, match[1].strip("[]").lower(), int(match[2]) if match[2] else port)

    def may_be(self, origin: Origin) -> bool:
        """Return whether a page of `origin` may come from this server, as far as scheme and port are known."""
        port = _DEFAULT_PORTS[origin.scheme or "http"] if self.port == 0 else self.port
        return self.name == origin.name and port in (None, origin.port) and self.scheme in (None, origin.scheme)

    @property
    def is_address(self) -> bool:
        """Return whether the name is an IP address."""
        return ip_address(self.name) is not None


@dataclass(frozen=True)
class Visitor:
    """The sender of a request."""

    address: str  # the sender's IP address; behind a proxy that is not trusted, it is the proxy's
    # The names under which the server was asked for: first, if trusted proxies say so, the name that their client used, and
    # then the Host header.
    targets: tuple[Origin, ...]
    speaker: str  # the address of a proxy that speaks for a client but is not trusted, or ""

    @classmethod
    def of(cls, request: Request, proxies: Iterable[Network]) -> Visitor:
        """Return the sender of a request; `proxies` are trusted to describe their clients.

        The Host header is always among the targets. If a page has led the browser here under another name (DNS rebinding), this
        header shows that name, and the page cannot change it.
        """
        peer = _plain(request.peer)
        tells = any(name in request.headers for name in _FORWARDED)
        trusted = tells and is_among(peer, proxies)
        told = _told(request) if trusted else {}
        scheme = {"http": "http", "ws": "http", "https": "https", "wss": "https"}.get(told.get("proto", ""))
        targets = []
        if told.get("host"):
            targets.append(Origin.of_host(told["host"], scheme))
        if (host := request.headers.get("host")) is not None:
            # A browser names the port, unless it is the scheme's default. If ours is not a default port and the header names
            # none, a proxy has left it out, and only the name can be compared.
            targets.append(Origin.of_host(host, scheme, port=0 if request.port in _DEFAULT_PORTS.values() else None))
        address = _first_unknown(peer, told.get("for", ""), proxies)
        return cls(address, tuple(targets), peer if tells and not trusted else "")


def read_network(text: str) -> Network:
    """Read an address, or a network such as 10.0.0.0/8; raise InputError if `text` is neither."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InputError(
            f"--trusted-proxy {text} is not an address",
            "give the proxy's, such as 127.0.0.1, or a network, such as 10.0.0.0/8",
        ) from None


def is_among(address: str, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    number = ip_address(address)
    return number is not None and any(number in network for network in networks)


def _told(request: Request) -> Mapping[str, str]:
    """Return what a trusted proxy says of its client, under the keys `for`, `host` and `proto`.

    `Forwarded` counts only if the other headers are missing: a proxy that writes those passes on a client's own `Forwarded`.
    """
    names = {"for": "x-forwarded-for", "host": "x-forwarded-host", "proto": "x-forwarded-proto"}
    told = {key: request.headers.get(name, "") for key, name in names.items()}
    if not any(told.values()):
        steps = read_forwarded(request.headers.get("forwarded", ""))
        told = {key: ",".join(step.get(key, "") for step in steps) for key in names}
    # Each proxy appends its value, so the first value is about the client.
    return {
        "for": told["for"],
        "host": told["host"].partition(",")[0].strip(),
        "proto": told["proto"].partition(",")[0].strip().lower(),
    }


def read_forwarded(text: str) -> list[dict[str, str]]:
    """Read the header `Forwarded` (RFC 7239): a mapping for each proxy, with names in lower case and values without quotes.

    What is not as it should be ends a proxy's mapping, and is passed over up to the next comma.
    """
    steps: list[dict[str, str]] = [{}]
    at = 0
    while at < len(text):
        if match := _PAIR.match(text, at):
            value = match[2]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            steps[-1][match[1].lower()] = value
            at = match.end()
        if text[at : at + 1] == ",":
            steps.append({})
        elif text[at : at + 1] != ";" and at < len(text):
            at = text.find(",", at)
            if at < 0:
                break
            steps.append({})
        at += 1
    return steps


def _first_unknown(peer: str, told: str, proxies: Iterable[Network]) -> str:
    """Go back from proxy to proxy, and return the first address that is not trusted: it may have invented those before."""
    steps = told.split(",") if told else []
    address = peer
    while steps and is_among(address, proxies):
        step = _plain(steps.pop().strip().strip('"'))
        if not step:
            break
        address = step
    return address


def _plain(text: str) -> str:
    """Return an IP address without port, brackets and zone, an IPv4-mapped one as IPv4; return "" if `text` is not one."""
    for candidate in (text, Origin.of_host(text).name):
        if number := ip_address(candidate):
            return str(number)
    return ""
