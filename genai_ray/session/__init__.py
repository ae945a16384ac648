"""One model on one device: ``InferenceSession``. The package does not need Ray.

A call of ``infer`` passes ``session`` (checks frames and params, and owns everything), ``sizing`` (how large tiles are
and what a session takes), ``runs`` (makes the runtime calls on threads) with ``tiling`` (cuts frames into tiles), and
``genai_ray.backends``. ``opening`` opens what is needed for a dtype, from the graphs that ``prepared`` keeps on the
disk; ``variants`` holds that, and ``memory`` measures it. ``precision`` compares other precisions and runtimes with
FP32, ``process`` knows this process's cores and memory, ``shown`` is for notebooks.
"""

from genai_ray.session.precision import calibration_frames
from genai_ray.session.process import (
    anonymous_bytes,
    count_cores,
    processor_facts,
    processor_kind,
    release_freed_memory,
)
from genai_ray.session.session import InferenceSession
from genai_ray.session.shown import Shown
from genai_ray.session.sizing import SessionLimits, Shapes, can_tile, check_tile_size, describe_seams, predict_bytes

__all__ = [
    "InferenceSession",
    "SessionLimits",
    "Shapes",
    "Shown",
    "anonymous_bytes",
    "calibration_frames",
    "can_tile",
    "check_tile_size",
    "count_cores",
    "describe_seams",
    "predict_bytes",
    "processor_facts",
    "processor_kind",
    "release_freed_memory",
]
