"""Numbers, lists and foreign text in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def human_size(count: float | None, digits: int = 1) -> str:
    """Write a number of bytes with its unit; "?" if it is not known."""
    if count is None:
        return "?"
    return f"{count / 1e9:.{digits}f} GB" if count >= 1e9 else f"{count / 1e6:.{digits}f} MB"


def printable(text: str) -> str:
    """Return `text` on one line: spaces for line breaks and tabs, U+FFFD for all else that a terminal could obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str, most: int) -> str:
    """Return `printable` text of at most `most` characters, one space between words; "…" ends what was cut."""
    words = " ".join(printable(text[: most + 1]).split())
    return words if len(text) <= most else words[: most - 1] + "…"


def listed(words: Iterable[str]) -> str:
    """Write words as a list in a sentence."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
