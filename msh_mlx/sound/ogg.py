"""Ogg pages (RFC 3533) and the Opus packets in them (RFC 6716, RFC 7845), as pure code.

Opus itself is not decoded here. This module keeps the decoder safe: it passes on only whole and undamaged pages, and tells how
much sound is in them before anything is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from ..errors import ProtocolError

# Hz: Ogg counts Opus's sound at this rate, whatever rate it was recorded at (RFC 7845, section 4).
GRANULE_RATE = 48_000
# The longest packet, in samples at 48 kHz: 120 ms (RFC 6716, section 3.4).
MAX_PACKET_SAMPLES = 5760
# The largest packet of one stream, in bytes (RFC 7845, section 6).
MAX_PACKET = 61_440


class PageKind(Enum):
    """What a page is for (RFC 7845, section 3). FOREIGN begins a stream that is not Opus; DAMAGED has a wrong checksum."""

    HEAD = "head"
    TAGS = "tags"
    AUDIO = "audio"
    FOREIGN = "foreign"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Page:
    """A page of an Ogg stream. Do not rely on anything that a damaged page says.

    Attributes
    ----------
    data
        All its bytes, header included.
    kind
        HEAD begins a new stream, which may happen in the middle of a connection.
    serial, sequence
        The number of the stream, and of the page in it.
    granule
        The position at its end, as the sender counts it. Some senders count at another rate, so do not rely on it.
    durations
        The length of each audio packet that ends on this page, in samples at 48 kHz.
    faults
        How many packets on it, or parts of packets, a decoder must not see: empty, without sound or with over 120 ms of it,
        too many bytes, or without their beginning. They have no place in `durations`.
    packets
        The audio packets, as many as `durations`. They are whole, even if they began on earlier pages.
    first
        The beginning of the first packet on it. For HEAD and FOREIGN the whole packet, or as much as is on the page.
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
        """How much sound is in its packets, in samples at 48 kHz. 800 bytes can hold 30 s."""
        return sum(self.durations)


# The samples of an Opus frame at 48 kHz by the configuration in the TOC byte (RFC 6716, table 2): SILK, hybrid, CELT.
_OPUS_FRAME_SAMPLES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4


def packet_samples(packet: bytes) -> int:
    """Return the length of an Opus packet in samples at 48 kHz, from its first two bytes (RFC 6716, sections 3.1 and 3.2).

    Raises
    ------
    ProtocolError
        The packet is empty, lacks its number of Opus frames, or is longer than 120 ms.
    """
    if not packet:
        raise ProtocolError("An Opus packet is empty.")
    code = packet[0] & 3
    if code == 3 and len(packet) < 2:
        raise ProtocolError("An Opus packet does not say how many Opus frames it has.")
    count = packet[1] & 63 if code == 3 else (1, 2, 2)[code]
    samples = count * _OPUS_FRAME_SAMPLES[packet[0] >> 3]
    if not 0 < samples <= MAX_PACKET_SAMPLES:
        raise ProtocolError(f"An Opus packet has {samples / 48:g} ms", "up to 120 ms are possible")
    return samples


# How the first packet of an Ogg stream begins, by what the stream holds. "": not sound, but it may stand beside sound.
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
    """Name what an Ogg stream holds, such as "Vorbis", by its first packet. "": not sound; None: not known."""
    return next((name for start, name in _CODECS.items() if packet.startswith(start)), None)


def opus_head(skip: int, rate: int) -> bytes:
    """Write an `OpusHead` (RFC 7845, section 5.1) for one channel.

    `skip` is how much of the sound's beginning players leave out, in samples at 48 kHz. `rate` is that of the original, in Hz.
    """
    return b"OpusHead" + struct.pack("<BBHIhB", 1, 1, skip, rate, 0, 0)


def check_head(packet: bytes) -> None:
    """Check in an `OpusHead` (RFC 7845, section 5.1) that one Opus decoder can decode the stream.

    Raises
    ------
    ProtocolError
        It is too short or of another version, or its packets hold several streams, for more than two channels.
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
        raise ProtocolError(f"The audio is Opus of {channels} channels", "send one, or two")


# How sound in other formats than Ogg begins: offset, bytes, name.
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
    """Name the format of sound that begins with `data` and is not Ogg; None if it is not known."""
    return next((name for at, start, name in _CONTAINERS if data[at:].startswith(start)), None)


CAPTURE = b"OggS"  # every page begins with it
_HEADER = struct.Struct("<4sBBqII4sB")
_CONTINUED, _FIRST, _LAST = 1, 2, 4
_BEGINNING = 8  # bytes of a packet that tell whether it is a header
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def page_checksum(page: bytes) -> bytes:
    """Compute a page's checksum as it stands in the page (RFC 3533, section 6).

    It has zlib's polynomial, but the bits of each byte in reverse order, and none of zlib's inversions.
    """
    mirrored = page.translate(_MIRRORED)
    crc = zlib.crc32(mirrored[26:], zlib.crc32(b"\0\0\0\0", zlib.crc32(mirrored[:22], 0xFFFFFFFF)))
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "big").translate(_MIRRORED)


def write_page(packet: bytes, sequence: int, *, granule: int = 0, serial: int = 0) -> bytes:
    """Write a page with one whole packet of up to `MAX_PACKET` bytes; the first page begins a stream."""
    lacing = bytes([*[255] * (len(packet) // 255), len(packet) % 255])
    flags = 0 if sequence else _FIRST
    header = _HEADER.pack(CAPTURE, 0, flags, granule, serial, sequence & _MASK, bytes(4), len(lacing))
    page = header + lacing + packet
    return page[:22] + page_checksum(page) + page[26:]


def last_page(page: bytes) -> bytes:
    """Return a page as the last one of its stream."""
    page = page[:5] + bytes([page[5] | _LAST]) + page[6:22] + bytes(4) + page[26:]
    return page[:22] + page_checksum(page) + page[26:]


class OggSplitter:
    """Finds the whole pages in a stream of bytes, which may come in pieces of any size.

    It holds at most one unfinished page and one unfinished packet. Bytes that are not a page, and pages with a wrong checksum,
    are skipped up to the next page. `limit` bounds that: the bytes skipped, and those of wrong checksums, less the bytes of
    good pages, must stay within it. So the work is in proportion to what was sent. A wrong length in a page holds up what
    follows by one page at most. A damaged page costs no more than a good one, unless another page begins in it.
    """

    def __init__(self, limit: int = 1 << 18) -> None:
        self._limit = limit
        self._buffer = bytearray()  # from where the next page may begin, less than a page
        self._wasted = 0  # bytes, in [0, limit]
        # The stream's number, the next page's number, and the packet that continues there, as far as it has come.
        self._unfinished: tuple[int, int, bytes] | None = None

    @property
    def waits(self) -> bool:
        """Whether the bytes that wait may be the beginning of a page."""
        start = self._buffer[: len(CAPTURE)]
        return bool(start) and CAPTURE.startswith(start)

    def feed(self, data: bytes) -> list[Page]:
        """Take bytes, and return the pages that they complete, DAMAGED ones in their places.

        Raises
        ------
        ProtocolError
            Too many bytes were not Ogg. The splitter has forgotten everything then, and can take a new stream.
        """
        buffer = self._buffer
        buffer += data
        pages: list[Page] = []
        position = 0
        while True:
            start = buffer.find(CAPTURE, position)
            found = start >= 0
            if not found:
                start = max(position, len(buffer) - len(CAPTURE) + 1)
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
                if size and self._is_alone(position, size):
                    position += size
                else:
                    self._waste(size + len(CAPTURE))
                    position += len(CAPTURE)
        del buffer[:position]
        return pages

    def _page_size(self, position: int) -> int | None:
        """Return the length of the page at `position`, where "OggS" stands. 0: not a page; None: more bytes must come first."""
        buffer = self._buffer
        if len(buffer) > position + 4 and buffer[position + 4] != 0:  # the version of Ogg
            return 0
        body = position + _HEADER.size
        if len(buffer) < body or len(buffer) < body + buffer[body - 1]:
            return None
        count = buffer[body - 1]
        return _HEADER.size + count + sum(buffer[body : body + count])

    def _is_alone(self, position: int, size: int) -> bool:
        """Whether no other page begins within these `size` bytes."""
        begin, end = position + len(CAPTURE), position + size
        ends = range(max(begin, end - len(CAPTURE) + 1), end)
        return self._buffer.find(CAPTURE, begin, end) < 0 and not any(
            CAPTURE.startswith(self._buffer[at : at + len(CAPTURE)]) for at in ends
        )

    def _waste(self, count: int) -> None:
        self._wasted += count
        if self._wasted > self._limit:
            self._buffer.clear()
            self._wasted = 0
            self._unfinished = None
            raise ProtocolError(f"The audio is not an Ogg stream: no page was found in {self._limit} bytes.")

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
                # The rest of a header is of no use.
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
    """Yield the length in bytes of each packet on a page, by its segments, and whether it continues on the next page."""
    length = 0
    for index, segment in enumerate(lacing, 1):
        length += segment
        if segment < 255 or index == len(lacing):
            yield length, segment == 255
            length = 0


_HEADERS = {b"OpusHead": PageKind.HEAD, b"OpusTags": PageKind.TAGS}
_MASK = 0xFFFFFFFF  # of a page's number


def _samples(packet: bytes | None) -> int:
    """Return the length of an audio packet in samples at 48 kHz, from its beginning; 0 if a decoder must not see it."""
    if packet is None or len(packet) > MAX_PACKET:
        return 0
    try:
        return packet_samples(packet)
    except ProtocolError:
        return 0
