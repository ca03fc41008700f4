"""The output of `--list-devices` and `--measure-latency`."""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import TYPE_CHECKING

from ..errors import MshError
from ..system.streams import check_output

if TYPE_CHECKING:
    from ..events import Notice


def print_devices(args: argparse.Namespace) -> int:
    check_output()
    from ..sound.portaudio import list_devices
    from ..system.log import Log

    with Log():
        devices = list_devices(as_json=args.json)
    print(devices)
    return 0


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
        print(json.dumps({**ends, **vars(trip)}, ensure_ascii=False))
    else:
        print(
            f"From the loudspeaker's queue to the microphone's: {trip.median:.0f} ms, "
            f"give or take {trip.spread / 2:.0f} ({trip.heard} of {trip.played} clicks heard)"
        )
    return 0
