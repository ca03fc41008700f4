"""A session against its parts, on the demo model."""

import json
import threading

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS, GOLDEN

from msh_mlx import InputError, InUseError, LmGen, Sampler, Session, TextStream, load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation.session import step_together

GREEDY = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0)}


@pytest.fixture(scope="module")
def parts(engine):
    return (
        load_lm(DEMO / "model.q8.safetensors", DEMO / "config.json", engine=engine),
        load_mimi(DEMO / "mimi.safetensors"),
        load_tokenizer(DEMO / "tokenizer.model"),
    )


@pytest.fixture(scope="module")
def speech():
    """[frames, 1920] of the demo recording, its first 60 frames: one question and its answer."""
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    assert rate == 24000
    return pcm[: 60 * 1920].reshape(60, 1920)


def heard(session, speech):
    frames = [session.push(pcm) for pcm in speech]
    return np.concatenate([f.pcm for f in frames]), [f.token for f in frames], "".join(f.text for f in frames)


def test_a_session_is_its_parts(parts, speech):
    lm, mimi, tokenizer = parts
    codes = mimi.encode(speech.ravel())
    gen, text = LmGen(lm, **GREEDY), TextStream(tokenizer, lm.config.padding_ids)
    steps = [gen.step(codes[:, t]) for t in range(len(speech))]
    reply = mimi.decode(np.stack([s.codes for s in steps], axis=1))
    pcm, tokens, said = heard(Session(lm, mimi, tokenizer, **GREEDY), speech)
    assert tokens == [s.text_token for s in steps]
    assert said == "".join(text.push(token) for token in tokens) == " four one"
    assert pcm.dtype == np.float32
    assert np.abs(pcm - reply).max() < 1e-5


def test_frames_say_what_they_took(parts, speech):
    frame = Session(*parts).push(speech[0])
    assert frame.pcm.shape == (1920,)
    assert min(frame.timings.encode, frame.timings.step, frame.timings.decode) > 0
    assert frame.timings.total == pytest.approx(frame.timings.encode + frame.timings.step + frame.timings.decode)


def test_reset_starts_afresh(parts, speech):
    session = Session(*parts, seed=11)
    first = heard(session, speech)
    session.reset()
    again = heard(session, speech)
    assert (first[0] == again[0]).all()
    assert first[1:] == again[1:]


def test_sessions_side_by_side_do_not_meet(parts, speech):
    alone = heard(Session(*parts, seed=1), speech)
    one, other = Session(*parts, seed=1), Session(*parts, seed=2)
    quiet = np.zeros(1920, np.float32)
    frames = []
    for pcm in speech:
        frames.append(one.push(pcm))
        other.push(quiet)
    assert (np.concatenate([f.pcm for f in frames]) == alone[0]).all()


def test_sessions_that_step_together_say_what_each_says_alone(parts, speech):
    """One hears the question from the beginning, one later, one has a seed, one hears nothing."""
    mimi, late = parts[1], 7
    codes = mimi.encode(speech.ravel())
    quiet = mimi.encode(np.zeros(len(speech) * 1920, np.float32))
    heard_by = [codes, np.concatenate([quiet[:, :late], codes], axis=1)[:, : len(speech)], codes, quiet]
    options = [GREEDY, GREEDY, {"seed": 5, "text_sampler": Sampler(0)}, GREEDY]

    def sessions():
        return [Session(*parts, **option) for option in options]

    alone = [
        [session.step(own[:, t]) for t in range(len(speech))] for session, own in zip(sessions(), heard_by, strict=True)
    ]
    beside, together = sessions(), []
    for t in range(len(speech)):
        together.append(step_together([(session, own[:, t]) for session, own in zip(beside, heard_by, strict=True)]))
    for i, steps in enumerate(alone):
        others = [row[i] for row in together]
        assert [step.text_token for step, _ in others] == [step.text_token for step, _ in steps]
        assert "".join(text for _, text in others) == "".join(text for _, text in steps)
        if i != 2:  # by MLX, other codes may be drawn with the same seed
            for (one, _), (other, _) in zip(others, steps, strict=True):
                assert (one.codes is None) == (other.codes is None)
                assert one.codes is None or (one.codes == other.codes).all()
    assert "".join(row[0][1] for row in together) == " four one"
    with pytest.raises(InputError, match="shape"):
        step_together([(beside[0], codes[:, 0]), (beside[1], codes[:3, 0])])


def test_made_on_one_thread_and_used_on_others(parts, speech):
    """Each stage on a thread of its own, all of them other than the one on which everything was loaded and made."""

    def on_a_thread(work):
        result = []
        thread = threading.Thread(target=lambda: result.append(work()))
        thread.start()
        thread.join(10)
        return result[0]

    wanted = heard(Session(*parts, **GREEDY), speech[:12])
    loaded = on_a_thread(
        lambda: (
            load_lm(DEMO / "model.q8.safetensors", DEMO / "config.json"),
            load_mimi(DEMO / "mimi.safetensors"),
            load_tokenizer(DEMO / "tokenizer.model"),
        )
    )
    session = on_a_thread(lambda: Session(*loaded, **GREEDY))
    on_a_thread(session.warm_up)
    codes = on_a_thread(lambda: [session.encode(pcm) for pcm in speech[:12]])
    spoken = on_a_thread(lambda: [session.step(c) for c in codes])
    reply = on_a_thread(lambda: [session.decode(step.codes) for step, _ in spoken])
    assert [step.text_token for step, _ in spoken] == wanted[1]
    assert (np.concatenate(reply) == wanted[0]).all()
    session.reset()
    assert heard(session, speech[:12])[1:] == wanted[1:]


def test_two_threads_at_once_are_told(parts, speech):
    session = Session(*parts, **GREEDY)
    for lock, work in (
        (session._encoding, lambda: session.push(speech[0])),
        (session._gen._in_use, lambda: session.push(speech[0])),
        (session._decoding, lambda: session.decode(None)),
    ):
        with lock, pytest.raises(InUseError, match="another thread"):
            work()


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (np.zeros(1919, np.float32), r"float32\[1919\]"),
        (np.zeros(1920), r"float64\[1920\]"),
        (np.zeros((1, 1920), np.float32), r"float32\[1, 1920\]"),
        ([0.0] * 1920, "list"),
        (np.where(np.arange(1920) == 7, np.nan, 0).astype(np.float32), "Sample 7 "),
        (np.where(np.arange(1920) == 1919, np.inf, 0).astype(np.float32), "Sample 1919 "),
    ],
    ids=["short", "float64", "2d", "list", "nan", "inf"],
)
def test_a_wrong_frame_is_refused_and_changes_nothing(pcm, says, parts, speech):
    session, undisturbed = Session(*parts, **GREEDY), Session(*parts, **GREEDY)
    for good in speech[:5]:
        session.push(good), undisturbed.push(good)
    with pytest.raises(InputError, match=says):
        session.push(pcm)
    for good in speech[5:12]:
        assert (session.push(good).pcm == undisturbed.push(good).pcm).all()


def test_silence_until_the_first_frame_is_complete(parts, speech):
    _, mimi, tokenizer = parts
    config = json.loads((DEMO / "config.json").read_text())
    config["delays"] = [0, 0, *[3] * 7, 0, *[3] * 7]
    session = Session(load_lm(DEMO / "model.q8.safetensors", config), mimi, tokenizer, **GREEDY)
    replies = [session.push(pcm).pcm for pcm in speech[:4]]
    assert [bool(np.any(pcm)) for pcm in replies] == [False, False, True, True]
    assert all(pcm.shape == (1920,) and pcm.dtype == np.float32 for pcm in replies)


def test_parts_that_do_not_belong_together(parts):
    lm, mimi, tokenizer = parts
    small = load_lm(GOLDEN / "lm-small" / "lm_mlx_f32.safetensors", GOLDEN / "lm-small" / "config.json")
    with pytest.raises(InputError, match="48 pieces and the model 96"):
        Session(small, mimi, tokenizer)
    with pytest.raises(InputError, match="4 codebooks and the model needs 8"):
        Session(lm, load_mimi(DEMO / "mimi.safetensors", num_codebooks=4), tokenizer)
    with pytest.raises(InputError, match="128 codes a codebook and the model 256"):
        Session(
            lm,
            load_mimi(GOLDEN / "mimi-tiny" / "mimi.safetensors", config=GOLDEN / "mimi-tiny" / "config.json"),
            tokenizer,
        )
    fast = load_mimi(DEMO / "mimi.safetensors", config={**mimi.config, "sample_rate": 48000, "frame_rate": 25.0})
    with pytest.raises(InputError, match="frames of 1920 samples at 48000 Hz, and a conversation has 1920 at 24000;"):
        Session(lm, fast, tokenizer)


@pytest.mark.parametrize(
    ("use", "says"), [("stt", "speech-to-text .*; use Transcriber"), ("tts", "text-to-speech .*; use Speaker")]
)
def test_models_for_other_uses_are_refused(use, says, parts):
    lm = load_lm(DEMO / use / "model.safetensors", DEMO / use / "config.json")
    with pytest.raises(InputError, match=f"The model is a {says}"):
        Session(lm, *parts[1:])


def test_wrong_codec_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.safetensors"):
        load_mimi(tmp_path / "none.safetensors")
    with pytest.raises(InputError):
        load_mimi(tmp_path)
    with pytest.raises(InputError):
        load_mimi(DEMO / "model.q8.safetensors")
    with pytest.raises(InputError):
        load_mimi(DEMO / "mimi.safetensors", num_codebooks=0)
