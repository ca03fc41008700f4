"""What `msh-mlx doctor` finds, says, and ends with: on this machine, and where something is wrong."""

from __future__ import annotations

import ast
import ctypes.util
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mimi
import pytest
from paths import DEMO, ROOT
from rich.console import Console

import msh_mlx
from msh_mlx.cli.doctor import conclusion, show
from msh_mlx.doctor.checks import (
    all_checks,
    check_demo,
    check_engine,
    check_files,
    check_mlx,
    check_models,
    check_terminal,
    check_variant,
)
from msh_mlx.doctor.examine import AGAIN, Check, death_of, examine
from msh_mlx.doctor.judgements import (
    Finding,
    Folder,
    judge_disk,
    judge_echo,
    judge_engine,
    judge_memory,
    judge_microphone,
    judge_python,
    judge_speaker,
    judge_system,
)
from msh_mlx.doctor.sound import check_echo, check_microphone, check_speaker
from msh_mlx.errors import MshError
from msh_mlx.library.catalogue import load_catalogue
from msh_mlx.library.suited import reading
from msh_mlx.sound.devices import Device
from msh_mlx.sound.echo import EchoMeasure
from msh_mlx.sound.ends import Level
from msh_mlx.system import machine
from msh_mlx.system.words import human_size

NAMES = ["system", "python", "mlx", "engine", "codec", "demo model", "models", "disk", "memory", "terminal", "files",
         "sound", "speaker", "microphone"]  # fmt: skip
GB = 10**9


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home with nothing in it, and no sound devices."""
    for name, folder in (("XDG_CONFIG_HOME", "config"), ("XDG_STATE_HOME", "state"), ("HF_HOME", "hf")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("PULSE_SERVER", "unix:/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "local_mlx.py"), "doctor", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **env})


def outcome(*args: str, **env: str) -> tuple[dict[str, Any], int]:
    """The checks by name, and the exit code."""
    result = run("--json", *args, **env)
    assert not result.stderr
    whole = json.loads(result.stdout)
    assert set(whole) == {"ok", "checks"}
    for check in whole["checks"]:
        assert set(check) - {"figures"} == {"name", "status", "found", "advice"}
        assert check["status"] in ("ok", "warning", "problem", "skipped")
        assert check["found"]
        assert not check["advice"] or check["advice"].endswith(".")
        assert check["advice"] or check["status"] in ("ok", "skipped")
    assert whole["ok"] == all(check["status"] != "problem" for check in whole["checks"])
    assert result.returncode == (0 if whole["ok"] else 1)
    return {check["name"]: check for check in whole["checks"]}, result.returncode


def test_this_machine() -> None:
    begin = time.monotonic()
    checks, code = outcome()
    assert time.monotonic() - begin < 20  # on a busy machine
    assert list(checks) == NAMES
    for name in ("python", "codec", "demo model"):
        assert checks[name]["status"] == "ok", checks[name]
    assert checks["mlx"]["status"] == "ok" or not shutil.which("g++")
    assert mimi.kernels() in checks["codec"]["found"]
    assert checks["terminal"]["status"] == "skipped"
    if sys.platform == "linux":
        assert checks["system"]["status"] == "ok"
        assert code == 1
        assert checks["sound"]["status"] == "problem"
        assert checks["speaker"]["status"] == checks["microphone"]["status"] == "skipped"


def test_kernels_are_those_of_the_processor() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split()) if sys.platform == "linux" else set()
    wanted = {"arm64": "NEON", "aarch64": "NEON"}.get(os.uname().machine, "portable")
    for name, needs in (("AVX2", "avx2 fma f16c"), ("AVX-512", "avx512f avx512bw avx512dq avx512vl")):
        if flags >= set(needs.split()):
            wanted = name
    assert mimi.kernels() == wanted


def test_plain_lines_for_what_is_not_a_terminal() -> None:
    result = run("--quick")
    lines = result.stdout.splitlines()
    assert [line[9:].partition(": ")[0] for line in lines[:-1]] == NAMES
    assert "\x1b" not in result.stdout
    assert not result.stderr


@pytest.mark.parametrize(
    "package", ["mlx", "numpy", "mimi", "msh_native", "huggingface_hub", "sentencepiece", "psutil"]
)
def test_a_module_that_cannot_be_imported(package: str, tmp_path: Path) -> None:
    (tmp_path / "broken" / package).mkdir(parents=True)
    (tmp_path / "broken" / package / "__init__.py").write_text("raise ImportError('it is broken')")
    checks, code = outcome(PYTHONPATH=str(tmp_path / "broken"))
    names = {
        "mimi": "codec",
        "msh_native": "codec",
        "huggingface_hub": "disk",
        "sentencepiece": "demo model",
        "psutil": "memory",
        **({} if find_spec("mlx") else {"numpy": "engine"}),
    }
    name = names.get(package, "mlx")
    assert code == 1
    assert checks[name]["status"] == "problem"
    assert "it is broken" in checks[name]["found"]
    assert checks["models"]["status"] == ("problem" if package == "huggingface_hub" else "warning")
    if package == "msh_native":  # what reads no file of weights works without it
        assert {checks[name]["status"] for name in ("disk", "memory", "files")} <= {"ok", "warning"}
    assert list(checks) == NAMES


def test_mlx_without_a_compiler(tmp_path: Path) -> None:
    if sys.platform != "linux" or not find_spec("mlx"):
        pytest.skip("MLX compiles with g++ on Linux only")
    empty = tmp_path / "bin"
    empty.mkdir()
    checks, _ = outcome("--quick", PATH=str(empty))
    assert checks["mlx"]["status"] == "warning"
    assert "apt-get install g++" in checks["mlx"]["advice"]
    (empty / "g++").write_text("#!/bin/sh\necho 'cc1plus is missing' >&2\nexit 1\n")
    (empty / "g++").chmod(0o755)
    checks, _ = outcome("--quick", PATH=str(empty))
    assert checks["mlx"]["status"] == "problem"
    assert "cc1plus is missing" in checks["mlx"]["found"]


def test_a_sound_system_that_ends_the_process(tmp_path: Path) -> None:
    if sys.platform != "linux" or not ctypes.util.find_library("portaudio"):
        pytest.skip("needs PortAudio on ALSA")
    (tmp_path / "alsa.conf").touch()  # in which ALSA's own names are missing: PortAudio fails an assertion
    checks, code = outcome("--quick", ALSA_CONFIG_PATH=str(tmp_path / "alsa.conf"))
    assert (code, checks["sound"]["found"]) == (1, "the sound system dies (SIGABRT)")


def test_code_that_ends_its_process() -> None:
    assert death_of("import os; os.kill(os.getpid(), 11)", 20) == "SIGSEGV"
    assert death_of("raise ImportError", 20) == ""
    with pytest.raises(subprocess.TimeoutExpired):
        death_of("import time; time.sleep(30)", 0.1)


def test_mlx_that_computes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    mx = pytest.importorskip("mlx.core")

    right = mx.array
    monkeypatch.setattr(mx, "array", lambda values: right(values + 1))
    assert "product is wrong" in check_mlx().found


def test_a_catalogue_of_the_user_that_is_wrong(home: Path) -> None:
    (home / "config" / "msh-mlx").mkdir(parents=True)
    own = home / "config" / "msh-mlx" / "weights.toml"
    own.write_text('[mine]\nabout = "Mine"\nlicense = "MIT"\n')
    checks, code = outcome("--quick")
    assert code == 1
    assert f"{own}, line 3: mine.license is not known" in checks["models"]["found"]
    assert str(own) in checks["models"]["advice"]
    assert checks["disk"]["status"] != "problem"
    assert checks["files"]["status"] == "ok"


def test_weights_of_the_user(home: Path) -> None:
    (home / "config" / "msh-mlx").mkdir(parents=True)
    own = home / "config" / "msh-mlx" / "weights.toml"
    own.write_text('[mine]\nfiles = {lm = "lm", mimi = "mimi", tokenizer = "tokenizer"}\n')
    for name in ("mimi", "tokenizer"):
        own.with_name(name).touch()
    finding = check_files()
    assert finding.status == "warning"
    assert finding.found == f"{own.with_name('lm')} of the model mine is not there"
    assert finding.advice == f"Put the file there, or correct mine in {own}."
    own.with_name("lm").mkdir()
    assert check_files().found.endswith("cannot be read")
    own.with_name("lm").rmdir()
    own.with_name("lm").touch()
    assert check_files().status == "ok"


def test_models_on_disk(home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert check_models().status == "warning"
    assert check_models().found == "none of the 22 models in the catalogue is on disk"
    own = home / "config" / "msh-mlx" / "weights.toml"
    own.parent.mkdir(parents=True)
    own.write_text('[mine]\nfiles = {lm = "lm", mimi = "mimi", tokenizer = "tokenizer", config = "config"}\n')
    files = {
        "lm": "model.q8.safetensors",
        "mimi": "mimi.safetensors",
        "tokenizer": "tokenizer.model",
        "config": "config.json",
    }
    for name, file in files.items():
        shutil.copy(DEMO / file, own.with_name(name))
    found = check_models()
    assert (found.status, found.found) == ("ok", "mine on disk, not verified yet")
    assert run("--quick").stdout.count("models verify") == 1
    command = [sys.executable, str(ROOT / "local_mlx.py"), "models", "verify"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert check_models().found == "mine on disk, verified"
    # A change is noticed; what is not a model any more is a problem.
    own.with_name("lm").touch()
    assert check_models().found == "mine on disk, not verified yet"
    own.with_name("mimi").write_bytes((DEMO / "mimi.safetensors").read_bytes()[:-1])
    found = check_models()
    assert found.status == "problem"
    assert found.found.startswith(f"mine: {own.with_name('mimi')} is cut off")
    assert found.advice == "'msh-mlx models verify --repair mine' fetches it again."


def test_a_variant(home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    checks, _ = outcome("--quick", "--variant", "stt-1b-en_fr")
    assert list(checks) == [*NAMES[:7], "variant", *NAMES[7:]]
    assert checks["variant"]["found"].startswith("stt-1b-en_fr, for transcription: ")
    assert checks["variant"]["advice"] == "'msh-mlx models get stt-1b-en_fr' fetches it."
    own = home / "config" / "msh-mlx" / "weights.toml"
    own.parent.mkdir(parents=True)
    demo = DEMO / "stt"
    own.write_text(
        f'[heard]\nfamily = "stt"\nmemory = 10\nstep-bytes = 10\nfiles.lm = "{demo}/model.safetensors"\n'
        f'files.mimi = "{DEMO}/mimi.safetensors"\nfiles.tokenizer = "{DEMO}/tokenizer.model"\nfiles.config = "config.json"\n'
    )
    (own.parent / "config.json").write_bytes((demo / "config.json").read_bytes())
    found = check_variant("heard")
    assert (found.status, found.found) == ("ok", "heard, for transcription: suits; on disk")
    own.write_text(own.read_text().replace("step-bytes = 10", "step-bytes = 10_000_000_000_000"))
    found = check_variant("heard")
    assert (found.status, "too slow: " in found.found) == ("warning", True)
    (own.parent / "config.json").write_text("{}")
    found = check_variant("heard")
    assert (found.status, found.advice) == ("problem", "'msh-mlx models verify --repair heard' fetches it again.")
    result = run("--quick", "--variant", "none")
    assert (result.returncode, "There is no model 'none'" in result.stderr) == (2, True)


def test_logs_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "darwin":
        pytest.skip("logs have another place there")
    (home / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    finding = check_files()
    assert (finding.status, str(home / "file") in finding.advice) == ("warning", True)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("model.q8.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
        ("mimi.safetensors", lambda path: path.unlink(), "There is no codec"),
        ("config.json", lambda path: path.write_text('{"dimension": 3}'), "dimension"),
        ("tokenizer.model", lambda path: path.write_text("<html>"), "is a web page"),
        ("tts/model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
        ("stt/config.json", lambda path: path.unlink(), "pieces and the model 32000"),
    ],
)
def test_a_demo_model_that_is_broken(
    name: str, change: Any, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(ROOT / "assets" / "demo", folder)
    monkeypatch.setattr("msh_mlx.library.files.demo_folder", lambda: folder)
    assert check_demo().status == "ok"
    change(folder / name)
    finding = check_demo()
    assert finding.status == "problem"
    assert found in finding.found


# ---- judging -------------------------------------------------------------------------------------------------------------


def test_judgements_touch_nothing() -> None:
    tree = ast.parse((Path(msh_mlx.__file__).parent / "doctor" / "judgements.py").read_text(encoding="utf-8"))
    taken = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    taken |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert taken == {"__future__", "collections.abc", "dataclasses", "math", "pathlib", "system.words", "typing"}


def test_the_engine_is_judged_by_the_models_for_conversations() -> None:
    entries = {name: entry for name, entry in load_catalogue().items() if name in ("moshiko-q4", "moshiko-q8")}
    least, most = sorted(entry.step_bytes or 0 for entry in entries.values())
    both = f"to read a step of moshiko-q8 (1.8 times) and moshiko-q4 ({most / 0.045 * 0.08 / least:.1f} times)"
    for bandwidth, status, found in (
        (most / 0.045, "ok", both),
        (least / 0.045, "ok", "to read a step of moshiko-q4 (1.8 times)"),
        (least / 0.046, "ok", "perhaps enough for moshiko-q4, which is taken on trial"),
        (least / 0.089, "ok", "perhaps enough for moshiko-q4, which is taken on trial"),
        (least / 0.091, "ok", "perhaps enough for moshiko-q4 with a shorter window (--context), on trial"),
        (least / 0.106, "warning", "too slow for the published models"),
    ):
        finding = judge_engine(
            "native, AVX2", bandwidth + 1, reading(entries, bandwidth + 1), (0.045, 0.09, 0.105), 0.08
        )
        assert finding.status == status
        assert finding.found.startswith(f"native, AVX2, reads memory with {human_size(bandwidth + 1)}/s: ")
        assert found in finding.found
    assert (
        finding.advice == "moshiko-q4, the lightest, reads for 106 ms of the 80 that a frame lasts; try the demo model."
    )
    assert judge_engine("MLX", 1e9, {}, (0.045, 0.09, 0.105), 0.08).status == "ok"


def test_a_processor_for_which_there_is_only_plain_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msh_mlx.model.engines.chosen", lambda _: "native")
    monkeypatch.setattr("msh_native.dots", lambda: ["portable"])
    finding = check_engine()
    assert (finding.status, finding.found) == ("warning", "native, plain code: too slow for the published models")
    assert finding.advice.startswith("Use a processor with AVX2 and FMA, or one with NEON")
    monkeypatch.setattr("msh_native.dots", lambda: ["NEON", "portable"])
    assert check_engine().found.startswith("native, NEON, reads memory with ")


@pytest.mark.parametrize(
    ("arguments", "status", "advice"),
    [
        (("darwin", "arm64", "Apple M2", {"macos": "14.5"}), "ok", ""),
        (("darwin", "arm64", "Apple M2", {"macos": "13.7"}), "warning", "Update to macOS 14"),
        (("darwin", "x86_64", "Apple M2", {"macos": "14.5", "translated": True}), "problem", "arm64"),
        (("darwin", "x86_64", "Intel Core i7", {"macos": "14.5"}), "ok", ""),
        (("darwin", "x86_64", "Intel Core i7", {"macos": "12.7"}), "ok", ""),
        (("linux", "x86_64", "AMD", {}), "ok", ""),
        (("win32", "AMD64", "Intel", {}), "ok", ""),
        (("freebsd14", "amd64", "Intel", {}), "problem", "Linux"),
    ],
)
def test_systems(arguments: Any, status: str, advice: str) -> None:
    *positional, named = arguments
    finding = judge_system(*positional, **named)
    assert (finding.status, advice in finding.advice) == (status, True)


@pytest.mark.parametrize(
    ("version", "libc", "free_threaded", "status"),
    [
        ((3, 9), None, False, "problem"),
        ((3, 10), None, False, "ok"),
        ((3, 14), ("glibc", "2.35"), False, "ok"),
        ((3, 15), ("glibc", "2.40"), False, "warning"),
        ((3, 14), None, True, "problem"),
        ((3, 12), ("glibc", "2.31"), False, "ok"),
        ((3, 12), ("", ""), False, "ok"),
        ((3, 12), ("musl", "1.2"), False, "ok"),
    ],
)
def test_pythons(version: Any, libc: Any, free_threaded: bool, status: str) -> None:
    assert judge_python(version, "x", libc, free_threaded=free_threaded).status == status


ENTRIES: Any = {
    "large": SimpleNamespace(name="large", size=9 * GB, memory=10 * GB),
    "small": SimpleNamespace(name="small", size=5 * GB, memory=7 * GB),
    "unknown": SimpleNamespace(name="unknown", size=None, memory=None),
}


@pytest.mark.parametrize(
    ("available", "whole", "status", "advice"),
    [
        (8 * GB, 16 * GB, "ok", ""),
        (6 * GB, 16 * GB, "warning", "Close other programs: small takes 7.0 GB"),
        (4 * GB, 6 * GB, "warning", "demo"),
    ],
)
def test_memory(available: Any, whole: int, status: str, advice: str) -> None:
    finding = judge_memory(available, whole, ENTRIES)
    assert (finding.status, advice in finding.advice) == (status, True)


@pytest.mark.parametrize(
    ("cache", "here", "writable", "status", "advice"),
    [
        (50 * GB, 2 * GB, True, "ok", ""),
        (4 * GB, 50 * GB, True, "warning", "small takes 5.0 GB"),
        (10**7, 50 * GB, True, "problem", "Delete"),
        (50 * GB, 10**7, True, "problem", "Delete"),
        (50 * GB, GB // 2, True, "warning", "record to another disk"),
        (50 * GB, 50 * GB, False, "warning", "HF_HOME"),
    ],
)
def test_disks(cache: int, here: int, writable: bool, status: str, advice: str) -> None:
    places = Folder(Path("/cache"), "models", cache, writable), Folder(Path("/here"), "recordings", here)
    finding = judge_disk(*places, ENTRIES)
    assert (finding.status, advice in finding.advice) == (status, True)


def test_the_cache_is_where_the_hub_has_it(home: Path) -> None:
    (home / "file").touch()
    checks, _ = outcome("--quick", HF_HOME=str(home / "file"))
    assert checks["disk"]["status"] == "warning"
    assert str(home / "file" / "hub") in checks["disk"]["found"]
    checks, _ = outcome("--quick", HF_HUB_CACHE=str(home / "not" / "there" / "yet"))
    assert "nothing can be written" not in checks["disk"]["found"]


@pytest.mark.parametrize(
    ("options", "environment", "keys", "status", "word"),
    [
        ({"width": 80, "height": 24}, {"TERM": "xterm-256color"}, True, "ok", "256 colours"),
        ({"width": 80, "height": 24}, {"TERM": "xterm", "NO_COLOR": "1"}, True, "ok", "no colours"),
        ({"width": 40, "height": 24}, {"TERM": "xterm"}, True, "warning", "small"),
        ({"width": 80, "height": 6}, {"TERM": "screen"}, True, "warning", "small"),
        ({"width": 80, "height": 24}, {"TERM": "dumb"}, True, "warning", "plain lines"),
        ({"width": 80, "height": 24}, {"TERM": "xterm"}, False, "warning", "no keyboard"),
        ({"width": 80, "height": 24, "force_terminal": False}, {"TERM": "xterm"}, True, "skipped", "not a terminal"),
    ],
)
def test_terminals(options: Any, environment: Any, keys: bool, status: str, word: str) -> None:
    console = Console(file=io.StringIO(), _environ=environment, **{"force_terminal": True, **options})
    finding = check_terminal(console, keys=keys)
    assert (finding.status, word in finding.found) == (status, True), finding


def test_a_terminal_without_utf_8() -> None:
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    console = Console(file=file, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"})
    finding = check_terminal(console, keys=True)
    assert (finding.status, "C.UTF-8" in finding.advice) == ("warning", True)


@pytest.mark.parametrize(("columns", "term", "word"), [("90", "xterm", "90 by"), ("30", "xterm", "small")])
def test_a_real_terminal(columns: str, term: str, word: str) -> None:
    parent, child = pty.openpty()
    env = {**os.environ, "COLUMNS": columns, "LINES": "30", "TERM": term}
    command = [sys.executable, str(ROOT / "local_mlx.py"), "doctor", "--quick"]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=env)
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 65536)
        except OSError:
            break
    os.close(parent)
    assert process.wait(60) in (0, 1)
    assert word.encode() in shown
    assert b"\x1b[32mok" in shown  # in colour, and as a word
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("level", "headset", "terminal", "status", "word"),
    [
        (Level(0.3, 0.03), False, None, "ok", ""),
        # A quiet room is not a problem, even where the microphone gives zeros for it.
        (Level(), False, "iTerm", "warning", "allow iTerm in System Settings > Privacy & Security > Microphone"),
        (Level(), False, None, "warning", "sound settings"),
        (Level(), True, None, "warning", "sound settings"),
        (Level(0.0005, 0.0001), False, None, "ok", "turn the input level up"),
        (Level(1.0, 0.5), False, None, "warning", "Turn the input level down"),
        (Level(0.3, 0.03), True, None, "warning", "telephone"),
        (None, False, None, "problem", "--input-device"),
    ],
)
def test_microphones(level: Any, headset: bool, terminal: Any, status: str, word: str) -> None:
    finding = judge_microphone("It", level, headset=headset, terminal=terminal)
    assert (finding.status, word in finding.advice) == (status, True)
    assert judge_microphone("It", Level(0.1, 0.01)).found == "It: hears -40 dBFS, peak -20"


@pytest.mark.parametrize(
    ("measure", "status", "found"),
    [
        (EchoMeasure(-70.0), "ok", "none: the microphone does not hear the loudspeaker"),
        (
            EchoMeasure(-60.0, -12.4, 28.3, 0.084),
            "ok",
            "-12 dB against what is played, 28 dB removed after 1 s, 84 ms late",
        ),
        (EchoMeasure(-60.0, -40.0, 2.0), "ok", "-40 dB against what is played, 2 dB removed after 1 s"),
        (EchoMeasure(-30.0, -0.1, 9.0), "warning", "0 dB against what is played, 9 dB removed after 1 s"),
    ],
)
def test_echoes(measure: EchoMeasure, status: str, found: str) -> None:
    finding = judge_echo(measure)
    assert (finding.status, finding.found) == (status, found)
    assert ("headphones" in finding.advice) == (status == "warning")
    assert finding.figures == vars(measure)


def test_a_sound_is_made_only_if_it_is_asked_for() -> None:
    names = [check.name for check in all_checks()]
    assert names == NAMES
    assert [check.name for check in all_checks(echo=True)] == [*NAMES, "echo"]
    assert check_echo([]).status == "skipped"
    result = run("--quick", "--echo")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--echo" in result.stderr


def test_devices_that_are_missing() -> None:
    speaker = Device(0, "Speaker", "Core Audio", 0, 2, 48000.0, default_output=True)
    headset = Device(1, "AirPods", "Core Audio", 1, 0, 24000.0, default_input=True)
    assert check_microphone([speaker]).found == "no microphone"
    assert check_speaker([headset]).found == "no loudspeaker"
    assert check_speaker([speaker], play=False).found == "Speaker, 48000 Hz stereo (not opened)"
    finding = check_microphone([headset], listen=False)
    assert (finding.status, finding.found) == ("warning", "AirPods, 24000 Hz mono (not listened to)")
    finding = examine(Check("speaker", lambda: check_speaker([speaker], "9", play=False)), 1)
    assert (finding.status, finding.advice) == ("problem", 'There is 0 "Speaker".')
    assert judge_speaker("It", running=False).status == "problem"


def test_the_memory_of_this_machine() -> None:
    assert 0 < machine.available_memory() <= machine.physical_memory()


# ---- checks that go wrong themselves -------------------------------------------------------------------------------------


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "found", "advice"),
    [
        (MshError("It is in use", "close the other program"), "It is in use", "Close the other program."),
        (ModuleNotFoundError("No module", name="soxr"), "the module soxr is missing", AGAIN),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", AGAIN),
        (TimeoutError("its own"), "TimeoutError: its own", AGAIN),
        (SystemExit(3), "SystemExit: 3", AGAIN),
    ],
)  # fmt: skip
def test_a_check_that_fails(error: BaseException, found: str, advice: str) -> None:
    assert examine(Check("it", lambda: fail(error)), 5) == Finding("problem", found, advice, name="it")


def test_a_check_that_hangs() -> None:
    begin = time.monotonic()
    hangs = Check("it", lambda: time.sleep(30) or fail(AssertionError()), limit=0.2, late="Restart it.")
    assert examine(hangs, 5) == Finding("problem", "no answer for 0 s", "Restart it.", name="it")
    assert examine(Check("it", hangs.run), 0.1).status == "problem"
    assert examine(Check("it", hangs.run), -1).status == "skipped"
    assert time.monotonic() - begin < 5


# ---- what is shown -------------------------------------------------------------------------------------------------------

FINDINGS = [
    Finding("ok", "Apple M2, 16.0 GB, macOS 14.5", name="system"),
    Finding("warning", "0.30.0 on the processor: slower without a C++ compiler (g++)", "Install it.", name="mlx"),
    Finding("skipped", "the output is not a terminal", name="terminal"),
    Finding(
        "problem", "no \x1b[2Jdevices", "Connect one; with recordings (--input FILE) it works without.", name="sound"
    ),
]


def shown(*, plain: bool, **options: Any) -> str:
    console = Console(file=io.StringIO(), highlight=False, **options)
    for finding in FINDINGS:
        show(console, finding, plain=plain)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def test_in_columns() -> None:
    assert (
        shown(plain=False, width=60)
        == """\
ok       system      Apple M2, 16.0 GB, macOS 14.5
warning  mlx         0.30.0 on the processor: slower without
                     a C++ compiler (g++)
                     Install it.
skipped  terminal    the output is not a terminal
problem  sound       no �[2Jdevices
                     Connect one; with recordings (--input
                     FILE) it works without.
"""
    )


def test_in_lines() -> None:
    assert (
        shown(plain=True, width=20)
        == """\
ok       system: Apple M2, 16.0 GB, macOS 14.5
warning  mlx: 0.30.0 on the processor: slower without a C++ compiler (g++). Install it.
skipped  terminal: the output is not a terminal
problem  sound: no �[2Jdevices. Connect one; with recordings (--input FILE) it works without.
"""
    )


def test_in_colour() -> None:
    text = shown(plain=False, width=60, force_terminal=True, color_system="standard", _environ={"TERM": "xterm"})
    for code, word in ((32, "ok"), (33, "warning"), ("1;31", "problem")):
        assert f"\x1b[{code}m{word}" in text


def test_the_last_line() -> None:
    assert conclusion(FINDINGS) == "A conversation would not work: 1 problem and 1 warning."
    assert conclusion(FINDINGS[:3]) == "A conversation should work, with 1 warning."
    assert conclusion(FINDINGS[:1]) == "A conversation should work."
