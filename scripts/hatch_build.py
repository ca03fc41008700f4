"""Puts the page into the wheel, if it was built; see pyproject.toml."""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):
    """Adds client/dist to wheels. An editable install finds it in its place."""

    def initialize(self, version, build_data):
        """Hatchling's hook, before a wheel is built."""
        page = Path(self.root) / "client" / "dist"
        if version == "standard" and page.is_dir():
            build_data["force_include"][str(page)] = "msh_mlx/assets/client"
