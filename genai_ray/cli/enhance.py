"""``genai-ray enhance``."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["enhance"]


def enhance(
    inputs: Annotated[list[Path], typer.Argument(help="Video files.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file ending in .mp4, .mkv, .mov or .webm; a folder for several inputs.", show_default=False)
    ],
    model: Annotated[list[str], typer.Option("--model", "-m", help="Model id or .onnx file; again for a chain.", show_default=False)],
    backend: Annotated[ModelBackend | None, typer.Option(help="Runtime. [default: onnx]", show_default=False)] = None,
    precision: Annotated[ModelPrecision | None, typer.Option(help="Number format. [default: fp32]", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    param: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for models that have such a param.", show_default=False)] = None,
    codec: Annotated[str, typer.Option(help="libx264, libx265, libsvtav1, libvpx-vp9, ffv1 or prores_ks.")] = "libx264",
    preset: Annotated[str | None, typer.Option(help="Encoder preset. [default: the encoder's, medium for libx264]", show_default=False)] = None,
    crf: Annotated[float | None, typer.Option(help="Constant rate factor. [default: the encoder's, 18 for libx264]", show_default=False)] = None,
    bit_depth: Annotated[int | None, typer.Option(help="8 or 10. [default: as the source]", show_default=False)] = None,
    encoder_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the encoder.", show_default=False)] = None,
    tile: Annotated[int | None, typer.Option(help="Longest side of a tile in pixels; 0 for never. [default: automatic]", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Frames handed to a session at a time. [default: 8]", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help="Encoder threads of one segment. [default: 1]", show_default=False)] = None,
    segment_frames: Annotated[int | None, typer.Option(help="Most frames in a segment. [default: 128]", show_default=False)] = None,
    max_memory: Annotated[int | None, typer.Option(help="Budget of the model cache in bytes.", show_default=False)] = None,
    profile: Annotated[str | None, typer.Option(help="laptop, cpu-server, gpu-node, cluster, or a YAML file.", show_default=False)] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join.", show_default=False)] = None,
    work_dir: Annotated[Path | None, typer.Option(help="Folder of finished segments.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    allow_truncated: Annotated[bool, typer.Option("--allow-truncated", help="Enhance what is there of a truncated file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of the table.")] = False,
) -> None:
    """Enhance videos with a model or a chain of models; sound, subtitles, times and colours are kept."""
    from genai_ray.catalog import EngineProfile, load_profile
    from genai_ray.enhance import EnhanceOptions, enhance_videos
    from genai_ray.video import Encoding

    base = load_profile(profile) if profile else EngineProfile(name="default")
    options = EnhanceOptions(
        backend=backend or base.backend,
        precision=precision or base.precision,
        device=device,
        params=_parse_params(param or []),
        encoding=Encoding(
            codec=codec,
            preset=preset,
            crf=crf,
            threads=threads if threads is not None else base.threads,
            bit_depth=bit_depth,
            options=_parse_options(encoder_option or []),
        ),
        tile_size_px=tile,
        address=address,
        overwrite=overwrite,
        allow_truncated=allow_truncated,
        work_dir=work_dir,
        batch_size=batch_size if batch_size is not None else base.batch_size,
        segment_frames=segment_frames if segment_frames is not None else base.segment_frames,
        max_memory_bytes=max_memory if max_memory is not None else base.max_memory_bytes,
    )
    console = Console(stderr=True)
    bar = _Bar(console) if console.is_terminal else None
    with bar or nullcontext():
        report = enhance_videos(inputs, output, models=model, options=options, on_progress=bar, started_at=_process_start())
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        _print_table(report)


class _FramesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} fps" if task.speed else "-- fps")


class _Bar:
    """A progress bar on the terminal: frames, frames per second, time left."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames"),
            _FramesPerSecond(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, progress: Any) -> None:
        self._progress.update(self._task, description=progress.stage, completed=progress.frames_done, total=progress.frames_total)


def _parse_params(pairs: list[str]) -> dict[str, float]:
    params = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        try:
            params[name.strip()] = float(value)
        except ValueError:
            found = ""
        if not found or not name.strip():
            raise ConfigError(f"--param {pair}", "NAME=VALUE with a number, such as sigma=0.06")
    return params


def _parse_options(pairs: list[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name.strip():
            raise ConfigError(f"--encoder-option {pair}", "NAME=VALUE, such as tune=film")
        options[name.strip()] = value
    return options


def _print_table(report: Any) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for video in report.videos:
        (width, height), (out_width, out_height) = video.size_in, video.size_out
        table.add_row("video", f"{video.source} -> {video.output}")
        table.add_row("size", f"{width}x{height} -> {out_width}x{out_height}")
        for note in video.notes:
            table.add_row("note", note)
    reused = f" ({report.segments_reused} of {report.segments} segments reused)" if report.segments_reused else ""
    table.add_row("frames", f"{report.frames}{reused}")
    table.add_row("speed", f"{report.fps:.1f} frames/s")
    for use in report.models:
        table.add_row("model", f"{use.model_id}, {use.backend}, {use.precision}, {use.device}")
    table.add_row("seconds", f"{report.elapsed_s:.1f}, of which {report.startup_s:.1f} to start")
    Console(soft_wrap=True).print(table)


def _process_start() -> float:
    """Return ``time.time()`` at the start of this process; where the system does not tell, now."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.time()
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
