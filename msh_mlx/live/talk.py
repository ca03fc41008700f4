"""A live conversation: the main thread runs devices, conversation, screen, keys, recorder and trace together."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from time import perf_counter

from ..conversation.live import DELAY_LIMIT, MakeConversation
from ..errors import MshError
from ..events import EchoState, Event, Failed, Loading, Notice, Queues, Ready, Span
from ..model.engines import explain
from ..sound.both import Devices
from ..sound.devices import Device
from ..sound.echo import MODES, EchoFree, next_mode
from ..system.log import Log
from ..system.signals import Signals
from ..system.streams import check_output
from ..system.terminal import terminal_name
from ..system.threads import short_turns
from .hints import Hints
from .keys import Keys, action
from .recorder import Recorder
from .screen.open import open_screen
from .screen.status import EchoSummary, Screen, StageTimes, Status, Summary
from .trace import Trace

_TICK = 1 / 15  # seconds between two looks at keys, events and devices
_FOR_FILES = (Span, Queues)  # events that only the trace uses


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    `input_device` and `output_device` are a number or a part of the name. `record` is a folder, `trace` a file. `duration` is
    in seconds, from when the model first listens. `max_delay` is in seconds; beyond it the oldest of the user's sound is
    dropped. `muted` says whether the microphone is muted at first. `echo`, `noise_suppression` and `gain_control` are as for
    `EchoFree`. `plain` and `as_json` choose the screen.
    """

    input_device: str | None = None
    output_device: str | None = None
    record: Path | None = None
    trace: Path | None = None
    duration: float | None = None
    max_delay: float = DELAY_LIMIT
    muted: bool = False
    echo: str = "auto"
    noise_suppression: bool = False
    gain_control: bool = False
    plain: bool = False
    as_json: bool = False


def talk(make: MakeConversation, options: Options, signals: Signals, *, elsewhere: bool = False) -> int:
    """Hold a conversation until the user ends it, and return the exit code.

    `make` makes the conversation, which loads the model or connects to the server when it is started. `signals` reports signals
    that end the program; from now on the program ends without waiting for threads in native code, which nothing can interrupt.
    `elsewhere` says that the model is on another computer: then no files are looked for, and hints do not say that this one is
    too slow.

    Raises
    ------
    InputError
        A device, a file or the model is not usable.
    MshError
        There is no device, or the model or the codec failed; the details of an unexpected failure are in a log file.
    Stopped
        A signal came, or the terminal has gone.
    """
    signals.end_process = True
    if options.as_json:
        check_output()
    with ExitStack() as stack:
        screen = open_screen(plain=options.plain, as_json=options.as_json, out=sys.stdout)
        keys = Keys(suspend=screen.suspend, resume=screen.resume)

        def restore() -> None:
            """Restore the terminal, whatever state it is in."""
            for end in (screen.suspend, keys.__exit__):
                with contextlib.suppress(Exception):
                    end()

        signals.at_once = restore
        log = stack.enter_context(Log())
        stack.enter_context(screen)
        stack.enter_context(keys)
        conversation = _Conversation(make, options, screen, signals, stack, elsewhere=elsewhere)
        if failure := conversation.run(keys):
            raise _sorry(failure, log)
    return 0


class _Conversation:
    """Everything that is open during a conversation, and the loop on the main thread.

    The constructor opens files and devices, then starts the conversation, which loads the model or connects. `stack` stops the
    conversation, releases the devices, completes the files, and shows the summary if there is still a terminal.
    """

    def __init__(
        self,
        make: MakeConversation,
        options: Options,
        screen: Screen,
        signals: Signals,
        stack: ExitStack,
        *,
        elsewhere: bool,
    ) -> None:
        self._options = options
        self._screen = screen
        self._signals = signals
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._trace: Trace | None = None
        self._echo: EchoState | None = None  # as it was last
        self._heard_by: Device | None = None  # the microphone that the hints are about
        self._begun: float | None = None  # when the model began to listen
        self._ended: float | None = None
        self._patience = 0.5  # seconds for the files to be completed
        terminal = terminal_name(os.environ) if sys.platform == "darwin" else None
        self._hints = Hints(terminal=terminal, elsewhere=elsewhere)
        stack.callback(self._show_end)
        stack.enter_context(contextlib.redirect_stdout(_Printed(self._notify)))
        begin = perf_counter()
        if not elsewhere:
            screen.handle(Loading("files"))
        if options.trace:
            self._trace = trace = Trace(options.trace, self._notify)
            stack.callback(lambda: trace.close(self._patience))
        self._recorder = Recorder(self._notify, options.record)
        stack.callback(lambda: self._recorder.close(self._patience))
        if not elsewhere:
            screen.handle(Loading("files", perf_counter() - begin))
        self._devices = Devices(options.input_device, options.output_device, self._notify)
        stack.callback(self._devices.close)
        self._devices.open()
        loudspeaker = self._devices.loudspeaker
        self._source = EchoFree(
            self._devices.microphone,
            loudspeaker,
            options.echo,
            noise_suppression=options.noise_suppression,
            gain_control=options.gain_control,
        )
        self._conversation = make(self._source, loudspeaker, self._observe, options.max_delay)
        self._conversation.muted = options.muted
        stack.enter_context(_awake())
        stack.enter_context(short_turns())  # while the screen runs Python
        stack.callback(self._stop)
        signals.defer()
        self._conversation.start()

    def _observe(self, event: Event) -> None:
        """Pass an event to trace, recorder, screen and hints; called on the threads of the conversation."""
        if self._trace:
            self._trace(event)
        self._recorder(event)
        if not isinstance(event, _FOR_FILES):
            self._events.put(event)

    def _notify(self, notice: Notice) -> None:
        if self._trace:
            self._trace(notice)
        self._events.put(notice)

    # ---- the loop --------------------------------------------------------------------------------------------------------

    def run(self, keys: Keys) -> Failed | None:
        """Handle keys, devices and events until the user quits, the duration is over, or something fails."""
        while True:
            key = keys.poll(_TICK)
            self._signals.check()
            if keys.closed:
                self._signals.stop(Signals.GONE)
            if key and not self._press(action(key)):
                break
            self._devices.poll()
            self._show_events()
            if failure := self._conversation.failure:
                return failure
            self._screen.tick(self._status())
            duration = self._options.duration
            if duration is not None and self._elapsed() >= duration and self._begun is not None:
                break
        self._patience = 10.0  # this is an ordinary end: the files may take their time
        return None

    def _show_events(self) -> None:
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return
            if isinstance(event, Ready) and self._begun is None:
                self._begun = perf_counter()
            self._hints.handle(event)
            self._screen.handle(event)

    def _press(self, pressed: str | None) -> bool:
        """Do the action of a key; return False if it ends the conversation."""
        if pressed == "quit":
            return False
        if pressed in ("mute", "talk"):
            self._conversation.muted = not self._conversation.muted
        elif pressed == "new":
            self._conversation.reset()
        elif pressed == "save":
            self._recorder.save(Path("conversations").absolute())
        elif pressed == "device":
            self._devices.next_input()
        elif pressed == "echo":
            self._source.mode = mode = next_mode(self._source.mode)
            self._notify(Notice("echo", f"Echo: {mode}. {MODES[mode]}"))
        elif pressed == "help":
            self._screen.help()
        return True

    def _elapsed(self) -> float:
        if self._begun is None:
            return 0.0
        return (self._ended or perf_counter()) - self._begun

    def _status(self) -> Status:
        metrics = self._conversation.metrics
        echo = self._source.state()
        if self._trace and echo != self._echo:
            self._trace(echo)
        self._echo = echo
        microphone, loudspeaker = self._devices.microphone, self._devices.loudspeaker
        heard, said = microphone.level(), loudspeaker.level()
        # What is not known yet is 0 in the metrics, and None here.
        status = Status(
            elapsed=self._elapsed(),
            microphone=heard.peak,
            loudspeaker=said.peak,
            microphone_clipped=heard.clipped > 0,
            loudspeaker_clipped=said.clipped > 0,
            muted=self._conversation.muted,
            step_p50=1000 * metrics.step.recent(50) or None,
            step_p95=1000 * metrics.step.recent(95) or None,
            delay=1000 * metrics.delay.recent(50) or None,
            dropped=metrics.dropped,
            underruns=metrics.underruns,
            memory_active=metrics.memory.active if metrics.memory.peak else None,
            memory_cache=metrics.memory.cache if metrics.memory.peak else None,
            memory_peak=metrics.memory.peak or None,
            input_device=microphone.device.name if microphone.device else "",
            output_device=loudspeaker.device.name if loudspeaker.device else "",
            recording=str(self._options.record or ""),
            echo=echo,
        )
        return replace(status, hints=self._current_hints(status))

    def _current_hints(self, status: Status) -> tuple[str, ...]:
        microphone = self._devices.microphone
        device = microphone.device
        if device is None:
            return ()
        if device != self._heard_by:
            outputs = [other.name for other in self._devices.known if other.output_channels]
            self._hints.use_device(device.name, device.rate, outputs)
            self._heard_by = device
        silent = float(microphone.stats().get("all_zero_seconds", 0.0))
        return self._hints.update(perf_counter(), status, silent)

    # ---- the end ---------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._ended = perf_counter()
        self._conversation.stop(0.3)

    def _show_end(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may have gone
            self._show_events()
            if self._begun is not None:
                self._screen.summary(self._summary())

    def _summary(self) -> Summary:
        metrics = self._conversation.metrics
        stages = {}
        for name in ("encode", "step", "decode"):
            spread = getattr(metrics, name).all()
            if spread.count:
                stages[name] = StageTimes(*(1000 * x for x in (spread.p50, spread.p95, spread.p99, spread.most)))
        files = [str(folder) for folder in self._recorder.folders]
        if self._trace:
            files.append(str(self._trace.path))
        return Summary(
            seconds=self._elapsed(),
            words=metrics.words,
            stages=stages,
            dropped=metrics.dropped,
            underruns=metrics.underruns,
            memory_peak=metrics.memory.peak or None,
            echo=EchoSummary.of(self._source.figures),
            files=tuple(files),
        )


class _Printed(io.TextIOBase):
    """A standard output that makes a notice of each line: what a tool or a library prints must not disturb the screen."""

    def __init__(self, notify: Callable[[Notice], None]) -> None:
        self._notify = notify
        self._lock = Lock()
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._notify(Notice("printed", line))
        return len(text)


@contextlib.contextmanager
def _awake() -> Iterator[None]:
    """Keep a Mac or a Windows computer awake. It may sleep again when this process ends, even after a crash."""
    if sys.platform == "win32":
        import ctypes

        # ES_CONTINUOUS and ES_SYSTEM_REQUIRED: until this thread ends.
        ctypes.windll.kernel32.SetThreadExecutionState(0x80000001)
    command = {"darwin": ["/usr/bin/caffeinate", "-i", "-w", str(os.getpid())]}.get(sys.platform)
    process = None
    if command:
        with contextlib.suppress(OSError):
            process = subprocess.Popen(command)
    try:
        yield
    finally:
        if process:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)


# ---- failures ------------------------------------------------------------------------------------------------------------

_PARTS = {
    "encoder": "The codec",
    "model": "The model",
    "decoder": "The codec",
    "start": "The start",
    "connection": "The connection",
}


def _sorry(failure: Failed, log: Log) -> MshError:
    """Return the error to raise for a failure: the same if it is meant for the user, else one that names a log file."""
    if isinstance(failure.error, MshError):
        return failure.error
    if said := explain(failure.error):
        return said
    if isinstance(failure.error, MemoryError):
        return MshError("There is not enough memory", "close other programs, or take a smaller model")
    what = f"{type(failure.error).__name__}: {failure.error}".rstrip(".: ")
    path = log.write(failure.error)
    details = f"; details are in {path}" if path else ""
    return MshError(f"{_PARTS[failure.where]} failed ({what}), and the conversation is over{details}.")
