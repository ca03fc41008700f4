"""OpenAI's interfaces for recordings and texts: `/v1/audio/transcriptions`, `/v1/audio/speech` and `/v1/models`.

Nothing here knows which server it runs on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

from ..conversation.places import BusyError
from ..conversation.shared_speaker import Made, Saying
from ..conversation.shared_transcriber import Hearing
from ..conversation.spoken import cut
from ..conversation.subtitles import cues, srt, until, vtt
from ..conversation.transcriber import Progress, Transcribed
from ..errors import InputError, MshError
from ..format import FRAME_SECONDS, SAMPLE_RATE, Pcm
from ..sound.recordings import Recording, open_sound, resample
from ..system.inputs import brief
from ..system.words import listed, printable, shortened
from .audio_service import AudioService
from .exchange import Answer, Endpoint, Request
from .forms import Form, read_body, read_form
from .inbox import Inbox
from .openai_errors import RefusedError, error_answer, error_body
from .sound_formats import FORMATS

_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_GRANULARITIES = ("word", "segment")
_KNOWN = ("model", "response_format", "language", "stream", "timestamp_granularities", "include")
_JSON_BODY = 1 << 20  # bytes
_NAME = 100  # characters of a file's name in messages
_EVENTS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class OpenAiAudio:
    """The endpoints, on what a server has."""

    def __init__(self, service: AudioService) -> None:
        self._service = service

    def endpoints(self) -> dict[str, tuple[tuple[str, ...], Endpoint, str]]:
        """Return the endpoints by their paths: the methods that they answer, and what they are about, in words.

        A path that ends with a slash stands for all that begin with it.
        """
        found: dict[str, tuple[tuple[str, ...], Endpoint, str]] = {
            "/v1/models": (("GET", "HEAD"), self.models, "the models that are served"),
            "/v1/models/": (("GET", "HEAD"), self.model, "one of them"),
        }
        if self._service.transcriber:
            found["/v1/audio/transcriptions"] = ("POST",), self.transcriptions, "what a recording says, in words"
            found["/v1/audio/translations"] = ("POST",), self.translations, "nothing: no translation into English"
        if self._service.speaker:
            found["/v1/audio/speech"] = ("POST",), self.speech, "a text as speech"
        return found

    # ---- models ----------------------------------------------------------------------------------------------------------

    async def models(self, _: Request) -> Answer:
        """List the models."""
        return Answer.of_json({"object": "list", "data": [self._model(name) for name in self._service.models]})

    async def model(self, request: Request) -> Answer:
        """Tell of one model."""
        name = request.path.removeprefix("/v1/models/")
        if name not in self._service.models:
            return error_answer(self._no_model(name))
        return Answer.of_json(self._model(name))

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._service.created, "owned_by": "msh-mlx"}

    def _no_model(self, name: str) -> RefusedError:
        served = listed(self._service.models)
        return RefusedError(
            f"The model {brief(name)} is not served",
            f"there is {served}",
            code="model_not_found",
            status=404,
            param="model",
        )

    # ---- transcriptions --------------------------------------------------------------------------------------------------

    async def translations(self, _: Request) -> Answer:
        """Refuse a translation."""
        return error_answer(
            RefusedError(
                "This server writes down what is said and does not translate it",
                "use /v1/audio/transcriptions",
                code="unsupported",
            )
        )

    async def transcriptions(self, request: Request) -> Answer:
        """Write a recording down."""
        begin = monotonic()
        try:
            kind, limits = request.headers.get("content-type", ""), self._service.limits
            form = await read_form(kind, request.body, "file", limits.body)
            try:
                asked = _Asked(form, self._service)
                # What is wrong at the beginning of a file is found here, before an answer has begun.
                recording = await asyncio.to_thread(_opened, form)
                work = _Transcription(self._service, recording, request.client, begin)
            except MshError:
                form.close()
                raise
            if asked.stream:
                return Answer(200, {**_EVENTS, **asked.told}, work.events())
            words, seconds = await work.all()
        except MshError as error:
            self._service.note("transcription", _end_of(error), request.client, begin)
            return error_answer(error)
        return asked.answer(words, seconds)

    # ---- speech ----------------------------------------------------------------------------------------------------------

    async def speech(self, request: Request) -> Answer:
        """Say a text."""
        begin, service = monotonic(), self._service
        try:
            values = _read_json(await read_body(request.body, _JSON_BODY))
            asked = _AskedSpeech(values, service)
            assert service.speaker
            work = _Speech(service, asked, request.client, begin)
            await work.begin()
        except MshError as error:
            service.note("speech", _end_of(error), request.client, begin)
            return error_answer(error)
        if asked.sse:
            return Answer(200, {**_EVENTS, **asked.told}, work.events())
        return Answer(
            200, {"Content-Type": FORMATS[asked.format][0], "Cache-Control": "no-store", **asked.told}, work.sound()
        )


def _end_of(error: MshError) -> str:
    """Return how a request ended, for counts."""
    if isinstance(error, BusyError):
        return "busy"
    return "refused" if isinstance(error, ValueError) else "failed"


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n\n"


def _told(ignored: list[str]) -> dict[str, str]:
    """Return the header that names parameters that change nothing."""
    names = [shortened("".join(c for c in name if " " < c < "\x7f"), _NAME) for name in ignored[:20]]
    return {"X-Ignored": ", ".join(names)} if names else {}


# ---- what a client asks of a transcription -------------------------------------------------------------------------------


class _Asked:
    """The fields of a form, checked. `told` are headers that say which change nothing."""

    def __init__(self, form: Form, service: AudioService) -> None:
        if not form.file:
            raise RefusedError("There is no file", "send the recording as the field file", param="file")
        if (model := self._one(form, "model")) and not service.transcribes(model):
            raise RefusedError(
                f"The model {brief(model)} does not write speech down here",
                f"use {service.transcriber_name}",
                param="model",
                code="model_not_found",
                status=404,
            )
        self.format = self._of(form, "response_format", _FORMATS) or "json"
        self.stream = (self._of(form, "stream", ("true", "false", "True", "False", "1", "0")) or "0") in (
            "true",
            "True",
            "1",
        )
        if self.stream and self.format not in ("json", "text"):
            raise RefusedError(f"{self.format} cannot be streamed", "ask for json, or do not stream", param="stream")
        self.granularities = form.all("timestamp_granularities")
        for name in self.granularities:
            if name not in _GRANULARITIES:
                self._refuse("timestamp_granularities", name, _GRANULARITIES)
        if self.granularities and self.format != "verbose_json":
            raise RefusedError(
                f"{self.format} has no timestamps", "ask for verbose_json with them", param="timestamp_granularities"
            )
        if include := form.all("include"):
            raise RefusedError(f"The model does not tell {brief(include[0])}", "leave include out", param="include")
        self.language = self._one(form, "language")
        if temperature := self._one(form, "temperature"):
            self._check_temperature(temperature)
        ignored = dict.fromkeys(key.split("[")[0] for key, value in form.fields if value)
        self.told = _told([name for name in ignored if name not in _KNOWN])

    @staticmethod
    def _one(form: Form, name: str) -> str:
        values = form.all(name)
        if len(values) > 1:
            raise RefusedError(f"{name} comes {len(values)} times", "send it once", param=name)
        return values[0].strip() if values else ""

    def _of(self, form: Form, name: str, known: tuple[str, ...]) -> str:
        value = self._one(form, name)
        if value and value not in known:
            self._refuse(name, value, known)
        return value

    @staticmethod
    def _refuse(name: str, value: str, known: tuple[str, ...]) -> None:
        raise RefusedError(f"{name} is {brief(value)}", f"{' or '.join(known)} is expected", param=name)

    @staticmethod
    def _check_temperature(text: str) -> None:
        try:
            good = 0 <= float(text) <= 1
        except ValueError:
            good = False
        if not good:
            raise RefusedError(
                f"The temperature is {brief(text)}", "a number from 0 to 1 is expected", param="temperature"
            )

    def answer(self, words: list[Transcribed], seconds: float) -> Answer:
        """Answer with what was heard, in the form that was asked for."""
        text = _joined(words)
        if self.format == "text":
            return Answer.of_text(text + "\n", headers=self.told)
        if self.format == "srt":
            return Answer.of_text(srt(words), "application/x-subrip", self.told)
        if self.format == "vtt":
            return Answer.of_text(vtt(words), "text/vtt", self.told)
        usage = {"type": "duration", "seconds": math.ceil(seconds)}
        if self.format == "json":
            return Answer.of_json({"text": text, "usage": usage}, headers=self.told)
        body: dict[str, object] = {
            "task": "transcribe",
            "language": self.language or "unknown",
            "duration": round(seconds, 3),
            "text": text,
        }
        if "word" in self.granularities:
            body["words"] = [
                {"word": word.text, "start": round(word.start, 3), "end": _within(until(word), word.start, seconds)}
                for word in words
            ]
        if "segment" in self.granularities or not self.granularities:
            body["segments"] = [
                _segment(number, start, _within(end, start, seconds), text)
                for number, (start, end, text) in enumerate(cues(words))
            ]
        return Answer.of_json({**body, "usage": usage}, headers=self.told)


def _joined(words: list[Transcribed]) -> str:
    return " ".join(word.text for word in words)


def _within(end: float, start: float, seconds: float) -> float:
    """Return an end of words that is not behind the end of the recording."""
    return round(max(start, min(end, seconds)), 3)


def _segment(number: int, start: float, end: float, text: str) -> dict[str, object]:
    """Return a segment, with all keys that clients read. The model does not tell the figures that are 0."""
    data = text.encode()
    return {
        "id": number,
        "seek": 0,
        "start": round(start, 3),
        "end": end,
        "text": f" {text}",
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": round(len(data) / len(zlib.compress(data)), 3),
        "no_speech_prob": 0.0,
    }


def _opened(form: Form) -> Recording:
    """Open the recording in a form."""
    assert form.file
    return open_sound(form.file, printable(shortened(form.file_name, _NAME)) or "The file")


class _Transcription:
    """A recording that is being written down for a client."""

    def __init__(self, service: AudioService, recording: Recording, client: str, begin: float) -> None:
        assert service.transcriber
        self._service, self._client, self._begin = service, client, begin
        self._told: Inbox[Progress] = Inbox()
        self._words: list[Transcribed] = []
        self._seconds = 0.0
        self._hearing: Hearing = service.transcriber.transcribe(
            self._sound(recording), self._told.put, client, recording.close
        )

    def _sound(self, recording: Recording) -> Iterator[Pcm]:
        """Decode the recording, on a thread of the model."""
        most, samples = self._service.limits.seconds, 0
        with recording:
            for block in resample(recording.blocks(), recording.rate, SAMPLE_RATE):
                samples += len(block)
                if samples > most * SAMPLE_RATE:
                    raise InputError(f"{recording.name} lasts more than {most / 3600:g} hours", "send it in parts")
                yield block

    async def _news(self) -> AsyncIterator[list[Transcribed]]:
        """Yield words as they come; raise what is wrong with the recording."""
        end = "gone"
        try:
            while True:
                progress = await self._told.get()
                self._seconds = progress.seconds
                self._words += progress.words
                if progress.error:
                    end = _end_of(progress.error)
                    raise progress.error
                if progress.words:
                    yield progress.words
                if progress.ended:
                    end = "ok"
                    return
        finally:
            self._hearing.close()
            if end in ("ok", "gone"):
                sound = {"seconds": round(self._seconds, 3), "words": len(self._words)}
                self._service.note("transcription", end, self._client, self._begin, **sound)

    async def all(self) -> tuple[list[Transcribed], float]:
        """Return all words, and how long the recording is."""
        async for _ in self._news():
            pass
        return self._words, self._seconds

    async def events(self) -> AsyncIterator[bytes]:
        """Yield events with words as they come."""
        first = True
        news = self._news()
        try:
            async for words in news:
                yield _event({"type": "transcript.text.delta", "delta": ("" if first else " ") + _joined(words)})
                first = False
            yield _event({"type": "transcript.text.done", "text": _joined(self._words)})
        except MshError as error:
            self._service.note("transcription", _end_of(error), self._client, self._begin)
            yield _event({"type": "error", **error_body(error)})
        finally:
            await news.aclose()  # type: ignore[attr-defined]


# ---- speech --------------------------------------------------------------------------------------------------------------


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError("The body is not valid JSON", "send a JSON object") from None
    if not isinstance(values, dict):
        raise RefusedError("The body is not a JSON object", "send one")
    return values


class _AskedSpeech:
    """What a client asks of a speech, checked. `told` is as for `_Asked`."""

    _KNOWN = ("model", "input", "voice", "response_format", "speed", "instructions", "stream_format")

    def __init__(self, values: dict[str, Any], service: AudioService) -> None:
        self.text = self._string(values, "input")
        if len(self.text) > service.limits.text:
            raise RefusedError(
                f"The input has more than {service.limits.text} characters", "send it in parts", param="input"
            )
        try:
            parts = cut([self.text])
            empty = next(parts, None) is None
            deque(parts, 0)
        except InputError as error:
            raise RefusedError(error.what, error.advice, param="input") from None
        if empty:
            raise _nothing_to_say()
        model = self._string(values, "model")
        if model and not service.speaks(model):
            raise RefusedError(
                f"The model {brief(model)} does not speak here",
                f"use {service.speaker_name}",
                param="model",
                code="model_not_found",
                status=404,
            )
        self.voice = self._voice(values, service)
        self.format = self._string(values, "response_format") or "mp3"
        if self.format not in FORMATS:
            raise RefusedError(
                f"response_format is {brief(self.format)}, which is not made here",
                f"{' or '.join(FORMATS)} is expected",
                param="response_format",
            )
        stream = self._string(values, "stream_format") or "audio"
        if stream not in ("audio", "sse"):
            raise RefusedError(f"stream_format is {brief(stream)}", "audio or sse is expected", param="stream_format")
        self.sse = stream == "sse"
        if (speed := values.get("speed")) not in (None, 1):
            raise RefusedError(
                f"The speed is {brief(speed)}, and the model has one speed", "leave it out", param="speed"
            )
        if self._string(values, "instructions").strip():
            raise RefusedError(
                "The model takes no instructions", "leave them out, or choose a voice", param="instructions"
            )
        self.told = _told([name for name in values if name not in self._KNOWN])

    @staticmethod
    def _string(values: dict[str, Any], name: str) -> str:
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise RefusedError(f"{name} is {brief(value)}", "a string is expected", param=name)
        return value or ""

    @staticmethod
    def _voice(values: dict[str, Any], service: AudioService) -> str | None:
        voice = values.get("voice")
        if isinstance(voice, dict):  # a voice of one's own is named by its id
            voice = voice.get("id")
        if voice is not None and not isinstance(voice, str):
            raise RefusedError(f"The voice is {brief(voice)}", "a name is expected", param="voice")
        voice = service.voice(voice or None)
        assert service.speaker
        assert service.speaker.voices
        try:
            service.speaker.voices.choose(voice)
        except InputError as error:
            raise RefusedError(error.what, error.advice, param="voice") from None
        return voice


def _nothing_to_say() -> RefusedError:
    return RefusedError("There is nothing to say", "send an input with words", param="input")


class _Speech:
    """A text that is being said for a client."""

    def __init__(self, service: AudioService, asked: _AskedSpeech, client: str, begin: float) -> None:
        assert service.speaker
        self._service, self._asked, self._client, self._begin = service, asked, client, begin
        self._told: Inbox[Made] = Inbox()
        self._saying: Saying = service.speaker.say(self._told.put, asked.voice, client)
        self._saying.feed(asked.text)
        self._saying.finish()
        self._first: list[Made] = []
        self._frames = 0

    async def begin(self) -> None:
        """Wait for the first frame, so that what is wrong is told before an answer has begun.

        If the model does not know a word, wait for one that it knows.
        """
        try:
            unknown = False
            while True:
                made = await self._told.get()
                self._first.append(made)
                unknown = unknown or bool(made.notes)
                if made.error:
                    raise made.error
                if made.ended:
                    raise RefusedError("The model knows none of these words", "send others", param="input")
                if made.spoken and (made.spoken.words or not unknown):
                    return
        except BaseException as error:
            self._saying.close()
            if isinstance(error, asyncio.CancelledError):
                self._service.note("speech", "gone", self._client, self._begin)
            raise

    async def _frames_made(self) -> AsyncIterator[Pcm]:
        end, left_out = "gone", 0
        try:
            while True:
                made = self._first.pop(0) if self._first else await self._told.get()
                left_out += len(made.notes)
                if made.error:
                    end = _end_of(made.error)
                    raise made.error
                if made.spoken:
                    self._saying.took()
                    self._frames += 1
                    yield made.spoken.pcm
                if made.ended:
                    end = "ok"
                    return
        finally:
            self._saying.close()
            more: dict[str, object] = {"seconds": round(self._frames * FRAME_SECONDS, 3)}
            if left_out:  # not which: the log does not contain what was said
                more["left_out"] = left_out
            self._service.note("speech", end, self._client, self._begin, **more)

    async def sound(self) -> AsyncIterator[bytes]:
        """Yield the sound in its format, as it is made."""
        encoder = FORMATS[self._asked.format][1]()
        frames = self._frames_made()
        try:
            async for pcm in frames:
                # On a thread: an encoder may take milliseconds.
                if data := await asyncio.to_thread(encoder.encode, pcm):
                    yield data
            if data := await asyncio.to_thread(encoder.finish):
                yield data
        finally:
            await frames.aclose()  # type: ignore[attr-defined]

    async def events(self) -> AsyncIterator[bytes]:
        """Yield events with the sound."""
        sound = self.sound()
        try:
            async for data in sound:
                yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
            words = len(self._asked.text.split())
            usage = {"input_tokens": words, "output_tokens": self._frames, "total_tokens": words + self._frames}
            yield _event({"type": "speech.audio.done", "usage": usage})
        except MshError as error:
            yield _event({"type": "error", **error_body(error)})
        finally:
            await sound.aclose()  # type: ignore[attr-defined]
