"""Headsets, by the names of their devices."""

from __future__ import annotations

import re
from collections.abc import Collection

_HEADSETS = re.compile(
    r"airpods|hands-?free|headset|bluetooth|beats|\bw[hf]-|jabra|bose|galaxy buds|pixel buds|earbuds|\bhf[pu]\b",
    re.IGNORECASE,
)


def is_bluetooth_headset(name: str, rate: float, outputs: Collection[str]) -> bool:
    """Whether the input device `name`, of the default rate `rate` in Hz, seems to be a Bluetooth headset's microphone.

    `outputs` are the names of the output devices: a headset has one of the same name.
    """
    if re.search(r"\busb\b", name, re.IGNORECASE):
        return False
    return bool(_HEADSETS.search(name)) or (rate in (8000, 16000, 24000) and name in outputs)
