"""``InferenceSession``: frames in, frames out, with one model on one device."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from genai_ray.backends import (
    RuntimeOptions,
    RuntimeSession,
    Tensors,
    check_precision,
    resolve_device,
)
from genai_ray.errors import ConfigError, InferenceError, InvalidInputError, ModelLoadError, ResourceExhaustedError
from genai_ray.inspection import find_model
from genai_ray.session.memory import SessionMemory
from genai_ray.session.opening import Opener
from genai_ray.session.process import count_cores, map_large_blocks, release_freed_memory
from genai_ray.session.runs import RunPlan, RunPool, pad_frames, run_frames, zero_feeds
from genai_ray.session.shown import Shown
from genai_ray.session.sizing import (
    MODEL_BASE_BYTES,
    SessionLimits,
    Shapes,
    check_search,
    check_tile_size,
    default_tile_px,
    describe_seams,
    ends_bytes,
    fixed_tile,
    larger_run_px,
    largest_run,
    least_tile_px,
    padded_size,
    raw_run_bytes,
    run_batch_of,
    runs_at_once,
    tile_step,
)
from genai_ray.session.variants import Variants
from genai_ray.types import Frames, ModelBackend, ModelPrecision, ModelTask, Params, check_frames, take_word

__all__ = ["InferenceSession"]

_log = logging.getLogger(__name__)

WARMUP_RUNS = 4
"""Runs of each thread in warm-up, without a pause, so that their peaks meet. After three runs the true peak was up to
17 % above the measured one, after four up to 12 %. One run is enough for a model with ``tiles``: its runs take seconds,
and are made one after the other on a CPU."""


class InferenceSession(Shown):
    """One model on one device. Several threads may use it; they share its limited number of concurrent runs.

    Results do not depend on tiling, ``run_batch`` or the number of threads: bit for bit on a CPU. A model with
    ``spec.tiles`` always computes the same tiles.

    Args:
        model: Catalog id, alias, or path of an .onnx file.
        backend: The runtime. A model in OpenVINO must agree with ONNX Runtime by at least 80 dB in FP32.
        precision: The number format; another one than FP32 must agree with it by at least 40 dB.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.
        threads: CPU threads in total; None for every core that this process may use.
        limits: Bytes, sizes and tiling.

    Raises:
        ModelNotFoundError: If there is no such model or file.
        ModelLoadError: If the model is corrupt, has a wrong sha256, cannot be converted, or computes something else
            in this backend and precision.
        BackendUnavailableError: If the runtime or device is not available, or the device lacks the precision.
        ConfigError: If an option is not possible for the model or the backend.
        ResourceExhaustedError: If ``limits.max_bytes`` is too little for the model.

    Example:
        >>> import numpy as np
        >>> with InferenceSession("websr-x2-s") as session:
        ...     session.infer(np.zeros((72, 88, 3), np.uint8)).shape
        (144, 176, 3)
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: ModelBackend = ModelBackend.ONNX,
        precision: ModelPrecision = ModelPrecision.FP32,
        device: str = "auto",
        threads: int | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        self.backend = take_word(ModelBackend, backend, "backend")
        self.precision = take_word(ModelPrecision, precision, "precision")
        if ModelBackend.AUTO is self.backend or ModelPrecision.AUTO is self.precision:
            raise ConfigError(
                "backend or precision 'auto' for one session", "a backend and a precision by name", "Use onnx and fp32."
            )
        check_precision(self.backend, self.precision)
        self._asked_device = resolve_device(device, self.backend)
        map_large_blocks()  # before the file is read
        self.spec, self._path = find_model(model)
        if self.backend is ModelBackend.OPENVINO and not self.spec.is_image_model:
            raise ConfigError(
                f"backend 'openvino' for {self.spec.model_id}, which is not an image model: "
                "its results cannot be compared with ONNX Runtime's",
                "onnx",
            )
        self.limits = limits or SessionLimits()
        self.threads = threads or count_cores()
        self._memory = SessionMemory(self.backend, self._asked_device)
        self._lock = threading.Lock()
        self._frames_done = 0
        self._calls_done = 0
        self._seconds_busy = 0.0
        self._warm = False
        self._warm_bytes = 0
        is_cpu = self._asked_device == "cpu"
        self.computes_in = ""
        check_search(self.spec, self.limits, is_cpu)
        self.num_runs = runs_at_once(self.spec, self.backend, self.threads if is_cpu else None)
        self.run_batch = run_batch_of(self.spec, self.limits, is_cpu)
        self._opener = Opener(self.spec, self._path, self._runtime_options(), self._may_compile)
        self._variants = Variants(self._open_variant, self._may_take)
        self._pool = RunPool(self.num_runs)
        with self._variants.use("uint8" if self.spec.is_image_model else "raw", int) as runtime:
            self.device = runtime.device
            self.computes_in = runtime.computes_in
        self._loaded_bytes = self.memory_bytes
        if self.precision is ModelPrecision.FP16 and self.computes_in == "fp32":
            _log.info("%s: the weights are in fp16, and this device computes in fp32", self.spec.model_id)
        seams = describe_seams(self.spec, self.limits.max_frame)
        if seams is not None:
            _log.log(logging.INFO if self.spec.tiles is not None else logging.WARNING, "%s", seams)
        self.notes: tuple[str, ...] = () if seams is None else (seams,)
        self.tile_size_px = self._choose_tile_size()

    def infer(self, frames: Frames, params: Params | None = None, *, is_online: bool = False) -> Frames:
        """Enhance frames.

        Args:
            frames: (N, H, W, 3) or one frame (H, W, 3), RGB, uint8, uint16 or float32 in [0, 1]; never written to.
            params: Extra inputs of the model by name, in the units of its spec: 15 or 15/255 for ``sigma`` of ffdnet,
                a sequence of numbers for a vector, (H, W, 3) for a picture. Others have their defaults: grey pictures.
            is_online: Whether a request waits for the result: its runs overtake those of batch jobs.

        Returns:
            Frames of the same dtype: (N, s*H, s*W, 3) for upscaling with scale s (1 for denoising and low light),
            (N-1, H, W, 3) for interpolation, a mask (N, H, W, 1) for background removal; without N for one frame.

        Raises:
            InvalidInputError: If frames or params are invalid, or the model takes no frames.
            ResourceExhaustedError: If the frame needs more than ``limits.max_bytes`` and the model cannot be tiled.
            InferenceError: If the runtime fails or the session is closed.
        """
        started = time.perf_counter()
        batch = self._check(frames)
        extra = self._extra_inputs(params or {})
        height, width = batch.shape[1:3]
        padded = pad_frames(batch, *padded_size(self.spec, height, width), self.spec.edge_px)
        self._check_room(padded)
        is_pairs = self.spec.task is ModelTask.INTERPOLATION
        count = len(batch) - is_pairs
        scale = self.spec.scale
        channels = 1 if self.spec.task is ModelTask.BACKGROUND_REMOVAL else 3
        out = np.empty((count, padded.shape[1] * scale, padded.shape[2] * scale, channels), batch.dtype)
        with self._variants.use(batch.dtype.name, self._frames_bytes) as runtime:
            calls = run_frames(runtime, padded, extra, out, plan=self._plan(is_online), pool=self._pool)
        if padded is not batch:
            edge = self.spec.edge_px * scale
            out = np.ascontiguousarray(out[:, edge : edge + height * scale, edge : edge + width * scale])
        with self._lock:
            self._frames_done += count
            self._calls_done += calls
            self._seconds_busy += time.perf_counter() - started
        return out if np.ndim(frames) == out.ndim else out[0]

    def run(self, feeds: Tensors, *, is_online: bool = False) -> dict[str, npt.NDArray[Any]]:
        """Run any ONNX model with its own tensors: the names, layouts and ranges of its file.

        Args:
            feeds: One array for each input of the graph, of its dtype and shape.
            is_online: Whether a request waits for the result, as in ``infer``.

        Returns:
            Every output by name.

        Raises:
            InvalidInputError: If names, dtypes or shapes do not fit the graph.
            InferenceError: If the runtime fails or the session is closed.
        """
        with self._use_raw({name: np.shape(array) for name, array in feeds.items()}) as runtime:
            outputs: dict[str, npt.NDArray[Any]] = self._pool.submit(runtime.run, feeds, is_online=is_online).result()
        with self._lock:
            self._calls_done += 1
        return outputs

    def warmup(self) -> None:
        """Make four of the largest runs on every thread; afterwards speed and ``memory_bytes`` are those of real work.

        A model with ``spec.tiles`` makes one. Sizes are those of ``limits``: of frames, and of the model's own tensors
        in ``limits.warmup_shapes``.

        Raises:
            InferenceError: If the runtime fails or the session is closed.
            ModelLoadError: If the model does not take ``limits.warmup_shapes``.
            ResourceExhaustedError: If the session takes more than ``limits.max_bytes``.
        """
        if self.spec.is_image_model:
            size = [max(length - 2 * self.spec.edge_px, 1) for length in self._largest_run()]
            turns = WARMUP_RUNS if self.spec.tiles is None else 1
            pair = int(self.spec.task is ModelTask.INTERPOLATION)
            count = turns * self.num_runs * self.run_batch + pair
            self.infer(np.zeros((count, *size, 3), np.uint8))
            if self._memory.is_of_gpu:  # TensorRT builds an engine for each range of batches
                self.infer(np.zeros((1 + pair, *size, 3), np.uint8))
            with self._lock:
                self._frames_done = 0
                self._calls_done = 0
                self._seconds_busy /= count  # the average latency until the first frame
        for shapes in self.limits.warmup_shapes:
            self._warm_raw(shapes)
        release_freed_memory()
        self._memory.measure()
        self._warm = True
        self._warm_bytes = self.memory_bytes
        allowed = self.limits.max_bytes
        if allowed is not None and self._warm_bytes > allowed:
            runs = self._largest_run() if self.spec.is_image_model else [*map(dict, self.limits.warmup_shapes)]
            raise ResourceExhaustedError(
                f"{self.spec.model_id} takes {self._warm_bytes} bytes for runs of {runs}",
                f"{allowed} bytes",
                "Give it more bytes or smaller runs.",
            )

    @property
    def memory_bytes(self) -> int:
        """Most bytes that this session has added to its process so far; other work of the process counts as well.

        On a GPU they are bytes of the GPU, with the CUDA context, which sessions of one process share.
        """
        return self._memory.peak_bytes

    @property
    def is_loading(self) -> bool:
        """Whether it is loading another variant of its model; meanwhile the model's file takes memory as well."""
        return self._variants.is_loading

    @property
    def warm(self) -> bool:
        """Whether ``warmup`` is done."""
        return self._warm

    @property
    def inference_count(self) -> int:
        """Frames computed since warm-up."""
        return self._frames_done

    @property
    def runtime_calls(self) -> int:
        """Runtime calls since warm-up."""
        return self._calls_done

    @property
    def avg_latency_ms(self) -> float:
        """Mean milliseconds per frame in ``infer``; that of warm-up until the first frame."""
        return 1000 * self._seconds_busy / max(self._frames_done, 1)

    def __repr__(self) -> str:
        return f"InferenceSession({self.spec.model_id}, {self.backend}, {self.precision}, {self.device})"

    def status(self) -> dict[str, Any]:
        """Describe this session in values that JSON can hold.

        Returns:
            Model, device, precision (requested, of the weights, of the arithmetic), sizes, counts, bytes and notes.
        """
        agreement = self._opener.precision_db
        return {
            "model_id": self.spec.model_id,
            "backend": self.backend.value,
            "precision": self.precision.value,
            "weights_in": self.precision.value,
            "computes_in": self.computes_in if self.computes_in == "fp32" else self.precision.value,
            "precision_db": agreement if agreement is None or np.isfinite(agreement) else "inf",
            "device": self.device,
            "threads": self.threads,
            "num_runs": self.num_runs,
            "run_batch": self.run_batch,
            "tile_size_px": self.tile_size_px,
            "warm": self.warm,
            "memory_bytes": self.memory_bytes,
            "inference_count": self.inference_count,
            "runtime_calls": self.runtime_calls,
            "avg_latency_ms": self.avg_latency_ms,
            "notes": list(self.notes),
        }

    def tile_lines(self, height_px: int, width_px: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return where the tiles of a frame meet, for ``genai_ray.quality.SourceChecks``.

        Args:
            height_px: Height of the frame that goes in.
            width_px: Width of the frame that goes in.

        Returns:
            Rows and columns of that frame at which a tile begins, without 0; empty for a frame that is not tiled.
        """
        edge = self.spec.edge_px
        found = self._plan(False).tiles(height_px + 2 * edge, width_px + 2 * edge, 1)
        tiles = [tile for tile in found if tile is not None]
        rows = {tile.rows.keep_start - edge for tile in tiles}
        columns = {tile.columns.keep_start - edge for tile in tiles}
        return tuple(sorted(rows - {-edge})), tuple(sorted(columns - {-edge}))

    def close(self) -> None:
        """End the session and give its memory back to the operating system; a second call does nothing."""
        runtimes = self._variants.close()
        self._pool.close()
        for runtime in runtimes:
            runtime.close()
        self._opener.close()
        del runtimes
        release_freed_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, frames: Frames) -> npt.NDArray[Any]:
        if not self.spec.is_image_model:
            raise InvalidInputError(
                f"frames for {self.spec.model_id}, which is not an image model", "run() with its own tensors"
            )
        batch = check_frames(frames)
        if self.spec.task is ModelTask.INTERPOLATION and len(batch) < 2:
            raise InvalidInputError(f"{len(batch)} frame for interpolation", "at least two neighbours, (N, H, W, 3)")
        return batch

    def _extra_inputs(self, params: Params) -> dict[str, npt.NDArray[np.float32]]:
        unknown = sorted(set(params) - set(self.spec.params))
        if unknown:
            raise InvalidInputError(
                f"params {unknown} for {self.spec.model_id}", f"{sorted(self.spec.params) or 'none'}"
            )
        return {
            name: param.to_array(param.read(name, params[name]) if name in params else None)
            for name, param in self.spec.params.items()
        }

    def _warm_raw(self, shapes: Shapes) -> None:
        try:
            with self._use_raw(dict(shapes)) as runtime:
                feeds = zero_feeds(runtime.inputs, shapes)
                count = WARMUP_RUNS * self.num_runs
                runs = [self._pool.submit(runtime.run, feeds, is_online=False) for _ in range(count)]
                for run in runs:
                    run.result()
        except (InvalidInputError, InferenceError) as exc:
            raise ModelLoadError(f"warmup_shapes {dict(shapes)}: {exc.got}", "shapes that the model runs with") from exc

    def _plan(self, is_online: bool) -> RunPlan:
        fixed_px, overlap_px = fixed_tile(self.spec)
        return RunPlan(
            scale=self.spec.scale,
            is_pairs=self.spec.task is ModelTask.INTERPOLATION,
            run_batch=self.run_batch,
            tile_size_px=self.tile_size_px,
            overlap_px=overlap_px,
            stride_px=tile_step(self.spec),
            num_runs=self.num_runs,
            fixed_px=fixed_px,
            is_exact=self.spec.tiles is None,
            is_uniform=self.spec.tiles is None and self.device != "cpu",
            is_online=is_online,
        )

    def _open_variant(self, kind: str, granted_bytes: int | None) -> RuntimeSession:
        """Open a variant; on a GPU its arena is limited by what it was granted, or by what the session may take."""
        if not self._memory.is_of_gpu:
            return self._opener.open(kind)
        if granted_bytes is None:
            runtime = self._opener.open(kind, self._device_bytes(kind), self._memory.context_bytes)
        else:
            runtime = self._opener.open(kind, granted_bytes)
        self._memory.measure()
        return runtime

    def _device_bytes(self, kind: str) -> int | None:
        """Return the bytes of a GPU that the session may take; None if its runs may be larger than those of warm-up."""
        if self.limits.max_bytes is not None or self.limits.device_bytes is None or kind == "raw":
            return self.limits.max_bytes
        if (more_px := larger_run_px(self.spec, self.limits)) is None:
            return None
        return self.limits.device_bytes + (self.num_runs * self._run_bytes(more_px, 1) if more_px else 0)

    def _largest_run(self) -> tuple[int, int]:
        return largest_run(self.spec, self.limits, self.tile_size_px)

    def _choose_tile_size(self) -> int | None:
        """Return the longest side of a run that fits ``limits.max_bytes``; None for whole frames."""
        check_tile_size(self.spec, self.limits.tile_size_px)
        side = default_tile_px(self.spec, self.limits)
        if side is None:
            return None
        least = least_tile_px(self.spec)
        room = self._room_for_runs()
        while room is not None and self._run_bytes(side, side) * self.num_runs > room:
            side = side * 7 // 8
            if side < least:
                raise ResourceExhaustedError(
                    f"{self.limits.max_bytes} bytes for {self.spec.model_id}: too little for tiles of {least} px",
                    do="Give it more bytes.",
                )
        return side

    def _room_for_runs(self) -> int | None:
        """Return the bytes left for all runs together, after the loaded model and the results."""
        if self.limits.max_bytes is None:
            return None
        height, width = self.limits.max_frame or (0, 0)
        result_bytes = 2 * height * width * 3 * self.spec.scale**2
        return self.limits.max_bytes - self._loaded_bytes - result_bytes

    def _run_bytes(self, height: int, width: int) -> int:
        """Predict the bytes of one run."""
        per_px = self._opener.bytes_per_px()
        if self.precision is ModelPrecision.FP16 and self.computes_in == "fp32":
            per_px *= 2  # the device computes tensors twice as large as those of the graph
        return int(per_px * height * width * self.run_batch)

    def _check_room(self, frames: npt.NDArray[Any]) -> None:
        room = self._room_for_runs()
        if room is None or self.tile_size_px is not None or self.spec.is_fixed_size:
            return
        height, width = frames.shape[1:3]
        needed = self._run_bytes(height, width)
        if needed > room:
            why = "sees the whole frame and " if self.spec.receptive_field_px is None else ""
            raise ResourceExhaustedError(
                f"a frame of {width}x{height} needs {needed} bytes in {self.spec.model_id}, which {why}cannot be tiled",
                f"{room} bytes",
            )

    def _use_raw(self, shapes: Mapping[str, tuple[int, ...]]) -> AbstractContextManager[RuntimeSession]:
        return self._variants.use("raw", lambda: self._raw_bytes(shapes))

    def _raw_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Predict what runs of raw tensors take in addition."""
        run_bytes = raw_run_bytes(self._path, shapes)
        if self._opener.is_shared:  # the runs of frames have taken their share of the same memory
            return self.num_runs * max(run_bytes - self._run_bytes(*self._largest_run()), 0)
        return self._memory.copy_bytes(self._loaded_bytes) + self.num_runs * run_bytes

    def _frames_bytes(self) -> int:
        """Predict what frames of another dtype take in addition."""
        if self._opener.is_shared:
            return self.num_runs * ends_bytes(self.spec, *self._largest_run())
        return self._memory.copy_bytes(self._warm_bytes or self._loaded_bytes)

    def _may_take(self, num_bytes: int) -> bool:
        if self.limits.reserve is not None:
            return self.limits.reserve(num_bytes)
        return self.limits.max_bytes is None or self.memory_bytes + num_bytes <= self.limits.max_bytes

    def _may_compile(self, kind: str, stored_bytes: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        if kind == "raw":
            run_bytes = raw_run_bytes(self._path, shapes)
        else:
            height, width = next(shape[1:3] for shape in shapes.values() if len(shape) == 4)
            run_bytes = self._run_bytes(height, width)
        return self._may_take(MODEL_BASE_BYTES + stored_bytes + self.num_runs * run_bytes)

    def _runtime_options(self) -> RuntimeOptions:
        threads = self.threads
        if self._asked_device == "cpu":
            is_single = self.backend is ModelBackend.OPENVINO  # with two threads, RIFE differs in bits
            threads = 1 if is_single else max(self.threads // self.num_runs, 1)
        return RuntimeOptions(
            backend=self.backend,
            precision=self.precision,
            device=self._asked_device,
            threads=threads,
            num_runs=self.num_runs,
            is_exhaustive=self.limits.is_exhaustive,
            shapes=repr((self.run_batch, self.limits.max_frame, self.limits.tile_size_px, self.limits.max_bytes)),
        )
