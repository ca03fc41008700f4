"""The Wyoming protocol, by which Home Assistant finds and uses speech-to-text and text-to-speech on the network.

The package `wyoming` makes the events; they are read here, because what a client sends must have limits.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Any

import numpy as np
import soxr
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped, SynthesizeVoice

from .. import __version__
from ..conversation.places import BusyError
from ..conversation.shared_speaker import Made, Saying
from ..conversation.shared_transcriber import LiveHearing, LiveProgress
from ..conversation.transcriber import BEHIND
from ..errors import InputError, MshError, ProtocolError
from ..format import FRAME_SECONDS, SAMPLE_RATE, Pcm
from ..sound.mixing import Mix
from ..sound.recordings import to_int16
from ..system.inputs import brief
from .audio_service import AudioService
from .inbox import Inbox

SERVICE = "_wyoming._tcp.local."
_PROGRAM = "msh-mlx"
_LINE, _DATA, _PAYLOAD = 1 << 16, 1 << 18, 1 << 20  # bytes of an event's parts
_IDLE = 120.0  # seconds that a connection may be idle
_TAKEN_WITHIN = 30.0  # seconds for a client to take what it is sent
_AHEAD = 10.0  # seconds of sound that wait to be heard, beyond which no more is read
_LOOK = 0.02  # seconds between two looks whether it was heard
_WIDTHS = {1: ("u1", 7), 2: ("<i2", 15), 4: ("<i4", 31)}  # bytes of a sample: its type, and the bits below its sign
_RATES = range(4000, 192_001)
_CHANNELS = range(1, 9)


class WyomingServer:
    """Serves the models of `service`: up to `connections` at once, up to `per_address` from an address.

    `languages` are those of the speech-to-text and of the text-to-speech model.
    """

    def __init__(
        self,
        service: AudioService,
        languages: tuple[Sequence[str], Sequence[str]] = (("en",), ("en",)),
        *,
        connections: int = 64,
        per_address: int = 32,
    ) -> None:
        self._service = service
        self._languages = languages
        self._most, self._most_per_address = connections, per_address
        self._talks: dict[asyncio.Task[None], str] = {}
        self._server: asyncio.Server | None = None
        self._announced: Any = None

    async def listen(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        self._server = await asyncio.start_server(self._talk, sock=sock, limit=_LINE)

    async def announce(self, name: str, addresses: Sequence[str], port: int) -> None:
        """Announce the server on the network under a name, or under a similar one if that is taken."""
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

        about = AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}", parsed_addresses=list(addresses), port=port)
        self._announced = AsyncZeroconf(interfaces=list(addresses))
        await (await self._announced.async_register_service(about, allow_name_change=True))

    async def close(self) -> None:
        """Take the announcement back, and close all connections."""
        if self._server:
            self._server.close()
        for task in self._talks:
            task.cancel()
        if self._talks:
            await asyncio.wait(self._talks)
        if self._announced:
            await self._announced.async_unregister_all_services()
            await self._announced.async_close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        address = str((writer.get_extra_info("peername") or ("",))[0])
        talk = _Talk(self._service, self._info(), reader, writer, address)
        try:
            many = sum(other == address for other in self._talks.values())
            if len(self._talks) >= self._most or many >= self._most_per_address:
                await talk.send(Error("There are too many connections; try again later.", "busy"))
                return
            self._talks[task] = address
            await talk.run()
        except (ConnectionError, asyncio.CancelledError, asyncio.TimeoutError):
            pass  # the client has gone, or does not take what it is sent, or the server ends
        except Exception as error:
            self._service.log({"event": "error", "address": address, "error": f"{type(error).__name__}: {error}"})
        finally:
            self._talks.pop(task, None)
            writer.close()

    def _info(self) -> Info:
        """Describe what there is."""
        service, info = self._service, Info()
        about: dict[str, Any] = {
            "attribution": Attribution(name="Kyutai", url="https://kyutai.org"),
            "installed": True,
            "version": __version__,
        }
        hears, speaks = (list(languages) for languages in self._languages)
        if service.transcriber:
            name = service.transcriber_name
            model = AsrModel(name=name, description=name, languages=hears, **about)
            info.asr = [
                AsrProgram(
                    name=_PROGRAM,
                    description="Speech to text",
                    models=[model],
                    supports_transcript_streaming=True,
                    **about,
                )
            ]
        if service.speaker and service.speaker.voices:
            voices = service.speaker.voices
            names = [voices.default, *(name for name in voices.speakers if name != voices.default)]
            known = [TtsVoice(name=name, description=name, languages=speaks, **about) for name in names]
            info.tts = [
                TtsProgram(
                    name=_PROGRAM,
                    description=f"Text to speech: {service.speaker_name}",
                    voices=known,
                    supports_synthesize_streaming=True,
                    **about,
                )
            ]
        return info


class _Talk:
    """What one client asks, one thing after the other, and what it is answered."""

    def __init__(
        self,
        service: AudioService,
        info: Info,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: str,
    ) -> None:
        self._service, self._info, self._address = service, info, address
        self._reader, self._writer = reader, writer
        self._sending = asyncio.Lock()
        self._work: asyncio.Task[None] | None = None  # what is being answered
        self._heard: _Heard | None = None
        self._saying: Saying | None = None  # a text that still comes
        self._letters = 0  # of it

    async def run(self) -> None:
        """Answer until the client leaves, is idle for too long, or sends what leaves no way to go on."""
        reading: asyncio.Task[Event | None] | None = None
        try:
            while True:
                reading = reading or asyncio.ensure_future(self._read())
                await asyncio.wait([reading], timeout=_IDLE)
                if not reading.done():
                    if self._works:
                        continue
                    return
                try:
                    event, reading = reading.result(), None
                    if event is None:
                        return
                    await self._take(event)
                except MshError as error:
                    reading = None
                    self._drop()
                    await self._refuse(error)
                    if isinstance(error, _LostError):
                        return
                except (KeyError, TypeError, ValueError, AttributeError):
                    self._drop()
                    await self._refuse(ProtocolError("An event lacks something, or has a wrong value."))
        finally:
            self._drop()
            tasks = [task for task in (reading, self._work) if task]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    @property
    def _works(self) -> bool:
        return self._work is not None and not self._work.done()

    def _drop(self) -> None:
        """Forget what was begun and is not complete."""
        if self._heard:
            self._heard.close()
        if self._saying:
            self._saying.close()
        if (self._heard or self._saying) and self._work:
            self._work.cancel()
        self._heard = self._saying = None

    async def send(self, *events: Eventable) -> None:
        async with self._sending:
            for event in events:
                await asyncio.wait_for(async_write_event(event.event(), self._writer), _TAKEN_WITHIN)

    async def _refuse(self, error: MshError) -> None:
        code = "busy" if isinstance(error, BusyError) else "invalid" if isinstance(error, ValueError) else "failed"
        await self.send(Error(str(error), code))

    # ---- events ----------------------------------------------------------------------------------------------------------

    async def _read(self) -> Event | None:
        """Read an event; None: the client has left."""
        try:
            line = await self._reader.readline()
        except ValueError:
            raise _LostError(f"An event's line is longer than {_LINE} bytes.") from None
        if not line.strip():
            return None if not line else Event("")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise ProtocolError("A line is not JSON; each event begins with one that is.") from None
        if not isinstance(values, dict) or not isinstance(values.get("type"), str):
            raise ProtocolError("An event has no type.")
        sizes = []
        for name, most in (("data_length", _DATA), ("payload_length", _PAYLOAD)):
            size = values.get(name) or 0
            if type(size) is not int or not 0 <= size <= most:
                raise _LostError(f"{name} is {brief(size)}", f"0 to {most} is expected")
            sizes.append(size)
        try:
            more = await self._reader.readexactly(sizes[0])
            payload = await self._reader.readexactly(sizes[1])
        except asyncio.IncompleteReadError:
            return None
        data = values.get("data") or {}
        try:
            data = data | (json.loads(more) if more else {})
        except (ValueError, TypeError, RecursionError):
            raise ProtocolError("The data of an event are not a JSON object.") from None
        return Event(values["type"], data, payload or None)

    async def _take(self, event: Event) -> None:
        kind = event.type
        if Describe.is_type(kind):
            await self.send(self._info)
        elif Ping.is_type(kind):
            await self.send(Pong(Ping.from_event(event).text))
        elif Transcribe.is_type(kind):
            name = Transcribe.from_event(event).name
            if name and not self._service.transcribes(name):
                raise InputError(f"There is no model {brief(name)}", f"use {self._service.transcriber_name}")
        elif AudioStart.is_type(kind):
            await self._begin_sound(AudioStart.from_event(event))
        elif AudioChunk.is_type(kind):
            await self._take_sound(AudioChunk.from_event(event))
        elif AudioStop.is_type(kind):
            self._end_sound()
        elif Synthesize.is_type(kind):
            if self._saying is None:  # else the same text came in pieces
                asked = Synthesize.from_event(event)
                await self._begin_text(asked.voice, event.data.get("text_format"), streams=False)
                self._feed(asked.text)
                self._end_text()
        elif SynthesizeStart.is_type(kind):
            started = SynthesizeStart.from_event(event)
            await self._begin_text(started.voice, event.data.get("text_format"), streams=True)
        elif SynthesizeChunk.is_type(kind):
            self._feed(SynthesizeChunk.from_event(event).text)
        elif SynthesizeStop.is_type(kind):
            self._end_text()
        # Other events are of other services, or of later versions; each side ignores what it does not know.

    async def _free(self) -> None:
        """Wait until what was asked before is answered."""
        if self._work:
            await asyncio.wait([self._work])

    # ---- speech to text --------------------------------------------------------------------------------------------------

    async def _begin_sound(self, start: AudioStart) -> None:
        if not self._service.transcriber:
            raise InputError("This server does not write speech down", "start it with --stt")
        self._drop()
        await self._free()
        self._heard = _Heard(self._service, start, self._address)
        self._work = asyncio.create_task(self._tell_words(self._heard))

    async def _take_sound(self, chunk: AudioChunk) -> None:
        heard = self._heard
        if heard is None:
            if self._works:
                return  # what follows a refusal
            raise ProtocolError("Sound came without audio-start.")
        await heard.take(chunk)

    def _end_sound(self) -> None:
        if self._heard:
            self._heard.finish()
            self._heard = None

    async def _tell_words(self, heard: _Heard) -> None:
        text, end = "", "gone"
        try:
            async for words in heard.words():
                if not text:
                    await self.send(TranscriptStart())
                await self.send(TranscriptChunk(new := (" " if text else "") + words))
                text += new
            end = "ok"
            if not text:
                await self.send(TranscriptStart())
            await self.send(Transcript(text), TranscriptStop())
        except MshError as error:
            end = "failed"
            self._heard = None if self._heard is heard else self._heard
            await self._refuse(error)
        finally:
            heard.close()
            self._service.note("transcription", end, self._address, heard.begun, seconds=round(heard.seconds, 3))

    # ---- text to speech --------------------------------------------------------------------------------------------------

    async def _begin_text(self, voice: SynthesizeVoice | None, form: object, *, streams: bool) -> None:
        speaker = self._service.speaker
        if not speaker:
            raise InputError("This server does not speak", "start it with --tts")
        if form not in (None, "text"):
            raise InputError("The text is not plain text", "send it without markup")
        self._drop()
        await self._free()
        told: Inbox[Made] = Inbox()
        name = self._service.voice(voice.name if voice else None)
        self._saying, self._letters = speaker.say(told.put, name, self._address), 0
        self._work = asyncio.create_task(self._tell_sound(self._saying, told, streams=streams))

    def _feed(self, text: str) -> None:
        if not isinstance(text, str):
            raise ProtocolError("The text is not a text.")
        if self._saying is None:
            if self._works:
                return  # what follows a refusal
            raise ProtocolError("Text came without synthesize-start.")
        self._letters += len(text)
        if self._letters > (most := self._service.limits.text):
            raise InputError(f"The text has more than {most} characters", "send it in parts")
        self._saying.feed(text)

    def _end_text(self) -> None:
        if self._saying:
            self._saying.finish()
            self._saying = None

    async def _tell_sound(self, saying: Saying, told: Inbox[Made], *, streams: bool) -> None:
        begun, end, frames = monotonic(), "gone", 0
        sound = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}
        held: list[Pcm] = []  # until there is a word
        somebody = False
        try:
            while True:
                made = await told.get()
                if made.error:
                    raise made.error
                if made.spoken:
                    saying.took()
                    held.append(made.spoken.pcm)
                    somebody = somebody or bool(made.spoken.words)
                if made.ended and not somebody:
                    raise InputError("There is nothing to say", "send words that the model knows")
                for pcm in held if somebody else ():
                    if not frames:
                        await self.send(AudioStart(**sound, timestamp=0))
                    time = round(1000 * FRAME_SECONDS * frames)
                    await self.send(AudioChunk(**sound, audio=to_int16(pcm).tobytes(), timestamp=time))
                    frames += 1
                if somebody:
                    held.clear()
                if made.ended:
                    break
            await self.send(AudioStop(timestamp=round(1000 * FRAME_SECONDS * frames)))
            if streams:
                await self.send(SynthesizeStopped())
            end = "ok"
        except MshError as error:
            end = "refused" if isinstance(error, ValueError) else "failed"
            self._saying = None if self._saying is saying else self._saying
            await self._refuse(error)
        finally:
            saying.close()
            self._service.note("speech", end, self._address, begun, seconds=round(frames * FRAME_SECONDS, 3))


class _LostError(ProtocolError):
    """What was sent leaves no way to find the next event."""


class _Heard:
    """Sound that a client sends, on its way to words."""

    def __init__(self, service: AudioService, start: AudioStart, client: str) -> None:
        form = start.rate, start.width, start.channels
        if start.rate not in _RATES or start.width not in _WIDTHS or start.channels not in _CHANNELS:
            raise InputError(
                f"The sound has rate {brief(start.rate)}, width {brief(start.width)} and {brief(start.channels)} channels",
                f"{_RATES[0]} to {_RATES[-1]}, 1, 2 or 4, and {_CHANNELS[0]} to {_CHANNELS[-1]} are expected",
            )
        assert service.transcriber
        self.begun = monotonic()
        self._form = form
        self._most = service.limits.seconds
        self._mix = Mix(start.rate, start.channels)
        self._resample = soxr.ResampleStream(start.rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        self._told: Inbox[LiveProgress] = Inbox()
        self._live: LiveHearing = service.transcriber.listen(self._told.put, client)
        self.seconds = 0.0

    async def take(self, chunk: AudioChunk) -> None:
        """Take more of it. If much waits to be heard, wait, and let the client wait."""
        rate, width, channels = self._form
        if (chunk.rate, chunk.width, chunk.channels) != self._form or len(chunk.audio) % (width * channels):
            raise InputError("The sound is not in the form that audio-start told", "keep to it, in whole samples")
        kind, bits = _WIDTHS[width]
        samples = np.frombuffer(chunk.audio, kind).astype(np.float32) - (128 if width == 1 else 0)
        mixed = self._mix((samples * np.float32(2.0**-bits)).reshape(-1, channels))
        self.seconds += len(mixed) / rate
        if self.seconds > self._most:
            raise InputError(f"The sound lasts more than {self._most / 3600:g} hours", "send it in parts")
        self._live.push(self._resample.resample_chunk(mixed))
        while self._live.waiting > _AHEAD:
            await asyncio.sleep(_LOOK)

    def finish(self) -> None:
        """Take the end."""
        self._live.push(self._resample.resample_chunk(np.zeros(0, np.float32), last=True))
        self._live.flush(BEHIND)

    async def words(self) -> AsyncIterator[str]:
        """Yield words as they come, up to the end."""
        while True:
            progress = await self._told.get()
            if progress.error:
                raise progress.error
            if progress.words:
                yield " ".join(word.text for word in progress.words)
            if progress.flushed:
                return

    def close(self) -> None:
        """Hear no more."""
        self._live.close()
