"""`SharedSpeaker`: one text-to-speech model that says several texts, in turns, on one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import InputError, MshError
from ..format import FRAME_SECONDS
from ..system.inputs import brief
from ..system.words import listed
from .model_worker import Job, ModelWorker
from .speaker import NotYetError, Speaker, Speech, Spoken

PLACES = 4  # texts that are said in turns
_AHEAD = round(20 / FRAME_SECONDS)  # frames that may be made before they are taken


@dataclass(frozen=True)
class Voices:
    """Who can speak: speakers of one model by the names of their voices, and the name of the usual one."""

    speakers: Mapping[str, Speaker]
    default: str

    def choose(self, name: str | None) -> Speaker:
        """Return the speaker with a voice; None: the usual one.

        Raises
        ------
        InputError
            There is no such voice.
        """
        speaker = self.speakers.get(self.default if name is None else name)
        if speaker is None:
            raise InputError(f"There is no voice {brief(name)}", f"this server has {listed(self.speakers)}")
        return speaker


@dataclass(frozen=True)
class Made:
    """What was made of a speech: the next frame, and sentences on words that were left out.

    With `ended`, nothing more follows; `error` says why before its time.
    """

    spoken: Spoken | None = None
    notes: tuple[str, ...] = ()
    ended: bool = False
    error: MshError | None = None


class Saying(Job):
    """A text that is being said. Its methods may be called on any thread, and do not wait."""

    def __init__(self, shared: SharedSpeaker, speaker: Speaker, told: Callable[[Made], None]) -> None:
        super().__init__(shared)
        self.told = told
        self.ahead = 0  # frames that were made and not taken
        self.is_dry = False  # whether all text that has come was said
        self._speaker = speaker
        self._speech: Speech | None = None
        self._pieces: deque[str] = deque()
        self._ended = False

    def feed(self, text: str) -> None:
        """Say this, too, behind what came before."""
        with self._worker._changed:
            self._pieces.append(text)
            self._worker._changed.notify()

    def finish(self) -> None:
        """Say that no more text comes."""
        with self._worker._changed:
            self._ended = True
            self._worker._changed.notify()

    def took(self) -> None:
        """Say that a frame was taken. If many are made that nobody takes, the speech waits."""
        with self._worker._changed:
            self.ahead -= 1
            self._worker._changed.notify()

    def fail(self, error: MshError) -> None:
        self.told(Made(ended=True, error=error))

    @property
    def is_due(self) -> bool:
        """Whether it may go on: not too many of its frames wait, and it has text."""
        return self.ahead < _AHEAD and (not self.is_dry or bool(self._pieces) or self._ended)

    def advance(self) -> Made | None:
        """Run a position of the model, on its thread, and return what it makes. None: nothing yet."""
        try:
            if self._speech is None:
                self._speech = self._speaker.say(self._text())
            spoken = self._speech.advance()
        except NotYetError:
            self.is_dry = True
            return None
        except MshError as error:
            return Made(ended=True, error=error)
        notes = tuple(self._speech.notes)
        self._speech.notes.clear()
        over = self._speech.over
        return Made(spoken, notes, over) if spoken or notes or over else None

    def _text(self) -> Iterator[str | None]:
        while True:
            if self._pieces:
                yield self._pieces.popleft()
            elif self._ended:
                return
            else:
                yield None


class SharedSpeaker(ModelWorker[Saying, Voices]):
    """A text-to-speech model, and the one thread that speaks for all.

    Texts that are said at once take turns, frame by frame.

    Parameters
    ----------
    places
        How many texts are said at once.
    waiting
        How many may wait.
    on_failure
        As for `ModelWorker`.

    Attributes
    ----------
    voices
        Who can speak, once the model is loaded.
    """

    def __init__(
        self,
        *,
        places: int = PLACES,
        waiting: int = 16,
        on_failure: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        super().__init__("text-to-speech", "msh-tts", places, waiting, on_failure)
        self.voices: Voices | None = None

    def say(self, told: Callable[[Made], None], voice: str | None = None, client: str = "") -> Saying:
        """Begin to say a text, which is fed to what is returned. `told` is called on the model's thread, with each frame.

        `voice` is the name of one; None: the usual one. `client` says whose text it is.

        Raises
        ------
        InputError
            There is no such voice.
        BusyError
            Too many wait.
        MshError
            The model has failed.
        """
        assert self.voices
        saying = Saying(self, self.voices.choose(voice), told)
        self._join(saying, client)
        return saying

    # ---- the model's thread ----------------------------------------------------------------------------------------------

    def _prepare(self, load: Callable[[], Voices]) -> Callable[[], None]:
        self.voices = load()
        return self._work

    def _work(self) -> None:
        while not self._closed:
            self._turn()

    def _turn(self) -> None:
        """Wait for something to say, and run a position of each text."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._places.following() or any(saying.is_due for saying in self._places)
            )
            while (following := self._places.following()) is not None:
                self._places.admit(following)
            due = [saying for saying in self._places if saying.is_due]
            for saying in due:
                saying.is_dry = False
        for saying in due:
            made = saying.advance()
            if made is None:
                continue
            with self._changed:
                if saying not in self._places:
                    continue
                saying.ahead += made.spoken is not None
                if made.ended:
                    self._places.leave(saying)
            saying.told(made)
