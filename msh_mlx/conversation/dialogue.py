"""`Dialogue`: what was said so far, as a language model gets it; and `Thought`, its answer while it comes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from ..errors import MshError
from ..events import Event
from .speakable import Speakable

NOTHING = "..."  # what is said by saying nothing


class _Said(TypedDict):
    role: str
    content: str


class Message(_Said, total=False):
    """One message of a dialogue, as in OpenAI's chat completions. `role` is "system", "user", "assistant" or "tool".

    `tool_calls` has the calls of tools that the assistant makes. A message of a tool has the result of the call
    `tool_call_id`.
    """

    tool_calls: list[dict[str, Any]]
    tool_call_id: str


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
        last = self._turns[-1]["role"] if self._turns else ""
        if last == role:
            text = f"{self._turns.pop()['content']} {text}"
        elif last == "tool" and role == "user":  # nothing was heard of the answer to the results
            self._turns.append({"role": "assistant", "content": NOTHING})
        self._turns.append({"role": role, "content": text})

    def keep(self, answer: Sequence[Message]) -> None:
        """Add what is kept of an answer (`Thought.messages`)."""
        for message in answer:
            if "tool_calls" in message or message["role"] == "tool":
                self._turns.append(message)
            else:
                self.say(message["role"], message["content"])

    def forget(self) -> bool:
        """Forget about the oldest half, for a model that takes no more; return False if only the user's last turn is left.

        What is left begins with a turn of the user's, so that no call of a tool is without its result.
        """
        begins = [at for at, message in enumerate(self._turns) if message["role"] == "user"]
        if len(begins) < 2:
            return False
        half = (len(self._turns) + 1) // 2
        self._turns = self._turns[next((at for at in begins if at >= half), begins[-1]) :]
        return True

    def reset(self) -> None:
        """Forget all turns."""
        self._turns = []


class TooLongError(MshError):
    """The dialogue is longer than the language model can take."""


class Thought:
    """The answer of a language model while it comes. The thread that gets it adds to it, and another one says it.

    It has parts, counted from 0: a call of tools ends one, and what is said while they run is one. Each is said to its end
    before the next one comes. `changed` is called, on the first thread, after each change. `tell` gets what else there is to
    tell of this answer: calls of tools, notices.
    """

    def __init__(self, changed: Callable[[], None], tell: Callable[[Event], None] = lambda _: None) -> None:
        self.tell = tell
        self._changed = changed
        self._lock = threading.Lock()
        self._speakable = Speakable()
        self._pieces: deque[str | None] = deque()  # None ends a part
        self._part = 0  # the part to which is added
        self._begun = False  # whether that has words
        self._kept: list[int | list[Message]] = []  # the parts that the language model said, and the calls between them
        self._ended = False
        self.error: MshError | None = None
        self.cancel: Callable[[], None] = lambda: None  # asks the server to stop; whoever gets the answer sets it

    def add(self, text: str) -> None:
        """Add what came."""
        with self._lock:
            if not self._ended:
                self._add(self._speakable.push(text))
        self._changed()

    def aside(self, text: str) -> None:
        """Say what the language model did not say, as a part of its own, which is not kept."""
        with self._lock:
            if not self._ended:
                self._end_part()
                self._pieces.append(text)
                self._begun = True
                self._end_part()
        self._changed()

    def call(self, calls: Message, results: Sequence[Message]) -> None:
        """Say that the language model calls tools, which ends a part. `results` has a message for each call of `calls`.

        They are kept as they are, until `result` brings others.
        """
        with self._lock:
            if not self._ended:
                self._end_part()
                self._kept.append([calls, *results])
        self._changed()

    def result(self, message: Message, text: str) -> None:
        """Bring the result of a call, for its message."""
        with self._lock:
            if not self._ended:
                message["content"] = text

    def end(self, error: MshError | None = None) -> None:
        """Say that all has come, or why the rest does not. Later calls change nothing."""
        with self._lock:
            if not self._ended:
                self._ended, self.error = True, error
                self._add(self._speakable.flush())
        self._changed()

    def _add(self, said: str) -> None:
        if said:
            self._pieces.append(said)
        if said.strip() and not self._begun:
            self._begun = True
            self._kept.append(self._part)

    def _end_part(self) -> None:
        self._add(self._speakable.flush())
        if self._begun:
            self._pieces.append(None)
            self._part += 1
            self._begun = False

    @property
    def silent(self) -> bool:
        """Whether nothing has come so far that can be said."""
        with self._lock:
            return self._part == 0 and not self._begun

    @property
    def waits(self) -> bool:
        """Whether nothing is there to be said now, and more may come."""
        with self._lock:
            return not self._pieces and not self._ended

    @property
    def over(self) -> bool:
        """Whether all was taken, and no more comes."""
        with self._lock:
            return not self._pieces and self._ended

    def pieces(self) -> Iterator[str | None]:
        """Yield the text of the next part as `Speaker.say` takes it: None where the next piece has not come yet."""
        while True:
            with self._lock:
                if not self._pieces and self._ended:
                    return
                waits = not self._pieces
                piece = None if waits else self._pieces.popleft()
            if piece is None and not waits:
                return
            yield piece

    def messages(self, heard: Mapping[int, Sequence[str]]) -> list[Message]:
        """Return what a dialogue keeps of the answer: calls with their results, and the words that were heard of each part."""
        with self._lock:
            kept = list(self._kept)
        messages: list[Message] = []
        words: list[str] = []
        for of in kept:
            if isinstance(of, int):
                words += heard.get(of, ())
                continue
            calls, *results = of
            messages += [{**calls, "content": " ".join(words)}, *results]
            words = []
        return [*messages, {"role": "assistant", "content": " ".join(words)}] if words else messages


class Thinker(Protocol):
    """A language model, somewhere."""

    def ask(self, messages: list[Message], thought: Thought) -> None:
        """Ask for the answer to a dialogue, and return at once. What comes is added to `thought`, which `cancel` ends."""
