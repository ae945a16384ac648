"""Opening files: the one place where PyAV's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer

from genai_ray.errors import VideoError

__all__ = ["av_errors", "open_video"]


@contextmanager
def av_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn PyAV's errors into ``VideoError``.

    Args:
        path: The file that is worked on, named in the error.
        doing: What is being done, in the words of the error.

    Yields:
        Nothing.

    Raises:
        VideoError: If PyAV or the file system fails within.
    """
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as exc:
        if isinstance(exc, VideoError):
            raise
        raise VideoError(f"{path}: {doing} failed: {exc}") from exc


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a file that must have a video stream.

    Args:
        path: The file.

    Yields:
        The container, closed at the end.

    Raises:
        VideoError: If it is missing, empty, not a video, or has no video stream; and for every PyAV error within.
    """
    if not path.is_file():
        raise VideoError(f"{path}: {'not a file' if path.exists() else 'no such file'}", "a video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty", "a video file")
    with av_errors(path, "reading"):
        try:
            container = av.open(str(path))
        except av.FFmpegError as exc:
            raise VideoError(f"{path}: not a video, or cut before its index ({exc})", "a file that FFmpeg can read") from exc
        with container:
            if not any(not stream.disposition & av.stream.Disposition.attached_pic for stream in container.streams.video):
                raise VideoError(f"{path}: no video stream (it has {len(container.streams.audio)} of audio)", "a file with a picture")
            yield container
