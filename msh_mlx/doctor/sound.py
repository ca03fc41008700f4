"""The checks of the sound devices. They use PortAudio, and open devices."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from time import monotonic, sleep
from typing import TYPE_CHECKING

from ..errors import MshError
from .examine import death_of, sentence
from .judgements import Finding, judge_echo, judge_headset, judge_microphone, judge_speaker

if TYPE_CHECKING:
    from ..sound.devices import Device
    from ..sound.ends import Loudspeaker

LISTENING = 2.0  # seconds of listening
SOUND = 3.0  # seconds that a check of the sound system may take if it does not listen
RESTART = "Restart the sound system or the computer."
_FIRST = 2.0  # seconds in which a device has to begin


def check_sound(devices: list[Device]) -> Finding:
    """Check that PortAudio is there, and add the devices that it knows to `devices`."""
    from ..sound import ends  # noqa: F401 # which opens devices: all that it imports has to be there
    from ..sound.portaudio import find_devices

    try:
        death = death_of("import sounddevice; sounddevice.query_devices()", SOUND - 0.5)
    except subprocess.TimeoutExpired:
        return Finding("problem", "the sound system does not answer", RESTART)
    if death:
        return Finding("problem", f"the sound system dies ({death})", "Mend its configuration, such as ~/.asoundrc.")
    try:
        devices += find_devices()
    except MshError as error:
        return Finding("problem", error.what, sentence(error.advice) or RESTART)
    import sounddevice

    version = sounddevice.get_portaudio_version()[1].partition(",")[0].removesuffix("-devel")
    if not devices:
        return Finding("problem", f"{version}, no sound devices", _connect())
    systems = ", ".join(dict.fromkeys(device.host_api for device in devices))
    return Finding("ok", f"{version}, {systems}: {len(devices)} device{'s' * (len(devices) != 1)}")


def _connect() -> str:
    advice = "Connect one; with recordings (--input FILE) it works without."
    if sys.platform == "linux":
        advice += " If there is one, see that PulseAudio or PipeWire runs for this user."
    return advice


def check_speaker(devices: list[Device], wanted: str | None = None, *, play: bool = True) -> Finding:
    """Find the loudspeaker. With `play`, open it, and check that it asks for sound. It gets silence."""
    if not devices:
        return Finding("skipped", "not looked for")
    from ..sound.devices import choose_device, describe_format
    from ..sound.ends import Loudspeaker

    if not any(device.output_channels for device in devices):
        return Finding("problem", "no loudspeaker", _connect())
    device = choose_device(devices, wanted, "output")
    if not play:
        found = describe_format(device.rate, device.output_channels)
        return Finding("ok", f"{device.name}, {found} (not opened)")
    with closing(Loudspeaker()) as loudspeaker:
        loudspeaker.open(device)
        return judge_speaker(loudspeaker.describe(), running=_calls(loudspeaker))


def _calls(end: Loudspeaker) -> bool:
    """Wait for a device to call back. Return whether it did."""
    deadline = monotonic() + _FIRST
    while not end.stats()["callbacks"]:
        if monotonic() > deadline:
            return False
        sleep(0.02)
    return True


def check_microphone(devices: list[Device], wanted: str | None = None, *, listen: bool = True) -> Finding:
    """Find the microphone. With `listen`, open it, and check how loud it hears."""
    if not devices:
        return Finding("skipped", "not looked for")
    from ..format import FRAME_SECONDS, FRAME_SIZE
    from ..sound.devices import choose_device, describe_format
    from ..sound.ends import Microphone
    from ..sound.headset import is_bluetooth_headset
    from ..system.terminal import terminal_name

    if not any(device.input_channels for device in devices):
        return Finding("problem", "no microphone", _connect())
    device = choose_device(devices, wanted, "input")
    outputs = [other.name for other in devices if other.output_channels]
    headset = is_bluetooth_headset(device.name, device.rate, outputs)
    if not listen:
        found = f"{device.name}, {describe_format(device.rate, device.input_channels)} (not listened to)"
        return judge_headset(found) if headset else Finding("ok", found)
    terminal = terminal_name(os.environ) if sys.platform == "darwin" else None
    with closing(Microphone()) as microphone:
        microphone.open(device)
        heard = 0
        while heard * FRAME_SECONDS < LISTENING and microphone.read(FRAME_SIZE, _FIRST) is not None:
            heard += 1
        level = microphone.level() if heard else None
        return judge_microphone(microphone.describe(), level, headset=headset, terminal=terminal)


def check_echo(devices: list[Device], input_device: str | None = None, output_device: str | None = None) -> Finding:
    """Play noise like speech. Measure how much of it the microphone hears, and how much of that is removed."""
    if not devices:
        return Finding("skipped", "not looked for")
    from ..sound.devices import choose_device
    from ..sound.echo import measure_echo
    from ..sound.ends import Loudspeaker, Microphone

    with closing(Loudspeaker()) as loudspeaker, closing(Microphone()) as microphone:
        loudspeaker.open(choose_device(devices, output_device, "output"))
        microphone.open(choose_device(devices, input_device, "input"))
        return judge_echo(measure_echo(microphone, loudspeaker))
