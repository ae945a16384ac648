"""Opens the files of a comparison, and refuses those that cannot be compared frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import QualityError
from genai_ray.files import is_remote
from genai_ray.quality import STORED_FORMATS, reduce_frame
from genai_ray.types import full_range
from genai_ray.validate.pairing import pair_times
from genai_ray.video import (
    IMAGE_SUFFIXES,
    LIMITED,
    StoredFrame,
    VideoPlan,
    decode_frames,
    decode_stored,
    plan_video,
    read_picture,
)

__all__ = ["Clip", "Still", "check_alignment", "check_is_another", "choose_factor", "open_clip", "resize"]

ROUNDING_S = 1e-5
"""Differences of times that are not told."""

MOST_NAMED = 5
"""Frames without a partner that an error names one by one, of each file."""

_ALPHA = "alpha is not compared"


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """The only frame of a picture."""

    picture: npt.NDArray[Any]
    """(H, W, 3), RGB, uint8 or uint16."""

    def to_rgb(self) -> npt.NDArray[Any]:
        """Return it.

        Returns:
            ``picture``.
        """
        return self.picture

    def planes(self) -> list[npt.NDArray[Any]]:
        """Return it as one plane.

        Returns:
            ``picture`` alone.
        """
        return [self.picture]


@dataclass(frozen=True, slots=True)
class Clip:
    """A video or a picture, before it is decoded."""

    path: str
    """Path or URI."""
    width: int
    """Pixels, as stored."""
    height: int
    """Pixels, as stored."""
    dtype: np.dtype[Any]
    """uint8 for 8 bits per component, else uint16."""
    rotation: int
    """Degrees by which a player rotates the picture; frames are compared as they are stored."""
    seconds: tuple[float, ...]
    """Time of each frame, counted from the first one."""
    unit_s: float
    """Seconds to which the file rounds times: one unit; 0 if nothing is rounded, because every gap is one unit."""
    notes: tuple[str, ...]
    """What is not compared."""
    begins_s: float = 0.0
    """Time of the first frame by the file's own clock."""
    kind: str = "SDR"
    """Transfer function, see ``Colour.light``."""
    plan: VideoPlan | None = None
    """The planned video; None for a picture."""
    picture: npt.NDArray[Any] | None = None
    """The picture; None for a video."""

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def size(self) -> str:
        """Width and height in words."""
        return f"{self.width}x{self.height}"

    @property
    def stored(self) -> tuple[str, int] | None:
        """Pixel format and matrix, if libvmaf can measure pictures as they are stored: YUV of limited range."""
        if self.plan is None:
            return None
        info = self.plan.info
        pixels = info.pix_fmt.replace("yuva", "yuv")
        is_plain = info.colour.range == LIMITED and info.colour.source_matrix is None
        return (pixels, info.colour.matrix) if is_plain and pixels in STORED_FORMATS else None

    def frames(self) -> Iterator[StoredFrame | Still]:
        """Decode every frame.

        Yields:
            In the order of time.

        Raises:
            VideoError: If one does not decode.
        """
        if self.plan is not None:
            yield from decode_stored(self.plan)
        elif self.picture is not None:
            yield Still(self.picture)

    def pick(self, indices: Sequence[int]) -> dict[int, npt.NDArray[Any]]:
        """Decode some frames.

        Args:
            indices: Their positions, from 0.

        Returns:
            (H, W, 3), RGB, by position.

        Raises:
            VideoError: If one does not decode.
        """
        if self.plan is None:
            return {} if self.picture is None else dict.fromkeys(indices, self.picture)
        return {decoded.index: decoded.frame for decoded in decode_frames(self.plan, sorted(set(indices)))}


def open_clip(path: str) -> Clip:
    """Read what a file holds.

    Args:
        path: Path or URI of a video, or of a picture ending in .png, .jpg or .jpeg.

    Returns:
        The clip.

    Raises:
        VideoError: If the file is missing, cannot be read, or has no frames.
    """
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        picture, has_alpha = read_picture(path)
        return Clip(
            path=path,
            width=picture.shape[1],
            height=picture.shape[0],
            dtype=picture.dtype,
            rotation=0,
            seconds=(0.0,),
            unit_s=0.0,
            notes=(f"{path}: {_ALPHA}",) if has_alpha else (),
            picture=picture,
        )
    plan = plan_video(path)
    info = plan.info
    notes = [f"{path}: {plan.truncated}"] if plan.truncated else []
    if info.has_alpha:
        notes.append(f"{path}: {_ALPHA}")
    if plan.skipped:
        notes.append(f"{path}: {plan.skipped} frames at the start do not decode and are not compared")
    return Clip(
        path=path,
        width=info.width,
        height=info.height,
        dtype=np.dtype(np.uint8 if info.bit_depth <= 8 else np.uint16),
        rotation=info.rotation % 360,
        kind=info.colour.light,
        seconds=tuple(float((pts - plan.pts[0]) * info.time_base) for pts in plan.pts),
        unit_s=0.0 if all(after - before == 1 for before, after in pairwise(plan.pts)) else float(info.time_base),
        begins_s=float(plan.pts[0] * info.time_base),
        notes=tuple(notes),
        plan=plan,
    )


def check_is_another(reference: str, candidates: Sequence[str]) -> None:
    """Refuse a candidate that is the reference itself, or is given twice.

    Args:
        reference: Path or URI.
        candidates: Paths or URIs.

    Raises:
        QualityError: If there is no candidate, or a file comes twice.
    """
    if not candidates:
        raise QualityError("a reference without candidates", "at least one candidate")
    seen: set[object] = set()
    for candidate in candidates:
        file = _identify(candidate)
        if file == _identify(reference):
            raise QualityError(f"{candidate}: the candidate is the reference itself", "another file")
        if file in seen:
            raise QualityError(f"{candidate}: given twice as a candidate", "each candidate once")
        seen.add(file)


def check_alignment(reference: Clip, candidate: Clip) -> tuple[str, ...]:
    """Check that both have the same frames: each at the same time, counted from the first frame of its file.

    Each frame must have a partner, see ``pairing``. Times may differ by one unit of each file's time base, which is
    what rounding does to them, and by what a rounded frame rate adds.

    Args:
        reference: The reference.
        candidate: The candidate.

    Returns:
        Notes: that frame rates differ, if partners are further apart than rounding explains.

    Raises:
        QualityError: If a frame of one has no partner in the other, or bit depths, rotations or transfer functions
            differ.
    """
    if candidate.kind != reference.kind:
        got = f"{candidate.path} of {candidate.kind} for {reference.path} of {reference.kind}"
        do = "Convert one of them first: equal numbers mean another light."
        raise QualityError(got, "SDR for both, or HDR of one transfer function", do)
    if candidate.dtype != reference.dtype:
        bits = [8 if clip.dtype == np.uint8 else "more than 8" for clip in (candidate, reference)]
        got = f"{candidate.path} of {bits[0]} bits for {reference.path} of {bits[1]} bits"
        raise QualityError(got, "8 bits for both, or more for both", "Convert one of them first, with rounding.")
    if candidate.rotation != reference.rotation:
        got = f"{candidate.path} rotated by {candidate.rotation} degrees, {reference.path} by {reference.rotation}"
        raise QualityError(got, "equal rotation", "Frames are compared as they are stored.")
    unit_s = reference.unit_s + candidate.unit_s
    begins_apart_s = candidate.begins_s - reference.begins_s
    pairing = pair_times(reference.seconds, candidate.seconds, unit_s=unit_s, begins_apart_s=begins_apart_s)
    if pairing.count:
        counts = f"{len(candidate)} frames{_rate(candidate)} for {len(reference)}{_rate(reference)}"
        alone = [
            _name_frames(clip, frames)
            for clip, frames in ((reference, pairing.reference), (candidate, pairing.candidate))
            if frames
        ]
        raise QualityError(
            f"{candidate.path} has {counts} of {reference.path}; {pairing.count} have no partner: {'; '.join(alone)}",
            f"frames at the same times after the first one, within {1000 * unit_s:.3g} ms of rounding",
            "Cut or convert one of them first; no frame is left out silently.",
        )
    if pairing.most_apart_s <= unit_s + ROUNDING_S:
        return ()
    apart = f"{1000 * pairing.most_apart_s:.3g} ms from those of the reference, and {1000 * unit_s:.3g} ms are rounding"
    return (f"frame rates differ: its frames are up to {apart}",)


def choose_factor(reference: Clip, candidate: Clip) -> int:
    """Return how sizes are reconciled: the larger frame is reduced by the mean of whole blocks of pixels.

    Args:
        reference: The reference.
        candidate: The candidate.

    Returns:
        1 for equal sizes; n if the candidate is n times as large along both axes; -n if the reference is.

    Raises:
        QualityError: If one size is no whole multiple of the other along both axes.
    """
    for larger, smaller, sign in ((candidate, reference, 1), (reference, candidate, -1)):
        factor = larger.width // smaller.width
        if factor >= 1 and (larger.width, larger.height) == (smaller.width * factor, smaller.height * factor):
            return factor if factor == 1 else sign * factor
    raise QualityError(
        f"{candidate.path} of {candidate.size} for {reference.path} of {reference.size}",
        "equal sizes, or one a whole multiple of the other along both axes",
        "Scale one of them first.",
    )


def resize(frame: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Reduce a frame by the mean of factor x factor pixels, rounded to nearest.

    Args:
        frame: (H, W, 3), uint8 or uint16.
        factor: 1 or more.

    Returns:
        (H / factor, W / factor, 3) of the same dtype; ``frame`` itself for 1.
    """
    if factor <= 1:
        return frame
    return np.clip(np.rint(reduce_frame(frame, factor)), 0, full_range(frame.dtype)).astype(frame.dtype)


def _identify(path: str) -> object:
    """Return what two names of one file have in common: links count as the file."""
    if is_remote(path):
        return path
    try:
        facts = os.stat(path)
    except OSError:  # opening it tells what is wrong
        return str(Path(path).resolve())
    return facts.st_dev, facts.st_ino


def _name_frames(clip: Clip, frames: Sequence[int]) -> str:
    """Name some frames with their times."""
    named = ", ".join(f"{frame} ({clip.seconds[frame]:.3f} s)" for frame in frames[:MOST_NAMED])
    more = f" and {len(frames) - MOST_NAMED} more" if len(frames) > MOST_NAMED else ""
    return f"frame{'s'[: len(frames) > 1]} {named}{more} of {clip.path}"


def _rate(clip: Clip) -> str:
    return "" if clip.plan is None else f" at {float(clip.plan.info.average_rate):.6g} per second"
