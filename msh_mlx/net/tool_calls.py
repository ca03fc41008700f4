"""`ToolCalls`: the calls of tools in an answer of chat completions, put together from its pieces."""

from __future__ import annotations

import json
from typing import Any

from ..conversation.tools import ToolCall
from ..system.words import valid


class ToolCalls:
    """Takes the `tool_calls` of each chunk, or of a whole answer. Servers differ in what they send:

    - pieces of a call with its `index`: OpenAI, llama.cpp, vLLM
    - whole calls, without an index, or all with index 0; arguments as a string or as an object: Ollama, mlx_lm.server
    """

    def __init__(self) -> None:
        self._calls: list[dict[str, str]] = []
        self._places: dict[int, int] = {}  # of the call that an index means

    def add(self, pieces: Any) -> None:
        """Take the `tool_calls` of a chunk; None: it has none.

        Raises
        ------
        TypeError, AttributeError
            They are something else.
        """
        for piece in pieces or ():
            function = piece.get("function") or {}
            name, arguments = function.get("name") or "", function.get("arguments")
            if not isinstance(arguments, str):
                arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
            call = self._call(piece.get("index"), str(piece.get("id") or ""), name)
            if name != call["name"]:  # some servers repeat it
                call["name"] += name
            call["arguments"] += arguments

    def _call(self, index: Any, id: str, name: str) -> dict[str, str]:
        """Return the call that a piece belongs to."""
        place = (
            self._places.get(index) if isinstance(index, int) else len(self._calls) - 1 if not (id or name) else None
        )
        known = self._calls[place] if place is not None and place >= 0 else None
        if known is None or (id and id != known["id"]):
            known = {"id": id, "name": "", "arguments": ""}
            if isinstance(index, int):
                self._places[index] = len(self._calls)
            self._calls.append(known)
        return known

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far."""
        return [ToolCall(**{name: valid(text) for name, text in call.items()}) for call in self._calls]
