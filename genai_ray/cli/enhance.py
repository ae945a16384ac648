"""``genai-ray enhance``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from genai_ray.cli.choices import Backend, Precision, option
from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision

if TYPE_CHECKING:
    from genai_ray.enhance import EnhanceReport, JobForecast
    from genai_ray.enhance import Progress as JobProgress

__all__ = ["enhance"]

Value = TypeVar("Value")

LINE_EVERY_S = 10.0

MOST_SHOWN = 20
"""Videos that the table shows one by one."""


def enhance(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Videos, folders, patterns or URIs; or one manifest (.csv, .parquet).", show_default=False),
    ],
    output: Annotated[
        str,
        option("--output", "-o", help="A file ending in .mp4, .mkv, .mov or .webm; a folder for several inputs."),
    ],
    model: Annotated[list[str], option("--model", "-m", help="Model id or .onnx file; repeat it for a chain.")],
    backend: Annotated[Backend | None, option(help="Runtime. [default: onnx]")] = None,
    precision: Annotated[Precision | None, option(help="Number format. [default: fp32]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[str, typer.Option(help="Number of devices that each model is loaded on, or all.")] = "1",
    device_kind: Annotated[str | None, option(help="Kinds of devices, such as L4,A10. [default: any]")] = None,
    param: Annotated[list[str] | None, option(help="NAME=VALUE, a param of the model.")] = None,
    factor: Annotated[
        int | None, option(help="Frames out for each frame in, with an interpolation model. [default: 2]")
    ] = None,
    fps: Annotated[
        str | None, option(help="Frames per second out, instead of --factor, such as 60 or 60000/1001.")
    ] = None,
    scene_threshold: Annotated[
        float, typer.Option(help="Neighbours less similar than this are a scene cut; 0 for never.")
    ] = 0.3,
    background: Annotated[
        str | None,
        option(help="alpha, blur, blur:RADIUS, mask or #RRGGBB, with a background model. [default: #00b140]"),
    ] = None,
    codec: Annotated[
        str | None,
        option(
            help="libx264, libx265, libsvtav1, libvpx-vp9, ffv1, prores_ks, png, mjpeg. "
            "[default: by suffix, else libx264]"
        ),
    ] = None,
    preset: Annotated[str | None, option(help="Encoder preset. [default: the encoder's, medium for libx264]")] = None,
    crf: Annotated[float | None, option(help="Constant rate factor. [default: the encoder's, 18 for libx264]")] = None,
    bit_depth: Annotated[int | None, option(help="8 or 10. [default: as the source]")] = None,
    encoder_option: Annotated[list[str] | None, option(help="NAME=VALUE of the encoder.")] = None,
    tile: Annotated[
        int | None, option(help="Longest side of a tile in pixels; 0 for never. [default: automatic]")
    ] = None,
    batch_size: Annotated[int | None, option(help="Frames handed to a session at a time. [default: 8]")] = None,
    threads: Annotated[int | None, option(help="Encoder threads of one segment. [default: 1]")] = None,
    segment_frames: Annotated[int | None, option(help="Most frames in a segment. [default: 128]")] = None,
    max_memory: Annotated[int | None, option(help="Budget of the model cache in bytes.")] = None,
    profile: Annotated[str | None, option(help="laptop, cpu-server, gpu-node, cluster, or a YAML file.")] = None,
    address: Annotated[str | None, option(help="Ray cluster to join.")] = None,
    work_dir: Annotated[str | None, option(help="Folder or URI of finished segments.")] = None,
    name: Annotated[
        str, typer.Option(help="Pattern of names in an output folder, with {folder}, {stem}, {suffix} and {index}.")
    ] = "{folder}{stem}{suffix}",
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End the job at the first video that fails.")] = False,
    max_failures: Annotated[int, typer.Option(min=0, help="Videos that may fail before the exit code is 1.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Enhance the part of a truncated file that is there.")
    ] = False,
    any_format: Annotated[
        bool,
        typer.Option("--any-format", help="Also read files that name other files and hosts, such as playlists."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the expected time; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of the table.")] = False,
) -> None:
    """Enhance videos with a model or a chain of models; sound, subtitles, times and colours are kept."""
    from genai_ray.catalog import JobProfile
    from genai_ray.enhance import EnhanceOptions, enhance_videos, forecast_videos, parse_background, parse_rate
    from genai_ray.video import Encoding

    base = JobProfile.load(profile) if profile else JobProfile(name="default")
    options = EnhanceOptions(
        backend=ModelBackend(backend) if backend else base.backend,
        precision=ModelPrecision(precision) if precision else base.precision,
        device=device,
        replicas=_parse_devices(devices),
        device_kinds=tuple(word.strip() for word in device_kind.split(",")) if device_kind else (),
        params=_parse_pairs(param, float, "--param", "NAME=VALUE with a number, such as sigma=0.06"),
        background=parse_background(background) if background is not None else None,
        factor=factor,
        fps=parse_rate(fps) if fps is not None else None,
        scene_threshold=scene_threshold,
        encoding=Encoding(
            codec=codec,
            preset=preset,
            crf=crf,
            threads=threads if threads is not None else base.threads,
            bit_depth=bit_depth,
            options=_parse_pairs(encoder_option, str, "--encoder-option", "NAME=VALUE, such as tune=film"),
        ),
        tile_size_px=tile,
        address=address,
        overwrite=overwrite,
        allow_truncated=allow_truncated,
        any_format=any_format,
        work_dir=work_dir,
        name=name,
        fail_fast=fail_fast,
        batch_size=batch_size if batch_size is not None else base.batch_size,
        segment_frames=segment_frames if segment_frames is not None else base.segment_frames,
        max_memory_bytes=max_memory if max_memory is not None else base.max_memory_bytes,
    )
    if dry_run:
        _print_forecast(forecast_videos(inputs, output, models=model, options=options), as_json)
        return
    console = Console(stderr=True)
    shown = _Bar(console) if console.is_terminal else _Lines()
    before_s = time.process_time()  # imports, in CPU seconds: this process may have begun as a shell
    with shown, redirect_stdout(sys.stderr):  # Ray prints what happens to its processes
        report = enhance_videos(inputs, output, models=model, options=options, on_progress=shown)
    report = replace(report, elapsed_s=report.elapsed_s + before_s, startup_s=report.startup_s + before_s)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        _print_table(report)
    if report.clips_failed > max_failures:
        raise typer.Exit(1)


class _FramesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} fps" if task.speed else "-- fps")


class _Lines:
    """One line every ten seconds, for output that is not a terminal."""

    def __init__(self) -> None:
        self._printed_s = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: JobProgress) -> None:
        if time.monotonic() - self._printed_s < LINE_EVERY_S:
            return
        self._printed_s = time.monotonic()
        frames = f"{progress.frames_done} of {progress.frames_total} frames"
        print(f"{progress.stage}: {_clips_of(progress)}{frames}{_left_of(progress)}", file=sys.stderr)


def _clips_of(progress: JobProgress) -> str:
    if progress.clips_total == 1:
        return ""
    failed = f" ({progress.clips_failed} failed)" if progress.clips_failed else ""
    return f"{progress.clips_done} of {progress.clips_total} videos{failed}, "


def _left_of(progress: JobProgress) -> str:
    return "" if progress.seconds_left is None else f", {timedelta(seconds=round(progress.seconds_left))} left"


class _Bar:
    """A progress bar on the terminal: videos if there are several, frames, frames per second, time left."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames"),
            _FramesPerSecond(),
            TextColumn("{task.fields[left]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("starting", total=None, left="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, progress: JobProgress) -> None:
        self._progress.update(
            self._task,
            completed=progress.frames_done,
            total=progress.frames_total,
            description=f"{_clips_of(progress)}{progress.stage}",
            left=_left_of(progress).lstrip(", "),
        )


def _parse_pairs(
    pairs: list[str] | None, convert: Callable[[str], Value], refused: str, allowed: str
) -> dict[str, Value]:
    parsed = {}
    for pair in pairs or ():
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise ConfigError(f"{refused} {pair}", allowed)
        try:
            parsed[name.strip()] = convert(value)
        except ValueError as exc:
            raise ConfigError(f"{refused} {pair}", allowed) from exc
    return parsed


def _parse_devices(word: str) -> int | None:
    if word == "all":
        return None
    if not word.isdigit() or int(word) < 1:
        raise ConfigError(f"--devices {word}", "all, or a number of 1 or more")
    return int(word)


def _print_forecast(forecast: JobForecast, as_json: bool) -> None:
    if as_json:
        print(json.dumps(forecast.to_dict()))
        return
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


def _print_table(report: EnhanceReport) -> None:
    table = Table("", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0))
    for video in report.videos if report.clips <= MOST_SHOWN else ():
        table.add_row(
            "video", f"{video.source} -> {video.output}{' (done before)' if video.status == 'skipped' else ''}"
        )
        if video.frames and video.size_in[0]:
            (width, height), (out_width, out_height) = video.size_in, video.size_out
            table.add_row("size", f"{width}x{height} -> {out_width}x{out_height}")
        if video.share_outside_rgb:
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
