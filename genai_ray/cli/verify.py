"""``genai-ray verify``: whether a result is what its record says."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from genai_ray.cli.choices import check_inputs, flag, option
from genai_ray.cli.tables import add_row
from genai_ray.display import format_count

if TYPE_CHECKING:
    from genai_ray.enhance import VerifyReport

__all__ = ["EXAMPLES", "verify"]

EXAMPLES = """A result with its record, and 5 % of its segments computed again:

genai-ray enhance in.mp4 -o out.mp4 -m websr-x2-l --check strict
genai-ray verify out.mp4
genai-ray verify out.mp4 --source in.mp4 --sample 5%"""
"""At the end of the help."""


def verify(
    output: Annotated[
        str, typer.Argument(help="A result of `enhance --check strict`; its record lies beside it.", show_default=False)
    ],
    source: Annotated[
        str | None, option(help="What it was made of; a sample of it is computed again.", metavar="FILE")
    ] = None,
    sample: Annotated[
        str | None,
        option(help="Segments that are computed again: a share, or a number.", metavar="SHARE", default="1%"),
    ] = None,
    seed: Annotated[
        int | None, option(help="Chooses these segments.", metavar="N", default="random, and printed")
    ] = None,
    model: Annotated[
        list[str] | None, option("--model", "-m", help="The .onnx file of a model that is a file.", metavar="FILE")
    ] = None,
    address: Annotated[
        str | None,
        option(help="Ray cluster to join.", metavar="HOST:PORT", default="RAY_ADDRESS, or Ray on this machine"),
    ] = None,
    trust_encoder_options: Annotated[
        bool,
        flag("--trust-encoder-options", help="Pass the record's encoder options on: they may name files to write."),
    ] = False,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", help="Print only what differs.")] = False,
) -> None:
    """Check that a video is what its record says; with its source, compute some of it again.

    Exit code: 0 it is; 1 something differs, or there is no record; 2 wrong use.
    """
    from genai_ray.enhance import verify_video

    check_inputs([output, *([source] if source is not None else []), *(model or [])])
    with redirect_stdout(sys.stderr):  # Ray prints what happens to its processes
        report = verify_video(
            output,
            source,
            sample=sample,
            seed=seed,
            models=model or [],
            address=address,
            trust_encoder_options=trust_encoder_options,
        )
    if as_json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        for text in report.failures:
            print(f"differs: {text}", file=sys.stderr)
        if not quiet:
            _print_table(report)
    if not report.passed:
        raise typer.Exit(1)


def _print_table(report: VerifyReport) -> None:
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    add_row(table, "video", report.output)
    add_row(table, "record", report.record)
    add_row(table, "frames", f"{report.frames} in {format_count(report.segments, 'segment')}, decoded")
    if report.sampled:
        counts = f"{len(report.sampled)} of {format_count(report.segments, 'segment')}"
        add_row(table, "sample", f"{counts} computed again, seed {report.seed}")
        for wrong, rate in report.miss_rates:
            words = format_count(wrong, "wrong segment")
            add_row(table, "", f"if there were {words}: missed with a probability of {100 * rate:.3g} %")
        if report.is_exact:
            add_row(table, "", "frames had to be equal")
        else:
            add_row(table, "", f"frames had to agree by {report.tolerance_db:g} dB: {report.inexact_because}")
            add_row(table, "", f"lowest agreement: {report.lowest_db:.1f} dB")
    else:
        add_row(table, "sample", "nothing was computed again" + ("" if report.seed is not None else ": no --source"))
    add_row(table, "result", report.describe() if report.passed else "not what its record says")
    Console(soft_wrap=True).print(table)
