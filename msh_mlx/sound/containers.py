"""Sound files by their structure: where the sound lies, whether it is complete, and what the decoder is given.

All sound in a file is heard, even if the sizes and counts in its headers say less. A file that promises more than it holds
is refused. To know both, each format is read through here, by its chunks, pages or frames, before anything is decoded.
"""

from __future__ import annotations

import io
import re
import shlex
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import InputError
from ..system.words import printable
from .ogg import page_checksum

RATES = (1_000, 768_000)  # Hz; beyond them a header is damaged rather than unusual
MAGIC = (
    *(b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b".snd", b"caff"),
    *(b"fLaC", b"OggS", b"ID3", b"APETAGEX"),
)
_MAX_CHANNELS = 1024  # as many as the mixer takes
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
    chunks: _Chunks
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


@dataclass
class Stream:
    """A part of a file that libsndfile decodes on its own, made of bytes and of ranges `(begin, end)` of the file.

    `samples` is its length in samples per channel, where we know it better than libsndfile; `slack` is how many of them may
    be missing at the end; `other` names the format, for the message if libsndfile cannot decode it. With `ends_anywhere`,
    decoding may fail behind the last sample: what is there is not part of the sound.
    """

    pieces: list[bytes | tuple[int, int]] = field(default_factory=list)
    samples: int | None = None
    slack: int = 0
    other: Foreign | None = None
    ends_anywhere: bool = False

    def add(self, begin: int, end: int) -> None:
        """Append a range. It is joined to the last one if it begins where that ends."""
        if self.pieces and isinstance(last := self.pieces[-1], tuple) and last[1] == begin:
            self.pieces[-1] = last[0], end
        elif begin < end:
            self.pieces.append((begin, end))


class Pieces(io.RawIOBase):
    """A file for reading, made of bytes and of ranges of another file."""

    def __init__(self, file: BinaryIO, pieces: list[bytes | tuple[int, int]]) -> None:
        self._file = file
        self._pieces = pieces
        lengths = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self._begins = [0, *accumulate(lengths)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Return the position at which the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, as files do, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._begins[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into `buffer`, and return how many bytes were read."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (data := self._next(len(view) - done)):
            view[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
        return done

    def _next(self, size: int) -> bytes:
        """Return at most `size` bytes, of one piece."""
        index = bisect_right(self._begins, self._position) - 1
        if index == len(self._pieces):
            return b""
        within = self._position - self._begins[index]
        piece = self._pieces[index]
        if isinstance(piece, bytes):
            return piece[within : within + size]
        return _at(self._file, piece[0] + within, min(size, piece[1] - piece[0] - within))


class Source(Pieces):
    """What libsndfile reads from. It cannot raise Python's errors, so one ends the file, and is kept in `error`."""

    error: OSError | None = None

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into `buffer`, and return how many bytes were read; 0 after an error."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            self.error = error
            return 0


def past_tags(file: BinaryIO, begin: int, end: int) -> int:
    """Return where the tags that begin at `begin` end."""
    while length := _tag_at(file, begin, end):
        begin = min(begin + length, end)
    return begin


def find_streams(file: BinaryIO, name: str, size: int) -> tuple[list[Stream], int | None]:
    """Find the sound in a file of `size` bytes, without tags in front, in a format that is not made of chunks.

    Return its streams, and the byte at which another recording begins behind them, or None.

    Raises
    ------
    InputError
        The format cannot be read, or the file is cut off or damaged.
    """
    end = _without_tags(file, size)
    start = _at(file, 0, 192)
    if start.startswith(b"OggS"):
        return _ogg(file, name, end)
    if start.startswith(b"fLaC"):
        return _flac(file, name, end)
    if other := foreign(start):
        # Voice memos may be without loss: so says the sample's description, followed by six zeros.
        lossless = other.suffix == "m4a" and _find(file, b"alac" + bytes(6), 0, end) is not None
        raise not_read(name, other._replace(name="M4A (Apple Lossless)") if lossless else other)
    if (first := first_mpeg_frame(file, 0, end)) is not None:
        return _mpeg(file, name, first, end)
    if start[:1] == b"\xff" or not start:
        raise cut_off(name, "cannot be decoded")
    raise not_audio(name)


def not_audio(name: str) -> InputError:
    """Make the error for a file that is not a recording."""
    return InputError(f"{name} is not a WAV, FLAC, OGG or MP3 recording.")


def not_read(name: str, other: Foreign) -> InputError:
    """Make the error for a recording in a format that cannot be read. It says how to convert it."""
    source = name if Path(name).suffix else f"recording.{other.suffix}"
    target = str(Path(source).with_suffix(".wav"))
    if other.apple and sys.platform == "darwin":
        command = f"afconvert -f WAVE -d LEI16 {shlex.quote(source)} {shlex.quote(target)}"
    else:
        command = f"ffmpeg -i {shlex.quote(source)} {shlex.quote(target)}"
    return InputError(f"{name} is {other.name}, which is not read here; convert it with `{command}`.")


def cut_off(name: str, what: str) -> InputError:
    """Make the error for a file with something missing; `what` says how one can tell."""
    return InputError(f"{name} {what}: it is cut off or damaged, so get it again.")


def _damaged(name: str, what: str) -> InputError:
    """Make the error for a file that is damaged in its middle."""
    return InputError(f"{name} {what}; get it again.")


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _blocks(file: BinaryIO, begin: int, end: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield a range of a file in blocks of a megabyte, and where they begin. Each goes `overlap` bytes into the next."""
    for at in range(begin, end, 1 << 20):
        yield at, _at(file, at, min((1 << 20) + overlap, end - at))


def _find(file: BinaryIO, wanted: bytes, begin: int, end: int) -> int | None:
    """Find bytes in a range of a file."""
    for place, block in _blocks(file, begin, end, len(wanted) - 1):
        if (at := block.find(wanted)) >= 0:
            return place + at
    return None


# ---- where recordings begin ----------------------------------------------------------------------------------------------


class Ahead:
    """A stream or file that is read from its present position, and can look ahead."""

    def __init__(self, file: BinaryIO | Ahead, start: bytes = b"") -> None:
        self._file = file
        self._ahead = start
        self.position = 0  # bytes that were read

    def peek(self, size: int) -> bytes:
        """Return what the next read returns."""
        if len(self._ahead) < size:
            self._ahead += self._file.read(size - len(self._ahead))
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only where it ends."""
        data = self.peek(size)
        self._ahead = self._ahead[len(data) :]
        self.position += len(data)
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was read last."""
        self._ahead = data + self._ahead
        self.position -= len(data)

    def skip_zeros(self) -> None:
        """Pass over zeros."""
        while (block := self.peek(1 << 12)) and self.skip(len(block) - len(block.lstrip(b"\0"))) == len(block):
            pass

    def skip(self, size: int) -> int:
        """Pass over `size` bytes and return how many there were."""
        begin = self.position
        while size > self.position - begin and self.read(min(size - (self.position - begin), 1 << 16)):
            pass
        return self.position - begin


HELD_BACK = 24  # bytes needed to see that a recording begins
_WINDOW = 1 << 13  # bytes needed to see the same of frames of MPEG sound
# What recordings begin with, long enough not to occur by chance. Three of these formats cannot be read here.
_START = re.compile(
    rb"(?:RIF[FX]|RF64|BW64).{4}WAVE|riff\x2e\x91\xcf\x11|FORM.{4}AIF[FC]|\.snd\0\0|caff\x00\x01\x00\x00desc"
    rb"|fLaC\0\0\0\x22|OggS\0[\2\6]\0{8}|ID3[\2-\4]\0.[\0-\x7f]{4}"
    rb"|.{4}ftyp(?:M4|mp4|iso|qt  |3gp)|\x1aE\xdf\xa3.{1,8}B\x86|0&\xb2u\x8ef\xcf\x11",
    re.DOTALL,
)


# A few letters of each, which a search finds fast, and their place in it.
_LETTERS = [(b"WAVE", 8), (b"AIF", 8), (b"ftyp", 4)]
_LETTERS += [(word, 0) for word in (b"riff.", b".snd", b"caff", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf", b"0&\xb2")]


def begins(start: bytes) -> bool:
    """Whether another recording, of whatever format, begins with `start`."""
    if not (found := _START.match(start)):
        other = any(len(magic) > 3 and start[at:].startswith(magic) for at, magic, _ in _FOREIGN)
        return other or (start[:1] == b"\xff" and are_mpeg_frames(io.BytesIO(start), 0, 3))
    if found[0].startswith(b".snd"):
        offset, _, coding, rate, channels = struct.unpack(">5I", start[4:24].ljust(20, b"\0"))
        usual = RATES[0] <= rate <= RATES[1] and 0 < channels <= _MAX_CHANNELS
        return bool(usual and offset >= 24 and 0 < coding < 40)
    return True


def find_beginning(data: bytes) -> int | None:
    """Find where in `data` a recording begins. Frames of MPEG sound are not looked for."""
    first = None
    for letters, at in _LETTERS:
        place = data.find(letters, at)
        while place >= 0 and (first is None or place - at < first):
            if begins(data[place - at : place - at + 64]):
                first = place - at
            place = data.find(letters, place + 1)
    return first


def _find_recording(file: BinaryIO, begin: int, end: int) -> int | None:
    """Find where another recording begins in a range of a file. MPEG frames without a tag count only at its beginning."""
    if begins(_at(file, begin, min(_WINDOW, end - begin))):
        return begin
    for place, block in _blocks(file, begin, end, HELD_BACK):
        while (at := find_beginning(block)) is not None:
            place += at
            if not block[at:].startswith(b"ID3"):
                return place
            # A tag has few letters, so what follows it must be a recording, too.
            behind = place + _tag_at(file, place, end)
            if behind < end and begins(_at(file, behind, min(_WINDOW, end - behind))):
                return place
            place, block = place + 3, block[at + 3 :]
    return None


# ---- formats that are not read -------------------------------------------------------------------------------------------


class Foreign(NamedTuple):
    """A format: what to call it, the usual ending of its files' names, and whether macOS converts it by itself."""

    name: str
    suffix: str
    apple: bool = False


_FOREIGN = [  # where it stands, what begins it
    (0, b"\x1aE\xdf\xa3", Foreign("WebM or Matroska", "webm")),
    (0, b"0&\xb2u\x8ef\xcf\x11", Foreign("WMA", "wma")),
    (0, b"#!AMR", Foreign("AMR", "amr", True)),
    (0, b"ADIF", Foreign("AAC", "aac", True)),
    (8, b"AVI ", Foreign("AVI", "avi")),
    (0, b"FLV\x01", Foreign("Flash video", "flv")),
    (0, b"\0\0\x01\xba", Foreign("MPEG video", "mpg")),
    (0, b"wvpk", Foreign("WavPack", "wv")),
    (0, b"MAC ", Foreign("Monkey's Audio", "ape")),
    (0, b"MPCK", Foreign("Musepack", "mpc")),
    (0, b"MP+", Foreign("Musepack", "mpc")),
    (0, b"TTA1", Foreign("True Audio", "tta")),
    (0, b"tBaK", Foreign("TAK", "tak")),
    (0, b"DSD ", Foreign("DSD", "dsf")),
    (0, b"FRM8", Foreign("DSD", "dff")),
    (0, b".RMF", Foreign("RealAudio", "ra")),
    (0, b".ra\xfd", Foreign("RealAudio", "ra")),
    (0, b"\x0bw", Foreign("AC-3", "ac3", True)),
    (0, b"\x7f\xfe\x80\x01", Foreign("DTS", "dts")),
    (8, b"8SVX", Foreign("8SVX", "8svx")),
    (0, b"NIST_1A", Foreign("NIST SPHERE", "sph")),
    (0, b"Creative Voice File", Foreign("VOC", "voc")),
    (0, b"\x64\xa3", Foreign("IRCAM", "sf")),
    (0, b"2BIT", Foreign("AVR", "avr")),
    (0, b" paf", Foreign("PAF", "paf")),
    (0, b"fap ", Foreign("PAF", "paf")),
    (0, b"PVF1", Foreign("PVF", "pvf")),
]
_MP4 = {
    b"M4A ": Foreign("M4A (AAC)", "m4a", True),
    b"M4B ": Foreign("M4B (AAC)", "m4b", True),
    b"qt  ": Foreign("QuickTime", "mov", True),
    b"3gp": Foreign("3GP", "3gp", True),
}


def foreign(start: bytes) -> Foreign | None:
    """Return the format that begins with `start` and cannot be read here; None if it is not a known one."""
    for at, magic, known in _FOREIGN:
        if start[at:].startswith(magic):
            return known
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        brand = start[8:12] if start[4:8] == b"ftyp" else b"qt  "
        return _MP4.get(brand) or _MP4.get(brand[:3]) or Foreign("MP4 (AAC)", "mp4", True)
    # ADTS: twelve bits, layer 0, a rate that exists; LOAS: eleven bits.
    if len(start) > 2 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0 and start[2] >> 2 & 15 < 13:
        return Foreign("AAC", "aac", True)
    if start[:1] == b"G" == start[188:189]:
        return Foreign("MPEG transport stream", "ts")
    if len(start) > 2 and start[0] == 0x56 and start[1] & 0xE0 == 0xE0:
        return Foreign("AAC (LATM)", "aac")
    return None


# ---- tags ----------------------------------------------------------------------------------------------------------------


def _without_tags(file: BinaryIO, size: int) -> int:
    """Return where the tags at the end of a file begin."""
    while length := _tag_before(file, size):
        size = max(size - length, 0)
    return size


def _tag_at(file: BinaryIO, offset: int, end: int) -> int:
    """Return the length of the tag at `offset`: ID3v2, APE, Lyrics3, ID3v1 or its enhanced form. 0: there is none."""
    head = _at(file, offset, 32)
    if head.startswith(b"ID3") and len(head) >= 10:
        return 10 + _syncsafe(head[6:10]) + (10 if head[5] & 0x10 else 0)
    if head.startswith(b"APETAGEX") and len(head) == 32:
        size, flags = struct.unpack("<I4xI", head[12:24])
        # The header tells the length of what follows it, the footer of what ends with it.
        return 32 + int(size) if flags & 1 << 29 else 32
    if head.startswith(b"LYRICSBEGIN"):
        for mark in (b"LYRICS200", b"LYRICSEND"):
            if (at := _find(file, mark, offset, min(end, offset + (1 << 20)))) is not None:
                return at + len(mark) - offset
    if head.startswith(b"TAG+"):
        return 227
    if head.startswith(b"TAG"):
        return 128
    return 0


def _tag_before(file: BinaryIO, end: int) -> int:
    """Return the length of the tag that ends at `end`; 0 if there is none."""
    if end >= 128 and _at(file, end - 128, 3) == b"TAG":
        enhanced = end >= 128 + 227 and _at(file, end - 128 - 227, 4) == b"TAG+"
        return 128 + (227 if enhanced else 0)
    if end < 32:
        return 0
    foot = _at(file, end - 32, 32)
    if foot.startswith(b"APETAGEX"):
        size, flags = struct.unpack("<I4xI", foot[12:24])
        return int(size) + (32 if flags & 1 << 31 else 0)
    if foot.endswith(b"LYRICS200") and foot[-15:-9].isdigit():
        return int(foot[-15:-9]) + 15
    if foot.endswith(b"LYRICSEND"):
        window = max(0, end - 5200)
        at = _at(file, window, end - window).rfind(b"LYRICSBEGIN")
        return end - window - at if at >= 0 else 0
    if foot[-10:-7] == b"3DI":
        return _syncsafe(foot[-4:]) + 20
    return 0


def _syncsafe(data: bytes) -> int:
    return sum((byte & 0x7F) << shift for byte, shift in zip(data, (21, 14, 7, 0), strict=True))


# ---- chunks: WAV, RF64, W64, AIFF, CAF and AU ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chunks:
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


_RIFF, _RIFX = _Chunks(), _Chunks(size=">I")
_W64 = _Chunks(16, "<Q", inclusive=True, align=8)
_CAF = _Chunks(size=">q", align=1)
_AU = _Chunks(0, "", align=1)
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

    def chunks_before(self, sound: bytes, chunks: _Chunks) -> tuple[dict[bytes, tuple[int, bytes]], int]:
        """Read the chunks before the sound. Return their places and contents by their names, and the size of the sound."""
        found: dict[bytes, tuple[int, bytes]] = {}
        while True:
            name, size = chunks.read(self.read(chunks.header))
            if name[:4] == sound:
                return found, size
            found[name[:4]] = self.place, self.content(size, chunks.padding(size))


def read_header(reader: HeaderReader) -> Numbers | None:
    """Read a file of chunks up to its sound. None: it is not a file of chunks.

    Raises
    ------
    InputError
        The header is damaged, or promises more than the file holds.
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


def _wave(reader: HeaderReader, chunks: _Chunks, begin: int) -> Numbers:
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
    if not 0 < numbers.channels <= _MAX_CHANNELS:
        what = f"{name} claims to have {numbers.channels} channels"
        raise InputError(what, f"1 to {_MAX_CHANNELS} are understood")
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
    end = _without_tags(file, reader.size)
    held = max(promised, end - offset)
    step = 1 << 32 if numbers.wraps else held + 1
    for size in reversed(range(promised, held + 1, step)):
        if (stop := _ends(file, name, chunks, offset, size, held)) is not None:
            return replace(numbers, size=size, promised=promised, following=stop if stop < offset + held else None)
    following = _find_recording(file, offset, offset + held)
    if following is None:
        return replace(numbers, size=held, promised=promised)
    if following - offset < (numbers.promised or 0):
        raise cut_off(name, f"promises {offset + promised} bytes, and another recording begins after {following}")
    return replace(numbers, size=following - offset, promised=promised, following=following)


# Chunks that are known to follow the sound. One of these is not sound, even if it is cut off.
_BEHIND = re.compile(rb"LIST|(?i:id3 |junk|pad )|FLLR|bext|cue |smpl|fact|iXML|_PMX|PEAK|COMT|ANNO|NAME|MARK|INST|APPL")


def _ends(file: BinaryIO, name: str, chunks: _Chunks, offset: int, size: int, held: int) -> int | None:
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
            if _BEHIND.fullmatch(_at(file, begin, 4)):
                raise
            continue
        if another is not None:
            return begin + stream.position if another else offset + held
    return None


def follow_chunks(stream: Ahead, name: str, chunks: _Chunks, held: int | None = None) -> bool | None:
    """Skip the chunks behind the sound, and say whether another recording follows them. None: neither a chunk nor a recording
    follows.

    `held` is how many bytes there are, if that is known.

    Raises
    ------
    InputError
        The last chunk is cut off, or something else follows.
    """
    begin = stream.position
    while not begins(stream.peek(_WINDOW)):
        passed = stream.position - begin
        if passed == held:
            return False
        header = stream.peek(chunks.header)
        if not chunks.follow(header):
            if not passed:
                return None
            if not header.strip(b"\0"):
                stream.skip_zeros()
                return begins(stream.peek(_WINDOW))
            raise _damaged(name, f"is damaged {passed} bytes behind its sound")
        _, size = chunks.read(header)
        size += chunks.header
        if size < chunks.header or (held is not None and passed + size > held) or stream.skip(size) < size:
            raise cut_off(name, "ends within what follows its sound")
        stream.skip(chunks.padding(size - chunks.header))
    return True


def patched(numbers: Numbers, file: BinaryIO, name: str) -> Stream:
    """Return the stream of a file whose numbers libsndfile decodes, with its real size in the header."""
    assert numbers.size is not None
    stream = Stream(other=numbers.coding)
    if numbers.size == numbers.promised:
        stream.add(0, numbers.following or file.seek(0, io.SEEK_END))
        return stream
    at, form, more = numbers.size_field
    try:
        size = struct.pack(form, numbers.size + more)
    except struct.error:
        raise InputError(f"{name} holds more than its header can say; convert it to FLAC.") from None
    stream.add(0, at)
    stream.pieces.append(size)
    stream.add(at + len(size), numbers.offset + numbers.size)
    return stream


# ---- FLAC ----------------------------------------------------------------------------------------------------------------


def _flac(file: BinaryIO, name: str, end: int) -> tuple[list[Stream], int | None]:
    """Find a FLAC stream, and where another recording begins behind it.

    libsndfile is not told the length: so it reads up to the end, and finds all damage. Whether something was left out is
    found once the stream has been read.
    """
    head = _at(file, 0, 26)
    if len(head) < 26:
        raise cut_off(name, "ends within its header")
    offset, last = 4, False
    while not last and offset < end:  # other blocks may hold anything, another recording's header, too
        kind = _at(file, offset, 4)
        last = bool(kind[0] & 0x80)
        offset += 4 + int.from_bytes(kind[1:], "big")
    following = _find_recording(file, offset, end)
    stream = Stream([_without_length(head)], _flac_samples(head), ends_anywhere=True)
    stream.add(26, end if following is None else following)
    return [stream], following


def goes_on(pieces: Pieces) -> bool:
    """Whether MPEG frames begin near the place where the decoder of a FLAC stream gave up. It reads ahead."""
    pieces.seek(max(0, pieces.tell() - (1 << 16)))
    window = pieces.read(1 << 17) or b""
    return any(begins(window[at : at + _WINDOW]) for at in (match.start() for match in re.finditer(rb"\xff", window)))


def _flac_samples(head: bytes) -> int | None:
    """Return the length in the first 26 bytes of a FLAC stream; None if it is 0, because it was written into a pipe."""
    return (int.from_bytes(head[21:26], "big") & (1 << 36) - 1) or None


def _without_length(head: bytes) -> bytes:
    return head[:21] + bytes([head[21] & 0xF0]) + bytes(4)


# ---- Ogg -----------------------------------------------------------------------------------------------------------------


@dataclass
class _OggStream:
    """One of several streams side by side: the number of its pages, and the beginning of its first packet."""

    codec: bytes
    pages: list[tuple[int, int, int]]  # where they begin, where their content begins, where they end
    sequence: int
    ended: bool = False
    goes_on: bool = False  # with a packet that is not over


_OGG_FOREIGN = [
    (b"Speex   ", Foreign("Speex", "spx")),
    (b"\x80theora", Foreign("Theora video", "ogv")),
    (b"", Foreign("OGG with something else than Opus, Vorbis or FLAC", "ogg")),
]


def _ogg(file: BinaryIO, name: str, end: int) -> tuple[list[Stream], int | None]:
    """Find the streams of an Ogg file, one behind the other, and check all their pages. Find where another recording begins.

    The last page need not be marked as the last: Android's recorders do not mark it.
    """
    links: list[dict[int, _OggStream]] = []
    beginning = False  # the pages are the first of their streams
    offset, following = 0, None
    while offset < end:
        page, size = _ogg_page(file, offset)
        if not size:
            # Something was put behind the sound, and maybe another recording behind that.
            following = _find_recording(file, offset, end)
            if following is None:
                following = first_mpeg_frame(file, offset, end)
            stop = end if following is None else following
            ended = links and (stop == offset or all(stream.ended for stream in links[-1].values()))
            if ended and _find(file, b"OggS", offset + 1, stop) is None:
                break
            raise _damaged(name, f"is damaged at byte {offset}, where no page begins")
        if offset + size > end:
            raise cut_off(name, "ends within a page")
        body = offset + 27 + page[26]
        if page_checksum(page) != page[22:26]:
            raise _damaged(name, f"is damaged at byte {offset}")
        serial, sequence = struct.unpack("<II", page[14:22])
        if page[5] & 2:
            if not beginning:
                links.append({})
            beginning = True
            links[-1][serial] = _OggStream(page[27 + page[26] :][:8], [], sequence)
        else:
            beginning = False
        stream = links[-1].get(serial) if links else None
        if stream is None:
            raise _damaged(name, f"is damaged before byte {offset}: what goes on there did not begin")
        if sequence != stream.sequence:
            raise _damaged(name, f"is damaged: pages are missing before byte {offset}")
        stream.pages.append((offset, body, offset + len(page)))
        stream.sequence = sequence + 1 & 0xFFFFFFFF
        stream.ended = bool(page[5] & 4)
        if page[26]:
            stream.goes_on = page[26 + page[26]] == 255
        offset += len(page)
    if not links:
        raise cut_off(name, "has no whole page")
    return [_ogg_stream(file, name, link) for link in links], following


def _ogg_page(file: BinaryIO, offset: int) -> tuple[bytes, int]:
    """Read the page at `offset`, as far as it is there. Return it and its size; the size is 0 if no page begins there."""
    page = _at(file, offset, 27)
    if not b"OggS\0".startswith(page[:5]):
        return b"", 0
    if len(page) < 27:
        return page, 27
    sizes = file.read(page[26])
    size = 27 + page[26] + sum(sizes)
    return page + sizes + file.read(sum(sizes)), size


def _ogg_stream(file: BinaryIO, name: str, link: dict[int, _OggStream]) -> Stream:
    """Return the stream to hear, of several side by side; exactly one of them must be sound."""
    heard = [stream for stream in link.values() if stream.codec.startswith((b"OpusHead", b"\x01vorbis", b"\x7fFLAC"))]
    if not heard:
        codec = next(iter(link.values())).codec
        raise not_read(name, next(other for magic, other in _OGG_FOREIGN if codec.startswith(magic)))
    if len(heard) > 1:
        raise InputError(f"{name} holds {len(heard)} recordings side by side; save one of them alone.")
    stream = heard[0]
    if stream.goes_on:
        raise cut_off(name, "ends within a packet")
    found = Stream()
    if stream.codec.startswith(b"\x7fFLAC"):
        # Nine bytes, then FLAC as it is without Ogg.
        _, body, end = stream.pages[0]
        head = _at(file, body + 9, 26)
        found.pieces.append(_without_length(head) + _at(file, body + 9 + 26, end - body - 9 - 26))
        found.samples = _flac_samples(head)
        for _, body, end in stream.pages[1:]:
            found.add(body, end)
        return found
    for begin, _, end in stream.pages[:-1]:
        found.add(begin, end)
    begin, _, end = stream.pages[-1]
    if stream.ended:
        found.add(begin, end)
    else:
        page = bytearray(_at(file, begin, end - begin))
        page[5] |= 4
        page[22:26] = page_checksum(bytes(page))
        found.pieces.append(bytes(page))
    return found


# ---- MPEG ----------------------------------------------------------------------------------------------------------------


class MpegFrame(NamedTuple):
    """An MPEG frame: its length in bytes, and what stays the same within a recording."""

    size: int
    kind: tuple[int, int, int, bool]  # version, layer, samples a second, mono


# Bit rates in kbit/s by the header's index, of MPEG 1's layers I to III, and of the others'.
_KBITS = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBITS[False, 3] = _KBITS[False, 2]


def mpeg_frame(head: bytes) -> MpegFrame | None:
    """Read the header of an MPEG frame, its first four bytes; None if it is not one."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    index, bits = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer == 4 or index == 3 or bits in (0, 15):
        return None
    rate = (44100, 48000, 32000)[index] >> {3: 0, 2: 1, 0: 2}[version]
    rate_of_bits, padding = 1000 * _KBITS[version == 3, layer][bits], head[2] >> 1 & 1
    samples = {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer]
    unit = 4 if layer == 1 else 1  # bytes
    size = (samples // 8 // unit * rate_of_bits // rate + padding) * unit
    return MpegFrame(size, (version, layer, rate, head[3] >> 6 == 3))


def mpeg_frame_at(file: BinaryIO, offset: int) -> MpegFrame | None:
    """Read the header of the MPEG frame that begins at `offset`; None if none does."""
    file.seek(offset)
    return mpeg_frame(file.read(4))


def are_mpeg_frames(file: BinaryIO, begin: int, wanted: int) -> bool:
    """Whether `wanted` MPEG frames of the same kind follow each other from `begin` on."""
    kinds = set()
    for _ in range(wanted):
        if not (frame := mpeg_frame_at(file, begin)):
            return False
        kinds.add(frame.kind)
        begin += frame.size
    return len(kinds) == 1


def first_mpeg_frame(file: BinaryIO, begin: int, end: int) -> int | None:
    """Find the first whole MPEG frame; the rest of one or of a tag may come before it. None: there is none."""
    file.seek(begin)
    window = file.read(min(end - begin, 1 << 16))
    stripped = len(window) - len(window.lstrip(b"\0"))
    at = stripped
    while (at := window.find(b"\xff", at)) >= 0:
        # At the very beginning a few are enough; later, more of them are wanted.
        if are_mpeg_frames(file, begin + at, 1 if at == stripped else 3):
            return begin + at
        at += 1
    return None


# ---- the frame that counts the others ------------------------------------------------------------------------------------


def mpeg_counts(frame: bytes) -> tuple[int, int] | None:
    """Return what a header frame counts: the frames behind it, and all bytes with its own; 0: not said. None: no such frame."""
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        size, frames = struct.unpack(">II", frame[46:54])
        return frames, size
    at = xing_place(frame)
    if at is None:
        return None
    flags, *counts = struct.unpack(">III", frame[at + 4 : at + 16])
    frames = counts.pop(0) if flags & 1 else 0
    return frames, counts[0] if flags & 2 else 0


def xing_place(frame: bytes) -> int | None:
    """Return the place in a layer III frame where a header called "Xing" or "Info" begins; None if none does."""
    at = 4 + _side(frame)
    for place in (at if frame[1] & 1 else at + 2, at):
        if frame[place : place + 4] in (b"Xing", b"Info") and len(frame) >= place + 16:
            return place
    return None


def _side(frame: bytes) -> int:
    """Return the length of the side information between a layer III frame's header and its sound, in bytes."""
    mono = frame[3] >> 6 == 3
    return (17 if mono else 32) if frame[1] >> 3 & 3 == 3 else (9 if mono else 17)


def recounted(header: bytes, frames: int, size: int) -> bytes:
    """Return the header frame `header` with other counts. The rest of it stays."""
    at = xing_place(header)
    if at is None or not header[at + 7] & 1:
        return counting_frame(header[:4], frames, size)
    counts = struct.pack(">II", frames, size)[: 8 if header[at + 7] & 2 else 4]
    return header[: at + 8] + counts + header[at + 8 + len(counts) :]


def counting_frame(first: bytes, frames: int, size: int) -> bytes:
    """Return a silent frame of the kind of `first` that says how many frames and bytes follow it.

    Without one, the decoder guesses the length from the first frame and stops there.
    """
    if first[1] >> 1 & 3 != 1:
        return b""  # only layer III has such a frame
    # No checksum, no padding, and a bit rate with room enough.
    head = bytes([first[0], first[1] | 1, 0x90 | first[2] & 0x0C, first[3]])
    frame = mpeg_frame(head)
    assert frame
    body = head + bytes(_side(head)) + b"Xing" + struct.pack(">III", 3, frames, size)
    return body + bytes(frame.size - len(body))


@dataclass
class _MpegRecording:
    """A recording in MPEG frames. `header` is its first frame if that holds no sound, but counts the others."""

    kind: tuple[int, int, int, bool]
    first: bytes
    header: bytes = b""
    counted: tuple[int, int] = (0, 0)  # what the header says: frames, and bytes with its own
    frames: int = 0
    size: int = 0  # in bytes
    body: Stream = field(default_factory=Stream)

    @property
    def complete(self) -> bool:
        """Whether all frames and bytes are there that its header counts."""
        return 0 < self.counted[0] <= self.frames


def _mpeg(file: BinaryIO, name: str, begin: int, end: int) -> tuple[list[Stream], int | None]:
    """Find MPEG recordings, one behind the other, by their frames. Tags may lie between them. Stop at another recording."""
    found: list[_MpegRecording] = []
    offset, following = begin, None
    while offset < end:
        head = _at(file, offset, 4)
        frame = mpeg_frame(head)
        if frame is None or (
            found and frame.kind != found[-1].kind and mpeg_frame_at(file, offset + frame.size) is None
        ):
            another = begins(_at(file, offset, min(_WINDOW, end - offset)))
            if length := _tag_at(file, offset, end) or (0 if another else _padding(file, offset, end, found)):
                offset += length
                continue
            following = _find_recording(file, offset, end)
            if not _may_end(file, found[-1], offset, end if following is None else following):
                raise _damaged(name, f"is damaged at byte {offset}")
            break
        if offset + frame.size > end:
            raise cut_off(name, "ends within an MPEG frame")
        whole = _at(file, offset, frame.size)
        counts = mpeg_counts(whole)
        if counts or not found or frame.kind != found[-1].kind:
            found.append(_MpegRecording(frame.kind, head))
        stream = found[-1]
        if counts:
            stream.header, stream.counted = whole, counts
        else:
            stream.frames += 1
            stream.body.add(offset, offset + frame.size)
        stream.size += frame.size
        offset += frame.size
    for stream in found:
        for piece in stream.body.pieces:
            if isinstance(piece, tuple) and (at := _another_within(file, *piece)) is not None:
                raise cut_off(name, f"ends within an MPEG frame, and another recording begins at byte {at}")
    return [_mpeg_stream(name, stream) for stream in found if stream.frames or stream.counted[0]], following


def _another_within(file: BinaryIO, begin: int, end: int) -> int | None:
    """Find where another recording begins within one of a range of frames. That frame is cut off, then."""
    for place, block in _blocks(file, begin, end, 64):
        if (at := find_beginning(block)) is not None:
            return place + at
        for match in re.finditer(b"Xing|Info", block):
            for at in (match.start() - before for before in (13, 21, 36)):
                if at >= 0 and mpeg_frame(block[at:]) and xing_place(block[at:]):
                    return place + at
    return None


_MAX_PADDING = 1 << 13  # bytes, of one value, behind a recording that does not say how long it is
_MAX_TEXT = 1 << 16  # bytes of text behind one


def _padding(file: BinaryIO, offset: int, end: int, found: list[_MpegRecording]) -> int:
    """Return how many bytes of padding end a recording; 0 if there are none, or if they take the place of sound."""
    place = offset
    for at, block in _blocks(file, offset, end, 0):
        rest = block.lstrip(b"\0")
        place = at + len(block) - len(rest)
        if rest:
            break
    if begins(_at(file, max(offset, place - 3), 64)):  # which may begin with zeros
        place = max(offset, place - 3)
    frame = mpeg_frame_at(file, place) if place < end else None
    goes_on = frame is not None and frame.kind == found[-1].kind and not mpeg_counts(_at(file, place, frame.size))
    room = end if found[-1].complete else min(_MAX_PADDING, found[-1].size // 2)
    return 0 if goes_on or place - offset > room else place - offset


def _may_end(file: BinaryIO, last: _MpegRecording, offset: int, stop: int) -> bool:
    """Whether the bytes up to `stop`, neither frames nor a tag, were added behind the sound and are not sound."""
    if last.complete:
        return first_mpeg_frame(file, offset, stop) is None
    rest = _at(file, offset, min(stop - offset, _MAX_TEXT + 1))
    if len(set(rest)) <= 1:
        return len(rest) <= min(_MAX_PADDING, last.size // 2)
    try:
        text = rest.decode()
    except UnicodeDecodeError:
        return False
    return len(rest) <= _MAX_TEXT and "".join(text.split()).isprintable()


def _mpeg_stream(name: str, found: _MpegRecording) -> Stream:
    frames, size = found.counted
    # Some count the header, some do not; so the bytes have to be missing, too, if they are known.
    if found.frames < frames and (not size or found.size < size):
        raise cut_off(name, f"promises {frames} MPEG frames and holds {found.frames}")
    header = found.header
    if not header:
        header = counting_frame(found.first, found.frames, found.size)
    elif found.frames > frames:
        header = recounted(header, found.frames, found.size)
    return Stream([header, *found.body.pieces], slack=1152)
