"""What the program needs of an engine, the part that computes a model. There are two: MLX, and the native one in Rust.

An engine loads a model (`LanguageModel`), makes conversations with it (`Run`), and lets it write down several streams of sound
at once (`Listeners`). All else knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .architecture import Architecture
from .conditions import Conditions
from .grid import Column, Prompt
from .sampling import Sampler, TextSampler
from .steering import NO_STEERING, Steering


@dataclass(frozen=True)
class Prefilled:
    """A prompt that was read, so that conversations can begin behind it at once.

    `state`, which is the engine's, is what it keeps behind all columns of the prompt but the last, from which the first token
    is chosen. It is shared, and not changed, and takes `nbytes` bytes. `kv_bits` are those of the conversations.
    """

    prompt: Prompt
    kv_bits: int | None
    state: Any
    nbytes: int


@dataclass(frozen=True)
class Manner:
    """How a conversation runs: how tokens are chosen, how keys and values are kept, and what steers it."""

    text_sampler: TextSampler
    audio_sampler: Sampler
    kv_bits: int | None = None
    steering: Steering = NO_STEERING


class Run(Protocol):
    """What an engine knows of one conversation: keys and values, and what was chosen last.

    It is used on one thread at a time. Positions come one after the other, from the first on at which a token is chosen.
    """

    def begin(self, seed: int, prefilled: Prefilled | None) -> None:
        """Forget everything, and begin behind a prompt that was read; None: with "start" alone."""

    def step(self, position: int, column: Column, recent: Column) -> None:
        """Start a step, perhaps without waiting for its end.

        `column`, `[rows]`, is what the position reads; `AS_SAID` stands for what the one before has chosen. `recent` is as for
        `TextSampler`'s penalty.
        """

    def take(self) -> npt.NDArray[np.int32]:
        """Wait for all steps that were started, and return what they chose, `[steps, 1 + dep_q]`: text and codes."""

    def hear(self, position: int, rows: Column, recent: Column) -> tuple[int, Column | None]:
        """Run the first half of a step: return the text that it chose, and what the step before has chosen in all.

        `rows` is what the position reads, `[rows]`, or `[batch, rows]` if rows of the batch read different columns. What the
        step before has chosen, `[1 + dep_q]`, is None if it was returned or if there was none.
        """

    def speak(self, token: int, codes: bool) -> None:
        """Start the second half of a step, which follows the text `token`. Without `codes` all own cells are 0."""

    def rest(self) -> Column | None:
        """Return what the last half step has chosen, `[1 + dep_q]`; None if `hear` has returned it."""

    def fill_window(self) -> None:
        """Act as if as many positions had passed as the window has; the next one follows them. It is for measuring."""

    def warm_up(self, rows: Column | None) -> None:
        """Make ready, on this thread, what a conversation of any length needs. The conversation does not change.

        `rows` are as for `hear`, of a conversation that goes by halves; None: it goes by whole steps.
        """

    def text_logits(self) -> Any:
        """Return the text logits of the newest step that was taken, before samplers changed any.

        They are an array of the engine, `[text_card_out]` float32, of which numpy makes its own.
        """

    def audio_logits(self) -> Any:
        """Return the logits of its codes, `[codes, card]` float32; of those that were computed."""

    def extra_heads(self) -> Any:
        """Return what the extra heads say there, `[heads, classes]` float32 probabilities."""

    @property
    def kv_bytes(self) -> int:
        """The bytes that keys and values take now."""


@dataclass(frozen=True)
class NextStep:
    """The next step of one conversation: its run, and what `Run.step` takes."""

    run: Run
    position: int
    column: Column
    recent: Column


@dataclass(frozen=True)
class Heard:
    """What rows write in some steps: `tokens`, `[steps, rows]` int32, and what the extra heads say.

    `heads` are probabilities, `[steps, rows, heads, classes]` float32; without extra heads there are none of them.
    """

    tokens: npt.NDArray[np.int32]
    heads: npt.NDArray[np.float32]


class Listeners(Protocol):
    """Rows of a model that chooses only text, the likeliest. Each row hears a stream of its own, from a step of its own on.

    All rows step together. A row begins with a step whose codes are all "start" (`card`), the priming step, and knows nothing
    of what the row heard before. So a row whose stream has ended may take the next one, while the others go on.
    """

    rows: int

    def reset(self) -> None:
        """Forget everything. Each row has to begin anew."""

    def copy(self) -> Listeners:
        """Return others that go on from the same state, on their own."""

    def hear(self, codes: npt.NDArray[np.integer]) -> Heard:
        """Run some steps, and wait for all of them. `codes` are `[steps, rows, n_q]`, in [0, card], or −1 for a missing one."""

    def warm_up(self) -> None:
        """Make ready, on this thread, what streams of any length need. The state does not change."""


@dataclass(frozen=True)
class About:
    """What an engine says about a model: the engine, with its version; "cpu" or "gpu"; the dtype of the activations.

    `bits` are those of the weights in matrices.
    """

    engine: str
    device: str
    dtype: str
    bits: tuple[int, ...]


class LanguageModel(Protocol):
    """A model that an engine has loaded. It is shared by conversations, and not changed."""

    @property
    def config(self) -> Architecture:
        """Its sizes, and what it is made of."""

    @property
    def conditions(self) -> Conditions:
        """The weights of its conditions."""

    def about(self) -> About:
        """Say how the model is computed."""

    def peak_bytes(self) -> int:
        """Return the most memory that the engine has used so far."""

    def converse(self, manner: Manner) -> Run:
        """Make a conversation. It has to `begin` first.

        Raises
        ------
        InputError
            `kv_bits` does not suit the model.
        """

    def step(self, steps: Sequence[NextStep]) -> None:
        """Start one step of each of several conversations with this model, in one pass over the weights.

        No run comes twice. What the steps choose comes by each run's `take`, as after `Run.step`. Conversations may be
        steered and sampled each in its own way, and be at positions of their own. Those that the engine cannot compute
        together take their steps one after the other.
        """

    def listen(self, rows: int = 1, kv_bits: int | None = None) -> Listeners:
        """Make `rows` listeners, with a model without codes of its own. Errors are those of `converse`."""

    def source(self, sequence: npt.NDArray[np.float32]) -> Any:
        """Make what cross-attention sees of a sequence `[T, dim]`, for `Steering`. Once for many conversations."""

    def prefill(
        self, prompt: Prompt, kv_bits: int | None, steering: Steering, chunk: int
    ) -> Iterator[Prefilled | None]:
        """Read a prompt that fits, `chunk` columns at once. Yield None after each chunk but the last, then the result."""

    def kept(self, read: Prefilled) -> Sequence[npt.NDArray[Any]]:
        """Return the arrays that make up what was read of a prompt, to be written to a file."""

    def restored(self, prompt: Prompt, kv_bits: int | None, data: memoryview) -> Prefilled:
        """Make a prompt that was read from the bytes of the arrays that `kept` has returned.

        Raises
        ------
        ValueError
            The bytes are not such arrays.
        """

    def form(self, kv_bits: int | None) -> str:
        """Describe how keys and values are kept, by which bytes of `kept` are those of the same engine and format."""

    def kv_bytes(self, positions: int, kv_bits: int | None = None) -> int:
        """Return the bytes of keys and values of so many positions."""

    @property
    def float_bytes(self) -> int:
        """The bytes of a number in what cross-attention sees."""

    @property
    def weights_bytes(self) -> int:
        """The bytes of the weights in memory."""

    @property
    def step_bytes(self) -> int:
        """The bytes of weights that a step with all codebooks reads: every matrix once, and the rows of embeddings."""
