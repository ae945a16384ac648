"""True frames, what models get instead of them, and what can be had of that without a model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.errors import ConfigError
from genai_ray.evaluation.degrade import add_noise, darken, enlarge, shrink
from genai_ray.types import ModelTask
from genai_ray.video import VideoReader

__all__ = ["Batch", "Truth", "methods_without_model", "samples_folder"]

SMALL_CLIP = "bigbuckbunny-360p.mp4"
ORIGINAL = "bigbuckbunny-720p.mp4"
SMALL_CLIP_SCALE = 2
"""The original is so many times as large as the small clip, along each axis."""

LARGEST = (720, 1280)
"""Height and width of what is taken of the middle of larger frames, for models that enlarge."""

LARGEST_OF_SAME_SIZE = (360, 640)
"""The same for models that keep the size, so that they get frames as large as those that an x2 model gets."""

BATCH_FRAMES = 8
"""Most frames that a model gets in one call; they are in memory together."""

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Frames for one call of a model."""

    inputs: _Array
    """(N, H, W, 3): what the model gets; two neighbours of the missing frame for interpolation."""
    truths: _Array | None
    """What its results should be, one for each; None if that is not known."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Evenly spread frames of the packaged clips, or of a video."""

    reference: str | None
    """Path or URI of the video whose frames are true; None for the packaged clips."""
    frames: int
    """How many frames are taken."""

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"{SMALL_CLIP} and its original, {ORIGINAL}" if self.reference is None else self.reference

    def check(self) -> None:
        """Check that there are so many frames.

        Raises:
            ConfigError: If there are not, or the packaged clips are missing.
            VideoError: If the video is missing, or is no video.
        """
        if self.frames < 1:
            raise ConfigError(f"{self.frames} frames", "1 or more")
        for task in (ModelTask.UPSCALING, ModelTask.DENOISING):
            with VideoReader(self._place(task)) as video:
                if len(video) < self.frames + 2:  # the first and the last have one neighbour only
                    raise ConfigError(
                        f"{self.frames} frames of a video of {len(video)}",
                        f"1 to {len(video) - 2}" if len(video) > 2 else "a video of at least 3 frames",
                    )

    def batches(self, task: ModelTask, scale: int) -> Iterator[Batch]:
        """Read frames for the models of one task.

        Args:
            task: The task.
            scale: The models' scale.

        Yields:
            ``frames`` results' worth of batches. Frames for upscaling are those of the small clip if the original is
            ``scale`` times as large, else shrunk by the mean of blocks; frames for denoising have noise, those for low
            light are dark, and those for interpolation are two neighbours of the true one.

        Raises:
            VideoError: If a frame does not decode.
        """
        if task is ModelTask.INTERPOLATION:
            yield from self._between(task)
            return
        pairs = self._pairs(task, scale)
        while some := list(itertools.islice(pairs, BATCH_FRAMES)):
            truths = None if task is ModelTask.BACKGROUND_REMOVAL else np.stack([truth for truth, _ in some])
            yield Batch(np.stack([worse for _, worse in some]), truths)

    def _between(self, task: ModelTask) -> Iterator[Batch]:
        with VideoReader(self._place(task)) as video:
            for index in self._positions(len(video)):
                before, truth, after = _middle_of(video[index - 1 : index + 2].frames, LARGEST_OF_SAME_SIZE)
                yield Batch(np.stack([before, after]), truth[None])

    def _pairs(self, task: ModelTask, scale: int) -> Iterator[tuple[_Array, _Array]]:
        """Read true frames, each with what the model gets."""
        with VideoReader(self._place(task)) as video:
            positions = self._positions(len(video))
            if task is not ModelTask.UPSCALING:
                worsen: Callable[[_Array], _Array] = _WORSE.get(task, lambda frame: frame)
                for index in positions:
                    frame = _middle_of(video[index].frame, LARGEST_OF_SAME_SIZE)
                    yield frame, worsen(frame)
                return
            if self.reference is None and scale == SMALL_CLIP_SCALE:
                with VideoReader(samples_folder() / SMALL_CLIP) as small:
                    for index in positions:
                        yield video[index].frame, small[index].frame
                return
            for index in positions:
                frame = video[index].frame
                size = min(frame.shape[0], LARGEST[0]), min(frame.shape[1], LARGEST[1])
                if min(size) < scale:
                    raise ConfigError(f"frames of {frame.shape[1]}x{frame.shape[0]} for scale {scale}", "larger frames")
                truth = _middle_of(frame, (size[0] - size[0] % scale, size[1] - size[1] % scale))
                yield truth, shrink(truth, scale)

    def _positions(self, length: int) -> list[int]:
        """Return which frames are taken; all of them have two neighbours."""
        return [min(max(length * part // (self.frames + 1), 1), length - 2) for part in range(1, self.frames + 1)]

    def _place(self, task: ModelTask) -> str:
        if self.reference is not None:
            return self.reference
        path = samples_folder() / (ORIGINAL if task is ModelTask.UPSCALING else SMALL_CLIP)
        if not path.is_file():
            raise ConfigError(f"no packaged clip {path}", do="Pass a video of your own as reference.")
        return str(path)


_WORSE = {ModelTask.DENOISING: add_noise, ModelTask.LOW_LIGHT: darken}


def samples_folder() -> Path:
    """Return the folder of the packaged clips: in the package of a wheel, beside the package in a checkout.

    Returns:
        The folder.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / "samples"
    return packaged if packaged.is_dir() else package.parent / "samples"


def methods_without_model(task: ModelTask, scale: int) -> dict[str, Callable[[_Array], _Array]]:
    """Return what can be done without a model; the first one is what models are compared with.

    Args:
        task: The task.
        scale: Pixels of the result for one, along each axis.

    Returns:
        Functions from the ``inputs`` of a ``Batch`` to results, by name; none for a task without a true result.
    """
    if task is ModelTask.UPSCALING:
        return {
            "bicubic": lambda inputs: np.stack([enlarge(frame, scale) for frame in inputs]),
            "Lanczos": lambda inputs: np.stack([enlarge(frame, scale, "lanczos") for frame in inputs]),
        }
    if task is ModelTask.INTERPOLATION:
        return {"blending": lambda inputs: np.rint(inputs.mean(axis=0, keepdims=True)).astype(inputs.dtype)}
    names = {ModelTask.DENOISING: "the noisy frame", ModelTask.LOW_LIGHT: "the dark frame"}
    return {names[task]: lambda inputs: inputs} if task in names else {}


def _middle_of(frames: _Array, most: tuple[int, int]) -> _Array:
    """Cut the middle out of frames (..., H, W, 3) that are larger."""
    height, width = frames.shape[-3:-1]
    rows, columns = min(height, most[0]), min(width, most[1])
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.ascontiguousarray(frames[..., top : top + rows, left : left + columns, :])
