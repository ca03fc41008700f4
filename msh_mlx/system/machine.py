"""The machine: its processor, memory and operating system. Works without MLX."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

_ANSWER = 2.0  # seconds that a command of the system may take


def chip() -> str:
    """Return the processor's name, as the system has it."""
    if sys.platform == "darwin":
        name = output_of("sysctl", "-n", "machdep.cpu.brand_string")
    elif sys.platform == "win32":
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
                name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            name = ""
    else:
        try:
            lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def system() -> str:
    """Return the name and version of the operating system."""
    if macos := platform.mac_ver()[0]:
        return f"macOS {macos}"
    return f"{platform.system()} {platform.release()}"


def is_translated() -> bool:
    """Whether this Python is made for Intel processors, and Rosetta runs it on Apple silicon."""
    return sys.platform == "darwin" and output_of("sysctl", "-n", "sysctl.proc_translated") == "1"


def physical_memory() -> int:
    """Return the machine's memory in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def available_memory() -> int:
    """Return how many bytes of memory a program can take now before the system has to page out."""
    import psutil

    return int(psutil.virtual_memory().available)


def output_of(*command: str) -> str:
    """Return the output of a command of the system; "" if it fails or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
