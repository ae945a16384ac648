"""AUTO: the fastest runtime and number format of a model on this machine, measured and remembered; without Ray.

``ways`` has the candidates and chooses among measurements, without running anything. ``measure`` takes a model through
all of them in turn, ``record`` keeps the measurements on disk, and ``tune`` joins both.
"""

from genai_ray.tune.measure import PART_PX, time_infer
from genai_ray.tune.record import library_versions
from genai_ray.tune.tune import Tuning, describe_device, find_tuning, predict_tuning_bytes, tune_model
from genai_ray.tune.ways import (
    MAX_QUALITY_DB,
    MIN_QUALITY_DB,
    REFERENCE,
    Measured,
    Way,
    candidates,
    check_quality,
    choose_way,
)

__all__ = [
    "MAX_QUALITY_DB",
    "MIN_QUALITY_DB",
    "PART_PX",
    "REFERENCE",
    "Measured",
    "Tuning",
    "Way",
    "candidates",
    "check_quality",
    "choose_way",
    "describe_device",
    "find_tuning",
    "library_versions",
    "predict_tuning_bytes",
    "time_infer",
    "tune_model",
]
