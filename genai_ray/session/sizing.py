"""How large the runs of a session are, and what they take: from the spec and the graph, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genai_ray.catalog import ModelSpec
from genai_ray.graph import Graph, activation_bytes, fuse_frames, read_header, weight_bytes
from genai_ray.session.warming import Shapes
from genai_ray.types import ModelPrecision, ModelTask

__all__ = [
    "SessionLimits",
    "bytes_per_px",
    "can_tile",
    "default_tile_px",
    "describe_seams",
    "fixed_tile",
    "largest_run",
    "padded_size",
    "predict_bytes",
    "raw_run_bytes",
    "run_batch_of",
    "runs_at_once",
    "tile_step",
]

DEFAULT_TILE_PX = 256
"""Side of a run where nothing is known of the frames; measured: 240 to 360 cost -8 to +20 % time and a tenth of the memory."""
MAX_TILE_PX = 512
"""Largest side of a run chosen by itself."""
MAX_EXACT_RADIUS_PX = 64
"""Above this radius the halos of exact tiles cost more than the frame, so frames stay whole."""
RUN_BYTES_FACTOR = 1.5
"""What the runtime's arena takes over the tensors that live at the same time."""
WEIGHT_BYTES_FACTOR = 2.0
"""What the runtime takes over the weights as stored: it repacks them for its kernels."""
MODEL_BASE_BYTES = 12_000_000
"""What a loaded model takes whatever its size: the runtime's own structures, measured with nets of 5 KB."""
GPU_RUN_BATCH = 4
"""Frames in one call on a GPU; on a CPU one, since more gain nothing and cost memory in proportion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What a session may take; every field None or empty by default, which means automatic."""

    max_bytes: int | None = None
    """Bytes it may add to its process: larger frames are tiled, and what cannot be tiled is refused."""
    max_frame: tuple[int, int] | None = None
    """(height, width) in pixels of the largest frame that will come; warm-up prepares for it."""
    max_batch: int | None = None
    """Most frames in one runtime call."""
    tile_size_px: int | None = None
    """Longest side of a tile, halo included; 0 for never."""
    warmup_shapes: tuple[Shapes, ...] = ()
    """Shapes of the model's own tensors that warm-up runs with, one after the other; empty for none: they are not known from the graph."""
    reserve: Callable[[int], bool] | None = None
    """Asked before frames of another dtype, or raw tensors beside frames, need a second copy of the model: whether so many bytes more
    may be taken. If not, the copies take turns. None to go by ``max_bytes``."""


def can_tile(spec: ModelSpec) -> bool:
    """Tell whether tiles equal whole frames at a halo worth its cost.

    Args:
        spec: The model.

    Returns:
        Whether it is tiled at all.
    """
    return spec.is_tileable and (spec.receptive_field_px or 0) <= MAX_EXACT_RADIUS_PX


def fixed_tile(spec: ModelSpec) -> tuple[tuple[int | None, int | None], int]:
    """Return the size that frames are tiled to because the graph fixes it, and by how much tiles overlap.

    Args:
        spec: The model.

    Returns:
        ((height, width), halo) in pixels; None for a free length. The halo is the receptive field, at the most a quarter of the tile.
    """
    if not spec.is_fixed_size or spec.is_resized:
        return (None, None), spec.receptive_field_px or 0
    size = spec.inputs[0].height, spec.inputs[0].width
    most = min(length for length in size if length is not None) // 4
    return size, min(most if spec.receptive_field_px is None else spec.receptive_field_px, most)


def describe_seams(spec: ModelSpec, frame: tuple[int, int] | None = None) -> str | None:
    """Say that results of tiles of a fixed size may differ from those of the whole frame.

    Args:
        spec: The model.
        frame: (height, width) of the frames in pixels; None if frames of any size may come.

    Returns:
        One sentence; None if tiles overlap by the receptive field, or there is one tile only.
    """
    size, halo = fixed_tile(spec)
    fits = frame is not None and all(tile is None or length <= tile for tile, length in zip(size, frame, strict=True))
    if not spec.is_image_model or size == (None, None) or fits:
        return None
    stride, field = tile_step(spec), spec.receptive_field_px
    halo = min((tile - max((tile - 2 * halo) // stride, 1) * stride) // 2 for tile in size if tile is not None)
    if field is not None and field <= halo:
        return None
    why = "its receptive field is not known" if field is None else f"its receptive field is {field} px"
    return f"{Path(spec.model_id).name} takes {size[1] or 'any'}x{size[0] or 'any'} only: frames go in tiles with a halo of {halo} px, {why}; seams may show"


def padded_size(spec: ModelSpec, height_px: int, width_px: int) -> tuple[int, int]:
    """Return the size to which frames are extended: one that the model takes, or that tiles of its fixed size cover.

    Args:
        spec: The model.
        height_px: Height of the frames.
        width_px: Width of the frames.

    Returns:
        (height, width) in pixels.
    """
    stride = tile_step(spec)
    sizes = []
    for length, tile in zip((height_px, width_px), fixed_tile(spec)[0], strict=True):
        if tile is None:
            sizes.append(-(-max(length, spec.min_size_px) // spec.size_multiple) * spec.size_multiple)
        else:
            sizes.append(tile + -(-max(length - tile, 0) // stride) * stride)
    return sizes[0], sizes[1]


def tile_step(spec: ModelSpec) -> int:
    """Return what origins of tiles are multiples of.

    Args:
        spec: The model.

    Returns:
        Pixels.
    """
    return math.lcm(spec.tile_stride, spec.size_multiple)


def runs_at_once(spec: ModelSpec, threads: int, is_cpu: bool) -> int:
    """Return how many runs go at the same time.

    Args:
        spec: The model.
        threads: CPU threads in all.
        is_cpu: Whether it computes on a CPU, where narrow runs side by side are faster than wide ones; a net that cannot be
            tiled needs all cores for its single run.

    Returns:
        The number; on a GPU two, so that a copy overlaps a run.
    """
    return (threads if can_tile(spec) else 1) if is_cpu else 2


def run_batch_of(spec: ModelSpec, limits: SessionLimits, is_cpu: bool) -> int:
    """Return how many frames go into one runtime call.

    Args:
        spec: The model.
        limits: What the session may take.
        is_cpu: Whether it computes on a CPU.

    Returns:
        The number.
    """
    return min(1 if is_cpu else GPU_RUN_BATCH, limits.max_batch or MAX_TILE_PX) if spec.batchable else 1


def default_tile_px(spec: ModelSpec, limits: SessionLimits) -> int | None:
    """Return the longest side of a run that is wanted where bytes are no object.

    Args:
        spec: The model.
        limits: What the session may take.

    Returns:
        Pixels; None for whole frames.
    """
    if not spec.is_image_model or limits.tile_size_px == 0 or not can_tile(spec):
        return None
    if limits.tile_size_px is None and limits.max_frame is not None:
        return min(max(DEFAULT_TILE_PX, 24 * (spec.receptive_field_px or 0)), MAX_TILE_PX)
    return limits.tile_size_px or DEFAULT_TILE_PX


def largest_run(spec: ModelSpec, limits: SessionLimits, tile_size_px: int | None) -> tuple[int, int]:
    """Return the size of the largest run that is prepared for.

    Args:
        spec: The model.
        limits: What the session may take.
        tile_size_px: Longest side of a run; None for whole frames.

    Returns:
        (height, width) in pixels.
    """
    fixed = spec.inputs[0].height, spec.inputs[0].width
    height, width = limits.max_frame or (tile_size_px or DEFAULT_TILE_PX,) * 2
    side = tile_size_px or max(height, width)
    return fixed[0] or min(height, side), fixed[1] or min(width, side)


def bytes_per_px(fused: Graph, spec: ModelSpec) -> float:
    """Predict what one frame of a run takes; tensors grow with the area, so the graph is asked at one size only.

    Args:
        fused: What ``graph.fuse_frames`` made of the model.
        spec: The model.

    Returns:
        Bytes per input pixel.
    """
    side = -(-128 // spec.size_multiple) * spec.size_multiple
    fixed = fixed_tile(spec)[0]
    height, width = fixed[0] or side, fixed[1] or side
    names = ("frames0", "frames1") if spec.task is ModelTask.INTERPOLATION else ("frames",)
    return RUN_BYTES_FACTOR * activation_bytes(fused, dict.fromkeys(names, (1, height, width, 3))) / (height * width)


def raw_run_bytes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Predict what one run with a model's own tensors takes.

    Args:
        path: The model's file.
        shapes: Shape of each input that is not a scalar, by name.

    Returns:
        Bytes.

    Raises:
        ModelLoadError: If the file is corrupt.
    """
    return int(RUN_BYTES_FACTOR * activation_bytes(read_header(path), shapes))


def predict_bytes(
    path: Path, spec: ModelSpec, limits: SessionLimits, *, precision: ModelPrecision, threads: int, is_cpu: bool
) -> int:
    """Predict what a warm session adds to its process, from the file alone.

    Args:
        path: The model's file.
        spec: The model.
        limits: What the session may take.
        precision: The number format: half the bytes of weights for FP16 on a GPU, a quarter for INT8.
        threads: CPU threads of the machine that it goes to.
        is_cpu: Whether it computes on a CPU.

    Returns:
        Bytes: weights, and the activation peak of the largest runs that go at the same time.

    Raises:
        ModelLoadError: If the file is corrupt.
    """
    model = read_header(path)
    share = {ModelPrecision.FP16: 1.0 if is_cpu else 0.5, ModelPrecision.INT8: 0.25}.get(precision, 1.0)
    fixed = MODEL_BASE_BYTES + int(WEIGHT_BYTES_FACTOR * share * weight_bytes(model))
    activations = max((activation_bytes(model, dict(shapes)) for shapes in limits.warmup_shapes), default=0)
    raw = int(RUN_BYTES_FACTOR * activations * runs_at_once(spec, threads, is_cpu))
    if not spec.is_image_model:
        return fixed + raw
    if limits.warmup_shapes:  # frames and raw tensors have a runtime each
        raw += fixed
    height, width = largest_run(spec, limits, default_tile_px(spec, limits))
    runs = runs_at_once(spec, threads, is_cpu) * run_batch_of(spec, limits, is_cpu)
    return raw + fixed + int(bytes_per_px(fuse_frames(model, spec, np.dtype(np.uint8)), spec) * height * width * runs)
