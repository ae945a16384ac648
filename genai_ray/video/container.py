"""Opens video files, and maps PyAV's errors to ``VideoError``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from genai_ray.errors import GenAIRayError, VideoError
from genai_ray.files import find_facts, is_remote, open_to_read

__all__ = [
    "av_errors",
    "check_container",
    "describe_libraries",
    "explain",
    "main_stream",
    "open_video",
    "read_sound_starts",
    "read_timecode",
]

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,mxf,nut,dv,rm,ivf,gif,apng,yuv4mpegpipe,"
    "h264,hevc,m4v,mpegvideo,obu"
)
"""Formats of files that hold their own packets; without playlists, which name other files and hosts."""

_OWN_PACKETS = "MP4, MOV, Matroska, WebM, AVI, MPEG and others that hold their own packets"

_HEAD_BYTES = 256
_TEXT = "not a video but text"
_COPY_AGAIN = "Copy or download it again."
_REPAIR = "If the recording itself was cut short, a repair tool for MP4 can make the index anew."
_PAGE = (
    "not a video but a web page",
    "Download the video itself: this is the page around it, or an error of the server.",
)
_PICTURE = ("not a video but a picture", "Pictures are read as .png, .jpg, .webp and .gif: name it so, or convert it.")
_ARCHIVE = ("not a video but an archive", "Unpack it first.")
_OTHERS = (
    (b"<!doctype html", *_PAGE),
    (b"<html", *_PAGE),
    (b"version https://git-lfs", "not a video but a pointer of Git LFS", "Fetch the file itself: git lfs pull."),
    (b"\x89png", *_PICTURE),
    (b"\xff\xd8\xff", *_PICTURE),
    (b"ii*\0", *_PICTURE),  # TIFF
    (b"mm\0*", *_PICTURE),
    (b"bm", *_PICTURE),
    (b"pk\3\4", *_ARCHIVE),
    (b"\x1f\x8b", *_ARCHIVE),
    (b"7z\xbc\xaf", *_ARCHIVE),
)
"""Begins of files that are often taken for videos, in lower case: what they are, and what to do."""


def describe_libraries() -> tuple[str, frozenset[str]]:
    """Say which FFmpeg this is.

    Returns:
        Versions of PyAV and FFmpeg in words, and FFmpeg's names of all encoders and decoders that it has.
    """
    return f"{av.ffmpeg_version_info}, PyAV {av.__version__}", frozenset(av.codecs_available)


@contextmanager
def av_errors(path: str | Path, doing: str) -> Iterator[None]:
    """Turn PyAV's errors into ``VideoError``.

    Args:
        path: The file, named in the error.
        doing: What the block does, for the text of the error.

    Yields:
        Nothing.

    Raises:
        VideoError: If PyAV or the file system fails in the block.
    """
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as exc:
        if isinstance(exc, GenAIRayError):
            raise
        raise VideoError(f"{path}: {doing} failed: {explain(exc)}") from exc


def explain(error: Exception) -> str:
    """Return the text of an error, without the numbers and the names of temporary files that FFmpeg and the system add.

    Args:
        error: An error of PyAV or of the file system.

    Returns:
        The text.
    """
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def open_video(
    place: str | Path,
    *,
    any_format: bool = False,
    options: Mapping[str, str] | None = None,
) -> Iterator[InputContainer]:
    """Open a file that must have a video stream.

    Args:
        place: Path or URI; of a remote file, only the blocks that are read are fetched.
        any_format: Whether the file may name other files and hosts, as playlists do, which are then opened.
        options: Options of FFmpeg's demuxer by name.

    Yields:
        The container, closed at the end.

    Raises:
        VideoError: If the file is missing, empty, not a video, without a video stream or of an unsupported codec; or if
            PyAV or the store fails in the block.
    """
    place = str(place)
    if not is_remote(place) and os.path.exists(place) and not os.path.isfile(place):
        raise VideoError(f"{place}: not a file", "a video file")
    facts = find_facts(place)
    if facts is None:
        raise VideoError(f"{place}: no such file", "a video file")
    if facts.size == 0:
        raise VideoError(f"{place}: the file is empty", "a video file")
    with ExitStack() as stack:
        # FFmpeg never takes a path that begins with "/" for a protocol.
        source: Any = stack.enter_context(open_to_read(place)) if is_remote(place) else os.path.abspath(place)
        limits = {} if any_format else _limits(is_remote=is_remote(place))
        stack.enter_context(av_errors(place, "reading"))
        try:
            container: InputContainer = stack.enter_context(av.open(source, options={**limits, **(options or {})}))
        except av.FFmpegError as exc:
            found, do = _recognise(place)
            # FFmpeg's error for a format that is not in the whitelist
            if limits and isinstance(exc, av.ArgumentError) and found in ("", _TEXT):
                do = (
                    "Playlists and similar files name other files and hosts: "
                    "pass --any-format (any_format=True) if you trust this one."
                )
                raise VideoError(f"{place}: a format that is not read", _OWN_PACKETS, do) from exc
            got = found or "not a video, or damaged at its begin"
            raise VideoError(f"{place}: {got} ({explain(exc)})", _OWN_PACKETS, do) from exc
        if not _moving_pictures(container):
            raise VideoError(
                f"{place}: no video stream ({len(container.streams.audio)} audio streams)", "a file with a video stream"
            )
        if main_stream(container).codec_context is None:
            raise VideoError(
                f"unsupported video codec in {place}", "the codecs of this FFmpeg", "Convert it to another codec first."
            )
        yield container


def _recognise(place: str) -> tuple[str, str]:
    """Say what a file is that FFmpeg does not open, and what to do; "" if it is nothing known."""
    with open_to_read(place) as file:
        head = file.read(_HEAD_BYTES)
    if not head.strip(b"\0"):
        return "not a video but zeros", _COPY_AGAIN
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free"):
        return "cut before its index (moov), or damaged", f"{_COPY_AGAIN} {_REPAIR}"
    start = head.lstrip().lower()
    for begin, found, do in _OTHERS:
        if start.startswith(begin):
            return found, do
    return ("", _COPY_AGAIN) if b"\0" in head or not head.isascii() else (_TEXT, "")


def _limits(*, is_remote: bool) -> dict[str, str]:
    """Return options that keep FFmpeg from opening other files; it does not open remote files at all."""
    return {"format_whitelist": CONTAINERS, "protocol_whitelist": "none" if is_remote else "file"}


def main_stream(container: InputContainer) -> VideoStream:
    """Return the main video stream, never a cover picture.

    Args:
        container: An open container with a video stream.

    Returns:
        Of several streams the largest one marked as default, else the largest; of equal ones the first.
    """

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        codec: Any = stream.codec_context
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        return codec is not None, is_default, 0 if codec is None else codec.width * codec.height

    return max(_moving_pictures(container), key=rank)


def _moving_pictures(container: InputContainer) -> list[VideoStream]:
    return [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]


def read_sound_starts(container: InputContainer) -> list[Fraction]:
    """Read when the sound of each track starts.

    Args:
        container: An open container.

    Returns:
        Seconds of the file's times; negative if a decoder drops what is before zero. Nothing for tracks that do not
        say it.
    """
    return [
        Fraction(stream.start_time * stream.time_base)
        for stream in container.streams.audio
        if stream.start_time is not None and stream.time_base is not None
    ]


def read_timecode(path: str, *, any_format: bool = False) -> str | None:
    """Read the timecode of a video's first frame, as cameras and editors write it.

    Args:
        path: Path or URI of the file.
        any_format: Whether the file may name other files and hosts, as playlists do.

    Returns:
        Such as ``01:00:00:00``, or ``01:00:00;00`` for a drop-frame one; None if the file has none.

    Raises:
        VideoError: If the file cannot be opened.
    """
    with open_video(path, any_format=any_format) as container:
        tags = [main_stream(container).metadata, container.metadata, *(one.metadata for one in container.streams)]
    return next((found["timecode"] for found in tags if found.get("timecode")), None)


def check_container(path: Path) -> None:
    """Check that an untrusted file is a video that holds its own packets; no file that it names is opened.

    Args:
        path: The file.

    Raises:
        VideoError: If it is empty, not a video, a playlist, or of an unsupported format.
    """
    try:
        with av.open(os.path.abspath(path), options=_limits(is_remote=False)) as container:
            has_video = bool(container.streams.video)
    except (av.FFmpegError, OSError, ValueError) as exc:
        raise VideoError(f"{path}: not a supported video ({explain(exc)})", _OWN_PACKETS) from exc
    if not has_video:
        raise VideoError(f"{path}: no video stream", "a file with a video stream")
