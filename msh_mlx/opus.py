"""Opus in Ogg, as it goes over the network: sound to bytes and back, by `sphn`, which is kept from what would break it."""

from __future__ import annotations

import numpy as np
import sphn

from .events import Pcm
from .protocol import GRANULE_RATE, OggSplitter, Page, PageKind

SAMPLE_RATE = 24_000
# Of the published programs' packets: 40 ms.
PACKET_SAMPLES = 960
_MAX_PAGE_SECONDS = 5  # the decoder is of no use any more after more sound than this at once


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


class OpusDecoder:
    """Ogg pages to sound, whatever comes: bad bytes cost an error or a count, never the stream that follows.

    Samples out are samples in: the pre-skip of the header is not honoured, as in the published programs.

    Attributes
    ----------
    faults
        Pages that were not decoded, or not to the end: without a header before them, longer than 5 s, or damaged.
    """

    def __init__(self) -> None:
        self.faults = 0
        self._splitter = OggSplitter()
        self._headers: list[Page] = []
        self._reader: sphn.OpusStreamReader | None = None

    def decode(self, data: bytes, *, keep: bool = True) -> Pcm:
        """Take bytes and return the sound that is complete with them, `[n]` float32 at 24 kHz.

        Without `keep` nothing but headers is looked at, and there is no sound: it is too early.

        Raises
        ------
        ProtocolError
            Too much of what came is no Ogg. A new stream may follow.
        """
        parts: list[Pcm] = []
        for page in self._splitter.feed(data):
            if page.kind is PageKind.HEAD:
                self._headers = []
                self._reader = None
            if page.kind is not PageKind.AUDIO:
                self._headers = [*self._headers[:1], page]
            elif keep:
                parts.append(self._sound(page))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _sound(self, page: Page) -> Pcm:
        silence = np.zeros(0, np.float32)
        begun = self._headers and self._headers[0].kind is PageKind.HEAD and page.serial == self._headers[0].serial
        if not begun or page.faults or page.samples > _MAX_PAGE_SECONDS * GRANULE_RATE:
            self.faults += 1
            return silence
        try:
            if self._reader is None:
                self._reader = sphn.OpusStreamReader(SAMPLE_RATE)
                for header in self._headers:
                    self._reader.append_bytes(header.data)
            pcm = np.asarray(self._reader.append_bytes(page.data), np.float32)
        except ValueError:
            # It may have kept what it could not decode; the next page begins with a new one.
            self._reader = None
            self.faults += 1
            return silence
        finite: Pcm = np.nan_to_num(np.clip(pcm, -1.0, 1.0))
        return finite
