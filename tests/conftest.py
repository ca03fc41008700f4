"""Fixtures for tests of several rooms."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, serve
from huggingface_hub import constants

# The first lines of tests of the MLX engine's own parts.
_OF_MLX = re.compile(r"^(import|from) (mlx|msh_mlx\.model\.mlx|msh_mlx\.weights\.onto_mlx)\b", re.MULTILINE)
_left_out = set[str]()
_LIMIT = 60  # seconds until a coroutine that hangs fails, where its module has no LIMIT of its own


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the tests of the MLX engine out where MLX is not."""
    if importlib.util.find_spec("mlx") or not collection_path.match("test_*.py"):
        return None
    if not _OF_MLX.search(collection_path.read_text(encoding="utf-8")):
        return None
    _left_out.add(collection_path.name)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out."""
    if _left_out:
        terminalreporter.write_line(f"MLX is not here; left out: {', '.join(sorted(_left_out))}")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    limit = max(_LIMIT, getattr(pyfuncitem.module, "LIMIT", _LIMIT))
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**wanted), limit))
    return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give terminals that tests make the usual abilities, wherever the tests themselves are started."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def signals() -> None:
    """Let programs that tests start heed signals, even if the tests ignore them, as under nohup or behind "&"."""
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the user's hub cache by an empty one, without a token, and without the user's own catalogue."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """A hub that takes the place of the real one, and an empty cache."""
    from msh_mlx.library import fetch

    with HubServer() as server:
        serve(server, monkeypatch)
        monkeypatch.setattr(fetch, "PAUSE", 0.01)
        yield server


@pytest.fixture(scope="session", params=["mlx", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine that there is. MLX is not everywhere."""
    name: str = request.param
    if name == "mlx":
        pytest.importorskip("mlx.core")
    return name
