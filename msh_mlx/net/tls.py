"""Certificates: the server's own pair, which is made if it is missing, and the certificates that a client remembers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import ssl
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import InputError
from ..system.newfile import NewFile, making
from ..system.places import config_folder
from .address import ip_address, server_name

CERTIFICATE, KEY = "cert.pem", "key.pem"
_DAYS = 397  # browsers do not accept a certificate that is valid for longer
_LOCAL_NAMES, _LOCAL_ADDRESSES = ("localhost",), ("127.0.0.1", "::1")
_LONGEST_NAME = 64  # characters of the holder's name in a certificate

# ---- a server's own pair -------------------------------------------------------------------------------------------------


def server_context(folder: Path, names: Iterable[str] = (), addresses: Iterable[str] = ()) -> ssl.SSLContext:
    """Return the TLS context of a server, for TLS 1.2 and later, with the certificate and key in `folder`.

    If both files are missing, they are made, for `names` and `addresses` (see `make_pair`).

    Raises
    ------
    InputError
        One of the files is missing, or they cannot be read, do not belong together, are not valid now, or cannot be written.
    """
    present = [name for name in (CERTIFICATE, KEY) if _is_there(folder / name)]
    if not present:
        make_pair(folder, names, addresses)
    elif len(present) == 1:
        (missing,) = {CERTIFICATE, KEY} - set(present)
        raise InputError(
            f"{folder} has {present[0]}, but not {missing}", f"put it there, or remove {present[0]} for a new pair"
        )
    _check_pair(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            f"{folder / CERTIFICATE} and {folder / KEY} cannot be used ({error.strerror or error})", _ANEW
        ) from None
    return context


_ANEW = "give another pair, or remove both files for a new one"


def make_pair(folder: Path, names: Iterable[str] = (), addresses: Iterable[str] = ()) -> None:
    """Write a self-signed certificate, valid for 397 days, and its key into `folder`, as `cert.pem` and `key.pem`.

    Only the user can read `key.pem`. The certificate is for the given DNS names and IP addresses and for this machine itself;
    names and addresses that a certificate cannot hold are left out.

    Raises
    ------
    InputError
        The folder cannot be made or written to.
    """
    holders: list[x509.GeneralName] = [x509.DNSName(name) for name in dict.fromkeys([*_ascii(names), *_LOCAL_NAMES])]
    numbers = dict.fromkeys(map(ip_address, [*addresses, *_LOCAL_ADDRESSES]))
    holders += [x509.IPAddress(number) for number in numbers if number]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, holders[0].value[:_LONGEST_NAME])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + timedelta(days=_DAYS - 1))
        .add_extension(x509.SubjectAlternativeName(holders), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key_bytes = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with making(folder), NewFile(folder / KEY) as new_key, NewFile(folder / CERTIFICATE) as new_certificate:
        if sys.platform != "win32":  # there the folder says who may read what is in it
            os.fchmod(new_key.file.fileno(), 0o600)
        new_key.file.write(key_bytes)
        new_certificate.file.write(certificate.public_bytes(pem))
        new_key.commit()
        new_certificate.commit()


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate in DER, in the usual form AB:CD:…"""
    return hashlib.sha256(certificate).digest().hex(":").upper()


def folder_fingerprint(folder: Path) -> str:
    """Return the fingerprint of the certificate in a server's folder; raise InputError if it cannot be read."""
    return fingerprint(_read_certificate(folder / CERTIFICATE).public_bytes(serialization.Encoding.DER))


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _read_certificate(path: Path) -> x509.Certificate:
    """Read a server's certificate, the first one in its file; raise InputError if that is not possible."""
    data = _read(path)
    try:
        return x509.load_pem_x509_certificates(data)[0]
    except ValueError:
        raise InputError(f"{path} is not a certificate in the PEM format", _ANEW) from None


def _check_pair(folder: Path) -> None:
    certificate = _read_certificate(folder / CERTIFICATE)
    data = _read(folder / KEY)
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError:
        raise InputError(f"{folder / KEY} needs a password", "store the key without one") from None
    except Exception:  # an unsupported algorithm does not raise a ValueError
        raise InputError(f"{folder / KEY} is not a private key in the PEM format", _ANEW) from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise InputError(f"{KEY} and {CERTIFICATE} in {folder} do not belong together", _ANEW)
    now = datetime.now(timezone.utc)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise InputError(f"{folder / CERTIFICATE} expired on {end:%Y-%m-%d}", _ANEW)
    if now < begin:
        raise InputError(f"{folder / CERTIFICATE} is valid from {begin:%Y-%m-%d} only", f"set the clock, or {_ANEW}")


def _ascii(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        with contextlib.suppress(UnicodeError):
            if ascii_name := name.rstrip(".").encode("idna").decode().lower():
                yield ascii_name


# ---- the servers that a client knows -------------------------------------------------------------------------------------


def known_file() -> Path:
    """Return the file of remembered certificates, `msh-mlx/known-servers` beside the user's catalogue.

    Raises
    ------
    InputError
        The user has no folder for it.
    """
    folder = config_folder()
    if folder is None:
        raise InputError(
            "There is no home folder to remember the server's certificate in",
            "set HOME, or XDG_CONFIG_HOME to a folder",
        )
    return folder / "known-servers"


def remember(host: str, port: int, certificate: bytes) -> bool:
    """Compare the certificate of a server, in DER, with the remembered one; remember a new server's, and then return True.

    This is for servers that no authority vouches for: a certificate is trusted on first use. `known_file` has a line
    `HOST:PORT FINGERPRINT` for each server; lines that begin with # are comments of the user's.

    Raises
    ------
    InputError
        The server had another certificate before, or the file cannot be read, understood or written.
    """
    path, server, found = known_file(), server_name(host, port), fingerprint(certificate)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (said := _KNOWN.fullmatch(line)):
            raise InputError(f"Line {number} of {path} is not HOST:PORT FINGERPRINT", "remove it")
        if said[1].lower() != server:
            continue
        if said[2].upper() == found:
            return False
        raise InputError(
            f"The certificate of {server} has changed: it was {said[2].upper()}, and now it is {found}, so that "
            "somebody may be in between",
            f"if the change was meant, remove line {number} from {path}",
        )
    with making(path.parent), NewFile(path) as new:
        new.file.write("".join(f"{line}\n" for line in [*lines, f"{server} {found}"]).encode())
        new.commit()
    return True


_KNOWN = re.compile(r"\s*(\S+)\s+((?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2})\s*")
