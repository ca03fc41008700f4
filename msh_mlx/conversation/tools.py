"""`Tools`: what a language model may call, and `think`, its answer with the calls in between."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ..errors import MshError
from ..events import Called, Calling
from ..system.words import listed, shortened, valid
from .dialogue import Message, Thought

_ROUNDS = 8  # times that tools are called for one answer
_LIMIT = 60.0  # seconds that a call may take
_PATIENCE = 0.7  # seconds of a call, after which the filler is said
_LONGEST = 8000  # characters of a result that the language model gets
_SENTENCE = 300  # characters of an error
_GIVEN_UP = "Error: this call was given up before its result came."
_ID = 9  # letters of an identifier; some templates take no other number


class ToolFailedError(MshError):
    """A tool says, in one sentence, that it failed."""


@dataclass(frozen=True)
class Tool:
    """What a language model may call.

    `parameters` is the JSON schema of its arguments. `run` takes them by name, on any event loop, never blocks it, and returns
    the result as text. What it raises is what went wrong. Several conversations may use a tool at once.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any]], Awaitable[str]]


@dataclass(frozen=True)
class ToolCall:
    """A call as the language model wrote it: `arguments` should be a JSON object. `id` may be empty."""

    id: str
    name: str
    arguments: str


class Tools:
    """The tools that a language model may call. No other is run.

    `filler` is what is said when a call takes longer than `patience` seconds, and nothing was said of the answer yet; "":
    nothing. `limit` is how many seconds a call may take.
    """

    def __init__(
        self, tools: Sequence[Tool] = (), *, filler: str = "", limit: float = _LIMIT, patience: float = _PATIENCE
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._filler = filler
        self._limit = limit
        self._patience = patience

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools as a request has them."""
        return [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in self._tools.values()
        ]

    async def run(self, calls: Sequence[ToolCall], results: Sequence[Message], thought: Thought) -> None:
        """Run all calls at once, and bring their results to the messages of `results`."""
        tasks = [
            asyncio.ensure_future(self._run(call, result, thought)) for call, result in zip(calls, results, strict=True)
        ]
        try:
            await asyncio.wait(tasks, timeout=self._patience)
            if self._filler and thought.silent and not all(task.done() for task in tasks):
                thought.aside(self._filler)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _run(self, call: ToolCall, message: Message, thought: Thought) -> None:
        begin = perf_counter()
        thought.tell(Calling(call.name, call.arguments))
        result, failed = _GIVEN_UP, True
        try:
            result, failed = await self._result(call)
        finally:
            thought.result(message, result)
            thought.tell(Called(call.name, call.arguments, result, failed, perf_counter() - begin))

    async def _result(self, call: ToolCall) -> tuple[str, bool]:
        """Return what the language model gets, and whether something went wrong."""
        name = call.name
        tool = self._tools.get(name)
        if tool is None:
            others = f", only {listed(self._tools)}" if self._tools else ""
            return f"Error: there is no tool {shortened(name, _SENTENCE)!r}{others}.", True
        try:
            arguments = _parsed(call.arguments)
        except ValueError as error:
            return f"Error: the arguments are not a JSON object ({error}).", True
        running = asyncio.ensure_future(tool.run(arguments))
        running.add_done_callback(lambda done: done.cancelled() or done.exception())  # asyncio would print it
        try:
            await asyncio.wait((running,), timeout=self._limit)
        finally:
            in_time = running.done()
            running.cancel()
        if not in_time:
            return f"Error: this took longer than {self._limit:g} s, and was given up.", True
        try:
            result = valid(running.result())
        except asyncio.CancelledError:  # the tool itself gave up
            return _GIVEN_UP, True
        except MshError as error:
            said = shortened(str(error), _SENTENCE)
            return said if said.startswith("Error") else f"Error: {said}", True
        except Exception as error:
            return f"Error: {shortened(f'{type(error).__name__}: {error}', _SENTENCE)}", True
        if len(result) > _LONGEST:
            return f"{result[:_LONGEST]}\n(This is cut: the result has {len(result)} characters.)", False
        return result, False


# What a language model answers to messages: text as it comes, then the calls of tools that it makes.
Ask = Callable[[list[Message]], AsyncIterator["str | list[ToolCall]"]]


async def think(ask: Ask, messages: list[Message], thought: Thought, tools: Tools) -> None:
    """Ask for an answer, run the tools that it calls, and ask again, until it calls none. What comes is added to `thought`.

    Raises
    ------
    MshError
        It goes on calling tools; or what `ask` raises.
    """
    for _ in range(_ROUNDS):
        said, calls = "", []
        async for part in ask(messages):
            if isinstance(part, str):
                said += part
                thought.add(part)
            else:
                calls = _identified(part)
        if not calls:
            return
        asked: Message = {"role": "assistant", "content": valid(said), "tool_calls": [_written(call) for call in calls]}
        results: list[Message] = [{"role": "tool", "content": _GIVEN_UP, "tool_call_id": call.id} for call in calls]
        thought.call(asked, results)
        await tools.run(calls, results, thought)
        messages = [*messages, asked, *results]
    raise MshError(f"The language model called tools {_ROUNDS} times and did not answer", "ask again in other words")


def _identified(calls: Sequence[ToolCall]) -> list[ToolCall]:
    """Give calls without an identifier, or with one that another has, a new one."""
    known: set[str] = set()
    found = []
    for call in calls:
        name = call.id if call.id and call.id not in known else secrets.token_hex(_ID)[:_ID]
        known.add(name)
        found.append(ToolCall(name, call.name, call.arguments))
    return found


def _parsed(arguments: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(arguments, parse_constant=refuse) if arguments.strip() else {}
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}")
    return value


def _written(call: ToolCall) -> dict[str, Any]:
    """Return a call as a message has it. Servers read the arguments again, so what is no JSON object is left out."""
    try:
        arguments = valid(json.dumps(_parsed(call.arguments), ensure_ascii=False))
    except ValueError:
        arguments = "{}"
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
