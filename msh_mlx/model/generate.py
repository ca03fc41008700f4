"""`LmGen`: one conversation of the language model, step by step: delays, priming, sampling, reset."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, InUseError
from ..system.inputs import brief
from .architecture import Architecture
from .engine import LanguageModel, Manner, NextStep, Prefilled, Run
from .families import family_of
from .grid import Column, Grid, Prompt, Script
from .prefill import first_position, prefill
from .ranges import is_whole
from .sampling import Sampler, TextSampler
from .steering import NO_STEERING, Steering


@dataclass(frozen=True)
class Step:
    """The result of one step: what the model says.

    `text_token` is the text token. `codes`, `[dep_q]` uint32, are those of one frame of its voice, with the delays undone; None
    while the first frame is incomplete. If fewer codebooks are computed, they have only these.
    """

    text_token: int
    codes: npt.NDArray[np.uint32] | None

    @property
    def frame(self) -> npt.NDArray[np.uint32] | None:
        """The same as `codes`. The former name."""
        return self.codes


class LmGen:
    """A conversation with `lm`. It takes the user's codes, frame by frame, and returns the model's.

    Position 0 is the priming step, with "start" tokens everywhere. It runs by itself before the first step, also after
    `reset`. Step t is for the user's frame t. It is position t + 1, and uses the user's newest codes at once. The number of
    steps has no limit.

    The state of the engine is the keys and values of `lm`'s layers, and the last text token and own codes as sampled. The state
    here is the own codes of the last `max_delay + 1` positions, and the user's codes of the last `max_delay + 1` frames.

    A conversation may be made on one thread and used on another, but only on one thread at a time.

    Parameters
    ----------
    lm
        The model, as from `load_lm`. It is shared, and not changed.
    text_sampler, audio_sampler
        How tokens are chosen. None: as published for the model's family, for Moshi temperature 0.7 and top-k 25; 0.8 and 250.
    seed
        The same seed, codes, engine and machine give the same conversation, also after `reset`. None: another one every time.
    kv_bits
        8: keep keys and values in 8 bits, in about half the memory of bfloat16. None: keep them in the activations' dtype.
    word_starts
        The text tokens that begin a word, for the repetition penalty. By default, tokens that follow padding begin words.
    prompt
        The columns before the conversation, perhaps read already by `prefill`; None: "start" alone.
    steering
        Conditions and guidance.
    script
        Fills the text of a model that speaks what it is given; None: the model's own text.

    Raises
    ------
    InputError
        The seed is not a whole number in [0, 2^64); `kv_bits` does not suit the model, or is not that of the prompt; or the
        prompt does not fit into the window.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        text_sampler: Sampler | None = None,
        audio_sampler: Sampler | None = None,
        seed: int | None = None,
        kv_bits: int | None = None,
        word_starts: Collection[int] | None = None,
        prompt: Prompt | Prefilled | None = None,
        steering: Steering = NO_STEERING,
        script: Script | None = None,
    ) -> None:
        if seed is not None and (not is_whole(seed) or not 0 <= seed < 1 << 64):
            raise InputError(f"The seed {brief(seed)} is not a whole number from 0 to 2^64 − 1.")
        usual = family_of(lm.config).samplers(lm.config)
        text_sampler, audio_sampler = text_sampler or usual[0], audio_sampler or usual[1]
        if not isinstance(text_sampler, TextSampler):
            text_sampler = TextSampler(**asdict(text_sampler))
        self.lm = lm
        self.text_sampler = text_sampler
        self.audio_sampler = audio_sampler
        self.seed = seed
        self._prefilled = prompt if isinstance(prompt, Prefilled) else None
        if self._prefilled and self._prefilled.kv_bits != kv_bits:
            raise InputError("The prompt was read for another format of keys and values", "read it for this one")
        self._prompt = prompt.prompt if isinstance(prompt, Prefilled) else prompt or Prompt(lm.config.streams.begin())
        self._first = first_position(lm.config, self._prompt)
        if self._first and steering.batch > 1:
            raise InputError("A conversation with guidance cannot begin with a prompt", "leave one of them out")
        self._kv_bits = kv_bits
        self._steering = steering
        self._script = script
        self._run = lm.converse(Manner(text_sampler, audio_sampler, kv_bits, steering))
        self._words = _RecentWords(text_sampler, lm.config, word_starts)
        self._in_use = Lock()
        self.reset()

    def reset(self) -> None:
        """Forget the conversation. The next step is like the first one.

        Raises
        ------
        InUseError
            Another thread is in the middle of a step.
        """
        with one_at_a_time(self._in_use):
            config = self.lm.config
            self._position = self._first
            self._ahead: _Ahead | None = None
            self._stepped = False
            self._grid = Grid(config.streams, self._prompt.columns, self._steering.codebooks)
            self._words.clear()
            self._drawn = secrets.randbits(64) if self.seed is None else self.seed
            self._run.begin(self._drawn, self._prefilled)

    def step(self, user_codes: npt.ArrayLike) -> Step:
        """Take the codes of one frame of the user, and return what the model says.

        Parameters
        ----------
        user_codes
            `[n_q - dep_q]` or `[n_q - dep_q, 1]`, integers in [0, card); −1 for a codebook that is missing.

        Raises
        ------
        InputError
            The codes have another shape, are not integers, or are out of range. The conversation has not changed then.
        InUseError
            Another thread is in the middle of a step.
        """
        return self._step(self._checked(user_codes))

    def end_input(self) -> Step:
        """Take the frame that says that the user's speech has ended, for a model that translates.

        Raises
        ------
        InUseError
            Another thread is in the middle of a step.
        """
        streams = self._grid.streams
        return self._step(np.full(streams.heard, streams.start, np.int32))

    def _step(self, codes: Column) -> Step:
        with one_at_a_time(self._in_use):
            # Do not wait for the priming step: the next step takes its result where it is.
            if self._position == self._first:
                self._start()
            self._grid.hear(codes)
            self._start()
            return Step(self._take(), self._grid.frame())

    def advance(self) -> Step | None:
        """Give the next step of a script: what the model says. None: the script is over.

        The script is one position ahead of what is given. So the host waits once a step: for the text that a position samples
        and, with it, for the codes of the position before.

        Raises
        ------
        InputError
            The conversation has no script.
        InUseError
            Another thread is in the middle of a step.
        """
        if (script := self._script) is None:
            raise InputError("The conversation has no script that says what comes next", "give it one, or use step")
        with one_at_a_time(self._in_use):
            step = None
            while step is None and not script.over(self._position):
                step = self._run_ahead(script)
            if step is None and self._ahead is not None:  # the last
                said = self._run.rest()
                assert said is not None
                step, self._ahead = self._give(self._ahead, said), None
            return step

    def _run_ahead(self, script: Script) -> Step | None:
        """Run one position of a script. Return the step of the position before it; None at the first."""
        self._read_prompt()
        position, before = self._position, self._ahead
        column = script.rows(position, self._grid.column(position, before.own if before else None))
        sampled, said = self._run.hear(position, column, self._words.tokens())
        token = script.text(position, sampled)
        self._words.push(token)
        step = self._give(before, said) if before and said is not None else None
        self._run.speak(token, script.speaks(position))
        self._ahead = _Ahead(token, script.own(position))
        self._position += 1
        return step

    def _give(self, ahead: _Ahead, said: Column) -> Step:
        self._stepped = True
        self._grid.say(said[1:], ahead.own)
        return Step(ahead.token, self._grid.frame())

    def prime(self) -> int | None:
        """Run the priming step now, if it has not run yet. So the first step is as fast as any other.

        Return its text token; None if it has run.

        Raises
        ------
        InUseError
            Another thread is in the middle of a step.
        """
        with one_at_a_time(self._in_use):
            if self._position == self._first:
                self._start()
                return self._take()
            return None

    def fill_window(self) -> None:
        """Act as if as many positions had passed as the window has, to measure a conversation of any length. `reset` ends it.

        Raises
        ------
        InUseError
            Another thread is in the middle of a step.
        """
        with one_at_a_time(self._in_use):
            self._run.fill_window()
            self._position = self.lm.config.context

    def warm_up(self) -> None:
        """Compile, on this thread, everything that a conversation of any length needs, and `prime`.

        This does not change the conversation. For a moment it takes the memory of the full key/value cache.

        Raises
        ------
        InUseError
            Another thread is in the middle of a step.
        """
        with one_at_a_time(self._in_use):
            cells = np.zeros(1 + self.lm.config.n_q, np.int32)
            self._run.warm_up(None if self._script is None else self._script.rows(0, cells))
        if self._script is None:
            self.prime()

    @property
    def text_logits(self) -> Any:
        """The text logits of the newest step, an array `[text_card]` of the engine, float32, before the sampler changed any.

        Raises
        ------
        InputError
            There was no step yet.
        """
        return self._newest().text_logits()

    @property
    def audio_logits(self) -> Any:
        """The logits of the newest step's codes, an array `[codes, card]` of the engine, float32; of those that were computed.

        Raises
        ------
        InputError
            There was no step yet.
        """
        return self._newest().audio_logits()

    @property
    def extra_heads(self) -> Any:
        """What the extra heads say at the newest step, an array `[heads, classes]` of the engine, float32: probabilities.

        Raises
        ------
        InputError
            There was no step yet.
        """
        return self._newest().extra_heads()

    @property
    def newest_codes(self) -> Column:
        """The own cells of the newest column, `[dep_q]` int32, −1 where one is empty."""
        return self._grid.newest

    @property
    def kv_bytes(self) -> int:
        """The bytes that keys and values take now."""
        return self._run.kv_bytes

    def _newest(self) -> Run:
        if not self._stepped:
            raise InputError("There are no logits before the first step.")
        return self._run

    def _checked(self, user_codes: npt.ArrayLike) -> npt.NDArray[np.int32]:
        config = self.lm.config
        codes = np.asarray(user_codes)
        if codes.shape == (config.user_q, 1):
            codes = codes[:, 0]
        if codes.shape != (config.user_q,) or (codes.size and codes.dtype.kind not in "iu"):
            raise InputError(
                f"The user's codes are {codes.dtype}{list(codes.shape)}",
                f"integers of shape [{config.user_q}] are expected",
            )
        wrong = (codes < -1) | (codes >= config.card) if codes.dtype.kind == "i" else codes >= config.card
        if wrong.any():
            raise InputError(f"The user's code {codes[wrong][0]} is not in [0, {config.card}).")
        return codes.astype(np.int32)

    def _read_prompt(self) -> None:
        """Read the prompt, if nobody has: once for all conversations, when the first one needs it."""
        if self._first and self._prefilled is None:
            self._prefilled = prefill(self.lm, self._prompt, kv_bits=self._kv_bits, steering=self._steering)
            self._run.begin(self._drawn, self._prefilled)

    def _start(self) -> None:
        """Start the next step."""
        self._read_prompt()
        step = self._next()
        self._run.step(step.position, step.column, step.recent)

    def _next(self) -> NextStep:
        """Go to the next position, and return the step there, which has to be started now. The prompt was read."""
        position = self._position
        self._position += 1
        return NextStep(self._run, position, self._grid.column(position), self._words.tokens())

    def _take(self) -> int:
        """Wait for the steps that were started, remember what they chose, and return the last text token."""
        rows = self._run.take()
        for row in rows:
            self._words.push(int(row[0]))
            self._grid.say(row[1:])
        self._stepped = True
        return int(rows[-1, 0])


def step_together(steps: Sequence[tuple[LmGen, npt.ArrayLike]]) -> list[Step]:
    """Take a step of each of several conversations with one model, with one pass over its weights.

    Each conversation gives its own codes, as for `LmGen.step`, and gets its step. Seed, samplers, position, prompt and steering
    are each one's own, too. Which conversations step together may change from step to step.

    With the native engine, a conversation says the same as by `LmGen.step`, bit for bit. `MlxModel.step` says what holds there.

    Raises
    ------
    InputError
        Conversations are of different models, one is there twice, or codes are as `LmGen.step` refuses them. No conversation
        has changed then.
    InUseError
        Another thread is in the middle of a step of one of them. No conversation has changed then.
    """
    gens = [gen for gen, _ in steps]
    codes = [gen._checked(user_codes) for gen, user_codes in steps]
    if not gens:
        return []
    lm = gens[0].lm
    if any(gen.lm is not lm for gen in gens):
        raise InputError(
            "Conversations of different models cannot step together", "step those of each model by themselves"
        )
    if len({id(gen) for gen in gens}) < len(gens):
        raise InputError("A conversation is there twice", "give each one step at a time")
    with ExitStack() as held:
        for gen in gens:
            held.enter_context(one_at_a_time(gen._in_use))
        new = [gen for gen in gens if gen._position == gen._first]
        for gen in new:
            gen._read_prompt()
        if new:  # nobody waits for the priming steps: the next ones take their results where they are
            lm.step([gen._next() for gen in new])
        for gen, heard in zip(gens, codes, strict=True):
            gen._grid.hear(heard)
        lm.step([gen._next() for gen in gens])
        return [Step(gen._take(), gen._grid.frame()) for gen in gens]


@dataclass(frozen=True)
class _Ahead:
    """A position of a script that was run: its text, and the cells of the next column that the script fills."""

    token: int
    own: Column


class _RecentWords:
    """The text tokens of the newest words, as the penalty of a `TextSampler` takes them."""

    def __init__(self, sampler: TextSampler, config: Architecture, starts: Collection[int] | None) -> None:
        self._size = sampler.recent_size
        self._nothing = config.text_card_out or config.text_card
        self._padding = config.padding_ids
        self._starts = None if starts is None else frozenset(starts)
        self._count = sampler.repetition_words
        # The newest `size` tokens, each with the number of its word. Older ones are of no use.
        self._tokens: deque[tuple[int, int]] = deque(maxlen=self._size)
        self.clear()

    def clear(self) -> None:
        self._tokens.clear()
        self._word = 0
        self._after_padding = True

    def push(self, token: int) -> None:
        if not 0 <= token < self._nothing:  # given by a script: the model cannot choose it
            return
        padding = token in self._padding
        if not padding:
            self._word += self._after_padding if self._starts is None else token in self._starts
            self._tokens.append((self._word, token))
        self._after_padding = padding

    def tokens(self) -> npt.NDArray[np.int32]:
        tokens = np.full(self._size, self._nothing, np.int32)
        said = [token for word, token in self._tokens if word > self._word - self._count]
        tokens[: len(said)] = said
        return tokens


@contextmanager
def one_at_a_time(lock: Lock) -> Iterator[None]:
    """Hold `lock`, or raise `InUseError` if another thread does."""
    if not lock.acquire(blocking=False):
        raise InUseError("The conversation is in the middle of a frame on another thread", "use it on one at a time")
    try:
        yield
    finally:
        lock.release()
