"""``genai-ray doctor``: does this machine have what the commands need?"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genai_ray.cli.choices import flag, option
from genai_ray.cli.tables import wide_console

if TYPE_CHECKING:
    from genai_ray.doctor import Diagnosis

__all__ = ["doctor", "print_diagnosis"]

STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "broken": "bold red"}
"""How the states are shown."""


def doctor(
    address: Annotated[
        str | None,
        option(help="Ray cluster to ask.", metavar="HOST:PORT", default="RAY_ADDRESS, or the one on this machine"),
    ] = None,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
) -> None:
    """Try runtimes, codecs, models, folders and the Ray cluster of this machine; say what mends what does not work.

    Nothing is started or joined. The exit code is 1 if something needed is broken.
    """
    from genai_ray.doctor import diagnose

    with redirect_stdout(sys.stderr):
        diagnosis = diagnose(address)
    if as_json:
        print(json.dumps(diagnosis.to_dict()))
    else:
        print_diagnosis(diagnosis, wide_console())
    if not diagnosis.works:
        raise typer.Exit(1)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print a table of what was found, and whether everything needed works.

    Args:
        diagnosis: The result of ``diagnose``.
        console: Of standard output.
    """
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=24)
    table.add_column(overflow="fold")
    topic = ""
    for finding in diagnosis.findings:
        if finding.topic != topic:
            topic = finding.topic
            table.add_row(Text(topic, "bold"), "", "")
        state = Text(f"  {finding.state}", STYLES[finding.state])
        table.add_row(state, Text(finding.name), Text(finding.detail))
        if finding.do:
            table.add_row("", Text("do:", justify="right"), Text(finding.do, "bold"))
    console.print(table)
    broken = [finding.name for finding in diagnosis.findings if finding.state == "broken"]
    if broken:
        console.print(f"broken: {', '.join(broken)}", style="bold red", markup=False, highlight=False)
    else:
        console.print("Everything needed works.", highlight=False)
