"""`ChatCompletions`: a language model on a server that speaks OpenAI's chat completions; and where such servers usually are."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.http import HttpProcessingError

from ..conversation.dialogue import Message, Thought, TooLongError
from ..conversation.tools import ToolCall, Tools, think
from ..errors import InputError, MshError
from ..events import Notice
from ..system.threads import LoopThread
from ..system.words import shortened
from .tool_calls import ToolCalls
from .tunnel import is_here

# Where the servers that people use listen, if nobody has told them otherwise.
USUAL = {
    "Ollama": "http://127.0.0.1:11434/v1",
    "LM Studio": "http://127.0.0.1:1234/v1",
    "mlx_lm.server or llama.cpp": "http://127.0.0.1:8080/v1",
}
_CONNECT = 5.0  # seconds for a connection to be made
_PROBE = 1.0  # seconds for a server on this machine to list its models
_SILENT = 60.0  # seconds without a word, after which the answer is given up; a model may be loaded first
_SLOW = 5.0  # seconds without a word, after which the user is told
_LINE = 1 << 20  # bytes of a line of the answer
_CLOSE = 1.0  # seconds for the connections to be closed
_BODY = 1 << 16  # bytes that are read of an error
_SENTENCE = 300  # characters of what a server says that are shown
_TOO_LONG = "context_length_exceeded", "context length", "context size", "context window", "maximum context"


@dataclass(frozen=True)
class LanguageServer:
    """A server, and the model to ask there.

    `url` is its address with the path to which `/chat/completions` is added. `key` is sent to it; "": none is.
    """

    url: str
    model: str = ""
    key: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that all requests have."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def server_url(text: str) -> str:
    """Return the address of a server's API: that of the server alone gets `/v1`.

    Raises
    ------
    InputError
        It is not an address, or has a password, which would be shown.
    """
    wrong = InputError(f"{text} is not the address of a server", "give one like http://127.0.0.1:11434/v1")
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise wrong
    if "@" in parts.netloc:
        raise InputError(f"The address of {host} has a name or a password", "give a key in MSH_LLM_KEY instead")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def list_models(server: LanguageServer, timeout: float = _CONNECT) -> list[str]:
    """Return the names of a server's models. An empty list: it does not tell, and a request need not name one.

    Raises
    ------
    MshError
        The server cannot be reached, or answers with something else.
    """

    async def ask() -> list[str]:
        async with (
            _session(server, timeout) as session,
            _request(session.get(f"{server.url}/models"), server) as answer,
        ):
            if not await answer.read():  # as from mlx_lm.server, where it has only the model that it was started with
                return []
            said = await _json(answer, server)
            try:
                return [str(model["id"]) for model in said["data"]]
            except (KeyError, TypeError):
                raise _odd(server) from None

    return asyncio.run(ask())


def find_servers() -> dict[str, LanguageServer]:
    """Return the servers that listen here where they usually do, by name, with their first model, if they tell one."""
    found = {}
    for name, url in USUAL.items():
        with contextlib.suppress(MshError):
            models = list_models(LanguageServer(url), _PROBE)
            found[name] = LanguageServer(url, models[0] if models else "")
    return found


class ChatCompletions:
    """Asks a server, on a thread of its own: `Thinker` for any number of conversations. `close` ends it.

    `tools` are what the language model may call. `silent` is after how many seconds without a word an answer is given up, and
    `slow` after how many the user is told that there is none yet.
    """

    def __init__(
        self, server: LanguageServer, tools: Tools | None = None, *, silent: float = _SILENT, slow: float = _SLOW
    ) -> None:
        self.server = server
        self._tools = tools or Tools()
        self._silent = silent
        self._slow = slow
        self._session: aiohttp.ClientSession | None = None
        self._thread = LoopThread("msh-chat")

    def close(self) -> None:
        """End the thread. Answers that are on their way end."""

        async def close() -> None:
            if self._session:
                await self._session.close()

        with contextlib.suppress(Exception):  # closed before, or it takes too long
            self._thread.start(close()).result(_CLOSE)
        self._thread.close()

    def ask(self, messages: list[Message], thought: Thought) -> None:
        """Ask for the answer to a dialogue, and return at once."""
        task = self._thread.start(self._think(messages, thought))

        def cancel() -> None:
            thought.end()
            task.cancel()

        thought.cancel = cancel

    async def _think(self, messages: list[Message], thought: Thought) -> None:
        error: MshError | None = None
        late = f"The language model at {self.server.url} has not answered yet."
        told = False

        def tell() -> None:
            nonlocal told
            if not told:
                thought.tell(Notice("language-model-slow", late))
            told = True

        try:
            await think(lambda messages: self._answer(messages, tell), messages, thought, self._tools)
        except MshError as raised:
            error = raised
        except Exception as raised:  # a fault of ours must not end the conversation in silence
            error = MshError(f"The answer could not be read ({type(raised).__name__}: {raised}).")
        finally:
            thought.end(error)

    async def _answer(
        self, messages: list[Message], is_late: Callable[[], None]
    ) -> AsyncIterator[str | list[ToolCall]]:
        """Ask once. Yield the text as it comes, then the calls of tools, if there are any."""
        server = self.server
        if self._session is None:
            self._session = _session(server, None, self._silent)
        body: dict[str, Any] = {"messages": messages, "stream": True}
        if server.model:
            body["model"] = server.model
        if offered := self._tools.offered:
            body["tools"] = offered
        calls = ToolCalls()
        waiting = asyncio.get_running_loop().call_later(self._slow, is_late)
        try:
            request = self._session.post(f"{server.url}/chat/completions", json=body)
            async with _request(request, server) as answer:
                if answer.content_type == "application/json":  # a server that does not stream
                    text = _content(await _json(answer, server), "message", calls, server)
                    waiting.cancel()
                    yield text
                else:
                    async for said in _events(answer, server):
                        text = _content(said, "delta", calls, server)
                        if text or calls.calls:
                            waiting.cancel()
                        if text:
                            yield text
        finally:
            waiting.cancel()
        if calls.calls:
            yield calls.calls


def _session(server: LanguageServer, total: float | None, silent: float | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers=server.headers,
        timeout=aiohttp.ClientTimeout(total=total, sock_connect=_CONNECT, sock_read=silent),
        read_bufsize=_LINE,
        trust_env=not is_here(urlsplit(server.url).hostname or ""),  # a proxy is for other machines
    )


@contextlib.asynccontextmanager
async def _request(
    request: contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse], server: LanguageServer
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request. Raise `MshError` with one sentence for whatever goes wrong, also while the answer is read."""
    try:
        async with request as answer:
            if answer.status != 200:
                raise await _refusal(answer, server)
            yield answer
    except (aiohttp.SocketTimeoutError, asyncio.TimeoutError):
        raise MshError(
            f"The language model at {server.url} said nothing for too long", "ask again, or take a smaller model"
        ) from None
    except aiohttp.ClientConnectorError:
        raise MshError(f"Nothing answers at {server.url}", "start the language model's server") from None
    except aiohttp.ClientError as error:
        raise MshError(
            f"The connection to the language model at {server.url} broke off ({type(error).__name__})", "ask again"
        ) from None


async def _refusal(answer: aiohttp.ClientResponse, server: LanguageServer) -> MshError:
    """Return the error for an answer that is not 200."""
    body = (await answer.content.read(_BODY)).decode(errors="replace")
    said = body
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        told = json.loads(body)
        told = told[0] if isinstance(told, list) else told  # as from Google
        told = told.get("error") or told
        said = f"{told.get('code') or ''} {told['message']}" if isinstance(told, dict) else str(told)
    said = shortened(" ".join(said.split()), _SENTENCE).rstrip(".")
    if answer.status in (401, 403):
        return MshError(f"The server {server.url} refuses the key ({answer.status})", "give its key in MSH_LLM_KEY")
    if answer.status in (400, 413, 500) and any(words in said.lower() for words in _TOO_LONG):
        return TooLongError("The conversation is longer than the language model can take", "begin a new one")
    model = f" for the model {server.model}" if server.model else ""
    return MshError(f"The server {server.url} answers with {answer.status}{model}: {said or answer.reason}.")


async def _json(answer: aiohttp.ClientResponse, server: LanguageServer) -> Any:
    try:
        return json.loads(await answer.read())
    except (ValueError, RecursionError):
        raise _odd(server) from None


async def _events(answer: aiohttp.ClientResponse, server: LanguageServer) -> AsyncIterator[Any]:
    """Yield the data of server-sent events, up to `[DONE]`."""
    seen = False
    try:
        async for line in answer.content:
            name, _, value = line.decode(errors="replace").strip().partition(":")
            if name != "data":
                continue
            if value.strip() == "[DONE]":
                return
            try:
                said = json.loads(value)
            except (ValueError, RecursionError):
                raise _odd(server) from None
            seen = True
            yield said
    except (ValueError, HttpProcessingError):  # a line without end
        raise _odd(server) from None
    if not seen:
        raise _odd(server)


def _content(said: Any, part: str, calls: ToolCalls, server: LanguageServer) -> str:
    """Return the text of a chunk ("delta") or of a whole answer ("message"), and add its calls; an error in it is raised."""
    if isinstance(said, dict) and said.get("error"):
        told = said["error"]
        told = told.get("message", "") if isinstance(told, dict) else told
        raise MshError(f"The language model failed: {shortened(' '.join(str(told).split()), _SENTENCE).rstrip('.')}.")
    try:
        choices = said["choices"]
        message = (choices[0].get(part) or {}) if choices else {}
        content = message.get("content")
        calls.add(message.get("tool_calls"))
    except (KeyError, TypeError, AttributeError, IndexError):
        raise _odd(server) from None
    return content if isinstance(content, str) else ""


def _odd(server: LanguageServer) -> MshError:
    return MshError(f"What {server.url} answers is not a chat completion", "give the address of such a server")
