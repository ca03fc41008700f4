"""What a model is told besides its tokens: conditions, which are the same for a whole conversation.

A condition becomes a vector that is added to every input, or a sequence of vectors that cross-attention sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..system.inputs import brief


@dataclass(frozen=True)
class Conditioner:
    """A condition of the configuration.

    `values` are those that it may have, each with a row of a table, whose rows have `dim` numbers; None: it is a tensor of rows
    with `dim` numbers. `rows` is the table's number of rows, without the last, which is not used.
    """

    dim: int
    values: tuple[str, ...] | None = None
    rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as a configuration has it."""
        if self.values is None:
            return {"type": "tensor", "tensor": {"dim": self.dim}}
        table = {"n_bins": self.rows, "dim": self.dim, "tokenizer": "noop", "possible_values": list(self.values)}
        return {"type": "lut", "lut": table}


@dataclass(frozen=True)
class Fuser:
    """How conditions reach the model: the names of those that are added, and of those that cross-attention sees.

    `scale` is the factor of the positions' embeddings that are added to what cross-attention sees; 0: none are.
    """

    added: tuple[str, ...] = ()
    crossed: tuple[str, ...] = ()
    scale: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as a configuration has it."""
        embedded = {"cross_attention_pos_emb": self.scale != 0, "cross_attention_pos_emb_scale": self.scale}
        return {**embedded, "sum": list(self.added), "prepend": [], "cross": list(self.crossed)}


class Conditions:
    """The weights of a model's conditions.

    Parameters
    ----------
    conditioners
        The conditions of the configuration.
    weights
        float32 arrays by their names in a checkpoint, behind "condition_provider.".
    """

    def __init__(self, conditioners: Mapping[str, Conditioner], weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self._known = dict(conditioners)
        self._weights = dict(weights)

    def vector(self, name: str, value: str | None) -> npt.NDArray[np.float32]:
        """Return the vector `[dim]` of a value of a condition; None: the condition is not given.

        Raises
        ------
        InputError
            The condition cannot have this value.
        """
        values = self._known[name].values or ()
        if value is None:
            return self._of(name, "learnt_padding").reshape(-1)
        if value not in values:
            raise InputError(f"The condition {name} cannot be {brief(value)}", f"it may be {', '.join(values)}")
        vector: npt.NDArray[np.float32] = (
            self._of(name, "output_proj.weight") @ self._of(name, "embed.weight")[values.index(value)]
        )
        return vector

    def sequence(
        self, name: str, rows: npt.NDArray[np.float32], given: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """Return the sequence `[T, dim]` of a condition's rows, `[T, dim of the condition]`, where `given`, `[T]`."""
        padding = self._of(name, "learnt_padding")[0]
        sequence: npt.NDArray[np.float32] = np.where(
            given[:, None], rows @ self._of(name, "output_proj.weight").T, padding
        )
        return sequence

    def added(self, fuser: Fuser, values: Mapping[str, str | None]) -> npt.NDArray[np.float32]:
        """Return the sum `[dim]` of the vectors of all conditions that are added to the inputs."""
        vectors = [self.vector(name, values.get(name)) for name in fuser.added]
        total: npt.NDArray[np.float32] = np.sum(vectors, axis=0, dtype=np.float32)
        return total

    def _of(self, name: str, part: str) -> npt.NDArray[np.float32]:
        return self._weights[f"conditioners.{name}.{part}"]


def positions(length: int, dim: int) -> npt.NDArray[np.float32]:
    """Return the embeddings of the positions 0 to length − 1 of a source of cross-attention, `[length, dim]`.

    `cos(t / 10000^(i / (dim/2 − 1)))` for i from 0 to dim/2 − 1, then the same with sin.
    """
    half = dim // 2
    angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(half) / max(half - 1, 1))
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
