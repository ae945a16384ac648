"""``genai-ray validate``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from genai_ray.cli.choices import option
from genai_ray.errors import ConfigError

if TYPE_CHECKING:
    from genai_ray.quality import QualityReport

__all__ = ["validate"]

LINE_EVERY_S = 10.0


def validate(
    reference: Annotated[str, typer.Argument(help="Video or picture to compare with.", show_default=False)],
    candidates: Annotated[list[str], typer.Argument(help="Videos or pictures to measure.", show_default=False)],
    metrics: Annotated[str, typer.Option(help="Some of psnr, ssim, ms-ssim and vmaf.")] = "psnr,ssim",
    vmaf_model: Annotated[
        str, typer.Option(help="Model of VMAF; neg gives no credit for sharpening.")
    ] = "vmaf_v0.6.1neg",
    threads: Annotated[int | None, option(help="Threads that measure.", default="all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of the table.")] = False,
    csv: Annotated[Path | None, option(help="File for the numbers of every frame.")] = None,
    html: Annotated[Path | None, option(help="File for a page with curves and the worst frames.")] = None,
) -> None:
    """Measure every frame of videos or pictures against a reference.

    Frames pair by time. If a size is a whole multiple of the other, the larger frame is reduced by the mean.
    """
    from genai_ray.validate import validate_videos

    for file in (csv, html):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{file}: its folder does not exist", do=f"Make it first: mkdir -p {file.parent}")
    words = [word.strip() for word in metrics.split(",") if word.strip()]
    console = Console(stderr=True)
    with _Bar(console) if console.is_terminal else _Lines() as shown:
        report = validate_videos(
            reference, candidates, metrics=words, vmaf_model=vmaf_model, threads=threads, on_progress=shown
        )
    for file, make in ((csv, report.to_csv), (html, report.to_html)):
        if file is not None:
            _write(file, make())
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        _print_table(report)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{file}: writing failed: {exc.strerror}") from exc


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
    names = [Column(scores.candidate, justify="right", overflow="fold") for scores in report.candidates]
    table = Table("metric", "pooled", *names, box=None)
    for definition, words, numbers in report.rows():
        table.add_row(definition, words, *numbers)
    console = Console(soft_wrap=True)
    console.print(
        f"{report.reference}: {len(report.seconds)} frames of {width}x{height}", highlight=False, markup=False
    )
    for scores in report.candidates:
        for note in scores.notes:
            console.print(f"note: {scores.candidate}: {note}", highlight=False, markup=False)
    console.print(table)
