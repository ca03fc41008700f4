"""Opus in Ogg, as on the network: turn sound into bytes and back.

`msh_native` encodes and decodes packets. The pages around them are written and checked here.
"""

from __future__ import annotations

from dataclasses import dataclass

import msh_native
import numpy as np

from ..errors import ProtocolError
from ..format import FRAME_SIZE, SAMPLE_RATE, Pcm
from ..sound.mixing import Mix
from ..sound.ogg import (
    GRANULE_RATE,
    MAX_PACKET_SAMPLES,
    OggSplitter,
    Page,
    PageKind,
    check_head,
    container,
    ogg_codec,
    opus_head,
    packet_samples,
    write_page,
)

_RATIO = GRANULE_RATE // SAMPLE_RATE
PACKET = FRAME_SIZE // 2  # samples: 40 ms
# Without its part for speech, Opus takes a third of the time, and is late by 2.5 ms in place of 6.5. It needs more bits for the
# same sound, and gets them: benchmarks/opus.py.
BITRATE, COMPLEXITY = 48_000, 5
_SERIAL = 42  # of the stream that is written
_TAGS = b"OpusTags\7\0\0\0msh_mlx\0\0\0\0"  # who wrote it, and no tag

_UNREADABLE = 2.0  # seconds of sound that cannot be decoded, after which that is an error
_STRAY = 4096  # bytes without a page, besides twice the largest page of the stream, after which that is an error
_STREAMS = 16  # other streams that are remembered
_LONGEST_GAP = 10.0  # seconds of silence at once in place of what is missing
_LARGEST_FRAME = 1275  # bytes of an Opus frame in a packet (RFC 6716, section 3.4)


class OpusEncoder:
    """Turns sound into a stream of Ogg pages: headers, then packets of 40 ms, one a page, with granules at 48 kHz.

    Attributes
    ----------
    delay
        How many samples at 24 kHz the decoded sound is late. The header says so, too.
    """

    def __init__(self) -> None:
        self._encoder = msh_native.OpusEncoder(SAMPLE_RATE, bitrate=BITRATE, complexity=COMPLEXITY)
        self.delay = self._encoder.delay
        self._waiting = np.zeros(0, np.float32)
        self._pages = 0  # that were written
        self._samples = 0  # that were encoded

    def encode(self, pcm: Pcm) -> bytes:
        """Take sound, `[n]` float32 at 24 kHz, and return the pages that it completes, or b"".

        The first call also returns the headers.
        """
        if len(self._waiting):
            pcm = np.concatenate([self._waiting, pcm])
        pages = b""
        if not self._pages:
            pages = self._page(opus_head(self.delay * _RATIO, SAMPLE_RATE)) + self._page(_TAGS)
        whole = len(pcm) - len(pcm) % PACKET
        for begin in range(0, whole, PACKET):
            self._samples += PACKET
            pages += self._page(self._encoder.encode(pcm[begin : begin + PACKET]))
        self._waiting = pcm[whole:]
        return pages

    def _page(self, packet: bytes) -> bytes:
        page = write_page(packet, self._pages, granule=self._samples * _RATIO, serial=_SERIAL)
        self._pages += 1
        return page


@dataclass
class _Stream:
    """The state of a stream of pages, from its header on."""

    serial: int  # the number of the stream
    next: int  # the number of its next page
    granule: int | None = 0  # the granule position at the end of the last page, or None if it is not known
    rate: int | None = None  # granules a second: 48000, or 24000 as from some published programs; None if not known yet
    usual: int = 0  # how much sound the last good page had, in samples at 48 kHz
    largest: int = 0  # the size of the stream's largest page, in bytes
    begun: bool = False  # whether a page of sound has come
    good: bool = False  # whether a page of sound has come that was not damaged
    unplaced: int = 0  # damaged pages since the last good one that may belong to this stream, at an unknown place

    def samples_since(self, page: Page) -> int | None:
        """Return how much sound lies between the ends of the last page and of this one, in samples at 48 kHz.

        The granules say it. Return None if they are not known, or did not agree with the sound so far.
        """
        if self.rate is None or self.granule is None or page.granule < 0:
            return None
        return (page.granule - self.granule) * (GRANULE_RATE // self.rate)

    def missing_before(self, page: Page, pages: int) -> int:
        """Return how much sound is missing before a page's packets, in samples at 48 kHz.

        `pages` is how many pages are missing before this one; the page itself may lack packets, too.
        """
        since = self.samples_since(page)
        if since is not None and 0 <= since - page.samples <= (255 * pages + page.faults) * MAX_PACKET_SAMPLES:
            return since - page.samples
        return pages * (self.usual or page.samples)

    def missing_on(self, page: Page) -> int:
        """Return how much sound was on a damaged page, in samples at 48 kHz.

        Its granule, its packets and the usual amount each give a number, and any of them may be wrong. Take the number that two
        agree on; else the packets' or, without that, the usual one.
        """
        told = self.samples_since(page), page.samples, self.usual
        return next((samples for samples in told if samples and told.count(samples) > 1), page.samples or self.usual)

    def go_on(self, page: Page) -> None:
        """Update the state with a good page of sound."""
        if self.granule is not None and page.granule >= 0 and page.samples:
            ticks = page.granule - self.granule
            rates = {page.samples: GRANULE_RATE, page.samples // _RATIO: SAMPLE_RATE}
            self.rate = rates.get(ticks)
        if page.granule >= 0:
            self.granule = page.granule
        self.next = (page.sequence + 1) % 2**32
        self.usual, self.largest, self.unplaced = page.samples, max(self.largest, len(page.data)), 0
        self.begun = self.good = True


class OpusDecoder:
    """Turns Ogg pages into sound. Damaged and missing sound becomes silence of the same length.

    The pre-skip of the header is ignored, as in the published programs: all samples are returned.

    Attributes
    ----------
    faults
        How many pages were damaged, missing, or not decoded to their end.
    lost
        Seconds of silence in place of their sound.
    heard
        Seconds of sound that were decoded.
    notes
        Sentences about channels that are left out, each once.
    """

    def __init__(self) -> None:
        self.faults = 0
        self.lost = 0.0
        self.heard = 0.0
        self._splitter = OggSplitter()
        self._stream: _Stream | None = None
        self._foreign: dict[int, str] = {}  # the codecs of other streams, by their numbers
        self._decoder: msh_native.OpusDecoder | None = None
        self._mix: Mix | None = None  # of two channels
        self.notes: list[str] = []
        self._pages = 0  # pages that the reader has got
        self._unreadable = 0  # samples at 48 kHz since the last usable page, as far as that is known
        self._stray = 0  # bytes since the last page
        self._bare = True  # whether these bytes may be packets without pages
        self._room = 0  # samples of silence that this call may still return

    def decode(self, data: bytes, *, keep: bool = True) -> Pcm:
        """Take bytes and return the sound that they complete, `[n]` float32 at 24 kHz.

        Without `keep` the pages are only followed, and no sound is returned.

        Raises
        ------
        ProtocolError
            The bytes cannot be decoded: they are not Ogg, or hold another codec or more than two channels, or the stream lacks
            its beginning, or all its pages are damaged. A new stream may follow.
        """
        self._room = round(_LONGEST_GAP * SAMPLE_RATE)
        parts: list[Pcm] = []
        pages = self._splitter.feed(data)
        for page in pages:
            parts += self._take(page, keep)
        if pages:
            self._stray, self._bare = 0, True
        elif data and not self._splitter.waits:
            self._look_at(data)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    # ---- what is not a stream of Opus ------------------------------------------------------------------------------------

    def _give_up(self, what: str, advice: str = "") -> ProtocolError:
        self._unreadable = self._stray = 0
        self._bare = True
        return ProtocolError(what, advice)

    def _look_at(self, data: bytes) -> None:
        """Raise an error about bytes without pages, as soon as it is certain what they are, or enough of them have come."""
        if (name := container(data)) is not None:
            raise self._give_up(f"The audio is {name}", "send Opus in Ogg pages")
        self._stray += len(data)
        samples = _bare_samples(data)
        self._bare = self._bare and samples > 0
        self._unreadable += samples
        enough = self._stray > _STRAY + 2 * (self._stream.largest if self._stream else 0)
        if self._bare and (enough or self._unreadable > _UNREADABLE * GRANULE_RATE):
            raise self._give_up("The audio comes as bare packets of Opus", "send them in Ogg pages")
        if enough:
            raise self._give_up(f"The audio is not an Ogg stream: no page was found in {self._stray} bytes.")

    # ---- pages -----------------------------------------------------------------------------------------------------------

    def _take(self, page: Page, keep: bool) -> list[Pcm]:
        """Read a page and return its sound, with silence for the sound that is missing before it."""
        if page.kind is PageKind.HEAD:
            check_head(page.first)
            coupled = page.first[18] and page.first[20]
            channels = 1 + coupled if page.first[18] else page.first[9]
            self._stream = _Stream(page.serial, page.sequence)
            self._decoder = msh_native.OpusDecoder(SAMPLE_RATE, channels)
            self._mix = Mix(SAMPLE_RATE, 2) if channels == 2 else None
            self._foreign.pop(page.serial, None)
        elif page.kind is PageKind.FOREIGN:
            codec = ogg_codec(page.first)
            if len(self._foreign) < _STREAMS:
                self._foreign[page.serial] = "of an unknown kind" if codec is None else codec
            if self._stream and self._stream.begun and codec != "":
                self._stream = None  # the new stream follows the old one, and does not run beside it
            return []
        stream = self._stream
        if page.kind is PageKind.DAMAGED:
            return self._take_damaged(page, stream, keep)
        if stream is None or page.serial != stream.serial:
            self._pass_over(page)
            return []
        if page.kind is not PageKind.AUDIO and not page.packets:
            stream.next = (page.sequence + 1) % 2**32
            return []
        self._unreadable = 0
        parts = []
        gap = (page.sequence - stream.next) % 2**32
        # Numbers that go back say nothing. A stream that begins in the middle has not lost the pages before.
        lost = gap if stream.begun and gap < 2**31 else 0
        if lost or page.faults:
            self.faults += max(0, lost - stream.unplaced) + (page.faults > 0)
            parts.append(self._silence(stream.missing_before(page, lost), keep))
        if keep:
            parts += [
                self._sound(packet, samples) for packet, samples in zip(page.packets, page.durations, strict=True)
            ]
        stream.go_on(page)
        return parts

    def _take_damaged(self, page: Page, stream: _Stream | None, keep: bool) -> list[Pcm]:
        self.faults += 1
        if stream is None or not stream.good:
            self._unreadable += page.samples
            if self._unreadable > max(_UNREADABLE * GRANULE_RATE, page.samples):  # more than one long page
                raise self._give_up(
                    "The checksums of the audio's pages are wrong (RFC 3533, section 6): no page of sound can be read."
                )
        if stream is None or (page.serial, page.sequence) != (stream.serial, stream.next):
            if stream:
                stream.unplaced += 1  # the next good page shows whether it was one of this stream's
            return []
        # The header fits, so most likely only the sound is damaged; the header says how long it was.
        stream.next = (stream.next + 1) % 2**32
        stream.begun = True
        missing = stream.missing_on(page)
        if stream.rate is None or stream.granule is None:
            stream.granule = None
        else:
            stream.granule += missing * stream.rate // GRANULE_RATE
        return [self._silence(missing, keep)]

    def _pass_over(self, page: Page) -> None:
        """Ignore a page that does not belong to the stream that is decoded; raise an error if only such pages come."""
        codec = self._foreign.get(page.serial)
        if codec is None:
            self.faults += 1
            self._unreadable += page.samples
            if self._unreadable > _UNREADABLE * GRANULE_RATE:
                raise self._give_up(
                    "The audio has no beginning: its header (OpusHead) did not come", "begin a new stream"
                )
        elif self._stream is None and codec:
            raise self._give_up(f"The audio in Ogg is {codec}", "send Opus")

    # ---- sound -----------------------------------------------------------------------------------------------------------

    def _silence(self, samples: int, keep: bool) -> Pcm:
        """Return silence in place of `samples` at 48 kHz, but no more than may be returned at once."""
        count = min(samples // _RATIO, self._room) if keep else 0
        self._room -= count
        self.lost += count / SAMPLE_RATE
        return np.zeros(count, np.float32)

    def _sound(self, packet: bytes, samples: int) -> Pcm:
        assert self._decoder
        try:
            sound = self._decoder.decode(packet)
        except ValueError:
            self.faults += 1
            return self._silence(samples, True)
        if self._mix:
            pcm = self._mix(sound)
            note = self._mix.note("the audio")  # once
            if note and note not in self.notes:
                self.notes.append(note)
        else:
            pcm = sound[:, 0]
        self.heard += len(pcm) / SAMPLE_RATE
        return pcm


def _bare_samples(data: bytes) -> int:
    """Return how long `data` is as a packet of Opus, in samples at 48 kHz; return 0 if it cannot be a packet."""
    try:
        samples = packet_samples(data)
    except ProtocolError:
        return 0
    count = data[1] & 63 if data[0] & 3 == 3 else 2
    return samples if len(data) <= _LARGEST_FRAME * count + 2 * count + 2 else 0
