"""`LmGen`: one conversation of the language model, step by step: delays, priming, sampling, reset."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Lock

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..errors import InputError, InUseError
from ..system.inputs import brief
from .architecture import Architecture
from .attention import KvRing, capacities
from .families import family_of
from .grid import Column, Grid, Prompt, Script
from .layers import on_cpu
from .lm import Lm
from .prefill import Prefilled, first_position, prefill
from .ranges import is_whole
from .sampling import Sampler, TextSampler, mixed_seed
from .steering import NO_STEERING, Steering
from .step import StepFunction, StepLogits


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

    The state on the device is the rings of `lm`'s layers, and the last text token and own codes as sampled. The state on the
    host is the own codes of the last `max_delay + 1` positions, and the user's codes of the last `max_delay + 1` frames.

    A conversation may be made on one thread and used on another, but only on one thread at a time.

    Parameters
    ----------
    lm
        The model, as from `load_lm`. It is shared, and not changed.
    text_sampler, audio_sampler
        How tokens are chosen. None: as published for the model's family, for Moshi temperature 0.7 and top-k 25; 0.8 and 250.
    seed
        The same seed, codes and machine give the same conversation, also after `reset`. None: another one every time.
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
        lm: Lm,
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
        self._form = lm.ring_format(kv_bits, steering.batch)
        self._prefilled = prompt if isinstance(prompt, Prefilled) else None
        if self._prefilled and self._prefilled.form != self._form:
            raise InputError("The prompt was read for another format of keys and values", "read it for this one")
        self._prompt = prompt.prompt if isinstance(prompt, Prefilled) else prompt or Prompt(lm.config.streams.begin())
        self._first = first_position(lm.config, self._prompt)
        self._kv_bits = kv_bits
        self._steering = steering
        self._script = script
        self._run = StepFunction(lm, text_sampler, audio_sampler, self._form, steering)
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
            self._said: mx.array | None = None
            self._rings: list[KvRing] = []
            self._logits: StepLogits | None = None
            self._ahead: _Ahead | None = None
            self._grid = Grid(config.streams, self._prompt.columns, self._steering.codebooks)
            self._words.clear()
            self._seed = secrets.randbits(64) if self.seed is None else self.seed

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
            # Do not wait for the priming step: its result stays on the device, where the next step takes it.
            said = [self._enqueue()] if self._position == self._first else []
            self._grid.hear(codes)
            said.append(self._enqueue())
            text_token = self._take(said)
            return Step(text_token, self._grid.frame())

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
                step, self._ahead = self._give(self._ahead, to_host(self._ahead.said)), None
            return step

    def _run_ahead(self, script: Script) -> Step | None:
        """Run one position of a script. Return the step of the position before it; None at the first."""
        position, before = self._position, self._ahead
        rings, said = self._rings_for_step(), self._said
        assert said is not None
        column = script.rows(position, self._grid.column(position, before.own if before else None))
        text, h, self._rings, logits, heads, noise = self._run.hear(
            position, column, said, rings, self._key(position), self._words.tokens()
        )
        del rings  # so that they are changed in place
        values = to_host(mx.concatenate([text.astype(mx.int32), *([before.said] if before else [])]))
        token = script.text(position, int(values[0]))
        audio_logits: list[mx.array] = []
        if script.speaks(position):
            self._said, audio_logits = self._run.speak(h, mx.array([token]), noise)
        else:
            self._said = mx.array([token, *[0] * self.lm.config.dep_q], mx.int32)
        self._words.push(token)
        self._ahead = _Ahead(token, self._said, script.own(position), (logits, audio_logits, heads))
        self._position += 1
        return self._give(before, values[1:]) if before else None

    def _give(self, ahead: _Ahead, said: npt.NDArray[np.int32]) -> Step:
        self._logits = ahead.logits
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
                return self._take([self._enqueue()])
            return None

    def warm_up(self) -> None:
        """Compile, on this thread, everything that a conversation of any length needs, and `prime`.

        This does not change the conversation. For a moment it takes the memory of the full key/value cache.

        Raises
        ------
        InUseError
            Another thread is in the middle of a step.
        """
        with one_at_a_time(self._in_use):
            sizes = capacities(self.lm.config.context)
            for capacity in sizes:
                # A GPU builds kernels when they first run, and others for longer rings. On the CPU the first size is enough.
                self._compile(capacity, run=capacity == sizes[0] or not on_cpu())
            mx.clear_cache()
        if self._script is None:
            self.prime()

    def _compile(self, capacity: int, run: bool) -> None:
        """Compile a step with rings of some capacity, and perhaps run it."""
        config = self.lm.config
        tokens, said = np.zeros(1 + config.n_q, np.int32), mx.zeros((1 + config.dep_q,), mx.int32)
        rest = (said, self._empty_rings(capacity), self._key(0), self._words.tokens())
        if self._script is None:
            said, *_ = self._run(0, tokens, *rest)
        else:
            text, h, *_, noise = self._run.hear(0, self._script.rows(0, tokens), *rest)
            said, _ = self._run.speak(h, text, noise)
        if run:
            to_host(said)

    @property
    def text_logits(self) -> mx.array:
        """The text logits of the newest step, `[text_card]`, on the device, before the sampler changed any.

        Raises
        ------
        InputError
            There was no step yet.
        """
        return self._newest()[0][0]

    @property
    def audio_logits(self) -> mx.array:
        """The logits of the newest step's codes, `[codes, card]`, on the device; of those that were computed.

        Raises
        ------
        InputError
            There was no step yet.
        """
        logits = self._newest()[1]
        return mx.concatenate(logits) if logits else mx.zeros((0, self.lm.config.card))

    @property
    def extra_heads(self) -> mx.array:
        """What the extra heads say at the newest step, `[heads, classes]` probabilities, on the device; 0 without heads.

        Raises
        ------
        InputError
            There was no step yet.
        """
        heads = self._newest()[2]
        return mx.concatenate(heads) if heads else mx.zeros((0, self.lm.config.extra_heads_dim))

    @property
    def newest_codes(self) -> Column:
        """The own cells of the newest column, `[dep_q]` int32, −1 where one is empty."""
        return self._grid.newest

    @property
    def kv_bytes(self) -> int:
        """The bytes that keys and values take now."""
        return sum(array.nbytes for ring in self._rings for array in ring)

    def _newest(self) -> StepLogits:
        if self._logits is None:
            raise InputError("There are no logits before the first step.")
        return self._logits

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

    def _enqueue(self) -> mx.array:
        """Enqueue one step. Return the text token and the codes, `[1 + dep_q]` int32 on the device."""
        rings, said = self._rings_for_step(), self._said
        assert said is not None
        self._logits = None
        self._said, self._rings, self._logits = self._run(
            self._position,
            self._grid.column(self._position),
            said,
            rings,
            self._key(self._position),
            self._words.tokens(),
        )
        self._position += 1
        return self._said

    def _rings_for_step(self) -> list[KvRing]:
        """Take the rings for the next position, with room for it; at the first, those that the prompt leaves."""
        config = self.lm.config
        if self._said is None:
            self._said = mx.full((1 + config.dep_q,), config.card, mx.int32)
            if not self._first:
                self._rings = self._empty_rings(capacities(config.context)[0])
            else:
                if self._prefilled is None:
                    self._prefilled = prefill(self.lm, self._prompt, kv_bits=self._kv_bits, steering=self._steering)
                # They are kept for the next conversation, too, so the first step copies them.
                self._rings = list(self._prefilled.rings)
        elif self._position % config.context == (capacity := self._rings[0][0].shape[2]):
            larger = min(2 * capacity, config.context)
            self._rings = [self._form.grown(ring, larger) for ring in self._rings]
        rings, self._rings = self._rings, []
        return rings

    def _take(self, said: list[mx.array]) -> int:
        """Copy the results of steps to the host, remember them, and return the last text token."""
        for row in to_host(mx.concatenate(said)).reshape(len(said), -1):
            self._words.push(int(row[0]))
            self._grid.say(row[1:])
        return int(row[0])

    def _empty_rings(self, capacity: int) -> list[KvRing]:
        return [self._form.empty(capacity) for _ in range(self.lm.config.num_layers)]

    def _key(self, position: int) -> mx.array:
        """Make the random key of the step at a position, from the seed and the position."""
        # Threefry makes unrelated streams of different keys.
        return mx.random.key(mixed_seed(self._seed, position))


@dataclass(frozen=True)
class _Ahead:
    """A position of a script that was run, and is not given yet: its text, what it says, and its logits.

    `said`, `[1 + dep_q]`, is on the device. `own` are the cells of the next column that the script fills.
    """

    token: int
    said: mx.array
    own: Column
    logits: StepLogits


class _RecentWords:
    """The text tokens of the newest words, as `TextSampler.adjusted` takes them."""

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


def to_host(array: mx.array) -> npt.NDArray[np.int32]:
    """Copy values to the host. This is the only place where a conversation waits for the device."""
    return np.array(array)
