"""What steers a conversation besides its tokens: conditions and guidance."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

# The keys and values of a layer's cross-attention, as from `CrossAttention.read`.
Source = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: mixes the logits of two rows, "given" and "null", as `null + coef · (given − null)`.

    `text`: the text's logits are mixed, too; else they are those of the given row.
    """

    coef: float
    text: bool = True

    def mix(self, logits: mx.array) -> mx.array:
        """Mix logits `[2, n]`, the given row first: `[1, n]`."""
        given, null = mx.split(logits, 2)
        return null + self.coef * (given - null)


@dataclass(frozen=True)
class Steering:
    """What steers a conversation besides tokens. It does not change.

    `added`, `[batch, dim]`, is added to each input; `sources` are the keys and values that each layer's
    cross-attention sees (`Lm.read_source`).
    With `guidance` the batch has two rows. `codebooks` is the number of own codebooks that are computed; None: all.
    """

    added: mx.array | None = None
    sources: tuple[Source, ...] = ()
    guidance: Guidance | None = None
    codebooks: int | None = None

    def __post_init__(self) -> None:
        # Compute it now: what is not computed yet could be used on this thread only.
        mx.eval(self.added, self.sources)

    @property
    def batch(self) -> int:
        """The number of rows that are computed at each position."""
        return 2 if self.guidance else 1


NO_STEERING = Steering()
