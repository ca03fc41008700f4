"""The map in CONTRIBUTING.md is the tree itself."""

import re
from pathlib import Path

from paths import ROOT

PACKAGE = ROOT / "msh_mlx"


def modules(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.py") if not path.name.startswith("__")}


def drawn(tree: str) -> set[str]:
    """The files of a tree in which a folder ends in "/", and what is below it is further to the right."""
    found, folders = set(), {}
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        inside = "".join(folders[d] for d in sorted(folders) if 0 < d < depth)
        if name.endswith("/"):
            folders = {d: folder for d, folder in folders.items() if d < depth} | {depth: name}
        elif name.endswith(".py"):
            found |= {inside + file for file in re.findall(r"\w+\.py", line)}
        else:
            found |= {f"{inside}{module}.py" for module in line.split()}
    return found


def test_the_tree_is_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.split("```text\n")[1].split("```")[0]
    assert drawn(tree) == modules(PACKAGE)


def test_paths_in_tables_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert len(rows) > 8
    assert not [path for path in rows if not (ROOT / path).exists()]
