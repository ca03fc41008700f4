"""Judge the facts that the checks found. Nothing here touches the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..system.words import human_size, listed

if TYPE_CHECKING:
    from ..library.catalogue import Entry
    from ..sound.echo import EchoMeasure
    from ..sound.ends import Level

Status = Literal["ok", "warning", "problem", "skipped"]

_MB, _GB = 10**6, 10**9
_PYTHONS = ((3, 10), (3, 14))  # the oldest and the newest that are supported
_MACOS = 14  # MLX is built for it
_FULL = 100 * _MB  # with less, nothing useful can be written
_RECORDING = _GB  # about two hours of a recorded conversation
_QUIET = -60.0  # dBFS: the peak of a microphone that hardly hears
_LOUDEST = 0.99  # of full scale: the peak of one that is clipped
_ENOUGH, _INAUDIBLE = 15.0, -50.0  # of an echo: dB removed that are enough, and dBFS that nobody hears


@dataclass(frozen=True)
class Finding:
    """The result of a check. `examine` gives it the check's name.

    `status` is "problem" if a conversation cannot work so. `found` is what was found, and `advice` what to do, or "". `figures`
    are measured values by their names; None: nothing was measured.
    """

    name: str = field(default="", kw_only=True)
    status: Status
    found: str
    advice: str = ""
    figures: Mapping[str, float | None] | None = None


def judge_system(kind: str, processor: str, found: str, *, macos: str = "", translated: bool = False) -> Finding:
    """Judge the system by `sys.platform`, `platform.machine()` and the version of macOS; Rosetta may run this Python."""
    if kind not in ("darwin", "linux", "win32"):
        return Finding("problem", f"{found} is not supported", "Use Linux, macOS or Windows.")
    if translated:
        advice = "Install a Python for Apple silicon (arm64), then set up again with it."
        return Finding("problem", f"{found}, but this Python is one for Intel", advice)
    major = macos.split(".")[0]
    if kind == "darwin" and processor == "arm64" and major.isdecimal() and int(major) < _MACOS:
        advice = f"Update to macOS {_MACOS} or newer in System Settings > General > Software Update."
        return Finding("warning", f"{found} is too old for MLX, which uses the GPU", advice)
    return Finding("ok", found)


def judge_python(
    version: tuple[int, ...], full: str, libc: tuple[str, str] | None = None, *, free_threaded: bool = False
) -> Finding:
    """Judge Python by its version. `libc` is the name and the version of the C library on Linux."""
    found = f"{full}, {' '.join(libc)}" if libc and libc[0] else full
    oldest, newest = (f"{major}.{minor}" for major, minor in _PYTHONS)
    advice = f"Install Python {oldest} to {newest}, then set up again with it."
    if free_threaded:
        return Finding("problem", f"{found}, free-threaded, which is not supported", advice)
    if version < _PYTHONS[0]:
        return Finding("problem", f"{found} is too old", advice)
    if version > _PYTHONS[1]:
        return Finding("warning", f"{found} is newer than what is tested", advice)
    return Finding("ok", found)


def judge_memory(available: int, whole: int, entries: Mapping[str, Entry]) -> Finding:
    """Judge the memory that is free now, and all memory, in bytes, by the needs of the smallest model."""
    found = f"{human_size(whole)}, {human_size(available)} free"
    least, model = min(((entry.memory, entry.name) for entry in entries.values() if entry.memory), default=(0, ""))
    if whole < least:
        advice = f"The smallest published model, {model}, takes {human_size(least)} while talking; try the demo model."
        return Finding("warning", f"{found}: too little for the published models", advice)
    if available < least:
        advice = f"Close other programs: {model} takes {human_size(least)} while talking."
        return Finding("warning", f"{found}: too little just now", advice)
    return Finding("ok", found)


def judge_engine(
    engine: str, bandwidth: float, reading: Mapping[str, float], limits: tuple[float, float, float], frame: float
) -> Finding:
    """Judge how fast the engine called `engine` reads memory, in bytes a second, by the needs of models for conversations.

    `reading` are the seconds in which the bytes of a step of each are read. A model is fast enough if they are within the first
    of `limits`; up to the second it may be, and is taken on trial; up to the third it is, too, with a shorter window. A frame
    lasts `frame` seconds.
    """
    found = f"{engine}, reads memory with {human_size(bandwidth)}/s"
    if not reading:
        return Finding("ok", found)
    if names := [f"{name} ({frame / step:.1f} times)" for name, step in reading.items() if step <= limits[0]]:
        return Finding("ok", f"{found}: a frame lasts long enough to read a step of {listed(names)}")
    name, step = min(reading.items(), key=lambda item: item[1])
    if step <= limits[1]:
        return Finding("ok", f"{found}: perhaps enough for {name}, which is taken on trial")
    if step <= limits[2]:
        return Finding("ok", f"{found}: perhaps enough for {name} with a shorter window (--context), on trial")
    took = f"{1000 * step:.0f} ms of the {1000 * frame:.0f} that a frame lasts"
    advice = f"{name}, the lightest, reads for {took}; try the demo model."
    return Finding("warning", f"{found}: too slow for the published models", advice)


@dataclass(frozen=True)
class Folder:
    """A folder to write to: its path, its purpose, its free bytes, and whether it can be written to."""

    path: Path
    purpose: str
    free: int
    writable: bool = True


def judge_disk(cache: Folder, here: Folder, entries: Mapping[str, Entry]) -> Finding:
    """Judge the folders of models and of recordings. The first must have room for the smallest model."""
    # If both have the same room, to a tenth of a gigabyte, take them for the same disk.
    free = [f"{human_size(place.free)} free for {place.purpose}" for place in (cache, here)]
    found = f"{human_size(here.free)} free" if human_size(cache.free) == human_size(here.free) else ", ".join(free)
    least, model = min(((entry.size, entry.name) for entry in entries.values() if entry.size), default=(0, ""))
    elsewhere = "set HF_HOME to a folder on another disk"
    for place in (cache, here):
        if place.free < _FULL:
            return Finding("problem", f"{found}: the disk of {place.path} is full", "Delete what you do not need.")
    if not cache.writable:
        advice = f"Make {cache.path} writable, or set HF_HOME to a folder that is."
        return Finding("warning", f"{found}, but nothing can be written to {cache.path}", advice)
    if cache.free < least:
        advice = f"{model} takes {human_size(least)}: delete what you do not need, or {elsewhere}."
        return Finding("warning", f"{found}: too little for any published model", advice)
    if not here.writable:
        advice = "Go to another folder before you record or save a conversation."
        return Finding("warning", f"{found}, but nothing can be written to {here.path}", advice)
    if here.free < _RECORDING:
        advice = "Delete what you do not need, or record to another disk."
        return Finding("warning", f"{found}: little for recordings", advice)
    return Finding("ok", found)


def judge_speaker(found: str, *, running: bool) -> Finding:
    """Judge a loudspeaker; `running` says whether it asked for sound."""
    if running:
        return Finding("ok", found)
    advice = "Choose another one with --output-device, or restart the sound system."
    return Finding("problem", f"{found}: plays nothing", advice)


def judge_microphone(found: str, level: Level | None, *, headset: bool = False, terminal: str | None = None) -> Finding:
    """Judge a microphone by how loud it heard; None: it gave no sound at all.

    `headset` says whether it belongs to a Bluetooth headset. `terminal` is the application that needs macOS's permission to
    use it; None on other systems.
    """
    if level is None:
        advice = "Choose another one with --input-device, or restart the sound system."
        return Finding("problem", f"{found}: gives no sound", advice)
    if level.peak == 0:
        # Some microphones give zeros in a quiet room. So do muted ones, and those without permission.
        advice = (
            "Run it again and speak; if it stays so, turn the microphone on in the system's sound settings, "
            "or choose another one with --input-device."
        )
        if terminal:
            advice = (
                "Run it again and speak; if it stays so, the microphone is muted, or you have to allow "
                f"{terminal} in System Settings > Privacy & Security > Microphone, then quit and reopen it."
            )
        return Finding("warning", f"{found}: hears nothing, not even noise", advice)
    peak, rms = (20 * math.log10(max(value, 1e-9)) for value in (level.peak, level.rms))
    found = f"{found}: hears {rms:.0f} dBFS, peak {peak:.0f}"
    if headset:
        return judge_headset(found)
    if peak < _QUIET:
        advice = "If you spoke while it listened, turn the input level up in the system's sound settings."
        return Finding("ok", f"{found}, a quiet room", advice)
    if level.peak > _LOUDEST:
        advice = "Turn the input level down in the system's sound settings."
        return Finding("warning", f"{found}, too loud", advice)
    return Finding("ok", found)


def judge_echo(measure: EchoMeasure) -> Finding:
    """Judge the echo of a loudspeaker."""
    figures = asdict(measure)
    if measure.level is None or measure.removed is None:
        return Finding("ok", "none: the microphone does not hear the loudspeaker", figures=figures)
    found = f"{round(measure.level)} dB against what is played, {round(measure.removed)} dB removed after 1 s"
    if measure.delay is not None:
        found += f", {1000 * measure.delay:.0f} ms late"
    if measure.removed >= _ENOUGH or measure.left <= _INAUDIBLE:
        return Finding("ok", found, figures=figures)
    return Finding("warning", found, "Use headphones, or turn the loudspeaker down.", figures)


def judge_headset(found: str) -> Finding:
    advice = "A Bluetooth headset sounds like a telephone while its microphone is in use: choose the built-in one."
    return Finding("warning", found, advice)
