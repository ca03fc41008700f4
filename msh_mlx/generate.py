"""`LmGen`: one conversation of the language model, step by step: delays, priming, sampling, reset."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .errors import InputError
from .models.lm import Lm
from .sampling import AUDIO_SAMPLER, TEXT_SAMPLER, Sampler

_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2^64 / φ, odd


@dataclass(frozen=True)
class Step:
    """What one step says.

    `text_token` is the text token; `frame` the own codes of one frame, `[dep_q]` uint32, with the delays undone, or None
    while the first frame is incomplete.
    """

    text_token: int
    frame: npt.NDArray[np.uint32] | None


class LmGen:
    """A conversation with `lm`: hands it the user's codes, frame by frame, and gives back its own.

    Position 0 is the priming step, with "start" tokens everywhere; it happens by itself before the first step and after
    `reset`. Step t, for the user's frame t, is position t + 1 and uses the newest codes of the user at once. There is no limit
    on the number of steps.

    State: the caches of `lm`; the last text token `[1]` and own codes `[1, dep_q]` as sampled, int32, on the device; the
    own codes of the last `max_delay + 1` positions and the user's of the last `max_delay + 1` frames, on the host.

    Parameters
    ----------
    lm
        The model, as from `load_lm`; shared, not changed.
    text_sampler, audio_sampler
        How tokens are chosen; by default as published (0.7 / 25 and 0.8 / 250).
    seed
        The same seed, codes and machine give the same conversation, also after `reset`. None: a new one every time.
    """

    def __init__(
        self,
        lm: Lm,
        *,
        text_sampler: Sampler = TEXT_SAMPLER,
        audio_sampler: Sampler = AUDIO_SAMPLER,
        seed: int | None = None,
    ) -> None:
        if seed is not None and not 0 <= seed < 1 << 64:
            raise InputError(f"The seed {seed} is not between 0 and 2^64 − 1.")
        self.lm = lm
        self.text_sampler = text_sampler
        self.audio_sampler = audio_sampler
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget the conversation: the next step is as the first one was."""
        config = self.lm.config
        self._position = 0
        self._caches = self.lm.make_cache()
        self._text = mx.full((1,), config.text_card, mx.int32)
        self._own = mx.full((1, config.dep_q), config.card, mx.int32)
        self._sampled: deque[npt.NDArray[np.uint32]] = deque(maxlen=config.max_delay + 1)
        self._user: deque[npt.NDArray[np.int32]] = deque(maxlen=config.max_delay + 1)
        self._seed = secrets.randbits(64) if self.seed is None else self.seed

    def step(self, user_codes: npt.ArrayLike) -> Step:
        """Hear one frame of the user and say one.

        Parameters
        ----------
        user_codes
            `[n_q - dep_q]` or `[n_q - dep_q, 1]`, integers in [0, card); −1 for a codebook that is not there.

        Raises
        ------
        InputError
            The codes have another shape, are no integers or out of range; the conversation is as before.
        """
        codes = self._checked(user_codes)
        if self._position == 0:
            self._advance()
        self._user.append(codes)
        text_token = self._advance()
        return Step(text_token, self._complete_frame())

    def _checked(self, user_codes: npt.ArrayLike) -> npt.NDArray[np.int32]:
        config = self.lm.config
        codes = np.asarray(user_codes)
        if codes.shape == (config.user_q, 1):
            codes = codes[:, 0]
        if codes.shape != (config.user_q,) or (codes.size and codes.dtype.kind not in "iu"):
            raise InputError(
                f"The user's codes are {codes.dtype}{list(codes.shape)}; integers of shape [{config.user_q}] are expected."
            )
        wrong = (codes < -1) | (codes >= config.card) if codes.dtype.kind == "i" else codes >= config.card
        if wrong.any():
            raise InputError(f"The user's code {codes[wrong][0]} is not in [0, {config.card}).")
        return codes.astype(np.int32)

    def _advance(self) -> int:
        """Run one position, and bring what it says to the host."""
        keys = self._keys()
        h, logits = self.lm(self._tokens(), self._caches, self._position)
        self._text = self.text_sampler(logits, keys[0])
        self._own = self.lm.depformer(h, self._text, lambda logits, k: self.audio_sampler(logits, keys[1 + k]))
        host = to_host(mx.concatenate([self._text[:, None], self._own], axis=1))[0]
        self._sampled.append(host[1:].astype(np.uint32))
        self._position += 1
        return int(host[0])

    def _keys(self) -> list[mx.array] | list[None]:
        """Make the random keys of this position: one for the text, one a codebook. They follow from seed and position."""
        count = 1 + self.lm.config.dep_q
        if self.text_sampler.greedy and self.audio_sampler.greedy:
            return [None] * count
        # Threefry makes unrelated streams of different keys; the odd factor keeps neighbouring seeds from meeting.
        key = mx.random.key((self._seed + _GOLDEN_RATIO * self._position) % (1 << 64))
        return list(mx.random.split(key, count))

    def _tokens(self) -> mx.array:
        """Collect the input of this position, `[1, 1 + n_q]` int32, from the streams and their delays."""
        config, position = self.lm.config, self._position
        user = np.full(config.user_q, config.card, np.int32)
        for k, delay in enumerate(config.delays[1 + config.dep_q :]):
            if delay < len(self._user):
                user[k] = self._user[-1 - delay][k]
        tokens = mx.concatenate([self._text[:, None], self._own, mx.array(user)[None]], axis=1)
        if position <= config.max_delay:
            # A stream of delay d has said nothing of its own before position d + 1.
            start = np.array([config.text_card] + [config.card] * config.n_q, np.int32)
            early = position <= np.array(config.delays)
            early[1 + config.dep_q :] = False
            tokens = mx.where(mx.array(early)[None], mx.array(start)[None], tokens)
        return tokens

    def _complete_frame(self) -> npt.NDArray[np.uint32] | None:
        config = self.lm.config
        if self._position <= config.max_delay:
            return None
        # Own frame f's codebook of delay d was sampled at position f + d; the newest position is f + max_delay.
        delays = config.delays[1 : 1 + config.dep_q]
        return np.array([self._sampled[d - config.max_delay - 1][k] for k, d in enumerate(delays)], np.uint32)


def to_host(array: mx.array) -> npt.NDArray[np.int32]:
    """Bring values to the host: the one place where a conversation waits for the device."""
    return np.array(array)
