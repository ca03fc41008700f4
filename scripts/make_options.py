#!/usr/bin/env python3
"""Write the tables of options in docs/options.md, from the parsers of the commands. `make docs` calls it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from msh_mlx.cli import bench, client, convert, doctor, main, models, say, serve, transcribe, voices
from msh_mlx.cli.options import Parser
from msh_mlx.live.keys import KEYS

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
# The script writes the text between two such lines.
REGION = re.compile(r"(<!-- made by scripts/make_options\.py: ([^\n]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def parsers() -> dict[str, Parser]:
    """Return the parser of each command, by the command's name."""
    found = [module.parser() for module in (main, client, serve, transcribe, say)]
    for module in (voices, models):
        found += [module.parser(), *map(module.action_parser, module.ACTIONS)]
    found += [module.parser() for module in (convert, bench, doctor)]
    return {parser.prog: parser for parser in found}


def tables(parser: Parser) -> str:
    """Return a command's description, a table of options for each group, and the end of its help, in Markdown."""
    groups: dict[str, list[str]] = {}
    for group in parser._action_groups:
        # Options without a group are in two groups of argparse's own.
        title = "" if group in (parser._positionals, parser._optionals) else group.title or ""
        groups.setdefault(title, []).extend(row(action) for action in group._group_actions if action.dest != "help")
    parts = [parser.description]
    for title, rows in groups.items():
        if rows:
            parts += [f"**{title[0].upper()}{title[1:]}**"] if title else []
            parts.append("\n".join(["| option | what it does |", "|---|---|", *rows]))
    return "\n\n".join(filter(None, [*parts, parser.epilog]))


def row(action: argparse.Action) -> str:
    """Return the row of an option: how to write it, and what it does."""
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else "")
    value = str(value).replace("|", r"\|") + ("..." if action.nargs in ("+", "*") else "")
    if action.nargs == "?" and action.option_strings:
        value = f"[{value}]"
    names = [f"`{name} {value}`" if value else f"`{name}`" for name in action.option_strings] or [f"`{value}`"]
    said = (action.help or "") % {"default": action.default}
    return f"| {', '.join(names)} | {escaped(said)} |"


def escaped(text: str) -> str:
    """Return a sentence with Markdown's characters escaped."""
    return re.sub(r"([|*<])", r"\\\1", text)


def keys() -> str:
    """Return the table of the keys."""
    return "\n".join(["| key | what it does |", "|---|---|", *(f"| `{key.name}` | {key.sentence} |" for key in KEYS)])


def written(page: str) -> str:
    """Return the page with up-to-date tables.

    Raises
    ------
    LookupError
        A command has no region on the page.
    """
    made = {name: tables(parser) for name, parser in parsers().items()} | {"keys": keys()}
    if missing := set(made) - set(regions(page)):
        raise LookupError(f"{PAGE.name} has no region for {', '.join(sorted(missing))}")
    return REGION.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", page)


def regions(page: str) -> Iterator[str]:
    """Yield the names of the regions."""
    return (found[2] for found in REGION.finditer(page))


def run() -> int:
    """Write the page, or compare it and say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the page; else only compare it")
    write = parser.parse_args().write
    page = PAGE.read_text(encoding="utf-8")
    new = written(page)
    if write:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        print(f"{PAGE.name} is not what the commands say; `make docs` writes it.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
