"""Which process of a server on Ray takes a new conversation."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ray.serve.request_router import FIFOMixin, RequestRouter

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica


class Router(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Prefers processes that have a free place by their own measurement; among them, Ray takes the one with least to do.

    If none has one, the conversation waits in the line of the one with least to do.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the processes that a request may go to, those with a free place first."""
        # In any order: of those with equally much to do, Ray takes the first.
        candidates = random.sample(candidate_replicas, len(candidate_replicas))
        free = [each for each in candidates if each.routing_stats.get("free", 1) > 0]
        full = [each for each in candidates if each not in free]
        return [rank for rank in (free, full) if rank]
