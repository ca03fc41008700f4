"""The wire protocol of `/api/chat`, as pure code: messages, the Ogg pages of their audio, the parameters of the address.

A message of the websocket is a type byte and a payload, integers little-endian. Audio is Opus (RFC 6716) in Ogg pages
(RFC 3533, RFC 7845); the codec itself is not here, only what is needed to keep it safe: whole and sound pages, and how much
sound is in them before anything is decoded.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, TypeAlias

from .errors import MshError
from .ranges import PADDING_BONUS, REPETITION_PENALTY, TEMPERATURE, Range

VERSION = 0
MODEL_VERSION = 0
# A second of the published programs' audio has six kilobytes.
MAX_MESSAGE = 1 << 20
# In which Ogg counts Opus's sound, whatever rate it was recorded at (RFC 7845, section 4).
GRANULE_RATE = 48_000
# 27 bytes, 255 lengths of segments, 255 segments of 255 bytes (RFC 3533, section 6).
MAX_PAGE = 27 + 255 + 255 * 255
# Of a packet, in samples at 48 kHz: 120 ms (RFC 6716, section 3.4).
MAX_PACKET_SAMPLES = 5760
# Of a packet, in bytes, for one stream (RFC 7845, section 6).
MAX_PACKET = 61_440


class ProtocolError(MshError, ValueError):
    """What the other side sent is wrong; the message is one sentence that can be sent back."""


class Control(IntEnum):
    """What the client wants to happen (message 3)."""

    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


@dataclass(frozen=True)
class Handshake:
    """The server has fresh state and listens (message 0); both numbers are in [0, 2^32)."""

    protocol_version: int = VERSION
    model_version: int = MODEL_VERSION


@dataclass(frozen=True)
class Audio:
    """Bytes of the Ogg stream (message 1); pages may be split over messages."""

    data: bytes


@dataclass(frozen=True)
class Text:
    """A piece of what is said (message 2); a leading space starts a word."""

    text: str


@dataclass(frozen=True)
class MetaData:
    """Facts about server and conversation (message 4): what JSON can hold, without infinities and NaN."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Error:
    """A sentence on what went wrong (message 5)."""

    text: str


@dataclass(frozen=True)
class Ping:
    """A sign of life (message 6)."""


@dataclass(frozen=True)
class ColoredText:
    """A piece of text with a colour in [0, 256) (message 7); of other models."""

    colour: int
    text: str


Message: TypeAlias = Handshake | Audio | Text | Control | MetaData | Error | Ping | ColoredText


def encode(message: Message) -> bytes:
    """Write a message as the bytes of a websocket's binary message.

    Raises
    ------
    ProtocolError
        A number does not fit into its field, a text has half a surrogate pair, or JSON cannot hold the values.
    """
    try:
        match message:
            case Handshake(protocol_version, model_version):
                return struct.pack("<BII", 0, protocol_version, model_version)
            case Audio(data):
                return b"\x01" + data
            case Text(text):
                return b"\x02" + text.encode()
            case Control():
                return bytes((3, message))
            case MetaData(values):
                return b"\x04" + json.dumps(dict(values), allow_nan=False, separators=(",", ":")).encode()
            case Error(text):
                return b"\x05" + text.encode()
            case Ping():
                return b"\x06"
            case ColoredText(colour, text):
                return struct.pack("<BB", 7, colour) + text.encode()
    except (struct.error, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"The message {type(message).__name__} cannot be sent: {error}.") from None


def decode(data: bytes, limit: int = MAX_MESSAGE) -> Message | None:
    """Read a websocket's binary message; None is what is to be discarded: empty, or of a type or a control not known.

    A handshake may have any length: nine bytes are two numbers of 32 bits, three are two of 8 bits (as the published page
    writes them), anything else stands for zeros.

    Raises
    ------
    ProtocolError
        It has more than `limit` bytes, a text that is no UTF-8, or metadata that is no JSON object.
    """
    if len(data) > limit:
        raise ProtocolError(f"A message has {len(data)} bytes; {limit} are allowed.")
    if not data:
        return None
    payload = data[1:]
    match data[0]:
        case 0 if len(payload) == 2:
            return Handshake(payload[0], payload[1])
        case 0:
            return Handshake(*struct.unpack_from("<II", payload)) if len(payload) >= 8 else Handshake(0, 0)
        case 1:
            return Audio(payload)
        case 2:
            return Text(_utf8(payload, "A text"))
        case 3 if len(payload) == 1 and payload[0] in _CONTROLS:
            return Control(payload[0])
        case 4:
            return MetaData(_object(_utf8(payload, "The metadata")))
        case 5:
            return Error(_utf8(payload, "An error's text"))
        case 6:
            return Ping()
        case 7 if payload:
            return ColoredText(payload[0], _utf8(payload[1:], "A coloured text"))
    return None


_CONTROLS = frozenset(Control)


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not in UTF-8.") from None


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ProtocolError("The metadata is not valid JSON.") from None
    if not isinstance(values, dict):
        raise ProtocolError("The metadata is no JSON object.")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


class PageKind(Enum):
    """What a page is for (RFC 7845, section 3); FOREIGN begins a stream that is no Opus, and DAMAGED has a wrong checksum."""

    HEAD = "head"
    TAGS = "tags"
    AUDIO = "audio"
    FOREIGN = "foreign"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Page:
    """A page of an Ogg stream; of a damaged one, nothing that it says is sure.

    Attributes
    ----------
    data
        All its bytes, header included.
    kind
        HEAD begins a new stream, also in the middle of a connection.
    serial, sequence
        The number of the stream, and of the page in it.
    granule
        The position at its end as the sender counts it: some count at another rate, so do not rely on it.
    durations
        Of each audio packet that ends on this page, in samples at 48 kHz.
    faults
        How many packets on it, or parts of packets, no decoder should see: empty, of no duration or one over 120 ms, too long,
        or without their beginning. They have no place in `durations`.
    packets
        The audio packets themselves, as many as `durations`, whole also if they began on pages before.
    first
        What the first packet on it begins with: of HEAD and FOREIGN the whole packet, or as much as is on the page.
    """

    data: bytes
    kind: PageKind
    serial: int
    sequence: int
    granule: int
    durations: tuple[int, ...]
    faults: int
    packets: tuple[bytes, ...] = ()
    first: bytes = b""

    @property
    def samples(self) -> int:
        """The sound in its packets, in samples at 48 kHz; 800 bytes can hold 30 s of it."""
        return sum(self.durations)


# The samples of a frame at 48 kHz by the configuration in the TOC byte (RFC 6716, table 2): SILK, hybrid, CELT.
_FRAME_SAMPLES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4


def packet_samples(packet: bytes) -> int:
    """Tell how long an Opus packet is, in samples at 48 kHz, from its first two bytes (RFC 6716, sections 3.1 and 3.2).

    Raises
    ------
    ProtocolError
        It is empty or lacks its number of frames, or it is longer than 120 ms.
    """
    if not packet:
        raise ProtocolError("An Opus packet is empty.")
    code = packet[0] & 3
    if code == 3 and len(packet) < 2:
        raise ProtocolError("An Opus packet does not say how many frames it has.")
    frames = packet[1] & 63 if code == 3 else (1, 2, 2)[code]
    samples = frames * _FRAME_SAMPLES[packet[0] >> 3]
    if not 0 < samples <= MAX_PACKET_SAMPLES:
        raise ProtocolError(f"An Opus packet has {samples / 48:g} ms; up to 120 ms are possible.")
    return samples


# How the first packet of an Ogg stream begins, by what it holds; "" is no sound, but may stand beside some.
_CODECS = {
    b"OpusHead": "Opus",
    b"\x01vorbis": "Vorbis",
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
    b"CELT    ": "CELT",
    b"PCM     ": "PCM",
    b"\x80theora": "Theora, which is video",
    b"BBCD\0": "Dirac, which is video",
    b"OVP80": "VP8, which is video",
    b"fishead\0": "",
    b"\x80kate\0\0\0": "",
    b"CMML\0\0\0\0": "",
}


def ogg_codec(packet: bytes) -> str | None:
    """Name what an Ogg stream holds from its first packet: "Vorbis"; "" is no sound, and None something unknown."""
    return next((name for start, name in _CODECS.items() if packet.startswith(start)), None)


def check_head(packet: bytes) -> None:
    """Find out from an `OpusHead` (RFC 7845, section 5.1) whether its packets are what one decoder of Opus takes.

    Raises
    ------
    ProtocolError
        It is too short, of another version, or each of its packets holds several streams, for more than two channels.
    """
    cut_off = ProtocolError("The header of the audio (OpusHead) is cut off.")
    if len(packet) < 19:
        raise cut_off
    version, channels, family = packet[8], packet[9], packet[18]
    if version >> 4 or not channels:
        raise ProtocolError("The header of the audio (OpusHead) is of an unknown version.")
    if family and len(packet) < 21 + channels:
        raise cut_off
    if packet[19] != 1 if family else channels > 2:
        raise ProtocolError(f"The audio is Opus of {channels} channels; send one, or two.")


# How sound that is in no Ogg begins, by what it is: offset, bytes, name.
_CONTAINERS = (
    (0, b"RIFF", "WAV"),
    (0, b"RF64", "WAV"),
    (0, b"FORM", "AIFF"),
    (0, b"fLaC", "FLAC"),
    (0, b"ID3", "MP3"),
    (0, b"caff", "CAF"),
    (0, b".snd", "AU"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (4, b"ftyp", "MP4 or M4A"),
    (0, b"#!AMR", "AMR"),
)


def container(data: bytes) -> str | None:
    """Name what sound that begins with `data` and is no Ogg is in; None if that is not known."""
    return next((name for at, start, name in _CONTAINERS if data[at:].startswith(start)), None)


_CAPTURE = b"OggS"
_HEADER = struct.Struct("<4sBBqII4sB")
_CONTINUED, _FIRST = 1, 2
_BEGINNING = 8  # bytes of a packet that tell whether it is a header
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def page_checksum(page: bytes) -> bytes:
    """Compute a page's checksum as it stands in the page (RFC 3533, section 6).

    It is zlib's polynomial with the bits of each byte the other way round, and without zlib's inversions.
    """
    mirrored = page.translate(_MIRRORED)
    crc = zlib.crc32(mirrored[26:], zlib.crc32(b"\0\0\0\0", zlib.crc32(mirrored[:22], 0xFFFFFFFF)))
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "big").translate(_MIRRORED)


def write_page(packet: bytes, sequence: int, *, granule: int = 0, serial: int = 0) -> bytes:
    """Write a page with one whole packet of up to `MAX_PACKET` bytes; the first page begins a stream."""
    lacing = bytes([*[255] * (len(packet) // 255), len(packet) % 255])
    flags = 0 if sequence else _FIRST
    header = _HEADER.pack(_CAPTURE, 0, flags, granule, serial, sequence & _MASK, bytes(4), len(lacing))
    page = header + lacing + packet
    return page[:22] + page_checksum(page) + page[26:]


class OggSplitter:
    """Finds the whole pages in a stream of bytes that comes in any pieces.

    It holds at most one unfinished page and one unfinished packet. What is no page, or one with a wrong checksum, is passed
    over to the next one, as long as `limit` allows: the bytes that were passed over or summed in vain, less those of good
    pages, must stay within it. So time and memory are bounded by what was sent. A wrong length in a page holds up what follows
    by one page's length.
    """

    def __init__(self, limit: int = 1 << 18) -> None:
        self._limit = limit
        self._buffer = bytearray()  # from where the next page may begin, less than a page
        self._wasted = 0  # bytes, in [0, limit]
        # The stream's number, the next page's, and the packet that this page is to go on with, as far as it is there.
        self._unfinished: tuple[int, int, bytes] | None = None

    @property
    def waits(self) -> bool:
        """Whether what came last is the beginning of a page, as far as it goes."""
        start = self._buffer[: len(_CAPTURE)]
        return bool(start) and _CAPTURE.startswith(start)

    def feed(self, data: bytes) -> list[Page]:
        """Take bytes and return the pages that are complete with them, DAMAGED ones in their places.

        Raises
        ------
        ProtocolError
            Too much of it is no Ogg; the splitter has forgotten everything then, and can be used for a new stream.
        """
        buffer = self._buffer
        buffer += data
        pages: list[Page] = []
        position = 0
        while True:
            start = buffer.find(_CAPTURE, position)
            found = start >= 0
            if not found:
                start = max(position, len(buffer) - len(_CAPTURE) + 1)
            self._waste(start - position)
            position = start
            size = self._page_size(position) if found else None
            if size is None or len(buffer) < position + size:
                break
            page = bytes(buffer[position : position + size])
            if size and page_checksum(page) == page[22:26]:
                self._wasted = max(0, self._wasted - size)
                position += size
                pages.append(self._read(page))
            else:
                if size:
                    pages.append(self._read(page, damaged=True))
                self._waste(size + len(_CAPTURE))
                position += len(_CAPTURE)
        del buffer[:position]
        return pages

    def _page_size(self, position: int) -> int | None:
        """Tell how long the page at a capture pattern is; 0 if it is none, None if more bytes must come first."""
        buffer = self._buffer
        if len(buffer) > position + 4 and buffer[position + 4] != 0:  # the version of Ogg
            return 0
        body = position + _HEADER.size
        if len(buffer) < body or len(buffer) < body + buffer[body - 1]:
            return None
        count = buffer[body - 1]
        return _HEADER.size + count + sum(buffer[body : body + count])

    def _waste(self, count: int) -> None:
        self._wasted += count
        if self._wasted > self._limit:
            self._buffer.clear()
            self._wasted = 0
            self._unfinished = None
            raise ProtocolError(f"The audio is no Ogg stream: no page was found in {self._limit} bytes.")

    def _read(self, data: bytes, *, damaged: bool = False) -> Page:
        _, _, flags, granule, serial, sequence, _, count = _HEADER.unpack_from(data)
        position = _HEADER.size + count
        kind = PageKind.AUDIO
        packets: list[bytes] = []
        durations: list[int] = []
        faults = 0
        packet: bytes | None = b""  # None if its beginning is not known
        if flags & _CONTINUED:
            known = self._unfinished is not None and self._unfinished[:2] == (serial, sequence)
            packet = self._unfinished[2] if known and self._unfinished else None
        first = b""
        inside = False
        for length, goes_on in _parts(data[_HEADER.size : position]):
            part = data[position : position + length]
            position += length
            packet = None if packet is None else packet + part
            first = first or packet or b""
            header = _HEADERS.get((packet or b"")[:_BEGINNING])
            samples = _samples(packet)
            if header is not None:
                kind = PageKind.HEAD if kind is PageKind.HEAD else header
            elif not samples:
                faults += 1
            elif packet and not goes_on:
                packets.append(packet)
                durations.append(samples)
            if goes_on:  # to the next page
                inside = True
                # Of a header nothing more is of use.
                packet = packet if header is None or packet is None else packet[:_BEGINNING]
            else:
                packet = b""
        if damaged:
            kind = PageKind.DAMAGED
        else:
            if flags & _FIRST and kind is PageKind.AUDIO:
                kind = PageKind.FOREIGN
            self._unfinished = None
            if inside and packet is not None and len(packet) <= MAX_PACKET:
                self._unfinished = (serial, sequence + 1 & _MASK, packet)
        return Page(data, kind, serial, sequence, granule, tuple(durations), faults, tuple(packets), first)


def _parts(lacing: bytes) -> Iterator[tuple[int, bool]]:
    """Yield the bytes of each packet on a page, from the lengths of its segments, and whether it goes on on the next page."""
    length = 0
    for index, segment in enumerate(lacing, 1):
        length += segment
        if segment < 255 or index == len(lacing):
            yield length, segment == 255
            length = 0


_HEADERS = {b"OpusHead": PageKind.HEAD, b"OpusTags": PageKind.TAGS}
_MASK = 0xFFFFFFFF  # of a page's number


def _samples(packet: bytes | None) -> int:
    """Tell how long an audio packet is, in samples at 48 kHz, from its beginning; 0 if it is none."""
    if packet is None or len(packet) > MAX_PACKET:
        return 0
    try:
        return packet_samples(packet)
    except ProtocolError:
        return 0


@dataclass(frozen=True)
class ChatParameters:
    """The parameters in the address of a conversation; the defaults are the published Rust server's.

    Attributes
    ----------
    text_temperature, audio_temperature
        From 0 to 1e9, as `Sampler` takes them.
    text_topk, audio_topk
        At least 0; 0 takes all tokens.
    max_steps
        Of 80 ms, at least 1; None: no end.
    text_seed, audio_seed
        In [0, 2^64); None: a new one every time.
    pad_mult
        What is added to the logit of padding, from -1e9 to 1e9; None: nothing.
    repetition_penalty_context, repetition_penalty
        How many text tokens back, and the factor, from 1e-9 to 1e9; None: no penalty.
    email, worker_auth_id
        Who it is, and the token that admits him.
    realtime
        Ours. False: the audio is a file's, so nothing of it is dropped, and the server takes the time that it needs.
    stats
        Ours. True: the client understands metadata that published servers do not send: its place in line, figures every two
        seconds, the parameters that mean nothing here.
    """

    text_temperature: float = 0.8
    text_topk: int = 250
    audio_temperature: float = 0.8
    audio_topk: int = 250
    max_steps: int | None = 4500
    text_seed: int | None = None
    audio_seed: int | None = None
    pad_mult: float | None = None
    repetition_penalty_context: int | None = None
    repetition_penalty: float | None = None
    email: str | None = None
    worker_auth_id: str | None = None
    realtime: bool = True
    stats: bool = False

    @classmethod
    def from_query(cls, query: Mapping[str, str], defaults: ChatParameters | None = None) -> ChatParameters:
        """Read the parameters of an address, percent-decoded; what is missing or empty is as in `defaults`, what is not known
        is ignored, since published pages send more: `unknown_parameters` names it.

        Raises
        ------
        ProtocolError
            A value is wrong; the sentence names the parameter.
        """
        values: dict[str, Any] = {} if defaults is None else dict(vars(defaults))
        for name, read in _PARAMETERS.items():
            text = query.get(name, "")
            if text:
                values[name] = read(name, text)
        return cls(**values)


# As JavaScript and Rust write numbers; Python would take spaces, underscores and other alphabets' digits, too.
_WHOLE = re.compile(r"[0-9]{1,20}")
_DECIMAL = re.compile(r"-?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")


def _whole(least: int, most: int) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise _wrong(name, text, f"a whole number from {least} to {most}")
        return int(text)

    return read


def _number(values: Range) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        value = float(text) if _DECIMAL.fullmatch(text) else math.nan
        if not values.has(value):
            raise _wrong(name, text, str(values))
        return value

    return read


def _words(name: str, text: str) -> str:
    if len(text) > 1000 or not text.isprintable():
        raise ProtocolError(f"The parameter {name} is no text of up to 1000 printable characters.")
    return text


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise _wrong(name, text, "0 or 1")
    return text == "1"


def _wrong(name: str, text: str, what: str) -> ProtocolError:
    value = f"is {text!r}" if len(text) <= 40 and text.isprintable() else "has another value"
    return ProtocolError(f"The parameter {name} {value}; {what} is expected.")


_temperature = _number(TEMPERATURE)
_top_k = _whole(0, (1 << 31) - 1)
_seed = _whole(0, (1 << 64) - 1)
_PARAMETERS: dict[str, Callable[[str, str], Any]] = {
    "text_temperature": _temperature,
    "text_topk": _top_k,
    "audio_temperature": _temperature,
    "audio_topk": _top_k,
    "max_steps": _whole(1, (1 << 31) - 1),
    "text_seed": _seed,
    "audio_seed": _seed,
    "pad_mult": _number(PADDING_BONUS),
    "repetition_penalty_context": _whole(0, 10_000),
    "repetition_penalty": _number(REPETITION_PENALTY),
    "email": _words,
    "worker_auth_id": _words,
    "realtime": _flag,
    "stats": _flag,
}


def unknown_parameters(query: Iterable[str]) -> list[str]:
    """Name the parameters of an address that mean nothing here, fit to be shown, each once; of very many the first."""
    return list(dict.fromkeys(one_line(name, 40) for name in query if name not in _PARAMETERS))[:20]


def one_line(text: str, most: int) -> str:
    """Return what the other side sent on one line of at most `most` characters, without any that a terminal would obey."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text[: most + 1]).split())
    return words if len(text) <= most else words[: most - 1] + "…"


# All of them must be there, or the published page shows nothing.
BUILD_KEYS = (
    "build_timestamp",
    "build_date",
    "git_branch",
    "git_timestamp",
    "git_date",
    "git_hash",
    "git_describe",
    "rustc_host_triple",
    "rustc_version",
    "cargo_target_triple",
)


def describe_server(
    parameters: ChatParameters,
    lm_model_file: str,
    mimi_model_file: str,
    instance_name: str,
    build: Mapping[str, str] | None = None,
) -> MetaData:
    """Make the metadata that the published page shows; what of `BUILD_KEYS` is not in `build` is "unknown".

    The page wants numbers where there may be none: no padding bonus is 0, no penalty is 1 over 0 tokens.
    """
    penalty = parameters.repetition_penalty
    return MetaData(
        {
            "text_temperature": parameters.text_temperature,
            "text_topk": parameters.text_topk,
            "audio_temperature": parameters.audio_temperature,
            "audio_topk": parameters.audio_topk,
            "pad_mult": parameters.pad_mult or 0.0,
            "repetition_penalty_context": parameters.repetition_penalty_context or 0,
            "repetition_penalty": 1.0 if penalty is None else penalty,
            "lm_model_file": lm_model_file,
            "mimi_model_file": mimi_model_file,
            "instance_name": instance_name,
            "build_info": {key: (build or {}).get(key, "unknown") for key in BUILD_KEYS},
        }
    )
