"""How a program begins and ends: its streams, signals, errors and exit codes."""

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


def guard(program: Callable[[Signals], int], *, debug: bool = False) -> int:
    """Run `program` and return its exit code; what goes wrong becomes one line on the standard error.

    `debug` shows the traceback of errors that nobody expected.
    """
    open_standard()
    mend_environment()
    with Signals() as signals:
        code = _exit_code(program, signals, debug)
        end_standard()
        if signals.end_process:
            os._exit(code)
    return code


def _exit_code(program: Callable[[Signals], int], signals: Signals, debug: bool) -> int:
    try:
        try:
            code = program(signals)
            sys.stdout.flush()
            return code
        except BaseException:
            # What a signal interrupts may raise anything: a native module that is being imported, a panic of Rust.
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
            raise  # help and version, not what Rich makes of it
        # Whoever read the standard output has gone, as with `| head`: what the shell says of other programs then.
        return 128 + signal.SIGPIPE
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
    if "mlx.core" not in sys.modules:
        return None
    from ..model.step import explain

    return explain(error)


def _complain(message: str) -> None:
    # Where the standard error takes nothing, the exit code has to do.
    with contextlib.suppress(OSError, ValueError):
        print(printable(message), file=sys.stderr, flush=True)


def interruptible(progress: Callable[[float], None], signals: Signals) -> Callable[[float], None]:
    def tell(fraction: float) -> None:
        signals.check()
        progress(fraction)

    return tell
