"""What a live conversation tells those who watch it: the screen, the recorder, the trace."""

from __future__ import annotations

from dataclasses import dataclass

from .format import Pcm


@dataclass(frozen=True)
class Loading:
    """A stage of the start begins (`seconds` None) or is done after so many seconds: "files", "loading", "warm-up";
    with a model elsewhere "connecting" and "waiting".

    While the model is loaded, `fraction`, from 0 to 1, says how much of it is there; else it is None.
    """

    stage: str
    seconds: float | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class ModelInUse:
    """The model in use from now on has `bits` a weight. Not told of the demo model, which has no smaller one beside it."""

    bits: int


@dataclass(frozen=True)
class Ready:
    """The conversation begins: the model listens. `conversation` counts from 1; a new one follows each reset."""

    conversation: int


@dataclass(frozen=True)
class Heard:
    """Frame `index` (from 0) of the user goes to the model: `pcm` `[1920]` float32 at 24 kHz, silence while muted."""

    index: int
    pcm: Pcm


@dataclass(frozen=True)
class Said:
    """Frame `index` of Moshi's voice goes to the loudspeaker: `pcm` `[1920]` float32 at 24 kHz."""

    index: int
    pcm: Pcm


@dataclass(frozen=True)
class Spoke:
    """Text of Moshi's: the `text` that became complete in frame `index`, a leading space starting a word."""

    index: int
    text: str


@dataclass(frozen=True)
class SpokeWord:
    """A word is complete; `word.start` is in seconds of this conversation (index × 80 ms)."""

    word: Word


@dataclass(frozen=True)
class Span:
    """A stage worked on frame `index` from `begin` to `end`, seconds on `time.perf_counter`'s clock.

    `stage` is "encode", "step" or "decode".
    """

    stage: str
    index: int
    begin: float
    end: float


@dataclass(frozen=True)
class Queues:
    """What waits where at the time `time` (`time.perf_counter`), in seconds of sound, and counts so far.

    `microphone` is sound that waits to be heard, `model` and `decoder` what waits for these, `loudspeaker` what waits to be
    played, `cushion` its target; `dropped` is the user's sound given up, in seconds; `underruns` a count.
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
class EchoState:
    """What is known of the loudspeaker's echo in the microphone.

    `mode` is "auto", "on" or "off"; `found` whether there is one; `level` its loudness in dB of full scale while Moshi speaks;
    `removed` how much of it is taken away, in dB; `delay` how late it is, in seconds. What is not known is None.
    """

    mode: str
    found: bool = False
    level: float | None = None
    removed: float = 0.0
    delay: float | None = None


@dataclass(frozen=True)
class Dropped:
    """The model fell behind: `seconds` of the user's sound were given up at frame `index`."""

    index: int
    seconds: float


@dataclass(frozen=True)
class Underrun:
    """The loudspeaker ran dry; `count` so far."""

    count: int


@dataclass(frozen=True)
class Notice:
    """Something that the user should know, in one sentence: a device is lost or back, the recording ended, a file was saved.

    `kind` names it for programs, such as "device-lost"; `level` is "info", "warning" or "error".
    """

    kind: str
    message: str
    level: str = "info"


@dataclass(frozen=True)
class Failed:
    """A part broke; the conversation is over. `where` is "encoder", "model", "decoder", "start" or "connection"."""

    where: str
    error: BaseException


Event = (
    Loading
    | ModelInUse
    | Ready
    | Heard
    | Said
    | Spoke
    | SpokeWord
    | Span
    | Queues
    | EchoState
    | Dropped
    | Underrun
    | Notice
    | Failed
)


@dataclass(frozen=True)
class Word:
    """A word, and the time at which it began, in seconds."""

    start: float
    text: str
