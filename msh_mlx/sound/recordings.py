"""Sound files: read recordings block by block in constant memory, and write Moshi's voice.

Plain numbers are decoded here, because a WAV file in a pipe has to be heard before it ends. libsndfile decodes everything
else, from a file that can seek. All sound in a file is heard; a recording with something missing is refused. Sound is float32
in [−1, 1].
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ..errors import InputError, MshError
from ..format import Pcm
from ..system.inputs import cannot_read
from ..system.places import temporary_file, user_path
from .chunks import HeaderReader, Numbers, follow_chunks, patched, read_header
from .compressed import find_sections, goes_on
from .containers import (
    HELD_BACK,
    MAGIC,
    RATES,
    Ahead,
    Pieces,
    Section,
    Source,
    beginnings,
    cut_off,
    foreign,
    not_audio,
    not_read,
    past_tags,
)
from .mixing import Mix

STDIN = "-"
STDIN_NAME = "The standard input"  # at the beginning of a sentence
_BLOCK = 4096  # samples per channel that are read at once
_MAX_SAMPLE = 256.0  # a float file may be louder than full scale, but beyond this it holds other units than sound
_UNKNOWN = 0xFFFFFFFF  # as a size in a WAV header


class _CutOffError(Exception):
    """A part ends before it should."""


class _GoesOnError(Exception):
    """Another recording follows, and cannot be read in this place."""


class _Part(ABC):
    """One of the recordings in a file, where others may follow it: its rate, its channels, and its length, if that is known.

    `following` are the parts that were found behind it while it was read. `checked` says that nothing can be wrong with it.
    `temporary` is a file to close with it.
    """

    rate: int
    channels: int
    seconds: float | None
    following: Sequence[_Part] = ()
    checked = False
    temporary: BinaryIO | None = None

    @abstractmethod
    def read(self) -> Iterator[tuple[int, int, Iterator[npt.NDArray[Any]]]]:
        """Yield rate, channels and blocks `[samples, channels]`, float32 or float64, of the sections that follow each other.

        Raise InputError or _CutOffError if one is cut off or damaged.
        """


class Recording:
    """A recording that is open for reading, once, from its beginning. It closes at the end of a `with` block.

    `name` is its name in messages, `rate` in samples a second, `channels` their number. `samples` is its length in samples per
    channel; None if only reading can tell. `can_reopen` says whether it can be opened and read a second time. If several
    recordings follow each other in the file, all are heard, and `rate` and `channels` are those of the first. `notes` are
    sentences on channels that were left out, of what has been read so far.
    """

    def __init__(self, name: str, file: BinaryIO, parts: list[_Part], *, can_reopen: bool) -> None:
        self.name, self.rate, self.channels = name, parts[0].rate, parts[0].channels
        seconds = _total(part.seconds for part in parts)
        self.samples = None if seconds is None else round(seconds * self.rate)
        self.can_reopen = can_reopen
        self.notes: list[str] = []
        self._file = file
        self._parts = parts
        self._heard = 0.0  # seconds so far

    def blocks(self) -> Iterator[Pcm]:
        """Yield the sound in blocks, `[samples]` float32 at `rate`, all channels mixed into one.

        Raises
        ------
        InputError
            The recording is cut off or damaged, cannot be read, has no samples, or has samples that are not finite or are
            far outside [−1, 1].
        """
        try:
            for part in self._parts:
                for rate, channels, blocks in part.read():
                    yield from resample(self._mixed(rate, channels, blocks), rate, self.rate)
                self._parts.extend(part.following)
        except _CutOffError:
            raise cut_off(self.name, f"ends too early, after {self._heard:.2f} s") from None
        except _GoesOnError:
            raise InputError(
                f"{self.name} goes on after {self._heard:.2f} s with MP3 sound, which is not read behind FLAC",
                "save each alone",
            ) from None
        except OSError as error:
            raise cannot_read(self.name, error) from None
        if not self._heard:
            raise InputError(f"{self.name} holds no sound (0 samples).")

    def _mixed(self, rate: int, channels: int, blocks: Iterator[npt.NDArray[Any]]) -> Iterator[Pcm]:
        """Check the samples of a part, and mix its channels."""
        begin, count = self._heard, 0
        mix = Mix(rate, channels)
        for block in blocks:
            with np.errstate(over="ignore", invalid="ignore"):
                block = block.astype(np.float32, copy=False)
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                second = begin + (count + int(np.argmin(finite))) / rate
                what = f"{self.name} has samples that are not finite numbers, the first at {second:.3f} s"
                raise InputError(what, "export it again")
            if len(block) and (loudest := float(np.abs(block).max())) > _MAX_SAMPLE:
                what = f"{self.name} has samples up to {loudest:.3g}, and sound lies between -1 and 1"
                raise InputError(what, "export it again")
            count += len(block)
            self._heard = begin + count / rate
            yield mix(block)
            if note := mix.note(self.name):
                self.notes.append(note)

    def check(self) -> None:
        """Read all of it, keep nothing, and raise what `blocks` would raise. The recording is used up afterwards."""
        if not self.samples or not all(part.checked for part in self._parts):
            for _ in self.blocks():
                pass

    def close(self) -> None:
        """Close the file; standard input stays open."""
        # Since Python 3.14, closing a pipe with unread bytes raises an error that means nothing.
        for file in (self._file, *(part.temporary for part in self._parts if part.temporary)):
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_recording(path: str) -> Recording:
    """Open a recording: WAV, FLAC, OGG, MP3, AIFF, AU or CAF, at any rate, with any channels.

    `-` is the standard input, `~` the home folder. RF64, W64 and other layers of MPEG sound are read as well. The chunks,
    pages or MPEG frames of a regular file are checked first. Plain numbers in a pipe are read as they come. Other formats
    need to seek, so from a pipe they are first stored in a temporary file without a name.

    Raises
    ------
    InputError
        There is no such file, it is a folder or empty, its format cannot be read, or something of it is missing.
    """
    name = STDIN_NAME if path == STDIN else path
    if not path:
        raise InputError("The name of a recording is empty.")
    place = 0 if path == STDIN else user_path(path)
    try:
        file: BinaryIO = open(place, "rb", closefd=path != STDIN)  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"There is no recording {path}.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder", "give a recording") from None
    except OSError as error:
        raise cannot_read(name, error) from None
    except ValueError as error:
        raise InputError(f"{name} cannot be read: {error}.") from None
    try:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return Recording(name, file, _examine(file, name), can_reopen=path != STDIN)
        if os.isatty(file.fileno()):
            raise InputError(f"{name} is a terminal", "pipe a recording into it, or name a file")
        return Recording(name, file, _examine_stream(Ahead(file), name), can_reopen=False)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError) and not isinstance(error, MshError):
            raise cannot_read(name, error) from None
        raise


def open_sound(file: BinaryIO, name: str) -> Recording:
    """Open the recording in a file that is open for reading and can seek, as `open_recording` does; it closes the file.

    `name` is its name in messages.
    """
    try:
        return Recording(name, file, _examine(file, name), can_reopen=False)
    except OSError as error:
        if isinstance(error, MshError):
            raise
        raise cannot_read(name, error) from None


def checked(path: str) -> Recording | None:
    """Check a recording before long work; return it, open, if it can be read only once, else None.

    Raises
    ------
    InputError
        As `open_recording` and `Recording.blocks`.
    """
    recording = open_recording(path)
    if not recording.can_reopen:
        return recording
    with recording:
        recording.check()
    return None


def read_frames(recording: Recording, rate: int, size: int) -> Iterator[Pcm]:
    """Yield a recording in frames, `[size]` float32 at `rate` samples a second. The last one is filled up with zeros.

    Raises
    ------
    InputError
        As `Recording.blocks`.
    """
    rest, count = np.zeros(0, np.float32), 0
    for block in resample(recording.blocks(), recording.rate, rate):
        rest = np.concatenate([rest, block])
        whole = len(rest) // size
        yield from rest[: whole * size].reshape(whole, size)
        rest, count = rest[whole * size :], count + whole
    # A recording of one or two samples may have none at the lower rate. It is still one frame.
    if len(rest) or not count:
        yield np.pad(rest, (0, size - len(rest)))


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
    """Return float32 sound, of any shape, as int16. Samples outside [−1, 1] are clipped."""
    scaled: npt.NDArray[np.int16] = np.rint(np.clip(pcm, -1, 1 - 2.0**-15) * 32768).astype("<i2")
    return scaled


def wav_header(rate: int, channels: int, size: int) -> bytes:
    """Return the 44 bytes that begin a WAV file with `size` bytes of 16-bit sound."""
    step = 2 * channels
    begin = struct.pack("<4sI8sI", b"RIFF", 36 + size, b"WAVEfmt ", 16)
    return begin + struct.pack("<HHIIHH4sI", 1, channels, rate, rate * step, step, 16, b"data", size)


class WavWriter:
    """Writes a 16-bit WAV file, block by block, into a file that is open for writing. It does not close the file.

    Where `file` cannot seek, the header does not tell the length. `rate` is in samples a second.
    """

    def __init__(self, file: BinaryIO, rate: int, channels: int) -> None:
        self._file = file
        self._rate = rate
        self._channels = channels
        self._size = 0
        self._begin = file.tell() if file.seekable() else None
        file.write(wav_header(rate, channels, 0 if file.seekable() else _UNKNOWN - 36))

    def write(self, pcm: Pcm) -> None:
        """Append `[samples]` or `[samples, channels]` float32. Samples outside [−1, 1] are clipped.

        Raises
        ------
        MshError
            The file would pass 4 GiB, where the WAV format ends.
        """
        data = to_int16(pcm).tobytes()
        if self._begin is not None and self._size + len(data) > 0xFFFFFFFF - 36:
            raise MshError("The reply would pass 4 GiB, where WAV files end", "give --steps or shorter recordings")
        self._file.write(data)
        self._size += len(data)

    def finish(self) -> None:
        """Write the length into the header, where that is possible."""
        if self._begin is not None:
            self._file.seek(self._begin)
            self._file.write(wav_header(self._rate, self._channels, self._size))
            self._file.seek(0, os.SEEK_END)


def _examine(file: BinaryIO, name: str, *before: _Part) -> list[_Part]:
    """Find the recordings in a file that can seek, one behind the other. They follow those of `before`."""
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise _empty(name)
    parts = list(before)
    following: int | None = 0
    while following is not None:
        if parts:
            file.seek(following)
            _check_following(file.read(12), name, parts)
        begin = past_tags(file, following, size)
        if parts and begin == size:
            break  # a tag alone
        part, following = _examine_one(io.BufferedReader(Pieces(file, [(begin, size)])), name, size - begin)
        parts.append(part)
        following = following and begin + following
    return parts[len(before) :]


def _empty(name: str) -> InputError:
    return InputError(f"{name} is empty (0 bytes).")


def _examine_one(file: BinaryIO, name: str, size: int) -> tuple[_Part, int | None]:
    """Return the recording that a file of `size` bytes begins with, and where the next one begins."""
    numbers = read_header(HeaderReader(file, name, size))
    if numbers is None:
        sections, following = find_sections(file, name, size)
        return _Decoded(file, name, sections), following
    assert numbers.size is not None
    sound = io.BufferedReader(Pieces(file, [(numbers.offset, numbers.offset + numbers.size)]))
    if numbers.dtype:
        return _Plain(Ahead(sound), name, numbers), numbers.following
    if numbers.mpeg:
        return _Decoded(sound, name, find_sections(sound, name, numbers.size)[0]), numbers.following
    return _Decoded(file, name, [patched(numbers, file, name)]), numbers.following


def _examine_stream(stream: Ahead, name: str, *before: _Part) -> list[_Part]:
    """Find the recordings that come through a pipe, behind those of `before`.

    Plain numbers are read as they come. Other formats are stored whole first.
    """
    start = stream.peek(12)
    if before:
        _check_following(start, name, before)
    if not start:
        raise _empty(name)
    # Looking first also keeps an endless stream of something else out of the temporary file.
    if other := foreign(start):
        raise not_read(name, other)
    if not (len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0) and not start.startswith(MAGIC):
        raise not_audio(name)
    reader = HeaderReader(stream, name, None)
    numbers = read_header(reader)
    if numbers and numbers.dtype:
        return [_Plain(stream, name, numbers, before)]
    stream.unread(bytes(reader.seen))
    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(temporary_file())
        while data := stream.read(1 << 16):
            spool.write(data)
        if parts := _examine(spool, name, *before):
            parts[0].temporary = spool
            stack.pop_all()
        return parts


def _check_following(start: bytes, name: str, before: Sequence[_Part]) -> None:
    if other := foreign(start):
        seconds = _total(part.seconds for part in before)
        after = "" if seconds is None else f" after {seconds:.2f} s"
        raise InputError(
            f"{name} goes on{after} with another recording, which is {other.name} and not read here",
            "save each alone, and convert that one",
        )


def _total(lengths: Iterable[float | None]) -> float | None:
    """Return the sum of lengths; None if one of them is not known."""
    total = 0.0
    for length in lengths:
        if length is None:
            return None
        total += length
    return total


# ---- plain numbers -------------------------------------------------------------------------------------------------------


class _Plain(_Part):
    """Plain numbers that are read from a stream: from that of a file, or from a pipe, behind the parts `before`."""

    def __init__(self, stream: Ahead, name: str, numbers: Numbers, before: Sequence[_Part] = ()) -> None:
        self.rate, self.channels = numbers.rate, numbers.channels
        self._name, self._stream, self._numbers, self._before = name, stream, numbers, before
        self._step = int(numbers.dtype[-1]) * numbers.channels
        size = (numbers.promised or None) if numbers.size is None else numbers.size
        self.seconds = None if size is None else size // self._step / self.rate
        # Sizes were compared on opening, and whole numbers are always finite.
        self.checked = numbers.size is not None and "f" not in numbers.dtype

    def read(self) -> Iterator[tuple[int, int, Iterator[npt.NDArray[Any]]]]:
        yield self.rate, self.channels, self._decoded()

    def _decoded(self) -> Iterator[npt.NDArray[Any]]:
        piped = self._numbers.size is None
        # Where the sound may end. None: at the end of the stream only.
        end = promised = self._numbers.promised if piped else self._numbers.size
        believed = promised is not None  # the next bytes are sound; else another recording may begin anywhere
        got, rest, ended = 0, b"", False
        while not ended and (got != end or piped):
            if got == end:
                if self._ends(end):
                    break
                end = end + (1 << 32) if self._numbers.wraps else None
                believed = False
            want = self._step * _BLOCK if end is None else min(self._step * _BLOCK, end - got)
            data = self._stream.read(want)
            ended = len(data) < want
            got += len(data)
            rest += data
            known = len(rest) if believed or ended else max(0, len(rest) - HELD_BACK)
            if not believed and (at := next(beginnings(rest), None)) is not None:
                self._stream.unread(rest[at:])
                known, ended = at, True
            whole = known // self._step * self._step
            if whole:
                yield self._decode(rest[:whole])
            rest = rest[whole:]
        if got < (promised or 0):
            raise _CutOffError
        if piped and self._stream.peek(1):
            self.seconds = (got - len(rest)) // self._step / self.rate
            self.following = _examine_stream(self._stream, self._name, *self._before, self)

    def _ends(self, size: int) -> bool:
        """Whether the sound in a pipe ends after `size` bytes.

        Bytes behind it that are not a recording are read, too. Otherwise the writer of the pipe would fail when we leave.
        """
        chunks = self._numbers.chunks
        padding = self._stream.read(chunks.padding(size))
        another = follow_chunks(self._stream, self._name, chunks)
        if another is None and self._stream.peek(1):
            self._stream.unread(padding)
            return False
        while not another and self._stream.read(1 << 16):
            pass
        return True

    def _decode(self, data: bytes) -> npt.NDArray[Any]:
        order, kind, width = tuple(self._numbers.dtype)
        if width == "3":
            # The three bytes become the upper ones of 32 bits.
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)[:, :: 1 if order == "<" else -1]
            samples: npt.NDArray[Any] = wide.view("<i4")[:, 0]
        else:
            samples = np.frombuffer(data, order + kind + width)
        sound = samples.astype(np.float64 if kind + width == "f8" else np.float32)
        if kind == "u":
            sound -= 128
        if kind != "f":
            sound *= np.float32(2.0 ** (1 - 8 * (4 if width == "3" else int(width))))
        return sound.reshape(-1, self.channels)


# ---- everything else -----------------------------------------------------------------------------------------------------


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]
    def seekable(self) -> bool:
        # Otherwise soundfile seeks after every block, which is slow with FLAC and inexact with MP3.
        return False


class _Decoded(_Part):
    """A file that libsndfile decodes, section by section."""

    def __init__(self, file: BinaryIO, name: str, sections: list[Section]) -> None:
        self._file, self._name, self._sections = file, name, sections
        lengths: list[float | None] = []
        for section in sections:
            with self._open(section) as (_, sound):
                if not lengths:
                    self.rate, self.channels = sound.samplerate, sound.channels
                samples = _length(section, sound)
                lengths.append(None if samples is None else samples / sound.samplerate)
        self.seconds = _total(lengths)

    @contextlib.contextmanager
    def _open(self, section: Section) -> Iterator[tuple[Source, _SoundFile]]:
        pieces = Source(self._file, section.pieces)
        try:
            with _quiet_mpg123():
                sound = _SoundFile(pieces)
        except (soundfile.LibsndfileError, TypeError, ValueError):
            if pieces.error:
                raise pieces.error from None
            if section.other:
                raise not_read(self._name, section.other) from None
            raise cut_off(self._name, "cannot be decoded") from None
        with sound:
            if not RATES[0] <= sound.samplerate <= RATES[1]:
                raise InputError(
                    f"{self._name} claims {sound.samplerate} samples a second, a rate that sound does not have."
                )
            yield pieces, sound

    def read(self) -> Iterator[tuple[int, int, Iterator[npt.NDArray[Any]]]]:
        for section in self._sections:
            with self._open(section) as (pieces, sound):
                yield sound.samplerate, sound.channels, self._decoded(section, pieces, sound)

    def _decoded(self, section: Section, pieces: Source, sound: _SoundFile) -> Iterator[npt.NDArray[Any]]:
        quiet = _quiet_mpg123 if sound.subtype.startswith("MPEG") else contextlib.nullcontext
        got = 0
        while True:
            # Not beyond the last sample, so that what follows it cannot spoil a block.
            left = section.samples - got if section.samples else 0
            try:
                with quiet():
                    block = sound.read(min(_BLOCK, left) if left > 0 else _BLOCK, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:
                block = None
            if pieces.error:
                raise pieces.error
            if block is None and section.ends_anywhere and got == section.samples:
                if goes_on(pieces):
                    raise _GoesOnError
                break
            if block is None:
                raise _CutOffError
            if not len(block):
                break
            got += len(block)
            yield block
        if got < (_length(section, sound) or 0) - section.slack:
            raise _CutOffError


def _length(section: Section, sound: _SoundFile) -> int | None:
    """Return a section's length in samples per channel; None if only reading can tell."""
    if section.samples is not None:
        return section.samples
    return sound.frames if 0 <= sound.frames < 1 << 62 else None


@contextlib.contextmanager
def _quiet_mpg123() -> Iterator[None]:
    """Keep the MP3 decoder's own messages on damaged files off the standard error."""
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
