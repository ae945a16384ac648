"""What a job reads: a video, a picture, an animation, or numbered pictures; planned and decoded by the same functions.

Pictures are frames of a plan like those of a video, upright and with their own alpha. A sequence of numbered pictures
has the rate that is asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import InvalidInputError, VideoError
from genai_ray.files import find_facts, is_numbered, is_remote, list_numbered, open_to_read
from genai_ray.types import full_range
from genai_ray.video.codecs import IMAGE_SOURCE_SUFFIXES
from genai_ray.video.colour import shrink_rgb
from genai_ray.video.info import BT709, HD_LINES, LIMITED, SMPTE170M, UNSPECIFIED, Colour, VideoInfo, describe_video
from genai_ray.video.pictures.animations import Animation, decode_animation, is_animation, read_animation
from genai_ray.video.pictures.images import PictureFacts, decode_picture, describe_picture
from genai_ray.video.reading.decode import DecodedFrame, decode_segment, decode_segment_small
from genai_ray.video.reading.plan import PictureSource, VideoPlan, plan_video
from genai_ray.video.reading.ranges import Segment, cut_segments

__all__ = ["decode_small", "decode_source", "describe_source", "is_picture", "is_sequence", "plan_source"]

MAX_PIXELS = 178_956_970
"""Most pixels of a picture: beyond, Pillow takes a file for an attack."""

MAX_BYTES = 2 * 1024**3
"""Most bytes of a picture's file, which is read as a whole."""

DEFAULT_RATE = Fraction(25)
"""Rate of a sequence that is written as pictures again, which have no times."""

_PNG_END_BYTES = 12
_RIFF_HEADER_BYTES = 8

_ALLOWED = "a PNG, JPEG, WebP or GIF file"


def is_picture(source: str) -> bool:
    """Tell whether an input is a picture, an animation, or a pattern of pictures, by its name.

    Args:
        source: Path or URI.

    Returns:
        Whether its name ends as pictures do; the file is not opened.
    """
    name = source.partition("?")[0] if is_remote(source) else source
    return os.path.splitext(name)[1].lower() in IMAGE_SOURCE_SUFFIXES


def is_sequence(source: str) -> bool:
    """Tell whether an input is a pattern of numbered pictures.

    Args:
        source: Path or URI.

    Returns:
        Whether it is, such as ``frames/%05d.png``.
    """
    return is_picture(source) and is_numbered(source)


def plan_source(
    path: str, *, segment_frames: int = 128, any_format: bool = False, rate: Fraction | None = None
) -> VideoPlan:
    """Plan a video, a picture, an animation or a sequence.

    Args:
        path: Path or URI, or the pattern of numbered pictures.
        segment_frames: Most frames in a segment, if key frames allow it.
        any_format: As ``plan_video``.
        rate: Pictures of a sequence per second; None for 25.

    Returns:
        The plan.

    Raises:
        VideoError: As ``plan_video``; or if a picture is missing or damaged or has too many pixels, or those of a
            sequence differ in size or colour profile.
    """
    if not is_picture(path):
        return plan_video(path, segment_frames=segment_frames, any_format=any_format)
    if is_sequence(path):
        return _plan_sequence(path, segment_frames, rate or DEFAULT_RATE)
    body = _read_file(path)
    digest = hashlib.sha256(body).hexdigest()
    with _picture_errors(path):
        if is_animation(body, max_pixels=MAX_PIXELS):
            return _plan_animation(path, read_animation(body, max_pixels=MAX_PIXELS), digest, segment_frames)
        facts = describe_picture(body, max_pixels=MAX_PIXELS)
        alpha = decode_picture(body, max_pixels=MAX_PIXELS).alpha
    is_opaque = alpha is None or bool((alpha == full_range(alpha.dtype)).all())
    source = PictureSource((path,), facts.format, facts.icc_profile, facts.is_grey, is_opaque, losses=facts.losses)
    info = _describe(facts, facts.bit_depth, DEFAULT_RATE, has_alpha=facts.has_alpha)
    return _plan(path, source, info, digest, _Times((0,), 1, segment_frames))


def describe_source(path: str, *, any_format: bool = False) -> VideoInfo:
    """Read the facts of a source without its times.

    Args:
        path: As ``plan_source``.
        any_format: As ``plan_video``.

    Returns:
        The facts.

    Raises:
        VideoError: As ``plan_source``.
    """
    return plan_source(path).info if is_picture(path) else describe_video(path, any_format=any_format)[0]


def decode_source(plan: VideoPlan, segment: Segment, *, allow_truncated: bool = False) -> Iterator[DecodedFrame]:
    """Decode one segment of a planned source.

    Args:
        plan: From ``plan_source``.
        segment: The range.
        allow_truncated: As ``decode_segment``; pictures must be whole.

    Yields:
        The frames of the range in order, with the planned times.

    Raises:
        VideoError: As ``decode_segment``; or if a picture is missing, damaged, or another one than was planned.
    """
    source = plan.pictures
    if source is None:
        yield from decode_segment(plan, segment, allow_truncated=allow_truncated)
        return
    if source.is_animation:
        body = _read_file(plan.path)
        with _picture_errors(plan.path):
            frames = decode_animation(body, segment.start, segment.stop, max_pixels=MAX_PIXELS)
            for index, frame in enumerate(frames, segment.start):
                alpha = np.ascontiguousarray(frame[..., 3:]) if plan.info.has_alpha else None
                _check_frame(plan, index, frame, plan.path)
                yield DecodedFrame(index, plan.pts[index], np.ascontiguousarray(frame[..., :3]), alpha)
        return
    for index in range(segment.start, segment.stop):
        yield _decode_still(plan, source.files[index], index)


def decode_small(
    plan: VideoPlan, segment: Segment, size: tuple[int, int], *, allow_truncated: bool = False
) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode one segment of a planned source as small pictures, for what looks at all of it.

    Args:
        plan: From ``plan_source``.
        segment: The range.
        size: (width, height) of the pictures, as a player turns them; frames are stretched.
        allow_truncated: As ``decode_segment``; pictures must be whole.

    Yields:
        The frames of the range in order: RGB (height, width, 3), uint8.

    Raises:
        VideoError: As ``decode_source``.
    """
    if plan.pictures is None:
        yield from decode_segment_small(plan, segment, size, allow_truncated=allow_truncated)
        return
    for decoded in decode_source(plan, segment):
        yield shrink_rgb(decoded.frame, size)


def _decode_still(plan: VideoPlan, path: str, index: int) -> DecodedFrame:
    """Decode one picture, in the depth of the plan, and with alpha if the plan has it."""
    body = _read_file(path)
    with _picture_errors(path):
        picture = decode_picture(body, max_pixels=MAX_PIXELS)
    rgb, alpha = picture.rgb, picture.alpha
    _check_frame(plan, index, rgb, path)
    if plan.info.has_alpha and alpha is None:
        alpha = np.full(rgb.shape[:2], full_range(rgb.dtype), rgb.dtype)
    if plan.info.bit_depth > 8 and rgb.dtype == np.uint8:
        rgb, alpha = _deepen(rgb), None if alpha is None else _deepen(alpha)
    return DecodedFrame(index, plan.pts[index], rgb, None if alpha is None else np.ascontiguousarray(alpha[..., None]))


def _deepen(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    deep: npt.NDArray[Any] = pixels.astype(np.uint16) * np.uint16(257)
    return deep


def _check_frame(plan: VideoPlan, index: int, frame: npt.NDArray[Any], path: str) -> None:
    height, width = frame.shape[:2]
    if (width, height) != (plan.info.width, plan.info.height):
        raise VideoError(
            f"{path}: picture {index} is {width}x{height}",
            f"{plan.info.width}x{plan.info.height}, as planned",
            "Run the job again when its files do not change any more.",
        )


def _plan_sequence(pattern: str, segment_frames: int, rate: Fraction) -> VideoPlan:
    numbered = list_numbered(pattern)
    files = list(numbered.values())
    if not files:
        raise VideoError(f"{pattern}: no such files", "numbered pictures, such as those of frames/%05d.png")
    digest = hashlib.sha256(str(rate).encode())
    found: list[PictureFacts] = []
    for path in files:
        body = _read_file(path)
        digest.update(hashlib.sha256(body).digest())
        with _picture_errors(path):
            if is_animation(body, max_pixels=MAX_PIXELS):
                raise VideoError(f"{path}: an animation in a sequence", "pictures", "Enhance it by itself.")
            found.append(describe_picture(body, max_pixels=MAX_PIXELS))
            if _may_be_cut(body, found[-1].format):
                decode_picture(body, max_pixels=MAX_PIXELS)  # an error if it is
        _check_alike(files[0], found[0], path, found[-1])
    source = PictureSource(
        tuple(files),
        found[0].format,
        found[0].icc_profile,
        is_grey=all(facts.is_grey for facts in found),
        losses=tuple(dict.fromkeys(loss for facts in found for loss in facts.losses)),
        first_number=next(iter(numbered)),
    )
    bit_depth = max(facts.bit_depth for facts in found)
    info = _describe(found[0], bit_depth, rate, has_alpha=any(facts.has_alpha for facts in found))
    step = rate.denominator
    times = tuple(range(0, len(files) * step, step))
    return _plan(pattern, source, info, digest.hexdigest(), _Times(times, step, segment_frames))


def _may_be_cut(body: bytes, kind: str) -> bool:
    """Tell whether a file may lack its end: a sequence is too long to be decoded before the job."""
    if kind == "png":
        return b"IEND" not in body[-_PNG_END_BYTES:]
    if kind == "jpeg":  # a thumbnail has an end of its own, before the picture's scan
        return body.rfind(b"\xff\xd9") < body.rfind(b"\xff\xda")
    return len(body) < _RIFF_HEADER_BYTES + int.from_bytes(body[4:8], "little")


def _check_alike(first: str, expected: PictureFacts, path: str, facts: PictureFacts) -> None:
    """Refuse pictures of a sequence that cannot be frames of one video."""
    do = "Pass the folder instead, to enhance each picture by itself."
    if (facts.width, facts.height) != (expected.width, expected.height):
        raise VideoError(
            f"{path} is {facts.width}x{facts.height}", f"{expected.width}x{expected.height}, the size of {first}", do
        )
    if facts.icc_profile != expected.icc_profile:
        raise VideoError(f"{path} has another colour profile than {first}", "one profile in a sequence", do)


def _plan_animation(path: str, animation: Animation, digest: str, segment_frames: int) -> VideoPlan:
    base = Fraction(1, lcm(*(duration_s.denominator for duration_s in animation.durations_s)))
    units = [int(duration_s / base) for duration_s in animation.durations_s]
    *times, end = accumulate(units, initial=0)
    info = _describe(animation, animation.bit_depth, Fraction(len(units)) / (end * base), has_alpha=animation.has_alpha)
    source = PictureSource(
        (path,),
        animation.format,
        animation.icc_profile,
        plays=animation.plays,
        is_animation=True,
        losses=animation.losses,
    )
    return _plan(
        path, source, replace(info, time_base=base), digest, _Times(tuple(times), units[-1], segment_frames, keys=(0,))
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """When the frames of a plan are shown, and how they are cut."""

    pts: tuple[int, ...]
    """Times of the frames."""
    duration: int
    """Duration of the last one."""
    segment_frames: int
    """Most frames in a segment."""
    keys: tuple[int, ...] | None = None
    """Frames at which decoding may start; None for all."""


def _describe(facts: PictureFacts | Animation, bit_depth: int, rate: Fraction, *, has_alpha: bool) -> VideoInfo:
    """Describe pictures as FFmpeg would describe a video of them: RGB, whose matrix in a video is by the height."""
    matrix = BT709 if facts.height >= HD_LINES else SMPTE170M
    pix_fmt = ("rgba" if has_alpha else "rgb24") if bit_depth == 8 else ("rgba64be" if has_alpha else "rgb48be")
    return VideoInfo(
        width=facts.width,
        height=facts.height,
        time_base=Fraction(1, rate.numerator),
        average_rate=rate,
        codec=facts.format,
        pix_fmt=pix_fmt,
        bit_depth=bit_depth,
        sample_aspect_ratio=Fraction(1),
        rotation=0,
        colour=Colour(matrix, LIMITED, UNSPECIFIED, UNSPECIFIED, assumed=True),
        has_alpha=has_alpha,
    )


def _plan(path: str, source: PictureSource, info: VideoInfo, digest: str, times: _Times) -> VideoPlan:
    keys = tuple(range(len(times.pts))) if times.keys is None else times.keys
    return VideoPlan(
        path=path,
        info=info,
        pts=times.pts,
        duration=times.duration,
        keys=keys,
        is_counted=False,
        content_hash=digest,
        decoded_pts=times.pts,
        skipped=0,
        num_frames_from_header=len(times.pts),
        truncated=None,
        segments=cut_segments(len(times.pts), keys, times.segment_frames),
        begins_s=Fraction(0),
        tracks_s=(),
        pictures=source,
    )


def _read_file(path: str) -> bytes:
    """Read a picture's file."""
    facts = find_facts(path)
    if facts is None or (not is_remote(path) and not os.path.isfile(path)):
        raise VideoError(f"{path}: {'no such file' if facts is None else 'not a file'}", _ALLOWED)
    if facts.size == 0:
        raise VideoError(f"{path}: the file is empty", _ALLOWED)
    if facts.size > MAX_BYTES:
        raise VideoError(f"{path}: a picture of {facts.size} bytes", f"{MAX_BYTES} bytes")
    with open_to_read(path) as file:
        return file.read()


@contextmanager
def _picture_errors(path: str) -> Iterator[None]:
    """Name the file in errors about a picture."""
    try:
        yield
    except InvalidInputError as exc:
        raise VideoError(f"{path}: {exc.got}", exc.allowed) from exc
