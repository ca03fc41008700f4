"""Who asks the server for something, and under which name he knows it, be there proxies between them or not."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from ..errors import InputError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
# What proxies say about whom they speak for, as most of them do, and as RFC 7239 has it.
_FORWARDED = "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"


@dataclass(frozen=True)
class Origin:
    """Where a server is said to be.

    Attributes
    ----------
    scheme
        "http" or "https"; None is not known.
    name
        A name, or an address without brackets, in small letters.
    port
        None is not known; 0 is the scheme's own, whichever scheme that is.
    """

    scheme: str | None
    name: str
    port: int | None

    @classmethod
    def parse(cls, origin: str) -> Origin | None:
        """Read an origin such as `https://example.org:8443`; None if it is none, as "null" is not."""
        scheme, _, host = origin.lower().partition("://")
        place = cls.of_host(host, scheme, port=_DEFAULT_PORTS.get(scheme))
        return place if scheme in _DEFAULT_PORTS and place.name else None

    @classmethod
    def of_host(cls, host: str, scheme: str | None = None, *, port: int | None = None) -> Origin:
        """Read a Host header; `port` is for one that names none."""
        match = _HOST.fullmatch(host.strip())
        if not match:
            return cls(scheme, host.lower(), port)
        return cls(scheme, match[1].strip("[]").lower(), int(match[2]) if match[2] else port)

    def may_be(self, origin: Origin) -> bool:
        """Tell whether a page of `origin` may come from here, as far as it is known where that is."""
        port = _DEFAULT_PORTS[origin.scheme or "http"] if self.port == 0 else self.port
        return self.name == origin.name and port in (None, origin.port) and self.scheme in (None, origin.scheme)

    @property
    def is_address(self) -> bool:
        """Whether the name is a number."""
        return _address(self.name) is not None


@dataclass(frozen=True)
class Visitor:
    """What is known of a request's sender.

    Attributes
    ----------
    address
        His, or that of the last proxy that is not to be trusted.
    places
        As what the server was asked: the Host header; before it, if trusted proxies tell, what the first of them was asked as.
    speaker
        A proxy that speaks for somebody else, though nobody said that it is to be trusted; "" if there is none.
    """

    address: str
    places: tuple[Origin, ...]
    speaker: str

    @classmethod
    def of(cls, request: web.BaseRequest, proxies: Iterable[Network]) -> Visitor:
        """Look at a request that came over a socket, or through `proxies`, whose word counts.

        Host is among the places in any case: it is what a browser that was led here under another name (DNS rebinding) says
        of it, whatever else its page lets it say.
        """
        peer = _plain(request.remote or "")
        tells = any(name in request.headers for name in _FORWARDED)
        trusted = tells and is_among(peer, proxies)
        told = _told(request) if trusted else {}
        scheme = {"http": "http", "ws": "http", "https": "https", "wss": "https"}.get(told.get("proto", ""))
        places = []
        if told.get("host"):
            places.append(Origin.of_host(told["host"], scheme))
        if (host := request.headers.get("Host")) is not None:
            # A browser names the port, unless it is the scheme's own. Where ours is another one and none is named, a proxy
            # has left it out, and only the name can be compared.
            places.append(
                Origin.of_host(host, scheme, port=0 if _own_port(request) in _DEFAULT_PORTS.values() else None)
            )
        address = _first_unknown(peer, told.get("for", ""), proxies)
        return cls(address, tuple(places), peer if tells and not trusted else "")


def read_network(text: str) -> Network:
    """Read an address, or a network such as 10.0.0.0/8; raises InputError if it is neither."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InputError(
            f"--trusted-proxy {text} is no address; give the proxy's, such as 127.0.0.1, or a network, such as 10.0.0.0/8."
        ) from None


def is_among(address: str, networks: Iterable[Network]) -> bool:
    """Tell whether an address is in one of the networks."""
    number = _address(address)
    return number is not None and any(number in network for network in networks)


def _told(request: web.BaseRequest) -> Mapping[str, str]:
    """Return what a trusted proxy tells, by `for`, `host` and `proto`.

    `Forwarded` counts only alone: a proxy that writes the other ones passes on whatever the client calls by this name.
    """
    names = {"for": "X-Forwarded-For", "host": "X-Forwarded-Host", "proto": "X-Forwarded-Proto"}
    told = {key: ",".join(request.headers.getall(name, ())) for key, name in names.items()}
    if not any(told.values()):
        steps = request.forwarded
        told = {key: ",".join(step.get(key, "") for step in steps) for key in names}
    # Each proxy adds what it has heard: the first one heard the client.
    return {
        "for": told["for"],
        "host": told["host"].partition(",")[0].strip(),
        "proto": told["proto"].partition(",")[0].strip().lower(),
    }


def _first_unknown(peer: str, told: str, proxies: Iterable[Network]) -> str:
    """Go back from proxy to proxy to the first that is not to be trusted: what comes before, he may have made up."""
    steps = told.split(",") if told else []
    address = peer
    while steps and is_among(address, proxies):
        step = _plain(steps.pop().strip().strip('"'))
        if not step:
            break
        address = step
    return address


def _plain(text: str) -> str:
    """Return an address without port, brackets and zone, an IPv4 one as such; "" if it is none."""
    for candidate in (text, Origin.of_host(text).name):
        if number := _address(candidate):
            return str(number)
    return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        number = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return mapped or number


def _own_port(request: web.BaseRequest) -> int | None:
    name = request.transport.get_extra_info("sockname") if request.transport else None
    return name[1] if isinstance(name, tuple) else None
