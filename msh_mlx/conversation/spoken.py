"""Text to be spoken, cut into words and pauses while it comes, turn by turn."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InputError
from ..system.inputs import brief

LONGEST_PAUSE = 60.0  # seconds
_LONGEST_WORD = 1000  # letters; a text without spaces would grow without end
_LONGEST_TAG = 100
_ONCE = 4096  # letters of a long piece that are looked at together

_BREAK = re.compile(r"""<break\s+time\s*=\s*(["']?)([0-9]+(?:\.[0-9]+)?)\s*(ms|s)\1\s*/?>""", re.IGNORECASE)
_TAG = re.compile(r"</?break(?=[\s/>])", re.IGNORECASE)
_WORD = re.compile(r"(?:[^\s<]|<(?!/?break[\s/>]))+", re.IGNORECASE)
_LETTER = re.compile(r"\S")

_NAMES = "AB"
_NAMED = re.compile(rf"[ \t]*([{_NAMES}]):(?=\s)")
_MAY_BE_NAMED = re.compile(rf"[ \t]{{0,20}}(?:[{_NAMES}]:?)?")


@dataclass(frozen=True)
class Turn:
    """What one speaker says. `speaker` is 0 or 1. Text in a plain `str` behind it goes on with the same turn."""

    text: str
    speaker: int = 0


@dataclass(frozen=True)
class Pause:
    """A pause of some seconds."""

    seconds: float


@dataclass(frozen=True)
class SpokenWord:
    """A word and its speaker, 0 or 1."""

    text: str
    speaker: int


Part: TypeAlias = SpokenWord | Pause


def cut(pieces: Iterable[str | Turn | None]) -> Iterator[Part | None]:
    """Cut text into words and pauses. Each is yielded when it is complete, before the next piece is read.

    None among the pieces says that the next one has not come yet, and is yielded as it is.

    Words end at white space, at a colon, and at `<break time="1.5s"/>`, which is a pause (also in ms, and without quotes).
    A new turn ends a word, too. Parentheses are left out, and a typographic apostrophe becomes a plain one: models were
    trained on text in this form.

    Raises
    ------
    InputError
        A pause is not written so, or is too long; a word has more than a thousand letters; or text is not valid Unicode.
    """
    speaker, rest = 0, ""
    for piece in pieces:
        if piece is None:
            yield None
            continue
        if isinstance(piece, Turn):
            yield from _parts(f"{rest} ", speaker, final=True)
            speaker, rest = piece.speaker, ""
            piece = piece.text
        for begin in range(0, len(piece), _ONCE):
            rest = yield from _parts(rest + piece[begin : begin + _ONCE], speaker)
    yield from _parts(f"{rest} ", speaker, final=True)


def _parts(text: str, speaker: int, *, final: bool = False) -> Generator[Part, None, str]:
    """Yield the complete parts of a text, and return the rest of it. With `final` nothing may be left."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("The text is not valid Unicode", "give it in UTF-8") from None
    at = 0
    while found := _LETTER.search(text, at):
        at = found.start()
        if _TAG.match(text, at):
            end = text.find(">", at, at + _LONGEST_TAG) + 1
            if not end and not final and len(text) - at < _LONGEST_TAG:
                return text[at:]
            tag = text[at : end or at + _LONGEST_TAG]
            yield _pause(tag)
            at += len(tag)
            continue
        match = _WORD.match(text, at)
        assert match
        at, end = match.span()
        if end - at > _LONGEST_WORD:
            raise InputError(
                f"The word {brief(match[0])} has more than {_LONGEST_WORD} letters", "put spaces between words"
            )
        if end == len(text):
            return match[0]
        for word in match[0].replace("’", "'").replace("(", "").replace(")", "").replace(":", " ").split():
            yield SpokenWord(word, speaker)
        at = end
    return ""


def _pause(tag: str) -> Pause:
    match = _BREAK.fullmatch(tag)
    if match is None:
        raise InputError(f"{brief(tag)} is not a pause", 'write it as <break time="1.5s"/>')
    seconds = float(match[2]) / (1000 if match[3].lower() == "ms" else 1)
    if seconds > LONGEST_PAUSE:
        raise InputError(f"{brief(tag)} is too long", f"a pause lasts {LONGEST_PAUSE:.0f} s at most")
    return Pause(seconds)


def dialogue(pieces: Iterable[str]) -> Iterator[str | Turn]:
    """Read the text of two speakers: a line that begins with `A:` or `B:` begins a turn, and lines without go on with it.

    Only a capital letter, a colon and white space at the beginning of a line count.
    """
    held, inside = "", False  # the beginning of a line that may still name a speaker; whether a line has begun
    for piece in pieces:
        for line in (held + piece).splitlines(keepends=True):
            held = ""
            if inside:
                yield line
            elif match := _NAMED.match(line):
                yield Turn(line[match.end() :], _NAMES.index(match[1]))
            elif _MAY_BE_NAMED.fullmatch(line):
                held = line
                continue
            else:
                yield line
            inside = line.splitlines()[0] == line
    if held:
        yield from dialogue([f"{held}\n"])
