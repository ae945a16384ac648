"""Tables on standard output: the plan of a job, what became of it, and the console for tables of any command."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from genai_ray.enhance import EnhanceReport, JobForecast

__all__ = ["print_forecast", "print_report", "wide_console"]

MOST_SHOWN = 20
"""Videos that a table shows one by one."""


def wide_console() -> Console:
    """Return a console of the terminal's width; output to a file or pipe gets room for every column.

    Returns:
        The console of standard output.
    """
    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_forecast(forecast: JobForecast) -> None:
    """Print what a job would do.

    Args:
        forecast: The result of ``forecast_videos``.
    """
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    for clip in forecast.clips[:MOST_SHOWN]:
        table.add_row("video", f"{clip.source} -> {clip.output}")
        if clip.status == "todo":
            (width, height), (out_width, out_height) = clip.size_in, clip.size_out
            done = f" ({clip.segments_done} finished)" if clip.segments_done else ""
            sizes = f"{width}x{height} -> {out_width}x{out_height}"
            table.add_row("", f"{sizes}, {clip.frames} frames out, {clip.segments} segments{done}")
        else:
            table.add_row("", clip.error or "done before")
    if len(forecast.clips) > MOST_SHOWN:
        table.add_row("", f"and {len(forecast.clips) - MOST_SHOWN} more videos (--json has all)")
    states = [clip.status for clip in forecast.clips]
    table.add_row(
        "videos",
        f"{states.count('todo')} to do, {states.count('done')} done before, {states.count('failed')} would fail",
    )
    table.add_row(
        "total", f"{forecast.frames} frames in {forecast.segments} segments, from {forecast.input_bytes / 1e6:.1f} MB"
    )
    for model_id, num_bytes in forecast.models.items():
        table.add_row("model", f"{model_id}, {num_bytes / 1e6:.0f} MB")
    if forecast.expected_s is not None:
        table.add_row(
            "time",
            f"about {timedelta(seconds=round(forecast.expected_s))} on this machine alone, from a trial on some frames",
        )
    Console(soft_wrap=True).print(table)


def print_report(report: EnhanceReport, *, is_verbose: bool) -> None:
    """Print what a job has done.

    Args:
        report: The result of ``enhance_videos``.
        is_verbose: Whether to say what need not trouble anybody.
    """
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    for video in report.videos if report.clips <= MOST_SHOWN else ():
        table.add_row(
            "video", f"{video.source} -> {video.output}{' (done before)' if video.status == 'skipped' else ''}"
        )
        if video.frames and video.size_in[0]:
            (width, height), (out_width, out_height) = video.size_in, video.size_out
            table.add_row("size", f"{width}x{height} -> {out_width}x{out_height}")
        if is_verbose and video.share_outside_rgb:
            table.add_row("", f"{video.share_outside_rgb:.1%} of pixels lie outside the RGB gamut")
        for note in video.notes:
            table.add_row("note", note)
    failed = [video for video in report.videos if video.status == "failed"]
    for video in failed[:MOST_SHOWN]:
        table.add_row("failed", video.error if video.source in video.error else f"{video.source}: {video.error}")
    if report.results is not None:
        table.add_row(
            "videos",
            f"{report.clips}, {report.clips_skipped} done before, {report.clips_failed} failed; {report.results}",
        )
    reused = f" ({report.segments_reused} of {report.segments} segments reused)" if report.segments_reused else ""
    table.add_row("frames", f"{report.frames}{reused}")
    table.add_row("speed", f"{report.fps:.1f} frames/s")
    for use in report.models:
        table.add_row("model", f"{use.model_id}, {use.backend}, {use.precision}, {use.device_kind or use.device}")
    table.add_row("seconds", f"{report.elapsed_s:.1f}, {report.startup_s:.1f} of them to start")
    Console(soft_wrap=True).print(table)
