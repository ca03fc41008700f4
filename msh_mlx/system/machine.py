"""What the machine is: its processor, its memory, its system. Needs nothing but Python, so that it works where MLX does not."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

_ANSWER = 2.0  # seconds for a command of the system


def chip() -> str:
    """Name the processor as the system does."""
    if sys.platform == "darwin":
        name = output_of("sysctl", "-n", "machdep.cpu.brand_string")
    else:
        try:
            lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def system() -> str:
    """Name the operating system and its version."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}"


def is_translated() -> bool:
    """Whether this Python is one for Intel processors that Rosetta runs on Apple silicon."""
    return sys.platform == "darwin" and output_of("sysctl", "-n", "sysctl.proc_translated") == "1"


def physical_memory() -> int:
    """Return the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int | None:
    """Return the bytes of memory that a program can have now without the system paging out; None if it is not known."""
    if sys.platform == "darwin":
        return _of_vm_stat(output_of("vm_stat"))
    try:
        return _of_meminfo(Path("/proc/meminfo").read_text())
    except OSError:
        return None


def _of_meminfo(text: str) -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _of_vm_stat(text: str) -> int | None:
    # Inactive pages are those of files, or of programs that have not used them for long.
    page = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages (\w+):\s*(\d+)\.$", text, re.MULTILINE))
    if not page or "free" not in pages:
        return None
    return int(page[1]) * sum(int(pages.get(kind, 0)) for kind in ("free", "inactive", "speculative", "purgeable"))


def output_of(*command: str) -> str:
    """Return what a command of the system prints, "" if it fails or takes long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
