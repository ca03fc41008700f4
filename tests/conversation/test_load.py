"""From files to a session: what one start reads and makes, and how a lighter model replaces one that is too slow."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from paths import DEMO, DIGITS

from msh_mlx.cli import bench, say, serve, server_program, transcribe
from msh_mlx.cli.main import main
from msh_mlx.conversation import codec
from msh_mlx.conversation.codec import Mimi
from msh_mlx.conversation.live import NullSink
from msh_mlx.conversation.load import load_session, step_down
from msh_mlx.conversation.shared import SharedModel
from msh_mlx.errors import InputError
from msh_mlx.events import Failed, ModelInUse, Notice, Ready
from msh_mlx.library.suited import SLOW, Selection, load_library
from msh_mlx.net.audio_service import AudioService
from msh_mlx.system.signals import Signals
from msh_mlx.weights import checkpoint, load, lora
from msh_mlx.weights.safetensors import read_header

OWN = "weights/own/model.q8.safetensors"
NAMES = {
    "model.q8.safetensors": "model.q8.safetensors",
    "mimi.safetensors": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer.model": "tokenizer_spm_32k_3.model",
    "config.json": "config.json",
}


@pytest.fixture
def own(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which `weights/` has the demo model, as one of the user's own."""
    folder = tmp_path / "weights" / "own"
    folder.mkdir(parents=True)
    for file, name in NAMES.items():
        shutil.copy(DEMO / file, folder / name)
    monkeypatch.chdir(tmp_path)


class Counts:
    """Headers that were read, by the names of the files, and language models that were made."""

    def __init__(self) -> None:
        self.headers: list[str] = []
        self.models = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counted, make = Counts(), load.load

    def counting_read(path: Path) -> Any:
        counted.headers.append(Path(path).name)
        return read_header(path)

    def counting_make(*args: Any, **options: Any) -> Any:
        counted.models += 1
        return make(*args, **options)

    for module in (checkpoint, lora):
        monkeypatch.setattr(module, "read_header", counting_read)
    monkeypatch.setattr(load, "load", counting_make)
    return counted


class Silence:
    """A source: nothing is heard."""

    def read(self, n: int, timeout: float) -> None:
        return None

    def backlog(self) -> float:
        return 0.0

    def trim(self, keep: float) -> float:
        return 0.0


def live(monkeypatch: pytest.MonkeyPatch, *args: str) -> list[ModelInUse]:
    """Begin a live conversation without devices, up to the moment at which the model listens."""
    told: list[Any] = []

    def talk(make: Any, options: Any, signals: Any) -> int:
        over = threading.Event()

        def hear(event: Any) -> None:
            told.append(event)
            if isinstance(event, Ready | Failed):
                over.set()

        pipeline = make(Silence(), NullSink(), hear, 0.4)
        pipeline.start()
        assert over.wait(60)
        assert pipeline.stop(60)
        assert pipeline.failure is None
        return 0

    monkeypatch.setattr("msh_mlx.live.talk.talk", talk)
    assert main([*args, "--plain"]) == 0
    return [event for event in told if isinstance(event, ModelInUse)]


# A checkpoint holds no model, so that it keeps no weights alive when a lighter one takes their place, and what MLX makes is
# made on the thread that computes with it.
ONE_START = (["model.q8.safetensors"], 1)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("option", ["--variant", "--model"])
def test_a_start_with_a_recording_reads_one_header_and_makes_one_model(option: str, counts: Counts) -> None:
    assert main([option, OWN, "--input", str(DIGITS), "--transcript", "said.jsonl", "--steps", "3", "--plain"]) == 0
    assert (counts.headers, counts.models) == ONE_START


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("option", ["--variant", "--model"])
def test_a_live_start_does_so_too(option: str, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live(monkeypatch, option, OWN) == [ModelInUse(8)]
    assert (counts.headers, counts.models) == ONE_START


def test_the_demo_has_no_smaller_model(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live(monkeypatch, "--demo") == []
    assert (counts.headers, counts.models) == ONE_START


@pytest.mark.usefixtures("own")
def test_a_server_does_so_too(counts: Counts, precisions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: Any, *_: Any) -> int:
        model = SharedModel()
        await asyncio.to_thread(self._load, [model], AudioService())
        model.close()
        return 0

    monkeypatch.setattr(server_program.Program, "run", run)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)  # of this process, too
    # Not by `main`, which a server lets end the process.
    with Signals() as signals:
        more = ["--codec-weights", "float16"]
        assert serve.run(["--variant", OWN, "--port", "0", "--static", "none", *more], signals) == 0
    assert (counts.headers, counts.models) == ONE_START
    assert precisions == ["float16"]


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the weights of codecs were asked to be held."""
    asked: list[str] = []

    def load(*args: Any, **options: Any) -> Mimi:
        asked.append(options["weights"])
        return Mimi(*args, **options)

    monkeypatch.setattr(codec, "Mimi", load)
    return asked


def test_all_commands_take_codec_weights(
    precisions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = ["--demo", "--codec-weights", "float16", "--plain"]
    said = str(tmp_path / "said.wav")
    assert main([*half, "--input", str(DIGITS), "--transcript", str(tmp_path / "said.jsonl"), "--steps", "2"]) == 0
    live(monkeypatch, *half[:-1])
    with Signals() as signals:
        assert say.run(["three", *half, "--output", said], signals) == 0
        assert transcribe.run([said, *half], signals) == 0
        assert bench.run(["--codec-weights", "float16", "--steps", "1", "--plain"], signals) == 0
    assert precisions == 5 * ["float16"]
    assert main([*half[:2], "int8"]) == 2
    assert "'int8'" in capsys.readouterr().err


# ---- too slow ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def selection(own: None) -> Selection:
    """Three models that suit this machine, all with the demo's files; the first was chosen."""
    found = load_library()[OWN]
    entries = {name: replace(found, name=name, step_bytes=size) for name, size in (("a", 3), ("b", 2), ("c", 1))}
    return Selection(entries["a"], list(entries.values()), entries)


def test_a_model_that_is_fast_enough_stays(selection: Selection) -> None:
    told: list[Any] = []
    assert step_down(selection, checkpoint.open_checkpoint, load_session, told.append)(SLOW) is None
    assert told == []


def test_one_that_is_too_slow_gives_way_to_the_next_lighter_one(selection: Selection, counts: Counts) -> None:
    told: list[Any] = []
    load = partial(load_session, voice={}, text={}, seed=0)
    lighter = step_down(selection, checkpoint.open_checkpoint, load, told.append)
    first = lighter(0.1)
    assert first
    slow = "is too slow here: three steps in four take 100 ms or more, and a frame lasts 80 ms"
    assert told == [Notice("lighter", f"a {slow}; taking b.", "warning")]
    fractions: list[float] = []
    first(fractions.append).warm_up()
    assert (counts.headers, counts.models) == ONE_START
    assert told[1:] == [ModelInUse(8)]
    assert fractions[-1] == 1.0
    # And so on, until there is none.
    assert lighter(0.1)
    assert lighter(0.1) is None
    assert [event.message for event in told[2:]] == [
        f"b {slow}; taking c.",
        f"c {slow}. There is no lighter model; close other programs.",
    ]
    assert lighter(0.1) is None
    assert len(told) == 4


def test_adapters_go_with_it(selection: Selection) -> None:
    open_model = partial(checkpoint.open_checkpoint, lora=Path("none.safetensors"))
    make = partial(load_session, voice={}, text={}, seed=0)
    load = step_down(selection, open_model, make, lambda event: None)(0.1)
    assert load
    with pytest.raises(InputError, match=r"There is no file none\.safetensors"):
        load(lambda fraction: None)
