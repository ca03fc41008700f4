"""Numbers, lists and foreign text in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def human_size(count: float) -> str:
    """Write a number of bytes with its unit."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """Return `text` on one line and without anything that a terminal could take for a command."""
    return "".join(c if c.isprintable() else _UNPRINTABLE for c in text)


def listed(words: Iterable[str]) -> str:
    """Write words as a list in a sentence."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
