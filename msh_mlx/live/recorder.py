"""Record a live conversation: a thread of its own writes sound and words as they come, and nothing waits for it."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..conversation.text import transcript_line
from ..errors import InputError
from ..events import Called, Event, Heard, HeardWord, Notice, Ready, Said, SpokeWord, Word
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE
from ..sound.recordings import to_int16, wav_header
from ..system.places import temporary_folder
from ..system.words import human_size
from .background import Background, RemovedError, disk_error

Samples = npt.NDArray[np.int16]
_HEADER = 44  # bytes
_LIMIT = 0xFFFFFFFF  # bytes of a file, where WAV ends
_QUEUE = 1_500  # events that may wait for the disk: a minute
_RESERVE = 200_000_000  # bytes that temporary files leave free: half an hour of recording
_BLOCK = 64  # frames that are copied at once

_Recorded = Ready | Heard | Said | SpokeWord | HeardWord | Called


class Recorder:
    """Records conversations from their events. Any thread may call `recorder(event)`; the call never waits.

    With a folder, everything is written there as it comes. Each conversation gets a folder of its own in it, named by the time
    at which it began, such as `2026-11-22-21.03.05`; if that exists, `-2` and so on is added, so that nothing is overwritten.
    The folder holds `user.wav` and `moshi.wav` (24 kHz, mono, 16 bits), `conversation.wav` (the user on the left, Moshi on the
    right) and `transcript.jsonl` (one JSON object a line: `{"start": 1.36, "text": "seven"}`; the user's words, which a
    conversation with a language model has, have `"speaker": "user"` as well, and the results of tools `"speaker": "tool"`, with
    `name` and `arguments` of the call). Sample n is the same moment in all sound files;
    frame `index` of the events begins at sample 1920 × `index`. Where one side has no sound, the file has silence. The files
    can be read at any time, and a crash loses less than a second. When a file would pass 4 GiB (12 hours), all three continue
    in `user-part2.wav` and so on.

    Without a folder, the same goes to unnamed temporary files (350 MB an hour), which vanish with the program; `save` copies
    the current conversation to a folder.

    When the disk is full or too slow, or the folder is removed, the recording ends with a `Notice`; the conversation goes on.

    `notify` is called with every `Notice`, on the recorder's thread or on a thread that calls the recorder. The kinds are
    "recording", "recording-part", "recording-ended", "saved" and "not-saved". `folder` is made, with its parents, if it is
    missing; an `InputError` says that it cannot be made or written to. `limit` is how many bytes a sound file may have, `queue`
    how many events may wait for the disk, and `reserve` how many bytes to leave free on the disk of the temporary files.
    """

    def __init__(
        self,
        notify: Callable[[Notice], None],
        folder: Path | None = None,
        *,
        limit: int = _LIMIT,
        queue: int = _QUEUE,
        reserve: int = _RESERVE,
    ) -> None:
        self._notify = notify
        if folder:
            _check(folder)
        self._parent = folder
        self._limit = limit
        self._reserve = reserve
        self.folders: list[Path] = []  # what has been recorded and saved so far
        self._planned: set[Path] = set()
        self._take: _Take | None = None
        self._over = True  # whether the next event begins a conversation
        self._abort = False
        self._background = Background("recorder", self._tick, self._report_end, queue)

    def __call__(self, event: Event) -> None:
        """Record an event; events without sound or words are ignored."""
        if isinstance(event, _Recorded):
            self._background.put(lambda: self._write(event))

    def save(self, folder: Path) -> Path:
        """Start to save the conversation so far; return the path of the new folder for it, in `folder`.

        A `Notice` reports that the folder is there with all its files, or why it could not be written. A conversation that is
        recorded into a folder anyway is not copied: the path of that folder is returned.
        """
        if self._parent is not None:
            self._background.force(self._report)
            return self.folders[-1] if self.folders else self._parent
        path = next(path for path in _names(folder) if path not in self._planned and not os.path.lexists(path))
        self._planned.add(path)
        self._background.force(lambda: self._save(path))
        return path

    def close(self, timeout: float = 1.0) -> bool:
        """Finish the files and end the thread; return whether the thread has ended.

        After `timeout` seconds a save that is still under way is broken off and leaves no files; then the thread has as long
        again to end.
        """
        self._background.force(self._finish)
        if not self._background.close(timeout):
            self._abort = True
            if not self._background.close(timeout):
                return False
        if self._take:
            self._take.close()
        return True

    # ---- on the recorder's thread ----------------------------------------------------------------------------------------

    def _write(self, event: _Recorded) -> None:
        if self._background.ended:
            return
        if isinstance(event, Ready):
            self._over = True
            return
        if isinstance(event, Called):
            if self._take and not self._over:  # else it was called in the conversation before
                self._take.write_call(event)
            return
        # Begin with the first sound or word, so that an empty conversation leaves no files.
        if self._over or not self._take:
            self._begin()
        assert self._take
        if isinstance(event, SpokeWord):
            self._take.write_word(event.word)
            return
        if isinstance(event, HeardWord):
            self._take.write_word(event.word, speaker="user")
            return
        part = self._take.write(0 if isinstance(event, Heard) else 1, event.index, to_int16(event.pcm))
        if part and self._parent is not None:
            self._notify(
                Notice("recording-part", f"The files of the recording are full; it goes on in those of part {part}.")
            )

    def _begin(self) -> None:
        before, self._take, self._over = self._take, None, False
        if self._parent is None:
            if before:
                before.close()
            self._take = _Take(None, self._limit)
            return
        if before:
            before.finish()
        folder = _fresh(self._parent)
        self.folders.append(folder)
        self._take = _Take(folder, self._limit)
        self._notify(Notice("recording", f"Recording into {folder}."))

    def _tick(self) -> None:
        if self._background.ended or not self._take:
            return
        self._take.sync()
        if self._parent is None and self._take.free() < self._reserve:
            self._background.end(f"less than {human_size(self._reserve)} is free on the disk of temporary files")

    def _report_end(self, reason: str) -> None:
        """Report that the recording has ended, and why; may be called on any thread."""
        take = self._take  # read once: another thread may replace it
        after = _clock(take.frames if take else 0)
        if self._parent is None:
            message = f"After {after} nothing more can be saved: {reason} (TMPDIR names the folder of temporary files)."
        elif self.folders:
            message = f"The recording ended after {after}: {reason}. What came before is in {self.folders[-1]}."
        else:
            message = f"The recording into {self._parent} ended before it began: {reason}."
        self._background.force(self._finish)
        self._notify(Notice("recording-ended", message, "warning"))

    def _finish(self) -> None:
        """Complete and close the files in a folder; temporary files stay open, so that they can still be saved."""
        if self._parent is not None and self._take:
            self._background.attempt(self._take.finish)
            self._take = None

    def _report(self) -> None:
        self._background.attempt(self._tick)
        if self.folders:
            ended = "The recording has ended; it" if self._background.ended else "The recording so far"
            self._notify(Notice("saved", f"{ended} is in {self.folders[-1]}."))
        else:
            self._notify(Notice("not-saved", "There is nothing to save yet."))

    def _save(self, path: Path) -> None:
        if not self._take:
            self._notify(Notice("not-saved", "There is nothing to save yet."))
            return
        temporary = path.with_name(f".msh-{secrets.token_hex(8)}.tmp")
        try:
            temporary.mkdir(parents=True)
            copy = _Take(temporary, self._limit)
            try:
                self._take.copy(copy, lambda: self._abort)
            finally:
                copy.finish()
            # This replaces an empty folder of that name; anything else there is an error.
            temporary.rename(path)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not self._abort:
                self._notify(
                    Notice("not-saved", f"The conversation could not be saved in {path}: {disk_error(error)}.", "error")
                )
            return
        self.folders.append(path)
        self._notify(Notice("saved", f"Saved the conversation so far ({_clock(self._take.frames)}) in {path}."))


class _Take:
    """The files of one conversation: in `folder`, or temporary files for both sides and the words if it is None."""

    def __init__(self, folder: Path | None, limit: int) -> None:
        self._folder = folder
        # All files begin their next part at the same frame, the one at which the stereo file is full.
        part = (limit - _HEADER) // (4 * FRAME_SIZE) if folder else 1 << 48
        self._sides = [_Track(folder, name, 1, part) for name in ("user", "moshi")]
        self._stereo = _Track(folder, "conversation", 2, part) if folder else None
        self._tracks = [*self._sides, self._stereo] if self._stereo else self._sides
        self._words = _create(folder, "transcript.jsonl")
        self._words_size = 0

    @property
    def frames(self) -> int:
        """Return the length so far, in frames."""
        return max(track.frames for track in self._sides)

    @property
    def files(self) -> list[io.FileIO]:
        """Return the files that are open."""
        return [self._words, *(file for track in self._tracks for file in track.files)]

    def write(self, side: int, index: int, samples: Samples) -> int | None:
        """Write frame `index` of a side, `[1920]` int16; return the number of the part that it begins, or None."""
        begun = self._sides[side].write(index, samples)
        if self._stereo:
            # What the other side has not said yet is silence; it is filled in later.
            both = [track.read(index, 1) for track in self._sides]
            begun = self._stereo.write(index, np.stack(both, axis=1))
        return begun

    def write_word(self, word: Word, **more: str) -> None:
        """Append a word, with what else there is to say of it."""
        line = transcript_line(word, **more)
        _write_at(self._words, self._words_size, line)
        self._words_size += len(line)

    def write_call(self, call: Called) -> None:
        """Append a call of a tool. It began so many seconds before what was written last."""
        start = max(0.0, round(self.frames * FRAME_SECONDS - call.seconds, 3))
        self.write_word(Word(start, call.result), speaker="tool", name=call.name, arguments=call.arguments)

    def sync(self) -> None:
        """Update the headers to the length so far; raise `RemovedError` if the files were removed from their folder."""
        if not self._folder:
            return
        for track in self._tracks:
            track.sync()
        if os.fstat(self._words.fileno()).st_nlink == 0:
            raise RemovedError

    def free(self) -> int:
        """Return how many bytes are free on the disk."""
        if sys.platform == "win32":
            return shutil.disk_usage(self._folder or temporary_folder()).free
        disk = os.fstatvfs(self._words.fileno())
        return disk.f_bavail * disk.f_frsize

    def copy(self, target: _Take, aborted: Callable[[], bool]) -> None:
        """Copy these temporary files to `target` and sync them to the disk; raise InterruptedError if `aborted`."""
        for index in range(0, self.frames, _BLOCK):
            if aborted():
                raise InterruptedError
            sides = [track.read(index, min(_BLOCK, self.frames - index)) for track in self._sides]
            for track, samples in zip(target._tracks, [*sides, np.stack(sides, axis=1)], strict=True):
                track.write(index, samples)
        _write_at(target._words, 0, _read_at(self._words, 0, self._words_size))
        target._words_size = self._words_size
        for file in target.files:
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Give all sound files the same length, and close them."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._words.close)
            # Remove half a line, which is left where the disk was full.
            stack.callback(os.ftruncate, self._words.fileno(), self._words_size)
            for track in self._tracks:
                stack.callback(track.finish, self.frames)

    def close(self) -> None:
        """Close the files; temporary ones vanish."""
        for file in self.files:
            file.close()


class _Track:
    """The sound of one file, or of several parts of `part` frames each; frames may be written in any order."""

    def __init__(self, folder: Path | None, name: str, channels: int, part: int) -> None:
        self._folder = folder
        self._name = name
        self._channels = channels
        self._part = part
        self._frame_bytes = 2 * channels * FRAME_SIZE
        self._open: dict[int, io.FileIO] = {}
        self.frames = 0  # its length so far
        self._file(0)

    @property
    def files(self) -> list[io.FileIO]:
        """Return the files that are open."""
        return list(self._open.values())

    def write(self, index: int, samples: Samples) -> int | None:
        """Write whole frames from frame `index` on; return the number of the part that they begin, or None.

        `samples` is `[samples]` or `[samples, channels]` int16.
        """
        data = memoryview(samples.tobytes())
        begun = None
        while data:
            part, place = divmod(index, self._part)
            if part not in self._open:
                begun = part + 1
            count = min(self._part - place, len(data) // self._frame_bytes)
            _write_at(self._file(part), _HEADER + place * self._frame_bytes, data[: count * self._frame_bytes])
            index += count
            data = data[count * self._frame_bytes :]
            self.frames = max(self.frames, index)
        return begun

    def read(self, index: int, count: int) -> Samples:
        """Return `count` frames of one part from frame `index` on, `[samples]` int16, with silence for missing ones."""
        part, place = divmod(index, self._part)
        size = count * self._frame_bytes
        data = b""
        if part in self._open:
            data = _read_at(self._open[part], _HEADER + place * self._frame_bytes, size)
        return np.frombuffer(data.ljust(size, b"\0"), "<i2")

    def sync(self) -> None:
        """Bring the headers up to date."""
        for part, file in self._open.items():
            _write_at(file, 0, wav_header(SAMPLE_RATE, self._channels, self._size(part)))

    def finish(self, frames: int) -> None:
        """Fill up with silence to `frames` frames, and close the files."""
        with contextlib.ExitStack() as stack:
            for file in self._open.values():
                stack.callback(file.close)
            # Even on a full disk the header must be right.
            self.sync()
            self.frames = max(self.frames, frames)
            if self.frames:
                stack.callback(self._file((self.frames - 1) // self._part).close)
            for part, file in self._open.items():
                os.ftruncate(file.fileno(), _HEADER + self._size(part))
            self.sync()

    def _size(self, part: int) -> int:
        """Return how many bytes of sound a part holds."""
        return min(max(self.frames - part * self._part, 0), self._part) * self._frame_bytes

    def _file(self, part: int) -> io.FileIO:
        if part not in self._open:
            name = f"{self._name}.wav" if part == 0 else f"{self._name}-part{part + 1}.wav"
            self._open[part] = _create(self._folder, name)
            if self._folder:
                _write_at(self._open[part], 0, wav_header(SAMPLE_RATE, self._channels, 0))
        return self._open[part]


def _check(folder: Path) -> None:
    """Make a folder if it is missing; raise InputError if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is not a folder", "give one to record into") from None
    except OSError as error:
        raise InputError(f"Cannot record into {folder}: {error.strerror or error}", "name another folder") from None


def _names(parent: Path) -> Iterator[Path]:
    """Yield paths for a new folder in `parent`: the date and time, then the same with -2, -3 and so on."""
    name = datetime.now().strftime("%Y-%m-%d-%H.%M.%S")
    yield parent / name
    for number in itertools.count(2):
        yield parent / f"{name}-{number}"


def _fresh(parent: Path) -> Path:
    """Make a new folder in `parent`."""
    for folder in _names(parent):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _create(folder: Path | None, name: str) -> io.FileIO:
    """Create a new file in `folder`, or a temporary one if `folder` is None; an existing file is an error."""
    if folder is None:
        with tempfile.TemporaryFile(buffering=0, dir=temporary_folder()) as file:
            return io.FileIO(os.dup(file.fileno()), "r+b")
    return (folder / name).open("x+b", buffering=0)


def _read_at(file: io.FileIO, place: int, size: int) -> bytes:
    """Read `size` bytes from byte `place` on, fewer at the file's end. One thread uses a file."""
    if sys.platform == "win32":
        file.seek(place)
        return file.read(size)
    return os.pread(file.fileno(), size, place)


def _write_at(file: io.FileIO, place: int, data: bytes | memoryview) -> None:
    """Write all of `data` at byte `place`, without a buffer in Python, so that a crash of the program loses none of it."""
    rest = memoryview(data)
    while rest:
        if sys.platform == "win32":
            file.seek(place)
            count = file.write(rest)
        else:
            count = os.pwrite(file.fileno(), rest, place)
        rest, place = rest[count:], place + count


def _clock(frames: int) -> str:
    """Return a number of frames as hours, minutes and seconds."""
    return str(timedelta(seconds=frames * FRAME_SIZE // SAMPLE_RATE))
