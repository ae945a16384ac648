"""The folder of a job's finished segments: what makes one reusable, and what is left when a job ends.

A segment is published under a key that says everything its bytes depend on: the packets of the input, the range, models,
options, the kind of node and the versions of what computes. A job that was killed finds its finished segments by these keys.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genai_ray.catalog import ModelCatalog, ModelSpec
from genai_ray.enhance.options import EnhanceOptions, Target
from genai_ray.video import VideoPlan

__all__ = ["PARTIAL_SUFFIX", "SegmentStore", "key_segments"]

PARTIAL_SUFFIX = ".partial"
"""Of a segment that is being written."""

_VERSIONED = ("genai-ray", "av", "onnxruntime-gpu", "onnxruntime", "numpy")


def key_segments(plan: VideoPlan, specs: Sequence[ModelSpec], options: EnhanceOptions) -> tuple[str, ...]:
    """Name every segment of a plan after all that its bytes depend on.

    Args:
        plan: The planned video.
        specs: The chain.
        options: The job's options.

    Returns:
        One hexadecimal key a segment, 32 digits.
    """
    common = {
        "packets": plan.content_hash,
        "models": [_hash_model(spec) for spec in specs],
        "options": {
            "backend": options.backend.value,
            "precision": options.precision.value,
            "device": options.device,
            "params": dict(sorted(options.params.items())),
            "encoding": repr(replace(options.encoding, options=dict(sorted(options.encoding.options.items())))),
            "background": list(options.background),
            "tile_size_px": options.tile_size_px,
            "allow_truncated": options.allow_truncated,
        },
        "node": _node_kind(),
        "versions": _versions(),
    }
    return tuple(_digest(common | {"segment": [segment.start, segment.stop]}) for segment in plan.segments)


class SegmentStore:
    """The finished segments of one video.

    Args:
        target: The video and its work folder.
        keys: One key a segment, from ``key_segments``.
    """

    def __init__(self, target: Target, keys: Sequence[str]) -> None:
        self.folder = target.work_dir
        self.paths = tuple(target.work_dir / f"{index:06d}-{key}.nut" for index, key in enumerate(keys))

    def open(self) -> frozenset[int]:
        """Make the folder and remove what an earlier job left that is of no use to this one.

        Returns:
            Indices of the segments that are finished already.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = set(self.paths)
        _remove(path for pattern in ("*.nut", "*" + PARTIAL_SUFFIX) for path in self.folder.glob(pattern) if path not in wanted)
        return frozenset(index for index, path in enumerate(self.paths) if path.exists())

    def discard_partials(self) -> int:
        """Remove half-written segments, and the folder where nothing finished is left in it.

        Returns:
            The number of finished segments that were kept.
        """
        _remove(self.folder.glob("*" + PARTIAL_SUFFIX))
        kept = sum(path.exists() for path in self.paths)
        if kept == 0:
            self._remove_folder()
        return kept

    def clear(self) -> None:
        """Remove every segment and the folder: the result is published."""
        _remove(self.folder.glob("*.nut"))
        self._remove_folder()

    def _remove_folder(self) -> None:
        try:
            self.folder.rmdir()
        except OSError:  # somebody else's files are in it, or it is gone
            return


def _hash_model(spec: ModelSpec) -> str:
    if spec.sha256 is not None:
        return spec.sha256
    path = Path(spec.file) if spec.is_path else ModelCatalog.default().path(spec.model_id)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink(missing_ok=True)


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _node_kind() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = sorted({line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join([platform.system(), platform.machine(), *facts]).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    found = []
    for name in _VERSIONED:
        try:
            found.append(f"{name}={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)
