"""Enhances a few frames of a video with several models, one after the other, in this process; no Ray is started."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.catalog import ModelSpec
from genai_ray.display import format_bytes, format_count
from genai_ray.enhance import EnhanceOptions, forecast_videos
from genai_ray.enhance.plan.options import check_given, check_models, convert_params
from genai_ray.errors import ConfigError
from genai_ray.evaluation.degrade import add_noise, enlarge, shrink
from genai_ray.files import temporary_folder, to_place
from genai_ray.inspection import find_model
from genai_ray.quality import psnr
from genai_ray.session import InferenceSession, SessionLimits
from genai_ray.tune import time_infer
from genai_ray.types import ModelTask
from genai_ray.video import VideoReader

__all__ = ["ModelTrial", "Trials", "try_models"]

SHOWN_TASKS = (ModelTask.UPSCALING, ModelTask.DENOISING, ModelTask.LOW_LIGHT)
"""Tasks whose result is a picture of the same scene."""

PARTS = 4
"""Without other times, frames are taken where the video is cut into this many equal parts."""

MAX_BYTES = 2_000_000_000
"""Most bytes of frames, results and one enlarged picture, which are in memory together."""

ENLARGED_BYTES_PER_PX = 15
"""Bytes of one pixel while a frame is enlarged: RGB, and two planes of float32."""


@dataclass(frozen=True, slots=True)
class ModelTrial:
    """What one model made of the frames."""

    model_id: str
    """Its id."""
    scale: int
    """Pixels of the result for one of the source, along each axis."""
    seconds_per_frame: float
    """Median time of one frame in the session, without decoding and encoding."""
    expected_s: float
    """Predicted seconds of ``enhance`` for the whole video on this machine, see ``forecast_videos``."""
    self_test_db: float | None
    """Mean PSNR of degraded frames after the model: shrunk by ``scale``, or with noise. None for other tasks."""
    baseline_db: float | None
    """The same without the model: enlarged bicubically, or left noisy."""
    results: tuple[npt.NDArray[Any], ...]
    """The enhanced frames, (H, W, 3)."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Several models on the same frames."""

    source: str
    """Path or URI of the video."""
    times_s: tuple[float, ...]
    """When the frames are shown."""
    frames: tuple[npt.NDArray[Any], ...]
    """The frames, (H, W, 3), uint8 or uint16."""
    models: tuple[ModelTrial, ...]
    """One entry for each model, in the order in which they were given."""

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as plain values, fit for JSON.

        Returns:
            Everything but the pictures; an infinite PSNR is the text ``"inf"``.
        """
        fields = [name for name in ModelTrial.__dataclass_fields__ if name != "results"]
        return {
            "source": self.source,
            "times_s": list(self.times_s),
            "models": [{name: _plain(getattr(model, name)) for name in fields} for model in self.models],
        }


def try_models(
    video: str | Path,
    models: Sequence[str | Path],
    *,
    at_s: Sequence[float] | None = None,
    options: EnhanceOptions | None = None,
    on_model: Callable[[str], None] | None = None,
) -> Trials:
    """Enhance a few frames of a video with several models.

    Args:
        video: Path or URI of the video.
        models: Ids, aliases or paths of models that enlarge, denoise or brighten.
        at_s: Times of the frames in seconds; None for a quarter, half and three quarters of the video.
        options: Runtime, precision, device, params and tiles, as for ``enhance_videos``.
        on_model: Called with the id of each model before it is tried.

    Returns:
        Results and measurements.

    Raises:
        ConfigError: If there is no model, a model has another task, an option makes no sense, or all frames and results
            do not fit into ``MAX_BYTES``.
        ModelNotFoundError: If a model is not known.
        FrameNotFoundError: If the video shows no frame at a time.
        VideoError: If the video is missing, or does not decode.
        GenAIRayError: What a session raises.
    """
    options = options or EnhanceOptions()
    if not models:
        raise ConfigError("no model to compare", "one or more")
    specs = [find_model(model)[0] for model in models]
    for spec in specs:
        check_given(check_models(spec.model_id, own := _own_params(spec, options)), [own])
        if spec.task not in SHOWN_TASKS:
            raise ConfigError(f"model {spec.model_id} for {spec.task}", f"models for {', '.join(SHOWN_TASKS)}")
    unknown = sorted(set(options.params).difference(*(spec.params for spec in specs)))
    if unknown:
        raise ConfigError(f"param {unknown[0]!r}", "a param of one of these models")
    with VideoReader(video) as reader:
        length_s = reader.end_seconds - reader.begin_seconds
        wanted = at_s or [reader.begin_seconds + length_s * part / PARTS for part in range(1, PARTS)]
        _check_size(reader, len(wanted), specs)
        shown = [reader.frame_at(seconds) for seconds in wanted]
    frames = tuple(frame.frame for frame in shown)
    trials = []
    for spec in specs:
        if on_model is not None:
            on_model(spec.model_id)
        trials.append(_try_model(video, spec, frames, convert_params([spec], _own_params(spec, options))))
    return Trials(str(to_place(video)), tuple(frame.pts_seconds for frame in shown), frames, tuple(trials))


def _own_params(spec: ModelSpec, options: EnhanceOptions) -> EnhanceOptions:
    return replace(options, params={name: value for name, value in options.params.items() if name in spec.params})


def _check_size(reader: VideoReader, count: int, specs: Sequence[ModelSpec]) -> None:
    info = reader.info
    pixels = info.width * info.height
    frame_bytes = pixels * 3 * (1 if info.bit_depth <= 8 else 2)
    needed = count * frame_bytes * (1 + sum(spec.scale**2 for spec in specs))
    needed += ENLARGED_BYTES_PER_PX * pixels * max(spec.scale for spec in specs) ** 2
    if needed > MAX_BYTES:
        frames, models = format_count(count, "frame"), format_count(len(specs), "model")
        raise ConfigError(
            f"{frames} of {info.width}x{info.height} through {models} take {format_bytes(needed)}",
            f"at most {format_bytes(MAX_BYTES)}",
            "Compare fewer frames (--at), or fewer models at a time (--models).",
        )


def _plain(value: Any) -> Any:
    return "inf" if isinstance(value, float) and np.isinf(value) else value


def _try_model(
    video: str | Path, spec: ModelSpec, frames: Sequence[npt.NDArray[Any]], options: EnhanceOptions
) -> ModelTrial:
    limits = SessionLimits(max_frame=frames[0].shape[:2], tile_size_px=options.tile_size_px)
    results, seconds, truths, baselines = [], [], [], []
    with InferenceSession(
        spec.model_id, backend=options.backend, precision=options.precision, device=options.device, limits=limits
    ) as session:
        session.warmup()
        for frame in frames:
            result, taken_s = time_infer(session, frame[np.newaxis], options.params)
            results.append(result[0])
            seconds.append(taken_s)
            degraded = _degrade(frame, spec)
            if degraded is None:
                continue
            truth, worse = degraded
            restored = session.infer(worse[np.newaxis], options.params)[0]
            truths.append(psnr(truth, restored))
            baselines.append(psnr(truth, enlarge(worse, spec.scale)))
    with temporary_folder("trial") as folder:
        forecast = forecast_videos(video, folder / "result.mkv", models=[spec.model_id], options=options)
    return ModelTrial(
        model_id=spec.model_id,
        scale=spec.scale,
        seconds_per_frame=statistics.median(seconds),
        expected_s=forecast.expected_s or 0.0,
        self_test_db=statistics.fmean(truths) if truths else None,
        baseline_db=statistics.fmean(baselines) if baselines else None,
        results=tuple(results),
    )


def _degrade(frame: npt.NDArray[Any], spec: ModelSpec) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Return the true picture, and a worse one that the model should turn into it; None if there is no such test."""
    if spec.task is ModelTask.UPSCALING:
        height, width = (side - side % spec.scale for side in frame.shape[:2])
        if min(height, width) < spec.scale:
            return None
        truth = np.ascontiguousarray(frame[:height, :width])
        return truth, shrink(truth, spec.scale)
    if spec.task is ModelTask.DENOISING:
        return frame, add_noise(frame)
    return None
