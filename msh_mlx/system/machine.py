"""The machine: its processor, memory and operating system. Works without MLX."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ANSWER = 2.0  # seconds that a command of the system may take
_BESIDE = 128 << 20  # bytes that threads, their stacks and their room take besides weights, at most
# Files of a group of processes, in the second version and in the first: its limit of memory, what it has taken; and how
# `memory.stat` calls what is kept of files.
_NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


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
    """Return the machine's memory in bytes, or what a group of processes, such as a container, may take of it."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(most for most, _ in _group_limits())])


def available_memory() -> int:
    """Return how many bytes of memory a program can take now before the system has to page out, or forbids it."""
    import psutil

    left = [most - used for most, used in (*_group_limits(), *_process_limits())]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def memory_to_take() -> int:
    """Return how many bytes of weights can be loaded so that the program is not ended for it, with room to run them.

    Linux ends a program that takes more than is available. Other systems page out or compress what others hold.
    """
    memory = available_memory() if sys.platform == "linux" else physical_memory()
    return memory - min(memory // 8, _BESIDE)


def _process_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit of this process's addresses (`ulimit -v`) and how many it has, in bytes."""
    if sys.platform != "linux":
        return
    import resource

    import psutil

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        yield most, psutil.Process().memory_info().vms


def _group_limits(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """Yield the limit of each group of processes that this one is in, and what the group has taken, in bytes.

    What the system keeps of files that were read is not counted: it is given up where memory is short.
    """
    if sys.platform != "linux":
        return
    for line in _lines(root / "proc/self/cgroup"):
        controllers, path = line.split(":", 2)[1:]
        if controllers and "memory" not in controllers.split(","):
            continue
        # Of version 2 there is one hierarchy, without a name. A container may see its own group as the root.
        limit, usage, kept = _NAMES[bool(controllers)]
        folder = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        for group in [folder.joinpath(*Path(path).parts[1:n]) for n in range(1, 1 + len(Path(path).parts))]:
            most, used = ((_lines(group / name) or [""])[0] for name in (limit, usage))
            files = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith(f"{kept} ")]
            if most.isdecimal() and used.isdecimal():
                yield int(most), int(used) - sum(files)


def _lines(path: Path) -> list[str]:
    """Return the lines of a small file; none if it is not there."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def output_of(*command: str) -> str:
    """Return the output of a command of the system; "" if it fails or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
