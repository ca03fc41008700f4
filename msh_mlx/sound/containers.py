"""Sound files by their structure: what all formats have in common, where recordings begin, and what is not read.

All sound in a file is heard, even if the sizes and counts in its headers say less. A file that promises more than it holds
is refused. To know both, each format is read through, by its chunks, pages or MPEG frames, before anything is decoded.
"""

from __future__ import annotations

import heapq
import io
import re
import shlex
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import InputError
from .mpeg import are_mpeg_frames

RATES = (1_000, 768_000)  # Hz; beyond them a header is damaged rather than unusual
MAGIC = (
    *(b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b".snd", b"caff"),
    *(b"fLaC", b"OggS", b"ID3", b"APETAGEX"),
)
MAX_CHANNELS = 1024  # as many as the mixer takes


class Foreign(NamedTuple):
    """A format: what to call it, the usual ending of its files' names, and whether macOS converts it by itself."""

    name: str
    suffix: str
    apple: bool = False


@dataclass
class Section:
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
        return bytes_at(self._file, piece[0] + within, min(size, piece[1] - piece[0] - within))


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


def not_audio(name: str) -> InputError:
    """Make the error for a file that is not a recording."""
    return InputError(
        f"{name} is not a recording in a format that is read here", "give WAV, FLAC, OGG, MP3, AIFF, AU or CAF"
    )


def not_read(name: str, other: Foreign) -> InputError:
    """Make the error for a recording in a format that cannot be read. It says how to convert it."""
    source = name if Path(name).suffix else f"recording.{other.suffix}"
    target = str(Path(source).with_suffix(".wav"))
    if other.apple and sys.platform == "darwin":
        command = f"afconvert -f WAVE -d LEI16 {shlex.quote(source)} {shlex.quote(target)}"
    else:
        command = f"ffmpeg -i {shlex.quote(source)} {shlex.quote(target)}"
    return InputError(f"{name} is {other.name}, which is not read here", f"convert it with `{command}`")


def cut_off(name: str, what: str) -> InputError:
    """Make the error for a file with something missing; `what` says how one can tell."""
    return InputError(f"{name} {what}: it is cut off or damaged, so get it again.")


def damaged(name: str, what: str) -> InputError:
    """Make the error for a file that is damaged in its middle."""
    return InputError(f"{name} {what}", "get it again")


def bytes_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def blocks(file: BinaryIO, begin: int, end: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield a range of a file in blocks of a megabyte, and where they begin. Each goes `overlap` bytes into the next."""
    for at in range(begin, end, 1 << 20):
        yield at, bytes_at(file, at, min((1 << 20) + overlap, end - at))


def find_bytes(file: BinaryIO, wanted: bytes, begin: int, end: int) -> int | None:
    """Find bytes in a range of a file."""
    for place, block in blocks(file, begin, end, len(wanted) - 1):
        if (at := block.find(wanted)) >= 0:
            return place + at
    return None


# ---- where recordings begin ----------------------------------------------------------------------------------------------


HELD_BACK = 24  # bytes needed to see that a recording begins
WINDOW = 1 << 13  # bytes needed to see the same of MPEG frames
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
        usual = RATES[0] <= rate <= RATES[1] and 0 < channels <= MAX_CHANNELS
        return bool(usual and offset >= 24 and 0 < coding < 40)
    return True


def beginnings(data: bytes) -> Iterator[int]:
    """Yield where in `data` recordings begin. MPEG frames are not looked for."""

    def places(letters: bytes, at: int) -> Iterator[int]:
        place = data.find(letters, at)
        while place >= 0:
            yield place - at
            place = data.find(letters, place + 1)

    candidates = heapq.merge(*(places(*each) for each in _LETTERS))
    return (place for place in candidates if begins(data[place : place + 64]))


def find_recording(file: BinaryIO, begin: int, end: int) -> int | None:
    """Find where another recording begins in a range of a file. MPEG frames without a tag count only at its beginning."""
    if begins(bytes_at(file, begin, min(WINDOW, end - begin))):
        return begin
    for place, block in blocks(file, begin, end, HELD_BACK):
        for at in beginnings(block):
            if not block.startswith(b"ID3", at):
                return place + at
            # A tag has few letters, so what follows it must be a recording, too.
            behind = place + at + tag_at(file, place + at, end)
            if behind < end and begins(bytes_at(file, behind, min(WINDOW, end - behind))):
                return place + at
    return None


# ---- formats that are not read -------------------------------------------------------------------------------------------


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


def past_tags(file: BinaryIO, begin: int, end: int) -> int:
    """Return where the tags that begin at `begin` end."""
    while length := tag_at(file, begin, end):
        begin = min(begin + length, end)
    return begin


def without_tags(file: BinaryIO, size: int) -> int:
    """Return where the tags at the end of a file begin."""
    while length := _tag_before(file, size):
        size = max(size - length, 0)
    return size


def tag_at(file: BinaryIO, offset: int, end: int) -> int:
    """Return the length of the tag at `offset`: ID3v2, APE, Lyrics3, ID3v1 or its enhanced form. 0: there is none."""
    head = bytes_at(file, offset, 32)
    if head.startswith(b"ID3") and len(head) >= 10:
        return 10 + _syncsafe(head[6:10]) + (10 if head[5] & 0x10 else 0)
    if head.startswith(b"APETAGEX") and len(head) == 32:
        size, flags = struct.unpack("<I4xI", head[12:24])
        # The header tells the length of what follows it, the footer of what ends with it.
        return 32 + int(size) if flags & 1 << 29 else 32
    if head.startswith(b"LYRICSBEGIN"):
        for mark in (b"LYRICS200", b"LYRICSEND"):
            if (at := find_bytes(file, mark, offset, min(end, offset + (1 << 20)))) is not None:
                return at + len(mark) - offset
    if head.startswith(b"TAG+"):
        return 227
    if head.startswith(b"TAG"):
        return 128
    return 0


def _tag_before(file: BinaryIO, end: int) -> int:
    """Return the length of the tag that ends at `end`; 0 if there is none."""
    if end >= 128 and bytes_at(file, end - 128, 3) == b"TAG":
        enhanced = end >= 128 + 227 and bytes_at(file, end - 128 - 227, 4) == b"TAG+"
        return 128 + (227 if enhanced else 0)
    if end < 32:
        return 0
    foot = bytes_at(file, end - 32, 32)
    if foot.startswith(b"APETAGEX"):
        size, flags = struct.unpack("<I4xI", foot[12:24])
        return int(size) + (32 if flags & 1 << 31 else 0)
    if foot.endswith(b"LYRICS200") and foot[-15:-9].isdigit():
        return int(foot[-15:-9]) + 15
    if foot.endswith(b"LYRICSEND"):
        window = max(0, end - 5200)
        at = bytes_at(file, window, end - window).rfind(b"LYRICSBEGIN")
        return end - window - at if at >= 0 else 0
    if foot[-10:-7] == b"3DI":
        return _syncsafe(foot[-4:]) + 20
    return 0


def _syncsafe(data: bytes) -> int:
    return sum((byte & 0x7F) << shift for byte, shift in zip(data, (21, 14, 7, 0), strict=True))
