"""Subtitles of words that were heard: SRT, and WebVTT for browsers."""

from __future__ import annotations

from collections.abc import Iterable

from ..system.words import printable
from .transcriber import Transcribed

_WIDTH = 42  # letters of a line
_LONGEST = 6.0  # seconds from the first word of a line to its last
_SPOKEN = 1.0  # seconds that a word takes at most, for all that is known
_PAUSE = 0.6  # seconds between words of two lines; and for which a line stays, if no other follows


def srt(words: Iterable[Transcribed]) -> str:
    """Return SRT; without words it is empty."""
    numbered = enumerate(cues(words), 1)
    return "\n".join(f"{number}\n{_span(begin, end, ',')}\n{text}\n" for number, (begin, end, text) in numbered)


def vtt(words: Iterable[Transcribed]) -> str:
    """Return WebVTT; without words it has only its first line."""
    shown = (f"{_span(begin, end, '.')}\n{_escaped(text)}\n" for begin, end, text in cues(words))
    return "\n".join(["WEBVTT\n", *shown])


def cues(words: Iterable[Transcribed]) -> list[tuple[float, float, str]]:
    """Put words together into lines, and return when each begins and ends, in seconds, and its text. They do not overlap."""
    lines: list[list[Transcribed]] = []
    for word in words:
        line = lines[-1] if lines else []
        if not line or _breaks(line, word):
            lines.append(line := [])
        line.append(word)
    cues = []
    for i, line in enumerate(lines):
        end = until(line[-1]) + _PAUSE
        if i + 1 < len(lines):
            end = min(end, lines[i + 1][0].start)
        # A blank line would end the subtitle.
        cues.append((line[0].start, end, " ".join(printable(word.text) for word in line)))
    return cues


def _breaks(line: list[Transcribed], word: Transcribed) -> bool:
    """Whether a new line begins with a word. Two lines cannot begin together."""
    full = sum(len(other.text) + 1 for other in line) + len(word.text) > _WIDTH
    late = word.start - until(line[-1]) > _PAUSE or word.start - line[0].start > _LONGEST
    return word.start > line[0].start and (full or late)


def until(word: Transcribed) -> float:
    """Return when a word has been said, in seconds. The model tells only when the next one begins."""
    longest = word.start + _SPOKEN
    return longest if word.end is None else min(word.end, longest)


def _span(begin: float, end: float, point: str) -> str:
    return f"{_time(begin, point)} --> {_time(end, point)}"


def _time(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
