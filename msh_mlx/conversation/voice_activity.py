"""`VoiceActivity`: whether the user speaks now, and for how long."""

from __future__ import annotations

import numpy as np

from ..format import SAMPLE_RATE, Pcm
from .turns import FAINT

PIECE = SAMPLE_RATE // 100  # samples that are looked at together: 10 ms
_FAINTER = 0.1  # of the loudest piece of late: what is below is no voice; a word may begin with a faint sound
_FADING = 0.9993  # by which the loudest piece of late counts less with each piece: half of it is left after ten seconds
_ONSET = 3  # pieces of voice one after the other, with which somebody begins to speak: a click is shorter
_GAP = 0.5  # seconds of quiet that end it; between words there is less
_ABOVE = 3.0  # times the level of the quietest piece of late: what is below is the room's noise
_RISING = 1.001  # by which the quietest piece of late grows with each piece, so that a louder room is followed
_PIECE_SECONDS = PIECE / SAMPLE_RATE


class VoiceActivity:
    """Follows the level of the user's sound, piece by piece of 10 ms.

    Attributes
    ----------
    speaking
        Whether the user speaks: from three pieces of voice on, until 0.5 s of quiet.
    voiced
        How long there was voice since the user began to speak, in seconds, pauses left out.
    quiet
        How long there has been no voice, in seconds.
    """

    def __init__(self) -> None:
        self._loudest, self._quietest = 0.0, 1.0
        self._in_a_row = 0
        self.speaking = False
        self.voiced = self.quiet = 0.0

    def hear(self, pcm: Pcm) -> None:
        """Take a piece, `[240]` float32."""
        level = float(np.sqrt(np.mean(pcm * pcm)))
        self._loudest = max(level, _FADING * self._loudest)
        self._quietest = max(1e-5, min(level, _RISING * self._quietest))
        if level > max(FAINT, _FAINTER * self._loudest, _ABOVE * self._quietest):
            self._in_a_row += 1
            self.quiet = 0.0
            if not self.speaking and self._in_a_row >= _ONSET:
                self.speaking, self.voiced = True, (_ONSET - 1) * _PIECE_SECONDS
            self.voiced += _PIECE_SECONDS
        else:
            self._in_a_row = 0
            self.quiet += _PIECE_SECONDS
            if self.quiet >= _GAP:
                self.speaking = False

    def end(self) -> None:
        """Count the user as silent, until the voice begins anew."""
        self._in_a_row = 0
        self.speaking = False
        self.voiced = 0.0
