"""The microphone and the loudspeaker together: opened, and opened again after they were lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ..errors import MshError
from ..events import Notice
from .devices import NOUN, Device, Kind, choose_device, find_again
from .ends import CLOSE, Loudspeaker, Microphone
from .portaudio import PORTAUDIO, PortAudio, find_devices

_RETRY = 1.0  # seconds between two attempts to get a device back


class Devices:
    """The microphone and the loudspeaker of a conversation, or a microphone alone. Lost devices are opened again once they are
    back.

    Parameters
    ----------
    input_device, output_device
        As for `choose_device`. None follows the system's default, also when it changes.
    notify
        Called by `poll` with a notice when devices are lost, are back, or were changed.
    alone
        Open no loudspeaker: nobody speaks.
    system
        Where the devices are.
    """

    def __init__(
        self,
        input_device: str | None,
        output_device: str | None,
        notify: Callable[[Notice], None],
        *,
        alone: bool = False,
        system: PortAudio = PORTAUDIO,
    ) -> None:
        self._system = system
        self._wanted: dict[Kind, str | None] = {"input": input_device}
        if not alone:
            self._wanted["output"] = output_device
        self._chosen: dict[Kind, Device] = {}  # by the user; these are waited for when they are lost
        self._current: dict[Kind, Device] = {}
        self._notify = notify
        self.microphone = Microphone(system)
        self.loudspeaker = Loudspeaker(system)
        self.known: list[Device] = []  # when they were last asked for
        self._suspicions = 0
        self._next = False  # the user wants the next microphone
        self._news: Notice | None = None
        self._worker: threading.Thread | None = None
        self._stopping = threading.Event()

    def open(self) -> None:
        """Open both.

        Raises
        ------
        InputError
            There is no such device, or there are several.
        MshError
            There is no device at all, one of them cannot be opened, or PortAudio is missing or does not answer.
        """
        devices = self.known = find_devices(self._system)
        for kind, wanted in self._wanted.items():
            self._current[kind] = choose_device(devices, wanted, kind)
            if wanted is not None:
                self._chosen[kind] = self._current[kind]
        try:
            self._open_both()
        except BaseException:
            self._close_both()
            raise

    @property
    def lost(self) -> bool:
        """Whether there are no devices at the moment."""
        return self._worker is not None

    def poll(self) -> None:
        """Notice what happened to the devices. Call it a few times a second; it never waits for them."""
        if self._worker:
            if not self._worker.is_alive():
                self._worker = None
                if self._news:
                    self._notify(self._news)
                    self._news = None
                if self._next:  # asked for after this change was decided
                    self.next_input()
            return
        if note := self.microphone.note():
            self._notify(Notice("channels", note, "warning"))
        lost = [end for end in reversed(self._ends()) if end.lost]
        # Look twice: a process that was stopped and goes on has not heard of its devices for a while, either.
        self._suspicions = self._suspicions + 1 if lost else 0
        if self._suspicions < 2:
            return
        self._suspicions = 0
        names = " and ".join(f'the {NOUN[end.kind]} "{self._current[end.kind].name}"' for end in lost)
        waits = "until it is back" if any(end.kind in self._chosen for end in lost) else "until there is one again"
        pauses = "the conversation pauses" if "output" in self._wanted else "listening pauses"
        message = f"{names[0].upper()}{names[1:]} is lost; {pauses} {waits}."
        self.loudspeaker.pause()
        self._notify(Notice("device-lost", message, "warning"))
        self._start("device-back")

    def next_input(self) -> None:
        """Change to the next microphone, including one that was plugged in meanwhile. `notify` is told."""
        self._next = True
        if not self._worker:
            self.loudspeaker.pause()
            self._start("device-changed")

    def close(self) -> None:
        """Close both. Takes a second at most, whatever the sound system does."""
        self._stopping.set()
        if self._worker:
            self._worker.join(CLOSE)
        self._close_both()

    def _start(self, kind: str) -> None:
        self._worker = threading.Thread(target=self._reopen, args=(kind,), name="devices", daemon=True)
        self._worker.start()

    def _reopen(self, kind: str) -> None:
        """Close both, and try to open them again until it works. Runs on its own thread: the sound system may take long."""
        while not self._stopping.is_set():
            changing = self._next
            try:
                self._close_both()
                self._system.refresh()
                devices = self.known = self._system.devices()
                alone = not self._choose_again(devices)
                self._open_both()
            except Exception:  # the user knows already that the devices are lost, and the next attempt may succeed
                self._next |= changing  # skip a microphone that cannot be opened
                self._stopping.wait(_RETRY)
                continue
            message = f'Listening to "{self._current["input"].name}"'
            message += f', speaking through "{said.name}".' if (said := self._current.get("output")) else "."
            self._news = Notice(kind, f"There is no other microphone. {message}" if alone else message)
            break
        if self._stopping.is_set():
            self._close_both()

    def _choose_again(self, devices: Sequence[Device]) -> bool:
        """Choose from a new list of devices; return False if another microphone was wanted and there is none."""
        for kind in self._current:
            chosen = self._chosen.get(kind)
            if not chosen:
                self._current[kind] = choose_device(devices, None, kind)
            elif again := find_again(devices, chosen, kind):
                self._current[kind] = again
            elif not (self._next and kind == "input"):
                raise MshError(f'The {NOUN[kind]} "{chosen.name}" is not there.')
        if not self._next:
            return True
        self._next = False
        microphones = [device for device in devices if device.input_channels]
        current = find_again(microphones, self._current["input"], "input")
        if not microphones or microphones == [current]:
            return False
        begin = microphones.index(current) + 1 if current else 0
        self._current["input"] = self._chosen["input"] = (microphones * 2)[begin]
        return True

    def _ends(self) -> list[Microphone | Loudspeaker]:
        """List those that are used. The loudspeaker is opened first, and closed last."""
        return [self.loudspeaker, self.microphone] if "output" in self._wanted else [self.microphone]

    def _open_both(self) -> None:
        for end in self._ends():
            end.open(self._current[end.kind])

    def _close_both(self) -> None:
        for end in reversed(self._ends()):
            end.close()
