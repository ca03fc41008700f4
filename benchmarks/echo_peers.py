"""Other echo cancellers, to compare with.

WebRTC's of Debian's `libwebrtc-audio-processing` (0.3, before AEC3) and SpeexDSP's are called by `echo_peers.cc`, which g++
builds into `.cache` when it is needed; the crates `sonora` and `aec3`, AEC3 both, by `echo_crates`, which cargo builds there.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from msh_mlx.format import Pcm

BLOCK = 240  # samples, 10 ms at 24 kHz
PACKAGES = {"webrtc": "webrtc-audio-processing", "speex": "speexdsp"}  # as pkg-config calls them
CRATES = ("sonora", "aec3")

_SOURCE = Path(__file__).with_suffix(".cc")
_CRATES = Path(__file__).parent / "echo_crates"
_BUILT = Path(__file__).parent.parent / ".cache" / "echo_peers"


def peers() -> dict[str, Callable[[float], Callable[[Pcm, Pcm], Pcm]]]:
    """Return makers of the installed cancellers, by name. Missing ones are named on the standard error.

    A maker takes the delay of the echo in seconds, which some cancellers use; 0 if it is not known.
    """
    built = {name: path for name in PACKAGES if (path := _build_package(name))}
    if len(built) < len(PACKAGES):
        missing = " and ".join(name for name in PACKAGES if name not in built)
        wanted = "libwebrtc-audio-processing-dev libspeexdsp-dev pkg-config g++"
        print(f"Without {missing} to compare with: install Debian's {wanted}.", file=sys.stderr)
    return {name: _maker(path) for name, path in {**built, **{name: _build_crate(name) for name in CRATES}}.items()}


def _build_package(name: str) -> Path | None:
    if not shutil.which("pkg-config") or not shutil.which("g++"):
        return None
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", PACKAGES[name]], capture_output=True, text=True)
    if flags.returncode:
        return None
    built = _BUILT / f"{name}.so"
    if not built.exists() or built.stat().st_mtime < _SOURCE.stat().st_mtime:
        built.parent.mkdir(parents=True, exist_ok=True)
        options = ["-std=c++17", "-O3", "-shared", "-fPIC", f"-D{name.upper()}"]
        subprocess.run(["g++", *options, str(_SOURCE), "-o", str(built), *flags.stdout.split()], check=True)
    return built


def _build_crate(name: str) -> Path:
    target = _BUILT / name
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--features", name, "--target-dir", str(target)]
    subprocess.run(command, cwd=_CRATES, check=True)
    return next(path for suffix in ("so", "dylib") for path in (target / "release").glob(f"*echo_crates.{suffix}"))


def _maker(path: Path) -> Callable[[float], Peer]:
    library = ctypes.CDLL(str(path))
    library.peer_new.restype = ctypes.c_void_p
    library.peer_delete.argtypes = [ctypes.c_void_p]
    library.peer_process.argtypes = [ctypes.c_void_p, *[ctypes.c_void_p] * 3, ctypes.c_int, ctypes.c_int]
    return lambda delay: Peer(library, round(1000 * delay))


class Peer:
    """A new canceller. Call it with `heard` and `played`, both `[240 * n]` float32; it returns the same shape."""

    def __init__(self, library: ctypes.CDLL, delay: int = 0) -> None:
        self._library = library
        self._delay = delay
        self._peer = library.peer_new()
        weakref.finalize(self, library.peer_delete, self._peer)

    def __call__(self, heard: Pcm, played: Pcm) -> Pcm:
        heard, played = (np.ascontiguousarray(pcm, np.float32) for pcm in (heard, played))
        if heard.shape != played.shape or len(heard) % BLOCK:
            raise ValueError(f"two times the same multiple of {BLOCK} samples is expected.")
        clean = np.empty_like(heard)
        count = len(heard) // BLOCK
        self._library.peer_process(
            self._peer, heard.ctypes.data, played.ctypes.data, clean.ctypes.data, count, self._delay
        )
        return clean
