"""How large the runs of a session are and what they take: from the spec and the graph, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from genai_ray.catalog import ModelSpec
from genai_ray.display import describe_fields
from genai_ray.errors import ConfigError
from genai_ray.fields import check_ranges, refuse_unknown
from genai_ray.graph import Graph, activation_bytes, fuse_frames, read_header, weight_bytes
from genai_ray.types import ModelBackend, ModelPrecision, ModelTask, take_fields

__all__ = [
    "MODEL_BASE_BYTES",
    "SessionLimits",
    "Shapes",
    "bytes_per_px",
    "can_tile",
    "check_search",
    "check_tile_size",
    "default_tile_px",
    "describe_seams",
    "ends_bytes",
    "fixed_tile",
    "larger_run_px",
    "largest_run",
    "least_tile_px",
    "padded_size",
    "predict_bytes",
    "raw_run_bytes",
    "run_batch_of",
    "runs_at_once",
    "shares_model",
    "tile_step",
]

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""The shape of each input of one run, by name."""

DEFAULT_TILE_PX = 256
"""Side of a run for frames of unknown size; measured: 240 to 360 cost -8 to +20 % time and a tenth of the memory."""
MAX_TILE_PX = 512
"""Largest side of a run that a session chooses."""
MAX_EXACT_RADIUS_PX = 64
"""Above this radius the halos of exact tiles cost more than the frame, so frames stay whole."""
MAX_WHOLE_RUNS = 4
"""Most concurrent runs of whole frames of a model that cannot be tiled: each takes the bytes of a whole frame."""
RUN_BYTES_FACTOR = 1.5
"""Bytes of the runtime's arena per byte of the tensors that live at the same time."""
WEIGHT_BYTES_FACTOR = 2.0
"""Bytes of the runtime per byte of stored weights: it repacks them for its kernels."""
MODEL_BASE_BYTES = 12_000_000
"""Bytes of any loaded model: the runtime's own structures, measured with networks of 5 KB."""
ENDS_BASE_BYTES = 2_000_000
"""Bytes of the graphs around a model for frames of one dtype, without their tensors."""
GPU_RUN_BATCH = 4
"""Frames in one call on a GPU; on a CPU it is one, since more are not faster and take more memory."""


@describe_fields
@refuse_unknown
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What a session may take; every field is None or empty by default, which means automatic."""

    max_bytes: int | None = None
    """Bytes that it may add to its process, on a GPU to what its process takes of the GPU: larger frames are tiled, or
    refused if the model cannot be tiled."""
    device_bytes: int | None = None
    """Bytes of a GPU that are reserved for it. They limit the runtime's arena and not the tiles; without effect on a
    CPU, beside ``max_bytes``, and for a model whose runs have no largest size."""
    max_frame: tuple[int, int] | None = None
    """(height, width) in pixels of the largest expected frame; warm-up runs it."""
    max_batch: int | None = None
    """Most frames in one runtime call."""
    tile_size_px: int | None = None
    """Longest side of a tile, halo included; 0 for no tiles."""
    warmup_shapes: tuple[Shapes, ...] = ()
    """Shapes of the model's own tensors that warm-up runs, one after the other; empty for no such runs."""
    is_exhaustive: bool = False
    """Whether CUDA tries every algorithm of a convolution for each shape: runs are faster, and not equal in bits from
    load to load. Frames must have one shape: ``max_frame``, or that of the model."""
    reserve: Callable[[int], bool] | None = None
    """Tells whether this many more bytes may be taken. The session asks before frames of another dtype, or raw tensors
    beside frames, need another variant of the model; if not, the variants take turns. None for ``max_bytes`` only."""

    def __post_init__(self) -> None:
        take_fields(self)
        most = math.inf
        # What a cache has left for a session may be less than nothing: loading it says how much it needs.
        check_ranges(self, max_batch=(1, most), tile_size_px=(0, most))
        sides: Any = self.max_frame
        is_size = isinstance(sides, Sequence) and len(sides) == 2
        if sides is not None and not (is_size and all(isinstance(side, Integral) and int(side) > 0 for side in sides)):
            raise ConfigError(f"max_frame={self.max_frame!r}", "(height, width), whole numbers of pixels, or None")


def can_tile(spec: ModelSpec) -> bool:
    """Tell whether frames are cut into tiles: exact ones whose halo is worth its cost, or those of ``spec.tiles``.

    Args:
        spec: The model.

    Returns:
        Whether frames may be tiled.
    """
    return spec.tiles is not None or (spec.is_tileable and (spec.receptive_field_px or 0) <= MAX_EXACT_RADIUS_PX)


def least_tile_px(spec: ModelSpec) -> int:
    """Return the smallest tile of a model that can be tiled.

    Args:
        spec: The model.

    Returns:
        Pixels: two halos and a little to keep; the size of ``spec.tiles``, which is never changed.
    """
    if spec.tiles is not None:
        return spec.tiles.size_px
    return 2 * (spec.receptive_field_px or 0) + 16 * spec.tile_stride


def check_tile_size(spec: ModelSpec, asked_px: int | None) -> None:
    """Check the size of tiles that a caller asks for.

    Args:
        spec: The model.
        asked_px: Longest side of a tile in pixels; 0 for no tiles, None for automatic.

    Raises:
        ConfigError: If the model is not tiled, needs larger tiles, or is always tiled in the same way.
    """
    if asked_px is None or not spec.is_image_model:
        return
    if spec.tiles is not None and asked_px != spec.tiles.size_px:
        got = f"tiles of {asked_px} px" if asked_px else "no tiles"
        raise ConfigError(
            f"{got} for {spec.model_id}, whose results depend on its tiles",
            f"{spec.tiles.size_px} px, or automatic",
            "Another size is another model: copy its file, and save a spec with other `tiles` beside the copy.",
        )
    if not asked_px:
        return
    if not can_tile(spec):
        raise ConfigError(
            f"tiles of {asked_px} px for {spec.model_id}, which has a fixed size or sees the whole frame",
            "0 (no tiles)",
        )
    if asked_px < least_tile_px(spec):
        raise ConfigError(f"tiles of {asked_px} px for {spec.model_id}", f"{least_tile_px(spec)} px or more")


def check_search(spec: ModelSpec, limits: SessionLimits, is_cpu: bool) -> None:
    """Check that convolutions may be searched exhaustively, if a caller asks for that.

    Args:
        spec: The model.
        limits: What the session may take.
        is_cpu: Whether a CPU computes.

    Raises:
        ConfigError: If there is nothing to search, or if every frame could have a new shape, each of which takes about
            half a second.
    """
    if limits.is_exhaustive and (is_cpu or not (spec.is_fixed_size or limits.max_frame is not None)):
        raise ConfigError(
            f"is_exhaustive for {spec.model_id} on {'a CPU' if is_cpu else 'frames of any size'}",
            "an NVIDIA GPU, and frames of one size",
            "Leave it out." if is_cpu else "Give max_frame.",
        )


def fixed_tile(spec: ModelSpec) -> tuple[tuple[int | None, int | None], int]:
    """Return the size of tiles that the graph fixes, and how far they overlap.

    Args:
        spec: The model.

    Returns:
        ((height, width), halo) in pixels; None for a free length. The halo is that of ``spec.tiles`` or the receptive
        field, in tiles of a fixed size at most a quarter of the tile.
    """
    if spec.tiles is not None:
        return (None, None), spec.tiles.halo_px
    if not spec.is_fixed_size or spec.is_resized:
        return (None, None), spec.receptive_field_px or 0
    size = spec.inputs[0].height, spec.inputs[0].width
    most = min(length for length in size if length is not None) // 4
    return size, min(most if spec.receptive_field_px is None else spec.receptive_field_px, most)


def describe_seams(spec: ModelSpec, frame: tuple[int, int] | None = None) -> str | None:
    """Warn if tiles may give other results than the whole frame: those of a fixed size, and those of ``spec.tiles``.

    Args:
        spec: The model.
        frame: (height, width) of the frames in pixels; None for frames of any size.

    Returns:
        One sentence; None if tiles overlap by the receptive field, or one tile is enough.
    """
    if spec.tiles is not None:
        return _describe_error(spec, frame)
    size, halo = fixed_tile(spec)
    fits = frame is not None and all(tile is None or length <= tile for tile, length in zip(size, frame, strict=True))
    if not spec.is_image_model or size == (None, None) or fits:
        return None
    stride = tile_step(spec)
    field = spec.receptive_field_px
    halo = min((tile - max((tile - 2 * halo) // stride, 1) * stride) // 2 for tile in size if tile is not None)
    if field is not None and field <= halo:
        return None
    why = "its receptive field is not known" if field is None else f"its receptive field is {field} px"
    return (
        f"{Path(spec.model_id).name} takes only {size[1] or 'any'}x{size[0] or 'any'}: "
        f"frames are tiled with a halo of {halo} px, {why}; seams may show"
    )


def _describe_error(spec: ModelSpec, frame: tuple[int, int] | None) -> str | None:
    if spec.tiles is None or (frame is not None and max(padded_size(spec, *frame)) <= spec.tiles.size_px):
        return None
    field = "is the whole frame" if spec.receptive_field_px is None else f"reaches {spec.receptive_field_px} px"
    error = spec.tiles.error_levels
    differ = "by an unknown amount" if error is None else f"by at most {error:g} of 255 levels, as measured"
    return (
        f"{Path(spec.model_id).name} computes tiles of {spec.tiles.size_px} px with a halo of {spec.tiles.halo_px} px, "
        f"and its receptive field {field}: results differ from those of whole frames {differ}"
    )


def padded_size(spec: ModelSpec, height_px: int, width_px: int) -> tuple[int, int]:
    """Return the size to which frames are padded: a size that the model takes, or that tiles of its fixed size cover.

    It includes ``spec.edge_px`` on each side.

    Args:
        spec: The model.
        height_px: Height of the frames.
        width_px: Width of the frames.

    Returns:
        (height, width) in pixels.
    """
    stride = tile_step(spec)
    sizes = []
    for inner, tile in zip((height_px, width_px), fixed_tile(spec)[0], strict=True):
        length = inner + 2 * spec.edge_px
        if tile is None:
            sizes.append(-(-max(length, spec.min_size_px) // spec.size_multiple) * spec.size_multiple)
        else:
            sizes.append(tile + -(-max(length - tile, 0) // stride) * stride)
    return sizes[0], sizes[1]


def tile_step(spec: ModelSpec) -> int:
    """Return the number that origins of tiles must be multiples of.

    Args:
        spec: The model.

    Returns:
        Pixels.
    """
    return math.lcm(spec.tile_stride, spec.size_multiple)


def runs_at_once(spec: ModelSpec, backend: ModelBackend, threads: int | None) -> int:
    """Return the number of concurrent runs.

    On a CPU, many runs of one thread are faster than one run of many threads; a model that cannot be tiled needs all
    cores for its single run, and so does one with ``tiles``, each of which takes GBs. On a GPU two runs let a copy
    overlap with a run.

    In OpenVINO a run has one thread: RIFE differs in bits with two. Models that cannot be tiled then have few runs.

    Args:
        spec: The model.
        backend: The runtime.
        threads: CPU threads in total; None if a GPU computes.

    Returns:
        The number.
    """
    if threads is None:
        return 2
    if can_tile(spec) and spec.tiles is None:
        return threads
    return min(threads, MAX_WHOLE_RUNS) if backend is ModelBackend.OPENVINO else 1


def shares_model(spec: ModelSpec, backend: ModelBackend, *, is_cpu: bool) -> bool:
    """Tell whether frames of all dtypes and raw tensors share one session of the model: in ONNX Runtime on a CPU.

    Args:
        spec: The model.
        backend: The runtime.
        is_cpu: Whether a CPU computes.

    Returns:
        Whether they do; for a model that takes no frames there is nothing to share.
    """
    return spec.is_image_model and backend is ModelBackend.ONNX and is_cpu


def ends_bytes(spec: ModelSpec, height: int, width: int) -> int:
    """Predict what frames of another dtype take in a session that shares its model: the graphs around it.

    Args:
        spec: The model.
        height: Height of the largest run in pixels.
        width: Its width.

    Returns:
        Bytes for one run at a time: two float32 tensors of three channels on each side of the model.
    """
    return ENDS_BASE_BYTES + 2 * 3 * 4 * (1 + spec.scale**2) * height * width


def run_batch_of(spec: ModelSpec, limits: SessionLimits, is_cpu: bool) -> int:
    """Return how many frames go into one runtime call.

    Args:
        spec: The model.
        limits: What the session may take.
        is_cpu: Whether a CPU computes.

    Returns:
        The number.
    """
    is_single = is_cpu or not spec.batchable or spec.tiles is not None  # one of these tiles keeps a GPU busy
    return 1 if is_single else min(GPU_RUN_BATCH, limits.max_batch or GPU_RUN_BATCH)


def default_tile_px(spec: ModelSpec, limits: SessionLimits) -> int | None:
    """Return the longest side of a run if memory is no limit.

    Args:
        spec: The model.
        limits: What the session may take.

    Returns:
        Pixels; None for whole frames.
    """
    if not spec.is_image_model or limits.tile_size_px == 0 or not can_tile(spec):
        return None
    if spec.tiles is not None:
        return spec.tiles.size_px
    if limits.tile_size_px is None and limits.max_frame is not None:
        return min(max(DEFAULT_TILE_PX, 24 * (spec.receptive_field_px or 0)), MAX_TILE_PX)
    return limits.tile_size_px or DEFAULT_TILE_PX


def largest_run(spec: ModelSpec, limits: SessionLimits, tile_size_px: int | None) -> tuple[int, int]:
    """Return the size of the largest run, for which warm-up prepares.

    Args:
        spec: The model.
        limits: What the session may take.
        tile_size_px: Longest side of a run; None for whole frames.

    Returns:
        (height, width) in pixels.
    """
    fixed = spec.inputs[0].height, spec.inputs[0].width
    height, width = (tile_size_px or DEFAULT_TILE_PX,) * 2
    if limits.max_frame is not None:
        height, width = (length + 2 * spec.edge_px for length in limits.max_frame)
    side = tile_size_px or max(height, width)
    return fixed[0] or min(height, side), fixed[1] or min(width, side)


def larger_run_px(spec: ModelSpec, limits: SessionLimits) -> int | None:
    """Return by how many pixels a run may be larger than the largest one of warm-up.

    Args:
        spec: The model.
        limits: What the session may take.

    Returns:
        Pixels: 0 if warm-up runs whole tiles, or a model of a fixed size; None if frames stay whole, of any size.
    """
    side = default_tile_px(spec, limits)
    if spec.is_image_model and spec.is_fixed_size:
        return 0
    if side is None:
        return None
    height, width = largest_run(spec, limits, side)
    return max(side * side - height * width, 0)


def bytes_per_px(fused: Graph, spec: ModelSpec) -> float:
    """Predict the memory of one frame of a run, from one size: tensors grow with the area.

    Args:
        fused: The model after ``graph.fuse_frames``.
        spec: The model.

    Returns:
        Bytes per input pixel.
    """
    # What a picture beside the frames takes does not grow with them: it is shared by the pixels of a larger one.
    side = -(-(512 if spec.picture_params else 128) // spec.size_multiple) * spec.size_multiple
    fixed = fixed_tile(spec)[0]
    height = fixed[0] or side
    width = fixed[1] or side
    names = ("frames0", "frames1") if spec.task is ModelTask.INTERPOLATION else ("frames",)
    shapes = dict.fromkeys(names, (1, height, width, 3))
    shapes |= {name: spec.params[name].to_array().shape for name in spec.picture_params}
    return RUN_BYTES_FACTOR * activation_bytes(fused, shapes) / (height * width)


def raw_run_bytes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Predict the memory of one run with a model's own tensors.

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
    path: Path,
    spec: ModelSpec,
    limits: SessionLimits,
    *,
    backend: ModelBackend,
    precision: ModelPrecision,
    threads: int | None,
) -> int:
    """Predict the memory that a warm session adds to its process, from its file alone.

    Args:
        path: The model's file.
        spec: The model.
        limits: What the session may take.
        backend: The runtime.
        precision: The number format: half the bytes of weights for FP16 on a GPU, a quarter for INT8.
        threads: CPU threads of its machine; None if a GPU computes.

    Returns:
        Bytes of the weights, and of the activations of the largest concurrent runs at their peak.

    Raises:
        ModelLoadError: If the file is corrupt.
    """
    model = read_header(path)
    share = {ModelPrecision.FP16: 0.5 if threads is None else 1.0, ModelPrecision.INT8: 0.25}.get(precision, 1.0)
    fixed = MODEL_BASE_BYTES + int(WEIGHT_BYTES_FACTOR * share * weight_bytes(model))
    activations = max((activation_bytes(model, dict(shapes)) for shapes in limits.warmup_shapes), default=0)
    num_runs = runs_at_once(spec, backend, threads)
    raw = int(RUN_BYTES_FACTOR * activations * num_runs)
    if not spec.is_image_model:
        return fixed + raw
    if limits.warmup_shapes and not shares_model(spec, backend, is_cpu=threads is not None):
        raw += fixed  # frames and raw tensors have a runtime each
    height, width = largest_run(spec, limits, default_tile_px(spec, limits))
    runs = num_runs * run_batch_of(spec, limits, threads is not None)
    return raw + fixed + int(bytes_per_px(fuse_frames(model, spec, np.dtype(np.uint8)), spec) * height * width * runs)
