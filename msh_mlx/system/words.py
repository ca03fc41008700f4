"""Write sizes, lists and text from outside for use in sentences."""

from __future__ import annotations

from collections.abc import Iterable

_ROLE = 60  # characters of a role that are shown


def human_size(count: float | None, digits: int = 1) -> str:
    """Return a number of bytes as text, with its unit; "?" for None."""
    if count is None:
        return "?"
    return f"{count / 1e9:.{digits}f} GB" if count >= 1e9 else f"{count / 1e6:.{digits}f} MB"


def printable(text: str) -> str:
    """Return `text` on one line: line breaks and tabs become spaces, other control characters U+FFFD."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def valid(text: str) -> str:
    """Return valid Unicode: halves of a character that follow one another are joined, others become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shortened(text: str, most: int) -> str:
    """Return `printable` text of at most `most` characters, with single spaces. Text that was cut ends in "…"."""
    words = " ".join(printable(text[: most + 1]).split())
    return words if len(text) <= most else words[: most - 1] + "…"


def persona_words(voice: str, role: str) -> str:
    """Return a voice and a role in a few words, such as "Voice Anna, role “You are wise.”"; "" for neither."""
    parts = [f"voice {printable(voice)}"] if voice else []
    if role:
        parts.append(f"role “{shortened(role, _ROLE)}”")
    told = ", ".join(parts)
    return f"{told[:1].upper()}{told[1:]}"


def listed(words: Iterable[str]) -> str:
    """Return words as a list for a sentence, such as "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
