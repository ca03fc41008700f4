"""The options of transcription and speech of `msh-mlx serve`."""

import shutil
from pathlib import Path

import pytest
from paths import DEMO

from msh_mlx.cli import serve, served_audio
from msh_mlx.cli.served_audio import choose_audio, model_name, wyoming_address, wyoming_name
from msh_mlx.errors import InputError
from msh_mlx.system.signals import Signals


def checked(*options):
    args = serve.parser().parse_args([*options, "--plain"])
    serve.check(args)
    return args


@pytest.fixture
def folder(tmp_path):
    """A folder with a speech-to-text model and all that belongs to it."""
    for file in (DEMO / "stt" / "model.safetensors", DEMO / "stt" / "config.json", DEMO / "tokenizer.model"):
        shutil.copy(file, tmp_path)
    shutil.copy(DEMO / "mimi.safetensors", tmp_path / "mimi-demo.safetensors")
    return tmp_path


def test_the_demo_has_all():
    args = checked("--demo")
    assert (args.stt, args.tts) == ("demo", "demo")
    args = checked("--demo", "--stt", "none", "--tts", "none")
    assert (args.stt, args.tts) == (None, None)
    assert checked("--model", "x").stt is None
    with Signals() as signals:
        chosen = choose_audio(checked("--demo"), signals)
    assert chosen.names == ("demo-stt", "demo-tts")
    assert chosen.languages == (["en"], ["en"])
    assert list(chosen.voices) == ["default", "brisk", "calm"]


def test_a_voice_is_chosen():
    with Signals() as signals:
        for voice in ("calm", str(DEMO / "tts" / "voices" / "calm.d161752e@1.safetensors")):
            chosen = choose_audio(checked("--demo", "--tts-voice", voice), signals)
            assert list(chosen.voices) == ["calm", "brisk"]
        with pytest.raises(InputError, match="There is no voice 'nobody'"):
            choose_audio(checked("--demo", "--tts-voice", "nobody"), signals)


def test_a_model_is_a_file_or_a_folder(folder, monkeypatch):
    with Signals() as signals:
        for name in (folder, folder / "model.safetensors"):
            chosen = choose_audio(checked("--demo", "--stt", str(name)), signals)
            assert chosen.names[0] == folder.name
            assert chosen.stt.files.tokenizer == folder / "tokenizer.model"
        (folder / "model.safetensors").rename(folder / "stt-9b-fr_de.safetensors")
        chosen = choose_audio(checked("--stt", str(folder), "--no-conversations"), signals)
        assert (model_name(chosen.stt), chosen.languages[0]) == ("stt-9b-fr_de", ["fr", "de"])
        shutil.copy(folder / "stt-9b-fr_de.safetensors", folder / "other.safetensors")
        with pytest.raises(
            InputError, match=r"2 models \(other.safetensors and stt-9b-fr_de.safetensors\); name the file"
        ):
            choose_audio(checked("--stt", str(folder), "--no-conversations"), signals)
        with pytest.raises(InputError, match="no model"):
            choose_audio(checked("--stt", str(folder.parent), "--no-conversations"), signals)
        with pytest.raises(InputError, match="use 'msh-mlx say'"):
            choose_audio(checked("--demo", "--stt", str(DEMO / "tts" / "model.safetensors")), signals)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--no-conversations"], "--no-conversations leaves nothing to serve; give --stt or --tts"),
        (["--demo", "--no-conversations", "--stt", "none", "--tts", "none"], "leaves nothing to serve"),
        (["--tts-voice", "calm"], "--tts-voice is for a model that speaks"),
        (["--wyoming"], "--wyoming has nothing to serve"),
        (["--demo", "--wyoming", "home"], "--wyoming home is not an address; give one like 0.0.0.0:10300"),
        (["--demo", "--wyoming", "0.0.0.0:99999"], "is not an address"),
        (["--stt", ""], "--stt is empty"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        checked(*options)


def test_addresses_of_wyoming():
    assert checked("--demo", "--wyoming", "--host", "0.0.0.0").wyoming == ("0.0.0.0", 10300)
    assert wyoming_address("9000", "localhost") == ("localhost", 9000)
    assert wyoming_address("192.0.2.1:0", "localhost") == ("192.0.2.1", 0)
    assert wyoming_address("[::]:10301", "localhost") == ("::", 10301)
    assert wyoming_name("msh-mlx", "häuschen.local", 10300) == "msh-mlx on h-uschen-local"
    assert wyoming_name("msh-mlx", "x" * 100, 9000).endswith("x 9000")


def test_a_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setattr(served_audio, "find_spec", lambda name: None if name == "zeroconf" else name)
    with pytest.raises(InputError, match=r"pip install 'msh-mlx\[wyoming\]'"):
        checked("--demo", "--wyoming")


def test_nothing_of_wyoming_is_imported_without_the_option():
    """The package is an extra."""
    for path in Path(serve.__file__).parents[1].rglob("*.py"):
        if path.name != "wyoming_server.py":
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [
                line for line in lines if line.startswith(("import wyoming", "from wyoming", "from ..net.wyoming"))
            ]
