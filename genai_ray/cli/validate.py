"""``genai-ray validate``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from genai_ray.cli.choices import check_inputs, flag, option
from genai_ray.cli.progress import choose_bar
from genai_ray.cli.tables import add_row, wide_console
from genai_ray.cli.targets import check_targets, write_target
from genai_ray.display import format_count
from genai_ray.errors import ConfigError
from genai_ray.progress import tell_frames

if TYPE_CHECKING:
    from genai_ray.quality import QualityReport

__all__ = ["EXAMPLES", "validate"]

EXAMPLES = """Two results of one video, with a page to look at:

genai-ray validate original.mp4 a.mp4 b.mp4
genai-ray validate original.mp4 a.mp4 --metrics psnr,vmaf --html report.html

Two models: quality against the seconds that each frame took.

genai-ray validate original.mp4 a.mp4 b.mp4 --seconds-per-frame 0.012,0.25 --html report.html"""
"""At the end of the help."""


def validate(
    reference: Annotated[
        str, typer.Argument(help="Video, PNG or JPEG file to compare with, as path or URI.", show_default=False)
    ],
    candidates: Annotated[list[str], typer.Argument(help="Videos or pictures to measure.", show_default=False)],
    metrics: Annotated[
        str, option(help="Some of psnr, ssim, ms-ssim and vmaf.", metavar="A,B,C", default="psnr,ssim")
    ] = "psnr,ssim",
    vmaf_model: Annotated[
        str,
        option(help="Model of VMAF; neg gives no credit for sharpening.", metavar="NAME", default="vmaf_v0.6.1neg"),
    ] = "vmaf_v0.6.1neg",
    threads: Annotated[int | None, option(help="Threads that measure.", metavar="N", default="all cores")] = None,
    seconds_per_frame: Annotated[
        str | None,
        option(
            help="How long each frame of each candidate took to make; - if not known.",
            metavar="A,B,C",
            default="from results.parquet or CANDIDATE.report.json beside it",
        ),
    ] = None,
    csv: Annotated[Path | None, option(help="Write the numbers of every frame.", metavar="FILE")] = None,
    html: Annotated[
        Path | None, option(help="Write a page with the table, curves and the worst frames.", metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "-y", help="Replace existing files.")] = False,
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", help="Print no progress and no table.")] = False,
) -> None:
    """Measure every frame of videos or pictures against a reference.

    Frames pair by time. If one size is a whole multiple of the other, the larger frame is reduced by the mean.
    """
    from genai_ray.validate import validate_videos

    check_inputs([reference, *candidates])
    files = {option: file for option, file in (("--csv", csv), ("--html", html)) if file is not None}
    check_targets(files, [reference, *candidates], may_replace=overwrite)
    wanted = _parse_metrics(metrics)
    durations = _parse_durations(seconds_per_frame, len(candidates))
    with choose_bar(is_quiet=quiet) as shown:
        report = validate_videos(
            reference,
            candidates,
            metrics=wanted,
            vmaf_model=vmaf_model,
            threads=threads,
            seconds_per_frame=durations,
            has_pictures=html is not None,
            on_progress=tell_frames(shown, "measuring"),
        )
    if as_json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    elif not quiet:
        _print_table(report)
    for file, make in ((csv, report.to_csv), (html, report.to_html)):
        if file is not None:
            write_target(file, make().encode(errors="backslashreplace"))  # names need not be UTF-8


def _parse_metrics(words: str) -> list[str]:
    """Turn words into names of Python: ms-ssim is ``ms_ssim`` there."""
    from genai_ray.validate import METRICS

    names = {metric.replace("_", "-"): metric for metric in METRICS}
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    if unknown := [word for word in wanted if word not in names]:
        raise ConfigError(f"--metrics {','.join(unknown)}", ", ".join(names))
    return [names[word] for word in wanted]


def _parse_durations(words: str | None, count: int) -> list[float | None] | None:
    if words is None:
        return None
    allowed = f"{count} numbers above 0, one for each candidate, with commas; - for one that is not known"
    try:
        found = [None if word.strip() == "-" else float(word) for word in words.split(",")]
    except ValueError as exc:
        raise ConfigError(f"--seconds-per-frame {words}", allowed) from exc
    if len(found) != count or not all(one is None or 0 < one < math.inf for one in found):
        raise ConfigError(f"--seconds-per-frame {words}", allowed)
    return found


def _print_table(report: QualityReport) -> None:
    width, height = report.size
    names = [Column(Text(scores.candidate), justify="right", overflow="fold") for scores in report.candidates]
    table = Table("metric", "pooled", *names, box=None)
    for definition, words, numbers in report.rows():
        add_row(table, definition, words, *numbers)
    console = wide_console()
    frames = format_count(len(report.seconds), "frame")
    console.print(f"{report.reference}: {frames} of {width}x{height}", highlight=False, markup=False)
    for scores in report.candidates:
        for note in scores.notes:
            console.print(f"note: {scores.candidate}: {note}", highlight=False, markup=False)
    console.print(table)
