"""``CutFinder``: cuts, fades and dissolves of a planned video, by TransNetV2 (Soucek and Lokoc 2020, arXiv 2008.04838).

The network sees windows of 100 frames of 48x27 pixels, every 50 frames, and the middle 50 of each count, as published.
Windows are counted from the first frame of the video, whichever range is asked for: the same frames are cuts, whether a
video is searched as a whole or by many workers in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice, repeat
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from genai_ray.errors import ConfigError
from genai_ray.session import InferenceSession
from genai_ray.video import Segment, VideoPlan, decode_small

__all__ = ["MODEL", "PROBABILITY", "CutFinder", "check_probability", "count_windows"]

MODEL = "transnetv2"
"""Id of the network in the catalog."""

SIZE = (48, 27)
"""(width, height) of the frames that it sees."""

WINDOW = 100
"""Frames in a window."""

KEPT = 50
"""Frames of a window that count, those in the middle; windows begin at multiples of it."""

MARGIN = (WINDOW - KEPT) // 2
"""Frames before and after them."""

PROBABILITY = 0.5
"""From this probability on a frame is the last of its scene, as published."""

Small: TypeAlias = npt.NDArray[np.uint8]
"""(27, 48, 3), RGB."""


def check_probability(probability: float) -> None:
    """Refuse a probability that no network gives.

    Args:
        probability: The least probability of a cut.

    Raises:
        ConfigError: If it is not between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ConfigError(f"a probability of {probability:g} for a cut", "between 0 and 1, such as 0.5")


def count_windows(start: int, stop: int) -> int:
    """Count the windows that a range needs.

    Args:
        start: First frame.
        stop: One past the last frame.

    Returns:
        Windows, each of ``WINDOW`` frames; one of them may be for the frame before the range.
    """
    return -(-stop // KEPT) - max(start - 1, 0) // KEPT


class CutFinder:
    """TransNetV2 on the CPU; for one thread at a time.

    Args:
        probability: The least probability of a cut, between 0 and 1.
        threads: CPU threads; None for every core that this process may use.

    Raises:
        ConfigError: If the probability is out of its range.
        ModelLoadError: If the model's file is corrupt.
    """

    def __init__(self, *, probability: float = PROBABILITY, threads: int | None = None) -> None:
        check_probability(probability)
        self._least = math.log(probability / (1 - probability))
        self._session = InferenceSession(MODEL, device="cpu", threads=threads)

    def find(self, plan: VideoPlan, start: int, stop: int, *, allow_truncated: bool = False) -> Iterator[int]:
        """Find cuts in a range of frames.

        Args:
            plan: As ``judge``.
            start: As ``judge``.
            stop: As ``judge``.
            allow_truncated: As ``judge``.

        Yields:
            Frames of the range after which another scene begins, ascending.

        Raises:
            VideoError: As ``judge``.
            InferenceError: As ``judge``.
        """
        judged = self.judge(plan, start, stop, allow_truncated=allow_truncated)
        return (index for index, is_last in judged if is_last)

    def judge(
        self, plan: VideoPlan, start: int, stop: int, *, allow_truncated: bool = False
    ) -> Iterator[tuple[int, bool]]:
        """Tell for each frame of a range whether it is the last one of its scene.

        Frames around the range are decoded too. Of neighbours that all seem to end a scene, the first one does. Memory
        does not depend on the length of the range.

        Args:
            plan: The planned video.
            start: First frame of the range.
            stop: One past its last frame.
            allow_truncated: As ``decode_segment``; frames that do not decode have no cuts.

        Yields:
            The frame, and whether another scene begins after it; never after the last frame of the video.

        Raises:
            VideoError: If a frame does not decode.
            InferenceError: If the runtime fails.
        """
        was_cut = False
        for index, logit in self._logits(plan, start, stop, allow_truncated):
            is_cut = logit > self._least
            if index >= start:
                yield index, is_cut and not was_cut and index < len(plan.pts) - 1
            was_cut = is_cut

    def _logits(self, plan: VideoPlan, start: int, stop: int, allow_truncated: bool) -> Iterator[tuple[int, float]]:
        """Give each frame of the range and the one before it, with the logit that it is the last of its scene."""
        before = max(start - 1, 0)
        first = before // KEPT * KEPT
        count = count_windows(start, stop)
        wanted = Segment(0, max(first - MARGIN, 0), min(first + count * KEPT + MARGIN, len(plan.pts)))
        frames = decode_small(plan, wanted, SIZE, allow_truncated=allow_truncated)
        lacks = max(MARGIN - first, 0)
        for number, window in enumerate(_windows(frames, lacks, count)):
            outputs = self._session.run({"frames": window[np.newaxis]})
            kept = outputs["output"][0, MARGIN : MARGIN + KEPT]
            for index, logit in enumerate(kept.tolist(), first + number * KEPT):
                if before <= index < stop:
                    yield index, logit

    def close(self) -> None:
        """End the session and give its memory back; a second call does nothing."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _windows(frames: Iterator[Small], lacks: int, count: int) -> Iterator[npt.NDArray[np.float32]]:
    """Give windows (100, 27, 48, 3); none if there is no frame."""
    stream = _extend(frames, lacks, (count + 1) * KEPT)
    held: list[Any] = list(islice(stream, KEPT))
    for _ in range(count if held else 0):
        held = [*held[-KEPT:], *islice(stream, KEPT)]
        yield np.stack(held).astype(np.float32)


def _extend(frames: Iterator[Small], lacks: int, count: int) -> Iterator[Small]:
    """Repeat the first frame before the others, and the last one after them, up to ``count`` frames in all."""
    given = 0
    last = None
    for frame in frames:
        if last is None:
            yield from repeat(frame, lacks)
            given = lacks
        last = frame
        given += 1
        yield frame
    if last is not None:
        yield from repeat(last, count - given)
