"""``quantize_model``: a model in INT8 for one's own videos, made by ONNX Runtime's quantiser and held to the gate.

The result is a model file of its own, with a spec: its bytes are what jobs, resumed jobs and all workers know it by.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_ray.backends import RuntimeOptions, Tensors, open_runtime
from genai_ray.catalog import ModelSpec, dump_spec
from genai_ray.errors import BackendUnavailableError, ConfigError, ModelLoadError, VideoError
from genai_ray.files import temporary_folder
from genai_ray.graph import frame_ends, graph_inputs, read_header
from genai_ray.inspection import find_model, weight_files
from genai_ray.quality import psnr
from genai_ray.quality.scores import pool
from genai_ray.session import InferenceSession, SessionLimits, processor_facts
from genai_ray.session.runs import pad_frames
from genai_ray.session.sizing import padded_size
from genai_ray.tune import MIN_QUALITY_DB, check_quality, time_infer
from genai_ray.types import ModelBackend, ModelTask
from genai_ray.video import VideoReader

__all__ = ["QuantizedModel", "quantize_model"]

_log = logging.getLogger(__name__)

TASKS = (ModelTask.UPSCALING, ModelTask.DENOISING, ModelTask.LOW_LIGHT)
"""Tasks whose results are pictures of the frames that go in: their agreement says what is lost."""

NUM_FRAMES = 20
"""Frames of the clip that are used, evenly spread; fewer if it has fewer."""

HELD_OUT = 4
"""Each so many-th of them is for measuring alone. The others show the ranges of tensors."""

PART_PX = 256
"""Of larger frames a part of this side is taken, in turn from the middle and from the corners."""

MIN_TURNS = 5
"""Calls of each model that are timed, in turns; the fastest counts."""

_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
"""Linux's names of abilities by which a processor adds products of INT8 in 32 bits."""

_OLDEST_OPSET = 13
"""Since then a tensor may have a scale for each channel."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedModel:
    """A model in INT8, and what it lost and gained."""

    model_id: str
    """The model that it was made of."""
    clip: str
    """The video whose frames were used."""
    frames: int
    """Frames that showed the ranges of tensors."""
    frames_measured: int
    """Frames that the figures below are of, none of them among the others."""
    quality_db: float
    """PSNR from FP32 in dB over all measured frames."""
    worst_frame_db: float
    """The same of the worst one."""
    ms: float
    """Milliseconds for a part of a frame, the fastest call."""
    fp32_ms: float
    """The same in FP32."""
    openvino_ms: float | None
    """The same of this model in OpenVINO; None if it does not run there, or agrees by less than asked for."""
    openvino_db: float | None
    """As ``quality_db``, in OpenVINO; None if it does not run there."""
    fp32_bytes: int
    """Bytes of the model's file in FP32."""
    spec: ModelSpec
    """Spec of the result; its file is a name without a folder."""
    data: bytes = field(repr=False)
    """The result's file."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON.

        Returns:
            The fields by name, without ``spec`` and ``data``; their size as ``bytes``; infinite dB as "inf".
        """
        names = ("model_id", "clip", "frames", "frames_measured", "ms", "fp32_ms", "openvino_ms", "fp32_bytes")
        figures = {name: getattr(self, name) for name in names}
        for name in ("quality_db", "worst_frame_db", "openvino_db"):
            value = getattr(self, name)
            figures[name] = value if value is None or np.isfinite(value) else str(value)
        return figures | {"bytes": len(self.data)}

    def spec_text(self) -> str:
        """Return the spec for the .yaml beside the result's file.

        Returns:
            YAML.
        """
        return dump_spec(self.spec)


def quantize_model(
    model: str | Path, clip: str | os.PathLike[str], name: str, *, min_quality_db: float | None = None
) -> QuantizedModel:
    """Convert a model to INT8 for videos like a clip, and compare the result with FP32 on other frames of that clip.

    Args:
        model: Catalog id, alias or path; a model for upscaling, denoising or low light.
        clip: A video.
        name: Name that the result's file will have, ending in .onnx.
        min_quality_db: Least PSNR from FP32; None for 40 dB.

    Returns:
        The model, which agrees with FP32 by the least PSNR.

    Raises:
        ConfigError: If the model has another task, sees frames of a fixed size, or has weights in other files; if the
            name does not end in .onnx, or the least PSNR is out of range.
        ModelNotFoundError: If there is no such model.
        ModelLoadError: If it cannot be converted, or agrees by less.
        VideoError: If the clip is missing, is no video, does not decode, or has one frame alone.
    """
    least_db = MIN_QUALITY_DB if min_quality_db is None else min_quality_db
    check_quality(least_db)
    spec, path = find_model(model)
    _check(spec, path, name)
    parts = _read_parts(os.fspath(clip))
    if len(parts) < 2:
        raise VideoError(f"{clip} has one frame", "two or more", "Some show ranges, and others tell what is lost.")
    shown = [part for at, part in enumerate(parts) if (at + 1) % HELD_OUT]
    measured = parts[HELD_OUT - 1 :: HELD_OUT]
    if not measured:
        shown, measured = parts[:-1], parts[-1:]
    from genai_ray.backends.quantize import to_int8  # noqa: PLC0415  ONNX Runtime's tools take half a second

    facts = " ".join(processor_facts()).split()
    has_short_sums = not any(ability in facts for ability in _VNNI)
    data = to_int8(path, _feeds_of(spec, path, shown), has_short_sums=has_short_sums)
    made = _spec_of(spec, name, os.fspath(clip), len(shown))
    with temporary_folder("int8") as folder:
        place = folder / name
        place.write_bytes(data)
        place.with_suffix(".yaml").write_text(dump_spec(made))
        exact, found, other = _compare(model, place, measured)
    quality_db = found.quality_db
    if not quality_db >= least_db:
        raise ModelLoadError(
            f"{spec.model_id} in int8 agrees with fp32 by only {quality_db:.1f} dB on frames of {clip}",
            f"at least {least_db:g} dB",
            "Use fp32, or bf16 in OpenVINO.",
        )
    runs_there = other is not None and other.quality_db >= least_db
    backends = (ModelBackend.ONNX, ModelBackend.OPENVINO) if runs_there else (ModelBackend.ONNX,)
    words = f"{made.description}; {quality_db:.1f} dB from FP32 on others."
    return QuantizedModel(
        model_id=spec.model_id,
        clip=os.fspath(clip),
        frames=len(shown),
        frames_measured=len(measured),
        quality_db=quality_db,
        worst_frame_db=found.worst_frame_db,
        ms=found.ms,
        fp32_ms=exact.ms,
        openvino_ms=other.ms if other is not None and runs_there else None,
        openvino_db=None if other is None else other.quality_db,
        fp32_bytes=path.stat().st_size,
        spec=made.model_copy(update={"description": words, "backends": backends}),
        data=data,
    )


def _check(spec: ModelSpec, path: Path, name: str) -> None:
    if Path(name).suffix != ".onnx" or Path(name).name != name:
        raise ConfigError(f"{name} as the name of a model", "a name that ends in .onnx")
    if spec.task not in TASKS or spec.is_fixed_size or not spec.is_image_model:
        kind = "frames of a fixed size" if spec.is_fixed_size else f"task {spec.task.value}"
        raise ConfigError(
            f"{spec.model_id}, with {kind}, in int8", f"models of any size for {', '.join(TASKS)}", "Use fp32."
        )
    if spec.picture_params:
        raise ConfigError(
            f"{spec.model_id}, which takes a picture {spec.picture_params[0]!r}, in int8",
            "models of frames alone: ranges for one picture are not those for others",
            "Use fp32.",
        )
    if weight_files(path):
        raise ConfigError(f"{spec.model_id}, with weights in other files, in int8", "models of one file", "Use fp32.")
    imports = read_header(path).opset_import
    opset = max((one.version for one in imports if one.domain in ("", "ai.onnx")), default=_OLDEST_OPSET)
    if opset < _OLDEST_OPSET:
        raise ConfigError(f"{spec.model_id}, with operator set {opset}, in int8", f"{_OLDEST_OPSET} or later")


def _read_parts(clip: str) -> list[npt.NDArray[Any]]:
    """Return parts (1, H, W, 3) of frames, all of one size."""
    with VideoReader(clip) as video:
        last = len(video) - 1
        positions = sorted({round(last * at / (NUM_FRAMES - 1)) for at in range(NUM_FRAMES)})
        return [_cut(video[position].frame, at) for at, position in enumerate(positions)]


def _cut(frame: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    """Cut a part out of a frame: of its middle, or in other turns of one of its corners."""
    height, width = frame.shape[:2]
    rows, columns = min(height, PART_PX), min(width, PART_PX)
    row_share, column_share = ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))[turn % 5]
    top, left = round((height - rows) * row_share), round((width - columns) * column_share)
    return np.ascontiguousarray(frame[None, top : top + rows, left : left + columns])


def _feeds_of(spec: ModelSpec, path: Path, parts: list[npt.NDArray[Any]]) -> list[Tensors]:
    """Return the model's own tensors for each part."""
    header = read_header(path)
    before, _ = frame_ends(header, spec, parts[0].dtype)
    names = [tensor.name for tensor in graph_inputs(header)]
    height, width = parts[0].shape[1:3]
    params = {name: param.to_array() for name, param in spec.params.items()}
    runtime = open_runtime(before.SerializeToString(), RuntimeOptions())
    try:
        feeds: list[Tensors] = []
        for part in parts:
            padded = pad_frames(part, *padded_size(spec, height, width), spec.edge_px)
            made = runtime.run({"frames": padded} | params)
            feeds.append(dict(zip(names, (made[info.name] for info in runtime.outputs), strict=True)))
        return feeds
    finally:
        runtime.close()


def _spec_of(spec: ModelSpec, name: str, clip: str, frames: int) -> ModelSpec:
    words = f"{spec.model_id} in INT8, with ranges of {frames} frames of {Path(clip).name}"
    changed = {
        "model_id": Path(name).stem.lower(),
        "file": name,
        "description": words,
        "aliases": (),
        "presets": (),
        "url": None,
        "size_bytes": None,
        "sha256": None,
        "memory_bytes": None,
        "backends": (ModelBackend.ONNX,),
    }
    return spec.model_copy(update=changed)


class _Side:
    """One session that is compared with that of FP32."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._agreements: list[float] = []
        self._seconds: list[float] = []

    def call(self, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result, seconds = time_infer(self._session, part)
        self._seconds.append(seconds)
        return result

    def compare(self, expected: npt.NDArray[Any], result: npt.NDArray[Any]) -> None:
        self._agreements.append(psnr(expected, result))

    @property
    def quality_db(self) -> float:
        return pool("psnr", np.array(self._agreements))["psnr_of_mean_mse"]

    @property
    def worst_frame_db(self) -> float:
        return min(self._agreements)

    @property
    def ms(self) -> float:
        return 1000 * min(self._seconds)


def _compare(model: str | Path, place: Path, parts: list[npt.NDArray[Any]]) -> tuple[_Side, _Side, _Side | None]:
    """Run the model in FP32, in INT8, and in INT8 in OpenVINO in turns; the last one is None if it does not run."""
    limits = SessionLimits(max_frame=(parts[0].shape[1], parts[0].shape[2]))
    with ExitStack() as stack:
        exact, small = (
            _Side(stack.enter_context(InferenceSession(one, device="cpu", limits=limits))) for one in (model, place)
        )
        sides = [small]
        try:
            other = InferenceSession(place, backend=ModelBackend.OPENVINO, device="cpu", limits=limits)
            sides.append(_Side(stack.enter_context(other)))
        except (BackendUnavailableError, ModelLoadError) as exc:
            _log.info("%s in int8 does not run in OpenVINO: %s", model, exc)
        for turn in range(max(MIN_TURNS, len(parts))):
            part = parts[turn % len(parts)]
            expected = exact.call(part)
            for side in sides:
                result = side.call(part)
                if turn < len(parts):
                    side.compare(expected, result)
    return exact, small, sides[1] if len(sides) > 1 else None
