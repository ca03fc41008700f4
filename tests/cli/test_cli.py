"""The command line from outside: wrong input, interruption, what is left behind, and what a terminal shows."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import DEMO, GOLDEN, ROOT
from rich.console import Console

from msh_mlx.cli.display import Display
from msh_mlx.conversation.recordings import Began, Ended, Plan
from msh_mlx.events import Said, SpokeWord, Word
from msh_mlx.system.signals import Stopped

LIMIT = 60  # seconds, for a busy machine


def run(
    *args: str | Path, cwd: Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(ROOT / "local_mlx.py"), *map(str, args)]
    own = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(cwd / "no cache"),
        "XDG_CONFIG_HOME": str(cwd / "no configuration"),
    }
    return subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, timeout=LIMIT, env={**os.environ, **own, **(env or {})}
    )


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def assert_refused(result: subprocess.CompletedProcess[bytes], code: int = 2) -> str:
    message = result.stderr.decode()
    assert result.returncode == code, message
    assert len(message.splitlines()) == 1, message
    assert re.fullmatch(r"\S.*\.\n", message), message
    assert "Traceback" not in message
    assert "unexpected" not in message
    return message


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files, in which the commands below run."""
    folder = tmp_path_factory.mktemp("shelf")
    second = (0.1 * np.sin(np.arange(24000) * 0.05)).astype(np.float32)
    soundfile.write(folder / "good.wav", second, 24000)
    soundfile.write(folder / "good.flac", second, 24000)
    for suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(folder / "whole", second, 24000, format=suffix)
        data = (folder / "whole").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(data[: len(data) * 2 // 3])
    (folder / "whole").unlink()
    (folder / "empty.wav").touch()
    (folder / "letter.wav").write_text("This is a letter, not a recording.\n" * 99)
    soundfile.write(folder / "silent.wav", second[:0], 24000)
    for value in ("nan", "inf"):
        soundfile.write(folder / f"{value}.wav", np.append(second, np.float32(value)), 24000, subtype="FLOAT")
    (folder / "folder").mkdir()
    (folder / "link.wav").symlink_to("good.wav")
    os.link(folder / "good.wav", folder / "twin.wav")
    (folder / "nowhere.wav").symlink_to("none/none/none.wav")

    model = folder / "model"  # as it should be, and no config.json
    model.mkdir()
    for name in ("mimi.safetensors", "tokenizer.model"):
        (model / name).symlink_to(DEMO / name)
    (model / "q8.safetensors").symlink_to(DEMO / "model.q8.safetensors")
    (model / "demo.json").symlink_to(DEMO / "config.json")
    for name, what in (
        ("q8.safetensors", "cut-model"),
        ("mimi.safetensors", "cut-mimi"),
        ("tokenizer.model", "cut-tokenizer"),
    ):
        data = (model / name).read_bytes()
        (folder / what).write_bytes(data[: len(data) // 2])
    (folder / "no.json").write_text("{")
    (folder / "odd.json").write_text('{"colour": "red"}')
    two = folder / "two"
    two.mkdir()
    shutil.copy(DEMO / "tokenizer.model", two / "tokenizer_a.model")
    shutil.copy(DEMO / "tokenizer.model", two / "tokenizer_b.model")
    (two / "q8.safetensors").symlink_to(DEMO / "model.q8.safetensors")
    (folder / "lone.safetensors").symlink_to(DEMO / "model.q8.safetensors")
    return folder


MODEL = "--model model/q8.safetensors --mimi model/mimi.safetensors --config model/demo.json"
MODEL4 = "--mimi model/mimi.safetensors --tokenizer model/tokenizer.model --config {golden}/lm-quant/config.json"
IO = "--input good.wav --output out.wav"

REFUSED = {
    # what is said: the command
    "language model's name alone": ("--llm-model a", "add --llm"),
    "no address of a language model": ("--llm ftp://here --demo", "ftp://here is not the address"),
    "language model and a temperature": (
        "--llm http://127.0.0.1:1 --demo --temperature 0",
        "--temperature is not for --llm",
    ),
    "language model and a penalty": ("--llm --repetition-penalty 1.2", "--repetition-penalty is not for --llm"),
    "language model and kept prompts": ("--llm --keep-prompts 0", "--keep-prompts is not for --llm"),
    "language model and variant": ("--llm http://127.0.0.1:1 --variant moshiko-q8", "--variant is not for --llm"),
    "language model and a recording": (
        "--llm http://127.0.0.1:1 --input recording.wav --output a.wav",
        "--input is not for --llm",
    ),
    "no input, but an output": ("--demo --output out.wav", "--input"),
    "codec without a model": (f"--mimi model/q8.safetensors {IO}", "--model"),
    "tokenizer of a variant": (f"--variant moshiko-q8 --tokenizer t.model {IO}", "--tokenizer"),
    "variant and repository": (f"--variant moshiko-q8 --hf-repo a/b {IO}", "--hf-repo"),
    "no such variant": (f"--variant moshiko {IO}", "moshiko-q8"),
    "other bits than the variant's": (f"--variant moshiko-q8 --quantized 4 {IO}", "8 bits"),
    "no such weights": (f"--weights none.toml {IO}", "none.toml"),
    "wrong weights": (f"--weights good.wav {IO}", "good.wav"),
    "no repository": (f"--hf-repo a {IO}", "OWNER/NAME"),
    "no revision": (f"--hf-repo a/b@../c {IO}", "OWNER/NAME@REVISION"),
    "no file on the hub": (f"--model hf:a/b {IO}", "hf:OWNER/NAME/FILE"),
    "no output": ("--demo --input good.wav", "--output"),
    "demo and model": (f"--demo --model model/q8.safetensors {IO}", "--model"),
    "live option with an input": (f"--demo {IO} --record folder", "--record"),
    "live echo with an input": (f"--demo {IO} --echo auto", "--echo"),
    "live noise suppression with an input": (f"--demo {IO} --noise-suppression", "--noise-suppression"),
    "live display with an input": (f"--demo {IO} --json", "--transcript"),
    "file option without an input": ("--demo --tail 3", "--input"),
    "unknown option": (f"--demo {IO} --colour red", "--colour"),
    "abbreviated option": (f"--demo {IO} --step 3", "--step"),
    "word without option": (f"talk --demo {IO}", "talk"),
    "option without value": (f"--demo {IO} --seed", "--seed"),
    "quantized 5": (f"--demo {IO} --quantized 5", "--quantized"),
    **{
        f"{option} {value}": (f"--demo {IO} --{option} {value}", f"--{option}")
        for option, values in {
            "temperature": ["-1", "nan", "inf", "hot", "1e39"],
            "lora-scaling": ["-1", "nan", "1e39"],
            "text-temperature": ["-0.1", "nan"],
            "top-k": ["-1", "1.5"],
            "text-top-k": ["-2", "x"],
            "top-p": ["0", "1.1", "x"],
            "text-min-p": ["-0.1", "2"],
            "repetition-penalty": ["0", "inf", "1e39", "1e-46"],
            "repetition-words": ["0", "1001"],
            "padding-bonus": ["nan", "much", "1e39", "-1e39"],
            "kv-bits": ["4"],
            "tail": ["-1", "nan", "inf", "long"],
            "steps": ["0", "-3", "2.5"],
            "duration": ["-1", "inf", "long"],
            "max-delay": ["100", "x"],
            "echo": ["loud", "''"],
            "seed": ["-1", "x", "18446744073709551616"],
        }.items()
        for value in values
    },
    "several inputs, one output": ("--demo --input good.wav good.flac --output out.wav", "--output-dir"),
    "several inputs, one transcript": ("--demo --input good.wav good.flac --transcript out.jsonl", "--output-dir"),
    "both kinds of outputs": (f"--demo {IO} --output-dir folder", "--output-dir"),
    "stereo without sound": ("--demo --input good.wav --transcript out.jsonl --stereo", "--stereo"),
    "output that is not WAV": ("--demo --input good.wav --output out.mp3", "out.wav"),
    "no such input": ("--demo --input none.wav --output out.wav", "none.wav"),
    "empty name": ("--demo --input '' --output out.wav", "empty"),
    "input is a folder": ("--demo --input folder --output out.wav", "folder"),
    "second input is missing": ("--demo --input good.wav none.wav --output-dir folder", "none.wav"),
    **{
        f"input {name}": (f"--demo --input {name} --output out.wav --transcript out.jsonl", name)
        for name in (
            "cut.wav",
            "cut.flac",
            "cut.ogg",
            "cut.mp3",
            "empty.wav",
            "letter.wav",
            "silent.wav",
            "nan.wav",
            "inf.wav",
        )
    },
    "empty pipe": ("--demo --input - --output out.wav", "empty"),
    "stdin twice": ("--demo --input - - --output-dir folder", "once"),
    "no output folder": ("--demo --input good.wav --output none/none/out.wav", "none"),
    "no transcript folder": (f"--demo {IO} --transcript none/none/out.jsonl", "none"),
    "no output-dir": ("--demo --input good.wav --output-dir good.wav/none", "good.wav/none"),
    "output-dir is a file": ("--demo --input good.wav --output-dir good.flac", "good.flac"),
    "output is a folder": ("--demo --input good.wav --output folder", "folder"),
    "output in a file": ("--demo --input good.wav --output good.flac/out.wav", "good.flac"),
    "output cannot be made": ("--demo --input good.wav --output /proc/out.wav", "/proc"),
    "output is a device": ("--demo --input good.wav --output /dev/null", "/dev/null"),
    "output is a link to nowhere": ("--demo --input good.wav --output nowhere.wav", "nowhere.wav"),
    "output is the input": ("--demo --input good.wav --output good.wav", "good.wav"),
    "output is the input, another way": ("--demo --input good.wav --output folder/../good.wav", "good.wav"),
    "output is the input, by a link": ("--demo --input good.wav --output link.wav", "link.wav"),
    "output is the input, by its twin": ("--demo --input good.wav --output twin.wav", "twin.wav"),
    "input is a link to the output": ("--demo --input link.wav --output good.wav", "good.wav"),
    "output-dir holds the input": ("--demo --input good.wav --output-dir .", "good.wav"),
    "output is the model": (f"{MODEL} --input good.wav --output model/q8.safetensors", "q8.safetensors"),
    "transcript is the tokenizer": (f"{MODEL} --input good.wav --transcript model/tokenizer.model", "tokenizer.model"),
    "output is the transcript": (f"--demo {IO} --transcript out.wav", "out.wav"),
    "two outputs of one name": ("--demo --input good.wav good.flac --output-dir folder", "good.wav"),
    "no such model": (f"--model none --mimi model/mimi.safetensors {IO}", "none"),
    "model is a folder": (f"--model model --mimi model/mimi.safetensors {IO}", "model"),
    "model is cut off": (f"--model cut-model {MODEL4} {IO}", "cut-model"),
    "model is empty": (f"--model empty.wav {MODEL4} {IO}", "empty.wav"),
    "model is a letter": (f"--model letter.wav {MODEL4} {IO}", "letter.wav"),
    "model is a letter, and its codec would be fetched": (f"--model letter.wav {IO}", "letter.wav"),
    "model is a codec": (f"--model model/mimi.safetensors {MODEL4} {IO}", "mimi.safetensors"),
    "configuration without a name": (f"{MODEL} --config '' {IO}", "names no file"),
    "no such codec": (f"--model model/q8.safetensors --mimi none {IO}", "none"),
    "codec is cut off": (f"{MODEL} --mimi cut-mimi {IO}", "cut-mimi"),
    "codec is a model": (f"{MODEL} --mimi model/q8.safetensors {IO}", "q8.safetensors"),
    "codec is a letter": (f"{MODEL} --mimi letter.wav {IO}", "letter.wav"),
    "codec is empty": (f"{MODEL} --mimi empty.wav {IO}", "empty.wav"),
    "no such tokenizer": (f"{MODEL} --tokenizer none {IO}", "none"),
    "tokenizer is cut off": (f"{MODEL} --tokenizer cut-tokenizer {IO}", "cut-tokenizer"),
    "tokenizer is a letter": (f"{MODEL} --tokenizer letter.wav {IO}", "letter.wav"),
    "tokenizer is empty": (f"{MODEL} --tokenizer empty.wav {IO}", "empty.wav"),
    "two tokenizers beside the model": (
        f"--model two/q8.safetensors --mimi model/mimi.safetensors {IO}",
        "--tokenizer",
    ),
    "tokenizer of another size": (f"--model {{golden}}/lm-quant/lm_mlx_q4.safetensors {MODEL4} {IO}", "tokenizer"),
    "no such configuration": (f"{MODEL} --config none {IO}", "none"),
    "configuration that is not JSON": (f"{MODEL} --config no.json {IO}", "no.json"),
    "configuration is odd": (f"{MODEL} --config odd.json {IO}", "colour"),
    "another configuration": (f"{MODEL} --config {{golden}}/lm-small/config.json {IO}", "shape"),
    "published architecture, demo model": (
        f"--model model/q8.safetensors --mimi model/mimi.safetensors {IO}",
        "shape",
    ),
    "said 4, is 8": (f"{MODEL} --quantized 4 {IO}", "8"),
    "said 4, the demo is 8": (f"--demo --quantized 4 {IO}", "8"),
    "said 8, is 4": (f"--model {{golden}}/lm-quant/lm_mlx_q4.safetensors {MODEL4} --quantized 8 {IO}", "4"),
    "said 8, is unquantized": (
        f"--model {{golden}}/lm-small/lm_mlx_f32.safetensors {MODEL4} --config {{golden}}/lm-small/config.json "
        f"--quantized 8 {IO}",
        "quantized",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(shelf: Path, case: str) -> None:
    command, word = REFUSED[case]
    before = listing(shelf)
    result = run(*[part.strip("'").format(golden=GOLDEN) for part in command.split()], cwd=shelf)
    message = assert_refused(result)
    assert word in message
    assert not result.stdout.count(b"Listening")
    assert listing(shelf) == before


def test_a_pipe_that_is_cut_off_leaves_nothing(shelf: Path) -> None:
    before = listing(shelf)
    for name in ("cut.wav", "cut.flac", "cut.ogg", "cut.mp3", "letter.wav", "nan.wav", "silent.wav"):
        result = run(
            *["--demo", "--input", "-", "--output", "out.wav", "--transcript", "t.jsonl"],
            cwd=shelf,
            stdin=(shelf / name).read_bytes(),
        )
        assert "standard input" in assert_refused(result)
    assert listing(shelf) == before


def test_a_folder_that_cannot_be_written_to(shelf: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        assert_refused(run("--demo", "--input", "good.wav", "--output", tmp_path / "out.wav", cwd=shelf))
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk(shelf: Path, tmp_path: Path) -> None:
    """The program fails with one sentence, and leaves nothing, when a file cannot grow."""
    import resource

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    command = [
        sys.executable,
        str(ROOT / "local_mlx.py"),
        *["--demo", "--input", "good.wav", "--output"],
        str(tmp_path / "out.wav"),
    ]
    result = subprocess.run(command, cwd=shelf, capture_output=True, timeout=LIMIT, preexec_fn=limit)
    assert "large" in assert_refused(result, code=1)
    assert not list(tmp_path.iterdir())


def test_an_output_that_nobody_reads(shelf: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "local_mlx.py"),
        *["--demo", "--input", "good.wav", "--output"],
        str(tmp_path / "out.wav"),
    ]
    with subprocess.Popen(command, cwd=shelf, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        message = process.stderr.read().decode()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE  # as of other programs
    assert message == ""
    assert not list(tmp_path.iterdir())


def test_the_standard_input_is_not_overwritten(shelf: Path) -> None:
    with (shelf / "good.wav").open("rb") as file:
        command = [sys.executable, str(ROOT / "local_mlx.py"), "--demo", "--input", "-", "--output", "good.wav"]
        assert "good.wav" in assert_refused(
            subprocess.run(command, cwd=shelf, stdin=file, capture_output=True, timeout=LIMIT)
        )


def test_file_names_cannot_write_to_the_terminal(shelf: Path) -> None:
    assert "\x1b" not in assert_refused(
        run("--demo", "--input", "no\x1b[31m\nne.wav", "--output", "out.wav", cwd=shelf)
    )


@pytest.mark.parametrize("program", [["local_mlx.py"], ["-m", "msh_mlx"]])
def test_help_and_version_are_whole(program: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
    )
    assert result.returncode == 0
    assert not result.stderr
    for option in (
        "--model",
        "--mimi",
        "--tokenizer",
        "--config",
        "--quantized",
        "--demo",
        "--input",
        "--output",
        "--transcript",
        "msh-mlx bench",
        "msh-mlx convert",
    ):
        assert option in " ".join(result.stdout.split())  # a line may break between the two words of a command
    result = subprocess.run(
        [sys.executable, *program, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
    )
    assert re.fullmatch(r"msh-mlx \d+\.\d+\.\d+\n", result.stdout)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom msh_mlx.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=LIMIT
    )
    loaded = result.stdout.splitlines()[-1]
    for module in ("numpy", "mlx", "mimi", "msh_native", "soundfile", "rich"):
        assert f"'{module}'" not in loaded


def test_the_screen_knows_nothing_of_the_model() -> None:
    code = "import sys, msh_mlx.cli.display; print(sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=LIMIT
    )
    for module in ("mlx", "mimi", "msh_native", "msh_mlx.conversation.session", "msh_mlx.model"):
        assert f"'{module}'" not in result.stdout


def test_the_demo_of_an_installed_package(shelf: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(ROOT / "msh_mlx", site / "msh_mlx", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "msh_mlx", "--demo", "--input", str(shelf / "good.wav"), "--output", "out.wav"]
    env = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=LIMIT)
    assert "demo model is missing" in assert_refused(result, code=1)
    (site / "msh_mlx" / "assets").mkdir()
    (site / "msh_mlx" / "assets" / "demo").symlink_to(DEMO)
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr
    assert soundfile.info(tmp_path / "out.wav").frames == 13 * 1920


# ---- being stopped -------------------------------------------------------------------------------------------------------


CARDS = Path("/proc/asound/cards")


@pytest.mark.skipif(
    sys.platform != "linux" or (CARDS.exists() and "[" in CARDS.read_text()), reason="there are devices"
)
def test_without_any_device(tmp_path: Path) -> None:
    result = run(
        "--demo", "--plain", cwd=tmp_path, env={"PULSE_SERVER": f"unix:{tmp_path}/none", "ALSA_CONFIG_PATH": ""}
    )
    assert "--input" in assert_refused(result, code=1)


def start(shelf: Path, out: Path, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "local_mlx.py"), "--demo", "--output-dir", str(out), "--tail", "600", *args]
    return subprocess.Popen(
        command,
        cwd=shelf,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> str:
    begin = time.perf_counter()
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        # MLX looks for g++ by C's system(), which lets the process ignore SIGINT meanwhile: a person says it again.
        assert number == signal.SIGINT
        process.send_signal(number)
        _, errors = process.communicate(timeout=5)
    assert time.perf_counter() - begin < 10
    assert process.returncode == 128 + number
    assert "Traceback" not in errors.decode()
    return errors.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.15, 0.4, 0.8, 1.5, 3.0])
def test_stopped_at_any_moment(shelf: Path, tmp_path: Path, after: float, number: signal.Signals) -> None:
    process = start(shelf, tmp_path, "--input", "good.wav")
    time.sleep(after)
    if after < 0.4 and number == signal.SIGTERM:
        time.sleep(0.3)  # Python itself ends at once by this signal while it starts
    errors = stop(process, number)
    assert errors in ("Stopped.\n", "")
    assert not list(tmp_path.iterdir())


def test_what_was_complete_is_kept(shelf: Path, tmp_path: Path) -> None:
    process = start(shelf, tmp_path, "--tail", "0", "--input", "good.wav", "-")
    assert process.stdin
    assert process.stdout
    # A stream that never ends: the second conversation waits for its sound.
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, 24000, 48000, 2, 16, b"data", 0)
    process.stdin.write(header + bytes(96000))
    process.stdin.flush()
    while line := process.stdout.readline():
        if line == b"Listening to the standard input\n":
            break
    time.sleep(0.5)
    assert stop(process, signal.SIGINT) == "Stopped.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.jsonl", "good.wav"]
    assert soundfile.info(tmp_path / "good.wav").frames == 13 * 1920


def test_stopped_while_a_pipe_is_silent(shelf: Path, tmp_path: Path) -> None:
    process = start(shelf, tmp_path, "--input", "-")
    time.sleep(1.5)
    assert stop(process, signal.SIGINT) == "Stopped.\n"
    assert not list(tmp_path.iterdir())


# ---- the terminal --------------------------------------------------------------------------------------------------------


def shown(draw: Callable[[Display], None], *, plain: bool, width: int = 60) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=not plain, color_system=None, legacy_windows=False
    )
    with Display(console, plain=plain) as display:
        draw(display)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def a_conversation(display: Display) -> None:
    ended = Ended("in.wav", Plan(reply=Path("out.wav"), transcript=Path("out.jsonl")))
    display(Began("in.wav", 4))
    for step, text in enumerate(["four", "[bold]one", "thr\x1bee", "x" * 70]):
        word = Word(step * 0.08, text)
        ended.words.append(word)
        for stage, seconds in (("encode", 0.01), ("step", 0.02 + 0.001 * step), ("decode", 0.01)):
            ended.stages[stage].append(seconds)
        display(SpokeWord(word))
        display(Said(step, np.zeros(1920, np.float32)))
    ended.seconds, ended.wall = 0.32, 0.16
    display(ended)


def test_plain_lines() -> None:
    assert shown(a_conversation, plain=True).splitlines() == [
        "Listening to in.wav",
        "    0.00 s  four",
        "    0.08 s  [bold]one",
        "    0.16 s  thr�ee",
        "    0.24 s  " + "x" * 70,
        "Said: four [bold]one thr�ee " + "x" * 70,
        "Reply: out.wav",
        "Transcript: out.jsonl",
        "0.32 s of sound in 0.16 s: 2.0 × real time",
        "Step: 41.5 ms p50, 42.9 ms p95 (a frame lasts 80 ms)",
    ]


def test_a_terminal_has_a_bar_while_it_listens_and_none_afterwards() -> None:
    output = shown(a_conversation, plain=False)
    assert "━" in output
    assert "× real time" in output
    assert "remaining" in output
    assert "\x1b[31m" not in output
    assert output.rstrip().endswith("Step: 41.5 ms p50, 42.9 ms p95 (a frame lasts 80 ms)")
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1  # the cursor is back


def test_the_terminal_is_restored_when_a_conversation_fails() -> None:
    def fails(display: Display) -> None:
        display(Began("in.wav", None))
        display(Said(0, np.zeros(1920, np.float32)))
        raise KeyError

    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None, legacy_windows=False)
    with pytest.raises(KeyError), Display(console, plain=False) as display:
        fails(display)
    file = console.file
    assert isinstance(file, io.StringIO)
    assert "\x1b[?25h" in file.getvalue()


@pytest.mark.parametrize("plain", [True, False])
def test_a_signal_ends_what_tells_its_progress(plain: bool) -> None:
    def check() -> None:
        raise Stopped(signal.SIGTERM)

    console = Console(file=io.StringIO(), force_terminal=not plain)
    with Display(console, plain=plain, check=check) as display:
        with pytest.raises(Stopped), display.progress("Loading x") as progress:
            progress(0.5)
        with pytest.raises(Stopped):
            display(Began("in.wav", None))


def test_nothing_said() -> None:
    lines = shown(lambda display: display(Ended("in.wav", Plan())), plain=True).splitlines()
    assert lines[0] == "Said: (nothing)"


def test_progress_in_a_terminal_and_not_elsewhere() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with Display(console, plain=False) as display, display.progress("Loading x") as progress:
        progress(0.426)
        time.sleep(0.3)
    assert "Loading x  43 %" in out.getvalue()
    plain = io.StringIO()
    with Display(Console(file=plain), plain=True) as display, display.progress("Loading x") as progress:
        progress(0.5)
    assert not plain.getvalue()
