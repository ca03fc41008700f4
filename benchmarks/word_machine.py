"""Other ways to run text to speech, for families.py to compare with.

The depformer follows the text that the word machine makes of the sampled one. The program runs a step in two halves: the host
waits for the text of a position and, with it, for the codes of the position before, once a step. `TwoWaits` waits for
both where they come. `DeviceSpeech` has the machine in the compiled step, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from msh_mlx.model.families.tts import MAX_PADDING, NEW_WORD, PADDING, Entry, SpeechScript, WordMachine, ahead
from msh_mlx.model.generate import LmGen, Step
from msh_mlx.model.grid import Column
from msh_mlx.model.mlx.run import MlxRun, to_host

# The machine's state, int32 [8]: the entry that comes next; the tokens that are queued, from and to; those of the second
# stream, from and to; the positions of padding that may and that must still come; the position of the end, −1 before.
State = mx.array


class DeviceMachine:
    """The word machine as operations on arrays. All entries are known from the start."""

    def __init__(self, entries: Sequence[Entry], second: int, rows: int | None) -> None:
        tokens = [token for entry in entries for token in entry.tokens]
        begins = np.cumsum([0, *(len(entry.tokens) for entry in entries)])
        spoken = [i for i, entry in enumerate(entries) if entry.tokens]
        # The words of the second stream follow each other without a gap: each comes up to the end of its own.
        ends = np.zeros(len(entries) + 1, np.int64)
        for i, later in zip(spoken, spoken[second:], strict=False):
            ends[i] = begins[later + 1]
        first = int(begins[spoken[second]]) if len(spoken) > second else 0
        padding = [*(entry.padding for entry in entries), 0]
        table = np.stack([begins, np.append(begins[1:], begins[-1]), padding, ends], axis=1)
        self._count, self._rows = len(entries), rows
        self._table = mx.array(table.astype(np.int32))
        self._tokens = mx.array(np.array([*tokens, PADDING], np.int32))
        self.arrays = [self._table, self._tokens]
        self.begin = mx.array([0, 0, 0, first, first, 2, 2, -1], mx.int32)

    def token(
        self, position: mx.array, sampled: mx.array, state: State, arrays: list[mx.array]
    ) -> tuple[mx.array, State]:
        """Return the text `[1]` of the next column, and the new state. All but the count of entries comes in arrays."""
        table, tokens = arrays
        at, queue, queue_end, later, later_end, may, must, end = mx.split(state, 8)
        begin, begin_end, padding, words_end = mx.split(table[at].reshape(-1), 4)
        wants = (queue >= queue_end) & (must <= 0) & ((sampled == NEW_WORD) | (may <= 0))
        takes = wants & (at < self._count)
        word = takes & (begin < begin_end)
        ends = wants & (at >= self._count) & (end < 0)
        end = mx.where(ends, position, end)
        new = (word | ends) if self._rows is not None else word
        must = mx.where(takes, padding, must)
        may = mx.where(word, MAX_PADDING, may)
        queue, queue_end = mx.where(word, begin, queue), mx.where(word, begin_end, queue_end)
        later_end = mx.maximum(later_end, mx.where(word, words_end, 0))
        may, must = (mx.where(new, n, mx.maximum(n - 1, 0)) for n in (may, must))
        pops = queue < queue_end
        if self._rows is None:
            pops = pops & ~new
        also = (later < later_end) & ~new
        first, second = (
            mx.where(there, tokens[n], other) for there, n, other in ((pops, queue, PADDING), (also, later, -1))
        )
        if self._rows is None:
            out = mx.where(new, NEW_WORD, first)
        else:
            out = (mx.where(new, NEW_WORD, second) + 1) * self._rows + first
            later = later + also
        state = mx.concatenate([at + takes, queue + pops, queue_end, later, later_end, may, must, end])
        return out, state.astype(mx.int32)


class Another:
    """Another way to run `gen`, whose `script` has the word machine `host`."""

    def __init__(self, gen: LmGen, script: SpeechScript, host: WordMachine) -> None:
        self._gen, self._script, self._host = gen, script, host
        assert isinstance(gen._run, MlxRun)
        self._mlx = gen._run
        self._forced: Column | None = None

    def advance(self) -> Step | None:
        """As `LmGen.advance`."""
        gen, position = self._gen, self._gen._position
        if self._script.over(position):
            return None
        row = self._run(position, self._script.rows(position, gen._grid.column(position, self._forced)))
        self._forced = self._script.own(position)
        gen._grid.say(row[1:], self._forced)
        gen._position += 1
        return Step(int(row[0]), gen._grid.frame())

    def _run(self, position: int, column: Column) -> Column:
        """Run a position. Return its text and codes, `[1 + dep_q]`."""
        raise NotImplementedError


class TwoWaits(Another):
    """Waits for the text, and then for the codes."""

    def _run(self, position: int, column: Column) -> Column:
        run, script, rings = self._mlx, self._script, self._mlx._rings_for(position)
        assert run._said is not None
        text, h, run._rings, *_, noise = run._function.hear(
            position, column, run._said, rings, run.key(position), self._gen._words.tokens()
        )
        del rings  # so that they are changed in place
        token = script.text(position, int(to_host(text)[0]))
        if script.speaks(position):
            run._said, _ = run._function.speak(h, mx.array([token]), noise)
            return to_host(run._said)
        row = np.array([token] + [0] * self._gen.lm.config.dep_q, np.int32)
        run._said = mx.array(row)
        return row


class DeviceSpeech(Another):
    """Has the word machine in the compiled step."""

    def __init__(self, gen: LmGen, script: SpeechScript, host: WordMachine) -> None:
        super().__init__(gen, script, host)
        config = gen.lm.config
        rows = config.text_card + 1 if config.demux_second_stream else None
        self._machine = DeviceMachine(list(host.entries), ahead(config), rows)
        self._state = self._machine.begin
        self._whole = mx.compile(lambda *args: self._step(True, *args))
        self._silent = mx.compile(lambda *args: self._step(False, *args))

    def _step(self, speaks: bool, position: mx.array, state: State, tables: list[mx.array], *args: Any) -> Any:
        function = self._mlx._function
        sampled, h, rings, *_, noise = function._temporal(*args)
        text, state = self._machine.token(position, sampled, state, tables)
        if speaks:
            said, _ = function._codes(h, text, noise)
        else:
            said = mx.concatenate([text, mx.zeros((self._gen.lm.config.dep_q,), mx.int32)])
        return said, rings, state

    def _run(self, position: int, column: Column) -> Column:
        gen, run, rings = self._gen, self._mlx, self._mlx._rings_for(position)
        arrays = run._function._arrays(position, column, gen._words.tokens(), rings)
        function = self._whole if self._script.speaks(position) else self._silent
        rest = (run._said, rings, run.key(position), run._function._given)
        run._said, run._rings, self._state = function(
            mx.array([position]), self._state, self._machine.arrays, *arrays, *rest
        )
        del rings, rest
        row, state = np.split(to_host(mx.concatenate([run._said, self._state])), [1 + gen.lm.config.dep_q])
        self._host.end = int(state[-1]) if state[-1] >= 0 else None
        return row


WAYS: dict[str, type[Another]] = {"two waits": TwoWaits, "machine on the device": DeviceSpeech}
