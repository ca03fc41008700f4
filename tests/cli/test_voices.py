"""Voices and personas on the command line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS, ROOT
from safetensors.numpy import save_file

from msh_mlx.cli.choice import choose
from msh_mlx.cli.main import main, parser
from msh_mlx.cli.options import byte_count
from msh_mlx.errors import InputError
from msh_mlx.library.catalogue import Entry, LocalFile
from msh_mlx.library.files import find_demo
from msh_mlx.library.voices import NamedVoice, check_name, find_voice, known_voices, unpacked
from msh_mlx.system.signals import Signals
from msh_mlx.weights.voice import read_voice

GREEDY = ("--temperature", "0", "--text-temperature", "0")


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> Path:
    """Replace the folders of the user. Return that of the user's voices."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config" / "msh-mlx" / "voices"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A recording of two words, 1.8 s."""
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    soundfile.write(tmp_path / "jo.wav", pcm[: int(1.8 * rate)], rate)
    return tmp_path / "jo.wav"


def said(capsys: pytest.CaptureFixture[str], *args: str | Path, code: int = 0) -> str:
    """Run the program; return its standard output, or its complaint."""
    assert main(list(map(str, args))) == code
    out, err = capsys.readouterr()
    if code:
        assert re.fullmatch(r"\S.*\.\n", err), err
        return err
    assert err == ""
    return out


# ---- conversations -------------------------------------------------------------------------------------------------------


def test_the_demo_takes_a_role(tmp_path: Path) -> None:
    """As a person does it, and once more: then the prompt was read before."""
    words = next(
        c for c in json.loads((DEMO / "persona" / "expected.json").read_text())["cases"] if c["prompt"] == "next"
    )
    command = [sys.executable, ROOT / "local_mlx.py", "--demo", "--prompt", "@role.txt", "--plain", *GREEDY]
    command += ["--input", DIGITS, "--output", "x.wav", "--tail", "1"]
    (tmp_path / "role.txt").write_bytes("\ufeffsay each digit plus one\n".encode())
    outputs = []
    for _ in range(2):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, env={**os.environ})
        assert result.stderr == b""
        lines = result.stdout.decode().splitlines()
        assert "Role “say each digit plus one”" in lines
        assert f"Said: {' '.join(words['words'])}" in lines
        outputs.append((tmp_path / "x.wav").read_bytes())
    assert outputs[0] == outputs[1]
    assert len(list((tmp_path / "notes" / "msh-mlx" / "prompts").iterdir())) == 1


def test_a_voice_by_its_name(capsys: pytest.CaptureFixture[str], speech: Path, own: Path) -> None:
    out = said(capsys, "voices", "from", speech)
    assert out == (
        f"The voice jo is made: 1.8 s, {own / 'jo.safetensors'}\n"
        "The speaker of a recording must have agreed to the use of their voice.\n"
    )
    begin = ("--demo", "--plain", "--input", DIGITS, "--output", "x.wav", "--steps", "2", "--voice")
    assert "Voice jo, role “next”\nListening" in said(capsys, *begin, "jo", "--prompt", "next")
    by_name = Path("x.wav").read_bytes()
    out = said(capsys, *begin, speech, "--prompt", "next", "--seed", "3")
    assert "Voice jo, role “next”\nThe speaker of a recording must have agreed" in out
    from_recording = Path("x.wav").read_bytes()
    said(capsys, *begin, "./config/msh-mlx/voices/jo.safetensors", "--prompt", "next", "--seed", "3")
    assert Path("x.wav").read_bytes() == from_recording
    assert len(by_name) == len(from_recording)


def test_a_file_counts_more_than_a_name_with_an_ending(tmp_path: Path, own: Path) -> None:
    known = {"jo": NamedVoice("jo", own / "jo.safetensors", "your own")}
    assert find_voice("jo.pt", known) == own / "jo.safetensors"
    (tmp_path / "jo.pt").touch()
    assert find_voice("jo.pt", known) == Path("jo.pt")
    assert find_voice("jo", known) == own / "jo.safetensors"


def test_each_recording_begins_with_the_same_persona(capsys: pytest.CaptureFixture[str], speech: Path) -> None:
    """Also with the cache of keys and values in 8 bits, and if no prompt is kept."""
    Path("twin.wav").write_bytes(speech.read_bytes())
    begin = ("--demo", "--plain", "--voice", speech, "--prompt", "backwards", "--seed", "5", "--tail", "1")
    for more in ((), ("--kv-bits", "8"), ("--keep-prompts", "0")):
        said(capsys, *begin, *more, "--input", speech, "twin.wav", "--output-dir", "out")
        assert Path("out/jo.wav").read_bytes() == Path("out/twin.wav").read_bytes()
        assert np.abs(soundfile.read("out/jo.wav")[0]).max() > 0
    assert len(list(Path("notes/msh-mlx/prompts").iterdir())) == 2


def test_a_role_chooses_a_model_that_takes_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One on disk, and not the best of all models, which takes none."""
    folder = tmp_path / "weights" / "mine"
    folder.mkdir(parents=True)
    for name, file in (
        ("model.q8.safetensors", "persona/model.q8.safetensors"),
        ("config.json", "persona/config.json"),
        ("tokenizer_mine.model", "persona/tokenizer.model"),
        ("tokenizer-mine.safetensors", "mimi.safetensors"),
    ):
        (folder / name).symlink_to(DEMO / file)
    assert "Role “next”" in said(
        capsys, "--prompt", "next", "--plain", "--input", DIGITS, "--output", "x.wav", "--steps", "1"
    )


REFUSED = {
    "There is no voice 'nobody', and no file of this name": "--demo --voice nobody",
    "There is no role none.txt": "--demo --prompt @none.txt",
    "--prompt @ names no file": "--demo --prompt @",
    f"The role {DIGITS} is not text in UTF-8": f"--demo --prompt @{DIGITS}",
    "The model's tokenizer does not know 'Y' of the role; write “you”": "--demo --prompt You",
    f"{ROOT / 'README.md'} is not a recording": f"--demo --voice {ROOT / 'README.md'}",
    "model.q8.safetensors is not a voice": f"--demo --voice {DEMO / 'model.q8.safetensors'}",
    "The model is a Moshi language model, which takes neither a voice nor a role": (
        f"--model {DEMO / 'model.q8.safetensors'} --mimi {DEMO / 'mimi.safetensors'} --prompt next"
    ),
    "moshiko-q4 is a Moshi language model, which takes neither a voice nor a role": "--variant moshiko-q4 --prompt next",
    "moshika-q8 is a Moshi language model, which takes neither a voice nor a role": (
        "--hf-repo kyutai/moshika-mlx-q8 --prompt next"
    ),
    "No model on this disk takes a voice or a role; name personaplex-7b": "--voice NATF0",
    "The name of the voice is empty": "--demo --voice=",
    # These are said before anything is fetched.
    "There is no voice 'none/jo.wav', and no file of this name": "--variant personaplex-7b --voice none/jo.wav",
    "There is no role early.txt": "--variant personaplex-7b --prompt @early.txt",
    "moshiko-q4 is a Moshi language model, and --guidance is for Hibiki": "--variant moshiko-q4 --guidance 3",
    "--keep-prompts: 'much' is not a number of bytes, such as 500MB or 2GB": "--demo --keep-prompts much",
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_persona(capsys: pytest.CaptureFixture[str], what: str) -> None:
    err = said(capsys, *REFUSED[what].split(), "--input", DIGITS, "--output", "x.wav", "--plain", code=2)
    assert what in err
    assert not Path("x.wav").exists()


def test_a_prompt_without_text(capsys: pytest.CaptureFixture[str]) -> None:
    """It is as if none was given; but a file without text is a mistake."""
    Path("empty.txt").write_text("\n")
    recording = ("--input", DIGITS, "--output", "x.wav")
    assert "The role empty.txt is empty" in said(capsys, "--demo", "--prompt", "@empty.txt", *recording, code=2)
    for prompt in ("", " "):
        assert choose(parser().parse_args(["--demo", "--prompt", prompt]), Signals()).files == find_demo("conversation")


def test_sizes() -> None:
    assert [byte_count(text) for text in ("0", "2 GB", "500MB", "1.5k", "7", "1TB")] == [
        0, 2 * 10**9, 5 * 10**8, 1500, 7, 10**12,
    ]  # fmt: skip


# ---- the command voices --------------------------------------------------------------------------------------------------


def test_the_list(capsys: pytest.CaptureFixture[str], speech: Path, own: Path) -> None:
    assert said(capsys, "voices") == (
        "There are no voices with a name; 'msh-mlx voices from RECORDING' makes one.\n\nNo prompts are kept.\n"
    )
    said(capsys, "voices", "from", speech, "--name", "Zoë.2")
    said(capsys, "--demo", "--prompt", "next", "--input", DIGITS, "--output", "x.wav", "--steps", "1", "--plain")
    out = said(capsys, "voices")
    assert out.startswith("Zoë.2  your own\n\nPrompts that are kept (0.1 MB in all), those used last first:\n")
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d    0.1 MB  persona/model.q8.safetensors, “next”$", out, re.M)
    told = json.loads(said(capsys, "voices", "--json"))
    assert told["voices"] == [
        {"name": "Zoë.2", "source": "your own", "licence": None, "own": True, "path": str(own / "Zoë.2.safetensors")}
    ]
    (prompt,) = told["prompts"]
    assert (prompt["text"], prompt["voice"], prompt["size"]) == ("next", "", Path(prompt["path"]).stat().st_size)
    assert said(capsys, "voices", "clear") == "Removed the prompts that were kept: 0.1 MB are free now.\n"
    assert said(capsys, "voices", "clear") == "No prompts were kept.\n"
    assert json.loads(said(capsys, "voices", "clear", "--json")) == {"freed": 0}
    assert list(own.iterdir()) == [own / "Zoë.2.safetensors"]  # voices stay


def test_play(capsys: pytest.CaptureFixture[str], speech: Path) -> None:
    """A voice made of a recording plays that, as loud as voices are; a role makes the model speak."""
    said(capsys, "voices", "from", speech)
    assert said(capsys, "voices", "play", "jo", "--output", "out.wav") == "Written: out.wav\n"
    heard, rate = soundfile.read("out.wav")
    original, _ = soundfile.read(speech)
    assert rate == 24000
    heard = heard[: len(original)]
    assert np.corrcoef(heard, original)[0, 1] > 0.999
    out = said(capsys, "voices", "play", "jo", "--prompt", "next", "--demo", "--plain", "--output", "model.wav")
    assert out.endswith("Written: model.wav\n")
    assert soundfile.info("model.wav").frames == 75 * 1920
    out = said(capsys, "voices", "play", "jo", "--prompt", "next", "--demo", "--json", "--output", "model.wav")
    assert json.loads(out) == {"path": "model.wav", "seconds": 6.0}
    assert "would be overwritten" in said(capsys, "voices", "play", speech, "--output", speech, code=2)


def test_play_a_voice_in_nvidias_form(capsys: pytest.CaptureFixture[str], own: Path) -> None:
    """It holds no sound: the model speaks with it."""
    own.mkdir(parents=True)
    random = np.random.default_rng(2)
    embeddings = random.normal(0, 0.1, (12, 1, 1, 256)).astype(np.float32)
    cache = random.integers(0, 60, (1, 17, 4))
    save_file({"embeddings": embeddings, "cache": cache}, own / "NATF9.safetensors")
    out = said(capsys, "voices", "play", "NATF9.pt", "--demo", "--plain", "--output", "x.wav")
    assert out.endswith("Written: x.wav\n")
    assert soundfile.info("x.wav").frames == 75 * 1920
    assert "takes neither a voice nor a role" in said(
        capsys, "voices", "play", "NATF9", "--plain", "--output", "y.wav", "--model", DEMO / "model.q8.safetensors",
        "--mimi", DEMO / "mimi.safetensors", code=2,
    )  # fmt: skip
    assert not Path("y.wav").exists()


def test_a_voice_that_cannot_be_made(capsys: pytest.CaptureFixture[str], speech: Path, own: Path) -> None:
    said(capsys, "voices", "from", speech)
    before = (own / "jo.safetensors").read_bytes()
    assert "There is a voice jo already" in said(capsys, "voices", "from", speech, code=2)
    assert (own / "jo.safetensors").read_bytes() == before
    soundfile.write("short.wav", np.zeros(2400), 24000)
    assert "too short for a voice" in said(capsys, "voices", "from", "short.wav", code=2)
    for name in ("a/b", "..", ".x", "", "a b", "x.pt", "x" * 65, "𝒜" * 64):
        assert "is not a name for a voice" in said(capsys, "voices", "from", speech, "--name", name, code=2)
    assert "no name for the voice" in said(capsys, "voices", "from", "-", code=2)
    assert "There is no command 'make' of voices, only from, play and clear" in said(capsys, "voices", "make", code=2)
    assert list(own.iterdir()) == [own / "jo.safetensors"]


# ---- where voices are ----------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes an archive of members: names with contents, or `TarInfo` without."""

    def make(*members: tuple[str, bytes] | tarfile.TarInfo, name: str = "voices.tgz") -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as tar:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                else:
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    tar.addfile(info, io.BytesIO(member[1]))
        return path

    return make


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_an_archive(archive: Callable[..., Path], tmp_path: Path, own: Path) -> None:
    folder = link("voices", tarfile.DIRTYPE, "")
    path = archive(
        folder,
        ("voices/NATF0.pt", b"one"),
        ("voices/._NATF0.pt", b"mac"),
        ("voices/read.me", b"x"),
        ("VARM1.pt", b"two"),
    )
    found = unpacked(path)
    assert found
    assert {file.name: file.read_bytes() for file in found.iterdir()} == {"NATF0.pt": b"one", "VARM1.pt": b"two"}
    assert found.parent == tmp_path / "notes" / "msh-mlx" / "voices"
    assert [entry.name for entry in found.parent.iterdir()] == [found.name]
    stamp = (found / "NATF0.pt").stat().st_mtime_ns
    assert unpacked(path) == found
    assert (found / "NATF0.pt").stat().st_mtime_ns == stamp  # it is there already

    model = tmp_path / "model.safetensors"
    beside = tmp_path / "voices" / "NATF0.safetensors"
    beside.parent.mkdir()
    beside.touch()
    own.mkdir(parents=True)
    (own / "mine.safetensors").touch()
    (own / "notes.txt").touch()
    entry = Entry(
        "persona",
        "",
        {"lm": LocalFile(tmp_path / "other"), "voices": LocalFile(path)},
        "personaplex",
        licence="a licence",
    )
    known = known_voices(model, [entry])
    assert [(v.name, v.source, v.licence, v.own) for v in known.values()] == [
        ("mine", "your own", None, True),
        ("NATF0", "beside model.safetensors", None, False),
        ("VARM1", "beside model.safetensors", None, False),
    ]
    known = known_voices(None, [entry])
    assert [(v.name, v.source, v.licence) for v in known.values()][1:] == [
        ("NATF0", "persona", "a licence"), ("VARM1", "persona", "a licence"),
    ]  # fmt: skip
    assert find_voice("NATF0", known) == find_voice("NATF0.pt", known) == found / "NATF0.pt"
    assert find_voice(str(path), known) == path
    for name in ("", "natf0", "../NATF0", "x\0", "a" * 5000):
        with pytest.raises(InputError):
            find_voice(name, known)


def test_a_dangerous_archive(archive: Callable[..., Path], tmp_path: Path) -> None:
    good = ("voices/A.pt", b"x")
    huge = tarfile.TarInfo("B.pt")
    huge.size = 1 << 40
    members = [
        ("../A.pt", b"x"), ("/tmp/A.pt", b"x"), ("voices/../../A.pt", b"x"), link("B.pt", tarfile.SYMTYPE, "/etc/passwd"),
        link("B.pt", tarfile.LNKTYPE, "voices/A.pt"), link("B.pt", tarfile.FIFOTYPE, ""), link("B.pt", tarfile.CHRTYPE, ""),
    ]  # fmt: skip
    for i, member in enumerate(members):
        with pytest.raises(InputError, match="is a link, or lies outside"):
            unpacked(archive(good, member, name=f"{i}.tgz"))
    path = tmp_path / "huge.tgz"
    path.write_bytes(gzip.compress(huge.tobuf()))
    with pytest.raises(InputError, match="it holds too much"):
        unpacked(path)
    with pytest.raises(InputError, match="it holds too much"):
        unpacked(archive(*[(f"{i}.pt", b"") for i in range(1001)], name="many.tgz"))
    with pytest.raises(InputError, match="no voice is in it"):
        unpacked(archive(("x/read.me", b"x"), name="none.tgz"))
    left = [file for file in tmp_path.rglob("*") if file.suffix != ".tgz" and file.is_file()]
    assert left == []
    assert not list((tmp_path / "notes" / "msh-mlx" / "voices").iterdir())


def test_a_damaged_archive(archive: Callable[..., Path], tmp_path: Path) -> None:
    """It is refused in a sentence, or unpacked."""
    random = np.random.default_rng(3)
    contents = {f"{name}.pt": random.bytes(400) for name in "ABC"}
    data = archive(*[(f"voices/{name}", data) for name, data in contents.items()]).read_bytes()
    outcomes = []
    for i in range(300):
        damaged = bytearray(data)
        for position in random.integers(0, len(data), int(random.integers(1, 4))):
            damaged[position] = int(random.integers(256))
        if i % 3 == 0:
            del damaged[int(random.integers(len(damaged))) :]
        path = tmp_path / f"{i}.tgz"
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            found = unpacked(path)
            outcomes.append({file.name: file.read_bytes() for file in found.iterdir()} if found else None)
    assert len(outcomes) < 30  # a byte of the time in its header changes nothing
    assert all(outcome == contents for outcome in outcomes)


def test_a_name_is_no_path() -> None:
    assert check_name("NATF0") == "NATF0"
    for name in ("", ".", "..", "a/b", "/a", "a\0", "-a", " a"):
        with pytest.raises(InputError):
            check_name(name)


def test_a_voice_in_a_folder_that_cannot_be_read(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.mkdir(parents=True)
    (own / "broken.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError):
        read_voice(own / "broken.safetensors")
    assert "broken  your own" in said(capsys, "voices")
    err = said(capsys, "voices", "play", "broken", "--output", "x.wav", code=2)
    assert "broken.safetensors" in err
