"""Personas: from a voice and a text to a conversation, and the prompts that are kept."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS
from safetensors.numpy import save_file

from msh_mlx import InputError, LmGen, Opening, Sampler, Session, TextSampler
from msh_mlx.conversation.kept import KeptPrompts
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.personas import LONGEST, Persona, Personas, read_persona, read_sound, text_tokens
from msh_mlx.conversation.session import Parts
from msh_mlx.library.files import find_demo
from msh_mlx.model.engine import LanguageModel, Manner
from msh_mlx.model.families.personaplex import SILENT_FRAMES, Voice, prompt_codes
from msh_mlx.model.prefill import Prefilled, first_position, prefill
from msh_mlx.weights.checkpoint import open_checkpoint
from msh_mlx.weights.voice import read_voice, write_sound

GREEDY = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0), "seed": 0}
EXPECTED = json.loads((DEMO / "persona" / "expected.json").read_text())
CASES = {case["prompt"]: case for case in EXPECTED["cases"]}


@pytest.fixture(scope="module")
def parts(engine: str) -> Parts:
    return load_parts(find_demo("persona"), engine=engine)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """The frames of the demo recording, `[n, 1920]`."""
    pcm, rate = soundfile.read(DIGITS, dtype="float32")
    assert rate == 24000
    return np.pad(pcm, (0, -len(pcm) % 1920)).reshape(-1, 1920)


@pytest.fixture
def kept(tmp_path: Path) -> KeptPrompts:
    return KeptPrompts(tmp_path / "prompts")


@pytest.fixture
def voice(tmp_path: Path, digits: np.ndarray) -> Path:
    """A recording of two spoken digits, 1.7 s, that is not a whole number of frames."""
    path = tmp_path / "speaker.wav"
    soundfile.write(path, digits[:22].ravel()[:-700], 24000, subtype="FLOAT")
    return path


def prompt_of(opening: Opening) -> Prefilled:
    assert isinstance(opening.prompt, Prefilled)
    return opening.prompt


def equal(lm: LanguageModel, one: Prefilled, other: Prefilled) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(lm.kept(one), lm.kept(other), strict=True))


def inputs(columns: np.ndarray) -> np.ndarray:
    """What the model makes of columns: the sums of their embeddings."""
    files = find_demo("persona")
    checkpoint = open_checkpoint(files.model, files.config)
    tables = ["text_emb", *(f"audio_embs.{k}" for k in range(checkpoint.config.n_q))]
    found = [
        np.concatenate([rows for _, rows in checkpoint.rows(table)])[columns[:, i]] for i, table in enumerate(tables)
    ]
    total: np.ndarray = np.sum(found, axis=0, dtype=np.float32)
    return total


def told(session: Session, frames: np.ndarray) -> tuple[list[int], bytes]:
    """What a session answers: its tokens and its sound."""
    said = [session.push(frame) for frame in frames]
    return [frame.token for frame in said], b"".join(frame.pcm.tobytes() for frame in said)


# ---- what it does --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["next", "backwards"])
def test_the_demo_obeys_its_prompt(parts: Parts, digits: np.ndarray, text: str) -> None:
    """The words, and the frames that they come in, are those of the reference implementation."""
    opening = Personas(parts).opening(Persona(text=text))
    assert prompt_of(opening).prompt.columns[1 : 1 + 14, 0].tolist() == CASES[text]["prefix_text"][1:]
    session = Session(parts.lm, parts.mimi, parts.tokenizer, **GREEDY, opening=opening)
    words = [(i, said) for i, frame in enumerate(digits[:80]) if (said := session.push(frame).text.strip())]
    wanted = [pair for pair in zip(CASES[text]["steps"], CASES[text]["words"], strict=True) if pair[0] < 80]
    assert words == wanted
    assert len(words) == 3


def test_a_reset_begins_with_the_same_persona_at_once(
    parts: Parts, digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Personas(parts).opening(Persona(text="backwards"))
    monkeypatch.setattr("msh_mlx.model.generate.prefill", None)  # nothing is read again
    session = Session(parts.lm, parts.mimi, parts.tokenizer, **GREEDY, opening=opening)
    first = told(session, digits[:40])
    session.reset()
    assert told(session, digits[:40]) == first


def test_without_a_persona_there_is_silence_before_the_conversation(parts: Parts, digits: np.ndarray) -> None:
    """As on the server, where the persona of a client that chooses nothing is an empty one."""
    opening = Personas(parts).opening(Persona())
    assert prompt_of(opening).prompt.columns.shape == (2 * SILENT_FRAMES + 1, 17)
    logits = []
    for begin in (None, opening):
        session = Session(parts.lm, parts.mimi, parts.tokenizer, **GREEDY, opening=begin)
        told(session, digits[:3])
        logits.append(np.array(session._gen.text_logits))
    assert np.array_equal(*logits)


def test_a_prompt_that_a_conversation_reads_itself_is_read_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(Personas(parts).opening(Persona(text="next"))).prompt
    count = 0

    def counted(*args: object, **options: object) -> Prefilled:
        nonlocal count
        count += 1
        return prefill(*args, **options)

    monkeypatch.setattr("msh_mlx.model.generate.prefill", counted)
    gen = LmGen(parts.lm, prompt=prompt, **GREEDY)
    tokens = []
    for _ in range(2):
        tokens.append([gen.prime(), *(gen.step(np.full(8, i)).text_token for i in range(5))])
        gen.reset()
    assert tokens[0] == tokens[1]
    assert count == 1


# ---- prompts -------------------------------------------------------------------------------------------------------------


def test_text_has_tags(parts: Parts) -> None:
    tokens = CASES["repeat"]["prefix_text"][6:9]
    for text in ("repeat", " repeat\n", "<system> repeat <system>"):
        assert text_tokens(parts.tokenizer, text) == tokens
    assert text_tokens(parts.tokenizer, "  ") == []


def test_a_voice_as_sound(parts: Parts, voice: Path) -> None:
    """The columns hold the codec's codes, one frame in each column, and the delayed ones one column later."""
    config = parts.lm.config
    persona = read_persona(str(voice), "next")
    assert (persona.name, persona.recording) == ("speaker", True)
    columns = prompt_of(Personas(parts).opening(persona)).prompt.columns
    silence, sine = prompt_codes(config)
    assert isinstance(persona.voice, np.ndarray)
    encoder = parts.mimi.encoder()
    padded = np.pad(persona.voice, (0, -len(persona.voice) % 1920)).reshape(-1, 1920)
    codes = [encoder.step(frame)[:, 0] for frame in padded]
    own = [*codes, *[silence] * (6 + 3 + 6)]  # the text has three tokens
    assert len(columns) == len(own) + 1
    for c in range(1, len(own)):
        assert columns[c, 0] == (14, 16, 14)[c - 28] if 28 <= c < 31 else columns[c, 0] == 3
        assert columns[c, 1] == own[c][0]
        assert columns[c, 9] == sine[0]
        if c > 1:
            assert columns[c, 2:9].tolist() == own[c - 1][1:].tolist()
            assert columns[c, 10:].tolist() == sine[1:].tolist()
    assert columns[0].tolist() == columns[0, :1].tolist() + [config.card] * 16


def test_a_voice_in_nvidias_form_is_the_same(parts: Parts, voice: Path) -> None:
    """The form holds the inputs of a recording's columns, and the last columns as a ring. Both ways lead to one state."""
    lm, frames = parts.lm, 22
    personas = Personas(parts)
    persona = read_persona(voice, "next")
    prefilled = prompt_of(personas.opening(persona))
    columns = prefilled.prompt.columns
    ring = np.zeros((17, 4), np.int32)
    for c in range(frames - 3, frames + 1):
        ring[:, c % 4] = columns[c]
    other = replace(persona, voice=Voice(inputs(columns[: frames - 1]), ring))
    same = prompt_of(personas.opening(other))
    assert (same.prompt.columns[frames - 1 :] == columns[frames - 1 :]).all()
    for a, b in zip(lm.kept(prefilled), lm.kept(same), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=2**-10 if a.dtype == np.float16 else 1e-5)


def test_a_voice_is_read_on_another_thread(parts: Parts, tmp_path: Path, engine: str) -> None:
    """The command line reads it on the main thread; the model runs on its own."""
    random = np.random.default_rng(2)
    tensors = {"embeddings": random.normal(0, 0.1, (12, 1, 1, 256)).astype(np.float32)}
    save_file({**tensors, "cache": random.integers(0, 60, (1, 17, 4))}, tmp_path / "voice.safetensors")
    persona = read_persona(tmp_path / "voice.safetensors", "next")
    here = prompt_of(Personas(parts).opening(persona))
    with ThreadPoolExecutor(1) as thread:
        again = partial(load_parts, find_demo("persona"), engine=engine)
        there = thread.submit(lambda: prompt_of(Personas(again()).opening(persona))).result()
    assert equal(parts.lm, here, there)


def test_reading_in_chunks_is_reading_step_by_step(parts: Parts, voice: Path) -> None:
    """A prompt of more than one chunk leaves what one column after the other leaves."""
    lm = parts.lm
    text = " ".join(["say the digits again please"] * 6)
    whole = prompt_of(Personas(parts).opening(read_persona(voice, text)))
    count = first_position(lm.config, whole.prompt)
    assert count > 64
    logits = []
    for read, first in ((whole, count), (None, 0)):
        run = lm.converse(Manner(TextSampler(0), Sampler(0)))
        run.begin(0, read)
        for position in range(first, count + 1):  # a step reads a column of the prompt like any other
            run.step(position, whole.prompt.columns[position], np.zeros(0, np.int32))
            run.take()
        logits.append(np.array(run.text_logits()))
    assert np.abs(logits[0]).max() > 1
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-3 if lm.about().engine.startswith("native") else 2e-4)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Say nothing É", "does not know 'S' and 'É'"),
        ("<b>", "does not know '<' and '>'"),
        ("repeat " * 800, "takes 814 steps, and the model's window has 750"),
    ],
)
def test_a_wrong_text(parts: Parts, text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        Personas(parts).opening(Persona(text=text))


def test_a_voice_of_another_model(parts: Parts) -> None:
    personas = Personas(parts)
    for embedded, columns, what in (
        (np.zeros((4, 64), np.float32), np.zeros((17, 4), np.int32), "of width 64 with 17 streams"),
        (np.zeros((4, 256), np.float32), np.zeros((9, 4), np.int32), "of width 256 with 9 streams"),
        (np.zeros((4, 256), np.float32), np.full((17, 4), 70000, np.int32), "tokens that the model does not know"),
        (np.zeros((4, 256), np.float32), np.full((17, 4), -2, np.int32), "tokens that the model does not know"),
        (np.zeros((800, 256), np.float32), np.zeros((17, 4), np.int32), "takes 813 steps"),
    ):
        with pytest.raises(InputError, match=what):
            personas.opening(Persona(Voice(embedded, columns)))


FLOAT = np.float32
WRONG_SOUNDS = [
    np.zeros(0, FLOAT),
    np.zeros(1920),
    np.zeros((1, 1920), FLOAT),
    np.full(1920, np.nan, FLOAT),
    np.zeros(1920, np.int16),
    "jo.wav",
]


@pytest.mark.parametrize("sound", WRONG_SOUNDS)
def test_a_wrong_sound(parts: Parts, sound: object) -> None:
    """A voice from Python is checked before anything is computed."""
    with pytest.raises(InputError, match="sound of the voice"):
        Personas(parts).opening(Persona(sound))


def test_a_moshi_takes_no_persona() -> None:
    with pytest.raises(InputError, match="The model is a Moshi language model, which takes neither a voice nor a role"):
        Personas(load_parts(find_demo()))


# ---- recordings ----------------------------------------------------------------------------------------------------------


def test_a_recording_gets_the_loudness_of_voices(tmp_path: Path) -> None:
    """By the standard's own calibration: a sine of 997 Hz at full scale has −3.01 LUFS in one channel."""
    path = tmp_path / "sine.wav"
    wave = 0.5 * np.sin(2 * np.pi * 997 * np.arange(2 * 48000) / 48000)
    soundfile.write(path, np.stack([wave, wave], axis=1), 48000)
    sound = read_sound(str(path))
    assert sound.shape == (2 * 24000,)
    assert np.abs(sound[4800:-4800]).max() == pytest.approx(10 ** ((-24 + 3.01) / 20), rel=0.01)


def test_a_wrong_recording(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "r.wav"
    for pcm, what in (
        (digits[8:12].ravel(), "lasts 0.32 s, which is too short for a voice"),
        (np.zeros(48000), "is silent, and so it has no voice"),
        (np.resize(digits.ravel(), int(24000 * LONGEST) + 2000), "lasts more than 60 s, which is too long for a voice"),
    ):
        soundfile.write(path, pcm, 24000)
        with pytest.raises(InputError, match=what):
            read_persona(path)


def test_a_voice_that_was_made_is_its_recording(voice: Path, tmp_path: Path) -> None:
    sound = read_sound(str(voice))
    path = tmp_path / "made.safetensors"
    with path.open("wb") as file:
        write_sound(file, sound)
    made = read_voice(path)
    assert isinstance(made, np.ndarray)
    assert made.tobytes() == sound.tobytes()
    assert read_persona(path).name == "made"
    data = path.read_bytes()
    for damaged in (data[:-4] + np.float32(np.nan).tobytes(), data.replace(b"sound", b"sonud"), data[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            read_voice(path)


# ---- prompts that are kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_a_kept_prompt_is_the_same_bit_by_bit(
    parts: Parts,
    digits: np.ndarray,
    voice: Path,
    kept: KeptPrompts,
    monkeypatch: pytest.MonkeyPatch,
    kv_bits: int | None,
) -> None:
    persona = read_persona(voice, "next")
    fresh = Personas(parts, kv_bits=kv_bits, kept=kept).opening(persona)
    monkeypatch.setattr("msh_mlx.conversation.personas.prefill_in_turns", None)  # nothing is read again
    again = Personas(parts, kv_bits=kv_bits, kept=kept).opening(persona)
    assert again is not fresh
    conversations = []
    for opening in (fresh, again):
        session = Session(parts.lm, parts.mimi, parts.tokenizer, seed=7, kv_bits=kv_bits, opening=opening)
        conversations.append(told(session, digits[:30]))
    assert conversations[0] == conversations[1]
    (one,) = kept.all()
    assert one.about == {"model": "persona/model.q8.safetensors", "voice": "speaker", "text": "next"}


def test_some_are_in_memory(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    personas = Personas(parts)

    def of(text: str) -> Prefilled:
        return prompt_of(personas.opening(Persona(text=text)))

    first, second, _, fourth = [of(text) for text in ("next", "repeat", "backwards", "a")]
    assert of("next") is first
    of("b")  # the fifth: "repeat" was used least recently
    assert of("next") is first
    assert of("repeat") is not second
    monkeypatch.setattr("msh_mlx.conversation.personas._BYTES_IN_MEMORY", 2 * first.nbytes)
    last = of("c")  # three are in memory: two, and the newest
    assert of("c") is last
    assert of("next") is first
    assert of("b") is of("b")
    assert of("a") is not fourth


def test_what_a_prompt_depends_on(parts: Parts, voice: Path, kept: KeptPrompts) -> None:
    """Another text, voice, model, format of keys and values: another prompt."""
    persona = read_persona(voice, "next")
    assert isinstance(persona.voice, np.ndarray)
    quieter = replace(persona, voice=0.5 * persona.voice)
    for one in (persona, replace(persona, text="repeat"), replace(persona, voice=None), quieter):
        Personas(parts, kept=kept).opening(one)
    Personas(parts, kept=kept, kv_bits=8).opening(persona)
    Personas(replace(parts, identity="another"), kept=kept).opening(persona)
    assert len(kept.all()) == 6
    Personas(replace(parts, identity=""), kept=kept).opening(Persona(text="a"))  # nothing says what the model is
    assert len(kept.all()) == 6


def test_the_identity_changes_with_the_files(tmp_path: Path, parts: Parts) -> None:
    demo = find_demo("persona")
    model = tmp_path / "model.q8.safetensors"
    model.write_bytes(demo.model.read_bytes())
    assert load_parts(demo).identity == parts.identity
    copied = load_parts(replace(demo, model=model)).identity
    os.utime(model, (1, 1))
    config = tmp_path / "config.json"
    values = json.loads(demo.config.read_text()) if demo.config else {}
    values["prompt_codes"]["sine"][0] += 1
    config.write_text(json.dumps(values))
    touched = load_parts(replace(demo, model=model)).identity
    changed = load_parts(replace(demo, config=config)).identity
    half = load_parts(demo, codec_weights="float16").identity
    assert len({parts.identity, copied, touched, changed, half}) == 5


def test_a_damaged_prompt_is_made_anew(parts: Parts, kept: KeptPrompts) -> None:
    persona = Persona(text="next")
    fresh = prompt_of(Personas(parts, kept=kept).opening(persona))
    (one,) = kept.all()
    path, data = one.path, one.path.read_bytes()
    end = data.index(b"\n")
    line = json.loads(data[:end])
    rest = data[end:]

    def with_line(**changes: object) -> bytes:
        return json.dumps({**line, **changes}).encode() + rest

    random = np.random.default_rng(5)
    damaged = [b"", b"\n", b"{}\n", b"[]\n", data[:end], data[:-1], data + b"\0", rest, b"\xff" * 500, b"[" * 100_000]
    damaged += [with_line(form="other"), with_line(key="0" * 64), with_line(digest=""), with_line(columns=3)]
    damaged += [with_line(columns=value) for value in (-5, 10**30, None, "x", float("inf"), line["columns"] + 1)]
    for position in random.integers(end + 1, len(data), 30):
        changed = bytearray(data)
        changed[position] ^= 1 << int(random.integers(8))
        damaged.append(bytes(changed))
    for wrong in damaged:
        path.write_bytes(wrong)
        assert kept.get(line["key"], parts.lm, None) is None
    path.unlink()
    path.mkdir()
    assert kept.get(line["key"], parts.lm, None) is None
    path.rmdir()
    path.write_bytes(damaged[-1])
    again = prompt_of(Personas(parts, kept=kept).opening(persona))
    assert path.read_bytes() == data
    assert equal(parts.lm, fresh, again)


def test_any_byte_of_the_line_may_be_wrong(parts: Parts, kept: KeptPrompts) -> None:
    """The prompt is right or missing; what is said about it is not a part of it."""
    fresh = prompt_of(Personas(parts, kept=kept).opening(Persona(text="next")))
    (one,) = kept.all()
    data = one.path.read_bytes()
    key = one.path.stem
    for position in range(data.index(b"\n") + 1):
        one.path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        found = kept.get(key, parts.lm, None)
        if found is not None:
            assert equal(parts.lm, fresh, found)
        kept.all()


def test_the_limit(parts: Parts, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    texts = ["next", "repeat", "a"]

    def keep(limit: int, text: str) -> None:
        Personas(parts, kept=KeptPrompts(folder, limit)).opening(Persona(text=text))

    def there() -> list[str]:
        return [one.about["text"] for one in KeptPrompts(folder).all()]

    keep(0, "next")
    assert not folder.exists()
    keep(1000, "next")  # it is larger than that
    assert there() == []
    for i, text in enumerate(texts[:3]):
        keep(10**9, text)
        (newest,) = [one for one in KeptPrompts(folder).all() if one.about["text"] == text]
        os.utime(newest.path, (1000 + i, 1000 + i))
    (folder / ".msh-abandoned.tmp").write_bytes(b"x")
    os.utime(folder / ".msh-abandoned.tmp", (1000, 1000))
    (folder / ".msh-new.tmp").write_bytes(b"x")
    assert there() == ["a", "repeat", "next"]
    keep(10**9, "next")  # now it was used last
    assert there() == ["next", "a", "repeat"]
    size = max(one.size for one in KeptPrompts(folder).all())
    keep(3 * size + 100, "me")
    assert there() == ["me", "next", "a"]
    assert sorted(path.name for path in folder.glob(".*")) == [".msh-new.tmp"]
    keep(3 * size + 100, "a")
    assert there() == ["a", "me", "next"]
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert KeptPrompts(folder).clear() == total
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(parts: Parts, tmp_path: Path) -> None:
    """Conversations begin all the same."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "prompts", None):
        personas = Personas(parts, kept=KeptPrompts(folder))
        assert prompt_of(personas.opening(Persona(text="next"))).nbytes
        assert KeptPrompts(folder).all() == []
        assert KeptPrompts(folder).clear() == 0


def test_the_prompts_own_frames(parts: Parts) -> None:
    """Nothing but silence and the sine: 6 frames on both sides of the text."""
    prompt = prompt_of(Personas(parts).opening(Persona())).prompt
    assert len(prompt.columns) == 2 * SILENT_FRAMES + parts.lm.config.max_delay
    silence, sine = prompt_codes(parts.lm.config)
    assert prompt.columns[5].tolist() == [3, *silence, *sine]
