"""Tables on standard output: the plan of a job, what became of it, and the console for tables of any command."""

from __future__ import annotations

import sys
from collections.abc import Set
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from genai_ray.display import format_bytes, format_count

if TYPE_CHECKING:
    from genai_ray.enhance import EnhanceReport, JobForecast
    from genai_ray.enhance.job.clip_outcome import ClipOutcome

__all__ = ["add_row", "print_failures", "print_forecast", "print_report", "wide_console"]

MOST_SHOWN = 20
"""Videos that a table shows one by one."""


def wide_console() -> Console:
    """Return a console of the terminal's width; output to a file or pipe gets room for every column.

    Returns:
        The console of standard output.
    """
    console = Console()
    return console if console.is_terminal else Console(width=200)


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text: brackets in names of files and in errors are no markup.

    Args:
        table: The table.
        cells: One text for each column.
    """
    table.add_row(*map(Text, cells))


def print_failures(report: EnhanceReport) -> None:
    """Print a line on standard error for each video that failed.

    Args:
        report: The result of ``enhance_videos``.
    """
    failed = [video for video in report.videos if video.status == "failed"]
    for video in failed[:MOST_SHOWN]:
        print(f"failed: {_failure_of(video)}", file=sys.stderr)
    if len(failed) > MOST_SHOWN:
        print(f"failed: {len(failed) - MOST_SHOWN} more videos", file=sys.stderr)


def _failure_of(video: ClipOutcome) -> str:
    return video.error if video.source in video.error else f"{video.source}: {video.error}"


def print_forecast(forecast: JobForecast) -> None:
    """Print what a job would do.

    Args:
        forecast: The result of ``forecast_videos``.
    """
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    for clip in forecast.clips[:MOST_SHOWN]:
        add_row(table, "video", f"{clip.source} -> {clip.output}")
        if clip.status == "todo":
            (width, height), (out_width, out_height) = clip.size_in, clip.size_out
            done = f" ({clip.segments_done} finished)" if clip.segments_done else ""
            sizes = f"{width}x{height} -> {out_width}x{out_height}"
            frames, segments = format_count(clip.frames, "frame"), format_count(clip.segments, "segment")
            add_row(table, "", f"{sizes}, {frames} out, {segments}{done}")
            for note in clip.notes:
                add_row(table, "note", note)
        else:
            add_row(table, "", clip.error or "done before")
    if len(forecast.clips) > MOST_SHOWN:
        add_row(table, "", f"and {len(forecast.clips) - MOST_SHOWN} more videos (--json has all)")
    states = [clip.status for clip in forecast.clips]
    add_row(
        table,
        "videos",
        f"{states.count('todo')} to do, {states.count('done')} done before, {states.count('failed')} would fail",
    )
    add_row(
        table,
        "total",
        f"{format_count(forecast.frames, 'frame')} in {format_count(forecast.segments, 'segment')}, "
        f"from {format_bytes(forecast.input_bytes)}",
    )
    for model_id, num_bytes in forecast.models.items():
        add_row(table, "model", f"{model_id}, {format_bytes(num_bytes)}")
    if forecast.choice is not None:
        add_row(table, "auto", str(forecast.choice))
    if forecast.expected_s is not None:
        whole = f"about {timedelta(seconds=round(forecast.expected_s))} on this machine alone"
        models = f"the models take {forecast.seconds_per_frame:.2g} s a frame"
        add_row(table, "time", f"{whole}, {models}, from a trial on some frames")
    Console(soft_wrap=True).print(table)


def print_report(report: EnhanceReport, *, is_verbose: bool, told: Set[str] = frozenset()) -> None:
    """Print what a job has done.

    Args:
        report: The result of ``enhance_videos``.
        is_verbose: Whether to say what need not trouble anybody.
        told: Notes that were printed while it ran, with their files if these have names: they are not printed again.
    """
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    for video in report.videos if report.clips <= MOST_SHOWN else ():
        add_row(
            table, "video", f"{video.source} -> {video.output}{' (done before)' if video.status == 'skipped' else ''}"
        )
        if video.frames and video.size_in[0]:
            (width, height), (out_width, out_height) = video.size_in, video.size_out
            add_row(table, "size", f"{width}x{height} -> {out_width}x{out_height}")
        if video.record:
            add_row(table, "record", video.record)
        if is_verbose and video.share_outside_rgb:
            add_row(table, "", f"{video.share_outside_rgb:.1%} of pixels lie outside the RGB gamut")
        for note in video.notes:
            if told.isdisjoint((note, f"{video.source}: {note}")):
                add_row(table, "note", note)
    failed = [video for video in report.videos if video.status == "failed"]
    for video in failed[:MOST_SHOWN]:
        add_row(table, "failed", _failure_of(video))
    if report.results is not None:
        add_row(
            table,
            "videos",
            f"{report.clips}, {report.clips_skipped} done before, {report.clips_failed} failed; {report.results}",
        )
    reused = f" ({report.segments_reused} of {report.segments} segments reused)" if report.segments_reused else ""
    add_row(table, "frames", f"{report.frames}{reused}")
    if report.clips == report.clips_skipped:
        add_row(table, "seconds", f"{report.elapsed_s:.1f}: nothing was left to do")
    else:
        _add_work(table, report)
    Console(soft_wrap=True).print(table)


def _add_work(table: Table, report: EnhanceReport) -> None:
    """Add what computed, and how fast."""
    counts = [format_count(report.frames_checked, "frame")]
    if report.segments_recomputed:
        counts.append(f"{format_count(report.segments_recomputed, 'segment')} computed again in fp32")
    if report.segments_failed:
        counts.append(f"{format_count(report.segments_failed, 'segment')} wrong")
    add_row(table, "checked", ", ".join(counts))
    add_row(table, "speed", f"{report.fps:.1f} frames/s")
    for use in report.models:
        add_row(table, "model", f"{use.model_id}, {use.backend}, {use.precision}, {use.device_kind or use.device}")
    if report.choice is not None:
        add_row(table, "auto", str(report.choice))
    add_row(table, "seconds", f"{report.elapsed_s:.1f}, {report.startup_s:.1f} of them to start")
