"""The recorder: every sample and word where it belongs, whatever happens to the disk, the folder or the program."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from msh_mlx.errors import InputError
from msh_mlx.events import Called, Heard, HeardWord, Notice, Ready, Said, Span, SpokeWord, Word
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.live import recorder as module
from msh_mlx.live.background import Background
from msh_mlx.live.recorder import Recorder
from msh_mlx.sound.recordings import to_int16

FILES = ["conversation.wav", "moshi.wav", "transcript.jsonl", "user.wav"]


def voice(seed: int, frames: int) -> np.ndarray:
    """`[frames, 1920]` float32; some of it is louder than full scale."""
    return np.random.default_rng(seed).normal(0, 0.4, (frames, FRAME_SIZE)).astype(np.float32)


def talk(recorder: Recorder, user: np.ndarray, moshi: np.ndarray, words: list[Word] | None = None) -> None:
    """Feed a conversation as the pipeline does: Moshi's frame comes two frames after the user's."""
    for index in range(len(user) + 2):
        if index < len(user):
            recorder(Heard(index, user[index]))
        recorder(Span("step", index, 0.0, 0.1))
        if 2 <= index < len(moshi) + 2:
            recorder(Said(index - 2, moshi[index - 2]))
    for word in words or []:
        recorder(SpokeWord(word))


def sound(path: Path) -> np.ndarray:
    data, rate = soundfile.read(path, dtype="int16")
    assert rate == SAMPLE_RATE
    assert soundfile.info(path).subtype == "PCM_16"
    return data


def padded(pcm: np.ndarray, frames: int) -> np.ndarray:
    return np.concatenate([to_int16(pcm).ravel(), np.zeros((frames - len(pcm)) * FRAME_SIZE, np.int16)])


def check(folder: Path, user: np.ndarray, moshi: np.ndarray, words: list[Word] | None = None) -> None:
    """Compare all files of a folder with what was fed."""
    frames = max(len(user), len(moshi))
    expected = padded(user, frames), padded(moshi, frames)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert np.array_equal(sound(folder / "user.wav"), expected[0])
    assert np.array_equal(sound(folder / "moshi.wav"), expected[1])
    assert np.array_equal(sound(folder / "conversation.wav"), np.stack(expected, axis=1))
    lines = (folder / "transcript.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"start": w.start, "text": w.text} for w in words or []]


def test_the_words_of_both(tmp_path: Path) -> None:
    recorder = Recorder(lambda notice: None, tmp_path)
    recorder(Ready(1))
    recorder(HeardWord(Word(0.4, "four")))
    recorder(SpokeWord(Word(1.2, "five")))
    assert recorder.close(10)
    (folder,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
    assert lines == [{"start": 0.4, "text": "four", "speaker": "user"}, {"start": 1.2, "text": "five"}]


def test_the_results_of_tools(tmp_path: Path) -> None:
    """Each where it was called; none of a conversation that is over."""
    recorder = Recorder(lambda notice: None, tmp_path)
    recorder(Called("add", "{}", "too early", False, 0.1))
    recorder(Ready(1))
    for index in range(25):
        recorder(Heard(index, np.zeros(FRAME_SIZE, np.float32)))
    recorder(Called("add", '{"a": 4}', "5", False, 0.5))
    recorder(SpokeWord(Word(2.4, "five")))
    recorder(Ready(2))
    recorder(Called("add", "{}", "too late", True, 0.1))
    assert recorder.close(10)
    (folder,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
    called = {"start": 1.5, "text": "5", "speaker": "tool", "name": "add", "arguments": '{"a": 4}'}
    assert lines == [called, {"start": 2.4, "text": "five"}]


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def kinds(notices: list[Notice]) -> list[str]:
    return [notice.kind for notice in notices]


@pytest.fixture
def notices() -> list[Notice]:
    return []


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "recorder"]


# ---- as it goes ----------------------------------------------------------------------------------------------------------


def test_every_sample_and_word(tmp_path: Path, notices: list[Notice]) -> None:
    words = [Word(0.08, "one"), Word(0.4, "“zwei”"), Word(0.56, "three")]
    user, moshi = voice(0, 20), voice(1, 20)
    recorder = Recorder(notices.append, tmp_path / "new" / "folder")
    recorder(Ready(1))
    talk(recorder, user, moshi, words)
    assert recorder.close(10)
    assert [path.parent for path in recorder.folders] == [tmp_path / "new" / "folder"]
    check(recorder.folders[0], user, moshi, words)
    assert kinds(notices) == ["recording"]
    assert str(recorder.folders[0]) in notices[0].message
    line = (recorder.folders[0] / "transcript.jsonl").read_text(encoding="utf-8").splitlines()[1]
    assert line == '{"start": 0.4, "text": "“zwei”"}'


@pytest.mark.parametrize("seed", range(5))
def test_what_a_side_lacks_is_silence(tmp_path: Path, notices: list[Notice], seed: int) -> None:
    rng = np.random.default_rng(seed)
    user, moshi = voice(seed, 40), voice(seed + 100, 40)
    gone = rng.random((2, 40)) < 0.3
    gone[0, 39] = False
    recorder = Recorder(notices.append, tmp_path)
    said = 0
    for index in range(40):
        if not gone[0, index]:
            recorder(Heard(index, user[index]))
        for late in range(said, index + 1 if rng.random() < 0.5 else said):
            if not gone[1, late]:
                recorder(Said(late, moshi[late]))
            said = late + 1
    gone[1, said:] = True
    assert recorder.close(10)
    user[gone[0]], moshi[gone[1]] = 0, 0
    check(recorder.folders[0], user, moshi)


def test_one_side_may_be_any_time_behind(tmp_path: Path, notices: list[Notice]) -> None:
    user, moshi = voice(30, 400), voice(31, 400)
    recorder = Recorder(notices.append, tmp_path)
    for index, pcm in enumerate(user):
        recorder(Heard(index, pcm))
    for index, pcm in enumerate(moshi):
        recorder(Said(index, pcm))
    assert recorder.close(10)
    check(recorder.folders[0], user, moshi)


def test_files_can_be_read_while_they_grow(tmp_path: Path, notices: list[Notice]) -> None:
    user, moshi = voice(2, 10), voice(3, 10)
    recorder = Recorder(notices.append, tmp_path)
    talk(recorder, user, moshi, [Word(0.0, "hm")])
    wait(lambda: recorder.folders and all((recorder.folders[0] / name).exists() for name in FILES))
    wait(lambda: soundfile.info(recorder.folders[0] / "conversation.wav").frames == 10 * FRAME_SIZE)
    check(recorder.folders[0], user, moshi, [Word(0.0, "hm")])
    assert recorder.close(10)


def test_every_conversation_gets_a_folder(tmp_path: Path, notices: list[Notice]) -> None:
    takes = [(voice(i, 9 + i), voice(i + 10, 9 + i), [Word(0.08 * i, f"word{i}")]) for i in range(3)]
    recorder = Recorder(notices.append, tmp_path)
    for conversation, take in enumerate(takes, start=1):
        recorder(Ready(conversation))
        talk(recorder, *take)
    recorder(Ready(4))
    assert recorder.close(10)
    assert sorted(tmp_path.iterdir()) == sorted(recorder.folders)
    assert kinds(notices) == ["recording"] * 3
    for folder, take in zip(recorder.folders, takes, strict=True):
        check(folder, *take)


def test_nothing_is_overwritten(tmp_path: Path, notices: list[Notice]) -> None:
    recorders = [Recorder(notices.append, tmp_path) for _ in range(4)]
    for seed, recorder in enumerate(recorders):
        talk(recorder, voice(seed, 3), voice(seed + 50, 3))
    assert all(recorder.close(10) for recorder in recorders)
    assert len({recorder.folders[0] for recorder in recorders}) == 4
    for seed, recorder in enumerate(recorders):
        check(recorder.folders[0], voice(seed, 3), voice(seed + 50, 3))


def test_a_conversation_that_never_began_leaves_nothing(tmp_path: Path, notices: list[Notice]) -> None:
    recorder = Recorder(notices.append, tmp_path)
    recorder(Ready(1))
    assert recorder.close(10)
    assert (list(tmp_path.iterdir()), notices, recorder.folders) == ([], [], [])


def test_full_files_go_on_in_the_next_part(tmp_path: Path, notices: list[Notice]) -> None:
    user, moshi = voice(4, 23), voice(5, 22)
    recorder = Recorder(notices.append, tmp_path, limit=44 + 10 * 4 * FRAME_SIZE + 100)
    talk(recorder, user, moshi)
    assert recorder.close(10)
    assert kinds(notices) == ["recording", "recording-part", "recording-part"]
    assert ["part 2" in n.message or "part 3" in n.message for n in notices] == [False, True, True]
    folder = recorder.folders[0]
    assert len(list(folder.iterdir())) == 3 * 3 + 1
    for name, expected in (
        ("user", padded(user, 23)),
        ("moshi", padded(moshi, 23)),
        ("conversation", np.stack([padded(user, 23), padded(moshi, 23)], axis=1)),
    ):
        parts = [sound(folder / f"{name}{part}.wav") for part in ("", "-part2", "-part3")]
        assert [len(part) // FRAME_SIZE for part in parts] == [10, 10, 3]
        assert np.array_equal(np.concatenate(parts), expected)


def test_a_file_ends_below_4_gib() -> None:
    frames = (module._LIMIT - 44) // (4 * FRAME_SIZE)
    assert 44 + frames * 4 * FRAME_SIZE <= 0xFFFFFFFF < 44 + (frames + 1) * 4 * FRAME_SIZE
    module.wav_header(SAMPLE_RATE, 2, frames * 4 * FRAME_SIZE)


# ---- saving --------------------------------------------------------------------------------------------------------------


def test_saves_what_was_not_recorded(tmp_path: Path, notices: list[Notice]) -> None:
    user, moshi = voice(6, 150), voice(7, 150)
    words = [Word(0.24, "two")]
    recorder = Recorder(notices.append)
    talk(recorder, user[:70], moshi[:70], words)
    first = recorder.save(tmp_path / "saved")
    second = recorder.save(tmp_path / "saved")
    for index in range(70, 150):
        recorder(Heard(index, user[index]))
        recorder(Said(index, moshi[index]))
    wait(lambda: len(notices) == 2)
    check(first, user[:70], moshi[:70], words)
    check(second, user[:70], moshi[:70], words)
    third = recorder.save(tmp_path / "saved")
    wait(lambda: len(notices) == 3)
    check(third, user, moshi, words)
    assert recorder.close(10)
    assert kinds(notices) == ["saved"] * 3
    assert [str(path) in notice.message for path, notice in zip([first, second, third], notices, strict=True)]
    assert recorder.folders == [first, second, third]
    assert sorted((tmp_path / "saved").iterdir()) == sorted([first, second, third])


def test_saves_the_conversation_that_goes_on(tmp_path: Path, notices: list[Notice]) -> None:
    recorder = Recorder(notices.append)
    talk(recorder, voice(8, 9), voice(9, 9), [Word(0.0, "old")])
    recorder(Ready(2))
    talk(recorder, voice(10, 5), voice(11, 4), [Word(0.08, "new")])
    path = recorder.save(tmp_path)
    assert recorder.close(10)
    check(path, voice(10, 5), voice(11, 4), [Word(0.08, "new")])
    assert kinds(notices) == ["saved"]


def test_saving_a_recording_says_where_it_is(tmp_path: Path, notices: list[Notice]) -> None:
    recorder = Recorder(notices.append, tmp_path / "a")
    talk(recorder, voice(12, 5), voice(13, 5))
    wait(lambda: recorder.folders)
    assert recorder.save(tmp_path / "b") == recorder.folders[0]
    wait(lambda: len(notices) == 2)
    check(recorder.folders[0], voice(12, 5), voice(13, 5))
    assert recorder.close(10)
    assert kinds(notices) == ["recording", "saved"]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("folder", [True, False])
def test_there_may_be_nothing_to_save(tmp_path: Path, notices: list[Notice], folder: bool) -> None:
    recorder = Recorder(notices.append, tmp_path if folder else None)
    recorder.save(tmp_path)
    assert recorder.close(10)
    assert kinds(notices) == ["not-saved"]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path, notices: list[Notice]) -> None:
    (tmp_path / "file").write_text("in the way")
    recorder = Recorder(notices.append)
    talk(recorder, voice(14, 5), voice(15, 5))
    path = recorder.save(tmp_path / "file")
    assert recorder.close(10)
    assert [(notice.kind, notice.level) for notice in notices] == [("not-saved", "error")]
    assert str(path) in notices[0].message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_taken_meanwhile_is_left_alone(
    tmp_path: Path, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    copy = module._Take.copy
    monkeypatch.setattr(module._Take, "copy", lambda *args: (go.wait(10), copy(*args)))
    recorder = Recorder(notices.append)
    talk(recorder, voice(14, 5), voice(15, 5))
    path = recorder.save(tmp_path)
    path.mkdir()
    (path / "other").write_text("of somebody else")
    go.set()
    assert recorder.close(10)
    assert kinds(notices) == ["not-saved"]
    assert list(tmp_path.rglob("*")) == [path, path / "other"]


def test_saving_is_given_up_when_the_program_ends(
    tmp_path: Path, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(notices.append)
    talk(recorder, voice(16, 200), voice(17, 200))
    read = module._Track.read
    monkeypatch.setattr(module._Track, "read", lambda *args: (time.sleep(0.3), read(*args))[1])
    recorder.save(tmp_path)
    assert recorder.close(0.5)
    assert list(tmp_path.iterdir()) == []
    assert notices == []


def test_nothing_is_kept_where_the_disk_is_nearly_full(tmp_path: Path, notices: list[Notice]) -> None:
    recorder = Recorder(notices.append, reserve=1 << 60)
    talk(recorder, voice(18, 5), voice(19, 5))
    wait(lambda: notices)
    recorder(Heard(5, voice(20, 1)[0]))
    path = recorder.save(tmp_path)
    assert recorder.close(10)
    assert kinds(notices) == ["recording-ended", "saved"]
    assert "GB is free" in notices[0].message
    check(path, voice(18, 5), voice(19, 5))


# ---- when things go wrong ------------------------------------------------------------------------------------------------

CHILD = """
import os, sys, time
from pathlib import Path
import numpy as np
from msh_mlx.events import Heard, Said, SpokeWord
from msh_mlx.live.recorder import Recorder
from msh_mlx.events import Word

def tell(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")

def main():
    recorder = Recorder(lambda notice: tell(notice.kind, notice.message), Path(sys.argv[1]))
    user, moshi = (np.random.default_rng(seed).normal(0, 0.4, (2000, 1920)).astype(np.float32) for seed in (0, 1))
    pause = float(sys.argv[2])
    for index in range(int(sys.argv[3])):
        recorder(Heard(index, user[index]))
        recorder(Said(index, moshi[index]))
        recorder(SpokeWord(Word(round(0.08 * index, 3), f"word{index}")))
        tell(index)
        time.sleep(pause)
    tell("closed", recorder.close(10))
"""


def test_a_killed_program_loses_less_than_a_second(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD + "main()", str(tmp_path), "0.008", "2000"]  # ten times as fast as life
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        begin = None
        fed: list[tuple[float, int]] = []
        for line in child.stdout:
            if line.split()[0].isdigit():
                fed.append((time.monotonic(), int(line)))
                begin = begin or fed[0][0]
                if fed[-1][0] - begin > 2.2:
                    break
        killed = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
    due = max(index for at, index in fed if at < killed - 1)
    (folder,) = tmp_path.iterdir()
    user, moshi = voice(0, 2000), voice(1, 2000)
    for name, expected in (("user", user), ("moshi", moshi)):
        got = sound(folder / f"{name}.wav")
        assert len(got) // FRAME_SIZE > due > 0
        assert np.array_equal(got, to_int16(expected).ravel()[: len(got)])
    both = sound(folder / "conversation.wav")
    assert len(both) // FRAME_SIZE > due
    assert np.array_equal(both[:, 0], to_int16(user).ravel()[: len(both)])
    words = [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
    assert len(words) > due
    assert words[due] == {"start": round(0.08 * due, 3), "text": f"word{due}"}


def check_cut_short(folder: Path) -> None:
    """The files hold the beginning of what the child said, and are whole as files."""
    lengths = set()
    for name, seed in (("user", 0), ("moshi", 1)):
        got = sound(folder / f"{name}.wav")
        lengths.add(len(got))
        expected = to_int16(voice(seed, 2000)).ravel()[: len(got)]
        # The last frame may be missing on one side.
        assert np.array_equal(got[:-FRAME_SIZE], expected[:-FRAME_SIZE])
        assert len(got) > 10 * FRAME_SIZE
    lengths.add(len(sound(folder / "conversation.wav")))
    assert max(lengths) - min(lengths) <= FRAME_SIZE
    for line in (folder / "transcript.jsonl").read_text().splitlines():
        assert json.loads(line)["text"].startswith("word")
    for path in folder.glob("*.wav"):
        data = path.read_bytes()
        assert int.from_bytes(data[40:44], "little") <= len(data) - 44


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    disk, child, copy = tmp_path / "disk", tmp_path / "child.py", tmp_path / "copy"
    disk.mkdir()
    child.write_text(CHILD + "main()")
    # The mount is gone with the shell.
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && eval "$1"', disk]
    if not shutil.which("unshare") or subprocess.run([*mount, ":"], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system of its own")
    command = f"{sys.executable!r} {str(child)!r} {str(disk / 'in')!r} 0 200; cp -r {str(disk / 'in')!r} {str(copy)!r}"
    result = subprocess.run([*mount, command], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line for line in result.stdout.splitlines() if not line.split()[0].isdigit()]
    assert [line.split()[0] for line in lines] == ["recording", "recording-ended", "closed"]
    assert "the disk is full" in lines[1]
    assert lines[2] == "closed True"
    assert "199" in result.stdout.splitlines()  # the feeder was not disturbed
    check_cut_short(next(copy.iterdir()))


def test_a_file_that_may_not_grow_ends_the_recording(tmp_path: Path) -> None:
    """As with a quota, or a file system without large files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    command = [sys.executable, "-c", CHILD + "main()", str(tmp_path), "0", "200"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line for line in result.stdout.splitlines() if not line.split()[0].isdigit()]
    assert [line.split()[0] for line in lines] == ["recording", "recording-ended", "closed"]
    check_cut_short(next(tmp_path.iterdir()))


def test_a_removed_folder_ends_the_recording(tmp_path: Path, notices: list[Notice]) -> None:
    recorder = Recorder(notices.append, tmp_path / "a")
    talk(recorder, voice(21, 5), voice(22, 5))
    wait(lambda: notices)
    wait(lambda: (recorder.folders[0] / "transcript.jsonl").exists())
    shutil.rmtree(tmp_path / "a")
    wait(lambda: len(notices) == 2)
    recorder(Heard(5, voice(23, 1)[0]))
    recorder.save(tmp_path)
    assert recorder.close(10)
    assert kinds(notices) == ["recording", "recording-ended", "saved"]
    assert "removed" in notices[1].message
    assert not (tmp_path / "a").exists()


def test_a_slow_disk_ends_the_recording_and_delays_nobody(
    tmp_path: Path, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = module._write_at

    def slow(*args: object) -> None:
        assert go.wait(10)
        write(*args)  # type: ignore[arg-type]

    recorder = Recorder(notices.append, tmp_path, queue=50)
    talk(recorder, voice(24, 20), voice(25, 20))
    wait(lambda: recorder._background._queue.qsize() == 0)
    monkeypatch.setattr(module, "_write_at", slow)
    for index in range(20, 200):
        recorder(Heard(index, voice(26, 1)[0]))
    assert kinds(notices) == ["recording", "recording-ended"]
    assert "slow" in notices[1].message
    assert recorder._background._queue.qsize() <= 52
    go.set()
    assert recorder.close(10)
    assert np.array_equal(sound(recorder.folders[0] / "user.wav")[: 20 * FRAME_SIZE], to_int16(voice(24, 20)).ravel())


def test_a_disk_that_hangs_does_not_keep_the_program(
    tmp_path: Path, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(module, "_write_at", lambda *_: go.wait(10))
    recorder = Recorder(notices.append, tmp_path)
    talk(recorder, voice(27, 2), voice(28, 2))
    begin = time.monotonic()
    assert not recorder.close(0.1)
    assert time.monotonic() - begin < 5
    go.set()
    assert recorder.close(10)


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_be(tmp_path: Path, notices: list[Notice], where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^\S.*\.$") as error:
        Recorder(notices.append, tmp_path / where)
    assert str(tmp_path / where) in str(error.value)


def test_what_waits_is_done_in_order_before_the_end() -> None:
    done: list[int] = []
    background = Background("recorder", lambda: None, pytest.fail, 1000)
    for number in range(1000):
        background.put(partial(done.append, number))
    assert background.close(10)
    assert done == list(range(1000))


def test_the_first_job_that_fails_ends_the_work() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError(errno.ENOSPC, "no room")

    background = Background("recorder", lambda: None, done.append, 1000)
    background.force(fail)
    wait(lambda: background.ended)
    background.put(lambda: done.append("dropped"))
    background.force(lambda: done.append("forced"))
    background.force(fail)
    assert background.close(10)
    assert done == ["the disk is full", "forced"]
