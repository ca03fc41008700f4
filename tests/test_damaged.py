"""Damaged files: whatever a file holds, reading ends soon, in a result or one sentence, with memory by the file's size."""

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from fuzz_family import KINDS, Fuzzer, attempt
from paths import DEMO, GOLDEN, ROOT
from safetensors.numpy import save_file

from msh_mlx import InputError, LmConfig, load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation.text import check_vocabulary
from msh_mlx.library.catalogue import read_catalogue
from msh_mlx.model.parameters import parameters
from msh_mlx.weights.checkpoint import describe, open_checkpoint
from msh_mlx.weights.lora import read_lora
from msh_mlx.weights.safetensors import find_not_finite, read_header

ENGINES = ["native", *(["mlx"] if importlib.util.find_spec("mlx") else [])]
TINY = {
    "dim": 4, "num_layers": 1, "num_heads": 1, "text_card": 5, "card": 3, "n_q": 2, "dep_q": 1, "delays": [0, 0, 0],
    "depformer_dim": 2, "depformer_num_layers": 1, "depformer_num_heads": 1, "depformer_dim_feedforward": 3,
}  # fmt: skip
ODD = [
    "0", "1", "-1", "2", "255", "65536", "16777216", "16777217", "2147483648", "4294967296", "9223372036854775807",
    "9223372036854775808", "18446744073709551616", "1e3", "1e308", "1e999", "0.5", "null", "true", '"4"', "[]", "{}", "NaN",
    "[" * 2000, "[" * 300 + "]" * 300, "9" * 5000, "9" * 400, '"\\u0000\\n\\u202e"', '"\\ud800"', '"' + "x" * 3000 + '"',
]  # fmt: skip


def sentence(error):
    message = str(error)
    assert message.endswith(".")
    assert message.isprintable()
    assert len(message) < 1500, message[:200]
    return message


def survives(read, size, seed):
    """Whether `read` reads the file of so many bytes; if not, it says so as it should."""
    tracing = tracemalloc.is_tracing()
    if tracing:
        tracemalloc.reset_peak()
    before, begin = tracemalloc.get_traced_memory()[0], time.monotonic()
    try:
        read()
    except InputError as error:
        sentence(error)
        read_it = False
    except Exception as error:
        raise AssertionError(f"seed {seed}") from error
    else:
        read_it = True
    assert not tracing or tracemalloc.get_traced_memory()[1] - before < 150 * size + (1 << 20), seed
    assert time.monotonic() - begin < 10, seed
    return read_it


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def tiny(path):
    rng = np.random.default_rng(0)
    wanted = parameters(LmConfig.from_dict(TINY))
    save_file({one.name: rng.standard_normal(one.shape, np.float32) for one in wanted}, path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return [[name, entry] for name, entry in json.loads(data[8:end]).items() if entry], data[end:]


def damaged(rng, entries, data):
    """Change the header in a way that it knows of, or the file in any."""
    parts = [[json.dumps(name), {key: json.dumps(value) for key, value in entry.items()}] for name, entry in entries]
    for _ in range(rng.choice([0, 0, 1, 1, 1, 3])):
        part = rng.choice(parts)
        kind = rng.randrange(6)
        if kind == 0:
            part[1][rng.choice(list(part[1]))] = rng.choice(ODD)
        elif kind == 1 and "shape" in part[1]:
            part[1]["shape"] = f"[{rng.choice(ODD)}, {rng.choice(ODD)}]"
        elif kind == 2 and "data_offsets" in part[1]:
            part[1]["data_offsets"] = f"[{rng.choice(ODD)}, {rng.choice(ODD)}]"
        elif kind == 3:
            part[0] = rng.choice(
                ['""', '"\\n"', '"x"', '"\\ud800"', '"encoder.x"', '"a.lora_A.weight"', rng.choice(parts)[0]]
            )
        elif kind == 4:
            parts.remove(part)
        else:
            parts.append([rng.choice([part[0], '"more"', '"transformer.layers.77.norm1.weight"']), part[1]])
    header = ", ".join(
        f"{name}: {{{', '.join(f'{json.dumps(key)}: {value}' for key, value in entry.items())}}}"
        for name, entry in parts
    )
    raw = f"{{{header}}}".encode()
    file = bytearray(len(raw).to_bytes(8, "little") + raw + data)
    kind = rng.randrange(10)
    if kind == 0:
        del file[rng.randrange(len(file)) :]
    elif kind == 1:
        file[:8] = rng.choice([0, 1, 1 << 31, 1 << 63, (1 << 64) - 1, 99_999_999, 9]).to_bytes(8, "little")
    elif kind == 2:
        file += b" " * rng.randrange(1, 9)
    elif kind < 6:
        for _ in range(rng.randrange(1, 4)):
            file[rng.randrange(len(file))] = rng.randrange(256)
    return bytes(file)


def test_damaged_models(tmp_path):
    """100,000 seeded ones: the header of all, the checks of those that pass and are every fourth, the weights of some.

    Each engine reads weights in its own way.
    """
    path = tmp_path / "lm.safetensors"
    entries, data = tiny(path)
    for engine in ENGINES:
        load_lm(path, TINY, engine=engine)
    config, counts = LmConfig.from_dict(TINY), [0, 0]
    for seed in range(100_000):
        rng = random.Random(seed)
        file = damaged(rng, entries, data)
        # Not emptied first: some file systems write such a file to the disk at once.
        with path.open("r+b", buffering=0) as out:
            out.write(file)
            out.truncate()
        if seed % 8 < 2:  # which makes all three times as slow
            tracemalloc.start() if seed % 8 == 0 else tracemalloc.stop()
        if seed % 4:
            survives(lambda: describe(read_header(path)), len(file), seed)
            continue
        bits = 4 if seed % 16 == 0 else None
        read = survives(lambda: open_checkpoint(path, config, bits), len(file), seed)  # noqa: B023
        counts[0] += read
        if seed % 20 == 0 and read:
            for engine in ENGINES:
                counts[1] += survives(lambda: load_lm(path, config, engine=engine), len(file), seed)  # noqa: B023
            survives(lambda: find_not_finite(path), len(file) + (5 << 22), seed)
        if seed % 50 == 0:
            survives(lambda: read_lora(path, 1.0, {"a": (4, 4)}, (0,)), len(file), seed)
    assert counts[0] > 1_000
    assert counts[1] > 50


def test_damaged_configurations_and_catalogues(tmp_path, traced):
    path = tmp_path / "config.json"
    tiny(tmp_path / "lm.safetensors")
    good = {**TINY, "max_period": 100.0, "hidden_scale": 4.125, "norm": "rms_norm_f32"}
    catalogue = (ROOT / "weights.toml").read_bytes()
    for seed in range(4_000):
        rng = random.Random(seed)
        pairs = [[json.dumps(key), json.dumps(value)] for key, value in good.items()]
        for _ in range(rng.randrange(1, 3)):
            pair = rng.choice(pairs)
            pair[rng.choice([0, 1, 1, 1])] = rng.choice(ODD)
        path.write_text("{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}")
        if survives(lambda: LmConfig.from_file(path), path.stat().st_size, seed):
            config = LmConfig.from_file(path)
            survives(lambda: open_checkpoint(tmp_path / "lm.safetensors", config), 10_000, seed)  # noqa: B023
        if seed % 50 == 0:
            file = bytearray(catalogue)
            for _ in range(rng.randrange(1, 5)):
                file[rng.randrange(len(file))] = rng.choice([rng.randrange(256), *b'"=[]\n\\{}'])
            path.write_bytes(file)
            survives(lambda: read_catalogue(path), len(file), seed)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_to_the_family(kind, tmp_path, engine):
    """Some of the cases of `scripts/fuzz_family.py`: each is refused in a sentence, or runs."""
    fuzzer = Fuzzer(tmp_path, engine)
    ran = [attempt(getattr(fuzzer, kind), seed) for seed in range(100)]
    assert 0 < sum(ran) < 100


def test_damaged_tokenizers(tmp_path):
    """In a process of its own, which a crash of SentencePiece would end."""
    code = f"""
import random, resource, sys
from msh_mlx import InputError, load_tokenizer
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
data = open({str(DEMO / "tokenizer.model")!r}, "rb").read()
loaded = 0
for seed in range(3000):
    rng = random.Random(seed)
    file = bytearray(data if rng.random() < 0.7 else data[: rng.randrange(len(data))])
    if rng.random() < 0.1:
        file = bytearray(rng.randbytes(rng.randrange(1, 300)))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(file)) if rng.random() < 0.5 else -rng.randrange(1, min(len(file), 400) + 1)
        file[at] = rng.choice([rng.randrange(256), 255, 128, 0, 127])
    open({str(tmp_path / "t.model")!r}, "wb").write(file)
    print(seed, flush=True)
    try:
        tokenizer = load_tokenizer({str(tmp_path / "t.model")!r})
    except InputError as error:
        assert str(error).endswith(".") and str(error).isprintable(), error
        continue
    loaded += 1
    [tokenizer.IdToPiece(i) for i in range(tokenizer.GetPieceSize())]
assert loaded > 300, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout[-20:], done.stderr[-500:])


READERS = {
    **{f"model, {engine}": lambda path, engine=engine: load_lm(path, TINY, engine=engine) for engine in ENGINES},
    "codec": load_mimi,
    "tokenizer": load_tokenizer,
    "configuration": LmConfig.from_file,
    "codec's configuration": lambda path: load_mimi(DEMO / "mimi.safetensors", config=path),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_such_a_file_at_all(reader, tmp_path):
    def says(path):
        with pytest.raises(InputError) as error:
            READERS[reader](path)
        return sentence(error.value)

    path = tmp_path / "file"
    for content, what in (
        (b"<!DOCTYPE html><html>" * 20, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "git-lfs pointer"),
        (b"PK\x03\x04" + b"\0" * 60, "pickle"),
        (b"\x80\x02}q\0" + b"\0" * 60, "pickle"),
        (b"GGUF" + b"\0" * 60, "GGUF"),
        (b"", ""),
    ):
        path.write_bytes(content)
        assert what in says(path)
    assert "is a folder" in says(tmp_path) or "is a directory" in says(tmp_path)
    assert "There is no" in says(tmp_path / "none")
    says(str(tmp_path / "a\0b"))
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in says(tmp_path / "pipe")
    assert "device" in says("/dev/zero")


@pytest.mark.parametrize("reader", READERS)
def test_no_permission(reader, tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"x" * 100)
    path.chmod(0)
    child = os.fork()
    if child == 0:  # root may read everything: as nobody
        try:
            if os.getuid() == 0:
                for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
                    folder.chmod(0o755)
                os.setuid(65534)
            READERS[reader](path)
        except InputError as error:
            known = error.what.endswith(" may not be read by this user") and error.advice == "change its permissions"
            os._exit(0 if known and sentence(error) else 2)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_files_in_the_wrong_place(tmp_path):
    lm, mimi, adapters = DEMO / "model.q8.safetensors", DEMO / "mimi.safetensors", tmp_path / "lora.safetensors"
    save_file(
        {"x.lora_A.weight": np.zeros((1, 2), np.float32), "x.lora_B.weight": np.zeros((2, 1), np.float32)}, adapters
    )
    for read, what in (
        *(
            (lambda engine=engine: load_lm(mimi, DEMO / "config.json", engine=engine), "give it as --mimi")
            for engine in ENGINES
        ),
        (lambda: load_mimi(lm), "give it as --model"),
        (lambda: load_lm(adapters, DEMO / "config.json"), "give it as --lora"),
        (lambda: load_mimi(adapters), "give it as --lora"),
        (lambda: read_lora(lm, 1.0, {}, (0,)), "give it as --model"),
        (lambda: read_lora(mimi, 1.0, {}, (0,)), "give it as --mimi"),
        (lambda: load_tokenizer(lm), "is a safetensors file"),
        (lambda: check_vocabulary(load_tokenizer(DEMO / "tokenizer.model"), 32000), "the model 32000"),
    ):
        with pytest.raises(InputError, match=what) as error:
            read()
        sentence(error.value)


def test_descriptions():
    def of(path):
        return describe(read_header(path))

    model = "a Moshi language model in MLX's layout"
    assert of(GOLDEN / "lm-quant" / "lm_mlx_q4.safetensors") == f"{model}, 4 bits in groups of 32"
    assert of(GOLDEN / "lm-quant" / "lm_mlx_q8.safetensors") == f"{model}, 8 bits in groups of 64"
    assert of(GOLDEN / "lm-small" / "lm_mlx_f32.safetensors") == f"{model}, not quantized (float32)"
    assert "PyTorch's layout, not quantized" in of(GOLDEN / "lm-small" / "lm_pytorch.safetensors")
    assert of(DEMO / "mimi.safetensors") == "a Mimi codec"


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(
    "name", ["lm-quant/lm_mlx_q4", "lm-quant/lm_mlx_q8", "lm-small/lm_mlx_f32", "lm-small/lm_pytorch"]
)
def test_held_bytes(name, dtype, item):
    pytest.importorskip("mlx.core")
    path = GOLDEN / f"{name}.safetensors"
    config = path.with_name("config.json")
    held = load_lm(path, config, dtype, engine="mlx").weights_bytes
    assert open_checkpoint(path, config).held_bytes(item) == held


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 3_000_000])
def test_numbers_that_are_not_finite(dtype, value, at, tmp_path):
    numbers = np.full(3_000_001, 1e4, np.float64)
    path, told = tmp_path / "x.safetensors", []
    width = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype]
    for found in (None, ("x", at, value)):
        if found:
            numbers[at] = value
        raw = numbers.astype(np.float32).view(np.uint32) >> 16 if dtype == "BF16" else numbers
        data = np.full(4, -1, np.int32).tobytes() + raw.astype(width).tobytes()
        header = json.dumps(
            {
                "i": {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]},
                "x": {"dtype": dtype, "shape": [3_000_001], "data_offsets": [16, len(data)]},
            }
        ).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        result = find_not_finite(path, told.append)
        assert (result is None) if found is None else (result[:2] == found[:2])
        if found:
            np.testing.assert_equal(result[2], value)
        else:
            assert told[-1] == 1.0
