"""The beginning and the end of a program: streams, signals, errors and exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable

from ..errors import MshError
from ..system.places import mend_environment
from ..system.signals import Signals, Stopped
from ..system.streams import end_standard, open_standard
from ..system.words import printable

_READER_GONE = 141  # 128 + SIGPIPE


def guard(program: Callable[[Signals], int], *, debug: bool = False) -> int:
    """Run `program` and return its exit code; print an error as one line on the standard error.

    With `debug`, print the traceback of an unexpected error.
    """
    open_standard()
    mend_environment()
    with Signals() as signals:
        code = _exit_code(program, signals, debug)
        end_standard()
        if signals.end_process:
            os._exit(code)
    return code


def import_mlx(signals: Signals, engine: str = "auto") -> None:
    """Import MLX, where it is, unless another engine is asked for.

    While its native part is imported, an exception of a signal would end the process at once.
    """
    if engine == "native":
        return
    with signals.holding(), contextlib.suppress(ImportError, OSError):
        import mlx.core  # noqa: F401


def _exit_code(program: Callable[[Signals], int], signals: Signals, debug: bool) -> int:
    try:
        try:
            code = program(signals)
            sys.stdout.flush()
            return code
        except BaseException:
            # A signal may cause any error in code that it interrupts, as in an import or in Rust. Then only the signal counts.
            signals.check()
            raise
    except MshError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        _complain("Stopped.")
        return 128 + number
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise  # from --help and --version; Rich turns a broken pipe into a SystemExit, too
        # The reader of the standard output has gone, as with `| head`: return the exit code that shells report then.
        return _READER_GONE
    except ModuleNotFoundError as error:
        _complain(f"The module {error.name} is missing; install the program as its README says.")
    except MemoryError:
        _complain("There is not enough memory.")
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, OSError) and isinstance(error.filename, str | bytes):
            _complain(f"{os.fsdecode(error.filename)}: {error.strerror or error}.")
        elif said := _explained(error):
            _complain(str(said))
        else:
            _complain(f"An unexpected {type(error).__name__} ended the program ({error}); --debug shows where.")
    return MshError.exit_code


def _explained(error: Exception) -> MshError | None:
    from ..model.engines import explain

    return explain(error)


def _complain(message: str) -> None:
    # If the standard error cannot be written to, the exit code must be enough.
    with contextlib.suppress(OSError, ValueError):
        print(printable(message), file=sys.stderr, flush=True)
