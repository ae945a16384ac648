"""The loaded variants of one model: for uint8, uint16 and float32 frames, and for raw tensors.

In ONNX Runtime on a CPU they share one session of the model, and only the small graphs around it differ. Elsewhere each
variant has weights of its own.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from genai_ray.backends import RuntimeSession, Tensors, check_feeds
from genai_ray.errors import InferenceError
from genai_ray.session.process import release_freed_memory

__all__ = ["RawTensors", "Variants"]


class Variants:
    """Loads a variant at its first use. If there is no room for another one, it first closes those that are loaded.

    Args:
        load: Loads a variant, with the bytes that were granted for it beside others; None if it is alone.
        may_take: Tells whether this many more bytes may be taken; asked before a variant is loaded beside others.
    """

    def __init__(self, load: Callable[[str, int | None], RuntimeSession], may_take: Callable[[int], bool]) -> None:
        self._load = load
        self._may_take = may_take
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._loading = threading.Lock()
        self._runtimes: dict[str, RuntimeSession] = {}
        self._users: Counter[str] = Counter()
        self._is_closed = False
        self._is_clearing = False
        self.is_loading = False
        """Whether a variant is loading; meanwhile the model's file takes memory as well."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The loaded variants."""
        return tuple(self._runtimes)

    @contextmanager
    def use(self, kind: str, num_bytes: Callable[[], int]) -> Iterator[RuntimeSession]:
        """Use a variant; it stays loaded until the block ends.

        Args:
            kind: A dtype of frames, or ``raw``.
            num_bytes: Returns the bytes that the variant takes; called only if it must be loaded.

        Yields:
            The loaded variant.

        Raises:
            InferenceError: If the variants are closed.
            ModelLoadError: If it cannot be loaded.
        """
        with self._lock:
            runtime = None if self._is_clearing else self._enter(kind)
        if runtime is None:
            with self._loading:  # one load at a time, in the order of arrival
                runtime = self._open(kind, num_bytes)
        try:
            yield runtime
        finally:
            with self._changed:
                self._users[kind] -= 1
                self._changed.notify_all()

    def close(self) -> list[RuntimeSession]:
        """Refuse further uses.

        Returns:
            The loaded variants; the caller closes them when they are idle.
        """
        with self._changed:
            self._is_closed = True
            runtimes = list(self._runtimes.values())
            self._runtimes.clear()
            self._changed.notify_all()
        return runtimes

    def _enter(self, kind: str) -> RuntimeSession | None:
        if self._is_closed:
            raise InferenceError("a closed session was used", do="Open a new one.")
        runtime = self._runtimes.get(kind)
        if runtime is not None:
            self._users[kind] += 1
        return runtime

    def _open(self, kind: str, num_bytes: Callable[[], int]) -> RuntimeSession:
        with self._lock:
            runtime = self._enter(kind)
            is_beside = bool(self._runtimes)
        if runtime is not None:
            return runtime
        granted_bytes = num_bytes() if is_beside else None
        if granted_bytes is not None and not self._may_take(granted_bytes):
            self._clear()
            granted_bytes = None
        self.is_loading = True
        try:
            runtime = self._load(kind, granted_bytes)
        finally:
            self.is_loading = False
        with self._lock:
            if not self._is_closed:
                self._runtimes[kind] = runtime
                self._users[kind] += 1
                return runtime
        runtime.close()
        raise InferenceError("a session was closed while it loaded", do="Open a new one.")

    def _clear(self) -> None:
        """Wait until nobody uses the loaded variants, then close them; new users wait for the load."""
        with self._changed:
            self._is_clearing = True
            self._changed.wait_for(lambda: self._is_closed or not any(self._users.values()))
            runtimes = self._runtimes  # empty if close() came meanwhile
            self._runtimes = {}
            self._is_clearing = False
        while runtimes:
            runtimes.popitem()[1].close()
        release_freed_memory()


class RawTensors:
    """The raw tensors of a model whose session others share; a ``RuntimeSession``.

    Args:
        core: The model's session; it stays open when this one is closed.
        freed: Inputs that take one frame by the model's file, and any number in the session.
    """

    def __init__(self, core: RuntimeSession, freed: tuple[str, ...]) -> None:
        self._core = core
        self.device, self.computes_in, self.outputs = core.device, core.computes_in, core.outputs
        self.inputs = tuple(
            replace(info, shape=(1, *info.shape[1:])) if info.name in freed else info for info in core.inputs
        )

    def run(self, feeds: Tensors, into: Tensors | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run once; see ``RuntimeSession.run``.

        Args:
            feeds: One array for each input, of its dtype and shape.
            into: Arrays that get the outputs.

        Returns:
            As ``RuntimeSession.run``.

        Raises:
            InvalidInputError: If names, dtypes or shapes do not fit the graph.
            InferenceError: If the runtime fails, or the session is closed.
        """
        check_feeds(self.inputs, feeds)
        return self._core.run(feeds, into)

    def close(self) -> None:
        """Do nothing: others use the model's session."""
