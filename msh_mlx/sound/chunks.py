"""WAV, RF64, W64, AIFF, CAF and AU: where the sound lies in a file of chunks, and whether it is complete."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

from ..errors import InputError
from ..system.words import printable
from .containers import (
    MAX_CHANNELS,
    RATES,
    WINDOW,
    Ahead,
    Foreign,
    Section,
    begins,
    bytes_at,
    cut_off,
    damaged,
    find_recording,
    without_tags,
)

_MAX_CHUNK = 1 << 26  # bytes before the sound that a file may spend on pictures and the like


@dataclass(frozen=True)
class Numbers:
    """A file whose sound is one run of bytes from byte `offset` on, most often plain numbers.

    `dtype` is numpy's type of a sample, with "i3" for 24 bits; "" means that libsndfile decodes it. `size` is the sound's
    length in bytes; None in a pipe, where the length is known only at the end. `promised` is the length in the header, or None.
    """

    rate: int
    channels: int
    dtype: str
    offset: int
    promised: int | None
    chunks: Chunks
    coding: Foreign  # what to call it if even libsndfile cannot decode it
    # The size in the header: its place, its format, and the other bytes that it counts.
    size_field: tuple[int, str, int]
    mpeg: bool = False  # its sound is MPEG frames
    size: int | None = None
    following: int | None = None  # where in the file another recording begins

    @property
    def wraps(self) -> bool:
        """Whether the size in the header has 32 bits. A greater size may have wrapped around in it."""
        return struct.calcsize(self.size_field[1]) == 4


@dataclass(frozen=True)
class Chunks:
    """How a format writes its chunks: the length of their names, the format of their sizes, whether a size counts the header,
    too, and the multiple of bytes to which chunks are padded. AU has no chunks.
    """

    name: int = 4
    size: str = "<I"
    inclusive: bool = False
    align: int = 2

    @property
    def header(self) -> int:
        return self.name + struct.calcsize(self.size)

    def read(self, header: bytes) -> tuple[bytes, int]:
        """Return a chunk's name, and the length of its contents."""
        size: int = struct.unpack(self.size, header[self.name : self.header])[0]
        return header[: self.name], size - (self.header if self.inclusive else 0)

    def padding(self, size: int) -> int:
        return -size % self.align

    def follow(self, header: bytes) -> bool:
        """Whether these bytes, which may be sound as well, look like the beginning of a chunk."""
        if not self.name or len(header) < self.header:
            return False
        if self.name == 16:  # a GUID
            return header[4:16] in _GUIDS
        return re.fullmatch(rb"[\w(][\w ().-]{2}[\w ().\0-]", header[:4]) is not None


_RIFF, _RIFX = Chunks(), Chunks(size=">I")
_W64 = Chunks(16, "<Q", inclusive=True, align=8)
_CAF = Chunks(size=">q", align=1)
_AU = Chunks(0, "", align=1)
_GUIDS = (
    bytes.fromhex("f3acd3118cd100c04f8edb8a"),  # of the chunks that RIFF has, too
    bytes.fromhex("2ecf11a5d628db04c10000"),
)
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")


class HeaderReader:
    """Reads a header, and remembers what it has read. The first 12 bytes are seen ahead."""

    def __init__(self, file: BinaryIO | Ahead, name: str, size: int | None) -> None:
        self.file = file
        self.name = name
        self.size = size  # of the file, None of a pipe
        self.seen = bytearray(file.read(12))
        self.place = 0  # where the next read begins

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raise InputError if there are fewer."""
        begin, self.place = self.place, self.place + size
        while (missing := self.place - len(self.seen)) > 0:
            data = self.file.read(min(missing, 1 << 16))
            if not data:
                raise cut_off(self.name, "ends within its header")
            self.seen += data
        return bytes(self.seen[begin : self.place])

    def content(self, size: int, padding: int = 0) -> bytes:
        """Return the contents of a chunk before the sound."""
        if not 0 <= size <= _MAX_CHUNK:
            what = f"{self.name} has {size} bytes of something else before its sound"
            raise InputError(f"{what}: it is damaged, so get it again.")
        return self.read(size + padding)[:size]

    def chunks_before(self, sound: bytes, chunks: Chunks) -> tuple[dict[bytes, tuple[int, bytes]], int]:
        """Read the chunks before the sound. Return their places and contents by their names, and the size of the sound."""
        found: dict[bytes, tuple[int, bytes]] = {}
        while True:
            name, size = chunks.read(self.read(chunks.header))
            if name[:4] == sound:
                return found, size
            found[name[:4]] = self.place, self.content(size, chunks.padding(size))


def read_header(reader: HeaderReader) -> Numbers | None:
    """Read a file of chunks up to its sound. None: it is not a file of chunks.

    Raise InputError if the header is damaged, or promises more than the file holds.
    """
    start = bytes(reader.seen)
    match start[:4], start[8:]:
        case ((b"RIFF" | b"RF64" | b"BW64"), b"WAVE"):
            return _measured(reader, _wave(reader, _RIFF, 12))
        case b"RIFX", b"WAVE":
            return _measured(reader, _wave(reader, _RIFX, 12))
        case b"riff", _ if start == _W64_RIFF[:12]:
            return _measured(reader, _wave(reader, _W64, 40))
        case b"FORM", (b"AIFF" | b"AIFC"):
            return _measured(reader, _aiff(reader))
        case b".snd", _:
            return _measured(reader, _au(reader))
        case b"caff", _:
            return _measured(reader, _caf(reader))
    return None


def _is_unknown(size: int) -> bool:
    """Whether a 32-bit size is one that programs write as long as they do not know the size."""
    return 0x7FFFF000 <= size <= 0x80001000 or 0xFFFFF000 <= size <= 0xFFFFFFFF


def _wave(reader: HeaderReader, chunks: Chunks, begin: int) -> Numbers:
    """Read WAV, RF64 or W64, whose chunks begin at `begin`. They differ in how they write chunks."""
    order = ">" if chunks is _RIFX else "<"
    reader.place = begin
    found, size = reader.chunks_before(b"data", chunks)
    _, fmt = found.get(b"fmt ", (0, b""))
    if len(fmt) < 16:
        raise InputError(f"{reader.name} is a WAV file without a format", "export it again")
    tag, channels, rate, _, step, bits = struct.unpack(order + "HHIIHH", fmt[:16])
    if tag == 0xFFFE and len(fmt) >= 26:
        tag = struct.unpack(order + "H", fmt[24:26])[0]
    size_field = reader.place - struct.calcsize(chunks.size), chunks.size, chunks.header if chunks.inclusive else 0
    big_at, big = found.get(b"ds64", (0, b""))
    if size == 0xFFFFFFFF and len(big) >= 16:
        size_field = big_at + 8, "<Q", 0
        size = struct.unpack("<Q", big[8:16])[0]
    kinds = {(1, 1): "u1", (1, 2): "i2", (1, 3): "i3", (1, 4): "i4", (3, 4): "f4", (3, 8): "f8"}
    dtype = kinds.get((tag, step // channels), "") if channels and step % channels == 0 else ""
    if dtype and not 0 < bits <= 8 * (step // channels):
        dtype = ""
    coding = Foreign(f"WAV in the coding 0x{tag:04x}", "wav", True)
    mpeg = tag in (0x50, 0x55)
    return Numbers(rate, channels, order + dtype if dtype else "", reader.place, size, chunks, coding, size_field, mpeg)


def _aiff(reader: HeaderReader) -> Numbers:
    compressed = reader.read(12)[8:] == b"AIFC"
    found, size = reader.chunks_before(b"SSND", _RIFX)
    _, common = found.get(b"COMM", (0, b""))
    if len(common) < (22 if compressed else 18):
        raise InputError(f"{reader.name} is an AIFF file without a format before its sound", "export it again")
    size_at = reader.place - 4
    offset, _ = struct.unpack(">II", reader.read(8))
    if offset:
        reader.content(offset)
    channels, _, bits, exponent, mantissa = struct.unpack(">HIHHQ", common[:18])
    power = (exponent & 0x7FFF) - 16383 - 63  # it is a float of 80 bits
    rate = round(mantissa * 2.0**power) if power < 0 else 0
    width = (bits + 7) // 8
    kinds = {b"NONE": ">i", b"twos": ">i", b"in24": ">i", b"in32": ">i", b"sowt": "<i", b"raw ": ">u"}
    kinds |= {b"fl32": ">f", b"FL32": ">f", b"fl64": ">f", b"FL64": ">f"}
    coding = kinds.get(common[18:22], "") if compressed else ">i"
    dtype = f"{coding}{width}" if width in {"i": (1, 2, 3, 4), "u": (1,), "f": (4, 8)}.get(coding[1:], ()) else ""
    size = size if size == 0 else max(0, size - 8 - offset)
    size_field = size_at, ">I", 8 + offset
    called = Foreign(f"AIFF in the coding {_name(common[18:22])}", "aiff", True)
    return Numbers(rate, channels, dtype, reader.place, size, _RIFX, called, size_field)


def _au(reader: HeaderReader) -> Numbers:
    offset, size, coding, rate, channels = struct.unpack(">4x5I", reader.read(24))
    if offset < 24:
        raise InputError(f"{reader.name} is an AU file with a header of {offset} bytes", "export it again")
    reader.content(offset - 24)
    dtype = {2: ">i1", 3: ">i2", 4: ">i3", 5: ">i4", 6: ">f4", 7: ">f8"}.get(coding, "")
    called = Foreign(f"AU in the coding {coding}", "au", True)
    return Numbers(rate, channels, dtype, offset, size, _AU, called, (8, ">I", 0))


def _caf(reader: HeaderReader) -> Numbers:
    reader.place = 8
    found, size = reader.chunks_before(b"data", _CAF)
    _, description = found.get(b"desc", (0, b""))
    if len(description) < 32:
        raise InputError(f"{reader.name} is a CAF file without a format", "export it again")
    size_field = reader.place - 8, ">q", 4
    reader.read(4)  # a count of edits
    rate, coding, flags, step, frames, channels, bits = struct.unpack(">d4s5I", description[:32])
    width = step // channels if channels and frames == 1 and step % channels == 0 else 0
    plain = coding == b"lpcm" and bits == 8 * width and width in ((4, 8) if flags & 1 else (1, 2, 3, 4))
    size = 0xFFFFFFFF if size == -1 else max(0, size - 4)
    rate = round(rate) if 0 < rate < 1e9 else 0
    dtype = f"{'<' if flags & 2 else '>'}{'f' if flags & 1 else 'i'}{width}" if plain else ""
    called = Foreign(f"CAF in the coding {_name(coding)}", "caf", True)
    return Numbers(rate, channels, dtype, reader.place, size, _CAF, called, size_field)


def _name(code: bytes) -> str:
    return printable(code.decode("ascii", "replace").rstrip())


def _measured(reader: HeaderReader, numbers: Numbers) -> Numbers:
    """Check the numbers of a header, and compare its size with what the file holds, unless it is a pipe."""
    name, offset, chunks = reader.name, numbers.offset, numbers.chunks
    if not 0 < numbers.channels <= MAX_CHANNELS:
        what = f"{name} claims to have {numbers.channels} channels"
        raise InputError(what, f"1 to {MAX_CHANNELS} are understood")
    if not RATES[0] <= numbers.rate <= RATES[1]:
        what = f"{name} claims {numbers.rate} samples a second"
        raise InputError(what, f"{RATES[0]} to {RATES[1]} are understood")
    promised = numbers.promised or 0
    if unknown := _is_unknown(promised):
        numbers = replace(numbers, promised=None)
    if reader.size is None:
        return numbers
    held = reader.size - offset
    if promised > held:
        if not unknown:
            raise cut_off(name, f"promises {offset + promised} bytes and holds {reader.size}")
        promised = 0
    file = reader.file
    assert not isinstance(file, Ahead)
    end = without_tags(file, reader.size)
    held = max(promised, end - offset)
    step = 1 << 32 if numbers.wraps else held + 1
    for size in reversed(range(promised, held + 1, step)):
        if (stop := _ends(file, name, chunks, offset, size, held)) is not None:
            return replace(numbers, size=size, promised=promised, following=stop if stop < offset + held else None)
    following = find_recording(file, offset, offset + held)
    if following is None:
        return replace(numbers, size=held, promised=promised)
    if following - offset < (numbers.promised or 0):
        raise cut_off(name, f"promises {offset + promised} bytes, and another recording begins after {following}")
    return replace(numbers, size=following - offset, promised=promised, following=following)


# Chunks that are known to follow the sound. One of these is not sound, even if it is cut off.
_BEHIND = re.compile(rb"LIST|(?i:id3 |junk|pad )|FLLR|bext|cue |smpl|fact|iXML|_PMX|PEAK|COMT|ANNO|NAME|MARK|INST|APPL")


def _ends(file: BinaryIO, name: str, chunks: Chunks, offset: int, size: int, held: int) -> int | None:
    """Return where a recording ends if its sound ends after `size` of the `held` bytes: at the end of the file, where another
    recording begins, or behind its last chunk. None: its sound cannot end there.
    """
    for padding in {chunks.padding(size), 0}:  # which some forget
        begin = offset + size + padding
        if size + padding >= held:
            return offset + held
        file.seek(begin)
        stream = Ahead(file)
        try:
            another = follow_chunks(stream, name, chunks, held - size - padding)
        except InputError:
            if _BEHIND.fullmatch(bytes_at(file, begin, 4)):
                raise
            continue
        if another is not None:
            return begin + stream.position if another else offset + held
    return None


def follow_chunks(stream: Ahead, name: str, chunks: Chunks, held: int | None = None) -> bool | None:
    """Skip the chunks behind the sound, and say whether another recording follows them. None: neither a chunk nor a recording
    follows.

    `held` is how many bytes there are, if that is known. Raise InputError if a chunk is cut off, or something else follows.
    """
    begin = stream.position
    while not begins(stream.peek(WINDOW)):
        passed = stream.position - begin
        if passed == held:
            return False
        header = stream.peek(chunks.header)
        if not chunks.follow(header):
            if not passed:
                return None
            if not header.strip(b"\0"):
                stream.skip_zeros()
                return begins(stream.peek(WINDOW))
            raise damaged(name, f"is damaged {passed} bytes behind its sound")
        _, size = chunks.read(header)
        size += chunks.header
        if size < chunks.header or (held is not None and passed + size > held) or stream.skip(size) < size:
            raise cut_off(name, "ends within what follows its sound")
        stream.skip(chunks.padding(size - chunks.header))
    return True


def patched(numbers: Numbers, file: BinaryIO, name: str) -> Section:
    """Return the section of a file whose numbers libsndfile decodes, with its real size in the header."""
    assert numbers.size is not None
    section = Section(other=numbers.coding)
    if numbers.size == numbers.promised:
        section.add(0, numbers.following or file.seek(0, io.SEEK_END))
        return section
    at, form, more = numbers.size_field
    try:
        size = struct.pack(form, numbers.size + more)
    except struct.error:
        raise InputError(f"{name} holds more than its header can say", "convert it to FLAC") from None
    section.add(0, at)
    section.pieces.append(size)
    section.add(at + len(size), numbers.offset + numbers.size)
    return section
