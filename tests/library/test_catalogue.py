"""The catalogue of models: what `weights.toml` says, and what is said of wrong ones."""

import dataclasses
import re

import numpy as np
import pytest
from shapes import HIBIKI_1B, HIBIKI_2B, HIBIKI_ZERO, MOSHI, PERSONAPLEX, STT_1B, STT_1B_HEADS, STT_26B, TTS_16B

from msh_mlx.bench import bytes_per_step
from msh_mlx.errors import InputError
from msh_mlx.library import catalogue
from msh_mlx.library.catalogue import (
    HubFile,
    LocalFile,
    find_entry,
    load_catalogue,
    of_use,
    parse_reference,
    read_catalogue,
)
from msh_mlx.model.conditions import Conditions
from msh_mlx.model.parameters import CONDITIONS, parameters
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
non-commercial = true
gated = true
family = "tts"
voices = "me/voices"

[mine.files]
lm = "folder/model.safetensors"
mimi = "file:codec.safetensors"
tokenizer = "hf:you/yours/tokenizer.model@0123abc"
config = "config.json"
voices = "voice@2.safetensors"

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
    assert (entry.family, entry.use, entry.voices) == ("tts", "speech", "me/voices")
    assert entry.gated
    assert entry.non_commercial
    assert entry.is_restricted
    assert entry.files == {
        "lm": HubFile("me/mine", "folder/model.safetensors", "v1", "0" * 64),
        "mimi": LocalFile(tmp_path / "codec.safetensors"),
        "tokenizer": HubFile("you/yours", "tokenizer.model", "0123abc"),
        "config": HubFile("me/mine", "config.json", "v1"),
        "voices": HubFile("me/mine", "voice@2.safetensors", "v1"),
    }


def test_what_is_not_known_is_none(tmp_path):
    text = '[a]\nfiles = {lm = "/x/lm", mimi = "mimi", tokenizer = "~/t"}\n'
    (entry,) = read_catalogue(write(tmp_path, text)).values()
    assert entry.quantization is entry.bits is entry.size is entry.memory is entry.step_bytes is entry.licence is None
    assert (entry.family, entry.use, entry.voices, entry.is_restricted) == ("moshi", "conversation", None, False)
    assert entry.files["lm"] == LocalFile(parse_reference("/x/lm").path)
    assert entry.files["mimi"].path == tmp_path / "mimi"
    assert entry.files["tokenizer"].path.is_absolute()


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


WRONG = {
    "unknown key": (changed("licence =", "license ="), 9, "mine.license is not known"),
    "unknown role": (changed("config =", "configuration ="), 19, "mine.files.configuration is not known"),
    "missing role": (changed('mimi = "file:codec.safetensors"\n', ""), 15, "mine.files has no mimi"),
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
    "family": (
        changed('"tts"', '"csm"'),
        12,
        "mine.family is 'csm'; one of stt, tts, hibiki, personaplex, moshi is expected",
    ),
    "type of a truth": (changed("gated = true", 'gated = "yes"'), 11, "mine.gated is 'yes'; true or false is expected"),
    "truth as a number": (
        changed("commercial = true", "commercial = 1"),
        10,
        "mine.non-commercial is 1; true or false",
    ),
    "voices": (changed('"me/voices"', '"voices"'), 13, "mine.voices is 'voices'; OWNER/NAME"),
    "repository": (changed("me/mine", "mine"), 3, "mine.repository is 'mine'; OWNER/NAME"),
    "way out": (
        changed("folder/model", "../model"),
        16,
        "mine.files.lm is wrong: '../model.safetensors' is not a path",
    ),
    "absolute": (changed("folder/model", "/model"), 16, "mine.files.lm is wrong"),
    "reference": (changed("hf:you/yours/", "hf:you/"), 18, "mine.files.tokenizer is wrong: hf:you/tokenizer"),
    "revision": (changed('"v1"', '"../../x"'), 4, "mine.revision is '../../x'"),
    "hash": (changed('lm = "0000', 'lm = "000'), 23, "mine.sha256.lm is"),
    "hash of nothing": (changed('lm = "0000', 'codec = "0000'), 23, "mine.sha256.codec is not known"),
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
        ("hf:a/b/c@80.safetensors", HubFile("a/b", "c@80.safetensors")),
        ("hf:a/b/c@80.safetensors@v1", HubFile("a/b", "c@80.safetensors", "v1")),
        ("hf:a/b/c@80@main", HubFile("a/b", "c@80")),
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
    names = {use: list(of_use(entries, use)) for use in ("conversation", "translation", "transcription", "speech")}
    assert sum(map(len, names.values())) == len(entries)
    assert names["translation"] == ["hibiki-2b", "hibiki-1b", "hibiki-zero"]
    assert [name for name in names["transcription"] if name.endswith("fr")] == ["stt-1b-en_fr"]
    assert names["speech"] == ["tts-1.6b-en_fr", "tts-0.75b-en"]
    assert [name for name, entry in entries.items() if entry.gated] == ["personaplex-7b"]
    assert [name for name, entry in entries.items() if entry.non_commercial] == [
        "j-moshi",
        "j-moshi-ext",
        "hibiki-zero",
    ]
    for entry in entries.values():
        assert entry.about
        assert entry.licence
        assert ("NC" in entry.licence) == entry.non_commercial
        # Each family but Moshi's says in a configuration what it is; PersonaPlex's does not.
        assert ("config" in entry.files) == (entry.family not in ("moshi", "personaplex"))
        assert entry.bits == (16 if entry.family not in ("moshi", "tts") else entry.bits)
        for file in entry.files.values():
            assert parse_reference(str(file)) == file


def test_the_published_moshi():
    moshi = [entry for entry in load_catalogue().values() if entry.name.startswith("moshi")]
    assert len(moshi) == 8
    for entry in moshi:
        voice, *_, kind = entry.name.split("-")
        layout = "pytorch" if "pytorch" in entry.name else "mlx"
        assert voice in ("moshiko", "moshika")
        assert kind == entry.quantization
        assert entry.licence == "CC-BY 4.0"
        assert {"moshiko": "male", "moshika": "female"}[voice] in re.findall(r"\w+", entry.about)
        assert {file.repository for file in entry.files.values()} == {f"kyutai/{voice}-{layout}-{kind}"}
        assert {file.revision for file in entry.files.values()} == {"main"}


COUNTED = {
    **{f"moshiko-{kind}": MOSHI for kind in ("q4", "q8", "bf16")},
    "personaplex-7b": PERSONAPLEX,
    "j-moshi": MOSHI,
    "hibiki-1b": HIBIKI_1B,
    "hibiki-2b": HIBIKI_2B,
    "hibiki-zero": HIBIKI_ZERO,
    "stt-1b-en_fr": STT_1B_HEADS,
    "stt-1b-en_fr-mlx": STT_1B,
    "stt-2.6b-en": STT_26B,
    "tts-1.6b-en_fr": TTS_16B,
}


def held(config, bits=16):
    """The bytes of a model's parameters by their names: bfloat16, or packed with a scale and a bias for each group."""
    found, group = {}, {4: 32, 8: 64}.get(bits)
    for one in parameters(config):
        packs = group and one.kind != "other" and one.shape[1] % group == 0 and not one.name.startswith(CONDITIONS)
        found[one.name] = int(np.prod(one.shape)) * (bits / 8 + 2 * 2 / group if packs else 2)
    return found


def measured(config, bits=16, dtype="bfloat16"):
    """A model as MLX's engine would hold it. Nothing of it is computed."""
    mx, nn = pytest.importorskip("mlx.core"), pytest.importorskip("mlx.nn")
    from msh_mlx.model.mlx.lm import Lm
    from msh_mlx.model.mlx.model import MlxModel

    lm = Lm(config)
    lm.set_dtype(getattr(mx, dtype))
    if bits < 16:
        nn.quantize(lm, group_size={4: 32, 8: 64}[bits], bits=bits)
    return MlxModel(lm, Conditions({}, {}))


def in_a_file(config, bits=16):
    """The bytes of a model's tensors in PyTorch's layout, where the depformer's norms are there once for all codebooks.

    Of PersonaPlex's file, half of the depformer is left out here.
    """
    found = {re.sub(r"slices\.\d+\.(.*norm\d)", r"\1", name): size for name, size in held(config, bits).items()}
    return sum(found.values())


@pytest.mark.parametrize("name", COUNTED)
def test_what_the_catalogue_says_of_sizes_is_counted(name):
    entry, config = load_catalogue()[name], COUNTED[name]
    bits = entry.bits if entry.bits in (4, 8) else 16
    keys = config.context * config.dim // config.kv_repeat
    kept = config.num_layers * 2 * 2 * (keys + (625 * config.dim if config.cross_attention else 0))
    near = {"abs": 0.06e9}
    if entry.size is not None:
        codec = 385_000_000
        more = 16_740_000_000 - 15_375_630_336 if name == "personaplex-7b" else 0  # the half that is not run
        assert entry.size == pytest.approx(in_a_file(config, bits) + more + codec, **near)
    assert entry.memory == pytest.approx(sum(held(config, bits).values()) + kept + 1e9, **near)


@pytest.mark.parametrize("name", COUNTED)
def test_what_the_catalogue_says_of_steps_is_counted(name):
    entry, config = load_catalogue()[name], COUNTED[name]
    lm = measured(config, entry.bits if entry.bits in (4, 8) else 16)
    assert entry.step_bytes == pytest.approx(bytes_per_step(lm, config.context), abs=0.06e9)


def test_the_size_of_a_file_that_is_known_exactly():
    """What the hub says of two files, less the header of each, which has some 90 bytes for each tensor."""
    for config, said, tensors in ((HIBIKI_1B, 3_600_043_224, 430), (HIBIKI_2B, 5_574_762_720, 400)):
        counted = sum(held(config).values()) if config is HIBIKI_1B else in_a_file(config)
        assert abs(said - counted) < 140 * tensors


def test_bytes_of_a_step_with_guidance_and_less_than_all():
    lm = measured(HIBIKI_1B)
    keys = 2 * 2 * HIBIKI_1B.dim * HIBIKI_1B.num_layers  # and values of a position
    assert bytes_per_step(lm, 100, rows=2) - bytes_per_step(lm, 100) == 100 * keys
    assert bytes_per_step(lm, 100) - bytes_per_step(lm, 60) == 40 * keys
    small = dataclasses.replace(TTS_16B, text_card=80)
    more = bytes_per_step(measured(TTS_16B, dtype="float32")) - bytes_per_step(measured(small, dtype="float32"))
    assert more == 4 * (8000 - 80) * 2048  # only `text_linear` is read whole, in float32 here


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
