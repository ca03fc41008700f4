"""The token grid: one row for text and one for each codebook, one column for each position.

Position p of the model reads column p, and chooses cells of column p + 1. Each row has a delay: frame f of a codebook with
delay d is in column `first + f + d`, where `first` is the column that the first frame begins in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

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


class Grid:
    """The part of a conversation's grid that the host knows: a prompt, what was heard, and what was said.

    Parameters
    ----------
    streams
        The rows.
    prompt
        The first columns, as from `Streams.begin` or `Streams.opened`.
    """

    def __init__(self, streams: Streams, prompt: Column) -> None:
        self.streams = streams
        self.prompt = prompt
        self.first = len(prompt) - streams.max_delay
        self._heard: deque[Column] = deque(maxlen=streams.max_delay + 1)
        self._said: deque[Column] = deque(maxlen=streams.max_delay + 1)
        self._count = 0

    def hear(self, codes: Column) -> None:
        """Take one frame of what the model hears, `[heard]`."""
        self._heard.append(codes)

    def say(self, codes: Column) -> None:
        """Take the own cells, `[own]`, of the next column behind the prompt's length."""
        self._said.append(codes)
        self._count += 1

    def column(self, position: int) -> Column:
        """Return the column that a position reads, `[rows]`, after all frames were heard that it contains."""
        streams = self.streams
        column = self.prompt[position] if position < len(self.prompt) else np.full(len(streams.delays), AS_SAID, np.int32)
        column = column.copy()
        for row in range(1 + streams.own, len(streams.delays)):
            if (delay := streams.delays[row]) < len(self._heard):
                column[row] = self._heard[-1 - delay][row - 1 - streams.own]
            elif column[row] == AS_SAID:
                column[row] = streams.start
        return column

    def frame(self) -> npt.NDArray[np.uint32] | None:
        """Return the newest complete frame of own codes, `[own]`, with the delays undone. None: there is none, or it has gaps."""
        streams = self.streams
        if not streams.own or self._count <= streams.max_delay:
            return None
        delays = streams.delays[1 : 1 + streams.own]
        codes = np.array([self._said[d - streams.max_delay - 1][k] for k, d in enumerate(delays)], np.int32)
        return None if (codes < 0).any() else codes.astype(np.uint32)
