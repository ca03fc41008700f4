"""The checks of the machine, of MLX and the codec, and of files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import InputError, MshError
from ..library.catalogue import Entry, LocalFile, find_entry, load_catalogue, of_use, read_catalogue, user_file
from ..library.files import DEMO_USES, find_demo
from ..system import machine
from ..system.places import asset, log_folder, temporary_folder
from ..system.words import human_size, listed
from .examine import AGAIN, LIMIT, Check, death_of, sentence
from .judgements import Finding, Folder, judge_disk, judge_engine, judge_memory, judge_python, judge_system
from .sound import LISTENING, RESTART, SOUND, check_echo, check_microphone, check_sound, check_speaker

if TYPE_CHECKING:
    from ..sound.devices import Device

TOTAL = 9.0  # seconds that all checks together may take
ECHO = 12.0  # seconds that the check of the echo may take, beyond `TOTAL`
# The columns that the line of keys needs, and the lines that a conversation's screen needs without hints and help.
_COLUMNS, _LINES = 68, 10


def all_checks(
    input_device: str | None = None,
    output_device: str | None = None,
    *,
    listen: bool = True,
    echo: bool = False,
    variant: str | None = None,
) -> list[Check]:
    """Return all checks, in the order to run them.

    `input_device` and `output_device` are as for `devices.choose_device`. `listen` opens them; `echo` plays a sound. `variant`
    names a model of the catalogue: then this machine is judged by its needs, not by those of the smallest conversation.
    """
    devices: list[Device] = []
    doing = f"Listening for {LISTENING:.0f} s: say something" if listen else ""

    def hear() -> Finding:
        return check_microphone(devices, input_device, listen=listen)

    checks = [
        Check("system", check_system),
        Check("python", check_python),
        Check("mlx", check_mlx),
        Check("engine", check_engine),
        Check("codec", check_codec),
        Check("demo model", check_demo),
        Check("models", check_models),
        *([Check("variant", lambda: check_variant(variant))] if variant else []),
        Check("disk", lambda: check_disk(variant)),
        Check("memory", lambda: check_memory(variant)),
        Check("terminal", lambda: check_terminal(Console(), keys=_is_terminal(sys.stdin))),
        Check("files", check_files),
        Check("sound", lambda: check_sound(devices), SOUND, RESTART),
        Check("speaker", lambda: check_speaker(devices, output_device, play=listen), SOUND, RESTART),
        Check("microphone", hear, LISTENING + 3, RESTART, doing),
    ]
    if echo:
        doing = "Playing noise like speech for 3 s: keep quiet"
        checks.append(Check("echo", lambda: check_echo(devices, input_device, output_device), ECHO, RESTART, doing))
    return checks


def check_system() -> Finding:
    """Check the processor, the memory and the operating system."""
    return judge_system(
        sys.platform,
        platform.machine(),
        f"{machine.chip()}, {human_size(machine.physical_memory())}, {machine.system()}",
        macos=platform.mac_ver()[0],
        translated=machine.is_translated(),
    )


def check_python() -> Finding:
    """Check the interpreter and the C library."""
    return judge_python(
        sys.version_info[:2],
        platform.python_version(),
        platform.libc_ver() if sys.platform == "linux" else None,
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    )


def check_memory(variant: str | None = None) -> Finding:
    """Compare the memory that is free now with the needs of a model: of `variant`, or of the smallest published one."""
    return judge_memory(machine.available_memory(), machine.physical_memory(), _wanted(variant))


def _wanted(variant: str | None) -> dict[str, Entry]:
    """Return the models of which one is wanted: `variant`, or any that is published and holds a conversation."""
    if variant:
        from ..library.suited import load_library

        return {variant: find_entry(load_library(), variant)}
    return of_use(_published(), "conversation")


def _published() -> dict[str, Entry]:
    return read_catalogue(asset("weights.toml", "The catalogue of models"))


def check_variant(name: str) -> Finding:
    """Check one model of the catalogue: whether its files are there and can be opened, and whether it suits this machine."""
    from ..library import cache
    from ..library.suited import judge, load_library, this_machine

    entry = find_entry(load_library(), name)
    verdict = judge(entry, this_machine())
    found = f"{name}, for {entry.use}: {verdict.words}"
    if cache.missing(entry):
        advice = f"'msh-mlx models get {name}' fetches it."
        return Finding("warning", f"{found}; not on disk", advice)
    try:
        _open(entry)
    except InputError as error:
        return Finding("problem", f"{found}; {error.what}", _fetched_again(name))
    if verdict.fits is None or verdict.step is None or verdict.suits:
        return Finding("ok", f"{found}; on disk")
    return Finding("warning", f"{found}; on disk", "'msh-mlx models' shows which suit this machine.")


def _open(entry: Entry) -> None:
    """Open the files of a model that is on disk. Raise InputError if one is wrong, or they do not fit each other."""
    from ..library import cache
    from ..weights.checkpoint import open_checkpoint

    for role, path in cache.paths(entry).items():
        assert path
        _glance(role, path)
    paths = cache.paths(entry)
    open_checkpoint(paths["lm"] or "", paths.get("config"))


def _glance(role: str, path: Path) -> None:
    """Read the beginning of a file of a model. Raise InputError if it is not what it should be."""
    from ..conversation.text import load_tokenizer
    from ..weights.safetensors import read_header

    if role in ("lm", "mimi"):
        read_header(path)
    elif role == "tokenizer":
        load_tokenizer(path)


def _fetched_again(name: str) -> str:
    return f"'msh-mlx models verify --repair {name}' fetches it again."


def check_mlx() -> Finding:
    """Compute a small product with MLX on its default device. On the processor, check the compiler, too."""
    if death := death_of("import mlx.core as mx; mx.eval(mx.zeros(1) + 1)", LIMIT - 1):
        advice = "Run it on the computer itself, not in a virtual machine, and update the system."
        return Finding("problem", f"it dies ({death})", advice)
    try:
        import mlx.core as mx
        import numpy as np
    except ModuleNotFoundError:
        if sys.platform == "darwin" and platform.machine() == "arm64":
            return Finding("problem", "is not installed", AGAIN)
        return Finding("ok", "is not installed; the native engine needs none")
    except ImportError as error:
        return Finding("problem", f"cannot be imported: {error}", AGAIN)
    found = f"{getattr(mx, '__version__', '?')} on the {'processor' if mx.default_device() == mx.cpu else 'GPU'}"
    # Products of such small whole numbers are exact, in any order and precision.
    a, b = np.random.default_rng(0).integers(-8, 9, (2, 64, 64)).astype(np.float32)
    if not np.array_equal(np.array(mx.array(a) @ mx.array(b)), a @ b):
        return Finding("problem", f"{found}: a product is wrong", "Update the system, then install MLX again.")
    if sys.platform == "darwin" and not mx.metal.is_available():
        advice = "Run it on the Mac itself, not in a virtual machine; else update macOS."
        return Finding("problem", f"{found}: Metal does not work", advice)
    from ..model.mlx.step import check_compiling

    check_compiling()
    if mx.default_device() != mx.cpu:
        return Finding("ok", f"{found} (Metal)" if mx.metal.is_available() else found)
    trouble = compiler_trouble()
    if trouble is None:
        return Finding("ok", f"{found}, compiles with g++")
    advice = "Install the compiler (on Debian and Ubuntu: apt-get install g++)."
    if not trouble:
        return Finding("warning", f"{found}: slower without a C++ compiler (g++)", advice)
    return Finding("problem", f"{found}: the C++ compiler does not work: {trouble}", advice)


def check_engine() -> Finding:
    """Measure how fast the engine that is taken by itself reads memory. Judge it by the models for conversations."""
    try:
        from msh_native import dots
    except ImportError as error:
        return Finding("problem", f"the extension msh_native cannot be imported: {error}", AGAIN)
    from ..format import FRAME_SECONDS
    from ..library.bandwidth import bandwidth
    from ..library.suited import SHORT_TRIAL_LIMIT, STEP_LIMIT, TRIAL_LIMIT, reading
    from ..model.engines import chosen

    engine, instructions = chosen("auto"), dots()[0]
    if engine == "native" and instructions == "portable":
        advice = "Use a processor with AVX2 and FMA, or one with NEON, as in a Mac with Apple silicon."
        return Finding("warning", "native, plain code: too slow for the published models", advice)
    name = "MLX" if engine == "mlx" else f"native, {instructions}"
    entries, reached = of_use(load_catalogue(), "conversation"), bandwidth(engine)
    limits = STEP_LIMIT, TRIAL_LIMIT, SHORT_TRIAL_LIMIT
    return judge_engine(name, reached, reading(entries, reached), limits, FRAME_SECONDS)


def compiler_trouble() -> str | None:
    """Return what is wrong with g++, which MLX calls to compile for the processor. "": g++ is missing; None: it works."""
    if not shutil.which("g++"):
        return ""
    code = '#include <cmath>\n#include <cstdint>\nextern "C" float f(float x) { return std::exp(x); }\n'
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        command = ["g++", "-std=c++17", "-fPIC", "-shared", "-x", "c++", "-", "-o", str(Path(folder, "try.so"))]
        try:
            done = subprocess.run(
                command, input=code, capture_output=True, text=True, errors="replace", timeout=LIMIT - 1
            )
        except (OSError, subprocess.SubprocessError) as error:
            return getattr(error, "strerror", None) or "it takes too long"
    lines = done.stderr.strip().splitlines()
    return (lines[0] if lines else f"exit code {done.returncode}") if done.returncode else None


def check_codec() -> Finding:
    """Encode and decode one frame with the package `mimi` and the demo model's codec."""
    try:
        import mimi
        import numpy as np

        from ..conversation.codec import load_mimi
    except ImportError as error:
        return Finding("problem", f"the extension mimi cannot be imported: {error}", AGAIN)
    kernels = mimi.kernels()
    found = f"mimi {importlib.metadata.version('msh-mimi')}, {kernels} kernels"
    codec = load_mimi(find_demo().mimi)
    frame = (0.3 * np.sin(np.arange(codec.frame_size) * 0.05)).astype(np.float32)
    begin = monotonic()
    codes = codec.encode(frame)
    reply = codec.decode(codes)
    seconds = monotonic() - begin
    if codes.shape != (codec.num_codebooks, 1) or reply.shape != frame.shape or not np.isfinite(reply).all():
        return Finding("problem", f"{found}: a frame comes back wrong", AGAIN)
    found += f", a frame of the demo in {1000 * seconds:.1f} ms"
    if kernels == "portable":
        advice = (
            "The published codec may be too slow: use a processor with AVX2, FMA and F16C, or a Mac with Apple silicon."
        )
        return Finding("warning", found, advice)
    return Finding("ok", found)


def check_demo() -> Finding:
    """Check that the files of the demo models are there, are complete, and fit each other."""
    from ..conversation.text import check_vocabulary, load_tokenizer
    from ..model.config import LmConfig
    from ..weights.safetensors import read_header

    paths: set[Path] = set()
    try:
        for use in DEMO_USES:
            files = find_demo(use)
            for path in (files.model, files.mimi):
                read_header(path)
            check_vocabulary(load_tokenizer(files.tokenizer), LmConfig.of(files.config).text_card)
            paths |= set(files.all)
    except MshError as error:
        return Finding("problem", error.clause, AGAIN)
    return Finding("ok", f"{len(paths)} files, {human_size(sum(path.stat().st_size for path in paths))}")


def check_models() -> Finding:
    """Check the catalogue, with the user's own entries, and its models that are on disk."""
    from ..library import cache
    from ..library.settings import SettingsError, check_settings
    from ..library.suited import load_library

    try:
        entries = load_library()
    except InputError as error:
        advice = f"Correct it, or move {user_file()} away."
        return Finding("problem", error.clause, advice)
    try:
        check_settings()
    except SettingsError as error:
        advice = "Correct it, or unset it: until then no model can be fetched."
        return Finding("warning", error.what, advice)
    there = [entry for entry in entries.values() if cache.is_on_disk(entry)]
    if not there:
        found = f"none of the {len(entries)} models in the catalogue is on disk"
        advice = "'msh-mlx models' shows which suit this machine; without one there is the demo model."
        return Finding("warning", found, advice)
    checked = True
    for entry in there:
        for role, path in cache.paths(entry).items():
            assert path
            try:
                _glance(role, path)
            except InputError as error:
                return Finding("problem", f"{entry.name}: {error.what}", _fetched_again(entry.name))
            checked = checked and cache.is_verified(path)
    found = f"{listed([entry.name for entry in there])} on disk, " + ("verified" if checked else "not verified yet")
    return Finding("ok", found, "" if checked else "'msh-mlx models verify' reads them whole.")


def check_files() -> Finding:
    """Check that logs can be written, and that the user's own weights can be read."""
    folder = log_folder()
    if folder is None:
        advice = f"Set HOME to a folder; until then logs go to {temporary_folder()}."
        return Finding("warning", "there is no home folder to keep logs in", advice)
    if not is_writable(folder):
        advice = f"Make the folder {folder} writable; until then logs go to {temporary_folder()}."
        return Finding("warning", f"logs cannot be written to {folder}", advice)
    try:
        entries = load_catalogue().values()
    except InputError:  # which `check_models` tells
        entries = _published().values()
    local = [(entry, file.path) for entry in entries for file in entry.files.values() if isinstance(file, LocalFile)]
    for entry, path in local:
        if not (path.is_file() and os.access(path, os.R_OK)):
            what = "cannot be read" if path.exists() else "is not there"
            advice = f"Put the file there, or correct {entry.name} in {entry.source}."
            return Finding("warning", f"{path} of the model {entry.name} {what}", advice)
    return Finding("ok", f"logs go to {folder}" + (f", {len(local)} files of your own" if local else ""))


def nearest(path: Path) -> Path:
    """Return the path if it exists, else the nearest folder above it that does."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 # `resolve` would follow a link that leads nowhere
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or whether the folder itself can be made."""
    place = nearest(folder)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def check_disk(variant: str | None = None) -> Finding:
    """Check the free space on the disks of the hub's cache, for `variant` or a published model, and of the current folder."""
    from ..library.cache import cache_folder, check_cache

    cache = cache_folder()
    try:
        check_cache()
    except InputError as error:
        return Finding("warning", error.what[0].lower() + error.what[1:], sentence(error.advice))
    try:
        here = Path.cwd()
    except OSError:
        return Finding("problem", "the current folder is not there any more", "Go to another one with cd.")
    return judge_disk(
        Folder(cache, "models", shutil.disk_usage(nearest(cache)).free, is_writable(cache)),
        Folder(here, "recordings", shutil.disk_usage(here).free, is_writable(here)),
        _wanted(variant),
    )


def check_terminal(console: Console, *, keys: bool) -> Finding:
    """Check the terminal behind `console`. `keys` says whether there is a keyboard, too."""
    if not console.is_terminal:
        return Finding("skipped", "the output is not a terminal; a conversation prints plain lines there")
    found = f"{console.width} by {console.height}, {console.encoding}"
    if console.is_dumb_terminal:
        advice = "Set TERM to what your terminal is, such as xterm-256color, to see the screen."
        return Finding("warning", f"{found}: shows plain lines only", advice)
    found += f", {console.color_system} colours" if console.color_system and not console.no_color else ", no colours"
    if not keys:
        advice = "Start it without a pipe into it, for its keys to work; Ctrl-C ends it."
        return Finding("warning", f"{found}, but no keyboard", advice)
    if console.width < _COLUMNS or console.height < _LINES:
        advice = f"Make the window {_COLUMNS} by {_LINES} or larger, to see all of a conversation's screen."
        return Finding("warning", f"{found}: small", advice)
    if not console.encoding.lower().startswith("utf"):
        advice = "Set LANG to a locale with UTF-8, such as C.UTF-8, for words that have more than English letters."
        return Finding("warning", f"{found}: no UTF-8", advice)
    return Finding("ok", found)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())
