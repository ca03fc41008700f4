"""Check that the environment that runs this is complete. If not, say why, and exit with 1. Needs only Python.

Every file that pip recorded for an installed distribution must be there, except for compiled caches.
"""

import csv
import sys
import sysconfig
from pathlib import Path


def fault(site: Path) -> str | None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        return f"its Python is {sys.version_info[0]}.{sys.version_info[1]}"
    if not (site / "pip").is_dir():
        return "pip is missing from it"
    for info in sorted(site.glob("*.dist-info")):
        record = info / "RECORD"
        if not record.is_file():
            return f"{info.name} is incomplete"
        with record.open(encoding="utf-8", newline="") as file:
            names = [row[0] for row in csv.reader(file) if row]
        for name in names:
            if not name.endswith(".pyc") and not (site / name).exists():
                return f"{name} is missing from it"
    return None


if __name__ == "__main__":
    message = fault(Path(sysconfig.get_path("purelib")))
    if message:
        print(message)
        sys.exit(1)
