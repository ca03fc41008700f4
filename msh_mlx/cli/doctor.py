"""`msh-mlx doctor`: check everything that a conversation needs, and say what to do about faults."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING

from ..errors import InputError
from ..library.catalogue import find_entry, load_catalogue
from ..system.signals import Signals
from ..system.streams import check_output
from ..system.words import printable
from .options import Parser, add_devices, add_printing, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..doctor.judgements import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}
_STATUS, _NAME = 9, 12  # widths of the columns, with the space between them


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx doctor",
        description="Check everything that a conversation needs, and say what to do where something is wrong. "
        "Exit code: 1 if something would stop a conversation, else 0.",
    )
    to = parser.group()
    to.flag("--quick", "do not open the microphone and the loudspeaker")
    to.flag("--echo", "play three seconds of noise, and say how loud its echo is and how much of it is removed")
    to.value("--variant", "NAME", "check this model of the catalogue, too, and whether the machine has room for it")
    add_devices(to)
    add_printing(to, "print one plain line for each check, even in a terminal")
    return parser


def run(arguments: list[str], signals: Signals) -> int:
    args = parser().parse_args(arguments)
    if args.quick and args.echo:
        raise InputError("--echo needs the devices that --quick does not open", "leave one of them out")
    check_output()
    if args.variant:
        find_entry(load_catalogue(), args.variant)
    from rich.console import Console

    from ..doctor.checks import ECHO, TOTAL, all_checks
    from ..doctor.examine import examine
    from ..system.log import Log

    # A check that took too long is left running in native code, and may never end.
    signals.end_process = True
    console = Console(highlight=False)
    plain = args.plain or args.json or not console.is_terminal or console.is_dumb_terminal
    deadline = monotonic() + TOTAL + (ECHO if args.echo else 0)
    findings: list[Finding] = []
    with Log():
        options = {"listen": not args.quick, "echo": args.echo, "variant": args.variant}
        for check in all_checks(args.input_device, args.output_device, **options):
            doing = check.doing or f"Looking at: {check.name}"
            with contextlib.nullcontext() if plain else console.status(doing):
                finding = examine(check, deadline - monotonic())
            signals.check()
            findings.append(finding)
            if not args.json:
                show(console, finding, plain=plain)
    ok = all(finding.status != "problem" for finding in findings)
    if args.json:
        checks = [{k: v for k, v in asdict(finding).items() if v is not None} for finding in findings]
        print_json({"ok": ok, "checks": checks})
    else:
        console.print(conclusion(findings), soft_wrap=True)
    return 0 if ok else 1


def show(console: Console, finding: Finding, *, plain: bool) -> None:
    """Print a finding: on one line if `plain`, else in columns, with the advice on a line of its own."""
    from rich.table import Table
    from rich.text import Text

    # Names of devices and files may hold anything, even control characters for the terminal.
    found, advice = (printable(text) for text in (finding.found, finding.advice))
    if plain:
        line = f"{finding.status:{_STATUS}}{finding.name}: {found}" + (f". {advice}" if advice else "")
        console.print(Text(line), soft_wrap=True)
        return
    text = Text(found)
    if advice:
        text.append(f"\n{advice}", "dim" if finding.status == "skipped" else "italic")
    table = Table.grid()
    table.add_column(width=_STATUS)
    table.add_column(width=_NAME)
    table.add_column(overflow="fold")
    table.add_row(Text(finding.status, _COLOURS[finding.status]), finding.name, text)
    console.print(table)


def conclusion(findings: list[Finding]) -> str:
    """Return a sentence that sums up the findings."""
    problems, warnings = (sum(f.status == status for f in findings) for status in ("problem", "warning"))
    counts = [f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((problems, "problem"), (warnings, "warning")) if n]
    if problems:
        return f"A conversation would not work: {' and '.join(counts)}."
    return f"A conversation should work{f', with {counts[0]}' if counts else ''}."
