"""Fixtures for tests of several rooms."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, serve
from huggingface_hub import constants


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give terminals that tests make the usual abilities, wherever the tests themselves are started."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def signals() -> None:
    """Let programs that tests start heed signals, even if the tests ignore them, as under nohup or behind "&"."""
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
