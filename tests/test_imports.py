"""Imports point one way, and importing the package costs nothing."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import msh_mlx

PACKAGE = Path(msh_mlx.__file__).parent
# Each room may import from itself, from the rooms of the lines below its own, and from the ground.
ROOMS = (
    "cli",
    "bench doctor",
    "live net",
    "conversation",
    "library",
    "weights",
    "model sound",
    "system",
    "errors events format metrics",  # the ground: what all rooms talk about
)


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
            base += [node.module] if node.module else []
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)  # modules, some of them
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msh_mlx."):
            yield node.module.removeprefix("msh_mlx.")


def room(name):
    return name.split(".")[0]


def test_rooms_import_downwards():
    floor = {name: i for i, names in enumerate(ROOMS) for name in names.split()}
    for name, path in modules():
        if name in ("__init__", "__main__"):
            continue
        assert room(name) in floor, f"{name} is in no room"
        for other in imported(name, path):
            if room(other) in floor and room(other) != room(name):  # else a name of the package itself, as its version
                below = floor[room(name)] < floor[room(other)]
                on_the_ground = floor[room(name)] == floor[room(other)] == len(ROOMS) - 1
                assert below or on_the_ground, f"{name} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    names = {name for name, _ in modules()}
    # Without the module itself: a package may import its modules.
    graph = {name: {other for other in imported(name, path) if other in names} - {name} for name, path in modules()}
    graphlib.TopologicalSorter(graph).prepare()


def test_only_the_engine_of_mlx_needs_mlx():
    """MLX is not everywhere: other modules may import it only where they have found it, inside a function."""
    found = set()
    for name, path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(other.split(".")[0] == "mlx" for other in names):
                found.add(name)
    assert {name for name in found if not name.startswith("model.mlx.")} == {"weights.onto_mlx"}


def test_everything_else_is_imported_where_mlx_is_not():
    elsewhere = "weights.onto_mlx", "cli.replica_router"  # where MLX is, and where Ray is
    names = [name for name, _ in modules() if not name.startswith("model.mlx.") and name not in elsewhere]
    wanted = [f"msh_mlx.{name}" for name in names if name not in ("__init__", "__main__")]
    code = f"""
import importlib, sys
sys.modules["mlx"] = None
for name in {wanted}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # what is for another system
        if error.name not in ("msvcrt", "termios"):
            raise
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(wanted) > 100


@pytest.mark.parametrize(
    "crate", sorted(path.parent for path in PACKAGE.parent.glob("rust/*/src")), ids=lambda path: path.name
)
def test_no_module_in_rust_uses_itself_by_way_of_others(crate):
    graph = {}
    for path in (crate / "src").rglob("*.rs"):
        name = path.relative_to(crate / "src").with_suffix("").parts[0]
        code = path.read_text(encoding="utf-8").split("#[cfg(test)]")[0]  # tests may use whatever is there
        graph.setdefault(name, set()).update(re.findall(r"\bcrate::(\w+)", code))
    # Without the module itself, and without names of the crate's root, which only puts the others together.
    graph = {name: (others & graph.keys()) - {name} for name, others in graph.items() if name != "lib"}
    graphlib.TopologicalSorter(graph).prepare()


def test_importing_the_package_is_cheap():
    code = "import sys, msh_mlx; print({*sys.modules} & {'mlx', 'mimi', 'msh_native', 'numpy', 'sentencepiece'} or '')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_everything_named_is_there():
    assert sorted(msh_mlx.__all__) == sorted(name for names in msh_mlx._HOMES.values() for name in names)
    for name in msh_mlx.__all__:
        assert getattr(msh_mlx, name).__name__ == name
