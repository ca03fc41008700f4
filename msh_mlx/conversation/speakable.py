"""`Speakable`: what a language model writes, as it is said aloud."""

from __future__ import annotations

import re

from ..system.words import valid

_LONGEST = 200  # letters of a word; what is longer is cut, since nobody could say it
_MARKS = re.compile(r"[*_`~#|<>{}\\\[\]]+")  # Markdown, and what a speaker takes for a tag
_LINK = re.compile(r"\[([^\[\]]*)\]\([^()\s]*\)")
_BULLET = re.compile(r"(?m)^\s*(?:[-+•]|\d+\.)\s+")
# What has no sound: pictures, arrows, lines. Letters and marks of all scripts stay.
_PICTURES = re.compile("[\u2190-\u2bff\ufe0f\ufffd\U0001f000-\U0001faff]+")
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_OPEN = "<think>"


class Speakable:
    """Takes text in pieces, and returns what can be said: without thoughts in `<think>`, marks of Markdown, and pictures.

    A word is returned when it is complete, with the space behind it.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._begins = True  # whether what comes next begins a line

    def push(self, text: str) -> str:
        """Take a piece, and return what it completes."""
        self._rest = _THOUGHTS.sub(" ", self._rest + text)
        # A line's beginning may still become a bullet, and a bracket a link, so both wait for what follows.
        end = max(self._rest.rfind(" "), self._rest.rfind("\n")) + 1
        bracket = self._rest.rfind("[", 0, end)
        link = _LINK.match(self._rest, bracket) if bracket >= 0 else None
        if bracket >= 0 and end - bracket < _LONGEST and (link is None or link.end() > end):
            end = bracket
        if (thoughts := self._rest.find(_OPEN)) >= 0:
            end = min(end, thoughts)
        ready, self._rest = self._rest[:end], self._rest[end:]
        return self._said(ready)

    def flush(self) -> str:
        """Return what is left."""
        ready, self._rest = self._rest.partition(_OPEN)[0], ""
        return self._said(ready)

    def _said(self, text: str) -> str:
        text = _LINK.sub(r"\1", valid(text))  # some servers send a picture in two halves
        if text:
            begins, self._begins = self._begins, text.rstrip(" \t").endswith("\n")
            text = _BULLET.sub("", text) if begins else _BULLET.sub("", f"\0{text}")[1:]
        text = _PICTURES.sub("", _MARKS.sub("", text))
        return re.sub(rf"(\S{{{_LONGEST}}})(?=\S)", r"\1 ", text)
