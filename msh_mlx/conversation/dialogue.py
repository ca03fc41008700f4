"""`Dialogue`: what was said so far, as a language model gets it; and `Thought`, its answer while it comes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TypedDict

from ..errors import MshError
from .speakable import Speakable


class Message(TypedDict):
    """One message of a dialogue, as in OpenAI's chat completions. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class Dialogue:
    """The turns so far. Of what the assistant said, it keeps only what was heard.

    `instructions` is the system prompt; "": there is none.
    """

    def __init__(self, instructions: str = "") -> None:
        self._instructions: list[Message] = (
            [{"role": "system", "content": instructions}] if instructions.strip() else []
        )
        self._turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """All messages, the system prompt first."""
        return [*self._instructions, *self._turns]

    def say(self, role: str, text: str) -> None:
        """Add what somebody said. Who speaks twice in a row goes on with the same message: some models take no other order."""
        text = text.strip()
        if not text:
            return
        if self._turns and self._turns[-1]["role"] == role:
            text = f"{self._turns.pop()['content']} {text}"
        self._turns.append({"role": role, "content": text})

    def forget(self) -> bool:
        """Forget the oldest half of the turns, for a model that takes no more; return False if only the last one is left."""
        if len(self._turns) < 2:
            return False
        rest = self._turns[(len(self._turns) + 1) // 2 :]
        while len(rest) > 1 and rest[0]["role"] != "user":
            rest = rest[1:]
        self._turns = rest
        return True

    def reset(self) -> None:
        """Forget all turns."""
        self._turns = []


class TooLongError(MshError):
    """The dialogue is longer than the language model can take."""


class Thought:
    """The answer of a language model while it comes. The thread that gets it adds to it, and another one says it.

    `changed` is called, on the first thread, after each change.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._speakable = Speakable()
        self._pieces: deque[str] = deque()
        self._ended = False
        self.error: MshError | None = None
        self.cancel: Callable[[], None] = lambda: None  # asks the server to stop; whoever gets the answer sets it

    def add(self, text: str) -> None:
        """Add what came."""
        with self._lock:
            if not self._ended and (said := self._speakable.push(text)):
                self._pieces.append(said)
        self._changed()

    def end(self, error: MshError | None = None) -> None:
        """Say that all has come, or why the rest does not. Later calls change nothing."""
        with self._lock:
            if not self._ended:
                self._ended, self.error = True, error
                if said := self._speakable.flush():
                    self._pieces.append(said)
        self._changed()

    @property
    def waits(self) -> bool:
        """Whether nothing is there to be said now, and more may come."""
        with self._lock:
            return not self._pieces and not self._ended

    def pieces(self) -> Iterator[str | None]:
        """Yield the text as `Speaker.say` takes it: None where the next piece has not come yet."""
        while True:
            with self._lock:
                if not self._pieces and self._ended:
                    return
                piece = self._pieces.popleft() if self._pieces else None
            yield piece


class Thinker(Protocol):
    """A language model, somewhere."""

    def ask(self, messages: list[Message], thought: Thought) -> None:
        """Ask for the answer to a dialogue, and return at once. What comes is added to `thought`, which `cancel` ends."""
