"""`LiveConversation`: what is the same in every live conversation, wherever its model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..events import Dropped, Event, Failed, Heard, Queues, Ready, Said, Span, Spoke, SpokeWord, Underrun, Word
from ..format import FRAME_SECONDS, SAMPLE_RATE, Pcm
from ..metrics import Durations, Memory, Metrics
from .text import Words

DELAY_LIMIT = 0.4  # seconds

_WORD_ENDS = 12  # frames without text after which the last word is complete
_QUEUES_EVERY = 0.05  # seconds, at least
_MEMORY_EVERY = 1.0  # seconds, at least


class Source(Protocol):
    """Where the user's sound comes from, 24 kHz mono; used by one thread at a time."""

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for `n` samples and return them, `[n]` float32; None if they are not there after `timeout` seconds."""

    def backlog(self) -> float:
        """Return how much sound waits to be read, in seconds."""

    def trim(self, keep: float) -> float:
        """Forget the oldest sound so that about `keep` seconds wait; return how many seconds were forgotten."""


class Sink(Protocol):
    """Where Moshi's sound goes, 24 kHz mono; the threads of a conversation write to it and ask it."""

    def write(self, pcm: Pcm) -> None:
        """Take a frame, `[1920]` float32, to be played behind what waits already; does not wait."""

    def pause(self) -> None:
        """Hear that nothing will come for now: running dry is no underrun then."""

    def clear(self) -> None:
        """Forget what waits to be played."""

    def stats(self) -> Mapping[str, Any]:
        """Return "queued" and "cushion", samples at 24 kHz that wait and that should, and the count of "underruns".

        What is not known yet may be left out.
        """


class NullSink:
    """A sink that forgets: for those who take Moshi's sound from the events."""

    def write(self, pcm: Pcm) -> None:
        """Forget a frame."""

    def pause(self) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""

    def stats(self) -> Mapping[str, Any]:
        """Return no figures."""
        return {}


class LiveConversation(ABC):
    """A live conversation between `source` and `sink`, on threads of its own: its figures, and what it tells.

    A `Pipeline` has the model in this process, a `Remote` on another computer.

    Parameters
    ----------
    source, sink
        The ends. The caller opens and closes them, and may do so during the conversation: with a source that gives nothing
        everybody waits.
    events
        Gets every event, on the threads of the conversation: it must be quick and bear several calls at a time, and must not
        change the sound in them. What it raises ends the conversation.
    delay_limit
        How old the user's sound may become before it is heard, in seconds; the oldest is given up.

    Attributes
    ----------
    metrics
        The figures so far.
    failure
        What ended the conversation, if something did.
    muted
        Whether the model hears silence in place of the user.
    """

    def __init__(self, source: Source, sink: Sink, events: Callable[[Event], None], delay_limit: float) -> None:
        self.metrics = Metrics()
        self.failure: Failed | None = None
        self.muted = False
        self._source = source
        self._sink = sink
        self._events = events
        self._delay_limit = delay_limit
        self._restart = False
        self._conversation = 0  # 0 until the first begins
        self._words = Words()
        self._text_at = 0  # in which frame text came last
        self._queues_told = 0.0  # when
        self._measured = 0.0  # when memory was

    # ---- what the caller may do, on any thread ---------------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Begin, on threads: events tell how it goes."""

    def reset(self) -> None:
        """Begin a new conversation from fresh state, behind what is on its way; `Ready` says when."""
        self._restart = True

    def mute(self, muted: bool) -> None:
        """Let the model hear silence in place of the user, or the user again."""
        self.muted = muted

    @abstractmethod
    def stop(self, timeout: float = 1.0) -> bool:
        """End the conversation and wait up to `timeout` seconds for the threads; may be called again.

        False means that one of them is still in native code, which cannot be interrupted: only ending the process does.
        """

    @abstractmethod
    def join(self, timeout: float | None = None) -> bool:
        """Wait until `stop` or a failure has ended the threads; False if that is not so after `timeout` seconds."""

    # ---- what happens, each by one thread at a time ----------------------------------------------------------------------

    def _listen(self) -> None:
        """Begin the next conversation with what is heard from now on."""
        self._source.trim(0)
        self._conversation += 1
        self._events(Ready(self._conversation))

    def _hears(self, index: int, pcm: Pcm) -> Pcm:
        """Return what the model hears as frame `index` of the user, silence while muted, and tell it."""
        if self.muted:
            pcm = np.zeros_like(pcm)
        self._events(Heard(index, pcm))
        return pcm

    def _gave_up(self, index: int, seconds: float) -> None:
        """Tell that so much of the user's sound, right before frame `index`, is not heard."""
        if seconds > 0:
            self.metrics.drops += 1
            self.metrics.dropped += seconds
            self._events(Dropped(index, seconds))

    def _tell_queues(self, microphone: float, model: float, decoder: float) -> None:
        """Tell of underruns, and from time to time of the queues; what waits where is given in seconds of sound."""
        stats = self._sink.stats()
        underruns = stats.get("underruns", 0)
        if underruns != self.metrics.underruns:
            self.metrics.underruns = underruns
            self._events(Underrun(underruns))
        now = perf_counter()
        if now - self._queues_told > _QUEUES_EVERY:
            self._queues_told = now
            queued, cushion = (stats.get(name, 0) / SAMPLE_RATE for name in ("queued", "cushion"))
            self._events(Queues(now, microphone, model, decoder, queued, cushion, self.metrics.dropped, underruns))

    def _measure(self, memory: Callable[[], Memory]) -> None:
        """Measure memory from time to time."""
        now = perf_counter()
        if now - self._measured > _MEMORY_EVERY:
            self._measured = now
            self.metrics.memory = memory()

    def _worked(self, stage: str, index: int, begin: float, end: float) -> None:
        """Tell when a stage worked on frame `index`."""
        durations: Durations = getattr(self.metrics, stage)
        durations.add(end - begin)
        self._events(Span(stage, index, begin, end))

    def _speaks(self, index: int, text: str) -> None:
        """Tell the text that came with frame `index`; with "" for a while, the last word is complete."""
        if text:
            self._text_at = index
            self._events(Spoke(index, text))
            self._tell_words(self._words.push(index * FRAME_SECONDS, text))
        elif index >= self._text_at + _WORD_ENDS:
            self._end_words()

    def _end_words(self) -> None:
        """Nothing more belongs to the last word: tell it."""
        self._tell_words(self._words.flush())

    def _tell_words(self, words: list[Word]) -> None:
        for word in words:
            self.metrics.words += 1
            self._events(SpokeWord(word))

    def _says(self, index: int, pcm: Pcm, heard: float | None) -> None:
        """Play frame `index` of Moshi's voice; `heard` is when the last sample of the user's frame was, if that is known."""
        now = perf_counter()
        queued = self._sink.stats().get("queued", 0) / SAMPLE_RATE
        self._sink.write(pcm)
        self.metrics.frames += 1
        if heard is not None:
            self.metrics.reply.add(now - heard)
            self.metrics.delay.add(now - heard + queued)
        self._events(Said(index, pcm))


# Gets the source, the sink, the events and the delay limit of `LiveConversation`.
MakeConversation: TypeAlias = Callable[[Source, Sink, Callable[[Event], None], float], LiveConversation]
