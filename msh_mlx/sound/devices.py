"""Microphones and loudspeakers: list them, and find the one that the user means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError, NoDeviceError

Kind = Literal["input", "output"]


@dataclass(frozen=True)
class Device:
    """A device in PortAudio's list. `rate` is its default, in Hz; `input_channels` is 0 if it is not a microphone.

    `number` counts from 0 and holds until devices come or go; `host_api` is the system behind it, such as "Core Audio".
    """

    number: int
    name: str
    host_api: str
    input_channels: int
    output_channels: int
    rate: float
    default_input: bool = False
    default_output: bool = False

    def channels(self, kind: Kind) -> int:
        """Return how many channels it has in that direction."""
        return self.input_channels if kind == "input" else self.output_channels

    @property
    def microphones(self) -> int:
        """How many channels may carry a voice of their own: all, but at most 2 of those that ALSA's plugins make up."""
        plugin = self.host_api == "ALSA" and "(hw:" not in self.name
        return min(self.input_channels, 2) if plugin else self.input_channels

    def is_default(self, kind: Kind) -> bool:
        """Whether the system uses it when no device is named."""
        return self.default_input if kind == "input" else self.default_output


NOUN: dict[Kind, str] = {"input": "microphone", "output": "loudspeaker"}


def describe_format(rate: float, channels: int) -> str:
    """Write a format of sound for people, such as "48000 Hz stereo"."""
    named = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    return f"{rate:.0f} Hz {named}"


def device_table(devices: Sequence[Device]) -> str:
    rows = [("No.", "Device", "System", "In", "Out", "Rate", "")]
    for device in devices:
        defaults = [kind for kind in NOUN if device.is_default(kind)]
        rows.append(
            (
                str(device.number),
                device.name,
                device.host_api,
                str(device.input_channels),
                str(device.output_channels),
                f"{device.rate:.0f} Hz",
                f"default {' and '.join(defaults)}" if defaults else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = (str.rjust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.ljust)
    return "\n".join(
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    )


def choose_device(devices: Sequence[Device], wanted: str | None, kind: Kind) -> Device:
    """Return the device that the user wants, of all devices.

    `wanted` is its number, its name, or a part of the name, in capitals or not; None for the system's default.

    Raises
    ------
    InputError
        `wanted` fits no device, or several; the message lists them.
    NoDeviceError
        There is no device of that kind at all.
    """
    noun = NOUN[kind]
    candidates = [device for device in devices if device.channels(kind)]
    if not candidates:
        raise no_device(noun)
    if wanted is None:
        return next((device for device in candidates if device.is_default(kind)), candidates[0])
    wanted = wanted.strip()
    if wanted.isdecimal():
        found = [device for device in candidates if device.number == int(wanted)]
    else:
        folded = wanted.casefold()
        found = [device for device in candidates if device.name.casefold() == folded]
        found = found or [device for device in candidates if folded and folded in device.name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"Several {noun}s are called {wanted!r}: {_listing(found)}", "give a number or more of the name"
        )
    what = f"number {wanted}" if wanted.isdecimal() else f"called {wanted!r}"
    raise InputError(f"There is no {noun} {what}", f"there is {_listing(candidates)}")


def _listing(devices: Sequence[Device]) -> str:
    return ", ".join(f'{device.number} "{device.name}"' for device in devices)


def no_device(noun: str) -> NoDeviceError:
    return NoDeviceError(f"There is no {noun} on this computer", "connect one, or give --input FILE, which needs none")


def find_again(devices: Sequence[Device], device: Device, kind: Kind) -> Device | None:
    """Find `device` in a newer list: its number may be another, and on Linux the numbers in its name, too. None: gone."""
    for name in (str, lambda text: re.sub(r"\(hw:\d+,\d+\)", "", text)):
        for other in devices:
            if other.channels(kind) and (name(other.name), other.host_api) == (name(device.name), device.host_api):
                return other
    return None
