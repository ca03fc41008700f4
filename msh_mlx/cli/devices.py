"""The output of `--list-devices` and `--measure-latency`, and the loudspeaker of `--output-device`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import MshError, NoDeviceError
from ..system.streams import check_output
from .options import print_json

if TYPE_CHECKING:
    from ..events import Notice
    from ..sound.devices import Device


def print_devices(args: argparse.Namespace, instead: str = "--input FILE") -> int:
    """Print the table of `--list-devices`. `instead` needs no device."""
    check_output()
    from ..sound.portaudio import list_devices
    from ..system.log import Log

    with _other_advice(instead), Log():
        devices = list_devices(as_json=args.json)
    print(devices)
    return 0


def find_loudspeaker(args: argparse.Namespace) -> Device:
    """Find the loudspeaker for a sound that `--output` would write to a file."""
    from ..sound.devices import choose_device
    from ..sound.portaudio import find_devices
    from ..system.log import Log

    with _other_advice("--output FILE"):
        with Log():
            devices = find_devices()
        return choose_device(devices, args.output_device, "output")


@contextlib.contextmanager
def _other_advice(instead: str) -> Iterator[None]:
    """If there is no device, advise to give `instead`."""
    try:
        yield
    except NoDeviceError as error:
        raise MshError(error.what, f"connect one, or give {instead}, which needs none") from None


def print_latency(args: argparse.Namespace) -> int:
    check_output()
    from ..sound.both import Devices
    from ..sound.latency import measure_latency
    from ..system.log import Log

    def notify(notice: Notice) -> None:
        raise MshError(notice.message)

    devices = Devices(args.input_device, args.output_device, notify)
    with Log(), contextlib.closing(devices):
        devices.open()
        ends = {"microphone": devices.microphone.describe(), "loudspeaker": devices.loudspeaker.describe()}
        if not args.json:
            for name, end in ends.items():
                print(f"{name.capitalize()}: {end}", flush=True)
            print("Playing clicks…", flush=True)
        trip = measure_latency(devices.microphone, devices.loudspeaker)
    if args.json:
        print_json({**ends, **vars(trip)})
    else:
        print(
            f"From the loudspeaker's queue to the microphone's: {trip.median:.0f} ms, "
            f"give or take {trip.spread / 2:.0f} ({trip.heard} of {trip.played} clicks heard)"
        )
    return 0
