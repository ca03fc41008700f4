"""Translations by Hibiki: against the reference, and with recordings. The small models have no trained sound."""

import io
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import sentencepiece
import soundfile
from paths import DEMO, DIGITS, GOLDEN, ROOT
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from msh_mlx import InputError, LmConfig, LmGen, Sampler, Session, TextSampler, load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation import recordings
from msh_mlx.conversation.live import NullSink
from msh_mlx.conversation.pipeline import Pipeline
from msh_mlx.conversation.recordings import Plan, converse
from msh_mlx.conversation.session import Opening
from msh_mlx.events import Notice, Said, Spoke
from msh_mlx.model.families import family_of, hibiki
from msh_mlx.sound.recordings import open_recording

SMALL = GOLDEN / "hibiki-small"
ZERO = GOLDEN / "hibiki-zero-small"
GREEDY = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A codec and a tokenizer that fit the small models: the demo's codec with 64 codes a codebook, and 96 pieces."""
    folder = tmp_path_factory.mktemp("hibiki")
    with safe_open(DEMO / "mimi.safetensors", "np") as opened:
        config = json.loads(opened.metadata()["config"]) | {"bins": 64}
    tensors = {
        name: tensor[:64] if name.endswith(("cluster_usage", "embedding_sum")) else tensor
        for name, tensor in load_file(DEMO / "mimi.safetensors").items()
    }
    save_file(tensors, folder / "mimi-small.safetensors", {"config": json.dumps(config)})
    model = io.BytesIO()
    words = " ".join(
        f"{first}{last}" for first in "bdfgklmnprst" for last in ("a", "e", "i", "o", "u", "an", "en", "on")
    )
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([words]), model_writer=model, vocab_size=96, model_type="word", minloglevel=2
    )
    (folder / "tokenizer_small.model").write_bytes(model.getvalue())
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    soundfile.write(folder / "speech.wav", pcm[: 30 * 1920 - 100], rate)
    return folder


@pytest.fixture(scope="module")
def parts(folder, engine):
    return (
        load_lm(SMALL / "lm.safetensors", SMALL / "config.json", engine=engine),
        load_mimi(folder / "mimi-small.safetensors"),
        load_tokenizer(folder / "tokenizer_small.model"),
    )


def hear(session, golden):
    """Let a session hear the codes of the reference's input. Return its steps, and after which of them it had ended."""
    codes, end = golden["user_codes"], int(golden["end_of_input"][0])
    steps, ended = [], []
    for t in range(codes.shape[1]):
        if t == end:
            assert (codes[:, t] == session._gen.lm.config.card).all()
            before = session._gen._position
            session.end_input()
            steps.append(None)
            assert session._gen._position == before + 1 + (t == 0)
        else:
            steps.append(session.step(codes[:, t])[0])
        ended.append(session.ended)
    return steps, ended


@pytest.mark.parametrize(("name", "run", "coef"), [(SMALL, "plain.", 1), (SMALL, "cfg3.", 3), (ZERO, "", 1)])
def test_a_session_translates_as_the_reference(parts, name, run, coef, engine):
    golden = load_file(name / "golden.safetensors")
    lm = parts[0] if name == SMALL else load_lm(name / "lm.safetensors", name / "config.json", engine=engine)
    # Without an opening, the condition is that of a good translation.
    opening = None if coef == 1 else Opening(steering=hibiki.steering(lm, coef))
    session = Session(lm, *parts[1:], opening=opening, **GREEDY)
    for _ in range(2):  # once more after a reset
        steps, ended = hear(session, golden)
        tokens, frames = golden[f"{run}text_tokens"], golden[f"{run}frames"]
        delay = lm.config.max_delay
        for t, step in enumerate(steps):  # step t is position t + 1
            if step is None:
                continue
            assert step.text_token == tokens[t + 1]
            if t + 1 < delay:
                assert step.codes is None
            else:
                assert step.codes.tolist() == frames[1:, t + 1 - delay].tolist()
        # An end that comes before the end of the input is ignored. The sound is complete some steps after the right one.
        end = int(golden["end_of_input"][0])
        ends = [t for t in range(end, len(steps)) if tokens[t + 1] == hibiki.END]
        first = ends[0] + delay if ends else len(steps)
        assert ended == [t >= first for t in range(len(steps))]
        session.reset()
        assert not session.ended


def by_hand(parts, speech, seed):
    """The steps of a translation with its end, taken one by one; None: it does not end soon."""
    lm, mimi, _ = parts
    gen, encoder = LmGen(lm, steering=hibiki.steering(lm), seed=seed), mimi.encoder()

    def step(pcm):
        return gen.step(encoder.step(pcm)[: lm.config.user_q, 0])

    steps, silence = [step(pcm) for pcm in speech], np.zeros(1920, np.float32)
    steps.append(gen.end_input())
    for _ in range(30):
        if steps[-1].text_token == hibiki.END:
            return steps + [step(silence) for _ in range(lm.config.max_delay)]
        steps.append(step(silence))
    return None


@pytest.fixture(scope="module")
def ending(parts, folder):
    """A seed with which a translation of the recording ends, and its steps."""
    pcm, _ = soundfile.read(folder / "speech.wav", dtype="float32")
    speech = np.pad(pcm, (0, 100)).reshape(30, 1920)
    return next((seed, steps) for seed in range(100) if (steps := by_hand(parts, speech, seed)))


def translated(session, folder, plan=None):
    """What converse says of the recording: its sound, its notices, and how it ended."""
    events = []
    with open_recording(str(folder / "speech.wav")) as recording:
        ended = converse(session, recording, plan or Plan(), events.append)
    sound = [event.pcm for event in events if isinstance(event, Said)]
    return np.concatenate(sound), [event for event in events if isinstance(event, Notice)], ended


def test_a_recording_is_translated_to_its_end(parts, folder, ending):
    seed, steps = ending
    session = Session(*parts, seed=seed)
    sound, notices, last = translated(session, folder)
    assert len(sound) == len(steps) * 1920
    assert last.seconds == pytest.approx(len(steps) * 0.08)
    assert notices == []
    decoder = parts[1].decoder()
    frames = [np.zeros(1920) if s.codes is None else decoder.step(s.codes[:, None]) for s in steps]
    assert np.abs(sound - np.concatenate(frames)).max() < 1e-5
    # Again, from fresh state.
    session.reset()
    assert np.array_equal(translated(session, folder)[0], sound)
    # A limit of steps counts all of them.
    session.reset()
    assert len(translated(session, folder, Plan(max_steps=31))[0]) == 31 * 1920


def test_a_translation_that_does_not_end(parts, folder, monkeypatch):
    # With such a bonus, only padding is chosen.
    session = Session(*parts, text_sampler=TextSampler(0, padding_bonus=1e6), audio_sampler=Sampler(0))
    sound, (notice,), _ = translated(session, folder, Plan(tail=0.8))
    assert len(sound) == (30 + 1 + 10) * 1920
    assert notice.message.endswith("speech.wav has not ended after 0.8 s of silence; --tail sets how long to wait.")
    assert notice.level == "warning"
    session.reset()
    monkeypatch.setattr(recordings, "PATIENCE", 1.6)
    assert len(translated(session, folder)[0]) == (31 + 20) * 1920
    session.reset()
    assert len(translated(session, folder, Plan(tail=0))[0]) == 31 * 1920


class Tape:
    """A source with sound that waits, of which nothing is dropped."""

    def __init__(self, frames):
        self.frames = list(frames)

    def read(self, n, timeout):
        return self.frames.pop(0) if self.frames else None

    def backlog(self):
        return 0.0

    def trim(self, keep):
        return 0.0


def test_a_live_translation_is_the_same(parts, folder):
    """It is a conversation as any other, on the same threads: canceller, delay and restart know no difference."""
    pcm, _ = soundfile.read(folder / "speech.wav", dtype="float32")
    speech = np.pad(pcm, (0, 100)).reshape(30, 1920)
    session = Session(*parts, seed=0)
    frames = [session.push(frame) for frame in speech]
    said, spoken, done = [], [], threading.Event()

    def listen(event):
        if isinstance(event, Said):
            said.append(event.pcm)
            if len(said) == len(speech):
                done.set()
        elif isinstance(event, Spoke):
            spoken.append(event.text)

    pipeline = Pipeline(lambda *_: Session(*parts, seed=0), Tape(speech), NullSink(), listen, delay_limit=60.0)
    pipeline.start()
    assert done.wait(30)
    assert pipeline.stop(5)
    assert np.array_equal(np.concatenate(said), np.concatenate([frame.pcm for frame in frames]))
    assert "".join(spoken) == "".join(frame.text for frame in frames)


def test_only_a_translation_has_an_end_of_input(parts):
    session = Session(
        load_lm(DEMO / "model.q8.safetensors", DEMO / "config.json"),
        load_mimi(DEMO / "mimi.safetensors"),
        load_tokenizer(DEMO / "tokenizer.model"),
    )
    assert not session.translates
    with pytest.raises(InputError, match="Only a model that translates"):
        session.end_input()
    frame = Session(*parts).end_input()
    assert frame.pcm.shape == (1920,)
    assert frame.timings.encode == 0


# ---- how tokens are chosen -----------------------------------------------------------------------------------------------


def test_tokens_are_chosen_as_the_model_says(parts):
    values = json.loads((SMALL / "config.json").read_text())
    said = {"temp": 0.5, "temp_text": 0.6, "top_k": 30, "top_k_text": 50, "other": "x"}
    for given, text, audio in (
        ({}, Sampler(0.8, 250), Sampler(0.8, 250)),
        ({"lm_gen_config": None}, Sampler(0.8, 250), Sampler(0.8, 250)),
        ({"lm_gen_config": said}, Sampler(0.6, 50), Sampler(0.5, 30)),
        ({"lm_gen_config": {"temp_text": 0.7}}, Sampler(0.7, 250), Sampler(0.8, 250)),
    ):
        config = LmConfig.from_dict(values | given)
        assert family_of(config).samplers(config) == (text, audio)
        assert LmConfig.from_dict(config.to_dict()) == config
    for wrong in (7, [1], {"temp": "hot"}, {"top_k": -1}, {"temp_text": None}):
        with pytest.raises(InputError, match="has an lm_gen_config that is not understood"):
            LmConfig.from_dict(values | {"lm_gen_config": wrong})
    # Of other families the key says nothing, and refuses nothing.
    moshi = LmConfig.from_dict({"lm_gen_config": 7})
    assert family_of(moshi).samplers(moshi) == (Sampler(0.7, 25), Sampler(0.8, 250))
    # What nobody says is what is usual.
    gen = LmGen(parts[0], seed=0)
    assert (gen.text_sampler.temperature, gen.text_sampler.top_k) == (0.8, 250)
    assert gen.audio_sampler == Sampler(0.8, 250)


def test_guidance_needs_a_condition(parts):
    assert hibiki.steering(parts[0], 3).batch == 2
    config = LmConfig.from_file(ZERO / "config.json")
    with pytest.raises(InputError, match="This model of Hibiki has no conditions"):
        hibiki.check_guidance(config, 3)


# ---- the command ---------------------------------------------------------------------------------------------------------


def run(folder, *options):
    command = [sys.executable, str(ROOT / "local_mlx.py"), "--plain", *map(str, options)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def model(folder, name):
    files = ["--model", name / "lm.safetensors", "--mimi", folder / "mimi-small.safetensors"]
    return [*files, "--tokenizer", folder / "tokenizer_small.model"]


def test_the_command_translates(parts, folder, ending, tmp_path, engine):
    seed, steps = ending
    options = ["--input", "speech.wav", "--output", tmp_path / "out.wav", "--transcript", tmp_path / "out.jsonl"]
    options += ["--engine", engine]
    result = run(folder, *model(folder, SMALL), *options, "--seed", seed)
    assert (result.returncode, result.stderr) == (0, "")
    out, rate = soundfile.read(tmp_path / "out.wav")
    assert (len(out), rate) == (len(steps) * 1920, 24000)
    said = " ".join(json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    pieces = [parts[2].IdToPiece(s.text_token) for s in steps if s.text_token > 3]
    assert said.replace(" ", "") == "".join(pieces).replace("\u2581", "")
    # With guidance it is another one.
    guided = run(folder, *model(folder, SMALL), *options, "--seed", seed, "--guidance", 3, "--tail", 0.8)
    assert guided.returncode == 0, guided.stderr
    other, _ = soundfile.read(tmp_path / "out.wav")
    assert len(out) != len(other) or not np.array_equal(out, other)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (lambda folder: [*model(folder, ZERO), "--guidance", 3], "has no conditions, so it cannot be guided"),
        (
            lambda _: ["--demo", "--guidance", 3],
            "The demo model is a Moshi language model, and --guidance is for Hibiki",
        ),
        (lambda _: ["--demo", "--guidance", -1], "--guidance"),
    ],
)
def test_guidance_that_is_not_possible(folder, tmp_path, options, says):
    result = run(folder, *options(folder), "--input", "speech.wav", "--output", tmp_path / "out.wav")
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.wav").exists()
