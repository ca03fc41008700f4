"""The settings of a session of `/v1/realtime`: what `session.update` may change, and how they are sent. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..conversation.personas import Persona
from ..conversation.served import OfferedPersonas
from ..errors import InputError, ProtocolError
from ..format import SAMPLE_RATE
from ..model.ranges import TEMPERATURE
from ..system.words import listed, shortened
from .parameters import read_role
from .realtime_events import Json, RefusedError, chosen, needed, typed
from .realtime_sound import ALAW, FORMATS, PCM, ULAW, UserVoice

CONVERSATION, TRANSCRIPTION = KINDS = "realtime", "transcription"  # types of sessions
UNABLE = "unsupported"  # the code of what is right in the protocol, and cannot be done here

_BETA_FORMATS = {"pcm16": PCM, "g711_ulaw": ULAW, "g711_alaw": ALAW}
# What the beta has in the session itself, and where it is now.
_BETA_NAMES = {
    "modalities": "output_modalities",
    "voice": "audio.output.voice",
    "speed": "audio.output.speed",
    "input_audio_format": "audio.input.format",
    "output_audio_format": "audio.output.format",
    "turn_detection": "audio.input.turn_detection",
    "input_audio_transcription": "audio.input.transcription",
    "input_audio_noise_reduction": "audio.input.noise_reduction",
    "max_response_output_tokens": "max_output_tokens",
}
# What clients send of themselves, or back again: accepted, and without effect. `session.updated` shows what counts.
_WITHOUT_EFFECT = {
    *("object", "id", "model", "expires_at", "client_secret", "tracing", "truncation", "include", "reasoning"),
    *("tool_choice", "parallel_tool_calls", "audio.input.transcription", "audio.input.noise_reduction"),
}
# Seconds of silence that end a turn.
_EAGERNESS = {"low": 1.0, "medium": 0.5, "auto": 0.5, "high": 0.3}
# The same where a model tells pauses, and has not told one.
_PATIENCE = {"low": 8.0, "medium": 4.0, "auto": 4.0, "high": 2.0}


@dataclass(frozen=True)
class TurnDetection:
    """How the user's turns are found: by level. `interrupts` tells whether the user's voice ends what the model says."""

    kind: str = "server_vad"
    threshold: float = 0.5
    padding_ms: int = 300
    silence_ms: int = 500
    eagerness: str = "auto"
    interrupts: bool = False

    def voice(self) -> UserVoice:
        """Make what finds them."""
        return UserVoice(self.threshold, self.padding_ms / 1000, self.silence())

    def silence(self, *, paused: bool = False) -> float:
        """Return how many seconds of silence end a turn; with `paused`, if a model tells pauses."""
        if self.kind == "server_vad":
            return self.silence_ms / 1000
        return (_PATIENCE if paused else _EAGERNESS)[self.eagerness]

    def form(self, *, answers: bool = True) -> Json:
        """Return it as it is sent; with `answers`, with what it says about a model's answers."""
        own: Json = {"eagerness": self.eagerness}
        if self.kind == "server_vad":
            own = {
                "threshold": self.threshold,
                "prefix_padding_ms": self.padding_ms,
                "silence_duration_ms": self.silence_ms,
            }
        if not answers:
            return {"type": self.kind, **own}
        if self.kind == "server_vad":
            own["idle_timeout_ms"] = None
        return {"type": self.kind, **own, "create_response": True, "interrupt_response": self.interrupts}


@dataclass(frozen=True)
class Asked:
    """What a session was asked for that counts from the first sound on: voice, instructions and temperature, if given."""

    voice: str | None = None
    instructions: str | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class RealtimeSettings:
    """The settings of a session, all checked."""

    asked: Asked = Asked()
    persona: Persona | None = None  # what `asked` means to the model
    written: bool = False  # whether the model's answers are only text
    input_format: str = PCM
    output_format: str = PCM
    detection: TurnDetection | None = TurnDetection()
    language: str | None = None  # that the client named

    def form(self, name: str, model: str, temperature: float, beta: bool) -> Json:
        """Return the session `name` as it is sent."""
        voice = (self.persona.name or None) if self.persona else None
        instructions = self.persona.text if self.persona else ""
        session: Json = {"id": name, "object": "realtime.session", "model": model, "instructions": instructions}
        session |= {"tools": [], "tool_choice": "auto", "tracing": None}
        detection = self.detection.form() if self.detection else None
        if beta:
            names = {kind: old for old, kind in _BETA_FORMATS.items()}
            return session | {
                "modalities": ["text"] if self.written else ["audio", "text"],
                "voice": voice,
                "input_audio_format": names[self.input_format],
                "output_audio_format": names[self.output_format],
                "input_audio_transcription": None,
                "input_audio_noise_reduction": None,
                "turn_detection": detection,
                "temperature": temperature,
                "speed": 1.0,
                "max_response_output_tokens": "inf",
            }
        heard = {
            "format": format_form(self.input_format),
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": detection,
        }
        said = {"format": format_form(self.output_format), "voice": voice, "speed": 1.0}
        return session | {
            "type": "realtime",
            "output_modalities": ["text"] if self.written else ["audio"],
            "audio": {"input": heard, "output": said},
            "max_output_tokens": "inf",
            "truncation": "auto",
            "prompt": None,
            "include": None,
        }

    def transcription_form(self, name: str, model: str, beta: bool) -> Json:
        """Return the session of transcription `name` as it is sent."""
        session: Json = {"id": name, "object": "realtime.transcription_session", "expires_at": None, "include": None}
        detection = self.detection.form(answers=False) if self.detection else None
        writes = {"model": model, "language": self.language, "prompt": ""}
        if beta:
            names = {kind: old for old, kind in _BETA_FORMATS.items()}
            return session | {
                "modalities": ["text"],
                "input_audio_format": names[self.input_format],
                "input_audio_transcription": writes,
                "input_audio_noise_reduction": None,
                "turn_detection": detection,
                "client_secret": None,
            }
        heard = {
            "format": format_form(self.input_format),
            "transcription": writes,
            "noise_reduction": None,
            "turn_detection": detection,
        }
        return session | {"type": TRANSCRIPTION, "audio": {"input": heard}}


def format_form(kind: str) -> Json:
    """Return a format of sound as it is sent."""
    return {"type": kind, "rate": SAMPLE_RATE} if kind == PCM else {"type": kind}


class Updater:
    """Applies `session.update`: what is wrong refuses all of it; what the model cannot do is left out, and told.

    `personas` are those of the model, or None. `begun` tells whether sound has come: then it is too late for a persona.
    """

    def __init__(self, settings: RealtimeSettings, personas: OfferedPersonas | None, begun: bool) -> None:
        self.settings = settings
        self.unable: list[RefusedError] = []
        self._personas = personas
        self._begun = begun
        self._asked = settings.asked
        self._params = dict.fromkeys(("voice", "instructions", "temperature"), "session")
        self._readers: dict[str, Callable[[Any, str], None]] = {
            "type": self._type,
            "output_modalities": self._modalities,
            "instructions": self._instructions,
            "prompt": self._prompt,
            "temperature": self._temperature,
            "tools": self._tools,
            "max_output_tokens": self._limit,
            "audio.input.format": lambda value, param: self._set(input_format=_format(value, param)),
            "audio.output.format": lambda value, param: self._set(output_format=_format(value, param)),
            "audio.input.turn_detection": self._detection,
            "audio.output.voice": self._voice,
            "audio.output.speed": self._speed,
        }

    def update(self, session: Json) -> None:
        """Apply an update; afterwards, `settings` and `unable` say what came of it.

        Raises
        ------
        RefusedError
            Something in it is wrong; nothing counts.
        """
        for param, name, value in _flat(session):
            if reader := self._readers.get(name):
                reader(value, param)
            elif name not in _WITHOUT_EFFECT:
                raise RefusedError("unknown_parameter", f"Unknown parameter: '{shortened(param, 80)}'.", param)
        if self._asked != self.settings.asked:
            self._choose()

    def _set(self, **values: Any) -> None:
        self.settings = replace(self.settings, **values)

    def _cannot(self, sentence: str, param: str) -> None:
        self.unable.append(RefusedError(UNABLE, sentence, param))

    def _choose(self) -> None:
        """Find the persona that was asked for."""
        old, new = self.settings.asked, self._asked
        if self._begun:
            for name, param in self._params.items():
                if getattr(old, name) != getattr(new, name):
                    what = name if name == "instructions" else f"the {name}"
                    self._cannot(f"It is too late for {what}: sound has come; set it before, in a new session.", param)
            return
        if self._personas is None:
            for name in ("voice", "instructions"):
                if getattr(new, name) is not None:
                    what = "no instructions" if name == "instructions" else "no other voice"
                    sentence = f"The model that is served here takes {what}; PersonaPlex models do."
                    self._cannot(sentence, self._params[name])
            new = replace(new, voice=None, instructions=None)
        else:
            if not self._takes(self._personas, new.voice, None, "voice"):
                new = replace(new, voice=old.voice)
            if not self._takes(self._personas, new.voice, new.instructions, "instructions"):
                new = replace(old, temperature=new.temperature)
            self._set(persona=self._personas.choose(new.voice, new.instructions))
        self._set(asked=new)

    def _takes(self, personas: OfferedPersonas, voice: str | None, instructions: str | None, name: str) -> bool:
        if voice is not None and not personas.names:
            self._cannot("The server has no voices to choose from.", self._params[name])
            return False
        try:
            personas.choose(voice, instructions)
        except InputError as error:
            self._cannot(str(error), self._params[name])
            return False
        return True

    # ---- one by one ------------------------------------------------------------------------------------------------------

    def _type(self, value: Any, param: str) -> None:
        if chosen(value, KINDS, param) == TRANSCRIPTION:
            raise RefusedError(
                UNABLE, "No speech-to-text model is served here, so there are no transcription sessions.", param
            )

    def _modalities(self, value: Any, param: str) -> None:
        names = {chosen(each, ("text", "audio"), param) for each in typed(value, list, param)}
        if not names:
            raise RefusedError("invalid_value", f'{param} is empty; it can be ["audio"] or ["text"].', param)
        self._set(written=names == {"text"})

    def _instructions(self, value: Any, param: str) -> None:
        text = None
        if value is not None:
            try:
                text = read_role("instructions", typed(value, str, param))
            except ProtocolError as error:
                self._cannot(str(error), param)
                return
        self._ask(param, instructions=text)

    def _voice(self, value: Any, param: str) -> None:
        if isinstance(value, dict):
            value = needed(value, "id", str, f"{param}.")
        self._ask(param, voice=typed(value, str, param) or None if value is not None else None)

    def _temperature(self, value: Any, param: str) -> None:
        if value is not None and not TEMPERATURE.has(value):
            raise RefusedError("invalid_value", f"{param} is not {TEMPERATURE}.", param)
        self._ask(param, temperature=None if value is None else float(value))

    def _ask(self, param: str, **asked: Any) -> None:
        self._asked = replace(self._asked, **asked)
        self._params |= dict.fromkeys(asked, param)

    def _prompt(self, value: Any, param: str) -> None:
        if value is not None:
            self._cannot("There are no stored prompts here; use instructions, if the model takes them.", param)

    def _tools(self, value: Any, param: str) -> None:
        if value is not None and typed(value, list, param):
            self._cannot("The model calls no tools; leave them out.", param)

    def _limit(self, value: Any, param: str) -> None:
        if value not in (None, "inf"):
            typed(value, int, param)
            self._cannot('The model speaks until it pauses, whatever the limit; the only one is "inf".', param)

    def _speed(self, value: Any, param: str) -> None:
        if value is not None and typed(value, float, param) != 1:
            self._cannot("The model speaks at its own speed; the only one is 1.", param)

    def _detection(self, value: Any, param: str) -> None:
        if value is None:
            self._set(detection=None)
            return
        given = typed(value, dict, param)
        kind = chosen(needed(given, "type", str, f"{param}."), ("server_vad", "semantic_vad"), f"{param}.type")
        made = TurnDetection(kind)
        own = (
            ("threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms")
            if kind == "server_vad"
            else ("eagerness",)
        )
        for name, each in given.items():
            where = f"{param}.{name}"
            if name not in ("type", "create_response", "interrupt_response", "model_version", *own):
                raise RefusedError("unknown_parameter", f"Unknown parameter: '{shortened(where, 80)}'.", where)
            if each is not None:
                made = self._detected(made, name, each, where)
        self._set(detection=made)

    def _detected(self, made: TurnDetection, name: str, value: Any, param: str) -> TurnDetection:
        match name:
            case "threshold":
                if not 0 <= typed(value, float, param) <= 1:
                    raise RefusedError("invalid_value", f"{param} is not a number from 0 to 1.", param)
                return replace(made, threshold=float(value))
            case "prefix_padding_ms" | "silence_duration_ms":
                if not 0 <= typed(value, int, param) <= 10_000:
                    raise RefusedError("invalid_value", f"{param} is not a whole number from 0 to 10000.", param)
                return replace(made, **{"padding_ms" if name.startswith("prefix") else "silence_ms": value})
            case "eagerness":
                return replace(made, eagerness=chosen(value, tuple(_EAGERNESS), param))
            case "interrupt_response":
                return replace(made, interrupts=typed(value, bool, param))
            case "create_response":
                if not typed(value, bool, param):
                    self._cannot(
                        "The model hears all the time, and speaks by itself; this cannot be turned off.", param
                    )
            case "idle_timeout_ms":
                self._cannot("The model speaks by itself, and is not asked to after a while; leave it out.", param)
        return made


class TranscriptionUpdater(Updater):
    """The same for a session of transcription. `served` tells whether a name stands for the model, named `model`."""

    def __init__(self, settings: RealtimeSettings, served: Callable[[str], bool], model: str) -> None:
        super().__init__(settings, None, begun=False)
        self._served = served
        self._model = model
        self._readers = {
            "type": self._type,
            "output_modalities": self._modalities,
            "audio.input.format": self._readers["audio.input.format"],
            "audio.input.transcription": self._transcription,
            "audio.input.turn_detection": self._detection,
        }

    def _type(self, value: Any, param: str) -> None:
        if chosen(value, KINDS, param) != TRANSCRIPTION:
            raise RefusedError(UNABLE, "This is a transcription session; open another one for a conversation.", param)

    def _modalities(self, value: Any, param: str) -> None:
        for each in typed(value, list, param):
            chosen(each, ("text", "audio"), param)

    def _transcription(self, value: Any, param: str) -> None:
        given = {} if value is None else typed(value, dict, param)
        for name, each in given.items():
            where = f"{param}.{shortened(name, 40)}"
            if name not in ("model", "language", "languages", "prompt", "keywords", "delay"):
                raise RefusedError("unknown_parameter", f"Unknown parameter: '{where}'.", where)
            if each is None:
                continue
            if name in ("languages", "keywords"):
                typed(each, list, where)
            else:
                typed(each, str, where)
            if name == "model" and not self._served(each):
                self._cannot(f"There is no model {shortened(each, 60)!r} for transcription; use {self._model}.", where)
            elif name in ("prompt", "keywords") and each:
                self._cannot("The model writes down what it hears, and takes no hints; leave them out.", where)
            elif name == "language":
                self._set(language=shortened(each, 40))

    def _detected(self, made: TurnDetection, name: str, value: Any, param: str) -> TurnDetection:
        if name in ("create_response", "interrupt_response"):  # there are no responses
            typed(value, bool, param)
            return made
        return super()._detected(made, name, value, param)


def _flat(session: Json) -> Iterator[tuple[str, str, Any]]:
    """Yield the fields of a session: the parameter as the client wrote it, its name today, and its value."""
    for name, value in session.items():
        if name != "audio":
            yield f"session.{name}", _BETA_NAMES.get(name, name), value
            continue
        for side, values in typed(value or {}, dict, "session.audio").items():
            for inner, each in typed(values or {}, dict, f"session.audio.{side}").items():
                yield f"session.audio.{side}.{inner}", f"audio.{side}.{inner}", each


def _format(value: Any, param: str) -> str:
    if isinstance(value, str):
        return _BETA_FORMATS.get(value) or chosen(value, (*_BETA_FORMATS, *FORMATS), param)
    if value is None:
        return PCM
    given = typed(value, dict, param)
    kind = chosen(given.get("type", PCM), FORMATS, f"{param}.type")
    rate = SAMPLE_RATE if kind == PCM else 8000
    if given.get("rate") not in (None, rate):
        raise RefusedError("invalid_value", f"{param}.rate is not {rate}, the only rate of {kind}.", f"{param}.rate")
    if others := [name for name in given if name not in ("type", "rate")]:
        named = listed([f"{param}.{shortened(name, 40)}" for name in others[:5]])
        raise RefusedError("unknown_parameter", f"Unknown parameter: {named}.", f"{param}.{others[0]}")
    return kind
