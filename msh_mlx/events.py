"""The events of a live conversation, for the screen, the recorder and the trace."""

from __future__ import annotations

from dataclasses import dataclass

from .format import Pcm


@dataclass(frozen=True)
class Word:
    """A word, and the time when it began, in seconds."""

    start: float
    text: str


class Event:
    """The base of all events."""


@dataclass(frozen=True)
class Loading(Event):
    """A stage of the start begins (`seconds` is None), or has ended after `seconds`.

    The stages are "files", "loading" and "warm-up"; with a model on a server, "connecting" and "waiting". While the model is
    being loaded, `fraction`, from 0 to 1, says how much of it has been loaded; else it is None.
    """

    stage: str
    seconds: float | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class ModelInUse(Event):
    """The model in use from now on has `bits` a weight. The demo model has no such event, since there is no smaller one."""

    bits: int


@dataclass(frozen=True)
class Ready(Event):
    """A conversation begins: the model listens. `conversation` counts from 1; a new one follows each reset."""

    conversation: int


@dataclass(frozen=True)
class Heard(Event):
    """Frame `index` (from 0) of the user goes to the model. `pcm` is `[1920]` float32 at 24 kHz, silence while muted."""

    index: int
    pcm: Pcm


@dataclass(frozen=True)
class Said(Event):
    """Frame `index` of Moshi's voice goes to the loudspeaker. `pcm` is `[1920]` float32 at 24 kHz."""

    index: int
    pcm: Pcm


@dataclass(frozen=True)
class Spoke(Event):
    """Moshi's `text` became complete in frame `index`. A leading space starts a word."""

    index: int
    text: str


@dataclass(frozen=True)
class SpokeWord(Event):
    """A word is complete. `word.start` is in seconds of this conversation (index × 80 ms)."""

    word: Word


@dataclass(frozen=True)
class HeardWord(Event):
    """A word of the user was written down. `word.start` is in seconds of this conversation."""

    word: Word


@dataclass(frozen=True)
class Turned(Event):
    """The user has ended a turn, with this `text`, before frame `index`.

    `voice_ended` is when the user's voice was last there, `noticed` when the end was noticed, and `written` when its last words
    were written, in seconds of `time.perf_counter`.
    """

    text: str
    index: int
    voice_ended: float
    noticed: float
    written: float


@dataclass(frozen=True)
class Listened(Event):
    """The user's words since the last turn, `text`, only show that they listen: they are over, and the answer goes on."""

    text: str


@dataclass(frozen=True)
class Replied(Event):
    """The answer to a turn begins to sound.

    `voice_ended`, `noticed` and `written` are those of `Turned`, `thought` is when the language model's first words came,
    `made` when the first sound of them was made, and `played` when it leaves the loudspeaker.
    """

    voice_ended: float
    noticed: float
    written: float
    thought: float
    made: float
    played: float

    def delays(self) -> dict[str, float]:
        """Return the times as seconds after `voice_ended`."""
        names = ("noticed", "written", "thought", "made", "played")
        return {name: round(getattr(self, name) - self.voice_ended, 4) for name in names}


@dataclass(frozen=True)
class Calling(Event):
    """The language model calls the tool `name`. `arguments` is their JSON, as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Called(Event):
    """A call of a tool has ended after `seconds`. `result` is the text that the language model gets.

    `failed` says that it is not what the tool returned, but a sentence on what went wrong; an unknown tool was not run.
    """

    name: str
    arguments: str
    result: str
    failed: bool
    seconds: float


@dataclass(frozen=True)
class Hushed(Event):
    """The voice is silent from now on: what was said and not played yet is not to be heard."""


@dataclass(frozen=True)
class Answered(Event):
    """An answer is over: all of it was heard, or, if it was `cut`, somebody gave it up before."""

    cut: bool


@dataclass(frozen=True)
class Span(Event):
    """A stage worked on frame `index` from `begin` to `end`, in seconds of `time.perf_counter`.

    `stage` is "encode", "step" or "decode".
    """

    stage: str
    index: int
    begin: float
    end: float


@dataclass(frozen=True)
class Queues(Event):
    """How much sound waits in each queue at `time` (of `time.perf_counter`), in seconds, and counts so far.

    `microphone` waits to be heard, `model` and `decoder` wait for these stages, `loudspeaker` waits to be played; `cushion` is
    the target of the last. `dropped` is how much of the user's sound was given up, in seconds; `underruns` is a count.
    """

    time: float
    microphone: float
    model: float
    decoder: float
    loudspeaker: float
    cushion: float
    dropped: float
    underruns: int


@dataclass(frozen=True)
class EchoState(Event):
    """The loudspeaker's echo in the microphone, as far as it is known.

    `mode` is "auto", "on" or "off". `found` says whether there is an echo. `level` is how loud it is while Moshi speaks, in dB
    of full scale; `removed` is by how much it is lowered, in dB; `delay` is how late it is, in seconds. None: not known.
    """

    mode: str
    found: bool = False
    level: float | None = None
    removed: float = 0.0
    delay: float | None = None


@dataclass(frozen=True)
class Dropped(Event):
    """The model fell behind. `seconds` of the user's sound were given up at frame `index`."""

    index: int
    seconds: float


@dataclass(frozen=True)
class Underrun(Event):
    """The loudspeaker ran dry. `count` is how often so far."""

    count: int


@dataclass(frozen=True)
class Notice(Event):
    """One sentence for the user: a device is lost or back, the recording ended, a file was saved.

    `kind` names the event for programs, such as "device-lost". `level` is "info", "warning" or "error".
    """

    kind: str
    message: str
    level: str = "info"


@dataclass(frozen=True)
class Failed(Event):
    """A part failed, and the conversation is over.

    `where` is "encoder", "model", "decoder", "start", "conversation" or "connection".
    """

    where: str
    error: BaseException
