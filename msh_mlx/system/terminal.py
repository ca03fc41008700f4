"""The terminal application in which the program runs."""

from __future__ import annotations

from collections.abc import Mapping

# Names by TERM_PROGRAM, by TERM, and by the identifier that macOS gives to processes of an application.
_TERMINALS = {
    "apple_terminal": "Terminal",
    "com.apple.terminal": "Terminal",
    "iterm.app": "iTerm",
    "com.googlecode.iterm2": "iTerm",
    "wezterm": "WezTerm",
    "com.github.wez.wezterm": "WezTerm",
    "ghostty": "Ghostty",
    "xterm-ghostty": "Ghostty",
    "com.mitchellh.ghostty": "Ghostty",
    "vscode": "Visual Studio Code",
    "com.microsoft.vscode": "Visual Studio Code",
    "xterm-kitty": "kitty",
    "kitty": "kitty",
    "net.kovidgoyal.kitty": "kitty",
    "alacritty": "Alacritty",
    "org.alacritty": "Alacritty",
    "warpterminal": "Warp",
    "dev.warp.warp-stable": "Warp",
    "hyper": "Hyper",
    "tabby": "Tabby",
    "rio": "Rio",
}


def terminal_name(environment: Mapping[str, str]) -> str:
    """Return the name of the terminal application, as macOS lists it; "your terminal application" if it is unknown."""
    # Inside tmux, TERM_PROGRAM is tmux's own.
    for variable in ("TERM_PROGRAM", "TERM", "LC_TERMINAL", "__CFBundleIdentifier"):
        value = environment.get(variable, "").lower()
        if name := _TERMINALS.get(value) or _TERMINALS.get(value.removesuffix("2") + ".app"):
            return name
    return "your terminal application"
