"""Imports point one way, and importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import msh_mlx

PACKAGE = Path(msh_mlx.__file__).parent
# From what knows everything to what knows nothing; a module may import from its own level or below.
LEVELS = [
    {"__main__"},
    {"cli"},
    {
        "commands",
        "commands.bench",
        "commands.client",
        "commands.convert",
        "commands.doctor",
        "commands.models",
        "commands.serve",
    },
    {"choice", "doctor"},
    {"options"},
    {"live", "remote"},
    {"ui", "run", "screen", "hints", "latency", "recorder", "trace"},
    {"server"},
    {"connection"},
    {"pipeline", "echo", "devices", "opus", "session_log", "shared"},
    {"session", "metrics", "keys"},
    {"events"},
    {"convert", "bench", "library"},
    {"codec", "generate", "audio", "text", "weights"},
    {"position"},
    {"sampling", "models.lm", "lora"},
    {"models.transformer"},
    {"models.layers", "models.cache", "models", "layout"},
    {"fetch"},
    {"hub"},
    {"tunnel"},
    {"tls"},
    {"catalogue"},
    {"files", "config", "tensors", "memory"},
    {"inputs", "containers"},
    {"protocol", "visitor"},
    {"log"},
    {"places"},
    {"streams"},
    {"errors", "signals", "machine", "mixing", "ranges", "threads"},
]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imported(name, path):
    """The modules of this package that a file imports, at its top or inside a function."""
    package = name.split(".")[:-1] if path.name != "__init__.py" else name.split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            if node.module:
                yield ".".join([*base, node.module])
            else:
                yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msh_mlx."):
            yield node.module.removeprefix("msh_mlx.")


def test_imports_point_one_way():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    for name, path in modules():
        if name == "__init__":
            continue
        assert name in level, f"give {name} a level"
        for other in imported(name, path):
            if other in level:  # else a name of the package itself, such as its version
                assert level[name] <= level[other], f"{name} imports {other}"


def test_importing_the_package_is_cheap():
    code = "import sys, msh_mlx; print(*(m for m in ('mlx', 'mimi', 'numpy', 'sentencepiece') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_everything_named_is_there():
    assert sorted(msh_mlx.__all__) == sorted(msh_mlx._HOMES)
    for name in msh_mlx.__all__:
        assert getattr(msh_mlx, name).__name__ == name
