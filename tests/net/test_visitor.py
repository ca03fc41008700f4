"""Who visits, as seen through proxies, and what a visitor who is not a proxy could try."""

import pytest
from aiohttp.test_utils import make_mocked_request

from msh_mlx.errors import InputError
from msh_mlx.net.aiohttp_face import plain
from msh_mlx.net.visitor import Origin, Visitor, is_among, read_network

PROXIES = [read_network("127.0.0.1"), read_network("10.0.0.0/8"), read_network("fd00::/8")]


class Transport:
    """What is asked of a transport."""

    def __init__(self, peer, port):
        self._told = {"peername": (peer, 50_000), "sockname": ("127.0.0.1", port)}

    def get_extra_info(self, name, default=None):
        return self._told.get(name, default)


def visit(peer, headers, *, port=9998, proxies=PROXIES):
    request = make_mocked_request("GET", "/api/chat", headers=headers, transport=Transport(peer, port))
    return Visitor.of(plain(request, None), proxies)


@pytest.mark.parametrize(
    ("peer", "headers", "address"),
    [
        ("192.0.2.1", {}, "192.0.2.1"),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, "192.0.2.1"),
        ("::ffff:127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, "192.0.2.1"),  # on a socket for both
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1, 10.1.2.3"}, "192.0.2.1"),  # two proxies
        ("127.0.0.1", {"X-Forwarded-For": "6.6.6.6, 192.0.2.1, 10.1.2.3"}, "192.0.2.1"),  # what the client made up
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1, 192.0.2.1"}, "192.0.2.1"),
        ("127.0.0.1", {"X-Forwarded-For": "10.1.2.3"}, "10.1.2.3"),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1:1234"}, "192.0.2.1"),
        ("127.0.0.1", {"X-Forwarded-For": "[2001:db8::1]:1234"}, "2001:db8::1"),
        ("127.0.0.1", {"X-Forwarded-For": "2001:DB8::1"}, "2001:db8::1"),
        ("127.0.0.1", {"X-Forwarded-For": "unknown"}, "127.0.0.1"),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1, x"}, "127.0.0.1"),
        ("127.0.0.1", {"X-Forwarded-For": ""}, "127.0.0.1"),
        ("127.0.0.1", {"X-Forwarded-For": ","}, "127.0.0.1"),
        ("fd00::1", {"Forwarded": 'for="[2001:db8::1]:47", for=10.1.2.3;proto=https'}, "2001:db8::1"),
        ("127.0.0.1", {"Forwarded": "for=_hidden"}, "127.0.0.1"),
        (
            "127.0.0.1",
            {"Forwarded": 'for="x, for="192.0.2.1:1234"'},
            "192.0.2.1",
        ),  # a quote that its sender did not close
        ("127.0.0.1", {"Forwarded": 'For="192.0.2.1" ; proto=https'}, "192.0.2.1"),
        ("127.0.0.1", {"Forwarded": "for==6.6.6.6"}, "127.0.0.1"),
        # A proxy that writes the one header passes the other one on.
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=6.6.6.6;host=localhost"}, "192.0.2.1"),
        ("192.0.2.9", {"X-Forwarded-For": "6.6.6.6"}, "192.0.2.9"),  # nobody's proxy
        ("192.0.2.9", {"Forwarded": "for=127.0.0.1"}, "192.0.2.9"),
    ],
)
def test_the_address_is_the_last_that_is_not_a_trusted_proxys(peer, headers, address):
    assert visit(peer, {"Host": "localhost:9998", **headers}).address == address


def test_without_a_word_nobody_is_trusted_not_even_this_machine():
    visitor = visit(
        "127.0.0.1", {"Host": "localhost", "X-Forwarded-For": "6.6.6.6", "X-Forwarded-Host": "x"}, proxies=[]
    )
    assert (visitor.address, [target.name for target in visitor.targets]) == ("127.0.0.1", ["localhost"])
    assert visitor.speaker == "127.0.0.1"
    assert visit("127.0.0.1", {"Host": "localhost"}, proxies=[]).speaker == ""
    assert visit("127.0.0.1", {"Host": "localhost", "X-Forwarded-For": "6.6.6.6"}).speaker == ""


def fits(origin, headers, peer="127.0.0.1", **options):
    """Whether a page of `origin` is taken for one of the server's own."""
    page = Origin.parse(origin)
    return page is not None and any(target.may_be(page) for target in visit(peer, headers, **options).targets[:1])


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("http://localhost:9998", {"Host": "localhost:9998"}),
        ("https://[::1]:9998", {"Host": "[::1]:9998"}),
        ("https://moshi.example", {"Host": "moshi.example"}),  # Host $host
        ("https://moshi.example:8443", {"Host": "moshi.example"}),
        ("https://moshi.example", {"Host": "moshi.example:443"}),
        ("http://moshi.example", {"Host": "moshi.example:80"}),
        ("https://MOSHI.example", {"Host": "Moshi.Example"}),
        ("https://moshi.example:8443", {"Host": "moshi.example:8443"}),  # Host $http_host
        ("https://moshi.example", {"Host": "127.0.0.1:9998", "X-Forwarded-Host": "moshi.example"}),
        ("https://moshi.example:8443", {"Host": "127.0.0.1:9998", "X-Forwarded-Host": "moshi.example:8443"}),
        (
            "https://moshi.example",
            {"Host": "up", "X-Forwarded-Host": "moshi.example, inner", "X-Forwarded-Proto": "https"},
        ),
        ("https://moshi.example", {"Host": "up", "X-Forwarded-Host": "moshi.example", "X-Forwarded-Proto": "wss"}),
        ("https://moshi.example", {"Host": "up", "Forwarded": 'for=192.0.2.1;host="moshi.example";proto=https'}),
    ],
)
def test_pages_that_are_ours(origin, headers):
    assert fits(origin, headers)


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("null", {"Host": "localhost:9998"}),
        ("", {"Host": "localhost:9998"}),
        ("http://", {"Host": ""}),
        ("file://localhost", {"Host": "localhost"}),
        ("https://evil.example", {"Host": "localhost:9998"}),
        ("http://localhost:3000", {"Host": "localhost:9998"}),  # of another program on this machine
        ("http://localhost", {"Host": "localhost:9998"}),
        ("https://localhost.evil.example", {"Host": "localhost"}),
        ("https://localhost@evil.example", {"Host": "localhost"}),
        ("https://evil.example#localhost", {"Host": "localhost"}),
        ("https://moshi.example", {"Host": "127.0.0.1:9998"}),  # no Host line, and nothing told instead
        ("http://moshi.example", {"Host": "moshi.example", "X-Forwarded-Proto": "https"}),
        ("https://up", {"Host": "up", "X-Forwarded-Host": "moshi.example"}),
        (
            "https://evil.example",
            {"Host": "localhost:9998", "Forwarded": "host=evil.example", "X-Forwarded-For": "1.1.1.1"},
        ),
    ],
)
def test_pages_that_are_not(origin, headers):
    assert not fits(origin, headers)


def test_a_proxy_that_is_not_trusted_says_nothing_about_the_place():
    headers = {"Host": "localhost:9998", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    assert not fits("https://evil.example", headers, peer="192.0.2.1")
    assert not fits("https://evil.example", headers, proxies=[])


def test_host_is_among_the_places_whatever_is_forwarded():
    """A page that made its own name lead here can have the browser send any header but that one."""
    headers = {"Host": "evil.example", "X-Forwarded-Host": "localhost"}
    assert [target.name for target in visit("127.0.0.1", headers).targets] == ["localhost", "evil.example"]


@pytest.mark.parametrize("port", [80, 443])
def test_a_port_that_is_not_named_is_the_own_one_where_that_may_be(port):
    assert fits("http://localhost", {"Host": "localhost"}, port=port)
    assert fits("https://localhost", {"Host": "localhost"}, port=port)
    assert not fits("http://localhost:3000", {"Host": "localhost"}, port=port)


def test_networks():
    assert is_among("10.255.0.1", PROXIES)
    assert is_among("::ffff:10.0.0.1", PROXIES)
    assert is_among("fd12::1%eth0", PROXIES)
    assert not is_among("11.0.0.1", PROXIES)
    assert not is_among("", PROXIES)
    assert read_network("10.1.2.3/8") == read_network("10.0.0.0/8")
    for wrong in ("nginx", "10.0.0.0/33", ""):
        with pytest.raises(InputError, match=r"^--trusted-proxy .*\.$"):
            read_network(wrong)
