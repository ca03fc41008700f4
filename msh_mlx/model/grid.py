"""The token grid: one row for text and one for each codebook, one column for each position.

Position p of the model reads column p, and chooses cells of column p + 1. Each row has a delay: frame f of a codebook with
delay d is in column `first + f + d`, where `first` is the column that the first frame begins in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.int32]

# Stands for a token that the step before has chosen.
AS_SAID = -2
# A token that adds nothing to the input.
NOTHING = -1


@dataclass(frozen=True)
class Streams:
    """The rows of the grid: text, the model's own codebooks, and the codebooks that it hears.

    `delays` has an entry for each row. `text_start` and `start` are the tokens before anything is said or heard, in the text
    and in codebooks; codes are below `start`.
    """

    delays: tuple[int, ...]
    own: int
    text_start: int
    start: int

    @property
    def heard(self) -> int:
        """The number of codebooks that the model hears."""
        return len(self.delays) - 1 - self.own

    @property
    def max_delay(self) -> int:
        """The largest delay."""
        return max(self.delays)

    def begin(self) -> Column:
        """Return the columns before a conversation, `[1 + max_delay, rows]`: "start" in column 0 and where a delay reaches."""
        columns = np.full((1 + self.max_delay, len(self.delays)), self.start, np.int32)
        columns[:, 0] = self.text_start
        return self.opened(columns)

    def opened(self, columns: Column) -> Column:
        """Return a prompt's columns with `AS_SAID` in all cells that the conversation fills.

        `columns` are `[length + max_delay, rows]`: those of the prompt, and the cells of its last frames that delays carry
        beyond it.
        """
        length = len(columns) - self.max_delay
        after = np.arange(len(columns))[:, None] - length
        return np.where(after < np.array(self.delays), columns, AS_SAID).astype(np.int32)


@dataclass(frozen=True)
class Prompt:
    """The columns before a conversation.

    `columns` are `[length + max_delay, rows]`, as from `Streams.begin` or `Streams.opened`. `embedded`, `[n, dim]`, are
    the inputs of the model for the first n columns, where a file holds them in this form; None: they are looked up.
    """

    columns: Column
    embedded: Any = None


class Script(Protocol):
    """Fills cells that nobody samples, position by position, and says when it is over."""

    def text(self, position: int, sampled: int) -> int:
        """Return the text token of the next column, given the one that was sampled."""

    def own(self, position: int) -> Column:
        """Return the own cells of the next column, `[own]`: `AS_SAID` for those that the model chooses."""

    def rows(self, position: int, column: Column) -> Column:
        """Return what each row of the batch reads at a position, `[batch, rows]`, given its column."""

    def speaks(self, position: int) -> bool:
        """Tell whether any own cell of the next column is the model's."""

    def over(self, position: int) -> bool:
        """Tell whether the script ends before a position."""


class Grid:
    """The part of a conversation's grid that the host knows: a prompt, what was heard, and what was said.

    Parameters
    ----------
    streams
        The rows.
    prompt
        The first columns, as from `Streams.begin` or `Streams.opened`.
    codebooks
        How many of the own codebooks belong to a frame; None: all.
    """

    def __init__(self, streams: Streams, prompt: Column, codebooks: int | None = None) -> None:
        self.streams = streams
        self.prompt = prompt
        self._codebooks = streams.own if codebooks is None else codebooks
        self._heard: deque[Column] = deque(maxlen=streams.max_delay + 1)
        self._said: deque[Column] = deque(maxlen=streams.max_delay + 1)
        self._count = 0

    def hear(self, codes: Column) -> None:
        """Take one frame of what the model hears, `[heard]`."""
        self._heard.append(codes)

    def say(self, codes: Column, forced: Column | None = None) -> None:
        """Take the own codes, `[own]`, that were chosen for the next column. Cells of `forced` that are not `AS_SAID` win."""
        self._said.append(codes if forced is None else np.where(forced == AS_SAID, codes, forced))
        self._count += 1

    @property
    def newest(self) -> Column:
        """The own cells of the newest column, `[own]`."""
        newest: Column = self._said[-1]
        return newest

    def column(self, position: int, forced: Column | None = None) -> Column:
        """Return the column that a position reads, `[rows]`, after all frames were heard that it contains.

        Own cells of `forced`, `[own]`, that are not `AS_SAID` are as there.
        """
        streams = self.streams
        column: Column = np.full(len(streams.delays), AS_SAID, np.int32)
        if position < len(self.prompt):
            column[:] = self.prompt[position]
        if forced is not None:
            own = column[1 : 1 + streams.own]
            own[:] = np.where(own == AS_SAID, forced, own)
        for row in range(1 + streams.own, len(streams.delays)):
            if (delay := streams.delays[row]) < len(self._heard):
                column[row] = self._heard[-1 - delay][row - 1 - streams.own]
            elif column[row] == AS_SAID:
                column[row] = streams.start
        return column

    def frame(self) -> npt.NDArray[np.uint32] | None:
        """Return the newest frame of own codes, `[codebooks]`, delays undone. None: none is complete, or it has gaps."""
        streams = self.streams
        if not self._codebooks or self._count <= streams.max_delay:
            return None
        delays = streams.delays[1 : 1 + self._codebooks]
        codes = np.array([self._said[d - streams.max_delay - 1][k] for k, d in enumerate(delays)], np.int32)
        return None if (codes < 0).any() else codes.astype(np.uint32)
