"""Opens what a session loads of its model: in ONNX Runtime on a CPU one session of the model for all variants."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from genai_ray.backends import RuntimeOptions, RuntimeSession, open_frames, open_runtime
from genai_ray.backends.gpu import arena_limit
from genai_ray.backends.onnx_runtime import to_fp16
from genai_ray.backends.providers import FP32_OPERATORS
from genai_ray.catalog import ModelSpec
from genai_ray.errors import ModelLoadError
from genai_ray.graph import Graph, has_outside_weights, read_header, read_model, read_weights, weight_bytes
from genai_ray.inspection import hash_model
from genai_ray.session.precision import measure_agreement
from genai_ray.session.prepared import ENDS, build_graphs, find_prepared, forget_prepared, freed_inputs
from genai_ray.session.sizing import bytes_per_px, shares_model
from genai_ray.session.variants import RawTensors
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["Opener"]

_log = logging.getLogger(__name__)


class Opener:
    """Opens the variants of one model; one at a time.

    Args:
        spec: The model.
        path: Its file.
        options: How, without a limit of bytes.
        may_compile: Tells whether OpenVINO may compile a variant with weights of so many bytes for further shapes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        path: Path,
        options: RuntimeOptions,
        may_compile: Callable[[str, int, Mapping[str, tuple[int, ...]]], bool],
    ) -> None:
        self._spec = spec
        self._path = path
        self._plain = options
        self._may_compile = may_compile
        self._core: RuntimeSession | None = None
        self._freed: tuple[str, ...] = ()
        self._bytes_per_px: float | None = None
        self._device_bytes: int | None = None
        self._context_bytes = 0
        self.is_shared = shares_model(spec, options.backend, is_cpu=options.device == "cpu")
        self.precision_db: float | None = None

    def open(self, kind: str, device_bytes: int | None = None, context_bytes: int = 0) -> RuntimeSession:
        """Open a variant.

        Args:
            kind: A dtype of frames, or ``raw``.
            device_bytes: Bytes of a GPU that it may take; None for no limit.
            context_bytes: Those of them that the CUDA context has taken.

        Returns:
            Its session; it shares the model with others if ``is_shared``.

        Raises:
            BackendUnavailableError: If the runtime, provider or device is not available.
            ModelLoadError: If the model is corrupt, cannot be converted, or computes something else.
            ResourceExhaustedError: If the bytes of the GPU are too few.
        """
        self._device_bytes, self._context_bytes = device_bytes, context_bytes
        if not self.is_shared:
            return self._open(kind)
        if self._core is None:
            self._core = self._open("core")
        return RawTensors(self._core, self._freed) if kind == "raw" else self._open_ends(self._core, ENDS + kind)

    def bytes_per_px(self) -> float:
        """Predict the memory of a run from the graph.

        Returns:
            Bytes per input pixel.

        Raises:
            ModelLoadError: As ``open``.
        """
        if self._bytes_per_px is None:
            self._bytes_per_px = bytes_per_px(self._build("uint8"), self._spec)
        # Between the graphs of a shared model frames are tensors of float32, which live as long as its run.
        between = 4 * 3 * (1 + self._spec.scale**2) if self.is_shared else 0
        return self._bytes_per_px + between

    def close(self) -> None:
        """Close what variants share; they are closed before."""
        if self._core is not None:
            self._core.close()
        self._core = None

    def _open(self, kind: str) -> RuntimeSession:
        plain = self._plain
        is_cpu = plain.backend is ModelBackend.ONNX and plain.device == "cpu"  # others were not tried out
        is_kept = is_cpu and plain.precision is ModelPrecision.FP32
        found = find_prepared(self._spec, self._path, kind) if is_kept else None
        if found is not None:
            self._bytes_per_px, self._freed = found.bytes_per_px or self._bytes_per_px, found.freed
            try:
                return open_runtime(found.paths[0], self._options(kind, found.weight_bytes))
            except ModelLoadError as exc:  # it was removed meanwhile; if the model is at fault, the load below says so
                forget_prepared(found)
                _log.info("%s: its graph is made again: %s", self._spec.model_id, exc)
        model = self._build(kind)
        options = self._options_of(model, kind)
        content = model.SerializeToString()
        if plain.backend is ModelBackend.TENSORRT:
            facts = (hash_model(self._spec, self._path), hashlib.sha256(content).hexdigest())
            options = replace(options, model_digest=hashlib.sha256(repr(facts).encode()).hexdigest())
        return open_runtime(content, options)

    def _open_ends(self, core: RuntimeSession, kind: str) -> RuntimeSession:
        output = self._spec.outputs[0].name
        found = find_prepared(self._spec, self._path, kind)  # they are the same in every precision
        if found is not None:
            try:
                before, after = found.paths
                return open_frames(core, before, after, output)
            except ModelLoadError as exc:
                forget_prepared(found)
                _log.info("%s: its graphs for %s are made again: %s", self._spec.model_id, kind, exc)
        ends = [one.SerializeToString() for one in build_graphs(read_header(self._path), self._spec, kind)]
        return open_frames(core, ends[0], ends[1], output)

    def _build(self, kind: str) -> Graph:
        model = read_model(self._path)
        converted = model
        if self._plain.precision is not ModelPrecision.FP32 and self._plain.backend is not ModelBackend.OPENVINO:
            read_weights(model, self._path)
            converted = to_fp16(model, FP32_OPERATORS if self._plain.device != "cpu" else ())
        is_other = converted is not model or self._plain.backend is ModelBackend.OPENVINO
        if is_other and self.precision_db is None and self._spec.is_image_model:
            self.precision_db = measure_agreement(model, converted, self._spec, self._options_of(converted, kind))
        self._freed = freed_inputs(model, self._spec)
        return build_graphs(converted, self._spec, kind)[0]

    def _options_of(self, model: Graph, kind: str) -> RuntimeOptions:
        return self._options(kind, weight_bytes(model), self._path.parent if has_outside_weights(model) else None)

    def _options(self, kind: str, stored_bytes: int, folder: Path | None = None) -> RuntimeOptions:
        most = self._device_bytes
        return replace(
            self._plain,
            max_bytes=None
            if most is None
            else arena_limit(most, context_bytes=self._context_bytes, weight_bytes=stored_bytes),
            folder=folder,
            may_compile=lambda shapes: self._may_compile(kind, stored_bytes, shapes),
        )
