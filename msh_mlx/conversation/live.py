"""`LiveConversation`: what live conversations have in common, with the model here or on a server."""

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

_WORD_ENDS = 12  # frames without text, after which the last word is complete
_QUEUES_EVERY = 0.05  # seconds, at least
_MEMORY_EVERY = 1.0  # seconds, at least


class Source(Protocol):
    """The user's sound, 24 kHz mono. One thread at a time uses it."""

    def read(self, n: int, timeout: float) -> Pcm | None:
        """Wait for `n` samples and return them, `[n]` float32; return None if they do not come within `timeout` seconds."""

    def backlog(self) -> float:
        """Return how much sound waits to be read, in seconds."""

    def trim(self, keep: float) -> float:
        """Drop the oldest sound so that about `keep` seconds wait; return how many seconds were dropped."""


class Sink(Protocol):
    """The output for Moshi's sound, 24 kHz mono. Several threads of a conversation call it."""

    def write(self, pcm: Pcm) -> None:
        """Queue a frame, `[1920]` float32, behind what is queued already; return at once."""

    def pause(self) -> None:
        """Expect no sound for now: until the next `write`, an empty queue does not count as an underrun."""

    def clear(self) -> None:
        """Drop what is queued."""

    def queued(self) -> float:
        """Return how much sound is queued, in seconds."""

    def stats(self) -> Mapping[str, Any]:
        """Return figures: "cushion" is how many samples at 24 kHz should be queued, "underruns" how often the queue ran dry.

        A figure that is not known yet may be missing.
        """


class NullSink:
    """A sink that drops everything, for callers that take Moshi's sound from the events."""

    def write(self, pcm: Pcm) -> None:
        """Drop a frame."""

    def pause(self) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""

    def queued(self) -> float:
        """Return 0."""
        return 0.0

    def stats(self) -> Mapping[str, Any]:
        """Return no figures."""
        return {}


class LiveConversation(ABC):
    """A live conversation between `source` and `sink`, on threads of its own.

    This base class keeps the figures and sends the events. A `Pipeline` runs the model in this process, a `Remote` talks to a
    server.

    Parameters
    ----------
    source, sink
        The user's sound and Moshi's. The caller opens and closes them, also during the conversation: while the source has no
        sound, the conversation waits.
    events
        Called with every event, on the threads of the conversation, and by several of them at the same time. It must return
        quickly and must not change the sound in an event. An exception from it ends the conversation.
    delay_limit
        How old the user's sound may become before the model hears it, in seconds; the oldest sound beyond that is dropped.
    early
        Returns how many seconds of the waiting sound do not count as delay, because they came early; its argument is how many
        seconds of sound have left `source` and are not answered yet.

    Attributes
    ----------
    metrics
        The figures so far.
    failure
        The failure that ended the conversation, or None.
    muted
        Whether the model hears silence in place of the user. The caller may change it at any time.
    """

    def __init__(
        self,
        source: Source,
        sink: Sink,
        events: Callable[[Event], None],
        delay_limit: float,
        early: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        self.metrics = Metrics()
        self.failure: Failed | None = None
        self.muted = False
        self._source = source
        self._sink = sink
        self._events = events
        self._delay_limit = delay_limit
        self._early = early
        self._taken = 0  # frames that have left `source`, in all conversations
        self._restart = False
        self._conversation = 0  # 0 until the first begins
        self._words = Words()
        self._text_at = 0  # the frame with which text last came
        self._queues_told = 0.0  # when the last `Queues` was sent
        self._measured = 0.0  # when memory was last measured

    # ---- what the caller may do, on any thread ---------------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Start the threads and return at once; events report the progress."""

    def reset(self) -> None:
        """Ask for a new conversation from fresh state; `Ready` reports that it has begun."""
        self._restart = True

    @abstractmethod
    def stop(self, timeout: float = 1.0) -> bool:
        """End the conversation and wait up to `timeout` seconds for the threads; it may be called again.

        Return False if a thread is still in native code, which cannot be interrupted: then only the end of the process ends it.
        """

    @abstractmethod
    def join(self, timeout: float | None = None) -> bool:
        """Wait until `stop` or a failure has ended the threads; return False if they still run after `timeout` seconds."""

    # ---- what happens; each method is called by one thread at a time -----------------------------------------------------

    def _listen(self) -> None:
        """Begin the next conversation: drop the sound that waits, and send `Ready`."""
        self._source.trim(0)
        self._conversation += 1
        self._events(Ready(self._conversation))

    def _hears(self, index: int, pcm: Pcm) -> Pcm:
        """Return frame `index` as the model hears it, `[1920]` float32, silent while muted; send it as `Heard`."""
        if self.muted:
            pcm = np.zeros_like(pcm)
        self._events(Heard(index, pcm))
        return pcm

    def _keep_up(self, index: int) -> float:
        """Keep the delay within its limit: drop the oldest sound, before frame `index`. Return how many seconds wait now."""
        under_way = FRAME_SECONDS * (self._taken - self.metrics.frames)
        backlog = self._source.backlog()
        early = self._early(under_way)  # after `backlog`, so that sound that comes in between is not taken for late
        if backlog + under_way > self._delay_limit + early:
            # Keep one frame: with less the encoder would have to wait, and more would only add delay.
            dropped = self._source.trim(max(FRAME_SECONDS, early))
            backlog -= dropped
            self._gave_up(index, dropped)
        return backlog

    def _gave_up(self, index: int, seconds: float) -> None:
        """Count `seconds` of the user's sound as dropped, right before frame `index`, and send `Dropped`."""
        if seconds > 0:
            self.metrics.drops += 1
            self.metrics.dropped += seconds
            self._events(Dropped(index, seconds))

    def _tell_queues(self, microphone: float, model: float, decoder: float) -> None:
        """From time to time, send `Queues`, and `Underrun` for new underruns; all three arguments are seconds of sound."""
        now = perf_counter()
        if now - self._queues_told <= _QUEUES_EVERY:
            return
        self._queues_told = now
        stats, queued, dropped = self._sink.stats(), self._sink.queued(), self.metrics.dropped
        underruns, cushion = stats.get("underruns", 0), stats.get("cushion", 0) / SAMPLE_RATE
        if underruns != self.metrics.underruns:
            self.metrics.underruns = underruns
            self._events(Underrun(underruns))
        self._events(Queues(now, microphone, model, decoder, queued, cushion, dropped, underruns))

    def _measure(self, memory: Callable[[], Memory]) -> None:
        """Measure memory, unless that was done less than a second ago."""
        now = perf_counter()
        if now - self._measured > _MEMORY_EVERY:
            self._measured = now
            self.metrics.memory = memory()

    def _worked(self, stage: str, index: int, begin: float, end: float) -> None:
        """Send when a stage worked on frame `index`, as `Span`, and add the time to its figures."""
        durations: Durations = getattr(self.metrics, stage)
        durations.add(end - begin)
        self._events(Span(stage, index, begin, end))

    def _speaks(self, index: int, text: str) -> None:
        """Send the text of frame `index`; after a while without text, the last word is complete and is sent."""
        if text:
            self._text_at = index
            self._events(Spoke(index, text))
            self._tell_words(self._words.push(index * FRAME_SECONDS, text))
        elif index >= self._text_at + _WORD_ENDS:
            self._end_words()

    def _end_words(self) -> None:
        """Send the last word: no more text belongs to it."""
        self._tell_words(self._words.flush())

    def _tell_words(self, words: list[Word]) -> None:
        for word in words:
            self.metrics.words += 1
            self._events(SpokeWord(word))

    def _says(self, index: int, pcm: Pcm, heard: float | None) -> None:
        """Play frame `index` of Moshi's voice; `heard` is when the user's frame ended, by `perf_counter`, or None."""
        now = perf_counter()
        queued = self._sink.queued()
        self._sink.write(pcm)
        self.metrics.frames += 1
        if heard is not None:
            self.metrics.reply.add(now - heard)
            self.metrics.delay.add(now - heard + queued)
        self._events(Said(index, pcm))


# Makes a conversation from the first four arguments of `LiveConversation`.
MakeConversation: TypeAlias = Callable[[Source, Sink, Callable[[Event], None], float], LiveConversation]
