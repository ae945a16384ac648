"""Makes a ``ModelSpec`` of an ONNX file without one, from its graph and from trial runs.

Names of symbolic dimensions and ``metadata_props`` are not read: real files lack them. ``ModelSpec.unsure`` says what
is not certain. A model that is not an image model gets the task ``other``, not an exception.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genai_ray.backends import RUN_ERRORS, RuntimeOptions, RuntimeSession, TensorInfo, open_runtime
from genai_ray.catalog import ModelSpec, ParamSpec, TensorSpec
from genai_ray.errors import GenAIRayError, ModelLoadError, ModelNotFoundError
from genai_ray.graph import (
    WHOLE_FILE_BYTES,
    Graph,
    GraphTensor,
    broken_rule,
    element_name,
    free_batch,
    fuse_frames,
    read_header,
    receptive_field,
)
from genai_ray.types import ModelTask

__all__ = ["SAVE_SPEC", "ask_runtime", "inspect_model"]

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)
_SIZES_PX = (128, 64, 32)
"""Longest sides of trial frames; a slow model gets smaller ones."""
_MIN_PICTURE_PX = 32
_RUNS = 8
"""All trial runs together take about as long as so many runs of the largest frame."""

SAVE_SPEC = (
    "Save a spec beside the file, as NAME.yaml: then no trial runs are needed (`genai-ray models inspect` writes one)."
)
"""Advice for a model that cannot be tried out."""
_MAX_MINIMUM_PX = 64
_MAX_VECTOR = 4096
"""Most numbers of an extra input that is taken for a vector."""
_COLOURS = (1, 3)
_PICTURE_CHANNELS = 3
_PICTURE_TRIAL_PX = 64
_OTHER_TRIAL_PX = (96, 48)
"""Height and width of a second picture that is no neighbouring frame."""
_CLEAR_RATIO = 1.3


def inspect_model(path: Path, within_s: float = math.inf) -> ModelSpec:
    """Find out the inputs and outputs of a model.

    Args:
        path: An .onnx file.
        within_s: Most seconds for its trial runs; a slow model gets smaller frames.

    Returns:
        A spec that the engine can use; task ``other`` without image inputs if it is not an image model.

    Raises:
        ModelNotFoundError: If there is no such file.
        ModelLoadError: If the file is corrupt or not ONNX, the runtime cannot load it, or it is too slow for trial
            runs.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(f"no file {path}", "the path of an .onnx file")
    model = read_header(path)
    is_small = path.stat().st_size <= WHOLE_FILE_BYTES
    # With the weights as external data, the runtime maps a large file instead of copying it.
    runtime = (
        open_runtime(path) if is_small else open_runtime(model.SerializeToString(), RuntimeOptions(folder=path.parent))
    )
    try:
        trial = _Trial(path, runtime, within_s)
        spec = trial.describe()
        if spec.is_image_model:
            spec = trial.try_frames(spec, model)
    finally:
        runtime.close()
    broken = broken_rule(path) if is_small else None  # the checker reads the whole file, only to add a note
    if broken is not None:
        trial.unsure.append(f"whether other runtimes accept it; ONNX's checker says: {broken}")
    return spec.model_copy(update={"unsure": tuple(trial.unsure)})


def ask_runtime(path: Path, tensors: Iterable[GraphTensor]) -> tuple[GraphTensor, ...]:
    """Complete the declared tensors of a graph with what the runtime infers.

    Args:
        path: An .onnx file.
        tensors: Inputs or outputs of its graph.

    Returns:
        The tensors with types and shapes, except for sequences, maps, and shapes that only a run can tell.

    Raises:
        ModelLoadError: If the runtime cannot load the file.
    """
    runtime = open_runtime(path)
    try:
        found = {info.name: info for info in (*runtime.inputs, *runtime.outputs) if info.is_tensor}
    finally:
        runtime.close()
    return tuple(_complete(tensor, found[tensor.name]) if tensor.name in found else tensor for tensor in tensors)


def _complete(tensor: GraphTensor, info: TensorInfo) -> GraphTensor:
    shape = tuple(-1 if axis is None else axis for axis in info.shape) or None
    return GraphTensor(
        tensor.name, tensor.element or element_name(info.dtype), shape if tensor.shape is None else tensor.shape
    )


@dataclass(slots=True)
class _Trial:
    """One inspection of a loaded model."""

    path: Path
    runtime: RuntimeSession
    within_s: float
    """Most seconds of all runs; a run that would take longer is not started."""
    unsure: list[str] = field(default_factory=list)
    size_px: int = _SIZES_PX[0]
    """Longest side of its trial frames."""
    pace_s: float = 0.0
    """Least seconds per pixel so far; 0 before the first run."""
    spent_s: float = 0.0
    """Seconds of all runs so far."""

    @property
    def picture_px(self) -> int:
        """Side of a frame with a picture."""
        return max(self.size_px // 2, _MIN_PICTURE_PX)

    def describe(self) -> ModelSpec:
        spec = ModelSpec(model_id=self.path.stem, file=str(self.path.resolve()))
        images = [info for info in self.runtime.inputs if _layout_of(info) is not None]
        params = [info for info in self.runtime.inputs if info not in images and _vector_size(info) is not None]
        rest = [info.name for info in self.runtime.inputs if info not in images and info not in params]
        pictures = self._find_pictures(images, params) if not rest and len(images) == 2 else []
        images = [info for info in images if info not in pictures]
        if rest or len(images) not in (1, 2):
            shapes = ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in self.runtime.inputs) or "none"
            self.unsure.append(f"whether it is an image model at all; its inputs are: {shapes}")
            return spec
        inputs = tuple(_describe_input(info) for info in images)
        extra = [info for info in self.runtime.inputs if info in params or info in pictures]
        spec = spec.model_copy(
            update={"inputs": inputs, "params": {info.name: _describe_param(info, info in pictures) for info in extra}}
        )
        for info in params:
            self.unsure.append(f"the default and range of the extra input {info.name!r}")
        for info in pictures:
            self.unsure.append(f"whether the extra input {info.name!r} is a picture such as one of a style")
        return self._try_sizes(spec)

    def _find_pictures(self, images: list[TensorInfo], params: list[TensorInfo]) -> list[TensorInfo]:
        """Return the one of two images that is no frame but an extra input; none if both are neighbouring frames.

        It is the second, unless only the first has a fixed size. Two frames have one size: an extra picture has another
        shape in the graph, or the model takes it in another size and gives a picture of the first one's size.
        """
        sizes = [(tensor.height, tensor.width) for tensor in map(_describe_input, images)]
        other = images[0 if None not in sizes[0] and None in sizes[1] else 1]
        if _describe_input(other).channels != _PICTURE_CHANNELS:
            return []
        if sizes[0] != sizes[1] or _layout_of(images[0]) != _layout_of(images[1]):
            return [other]
        if sizes[0] != (None, None):
            return []
        return [other] if self._takes_other_size(images, params) else []

    def _takes_other_size(self, images: list[TensorInfo], params: list[TensorInfo]) -> bool:
        """Tell whether a model of two images of any size takes a second one of another size than the first one's."""
        first, second = map(_describe_input, images)
        feeds = {info.name: _param_feed(_describe_param(info, False), info, 1, 1.0) for info in params}
        for tensor, sides in ((first, (_PICTURE_TRIAL_PX, _PICTURE_TRIAL_PX)), (second, _OTHER_TRIAL_PX)):
            shape = (1, *sides, tensor.channels) if tensor.layout == "nhwc" else (1, tensor.channels, *sides)
            feeds[str(tensor.name)] = np.full(
                shape, 0.5, next(info.dtype for info in images if info.name == tensor.name)
            )
        try:
            outputs = self._timed(feeds, self.runtime, _PICTURE_TRIAL_PX**2)
        except RUN_ERRORS:
            return False
        shapes = [array.shape for array in outputs.values() if np.ndim(array) == 4]
        made = {shape[1:3] if shape[-1] in _COLOURS and shape[1] not in _COLOURS else shape[2:4] for shape in shapes}
        return any(height == width and height % _PICTURE_TRIAL_PX == 0 for height, width in made)

    def _try_sizes(self, spec: ModelSpec) -> ModelSpec:
        """Run the model; its output decides on scale, multiple, output and task."""
        fixed = spec.inputs[0].height, spec.inputs[0].width
        self._choose_size(spec)
        size = (fixed[0] or self.size_px, fixed[1] or self.size_px)
        output = self._run(spec, *size)
        image = next(((i, array) for i, array in enumerate(output or []) if array.ndim == 4), None)
        if image is None:
            self.unsure.append(f"its output: there is no picture for an input of {size[1]}x{size[0]}")
            return _without_frames(spec)
        index, array = image
        layout: Literal["nchw", "nhwc"] = (
            "nhwc" if array.shape[-1] in _COLOURS and array.shape[1] not in _COLOURS else "nchw"
        )
        height, width, channels = (array.shape[1:4]) if layout == "nhwc" else (*array.shape[2:4], array.shape[1])
        scale = height // size[0]
        if channels not in _COLOURS or (height, width) != (size[0] * scale, size[1] * scale) or scale < 1:
            self.unsure.append(f"its output: shape {list(array.shape)} for an input of {size[1]}x{size[0]}")
            return _without_frames(spec)
        is_mask = channels == 1 and spec.inputs[0].channels == 3
        high = self._guess_range(spec, index, is_mask, scale)
        inputs = tuple(tensor.model_copy(update={"value_range": (0.0, high)}) for tensor in spec.inputs)
        params = {name: _with_range(param, high) for name, param in spec.params.items()}
        out = TensorSpec(
            name=self.runtime.outputs[index].name,
            layout=layout,
            channels=channels,
            value_range=(0.0, 1.0 if is_mask else high),
            height=fixed[0],
            width=fixed[1],
        )
        task = self._guess_task(len(inputs), scale, is_mask)
        spec = spec.model_copy(
            update={"inputs": inputs, "outputs": (out,), "scale": scale, "task": task, "params": params}
        )
        if any(fixed):
            return spec
        multiple = next((m for m in _MULTIPLES if self._is_exact_at(spec, m)), None)
        if multiple is None:
            self.unsure.append("the size multiple: no multiple up to 128 always gave exactly the scale")
        smallest = next(
            (n for n in range(multiple or 1, _MAX_MINIMUM_PX + 1, multiple or 1) if self._fits(spec, n, n)),
            multiple or 1,
        )
        return spec.model_copy(update={"size_multiple": multiple or 1, "min_size_px": max(smallest, 1)})

    def _choose_size(self, spec: ModelSpec) -> None:
        """Measure the model's speed with a small frame, and choose smaller frames if it is slow."""
        height = spec.inputs[0].height
        width = spec.inputs[0].width
        if (height and width) or math.isinf(self.within_s):
            return
        smallest = next(
            (px for px in reversed(_SIZES_PX) if self._run(spec, height or px, width or px) is not None), None
        )
        if smallest is None:  # the next run will show the error
            return
        if self._predict_s(spec, smallest) > self.within_s:  # the first run may be slow for other reasons
            self._run(spec, height or smallest, width or smallest)
        self.size_px = next(
            (px for px in _SIZES_PX if px >= smallest and self.spent_s + self._predict_s(spec, px) <= self.within_s),
            smallest,
        )
        self._check_time(self._predict_s(spec, self.size_px))

    def _predict_s(self, spec: ModelSpec, px: int) -> float:
        return _RUNS * self.pace_s * (spec.inputs[0].height or px) * (spec.inputs[0].width or px)

    def _check_time(self, seconds: float) -> None:
        """Refuse a model whose trial runs would take too long."""
        total_s = self.spent_s + seconds
        if total_s > self.within_s:
            raise ModelLoadError(
                f"{self.path} is too slow to be tried out: its trial runs would take more than {total_s:.0f} s",
                f"{self.within_s:g} s",
                SAVE_SPEC,
            )

    def _timed(self, feeds: dict[str, npt.NDArray[Any]], runtime: RuntimeSession, num_pixels: int) -> dict[str, Any]:
        """Run the model, unless that would take too long."""
        self._check_time(self.pace_s * num_pixels)
        began_s = time.monotonic()
        try:
            outputs: dict[str, Any] = runtime.run(feeds)
        finally:
            taken_s = time.monotonic() - began_s
            self.spent_s += taken_s
        self.pace_s = min(self.pace_s or math.inf, taken_s / num_pixels)
        return outputs

    def _is_exact_at(self, spec: ModelSpec, multiple: int) -> bool:
        """Tell whether sizes that are multiples of this number, and of no larger one, give exactly the scale."""
        near = max(3 * self.size_px // 8 // multiple, 1) | 1
        sizes = [((near + i) * multiple, (near + j) * multiple) for i, j in ((0, 0), (0, 1), (2, 4), (1, 3))]
        return all(self._fits(spec, *size) for size in sizes)

    def _fits(self, spec: ModelSpec, height: int, width: int) -> bool:
        outputs = self._run(spec, height, width)
        if outputs is None:
            return False
        shape = next(array.shape for array in outputs if array.ndim == 4)
        found = shape[1:3] if spec.outputs[0].layout == "nhwc" else shape[2:4]
        return bool(found == (height * spec.scale, width * spec.scale))

    def _guess_range(self, spec: ModelSpec, index: int, is_mask: bool, scale: int) -> float:
        """Run a picture in both usual ranges: the output resembles it best in the range of the model's training."""
        errors = {}
        size = spec.inputs[0].height or self.picture_px, spec.inputs[0].width or self.picture_px
        for high in (1.0, 255.0):
            outputs = None if is_mask else self._run(spec, *size, high=high, picture=True)
            if outputs is not None:
                array = outputs[index][0] / high
                picture = array if array.shape[-1] in _COLOURS else array.transpose(1, 2, 0)
                shrunk = picture.reshape(size[0], scale, size[1], scale, -1).mean(axis=(1, 3), dtype=np.float64)
                errors[high] = float(np.abs(shrunk - _picture(*size)[..., : shrunk.shape[-1]]).mean())
        best = min(errors.values(), default=0.0)
        worst = max(errors.values(), default=0.0)
        if not math.isfinite(worst) or worst < _CLEAR_RATIO * best or not errors:
            self.unsure.append(
                "the value range: 0..1 is assumed" + ("" if is_mask else ", but 0..255 gives an equally good picture")
            )
            return 1.0
        return min(errors, key=lambda high: errors[high])

    def _guess_task(self, num_images: int, scale: int, is_mask: bool) -> ModelTask:
        if num_images == 2:
            return ModelTask.INTERPOLATION
        if is_mask:
            return ModelTask.BACKGROUND_REMOVAL
        if scale > 1:
            return ModelTask.UPSCALING
        self.unsure.append("the task: denoising is assumed, because the size stays")
        return ModelTask.DENOISING

    def try_frames(self, spec: ModelSpec, model: Graph) -> ModelSpec:
        """Find out whether the model takes frames at all, and whether in batches and in tiles."""
        is_batchable = False
        with contextlib.suppress(ModelLoadError):  # an inner shape may be fixed
            freed = open_runtime(free_batch(model).SerializeToString(), RuntimeOptions(folder=self.path.parent))
            try:
                self.runtime = freed
                is_batchable = self.is_batchable(spec)
            finally:
                freed.close()
        reach = receptive_field(model)
        sees_whole_frame = spec.is_resized or (spec.task is ModelTask.INTERPOLATION and not spec.is_fixed_size)
        field_px = None if sees_whole_frame else reach.radius_px
        stride = math.lcm(reach.stride, spec.size_multiple) if field_px is not None else 1
        spec = spec.model_copy(
            update={"batchable": is_batchable, "receptive_field_px": field_px, "tile_stride": stride}
        )
        try:
            fused = open_runtime(
                fuse_frames(model, spec, np.uint8).SerializeToString(), RuntimeOptions(folder=self.path.parent)
            )
        except ModelLoadError as exc:
            return self._refuse_frames(spec, exc)
        try:
            names = ("frames",) if len(spec.inputs) == 1 else ("frames0", "frames1")
            size = spec.inputs[0].height or self.size_px, spec.inputs[0].width or self.size_px
            feeds: dict[str, npt.NDArray[Any]] = {name: np.zeros((1, *size, 3), np.uint8) for name in names}
            params = {name: param.to_array(side_px=_PICTURE_TRIAL_PX) for name, param in spec.params.items()}
            self._timed(feeds | params, fused, size[0] * size[1])
        except RUN_ERRORS as exc:
            return self._refuse_frames(spec, exc)
        finally:
            fused.close()
        return spec

    def _refuse_frames(self, spec: ModelSpec, exc: GenAIRayError) -> ModelSpec:
        self.unsure.append(f"how it takes frames: it takes raw tensors, but: {exc}")
        return _without_frames(spec)

    def is_batchable(self, spec: ModelSpec) -> bool:
        """Tell whether two frames in one run equal two runs, bit for bit."""
        height = spec.inputs[0].height or self.picture_px
        width = spec.inputs[0].width or self.picture_px
        both = self._run(spec, height, width, count=2, picture=True)
        if both is None:
            return False
        for index in range(2):
            single = self._run(spec, height, width, picture=True, start=index)
            if single is None or not all(
                np.array_equal(a[index : index + 1], b) for a, b in zip(both, single, strict=True) if a.ndim == 4
            ):
                return False
        return True

    def _run(
        self,
        spec: ModelSpec,
        height: int,
        width: int,
        *,
        high: float | None = None,
        count: int = 1,
        picture: bool = False,
        start: int = 0,
    ) -> list[npt.NDArray[Any]] | None:
        """Run at a size; None if the model refuses it."""
        feeds: dict[str, npt.NDArray[Any]] = {}
        infos = {info.name: info for info in self.runtime.inputs}
        for position, tensor in enumerate(spec.inputs):
            top = high if high is not None else tensor.value_range[1]
            frames = np.stack([_picture(height, width, start + i + 2 * position) for i in range(count)])[
                ..., : tensor.channels
            ]
            frames = frames * np.float32(top) if picture else np.full_like(frames, 0.5 * top)
            array = frames if tensor.layout == "nhwc" else frames.transpose(0, 3, 1, 2)
            info = infos[tensor.name or self.runtime.inputs[position].name]
            feeds[info.name] = np.ascontiguousarray(array).astype(info.dtype)
        for name, param in spec.params.items():
            feeds[name] = _param_feed(param, infos[name], count, high)
        try:
            outputs = self._timed(feeds, self.runtime, count * height * width)
            return [array if isinstance(array, np.ndarray) else np.empty(0) for array in outputs.values()]
        except RUN_ERRORS:
            return None


def _without_frames(spec: ModelSpec) -> ModelSpec:
    """Return a spec for raw tensors only."""
    return ModelSpec(model_id=spec.model_id, file=spec.file)


def _layout_of(info: TensorInfo) -> str | None:
    """Return the layout of an image input; None for other inputs."""
    if len(info.shape) != 4 or not np.issubdtype(info.dtype, np.floating) or info.shape[0] not in (None, 1):
        return None
    if info.shape[1] in _COLOURS and _vector_size(info) is None:
        return "nchw"
    return "nhwc" if info.shape[3] in _COLOURS and _vector_size(info) is None else None


def _vector_size(info: TensorInfo) -> int | None:
    """Return how many numbers an input takes: 1 for a scalar; None if it is neither that nor a vector."""
    if not np.issubdtype(info.dtype, np.floating):
        return None
    axes = info.shape[1:] if info.shape and info.shape[0] is None else info.shape
    numbers = [axis for axis in axes if axis != 1]
    if not numbers:
        return 1
    return numbers[0] if len(numbers) == 1 and numbers[0] is not None and numbers[0] <= _MAX_VECTOR else None


def _param_feed(param: ParamSpec, info: TensorInfo, count: int, high: float | None) -> npt.NDArray[Any]:
    """Return what the model's own input gets for the default of a param, for so many frames, white being ``high``."""
    sides = iter((_PICTURE_TRIAL_PX, _PICTURE_TRIAL_PX))
    shape = [count if index == 0 and axis is None else axis or 1 for index, axis in enumerate(info.shape)]
    value = np.asarray(param.default, info.dtype)
    if param.picture is not None:
        white = high if high is not None else param.picture.value_range[1]
        shape[1:] = [next(sides) if axis is None else axis for axis in info.shape[1:]]
        return np.full(shape, value * white, info.dtype)
    one = value.reshape([1, *shape[1:]] if shape and info.shape[0] is None else shape) if value.ndim else value
    return np.ascontiguousarray(np.broadcast_to(one, shape))


def _with_range(param: ParamSpec, high: float) -> ParamSpec:
    """Return a param whose picture has the value range of frames."""
    if param.picture is None:
        return param
    return param.model_copy(update={"picture": param.picture.model_copy(update={"value_range": (0.0, high)})})


def _describe_param(info: TensorInfo, is_picture: bool) -> ParamSpec:
    if is_picture:
        return ParamSpec(
            default=0.5,
            minimum=0.0,
            maximum=1.0,
            picture=_describe_input(info),
            description="a picture such as a style",
        )
    size = _vector_size(info) or 1
    default = 0.5 if size == 1 else (0.5,) * size
    return ParamSpec(
        default=default, minimum=0.0, maximum=1.0, size=None if size == 1 else size, description="not known"
    )


def _describe_input(info: TensorInfo) -> TensorSpec:
    layout = _layout_of(info)
    height, width, channels = info.shape[1:4] if layout == "nhwc" else (info.shape[2], info.shape[3], info.shape[1])
    return TensorSpec(
        name=info.name,
        layout="nhwc" if layout == "nhwc" else "nchw",
        channels=channels or 3,
        height=height,
        width=width,
    )


def _picture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Make a picture with ramps and edges around grey, float32 (H, W, 3) in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin((x + seed) / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
    return (0.5 + 0.35 * waves).astype(np.float32)
