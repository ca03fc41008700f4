"""What a program takes for granted of its surroundings: streams, home, temporary files, terminal, disk, and its network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import DIGITS
from rich.console import Console
from test_cli import DEMO, ROOT

from msh_mlx.errors import InputError, MshError, WriteError
from msh_mlx.library import cache as hf_cache
from msh_mlx.sound.recordings import WavWriter, open_recording
from msh_mlx.system import log, places
from msh_mlx.system.newfile import NewFile
from msh_mlx.system.places import home, log_folder, temporary_file, user_path
from msh_mlx.system.streams import NamedFile

LIMIT = 60
MAIN = [sys.executable, str(ROOT / "local_mlx.py")]
SHORT = ["--demo", "--steps", "2"]
FULL = Path("/dev/full").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with half a second of sound in several formats."""
    sound = (0.1 * np.sin(np.arange(12000) * 0.05)).astype(np.float32)
    for suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(tmp_path / f"in.{suffix}", sound, 24000)
    return tmp_path


def run(
    *args: str | Path, cwd: Path, redirect: str = "", without: tuple[str, ...] = (), text: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the program by a shell, which does `redirect`, in an environment with `env`, and without some of it."""
    variables = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cwd / "hf"),
        "XDG_CONFIG_HOME": str(cwd / "config"),
    }
    variables |= {"PYTHONPATH": str(ROOT), **env}
    for name in without:
        del variables[name]
    command = ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", *MAIN, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=text, timeout=LIMIT, env=variables
    )


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """See that the program said one sentence at its end, with `words` in it, and return it."""
    message = result.stderr.splitlines()[-1]
    assert result.returncode == code, result.stderr
    assert re.fullmatch(r"[A-Z~/.\w-].*\.", message), message
    for bad in ("Traceback", "unexpected", "Exception ignored"):
        assert bad not in result.stderr
    for word in words:
        assert word in message
    return message


# ---- the standard streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("redirect", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_recordings_where_streams_are_closed(folder: Path, suffix: str, redirect: str) -> None:
    result = run(*SHORT, "--input", f"in.{suffix}", "--output", "out.wav", cwd=folder, redirect=redirect)
    assert (result.returncode, soundfile.info(folder / "out.wav").frames) == (0, 2 * 1920)
    # A file is what the program made of it, and nothing else that was meant for a stream.
    assert (folder / "out.wav").stat().st_size == 44 + 2 * 2 * 1920


def test_descriptors_of_streams_are_nobody_elses(folder: Path) -> None:
    """Whatever is opened next, a server's socket say, does not get the descriptor of a stream that is closed."""
    code = (
        "import os, sys; from msh_mlx.cli.program import guard\n"
        "def program(signals):\n"
        "    number = os.open(os.devnull, os.O_RDONLY)\n"
        "    for descriptor in range(3): os.fstat(descriptor)\n"
        "    print('said'); print('said', file=sys.stderr); sys.stderr.flush()\n"
        "    assert not sys.stdin.isatty()\n"
        "    try: os.read(0, 1)\n"
        "    except OSError: pass\n"
        "    else: return 4\n"
        "    return 0 if number > 2 else 3\n"
        "sys.exit(guard(program))\n"
    )
    for redirect in ("<&- >&- 2>&-", "<&- 2>&-", "<&- >&-"):
        command = ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", code]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, cwd=folder, timeout=LIMIT, env=env, capture_output=True).returncode == 0


def test_a_recording_from_a_closed_standard_input(folder: Path) -> None:
    refused(run("--demo", "--input", "-", "--output", "o.wav", cwd=folder, redirect="<&-"), 2, "cannot be read")


@pytest.mark.parametrize(
    "command", ["--version", "--help", "models", "models --json", "bench --steps 1", "doctor --quick"]
)
def test_what_prints_only_fails_where_nothing_can_be_printed(folder: Path, command: str) -> None:
    closed = run(*command.split(), cwd=folder, redirect=">&-")
    refused(closed, 2, "The standard output is closed")
    if FULL and command in ("--version", "models --json"):
        full = run(*command.split(), cwd=folder, redirect=">/dev/full")
        refused(full, 1, "The standard output cannot be written: No space left on device")


# ---- - is the standard output --------------------------------------------------------------------------------------------


def piped(*args: str, cwd: Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*MAIN, *args], cwd=cwd, input=data, capture_output=True, timeout=LIMIT, env=env)


def test_the_reply_goes_to_the_standard_output(folder: Path) -> None:
    wanted = piped("--demo", "--seed", "1", "--input", "in.wav", "--output", "out.wav", "--stereo", cwd=folder)
    assert wanted.returncode == 0
    shown = piped("--demo", "--seed", "1", "--input", "in.wav", "--output", "-", "--stereo", cwd=folder)
    assert shown.returncode == 0
    # What people read is on the standard error, and there is no file of that name.
    assert b"Listening to in.wav" in shown.stderr
    assert b"Reply: the standard output" in shown.stderr
    assert not (folder / "-").exists()
    # A pipe's header cannot know the length; the sound is the same.
    assert shown.stdout[:8] == b"RIFF\xff\xff\xff\xff"
    assert shown.stdout[44:] == (folder / "out.wav").read_bytes()[44:]
    # The program itself hears it.
    heard = piped("--demo", "--input", "-", "--output", "heard.wav", cwd=folder, data=shown.stdout)
    assert heard.returncode == 0, heard.stderr
    assert soundfile.info(folder / "heard.wav").frames == soundfile.info(folder / "out.wav").frames


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_a_reply_into_a_file_of_the_shells(folder: Path, mode: str) -> None:
    """A file that the standard output is written to from its beginning gets its length; one that is appended to cannot."""
    with (folder / "out.wav").open(mode) as file:
        done = subprocess.run(
            [*MAIN, *SHORT, "--input", "in.wav", "--output", "-"],
            cwd=folder,
            stdout=file,
            stderr=subprocess.PIPE,
            timeout=LIMIT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 0, done.stderr
    data = (folder / "out.wav").read_bytes()
    assert len(data) == 44 + 4 * 1920
    assert int.from_bytes(data[40:44], "little") == (4 * 1920 if mode == "wb" else 0xFFFFFFFF - 36)
    with open_recording(str(folder / "out.wav")) as recording:
        assert sum(map(len, recording.blocks())) == 2 * 1920


def test_the_words_go_to_the_standard_output() -> None:
    shown = piped("--demo", "--input", str(DIGITS), "--transcript", "-", "--steps", "60", cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert [json.loads(line)["text"] for line in shown.stdout.splitlines()] == ["four", "one"]


def test_what_cannot_go_to_the_standard_output(folder: Path) -> None:
    both = run(*SHORT, "--input", "in.wav", "--output", "-", "--transcript", "-", cwd=folder)
    refused(both, 2, "Only one thing")
    closed = run(*SHORT, "--input", "in.wav", "--output", "-", cwd=folder, redirect=">&-")
    refused(closed, 2, "The standard output is closed")
    itself = run(*SHORT, "--input", "in.wav", "--output", "-", cwd=folder, redirect=">>in.wav")
    refused(itself, 2, "would be overwritten")
    refused(run("--demo", "--trace", "-", cwd=folder), 2, "The trace", "./-")
    refused(run("convert", DEMO / "model.q8.safetensors", "-", "--bits", "4", cwd=folder), 2, "The model", "./-")
    if FULL:
        full = run(*SHORT, "--input", "in.wav", "--output", "-", cwd=folder, redirect=">/dev/full")
        refused(full, 1, "The standard output cannot be written", "No space left")
    named = run(*SHORT, "--input", "in.wav", "--output", "./-", cwd=folder)
    assert (named.returncode, soundfile.info(folder / "-").frames) == (0, 2 * 1920)


def test_a_terminal_gets_no_sound(folder: Path) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "wb") as terminal:
        done = subprocess.run(
            [*MAIN, *SHORT, "--input", "in.wav", "--output", "-"],
            cwd=folder,
            stdout=terminal,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    os.close(ours)
    refused(done, 2, "The standard output is a terminal", "> FILE")


def test_who_reads_may_stop(folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for what in ("--demo --output - --input in.wav --tail 4", "models --plain", "models --json"):
        line = f'{{ "$@" {what}; echo $? >code; }} | head -c 0'
        done = subprocess.run(
            ["/bin/sh", "-c", line, "sh", *MAIN], cwd=folder, capture_output=True, timeout=LIMIT, env=env
        )
        assert (done.stdout, (folder / "code").read_text()) == (b"", "141\n")  # as of a program that SIGPIPE ends
        assert b"Error" not in done.stderr
        assert b"ignored" not in done.stderr


def test_a_wav_file_without_end() -> None:
    class Pipe(BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    writer = WavWriter(pipe, 24000, 1)
    writer._size = 0xFFFFFFFF  # 4 GiB are not a limit where the header has no length
    writer.write(np.zeros(3, np.float32))
    writer.finish()
    assert len(pipe.getvalue()) == 44 + 6


# ---- home ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["~backup.wav", "~nosuchuser/in.wav", "./~/in.wav", "~root/in.wav"])
def test_names_that_begin_with_a_tilde(folder: Path, name: str) -> None:
    path = Path(f"{folder}/{name}")
    path.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "in.wav", path)
    out, words = (name.replace("wav", suffix) for suffix in ("out.wav", "jsonl"))
    result = run(*SHORT, "--input", name, "--output", out, "--transcript", words, cwd=folder, HOME=str(folder / "home"))
    assert result.returncode == 0, result.stderr
    assert soundfile.info(f"{folder}/{out}").frames == 2 * 1920
    assert Path(f"{folder}/{words}").exists()
    assert not (folder / "home").exists()


def test_the_home_folder(folder: Path) -> None:
    result = run(*SHORT, "--input", "~/in.wav", "--output", "~/out.wav", cwd=ROOT, HOME=str(folder))
    assert (result.returncode, (folder / "out.wav").exists()) == (0, True), result.stderr


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.chdir(tmp_path)
    assert [str(user_path(text)) for text in ("~", "~/a/b", "~a", "~root/b", "a/~", "/a")] == [
        "/somewhere", "/somewhere/a/b", "~a", "~root/b", "a/~", "/a",
    ]  # fmt: skip
    # Looked at twice, it stays what it is.
    assert user_path(user_path("./~/x")) == tmp_path / "~" / "x"
    assert user_path(user_path("~root")) == Path("~root")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who has no home folder, neither in the environment nor in the password file."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


def test_without_a_home_folder(homeless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from msh_mlx.doctor import checks as doctor
    from msh_mlx.library import catalogue
    from msh_mlx.net import tls

    assert home() is None
    with pytest.raises(InputError, match=r"^~/x is in the home folder, and there is none; set HOME"):
        user_path("~/x")
    with pytest.raises(InputError) as error:
        open_recording("~/x")
    assert str(error.value).startswith("~/x is in the home folder")
    assert not str(error.value).endswith("..")
    assert catalogue.user_file() is None
    assert catalogue.load_catalogue()
    with pytest.raises(InputError, match="There is no home folder to remember the server's certificate in"):
        tls.known_file()
    assert log_folder() is None
    with log.Log() as kept:
        written = kept.write(ValueError("found"))
    assert written
    assert written.parent == places.temporary_folder()
    written.unlink()
    hf_cache.note_verified([])
    assert not hf_cache.is_verified(tmp_path)
    assert doctor.check_files().found == "there is no home folder to keep logs in"
    # As Hugging Face's library names its cache then.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(InputError, match="HF_HOME"):
        hf_cache.check_cache()
    assert "HF_HOME" in doctor.check_disk().advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be a user whom nobody knows"
)
def test_a_user_without_an_entry(tmp_path: Path) -> None:
    """The same as a process: a number that the password file does not have, as in a container."""
    if subprocess.run(["setpriv", "--reuid=54321", sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("that user cannot run this Python")
    tmp_path.chmod(0o777)
    code = "import msh_mlx.system.places as p, msh_mlx.library.catalogue as c; print(p.home(), c.user_file())"
    done = subprocess.run(
        ["setpriv", "--reuid=54321", "--clear-groups", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        cwd=ROOT,
    )
    assert (done.stdout, done.returncode) == ("None None\n", 0), done.stderr


# ---- temporary files -----------------------------------------------------------------------------------------------------

COMPILES = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++") or not find_spec("mlx"), reason="MLX compiles for the processor"
)


@COMPILES
@pytest.mark.parametrize(
    "command", [[*SHORT, "--input", "in.wav", "--output", "o.wav"], ["serve", "--demo"], ["bench"]]
)
def test_a_folder_for_temporary_files_that_is_missing(folder: Path, command: list[str]) -> None:
    missing = str(folder / "none")
    command = [*command, "--engine", "mlx"]
    said = refused(run(*command, cwd=folder, TMPDIR=missing), 1, missing, "set TMPDIR", "unset TMPDIR")
    assert "there is no such folder" in said
    # It is found out before the model is loaded.
    assert "Load" not in run(*command, cwd=folder, TMPDIR=missing).stdout


def test_the_native_engine_needs_no_folder_for_temporary_files(folder: Path) -> None:
    missing = str(folder / "none")
    result = run(*SHORT, "--input", "in.wav", "--output", "o.wav", "--engine", "native", cwd=folder, TMPDIR=missing)
    assert (result.returncode, result.stderr) == (0, "")
    assert (folder / "o.wav").exists()


@COMPILES
def test_a_folder_for_temporary_files_that_cannot_be_written_to(folder: Path) -> None:
    result = run(*SHORT, "--engine", "mlx", "--input", "in.wav", "--output", "o.wav", cwd=folder, TMPDIR="/proc")
    refused(result, 1, "/proc/mlx", "set TMPDIR")
    found = run("doctor", "--quick", "--plain", cwd=folder, TMPDIR="/proc").stdout
    assert re.search(r"^problem +mlx: /proc/mlx.*Set TMPDIR", found, re.MULTILINE)


@COMPILES
@pytest.mark.parametrize("name", ['a"b', "a$b", "a`b"])
def test_a_folder_for_temporary_files_that_the_compiler_may_not_find(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    options = [*SHORT, "--engine", "mlx", "--input", "in.wav", "--output", "o.wav"]
    result = run(*options, cwd=folder, TMPDIR=str(folder / name))
    refused(result, 1, str(folder / name), f"has {name[1]} in its name", "set TMPDIR")


@COMPILES
def test_a_folder_for_temporary_files_that_is_full(folder: Path) -> None:
    # A limit on the size of files needs no disk of its own, and no rights.
    (folder / "tmp").mkdir()
    command = [
        "/bin/sh",
        "-c",
        'ulimit -f 100; exec "$@"',
        "sh",
        *MAIN,
        *SHORT,
        "--engine",
        "mlx",
        "--input",
        "in.wav",
        "--output",
        "o.wav",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, env=env)
    refused(done, 1, str(folder / "tmp"), "File too large", "set TMPDIR")


@COMPILES
def test_what_fails_while_it_is_compiled_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msh_mlx.model.mlx.step import explain

    failed = RuntimeError("[Compile::eval_cpu] Failed to compile function Cf4: error code 256")
    assert "msh-mlx doctor" in str(explain(failed))
    assert explain(RuntimeError("something else")) is None
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in str(explain(failed))
    # As MLX says it; the program asks `explain`.
    code = (
        "import mlx.core; from msh_mlx.cli.program import guard\n"
        "def program(signals): raise RuntimeError('filesystem error: temp_directory_path: No such file or directory')\n"
        "raise SystemExit(guard(program))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=LIMIT)
    refused(done, 1, str(tmp_path / "gone"), "unset TMPDIR")


def test_a_variable_without_a_folder_is_none(folder: Path) -> None:
    result = run(*SHORT, "--input", "in.wav", "--output", "o.wav", cwd=folder, TMPDIR="", TMP="", HOME="")
    assert result.returncode == 0, result.stderr


def test_no_folder_for_temporary_files_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(folder / "none")])
    with pytest.raises(MshError, match=r"^No folder for temporary files can be written to .*; set TMPDIR to a folder"):
        temporary_file()
    # Only what needs one does without: noise is lost, the sound of a pipe is refused.
    with log.Log() as kept:
        os.write(2, b"noise")
        kept.write(ValueError("x"))
    reading, writing = os.pipe()
    os.write(writing, (folder / "in.flac").read_bytes()[:60_000])
    os.close(writing)
    with pytest.raises(MshError, match="No folder for temporary files"):
        open_recording(f"/dev/fd/{reading}")
    os.close(reading)


# ---- the terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["0", "1", "wide"])
def test_what_is_printed_does_not_depend_on_sizes_that_no_terminal_has(folder: Path, size: str) -> None:
    printed = run(*SHORT, "--input", "in.wav", "--output", "o.wav", cwd=folder, COLUMNS=size, LINES=size).stdout
    begins = ["Loaded", "Listening", "Said", "Reply", "0.16", "Step"]
    assert [re.split("[ :]", line)[0] for line in printed.splitlines()] == begins


@pytest.mark.parametrize(
    ("size", "width"),
    [("0", 80), ("1", 80), ("-5", 80), ("²", 80), ("", 80), ("99999999", 80), ("34", 34), ("120", 120)],
)
def test_sizes_that_no_terminal_has(size: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, size)
    places.mend_environment()
    console = Console(force_terminal=True, file=StringIO())
    assert (console.width, console.height) == (width, 25 if width == 80 else width)


# ---- what cannot be written ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may become larger than 1000 bytes; not around a whole test, whose report may go into a file, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limited(kilobytes: int, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program where no file may become larger."""
    code = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes << 10},) * 2); "
    code += "from msh_mlx.cli.main import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT, env=env)


@pytest.mark.parametrize("option", ["--output", "--transcript"])
def test_an_output_that_cannot_be_written_is_named(folder: Path, option: str) -> None:
    limit = {"--output": 100, "--transcript": 0}[option]
    run(*SHORT, "--input", "in.wav", "--output", "o.wav", cwd=folder)
    done = limited(limit, "--demo", "--input", DIGITS, option, "reply", cwd=folder)
    refused(done, 1, "reply cannot be written: File too large")
    assert not (folder / "reply").exists()
    assert not list(folder.glob(".msh-*"))


def test_a_model_that_cannot_be_written_is_named(folder: Path) -> None:
    done = limited(100, "convert", DEMO / "model.q8.safetensors", "out.safetensors", "--bits", "4", cwd=folder)
    refused(done, 1, "out.safetensors cannot be written: File too large")
    assert not (folder / "out.safetensors").exists()


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    from msh_mlx.net.connection_log import ConnectionLog

    def write_new() -> None:
        with NewFile(tmp_path / "new") as new:
            new.file.write(bytes(5000))
            new.commit()

    def write_temporary() -> None:
        with temporary_file() as file:
            file.write(bytes(5000))

    kept = ConnectionLog(tmp_path, "talk")
    for _ in range(100):
        kept.add(np.zeros(8, np.uint32), 3, np.zeros(8, np.uint32))
    for write, name in (
        (write_new, f"{tmp_path}/new"),
        (lambda: kept.finish({}), f"{tmp_path}/talk.npy"),
        (write_temporary, f"The folder for temporary files, {places.temporary_folder()},"),
    ):
        with small_files(), pytest.raises(WriteError, match=f"^{re.escape(name)} cannot be written: File too large; "):
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not FULL, reason="there is no device that is always full")
def test_a_full_device_is_named() -> None:
    with (
        NamedFile("/dev/full", "wb", "It") as file,
        pytest.raises(WriteError, match=r"^It cannot be written: No space"),
    ):
        file.write(b"x")


@pytest.mark.parametrize(
    "command",
    [
        ["--demo", "--input", "in.wav", "--output-dir", "-"],
        ["--demo", "--record", "-"],
        ["client", "--record", "-"],
        ["serve", "--demo", "--log-dir", "-"],
        ["serve", "--demo", "--ssl", "-"],
        ["convert", "in.wav", "-", "--bits", "4"],
    ],
)
def test_the_standard_output_takes_no_folder_and_no_model(folder: Path, command: list[str]) -> None:
    before = sorted(folder.iterdir())
    refused(run(*command, cwd=folder), 2, "the standard output", "./-")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "command",
    [
        ["--demo", "--input", "in.wav", "--output", "o.wav", "--tail"],
        ["client", "--input", "in.wav", "--output", "o.wav", "--tail"],
        ["--demo", "--duration"],
        ["client", "--duration"],
        ["serve", "--demo", "--idle"],
        ["--demo", "--max-delay"],
    ],
)
def test_times_have_a_bound(folder: Path, command: list[str]) -> None:
    for value in ("1e308", "1e9", "inf", "nan", "-1"):
        refused(run(*command, value, cwd=folder), 2, f"'{value}' is not a number from")


# ---- folders that can be made --------------------------------------------------------------------------------------------


def test_folders_of_outputs_are_made(folder: Path) -> None:
    result = run(*SHORT, "--input", "in.wav", "in.flac", "--output-dir", "new", cwd=folder)
    refused(result, 2, "written twice")  # of the same name
    assert not (folder / "new").exists()
    result = run(*SHORT, "--input", "in.wav", "--output-dir", "new", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["in.jsonl", "in.wav"]
    result = run(*SHORT, "--input", "in.wav", "--output-dir", "a/b/c", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "a" / "b" / "c" / "in.wav").exists()
    result = run(*SHORT, "--input", "in.wav", "--output", "more/o.wav", "--transcript", "words/o.jsonl", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "more" / "o.wav").exists()
    assert (folder / "words" / "o.jsonl").exists()


def test_folders_that_are_not_made(folder: Path) -> None:
    result = run(*SHORT, "--input", "in.wav", "--output", "a/b/o.wav", cwd=folder)
    refused(result, 2, "there is no folder", "make it first")
    refused(run(*SHORT, "--input", "in.wav", "--output-dir", "in.wav/b/c", cwd=folder), 2, "in.wav/b/c cannot be made")
    refused(run(*SHORT, "--input", "in.wav", "--output-dir", "in.flac", cwd=folder), 2, "in.flac is not a folder")
    # What goes wrong leaves no empty folder behind.
    refused(run(*SHORT, "--input", "none.wav", "--output", "new/o.wav", cwd=folder), 2, "none.wav")
    refused(run(*SHORT, "--input", "none.wav", "--output-dir", "a/b/c", cwd=folder), 2, "none.wav")
    (folder / "cut.wav").write_bytes((folder / "in.wav").read_bytes()[:-900])
    refused(run(*SHORT, "--input", "cut.wav", "--output", "new/o.wav", cwd=folder), 2, "cut.wav")
    assert not (folder / "new").exists()
    assert not (folder / "a").exists()


# ---- tokens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["serve", "--demo"], ["client", "--input", "in.wav", "--output", "o.wav"]])
@pytest.mark.parametrize("token", ["naïve", "a b", b"\xff"])
def test_tokens_that_cannot_be_sent(folder: Path, command: list[str], token: str | bytes) -> None:
    given = os.fsdecode(token)
    for result in (run(*command, "--token", given, cwd=folder), run(*command, cwd=folder, MSH_TOKEN=given)):
        refused(result, 2, "The token has spaces or other characters")


# ---- the network ---------------------------------------------------------------------------------------------------------


def fetched(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Let the program fetch a model from a hub that is nowhere, by the proxy in `env`."""
    own = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    hub_is = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "https://hub.invalid"}
    return run("models", "get", "moshiko-q4", cwd=folder, **{**own, **hub_is, **env})


@pytest.mark.parametrize("token", ["naïve", "a b"])
def test_a_token_for_the_hub_that_cannot_be_sent(folder: Path, token: str) -> None:
    refused(fetched(folder, HF_TOKEN=token), 2, "The token for Hugging Face has characters", "HF_TOKEN")


@pytest.mark.parametrize(
    ("variable", "value", "code", "words"),
    [
        ("HTTPS_PROXY", "http://127.0.0.1:1", 1, ["cannot be reached through the proxy that HTTPS_PROXY="]),
        ("https_proxy", "garbage.invalid", 1, ["cannot be reached through the proxy that https_proxy=garbage.invalid"]),
        ("ALL_PROXY", "foo://bar:1", 2, ["ALL_PROXY=foo://bar:1 is not a proxy that can be used", "http://HOST:PORT"]),
        ("HTTPS_PROXY", "http://[::1", 2, ["HTTPS_PROXY=http://[::1 is not a proxy that can be used"]),
        ("HTTPS_PROXY", "http://me:secret@127.0.0.1:1", 1, ["HTTPS_PROXY=http://127.0.0.1:1 names"]),
    ],
)
def test_a_bad_proxy_is_named(folder: Path, variable: str, value: str, code: int, words: list[str]) -> None:
    said = refused(fetched(folder, **{variable: value}), code, *words)
    assert "HF_ENDPOINT" not in said
    assert "secret" not in said


def test_a_proxy_that_refuses_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            with contextlib.suppress(OSError):  # closed below
                while True:
                    with listener.accept()[0] as connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        refused(fetched(folder, HTTPS_PROXY=proxy), 1, f"HTTPS_PROXY={proxy} refuses to connect to hub.invalid", "403")
        listener.shutdown(socket.SHUT_RDWR)


def test_without_a_proxy_none_is_blamed(folder: Path) -> None:
    for env in ({}, {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "hub.invalid"}):
        said = refused(fetched(folder, **env), 1, "hub.invalid cannot be reached")
        assert "proxy" not in said.lower()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        *[
            ("HF_ENDPOINT", value, "is not the address of a hub")
            for value in ("nowhere", "http://[", "http://a:99999", "ht p://a")
        ],
        *[(f"HF_HUB_{of}_TIMEOUT", "2 s", "is not a whole number of seconds") for of in ("DOWNLOAD", "ETAG")],
        ("SSL_CERT_FILE", "there-is-none", "cannot be used (No such file or directory)"),
        ("SSL_CERT_FILE", ".", "cannot be used (Is a directory)"),
        ("SSL_CERT_FILE", "in.wav", "cannot be used (it has no certificate)"),
    ],
)
def test_settings_of_the_hub_that_are_wrong(folder: Path, variable: str, value: str, words: str) -> None:
    refused(fetched(folder, **{variable: value}), 2, f"{variable}={value} {words}; correct it, or unset it.")


def test_the_demo_where_the_hub_cannot_be_asked(folder: Path) -> None:
    for variable, value in (("HF_HUB_ETAG_TIMEOUT", "x"), ("SSL_CERT_FILE", ".")):
        env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(folder), variable: value}
        files = "".join(
            f'files.{role} = "{name}"\n' for role, name in (("lm", "a.safetensors"), ("tokenizer", "c.model"))
        )
        (folder / "one.toml").write_text(
            '[own]\nabout = "light"\nrepository = "me/model"\nrevision = "main"\nquantization = "q4"\nsize = 1\nmemory = 1\n'
            f'step-bytes = 1\nlicence = "none"\n{files}files.mimi = "b.safetensors"\n'
        )
        result = run(
            "--or-demo",
            "--steps",
            "2",
            "--input",
            "in.wav",
            "--output",
            "o.wav",
            "--weights",
            "one.toml",
            cwd=folder,
            **env,
        )
        assert result.returncode == 0, result.stderr
        assert f"{variable}={value}" in result.stderr
        assert "so this is the demo model" in result.stderr
        doctor = run("doctor", "--quick", cwd=folder, **env)
        assert f"warning  models: {variable}={value}" in doctor.stdout
        assert "Error" not in doctor.stdout
