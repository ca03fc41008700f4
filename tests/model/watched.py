"""Keeps what a conversation's steps read, what they chose, and from what."""

import numpy as np

from msh_mlx.model.grid import AS_SAID


class Watched:
    """What a conversation's steps read, what they chose, and from what. All lists are by position.

    `columns` are what each row of the batch read, `[batch, 1 + n_q]`; `text` and `codes` what was chosen, as the depformer saw
    it; `text_logits`, `audio_logits` and `heads` are those of the step. Where the depformer did not run, its entries are None.
    """

    def __init__(self, gen):
        self.columns, self.text, self.codes = [], [], []
        self.text_logits, self.audio_logits, self.heads = [], [], []
        gen._run = _Watching(gen, self)


class _Watching:
    """Takes the place of a conversation's `Run`, and lets it do the work."""

    def __init__(self, gen, seen):
        self._run, self._seen, self._own = gen._run, seen, 1 + gen.lm.config.dep_q
        self._said = np.full(self._own, gen.lm.config.card, np.int32)
        self._taken, self._speaks = [], True

    def __getattr__(self, name):
        return getattr(self._run, name)

    def _reads(self, column):
        before = np.concatenate([self._said, np.zeros(column.shape[-1] - self._own, np.int32)])
        self._seen.columns.append(np.where(column == AS_SAID, before, column).reshape(-1, column.shape[-1]))

    def _chose(self, said):
        seen, self._said = self._seen, said
        seen.text_logits.append(np.array(self._run.text_logits()))
        seen.heads.append(np.array(self._run.extra_heads()))
        seen.text.append(int(said[0]))
        audio = np.array(self._run.audio_logits())
        seen.codes.append(said[1:] if self._speaks else None)
        seen.audio_logits.append(audio if self._speaks and len(audio) else None)

    def step(self, position, column, recent):
        self._reads(column)
        self._run.step(position, column, recent)
        (said,) = self._run.take()
        self._taken.append(said)
        self._chose(said)

    def take(self):
        taken, self._taken = self._taken, []
        return np.array(taken)

    def hear(self, position, rows, recent):
        text, said = self._run.hear(position, rows, recent)
        if said is not None:
            self._chose(said)
        self._reads(rows)
        return text, said

    def speak(self, token, codes):
        self._run.speak(token, codes)
        self._speaks = codes

    def rest(self):
        if (said := self._run.rest()) is not None:
            self._chose(said)
        return said
