"""``genai-ray bench``: how fast this machine is with `enhance`, and with other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from genai_ray.cli.choices import flag, option
from genai_ray.cli.tables import add_row, wide_console
from genai_ray.cli.targets import check_targets, write_target
from genai_ray.display import format_count

if TYPE_CHECKING:
    from genai_ray.bench import BenchReport

__all__ = ["EXAMPLES", "bench"]

EXAMPLES = """One small case, or everything, and keep the figures:

genai-ray bench --quick
genai-ray bench --output bench.json"""
"""At the end of the help."""


def bench(
    quick: Annotated[bool, flag("--quick", help="One small case, measured once; less than two minutes.")] = False,
    runs: Annotated[
        int | None, option(help="Runs of each program; medians count.", metavar="N", default="3, with --quick 1")
    ] = None,
    output: Annotated[
        Path | None, option("--output", "-o", help="Also write the figures, as JSON.", metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "-y", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", help="Print no progress.")] = False,
) -> None:
    """Measure `enhance` on the processor beside a plain script with PyAV and ONNX Runtime, and other programs.

    All make the same videos, in turns, each in a process of its own; the results are compared with each other. Takes
    about half an hour on two cores. The exit code is 1 if a program fails or makes another picture.
    """
    from genai_ray.bench import run_bench

    if output is not None:
        check_targets({"--output": output}, [], may_replace=overwrite)
    report = run_bench(is_quick=quick, runs=runs, on_run=None if quiet else lambda words: print(words, file=sys.stderr))
    if output is not None:
        write_target(output, (json.dumps(report.to_dict(), allow_nan=False, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        _print_report(report)
    for fault in report.faults:
        print(fault, file=sys.stderr)
    if report.faults:
        raise typer.Exit(1)


def _print_report(report: BenchReport) -> None:
    table = Table(box=None)
    for name in report.header:
        is_number = name in ("frames/s", "times plain", "seconds in all", "dB from plain")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for cells in report.rows():
        add_row(table, *cells)
    wide_console().print(table)
    turns = f"{format_count(report.runs, 'run')} of each"
    print(f"{report.date}, {turns}, {report.elapsed_s:.0f} s, on {report.machine['processor']}")
    for name, why in report.absent.items():
        print(f"not measured: {name}: {why}")
    if report.is_busy:
        print(
            f"Other programs kept this machine busy: its load was {report.load:.2f} on {report.cores} cores. "
            "Figures of a quiet machine are higher, and vary less."
        )
