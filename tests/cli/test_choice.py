"""The command line and models: choosing, fetching, listing, verifying, removing; with the demo model on a hub of the tests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from paths import DEMO, DIGITS, ROOT

from msh_mlx.cli import choice
from msh_mlx.errors import InputError
from msh_mlx.library import suited
from msh_mlx.library.cache import Watch
from msh_mlx.library.catalogue import load_catalogue, of_use

LIMIT = 60  # seconds, for a busy machine
WORDS = json.loads((DEMO / "expected.json").read_text())["words"]
NAMES = {
    "model.q8.safetensors": "model.q8.safetensors",
    "mimi.safetensors": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer.model": "tokenizer_spm_32k_3.model",
    "config.json": "config.json",
}
FILES = {name: (DEMO / file).read_bytes() for file, name in NAMES.items()}
SIZE = sum(map(len, FILES.values()))
CATALOGUE = """\
[digits-q8]
about = "Repeats digits"
repository = "us/digits-q8"
quantization = "q8"
size = 20_000_000
memory = 100_000_000
step-bytes = 9_000_000
licence = "MIT"
files.lm = "model.q8.safetensors"
files.mimi = "tokenizer-e351c8d8-checkpoint125.safetensors"
files.tokenizer = "tokenizer_spm_32k_3.model"
files.config = "config.json"
"""


class Place:
    """A folder, a cache, and a hub; commands run there."""

    def __init__(self, folder: Path, server: HubServer) -> None:
        self.folder = folder
        self.cache = folder / "hf" / "hub"
        self.server = server
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(folder / "hf"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_CACHE_HOME": str(folder / "notes"),
            "NO_PROXY": "127.0.0.1",
            "COLUMNS": "200",
        }

    def catalogue(self, text: str = CATALOGUE) -> None:
        """Give the user a catalogue of their own."""
        (self.folder / "config" / "msh-mlx").mkdir(parents=True, exist_ok=True)
        (self.folder / "config" / "msh-mlx" / "weights.toml").write_text(text)

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "local_mlx.py"), *args]
        return subprocess.run(
            command, cwd=self.folder, env=self.env | env, capture_output=True, text=True, timeout=LIMIT
        )

    def good(self, *args: str, **env: str) -> str:
        result = self.run(*args, **env)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def json(self, *args: str, **env: str) -> Any:
        return json.loads(self.good(*args, "--json", **env))

    def refused(self, code: int, *args: str, **env: str) -> str:
        result = self.run(*args, **env)
        assert result.returncode == code, result.stderr
        lines = result.stderr.splitlines()
        assert lines
        assert re.fullmatch(r"\S.*\.", lines[-1])
        assert "Traceback" not in result.stderr
        return lines[-1]

    def converse(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        result = self.run(*args, *ANSWER, **env)
        assert result.returncode == 0, result.stderr
        said = [json.loads(line)["text"] for line in (self.folder / "said.jsonl").read_text().splitlines()]
        assert said == WORDS
        return result

    def sent(self) -> int:
        return sum(r.sent for r in self.server.requests if r.status in (200, 206) and "/api/" not in r.path)


ANSWER = ["--input", str(DIGITS), "--transcript", "said.jsonl", "--tail", "2", "--seed", "0"]
ANSWER += ["--temperature", "0", "--text-temperature", "0"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with HubServer() as server:
        server.add("us/digits-q8", FILES)
        yield Place(tmp_path, server)


# ---- conversations -------------------------------------------------------------------------------------------------------


def test_the_best_model_is_fetched_and_used(place: Place) -> None:
    place.catalogue()
    result = place.converse()
    host = place.server.url.removeprefix("http://")
    assert result.stderr.splitlines()[:2] == [
        "The model is digits-q8: Repeats digits.",
        f"Fetching digits-q8 from {host} into {place.cache}: 20.2 MB in 4 files",
    ]
    assert "100 % of 20.2 MB" in result.stderr
    assert place.sent() == SIZE
    # Again, and without network: nothing is asked, and nothing said but what it is.
    place.server.forget()
    result = place.converse()
    assert result.stderr == "The model is digits-q8: Repeats digits.\n"
    assert not place.server.requests
    place.server.down()
    place.converse()
    place.converse("--variant", "digits-q8", HF_HUB_OFFLINE="1")


def test_a_variant_of_a_file_of_ones_own(place: Place) -> None:
    (place.folder / "more.toml").write_text(CATALOGUE.replace("digits", "numbers").replace("us/numbers", "us/digits"))
    place.converse("--weights", "more.toml", "--variant", "numbers-q8")
    assert "numbers-q8" in place.refused(2, "--weights", "more.toml", "--variant", "digits-q8", *ANSWER)


def test_a_repository(place: Place) -> None:
    place.converse("--hf-repo", "us/digits-q8", "--quantized", "8")
    place.server.down()
    place.converse("--hf-repo", "us/digits-q8")
    assert "4 bits (model.q4.safetensors)" in place.refused(2, "--hf-repo", "us/digits-q8", "--quantized", "4", *ANSWER)
    place.server.up()
    assert "no repository us/none" in place.refused(2, "--hf-repo", "us/none", *ANSWER)


def test_references(place: Place) -> None:
    shutil.copy(DEMO / "mimi.safetensors", place.folder / "codec")
    place.converse(
        *["--model", "hf:us/digits-q8/model.q8.safetensors", "--mimi", "file:codec"],
        *["--tokenizer", f"file:{DEMO}/tokenizer.model", "--config", "hf:us/digits-q8/config.json@main"],
    )
    assert place.sent() == sum(len(FILES[name]) for name in ("model.q8.safetensors", "config.json"))


def test_what_is_not_beside_the_model_is_the_catalogues(place: Place) -> None:
    place.catalogue()
    (place.folder / "alone").mkdir()
    shutil.copy(DEMO / "model.q8.safetensors", place.folder / "alone")
    shutil.copy(DEMO / "config.json", place.folder / "alone")
    # The published ones come first; they are not on this hub.
    message = place.refused(2, "--model", "alone/model.q8.safetensors", *ANSWER)
    assert "There is no repository kyutai/" in message
    place.good("models", "get", "digits-q8")
    place.converse("--model", "alone/model.q8.safetensors")
    for name in ("tokenizer-1.safetensors", "tokenizer-2.safetensors"):
        (place.folder / "alone" / name).touch()
    message = place.refused(2, "--model", "alone/model.q8.safetensors", *ANSWER)
    assert "2 codecs (tokenizer-*.safetensors) beside" in message
    assert "--mimi" in message
    # The configuration says which one it is, if it is there.
    config = json.loads((DEMO / "config.json").read_text()) | {"mimi_name": "tokenizer-1.safetensors"}
    (place.folder / "alone" / "config.json").write_text(json.dumps(config))
    shutil.copy(DEMO / "mimi.safetensors", place.folder / "alone" / "tokenizer-1.safetensors")
    place.converse("--model", "alone/model.q8.safetensors")


def test_models_in_weights(place: Place) -> None:
    (place.folder / "weights").mkdir()
    for name, data in FILES.items():
        (place.folder / "weights" / name).write_bytes(data)
    place.converse("--variant", "weights/model.q8.safetensors")
    assert not place.server.requests
    # 8 bits that are on disk.
    place.converse("--quantized", "8")
    assert not place.server.requests


# Facts that no machine can meet, and facts that every machine meets.
NEVER = CATALOGUE.replace("step-bytes = 9_000_000", "step-bytes = 900_000_000_000_000_000")


def options(**given: Any) -> Namespace:
    return Namespace(**{"engine": "native", "context": None, "kv_bits": None, **given})


def test_a_recording_can_wait(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no model is fast enough to follow, the fastest that fits in memory is taken for recordings."""
    monkeypatch.setattr(suited, "this_machine", lambda engine: suited.Machine(16 << 30, 1e9))
    entries = of_use(load_catalogue(), "transcription")
    said: list[str] = []
    watch = Watch(say=said.append)
    with pytest.raises(InputError, match="No model suits this machine: stt-1b"):
        choice._best(options(), entries, True, False, watch)
    best = choice._best(options(), entries, False, False, watch).entry
    assert best.step_bytes == min(entry.step_bytes or 0 for entry in entries.values())
    assert said[0].startswith(f"The model is {best.name}: ")


def test_what_may_be_fast_enough_is_tried_where_there_is_a_trial(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = of_use(load_catalogue(), "conversation")
    need, asked, said = entries["moshiko-q4"].step_bytes or 0, [], []
    watch, seconds = Watch(say=said.append), 0.08

    def machine(engine: str) -> suited.Machine:
        asked.append(engine)
        return suited.Machine(16 << 30, need / seconds)

    monkeypatch.setattr(suited, "this_machine", machine)
    given = options()
    selection = choice._best(given, entries, True, True, watch)
    assert (selection.entry.bits, selection.trial, given.kv_bits) == (4, True, 8)
    assert "on trial" in said[0]
    assert set(asked) == {"native"}
    # Where nothing is tried, as in a server, it must surely be fast enough.
    with pytest.raises(InputError, match=r"would take 80 ms .* the limit is 45 ms"):
        choice._best(options(), entries, True, False, watch)
    # A shorter window lets slower machines try, and that is said.
    seconds = 0.1
    with pytest.raises(InputError, match=r"would take 100 ms .* the limit is 90 ms") as error:
        choice._best(options(), entries, True, True, watch)
    assert error.value.advice.startswith("shorten its window with --context, ")
    assert choice._best(options(context=60.0), entries, True, True, watch).trial
    seconds = 0.2
    with pytest.raises(InputError, match=r"the limit is 105 ms") as error:
        choice._best(options(context=60.0), entries, True, True, watch)
    assert "--context" not in error.value.advice


def test_nothing_suits(place: Place) -> None:
    if sys.platform != "linux":
        pytest.skip("one of the published models may suit this machine")
    message = place.refused(2, *ANSWER)
    assert message.startswith("No model suits this machine: moshiko-q4, the lightest, ")
    assert "--variant moshiko-q4" in message
    result = place.converse("--or-demo")
    assert "so this is the demo model, which repeats digits." in result.stderr
    assert not place.server.requests


def test_the_demo_if_nothing_can_be_fetched(place: Place) -> None:
    place.catalogue()
    place.server.down()
    message = place.refused(1, *ANSWER)
    assert "cannot be reached (Connection refused), and " in message
    assert message.endswith("without a network, only --demo works.")
    assert "so this is the demo model" in place.converse("--or-demo").stderr
    # But not in place of what was named.
    place.refused(1, "--variant", "digits-q8", "--or-demo", *ANSWER)


def test_wrong_outputs_are_said_before_anything_is_fetched(place: Place) -> None:
    place.catalogue()
    place.refused(2, "--input", str(DIGITS), "--output", "none/none/out.wav")
    place.refused(2, "--input", "none.wav", "--output", "out.wav")
    assert not place.server.requests


def test_a_model_on_disk_is_not_overwritten(place: Place) -> None:
    place.catalogue()
    place.good("models", "get", "digits-q8")
    path = place.good("models", "path", "digits-q8").splitlines()[0]
    message = place.refused(2, "--input", str(DIGITS), "--output", path)
    assert "would be overwritten" in message


def test_interrupted_while_fetching(place: Place) -> None:
    place.catalogue()
    place.server.rate = 3e6
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "local_mlx.py"), "models", "get", "digits-q8"],
        cwd=place.folder,
        env=place.env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line.startswith("20 %"):
            break
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - begin < 5
    assert (process.returncode, errors.splitlines()[-1]) == (130, "Stopped.")
    sent = place.sent()
    place.server.rate = None
    place.good("models", "get", "digits-q8")
    # It went on; what had been on its way and what was begun in the last moment came twice.
    assert place.sent() - sent < SIZE - 3_000_000


def test_bench(place: Place) -> None:
    place.catalogue()
    found = place.json("bench", "--variant", "digits-q8", "--steps", "3")
    assert (found["model"], found["bits"]) == ("model.q8.safetensors", "8")
    assert found["encode"]
    assert "--variant brings" in place.refused(2, "bench", "--variant", "digits-q8", "--size", "1b")


# ---- msh-mlx models ------------------------------------------------------------------------------------------------------


def test_the_table(place: Place) -> None:
    place.catalogue()
    lines = place.good("models").splitlines()
    assert re.split(r"  +", lines[0].strip()) == ["name", "on disk", "size", "memory", "here", "what it is"]
    # Models stand together by what they do, under the command that runs them.
    parts = [part.splitlines() for part in "\n".join(line.rstrip() for line in lines[1:-2]).split("\n\n")]
    assert [part[0].strip() for part in parts] == [
        "Conversation, by msh-mlx",
        "Translation, by msh-mlx",
        "Transcription, by msh-mlx transcribe",
        "Speech, by msh-mlx say",
    ]
    groups = [[line[3:].split()[0] for line in part[1:]] for part in parts]
    assert groups[1] == ["hibiki-2b", "hibiki-1b", "hibiki-zero"]
    assert groups[3] == ["tts-1.6b-en_fr", "tts-0.75b-en"]
    rows = {line[3:].split()[0]: line for line in parts[0][1:]}
    assert list(rows)[-1] == "digits-q8"
    assert rows["personaplex-7b"].endswith(", NVIDIA Open Model License, gated")
    assert rows["j-moshi"].endswith(", CC BY-NC 4.0, not for commercial use")
    assert rows["digits-q8"].startswith("*  digits-q8 ")
    assert re.search(r" no +20\.0 MB +100\.0 MB +suits +Repeats digits, MIT", rows["digits-q8"])
    assert re.search(r" no +8\.6 GB +10\.8 GB ", rows["moshiko-q8"])
    assert "* is taken without --variant." in lines[-1]
    place.good("models", "get", "digits-q8")
    assert re.search(r"digits-q8 +yes ", place.good("models"))


def test_the_table_in_a_narrow_terminal(place: Place) -> None:
    place.catalogue()
    command = [sys.executable, str(ROOT / "local_mlx.py"), "models"]
    leader, follower = pty.openpty()
    env = place.env | {"COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=place.folder, env=env, stdout=follower, stderr=follower)
    os.close(follower)
    text = b""
    try:
        while piece := os.read(leader, 65536):
            text += piece
    except OSError:
        pass
    os.close(leader)
    assert process.wait(LIMIT) == 0
    lines = [re.sub(rb"\x1b\[[\d;]*m", b"", line).rstrip().decode() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    # Nothing is cut off: what a model is stands below it.
    at = next(i for i, line in enumerate(lines) if "personaplex-7b" in line)
    assert " ".join(" ".join(lines[at + 1 : at + 3]).split()).endswith(
        "one can choose, NVIDIA Open Model License, gated"
    )
    assert re.search(r" personaplex-7b +no +17\.1 GB +18\.0 GB ", lines[at])
    assert not re.search("…|\\w-$", "\n".join(lines))


def test_the_table_as_json(place: Place) -> None:
    place.catalogue(CATALOGUE + '\n[bare]\nfiles = {lm = "a", mimi = "b", tokenizer = "c"}\n')
    found = place.json("models")
    assert set(found) == {"memory", "room", "bandwidth", "models"}
    models = {model["name"]: model for model in found["models"]}
    digits = models["digits-q8"]
    assert digits["suits"]
    assert digits["default"]
    assert not digits["on_disk"]
    assert digits["files"]["lm"] == "hf:us/digits-q8/model.q8.safetensors"
    assert digits["paths"] == dict.fromkeys(("lm", "mimi", "tokenizer", "config"))
    assert (digits["size"], digits["memory"], digits["licence"]) == (20_000_000, 100_000_000, "MIT")
    bare = models["bare"]
    assert bare["size"] is bare["memory"] is bare["fits"] is bare["step_seconds"] is bare["licence"] is None
    assert not bare["suits"]
    assert (digits["family"], digits["use"], digits["gated"]) == ("moshi", "conversation", False)
    assert sum(model["default"] for model in models.values() if model["use"] == "conversation") == 1
    assert not any(model["default"] for model in models.values() if model["use"] == "translation")  # must be named
    assert models["personaplex-7b"]["gated"]
    assert models["j-moshi"]["non_commercial"]
    speech = models["tts-1.6b-en_fr"]
    assert (speech["family"], speech["use"], speech["voices"]) == ("tts", "speech", "kyutai/tts-voices")


def test_get_path_remove(place: Place) -> None:
    place.catalogue()
    assert "models get digits-q8" in place.refused(1, "models", "path", "digits-q8")
    assert place.good("models", "remove", "digits-q8") == "digits-q8 is not on disk\n"
    assert place.good("models", "get", "digits-q8") == "digits-q8 is on disk, and its hashes are right\n"
    assert place.good("models", "get", "digits-q8", "digits-q8") == "digits-q8 was on disk already\n"
    paths = [Path(line) for line in place.good("models", "path", "digits-q8").splitlines()]
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    files = place.json("models", "path", "digits-q8")["files"]
    assert list(files.values()) == list(map(str, paths))
    assert place.json("models", "get", "digits-q8") == {
        "models": [{"name": "digits-q8", "fetched": False, "files": files}]
    }
    done = place.json("models", "remove", "digits-q8")
    assert (done["name"], done["freed"], sorted(done["removed"])) == ("digits-q8", SIZE, sorted(map(str, paths)))
    assert not list(place.cache.rglob("*.safetensors"))
    assert place.json("models", "get", "digits-q8")["models"][0]["fetched"]
    assert place.good("models", "remove", "digits-q8") == "Removed digits-q8: 20.2 MB are free now\n"


VOICE = DEMO / "tts" / "voices" / "calm.d161752e@1.safetensors"
FAMILY = """\
[words]
about = "Says digits"
family = "tts"
repository = "us/words"
licence = "CC BY-NC 4.0"
non-commercial = true
files.lm = "model@1.safetensors"
files.mimi = "mimi-1.safetensors"
files.tokenizer = "tokenizer.model"
files.config = "config.json"
files.voices = "hf:us/voices/calm@1.safetensors"

[persona]
family = "personaplex"
repository = "us/persona"
gated = true
files.lm = "model.safetensors"
files.mimi = "mimi-1.safetensors"
files.tokenizer = "tokenizer.model"
files.voices = "voices.tgz"
"""


def test_a_model_with_voices_whose_licence_forbids_commercial_use(place: Place) -> None:
    place.catalogue(FAMILY)
    files = {"model@1.safetensors": "tts/model.safetensors", "mimi-1.safetensors": "mimi.safetensors"}
    files |= {"tokenizer.model": "tokenizer.model", "config.json": "tts/config.json"}
    place.server.add("us/words", {name: (DEMO / path).read_bytes() for name, path in files.items()})
    place.server.add("us/voices", {"calm@1.safetensors": VOICE.read_bytes()})
    # It says words and does not talk: that is said before anything is fetched, with the command that runs it.
    assert "use 'msh-mlx say'" in place.refused(2, "--variant", "words", *ANSWER)
    assert not place.server.requests
    # Whatever it is called, the licence is named.
    for way in (
        ["--hf-repo", "us/words"],
        ["--hf-repo", "us/words@main"],
        ["--model", "hf:us/words/model@1.safetensors"],
    ):
        result = place.run("say", *way, "--output", "x.wav", "one")
        assert "words is not for commercial use, by its licence (CC BY-NC 4.0)." in result.stderr.splitlines()
    result = place.run("models", "get", "words")
    assert result.stderr.splitlines()[0] == "words is not for commercial use, by its licence (CC BY-NC 4.0)."
    paths = place.good("models", "path", "words").splitlines()
    assert [Path(path).name for path in paths] == [*files, "calm@1.safetensors"]
    assert place.json("models", "verify")["ok"]
    assert place.json("models", "remove", "words")["freed"] == sum(
        (DEMO / path).stat().st_size for path in [*files.values(), VOICE]
    )


def test_a_gated_model(place: Place) -> None:
    place.catalogue(FAMILY)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        opened.add(VOICE, "voices/calm.safetensors")
    files = {"model.safetensors": (DEMO / "persona" / "model.q8.safetensors").read_bytes()}
    files |= {"mimi-1.safetensors": FILES[NAMES["mimi.safetensors"]], "voices.tgz": archive.getvalue()}
    files |= {"tokenizer.model": (DEMO / "persona" / "tokenizer.model").read_bytes()}
    place.server.add("us/persona", files, gated=True)
    message = place.refused(2, "models", "get", "persona")
    assert "us/persona wants its conditions to be accepted: open http" in message
    assert message.endswith("give your token with HF_TOKEN or 'hf auth login'.")
    assert "us/persona wants its" in place.refused(2, "models", "get", "persona", HF_TOKEN=place.server.stranger)
    place.good("models", "get", "persona", HF_TOKEN=place.server.token)
    voices = Path(place.good("models", "path", "persona").splitlines()[-1])
    assert voices.read_bytes() == archive.getvalue()
    # What is damaged and has no hash is found by reading it.
    (place.folder / "voices.tgz").write_bytes(archive.getvalue()[:-20])
    place.catalogue(FAMILY.replace('"voices.tgz"', f'"file:{place.folder}/voices.tgz"'))
    found = json.loads(place.run("models", "verify", "persona", "--json").stdout)["files"]
    (wrong,) = [file["wrong"] for file in found if file["role"] == "voices"]
    assert wrong.startswith("it cannot be read as an archive")


def test_wrong_commands(place: Place) -> None:
    assert "get, verify, remove and path" in place.refused(2, "models", "fetch")
    assert "NAME" in place.refused(2, "models", "get")
    assert "moshiko-q8" in place.refused(2, "models", "get", "moshiko")
    for action in ("", "get", "verify", "remove", "path"):
        assert "usage: msh-mlx models" in place.good("models", *filter(None, [action]), "--help")


def test_verify(place: Place) -> None:
    place.catalogue()
    assert "no model on disk" in place.good("models", "verify")
    place.good("models", "get", "digits-q8")
    lines = place.good("models", "verify").splitlines()
    assert lines == [f"digits-q8: {name}: as it should be" for name in FILES]
    assert place.json("models", "verify", "digits-q8")["ok"]
    lm = Path(place.good("models", "path", "digits-q8").splitlines()[0])
    data = bytearray(lm.read_bytes())
    data[5_000_000] ^= 1
    lm.write_bytes(data)
    assert "models verify --repair digits-q8" in place.refused(1, "models", "verify")
    result = place.run("models", "verify", "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert [file["ok"] for file in found["files"]] == [False, True, True, True]
    assert "not those that the hub has" in found["files"][0]["wrong"]
    # Only what is wrong is fetched again.
    place.server.forget()
    place.good("models", "verify", "--repair", "digits-q8")
    assert place.sent() == len(FILES["model.q8.safetensors"])
    assert place.json("models", "verify")["ok"]


def test_verify_compares_a_file_with_the_hash_of_each_entry(place: Place) -> None:
    place.catalogue()
    place.good("models", "get", "digits-q8")
    twin = CATALOGUE.replace("[digits-q8]", "[twin-q8]") + f'sha256.lm = "{"0" * 64}"\n'
    place.catalogue(CATALOGUE + twin)
    result = place.run("models", "verify", "--json")
    assert result.returncode == 1
    states = [(file["model"], file["state"]) for file in json.loads(result.stdout)["files"]]
    assert states == [("digits-q8", "right")] * 4 + [("twin-q8", "wrong")] + [("twin-q8", "right")] * 3


def test_verify_where_the_cache_has_no_links(place: Place) -> None:
    """Then nothing names the hashes: what cannot be compared is not right, and has a state and an exit code of its own."""
    place.catalogue()
    place.good("models", "get", "digits-q8")
    for path in map(Path, place.good("models", "path", "digits-q8").splitlines()):
        data = bytearray(path.read_bytes())
        path.unlink()
        if path.name == "model.q8.safetensors":
            data[5_000_000] ^= 1
        path.write_bytes(data)
    result = place.run("models", "verify")
    assert (result.returncode, result.stderr) == (3, "")
    *lines, last = result.stdout.splitlines()
    what = "could not be compared with its hash, which this cache does not have; it can be read"
    assert lines == [f"digits-q8: {name}: {what}" for name in FILES]
    assert last.startswith("Files of digits-q8 could not be checked: the cache has no links on this disk")
    result = place.run("models", "verify", "--json")
    found = json.loads(result.stdout)
    assert (result.returncode, found["ok"]) == (3, False)
    assert {(file["ok"], file["state"], file["wrong"]) for file in found["files"]} == {(False, "unchecked", None)}
    # With a sha256 in the catalogue, what was changed is found all the same, and that comes first.
    place.catalogue(f'{CATALOGUE}sha256.lm = "{hashlib.sha256(FILES["model.q8.safetensors"]).hexdigest()}"\n')
    result = place.run("models", "verify", "--json")
    assert result.returncode == 1
    assert [file["state"] for file in json.loads(result.stdout)["files"]] == ["wrong", *["unchecked"] * 3]


def test_verify_finds_what_no_hash_shows(place: Place) -> None:
    own = place.folder / "own"
    own.mkdir()
    for name in NAMES:
        shutil.copy(DEMO / name, own)
    place.catalogue(
        '[own]\nfiles.lm = "../../own/model.q8.safetensors"\nfiles.mimi = "../../own/mimi.safetensors"\n'
        'files.tokenizer = "../../own/tokenizer.model"\nfiles.config = "../../own/config.json"\n'
    )
    assert place.json("models", "verify")["ok"]
    said = place.good("models", "verify").splitlines()
    assert {line.split(": ")[-1] for line in said} == {"as it should be, but no sha256 says whether it is unchanged"}
    for name, spoil, what in (
        ("mimi.safetensors", lambda data: data[:-4] + b"\x00\x00\xc0\x7f", "NaN"),
        ("model.q8.safetensors", lambda data: data[:-1], "cut off"),
        ("tokenizer.model", lambda data: b"<html>", "web page"),
        ("config.json", lambda data: b'{"dims": 3}', "dims"),
    ):
        good = (own / name).read_bytes()
        (own / name).write_bytes(spoil(good))
        result = place.run("models", "verify", "--json")
        assert result.returncode == 1
        # A wrong configuration is wrong for the model, too.
        wrong = [file["wrong"] for file in json.loads(result.stdout)["files"] if not file["ok"]]
        assert re.search(what, wrong[-1]), wrong
        message = place.refused(1, "models", "verify", "--repair", "own")
        assert message == "Some files are wrong; they are your own, so replace them yourself."
        (own / name).write_bytes(good)
    (own / "config.json").unlink()
    assert "not there" in place.refused(2, "--variant", "own", *ANSWER)


def test_the_sha256_of_ones_own_files(place: Place) -> None:
    shutil.copytree(DEMO, place.folder / "own")
    place.catalogue(
        '[own]\nfiles.lm = "../../own/model.q8.safetensors"\nfiles.mimi = "../../own/mimi.safetensors"\n'
        f'files.tokenizer = "../../own/tokenizer.model"\nsha256.lm = "{"0" * 64}"\n'
    )
    result = place.run("models", "verify", "own")
    assert result.returncode == 1
    assert "model.q8.safetensors: its sha256 is" in result.stdout


def test_the_progress_of_a_terminal(place: Place) -> None:
    place.catalogue()
    place.server.rate = 8e6
    command = [sys.executable, str(ROOT / "local_mlx.py"), "models", "get", "digits-q8"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, cwd=place.folder, env=place.env | {"TERM": "xterm", "COLUMNS": "120"}, stdout=follower, stderr=follower
    )
    os.close(follower)
    text = ""
    try:
        while piece := os.read(leader, 65536):
            text += piece.decode(errors="replace")
    except OSError:
        pass
    os.close(leader)
    assert process.wait(LIMIT) == 0
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
    assert re.search(r"\d+\.\d/20\.2 MB .*\d+\.\d MB/s 0:00:0\d left", plain), plain[-2000:]
    assert "digits-q8 is on disk" in plain
