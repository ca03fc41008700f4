"""`McpServers`: the tools of MCP servers (Model Context Protocol), for a language model. The package `mcp` speaks with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import TimeoutError as FuturesTimeoutError
from typing import Any, TextIO, cast
from urllib.parse import urlsplit

import httpx2
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CONNECTION_CLOSED,
    CallToolResult,
    EmbeddedResource,
    Implementation,
    TextContent,
    TextResourceContents,
)

from .. import __version__
from ..conversation.tools import Tool, ToolFailedError
from ..errors import InputError, MshError
from ..system.places import temporary_file
from ..system.threads import LoopThread
from ..system.words import shortened
from .tunnel import is_here

_START = 30.0  # seconds for a server to start and to tell its tools; it may be fetched first
_END = 6.0  # seconds for servers to end: mcp asks them, and ends them by force after 4 s
_PAGES = 100  # of a list of tools
_CONNECT = 5.0  # seconds
_SILENT = 300.0  # seconds; a tool may take longer than a conversation waits for it
_SENTENCE = 200  # characters
_SECRET = re.compile(
    r"(?i)-+[^=]*(auth|cookie|header|key|password|secret|token)[^=]*|-H"
)  # options whose value may be one

# Its log would be printed over the screen; errors come as exceptions, too.
for _name in ("mcp", "client", "httpx2"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class McpServers:
    """MCP servers, while the context lasts. Each has a command, which starts it, or an address (streamable HTTP).

    A server that has ended is started, or asked, again when a tool of it is called. All are spoken with on one thread.

    Parameters
    ----------
    places
        The commands, which are split as a shell does, and the addresses.
    patience
        Seconds for each to start and to tell its tools.

    Raises
    ------
    InputError
        A command cannot be run.
    MshError
        A server cannot be reached, ends, does not answer, or speaks something else.
    """

    def __init__(self, places: Sequence[str], *, patience: float = _START) -> None:
        self._thread = LoopThread("msh-mcp")
        self._servers = [_Server(place, patience, self._thread) for place in places]
        self.tools: list[tuple[str, list[Tool]]] = []  # the place, as it may be shown, and the tools of each

    def __enter__(self) -> McpServers:
        try:
            waiting = [self._thread.start(server.tools()) for server in self._servers]
            self.tools = [(server.said, each.result()) for server, each in zip(self._servers, waiting, strict=True)]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            await asyncio.gather(*(server.close() for server in self._servers))

        with contextlib.suppress(TimeoutError, FuturesTimeoutError):
            self._thread.start(close()).result(_END)
        self._thread.close()


class _Server:
    """One server. Its connection is held by a task of its own, as `mcp` wants it."""

    def __init__(self, place: str, patience: float, thread: LoopThread) -> None:
        self.said = _said(place)
        self._patience = patience
        self._thread = thread
        self._url = place if _is_address(place) else ""
        self._command = [] if self._url else _split(place)
        self._client: Client | None = None
        self._holding: asyncio.Task[None] | None = None
        self._cancelled = False  # whether that was; its end takes some time, and must not be cancelled again
        self._starting = asyncio.Lock()
        self._errors = temporary_file()  # what the server writes to its standard error

    async def tools(self) -> list[Tool]:
        """Connect, and return all that the server has."""
        client = await self._connected()
        found: list[Tool] = []
        cursor: str | None = None
        try:
            for _ in range(_PAGES):
                page = await asyncio.wait_for(client.list_tools(cursor=cursor), self._patience)
                found += [self._tool(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
                if (cursor := page.next_cursor) is None:
                    break
        except asyncio.TimeoutError:
            raise self._slow() from None
        except Exception as error:
            raise MshError(f"The MCP server {self.said} does not tell its tools ({_told(error)}).") from None
        return found

    def _tool(self, name: str, description: str, schema: dict[str, Any]) -> Tool:
        async def run(arguments: dict[str, Any]) -> str:
            return await self._thread.run(self._call(name, arguments))

        return Tool(name, description, schema, run)

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        client = await self._connected()
        try:
            result = await client.call_tool(name, arguments)
        except Exception as error:
            if not isinstance(error, MCPError) or error.code == CONNECTION_CLOSED:
                if self._client is client:
                    self._disconnect()
                name = client.server_info.name if client.server_info else self.said
                raise MshError(f"The MCP server {name} has ended", "the next call tries it again") from None
            raise ToolFailedError(_told(error)) from None
        if result.is_error:
            raise ToolFailedError(_text(result))
        return _text(result)

    async def _connected(self) -> Client:
        """Return the client, after connecting if need be."""
        async with self._starting:
            if self._client is None or self._holding is None or self._holding.done():
                ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                self._holding = holding = asyncio.create_task(self._hold(ready))
                self._cancelled = False
                holding.add_done_callback(lambda task: task.cancelled() or task.exception())  # asyncio would print it
                try:
                    await asyncio.wait((ready, holding), timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
                    if not ready.done():
                        raise self._failure(holding)
                except BaseException:
                    self._disconnect()
                    raise
                self._client = ready.result()
            return self._client

    def _disconnect(self) -> None:
        self._client = None
        if self._holding and not self._cancelled:
            self._cancelled = True
            self._holding.cancel()

    async def close(self) -> None:
        """End the connection, and the server if it was started here."""
        self._disconnect()
        if self._holding:
            await asyncio.wait((self._holding,))

    async def _hold(self, ready: asyncio.Future[Client]) -> None:
        async with self._open() as client:
            ready.set_result(client)
            await asyncio.Event().wait()  # until it is cancelled

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Client]:
        who = Implementation(name="msh-mlx", version=__version__)
        if self._url:
            proxies = not is_here(urlsplit(self._url).hostname or "")  # they are for other machines
            timeout = httpx2.Timeout(_SILENT, connect=_CONNECT)
            async with (
                httpx2.AsyncClient(trust_env=proxies, timeout=timeout) as http,
                Client(streamable_http_client(self._url, http_client=http), client_info=who) as client,
            ):
                yield client
        else:
            command, *rest = self._command
            transport = stdio_client(StdioServerParameters(command=command, args=rest), cast(TextIO, self._errors))
            async with Client(transport, client_info=who) as client:
                yield client

    def _failure(self, holding: asyncio.Task[None]) -> MshError:
        """Return the error for a server to which there is no connection."""
        if not holding.done():
            return self._slow()
        error = None if holding.cancelled() else _cause(holding.exception())
        if isinstance(error, OSError) and not self._url:
            return InputError(
                f"The MCP server {self.said} cannot be started: {error.strerror or error}", "check the command"
            )
        if isinstance(error, httpx2.TransportError):
            return MshError(f"No MCP server answers at {self.said}", "start it, or check the address")
        if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED and not self._url:
            return MshError(f"The MCP server {self.said} ended at its start{self._last_words()}", "try its command")
        what = "address" if self._url else "command"
        return MshError(f"{self.said} is not an MCP server ({_told(error)})", f"check the {what}")

    def _slow(self) -> MshError:
        return MshError(
            f"The MCP server {self.said} did not answer within {self._patience:g} s{self._last_words()}",
            "check that it is one",
        )

    def _last_words(self) -> str:
        """Return the last line that the server has written to its standard error, for a sentence; "" if there is none."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f" ({shortened(last, _SENTENCE)})" if last else ""


def _said(place: str) -> str:
    """Return a command or an address for a sentence, without what may be secret: passwords, keys, values of variables."""
    said: list[str] = []
    for word in [place] if _is_address(place) else _split(place):
        if said and _SECRET.fullmatch(said[-1]):
            word = "…"
        elif "://" in word:
            word = re.sub(r"//[^/@]*@", "//", word).partition("?")[0]
        said.append(re.sub(r"(?s)^([-\w]+=).+", r"\1…", word))
    return shortened(" ".join(said), _SENTENCE)


def _is_address(place: str) -> bool:
    return place.lower().startswith(("http://", "https://"))


def _split(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not words:
        raise InputError(f"--mcp {command!r} is no command", "give the command of an MCP server, or its address")
    return words


def _cause(error: BaseException | None) -> BaseException | None:
    """Return the error within groups of errors."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error


def _told(error: BaseException | None) -> str:
    text = str(error) if isinstance(error, MCPError) else f"{type(error).__name__}: {error}"
    return shortened(text, _SENTENCE).rstrip(". :")


def _text(result: CallToolResult) -> str:
    """Return what a tool has returned as text; what is no text is only named."""
    parts = []
    for content in result.content:
        if isinstance(content, TextContent):
            parts.append(content.text)
        elif isinstance(content, EmbeddedResource) and isinstance(content.resource, TextResourceContents):
            parts.append(content.resource.text)
        else:
            parts.append(f"(There is also {content.type}, which is not text.)")
    return "\n".join(parts) or "Done."
