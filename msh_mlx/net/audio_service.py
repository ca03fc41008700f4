"""What a server has for transcription and speech, whichever protocol asks for it; and its counts."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..conversation.shared_speaker import SharedSpeaker
from ..conversation.shared_transcriber import SharedTranscriber

# OpenAI's own names for models and voices, which many programs send and do not let their users change.
_TRANSCRIBERS = re.compile(r"whisper-[\w.-]+|gpt-realtime-whisper|gpt-([\w.]+-)*transcribe(-\d{4}-\d\d-\d\d)?")
_SPEAKERS = re.compile(r"tts-1(-hd)?(-\d+)?|gpt-([\w.]+-)*tts(-\d{4}-\d\d-\d\d)?")
_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)


@dataclass(frozen=True)
class AudioLimits:
    """What one request may be."""

    body: int = 100 << 20  # bytes with a recording
    seconds: float = 4 * 3600.0  # of a recording
    text: int = 16_384  # characters to say


@dataclass(frozen=True)
class AudioService:
    """The models of a server, by their names.

    `conversation` is the name of the model that holds conversations, and `also` are those of others that do. None, in place of
    a name or a model: there is none.
    `log` is called with each request, as a JSON object.
    """

    transcriber: SharedTranscriber | None = None
    transcriber_name: str = ""
    speaker: SharedSpeaker | None = None
    speaker_name: str = ""
    conversation: str | None = None
    also: tuple[str, ...] = ()
    limits: AudioLimits = field(default_factory=AudioLimits)
    log: Callable[[Mapping[str, Any]], None] = lambda _: None
    created: int = field(default_factory=lambda: int(time.time()))
    counts: Counter[tuple[str, str]] = field(
        default_factory=Counter
    )  # requests, by what was asked for and how it ended

    @property
    def models(self) -> list[str]:
        """The names of all models."""
        names = [
            self.conversation,
            *self.also,
            self.transcriber and self.transcriber_name,
            self.speaker and self.speaker_name,
        ]
        return [name for name in names if isinstance(name, str)]

    def transcribes(self, name: str) -> bool:
        """Tell whether a name stands for the speech-to-text model: its own, or one of OpenAI's."""
        return name == self.transcriber_name or _TRANSCRIBERS.fullmatch(name) is not None

    def speaks(self, name: str) -> bool:
        """Tell whether a name stands for the text-to-speech model: its own, or one of OpenAI's."""
        return name == self.speaker_name or _SPEAKERS.fullmatch(name) is not None

    def voice(self, name: str | None) -> str | None:
        """Return the voice that a name stands for; None: the usual one, for which OpenAI's names stand, too."""
        assert self.speaker
        assert self.speaker.voices
        return None if name in _VOICES - self.speaker.voices.speakers.keys() else name

    def note(self, kind: str, end: str, client: str, begin: float, **more: object) -> None:
        """Count and log a request: of which kind, how it ended, whose it was, and when it began, by `time.monotonic`."""
        self.counts[kind, end] += 1
        took = round(time.monotonic() - begin, 3)
        self.log({"event": kind, "address": client, "end": end, "took_s": took, **more})
