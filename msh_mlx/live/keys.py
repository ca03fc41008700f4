"""The keyboard during a live conversation: what the keys do."""

from __future__ import annotations

import sys
from dataclasses import dataclass

if sys.platform == "win32":
    from .console_keys import ConsoleKeys as Keys
else:
    from .terminal_keys import TerminalKeys as Keys

__all__ = ["KEYS", "Key", "Keys", "action"]


@dataclass(frozen=True)
class Key:
    """A key: the character that it sends, its name on the screen, and its action in a word and in a sentence.

    The sentence has at most 41 characters, so that it fits on a line of a window with 50 columns.
    """

    character: str
    name: str
    word: str
    sentence: str


KEYS = (
    Key("m", "m", "mute", "mute the microphone, or unmute it"),
    Key(" ", "space", "talk", "push to talk: press, speak, press again"),
    Key("r", "r", "new", "begin a new conversation"),
    Key("s", "s", "save", "save the words and the sound so far"),
    Key("d", "d", "device", "take the next input device"),
    Key("e", "e", "echo", "remove Moshi's echo: auto, on or off"),
    Key("?", "?", "help", "show or hide this help"),
    Key("q", "q", "quit", "end the conversation (Ctrl-C does, too)"),
)

_ACTIONS = {key.character: key.word for key in KEYS}


def action(character: str) -> str | None:
    """Return the action of the key that sends `character`, upper or lower case; return None if there is no such key."""
    return _ACTIONS.get(character.lower())
