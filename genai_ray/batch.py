"""``BatchInference``: frames through a model in batches, from numpy, from Arrow tables, or one stage of a chain."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genai_ray.cluster import (
    CachedSession,
    FrameRange,
    ModelCache,
    PendingCall,
    SessionRequest,
    check_inside,
    open_session,
)
from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.types import (
    Frames,
    InferenceResult,
    ModelBackend,
    ModelPrecision,
    ModelTask,
    Params,
    PictureFormat,
    check_frames,
    take_word,
)
from genai_ray.video import encode_pixels

if TYPE_CHECKING:
    import ray.data

__all__ = ["BatchInference"]

BATCHES_IN_FLIGHT = 2
"""Batches that are in flight before the first one is waited for."""


class BatchInference:
    """Sends frames through one model, ``batch_size`` at a time; results are in order, whatever the batch size.

    ``map`` sends a dataset of frames through the model. ``Dataset.map_batches`` takes this class as well, with any
    batch format; ``batch_format="pyarrow"`` with ``batch_size=None`` copies nothing.

    Args:
        model: Id, alias, or path of an .onnx file.
        batch_size: Frames handed to the session at a time.
        backend: The runtime; None for that of the loaded entry used last, else ONNX.
        precision: The number format; None for that of the loaded entry used last, else FP32.
        params: Extra inputs of the model by name.
        cache_name: Cache that ``map`` and ``map_batches`` use.

    Raises:
        ConfigError: If ``batch_size`` is less than 1, or ``backend`` or ``precision`` is no word for one.

    Example:
        >>> frames = read_videos("samples/bigbuckbunny-360p.mp4", selection=FrameSelection(every=60))
        >>> BatchInference("websr-x2-s").map(frames, concurrency=2).count()
        3
    """

    def __init__(
        self,
        model: str | Path,
        *,
        batch_size: int = 8,
        backend: ModelBackend | None = None,
        precision: ModelPrecision | None = None,
        params: Params | None = None,
        cache_name: str = "default",
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}", "1 or more")
        self.model = model
        self.batch_size = batch_size
        self.backend = None if backend is None else take_word(ModelBackend, backend, "backend")
        self.precision = None if precision is None else take_word(ModelPrecision, precision, "precision")
        self.params = params
        self.cache_name = cache_name
        self.frames_done = 0
        self._session: CachedSession | None = None
        self._cache: ModelCache | None = None

    def __repr__(self) -> str:
        words = [str(self.model), *(str(word) for word in (self.backend, self.precision) if word is not None)]
        return f"BatchInference({', '.join(words)}, batch_size={self.batch_size})"

    def open(self, cache: ModelCache, *, request: SessionRequest | None = None) -> CachedSession:
        """Get the session, and keep it.

        Args:
            cache: The cache that has it.
            request: Which session exactly; None for model, backend and precision of this object.

        Returns:
            The session.

        Raises:
            GenAIRayError: As ``ModelCache.get_session``.
        """
        if request is not None:
            self._session = open_session(cache, request)
        else:
            self._session = cache.get_session(self.model, self.backend, self.precision)
        self._cache = cache
        return self._session

    def submit(self, frames: Frames | PendingCall | FrameRange, params: Params | None = None) -> PendingCall:
        """Send one batch without waiting; ``open`` comes first.

        Args:
            frames: (N, H, W, 3), or the pending result of another stage, or some frames of it.
            params: Extra inputs of this batch by name; they replace those of the object.

        Returns:
            The pending result.

        Raises:
            InvalidInputError: If frames break the contract.
            ConfigError: If there is no session yet.
        """
        if self._session is None:
            raise ConfigError("submit() before open()", do="Call open(cache) first.")
        pending = self._session.submit(frames, {**(self.params or {}), **(params or {})})
        self.frames_done += pending.num_frames
        return pending

    def process_batch(self, cache: ModelCache, frames: Sequence[Frames]) -> list[InferenceResult]:
        """Enhance single frames, batched by shape. Only the first call with a cache asks it for the session.

        Args:
            cache: The cache that has the model, or loads it.
            frames: Frames (H, W, 3) of any shapes and dtypes of the contract; for interpolation all of one shape.

        Returns:
            One result for each frame, in order (for interpolation, one for each pair of neighbours).

        Raises:
            InvalidInputError: If there are no frames, or one breaks the contract.
            GenAIRayError: Whatever the session raises.
        """
        if len(frames) == 0:
            raise InvalidInputError("no frames", "at least one")
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index, frame in enumerate(frames):
            check_frames(frame)
            if frame.ndim != 3:
                raise InvalidInputError(f"a frame of shape {frame.shape} at {index}", "(H, W, 3) each")
            groups[(frame.shape, frame.dtype)].append(index)
        session = self._session if self._session is not None and self._cache is cache else self.open(cache)
        overlap = int(session.spec.task is ModelTask.INTERPOLATION)
        if overlap and len(groups) > 1:
            raise InvalidInputError(f"interpolation between frames of {len(groups)} shapes", "one shape")
        results: dict[int, InferenceResult] = {}
        for indices in groups.values():
            arrays = (
                np.stack([frames[i] for i in indices[at : at + self.batch_size + overlap]])
                for at in self._starts(len(indices) - overlap)
            )
            positions = iter(indices)
            for output, latency_ms in self._stream(arrays):
                for one in output:
                    index = next(positions)
                    results[index] = InferenceResult(index, one, latency_ms)
        return [results[index] for index in sorted(results)]

    def __call__(self, batch: Any, *, keep_frames: bool = True, encode_as: PictureFormat | None = None) -> Any:
        """Enhance a batch of frames; this process does not copy those of a table.

        Args:
            batch: A ``pyarrow.Table``, a dict of numpy arrays or a pandas DataFrame with the column ``frame``: frames
                of any sizes, or PNG or JPEG files as bytes.
            keep_frames: Whether the result keeps the column ``frame``.
            encode_as: ``png`` or ``jpeg``: ``output``, and ``frame`` if it is kept, hold such files as bytes instead of
                arrays; PNG is exact, JPEG is lossy and takes 8 bits alone. None for arrays.

        Returns:
            The batch, of the same type, with the columns ``output`` and ``latency_ms``.

        Raises:
            ConfigError: If ``encode_as`` is neither.
            InvalidInputError: If it has no frames, has results already, the model interpolates, or the format cannot
                hold the frames.
            GenAIRayError: Whatever the session raises.
        """
        # Arrow takes 0.15 s of a process, and jobs of videos have no table.
        from genai_ray.frames import append_results, check_is_new, encode_frames, iter_frames  # noqa: PLC0415

        kind = None if encode_as is None else take_word(PictureFormat, encode_as, "encode_as")
        check_is_new(batch)
        if self._session is None:
            self.open(ModelCache(name=self.cache_name))
        if self._session is not None and self._session.spec.task is ModelTask.INTERPOLATION:
            raise InvalidInputError(
                f"{self.model} interpolates, so a table cannot be mapped", "models with one frame out for each frame in"
            )
        outputs: list[Any] = []
        latencies: list[float] = []
        batches = (array[at : at + self.batch_size] for array in iter_frames(batch) for at in self._starts(len(array)))
        for output, latency_ms in self._stream(batches):
            outputs += [output] if kind is None else [encode_pixels(frame, kind) for frame in output]
            latencies += [latency_ms] * len(output)
        if not outputs:
            raise InvalidInputError("a table without rows", "at least one frame")
        kept = encode_frames(batch, kind) if kind is not None and keep_frames else batch
        return append_results(kept, outputs, np.array(latencies), keeps_frames=keep_frames)

    def map(
        self,
        dataset: ray.data.Dataset,
        *,
        concurrency: int | tuple[int, int] = 1,
        keep_frames: bool = True,
        encode_as: PictureFormat | None = None,
    ) -> ray.data.Dataset:
        """Send a dataset of frames through the model, by a pool of actors that send to the sessions of the cache.

        Args:
            dataset: Rows with the column ``frame``, such as those of ``read_videos``: (H, W, 3) of any sizes, or PNG or
                JPEG files as bytes.
            concurrency: Actors that send frames, or the fewest and the most of them. They take no CPU: the sessions
                compute.
            keep_frames: Whether the result keeps the column ``frame``.
            encode_as: ``png`` or ``jpeg``: ``output``, and ``frame`` if it is kept, hold such files as bytes instead of
                arrays, so that a table in Parquet is about as large as its pictures. PNG is exact; JPEG is lossy and
                takes 8 bits alone. ``genai_ray.frames.from_column`` and ``iter_frames`` read them.

        Returns:
            The dataset with the columns ``output``, frames by the model's shape law, and ``latency_ms``; evaluated
            lazily.

        Raises:
            ConfigError: If ``concurrency`` is less than 1, the second number is less than the first, ``encode_as`` is
                neither word, or this process has joined a cluster by ``ray://``, over which Ray Data does not run.
        """
        import ray.data  # noqa: PLC0415 - each worker of a job imports this module, and none needs Ray Data

        check_inside("Ray Data")
        fewest, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
        if not 1 <= fewest <= most:
            raise ConfigError(f"concurrency={concurrency}", "a number of 1 or more, or (fewest, most)")
        kind = None if encode_as is None else take_word(PictureFormat, encode_as, "encode_as")
        arguments = {
            "model": self.model,
            "batch_size": self.batch_size,
            "backend": self.backend,
            "precision": self.precision,
            "params": self.params,
            "cache_name": self.cache_name,
        }
        mapped: ray.data.Dataset = dataset.map_batches(
            BatchInference,
            fn_constructor_kwargs=arguments,
            fn_kwargs={"keep_frames": keep_frames, "encode_as": kind},
            batch_format="pyarrow",
            batch_size=None,  # whole blocks, as they lie in memory
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
        )
        return mapped

    def _starts(self, count: int) -> range:
        return range(0, count, self.batch_size)

    def _stream(self, batches: Iterator[npt.NDArray[Any]]) -> Iterator[tuple[npt.NDArray[Any], float]]:
        """Send batches, several ahead of the one waited for; yields (output, milliseconds) in order."""
        waiting: deque[tuple[PendingCall, float]] = deque()
        for batch in batches:
            waiting.append((self.submit(batch), time.perf_counter()))
            if len(waiting) > BATCHES_IN_FLIGHT:
                yield _wait_for_output(*waiting.popleft())
        while waiting:
            yield _wait_for_output(*waiting.popleft())


def _wait_for_output(pending: PendingCall, sent_at: float) -> tuple[npt.NDArray[Any], float]:
    output = pending.result()
    return output, 1000 * (time.perf_counter() - sent_at)
