"""Folders of the user and of the system, and paths as users type them."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, MshError, write_error
from .streams import NamedFile

# Variables that name a folder for temporary files. The first that is set counts.
_TEMPORARY = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
_PACKAGE = Path(__file__).resolve().parents[1]
_SIZE = re.compile(r"[1-9][0-9]{1,3}", re.ASCII)  # of a usable terminal


def mend_environment() -> None:
    """Remove environment variables without meaning: empty names of folders, and impossible sizes of the terminal."""
    for name in ("COLUMNS", "LINES"):
        if not _SIZE.fullmatch(os.environ.get(name, "80")):
            del os.environ[name]
    for name in (*_TEMPORARY, "HOME"):
        if os.environ.get(name) == "":
            del os.environ[name]


def home() -> Path | None:
    """Return the user's home folder: `HOME`, else the one in the password file (on Windows, `USERPROFILE`), else None."""
    if named := os.environ.get("HOME"):
        return Path(named)
    if sys.platform == "win32":
        profile = os.environ.get("USERPROFILE")
        return Path(profile) if profile else None
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that was typed, or read from a file: `~` and `~/…` are in the home folder. Others stay as they are.

    A name like `~backup.wav` is that of a file: the shell has replaced the names of other users already.
    Raise InputError if the path is in the home folder, and there is none.
    """
    text = os.fspath(path)
    if text == "~" or text.startswith(("~/", f"~{os.sep}")):
        folder = home()
        if folder is None:
            raise InputError(
                f"{text} is in the home folder, and there is none", "set HOME, or write the path without ~"
            )
        return folder / text[2:]
    place = Path(text)
    # pathlib makes "~/x" of "./~/x", and the next reader would take that for the home folder.
    return place.absolute() if place.parts[:1] == ("~",) else place


def config_folder() -> Path | None:
    """Return the folder of the user's own settings. None: there is no home folder."""
    return _own_folder("XDG_CONFIG_HOME", ".config", on_windows="APPDATA")


def notes_folder() -> Path | None:
    """Return the folder of notes, which can be made again if they are lost. None: there is no home folder."""
    return _own_folder("XDG_CACHE_HOME", ".cache", "Library/Caches", "LOCALAPPDATA")


def log_folder() -> Path | None:
    """Return the folder of log files. None: there is no home folder."""
    return _own_folder("XDG_STATE_HOME", ".local/state", "Library/Logs", "LOCALAPPDATA")


def _own_folder(variable: str, usual: str, on_macos: str | None = None, on_windows: str | None = None) -> Path | None:
    """Return the program's own folder, which may not exist yet: in the folder of `variable`, else in `usual` at home.

    On a Mac, `on_macos` in the home folder replaces both. On Windows, the folder of the variable `on_windows` replaces `usual`
    where it is set, as it is for every user. The package platformdirs is not used: on a Mac it would put the
    configuration into another folder than ~/.config.
    """
    if sys.platform == "darwin" and on_macos:
        usual = on_macos
    elif named := os.environ.get(variable):
        return user_path(named) / "msh-mlx"
    elif sys.platform == "win32" and on_windows and (given := os.environ.get(on_windows)):
        return Path(given) / "msh-mlx"
    own = home()
    return own / usual / "msh-mlx" if own else None


def temporary_folder() -> Path:
    """Return the folder for temporary files: `TMPDIR`, else the system's. Raise MshError if none can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        raise MshError(
            f"No folder for temporary files can be written to ({os.environ.get('TMPDIR') or '/tmp'} and the usual ones)",
            "set TMPDIR to a folder that can",
        ) from None


def check_temporary(path: str, size: int) -> None:
    """Check that `size` bytes can be written to `path` in the folder for temporary files, and that code compiles there.

    `path` is made if it is missing. The folder for temporary files is that of C++ programs: the one that the first variable
    names, even if it cannot be used. Raise MshError if it cannot.
    """
    name = next((name for name in _TEMPORARY if name in os.environ), None)
    place = folder = Path(os.environ[name] if name else "/tmp")
    # A shell runs the compiler, with the names of files in double quotes.
    if special := re.search(r'["$`]|\\{2}', str(folder)):
        raise MshError(
            f"{folder}, the folder for temporary files, has {special[0]} in its name, and functions of the model cannot be "
            "compiled there",
            f"set {name} to another folder, or unset it",
        )
    try:
        if not folder.is_dir():
            raise NotADirectoryError(0, "there is no such folder")
        place = folder / path
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(size))
    except OSError as error:
        advice = f"set {name or 'TMPDIR'} to a folder with room that can be written to"
        if name:
            advice += f", or unset {name}"
        raise MshError(
            f"{place} cannot be written to ({error.strerror or error}), and functions of the model are compiled there, "
            f"in the folder for temporary files",
            advice,
        ) from None


def temporary_file() -> BinaryIO:
    """Open a temporary file without a name, for writing and reading. Errors are those of `temporary_folder`.

    Its `WriteError` names the folder.
    """
    said = f"The folder for temporary files, {temporary_folder()},"
    try:
        with tempfile.TemporaryFile(buffering=0) as file:
            return io.BufferedRandom(NamedFile(os.dup(file.fileno()), "r+b", said))
    except OSError as error:
        raise write_error(said, error) from None


def asset(name: str, what: str) -> Path:
    """Return the path of a file that comes with the program: in the installed package, or beside it in a checkout.

    `what` names the file in the error. Raise MshError if the file is in neither place.
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        if (folder / name).is_file():
            return folder / name
    raise MshError(f"{what} is missing from this installation", "install the package again")


def client_folder() -> Path | None:
    """Find the built web page: in the installed package, or where `npm run build` leaves it. None: it is not there."""
    for folder in (_PACKAGE / "assets" / "client", _PACKAGE.parent / "client" / "dist"):
        if (folder / "index.html").is_file():
            return folder
    return None
