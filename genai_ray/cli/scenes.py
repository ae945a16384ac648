"""``genai-ray scenes``: where the scenes of a video begin and end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from genai_ray.cli.choices import check_inputs, flag, option, words
from genai_ray.cli.tables import add_row, wide_console
from genai_ray.display import format_count
from genai_ray.errors import ConfigError

if TYPE_CHECKING:
    from genai_ray.enhance import SceneFile
    from genai_ray.scenes import SceneList

__all__ = ["EXAMPLES", "scenes"]

EXAMPLES = """A table, an edit decision list for an editor, or one file for each scene:

genai-ray scenes in.mp4
genai-ray scenes in.mp4 --edl > in.edl
genai-ray scenes in.mp4 --split -o scenes"""
"""At the end of the help."""


class Counting(StrEnum):
    """How timecodes count frames."""

    AUTO = "auto"
    DROP = "drop"
    NON_DROP = "non-drop"


def scenes(
    video: Annotated[str, typer.Argument(help="A video, as path or URI.", show_default=False)],
    as_json: Annotated[bool, flag("--json", help="Print one line of JSON, not a table.")] = False,
    edl: Annotated[bool, flag("--edl", help="Print an edit decision list (CMX 3600), not a table.")] = False,
    split: Annotated[bool, flag("--split", help="Write one file for each scene, exact to the frame.")] = False,
    output: Annotated[
        Path | None,
        option("--output", "-o", help="With --split: folder of the files.", metavar="FOLDER", default="VIDEO-scenes"),
    ] = None,
    probability: Annotated[
        float, option(help="Least probability of a cut; less finds more.", metavar="P", default="0.5")
    ] = 0.5,
    timecode: Annotated[
        Counting,
        option(
            help=f"With --edl: {words(Counting)} frame.", metavar="KIND", default="auto: as the file, or drop at 29.97"
        ),
    ] = Counting.AUTO,
    codec: Annotated[
        str | None, option(help="With --split: encoder, as in `enhance`.", metavar="NAME", default="by the container")
    ] = None,
    crf: Annotated[
        float | None, option(help="With --split: quality, less is better.", metavar="N", default="18 for H.264")
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "-y", help="Replace existing files.")] = False,
    allow_truncated: Annotated[bool, flag("--allow-truncated", help="Take what is there of a cut-off file.")] = False,
    any_format: Annotated[
        bool, flag("--any-format", help="Also read files that name other files and hosts, such as playlists.")
    ] = False,
    quiet: Annotated[bool, flag("--quiet", "-q", help="Print no progress.")] = False,
) -> None:
    """Find the scenes of a video: cuts, fades and dissolves, with frames and exact times.

    Decodes every frame and runs the packaged network TransNetV2 on the CPU: 20 ms of one core for a frame.
    """
    from genai_ray.scenes import build_edl, check_probability, find_scenes, list_scenes
    from genai_ray.video import Encoding, plan_source

    check_inputs([video])
    _check_options(edl=edl, split=split, as_json=as_json, output=output, encoding=(codec, crf), timecode=timecode)
    check_probability(probability)
    folder = output or Path()
    encoding = Encoding(codec=codec, crf=crf)
    if split:
        from genai_ray.enhance import check_split, name_scene_folder, split_video  # takes seconds

        folder = output if output is not None else Path(name_scene_folder(video))
        check_split(video, folder, encoding=encoding, overwrite=overwrite)
    if edl:  # a list of one scene shows whether there can be one, before minutes of searching
        build_edl(list_scenes(plan_source(video, any_format=any_format), ()), counting=timecode.value)
    with _tell_progress(is_quiet=quiet) as tell:
        found = find_scenes(
            video, probability=probability, any_format=any_format, allow_truncated=allow_truncated, on_progress=tell
        )
    files: tuple[SceneFile, ...] = ()
    if split:
        files = split_video(
            found,
            folder,
            encoding=encoding,
            allow_truncated=allow_truncated,
            overwrite=overwrite,
            on_file=partial(_tell_file, is_quiet=quiet),
        )
    if edl:
        _warn_of_events(found)
        print(build_edl(found, counting=timecode.value), end="")
    elif as_json:
        named = {"files": [{"path": one.path, "frames": one.frames, "notes": one.notes} for one in files]}
        print(json.dumps(found.to_dict() | (named if split else {}), allow_nan=False))
    elif not split:
        _print_table(found)


def _check_options(
    *,
    edl: bool,
    split: bool,
    as_json: bool,
    output: Path | None,
    encoding: tuple[str | None, float | None],
    timecode: Counting,
) -> None:
    if edl and (as_json or split):
        raise ConfigError(f"--edl and {'--json' if as_json else '--split'}", "one of them")
    if not split and (output is not None or encoding != (None, None)):
        raise ConfigError("--output, --codec or --crf without --split", "with --split", "Redirect other output: > FILE")
    if not edl and timecode is not Counting.AUTO:
        raise ConfigError("--timecode without --edl", "with --edl")


def _tell_file(file: SceneFile, *, is_quiet: bool) -> None:
    if not is_quiet:
        print(f"{file.path}: {format_count(file.frames, 'frame')}", file=sys.stderr)
    for note in file.notes:
        print(f"note: {file.path}: {note}", file=sys.stderr)


def _warn_of_events(found: SceneList) -> None:
    from genai_ray.scenes import MAX_EVENTS

    if len(found) > MAX_EVENTS:
        print(
            f"note: {len(found)} scenes; CMX 3600 has numbers for {MAX_EVENTS}, and some editors refuse more",
            file=sys.stderr,
        )


@contextmanager
def _tell_progress(*, is_quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("searching"), BarColumn(), TextColumn("{task.completed} frames"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("searching", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_table(found: SceneList) -> None:
    table = Table(box=None)
    for name in ("scene", "first frame", "last frame", "frames", "begins", "lasts"):
        table.add_column(name, justify="right", no_wrap=True)
    for scene in found:
        frames = (scene.start, scene.stop - 1, scene.stop - scene.start)
        times = (f"{float(scene.start_s):.3f} s", f"{float(scene.stop_s - scene.start_s):.3f} s")
        add_row(table, str(scene.index + 1), *map(str, frames), *times)
    wide_console().print(table)
