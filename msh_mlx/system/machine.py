"""What the machine is: its processor, its memory, its system. Works where MLX does not."""

from __future__ import annotations

import platform
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
    import psutil

    return int(psutil.virtual_memory().total)


def available_memory() -> int:
    """Return the bytes of memory that a program can have now without the system paging out."""
    import psutil

    return int(psutil.virtual_memory().available)


def output_of(*command: str) -> str:
    """Return what a command of the system prints, "" if it fails or takes long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
