"""`python_tools`: the functions of a Python file as tools of a language model."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import PydanticUserError, TypeAdapter, ValidationError, validate_call
from pydantic_core import to_json

from ..errors import InputError
from ..system.inputs import existing
from ..system.threads import LoopThread, on_thread
from ..system.words import shortened
from .tools import Tool, ToolFailedError

_SENTENCE = 300  # characters of an error that are shown
_NO_RESULT = "Done."
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what OpenAI takes; it refuses requests with others


@contextlib.contextmanager
def python_tools(path: str) -> Iterator[list[Tool]]:
    """Import a Python file, and yield its public functions as tools, in their order, while the context lasts.

    The tools are the functions that are defined there and whose name does not begin with `_`. The docstring describes a
    function, and its type hints say what arguments it takes; they are checked and converted. Each call of a plain function has
    a thread of its own. Coroutine functions share an event loop, which is on a thread of its own, too.

    Raises
    ------
    InputError
        There is no such file, it is not Python, it raises an error, it has no function, or one that cannot be a tool.
    """
    module = _import(existing(path, "file of tools"))
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not found:
        raise InputError(
            f"{path} has no function for the language model", "define one whose name does not begin with _"
        )
    loop = LoopThread("msh-tools")
    try:
        yield [_tool(function, loop, path) for function in found]
    finally:
        loop.close()


def _import(path: Path) -> ModuleType:
    name = f"msh_tools_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules[name] = module  # where pydantic looks for the types that are named in hints
    sys.path.append(str(path.parent))  # for what the file imports from beside it
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        raise InputError(f"{path} is not Python: {error.msg}{line}", "give a file of Python functions") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} cannot be imported: {_told(error)}.") from None
    return module


def _tool(function: Callable[..., Any], loop: LoopThread, path: str) -> Tool:
    name = function.__name__
    try:
        checked = validate_call(function)
        schema = TypeAdapter[Any](cast(Any, function)).json_schema()
    except (PydanticUserError, NameError, TypeError) as error:
        why = shortened(str(getattr(error, "message", error)), _SENTENCE).rstrip(".")
        raise InputError(
            f"The function {name} of {path} cannot be a tool: {why}",
            "give its arguments types that JSON has, or a name that begins with _",
        ) from None
    if schema.get("type") != "object":
        raise InputError(
            f"The function {name} of {path} cannot be a tool: its arguments have no names",
            "give them some, or the function a name that begins with _",
        )
    if not _NAME.fullmatch(name):
        raise InputError(
            f"The function {name} of {path} cannot be a tool: its name is not made of a to z, digits and _", "rename it"
        )

    async def await_it(arguments: dict[str, Any]) -> str:
        with _telling():
            return _text(await checked(**arguments))

    def call(arguments: dict[str, Any]) -> str:
        with _telling():
            return _text(checked(**arguments))

    async def run(arguments: dict[str, Any]) -> str:
        if inspect.iscoroutinefunction(function):
            return await loop.run(await_it(arguments))
        return await on_thread(lambda: call(arguments), f"msh-tool-{name}")

    return Tool(name, inspect.getdoc(function) or "", schema, run)


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Say in a sentence what is wrong with arguments, and let no function end the program."""
    try:
        yield
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
        raise ToolFailedError(f"The arguments are wrong ({', '.join(wrong)}).") from None
    except (SystemExit, KeyboardInterrupt) as error:
        raise ToolFailedError(f"It wanted to end the program ({_told(error)}).") from None


def _text(result: Any) -> str:
    """Return a result as the language model gets it: text as it is, everything else as JSON."""
    if result is None:
        return _NO_RESULT
    return result if isinstance(result, str) else to_json(result, fallback=str).decode()


def _told(error: BaseException) -> str:
    return shortened(f"{type(error).__name__}: {error}", _SENTENCE).rstrip(". :")
