"""Forms with a file (`multipart/form-data`), read as they come: the file goes to the disk."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors import ProtocolError
from ..system.places import temporary_file

# Its warnings say no more than the answer to the client.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_MOST_FIELDS = 64
_LONGEST_FIELD = 1 << 16  # bytes


class TooLargeError(ProtocolError):
    """The body is larger than it may be."""


@dataclass
class Form:
    """The fields of a form, in the order in which they came, and its file with the name that the client gave it.

    `file` is a temporary file, which closes with the form; None: there is none.
    """

    fields: list[tuple[str, str]] = field(default_factory=list)
    file: BinaryIO | None = None
    file_name: str = ""

    def all(self, name: str) -> list[str]:
        """Return the values of a field; arrays are also sent under its name with brackets, such as `include[]`."""
        return [value for key, value in self.fields if key.split("[")[0] == name]

    def close(self) -> None:
        if self.file:
            self.file.close()

    def __enter__(self) -> Form:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reader:
    """Takes the parts of a form as the parser finds them."""

    def __init__(self, form: Form, file: str) -> None:
        self.ended = False
        self.callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        self._form = form
        self._file = file

    def _begin(self) -> None:
        if len(self._form.fields) >= _MOST_FIELDS:
            raise ProtocolError(f"The form has more than {_MOST_FIELDS} fields.")
        self._headers: dict[str, str] = {}
        self._key = self._value = b""
        self._text = bytearray()
        self._name = ""
        self._is_file = False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if len(self._key) + len(self._value) > _LONGEST_FIELD:
            raise _not_a_form()

    def _header_end(self) -> None:
        self._headers[self._key.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._key = self._value = b""

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise ProtocolError("A part of the form has no name", "send form-data with names")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = self._name == self._file
        if not self._is_file:
            return
        if self._form.file:
            raise ProtocolError("The form has two files", "send one")
        self._form.file = temporary_file()
        self._form.file_name = options.get(b"filename", b"").decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            assert self._form.file
            self._form.file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _LONGEST_FIELD:
            raise ProtocolError(f"The field {self._name!r} has more than {_LONGEST_FIELD} bytes.")

    def _end(self) -> None:
        if not self._is_file:
            self._form.fields.append((self._name, self._text.decode("utf-8", "replace")))

    def _finish(self) -> None:
        self.ended = True


async def read_form(kind: str, body: AsyncIterator[bytes], file: str, most: int) -> Form:
    """Read a form whose field `file` is a file, from a body of the content type `kind`, of at most so many bytes.

    Raises
    ------
    TooLargeError
        The body has more bytes.
    ProtocolError
        It is not such a form.
    MshError
        The file cannot be written to the disk.
    """
    name, options = parse_options_header(kind)
    if name != b"multipart/form-data" or not options.get(b"boundary"):
        given = name.decode("latin-1") or "nothing that says what it is"
        raise ProtocolError(f"The body is {given}", "send multipart/form-data with a boundary")
    form, size = Form(), 0
    try:
        reader = _Reader(form, file)
        parser = MultipartParser(options[b"boundary"], reader.callbacks)  # type: ignore[arg-type]
        async for data in body:
            size += len(data)
            if size > most:
                raise too_large(most)
            parser.write(data)
        if not reader.ended:
            raise ProtocolError("The form ends too early", "send it to its closing boundary")
    except MultipartParseError:
        form.close()
        raise _not_a_form() from None
    except BaseException:
        form.close()
        raise
    if form.file:
        form.file.seek(0)
    return form


def _not_a_form() -> ProtocolError:
    return ProtocolError("The body is not a form that can be read", "send multipart/form-data")


def too_large(most: int) -> TooLargeError:
    """Make the error of a body that has more than so many bytes."""
    unit, name = (1 << 20, "MiB") if most >= 1 << 20 else (1 << 10, "KiB")
    return TooLargeError(f"The request is larger than {most // unit} {name}", "send less at once")


async def read_body(body: AsyncIterator[bytes], most: int) -> bytes:
    """Read a body of at most so many bytes. Raise TooLargeError if it has more."""
    whole = bytearray()
    async for data in body:
        whole += data
        if len(whole) > most:
            raise too_large(most)
    return bytes(whole)
