"""A session of `/v1/realtime` that only writes down what it hears, by the server's speech-to-text model."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..conversation.places import BusyError
from ..conversation.shared_transcriber import LONGEST_LIVE, LiveHearing, LiveProgress
from ..conversation.transcriber import BEHIND, Transcribed
from ..errors import MshError
from ..events import Said
from ..format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from .audio_service import AudioService
from .connection import AHEAD, Connection, End, MakeSeat
from .inbox import Inbox
from .realtime_events import Item, Json, RefusedError, new_id
from .realtime_session import RealtimeSession
from .realtime_settings import RealtimeSettings, TranscriptionUpdater, Updater
from .wire import Close

_LOOK = 0.01  # seconds between two looks whether the sound was heard
EVENT = "conversation.item.input_audio_transcription"
_ORDINARY = "closed", "shutdown"  # kinds of ends


@dataclass
class _Turn:
    """A turn whose last words are on their way. Without an item, nobody wants them."""

    item: Item | None
    words: list[Transcribed]
    seconds: float
    end: float  # in the client's sound


class RealtimeTranscription(RealtimeSession):
    """A client of `/v1/realtime` whose sound is written down; `client` says whose it is. The rest is as for `RealtimeSession`.

    A turn ends when its sound ends by level, when the model tells a pause, or at a commit. The words of a turn are those that
    the model writes for its sound. The model hears sound in the order in which it came, and a turn's end is a mark in it.
    """

    def __init__(self, *args: Any, service: AudioService, client: str, **options: Any) -> None:
        super().__init__(*args, model=service.transcriber_name, personas=None, **options)
        self._service, self._client = service, client
        self._live: LiveHearing | None = None
        self._late: list[bytes | str] = []  # messages that came before there was somebody to hear
        self._came_at = time.monotonic()
        self._told: Inbox[LiveProgress] = Inbox()
        self._rest: Pcm = np.zeros(0, np.float32)  # less than a frame, which the detector has not heard
        self._unheard: list[Pcm] = []  # what the model gets next
        self._position = self._turned = 0  # samples that were taken in all, and by the end of the last turn
        self._spoken: list[Transcribed] = []  # words of the turn that has not ended
        self._turns: deque[_Turn] = deque()  # that have ended, until their last words have come
        self._pauses = False  # whether the model tells pauses
        self._obey["transcription_session.update"] = self._update

    # ---- from the beginning to the end -----------------------------------------------------------------------------------

    def follow(self, other: RealtimeSession, event: str) -> None:
        """Go on in place of a session that has done nothing yet but for being created; `event` asked for this."""
        self._name, self._created = other._name, other._created
        self._early = [*other._early, event]

    def inherit(self, other: Connection) -> None:
        """Take what the other session has not sent."""
        while not other._out.empty():
            self._send([other._out.get_nowait()])

    async def _talk(self, wait: Callable[[Connection], Awaitable[None]], make: MakeSeat) -> None:
        assert self._service.transcriber
        try:
            self._live = self._service.transcriber.listen(self._told.put, self._client)
        except BusyError:
            sentence = "All places for transcription are taken, and the waiting line is full; try again later."
            raise End("line_full", sentence, Close.TRY_AGAIN_LATER) from None
        self._begin()
        while True:
            self._hears(await self._told.get())

    def _begin(self) -> None:
        self._listens = True
        self._listens_since = time.monotonic()
        if not self._created:
            self._created = True
            self._emit("session.created", session=self._form())
        for text in self._early:
            self._take(text)
        self._early.clear()
        for data in self._late:
            self._hear(data)
        self._late.clear()

    async def _stop(self) -> None:
        if self._live:
            self._live.close()

    def tick(self, others: int) -> None:
        if self._live and self._live.waiting:
            self._last_sound = time.monotonic()  # the model is late, and not the client
        super().tick(others)

    def note(self, end: End) -> None:
        """Count and log what was done, and how it ended."""
        kind = "ok" if end.kind in _ORDINARY else "refused" if end.kind == "line_full" else "failed"
        kind = "gone" if end.kind == "lost" else kind
        seconds = round(self._position / SAMPLE_RATE, 3)
        more = {"id": self.id, "words": self.words, "seconds": seconds, "why": end.kind}
        self._service.note("transcription", kind, self._client, self._came_at, **more)

    def _coded(self, said: Said, texts: list[str]) -> Callable[[], None]:
        raise NotImplementedError("Nobody speaks in a session of transcription.")

    def _hear(self, data: bytes | str) -> None:
        if self._live:
            super()._hear(data)
        else:
            self._late.append(data)

    # ---- events ----------------------------------------------------------------------------------------------------------

    def _form(self) -> Json:
        return self._settings.transcription_form(self._name, self._model, self._beta)

    def _emit(self, name: str, **values: Any) -> None:
        if self._beta and name in ("session.created", "session.updated"):
            name = f"transcription_{name}"
        super()._emit(name, **values)

    def _updater(self) -> Updater:
        return TranscriptionUpdater(self._settings, self._service.transcribes, self._model)

    def _update(self, event: Json) -> None:
        turn = self._turn
        super()._update(event)
        self._turn = turn  # whose words may have been told

    def _updated(self, old: RealtimeSettings, new: RealtimeSettings) -> None:
        if new.detection != old.detection:
            self._suit_detector()

    def _suit_detector(self) -> None:
        if self._detector and self._settings.detection:
            self._detector.silence = self._settings.detection.silence(paused=self._pauses)

    # ---- sound -----------------------------------------------------------------------------------------------------------

    async def _until_there_is_room(self) -> None:
        """Stop reading while enough sound waits for the model. Nothing is late here."""
        while self._live and self._live.waiting > AHEAD and not self._wire.closed:
            await asyncio.sleep(_LOOK)

    def _hear_sound(self, pcm: Pcm) -> None:
        waits = (self._live.waiting if self._live else 0.0) + (len(pcm) + len(self._rest)) / SAMPLE_RATE
        if waits > LONGEST_LIVE:
            sentence = (
                f"With this, more than {LONGEST_LIVE:.0f} s of sound would wait to be heard; send it in smaller pieces."
            )
            raise RefusedError("buffer_full", sentence, "audio")
        super()._hear_sound(pcm)

    def _take_sound(self, pcm: Pcm) -> None:
        pcm = np.concatenate([self._rest, pcm])
        whole = len(pcm) // FRAME_SIZE * FRAME_SIZE
        self._rest = pcm[whole:]
        for frame in pcm[:whole].reshape(-1, FRAME_SIZE):
            self._position += FRAME_SIZE
            self._unheard.append(frame)
            self._user_says(frame, self._position / SAMPLE_RATE)
        self._push()
        self._buffered = (self._position - self._turned + len(self._rest)) / SAMPLE_RATE

    def _push(self) -> None:
        """Let the model hear what came."""
        if self._unheard:
            assert self._live
            self._live.push(np.concatenate(self._unheard))
            self._unheard.clear()

    def _push_rest(self) -> None:
        if not len(self._rest):
            return
        self._position += len(self._rest)
        self._unheard.append(self._rest)
        self._rest = self._rest[:0]
        self._push()

    def _flush(self, item: Item | None, words: list[Transcribed]) -> None:
        """End a turn in the model's ears."""
        assert self._live
        self._push()
        silence = self._detector.silence if self._detector and not self._detector.speaks else 0.0
        self._live.flush(max(FRAME_SECONDS, BEHIND - silence))
        seconds = (self._position - self._turned) / SAMPLE_RATE
        self._turns.append(_Turn(item, words, seconds, self._position / SAMPLE_RATE))
        self._turned = self._position
        self._spoken = []

    def _commit(self, event: Json) -> None:
        self._push_rest()
        super()._commit(event)

    def _end_turn(self) -> Item:
        words = self._spoken
        item = super()._end_turn()
        self._flush(item, words)
        return item

    def _drop_sound(self) -> None:
        self._rest = self._rest[:0]
        if self._position > self._turned:
            self._flush(None, [])

    def _clear(self, event: Json) -> None:
        super()._clear(event)
        self._suit_detector()

    def _user_began(self) -> None:
        return

    # ---- words -----------------------------------------------------------------------------------------------------------

    def _hears(self, progress: LiveProgress) -> None:
        if progress.ended:
            error = progress.error or MshError("The speech-to-text model hears no more.")
            self._fail_turns(str(error))
            raise End("failed", str(error), Close.INTERNAL_ERROR)
        if progress.pause is not None and not self._pauses:
            self._pauses = True
            self._suit_detector()
        if progress.words:
            self._tell_words(progress.words)
        if progress.flushed:
            self._complete(self._turns.popleft())
        elif progress.turn_ended and self._turn and not self._turns:
            self._model_pauses(progress.seconds)

    def _tell_words(self, words: list[Transcribed]) -> None:
        """Tell words, of the first turn that is not complete."""
        turn = self._turns[0] if self._turns else None
        if turn and not turn.item:
            return
        self.words += len(words)
        if turn and turn.item:
            spoken, name = turn.words, turn.item.id
        else:
            spoken, name = self._spoken, self._turn or self._begin_turn(words[0])
        for word in words:
            delta = f" {word.text}" if spoken else word.text
            spoken.append(word)
            self._emit(f"{EVENT}.delta", item_id=name, content_index=0, delta=delta)

    def _begin_turn(self, word: Transcribed) -> str:
        """Begin a turn with a word: there is no detector, or the word was too soft for it."""
        self._turn = new_id("item")
        if self._detector:
            at = max(round(1000 * word.start), round(1000 * self._turned / SAMPLE_RATE))
            self._emit("input_audio_buffer.speech_started", audio_start_ms=at, item_id=self._turn)
        return self._turn

    def _model_pauses(self, at: float) -> None:
        """End a turn because the model tells a pause, if the level is not to decide."""
        detection, detector = self._settings.detection, self._detector
        if detection and detector and (not detector.speaks or (self._pauses and detection.kind == "semantic_vad")):
            detector.end(self._position / SAMPLE_RATE)
            self._emit("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * at), item_id=self._turn)
            self._end_turn()

    def _complete(self, turn: _Turn) -> None:
        item = turn.item
        if not item:
            return
        item.text = " ".join(word.text for word in turn.words)
        for word in turn.words:
            end = round(turn.end if word.end is None else word.end, 3)
            times = {"start": round(word.start, 3), "end": end}
            own = {"id": new_id("seg"), "item_id": item.id, "content_index": 0}
            self._emit(f"{EVENT}.segment", **own, **times, text=word.text, speaker="")
        usage = {"type": "duration", "seconds": round(turn.seconds, 3)}
        done = {"transcript": item.text, "logprobs": None, "usage": usage}
        self._emit(f"{EVENT}.completed", item_id=item.id, content_index=0, **done)

    def _fail_turns(self, sentence: str) -> None:
        error = {"type": "server_error", "code": "failed", "message": sentence, "param": None}
        names = [turn.item.id for turn in self._turns if turn.item]
        for name in [*names, self._turn] if self._turn else names:
            self._emit(f"{EVENT}.failed", item_id=name, content_index=0, error=error)
        self._turns.clear()
