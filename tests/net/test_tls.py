"""Certificates, over real sockets on the loopback."""

import asyncio
import contextlib
import ipaddress
import ssl
import stat
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from msh_mlx.errors import InputError
from msh_mlx.net.address import server_name
from msh_mlx.net.tls import (
    fingerprint,
    folder_fingerprint,
    known_file,
    make_pair,
    remember,
    server_context,
)

LIMIT = 10  # seconds, against hanging


@contextlib.asynccontextmanager
async def listening(context):
    """A server that only shakes hands; yields its port."""
    server = await asyncio.start_server(lambda _, writer: writer.write(b"HTTP/1.1 400"), "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def shake(context, client, name="localhost"):
    """Shake hands; return the TLS version and the certificate as the client sees it."""

    async def connect():
        async with listening(context) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
            tls = writer.get_extra_info("ssl_object")
            seen = tls.version(), tls.getpeercert(binary_form=True)
            writer.transport.abort()
            return seen

    return asyncio.run(asyncio.wait_for(connect(), LIMIT))


def write_pair(folder, key=None, *, begin=-10, end=10, password=None):
    """A pair from elsewhere, valid between so many days from now."""
    folder.mkdir(exist_ok=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + timedelta(days=begin))
        .not_valid_after(now + timedelta(days=end))
        .sign(key, hashes.SHA256())
    )
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (folder / "key.pem").write_bytes(key.private_bytes(*form, lock))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate


# ---- a server's own pair -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["localhost", "127.0.0.1", "::1", "moshi.local", "192.168.7.9", "xn--bcher-kva.example"]
)
def test_a_pair_is_made_that_a_strict_client_accepts(tmp_path, name):
    folder = tmp_path / "new" / "folder"
    context = server_context(
        folder, ["Moshi.local", "bücher.example.", "", "a" * 64], ["192.168.7.9", "fe80::1%eth0", "x"]
    )
    client = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    version, seen = shake(context, client, name)
    assert version == "TLSv1.3"
    assert fingerprint(seen) == folder_fingerprint(folder)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(context, client, "example.com")


def test_what_is_made(tmp_path):
    make_pair(tmp_path, ["moshi"], ["fe80::1%eth0"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "cert.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["moshi", "localhost"]
    addresses = ["fe80::1", "127.0.0.1", "::1"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(address) for address in addresses]
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=397)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cert.pem", "key.pem"]


def test_a_pair_that_is_there_is_used(tmp_path):
    certificate = write_pair(tmp_path, rsa.generate_private_key(65537, 2048))
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    version, seen = shake(server_context(tmp_path), client)
    assert version == "TLSv1.2"
    assert seen == certificate.public_bytes(serialization.Encoding.DER)
    # As openssl writes it.
    assert folder_fingerprint(tmp_path) == ":".join(f"{byte:02X}" for byte in certificate.fingerprint(hashes.SHA256()))


def test_an_old_tls_is_refused(tmp_path):
    client = ssl.create_default_context(cafile=None)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version, client.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(server_context(tmp_path), client)


def damage(folder, what):
    """Do something to a pair; return what the error shall say."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    if what == "no key":
        key.unlink()
        return "has cert.pem, but not key.pem"
    if what == "no certificate":
        certificate.unlink()
        return "has key.pem, but not cert.pem"
    if what == "another key":
        other = folder / "other"
        write_pair(other)
        (other / "key.pem").replace(key)
        return "do not belong together"
    if what == "expired":
        write_pair(folder, begin=-10, end=-1)
        return "expired on"
    if what == "early":
        write_pair(folder, begin=1)
        return "set the clock"
    if what == "locked":
        write_pair(folder, password=b"secret")
        return "needs a password"
    if what == "no PEM":
        certificate.write_bytes(b"\x30\x82")
        return "not a certificate in the PEM format"
    if what == "empty":
        key.write_bytes(b"")
        return "not a private key"
    if what == "dangling":
        key.unlink()
        key.symlink_to("nowhere")
        return "cannot be read"
    certificate.unlink()
    certificate.mkdir()
    return "cannot be read"


@pytest.mark.parametrize(
    "what",
    [
        "no key",
        "no certificate",
        "another key",
        "expired",
        "early",
        "locked",
        "no PEM",
        "empty",
        "dangling",
        "a folder",
    ],
)
def test_a_pair_that_cannot_be_used(tmp_path, what):
    write_pair(tmp_path)
    said = damage(tmp_path, what)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError) as caught:
        server_context(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be"):
        server_context(tmp_path / "file" / "folder")


# ---- the servers that a client knows -------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return known_file()


def test_a_certificate_is_remembered_and_another_one_refused(known):
    assert remember("Moshi.local", 9998, b"one")
    assert remember("::1", 9998, b"two")
    assert not remember("moshi.LOCAL", 9998, b"one")
    assert not remember("::1", 9998, b"two")
    assert remember("moshi.local", 9999, b"three")  # another port is another server
    lines = known.read_text().splitlines()
    assert lines == [
        f"moshi.local:9998 {fingerprint(b'one')}",
        f"[::1]:9998 {fingerprint(b'two')}",
        f"moshi.local:9999 {fingerprint(b'three')}",
    ]
    with pytest.raises(InputError) as caught:
        remember("::1", 9998, b"four")
    for part in ("[::1]:9998 has changed", fingerprint(b"two"), fingerprint(b"four"), f"line 2 from {known}"):
        assert part in str(caught.value)
    assert known.read_text().splitlines() == lines
    # As it says: remove the line, and the new one is taken.
    known.write_text("\n".join(["# mine", "", lines[0], lines[2]]))
    assert remember("::1", 9998, b"four")
    assert known.read_text().splitlines() == [
        "# mine",
        "",
        lines[0],
        lines[2],
        f"[::1]:9998 {fingerprint(b'four')}",
    ]
    assert [path.name for path in known.parent.iterdir()] == ["known-servers"]


@pytest.mark.parametrize("line", ["moshi:1", "moshi:1 AB:CD", "moshi:1 A B", "moshi:1 " + "AB:" * 31 + "XY"])
def test_a_damaged_file_is_not_read_over(known, line):
    remember("moshi", 1, b"one")
    known.write_text(f"# mine\n{line}\n")
    with pytest.raises(InputError, match=r"^Line 2 of .*known-servers is not HOST:PORT FINGERPRINT"):
        remember("moshi", 1, b"two")
    known.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="cannot be read"):
        remember("moshi", 1, b"two")


def test_a_folder_that_cannot_be_written_to(known):
    known.parent.parent.mkdir(exist_ok=True)
    known.parent.write_text("")
    with pytest.raises(InputError, match="cannot be"):
        remember("moshi", 1, b"one")


def test_names():
    assert server_name("Moshi.Local", 9998) == "moshi.local:9998"
    assert server_name("FE80::1", 443) == "[fe80::1]:443"
