"""The options of what a language model may call, and the tools that they name.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import InputError
from ..system.words import listed, shortened
from .options import Group

if TYPE_CHECKING:
    from ..conversation.tools import Tool, Tools

_INSTALL = "pip install 'msh-mlx[mcp]' installs it"
_SHOWN = 20  # tools that are named
_PLACE = 60  # characters of a server's command that are shown


def add_tools(to: Group) -> None:
    """Add the options."""
    to.repeated("--tools", "FILE", "let the language model call the functions of this Python file; can be repeated")
    server = (
        "let the language model call those tools of this MCP server that --tool names: the server's command, or the address "
        "of one that listens (streamable HTTP); can be repeated"
    )
    to.repeated("--mcp", "COMMAND|URL", server)
    only = "run no tools but those of this name, in which * stands for any letters; can be repeated"
    to.repeated("--tool", "NAME", f"{only} (default: all of --tools, none of --mcp)")
    filler = (
        "say this when a tool takes longer than 0.7 s and nothing was said of the answer yet, such as 'One moment.'"
    )
    to.value("--filler", "TEXT", f"{filler} (default: nothing)")


def check_tools(args: argparse.Namespace) -> None:
    """Check the options together; raise InputError if they do not fit."""
    for name in ("tool", "filler"):
        if getattr(args, name) and not (args.tools or args.mcp):
            raise InputError(f"--{name} is for tools, and there are none", "name them with --tools or --mcp")


@contextmanager
def named_tools(args: argparse.Namespace) -> Iterator[tuple[Tools, list[str]]]:
    """Yield the tools that the options name, and what the user is told about them. When the context ends, so do MCP servers.

    Raises
    ------
    InputError
        A file or a command is wrong; nothing of it is named; two tools have one name; or the package `mcp` is missing.
    MshError
        An MCP server cannot be reached, ends, does not answer, or speaks something else.
    """
    from ..conversation.tools import Tools

    sources: list[tuple[str, list[Tool]]] = []
    with ExitStack() as stack:
        if args.tools:
            try:
                from ..conversation.python_tools import python_tools
            except ImportError:
                raise InputError("--tools needs pydantic, which is not installed", _INSTALL) from None
            for path in args.tools:
                tools = stack.enter_context(python_tools(path))
                sources.append((path, _named(path, tools, args.tool or ["*"])))
        if args.mcp:
            try:
                from ..net.mcp_tools import McpServers
            except ImportError:
                raise InputError("--mcp needs the package mcp, which is not installed", _INSTALL) from None
            for place, tools in stack.enter_context(McpServers(args.mcp)).tools:
                place = f"the MCP server {shortened(place, _PLACE)}"
                sources.append((place, _named(place, tools, args.tool)))
        _check_once(sources)
        for pattern in args.tool:
            if not any(fnmatchcase(tool.name, pattern) for _, tools in sources for tool in tools):
                raise InputError(f"There is no tool {pattern}", f"there is {_names(_all(sources))}")
        told = [f"The language model may call {_names(tools)} of {place}." for place, tools in sources]
        yield Tools(_all(sources), filler=args.filler or ""), told


def _named(place: str, tools: Sequence[Tool], patterns: Sequence[str]) -> list[Tool]:
    """Return the tools whose names fit a pattern."""
    if not tools:
        raise InputError(f"{place[0].upper()}{place[1:]} has no tools", "leave it out")
    named = [tool for tool in tools if any(fnmatchcase(tool.name, pattern) for pattern in patterns)]
    if not named:
        raise InputError(
            f"No tool of {place} may be run: it has {_names(tools)}", "name those that may with --tool, or all with '*'"
        )
    return named


def _check_once(sources: Sequence[tuple[str, list[Tool]]]) -> None:
    known: dict[str, str] = {}
    for place, tools in sources:
        for tool in tools:
            if tool.name in known:
                raise InputError(
                    f"Two tools have the name {tool.name}: one of {known[tool.name]} and one of {place}",
                    "choose others with --tool, or rename one",
                )
            known[tool.name] = place


def _all(sources: Sequence[tuple[str, list[Tool]]]) -> list[Tool]:
    return [tool for _, tools in sources for tool in tools]


def _names(tools: Sequence[Tool]) -> str:
    names = [tool.name for tool in tools]
    return listed(names) if len(names) <= _SHOWN else f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
