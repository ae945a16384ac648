"""``evaluate_models``: what models gain on frames whose true result is known, and what they cost on this machine."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from genai_ray.backends import resolve_device
from genai_ray.catalog import ModelCatalog, ModelSpec
from genai_ray.errors import BackendUnavailableError, ConfigError, GenAIRayError, ModelNotFoundError
from genai_ray.evaluation.measure import measure_apart, measure_without_model
from genai_ray.evaluation.record import keep_evaluation
from genai_ray.evaluation.report import Baseline, EvaluationReport, ModelEvaluation
from genai_ray.evaluation.truth import Truth
from genai_ray.inspection import find_model, hash_model
from genai_ray.quality.libvmaf import find_ffmpeg
from genai_ray.tune import describe_device, library_versions
from genai_ray.types import ModelBackend, ModelTask

__all__ = ["evaluate_models"]

_Found = tuple[ModelSpec, Path]


def evaluate_models(
    models: Sequence[str | Path] | None = None,
    *,
    frames: int = 3,
    reference: str | os.PathLike[str] | None = None,
    on_model: Callable[[str, int, int], None] | None = None,
) -> EvaluationReport:
    """Run models on frames whose true result is known, and measure quality, speed and memory.

    Without a reference, the frames are those of two packaged clips: of a film of 1280x720, and of the same film made
    640x360. Models that enlarge by 2 get the small frames; by 4, the large ones shrunk by the mean of blocks. Denoisers
    get small frames with noise of 15 of 255, models for low light get them at 15 % of their brightness, models for
    interpolation get both neighbours of a frame that was taken away. The same is done to frames of a reference; of
    larger frames the middle is taken. Masks have no true result: only their speed and memory are measured.

    Each model runs in a process of its own, one after the other, by ONNX Runtime in FP32, on a GPU if there is one.
    What was measured on the packaged clips is kept in the user's cache folder, for ``genai-ray models list``.

    Args:
        models: Ids, aliases or paths; None for every model of the catalog whose file is on this machine.
        frames: Results of each model that are measured, evenly spread over the clip.
        reference: Path or URI of a video that is taken for true; None for the packaged clips.
        on_model: Called before each model with its id, the number of models that are done, and of all.

    Returns:
        The measurements, beside those of bicubic and Lanczos enlargement, of blended neighbours, and of frames that are
        left noisy or dark. A model that does not run is in ``failed``.

    Raises:
        ConfigError: If there are not so many frames, no model is given, a model takes no frames, or the packaged clips
            are missing.
        ModelNotFoundError: If a model is not known, or its file is not on this machine.
        VideoError: If the reference is missing, is no video, or does not decode.
        QualityError: If its frames are too small for a metric.
        BackendUnavailableError: If the FFmpeg of VMAF cannot be started.

    Example:
        >>> report = evaluate_models(["websr-x2-s"], frames=1)
        >>> report.models[0].size, report.models[0].psnr > 30
        ((640, 360), True)
    """
    began_s = time.perf_counter()
    truth = Truth(None if reference is None else os.fspath(reference), frames)
    left_out: dict[str, str] = {}
    given = _find_all(left_out) if models is None else [_find(model) for model in models]
    found = list({spec.model_id: (spec, path) for spec, path in given}.values())
    if not found:
        raise ConfigError("no model to evaluate", "one or more")
    truth.check()
    without_vmaf = _ask_vmaf()
    device, facts = describe_device(resolve_device("auto", ModelBackend.ONNX))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    baselines = _measure_baselines(found, truth, not without_vmaf)
    evaluations: list[ModelEvaluation] = []
    failed: dict[str, str] = {}
    for done, (spec, path) in enumerate(found):
        if on_model is not None:
            on_model(spec.model_id, done, len(found))
        try:
            measured = measure_apart(spec.model_id, truth, not without_vmaf)
        except GenAIRayError as exc:
            failed[spec.model_id] = str(exc)
            continue
        psnr = next((one.psnr for one in baselines if (one.task, one.scale) == (spec.task, spec.scale)), None)
        values = {"model_id": spec.model_id, "task": spec.task, "scale": spec.scale, "frames": frames}
        evaluation = ModelEvaluation.from_dict({**values, **measured, "baseline_psnr": psnr})
        if reference is None:
            keep_evaluation(hash_model(spec, path), facts, evaluation, date)
        evaluations.append(evaluation)
    return EvaluationReport(
        reference=truth.name,
        frames=frames,
        date=date,
        device=device,
        versions=library_versions(),
        models=tuple(evaluations),
        baselines=baselines,
        left_out=left_out,
        failed=failed,
        without_vmaf=without_vmaf,
        elapsed_s=time.perf_counter() - began_s,
    )


def _find_all(left_out: dict[str, str]) -> list[_Found]:
    """Return every model of the catalog that can be evaluated."""
    found = []
    for model_id in ModelCatalog.default().ids():
        try:
            found.append(_find(model_id))
        except ModelNotFoundError as exc:
            left_out[model_id] = exc.do
        except GenAIRayError as exc:
            left_out[model_id] = str(exc)
    return found


def _find(model: str | Path) -> _Found:
    spec, path = find_model(model)
    if not spec.is_image_model or spec.task is ModelTask.OTHER:
        raise ConfigError(f"model {spec.model_id} without a task that can be evaluated", "a model that takes frames")
    return spec, path


def _ask_vmaf() -> str:
    """Return why VMAF cannot be measured; empty if it can."""
    try:
        find_ffmpeg()
    except BackendUnavailableError as exc:
        return str(exc)
    return ""


def _measure_baselines(found: Sequence[_Found], truth: Truth, has_vmaf: bool) -> tuple[Baseline, ...]:
    kinds = dict.fromkeys((spec.task, spec.scale) for spec, _ in found)
    return tuple(
        Baseline(name, task, scale, **scores)
        for task, scale in kinds
        for name, scores in measure_without_model(task, scale, truth, has_vmaf).items()
    )
