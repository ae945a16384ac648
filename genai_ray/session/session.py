"""``InferenceSession``: frames in, frames out, with one model on one device."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from genai_ray.backends import RuntimeSession, Tensors, open_runtime, resolve_device
from genai_ray.errors import ConfigError, InferenceError, InvalidInputError, ModelLoadError, ResourceExhaustedError
from genai_ray.graph import Graph, fuse_frames, has_outside_weights, read_model, read_weights
from genai_ray.inspection import find_model
from genai_ray.session.copies import Copies
from genai_ray.session.memory import anonymous_bytes, map_large_blocks, release_freed_memory
from genai_ray.session.precision import convert_model
from genai_ray.session.runs import RunPlan, RunPool, pad_frames, run_frames
from genai_ray.session.sizing import (
    SessionLimits,
    bytes_per_px,
    default_tile_px,
    describe_seams,
    fixed_tile,
    largest_run,
    padded_size,
    raw_run_bytes,
    run_batch_of,
    runs_at_once,
    tile_step,
)
from genai_ray.session.warming import Shapes, build_feeds
from genai_ray.types import Frames, ModelBackend, ModelPrecision, ModelTask, check_frames

__all__ = ["InferenceSession"]

_log = logging.getLogger(__name__)

WARMUP_RUNS = 4
"""Runs of each thread in warm-up: in one go, so that they meet at their peaks. After three that began together the truth was up to
17 % more than measured, after these up to 12 %."""


class InferenceSession:
    """One model on one device; safe to use from several threads, which share its bounded number of concurrent runs.

    Results do not depend on tiling, on ``run_batch`` or on the number of threads: bit for bit on the CPU provider.

    Args:
        model: Catalog id, alias, or path of an .onnx file.
        backend: The runtime.
        precision: The number format; a converted one is accepted only where it agrees with FP32 by 40 dB.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.
        threads: CPU threads in all; None for every core this process may use.
        limits: Bytes, sizes and tiling.

    Raises:
        ModelNotFoundError: If no such model or file is known.
        ModelLoadError: If the model is corrupt, of a wrong sha256, or does not convert.
        BackendUnavailableError: If the runtime or device is not there.
        ConfigError: If an option makes no sense.
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
        self.backend, self.precision = ModelBackend(backend), ModelPrecision(precision)
        if ModelBackend.AUTO is self.backend or ModelPrecision.AUTO is self.precision:
            raise ConfigError(
                "backend or precision 'auto' for one session", "a backend and a precision by name", "Use onnx and fp32."
            )
        map_large_blocks()  # before the file is read
        self.spec, self._path = find_model(model)
        self.limits = limits or SessionLimits()
        self.threads = (
            threads or len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else threads or os.cpu_count() or 1
        )
        self._asked_device = resolve_device(device, self.backend)
        self._bytes_before = anonymous_bytes()
        self._lock = threading.Lock()
        self._copies = Copies(self._load, self._may_take)
        self._precision_db: float | None = None
        self._frames_done = self._calls_done = 0
        self._seconds_busy = 0.0
        self._peak_bytes = 0
        self._bytes_per_px: float | None = None
        self._warm = False
        self._warm_bytes = 0
        is_cpu = self._asked_device == "cpu"
        self.num_runs = runs_at_once(self.spec, self.threads, is_cpu)
        self.run_batch = run_batch_of(self.spec, self.limits, is_cpu)
        self._pool = RunPool(self.num_runs)
        with self._copies.use("uint8" if self.spec.is_image_model else "raw", int) as first:
            self.device, self.computes_in = first.device, first.computes_in
        self._loaded_bytes = self.memory_bytes
        if self.precision is ModelPrecision.FP16 and self.computes_in == "fp32":
            _log.info("%s: the weights are in fp16, and this device computes in fp32", self.spec.model_id)
        self.notes = tuple(note for note in (describe_seams(self.spec, self.limits.max_frame),) if note is not None)
        for note in self.notes:
            _log.warning("%s", note)
        self.tile_size_px = self._choose_tile_size()

    def infer(self, frames: Frames, params: Mapping[str, float] | None = None, *, is_online: bool = False) -> Frames:
        """Enhance frames.

        Args:
            frames: (N, H, W, 3) or one frame (H, W, 3), RGB, uint8, uint16 or float32 in [0, 1]; never written to.
            params: Extra scalar inputs of the model by name, in the units of its spec; defaults where left out.
            is_online: Whether somebody waits for it: its runs overtake those that wait and are not.

        Returns:
            Frames of the same dtype: (N, s*H, s*W, 3) for upscaling with scale s (1 for denoising and low light),
            (N-1, H, W, 3) for interpolation, a mask (N, H, W, 1) for background removal; without N for one frame.

        Raises:
            InvalidInputError: If frames or params break the contract, or the model takes no frames.
            ResourceExhaustedError: If the frame needs more than ``limits.max_bytes`` and the model cannot be tiled.
            InferenceError: If the runtime fails or the session is closed.
        """
        started = time.perf_counter()
        batch = self._check(frames)
        scalars = self._scalars(params or {})
        padded = pad_frames(batch, *padded_size(self.spec, *batch.shape[1:3]))
        self._check_room(padded)
        is_pairs = self.spec.task is ModelTask.INTERPOLATION
        count, scale = len(batch) - is_pairs, self.spec.scale
        channels = 1 if self.spec.task is ModelTask.BACKGROUND_REMOVAL else 3
        out = np.empty((count, padded.shape[1] * scale, padded.shape[2] * scale, channels), batch.dtype)
        with self._copies.use(batch.dtype.name, lambda: self._warm_bytes or self._loaded_bytes) as runtime:
            calls = run_frames(runtime, padded, scalars, out, plan=self._plan(is_online), pool=self._pool)
        if padded is not batch:
            out = np.ascontiguousarray(out[:, : batch.shape[1] * scale, : batch.shape[2] * scale])
        with self._lock:
            self._frames_done += count
            self._calls_done += calls
            self._seconds_busy += time.perf_counter() - started
        return out if np.ndim(frames) == out.ndim else out[0]

    def run(self, feeds: Tensors, *, is_online: bool = False) -> dict[str, npt.NDArray[Any]]:
        """Run the model as its file has it: its own names, layouts and ranges; for any ONNX model.

        Args:
            feeds: One array for each input of the graph, of its dtype and shape.
            is_online: Whether somebody waits for it, as in ``infer``.

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
        """Make four of the largest runs on every thread, one after the other, so that speed and ``memory_bytes`` are true from then on.

        Frames are those of ``limits``, the model's own tensors those of ``limits.warmup_shapes``, if any.

        Raises:
            InferenceError: If the runtime fails or the session is closed.
            ModelLoadError: If the model does not take ``limits.warmup_shapes``.
            ResourceExhaustedError: If it takes more than ``limits.max_bytes``.
        """
        if self.spec.is_image_model:
            height, width = self._largest_run()
            count = WARMUP_RUNS * self.num_runs * self.run_batch + (self.spec.task is ModelTask.INTERPOLATION)
            frames = np.zeros((count, *padded_size(self.spec, height, width), 3), np.uint8)
            self.infer(frames)
            with self._lock:
                self._frames_done = self._calls_done = 0
                self._seconds_busy = self._seconds_busy / len(
                    frames
                )  # so that the average is known before the first frame
            del frames
        for shapes in self.limits.warmup_shapes:
            self._warm_raw(shapes)
        release_freed_memory()
        self._warm = True
        self._warm_bytes = taken = self.memory_bytes
        allowed = self.limits.max_bytes
        if allowed is not None and taken > allowed:
            runs = (
                self._largest_run()
                if self.spec.is_image_model
                else [dict(shapes) for shapes in self.limits.warmup_shapes]
            )
            got = f"{self.spec.model_id} takes {taken} bytes at runs of {runs}"
            raise ResourceExhaustedError(got, f"{allowed} bytes", "Give it more bytes or smaller runs.")

    @property
    def memory_bytes(self) -> int:
        """Bytes that this session added to its process, at the most seen so far (other work of the process counts too)."""
        self._peak_bytes = max(self._peak_bytes, anonymous_bytes() - self._bytes_before)
        return self._peak_bytes

    @property
    def is_loading(self) -> bool:
        """Whether it loads another copy of its model: its file takes memory as well, and is let go afterwards."""
        return self._copies.is_loading

    @property
    def warm(self) -> bool:
        """Whether ``warmup`` has ended."""
        return self._warm

    @property
    def inference_count(self) -> int:
        """Frames computed since warm-up."""
        return self._frames_done

    @property
    def runtime_calls(self) -> int:
        """Calls of the runtime since warm-up."""
        return self._calls_done

    @property
    def avg_latency_ms(self) -> float:
        """Mean milliseconds a frame took within ``infer``; after warm-up and before the first frame, that of warm-up."""
        return 1000 * self._seconds_busy / max(self._frames_done, 1)

    def status(self) -> dict[str, Any]:
        """Return what this session is and has done, fit for JSON.

        Returns:
            Identity, device, precision (asked for, of the weights, of the arithmetic), sizes, counts, bytes, and notes on the results.
        """
        agreement = self._precision_db
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

    def close(self) -> None:
        """End the session and give its memory back to the operating system; a second call does nothing."""
        runtimes = self._copies.close()
        self._pool.close()
        for runtime in runtimes:
            runtime.close()
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

    def _scalars(self, params: Mapping[str, float]) -> dict[str, npt.NDArray[np.float32]]:
        unknown = sorted(set(params) - set(self.spec.params))
        if unknown:
            raise InvalidInputError(
                f"params {unknown} for {self.spec.model_id}", f"{sorted(self.spec.params) or 'none'}"
            )
        scalars = {}
        for name, param in self.spec.params.items():
            value = float(params.get(name, param.default))
            if not param.minimum <= value <= param.maximum:
                raise InvalidInputError(
                    f"{name}={value} for {self.spec.model_id}", f"from {param.minimum} to {param.maximum}"
                )
            scalars[name] = np.full((), value, np.float32)
        return scalars

    def _warm_raw(self, shapes: Shapes) -> None:
        try:
            with self._use_raw(dict(shapes)) as runtime:
                feeds = build_feeds(runtime.inputs, shapes)
                for run in [
                    self._pool.submit(runtime.run, feeds, is_online=False) for _ in range(WARMUP_RUNS * self.num_runs)
                ]:
                    run.result()
        except (InvalidInputError, InferenceError) as exc:
            raise ModelLoadError(f"warmup_shapes {dict(shapes)}: {exc.got}", "shapes that the model runs with") from exc

    def _plan(self, is_online: bool) -> RunPlan:
        spec = self.spec
        fixed_px, overlap_px = fixed_tile(spec)
        return RunPlan(
            scale=spec.scale,
            is_pairs=spec.task is ModelTask.INTERPOLATION,
            run_batch=self.run_batch,
            tile_size_px=self.tile_size_px,
            overlap_px=overlap_px,
            stride_px=tile_step(spec),
            num_runs=self.num_runs,
            fixed_px=fixed_px,
            is_online=is_online,
        )

    def _largest_run(self) -> tuple[int, int]:
        return largest_run(self.spec, self.limits, self.tile_size_px)

    def _choose_tile_size(self) -> int | None:
        """Return the longest side of a run that is wanted and fits ``limits.max_bytes``; None for whole frames."""
        asked, radius = self.limits.tile_size_px, self.spec.receptive_field_px or 0
        side = default_tile_px(self.spec, self.limits)
        if side is None:
            if asked:
                raise ConfigError(
                    f"tiles of {asked} px for {self.spec.model_id}, which has a fixed size or sees the whole frame",
                    "0: none but its own",
                )
            return None
        least = 2 * radius + 16 * self.spec.tile_stride
        if asked is not None and asked < least:
            raise ConfigError(
                f"tiles of {asked} px for {self.spec.model_id}",
                f"at least {least} px: twice its receptive field and some",
            )
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
        """Return the bytes that runs may take together: what is allowed less the loaded model and the frames that leave."""
        if self.limits.max_bytes is None:
            return None
        height, width = self.limits.max_frame or (0, 0)
        leaving = 2 * height * width * 3 * self.spec.scale**2
        return self.limits.max_bytes - self._loaded_bytes - leaving

    def _run_bytes(self, height: int, width: int) -> int:
        """Predict the bytes of one run."""
        if self._bytes_per_px is None:
            self._bytes_per_px = bytes_per_px(self._fused("uint8"), self.spec)
            if self.precision is ModelPrecision.FP16 and self.computes_in == "fp32":
                self._bytes_per_px *= 2  # the graph's tensors are of half the size of those that are computed
        return int(self._bytes_per_px * height * width * self.run_batch)

    def _check_room(self, frames: npt.NDArray[Any]) -> None:
        room, (height, width) = self._room_for_runs(), frames.shape[1:3]
        if room is None or self.tile_size_px is not None or self.spec.is_fixed_size:
            return
        needed = self._run_bytes(height, width)
        if needed > room:
            raise ResourceExhaustedError(
                f"a frame of {width}x{height} needs {needed} bytes in {self.spec.model_id}, which cannot be tiled",
                f"{room} bytes",
            )

    def _fused(self, kind: str) -> Graph:
        model = read_model(self._path)
        if self.precision is not ModelPrecision.FP32:
            read_weights(model, self._path)
        converted, agreement = convert_model(model, self.spec, self.precision)
        self._precision_db = agreement
        return converted if kind == "raw" else fuse_frames(converted, self.spec, np.dtype(kind))

    def _use_raw(self, shapes: Mapping[str, tuple[int, ...]]) -> AbstractContextManager[RuntimeSession]:
        return self._copies.use("raw", lambda: self._loaded_bytes + self.num_runs * raw_run_bytes(self._path, shapes))

    def _may_take(self, num_bytes: int) -> bool:
        if self.limits.reserve is not None:
            return self.limits.reserve(num_bytes)
        return self.limits.max_bytes is None or self.memory_bytes + num_bytes <= self.limits.max_bytes

    def _load(self, kind: str) -> RuntimeSession:
        threads = max(self.threads // self.num_runs, 1) if self._asked_device == "cpu" else self.threads
        model = self._fused(kind)
        room = None if self.limits.max_bytes is None else self.limits.max_bytes - model.ByteSize()
        folder = self._path.parent if has_outside_weights(model) else None
        return open_runtime(
            model.SerializeToString(),
            backend=self.backend,
            device=self._asked_device,
            threads=threads,
            max_bytes=room,
            folder=folder,
        )
