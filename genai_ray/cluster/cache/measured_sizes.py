"""What sessions were measured to take, remembered in one small file on the machine of the cache."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from genai_ray.cluster.messages import SessionRequest
from genai_ray.files import cache_folder, write_whole

__all__ = ["SizeMemory", "shape_bucket", "sizes_file"]

_log = logging.getLogger(__name__)

DEFAULT_PROCESS_BYTES = 80_000_000
"""Bytes of a process without a model, until one was measured: 65 to 86 MB were seen."""

GPU_CONTEXT_BYTES = 600_000_000
"""Bytes of a CUDA context and the workspace of its libraries, until a session of the model was measured."""

_BUCKET_PX = 64


def sizes_file() -> Path:
    """Return the file of measured sizes.

    Returns:
        ``session_bytes.json`` in the user's cache folder (``XDG_CACHE_HOME``).
    """
    return cache_folder() / "session_bytes.json"


def shape_bucket(request: SessionRequest) -> str:
    """Return the bucket of a request's shapes: shapes of one bucket take about the same bytes.

    Args:
        request: Any request.

    Returns:
        Frame size rounded up to 64 px, batch, tile, the bytes that were given, and shapes of raw tensors, if any.
    """
    frame = (
        "any"
        if request.max_frame is None
        else "x".join(str(-(-length // _BUCKET_PX) * _BUCKET_PX) for length in request.max_frame)
    )
    limits = (request.max_batch, request.tile_size_px, request.floor_bytes)
    raw = [",".join(f"{name}={size}" for name, size in shapes) for shapes in request.warmup_shapes]
    return " ".join([frame, *("auto" if limit is None else str(limit) for limit in limits), *raw])


class SizeMemory:
    """Bytes by model hash, backend, precision, kind of device and bucket of shapes.

    Args:
        path: The file; if it cannot be read or written, that is logged, and sizes are remembered for this run only.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, int] = {}
        try:
            found = json.loads(path.read_text())
            self._known = {str(name): int(size) for name, size in found.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, TypeError) as exc:
            _log.warning("%s cannot be read (%s): sizes are predicted until they are measured again", path, exc)

    def expected(self, digest: str, request: SessionRequest, kind: str, predicted_bytes: int) -> int:
        """Return what a session will take.

        Args:
            digest: Hash of the model's file.
            request: What is asked for.
            kind: Kind of device.
            predicted_bytes: What the graph says that the model adds to its process.

        Returns:
            The most that was measured, which differs by 13 % from load to load; else the prediction and a process.
        """
        known = self._known.get(self._name(digest, request, kind))
        return predicted_bytes + self.process_bytes(kind) if known is None else known

    def process_bytes(self, kind: str) -> int:
        """Return what a process without a model takes of a kind of device.

        Args:
            kind: The kind.

        Returns:
            As measured, or the default.
        """
        return self._known.get(
            f"process {kind}", DEFAULT_PROCESS_BYTES if kind in ("cpu", "logical-gpu") else GPU_CONTEXT_BYTES
        )

    def remember_process(self, kind: str, num_bytes: int) -> None:
        """Note what a process without a model takes; the most counts.

        Args:
            kind: Kind of device.
            num_bytes: Bytes.
        """
        self._set(f"process {kind}", max(num_bytes, self._known.get(f"process {kind}", 0)))

    def remember(self, digest: str, request: SessionRequest, kind: str, measured_bytes: int) -> None:
        """Note what was measured; the most is what the next load reserves.

        Args:
            digest: Hash of the model's file.
            request: What was asked for.
            kind: Kind of device.
            measured_bytes: Bytes of its whole process.
        """
        name = self._name(digest, request, kind)
        self._set(name, max(measured_bytes, self._known.get(name, 0)))

    def _name(self, digest: str, request: SessionRequest, kind: str) -> str:
        return f"{digest} {request.backend.value} {request.precision.value} {kind} {shape_bucket(request)}"

    def _set(self, name: str, num_bytes: int) -> None:
        if self._known.get(name) == num_bytes:
            return
        self._known[name] = num_bytes
        try:
            write_whole(self._path, json.dumps(self._known))
        except OSError as exc:
            _log.info("%s cannot be written (%s): sizes are remembered for this run only", self._path, exc)
