"""Choose the hints to show from levels and figures over time. Callers pass the time: nothing here reads a clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from ..events import Event, Heard, ModelInUse, Ready, Said
from ..format import FRAME_SECONDS, Pcm
from ..sound.headset import is_bluetooth_headset
from .screen.status import Status


class Latch:
    """A condition that does not flicker.

    It becomes true when it has held for `after` seconds, and stays true until it has not held for `hold` seconds.
    """

    def __init__(self, after: float, hold: float) -> None:
        self._after = after
        self._hold = hold
        self._since: float | None = None
        self._last: float | None = None  # when it last held for long enough

    def push(self, time: float, holds: bool) -> bool:
        """Take whether the condition `holds` at `time`, in seconds; return whether it counts as true."""
        if not holds:
            self._since = None
        elif self._since is None:
            self._since = time
        if self._since is not None and time - self._since >= self._after:
            self._last = time
        if self._last is not None and time - self._last > self._hold:
            self._last = None
        return self._last is not None


class EchoDetector:
    """Detects whether the microphone hears the loudspeaker, from their levels over time.

    Levels are the RMS of 40 ms each, compared in decibels. Slow changes are removed first: they only show that people take
    turns. The loudspeaker's levels of the last seconds in which it was loud are correlated with the microphone's, for each
    possible delay. There is an echo if the correlation is high, and highest at the same delay several times in a row.
    """

    STEP = 0.04  # seconds
    _LAGS = 19  # delays of 0 to 0.72 s: the cushion, the devices and the way through the air
    _HISTORY = 500  # levels that are kept
    _ENOUGH, _MOST = 90, 200  # levels that are compared, at least and at most
    _FEWEST = 5  # syllables that they must have
    _SLOW = 25  # levels, a second: slower changes are removed
    _FLOOR, _AUDIBLE, _RISE = -60.0, -50.0, 3.0  # decibels
    _EVERY = 15  # levels between two looks
    _LOOKS = 3  # looks that must agree

    def __init__(self) -> None:
        self._levels: deque[tuple[float, float]] = deque(maxlen=self._HISTORY)
        self._lags: deque[int | None] = deque(maxlen=self._LOOKS)
        self._until_next = self._EVERY

    def push(self, played: float, heard: float) -> None:
        """Take the RMS of the sound that was played and of the sound that was heard in the same 40 ms."""
        self._levels.append((played, heard))
        self._until_next -= 1
        if self._until_next == 0:
            self._until_next = self._EVERY
            self._lags.append(self._look())

    @property
    def heard(self) -> bool:
        """Return whether there is an echo."""
        lags = [lag for lag in self._lags if lag is not None]
        return len(lags) == self._LOOKS and max(lags) - min(lags) <= 2

    def _look(self) -> int | None:
        """Return the delay, in steps of 40 ms, at which the microphone repeats the loudspeaker; None if it does not."""
        if len(self._levels) < self._ENOUGH + self._LAGS:
            return None
        decibels = 20 * np.log10(np.maximum(np.array(self._levels).T, 10 ** (self._FLOOR / 20)))
        played, heard = (_without_slow(row, self._SLOW) for row in decibels)
        loud = np.convolve(decibels[0] > self._AUDIBLE, np.ones(9), "same") > 0
        begins = np.diff(played > self._RISE, prepend=False) & (played > self._RISE)
        best: tuple[float, int | None] = 0.0, None
        for lag in range(self._LAGS):
            chosen = np.flatnonzero(loud[: len(loud) - lag])[-self._MOST :]
            syllables = np.count_nonzero(begins[chosen])
            if len(chosen) < self._ENOUGH or syllables < self._FEWEST:
                continue
            # With fewer syllables, other sounds resemble them more easily by chance.
            chance = 0.4 + 1.1 / math.sqrt(syllables)
            best = max(best, (_correlation(played[chosen], heard[chosen + lag]) - chance, lag), key=itemgetter(0))
        return best[1]


_Row = npt.NDArray[np.float64]


def _without_slow(row: _Row, steps: int) -> _Row:
    padded = np.pad(row, steps // 2, mode="edge")
    return row - np.convolve(padded, np.ones(steps) / steps, "valid")


def _correlation(a: _Row, b: _Row) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    # Levels that vary by less than about a decibel say nothing.
    return float(np.sum(a * b)) / scale if scale > len(a) else 0.0


def envelope(pcm: Pcm, parts: int) -> list[float]:
    """Return the RMS of each of `parts` equal parts of `pcm` `[n]`."""
    return [float(x) for x in np.sqrt(np.mean(np.square(pcm.reshape(parts, -1), dtype=np.float64), axis=1))]


class Hints:
    """Chooses the hints that help now, the most important first.

    `terminal` is the application that needs macOS's permission for the microphone, or None on other systems. `elsewhere` says
    that the model runs on another computer.
    """

    _SILENT = 3.0  # seconds of zeros
    _ASKING = 20.0  # seconds during which macOS may still be asking the user for permission
    _HEADSET = 30.0  # seconds for which the hint about a headset is shown

    def __init__(self, *, terminal: str | None, elsewhere: bool = False) -> None:
        self._terminal = terminal
        self._elsewhere = elsewhere
        self._smaller = ""
        self._silent = Latch(0.0, 1.0)
        self._slow = Latch(5.0, 10.0)
        self._dropping = Latch(0.0, 10.0)
        self._listen_for_echo(True)
        self._clipping = Latch(0.0, 5.0)
        self._clipped: deque[float] = deque()
        self._dropped = 0.0
        self._headset: str | None = None
        self._device_since: float | None = None
        self._played: dict[int, list[float]] = {}
        self._heard: dict[int, list[float]] = {}

    def use_device(self, name: str, rate: float, outputs: Collection[str]) -> None:
        """Take the input device that is used from now on: its name, its default rate in Hz, the names of all output devices."""
        self._headset = name if is_bluetooth_headset(name, rate, outputs) else None
        self._device_since = None
        self._silent = Latch(0.0, 1.0)

    def _listen_for_echo(self, cancels: bool) -> None:
        self._cancels = cancels
        self._echo = EchoDetector()
        self._echo_latch = Latch(0.0, 15.0)

    def handle(self, event: Event) -> None:
        """Compare the sound that is heard with the sound that is said, and note the model's bits; ignore other events."""
        if isinstance(event, ModelInUse):
            self._smaller = "choose the q4 model" if event.bits in (8, 16) else ""
        elif isinstance(event, Ready):
            self._played.clear()
            self._heard.clear()
        elif isinstance(event, Heard):
            self._pair(event.index, event.pcm, self._heard)
        elif isinstance(event, Said):
            self._pair(event.index, event.pcm, self._played)

    def _pair(self, index: int, pcm: Pcm, levels: dict[int, list[float]]) -> None:
        levels[index] = envelope(pcm, round(FRAME_SECONDS / EchoDetector.STEP))
        if index in self._heard and index in self._played:
            for played, heard in zip(self._played.pop(index), self._heard.pop(index), strict=True):
                self._echo.push(played, heard)
        # Drop old frames without a counterpart: the first frames have no voice.
        for old in [i for i in levels if i < index - 25]:
            del levels[old]

    def update(self, time: float, status: Status, silent: float) -> tuple[str, ...]:
        """Return the hints to show now, each a sentence; while the microphone is muted, none about its sound.

        `time` is in seconds of any clock, and must not decrease from call to call. `silent` is for how many seconds the
        microphone has given exact zeros.
        """
        if self._device_since is None:
            self._device_since = time
        hints = []
        if self._silent.push(time, silent > self._SILENT) and not status.muted:
            hints.append(self._silence(time - self._device_since))
        if self._is_slow(time, status):
            what = " or ".join(filter(None, (self._smaller, "close other programs")))
            hints.append(
                "The server or the network is too slow: Moshi does not hear all that you say."
                if self._elsewhere
                else f"This computer is too slow for the model: {what}."
            )
        cancels = status.echo is None or status.echo.mode != "off"
        if cancels != self._cancels:
            self._listen_for_echo(cancels)
        if self._echo_latch.push(time, self._echo.heard) and not status.muted:
            what = "use headphones, or turn the loudspeaker down"
            if not cancels:
                what = "press e to remove the echo, or use headphones"
            hints.append(f"Moshi hears itself through the microphone: {what}.")
        if self._is_clipping(time, status.microphone_clipped) and not status.muted:
            hints.append("The microphone is too loud: turn its input level down in the system's sound settings.")
        if self._headset is not None and time - self._device_since <= self._HEADSET:
            hints.append(
                f"{self._headset} sounds like a telephone while its microphone is in use: press d for another microphone, "
                "such as the built-in one."
            )
        return tuple(hints)

    def _silence(self, age: float) -> str:
        if self._terminal is None:
            return "The microphone is silent: it may be muted or unplugged; press d for the next one."
        if age < self._ASKING:
            return f"The microphone is silent so far: macOS may be asking whether {self._terminal} may use it."
        return (
            f"The microphone is silent: allow {self._terminal} in System Settings > Privacy & Security > Microphone, "
            "then quit and reopen it."
        )

    def _is_slow(self, time: float, status: Status) -> bool:
        slow = self._slow.push(time, (status.step_p95 or 0.0) > 1000 * FRAME_SECONDS)
        dropping = self._dropping.push(time, status.dropped > self._dropped)
        self._dropped = status.dropped
        return slow or dropping

    def _is_clipping(self, time: float, clipped: bool) -> bool:
        if clipped:
            self._clipped.append(time)
        while self._clipped and time - self._clipped[0] > 5.0:
            self._clipped.popleft()
        return self._clipping.push(time, len(self._clipped) >= 3)
