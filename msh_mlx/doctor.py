"""What `msh-mlx doctor` looks at: everything that may keep a conversation from working, each with what to do about it.

Modules that may be missing or broken are imported by the checks that need them, so that one of them ends no other.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, TimeoutError
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from .errors import InputError, MshError
from .library.catalogue import Entry, LocalFile, load_catalogue, read_catalogue
from .library.files import find_demo
from .system import machine
from .system.log import log_folder
from .system.places import asset, temporary_folder, user_file
from .system.words import human_size, listed

if TYPE_CHECKING:
    from .sound.devices import Device
    from .sound.echo import EchoMeasure
    from .sound.ends import Level, Loudspeaker

Status = Literal["ok", "warning", "problem", "skipped"]

TOTAL = 9.0  # seconds for all checks together
LISTENING = 2.0  # seconds
ECHO = 12.0  # seconds for the echo, beyond `TOTAL`
_LIMIT = 5.0  # seconds for a check
_SOUND = 3.0  # seconds for one of the sound system that does not listen
_MB, _GB = 10**6, 10**9
_PYTHONS = ((3, 10), (3, 14))  # the oldest and the newest that are supported
_MACOS = 14
_GLIBC = (2, 35)  # MLX is built for it
# What a line of keys needs, and what is shown of a conversation without hints and help.
_COLUMNS, _LINES = 68, 10
_FULL = 100 * _MB  # below it, nothing can be written that is worth it
_RECORDING = _GB  # about two hours of a recorded conversation
_QUIET, _LOUDEST = -60.0, 0.99  # peaks: in dBFS, of a microphone that hardly hears, and of one that is clipped
_ENOUGH, _INAUDIBLE = 15.0, -50.0  # of an echo: decibels taken away, and dBFS that do not matter
_RESTART = "Restart the sound system or the computer."
_AGAIN = "Install the program again, as its README says."


@dataclass(frozen=True)
class Finding:
    """What a check came to: "problem" if it would stop a conversation, what was `found`, and what to do, "" for nothing.

    `figures` is what was measured, under its names; None where nothing was.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    figures: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Check:
    """Something to look at, in `limit` seconds at most.

    `late` is what to do if it takes longer, `doing` what a person is told meanwhile.
    """

    name: str
    run: Callable[[], Finding]
    limit: float = _LIMIT
    late: str = "Run it again when the computer is less busy."
    doing: str = ""


def all_checks(
    input_device: str | None = None, output_device: str | None = None, *, listen: bool = True, echo: bool = False
) -> list[Check]:
    """Return all checks, in the order in which they are to be made.

    `input_device` and `output_device` are as for `devices.choose_device`; `listen` opens them, too; `echo` plays a sound.
    """
    devices: list[Device] = []
    doing = f"Listening for {LISTENING:.0f} s: say something" if listen else ""

    def hear() -> Finding:
        return check_microphone(devices, input_device, listen=listen)

    checks = [
        Check("system", check_system),
        Check("python", check_python),
        Check("mlx", check_mlx),
        Check("codec", check_codec),
        Check("demo model", check_demo),
        Check("models", check_models),
        Check("disk", check_disk),
        Check("memory", check_memory),
        Check("terminal", lambda: check_terminal(Console(), keys=_is_terminal(sys.stdin))),
        Check("files", check_files),
        Check("sound", lambda: check_sound(devices), _SOUND, _RESTART),
        Check("speaker", lambda: check_speaker(devices, output_device, play=listen), _SOUND, _RESTART),
        Check("microphone", hear, LISTENING + 3, _RESTART, doing),
    ]
    if echo:
        doing = "Playing noise like speech for 3 s: keep quiet"
        checks.append(Check("echo", lambda: check_echo(devices, input_device, output_device), ECHO, _RESTART, doing))
    return checks


def examine(check: Check, seconds: float) -> Finding:
    """Make a check on a thread, so that a signal or the time ends the waiting whatever it does.

    Returns
    -------
    finding
        A "problem" if the check fails itself, or takes longer than its limit or `seconds`.
    """
    limit = min(check.limit, seconds)
    if limit <= 0:
        return Finding(
            check.name, "skipped", "there was no time left for it", "Mend what took so long, then run it again."
        )
    future: Future[Finding] = Future()
    Thread(target=lambda: future.set_result(_made(check)), name=check.name, daemon=True).start()
    try:
        return future.result(limit)
    except TimeoutError:
        return Finding(check.name, "problem", f"no answer for {limit:.0f} s", check.late)


def _made(check: Check) -> Finding:
    try:
        return check.run()
    except MshError as error:
        return Finding(check.name, "problem", error.what, _sentence(error.advice) or _AGAIN)
    except ModuleNotFoundError as error:
        return Finding(check.name, "problem", f"the module {error.name} is missing", _AGAIN)
    except BaseException as error:
        return Finding(check.name, "problem", f"{type(error).__name__}: {error}", _AGAIN)


def death_of(code: str, seconds: float) -> str:
    """Try code in another process, since native code may end this one; return the signal that ended it, "" if none did.

    Raises
    ------
    subprocess.TimeoutExpired
        It took longer than `seconds`.
    """
    command = [sys.executable, "-I", "-c", code]
    null = subprocess.DEVNULL
    done = subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=seconds)
    return signal.Signals(-done.returncode).name if done.returncode < 0 else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


# ---- the machine ---------------------------------------------------------------------------------------------------------


def check_system() -> Finding:
    """Look at processor, memory and operating system."""
    return judge_system(
        sys.platform,
        platform.machine(),
        f"{machine.chip()}, {human_size(machine.physical_memory())}, {machine.system()}",
        macos=platform.mac_ver()[0],
        translated=machine.is_translated(),
    )


def judge_system(kind: str, processor: str, found: str, *, macos: str = "", translated: bool = False) -> Finding:
    """Judge `sys.platform` and `platform.machine()`, the version of macOS, and whether Rosetta runs this Python."""
    name = "system"
    if kind == "linux":
        advice = "Try the demo model; for the published sizes in real time, use a Mac with Apple silicon."
        return Finding(name, "warning", f"{found}: computes on the processor", advice)
    if kind != "darwin":
        return Finding(name, "problem", f"{found} is not supported", "Use a Mac with Apple silicon, or Linux.")
    if translated:
        advice = "Install a Python for Apple silicon (arm64), then set up again with it."
        return Finding(name, "problem", f"{found}, but this Python is one for Intel", advice)
    if processor != "arm64":
        return Finding(name, "problem", f"{found}: no Apple silicon, which MLX needs", "Use a Mac with Apple silicon.")
    if macos.split(".")[0].isdecimal() and int(macos.split(".")[0]) < _MACOS:
        advice = f"Update to macOS {_MACOS} or newer in System Settings > General > Software Update."
        return Finding(name, "problem", f"{found} is too old for MLX", advice)
    return Finding(name, "ok", found)


def check_python() -> Finding:
    """Look at the interpreter and the C library."""
    return judge_python(
        sys.version_info[:2],
        platform.python_version(),
        platform.libc_ver() if sys.platform == "linux" else None,
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    )


def judge_python(
    version: tuple[int, ...], full: str, libc: tuple[str, str] | None = None, *, free_threaded: bool = False
) -> Finding:
    """Judge a Python, by its version, and on Linux by the C library's name and version."""
    name = "python"
    found = f"{full}, {' '.join(libc)}" if libc and libc[0] else full
    oldest, newest = (f"{major}.{minor}" for major, minor in _PYTHONS)
    advice = f"Install Python {oldest} to {newest}, then set up again with it."
    if free_threaded:
        return Finding(name, "problem", f"{found}, free-threaded, which is not supported", advice)
    if version < _PYTHONS[0]:
        return Finding(name, "problem", f"{found} is too old", advice)
    if libc and libc[0] != "glibc":
        return Finding(
            name, "warning", f"{found}: the C library is not glibc", "Use a system with glibc, such as Debian."
        )
    if libc and tuple(int(part) for part in libc[1].split(".")[:2] if part.isdecimal()) < _GLIBC:
        advice = f"MLX needs glibc {'.'.join(map(str, _GLIBC))}: use a newer system, such as Debian 12 or Ubuntu 22.04."
        return Finding(name, "problem", f"{found} is too old", advice)
    if version > _PYTHONS[1]:
        return Finding(name, "warning", f"{found} is newer than what is tested", advice)
    return Finding(name, "ok", found)


def check_memory() -> Finding:
    """Compare the memory that is free now with what the smallest model of the catalogue needs."""
    return judge_memory(machine.available_memory(), machine.physical_memory(), _published())


def judge_memory(available: int | None, whole: int, entries: Mapping[str, Entry]) -> Finding:
    """Judge bytes of memory, those free now and all, by what a conversation with the smallest model takes."""
    name = "memory"
    found = f"{human_size(whole)}, {'?' if available is None else human_size(available)} free"
    least, model = min(((entry.memory, entry.name) for entry in entries.values() if entry.memory), default=(0, ""))
    if whole < least:
        advice = f"The smallest published model, {model}, takes {human_size(least)} while talking; try the demo model."
        return Finding(name, "warning", f"{found}: too little for the published models", advice)
    if available is not None and available < least:
        advice = f"Close other programs: {model} takes {human_size(least)} while talking."
        return Finding(name, "warning", f"{found}: too little just now", advice)
    return Finding(name, "ok", found)


def _published() -> dict[str, Entry]:
    return read_catalogue(asset("weights.toml", "The catalogue of models"))


# ---- what computes -------------------------------------------------------------------------------------------------------


def check_mlx() -> Finding:
    """Compute a small product with MLX on its default device, and see whether it could compile for the processor."""
    name = "mlx"
    if death := death_of("import mlx.core as mx; mx.eval(mx.zeros(1) + 1)", _LIMIT - 1):
        advice = "Run it on the computer itself, not in a virtual machine, and update the system."
        return Finding(name, "problem", f"it dies ({death})", advice)
    try:
        import mlx.core as mx
        import numpy as np
    except ImportError as error:
        return Finding(name, "problem", f"cannot be imported: {error}", _AGAIN)
    found = f"{getattr(mx, '__version__', '?')} on the {'processor' if mx.default_device() == mx.cpu else 'GPU'}"
    # Whole numbers as small as these are exact in any order and precision.
    a, b = np.random.default_rng(0).integers(-8, 9, (2, 64, 64)).astype(np.float32)
    if not np.array_equal(np.array(mx.array(a) @ mx.array(b)), a @ b):
        return Finding(name, "problem", f"{found}: a product is wrong", "Update the system, then install MLX again.")
    if sys.platform == "darwin" and not mx.metal.is_available():
        advice = "Run it on the Mac itself, not in a virtual machine; else update macOS."
        return Finding(name, "problem", f"{found}: Metal does not work", advice)
    from .model.step import check_compiling

    check_compiling()
    if mx.default_device() != mx.cpu:
        return Finding(name, "ok", f"{found} (Metal)" if mx.metal.is_available() else found)
    trouble = compiler_trouble()
    if trouble is None:
        return Finding(name, "ok", f"{found}, compiles with g++")
    advice = "Install the compiler (on Debian and Ubuntu: apt-get install g++)."
    if not trouble:
        return Finding(name, "warning", f"{found}: slower without a C++ compiler (g++)", advice)
    return Finding(name, "problem", f"{found}: the C++ compiler does not work: {trouble}", advice)


def compiler_trouble() -> str | None:
    """Say what is wrong with g++, which MLX calls when it compiles for the processor; "" if there is none, None if nothing."""
    if not shutil.which("g++"):
        return ""
    code = '#include <cmath>\n#include <cstdint>\nextern "C" float f(float x) { return std::exp(x); }\n'
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        command = ["g++", "-std=c++17", "-fPIC", "-shared", "-x", "c++", "-", "-o", str(Path(folder, "try.so"))]
        try:
            done = subprocess.run(
                command, input=code, capture_output=True, text=True, errors="replace", timeout=_LIMIT - 1
            )
        except (OSError, subprocess.SubprocessError) as error:
            return getattr(error, "strerror", None) or "it takes too long"
    lines = done.stderr.strip().splitlines()
    return (lines[0] if lines else f"exit code {done.returncode}") if done.returncode else None


def check_codec() -> Finding:
    """Encode and decode a frame with the extension `mimi` and the demo model's codec."""
    name = "codec"
    try:
        import mimi
        import numpy as np

        from .conversation.codec import load_mimi
    except ImportError as error:
        return Finding(name, "problem", f"the extension mimi cannot be imported: {error}", _AGAIN)
    kernels = mimi.kernels()
    found = f"mimi {importlib.metadata.version('msh-mimi')}, {kernels} kernels"
    codec = load_mimi(find_demo().mimi)
    frame = (0.3 * np.sin(np.arange(codec.frame_size) * 0.05)).astype(np.float32)
    begin = monotonic()
    codes = codec.encode(frame)
    reply = codec.decode(codes)
    seconds = monotonic() - begin
    if codes.shape != (codec.num_codebooks, 1) or reply.shape != frame.shape or not np.isfinite(reply).all():
        return Finding(name, "problem", f"{found}: a frame comes back wrong", _AGAIN)
    found += f", a frame of the demo in {1000 * seconds:.1f} ms"
    if kernels == "portable":
        advice = "The published codec may be too slow: use a processor with AVX2 and FMA, or a Mac with Apple silicon."
        return Finding(name, "warning", found, advice)
    return Finding(name, "ok", found)


# ---- files ---------------------------------------------------------------------------------------------------------------


def check_demo() -> Finding:
    """Look whether the files of the demo model are there, whole, and fit each other."""
    from .conversation.text import load_tokenizer
    from .model.config import LmConfig
    from .weights.safetensors import read_header

    name = "demo model"
    try:
        files = find_demo()
        for path in (files.model, files.mimi):
            read_header(path)
        config = LmConfig.of(files.config)
        words = load_tokenizer(files.tokenizer).GetPieceSize()
    except MshError as error:
        return Finding(name, "problem", error.clause, _AGAIN)
    if words != config.text_card:
        found = f"the tokenizer has {words} pieces in place of {config.text_card}"
        return Finding(name, "problem", found, _AGAIN)
    return Finding(name, "ok", f"{len(files.all)} files, {human_size(sum(path.stat().st_size for path in files.all))}")


def check_models() -> Finding:
    """Look at the catalogue, the user's own entries included, and at the models of it that are on disk."""
    from .library import cache
    from .library.suited import load_library

    name = "models"
    try:
        entries = load_library()
    except InputError as error:
        advice = f"Correct it, or move {user_file()} away."
        return Finding(name, "problem", error.clause, advice)
    there = [entry for entry in entries.values() if cache.is_on_disk(entry)]
    if not there:
        found = f"none of the {len(entries)} in the catalogue on disk"
        advice = "'msh-mlx models' shows which suit this machine; without one there is the demo model."
        return Finding(name, "warning", found, advice)
    from .conversation.text import load_tokenizer
    from .weights.safetensors import read_header

    checked = True
    for entry in there:
        for role, path in cache.paths(entry).items():
            assert path
            try:
                if role in ("lm", "mimi"):
                    read_header(path)
                elif role == "tokenizer":
                    load_tokenizer(path)
            except InputError as error:
                advice = f"'msh-mlx models verify --repair {entry.name}' fetches it again."
                return Finding(name, "problem", f"{entry.name}: {error.what}", advice)
            checked = checked and cache.is_verified(path)
    found = f"{listed([entry.name for entry in there])} on disk, " + ("verified" if checked else "not verified yet")
    return Finding(name, "ok", found, "" if checked else "'msh-mlx models verify' reads them whole.")


def check_files() -> Finding:
    """Look whether logs can be written, and whether the user's own weights can be read."""
    name = "files"
    folder = log_folder()
    if folder is None:
        advice = f"Set HOME to a folder; until then logs go to {temporary_folder()}."
        return Finding(name, "warning", "there is no home folder to keep logs in", advice)
    if not is_writable(folder):
        advice = f"Make the folder {folder} writable; until then logs go to {temporary_folder()}."
        return Finding(name, "warning", f"logs cannot be written to {folder}", advice)
    try:
        entries = load_catalogue().values()
    except InputError:  # which `check_models` tells
        entries = _published().values()
    local = [(entry, file.path) for entry in entries for file in entry.files.values() if isinstance(file, LocalFile)]
    for entry, path in local:
        if not (path.is_file() and os.access(path, os.R_OK)):
            what = "cannot be read" if path.exists() else "is not there"
            advice = f"Put the file there, or correct {entry.name} in {entry.source}."
            return Finding(name, "warning", f"{path} of the model {entry.name} {what}", advice)
    return Finding(name, "ok", f"logs go to {folder}" + (f", {len(local)} files of your own" if local else ""))


def nearest(path: Path) -> Path:
    """Return what there is of a path: itself, else the folder that it would be made in."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 # a link that leads nowhere stays what it is
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself can."""
    place = nearest(folder)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


@dataclass(frozen=True)
class Folder:
    """A folder that is written to: what `path` it has, what for, and how many bytes are `free` there."""

    path: Path
    purpose: str
    free: int
    writable: bool = True


def check_disk() -> Finding:
    """Look at the free disk of the hub's cache and of the current folder."""
    from .library.cache import cache_folder, check_cache

    cache = cache_folder()
    try:
        check_cache()
    except InputError as error:
        return Finding("disk", "warning", error.what[0].lower() + error.what[1:], _sentence(error.advice))
    try:
        here = Path.cwd()
    except OSError:
        return Finding("disk", "problem", "the current folder is not there any more", "Go to another one with cd.")
    return judge_disk(
        Folder(cache, "models", shutil.disk_usage(nearest(cache)).free, is_writable(cache)),
        Folder(here, "recordings", shutil.disk_usage(here).free, is_writable(here)),
        _published(),
    )


def judge_disk(cache: Folder, here: Folder, entries: Mapping[str, Entry]) -> Finding:
    """Judge where models and recordings are written to; the former by the size of the smallest model."""
    name = "disk"
    # The same number to a tenth of a gigabyte: the same disk.
    free = [f"{human_size(place.free)} free for {place.purpose}" for place in (cache, here)]
    found = f"{human_size(here.free)} free" if human_size(cache.free) == human_size(here.free) else ", ".join(free)
    least, model = min(((entry.size, entry.name) for entry in entries.values() if entry.size), default=(0, ""))
    elsewhere = "set HF_HOME to a folder on another disk"
    for place in (cache, here):
        if place.free < _FULL:
            return Finding(
                name, "problem", f"{found}: the disk of {place.path} is full", "Delete what you do not need."
            )
    if not cache.writable:
        advice = f"Make {cache.path} writable, or set HF_HOME to a folder that is."
        return Finding(name, "warning", f"{found}, but nothing can be written to {cache.path}", advice)
    if cache.free < least:
        advice = f"{model} takes {human_size(least)}: delete what you do not need, or {elsewhere}."
        return Finding(name, "warning", f"{found}: too little for any published model", advice)
    if not here.writable:
        advice = "Go to another folder before you record or save a conversation."
        return Finding(name, "warning", f"{found}, but nothing can be written to {here.path}", advice)
    if here.free < _RECORDING:
        advice = "Delete what you do not need, or record to another disk."
        return Finding(name, "warning", f"{found}: little for recordings", advice)
    return Finding(name, "ok", found)


def check_terminal(console: Console, *, keys: bool) -> Finding:
    """Look at the terminal behind `console`; `keys` is whether there is a keyboard, too."""
    name = "terminal"
    if not console.is_terminal:
        return Finding(name, "skipped", "the output is no terminal; a conversation prints plain lines there")
    found = f"{console.width} by {console.height}, {console.encoding}"
    if console.is_dumb_terminal:
        advice = "Set TERM to what your terminal is, such as xterm-256color, to see the screen."
        return Finding(name, "warning", f"{found}: shows plain lines only", advice)
    found += f", {console.color_system} colours" if console.color_system and not console.no_color else ", no colours"
    if not keys:
        advice = "Start it without a pipe into it, for its keys to work; Ctrl-C ends it."
        return Finding(name, "warning", f"{found}, but no keyboard", advice)
    if console.width < _COLUMNS or console.height < _LINES:
        advice = f"Make the window {_COLUMNS} by {_LINES} or larger, to see all of a conversation's screen."
        return Finding(name, "warning", f"{found}: small", advice)
    if not console.encoding.lower().startswith("utf"):
        advice = "Set LANG to a locale with UTF-8, such as C.UTF-8, for words that have more than English letters."
        return Finding(name, "warning", f"{found}: no UTF-8", advice)
    return Finding(name, "ok", found)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


# ---- sound ---------------------------------------------------------------------------------------------------------------

_FIRST = 2.0  # seconds within which a device has to begin
_CONNECT = "Connect one; with recordings (--input FILE) it works without."
_ON_LINUX = " If there is one, see that PulseAudio or PipeWire runs for this user."


def check_sound(devices: list[Device]) -> Finding:
    """Look whether PortAudio is there, and add the devices that it knows to `devices`."""
    from .sound.portaudio import find_devices

    name = "sound"
    try:
        death = death_of("import sounddevice; sounddevice.query_devices()", _SOUND - 0.5)
    except subprocess.TimeoutExpired:
        return Finding(name, "problem", "the sound system does not answer", _RESTART)
    if death:
        return Finding(
            name, "problem", f"the sound system dies ({death})", "Mend its configuration, such as ~/.asoundrc."
        )
    try:
        devices += find_devices()
    except MshError as error:
        return Finding(name, "problem", error.what, _sentence(error.advice) or _RESTART)
    import sounddevice

    version = sounddevice.get_portaudio_version()[1].partition(",")[0].removesuffix("-devel")
    if not devices:
        return Finding(name, "problem", f"{version}, no sound devices", _connect())
    systems = ", ".join(dict.fromkeys(device.host_api for device in devices))
    return Finding(name, "ok", f"{version}, {systems}: {len(devices)} device{'s' * (len(devices) != 1)}")


def _connect() -> str:
    return _CONNECT + (_ON_LINUX if sys.platform == "linux" else "")


def _described(device: Device, kind: Literal["input", "output"]) -> str:
    channels = device.channels(kind)
    count = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    return f"{device.name}, {device.rate:.0f} Hz {count}"


def check_speaker(devices: list[Device], wanted: str | None = None, *, play: bool = True) -> Finding:
    """Open the loudspeaker, if `play`, and see whether it asks for sound; it gets silence."""
    name = "speaker"
    if not devices:
        return Finding(name, "skipped", "not looked for")
    from .sound.devices import choose_device
    from .sound.ends import Loudspeaker

    if not any(device.output_channels for device in devices):
        return Finding(name, "problem", "no loudspeaker", _connect())
    device = choose_device(devices, wanted, "output")
    found = _described(device, "output")
    if not play:
        return Finding(name, "ok", f"{found} (not opened)")
    loudspeaker = Loudspeaker()
    loudspeaker.open(device)
    try:
        return judge_speaker(loudspeaker.describe(), running=_calls(loudspeaker))
    finally:
        loudspeaker.close()


def judge_speaker(found: str, *, running: bool) -> Finding:
    """Judge a loudspeaker by whether it asked for sound."""
    if running:
        return Finding("speaker", "ok", found)
    advice = "Choose another one with --output-device, or restart the sound system."
    return Finding("speaker", "problem", f"{found}: plays nothing", advice)


def _calls(end: Loudspeaker) -> bool:
    """Wait for a device to call back; return whether it did."""
    deadline = monotonic() + _FIRST
    while not end.stats()["callbacks"]:
        if monotonic() > deadline:
            return False
        sleep(0.02)
    return True


def check_microphone(devices: list[Device], wanted: str | None = None, *, listen: bool = True) -> Finding:
    """Open the microphone, if `listen`, and see what it hears."""
    name = "microphone"
    if not devices:
        return Finding(name, "skipped", "not looked for")
    from .format import FRAME, RATE
    from .sound.devices import choose_device
    from .sound.ends import Microphone
    from .sound.headset import is_bluetooth_headset
    from .system.terminal import terminal_name

    if not any(device.input_channels for device in devices):
        return Finding(name, "problem", "no microphone", _connect())
    device = choose_device(devices, wanted, "input")
    found = _described(device, "input")
    outputs = [other.name for other in devices if other.output_channels]
    headset = is_bluetooth_headset(device.name, device.rate, outputs)
    terminal = terminal_name(os.environ) if sys.platform == "darwin" else None
    if not listen:
        return _headset(f"{found} (not listened to)") if headset else Finding(name, "ok", f"{found} (not listened to)")
    microphone = Microphone()
    microphone.open(device)
    try:
        found = microphone.describe()
        heard = 0
        for _ in range(round(LISTENING / FRAME)):
            if microphone.read(round(FRAME * RATE), _FIRST) is None:
                break
            heard += 1
        level = microphone.level() if heard else None
    finally:
        microphone.close()
    return judge_microphone(found, level, headset=headset, terminal=terminal)


def judge_microphone(found: str, level: Level | None, *, headset: bool = False, terminal: str | None = None) -> Finding:
    """Judge a microphone.

    Parameters
    ----------
    found
        What it is.
    level
        What it heard; None if it gave no sound at all.
    headset
        Whether it is a Bluetooth headset's.
    terminal
        The application that macOS has to allow it to; None on other systems.
    """
    name = "microphone"
    if level is None:
        advice = "Choose another one with --input-device, or restart the sound system."
        return Finding(name, "problem", f"{found}: gives no sound", advice)
    if level.peak == 0:
        # Some give zeros in a quiet room, too; so do those that are muted or not allowed.
        advice = (
            "Run it again and speak; if it stays so, turn the microphone on in the system's sound settings, "
            "or choose another one with --input-device."
        )
        if terminal:
            advice = (
                "Run it again and speak; if it stays so, the microphone is muted, or you have to allow "
                f"{terminal} in System Settings > Privacy & Security > Microphone, then quit and reopen it."
            )
        return Finding(name, "warning", f"{found}: hears nothing, not even noise", advice)
    peak, rms = (20 * math.log10(max(value, 1e-9)) for value in (level.peak, level.rms))
    found = f"{found}: hears {rms:.0f} dBFS, peak {peak:.0f}"
    if headset:
        return _headset(found)
    if peak < _QUIET:
        advice = "If you spoke while it listened, turn the input level up in the system's sound settings."
        return Finding(name, "ok", f"{found}, a quiet room", advice)
    if level.peak > _LOUDEST:
        advice = "Turn the input level down in the system's sound settings."
        return Finding(name, "warning", f"{found}, too loud", advice)
    return Finding(name, "ok", found)


def _headset(found: str) -> Finding:
    advice = "A Bluetooth headset sounds like a telephone while its microphone is in use: choose the built-in one."
    return Finding("microphone", "warning", found, advice)


def check_echo(devices: list[Device], input_device: str | None = None, output_device: str | None = None) -> Finding:
    """Play noise like speech, and see how much of it the microphone hears and how much of that is taken away."""
    if not devices:
        return Finding("echo", "skipped", "not looked for")
    from .sound.devices import choose_device
    from .sound.echo import measure_echo
    from .sound.ends import Loudspeaker, Microphone

    loudspeaker, microphone = Loudspeaker(), Microphone()
    try:
        loudspeaker.open(choose_device(devices, output_device, "output"))
        microphone.open(choose_device(devices, input_device, "input"))
        return judge_echo(measure_echo(microphone, loudspeaker))
    finally:
        microphone.close()
        loudspeaker.close()


def judge_echo(measure: EchoMeasure) -> Finding:
    """Judge the echo of a loudspeaker."""
    name, figures = "echo", asdict(measure)
    if measure.level is None or measure.removed is None:
        return Finding(name, "ok", "none: the microphone does not hear the loudspeaker", figures=figures)
    found = f"{round(measure.level)} dB against what is played, {round(measure.removed)} dB taken away after 1 s"
    if measure.delay is not None:
        found += f", {1000 * measure.delay:.0f} ms late"
    if measure.removed >= _ENOUGH or measure.left <= _INAUDIBLE:
        return Finding(name, "ok", found, figures=figures)
    return Finding(name, "warning", found, "Use headphones, or turn the loudspeaker down.", figures)
