"""FLAC, Ogg and MPEG sound: the sections of a file that libsndfile decodes, and whether they are complete."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from ..errors import InputError
from .containers import (
    WINDOW,
    Foreign,
    Pieces,
    Section,
    beginnings,
    begins,
    blocks,
    bytes_at,
    cut_off,
    damaged,
    find_bytes,
    find_recording,
    foreign,
    not_audio,
    not_read,
    tag_at,
    without_tags,
)
from .mpeg import counting_frame, first_mpeg_frame, mpeg_counts, mpeg_frame, mpeg_frame_at, recounted, xing_place
from .ogg import page_checksum


def find_sections(file: BinaryIO, name: str, size: int) -> tuple[list[Section], int | None]:
    """Find the sound in a file of `size` bytes, without tags in front, in a format that is not made of chunks.

    Return its sections, and the byte at which another recording begins behind them, or None. Raise InputError if the format
    cannot be read, or the file is cut off or damaged.
    """
    end = without_tags(file, size)
    start = bytes_at(file, 0, 192)
    if start.startswith(b"OggS"):
        return _ogg(file, name, end)
    if start.startswith(b"fLaC"):
        return _flac(file, name, end)
    if other := foreign(start):
        # Voice memos may be without loss: so says the sample's description, followed by six zeros.
        lossless = other.suffix == "m4a" and find_bytes(file, b"alac" + bytes(6), 0, end) is not None
        raise not_read(name, other._replace(name="M4A (Apple Lossless)") if lossless else other)
    if (first := first_mpeg_frame(file, 0, end)) is not None:
        return _mpeg(file, name, first, end)
    if start[:1] == b"\xff" or not start:
        raise cut_off(name, "cannot be decoded")
    raise not_audio(name)


# ---- FLAC ----------------------------------------------------------------------------------------------------------------


def _flac(file: BinaryIO, name: str, end: int) -> tuple[list[Section], int | None]:
    """Find a FLAC stream, and where another recording begins behind it.

    libsndfile is not told the length: so it reads up to the end, and finds all damage. Whether something was left out is
    found once the stream has been read.
    """
    head = bytes_at(file, 0, 26)
    if len(head) < 26:
        raise cut_off(name, "ends within its header")
    offset, last = 4, False
    while not last and offset < end:  # other blocks may hold anything, another recording's header, too
        block = bytes_at(file, offset, 4)
        last = block[:1] >= b"\x80"
        offset += 4 + int.from_bytes(block[1:], "big")
    if offset > end:
        raise cut_off(name, "ends within its header")
    following = find_recording(file, offset, end)
    section = Section([_without_length(head)], _flac_samples(head), ends_anywhere=True)
    section.add(26, end if following is None else following)
    return [section], following


def goes_on(pieces: Pieces) -> bool:
    """Whether MPEG frames begin near the place where the decoder of a FLAC stream gave up. It reads ahead."""
    pieces.seek(max(0, pieces.tell() - (1 << 16)))
    window = pieces.read(1 << 17) or b""
    return any(begins(window[at : at + WINDOW]) for at in (match.start() for match in re.finditer(rb"\xff", window)))


def _flac_samples(head: bytes) -> int | None:
    """Return the length in the first 26 bytes of a FLAC stream; None if it is 0, because it was written into a pipe."""
    return (int.from_bytes(head[21:26], "big") & (1 << 36) - 1) or None


def _without_length(head: bytes) -> bytes:
    return head[:21] + bytes([head[21] & 0xF0]) + bytes(4) + head[26:]


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


def _ogg(file: BinaryIO, name: str, end: int) -> tuple[list[Section], int | None]:
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
            following = find_recording(file, offset, end)
            if following is None:
                following = first_mpeg_frame(file, offset, end)
            stop = end if following is None else following
            ended = links and (stop == offset or all(stream.ended for stream in links[-1].values()))
            if ended and find_bytes(file, b"OggS", offset + 1, stop) is None:
                break
            raise damaged(name, f"is damaged at byte {offset}, where no page begins")
        if offset + size > end:
            raise cut_off(name, "ends within a page")
        body = offset + 27 + page[26]
        if page_checksum(page) != page[22:26]:
            raise damaged(name, f"is damaged at byte {offset}")
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
            raise damaged(
                name, f"is damaged before byte {offset}: the beginning of the stream that goes on there is missing"
            )
        if sequence != stream.sequence:
            raise damaged(name, f"is damaged: pages are missing before byte {offset}")
        stream.pages.append((offset, body, offset + len(page)))
        stream.sequence = sequence + 1 & 0xFFFFFFFF
        stream.ended = bool(page[5] & 4)
        if page[26]:
            stream.goes_on = page[26 + page[26]] == 255
        offset += len(page)
    if not links:
        raise cut_off(name, "has no whole page")
    return [_ogg_section(file, name, link) for link in links], following


def _ogg_page(file: BinaryIO, offset: int) -> tuple[bytes, int]:
    """Read the page at `offset`, as far as it is there. Return it and its size; the size is 0 if no page begins there."""
    page = bytes_at(file, offset, 27)
    if not b"OggS\0".startswith(page[:5]):
        return b"", 0
    if len(page) < 27:
        return page, 27
    sizes = file.read(page[26])
    size = 27 + page[26] + sum(sizes)
    return page + sizes + file.read(sum(sizes)), size


def _ogg_section(file: BinaryIO, name: str, link: dict[int, _OggStream]) -> Section:
    """Return the stream to hear, of several side by side; exactly one of them must be sound."""
    heard = [stream for stream in link.values() if stream.codec.startswith((b"OpusHead", b"\x01vorbis", b"\x7fFLAC"))]
    if not heard:
        codec = next(iter(link.values())).codec
        raise not_read(name, next(other for magic, other in _OGG_FOREIGN if codec.startswith(magic)))
    if len(heard) > 1:
        raise InputError(f"{name} holds {len(heard)} recordings side by side", "save one of them alone")
    stream = heard[0]
    if stream.goes_on:
        raise cut_off(name, "ends within a packet")
    found = Section()
    if stream.codec.startswith(b"\x7fFLAC"):
        # Nine bytes, then FLAC as it is without Ogg.
        _, body, end = stream.pages[0]
        head = bytes_at(file, body, end - body)[9:]
        if len(head) < 26:
            raise cut_off(name, "ends within its header")
        found.pieces.append(_without_length(head))
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
        page = bytearray(bytes_at(file, begin, end - begin))
        page[5] |= 4
        page[22:26] = page_checksum(bytes(page))
        found.pieces.append(bytes(page))
    return found


# ---- MPEG ----------------------------------------------------------------------------------------------------------------


@dataclass
class _MpegRecording:
    """A recording in MPEG frames. `header` is its first frame if that holds no sound, but counts the others."""

    kind: tuple[int, int, int, bool]
    first: bytes
    header: bytes = b""
    counted: tuple[int, int] = (0, 0)  # what the header says: frames, and bytes with its own
    frames: int = 0
    size: int = 0  # in bytes
    body: Section = field(default_factory=Section)

    @property
    def complete(self) -> bool:
        """Whether all frames and bytes are there that its header counts."""
        return 0 < self.counted[0] <= self.frames


def _mpeg(file: BinaryIO, name: str, begin: int, end: int) -> tuple[list[Section], int | None]:
    """Find MPEG recordings, one behind the other. Tags may lie between them. Stop where another recording begins."""
    found: list[_MpegRecording] = []
    offset, following = begin, None
    while offset < end:
        frame = mpeg_frame_at(file, offset)
        if frame is None or (
            found and frame.kind != found[-1].kind and mpeg_frame_at(file, offset + frame.size) is None
        ):
            another = begins(bytes_at(file, offset, min(WINDOW, end - offset)))
            if length := tag_at(file, offset, end) or (0 if another else _padding(file, offset, end, found)):
                offset += length
                continue
            following = find_recording(file, offset, end)
            if not _may_end(file, found[-1], offset, end if following is None else following):
                raise damaged(name, f"is damaged at byte {offset}")
            break
        if offset + frame.size > end:
            raise cut_off(name, "ends within an MPEG frame")
        whole = bytes_at(file, offset, frame.size)
        counts = mpeg_counts(whole)
        if counts or not found or frame.kind != found[-1].kind:
            found.append(_MpegRecording(frame.kind, whole[:4]))
        last = found[-1]
        if counts:
            last.header, last.counted = whole, counts
        else:
            last.frames += 1
            last.body.add(offset, offset + frame.size)
        last.size += frame.size
        offset += frame.size
    for recording in found:
        for piece in recording.body.pieces:
            if isinstance(piece, tuple) and (at := _another_within(file, *piece)) is not None:
                raise cut_off(name, f"ends within an MPEG frame, and another recording begins at byte {at}")
    return [_mpeg_section(name, each) for each in found if each.frames or each.counted[0]], following


def _another_within(file: BinaryIO, begin: int, end: int) -> int | None:
    """Find where another recording begins within one of a range of MPEG frames. That one is cut off, then."""
    for place, block in blocks(file, begin, end, 64):
        if (first := next(beginnings(block), None)) is not None:
            return place + first
        for match in re.finditer(b"Xing|Info", block):
            for at in (match.start() - before for before in (13, 21, 36)):
                head = block[at : at + 64] if at >= 0 else b""
                if mpeg_frame(head) and xing_place(head):
                    return place + at
    return None


_MAX_PADDING = 1 << 13  # bytes, of one value, behind a recording that does not say how long it is
_MAX_TEXT = 1 << 16  # bytes of text behind one


def _padding(file: BinaryIO, offset: int, end: int, found: list[_MpegRecording]) -> int:
    """Return how many bytes of padding end a recording; 0 if there are none, or if they take the place of sound."""
    place = offset
    for at, block in blocks(file, offset, end, 0):
        rest = block.lstrip(b"\0")
        place = at + len(block) - len(rest)
        if rest:
            break
    if begins(bytes_at(file, max(offset, place - 3), 64)):  # which may begin with zeros
        place = max(offset, place - 3)
    frame = mpeg_frame_at(file, place) if place < end else None
    goes_on = frame is not None and frame.kind == found[-1].kind and not mpeg_counts(bytes_at(file, place, frame.size))
    room = end if found[-1].complete else min(_MAX_PADDING, found[-1].size // 2)
    return 0 if goes_on or place - offset > room else place - offset


def _may_end(file: BinaryIO, last: _MpegRecording, offset: int, stop: int) -> bool:
    """Whether the bytes up to `stop`, neither MPEG frames nor a tag, were added behind the sound and are not sound."""
    if last.complete:
        return first_mpeg_frame(file, offset, stop) is None
    rest = bytes_at(file, offset, min(stop - offset, _MAX_TEXT + 1))
    if len(set(rest)) <= 1:
        return len(rest) <= min(_MAX_PADDING, last.size // 2)
    try:
        text = rest.decode()
    except UnicodeDecodeError:
        return False
    return len(rest) <= _MAX_TEXT and "".join(text.split()).isprintable()


def _mpeg_section(name: str, found: _MpegRecording) -> Section:
    frames, size = found.counted
    # Some count the header, some do not; so the bytes have to be missing, too, if they are known.
    if found.frames < frames and (not size or found.size < size):
        raise cut_off(name, f"promises {frames} MPEG frames and holds {found.frames}")
    header = found.header
    if not header:
        header = counting_frame(found.first, found.frames, found.size)
    elif found.frames > frames:
        header = recounted(header, found.frames, found.size)
    return Section([header, *found.body.pieces], slack=1152)
