"""Hugging Face's settings in the environment. Its library reads them while it is imported, and fails if they are wrong."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ..errors import InputError, UnreachableError

_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")


class SettingsError(InputError, UnreachableError):
    """A setting in the environment is wrong, so the hub cannot be asked. Files on disk can still be used."""


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and bool(re.fullmatch(r"[!-~]+", text))


def _wrong() -> dict[str, str]:
    """Return the variables that the library cannot read, each with a clause on what is wrong with it."""
    found = {}
    for name in _SECONDS:
        try:
            int(os.environ.get(name, "0"))
        except ValueError:
            found[name] = f"{name}={os.environ[name]} is not a whole number of seconds"
    if not _is_address(address := os.environ.get("HF_ENDPOINT", "https://a")):
        found["HF_ENDPOINT"] = f"HF_ENDPOINT={address} is not the address of a hub"
    return found


@contextmanager
def _without(names: list[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)


_WRONG = _wrong()
with _without(list(_WRONG)):
    from huggingface_hub import constants as constants


def check_settings() -> None:
    """Raise SettingsError if a setting in the environment is wrong."""
    for said in _WRONG.values():
        raise SettingsError(said, "correct it, or unset it")
    # Otherwise the connection fails, with an error that names neither the variable nor the file.
    if file := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=file)
        except OSError as error:
            why = "it has no certificate" if isinstance(error, ssl.SSLError) else error.strerror or error
            raise SettingsError(f"SSL_CERT_FILE={file} cannot be used ({why})", "correct it, or unset it") from None
