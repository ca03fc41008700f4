"""What steers a conversation besides its tokens: conditions and guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: mixes the logits of two rows, "given" and "null", as `null + coef · (given − null)`.

    `text`: the text's logits are mixed, too; else they are those of the given row.
    """

    coef: float
    text: bool = True


@dataclass(frozen=True)
class Steering:
    """What steers a conversation besides tokens. It does not change.

    `added`, `[batch, dim]`, is added to each input; `source` is what cross-attention sees, as from the model's `source`.
    With `guidance` the batch has two rows. `codebooks` is the number of own codebooks that are computed; None: all.
    """

    added: npt.NDArray[np.float32] | None = None
    source: Any = None
    guidance: Guidance | None = None
    codebooks: int | None = None

    @property
    def batch(self) -> int:
        """The number of rows that are computed at each position."""
        return 2 if self.guidance else 1


NO_STEERING = Steering()
