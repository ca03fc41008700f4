"""Text to speech on the demo model: against the reference, against itself in pieces, and heard by the demo speech to text."""

import itertools
import json
import random
import threading
import tracemalloc

import numpy as np
import pytest
from engines import load_exact, seeded
from paths import DEMO

from msh_mlx import (
    InputError,
    InUseError,
    LmConfig,
    Sampler,
    Speaker,
    TextSampler,
    Turn,
    load_lm,
    load_mimi,
    load_tokenizer,
    read_speaker,
    voice_codes,
)
from msh_mlx.conversation.transcriber import Transcriber

GREEDY = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0)}
EXPECTED = json.loads((DEMO / "tts" / "expected.json").read_text())["cases"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def parts(engine):
    return (
        load_exact(DEMO / "tts" / "model.safetensors", DEMO / "tts" / "config.json", engine),
        load_mimi(DEMO / "mimi.safetensors"),
        load_tokenizer(DEMO / "tokenizer.model"),
    )


@pytest.fixture(scope="module")
def voices():
    return {
        name: read_speaker(DEMO / "tts" / "voices" / f"{name}.d161752e@1.safetensors") for name in ("brisk", "calm")
    }


@pytest.fixture(scope="module")
def prefix_lm(tmp_path_factory, engine):
    """A model that goes on from a recording, with random weights, for the demo's codec and tokenizer."""
    config = json.loads((DEMO / "tts" / "config.json").read_text())
    config |= {
        "dim": 32,
        "num_layers": 1,
        "depformer_dim": 16,
        "depformer_num_layers": 1,
        "depformer_dim_feedforward": 64,
    }
    config |= {"cross_attention": False, "conditioners": {}, "fuser": {}, "text_card_out": 5}
    return seeded(tmp_path_factory.mktemp("prefix"), LmConfig.from_dict(config), engine, seed=5)[0]


def steps(speech):
    return list(iter(speech.step, None))


def codes(speech):
    return [step.codes.tolist() for step in steps(speech) if step.codes is not None]


def said(speech):
    """The sound, and the words."""
    frames = list(speech)
    return np.concatenate([frame.pcm for frame in frames]), [word for frame in frames for word in frame.words]


# ---- the reference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: f"{case['script'][:9]}-{case['voice']}")
def test_the_reference(parts, voices, case):
    speaker = Speaker(*parts, voices=[voices[case["voice"]]] if case["voice"] else [], **GREEDY)
    speech = speaker.say(case["script"])
    run = steps(speech)
    assert [step.text_token for step in run] == case["text_input"]
    assert [step.codes.tolist() for step in run if step.codes is not None][: len(case["codes"])] == case["codes"]
    assert speech.end == case["end_step"]
    words = said(speaker.say(case["script"]))[1]
    assert [[word.text, round(word.start * 12.5)] for word in words] == case["word_steps"]


def test_the_sound_is_that_of_the_codes(parts):
    speaker = Speaker(*parts, **GREEDY)
    sound, _ = said(speaker.say("one two"))
    whole = parts[1].decode(np.array(codes(speaker.say("one two")), np.uint32).T)
    assert np.abs(sound - whole).max() < 1e-5


# ---- text that comes in pieces -------------------------------------------------------------------------------------------


def test_pieces_say_what_the_whole_says(parts):
    rng, speaker = random.Random(2), Speaker(*parts, **GREEDY)
    for _ in range(2):
        atoms = [*DIGITS, '<break time="0.2s"/>', '<break time="300ms"/>']
        text = " ".join(rng.choice(atoms) for _ in range(6))
        size = rng.randrange(1, 5)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert codes(speaker.say(pieces)) == codes(speaker.say(text))


def test_a_word_is_said_when_the_next_two_are_known(parts):
    read = []

    def pieces():
        for word in DIGITS:
            read.append(word)
            yield f"{word} "

    behind = []
    speech = Speaker(*parts, **GREEDY).say(pieces())
    for frame in speech:
        behind += [len(read) - 1 - DIGITS.index(word.text) for word in frame.words]
    assert len(behind) == 10
    # Sound comes six positions after its text, by when the next word may have begun: it needs the two behind it.
    assert max(behind) <= 3


def test_a_text_without_end_takes_no_more_memory(parts):
    words = itertools.cycle(f"{word} " for word in DIGITS)
    speech = Speaker(*parts, **GREEDY).say(words)
    for _ in range(110):  # beyond the window of 100 positions
        next(speech)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(100):
        next(speech)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000


def test_pauses_without_end_are_not_read_ahead(parts):
    read = []

    def pieces():
        while True:
            read.append("<break time=0.1s/>")
            yield read[-1]

    speech = Speaker(*parts, **GREEDY).say(pieces())
    for _ in range(20):
        next(speech)
    assert len(read) < 150


def test_no_text(parts):
    assert said(Speaker(*parts, **GREEDY).say("(one"))[1][0].text == "one"
    assert [word for frame in Speaker(*parts, **GREEDY).say(" \n") for word in frame.words] == []


# ---- voices and speakers -------------------------------------------------------------------------------------------------


def test_two_speakers_take_turns(parts, voices):
    """The speaker's token comes in front of the first word of a turn, if the speaker is another than before."""
    speaker = Speaker(*parts, voices=[voices["brisk"], voices["calm"]], **GREEDY)
    turns = [Turn("one two"), Turn("three", 1), " four", Turn("five", 1), Turn("six", 0)]
    rows = parts[0].config.text_card + 1
    first = [step.text_token % rows for step in steps(speaker.say(turns))]
    names = {parts[2].PieceToId(f"▁{word}"): word for word in DIGITS}
    order = [names.get(token, token) for token in first if token not in (0, 3)]
    assert order == [1, "one", "two", 2, "three", "four", "five", 1, "six"]
    assert [word.text for word in said(speaker.say(turns))[1]] == ["one", "two", "three", "four", "five", "six"]


def test_turns_of_speakers_without_a_voice(parts, voices):
    for given, number in (([], 1), ([voices["calm"]], 1), ([voices["calm"]] * 2, 2), ([], -1), ([], "A")):
        with pytest.raises(InputError, match="There is a turn of speaker"):
            list(Speaker(*parts, voices=given, **GREEDY).say(Turn("one", number)))


def test_calm_is_slower(parts, voices):
    brisk, calm = (
        len(said(Speaker(*parts, voices=[voices[name]], **GREEDY).say("one two three"))[0]) for name in voices
    )
    assert calm > brisk


def test_the_padding_bonus_makes_speech_slower(parts):
    long = []
    for bonus in (-10, 0, 20):
        speaker = Speaker(*parts, text_sampler=TextSampler(0, padding_bonus=bonus), audio_sampler=Sampler(0))
        long.append(len(steps(speaker.say("one two three"))))
    assert long == sorted(set(long))


def test_a_seed_repeats_a_speech(parts):
    hot = Sampler(5.0)
    one, again, other = (codes(Speaker(*parts, audio_sampler=hot, seed=seed).say("one")) for seed in (4, 4, 5))
    assert one == again != other


def test_fewer_codebooks(parts):
    """The first frame has the same first codes: only what follows differs."""
    all_of = codes(Speaker(*parts, **GREEDY).say("one two"))
    fewer = codes(Speaker(*parts, codebooks=3, **GREEDY).say("one two"))
    assert {len(frame) for frame in fewer} == {3}
    assert fewer[0] == all_of[0][:3]
    sound, words = said(Speaker(*parts, codebooks=3, **GREEDY).say("one two"))
    assert [word.text for word in words] == ["one", "two"]
    assert np.abs(sound).max() > 0.1


def test_a_recording_is_a_voice(parts, prefix_lm):
    """The recording's frames come first, and are not heard; the times of words begin behind them."""
    _, mimi, tokenizer = parts
    sound = said(Speaker(*parts, **GREEDY).say("nine"))[0]
    voice = voice_codes(mimi, sound)
    assert (voice == mimi.encode(sound)[:, :-2]).all()
    length = voice.shape[1]
    for cfg, codebooks in ((None, 8), (2.0, 8), (2.0, 5)):
        speaker = Speaker(prefix_lm, mimi, tokenizer, voices=[voice], cfg=cfg, codebooks=codebooks, **GREEDY)
        speech = speaker.say("one two three")
        all_of = codes(speech)
        assert np.array_equal(np.array(all_of[:length]).T, voice[:codebooks])
        frames = list(speaker.say("one two three"))
        assert len(frames) == len(all_of) - length
        whole = mimi.decode(np.array(all_of, np.uint32).T)
        assert np.abs(np.concatenate([frame.pcm for frame in frames]) - whole[length * 1920 :]).max() < 1e-5
        times = [word.start for frame in frames for word in frame.words]
        assert len(times) == 3
        assert 0 <= times[0] < 1


def test_guidance_changes_what_is_said(parts, prefix_lm):
    _, mimi, tokenizer = parts
    without, one, two = (
        codes(Speaker(prefix_lm, mimi, tokenizer, cfg=cfg, **GREEDY).say("one")) for cfg in (None, 1, 2)
    )
    assert without == one != two


# ---- words that are not known --------------------------------------------------------------------------------------------


def test_unknown_words_are_left_out_and_named(parts):
    speech = Speaker(*parts, **GREEDY).say("One, x12 two! «THREE» ' \N{SNOWMAN} x12")
    assert [word.text for word in said(speech)[1]] == ["One,", "two!", "«THREE»"]
    assert speech.notes == [f"The model does not know {word!r}, which is left out." for word in ("x12", "'", "☃")]
    plain = codes(Speaker(*parts, **GREEDY).say("one two three"))
    assert codes(Speaker(*parts, **GREEDY).say("One, x12 two! «THREE»")) == plain
    many = Speaker(*parts, **GREEDY).say("one " + " ".join(f"x{i}" for i in range(1000)))
    said(many)
    assert len(many.notes) == 11


# ---- what does not fit ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit(parts, voices, prefix_lm):
    lm, mimi, tokenizer = parts
    calm = voices["calm"]
    stt = load_lm(DEMO / "stt" / "model.safetensors", DEMO / "stt" / "config.json")
    fewer = load_mimi(DEMO / "mimi.safetensors", num_codebooks=4)
    codes_of = np.zeros((8, 5), np.int64)
    for change, message in (
        ({"lm": stt}, "The model is a speech-to-text model, not one that speaks text; give a text-to-speech model."),
        ({"mimi": fewer}, "The codec has 4 codebooks and the model needs 8; load it with as many."),
        ({"codebooks": 9}, "The model has 8 codebooks, not 9; give 1 to 8."),
        ({"codebooks": 0}, "The model has 8 codebooks, not 0; give 1 to 8."),
        ({"cfg": 2.25}, "The condition cfg cannot be '2.25'; it may be 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0."),
        ({"cfg": float("nan")}, "The cfg nan is not a number from 0 to 100."),
        ({"padding": 1.5}, "The padding 1.5 is not a whole number from 0 to 100."),
        ({"voices": [calm] * 3}, "There are 3 voices; give 2 at most."),
        (
            {"voices": [calm[:, :3]]},
            "The voice is float32[25, 3], and the model takes finite float32[steps, 32]; give a",
        ),
        ({"voices": [calm * np.float32("nan")]}, "The voice is float32[25, 32], and the model takes finite"),
        ({"voices": [calm, calm[:7]]}, "The voices have 25 and 7 steps; as many in each are expected, 1 to 1000."),
        ({"seed": -1}, "The seed -1 is not a whole number from 0 to 2^64 − 1."),
        ({"lm": prefix_lm, "voices": [codes_of] * 2}, "The model speaks with one voice; give one in place of 2."),
        (
            {"lm": prefix_lm, "voices": [codes_of[:7]]},
            "The voice is int64[7, 5]; codes [8, frames] below 256 are expected.",
        ),
        ({"lm": prefix_lm, "voices": [codes_of + 256]}, "The voice is int64[8, 5]; codes [8, frames] below 256 are"),
        (
            {"lm": prefix_lm, "voices": [calm]},
            "The voice is float32[25, 32]; codes [8, frames] below 256 are expected.",
        ),
    ):
        given = {"lm": lm, "mimi": mimi, "tokenizer": tokenizer, **change}
        with pytest.raises(InputError) as caught:
            Speaker(**given)
        assert str(caught.value).startswith(message), str(caught.value)
    with pytest.raises(InputError, match="has only 3840 samples; give more than 3840"):
        voice_codes(mimi, np.zeros(3840, np.float32))


def test_text_that_is_refused_ends_the_text(parts):
    speech, words = Speaker(*parts, **GREEDY).say("one two three four <break/> five"), []
    with pytest.raises(InputError, match="<break/>"):
        words.extend(word for frame in speech for word in frame.words)
    words += [word for frame in speech for word in frame.words]  # what was known then can still be heard
    assert [word.text for word in words] == ["one", "two", "three", "four"]


# ---- threads -------------------------------------------------------------------------------------------------------------


def test_one_thread_at_a_time(parts):
    inside, go_on = threading.Event(), threading.Event()

    def text():
        inside.set()
        go_on.wait(10)
        yield "one"

    speech = Speaker(*parts, **GREEDY).say(text())
    frames = []
    thread = threading.Thread(target=lambda: frames.extend(speech))
    thread.start()
    assert inside.wait(10)
    try:
        for use in (speech.step, lambda: next(speech)):
            with pytest.raises(InUseError):
                use()
    finally:
        go_on.set()
        thread.join()
    assert np.array_equal([f.pcm for f in frames], [f.pcm for f in Speaker(*parts, **GREEDY).say("one")])


def test_speakers_share_a_model(parts, voices):
    """Speeches in turns give what each gives alone."""
    speakers = [Speaker(*parts, voices=[voice], seed=1) for voice in voices.values()]
    alone = [codes(speaker.say("one two")) for speaker in speakers]
    speeches = [speaker.say("one two") for speaker in speakers]
    together = [[], []]
    for _ in range(40):
        for speech, got in zip(speeches, together, strict=True):
            if (step := speech.step()) is not None and step.codes is not None:
                got.append(step.codes.tolist())
    assert together == alone


# ---- accuracy ------------------------------------------------------------------------------------------------------------


def test_what_is_said_is_heard(parts, voices):
    """The demo speech to text hears the words; `scripts/say_and_hear.py` does the same with more."""
    _, mimi, tokenizer = parts
    lm = load_lm(DEMO / "tts" / "model.safetensors", DEMO / "tts" / "config.json")
    ear = Transcriber(load_lm(DEMO / "stt" / "model.safetensors", DEMO / "stt" / "config.json"), mimi, tokenizer)
    rng, right = random.Random(11), 0
    for number in range(2):
        words = [rng.choice(DIGITS) for _ in range(10)]
        sound, told = said(Speaker(lm, mimi, tokenizer, voices=[voices["brisk"]], seed=number).say(" ".join(words)))
        ear.reset()
        heard = [*ear.push(sound), *ear.flush()]
        assert [word.text for word in told] == words
        right += sum(word.text == one for word, one in zip(heard, words, strict=False))
    assert right >= 19
