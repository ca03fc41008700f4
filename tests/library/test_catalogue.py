"""The catalogue of models: what `weights.toml` says, and what is said of wrong ones."""

import dataclasses
import re

import mlx.core as mx
import mlx.nn as nn
import pytest

from msh_mlx.bench import bytes_per_step
from msh_mlx.errors import InputError
from msh_mlx.library import catalogue
from msh_mlx.library.catalogue import HubFile, LocalFile, find_entry, load_catalogue, parse_reference, read_catalogue
from msh_mlx.model.attention import RingFormat
from msh_mlx.model.config import LmConfig
from msh_mlx.model.lm import Lm
from msh_mlx.system.places import asset

GOOD = """\
[mine]
about = "A model of mine"
repository = "me/mine"
revision = "v1"
quantization = "q8"
size = 1_000
memory = 2000
step-bytes = 900
licence = "MIT"

[mine.files]
lm = "folder/model.safetensors"
mimi = "file:codec.safetensors"
tokenizer = "hf:you/yours/tokenizer.model@0123abc"
config = "config.json"

[mine.sha256]
lm = "0000000000000000000000000000000000000000000000000000000000000000"
"""


@pytest.fixture(autouse=True)
def no_user_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_an_entry(tmp_path):
    (entry,) = read_catalogue(write(tmp_path, GOOD)).values()
    assert (entry.name, entry.about, entry.licence) == ("mine", "A model of mine", "MIT")
    assert (entry.size, entry.memory, entry.step_bytes, entry.bits) == (1000, 2000, 900, 8)
    assert entry.files == {
        "lm": HubFile("me/mine", "folder/model.safetensors", "v1", "0" * 64),
        "mimi": LocalFile(tmp_path / "codec.safetensors"),
        "tokenizer": HubFile("you/yours", "tokenizer.model", "0123abc"),
        "config": HubFile("me/mine", "config.json", "v1"),
    }


def test_what_is_not_known_is_none(tmp_path):
    text = '[a]\nfiles = {lm = "/x/lm", mimi = "mimi", tokenizer = "~/t"}\n'
    (entry,) = read_catalogue(write(tmp_path, text)).values()
    assert entry.quantization is entry.bits is entry.size is entry.memory is entry.step_bytes is entry.licence is None
    assert entry.files["lm"] == LocalFile(parse_reference("/x/lm").path)
    assert entry.files["mimi"].path == tmp_path / "mimi"
    assert entry.files["tokenizer"].path.is_absolute()


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


WRONG = {
    "unknown key": (changed("licence =", "license ="), 9, "mine.license is not known"),
    "unknown role": (changed("config =", "configuration ="), 15, "mine.files.configuration is not known"),
    "missing role": (changed('mimi = "file:codec.safetensors"\n', ""), 11, "mine.files has no mimi"),
    "no files": ('[mine]\nabout = "x"\n', 1, "mine has no files"),
    "type of a number": (changed("1_000", '"1 GB"'), 6, "mine.size is '1 GB'; a number of bytes"),
    "a number of many digits": (changed("1_000", "0x" + "f" * 5000), 6, "mine.size is "),
    "a long text": (changed('"q8"', f'"{"q" * 999}"'), 5, "mine.quantization is 'qqq"),
    "a number below one": (changed("2000", "-1"), 7, "mine.memory is -1"),
    "true as a number": (changed("2000", "true"), 7, "mine.memory is True"),
    "a float": (changed("900", "9e2"), 8, "mine.step-bytes is 900.0"),
    "type of a text": (changed('"A model of mine"', "7"), 2, "mine.about is 7; text is expected"),
    "two lines": (changed('"A model of mine"', '"a\\nb"'), 2, "mine.about is"),
    "several lines": (changed('"A model of mine"', "[\n1,\n2,\n]"), 5, "mine.about is"),
    "quantization": (changed('"q8"', '"8"'), 5, "mine.quantization is '8'; one of q4, q6, q8, bf16 is expected"),
    "repository": (changed("me/mine", "mine"), 3, "mine.repository is 'mine'; OWNER/NAME"),
    "way out": (
        changed("folder/model", "../model"),
        12,
        "mine.files.lm is wrong: '../model.safetensors' is not a path",
    ),
    "absolute": (changed("folder/model", "/model"), 12, "mine.files.lm is wrong"),
    "reference": (changed("hf:you/yours/", "hf:you/"), 14, "mine.files.tokenizer is wrong: hf:you/tokenizer"),
    "revision": (changed('"v1"', '"../../x"'), 4, "mine.revision is '../../x'"),
    "hash": (changed('lm = "0000', 'lm = "000'), 18, "mine.sha256.lm is"),
    "hash of nothing": (changed('lm = "0000', 'codec = "0000'), 18, "mine.sha256.codec is not known"),
    "hash without files": (f'[a]\nfiles = {{}}\nsha256 = {{lm = "{"0" * 64}"}}\n', 2, "a.files has no lm"),
    "no table": ("x = 1\n" + GOOD, 1, "x is not a table"),
    "files no table": ('[a]\nfiles = "x"\n', 2, "a.files is not a table"),
    "name": (changed("[mine]", '["m ine"]\nfiles = {}\n[mine]'), 1, "m ine is not a name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_name_the_line(tmp_path, case):
    text, line, what = WRONG[case]
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_catalogue(path)
    assert str(caught.value).startswith(f"{path}, line {line}: {what}")
    assert str(caught.value).endswith(".")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"[a\n", r"not valid TOML: .*line 1"),
        (b"[a]\n[a]\n", "not valid TOML: .*line 2"),
        (b"a = \xff\n", "not in UTF-8"),
        (
            b"#" * (1 << 20) + b"\n",
            r"^The catalogue \S+ has more than 1 MiB, so it is something else; give another file\.$",
        ),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"a = " + b"9" * 5000, "not valid TOML|is not a table"),
    ],
)
def test_what_is_not_a_catalogue(tmp_path, raw, what):
    with pytest.raises(InputError, match=what):
        read_catalogue(write(tmp_path, raw))


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="There is no catalogue"):
        read_catalogue(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"^The catalogue \S+ is a folder; give the file in it\.$"):
        read_catalogue(tmp_path)


def test_own_entries_come_beside_and_before(tmp_path):
    published = load_catalogue()
    own = catalogue.user_file()
    own.parent.mkdir(parents=True)
    own.write_text(GOOD)
    assert list(load_catalogue()) == [*published, "mine"]
    more = write(tmp_path, GOOD.replace("[mine", "[moshiko-q8").replace("of mine", "of hers"))
    entries = load_catalogue(more)
    assert list(entries) == [*published, "mine"]
    assert entries["moshiko-q8"].about == "A model of hers"
    assert entries["moshiko-q8"].source == more
    with pytest.raises(InputError, match=r"There is no model 'x' in the catalogue, only moshiko-bf16, .* and mine"):
        find_entry(entries, "x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf:a/b/c/d.x", HubFile("a/b", "c/d.x")),
        ("hf://a/b/c@v1", HubFile("a/b", "c", "v1")),
        ("hf:a/b/c@refs/pr/1", HubFile("a/b", "c", "refs/pr/1")),
    ],
)
def test_references(text, found):
    assert parse_reference(text) == found
    assert parse_reference(str(found)) == found


def test_references_to_files(tmp_path):
    assert str(parse_reference("file:/a/b")) == "/a/b" == str(parse_reference("file:///a/b"))
    assert parse_reference("a:b").path.name == "a:b"
    assert parse_reference("file:a", tmp_path) == LocalFile(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["hf:", "hf:a", "hf:a/b", "hf:a/b/", "hf:a/b/../c", "hf:a b/c/d", "hf:a/b/c@../d", "", "file:", "a\0"]
)
def test_wrong_references(text):
    with pytest.raises(InputError, match="names no file"):
        parse_reference(text)


def test_the_published_models():
    entries = load_catalogue()
    assert len(entries) == 8
    for entry in entries.values():
        voice, *_, kind = entry.name.split("-")
        layout = "pytorch" if "pytorch" in entry.name else "mlx"
        assert voice in ("moshiko", "moshika")
        assert kind == entry.quantization
        assert entry.licence == "CC-BY 4.0"
        assert {"moshiko": "male", "moshika": "female"}[voice] in re.findall(r"\w+", entry.about)
        assert {file.repository for file in entry.files.values()} == {f"kyutai/{voice}-{layout}-{kind}"}
        assert {file.revision for file in entry.files.values()} == {"main"}


@pytest.mark.parametrize("kind", ["q4", "q8", "bf16"])
def test_what_the_catalogue_says_of_sizes_is_counted(kind):
    entry = load_catalogue()[f"moshiko-{kind}"]
    config = LmConfig()
    lm = Lm(config)
    lm.set_dtype(mx.bfloat16)
    if kind != "bf16":
        nn.quantize(lm, group_size={"q4": 32, "q8": 64}[kind], bits=entry.bits)
    weights = sum(array.nbytes for _, array in lm.named_parameters())
    ring = RingFormat(config.num_heads, config.dim // config.num_heads, mx.bfloat16, None)
    codec = 385_000_000
    near = {"abs": 0.06e9}
    assert entry.size == pytest.approx(weights + codec, **near)
    assert entry.memory == pytest.approx(weights + config.num_layers * ring.nbytes(config.context) + 1e9, **near)
    assert entry.step_bytes == pytest.approx(bytes_per_step(lm, config.context), **near)


def test_entries_cannot_be_changed():
    entry = next(iter(load_catalogue().values()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.name = "x"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark(encoding, tmp_path):
    text = asset("weights.toml", "The catalogue of models").read_text(encoding="utf-8")
    (tmp_path / "plain.toml").write_text(text, encoding="utf-8")
    (tmp_path / "marked.toml").write_text(text, encoding=encoding)
    plain, marked = (read_catalogue(tmp_path / f"{name}.toml") for name in ("plain", "marked"))
    assert list(marked) == list(plain)
    assert [entry.files for entry in marked.values()] == [entry.files for entry in plain.values()]
