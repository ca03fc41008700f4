"""The classes that other programs know: against the codec itself, and against the package whose classes they are."""

import contextlib
import gc
import json
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import mimi
import numpy as np
import pytest
import soundfile
from paths import GOLDEN, ROOT
from safetensors.numpy import load_file, save_file

from msh_mlx.format import FRAME_SIZE

TINY = GOLDEN / "mimi-tiny"
PEER = ROOT / ".cache" / "peer-rustymimi" / "bin" / "python"
FULL = ROOT / ".cache" / "mimi-full-seed7.safetensors"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The tiny checkpoint with its configuration inside, for these classes take none."""
    path = tmp_path_factory.mktemp("tokenizer") / "mimi.safetensors"
    save_file(load_file(TINY / "mimi.safetensors"), path, {"config": (TINY / "config.json").read_text()})
    return path


@pytest.fixture(scope="module")
def golden():
    return load_file(TINY / "golden.safetensors")


@pytest.fixture
def tokenizer(path):
    return mimi.Tokenizer(path)


@pytest.fixture
def stream(path):
    with mimi.StreamTokenizer(path) as stream:
        yield stream


def fetch(get, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (result := get()) is not None:
            return result
        time.sleep(0.001)
    raise TimeoutError


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mimi-")]


def test_encoding_and_decoding_at_once(tokenizer, golden):
    codes = tokenizer.encode(golden["pcm"][None, None])
    assert (codes.dtype, codes.shape) == (np.uint32, (1, 8, 50))
    assert (codes[0] == golden["codes"]).all()
    pcm = tokenizer.decode(codes)
    assert (pcm.dtype, pcm.shape) == (np.float32, (1, 1, 50 * FRAME_SIZE))
    assert np.abs(pcm[0, 0] - golden["decoded"]).max() < 1e-4
    assert tokenizer.encode(np.zeros((1, 1, 1921), np.float32)).shape == (1, 8, 2)
    assert tokenizer.encode(np.zeros((1, 1, 0), np.float32)).shape == (1, 8, 0)


def test_steps(tokenizer, golden):
    pcm, codes = golden["pcm"][None, None], []
    for at in range(0, 10 * FRAME_SIZE, 800):
        step = tokenizer.encode_step(pcm[..., at : at + 800])
        assert (step is None) == ((at + 800) // FRAME_SIZE == at // FRAME_SIZE)
        if step is not None:
            assert (step.dtype, step.shape) == (np.uint32, (1, 8, 1))
            codes.append(step)
        tokenizer.encode(pcm[..., :3000])  # leaves the stream alone
    codes = np.concatenate(codes, axis=2)
    assert (codes[0] == golden["codes"][:, :10]).all()
    decoded = [tokenizer.decode_step(codes[..., i : i + 1]) for i in range(10)]
    assert decoded[0].dtype == np.float32
    assert decoded[0].shape == (1, 1, FRAME_SIZE)
    assert np.abs(np.concatenate(decoded, axis=2)[0, 0] - golden["decoded"][: 10 * FRAME_SIZE]).max() < 1e-4
    assert tokenizer.decode_step(codes[..., :0]) is None


def test_reset_leaves_nothing(tokenizer, golden):
    tokenizer.encode_step(golden["pcm"][None, None, 5000:20000])
    tokenizer.decode_step(golden["codes"][None, :, 5:9])
    assert tokenizer.reset() is None
    assert (tokenizer.encode_step(golden["pcm"][None, None])[0] == golden["codes"]).all()
    assert np.abs(tokenizer.decode_step(golden["codes"][None])[0, 0] - golden["decoded"]).max() < 1e-4


def test_batches(tokenizer, golden):
    pcm = np.stack([golden["pcm"][: 9 * FRAME_SIZE], golden["pcm"][FRAME_SIZE : 10 * FRAME_SIZE]])[:, None]
    codes = tokenizer.encode(pcm)
    assert codes.shape == (2, 8, 9)
    parts = [
        tokenizer.encode_step(pcm[..., at : at + 2 * FRAME_SIZE]) for at in range(0, 9 * FRAME_SIZE, 2 * FRAME_SIZE)
    ]
    assert (np.concatenate(parts, axis=2) == codes).all()
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (2, 1, 9 * FRAME_SIZE)
    parts = [tokenizer.decode_step(codes[..., i : i + 1]) for i in range(9)]
    assert np.abs(np.concatenate(parts, axis=2) - decoded).max() < 1e-5
    for step, data in ((tokenizer.encode_step, pcm), (tokenizer.decode_step, codes)):
        with pytest.raises(ValueError, match="2 streams"):
            step(data[:1])
    tokenizer.reset()
    assert (tokenizer.encode_step(pcm[:1]) == codes[:1]).all()


@pytest.mark.parametrize("kind", ["Tokenizer", "StreamTokenizer"])
def test_arguments(kind, path, tmp_path):
    make = getattr(mimi, kind)
    for dtype in ("f32", "f16", "bf16"):
        make(str(path), num_codebooks=4, dtype=dtype, max_seq_len=1)
    for wrong in ({"dtype": "f64"}, {"num_codebooks": 9}, {"num_codebooks": 0}, {"max_seq_len": 0}):
        with pytest.raises(ValueError, match=r"\.$"):
            make(path, **wrong)
    with pytest.raises(FileNotFoundError):
        make(tmp_path / "none")
    with pytest.raises(TypeError):
        make(path, 8)
    if kind == "StreamTokenizer":
        for wrong in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="max_seconds"):
                make(path, max_seconds=wrong)


def test_wrong_arrays(tokenizer, stream):
    sound, codes = np.zeros((1, 1, FRAME_SIZE), np.float32), np.zeros((1, 8, 1), np.uint32)
    for call in (tokenizer.encode, tokenizer.encode_step, stream.encode):
        for wrong in (sound[0], sound.astype(np.float64), sound.astype(np.int16), [0.0], None):
            with pytest.raises(TypeError, match="pcm_data"):
                call(wrong)
    for call in (tokenizer.decode, tokenizer.decode_step, stream.decode):
        for wrong in (codes[0, 0], codes.astype(np.float32), [1], None):
            with pytest.raises(TypeError, match="codes"):
                call(wrong)
    for call in (tokenizer.encode, tokenizer.encode_step):
        for shape in ((0, 1, FRAME_SIZE), (1, 2, FRAME_SIZE)):
            with pytest.raises(ValueError, match="shape"):
                call(np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match="pcm"):
            call(sound * np.nan)
    for call in (tokenizer.decode, tokenizer.decode_step):
        for shape in ((0, 8, 1), (1, 7, 1), (1, 9, 1)):
            with pytest.raises(ValueError, match="shape"):
                call(np.zeros(shape, np.uint32))
        with pytest.raises(ValueError, match="128"):
            call(codes + 128)
    with pytest.raises(ValueError, match="shape"):
        stream.decode(codes[0])


def test_streams_in_threads(stream, golden):
    assert stream.get_encoded() is None
    assert stream.get_decoded() is None
    for at in range(0, len(golden["pcm"]), 3000):
        pcm = golden["pcm"][at : at + 3000].copy()
        stream.encode(pcm)
        pcm[:] = np.nan  # a copy was made
    codes = []
    while sum(part.shape[1] for part in codes) < 50:
        codes.append(fetch(stream.get_encoded))
        assert codes[-1].dtype == np.uint32
        assert codes[-1].flags.c_contiguous
    codes = np.concatenate(codes, axis=1)
    assert (codes == golden["codes"]).all()
    assert stream.get_encoded() is None
    sizes = [1, 1, 48]
    for rows in np.split(codes.T, np.cumsum(sizes)[:-1]):
        stream.decode(rows)
    decoded = [fetch(stream.get_decoded) for _ in sizes]
    assert [part.shape for part in decoded] == [(n * FRAME_SIZE,) for n in sizes]
    assert decoded[0].dtype == np.float32
    assert np.abs(np.concatenate(decoded) - golden["decoded"]).max() < 1e-4


def test_nothing_to_do_takes_nothing(stream, golden):
    stream.encode(golden["pcm"][:0])
    stream.decode(golden["codes"].T[:0])
    stream.encode(golden["pcm"][:FRAME_SIZE])
    assert (fetch(stream.get_encoded) == golden["codes"][:, :1]).all()
    assert stream.get_decoded() is None


def test_an_error_in_a_thread_reaches_the_next_call(stream, golden):
    pcm, rows = golden["pcm"], golden["codes"].T
    errors = []

    def attempt(call, *args):
        """Do it, again after an error, for a call that raises does nothing else."""
        try:
            return call(*args)
        except ValueError as error:
            errors.append(str(error))
            return call(*args)

    for part in (pcm[:3000], pcm[:100] * np.nan, pcm[3000:9600]):
        attempt(stream.encode, part)
    codes = np.concatenate([attempt(fetch, stream.get_encoded) for _ in range(2)], axis=1)
    assert (codes == golden["codes"][:, :5]).all()
    assert len(errors) == 1
    assert "pcm" in errors[0]
    for part in (rows[:2], rows[2:4] + 200, rows[2:4]):
        attempt(stream.decode, part)
    decoded = np.concatenate([attempt(fetch, stream.get_decoded) for _ in range(2)])
    assert np.abs(decoded - golden["decoded"][: 4 * FRAME_SIZE]).max() < 1e-4
    assert len(errors) == 2
    assert "127" in errors[1]


def test_what_came_before_an_error_in_the_same_call_is_there(stream, golden):
    pcm = golden["pcm"].copy()
    pcm[40 * FRAME_SIZE] = np.inf
    stream.encode(pcm)
    with pytest.raises(ValueError, match="inf"):
        fetch(stream.get_encoded)
    codes = fetch(stream.get_encoded)
    assert codes.shape[1] >= 20
    assert (codes == golden["codes"][:, : codes.shape[1]]).all()


def test_an_error_reaches_who_only_gives(stream, golden):
    stream.encode(np.full(FRAME_SIZE, np.nan, np.float32))
    with pytest.raises(ValueError, match="pcm"):  # noqa: PT012
        for _ in range(100):
            stream.encode(golden["pcm"][:10])
            time.sleep(0.01)


@pytest.mark.parametrize("seconds", [0.001, 0.2, 1.0])
def test_what_is_on_its_way_is_bounded(seconds, path, golden):
    with mimi.StreamTokenizer(path, max_seconds=seconds) as stream:
        rows = golden["codes"].T
        given = 0
        with pytest.raises(BufferError, match="encode"):  # noqa: PT012
            for i in range(50):
                stream.encode(golden["pcm"][i * FRAME_SIZE : (i + 1) * FRAME_SIZE])
                given += 1
        assert given == np.ceil(max(1, seconds * 12.5))
        for k in range(given):
            assert (fetch(stream.get_encoded) == golden["codes"][:, k : k + 1]).all()
        stream.encode(
            golden["pcm"][given * FRAME_SIZE : (given + 1) * FRAME_SIZE]
        )  # and goes on, as if nothing had been
        assert (fetch(stream.get_encoded) == golden["codes"][:, given : given + 1]).all()
        with pytest.raises(BufferError, match="decode"):  # noqa: PT012
            for i in range(50):
                stream.decode(rows[i : i + 1])
        stream.reset()
        for _ in range(20):  # pieces of a frame do not fill it
            stream.encode(golden["pcm"][:1900])
            while stream.get_encoded() is None and stream._encoding._waiting:
                time.sleep(0.001)
            time.sleep(0.01)
            stream.get_encoded()


def test_reset_forgets_what_is_on_its_way(stream, golden):
    rng = np.random.default_rng(0)
    for _ in range(6):
        stream.encode(golden["pcm"][:9000][::-1])
        stream.decode(golden["codes"].T[::-1])
        stream.decode(golden["codes"].T + 200)
        with contextlib.suppress(ValueError):
            stream.encode(np.full(50, np.inf, np.float32))
        time.sleep(rng.uniform(0, 0.02))
        stream.reset()
        assert stream.get_encoded() is None
        assert stream.get_decoded() is None
        stream.encode(golden["pcm"])
        stream.decode(golden["codes"].T)
        assert (fetch(stream.get_encoded) == golden["codes"]).all()
        assert np.abs(fetch(stream.get_decoded) - golden["decoded"]).max() < 1e-4


def test_threads_end_with_the_object(path, golden):
    before = len(workers())
    stream = mimi.StreamTokenizer(path)
    assert len(workers()) == before + 2
    stream.encode(golden["pcm"])
    del stream
    assert len(workers()) == before
    cycle = [mimi.StreamTokenizer(path)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert len(workers()) == before
    stream = mimi.StreamTokenizer(path)
    stream.close()
    stream.close()
    assert len(workers()) == before
    for call in (stream.get_encoded, stream.get_decoded, stream.reset, lambda: stream.encode(golden["pcm"])):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "del stream", "keep = [stream]; keep.append(keep)"])
def test_the_interpreter_ends(end, path):
    script = f"""
import mimi, numpy as np
stream = mimi.StreamTokenizer({str(path)!r})
stream.encode(np.zeros(600_000, np.float32))
for _ in range(300):
    stream.decode(np.zeros((1, 8), np.uint32))
{end}
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stderr) == (3 if "3" in end else 0, "")


def test_a_file_of_sound(tmp_path):
    path = tmp_path / "a.wav"
    mimi.write_wav(path, np.array([0, 0.5, -0.5, 1, -1, 1.5, -2, 0.1, np.nan], np.float32), 24000)
    with wave.open(str(path)) as file:
        assert file.getparams()[:4] == (1, 2, 24000, 9)
        samples = np.frombuffer(file.readframes(9), "<i2")
    assert samples.tolist() == [0, 16383, -16383, 32767, -32767, 32767, -32767, 3276, 0]
    with pytest.raises(TypeError):
        mimi.write_wav(path, np.zeros(3), 24000)
    with pytest.raises(OSError, match="none"):
        mimi.write_wav(str(tmp_path / "none" / "a.wav"), np.zeros(3, np.float32), 24000)


# A program that was written for the other package; it says what it got, and keeps it.
PROGRAM = """
import sys, time, json
import numpy as np
import {module} as rustymimi

weights, sound, out = sys.argv[1:]
pcm = np.load(sound)
said = {{}}

def note(name, array):
    said[name] = None if array is None else (str(array.dtype), array.shape)
    if array is not None:
        arrays[name] = array

arrays = {{}}
tokenizer = rustymimi.Tokenizer(weights, num_codebooks=8)
tokenizer.encode_step(np.zeros((1, 1, 1920), dtype=np.float32))
tokenizer.reset()
note("codes", tokenizer.encode(pcm_data=pcm[None, None]))
note("pcm", tokenizer.decode(codes=arrays["codes"]))

tokenizer = rustymimi.Tokenizer(weights, dtype="f32", max_seq_len=1000)
for i, at in enumerate(range(0, len(pcm), 1440)):
    note(f"step {{i}}", tokenizer.encode_step(np.ascontiguousarray(pcm[None, None, at : at + 1440])))
for i in range(arrays["codes"].shape[2]):
    note(f"sound {{i}}", tokenizer.decode_step(np.ascontiguousarray(arrays["codes"][:, :, i : i + 1])))

def wait(get):
    while (result := get()) is None:
        time.sleep(0.001)
    return result

tokenizer = rustymimi.StreamTokenizer(weights)
for at in range(0, len(pcm), 1920):
    tokenizer.encode(pcm[at : at + 1920])
rows = []
for i in range(len(pcm) // 1920):
    note(f"stream codes {{i}}", wait(tokenizer.get_encoded))
    rows.append(arrays[f"stream codes {{i}}"].T)
for i, row in enumerate(rows):
    tokenizer.decode(np.ascontiguousarray(row))
    note(f"stream sound {{i}}", wait(tokenizer.get_decoded))
note("nothing", tokenizer.get_encoded())
np.savez(out, **arrays)
print(json.dumps(said))
"""


def test_one_program_with_both_packages(tmp_path):
    interpreter = next((python for python in (PEER, Path(sys.executable)) if has_peer(python)), None)
    if not interpreter:
        pytest.skip("rustymimi is not installed; python benchmarks/codec.py --peer makes it an environment")
    if not FULL.exists():
        pytest.skip(f"{FULL.name} is not there: rustymimi loads no other size")
    pcm, _ = soundfile.read(ROOT / "assets" / "demo" / "digits.flac", dtype="float32")
    np.save(tmp_path / "pcm.npy", pcm[40000 : 40000 + 6 * FRAME_SIZE])
    said, arrays = {}, {}
    for python, module in ((interpreter, "rustymimi"), (Path(sys.executable), "mimi")):
        (tmp_path / f"{module}_program.py").write_text(PROGRAM.format(module=module))
        command = [python, f"{module}_program.py", FULL, "pcm.npy", f"{module}.npz"]
        result = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        said[module] = json.loads(result.stdout)
        with np.load(tmp_path / f"{module}.npz") as file:
            arrays[module] = dict(file)
    assert said["mimi"] == said["rustymimi"]
    for name, ours in arrays["mimi"].items():
        theirs = arrays["rustymimi"][name]
        if ours.dtype == np.uint32:
            np.testing.assert_array_equal(ours, theirs, name)
        else:
            np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)


def has_peer(python):
    check = [str(python), "-c", "import rustymimi"]
    return python.exists() and subprocess.run(check, capture_output=True).returncode == 0
