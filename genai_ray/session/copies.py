"""The loaded forms of one model: uint8, uint16 and float32 frames and raw tensors need one each, and each has the weights."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from genai_ray.backends import RuntimeSession
from genai_ray.errors import InferenceError
from genai_ray.session.memory import release_freed_memory

__all__ = ["Copies"]


class Copies:
    """Loads a form when it is first used; where there is no room for another one, those that are loaded go first.

    Args:
        load: Loads a form.
        may_take: Asked before a form is loaded beside others: whether so many bytes more may be taken.
    """

    def __init__(self, load: Callable[[str], RuntimeSession], may_take: Callable[[int], bool]) -> None:
        self._load, self._may_take = load, may_take
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._door = threading.Lock()
        self._runtimes: dict[str, RuntimeSession] = {}
        self._users: Counter[str] = Counter()
        self._closed = self._is_clearing = False
        self.is_loading = False
        """Whether a form is loaded at the moment; meanwhile its file takes memory as well."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The forms that are loaded."""
        return tuple(self._runtimes)

    @contextmanager
    def use(self, kind: str, num_bytes: Callable[[], int]) -> Iterator[RuntimeSession]:
        """Use a form; it stays loaded until the block ends.

        Args:
            kind: A dtype of frames, or ``raw``.
            num_bytes: Tells what it takes, if it has to be loaded.

        Yields:
            The loaded form.

        Raises:
            InferenceError: If all were closed.
            ModelLoadError: If it cannot be loaded.
        """
        with self._lock:
            runtime = None if self._is_clearing else self._enter(kind)
        if runtime is None:
            with self._door:  # one at a time is loaded, and whoever waits for room is not overtaken
                runtime = self._open(kind, num_bytes)
        try:
            yield runtime
        finally:
            with self._left:
                self._users[kind] -= 1
                self._left.notify_all()

    def close(self) -> list[RuntimeSession]:
        """Let nobody in any more.

        Returns:
            What was loaded, for the caller to close when it is idle.
        """
        with self._left:
            self._closed = True
            runtimes, self._runtimes = self._runtimes, {}
            self._left.notify_all()
        return list(runtimes.values())

    def _enter(self, kind: str) -> RuntimeSession | None:
        if self._closed:
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
        if is_beside and not self._may_take(num_bytes()):
            self._clear()
        self.is_loading = True
        try:
            runtime = self._load(kind)
        finally:
            self.is_loading = False
        with self._lock:
            if not self._closed:
                self._runtimes[kind] = runtime
                self._users[kind] += 1
                return runtime
        runtime.close()
        raise InferenceError("a session was closed while it loaded", do="Open a new one.")

    def _clear(self) -> None:
        """Close what is loaded when nobody uses it any more; whoever comes meanwhile waits at the door."""
        with self._left:
            self._is_clearing = True
            self._left.wait_for(lambda: self._closed or not any(self._users.values()))
            runtimes, self._runtimes = self._runtimes, {}  # none, if all were closed meanwhile
            self._is_clearing = False
        while runtimes:
            runtimes.popitem()[1].close()
        release_freed_memory()
