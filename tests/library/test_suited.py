"""Which model suits which machine, what is found on disk, what is removed, and how a model is obtained."""

import codecs
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from paths import DEMO, GOLDEN

from msh_mlx.errors import InputError, MshError, UnreachableError
from msh_mlx.library import cache as hf_cache
from msh_mlx.library import suited as library
from msh_mlx.library.cache import Watch
from msh_mlx.library.catalogue import HubFile, LocalFile, load_catalogue, of_use, read_catalogue
from msh_mlx.library.suited import Machine, Selection, judge, load_library, obtain, repository_entry, suitable
from msh_mlx.weights.checkpoint import open_checkpoint
from msh_mlx.weights.load import load_lm

GIB = 1 << 30
DATA = np.random.default_rng(0).bytes(50_000)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path, cache):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


def put(entry, commit="0" * 40):
    """Lay a model's files into the cache, as the hub's own programs do."""
    for file in entry.files.values():
        folder = hf_cache.repository_folder(file.repository)
        blob = folder / "blobs" / f"{abs(hash(file.path)):064x}"
        for path in (blob.parent, hf_cache.pointer(file, commit).parent, folder / "refs"):
            path.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(DATA)
        if not hf_cache.pointer(file, commit).exists():
            hf_cache.pointer(file, commit).symlink_to(Path("../../blobs") / blob.name)
        (folder / "refs" / file.revision).write_text(commit)


# ---- the rule ------------------------------------------------------------------------------------------------------------


def conversations():
    return of_use(load_catalogue(), "conversation")


MACHINES = [
    # memory in GiB, bandwidth in GB/s: which model of the catalogue is the best
    (8, 68, None),  # M1
    (8, 300, None),
    (16, 68, None),
    (16, 100, None),  # M2
    (16, 120, None),  # M4
    (16, 150, "moshiko-q4"),  # M3 Pro
    (16, 200, "moshiko-q4"),  # M1 Pro
    (16, 273, "moshiko-q8"),  # M4 Pro
    (32, 200, "moshiko-q4"),
    (24, 400, "moshiko-bf16"),  # Max
    (16, 800, "moshiko-q8"),
    (64, 400, "moshiko-bf16"),
    (64, 300, "moshiko-q8"),
    (128, 800, "moshiko-bf16"),  # Ultra
]


@pytest.mark.parametrize(("memory", "bandwidth", "best"), MACHINES)
def test_the_best_model(memory, bandwidth, best):
    machine = Machine(memory * GIB, bandwidth * 1e9)
    entries = conversations()
    found = suitable(entries, machine)
    assert (found[0].name if found else None) == best
    # The rule, said again.
    for entry in entries.values():
        fits = entry.memory <= 3 / 4 * memory * GIB and entry.memory <= memory * GIB - 4 * GIB
        fast = entry.step_bytes / bandwidth / 1e9 <= 0.045
        named = entry.name.startswith(("persona", "j-moshi"))  # gated, or not for commercial use: only if it is named
        assert (entry in found) == (fits and fast and not named)
        assert judge(entry, machine).suits == (fits and fast)


@pytest.mark.parametrize(
    ("memory", "bandwidth", "best"),
    [
        (8, 30, {"translation": None, "transcription": None, "speech": None}),
        (8, 68, {"translation": None, "transcription": "stt-1b-en_fr", "speech": None}),  # M1
        (16, 100, {"translation": "hibiki-1b", "transcription": "stt-1b-en_fr", "speech": None}),  # M2
        (16, 273, {"translation": "hibiki-2b", "transcription": "stt-1b-en_fr", "speech": "tts-1.6b-en_fr"}),  # M4 Pro
    ],
)
def test_the_best_model_for_another_use(memory, bandwidth, best):
    machine = Machine(memory * GIB, bandwidth * 1e9)
    for use, name in best.items():
        found = suitable(of_use(load_catalogue(), use), machine)
        assert (found[0].name if found else None) == name
        assert all(entry.use == use for entry in found)


def test_what_is_on_disk_comes_first():
    machine, entries = Machine(64 * GIB, 800e9), conversations()
    assert suitable(entries, machine)[0].name == "moshiko-bf16"
    put(entries["moshika-q4"])
    assert [entry.name for entry in suitable(entries, machine)][:2] == ["moshika-q4", "moshiko-bf16"]
    put(entries["moshiko-q8"])
    assert [entry.name for entry in suitable(entries, machine)][:2] == ["moshiko-q8", "moshika-q4"]
    put(entries["j-moshi"])
    assert [entry.name for entry in suitable(entries, machine)][:2] == ["moshiko-q8", "moshika-q4"]
    # But not what is too much for the machine.
    assert suitable(entries, Machine(16 * GIB, 150e9))[0].name == "moshika-q4"


@pytest.mark.parametrize("gone", ["lm", "mimi", "tokenizer"])
def test_an_incomplete_model_is_not_on_disk(gone):
    entry = load_catalogue()["moshiko-q8"]
    put(entry)
    assert hf_cache.is_on_disk(entry)
    hf_cache.blob_of(hf_cache.find(entry.files[gone])).unlink()  # a link to nothing is left
    assert not hf_cache.is_on_disk(entry)
    assert hf_cache.missing(entry) == [entry.files[gone]]


def test_a_model_that_nothing_is_known_of_is_not_chosen():
    entry = replace(load_catalogue()["moshiko-q4"], memory=None)
    verdict = judge(entry, Machine(1 << 40, 1e15))
    assert (verdict.suits, verdict.words) == (False, "not known")


def test_lighter_models_of_the_same_voice_first():
    entries = conversations()
    suited = suitable(entries, Machine(64 * GIB, 800e9))
    steps = []
    selection = Selection(entries["moshika-bf16"], suited, entries)
    while selection:
        steps.append(selection.entry.name)
        selection = selection.lighter()
    assert steps == ["moshika-bf16", "moshika-q8", "moshika-q4"]
    put(entries["moshika-q4"])
    suited = suitable(entries, Machine(64 * GIB, 800e9))
    assert Selection(entries["moshika-bf16"], suited, entries).lighter().entry.name == "moshika-q4"  # on disk


def test_this_machine_is_measured():
    machine = library.this_machine()
    assert 1e9 < machine.bandwidth < 1e13
    assert machine.memory > GIB
    assert machine.room <= machine.memory - 4 * GIB


# ---- weights/ ------------------------------------------------------------------------------------------------------------

PUBLISHED = ("model.q8.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model")


def lay(folder, names=PUBLISHED):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(DATA)


def test_models_that_were_downloaded_by_hand():
    lay(Path("weights"))
    lay(Path("weights/other"), [*PUBLISHED[1:], "model.safetensors", "config.json"])
    own = {name: entry for name, entry in load_library().items() if name not in load_catalogue()}
    assert list(own) == ["weights/model.q8.safetensors", "weights/other/model.safetensors"]
    first, second = own.values()
    assert (first.quantization, second.quantization) == ("q8", "bf16")
    assert "config" not in first.files
    assert second.files["config"] == LocalFile(Path("weights/other/config.json"))
    assert first.size == 3 * len(DATA)
    assert suitable(own, Machine(64 * GIB, 800e9)) == [second, first]


def test_models_of_other_families_that_were_downloaded_by_hand():
    """Their files have other names, which the configuration says."""
    for folder, name in (("heard", "stt"), ("said", "tts")):
        lay(Path("weights") / folder, ["mimi-1.safetensors", "tokenizer_1.model", "some@2.q8.safetensors"])
        config = json.loads((DEMO / name / "config.json").read_text()) | {"moshi_name": "some@2.q8.safetensors"}
        (Path("weights") / folder / "config.json").write_text(json.dumps(config))
    own = [entry for name, entry in load_library().items() if name not in load_catalogue()]
    assert [entry.name for entry in own] == [f"weights/{name}/some@2.q8.safetensors" for name in ("heard", "said")]
    assert [(entry.use, entry.quantization) for entry in own] == [("transcription", "q8"), ("speech", "q8")]
    assert [entry.files["mimi"].path.name for entry in own] == ["mimi-1.safetensors"] * 2
    # What attention keeps is that of the configuration, not Moshi's.
    assert all(entry.memory - 1_000_000_000 < 50_000_000 for entry in own)


def test_a_personaplex_that_was_downloaded_by_hand():
    """Its configuration says nothing of the model: the file itself tells, by the user's codes that it predicts."""
    lay(Path("weights"), [*PUBLISHED[1:], "model.safetensors"])
    shutil.copy(GOLDEN / "personaplex-small" / "lm.safetensors", "weights/model.safetensors")
    config = json.loads((GOLDEN / "personaplex-small" / "config.json").read_text())
    Path("weights/config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "model_type"} | {"dep_q": 4})
    )
    assert load_library()["weights/model.safetensors"].family == "personaplex"


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("how", ["empty", "gone", "link", "folder"])
def test_what_is_incomplete_there_is_none(name, how):
    lay(Path("weights"))
    path = Path("weights") / name
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "link":
        path.symlink_to("none")
    elif how == "folder":
        path.mkdir()
    assert load_library() == load_catalogue()


# ---- obtaining -----------------------------------------------------------------------------------------------------------

MINE = """
[mine-q8]
repository = "us/model"
files.lm = "model.safetensors"
files.mimi = "mimi.safetensors"
files.tokenizer = "tokenizer.model"

[mine-q4]
files.lm = "hf:us/other/lm.safetensors@v1"
files.mimi = "hf:us/model/mimi.safetensors"
files.tokenizer = "file:own.model"
"""
FILES = {"model.safetensors": DATA, "mimi.safetensors": DATA[::-1], "tokenizer.model": DATA[:100]}


@pytest.fixture
def mine(server):
    server.add("us/model", FILES)
    server.add("us/other", {"lm.safetensors": DATA[1:]}, "v1")
    path = Path("mine.toml")
    path.write_text(MINE)
    Path("own.model").write_bytes(b"own")
    return read_catalogue(path.absolute())


def quiet():
    said = []
    return said, Watch(say=said.append)


def test_obtaining(mine, server):
    said, watch = quiet()
    files = obtain(mine["mine-q8"], mine, watch)
    assert [path.read_bytes() for path in files.all] == list(FILES.values())
    host = server.url.removeprefix("http://")
    assert said == [f"Fetching mine-q8 from {host} into {constants.HF_HUB_CACHE}: 0.1 MB in 3 files"]
    # Only what the other model has of its own.
    said.clear()
    files = obtain(mine["mine-q4"], mine, watch)
    assert [path.read_bytes() for path in files.all] == [DATA[1:], DATA[::-1], b"own"]
    assert said[0].endswith("MB in 1 file")
    server.down()
    assert obtain(mine["mine-q8"], mine, watch).all


def test_a_branch_that_moved_between_two_files(mine, server):
    watch = quiet()[1]
    obtain(mine["mine-q8"], mine, watch)
    server.add("us/model", FILES | {"tokenizer.model": DATA[:200]})
    hf_cache.find(mine["mine-q8"].files["tokenizer"]).unlink()
    files = obtain(mine["mine-q8"], mine, watch)
    assert files.tokenizer.read_bytes() == DATA[:200]
    assert len({path.parent for path in files.all}) == 1


def test_without_network(mine, server):
    _, watch = quiet()
    server.down()
    with pytest.raises(UnreachableError, match="without a network, only --demo works"):
        obtain(mine["mine-q8"], mine, watch)
    server.up()
    obtain(mine["mine-q8"], mine, watch)
    server.down()
    with pytest.raises(UnreachableError) as caught:
        obtain(mine["mine-q4"], mine, watch)
    assert re.fullmatch(
        r"127\.0\.0\.1:\d+ cannot be reached \(Connection refused\), and lm\.safetensors of mine-q4 is not on this disk; "
        r"without a network, mine-q8 can be used\.",
        str(caught.value),
    )


def test_files_of_ones_own_that_are_not_there(mine):
    Path("own.model").unlink()
    with pytest.raises(InputError, match=r"The tokenizer of mine-q4, .*own\.model, is not there"):
        obtain(mine["mine-q4"], mine, quiet()[1])


PUBLIC = dict.fromkeys(PUBLISHED, DATA)


def described(server, files, bits=None):
    server.add("us/repo", files)
    entry = repository_entry("us/repo", bits, quiet()[1])
    return {role: file.path for role, file in entry.files.items()}


def test_repositories_of_the_published_form(server):
    q8, mimi, tokenizer = PUBLISHED
    names = {"lm": q8, "mimi": mimi, "tokenizer": tokenizer}
    assert described(server, PUBLIC) == names
    assert described(server, PUBLIC, 8) == names
    more = PUBLIC | {"model.q4.safetensors": DATA, "README.md": b"x"}
    assert described(server, more, 4) == {**names, "lm": "model.q4.safetensors"}
    assert described(server, more) == names
    assert described(server, more | {"model.safetensors": DATA})["lm"] == "model.safetensors"
    with_config = PUBLIC | {
        "config.json": b'{"moshi_name": "lm.safetensors", "mimi_name": "m"}',
        "lm.safetensors": DATA,
        "m": DATA,
    }
    assert described(server, with_config) == {
        "lm": "lm.safetensors", "mimi": "m", "tokenizer": tokenizer, "config": "config.json"
    }  # fmt: skip
    marked = with_config | {"config.json": codecs.BOM_UTF8 + with_config["config.json"]}
    assert described(server, marked) == described(server, with_config)
    assert described(server, PUBLIC | {"config.json": b"[nonsense"})["lm"] == q8


@pytest.mark.parametrize(
    ("files", "bits", "what"),
    [
        ({"README.md": b"x"}, None, "us/repo has no model; give"),
        (
            {"model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": DATA},
            None,
            r"us/repo has its model in several files \(model.safetensors.index.json\); give a model that is in one file",
        ),
        (PUBLIC, 4, r"us/repo has no model of 4 bits \(model.q4.safetensors\)"),
        ({name: DATA for name in PUBLISHED if "spm" not in name}, None, "no tokenizer"),
        (PUBLIC | {"tokenizer-2.safetensors": DATA}, None, "2 files that could be the codec"),
    ],
)
def test_repositories_of_another_form(server, files, bits, what):
    with pytest.raises(InputError, match=what):
        described(server, files, bits)


def test_repositories_of_other_families(server):
    """Their files have names of their own, which the configuration says, as at kyutai/hibiki-2b-mlx-bf16."""
    config = json.loads((DEMO / "stt" / "config.json").read_text())
    names = {"moshi_name": "heard@80.safetensors", "mimi_name": "mimi-1@2.safetensors", "tokenizer_name": "some.model"}
    files = dict.fromkeys(names.values(), DATA) | {"mimi-2.safetensors": DATA, "voices.tgz": DATA}
    server.add("us/heard", files | {"config.json": json.dumps(config | names).encode()})
    entry = repository_entry("us/heard", None, quiet()[1])
    assert [file.path for file in entry.files.values()] == [*names.values(), "config.json", "voices.tgz"]
    assert (entry.family, entry.use) == ("stt", "transcription")
    # Without a configuration: by names as the published ones.
    found = described(server, {"model.safetensors": DATA, "mimi-1@2.safetensors": DATA, "tokenizer_1.model": DATA})
    assert list(found.values()) == ["model.safetensors", "mimi-1@2.safetensors", "tokenizer_1.model"]


def test_a_repository_without_network(server):
    described(server, PUBLIC)
    obtain(repository_entry("us/repo", None, quiet()[1]), {}, quiet()[1])
    server.down()
    entry = repository_entry("us/repo", None, quiet()[1])
    assert hf_cache.is_on_disk(entry)
    with pytest.raises(UnreachableError, match="us/none is not on this disk"):
        repository_entry("us/none", None, quiet()[1])


# ---- hashes and removing -------------------------------------------------------------------------------------------------


def test_hashes(mine):
    obtain(mine["mine-q8"], mine, quiet()[1])
    for file in mine["mine-q8"].files.values():
        path = hf_cache.find(file)
        counts = []
        assert hf_cache.wrong_hash(file, path, counts.append) is None
        assert sum(counts) == path.stat().st_size
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert "not those that the hub has" in hf_cache.wrong_hash(file, path)
    own = LocalFile(Path("own.model"), sha256="0" * 64)
    assert "is expected" in hf_cache.wrong_hash(own, own.path)
    assert hf_cache.wrong_hash(replace(own, sha256=None), own.path) is None


def everything():
    return sorted(path.relative_to(constants.HF_HUB_CACHE) for path in Path(constants.HF_HUB_CACHE).rglob("*"))


def test_removing_leaves_nothing(mine):
    obtain(mine["mine-q8"], mine, quiet()[1])
    hf_cache.partial("us/model", "abc").write_bytes(DATA)
    done = hf_cache.remove(mine["mine-q8"], mine.values())
    assert done.freed == sum(map(len, FILES.values())) + len(DATA)
    assert (len(done.removed), done.kept) == (3, ())
    assert [path for path in everything() if path.parts[0] != ".locks"] == []
    assert hf_cache.remove(mine["mine-q8"], mine.values()) == hf_cache.Removed(0, (), ())


def test_removing_leaves_what_others_need(mine, server):
    server.add("us/model", FILES | {"README.md": b"readme"})
    obtain(mine["mine-q8"], mine, quiet()[1])
    obtain(mine["mine-q4"], mine, quiet()[1])
    hf_hub_download("us/model", "README.md", cache_dir=constants.HF_HUB_CACHE)
    done = hf_cache.remove(mine["mine-q8"], mine.values())
    assert done.kept == (HubFile("us/model", "mimi.safetensors"),)
    assert done.freed == len(DATA) + 100
    assert hf_cache.is_on_disk(mine["mine-q4"])
    hf_cache.remove(mine["mine-q4"], mine.values())
    (left,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert [file.file_name for revision in left.revisions for file in revision.files] == ["README.md"]
    assert Path("own.model").exists()


def test_removing_one_commit_leaves_the_other(mine, server):
    obtain(mine["mine-q8"], mine, quiet()[1])
    commit = hf_cache.commit_of("us/model", "main")
    server.add("us/model", FILES | {"tokenizer.model": DATA[:200]})
    hf_cache.find(mine["mine-q8"].files["tokenizer"]).unlink()
    obtain(mine["mine-q8"], mine, quiet()[1])
    hf_cache.remove(mine["mine-q8"], ())
    assert hf_cache.pointer(HubFile("us/model", "model.safetensors"), commit).read_bytes() == DATA


def test_removing_what_is_ones_own():
    lay(Path("weights"))
    entry = load_library()["weights/model.q8.safetensors"]
    with pytest.raises(InputError, match="your own"):
        hf_cache.remove(entry, ())


def test_files_that_go_away_while_they_are_fetched(mine, monkeypatch):
    monkeypatch.setattr(library, "_fetch", lambda *_: None)
    with pytest.raises(MshError, match="went away"):
        obtain(mine["mine-q8"], mine, quiet()[1])


# ---- memory --------------------------------------------------------------------------------------------------------------


def test_the_memory_that_a_model_needs(engine):
    demo = DEMO
    checkpoint = open_checkpoint(demo / "model.q8.safetensors", demo / "config.json")
    lm = load_lm(demo / "model.q8.safetensors", demo / "config.json", engine=engine)
    weights = lm.weights_bytes
    # The native engine may hold a little more or less: rows of panels, scales.
    near = {"rel": 0, "abs": 0 if engine == "mlx" else 0.05 * weights}
    for kv_bits in (None, 8):
        cache = lm.kv_bytes(checkpoint.config.context, kv_bits)
        for caches, options in ((1, {}), (3, {"conversations": 3}), (4, {"conversations": 2, "guided": True})):
            needed = library.memory_needed(checkpoint, engine, kv_bits, **options)
            assert needed == pytest.approx(weights + caches * cache + 1_000_000_000, **near)


def test_the_memory_of_a_model_in_float32(engine):
    """Keys and values are float32, too."""
    files = GOLDEN / "lm-small" / "lm_mlx_f32.safetensors", GOLDEN / "lm-small" / "config.json"
    lm, checkpoint = load_lm(*files, engine=engine), open_checkpoint(*files)
    one, two = (library.memory_needed(checkpoint, engine, conversations=count) for count in (1, 2))
    assert two - one == lm.kv_bytes(lm.config.context)


def test_the_memory_of_a_model_that_attends_to_a_voice():
    mx = pytest.importorskip("mlx.core")
    demo = DEMO / "tts"
    checkpoint = open_checkpoint(demo / "model.safetensors", demo / "config.json")
    lm, config = load_lm(demo / "model.safetensors", demo / "config.json", engine="mlx"), checkpoint.config
    source = lm.module.read_source(mx.zeros((1, 625, config.dim)))
    seen = sum(array.nbytes for pair in source for array in pair)
    conditions = sum(array.nbytes for array in lm.conditions._weights.values())
    held = lm.weights_bytes + conditions + lm.kv_bytes(config.context) + seen
    assert library.memory_needed(checkpoint, "mlx") == held + 1_000_000_000
    native = load_lm(demo / "model.safetensors", demo / "config.json", engine="native")
    held = native.weights_bytes + native.kv_bytes(config.context) + 2 * 625 * config.num_layers * config.dim * 4
    assert library.memory_needed(checkpoint, "native") == pytest.approx(held + 1_000_000_000, rel=0, abs=0.05e9)
    assert library.source_bytes(config, native.float_bytes) == 2 * 625 * config.num_layers * config.dim * 4


def test_a_shared_codec_is_of_the_same_family_or_use():
    entries = load_catalogue()
    for family, lm in (
        ("stt", "stt-1b-en_fr"),
        ("tts", "tts-1.6b-en_fr"),
        ("hibiki", "hibiki-2b"),
        ("moshi", "moshiko-bf16"),
    ):
        for role in ("mimi", "tokenizer"):
            assert library.shared_file(role, entries, family) == entries[lm].files[role]
    # The only one of its family is gated; Moshi's are the same.
    assert library.shared_file("mimi", entries, "personaplex") == entries["moshiko-bf16"].files["mimi"]
    put(entries["moshika-q4"])
    assert library.shared_file("tokenizer", entries) == entries["moshika-q4"].files["tokenizer"]
    # Models of a family may have codecs of their own, which their configurations name.
    own = entries["hibiki-1b"].files["mimi"]
    assert own != entries["hibiki-2b"].files["mimi"]
    assert library.shared_file("mimi", entries, "hibiki", "mimi-dbaa9758@125.safetensors") == own
    assert library.shared_file("mimi", entries, "hibiki", "unknown") == entries["hibiki-2b"].files["mimi"]
    with pytest.raises(InputError, match="has no codec; give one with --mimi"):
        library.shared_file("mimi", {}, "stt")


def test_memory_is_compared_before_anything_is_loaded():
    assert library.check_memory("m", 12 * GIB, 16 * GIB) is None
    warning = library.check_memory("m", 13 * GIB, 16 * GIB)
    assert warning.startswith(
        "m takes 14.0 GB of memory while talking, and this machine has 17.2 GB: it may become slow;"
    )
    with pytest.raises(MshError, match=r"m takes 18.3 GB .* has 17.2 GB; 'msh-mlx models' shows lighter ones"):
        library.check_memory("m", 17 * GIB, 16 * GIB)
