"""The folder of a job's finished segments: what makes one reusable, and what is left when a job ends.

The name of a segment's file has a key, a hash of everything that its bytes depend on: the packets of the input, the
range, models, options, the kind of node that the job was started on, whether the cluster had GPUs for it then, and the
versions of the libraries that compute. A job that was killed finds its finished segments by these keys. The name also
has a hash of the bytes: a damaged segment is computed again. A segment that was computed again because of wrong frames
is marked, and counts only for the same level of checks; all others also count for laxer levels. If the result gets a
record, a file beside each segment has the segment's part of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from genai_ray.catalog import ModelCatalog, ModelSpec
from genai_ray.enhance.plan.background import Background
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.errors import VideoError
from genai_ray.files import (
    FileFacts,
    file_errors,
    find_facts,
    is_remote,
    join_place,
    list_names,
    open_to_read,
    publish,
    remove,
    temporary_folder,
)
from genai_ray.inspection import hash_model
from genai_ray.scenes import MODEL
from genai_ray.session import processor_kind
from genai_ray.tune import Way
from genai_ray.types import ModelBackend, ModelTask, ParamPicture
from genai_ray.video import VideoPlan

__all__ = [
    "PARTIAL_SUFFIX",
    "SegmentStore",
    "discard_partials",
    "hash_of_model",
    "hash_segment",
    "is_gpu_kind",
    "key_clip",
    "key_segments",
    "list_versions",
    "node_kind",
    "remove_folder",
]

SEGMENT_SUFFIX = ".nut"

PARTIAL_SUFFIX = ".partial"
"""Suffix of a segment that is being written."""

NOTE_SUFFIX = ".note"
"""Suffix of the file beside a segment that has its part of the record."""

DIGITS = 32
"""Length of every hash in a name."""

_AGAIN = "r"
"""Follows the key of a segment that was computed again because of wrong frames."""

READ_BYTES = 1024**2
"""Bytes of a segment that are hashed at a time."""

_VERSIONED = ("genai-ray", "av", "onnxruntime-gpu", "onnxruntime", "numpy")


def key_segments(
    plan: VideoPlan,
    specs: Sequence[ModelSpec],
    options: EnhanceOptions,
    kind: str,
    way: Way | None = None,
    budgets: Sequence[int] = (),
) -> tuple[str, ...]:
    """Name every segment of a plan after all that its bytes depend on.

    If nodes differ, any of them may plan a video or compute a segment; the kind of the job's own node counts.

    Args:
        plan: The planned video.
        specs: The chain.
        options: The job's options.
        kind: ``node_kind`` of the node that the job was started on.
        way: What computes it if the options leave that to the job; else None.
        budgets: Most bytes of each segment; empty if segments have a constant quality.

    Returns:
        One hexadecimal key for each segment, 32 digits.
    """
    common = _common(specs, options) | {
        "packets": plan.content_hash,
        "node": kind,
        "versions": list_versions(options.backend if way is None else way.backend),
    }
    if way is not None:
        common["way"] = str(way)
    return tuple(
        _digest(common | {"segment": [segment.start, segment.stop]} | ({"bytes": budgets[index]} if budgets else {}))
        for index, segment in enumerate(plan.segments)
    )


def key_clip(source: FileFacts | None, specs: Sequence[ModelSpec], options: EnhanceOptions) -> str:
    """Name a whole video after its version, the models and the options, without reading it.

    A result stays done if a library is updated; a segment does not, because it must fit those beside it.

    Args:
        source: Size and version of the input.
        specs: The chain.
        options: The options of this video.

    Returns:
        A hexadecimal key, 32 digits.
    """
    there = [source.size, source.stamp] if source else None
    return _digest(_common(specs, options) | {"source": there, "tracks": repr(options.tracks)})


class SegmentStore:
    """The finished segments of one video, in a folder or below a URI.

    Args:
        folder: The work folder.
        keys: One key for each segment, from ``key_segments``.
        has_notes: Whether a segment counts only with its part of the record.
    """

    def __init__(self, folder: str, keys: Sequence[str], *, has_notes: bool = False) -> None:
        self.folder = folder
        self._has_notes = has_notes
        self._keys = tuple(keys)

    @property
    def is_remote(self) -> bool:
        """Whether segments are fetched and uploaded rather than read and written in place."""
        return is_remote(self.folder)

    def name(self, index: int, digest: str, *, is_again: bool = False) -> str:
        """Return the name of a segment that is made now.

        Args:
            index: Index of the segment.
            digest: Its hash, from ``hash_segment``.
            is_again: Whether it was computed again because of wrong frames.

        Returns:
            Its key and its hash.
        """
        return f"{self._keys[index]}{_AGAIN if is_again else ''}-{digest}"

    def place(self, index: int, name: str) -> str:
        """Return where a finished segment is.

        Args:
            index: Index of the segment.
            name: From ``name`` or ``finished``.

        Returns:
            Path or URI.
        """
        return join_place(self.folder, f"{index:06d}-{name}{SEGMENT_SUFFIX}")

    def partial(self, index: int) -> Path:
        """Return where a segment is written; each call gives another path, because two tasks may write one segment.

        Args:
            index: Index of the segment.

        Returns:
            A path in the folder.
        """
        return Path(self.folder, f"{index:06d}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")

    def finished(self, stricter: Iterable[Sequence[str]] = ()) -> tuple[dict[int, str], int]:
        """Find the segments that are finished, and read them: a damaged one does not count.

        Args:
            stricter: Keys of all segments for each stricter level of checks, whose segments are as good.

        Returns:
            Names by index; and the number of segments of which every file is damaged.

        Raises:
            VideoError: If the folder cannot be read.
        """
        usable = [list(self._keys), [key + _AGAIN for key in self._keys], *stricter]
        indices = {(f"{index:06d}", key): index for keys in usable for index, key in enumerate(keys)}
        whole: dict[int, str] = {}
        damaged = set()
        for file in sorted(list_names(self.folder)):
            stem = file.removesuffix(SEGMENT_SUFFIX)
            number, _, name = stem.partition("-")
            key, _, digest = name.partition("-")
            index = indices.get((number, key))
            if index is None or stem == file or index in whole:
                continue
            is_whole = len(digest) == DIGITS and _is_whole(join_place(self.folder, file), digest)
            if is_whole and (not self._has_notes or self.read_note(index, name) is not None):
                whole[index] = name
            else:
                damaged.add(index)
        return whole, len(damaged - whole.keys())

    def put(self, index: int, name: str, data: memoryview, note: Mapping[str, Any] | None) -> None:
        """Write a segment that was made on a machine without this folder.

        Args:
            index: Index of the segment.
            name: From ``name``.
            data: Its bytes.
            note: Its part of the record; None if the result gets none.

        Raises:
            VideoError: If it cannot be written.
        """
        partial = self.partial(index)
        with file_errors(str(partial), "writing"):
            os.makedirs(self.folder, exist_ok=True)
            partial.write_bytes(data)
        self.finish(index, partial, name, note)

    def finish(self, index: int, partial: Path, name: str, note: Mapping[str, Any] | None) -> None:
        """Publish a segment under its name, its part of the record before it.

        Args:
            index: Index of the segment.
            partial: Its file on this machine.
            name: From ``name``.
            note: Its part of the record, fit for JSON; None if the result gets none.

        Raises:
            VideoError: If it cannot be written.
        """
        place = self.place(index, name)
        if note is not None:
            with temporary_folder("note") if self.is_remote else nullcontext(Path(self.folder)) as folder:
                file = folder / f"{index:06d}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}"
                with file_errors(str(file), "writing"):
                    file.write_text(json.dumps({"sha256": _digest(note), "note": note}))
                publish(file, place.removesuffix(SEGMENT_SUFFIX) + NOTE_SUFFIX)
        publish(partial, place)

    def read_note(self, index: int, name: str) -> dict[str, Any] | None:
        """Read a segment's part of the record.

        Args:
            index: Index of the segment.
            name: From ``name`` or ``finished``.

        Returns:
            What ``finish`` got; None if it is missing or damaged.

        Raises:
            VideoError: If the store fails.
        """
        place = self.place(index, name).removesuffix(SEGMENT_SUFFIX) + NOTE_SUFFIX
        if find_facts(place) is None:
            return None
        with open_to_read(place) as file:
            content = file.read()
        with suppress(ValueError, TypeError, KeyError):
            found = json.loads(content)
            note: dict[str, Any] = found["note"]
            if _digest(note) == found["sha256"]:
                return note
        return None

    def open(self, reused: Mapping[int, str]) -> None:
        """Make the folder, and remove what an earlier job left and this one cannot use.

        Args:
            reused: From ``finished``.

        Raises:
            VideoError: If the folder cannot be made or read.
        """
        if not self.is_remote:
            with file_errors(self.folder, "making the work folder"):
                os.makedirs(self.folder, exist_ok=True)
        kept = [os.path.basename(self.place(index, name)) for index, name in reused.items()]
        self._clear(except_for={*kept, *(name.removesuffix(SEGMENT_SUFFIX) + NOTE_SUFFIX for name in kept)})

    def clear(self) -> None:
        """Remove every segment, finished or not: the result is published."""
        self._clear(except_for=())

    def _clear(self, *, except_for: Collection[str]) -> None:
        suffixes = (SEGMENT_SUFFIX, NOTE_SUFFIX, PARTIAL_SUFFIX)
        names = (name for name in list_names(self.folder) if name.endswith(suffixes))
        _remove(self.folder, (name for name in names if name not in except_for))


def hash_segment(place: str) -> str:
    """Hash a finished segment.

    Args:
        place: Path or URI of its file.

    Returns:
        A hexadecimal digest, 32 digits.

    Raises:
        VideoError: If it cannot be read.
    """
    with open_to_read(place) as file:
        digest = hashlib.sha256()
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
        return digest.hexdigest()[:DIGITS]


def discard_partials(folder: str) -> int:
    """Remove half-written segments of a work folder, and the folder if no finished one is left in it.

    Args:
        folder: The work folder; it need not exist.

    Returns:
        The number of finished segments that were kept.
    """
    if is_remote(folder):
        return sum(name.endswith(SEGMENT_SUFFIX) for name in list_names(folder))
    names = list_names(folder)
    finished = {name.removesuffix(SEGMENT_SUFFIX) for name in names if name.endswith(SEGMENT_SUFFIX)}
    alone = (name for name in names if name.endswith(NOTE_SUFFIX) and name.removesuffix(NOTE_SUFFIX) not in finished)
    _remove(folder, [*(name for name in names if name.endswith(PARTIAL_SUFFIX)), *alone])
    kept = sum(name.endswith(SEGMENT_SUFFIX) for name in list_names(folder))
    if kept == 0:
        remove_folder(folder)
    return kept


def remove_folder(folder: str) -> None:
    """Remove an empty work folder; one with other files stays.

    Args:
        folder: The work folder; it need not exist.
    """
    if not is_remote(folder):
        with suppress(OSError):
            os.rmdir(folder)


def _remove(folder: str, names: Iterable[str]) -> None:
    """Remove files of a work folder, and folders of results that were being made."""
    places = [join_place(folder, name) for name in names]
    folders = [place for place in places if not is_remote(place) and os.path.isdir(place) and not os.path.islink(place)]
    for place in folders:
        with file_errors(place, "removing"):
            shutil.rmtree(place)
    remove(place for place in places if place not in folders)


def _is_whole(place: str, digest: str) -> bool:
    if is_remote(place):
        return hash_segment(place) == digest
    with suppress(VideoError):  # a segment that cannot be read is computed again
        return os.path.isfile(place) and not os.path.islink(place) and hash_segment(place) == digest
    return False


def _common(specs: Sequence[ModelSpec], options: EnhanceOptions) -> dict[str, Any]:
    """Return everything that results depend on, except for the input."""
    return {
        "models": [hash_of_model(spec) for spec in _models_of(specs, options)],
        "options": {
            "backend": options.backend.value,
            "precision": options.precision.value,
            "min_quality_db": options.min_quality_db,
            "device": [options.device, *sorted(options.device_kinds)],
            "params": {name: _plain_param(value) for name, value in sorted(options.params.items())},
            "encoding": repr(replace(options.encoding, options=dict(sorted(options.encoding.options.items())))),
            "piece": repr(options.piece),
            "size": repr(options.result_size),
            "fields": [options.deinterlace, options.field_order],
            "factor": options.factor,
            "fps": str(options.fps),
            "slow_motion": options.slow_motion,
            "scene_threshold": options.scene_threshold,
            "scene_detector": options.scene_detector.value,
            "background": repr(options.background or Background()),
            "check": str(options.check),
            "tile_size_px": options.tile_size_px,
            "allow_truncated": options.allow_truncated,
        },
    }


def _plain_param(value: Any) -> Any:
    return {"picture": value.digest} if isinstance(value, ParamPicture) else value


def _models_of(specs: Sequence[ModelSpec], options: EnhanceOptions) -> Sequence[ModelSpec]:
    """Return the chain, and the network that may find cuts in it."""
    if options.scene_threshold is not None or all(spec.task is not ModelTask.INTERPOLATION for spec in specs):
        return specs
    return (*specs, ModelCatalog.default().get(MODEL))


def hash_of_model(spec: ModelSpec) -> str:
    """Hash everything that a model of a chain computes with.

    Args:
        spec: The model.

    Returns:
        sha256, hexadecimal.

    Raises:
        ModelLoadError: If its file is corrupt.
    """
    return hash_model(spec, Path(spec.file) if spec.is_path else ModelCatalog.default().path(spec.model_id))


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def node_kind(*, is_gpu: bool) -> str:
    """Name the kind of this node: its system and processor, and what its models run on.

    Args:
        is_gpu: Whether models run on a GPU, which rounds in another way.

    Returns:
        ``cpu`` or ``gpu``, and a hexadecimal digest.
    """
    word = "gpu" if is_gpu else "cpu"
    return f"{word}-{processor_kind(word)}"


def is_gpu_kind(kind: str) -> bool:
    """Tell what the models of a node run on.

    Args:
        kind: From ``node_kind``.

    Returns:
        Whether they run on a GPU.
    """
    return kind.startswith("gpu-")


@functools.cache
def list_versions(backend: ModelBackend) -> tuple[str, ...]:
    """List the versions of the libraries that compute and encode.

    Args:
        backend: The runtime.

    Returns:
        Such as ``av=18.0.0``.
    """
    found = []
    for name in (*_VERSIONED, "openvino") if backend is ModelBackend.OPENVINO else _VERSIONED:
        try:
            found.append(f"{name}={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)
