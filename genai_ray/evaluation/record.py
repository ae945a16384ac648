"""What was measured on the packaged clips, kept in the user's cache folder: one small file for each model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from genai_ray.backends import resolve_device
from genai_ray.errors import GenAIRayError
from genai_ray.evaluation.report import ModelEvaluation
from genai_ray.files import cache_folder, write_whole
from genai_ray.inspection import find_model, hash_model
from genai_ray.tune import describe_device, library_versions
from genai_ray.types import ModelBackend

__all__ = ["evaluations_folder", "find_evaluations", "keep_evaluation"]

_log = logging.getLogger(__name__)

_FORMAT = 1


def evaluations_folder() -> Path:
    """Return the folder of what is kept.

    Returns:
        ``evaluated`` in the user's cache folder (``XDG_CACHE_HOME``); it may not exist yet.
    """
    return cache_folder() / "evaluated"


def keep_evaluation(digest: str, device: str, evaluation: ModelEvaluation, date: str) -> None:
    """Keep what was measured; if that fails, the log says so.

    Args:
        digest: Hash of the model's file.
        device: What its speed depends on, second result of ``describe_device``.
        evaluation: The measurements, on the packaged clips.
        date: When.
    """
    content = {
        "format": _FORMAT,
        "versions": library_versions(),
        "date": date,
        "evaluation": evaluation.to_dict(),
    }
    path = _file_of(digest, device)
    try:
        write_whole(path, json.dumps(content, indent=2))
    except OSError as exc:
        _log.warning("%s cannot be written (%s): `genai-ray models list` will not show it", path, exc)


def find_evaluations(models: Iterable[str]) -> dict[str, ModelEvaluation]:
    """Return what ``evaluate_models`` has measured of models on the packaged clips.

    Args:
        models: Ids or paths.

    Returns:
        The measurements by these ids. Left out are models that were not measured with this file, on this machine's
        processor or GPU and with these versions of the libraries, and models whose file is not on this machine.

    Raises:
        BackendUnavailableError: If NVML does not know the GPU.
    """
    _, device = describe_device(resolve_device("auto", ModelBackend.ONNX))
    found = {}
    for model in models:
        with suppress(GenAIRayError):  # a file that is missing or damaged was not measured
            spec, path = find_model(model)
            evaluation = _read(_file_of(hash_model(spec, path), device))
            if evaluation is not None:
                found[model] = evaluation
    return found


def _file_of(digest: str, device: str) -> Path:
    name = hashlib.sha256(repr((digest, device)).encode()).hexdigest()[:32]
    return evaluations_folder() / f"{name}.json"


def _read(path: Path) -> ModelEvaluation | None:
    """Return what a file keeps; None if there is none, or it holds no more."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT or content["versions"] != list(library_versions()):
            return None
        return ModelEvaluation.from_dict(content["evaluation"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        _log.warning("%s is damaged (%s: %s): evaluate the model again", path, type(exc).__name__, exc)
        return None
