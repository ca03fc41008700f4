"""`EndOfTurn`: when a speaker has ended a turn."""

from __future__ import annotations

import numpy as np

from ..format import FRAME_SECONDS, FRAME_SIZE, Pcm

_LIKELY = 0.5  # probability of a pause
_HELD = 3  # steps for which it must last; a single one is often hasty
_QUIET = round(1.5 / FRAME_SECONDS)  # frames of quiet that end a turn, where the model does not tell pauses
FAINT = 0.003  # RMS of a frame, -50 dB of full scale: below it there is no speech
_FAINTER = 0.2  # of the loudest frame of late: below it there is no speech, either
_FADING = 0.995  # by which the loudest frame of late counts less with each frame


class EndOfTurn:
    """Follows a speaker frame by frame: whether a turn has begun, and whether it has ended.

    A turn begins with text, and ends when the model's extra heads tell a pause for some steps. Without extra heads it begins
    with sound, and ends with quiet, since the text may come seconds after the sound.
    """

    def __init__(self) -> None:
        self.pause: float | None = None
        self._loudest = 0.0
        self.end()

    def end(self) -> None:
        """End the turn. The next one has to begin."""
        self._text = self._sound = False
        self._pauses = self._quiet = 0

    @property
    def ended(self) -> bool:
        """Whether the turn has ended."""
        if self.pause is not None:
            return self._text and self._pauses >= _HELD
        return self._sound and self._quiet >= _QUIET

    def hear(self, pcm: Pcm) -> None:
        """Take whole frames of sound."""
        for level in np.sqrt((pcm.reshape(-1, FRAME_SIZE) ** 2).mean(axis=1)):
            self._loudest = max(float(level), _FADING * self._loudest)
            if level > max(FAINT, _FAINTER * self._loudest):
                self._sound, self._quiet = True, 0
            else:
                self._quiet += 1

    def write(self, text: bool, pause: float | None) -> None:
        """Take what the model wrote in a step: whether there was text, and the probability of a pause."""
        self.pause = pause
        if text:
            self._text, self._pauses = True, 0
        self._pauses = self._pauses + 1 if (pause or 0.0) > _LIKELY else 0
