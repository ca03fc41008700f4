"""The codec against golden data, against a slow version of itself, streamed and at once, and with bad input."""

import copy
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import mimi
import numpy as np
import pytest
import soundfile
from make_mimi_weights import V01, tensors
from paths import DEMO, DIGITS, GOLDEN, ROOT
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from slow_mimi import SlowMimi
from tensors import save_as

from msh_mlx.conversation.codec import load_mimi
from msh_mlx.errors import InputError
from msh_mlx.format import FRAME_SIZE

TINY = GOLDEN / "mimi-tiny"
TINY_CONFIG = json.loads((TINY / "config.json").read_text())


@pytest.fixture(scope="module")
def tiny():
    return mimi.Mimi(TINY / "mimi.safetensors", config=TINY_CONFIG)


@pytest.fixture(scope="module")
def golden():
    return load_file(TINY / "golden.safetensors")


@pytest.fixture(scope="module")
def speech():
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    assert rate == 24000
    return pcm


@pytest.fixture(scope="session")
def full_path():
    """The full-size checkpoint with seeded random weights, 385 MB, made once and kept in .cache."""
    path = ROOT / ".cache" / "mimi-full-seed7.safetensors"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        save_file(tensors(V01, 7), part)
        part.rename(path)
    return path


@pytest.fixture(scope="module")
def full(full_path):
    return mimi.Mimi(full_path, num_codebooks=32)


def same_codes(codes, expected, margins=None):
    """Codes are equal, but where two entries tie within 1e-5 of their distance; those are listed."""
    different = np.argwhere(codes != expected)
    if margins is not None:
        ties = [tuple(place) for place in different if margins[tuple(place)] < 1e-5]
        if ties:
            print("ties:", [(place, int(codes[place]), int(expected[place])) for place in ties])
        # What follows a tie in the same column is of another residual.
        first = {}
        for k, t in ties:
            first[t] = min(k, first.get(t, k))
        different = [place for place in different if not (place[1] in first and place[0] >= first[place[1]])]
    assert len(different) == 0, different[:5]


def chunks(rng, total, largest):
    """Random chunk lengths, some of them 0, that make up the total."""
    while total:
        n = min(total, int(rng.integers(0, largest + 1)))
        total -= n
        yield n


def streamed(codec, pcm, rng, largest):
    encoder, parts, at = codec.encoder(), [], 0
    for n in chunks(rng, len(pcm), largest):
        parts.append(encoder.step(pcm[at : at + n]))
        at += n
        assert sum(p.shape[1] for p in parts) == at // FRAME_SIZE
    return np.concatenate(parts, axis=1)


def stream_decoded(codec, codes, rng, largest):
    decoder, parts, at = codec.decoder(), [], 0
    for n in chunks(rng, codes.shape[1], largest):
        parts.append(decoder.step(codes[:, at : at + n]))
        assert parts[-1].shape == (n * FRAME_SIZE,)
        at += n
    return np.concatenate(parts)


def test_tiny_model_equals_the_reference(tiny, golden):
    assert np.abs(tiny.encode_latent(golden["pcm"]) - golden["latent"]).max() < 2e-5
    codes = tiny.encode(golden["pcm"])
    assert codes.dtype == np.uint32
    same_codes(codes, golden["codes"])
    pcm = tiny.decode(codes)
    assert pcm.dtype == np.float32
    assert np.abs(pcm - golden["decoded"]).max() < 1e-4


def test_full_model_equals_the_reference(full_path):
    golden = load_file(GOLDEN / "mimi-full" / "golden.safetensors")
    codec = mimi.Mimi(full_path)
    codes = codec.encode(golden["pcm"].astype(np.float32) / 32768)
    same_codes(codes, golden["codes"])
    assert np.abs(codec.decode(codes) - golden["decoded"]).max() < 1e-4


def test_attributes(tiny, full):
    assert (full.sample_rate, full.frame_rate, full.frame_size, full.num_codebooks) == (24000, 12.5, 1920, 32)
    assert full.config == V01
    assert tiny.num_codebooks == 8
    assert tiny.config == {**V01, **TINY_CONFIG}


@pytest.mark.parametrize("seed", range(6))
def test_streaming_equals_offline(seed, tiny):
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(30, 90))  # the window is 12 frames
    pcm = (rng.standard_normal(frames * FRAME_SIZE) * 0.3).astype(np.float32)
    codes = tiny.encode(pcm)
    assert codes.shape == (8, frames)
    assert (streamed(tiny, pcm, rng, int(rng.choice([7, 500, FRAME_SIZE, 5000, 30000])) + 100) == codes).all()
    offline = tiny.decode(codes)
    assert np.abs(stream_decoded(tiny, codes, rng, int(rng.choice([1, 3, 40]))) - offline).max() < 1e-5


def test_streaming_equals_offline_at_full_size_past_the_window(full, speech):
    pcm = np.concatenate([speech, speech[: 3 * 24000]])[: 200 * FRAME_SIZE]  # the window is 125 frames
    rng = np.random.default_rng(3)
    codes = full.encode(pcm)
    assert codes.shape == (32, 200)
    assert (streamed(full, pcm, rng, 5000) == codes).all()
    offline = full.decode(codes)
    assert np.abs(stream_decoded(full, codes, rng, 3) - offline).max() < 1e-5


def test_offline_equals_the_slow_version_past_the_window(tiny, speech):
    slow = SlowMimi(load_file(TINY / "mimi.safetensors"), TINY_CONFIG)
    pcm = speech[: 40 * FRAME_SIZE + 700]
    latent = slow.latent(pcm)
    assert latent.shape == (64, 41)
    assert np.abs(tiny.encode_latent(pcm) - latent).max() < 2e-5
    codes, margins = slow.quantize(latent, 8)
    same_codes(tiny.encode(pcm), codes, margins)
    assert np.abs(tiny.decode(codes) - slow.decode(codes)).max() < 1e-4


@pytest.mark.parametrize("count", range(1, 9))
def test_fewer_codebooks_are_the_first_ones(count, tiny, golden):
    codec = mimi.Mimi(TINY / "mimi.safetensors", num_codebooks=count, config=TINY_CONFIG)
    codes = codec.encode(golden["pcm"])
    assert (codes == golden["codes"][:count]).all()
    pcm = codec.decode(codes)
    assert np.abs(pcm - SlowMimi(load_file(TINY / "mimi.safetensors"), TINY_CONFIG).decode(codes)).max() < 1e-4
    assert np.abs(tiny.decode(codes) - pcm).max() < 1e-6  # a decoder takes fewer rows, too


@pytest.mark.parametrize("count", [1, 2, 9, 31])
def test_every_number_of_codebooks_at_full_size(count, full, full_path, speech):
    pcm = speech[40000 : 40000 + 5 * FRAME_SIZE]
    codes = full.encode(pcm)
    assert (mimi.Mimi(full_path, num_codebooks=count).encode(pcm) == codes[:count]).all()


def test_all_32_codebooks_equal_the_slow_version(full, full_path, speech):
    slow = SlowMimi(load_file(full_path))
    pcm = speech[40000 : 40000 + 8 * FRAME_SIZE]
    codes, margins = slow.quantize(slow.latent(pcm), 32)
    same_codes(full.encode(pcm), codes, margins)
    assert np.abs(full.decode(codes) - slow.decode(codes)).max() < 1e-4


def unusual(seed):
    """A small checkpoint with what trained ones have and the golden ones lack."""
    config = {**TINY_CONFIG, "n_filters": 4, "n_q": 11, "max_period": 500.0, "context": 9}
    config |= {"ratios": [4, 5, 6, 8]}
    config |= {"kernel_size": 5, "residual_kernel_size": 5, "last_kernel_size": 7, "num_layers": 3, "compress": 4}
    rng = np.random.default_rng(seed)
    made = tensors({**V01, **config}, seed)
    for name, array in made.items():
        if name.endswith(".scale"):
            made[name] = rng.uniform(0.01, 0.8, array.shape).astype(np.float32)
        if name.endswith("cluster_usage"):
            made[name][rng.random(len(array)) < 0.2] = 0
            made[name][rng.random(len(array)) < 0.1] = 3e-6
        if name.endswith("embedding_sum"):
            usage = made[name.replace("embedding_sum", "cluster_usage")]
            made[name][usage < 1e-5] *= 1e-5
    return config, made


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("seed", [1, 2])
def test_unusual_checkpoints_equal_the_slow_version(seed, dtype, tmp_path):
    """Layer scales that differ, unused codebook entries, more than eight codebooks, other sizes, stored types."""
    config, made = unusual(seed)
    path = tmp_path / "mimi.safetensors"
    stored = save_as(path, made, dtype, {"config": json.dumps(config)})
    slow = SlowMimi(stored, config)
    codec = mimi.Mimi(path, num_codebooks=11)
    assert codec.config == {**V01, **config}
    pcm = np.random.default_rng(seed).uniform(-1, 1, 9 * FRAME_SIZE + 1).astype(np.float32)
    latent = slow.latent(pcm)
    assert np.abs(codec.encode_latent(pcm) - latent).max() < 2e-5
    codes, margins = slow.quantize(latent, 11)
    same_codes(codec.encode(pcm), codes, margins)
    random_codes = np.random.default_rng(seed).integers(0, 128, (11, 10))
    exact = slow.decode(random_codes)
    assert np.abs(codec.decode(random_codes) - exact).max() < 1e-4 * max(1, np.abs(exact).max())


def to_noise(exact, other):
    """Return by how many dB a sound is louder than its difference from another."""
    return 10 * np.log10(np.sum(np.square(exact, dtype=float)) / np.sum(np.square(exact - other, dtype=float)))


def test_weights_in_float16_are_nearly_the_same(tiny, golden, speech):
    assert tiny.weights == "float32"
    for float32, pcm in (tiny, golden["pcm"]), (mimi.Mimi(DEMO / "mimi.safetensors"), speech):
        path = DEMO / "mimi.safetensors" if pcm is speech else TINY / "mimi.safetensors"
        float16 = mimi.Mimi(path, config=float32.config, weights="float16")
        assert float16.weights == "float16"
        codes = float32.encode(pcm)
        assert (float16.encode(pcm) == codes).mean() > 0.97
        assert 45 < to_noise(float32.decode(codes), float16.decode(codes)) < 100


def test_weights_in_float16_equal_the_slow_version_with_rounded_ones(golden, tmp_path):
    """Random numbers of the usual size are rounded as numpy rounds them; biases, norms, scales and codebooks are not."""
    stored = load_file(TINY / "mimi.safetensors")
    matrices = [
        name
        for name, array in stored.items()
        if array.ndim > 1 and array.shape[0] > 1 and "_codebook" not in name and not name.startswith("upsample")
    ]
    assert len(matrices) > 20
    far = np.float32(2**12)  # from float16's least numbers, which have fewer bits
    rounded = {name: (stored[name] * far).astype(np.float16).astype(np.float32) / far for name in matrices}
    assert all(np.isfinite(array).all() for array in rounded.values())
    slow = SlowMimi({**stored, **rounded}, TINY_CONFIG)
    codec = mimi.Mimi(TINY / "mimi.safetensors", config=TINY_CONFIG, weights="float16")
    assert np.abs(codec.encode_latent(golden["pcm"]) - slow.latent(golden["pcm"])).max() < 2e-5
    assert np.abs(codec.decode(golden["codes"]) - slow.decode(golden["codes"])).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_file_in_16_bits_loses_nothing_in_float16(dtype, tmp_path, golden):
    path = tmp_path / "mimi.safetensors"
    stored = load_file(TINY / "mimi.safetensors")
    save_as(path, stored, dtype)
    float32, float16 = (mimi.Mimi(path, config=TINY_CONFIG, weights=kind) for kind in ("float32", "float16"))
    assert (float32.encode_latent(golden["pcm"]) == float16.encode_latent(golden["pcm"])).all()
    assert (float32.decode(golden["codes"]) == float16.decode(golden["codes"])).all()


def test_quiet_sound_shows_the_norms_epsilon(golden, tmp_path):
    """With activations near 1e-3 the epsilon of the layer norm decides: 1e-6 in place of 1e-5 fails here."""
    weights = load_file(TINY / "mimi.safetensors")
    last = max(int(n.split(".")[2]) for n in weights if n.startswith("encoder.model."))
    weights = copy.deepcopy(weights)
    for part in ("weight", "bias"):
        weights[f"encoder.model.{last}.conv.conv.{part}"] *= 1e-3
    path = tmp_path / "quiet.safetensors"
    save_file(weights, path)
    pcm = golden["pcm"][: 10 * FRAME_SIZE]
    exact = SlowMimi(weights, TINY_CONFIG).latent(pcm)
    assert np.abs(mimi.Mimi(path, config=TINY_CONFIG).encode_latent(pcm) - exact).max() < 2e-5


def test_the_demo_model_hears_and_speaks(speech):
    codec = mimi.Mimi(DEMO / "mimi.safetensors")
    slow = SlowMimi(load_file(DEMO / "mimi.safetensors"), codec.config)
    pcm = speech[: 30 * FRAME_SIZE]
    codes, margins = slow.quantize(slow.latent(pcm), 8)
    same_codes(codec.encode(pcm), codes, margins)
    voice = json.loads((DEMO / "voice.json").read_text())
    word = np.array(voice["words"]["seven"]).T
    assert np.abs(codec.decode(word) - slow.decode(word)).max() < 1e-4


@pytest.mark.parametrize("length", [0, 1, 1919, 1920, 1921, 4000])
def test_lengths(length, tiny, golden):
    pcm = golden["pcm"][:length]
    padded = np.pad(pcm, (0, -length % FRAME_SIZE))
    codes = tiny.encode(pcm)
    assert codes.shape == (8, math.ceil(length / FRAME_SIZE))
    assert (codes == tiny.encode(padded)).all()
    assert tiny.decode(codes).shape == (codes.shape[1] * FRAME_SIZE,)


def test_reset_starts_a_new_stream(tiny, golden):
    encoder, decoder = tiny.encoder(), tiny.decoder()
    encoder.step(golden["pcm"][5000:20000])  # leaves samples that fill no frame
    decoder.step(golden["codes"][:, 5:20])
    encoder.reset()
    decoder.reset()
    assert (encoder.step(golden["pcm"]) == golden["codes"]).all()
    assert np.abs(decoder.step(golden["codes"]) - golden["decoded"]).max() < 1e-4


def test_a_copy_goes_on_on_its_own(tiny, golden):
    """From the same state, in the middle of a frame too; neither changes the other."""
    pcm = golden["pcm"]
    cut = 3 * tiny.frame_size + 100
    whole = tiny.encode(pcm)
    encoder = tiny.encoder()
    first = encoder.step(pcm[:cut])
    copy = encoder.copy()
    other = copy.step(pcm[::-1].copy())
    np.testing.assert_array_equal(
        np.concatenate([first, encoder.step(pcm[cut:])], axis=1), whole[:, : pcm.size // tiny.frame_size]
    )
    again = np.concatenate([pcm[:cut], pcm[::-1]])
    np.testing.assert_array_equal(np.concatenate([first, other], axis=1), tiny.encoder().step(again))


def test_a_stream_of_any_age_is_like_a_new_one(tiny, golden):
    """Ten days in, positions are beyond what a float32 can count; the window sees the same."""
    position = 25 * 86400 * 10 + 1
    encoder, decoder = tiny.encoder(), tiny.decoder()
    encoder.reset(position=position)
    decoder.reset(position=position)
    codes = encoder.step(golden["pcm"])
    np.testing.assert_array_equal(codes, tiny.encoder().step(golden["pcm"]))
    np.testing.assert_allclose(decoder.step(codes), tiny.decoder().step(codes), atol=1e-5)


def test_stage_seconds_add_up(tiny, golden):
    for stream, data in ((tiny.encoder(), golden["pcm"]), (tiny.decoder(), golden["codes"])):
        assert stream.stage_seconds() == {"seanet": 0.0, "transformer": 0.0, "quantizer": 0.0}
        begin = time.perf_counter()
        stream.step(data)
        taken = time.perf_counter() - begin
        once = stream.stage_seconds()
        assert min(once.values()) > 0
        assert sum(once.values()) < taken
        stream.step(data)
        twice = stream.stage_seconds()
        assert all(twice[stage] > once[stage] for stage in once)
        stream.reset()
        assert not any(stream.stage_seconds().values())


def test_kinds_of_arrays(tiny, golden):
    codes = golden["codes"][:, :4]
    pcm = tiny.decode(codes.astype(np.uint32))
    for dtype in (np.int16, np.int32, np.int64, np.uint8, np.uint64):
        assert (tiny.decode(codes.astype(dtype)) == pcm).all()
    assert (tiny.decode(np.asfortranarray(codes)) == pcm).all()
    strided = np.repeat(golden["pcm"][: 3 * FRAME_SIZE], 2)[::2]
    assert not strided.flags.c_contiguous
    assert (tiny.encode(strided) == golden["codes"][:, :3]).all()


def extreme(kind, n):
    """What microphones rarely hear, n samples of it."""
    rng, t = np.random.default_rng(1), np.arange(n)
    noise = rng.standard_normal(n)
    samples = {
        "silence": np.zeros(n),
        "denormals": noise * 1e-40,
        "almost denormals": noise * 1e-37,
        "decay": noise * 10.0 ** (-60 * t / n),  # through all that a float32 can hold
        "constant": np.ones(n),
        "square": np.where(t // 27 % 2, 1.0, -1.0),
        "every other": np.where(t % 2, 1.0, -1.0),
        "impulse": np.where(t == n // 2, 1.0, 0.0),
        "too loud": noise * 30,
    }
    return samples[kind].astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        "silence",
        "denormals",
        "almost denormals",
        "decay",
        "constant",
        "square",
        "every other",
        "impulse",
        "too loud",
    ],
)
def test_extreme_sound_and_speech_after_it_equal_the_slow_version(kind, tiny, speech):
    slow = SlowMimi(load_file(TINY / "mimi.safetensors"), TINY_CONFIG)
    pcm = np.concatenate([extreme(kind, 14 * FRAME_SIZE), speech[40000 : 40000 + 6 * FRAME_SIZE]])
    latent = slow.latent(pcm)
    assert np.abs(tiny.encode_latent(pcm) - latent).max() < 2e-5 * max(1, np.abs(latent).max())
    codes, margins = slow.quantize(latent, 8)
    streamed_codes = streamed(tiny, pcm, np.random.default_rng(2), 3000)
    same_codes(streamed_codes, codes, margins)
    decoded = tiny.decode(streamed_codes)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded - slow.decode(streamed_codes)).max() < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1234, 839, 840, 30000, 39999])
def test_samples_that_are_not_finite_change_nothing(bad, place, tiny, golden):
    encoder = tiny.encoder()
    assert encoder.step(golden["pcm"][:3000]).shape == (8, 1)  # 840 samples complete the second frame
    taken = encoder.stage_seconds()
    wrong = golden["pcm"][:40000].copy()
    wrong[place] = bad
    with pytest.raises(ValueError, match=f"sample {place} "):
        encoder.step(wrong)
    for call in (tiny.encode, tiny.encode_latent):
        with pytest.raises(ValueError, match=f"sample {place} "):
            call(wrong)
    assert encoder.stage_seconds() == taken
    assert (encoder.step(golden["pcm"][3000:]) == golden["codes"][:, 1:]).all()


@pytest.mark.parametrize(
    "pcm", [np.zeros(1920), np.zeros((1, 1920), np.float32), np.zeros(1920, np.int16), [0.0] * 1920, None, b"abc"]
)
def test_other_arrays_of_samples_are_refused(pcm, tiny):
    for call in (tiny.encode, tiny.encoder().step):
        with pytest.raises((TypeError, ValueError)) as error:
            call(pcm)
        assert "pcm" in str(error.value)


def test_wrong_codes_change_nothing(tiny, golden):
    decoder = tiny.decoder()
    decoder.step(golden["codes"][:, :3])
    too_large = golden["codes"][:, :4].copy()
    too_large[2, 1] = 128
    negative = too_large.astype(np.int64)
    negative[2, 1] = -1
    wrong = {
        "128": too_large.astype(np.uint32),
        "-1": negative,
        "float32": golden["codes"].astype(np.float32),
        "9": np.zeros((9, 2), np.uint32),
        "0": np.zeros((0, 2), np.uint32),
        "shape": np.zeros(8, np.uint32),
    }
    for part, codes in wrong.items():
        with pytest.raises((TypeError, ValueError)) as error:
            decoder.step(codes)
        assert part in str(error.value), str(error.value)
    rest = decoder.step(golden["codes"][:, 3:])
    assert np.abs(rest - golden["decoded"][3 * FRAME_SIZE :]).max() < 1e-4


def test_two_streams_on_two_threads(tiny, golden):
    def work(results, seed):
        rng = np.random.default_rng(seed)
        for _ in range(5):
            results.append((streamed(tiny, golden["pcm"], rng, 9000) == golden["codes"]).all())
            decoded = stream_decoded(tiny, golden["codes"], rng, 5)
            results.append(np.abs(decoded - golden["decoded"]).max() < 1e-4)

    results = []
    threads = [threading.Thread(target=work, args=(results, seed)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(results)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_one_stream_on_two_threads_is_an_error(kind, full, speech):
    stream = getattr(full, kind)()
    data = speech[: 60 * FRAME_SIZE] if kind == "encoder" else np.zeros((32, 60), np.uint32)
    done = []
    thread = threading.Thread(target=lambda: done.append(stream.step(data)))
    thread.start()
    errors = []
    while thread.is_alive():
        try:
            stream.step(data[..., :0])
        except RuntimeError as error:
            errors.append(str(error))
            break
        time.sleep(0.001)
    thread.join()
    assert len(done) == 1
    assert "thread" in errors[0]
    stream.step(data[..., :0])  # and afterwards it works again


def test_the_interpreter_runs_on_while_the_codec_computes(full, speech):
    ticks, running = [], threading.Event()

    def tick():
        running.set()
        while running.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    running.wait()
    begin = time.perf_counter()
    full.encode(speech[: 40 * FRAME_SIZE])
    end = time.perf_counter()
    running.clear()
    thread.join()
    assert sum(begin < t < end for t in ticks) >= 5


def write(path, arrays, **metadata):
    save_file(arrays, path, metadata or None)
    return path


def refused(path, config=None, **options):
    with pytest.raises((OSError, ValueError)) as error:
        mimi.Mimi(path, config=config, **options)
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_wrong_checkpoints(tmp_path):
    good = load_file(TINY / "mimi.safetensors")
    data = (TINY / "mimi.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    name = "encoder.model.0.conv.conv.weight"
    assert name in refused(write(path, {k: v for k, v in good.items() if k != name}), TINY_CONFIG)
    assert "surplus" in refused(write(path, {**good, "surplus": np.zeros(3, np.float32)}), TINY_CONFIG)
    assert name in refused(write(path, {**good, name: np.zeros((8, 1, 6), np.float32)}), TINY_CONFIG)
    assert name in refused(write(path, {**good, name: good[name].astype(np.float64)}), TINY_CONFIG)
    assert name in refused(write(path, {**good, name: good[name] * np.float32(np.nan)}), TINY_CONFIG)
    refused(TINY / "mimi.safetensors")  # without its configuration it is not v0.1
    for content in (b"", b"abc", b"<html>" * 100, data[:50], data[:5000], data[:-1], data + b"\0", b"\xff" * 64):
        path.write_bytes(content)
        refused(path, TINY_CONFIG)
    with pytest.raises(FileNotFoundError, match="none"):
        mimi.Mimi(tmp_path / "none.safetensors")
    with pytest.raises(OSError, match="directory"):
        mimi.Mimi(tmp_path)


def test_configuration_from_a_file_the_metadata_or_not_at_all(tmp_path, golden):
    path = tmp_path / "mimi.safetensors"
    weights = load_file(TINY / "mimi.safetensors")
    write(path, weights, config=json.dumps(TINY_CONFIG))
    assert (mimi.Mimi(path).encode(golden["pcm"]) == golden["codes"]).all()
    assert (mimi.Mimi(str(path), config=str(TINY / "config.json")).encode(golden["pcm"]) == golden["codes"]).all()
    refused(path, config={**TINY_CONFIG, "n_q": 9})  # the argument comes before the metadata
    write(path, weights, config="{")
    refused(path)
    assert (mimi.Mimi(path, config=TINY_CONFIG).encode(golden["pcm"]) == golden["codes"]).all()


def test_wrong_options(tmp_path):
    path = TINY / "mimi.safetensors"
    assert "width" in refused(path, {**TINY_CONFIG, "width": 3})
    assert "context" in refused(path, {**TINY_CONFIG, "context": "24"})
    assert "9" in refused(path, TINY_CONFIG, num_codebooks=9)
    assert "0" in refused(path, TINY_CONFIG, num_codebooks=0)
    assert "0" in refused(path, TINY_CONFIG, num_threads=0)
    assert '"int8"' in refused(path, TINY_CONFIG, weights="int8")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_code(threads, golden):
    codec = mimi.Mimi(TINY / "mimi.safetensors", num_threads=threads, config=TINY_CONFIG)
    assert (codec.encode(golden["pcm"]) == golden["codes"]).all()
    assert np.abs(codec.decode(golden["codes"]) - golden["decoded"]).max() < 1e-4


def test_damaged_files_never_crash(tmp_path):
    """Seeded damage in the header and cuts anywhere: an error with a sentence, or a codec that works."""
    data = (TINY / "mimi.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    path, pcm = tmp_path / "damaged.safetensors", np.zeros(FRAME_SIZE, np.float32)
    for _ in range(400):
        damaged = bytearray(data)
        for place in rng.integers(0, header, int(rng.integers(1, 4))):
            damaged[place] = int(rng.integers(256))
        if rng.random() < 0.2:
            del damaged[int(rng.integers(len(damaged))) :]
        path.write_bytes(damaged)
        try:
            codec = mimi.Mimi(path, config=TINY_CONFIG)
        except ValueError as error:
            message = str(error)
        else:
            assert codec.encode(pcm).shape == (8, 1)
            continue
        assert message.endswith(".")


def test_codecs_of_one_file_share_their_weights(full_path):
    """In a process of its own: the first takes the weights' 305 MB, further ones almost nothing, until the last has gone."""
    program = """
import gc, sys
from pathlib import Path
import mimi

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

path, sizes = sys.argv[1], [resident()]
codecs = [mimi.Mimi(path)]
sizes.append(resident())
codecs += [mimi.Mimi(path), mimi.Mimi(path, num_codebooks=4), mimi.Mimi(path, num_threads=2)]
streams = [stream for codec in codecs for stream in (codec.encoder(), codec.decoder())]
sizes.append(resident())
del codecs, streams
gc.collect()
sizes.append(resident())
codecs = [mimi.Mimi(path, weights="float16") for _ in range(2)]
sizes.append(resident())
print(*sizes)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say what memory is in use")
    run = subprocess.run([sys.executable, "-c", program, full_path], capture_output=True, text=True, check=True)
    before, one, four, none, half = map(int, run.stdout.split())
    assert 250 < one - before < 330
    assert four - one < 60
    assert none - before < 60
    assert 0.45 * (one - before) < half - none < 0.6 * (one - before)  # the codebooks stay in float32


@pytest.mark.parametrize("wait", [0, 1.1])
def test_a_file_that_has_changed_is_read_again(tmp_path, speech, wait):
    """Also one that changes in place, keeping its size, while a codec of it lives."""
    path, pcm = tmp_path / "mimi.safetensors", speech[: 12 * FRAME_SIZE]
    weights = load_file(DEMO / "mimi.safetensors")
    config = safe_open(DEMO / "mimi.safetensors", "np").metadata()
    save_file(weights, path, config)
    time.sleep(wait)
    first = mimi.Mimi(path)
    before = first.decode(first.encode(pcm))
    name = "decoder.model.14.conv.conv.bias"
    weights[name] = weights[name] + np.float32(0.5)
    save_file(weights, tmp_path / "new.safetensors", config)
    path.write_bytes((tmp_path / "new.safetensors").read_bytes())
    second = mimi.Mimi(path)
    assert np.abs(second.decode(first.encode(pcm)) - before - 0.5).max() < 1e-5
    assert (first.decode(first.encode(pcm)) == before).all()


@pytest.mark.parametrize("stored_anew", [False, True])
@pytest.mark.parametrize(("dtype", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F8_E4M3", 8), ("F8_E8M0", 8), ("C64", 64)])
def test_types_that_are_not_read_are_named(dtype, bits, stored_anew, tmp_path):
    """Such a file is sound; what is wrong is the type of a tensor, whether or not its bytes mean another shape by it."""
    data = (TINY / "mimi.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries, more = json.loads(data[8:start]), bytearray()
    entries.pop("__metadata__", None)
    # Its bytes are a whole number of numbers of any of these types.
    odd = next(
        name
        for name, entry in entries.items()
        if np.diff(entry["data_offsets"])[0] % 192 == 0 and len(entry["shape"]) > 1
    )
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        piece = data[start + begin : start + end]
        if name == odd:
            entry["dtype"] = dtype
            if stored_anew:
                piece = bytes(len(piece) // 4 * bits // 8)
            else:
                entry["shape"] = [8 * len(piece) // bits]
        entry["data_offsets"] = [len(more), len(more) + len(piece)]
        more += piece
    raw = json.dumps(entries).encode()
    path = tmp_path / "typed.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + more)
    with pytest.raises(mimi.MimiError, match=f"`{odd}` has the type {dtype}, but F32, BF16 or F16 is expected"):
        mimi.Mimi(str(path), config=str(TINY / "config.json"))


def test_too_little_memory_is_said_before_it_is_taken(monkeypatch):
    path = DEMO / "mimi.safetensors"
    monkeypatch.setattr("msh_mlx.conversation.codec.memory_to_take", lambda: path.stat().st_size * 2 // 3)
    with pytest.raises(InputError, match=r"^The codec takes .* of memory, and .* can be had; close other programs\.$"):
        load_mimi(path)
    assert load_mimi(path, weights="float16").weights == "float16"
    monkeypatch.setattr("msh_mlx.conversation.codec.memory_to_take", lambda: 1000)
    with pytest.raises(InputError, match="it is a Moshi language model"):
        load_mimi(GOLDEN / "lm-small" / "lm_mlx_f32.safetensors")
