"""`ModelWorker`: the one thread that a model runs on, for jobs that have a place or wait for one."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from ..errors import MshError
from .places import Places

J = TypeVar("J", bound="Job")
L = TypeVar("L")  # what is loaded


class Job(ABC):
    """Something that has a place, or waits for one."""

    def __init__(self, worker: ModelWorker[Any, Any]) -> None:
        self._worker = worker

    def close(self) -> None:
        """Give the place up. Nothing is told any more, but for what is being told at this moment."""
        self._worker._leave(self)

    @abstractmethod
    def fail(self, error: MshError) -> None:
        """Tell that it has ended before its time, and why."""


class ModelWorker(ABC, Generic[J, L]):
    """A model, and the one thread that works for all jobs. Each use of a model is a class of its own.

    Jobs have some places; who comes later waits in a line, which is fair among clients. What threads share is changed under the
    lock of `_changed`, which is notified then.

    Parameters
    ----------
    name
        What the model does, for sentences: "speech-to-text".
    thread
        The name of the thread.
    places
        How many jobs are worked on at once.
    waiting
        How many may wait.
    on_failure
        Called, on the model's thread, with the error when the model fails. All that was under way was told, and nothing more
        is begun.
    """

    def __init__(
        self, name: str, thread: str, places: int, waiting: int, on_failure: Callable[[BaseException], None]
    ) -> None:
        self.on_failure = on_failure
        self._name, self._thread_name = name, thread
        self._places: Places[J] = Places(places, waiting)
        self._changed = threading.Condition()
        self._closed: MshError | None = None  # why nothing more is begun
        self._thread: threading.Thread | None = None

    # ---- what a use of a model does, on the model's thread ---------------------------------------------------------------

    @abstractmethod
    def _prepare(self, load: Callable[[], L]) -> Callable[[], None]:
        """Load with `load`, and return what works on the jobs until `_closed` is set."""

    # ---- any thread ------------------------------------------------------------------------------------------------------

    def load(self, load: Callable[[], L]) -> None:
        """Load with `load`, on the thread of the model, and raise what goes wrong."""
        loaded: Future[None] = Future()
        # A daemon: the end of the program does not wait for it.
        self._thread = threading.Thread(target=self._run, args=(load, loaded), name=self._thread_name, daemon=True)
        self._thread.start()
        loaded.result()

    def figures(self) -> tuple[int, int]:
        """Return how many jobs are worked on now, and how many wait."""
        with self._changed:
            return self._places.taken, self._places.waiting

    def close(self) -> None:
        """End the thread. What is under way is told that it has ended."""
        self._end(MshError("The server is shutting down."))
        if self._thread:
            self._thread.join()

    def _join(self, job: J, client: str) -> None:
        with self._changed:
            if self._closed:
                raise self._closed
            self._places.join(job, client)
            self._changed.notify()

    def _leave(self, job: J) -> None:
        with self._changed:
            self._places.leave(job)
            self._changed.notify()

    def _end(self, error: MshError) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = error
            jobs = self._places.all()
            for job in jobs:
                self._places.leave(job)
            self._changed.notify()
        for job in jobs:
            job.fail(error)

    # ---- the model's thread ----------------------------------------------------------------------------------------------

    def _run(self, load: Callable[[], L], loaded: Future[None]) -> None:
        try:
            work = self._prepare(load)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            work()
        except Exception as error:
            self._end(MshError(f"The {self._name} model failed ({type(error).__name__}: {error})."))
            self.on_failure(error)
