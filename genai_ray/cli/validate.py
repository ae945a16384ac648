"""``genai-ray validate``."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from genai_ray.cli.choices import flag, option
from genai_ray.cli.tables import add_row, wide_console
from genai_ray.errors import ConfigError

if TYPE_CHECKING:
    from genai_ray.quality import QualityReport

__all__ = ["EXAMPLES", "validate"]

EXAMPLES = """Two results of one video, with a page to look at:

genai-ray validate original.mp4 a.mp4 b.mp4
genai-ray validate original.mp4 a.mp4 --metrics psnr,vmaf --html report.html"""
"""At the end of the help."""

LINE_EVERY_S = 10.0


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

    _check_targets([file for file in (csv, html) if file is not None], [reference, *candidates], overwrite)
    words = [word.strip() for word in metrics.split(",") if word.strip()]
    console = Console(stderr=True)
    with nullcontext() if quiet else _Bar(console) if console.is_terminal else _Lines() as shown:
        report = validate_videos(
            reference, candidates, metrics=words, vmaf_model=vmaf_model, threads=threads, on_progress=shown
        )
    if as_json:
        print(json.dumps(report.to_dict()))
    elif not quiet:
        _print_table(report)
    for file, make in ((csv, report.to_csv), (html, report.to_html)):
        if file is not None:
            _write(file.absolute(), make())


def _check_targets(files: list[Path], inputs: list[str], overwrite: bool) -> None:
    """Refuse files that cannot be written, before hours of measuring."""
    measured = {os.path.realpath(path) for path in inputs}
    for number, file in enumerate(files):
        place = os.path.realpath(file)
        if place in measured:
            raise ConfigError(f"{file} is one of the files to measure", do="Choose another file.")
        if place in map(os.path.realpath, files[:number]):
            raise ConfigError(f"{file} for both --csv and --html", do="Choose two files.")
        if file.is_dir():
            raise ConfigError(f"{file} is a folder", "the name of a file")
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} exists", do="Choose another file, or pass --overwrite.")


def _write(file: Path, text: str) -> None:
    from genai_ray.files import discard, file_errors, open_folder, publish

    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with open_folder(str(file.parent)), file_errors(str(file), "writing"):
        try:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8
            publish(partial, str(file))
        finally:
            discard(partial)


class _Lines:
    """One line every ten seconds, for output that is not a terminal."""

    def __init__(self) -> None:
        self._printed_s = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._printed_s >= LINE_EVERY_S:
            self._printed_s = time.monotonic()
            print(f"measuring: {done} of {total} frames", file=sys.stderr)


class _Bar:
    """A progress bar on the terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


def _print_table(report: QualityReport) -> None:
    width, height = report.size
    names = [Column(Text(scores.candidate), justify="right", overflow="fold") for scores in report.candidates]
    table = Table("metric", "pooled", *names, box=None)
    for definition, words, numbers in report.rows():
        add_row(table, definition, words, *numbers)
    console = wide_console()
    console.print(
        f"{report.reference}: {len(report.seconds)} frames of {width}x{height}", highlight=False, markup=False
    )
    for scores in report.candidates:
        for note in scores.notes:
            console.print(f"note: {scores.candidate}: {note}", highlight=False, markup=False)
    console.print(table)
