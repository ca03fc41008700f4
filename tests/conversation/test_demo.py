"""Real conversations: the demo model hears a recording of digits and says them back, in words and in sound."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS, ROOT

from msh_mlx import Sampler, Session, Word, load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation.recordings import Ended, Plan, converse
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.sound.recordings import open_recording

EXPECTED = json.loads((DEMO / "expected.json").read_text())
GREEDY = ("--temperature", "0", "--text-temperature", "0")


def msh(*args: str | Path, stdin: bytes = b"", cwd: Path = ROOT) -> str:
    """Run the program as a person does; return what it prints."""
    command = [sys.executable, str(ROOT / "local_mlx.py"), *map(str, args)]
    result = subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stderr == b""
    return result.stdout.decode()


def words_of(transcript: Path) -> list[Word]:
    return [Word(**json.loads(line)) for line in transcript.read_text().splitlines()]


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Path:
    """A folder with what the program made of the digits, greedily: out.wav, stereo.wav, out.jsonl, out.txt."""
    folder = tmp_path_factory.mktemp("greedy")
    args = [
        "--demo",
        "--engine",
        engine,
        "--input",
        DIGITS,
        *GREEDY,
        "--tail",
        "1",
        "--transcript",
        folder / "out.jsonl",
    ]
    (folder / "out.txt").write_text(msh(*args, "--output", folder / "out.wav"))
    msh(*args, "--output", folder / "stereo.wav", "--stereo", "--plain")
    return folder


# ---- hearing words in sound ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def templates() -> dict[str, np.ndarray]:
    """How each of the ten words sounds in the demo's voice, `[samples]` float32."""
    voice = json.loads((DEMO / "voice.json").read_text())
    mimi = load_mimi(DEMO / "mimi.safetensors")
    return {word: mimi.decode(np.array(codes, np.uint32).T.copy()) for word, codes in voice["words"].items()}


def correlation(sound: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Return for every offset how alike (−1 to 1) `template` and the sound there are."""
    padded = np.concatenate([sound.astype(np.float64), np.zeros(len(template))])
    size = 1 << int(len(padded) + len(template)).bit_length()
    products = np.fft.irfft(np.fft.rfft(padded, size) * np.conj(np.fft.rfft(template, size)), size)[: len(sound)]
    energy = np.concatenate([[0], np.cumsum(padded**2)])
    energy = energy[len(template) : len(template) + len(sound)] - energy[: len(sound)]
    return products / np.sqrt(np.maximum(energy, 1e-3 * float(np.square(template).sum())) * np.square(template).sum())


def spoken(sound: np.ndarray, templates: dict[str, np.ndarray], least: float) -> list[Word]:
    """Find the words in a sound, wherever they are: the best template first, nothing else where it was."""
    scores = {word: correlation(sound, template) for word, template in templates.items()}
    found = []
    while True:
        word = max(scores, key=lambda word: scores[word].max())
        at = int(scores[word].argmax())
        if scores[word][at] < least:
            return sorted(found, key=lambda word: word.start)
        found.append(Word(at / SAMPLE_RATE, word))
        for other, template in templates.items():
            scores[other][max(0, at - len(template) * 3 // 4) : at + len(templates[word]) * 3 // 4] = 0


def assert_sound_says(sound: np.ndarray, words: list[Word], templates: dict[str, np.ndarray], least: float) -> None:
    heard = spoken(sound, templates, least)
    assert [word.text for word in heard] == [word.text for word in words]
    for in_sound, in_text in zip(heard, words, strict=True):
        # A word's sound begins one frame after the step of its text.
        assert abs(in_sound.start - (in_text.start + FRAME_SIZE / SAMPLE_RATE)) < 0.2


# ---- tests ---------------------------------------------------------------------------------------------------------------


def test_the_words_and_their_times(greedy: Path) -> None:
    words = words_of(greedy / "out.jsonl")
    assert [word.text for word in words] == EXPECTED["words"]
    for word, step in zip(words, EXPECTED["steps"], strict=True):
        assert abs(word.start / 0.08 - step) < 1.01
        assert round(word.start, 2) == word.start
    first = (greedy / "out.jsonl").read_text().splitlines()[0]
    assert first == '{"start": 2.24, "text": "four"}'


def test_the_sound_says_the_words(greedy: Path, templates: dict[str, np.ndarray]) -> None:
    sound, rate = soundfile.read(greedy / "out.wav", dtype="float32")
    assert rate == SAMPLE_RATE
    assert_sound_says(sound, words_of(greedy / "out.jsonl"), templates, 0.8)


def test_the_reply_is_as_long_as_the_recording_and_its_tail(greedy: Path) -> None:
    frames = -(-soundfile.info(DIGITS).frames // FRAME_SIZE) + 13  # 1 s is 12.5 frames
    info = soundfile.info(greedy / "out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (
        frames * FRAME_SIZE,
        SAMPLE_RATE,
        1,
        "PCM_16",
    )


def test_stereo_is_the_recording_and_the_reply(greedy: Path) -> None:
    both = soundfile.read(greedy / "stereo.wav", dtype="int16", always_2d=True)[0]
    user = soundfile.read(DIGITS, dtype="int16")[0]
    assert np.array_equal(both[: len(user), 0], user)
    assert not both[len(user) :, 0].any()
    assert np.array_equal(both[:, 1], soundfile.read(greedy / "out.wav", dtype="int16")[0])


def test_what_is_printed(greedy: Path) -> None:
    lines = (greedy / "out.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("   ")] == EXPECTED["words"]
    assert f"Said: {' '.join(EXPECTED['words'])}" in lines
    assert f"Reply: {greedy / 'out.wav'}" in lines
    assert f"Transcript: {greedy / 'out.jsonl'}" in lines
    assert any("× real time" in line for line in lines)
    assert any("p50" in line and "p95" in line for line in lines)


def test_default_sampling_says_nine_in_ten_words(templates: dict[str, np.ndarray], tmp_path: Path) -> None:
    lm, mimi = load_lm(DEMO / "model.q8.safetensors", config=DEMO / "config.json"), load_mimi(DEMO / "mimi.safetensors")
    tokenizer = load_tokenizer(DEMO / "tokenizer.model")
    right = 0
    for seed in range(10):
        session = Session(lm, mimi, tokenizer, seed=seed)
        plan = Plan(reply=tmp_path / f"{seed}.wav", tail=1)
        with open_recording(str(DIGITS)) as recording:
            words = converse(session, recording, plan, lambda _: None).words
        said, wanted = [word.text for word in words], list(EXPECTED["words"])
        right += in_common(said, wanted)
        assert len(said) <= len(wanted) + 2
        assert_sound_says(soundfile.read(tmp_path / f"{seed}.wav", dtype="float32")[0], words, templates, 0.6)
    assert right >= 54


def in_common(a: list[str], b: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


def test_the_same_seed_gives_the_same_files_alone_or_among_others(tmp_path: Path) -> None:
    for name, rate in (("a", 24000), ("b", 44100)):
        pcm = soundfile.read(DIGITS, dtype="float32", stop=3 * SAMPLE_RATE)[0]
        soundfile.write(tmp_path / f"{name}.wav", pcm, rate)
    folder = tmp_path / "many"
    folder.mkdir()
    args = ["--demo", "--seed", "5"]
    msh(*args, "--input", "a.wav", "b.wav", "--output-dir", "many", cwd=tmp_path)
    for name in ("a", "b"):
        for _ in range(2):
            msh(*args, "--input", f"{name}.wav", "--output", "one.wav", "--transcript", "one.jsonl", cwd=tmp_path)
            assert (tmp_path / "one.wav").read_bytes() == (folder / f"{name}.wav").read_bytes()
            assert (tmp_path / "one.jsonl").read_bytes() == (folder / f"{name}.jsonl").read_bytes()
    assert (folder / "a.wav").read_bytes() != (folder / "b.wav").read_bytes()
    # The demo model is so sure of itself that only a high temperature shows the seed.
    for seed in ("6", "7"):
        options = ["--temperature", "9", "--seed", seed, "--output", f"{seed}.wav", "--steps", "9"]
        msh("--demo", *options, "--input", "a.wav", cwd=tmp_path)
    assert (tmp_path / "6.wav").read_bytes() != (tmp_path / "7.wav").read_bytes()
    assert not list(tmp_path.rglob(".*"))


def test_a_pipe_is_as_good_as_a_file(tmp_path: Path) -> None:
    pcm = soundfile.read(DIGITS, dtype="float32", stop=2 * SAMPLE_RATE)[0]
    soundfile.write(tmp_path / "in.wav", pcm, SAMPLE_RATE)
    data = (tmp_path / "in.wav").read_bytes()
    endless = data.replace(data[:8], b"RIFF\xff\xff\xff\xff").replace(data[36:44], b"data\xff\xff\xff\xff")
    msh("--demo", *GREEDY, "--input", "in.wav", "--output", "file.wav", cwd=tmp_path)
    msh("--demo", *GREEDY, "--input", "-", "--output", "pipe.wav", cwd=tmp_path, stdin=endless)
    assert (tmp_path / "file.wav").read_bytes() == (tmp_path / "pipe.wav").read_bytes()
    msh(
        "--demo",
        *GREEDY,
        "--input",
        "-",
        "--output",
        "flac.wav",
        "--steps",
        "25",
        cwd=tmp_path,
        stdin=DIGITS.read_bytes(),
    )
    assert (tmp_path / "file.wav").read_bytes() == (tmp_path / "flac.wav").read_bytes()


def test_steps_end_the_conversation(tmp_path: Path) -> None:
    for steps, frames in ((1, 1), (10, 10), (1000, 25 + 2)):
        soundfile.write(tmp_path / "in.wav", np.zeros(2 * SAMPLE_RATE), SAMPLE_RATE)
        args = ["--tail", "0.16", "--steps", str(steps), "--output", "out.wav"]
        msh("--demo", "--input", "in.wav", *args, cwd=tmp_path)
        assert soundfile.info(tmp_path / "out.wav").frames == frames * FRAME_SIZE


def test_the_files_beside_the_model_and_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "models--a@b" / "snapshots"
    folder.mkdir(parents=True)
    for name in ("model.q8.safetensors", "mimi.safetensors", "config.json"):
        (folder / name).symlink_to(DEMO / name)
    (folder / "tokenizer_spm_48.model").symlink_to(DEMO / "tokenizer.model")
    soundfile.write(tmp_path / "a@b c.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    model = ["--model", folder / "model.q8.safetensors", "--mimi", folder / "mimi.safetensors", "--quantized", "8"]
    msh(*model, *GREEDY, "--input", "a@b c.wav", "--output", "x@y z.wav", cwd=tmp_path)
    msh("--demo", *GREEDY, "--input", "a@b c.wav", "--output", "demo.wav", cwd=tmp_path)
    assert (tmp_path / "x@y z.wav").read_bytes() == (tmp_path / "demo.wav").read_bytes()


def test_an_output_is_replaced_as_a_whole_also_through_a_link(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", np.zeros(SAMPLE_RATE // 2), SAMPLE_RATE)
    (tmp_path / "real.wav").write_text("old")
    (tmp_path / "real.wav").chmod(0o640)
    (tmp_path / "link.wav").symlink_to("real.wav")
    msh("--demo", "--input", "in.wav", "--output", "link.wav", cwd=tmp_path)
    assert (tmp_path / "link.wav").is_symlink()
    assert soundfile.info(tmp_path / "real.wav").frames == 7 * FRAME_SIZE
    assert (tmp_path / "real.wav").stat().st_mode & 0o777 == 0o640


def test_a_conversation_where_mlx_is_not(tmp_path: Path) -> None:
    """It says the same as where MLX is, but is not asked for."""
    start = "import sys; sys.modules['mlx'] = None; from msh_mlx.cli.main import main; sys.exit(main())"
    args = ["--demo", "--input", str(DIGITS), *GREEDY, "--tail", "1", "--output"]
    for name, begin, engine in (("without", ["-c", start], "auto"), ("with", ["-m", "msh_mlx"], "native")):
        command = [sys.executable, *begin, *args, str(tmp_path / f"{name}.wav"), "--engine", engine]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
        assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "without.wav").read_bytes() == (tmp_path / "with.wav").read_bytes()
    command = [sys.executable, "-c", start, *args, str(tmp_path / "no.wav"), "--engine", "mlx"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr == "MLX cannot be imported here; leave --engine out, or give --engine native.\n"


def test_the_events_of_a_conversation(tmp_path: Path) -> None:
    """Without files to write, too."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(SAMPLE_RATE), SAMPLE_RATE, format="WAV")
    (tmp_path / "in.wav").write_bytes(buffer.getvalue())
    lm, mimi = load_lm(DEMO / "model.q8.safetensors", config=DEMO / "config.json"), load_mimi(DEMO / "mimi.safetensors")
    session = Session(
        lm, mimi, load_tokenizer(DEMO / "tokenizer.model"), text_sampler=Sampler(0), audio_sampler=Sampler(0)
    )
    events: list[object] = []
    with open_recording(str(tmp_path / "in.wav")) as recording:
        ended = converse(session, recording, Plan(tail=0.1), events.append)
    frame = ["Heard", "Span", "Span", "Span", "Said"]
    assert [type(event).__name__ for event in events] == ["Began", *frame * 15, "Ended"]
    assert isinstance(ended, Ended)
    assert events[-1] is ended
    assert ended.seconds == pytest.approx(1.2)
    assert ended.speed == pytest.approx(ended.seconds / ended.wall)
    assert [len(times) for times in ended.stages.values()] == [15, 15, 15]


def test_a_channel_that_is_left_out_is_told(tmp_path: Path) -> None:
    path = ROOT / "tests" / "cases" / "stereo_opposite_phase.opus"
    lines = msh("--demo", "--plain", "--input", path, "--output", tmp_path / "out.wav").splitlines()
    told = [line for line in lines if line.startswith("Channel 2 of ")]
    assert len(told) == 1
    assert lines.index(told[0]) < lines.index("Said: four one")
