"""Runs models on frames whose true result is known, and says what they gain and cost: ``evaluate_models``.

``degrade`` makes worse frames of true ones; ``truth`` reads true frames of the packaged clips or of a video, and knows
what can be had without a model. ``measure`` runs in a process for each model. ``report`` is the result, and ``record``
keeps it in the user's cache folder for ``genai-ray models list``.
"""

from genai_ray.evaluation.evaluate import evaluate_models
from genai_ray.evaluation.record import find_evaluations
from genai_ray.evaluation.report import Baseline, EvaluationReport, ModelEvaluation

__all__ = ["Baseline", "EvaluationReport", "ModelEvaluation", "evaluate_models", "find_evaluations"]
