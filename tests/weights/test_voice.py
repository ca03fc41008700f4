"""Voices in files: PyTorch's form, of which nothing may run, and safetensors."""

import contextlib
import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import save_file

from msh_mlx import InputError
from msh_mlx.weights.safetensors import as_bfloat16, as_float32
from msh_mlx.weights.voice import read_voice

PT = GOLDEN / "personaplex-small" / "voice.pt"
SAFETENSORS = PT.with_suffix(".safetensors")
with zipfile.ZipFile(PT) as archive:
    ENTRIES = {name: archive.read(name) for name in archive.namelist()}
PICKLE = ENTRIES["voice/data.pkl"]


def written(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def changed(path, **parts):
    """The voice with some entries changed, by the ends of their names; None removes one."""
    new = {name: parts.get(name.rpartition("/")[2].replace(".", "_"), data) for name, data in ENTRIES.items()}
    return written(path, [(name, data) for name, data in new.items() if data is not None])


def refused(path, what=""):
    with pytest.raises(InputError) as error:
        pytest.fail(f"{what} is read as {read_voice(path)}")
    message = str(error.value)
    assert message.startswith(f"{path} is not a voice")
    assert message.endswith("expected.")
    return message


def test_both_forms_are_the_same_voice():
    a, b = read_voice(PT), read_voice(SAFETENSORS)
    assert np.array_equal(a.embedded, b.embedded)
    assert np.array_equal(a.columns, b.columns)
    assert (a.embedded.shape, a.columns.shape, a.frames) == ((12, 64), (9, 4), 13)
    assert a.embedded.dtype == np.float32
    assert (a.embedded == as_float32(as_bfloat16(a.embedded))).all()  # the file's bfloat16


def test_the_folder_in_the_archive_may_have_any_name(tmp_path):
    path = written(tmp_path / "x.pt", [(name.replace("voice/", "NATF2 é/"), data) for name, data in ENTRIES.items()])
    assert np.array_equal(read_voice(path).columns, read_voice(PT).columns)


def test_a_high_number_in_the_memory_of_a_pickle_takes_no_memory(tmp_path):
    """PyTorch's reader would make a table of as many places."""
    path = changed(tmp_path / "x.pt", data_pkl=PICKLE[:-1] + b"r\xff\xff\xff\x7f.")
    assert np.array_equal(read_voice(path).columns, read_voice(PT).columns)


class Runs:
    """What unpickles by running a command."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    """Pickles that do something, or would take forever, or all memory."""
    mark = str(tmp_path / "ran")
    good = pickle.loads(pickle.dumps({}))
    yield "system", pickle.dumps(Runs(os.system, f"touch {mark}"), 2)
    yield "eval", pickle.dumps({"embeddings": Runs(eval, f"open({mark!r}, 'w')")}, 2)
    yield "in a key", pickle.dumps({("x", Runs(os.mkdir, mark)): 1}, 2)
    yield "other protocols", pickle.dumps(good, 4)
    yield "protocol 0", pickle.dumps({"embeddings": 1}, 0)
    yield "no tensors", pickle.dumps({"embeddings": 1, "cache": 2}, 2)
    yield "a list", pickle.dumps([1], 2)
    yield "empty", b""
    yield "not ended", PICKLE[:-1]
    yield "nothing on the stack", b"\x80\x02."
    yield "an unknown memory", PICKLE[:2] + b"j\xff\xff\xff\x7f."
    yield "a long array", b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"."
    yield "a long text", b"\x80\x02X\xff\xff\xff\x7f."
    yield "a long number", b"\x80\x02\x8b\xff\xff\xff\x7f."
    yield "a frame", b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"."
    # Tuples of tuples, each twice the last one: their hash takes 2^60 steps.
    yield "a tower as a key", b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
    yield "more after the end", pickle.dumps({}, 2)
    for name in (b"torch DoubleStorage", b"torch _C", b"builtins eval", b"os system", b"collections Counter"):
        yield name.decode(), PICKLE.replace(b"ctorch\nLongStorage\n", b"c" + name.replace(b" ", b"\n") + b"\n")
    yield "as a parameter", PICKLE.replace(b"_rebuild_tensor_v2", b"_rebuild_parameter")
    yield "another storage", PICKLE.replace(b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00storagf")
    yield "a storage elsewhere", PICKLE.replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x00.")
    yield "a storage that is not there", PICKLE.replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x007")
    yield "both of one storage, of two types", PICKLE.replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000")
    yield "twice the same name", PICKLE.replace(b"X\x05\x00\x00\x00cache", b"X\x0a\x00\x00\x00embeddings")
    yield "a third name", PICKLE.replace(b"X\x05\x00\x00\x00cache", b"X\x05\x00\x00\x00cachf")
    # `K\x00(K\x0c…` is the offset and the size of the embeddings.
    size = b"K\x00(K\x0cK\x01K\x01K\x40t"
    assert size in PICKLE
    huge = b"\x8a\x08" + struct.pack("<q", 1 << 62)
    for what, new in (
        ("an offset", b"K\x01(K\x0cK\x01K\x01K\x40t"),
        ("an offset below 0", b"J\xff\xff\xff\xff(K\x0cK\x01K\x01K\x40t"),
        ("more frames", b"K\x00(K\x0dK\x01K\x01K\x40t"),
        ("a huge size", b"K\x00(" + huge + b"K\x01K\x01K\x40t"),
        ("a size below 0", b"K\x00(J\xf4\xff\xff\xffK\x01K\x01J\xc0\xff\xff\xfft"),
        ("another shape", b"K\x00(K\x01K\x0cK\x01K\x40t"),
        ("fewer axes", b"K\x00(K\x0cK\x01K\x40t"),
        ("many axes", b"K\x00(" + huge * 200 + b"t"),
        ("a text as a size", b"K\x00(X\x01\x00\x00\x00xK\x01K\x01K\x40t"),
        ("true as a size", b"K\x00(K\x0c\x88\x88K\x40t"),
    ):
        yield what, PICKLE.replace(size, new)
    stride = b"(K\x40K\x40K\x40K\x01t"
    assert stride in PICKLE
    yield "overlapping rows", PICKLE.replace(stride, b"(K\x01K\x40K\x40K\x01t")
    yield "strides of 0", PICKLE.replace(stride, b"(K\x00K\x00K\x00K\x00t")
    yield "strides below 0", PICKLE.replace(stride, b"(J\xc0\xff\xff\xffK\x40K\x40K\x01t")


def test_nothing_of_a_pickle_is_run(tmp_path):
    names = set()
    for name, data in hostile(tmp_path):
        assert data != PICKLE, name
        names.add(name)
        tracemalloc.start()
        refused(changed(tmp_path / "x.pt", data_pkl=data), name)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, name
        tracemalloc.stop()
    assert len(names) > 40
    assert not (tmp_path / "ran").exists()


def test_archives_that_are_not_a_voice(tmp_path):
    path = tmp_path / "x.pt"
    everything = list(ENTRIES.items())
    for text in (b"", b"hi", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):  # the last is how PyTorch's old files begin
        path.write_bytes(text)
        refused(path, text)
    refused(written(path, everything, zipfile.ZIP_DEFLATED))
    bomb = {**ENTRIES, "voice/data/0": bytes(1 << 24)}
    refused(written(path, bomb.items(), zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 1 << 16
    for part in ("data_pkl", "0", "1"):
        refused(changed(path, **{part: None}))
    refused(changed(path, **{"0": ENTRIES["voice/data/0"][:-2]}))
    refused(changed(path, **{"1": ENTRIES["voice/data/1"] + b"1"}))
    refused(changed(path, byteorder=b"big"))
    with pytest.warns(UserWarning, match="Duplicate name"):
        refused(written(path, [*everything, ("voice/data/0", ENTRIES["voice/data/0"])]))
    refused(written(path, [*everything, ("other/data.pkl", PICKLE)]))
    refused(written(path, [*everything, *((f"voice/data/{i}", b"") for i in range(2, 5000))]))
    data = PT.read_bytes()
    for at in (data.rindex(b"PK\x01\x02") + 8, data.rindex(b"PK\x01\x02") + 20, data.index(b"PK\x03\x04") + 26):
        path.write_bytes(data[:at] + b"\xff\xff" + data[at + 2 :])
        with contextlib.suppress(InputError):  # some of it does not matter
            read_voice(path)
    path.write_bytes(data[:-30])
    refused(path)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w"):
        pass
    path.write_bytes(stream.getvalue())  # an archive without entries begins otherwise
    with pytest.raises(InputError):
        read_voice(path)


def test_safetensors_that_are_not_a_voice(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {"embeddings": np.zeros((12, 1, 1, 64), np.float32), "cache": np.zeros((1, 9, 4), np.int64)}
    save_file(arrays, path)
    assert read_voice(path).frames == 13
    for change in (
        {"embeddings": None},
        {"cache": None},
        {"more": np.zeros(3, np.float32)},
        {"embeddings": np.zeros((12, 1, 64), np.float32)},
        {"embeddings": np.zeros((12, 2, 1, 64), np.float32)},
        {"embeddings": np.zeros((0, 1, 1, 64), np.float32)},
        {"embeddings": np.zeros((12, 1, 1, 64), np.float64)},
        {"embeddings": np.zeros((12, 1, 1, 64), np.int32)},
        {"cache": np.zeros((1, 9, 5), np.int64)},
        {"cache": np.zeros((2, 9, 4), np.int64)},
        {"cache": np.zeros((1, 9, 4), np.float32)},
        {"cache": np.full((1, 9, 4), np.iinfo(np.int64).min)},
        {"cache": np.full((1, 9, 4), 1 << 40)},
    ):
        save_file({name: array for name, array in {**arrays, **change}.items() if array is not None}, path)
        refused(path)
    save_file({**arrays, "embeddings": np.full((12, 1, 1, 64), np.inf, np.float32)}, path)
    with pytest.raises(InputError, match="infinite or NaN"):
        read_voice(path)
