"""`Places`: who is served now, and who waits, fairly among clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Generic, TypeVar

from ..errors import MshError

T = TypeVar("T")


class BusyError(MshError):
    """All places are taken, and so is every place in the line."""


class Places(Generic[T]):
    """Some places, and a line of those who wait for one. It is used under the lock of its owner.

    A free place goes to the client that has the fewest, and of those to the one that came first. The last free one is kept for
    a client that has none, so that nobody's many requests keep the others out.

    Parameters
    ----------
    most
        How many places there are.
    waiting
        How many may wait.
    """

    def __init__(self, most: int, waiting: int) -> None:
        self._most = most
        self._waiting = waiting
        self._line: dict[T, str] = {}  # in the order in which they came
        self._taken: dict[T, str] = {}

    def __iter__(self) -> Iterator[T]:
        """Those who have a place, in the order in which they got it."""
        return iter(list(self._taken))

    def __contains__(self, one: T) -> bool:
        return one in self._taken

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return len(self._taken)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    def join(self, one: T, client: str) -> None:
        """Stand in the line.

        Raises
        ------
        BusyError
            The line is full.
        """
        if len(self._line) >= self._waiting + max(0, self._most - len(self._taken)):
            raise BusyError("The server is busy, and its waiting line is full", "try again later")
        self._line[one] = client

    def leave(self, one: T) -> None:
        """Give the place up, or the one in the line."""
        self._line.pop(one, None)
        self._taken.pop(one, None)

    def following(self) -> T | None:
        """Return who is next to get a place; None: no place is free for anybody who waits."""
        free = self._most - len(self._taken)
        if not free or not self._line:
            return None
        has = Counter(self._taken.values())
        one = min(self._line, key=lambda other: has[self._line[other]])
        return None if free == 1 < self._most and has[self._line[one]] else one

    def admit(self, one: T) -> None:
        """Give a free place to one who waits."""
        self._taken[one] = self._line.pop(one)

    def all(self) -> list[T]:
        """All who have a place or wait."""
        return [*self._taken, *self._line]
