"""``split_video``: one file for each scene of a video, exact to the frame: it is encoded anew, by no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genai_ray.enhance.job.clip_plan import lay_timeline
from genai_ray.enhance.job.steps import write_result
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.errors import ConfigError
from genai_ray.files import file_errors, is_remote, temporary_folder
from genai_ray.scenes import Scene, SceneList
from genai_ray.session import count_cores
from genai_ray.video import (
    SUFFIXES,
    Encoding,
    SegmentWriter,
    check_result,
    choose_pixel_format,
    decode_segment,
    validate_encoding,
)

__all__ = ["SceneFile", "check_split", "name_scene_folder", "split_video"]


@dataclass(frozen=True, slots=True)
class SceneFile:
    """The file of one scene."""

    path: str
    """Where it is."""
    frames: int
    """Its frames."""
    notes: tuple[str, ...]
    """What the file has no place for, and how sound was cut."""


def split_video(
    scenes: SceneList,
    folder: str | Path,
    *,
    encoding: Encoding | None = None,
    allow_truncated: bool = False,
    overwrite: bool = False,
    on_file: Callable[[SceneFile], None] | None = None,
) -> tuple[SceneFile, ...]:
    """Write one file for each scene, with exactly its frames, and with its sound, subtitles and chapters.

    Pictures are decoded and encoded anew, because a copy could only begin at a key frame. Files are named after the
    video: ``NAME-001.mp4``. They have its container, or MP4 if that is not one for results.

    Args:
        scenes: From ``find_scenes``.
        folder: Folder of this machine; made if it is missing.
        encoding: Encoder and its settings; None for the default of the container.
        allow_truncated: Whether frames that do not decode at the end are left out.
        overwrite: Whether existing files may be replaced.
        on_file: Called for each file when it is written, in order.

    Returns:
        The files in order.

    Raises:
        ConfigError: If the folder is remote, a file exists already, or a setting does not fit.
        VideoError: If frames do not decode, or writing fails.
    """
    if scenes.plan.pictures is not None:
        raise ConfigError(f"{scenes.path}: scenes of pictures as files", "a video")
    encoding = check_split(scenes.path, folder, encoding=encoding, overwrite=overwrite)
    paths = [_name(scenes.path, folder, scene.index, len(scenes)) for scene in scenes]
    if not overwrite:
        _check_free(paths)
    options = EnhanceOptions(encoding=encoding, allow_truncated=allow_truncated, segment_frames=len(scenes.plan.pts))
    with file_errors(str(folder), "making the folder"):
        os.makedirs(folder, exist_ok=True)
    files: list[SceneFile] = []
    with ThreadPoolExecutor(count_cores()) as pool:
        written = [pool.submit(_write, scenes, scene, path, options) for scene, path in zip(scenes, paths, strict=True)]
        try:
            for future in written:
                files.append(future.result())
                if on_file is not None:
                    on_file(files[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return tuple(files)


def check_split(
    path: str, folder: str | Path, *, encoding: Encoding | None = None, overwrite: bool = False
) -> Encoding:
    """Refuse what would fail, before the scenes are known.

    Args:
        path: Path or URI of the video.
        folder: As ``split_video``.
        encoding: As ``split_video``.
        overwrite: As ``split_video``.

    Returns:
        The settings with an encoder.

    Raises:
        ConfigError: As ``split_video``; of existing files only the first one is looked for.
    """
    if is_remote(str(folder)):
        raise ConfigError(f"scenes into {folder}", "a folder of this machine")
    first = _name(path, folder, 0, 1)
    encoding = (encoding or Encoding()).fit(first.suffix)
    validate_encoding(encoding, first.suffix)
    if not overwrite:
        _check_free([first])
    return encoding


def name_scene_folder(path: str) -> str:
    """Return the usual folder of scenes.

    Args:
        path: Path or URI of the video.

    Returns:
        ``VIDEO-scenes`` in the working folder for a ``VIDEO.mp4`` anywhere.
    """
    return f"{_split_name(path)[0]}-scenes"


def _split_name(path: str) -> tuple[str, str]:
    """Return the name of a video and its suffix; the query of a URI belongs to neither."""
    return os.path.splitext(os.path.basename(path.partition("?")[0] if is_remote(path) else path))


def _name(path: str, folder: str | Path, index: int, count: int) -> Path:
    """Return the file of one of so many scenes."""
    stem, suffix = _split_name(path)
    suffix = suffix.lower() if suffix.lower() in SUFFIXES else SUFFIXES[0]
    return Path(folder, f"{stem}-{index + 1:0{max(3, len(str(count)))}d}{suffix}")


def _check_free(paths: Sequence[Path]) -> None:
    there = [path for path in paths if path.exists()]
    if there:
        raise ConfigError(f"{there[0]} exists", "names that are free", "Pass --overwrite (overwrite=True).")


def _write(scenes: SceneList, scene: Scene, path: Path, common: EnhanceOptions) -> SceneFile:
    """Write the file of one scene; it appears under its name only when it is whole."""
    is_last = scene.stop == len(scenes.plan.pts)
    options = replace(common, start=f"f{scene.start}", end=None if is_last else f"f{scene.stop}")
    timeline, sizes, _ = lay_timeline(scenes.plan, (), options)
    info = timeline.result.info
    encoding = options.encoding
    has_alpha = info.has_alpha and encoding.has_alpha
    choose_pixel_format(encoding, sizes.result, info.pix_fmt, has_alpha=has_alpha)
    notes = check_result(timeline.result, sizes.result, encoding, path.suffix, has_alpha=has_alpha)
    (segment,) = timeline.plan.segments
    count = 0
    with temporary_folder("scene") as folder:
        part = folder / "part.nut"
        with SegmentWriter(part, info=info, size=sizes.result, encoding=encoding, has_alpha=has_alpha) as writer:
            frames = decode_segment(timeline.plan, segment, allow_truncated=options.allow_truncated)
            for frame, moment in zip(frames, timeline.moments(0), strict=not options.allow_truncated):
                alpha = frame.alpha if has_alpha else None
                picture = frame.frame if alpha is None else np.concatenate([frame.frame, alpha], axis=-1)
                writer.write(picture, moment.pts)
                count += 1
        told = write_result(timeline.result, [part], [count], path)
    return SceneFile(str(path), count, tuple(dict.fromkeys((*notes, *told))))
