"""Opus in Ogg, as it goes over the network: sound to bytes and back, by `sphn`, which is kept from what would break it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import sphn

from ..errors import ProtocolError
from ..format import SAMPLE_RATE, Pcm
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
    packet_samples,
    write_page,
)

_RATIO = GRANULE_RATE // SAMPLE_RATE
# The end of `OpusHead`, and a whole `OpusTags` that says nothing.
_FAMILY, _TAGS = b"\0", b"OpusTags" + bytes(8)

_UNREADABLE = 2.0  # seconds of sound that nobody can make anything of, after which that is said
_STRAY = 4096  # bytes that are no page, besides twice as many as a page of the stream has
_STREAMS = 16  # beside the one that is heard
_LONGEST_GAP = 10.0  # seconds of silence at once in place of what is missing
_LARGEST_FRAME = 1275  # bytes of a frame in a packet (RFC 6716, section 3.4)


class OpusEncoder:
    """One stream of sound to Ogg pages: headers, then packets of 40 ms, one a page, granules at 48 kHz."""

    def __init__(self) -> None:
        self._writer = sphn.OpusStreamWriter(SAMPLE_RATE)

    def encode(self, pcm: Pcm) -> bytes:
        """Take sound, `[n]` float32 at 24 kHz, and return the pages that are complete with it; b"" if there are none.

        The first call returns the headers, too.
        """
        # Opus takes what is louder than full scale, and other decoders wrap it.
        return bytes(self._writer.append_pcm(np.clip(pcm, -1.0, 1.0)))


@dataclass
class _Stream:
    """A stream of pages, from its header on: where it is, and how it counts.

    Attributes
    ----------
    serial, next
        Its number, and that of its next page.
    granule
        At the end of the last page; None: not known.
    rate
        At which granules count: 48 kHz, or 24 kHz as in some published programs; None: not known yet.
    usual
        The sound of the last good page, in samples at 48 kHz.
    largest
        The bytes of its largest page.
    begun
        Whether a page of sound has come.
    good
        Whether one was not damaged.
    unplaced
        Damaged pages since the last good one that may be of this stream, and have no place yet.
    """

    serial: int
    next: int
    granule: int | None = 0
    rate: int | None = None
    usual: int = 0
    largest: int = 0
    begun: bool = False
    good: bool = False
    unplaced: int = 0

    def samples_since(self, page: Page) -> int | None:
        """Tell by the granules how much sound lies between the ends of the last page and of this one, in samples at 48 kHz.

        None: nobody knows, or they did not agree with the sound so far.
        """
        if self.rate is None or self.granule is None or page.granule < 0:
            return None
        return (page.granule - self.granule) * (GRANULE_RATE // self.rate)

    def missing_before(self, page: Page, pages: int) -> int:
        """Tell how much sound is missing before the packets of a page, on `pages` and on itself, in samples at 48 kHz."""
        since = self.samples_since(page)
        if since is not None and 0 <= since - page.samples <= (255 * pages + page.faults) * MAX_PACKET_SAMPLES:
            return since - page.samples
        return pages * (self.usual or page.samples)

    def missing_on(self, page: Page) -> int:
        """Tell how much sound was on a page of which something is damaged, in samples at 48 kHz.

        That may be its granule or its packets: what two say is right, if not, what its packets say, or what is usual.
        """
        told = self.samples_since(page), page.samples, self.usual
        return next((samples for samples in told if samples and told.count(samples) > 1), page.samples or self.usual)

    def go_on(self, page: Page) -> None:
        """Take notice of a good page of sound."""
        if self.granule is not None and page.granule >= 0 and page.samples:
            ticks = page.granule - self.granule
            rates = {page.samples: GRANULE_RATE, page.samples // _RATIO: SAMPLE_RATE}
            self.rate = rates.get(ticks)
        if page.granule >= 0:
            self.granule = page.granule
        self.next = (page.sequence + 1) % 2**32
        self.usual, self.largest, self.unplaced = page.samples, max(self.largest, len(page.data)), 0
        self.begun = self.good = True


class _Stereo:
    """Decodes packets of two channels one by one, at 48 kHz, and mixes them to one at 24 kHz.

    `sphn` keeps a decoder between packets for mono only, where two channels in opposite phase are silence. It decodes whole
    files with both channels, so each packet is decoded behind those of 0.4 s before it, all that a decoder remembers.
    """

    _MEMORY = 2 * GRANULE_RATE // 5
    # A low-pass filter up to 11 kHz. It delays by 1 ms, where a resampler of files would hold back up to 40 ms.
    _TAPS = np.sinc(np.arange(-48, 49) * 0.46) * 0.46 * np.kaiser(97, 7.0)

    def __init__(self, head: bytes) -> None:
        self._begin = write_page(head, 0) + write_page(_TAGS, 1)
        self._past: deque[tuple[bytes, int]] = deque()
        self._mix = Mix(GRANULE_RATE, 2)
        self._tail = np.zeros(len(self._TAPS) - 1, np.float32)

    def decode(self, packet: bytes, samples: int) -> Pcm:
        """Return the sound of a packet of `samples` at 48 kHz; ValueError if it is none."""
        packets = [*(past for past, _ in self._past), packet]
        pages = (write_page(each, number) for number, each in enumerate(packets, 2))
        pcm, _ = sphn.read_opus_bytes(self._begin + b"".join(pages))
        self._past.append((packet, samples))
        while sum(length for _, length in self._past) - self._past[0][1] >= self._MEMORY:
            self._past.popleft()
        sound = np.nan_to_num(np.clip(pcm[:, -samples:].T, -1.0, 1.0))
        mixed = np.concatenate([self._tail, self._mix(sound)])
        self._tail = mixed[-len(self._tail) :]
        heard: Pcm = np.convolve(mixed, self._TAPS, "valid")[::_RATIO].astype(np.float32)
        return heard

    def note(self) -> str | None:
        """Return a sentence on a channel that is left out, once."""
        return self._mix.note("the audio")


class OpusDecoder:
    """Ogg pages to sound, whatever comes: what can be decoded is heard, and what is missing is silence of the same length.

    Samples out are samples in: the pre-skip of the header is not honoured, as in the published programs.

    Attributes
    ----------
    faults
        Pages that are damaged, missing, or not decoded to their end.
    lost
        Seconds of silence in place of what was on them.
    heard
        Seconds of sound that was decoded.
    notes
        Sentences on channels that are left out, each once.
    """

    def __init__(self) -> None:
        self.faults = 0
        self.lost = 0.0
        self.heard = 0.0
        self._splitter = OggSplitter()
        self._stream: _Stream | None = None
        self._foreign: dict[int, str] = {}  # what other streams hold, by their numbers
        self._head = b""
        self._reader: sphn.OpusStreamReader | None = None
        self._stereo: _Stereo | None = None
        self.notes: list[str] = []
        self._pages = 0  # that the reader has got
        self._unreadable = 0  # samples at 48 kHz since a page was of use, as far as that can be told
        self._stray = 0  # bytes since there was a page
        self._bare = True  # whether they may be packets without pages
        self._room = 0  # samples of silence that there may be in one piece of sound

    def decode(self, data: bytes, *, keep: bool = True) -> Pcm:
        """Take bytes and return the sound that is complete with them, `[n]` float32 at 24 kHz.

        Without `keep` nothing is decoded, and there is no sound: it is too early.

        Raises
        ------
        ProtocolError
            What came is nothing that can be decoded: no Ogg, another codec, more than two channels, a stream without its
            beginning, or one whose pages are all damaged. A new stream may follow.
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

    # ---- what is no stream of Opus ---------------------------------------------------------------------------------------

    def _give_up(self, sentence: str) -> ProtocolError:
        self._unreadable = self._stray = 0
        self._bare = True
        return ProtocolError(sentence)

    def _look_at(self, data: bytes) -> None:
        """Say what it is that comes without pages, as soon as that is certain, or there was enough of it."""
        if (name := container(data)) is not None:
            raise self._give_up(f"The audio is {name}; send Opus in Ogg pages.")
        self._stray += len(data)
        samples = _bare_samples(data)
        self._bare = self._bare and samples > 0
        self._unreadable += samples
        enough = self._stray > _STRAY + 2 * (self._stream.largest if self._stream else 0)
        if self._bare and (enough or self._unreadable > _UNREADABLE * GRANULE_RATE):
            raise self._give_up("The audio comes as bare packets of Opus; send them in Ogg pages.")
        if enough:
            raise self._give_up(f"The audio is not an Ogg stream: no page was found in {self._stray} bytes.")

    # ---- pages -----------------------------------------------------------------------------------------------------------

    def _take(self, page: Page, keep: bool) -> list[Pcm]:
        """Read a page and return the sound of it, and of what is missing before it."""
        if page.kind is PageKind.HEAD:
            check_head(page.first)
            coupled = page.first[18] and page.first[20]
            channels = 1 + coupled if page.first[18] else page.first[9]
            self._head = page.first[:9] + bytes([channels]) + page.first[10:18] + _FAMILY
            self._stream, self._reader = _Stream(page.serial, page.sequence), None
            self._stereo = _Stereo(self._head) if channels == 2 else None
            self._foreign.pop(page.serial, None)
        elif page.kind is PageKind.FOREIGN:
            codec = ogg_codec(page.first)
            if len(self._foreign) < _STREAMS:
                self._foreign[page.serial] = "of an unknown kind" if codec is None else codec
            if self._stream and self._stream.begun and codec != "":
                self._stream = None  # this one follows, and does not stand beside it
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
        # Numbers that go back tell nothing; and who begins in the midst of a stream has lost nothing.
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
                stream.unplaced += 1  # if it is one of the stream's, the next page will tell
            return []
        # Most likely only the sound on it is damaged. Its header says how long that was.
        stream.next = (stream.next + 1) % 2**32
        stream.begun = True
        missing = stream.missing_on(page)
        if stream.rate is None or stream.granule is None:
            stream.granule = None
        else:
            stream.granule += missing * stream.rate // GRANULE_RATE
        return [self._silence(missing, keep)]

    def _pass_over(self, page: Page) -> None:
        """Complain of a page of no stream that is heard, unless it is one beside such a stream."""
        codec = self._foreign.get(page.serial)
        if codec is None:
            self.faults += 1
            self._unreadable += page.samples
            if self._unreadable > _UNREADABLE * GRANULE_RATE:
                raise self._give_up(
                    "The audio has no beginning: its header (OpusHead) did not come; begin a new stream."
                )
        elif self._stream is None and codec:
            raise self._give_up(f"The audio in Ogg is {codec}; send Opus.")

    # ---- sound -----------------------------------------------------------------------------------------------------------

    def _silence(self, samples: int, keep: bool) -> Pcm:
        """Return silence for `samples` at 48 kHz, as much as is allowed at once."""
        count = min(samples // _RATIO, self._room) if keep else 0
        self._room -= count
        self.lost += count / SAMPLE_RATE
        return np.zeros(count, np.float32)

    def _sound(self, packet: bytes, samples: int) -> Pcm:
        try:
            if self._stereo:
                heard = self._stereo.decode(packet, samples)
                self.heard += len(heard) / SAMPLE_RATE
                note = self._stereo.note()
                if note and note not in self.notes:
                    self.notes.append(note)
                return heard
            if self._reader is None:
                self._pages = 0
                self._reader = sphn.OpusStreamReader(SAMPLE_RATE)
                self._append(self._head)
                self._append(_TAGS)
            pcm = self._append(packet)
        except ValueError:
            # It may have kept what it could not decode; the next packet begins with a new one.
            self._reader = None
            self.faults += 1
            return self._silence(samples, True)
        self.heard += len(pcm) / SAMPLE_RATE
        finite: Pcm = np.nan_to_num(np.clip(pcm, -1.0, 1.0))
        return finite

    def _append(self, packet: bytes) -> Pcm:
        """Give the reader a packet in a page of its own, so that it never meets anything but good pages."""
        assert self._reader
        page = write_page(packet, self._pages)
        self._pages += 1
        return np.asarray(self._reader.append_bytes(page), np.float32)


def _bare_samples(data: bytes) -> int:
    """Tell how long a packet of Opus is, in samples at 48 kHz, if `data` can be one; else 0."""
    try:
        samples = packet_samples(data)
    except ProtocolError:
        return 0
    frames = data[1] & 63 if data[0] & 3 == 3 else 2
    return samples if len(data) <= _LARGEST_FRAME * frames + 2 * frames + 2 else 0
