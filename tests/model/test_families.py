"""What each family fills into the grid, against slow versions in `slow_scripts.py`; and families' models against `slow_lm.py`.

The scripts are compared over random cases. Random samples take the place of a model's; `LmGen` and the rest are real.
"""

import numpy as np
import pytest
import slow_scripts as slow
from engines import seeded

from msh_mlx import InputError, LmConfig, LmGen, TextSampler
from msh_mlx.model.engine import Prefilled
from msh_mlx.model.families import personaplex, stt, tts
from msh_mlx.model.grid import AS_SAID
from msh_mlx.model.steering import Steering

SIZE = {
    "dim": 8, "num_layers": 1, "num_heads": 1, "context": 8, "text_card": 20, "card": 10, "depformer_dim": 8,
    "depformer_num_layers": 1, "depformer_num_heads": 1, "depformer_dim_feedforward": 12,
}  # fmt: skip


class Samples:
    """A model that gives samples that were made beforehand, and keeps what it was given. It is its only conversation, too.

    `text` and `codes` are by position; `columns` are those that positions read, or, if rows differ, one for each row.
    """

    def __init__(self, config, text, codes):
        self.config, self.columns = config, []
        self._text, self._codes = text, codes

    def converse(self, manner):
        return self

    def prefill(self, prompt, kv_bits, steering, chunk):
        yield Prefilled(prompt, kv_bits, None, 0)

    def begin(self, seed, prefilled):
        self._said, self._started, self._half = np.full(1 + self.config.dep_q, self.config.card), [], False

    def step(self, position, column, recent):
        self._reads(position, column)
        self._chooses(self._text[position])
        self._started.append(self._said)

    def take(self):
        started, self._started = self._started, []
        return np.array(started, np.int32)

    def hear(self, position, rows, recent):
        half, self._half = self._half, True
        self._reads(position, rows)
        return int(self._text[position]), self._said if half else None

    def speak(self, token, codes):
        self._chooses(token)
        if not codes:
            self._said[1:] = 0

    def rest(self):
        return self._said if self._half else None

    def _reads(self, position, column):
        before = np.append(self._said, np.zeros(column.shape[-1] - len(self._said), np.int32))
        self.columns.append(np.where(column == AS_SAID, before, column).tolist())
        self._position = position

    def _chooses(self, token):
        self._said = np.array([token, *self._codes[self._position]], np.int32)


def played(config, text, codes, *, prompt=None, **options):
    """A conversation whose samples are given, and what it reads. No model reads the prompt."""
    samples = Samples(config, text, codes)
    steering = Steering(codebooks=options.pop("codebooks", None))
    return LmGen(samples, seed=0, prompt=prompt, steering=steering, **options), samples


def sizes(**values):
    return LmConfig(**{**SIZE, **values})


# ---- speech to text --------------------------------------------------------------------------------------------------------


def test_words_equal_the_slow_version():
    rng = np.random.default_rng(1)
    for _ in range(3000):
        delay, prefix = int(rng.integers(0, 9)), float(rng.choice([0.0, 1.0, 0.3]))
        # Mostly 0 and 3, so that words of all lengths come, and words that follow each other.
        tokens = rng.choice([0, 3, 3, *range(12)], rng.integers(0, 60)).tolist()
        collected = stt.WordTimes(stt.Timing(delay, prefix))
        found = [word for token in tokens if (word := collected.push(token))]
        wanted = slow.words(tokens, delay, prefix)
        assert [word.tokens for word in found] == [word[0] for word in wanted]
        assert [word.start for word in found] == pytest.approx([word[1] for word in wanted])
        assert [word.end for word in found] == [word[2] and pytest.approx(word[2]) for word in wanted]


@pytest.mark.parametrize(("seconds", "steps"), [(None, 6), (0.5, 6), (2.5, 32), (1.28, 16), (0, 0)])
def test_delays_of_text(seconds, steps):
    """As the published programs count: 0.5 s and 2.5 s are those of the published models."""
    values = {} if seconds is None else {"audio_delay_seconds": seconds}
    config = LmConfig(n_q=2, dep_q=0, delays=(0, 0, 0), stt_config=values)
    assert stt.Timing.of(config).delay == steps


# ---- text to speech --------------------------------------------------------------------------------------------------------


def speech_cases(seed, count):
    """Random texts, with pauses and words of all lengths, and random wishes for a word."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        entries = []
        for _ in range(rng.integers(0, 9)):
            tokens = tuple(rng.integers(4, SIZE["text_card"], rng.choice([0, 1, 1, 2, 3, 5])).tolist())
            entries.append((tokens, int(rng.choice([0, 0, 1, 2, 6]))))
        wish = rng.choice([0.05, 0.3, 0.9])
        sampled = rng.choice([0, 3, 7], 120, p=[wish, 0.95 - wish, 0.05]).tolist()
        yield rng, entries, sampled


@pytest.mark.parametrize("second", [False, True])
def test_the_word_machine_equals_the_slow_version(second):
    rows = SIZE["text_card"] + 1 if second else None
    ended = 0
    for rng, entries, sampled in speech_cases(2, 2000):
        first, ahead = int(rng.integers(0, 4)), int(rng.integers(1, 4))
        machine = tts.WordMachine(rows, ahead)
        machine.entries.extend(tts.Entry(*entry) for entry in entries)
        out = [machine.token(p, sampled[p]) for p in range(first, len(sampled))]
        assert (out, machine.end, machine.begun) == slow.machine(entries, sampled, first, rows, ahead)
        ended += machine.end is not None
    assert ended > 500


def test_words_that_come_while_others_are_said():
    """Text in pieces, each early enough for the second stream, is said as text that was there from the start."""
    ahead = 2
    for rng, entries, sampled in speech_cases(3, 500):
        whole, pieces = tts.WordMachine(21, ahead), tts.WordMachine(21, ahead)
        whole.entries.extend(tts.Entry(*entry) for entry in entries)
        coming = [tts.Entry(*entry) for entry in entries]
        for p, token in enumerate(sampled):
            while coming and (len([e for e in pieces.entries if e.tokens]) <= ahead or rng.random() < 0.1):
                pieces.entries.append(coming.pop(0))
            assert pieces.token(p, token) == whole.token(p, token)


@pytest.mark.parametrize("demux", [False, True], ids=["one stream", "two streams"])
@pytest.mark.parametrize("delays", [(0, 0, 2, 2, 2), (0, 0, 0, 1, 3), (0, 0, 0, 0, 0)], ids=str)
def test_speeches_equal_the_slow_version(delays, demux):
    """Every column of the given and of the null stream, with prefixes, pauses and fewer codebooks."""
    config = sizes(n_q=4, dep_q=4, delays=delays, demux_second_stream=demux)
    for rng, entries, sampled in speech_cases(4, 150):
        delay_steps, ahead = int(rng.integers(0, 7)), int(rng.integers(1, 3))
        codebooks = int(rng.integers(1, 5))
        length = int(rng.choice([0, 0, 1, 5]))
        prefix = rng.integers(0, SIZE["card"], (4, length)) if length else None
        codes = rng.integers(0, SIZE["card"], (len(sampled), 4)).tolist()
        given, null, end, taken = slow.speech(
            config,
            entries,
            sampled,
            codes,
            delay_steps=delay_steps,
            ahead=ahead,
            prefix=prefix,
            codebooks=codebooks,
        )
        machine = tts.WordMachine(21 if demux else None, ahead)
        machine.entries.extend(tts.Entry(*entry) for entry in entries)
        script = tts.SpeechScript(config.streams, machine, delay_steps, codebooks=codebooks, prefix=prefix, guided=True)
        gen, samples = played(config, sampled, codes, script=script, codebooks=codebooks)
        frames = []
        while len(samples.columns) < len(sampled) and (step := gen.advance()) is not None:
            frames.append(step.codes)
        assert [rows[0] for rows in samples.columns] == given
        assert [rows[1] for rows in samples.columns] == null
        assert (machine.end, machine.begun) == (end, taken)
        # A frame is complete when its last code was chosen, and has a gap until the sound begins.
        for f in range(len(given) - 1 - max(delays)):
            cells = [given[f + 1 + delay][1 + k] for k, delay in enumerate(delays[1 : 1 + codebooks])]
            frame = frames[f + max(delays)]
            assert (frame is None) if -1 in cells else frame.tolist() == cells


def test_a_speech_without_guidance_is_the_given_stream():
    config = sizes(n_q=4, dep_q=4, delays=(0, 0, 2, 2, 2))
    for rng, entries, sampled in speech_cases(5, 50):
        codes = rng.integers(0, SIZE["card"], (len(sampled), 4)).tolist()
        machine = tts.WordMachine(None, 2)
        machine.entries.extend(tts.Entry(*entry) for entry in entries)
        gen, samples = played(config, sampled, codes, script=tts.SpeechScript(config.streams, machine, 4))
        while len(samples.columns) < len(sampled) and gen.advance() is not None:
            pass
        assert samples.columns == slow.speech(config, entries, sampled, codes, delay_steps=4, ahead=2)[0]


def test_the_repetition_penalty_leaves_alone_what_the_model_cannot_choose():
    """Of a text with two streams, tokens are larger than the rows of logits; and before a prefix's end they are −1."""
    config = sizes(n_q=4, dep_q=4, delays=(0, 0, 2, 2, 2), demux_second_stream=True, text_card_out=5)
    for rng, entries, sampled in speech_cases(7, 30):
        machine = tts.WordMachine(21, 2)
        machine.entries.extend(tts.Entry(*entry) for entry in entries)
        script = tts.SpeechScript(config.streams, machine, 4, prefix=rng.integers(0, 10, (4, 3)))
        codes = rng.integers(0, SIZE["card"], (len(sampled), 4)).tolist()
        gen, samples = played(config, sampled, codes, script=script, text_sampler=TextSampler(repetition_penalty=1.5))
        while len(samples.columns) < len(sampled) and gen.advance() is not None:
            tokens = gen._words.tokens()
            assert ((tokens >= 0) & (tokens <= 5)).all()


def test_what_a_family_does_not_have(tmp_path, engine):
    gen = LmGen(seeded(tmp_path, sizes(n_q=4, dep_q=0, delays=(0,) * 5), engine)[0], seed=1)
    gen.step([1, 2, 3, 4])
    assert gen.audio_logits.shape == (0, SIZE["card"])
    assert gen.extra_heads.shape[0] == 0
    assert gen.newest_codes.shape == (0,)
    with pytest.raises(InputError, match="no script"):
        gen.advance()


# ---- conversations ---------------------------------------------------------------------------------------------------------

DELAYS = [(0, 0, 1, 1, 0, 1, 1), (0, 0, 2, 2, 0, 2, 2), (0, 0, 0, 0, 0, 0, 0), (0, 1, 1, 3, 0, 1, 2)]


def conversation_case(rng, count, first, user):
    """Samples for as many positions as a conversation of these frames has."""
    positions = len(first) + len(user) + 1
    text = rng.integers(0, SIZE["text_card"], positions).tolist()
    codes = rng.integers(0, SIZE["card"], (positions, count)).tolist()
    return text, codes


@pytest.mark.parametrize("delays", DELAYS, ids=str)
def test_conversations_with_an_end_equal_the_slow_version(delays):
    """Moshi's and Hibiki's: from "start" alone; after the frame that ends the input, others follow."""
    config = sizes(n_q=6, dep_q=3, delays=delays)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        user = rng.integers(0, SIZE["card"], (int(rng.integers(1, 20)), 3))
        end = int(rng.integers(0, 2 * len(user)))
        first = [
            [None if c > d else (20 if r == 0 else 10) for r, d in enumerate(delays)] for c in range(max(delays) + 1)
        ]
        text, codes = conversation_case(rng, 3, first, user)
        gen, samples = played(config, text, codes)
        for f, frame in enumerate(user):
            if f == end:
                gen.end_input()
            else:
                gen.step(frame)
        told = [[10] * 3 if f == end else frame.tolist() for f, frame in enumerate(user)]
        assert samples.columns == slow.conversation(config, first, told, text, codes)


@pytest.mark.parametrize("delays", DELAYS, ids=str)
@pytest.mark.parametrize("form", ["codes", "file"])
def test_prompts_and_conversations_equal_the_slow_version(delays, form):
    """PersonaPlex: the columns of the prompt, and those of the conversation after it."""
    config = sizes(n_q=6, dep_q=3, delays=delays, context=64)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        # A file holds the last four columns of the voice.
        voice = rng.integers(0, SIZE["card"], (3, int(rng.integers(5 if form == "file" else 0, 12))))
        spoken = rng.integers(4, SIZE["text_card"], rng.integers(0, 6)).tolist()
        silence, sine = rng.integers(0, SIZE["card"], (2, 3))
        user = rng.integers(0, SIZE["card"], (int(rng.integers(1, 12)), 3)).tolist()
        columns = slow.prompt(config, slow.persona_frames(config, voice.tolist(), spoken, silence, sine))
        text, codes = conversation_case(rng, 3, columns, user)
        wanted = slow.conversation(config, columns, user, text, codes)

        given = voice
        last = voice.shape[1] - 1
        if form == "file":
            ring = rng.integers(0, SIZE["card"], (7, 4)).astype(np.int32)  # what is not used may be anything
            for row, delay in enumerate(delays):
                for column in range(last - 2, last + (2 if delay else 1)):
                    ring[row, column % 4] = columns[column][row]
            given = personaplex.Voice(np.zeros((last, SIZE["dim"]), np.float32), ring)
        if max(delays) > 1 and form == "file":
            continue  # the form holds no more than one column beyond the voice
        prompt = personaplex.prompt(
            config.streams, config.existing_text_padding_id, silence, sine, voice=given, text=spoken
        )
        gen, samples = played(config, text, codes, prompt=prompt)
        for frame in user:
            gen.step(frame)
        length = len(columns) - max(delays)
        skipped = last if form == "file" else 0  # whose inputs the file holds
        assert prompt.columns[skipped:length].tolist() == wanted[skipped:length]
        assert samples.columns == wanted[length - 1 :]
