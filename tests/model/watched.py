"""Keeps what a conversation's steps read, what they chose, and from what."""

import mlx.core as mx
import numpy as np

from msh_mlx.model.grid import AS_SAID


def floats(array):
    return np.array(array.astype(mx.float32))


class Watched:
    """Takes the place of a conversation's `StepFunction`, and lets it do the work. All lists are by position.

    `columns` are what each row of the batch read, `[batch, 1 + n_q]`; `text` and `codes` what was chosen, as the depformer saw
    it; `text_logits`, `audio_logits` and `heads` are those of the step. Where the depformer did not run, its entries are None.
    """

    def __init__(self, gen):
        self._run, self._own = gen._run, gen.lm.config.dep_q
        self.columns, self.text, self.codes = [], [], []
        self.text_logits, self.audio_logits, self.heads = [], [], []
        gen._run = self

    def _reads(self, tokens, said):
        before = np.concatenate([np.array(said), np.zeros(tokens.shape[-1] - 1 - self._own, np.int32)])
        self.columns.append(np.where(tokens == AS_SAID, before, tokens).reshape(-1, tokens.shape[-1]))

    def _chose(self, text_logits, heads, text, codes=None, audio_logits=()):
        self.text_logits.append(floats(text_logits)[0])
        self.heads.append([floats(head)[0] for head in heads])
        self.text.append(int(text))
        self.codes.append(codes)
        self.audio_logits.append(
            np.array([floats(logits)[0] for logits in audio_logits]) if len(audio_logits) else None
        )

    def __call__(self, position, tokens, said, rings, key, recent):
        self._reads(tokens, said)
        said, rings, (text_logits, audio_logits, heads) = self._run(position, tokens, said, rings, key, recent)
        chosen = np.array(said)
        self._chose(text_logits, heads, chosen[0], chosen[1:], audio_logits)
        return said, rings, (text_logits, audio_logits, heads)

    def hear(self, position, tokens, said, rings, key, recent):
        self._reads(tokens, said)
        result = self._run.hear(position, tokens, said, rings, key, recent)
        self._chose(result[3], result[4], np.array(result[0])[0])
        return result

    def speak(self, h, text, noise):
        said, audio_logits = self._run.speak(h, text, noise)
        chosen = np.array(said)
        self.text[-1], self.codes[-1] = int(chosen[0]), chosen[1:]
        self.audio_logits[-1] = np.array([floats(logits)[0] for logits in audio_logits])
        return said, audio_logits
