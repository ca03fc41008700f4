"""`Transcriber`: words and their times, however the sound comes; turns; and several recordings at once."""

import dataclasses
import itertools
import json
import threading

import numpy as np
import pytest
import soundfile
from paths import DEMO, DIGITS

from msh_mlx import InputError, InUseError, LmConfig, Transcriber, load_lm, load_mimi, load_tokenizer
from msh_mlx.conversation.subtitles import srt, vtt
from msh_mlx.conversation.transcriber import BEHIND, Transcribed, spelled, transcribe
from msh_mlx.conversation.turns import EndOfTurn
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.model.families.stt import Timing, WordTimes

STT = DEMO / "stt"
SOUND = soundfile.read(DIGITS, dtype="float32")[0]
EXPECTED = json.loads((STT / "expected.json").read_text())
TURNS = [2.0, 5.68, 9.52]  # seconds, after "four one", "three" and "eight nine zero"


@pytest.fixture(scope="module")
def parts(engine):
    lm = load_lm(STT / "model.safetensors", STT / "config.json", engine=engine)
    return lm, load_mimi(DEMO / "mimi.safetensors"), load_tokenizer(DEMO / "tokenizer.model")


def with_prefix(parts, seconds):
    config = LmConfig.from_file(STT / "config.json")
    timing = {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": seconds}
    return load_lm(STT / "model.safetensors", dataclasses.replace(config, stt_config=timing)), *parts[1:]


def plain(words):
    """Words as texts, starts and ends; times in milliseconds."""
    return [(word.text, *(None if t is None else round(1000 * t) for t in (word.start, word.end))) for word in words]


def heard(parts, sound, behind=BEHIND):
    transcriber = Transcriber(*parts)
    return plain(transcriber.push(sound) + transcriber.flush(behind))


def pieces(sound, seed):
    """Cut sound into pieces of random sizes, some of them empty."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(sound) + 1, 40))
    return np.split(sound, cuts)


# ---- words -----------------------------------------------------------------------------------------------------------------


def test_the_words_of_the_reference(parts):
    """In pieces of any size; and the times begin at 0 again after a reset."""
    transcriber = Transcriber(*parts)
    starts = [round(1000 * start) for start in EXPECTED["start"]]
    for seed in range(2):
        words = [word for piece in pieces(SOUND, seed) for word in transcriber.push(piece)] + transcriber.flush(BEHIND)
        assert [word[:2] for word in plain(words)] == list(zip(EXPECTED["words"], starts, strict=True))
        assert [word.end for word in words] == [*(word.start for word in words[1:]), None]
        assert transcriber.seconds == len(SOUND) / SAMPLE_RATE
        transcriber.reset()
        assert transcriber.seconds == 0


def test_words_come_when_they_are_complete(parts):
    """Frame by frame, a word comes half a second behind its beginning, and gets its end with the next one."""
    transcriber = Transcriber(*parts)
    came, words = [], []
    for i in range(0, len(SOUND), FRAME_SIZE):
        new = transcriber.push(SOUND[i : i + FRAME_SIZE])
        assert all(word.end is None for word in new)
        words += new
        came += [i / SAMPLE_RATE - word.start for word in new]
    assert [word.text for word in words] == EXPECTED["words"]
    assert 0.4 < min(came) <= max(came) < 0.8
    assert [word.end for word in words[:-1]] == [word.start for word in words[1:]]


def test_the_prefix_takes_no_time(parts):
    """With a second of silence in front, the words are those of the sound with that silence, a second earlier."""
    wanted = heard(parts, np.concatenate([np.zeros(SAMPLE_RATE, np.float32), SOUND]))
    got = heard(with_prefix(parts, 1.0), SOUND)
    assert got == [(text, *(t if t is None else t - 1000 for t in times)) for text, *times in wanted]


def test_nothing_said(parts):
    transcriber = Transcriber(*parts)
    assert transcriber.flush() == []
    assert transcriber.push(np.zeros(0, np.float32)) == transcriber.push(np.zeros(3 * SAMPLE_RATE, np.float32)) == []
    assert transcriber.flush() == transcriber.flush() == []


def test_words_without_a_boundary_are_split(parts):
    """Pieces that begin with a space are words of their own, which begin a step before their piece."""
    tokenizer = parts[2]
    four, one = (tokenizer.PieceToId(piece) for piece in ("▁four", "▁one"))
    words = WordTimes(Timing(6, 0.0))
    done = [words.push(token) for token in (3, 3, 3, 3, 3, 3, 0, four, one, 3)]
    assert done[:-1] == [None] * 9
    assert done[-1].start == pytest.approx(0.08)
    assert spelled(done[-1], tokenizer) == [(pytest.approx(0.08), "four"), (pytest.approx(0.16), "one")]
    assert words.push(one) is None
    assert words.open
    assert words.close().tokens == [one]
    assert not words.open


# ---- turns -----------------------------------------------------------------------------------------------------------------


def live(parts, sound, flush=True):
    """Frame by frame, flushing at the end of each turn: the words, and when turns ended."""
    transcriber = Transcriber(*parts)
    words, ends = [], []
    for i in range(0, len(sound), FRAME_SIZE):
        words += transcriber.push(sound[i : i + FRAME_SIZE])
        if transcriber.turn_ended and flush:
            ends.append(transcriber.seconds)
            words += transcriber.flush()
    return plain(words + transcriber.flush()), ends


def test_turns_end_by_the_extra_heads(parts):
    """Each is reported until it is ended, and once, though the model writes its last words again."""
    words, ends = live(parts, SOUND)
    assert ends == TURNS
    assert words == heard(parts, SOUND)


def test_a_flush_changes_nothing(parts):
    """Wherever it is: the model goes on exactly as without it, and no word comes twice or is lost."""
    rng = np.random.default_rng(3)
    sound = SOUND + rng.normal(0, 0.004, len(SOUND)).astype(np.float32)
    plainly, flushed = Transcriber(*parts), Transcriber(*parts)
    wanted, words = [], []
    for i, piece in enumerate(pieces(sound, 8)):
        wanted += plainly.push(piece)
        words += flushed.push(piece)
        assert flushed.pause == plainly.pause
        if i % 2:
            words += flushed.flush()
    wanted, words = plain(wanted + plainly.flush()), plain(words + flushed.flush())
    assert len(wanted) >= 6
    # A word that was cut off may be another one.
    assert [abs(a[1] - b[1]) < 300 for a, b in zip(words, wanted, strict=True)] == [True] * len(wanted)
    assert sum(a[0] == b[0] for a, b in zip(words, wanted, strict=True)) >= len(wanted) - 1


def test_a_flush_is_the_end_of_the_sound(parts):
    """It returns what the sound until then has, also if that ends in the middle of a frame or of a word."""
    for cut in (700, *np.random.default_rng(5).integers(0, 200_000, 3), len(SOUND)):
        transcriber = Transcriber(*parts)
        words = plain(transcriber.push(SOUND[:cut]))
        after = plain(transcriber.flush())
        assert words + after == heard(
            parts, np.concatenate([SOUND[:cut], np.zeros(-cut % FRAME_SIZE, np.float32)]), 0.08
        )
        assert transcriber.flush() == []


def test_turns_end_by_quiet_without_extra_heads():
    """Sound, then 1.5 s of quiet, also above steady noise; reported until the turn is ended."""
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.004, 12 * SAMPLE_RATE).astype(np.float32)
    for background in (0 * noise, noise):
        turn, ends = EndOfTurn(), []
        for i in range(0, len(background), FRAME_SIZE):
            turn.hear(background[i : i + FRAME_SIZE] + SOUND[i : i + FRAME_SIZE])
            turn.write(False, None)
            if turn.ended:
                ends.append(i / SAMPLE_RATE)
                turn.end()
        np.testing.assert_allclose(ends, [1.55 + 1.5, 5.15 + 1.5, 9.2 + 1.5], atol=0.2)


# ---- several recordings ----------------------------------------------------------------------------------------------------


def test_a_batch_writes_what_each_would_alone(parts):
    """Recordings of different lengths, more of them than rows; each comes in pieces."""
    rng = np.random.default_rng(7)
    sounds = [
        SOUND,
        SOUND[:30_000],
        SOUND[100_000:],
        np.zeros(0, np.float32),
        0.3 * SOUND[90_000:190_000],
        SOUND[70_000::-1].copy(),
    ]
    sounds += [SOUND + rng.normal(0, 0.004, len(SOUND)).astype(np.float32)]
    wanted = [heard(parts, sound) for sound in sounds]
    assert sum(map(len, wanted)) > 18
    for rows in (1, 3):
        got, lengths = {}, {}
        news = transcribe(*parts, (iter(pieces(sound, rows)) for sound in sounds), rows=rows, ahead=rows > 1)
        for progress in itertools.chain.from_iterable(news):
            got.setdefault(progress.index, []).extend(progress.words)
            if progress.ended:
                lengths[progress.index] = progress.seconds
        assert [plain(got[i]) for i in range(len(sounds))] == wanted
        assert [lengths[i] for i in range(len(sounds))] == [len(sound) / SAMPLE_RATE for sound in sounds]


def test_a_recording_that_breaks_off_keeps_its_words(parts):
    """The others go on."""

    def broken():
        yield SOUND[:100_000]
        raise InputError("It ends too early.")

    words, errors = {}, {}
    news = transcribe(*parts, [iter([SOUND]), broken(), iter([SOUND])], rows=2)
    for progress in itertools.chain.from_iterable(news):
        words.setdefault(progress.index, []).extend(progress.words)
        if progress.ended:
            errors[progress.index] = progress.error and str(progress.error)
    assert errors == {0: None, 1: "It ends too early.", 2: None}
    assert plain(words[1]) == heard(parts, SOUND[:100_000])
    assert plain(words[0]) == plain(words[2]) == heard(parts, SOUND)


# ---- what is refused -------------------------------------------------------------------------------------------------------


def test_what_is_not_sound(parts):
    transcriber = Transcriber(*parts)
    for wrong, said in (
        (np.zeros(5), "is float64"),
        (np.zeros((2, 5), np.float32), r"is float32\[2, 5\]"),
        ([0.0], "is list"),
        (np.array([0, np.nan], np.float32), "Sample 1 of the sound"),
    ):
        with pytest.raises(InputError, match=said):
            transcriber.push(wrong)
    assert transcriber.seconds == 0


def test_parts_that_do_not_belong_together(parts):
    lm, _, tokenizer = parts
    moshi = load_lm(DEMO / "model.q8.safetensors", DEMO / "config.json")
    with pytest.raises(InputError, match="a Moshi language model, not one that writes down speech"):
        Transcriber(moshi, *parts[1:])
    with pytest.raises(InputError, match="has 4 codebooks and the model needs 8"):
        Transcriber(lm, load_mimi(DEMO / "mimi.safetensors", num_codebooks=4), tokenizer)


def test_one_thread_at_a_time(parts):
    transcriber = Transcriber(*parts)
    errors = []

    def use(action):
        try:
            action()
        except InUseError as error:
            errors.append(str(error))

    thread = threading.Thread(target=use, args=(lambda: transcriber.push(SOUND),))
    thread.start()
    while thread.is_alive():
        use(transcriber.flush)
    assert errors
    assert all("on one at a time" in error for error in errors)
    transcriber.reset()
    assert plain(transcriber.push(SOUND) + transcriber.flush(BEHIND)) == heard(parts, SOUND)


# ---- subtitles -------------------------------------------------------------------------------------------------------------


def test_subtitles():
    words = [
        Transcribed("four", 0.72, 1.28), Transcribed("<one>", 1.28, 4.8), Transcribed("R&B", 4.8, None),
    ]  # fmt: skip
    assert srt(words) == "1\n00:00:00,720 --> 00:00:02,880\nfour <one>\n\n2\n00:00:04,800 --> 00:00:06,400\nR&B\n"
    assert vtt(words) == (
        "WEBVTT\n\n00:00:00.720 --> 00:00:02.880\nfour &lt;one&gt;\n\n00:00:04.800 --> 00:00:06.400\nR&amp;B\n"
    )
    assert (srt([]), vtt([])) == ("", "WEBVTT\n")
    assert srt([Transcribed("a\n\nb\x00", 0.0)]) == "1\n00:00:00,000 --> 00:00:01,600\na  b\ufffd\n"


def test_lines_of_subtitles_follow_each_other():
    """Whatever the words: each is in one line, lines do not overlap, and none is empty or too long."""
    rng = np.random.default_rng(9)
    for _ in range(50):
        starts = np.cumsum(rng.choice([0.0, 0.08, 0.4, 1.2, 9.0], 40))
        words = [Transcribed("w" * rng.integers(1, 60), float(start)) for start in starts]
        for word, following in itertools.pairwise(words):
            word.end = following.start if rng.random() < 0.8 else None
        lines = [line.split("\n") for line in srt(words).strip().split("\n\n")]
        assert " ".join(line[2] for line in lines) == " ".join(word.text for word in words)
        spans = [[sum(float(x.replace(",", ".")) * y for x, y in zip(time.split(":"), (3600, 60, 1), strict=True))
                  for time in line[1].split(" --> ")] for line in lines]  # fmt: skip
        assert all(begin < end for begin, end in spans)
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(spans))
        assert [line[0] for line in lines] == [str(i + 1) for i in range(len(lines))]
