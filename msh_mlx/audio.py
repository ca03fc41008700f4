"""Sound in files: recordings in, block by block in constant memory; Moshi's voice out.

WAV files of plain numbers are read here, because a pipe's WAV has to be heard before it ends; everything else is decoded by
libsndfile, from a file that can seek. All sound is float32 in [−1, 1].
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from .errors import InputError, MshError
from .places import temporary_file, user_path

Pcm = npt.NDArray[np.float32]

STDIN = "-"
_BLOCK = 4096  # samples of a channel that are read at once
_MAX_SAMPLE = 256.0  # a float file may be louder than full scale, but beyond this it holds other units than sound
_UNKNOWN = 0xFFFFFFFF  # as a size in a WAV header
_MAX_CHUNK = 1 << 26  # bytes before the sound that a WAV file may spend on pictures and the like
_RATES = (1_000, 768_000)  # Hz; beyond them a header is damaged rather than unusual
_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff")


class Recording(ABC):
    """A recording that is open for reading, once, from its beginning.

    `name` is what messages call it, `rate` its samples a second, `channels` their number, and `samples` its length in samples
    of a channel, None where only reading will tell; `can_reopen` says whether it can be opened again and read a second time. It
    closes at the end of a `with` block.
    """

    name: str
    rate: int
    channels: int
    samples: int | None
    can_reopen: bool
    _file: BinaryIO

    @abstractmethod
    def _read(self) -> Iterator[npt.NDArray[Any]]:
        """Yield blocks `[samples, channels]`, float32 or float64; raise InputError where the file is cut off or damaged."""

    def blocks(self) -> Iterator[Pcm]:
        """Yield the sound in blocks, `[samples]` float32 at `rate`, the channels averaged.

        Raises
        ------
        InputError
            The recording is cut off or damaged, cannot be read, has no samples, or samples that are not finite or far
            outside [−1, 1].
        """
        count = 0
        try:
            for block in self._read():
                with np.errstate(over="ignore", invalid="ignore"):
                    mono = block.mean(axis=1, dtype=np.float64).astype(np.float32)
                finite = np.isfinite(mono)
                if not finite.all():
                    second = (count + int(np.argmin(finite))) / self.rate
                    raise InputError(
                        f"{self.name} has samples that are not finite numbers, the first at {second:.3f} s; export it again."
                    )
                if len(mono) and float(np.abs(mono).max()) > _MAX_SAMPLE:
                    raise InputError(
                        f"{self.name} has samples up to {np.abs(mono).max():.3g}, and sound lies between -1 and 1; "
                        "export it again."
                    )
                count += len(mono)
                yield mono
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}.") from None
        if not count:
            raise InputError(f"{self.name} holds no sound (0 samples).")

    def check(self) -> None:
        """Read all of it, without keeping it, and raise what `blocks` would raise. The recording is used up."""
        for _ in self.blocks():
            pass

    def close(self) -> None:
        """Close the file; standard input stays open."""
        # Since Python 3.14 closing a pipe of which something is left unread fails on its way, for nothing.
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_off(self, samples: int) -> InputError:
        return InputError(
            f"{self.name} ends too early, after {samples / self.rate:.2f} s: it is cut off or damaged, so get it again."
        )


def open_recording(path: str) -> Recording:
    """Open a recording: WAV, FLAC, OGG or MP3 at any rate and with any channels; `-` is standard input, `~` the home folder.

    A regular file is examined as far as its headers go. A WAV stream of a pipe is read as it comes; other formats need to
    seek, so their streams are first stored in a temporary file without a name.

    Raises
    ------
    InputError
        There is no such file, it is a folder or empty, it is no sound that can be read, or its headers promise more than it
        holds.
    """
    name = "The standard input" if path == STDIN else path
    if not path:
        raise InputError("The name of a recording is empty.")
    try:
        file: BinaryIO = open(0 if path == STDIN else user_path(path), "rb", closefd=path != STDIN)  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"There is no recording {path}.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give a recording.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    try:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        recording = _examine(file, name, regular)
        recording.can_reopen = regular and path != STDIN
        return recording
    except MshError:
        file.close()
        raise
    except OSError as error:
        file.close()
        raise InputError(f"{name} cannot be read: {error.strerror or error}.") from None
    except BaseException:
        file.close()
        raise


def read_frames(recording: Recording, rate: int, size: int) -> Iterator[Pcm]:
    """Yield a recording in frames, `[size]` float32 at `rate` samples a second; the last one is filled up with zeros.

    Raises
    ------
    InputError
        As `Recording.blocks`.
    """
    frame, filled = np.zeros(size, np.float32), 0
    count = 0
    for block in resample(recording.blocks(), recording.rate, rate):
        begin = 0
        while begin < len(block):
            end = min(len(block), begin + size - filled)
            frame[filled : filled + end - begin] = block[begin:end]
            filled += end - begin
            begin = end
            if filled == size:
                yield frame
                count += 1
                frame, filled = np.zeros(size, np.float32), 0
    # A recording of a sample or two may have no sample at the lower rate; it still is a frame.
    if filled or not count:
        yield frame


def resample(blocks: Iterable[Pcm], rate: int, new_rate: int) -> Iterator[Pcm]:
    """Yield `blocks`, `[samples]` float32 at `rate`, at `new_rate`, without delay.

    The samples are the same however the blocks are cut.
    """
    if rate == new_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def to_int16(pcm: Pcm) -> npt.NDArray[np.int16]:
    """Return float32 sound of any shape as 16-bit numbers; what is outside [−1, 1] is clipped."""
    scaled: npt.NDArray[np.int16] = np.rint(np.clip(pcm, -1, 1 - 2.0**-15) * 32768).astype("<i2")
    return scaled


def wav_header(rate: int, channels: int, size: int) -> bytes:
    """Return the 44 bytes before `size` bytes of 16-bit sound in a WAV file."""
    step = 2 * channels
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * step, step, 16)
    return b"RIFF%sWAVEfmt %s%sdata%s" % tuple(
        part if isinstance(part, bytes) else struct.pack("<I", part) for part in (36 + size, 16, fmt, size)
    )


class WavWriter:
    """Writes a 16-bit WAV file, block by block, into a file or, without a length in its header, into what cannot seek.

    Parameters
    ----------
    file
        Open for writing bytes, where the WAV file begins; it is not closed.
    rate, channels
        Samples a second, and their number at a time.
    """

    def __init__(self, file: BinaryIO, rate: int, channels: int) -> None:
        self._file = file
        self._rate = rate
        self._channels = channels
        self._size = 0
        self._begin = file.tell() if file.seekable() else None
        file.write(wav_header(rate, channels, 0 if file.seekable() else _UNKNOWN - 36))

    def write(self, pcm: Pcm) -> None:
        """Append `[samples]` or `[samples, channels]` float32; what is outside [−1, 1] is clipped.

        Raises
        ------
        MshError
            The file would pass 4 GiB, where the WAV format ends.
        """
        data = to_int16(pcm).tobytes()
        if self._begin is not None and self._size + len(data) > 0xFFFFFFFF - 36:
            raise MshError("The reply would pass 4 GiB, where WAV files end; give --steps or shorter recordings.")
        self._file.write(data)
        self._size += len(data)

    def finish(self) -> None:
        """Write the length into the header, where that is possible."""
        if self._begin is not None:
            self._file.seek(self._begin)
            self._file.write(wav_header(self._rate, self._channels, self._size))
            self._file.seek(0, os.SEEK_END)


def _examine(file: BinaryIO, name: str, regular: bool) -> Recording:
    """Find out what the open `file` is, and return it as a recording."""
    if not regular and os.isatty(file.fileno()):
        raise InputError(f"{name} is a terminal; pipe a recording into it, or name a file.")
    start = file.read(12)
    if not start:
        raise InputError(f"{name} is empty (0 bytes).")
    mpeg = len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0
    # Looking first also keeps an endless stream of something else out of the temporary file.
    if not regular and not mpeg and not start.startswith(_MAGIC):
        raise _not_audio(name)
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        reader = _HeaderReader(file, name, start)
        header = _read_wav_header(reader)
        if regular:
            header.compare(name, _size(file))
        if header.dtype:
            return _Wav(file, name, header, regular)
        file = file if regular else _spool(file, bytes(reader.seen))
        header.compare(name, _size(file))
    elif not regular:
        file = _spool(file, start)
    return _Decoded(file, name)


def _size(file: BinaryIO) -> int:
    """Return the size in bytes of an open file, 0 of a pipe."""
    return os.fstat(file.fileno()).st_size


def _not_audio(name: str) -> InputError:
    return InputError(f"{name} is not a WAV, FLAC, OGG or MP3 recording.")


def _spool(file: BinaryIO, start: bytes) -> BinaryIO:
    """Store `start` and the rest of the stream `file` in a temporary file that has no name."""
    try:
        spool = temporary_file()
    except BaseException:
        file.close()
        raise
    try:
        spool.write(start)
        while data := file.read(1 << 16):
            spool.write(data)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    finally:
        file.close()
    return spool


def _checked_rate(name: str, rate: int) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InputError(f"{name} claims {rate} samples a second; {_RATES[0]} to {_RATES[1]} are understood.")
    return rate


# ---- WAV -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WavHeader:
    """What a WAV file says before its sound: sizes in bytes, None where it does not say (it was streamed).

    `dtype` is the numpy type of a sample, "i3" for 24 bits, None for a coding that is left to libsndfile.
    """

    rate: int
    channels: int
    dtype: str | None
    data_size: int | None
    riff_end: int | None
    data_offset: int

    def compare(self, name: str, size: int) -> None:
        """Raise InputError if the header promises more than the `size` bytes of the file."""
        if self.data_size is None:
            return
        promised = max(self.data_offset + self.data_size, self.riff_end or 0)
        # A pad byte at the very end is often forgotten.
        if self.data_offset + self.data_size > size or promised > size + 1:
            raise InputError(
                f"{name} promises {promised} bytes and holds {size}: it is cut off or damaged, so get it again."
            )


class _HeaderReader:
    """Reads from a stream and remembers what it has read."""

    def __init__(self, file: BinaryIO, name: str, start: bytes) -> None:
        self._file = file
        self.file_size = _size(file)
        self.name = name
        self.seen = bytearray(start)

    def read(self, size: int) -> bytes:
        begin = len(self.seen)
        while missing := begin + size - len(self.seen):
            data = self._file.read(min(missing, 1 << 16))
            if not data:
                raise InputError(f"{self.name} ends within its header: it is cut off or damaged, so get it again.")
            self.seen += data
        return bytes(self.seen[begin:])


def _is_unknown(size: int) -> bool:
    """Whether a size in a WAV header is one of those that programs write when they do not know it (yet)."""
    return size == 0 or 0x7FFFF000 <= size <= 0x80001000 or size >= 0xFFFFF000


def _read_wav_header(reader: _HeaderReader) -> _WavHeader:
    """Read up to the sound itself."""
    name = reader.name
    riff_size: int = struct.unpack("<4xI4x", bytes(reader.seen))[0]
    fmt = b""
    while True:
        kind, size = struct.unpack("<4sI", reader.read(8))
        if kind == b"data":
            break
        if size > _MAX_CHUNK:
            raise InputError(
                f"{name} has {size} bytes of something else before its sound: it is damaged, so get it again."
            )
        chunk = reader.read(size + size % 2)
        if kind == b"fmt ":
            fmt = chunk
    if len(fmt) < 16:
        raise InputError(f"{name} is a WAV file without a format; export it again.")
    tag, channels, rate, _, step, bits = struct.unpack("<HHIIHH", fmt[:16])
    if tag == 0xFFFE and len(fmt) >= 26:
        tag = struct.unpack("<H", fmt[24:26])[0]
    if not channels:
        raise InputError(f"{name} is a WAV file with 0 channels; export it again.")
    offset = len(reader.seen)
    riff_end = None if _is_unknown(riff_size) else riff_size + 8
    # A size of 0 means "unknown" unless the rest of the header knows of chunks after the sound.
    unknown = _is_unknown(size) and not (size == 0 and riff_end is not None and riff_end > offset)
    if size and offset + size <= reader.file_size:
        unknown = False  # it really is that long
    data_size = None if unknown else size
    dtype = None
    if step % channels == 0:
        dtype = {(1, 1): "u1", (1, 2): "<i2", (1, 3): "i3", (1, 4): "<i4", (3, 4): "<f4", (3, 8): "<f8"}.get(
            (tag, step // channels)
        )
    if dtype and not 0 < bits <= 8 * (step // channels):
        dtype = None
    return _WavHeader(_checked_rate(name, rate), channels, dtype, data_size, riff_end, offset)


class _Wav(Recording):
    """A WAV file or stream of plain numbers."""

    def __init__(self, file: BinaryIO, name: str, header: _WavHeader, regular: bool) -> None:
        assert header.dtype
        self.name, self.rate, self.channels = name, header.rate, header.channels
        self._file, self._header, self._regular = file, header, regular
        self._step = int(header.dtype[-1]) * header.channels
        size = header.data_size
        if size is None and regular:
            size = _size(file) - header.data_offset
        self.samples = None if size is None else size // self._step

    def check(self) -> None:
        # Sizes were compared on opening, and whole numbers are always finite.
        if not self.samples or not self._regular or "f" in str(self._header.dtype):
            super().check()

    def _read(self) -> Iterator[npt.NDArray[Any]]:
        left = self._header.data_size
        got = 0
        while left is None or left > 0:
            want = self._step * _BLOCK if left is None else min(self._step * _BLOCK, left)
            data = self._file.read(want)
            got += len(data)
            whole = len(data) // self._step * self._step
            if whole:
                yield self._decode(data[:whole])
            if left is not None:
                left -= len(data)
                if len(data) < want:
                    raise self._cut_off(got // self._step)
            elif len(data) < want:
                break
        if not self._regular:
            # The writer of a pipe shall not be stopped by our leaving, and chunks after the sound may be missing, too.
            end = self._header.data_offset + got
            while data := self._file.read(1 << 16):
                end += len(data)
            if left is not None and end < (self._header.riff_end or 0) - 1:
                raise self._cut_off(got // self._step)

    def _decode(self, data: bytes) -> npt.NDArray[Any]:
        dtype = str(self._header.dtype)
        if dtype == "i3":
            # The three bytes become the upper ones of 32 bits.
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            samples, scale = wide.view("<i4")[:, 0], 2.0**-31
        else:
            samples = np.frombuffer(data, dtype)
            scale = {"u1": 2.0**-7, "<i2": 2.0**-15, "<i4": 2.0**-31}.get(dtype, 1.0)
        sound = samples.astype(np.float64) if dtype == "<f8" else samples.astype(np.float32)
        if dtype == "u1":
            sound -= 128
        shaped: npt.NDArray[Any] = (sound * sound.dtype.type(scale)).reshape(-1, self.channels)
        return shaped


# ---- everything else -----------------------------------------------------------------------------------------------------


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]
    def seekable(self) -> bool:
        # soundfile otherwise seeks after every block, which is slow with FLAC and inexact with MP3.
        return False


class _Decoded(Recording):
    """A file that libsndfile decodes."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name, self._file = name, file
        file.seek(0)
        start = file.read(4)
        if start == b"OggS":
            _check_ogg(file, name)
        elif start == b"FORM":
            size = struct.unpack(">I", file.read(4))[0]
            if size + 8 > _size(file) + 1:
                raise InputError(
                    f"{name} promises {size + 8} bytes and holds less: it is cut off or damaged, so get it again."
                )
        else:
            header, offset = _check_mp3(file, name)
            if header:
                file.seek(offset)
                self._file = file = _spool(file, header)
        # Past Python's buffer: libsndfile reads from where the descriptor is.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        try:
            with _quiet_mpg123():
                self._sound = _SoundFile(file.fileno(), closefd=False)
        except (soundfile.LibsndfileError, TypeError, ValueError):
            if start == b"fLaC" or start[:3] == b"ID3" or start[:2] == b"\xff\xfb":
                raise InputError(f"{name} cannot be decoded: it is cut off or damaged, so get it again.") from None
            raise _not_audio(name) from None
        self.rate, self.channels = _checked_rate(name, self._sound.samplerate), self._sound.channels
        self._mpeg = self._sound.subtype.startswith("MPEG")
        # A FLAC file that was written into a pipe does not know its length.
        self.samples = self._sound.frames if 0 <= self._sound.frames < 1 << 62 else None

    def _read(self) -> Iterator[npt.NDArray[Any]]:
        got = 0
        while True:
            try:
                with _quiet_mpg123() if self._mpeg else contextlib.nullcontext():
                    block = self._sound.read(_BLOCK, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:
                raise self._cut_off(got) from None
            if not len(block):
                break
            got += len(block)
            yield block
        # The length of an MP3 file is only exact to a frame.
        if self.samples is not None and got < self.samples - (1152 if self._mpeg else 0):
            raise self._cut_off(got)

    def close(self) -> None:
        if not self._sound.closed:
            self._sound.close()
        super().close()


@contextlib.contextmanager
def _quiet_mpg123() -> Iterator[None]:
    """Keep what the MP3 decoder prints about damaged files off the standard error."""
    try:
        saved = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _check_ogg(file: BinaryIO, name: str) -> None:
    """Walk over the pages of an OGG file and raise InputError if one is cut off, or a stream in it has no last page.

    So does a chain of streams, of which libsndfile would read the first alone.
    """
    end, offset = _size(file), 0
    unfinished: set[int] = set()
    while offset < end:
        file.seek(offset)
        head = file.read(27)
        if head[:4] != b"OggS" and not unfinished:
            break  # something that was put behind the sound
        sizes = file.read(head[26]) if len(head) == 27 and head[:4] == b"OggS" else b""
        if len(head) < 27 or len(sizes) < head[26]:
            raise InputError(f"{name} is cut off or damaged at byte {offset}; get it again.")
        flags, serial = head[5], struct.unpack("<I", head[14:18])[0]
        if flags & 2 and offset and not unfinished:
            raise InputError(f"{name} holds several recordings, one behind the other; save it as one.")
        offset += 27 + len(sizes) + sum(sizes)
        if flags & 4:
            unfinished.discard(serial)
        elif flags & 2:
            unfinished.add(serial)
    if unfinished or offset > end:
        raise InputError(f"{name} ends without its last page: it is cut off, so get it again.")


def _check_mp3(file: BinaryIO, name: str) -> tuple[bytes, int]:
    """Walk over the frames of an MP3 file, if it is one.

    Returns
    -------
    header, offset
        A frame that counts the frames, to be put before the one at `offset`, if the file has none: without it the decoder
        guesses the length from the first frame and stops there. Otherwise `header` is empty.

    Raises
    ------
    InputError
        The last frame is cut off, or some that the file counts are missing.
    """
    end, offset = _size(file), 0
    file.seek(0)
    tag = file.read(10)
    if tag[:3] == b"ID3":
        offset = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=False))
    begin, first, promised, count = offset, b"", 0, 0
    while offset < end:
        file.seek(offset)
        head = file.read(64)
        size = _mpeg_frame_size(head)
        if not size:
            if count and not promised and not head.startswith((b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"\0")):
                raise InputError(f"{name} is damaged at byte {offset}; get it again.")
            break
        if not count:
            first = head
            at = max(head.find(b"Xing"), head.find(b"Info"))
            if 0 < at <= 48 and head[at + 7] & 1:
                promised = struct.unpack(">I", head[at + 8 : at + 12])[0]
        if offset + size > end:
            raise InputError(f"{name} ends within a frame: it is cut off, so get it again.")
        offset += size
        count += 1
    if count < promised and offset >= end:
        raise InputError(f"{name} promises {promised} frames and holds {count}: it is cut off, so get it again.")
    return _mp3_header(first, count, offset - begin) if count and not promised else b"", begin


def _mp3_header(first: bytes, count: int, size: int) -> bytes:
    """Return a silent frame of the kind of `first` that says how many frames and bytes follow it ("Xing")."""
    mpeg1, mono = first[1] >> 3 & 3 == 3, first[3] >> 6 == 3
    # No checksum, no padding, and a bit rate with room enough.
    head = bytes([first[0], first[1] | 1, 0x90 | first[2] & 0x0C, first[3]])
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    body = head + bytes(side) + b"Xing" + struct.pack(">III", 3, count, size)
    return body + bytes(_mpeg_frame_size(head) - len(body))


# Bit rates in kbit/s by the header's index: of layer III in MPEG 1, and in MPEG 2 and 2.5.
_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def _mpeg_frame_size(head: bytes) -> int:
    """Return the length in bytes of the layer III frame that begins with `head`, 0 if none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version = head[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate_index, bits_index = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or rate_index == 3 or bits_index in (0, 15):
        return 0
    rate = (44100, 48000, 32000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    bits = (_MPEG1 if version == 3 else _MPEG2)[bits_index] * 1000
    return (144 if version == 3 else 72) * bits // rate + (head[2] >> 1 & 1)
