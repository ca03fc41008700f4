"""Choose the screen that suits the standard output."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console

from .json import JsonScreen
from .plain import PlainScreen
from .status import Screen
from .terminal import LiveScreen


def open_screen(*, plain: bool, as_json: bool, out: TextIO) -> Screen:
    """Return the screen that suits `out` and the user's options."""
    if as_json:
        return JsonScreen(out)
    # In terminfo, a name that ends like this is of a terminal without colours; rich does not know that.
    monochrome = os.environ.get("TERM", "").endswith(("-m", "-mono"))
    console = Console(file=out, highlight=False, no_color=True if monochrome else None)
    if plain or not console.is_terminal or console.is_dumb_terminal:
        return PlainScreen(console)
    return LiveScreen(console)
