"""The protocol of `/api/chat` on a live connection: Opus in Ogg pages, text, and controls, as published programs speak it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from ..conversation.personas import Persona
from ..errors import ProtocolError
from ..events import Called, Event, Failed, HeardWord, Hushed, Listened, Notice, Said, Turned
from .connection import Connection, End, Limits, MakeSeat
from .messages import Audio, Control, Error, Handshake, Message, MetaData, Ping, Text, decode, encode, misplaced_sound
from .opus import OpusDecoder, OpusEncoder
from .parameters import ChatParameters
from .wire import Close, Wire


class Chat(Connection):
    """A client of `/api/chat`.

    `about` is sent before the handshake. Bad pages are added to the server's `counts`, under "pages".
    """

    beginning = "the handshake"

    def __init__(
        self,
        wire: Wire,
        parameters: ChatParameters,
        persona: Persona | None,
        about: MetaData,
        limits: Limits,
        counts: Counter[str],
        fail: Callable[[Failed], None],
    ) -> None:
        super().__init__(wire, parameters, persona, limits, fail)
        self._about = about
        self._counts = counts
        self._decoder = OpusDecoder()
        self._paused = False
        self._told_dropped = 0.0  # seconds that were dropped, as last sent to the client
        self._told_notes = 0  # how many of the decoder's notes were sent
        self._encoder = OpusEncoder()  # used by the pipeline's threads alone

    def send(self, *messages: Message) -> None:
        """Queue messages to be sent."""
        self._send([encode(message) for message in messages])

    def tell(self, values: Mapping[str, Any]) -> None:
        """Send metadata that published servers do not send, but only to clients that asked for it: it would confuse others."""
        if self.parameters.stats:
            self.send(MetaData(values))

    def _farewell(self, sentence: str, end: End) -> bytes:
        return encode(Error(sentence))

    async def _talk(self, wait: Callable[[Connection], Awaitable[None]], make: MakeSeat) -> None:
        await wait(self)
        if seat := await self._make(make):
            self.send(self._about)
            self._start(seat)
            del seat
            await asyncio.Event().wait()

    # ---- the way in ------------------------------------------------------------------------------------------------------

    def _hear(self, data: bytes | str) -> None:
        if isinstance(data, str):
            sentence = "Text messages have no meaning here; send binary messages: a type byte and a payload."
            raise End("text", sentence, Close.UNSUPPORTED_DATA)
        if len(data) > self._limits.message:
            sentence = f"A message has {len(data)} bytes; {self._limits.message} are allowed."
            raise End("message_size", sentence, Close.MESSAGE_TOO_BIG)
        if (misplaced := misplaced_sound(data)) is not None:
            raise End("type", misplaced, Close.UNSUPPORTED_DATA)
        match decode(data):
            case Audio(pages):
                self._hear_pages(pages)
            case Control() as control:
                self._obey(control)
            case Ping() if len(data) == 1:
                pass
            case _:
                self._pass_over(len(data))

    def _hear_pages(self, pages: bytes) -> None:
        faults, heard = self._decoder.faults, self._decoder.heard
        try:
            pcm = self._decoder.decode(pages, keep=self._listens and not self._paused)
        except ProtocolError as error:
            raise End("audio", str(error), Close.UNSUPPORTED_DATA) from None
        self._counts["pages"] += self._decoder.faults - faults
        for note in self._decoder.notes[self._told_notes :]:
            self.tell({"notice": note})
        self._told_notes = len(self._decoder.notes)
        if (sound := self._decoder.heard - heard) > 0:  # without the silence in place of damaged pages
            self._came(sound)
        if len(pcm):
            self._source.write(pcm)

    def _obey(self, control: Control) -> None:
        if control is Control.PAUSE:
            self._paused = True
            self._unanswered = 0.0
            self._source.trim(0)
        elif control is Control.START:
            self._paused = False
        elif control is Control.RESTART and self._listens and self.pipeline:
            self._listens = self._paused = False
            self._unanswered = 0.0
            self.pipeline.reset()

    # ---- time ------------------------------------------------------------------------------------------------------------

    def _tell_figures(self, others: int) -> bool:
        if not (self.parameters.stats and self._listens and self.pipeline):
            return False
        self.tell(self.stats() | {"dropped_s": self._told_dropped, "sessions": others})
        return True

    def _ping(self) -> None:
        if self._listens or self.parameters.stats:
            # Only clients that know of the waiting line get pings before the handshake.
            self.send(Ping())

    @property
    def notes(self) -> list[str]:
        """As in `Connection`."""
        return [*self._decoder.notes, *super().notes]

    def stats(self) -> dict[str, float | int]:
        """As in `Connection`, as the client gets them."""
        damaged = {"damaged_pages": self._decoder.faults, "damaged_s": round(self._decoder.lost, 3)}
        return super().stats() | damaged

    # ---- the way out -----------------------------------------------------------------------------------------------------

    def _coded(self, said: Said, texts: list[str]) -> Callable[[], None]:
        datas = [*(encode(Text(text)) for text in texts), encode(Audio(self._encoder.encode(said.pcm)))]
        return partial(self._send, datas)

    def _observe(self, event: Event) -> None:
        match event:
            case HeardWord(word):
                self._on_loop(self.tell, {"heard": word.text})
            case Turned(text) | Listened(text):
                self._on_loop(self.tell, {"turn": text})
            case Hushed():
                self._on_loop(self.tell, {"hush": True})
            case Called():
                self._on_loop(self.tell, {"tool": asdict(event)})
            case Notice(message=sentence):
                self._on_loop(self.tell, {"notice": sentence})
            case _:
                super()._observe(event)

    def _renew(self) -> None:
        self._encoder = OpusEncoder()

    def _tell_dropped(self, seconds: float) -> None:
        self._told_dropped = seconds
        self.tell(self.stats() | {"dropped_s": seconds})

    def _ready(self) -> None:
        super()._ready()
        if (dropped := self._dropped()) != self._told_dropped:
            self._tell_dropped(dropped)  # what the conversation before has dropped
        self.send(Handshake())
