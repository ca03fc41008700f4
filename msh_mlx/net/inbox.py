"""`Inbox`: what other threads tell a coroutine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue that any thread fills, and that a coroutine on the loop on which it was made takes from."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[T] = asyncio.Queue()

    def put(self, one: T) -> None:
        """Put something in, from any thread. Nothing happens if the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, one)

    async def get(self) -> T:
        """Wait for the next."""
        return await self._queue.get()
