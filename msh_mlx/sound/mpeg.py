"""MPEG sound, which MP3 is, as bytes: the headers of its blocks, and the first block, which may count the others.

MPEG calls such a block a frame. Elsewhere a frame is 80 ms of sound, so this one is called an MPEG frame. Where only MPEG is
spoken of, here and in `compressed`, it is a frame for short.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple


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


# ---- the MPEG frame that counts the others -------------------------------------------------------------------------------


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
