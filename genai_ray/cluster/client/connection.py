"""A client's line to the one actor of a cache: calls that survive its restart, deadlines, and its end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError

from genai_ray.cluster.cache import CacheActor, CacheCalls, CacheOptions
from genai_ray.cluster.cache.session_actors import NAMESPACE, end_sessions
from genai_ray.cluster.runtime.connect import check_process
from genai_ray.cluster.runtime.replies import ArgumentLostError, wait_for
from genai_ray.errors import CacheClosedError, DeadlineExceededError

__all__ = ["Connection", "cache_names", "start_on_head"]

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

_CACHE = "cache:"
_RETRY_S = 0.1

_SLICE_S = 0.2
"""How often a wait checks whether its client was closed: Ray cannot cancel a wait, and may hang if it is shut down
under a thread."""

_SHUTDOWN_WITHIN_S = 10.0


def start_on_head(kind: type[Any], name: str, *args: Any) -> Any:
    """Join the async actor of a name, or start it on the head node.

    It outlives this process, and Ray restarts it if it dies.

    Args:
        kind: Its class. The constructor cannot fail: an actor whose constructor raises at a restart stays dead.
        name: Its name.
        args: The constructor's arguments.

    Returns:
        Its handle.
    """
    actor = ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_concurrency=10_000,  # calls that wait for a load count, and must not delay those that renew a lease
        max_restarts=-1,
        resources={"node:__internal_head__": 0.001},
    )
    return actor.remote(*args)


def cache_names() -> list[str]:
    """Return the names of the caches of the cluster.

    Returns:
        The names, sorted.
    """
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"].removeprefix(_CACHE)
        for actor in actors
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_CACHE)
    )


class Connection:
    """Starts a cache, or joins the one of this name; picklable.

    Args:
        name: Name of the cache.
        budget_bytes: Its budget, which a cache that is joined must have; None for any.
        options: Its options, which a cache that is joined must have; None for any.
        deadline_s: Most seconds that a call may take.
        is_new: Whether there can be no cache of this name yet: then nothing waits until its process has started.

    Raises:
        ConfigError: If the cache has another budget or other options.
    """

    def __init__(
        self,
        name: str,
        budget_bytes: int | None,
        options: CacheOptions | None,
        deadline_s: float,
        *,
        is_new: bool = False,
    ) -> None:
        self.name = name
        self._deadline_s = deadline_s
        self._is_shut_down = False
        self._is_closed = False
        self._actor: Any = start_on_head(CacheActor, f"{_CACHE}{name}", name, budget_bytes, options or CacheOptions())
        if is_new:
            self.send(CacheCalls.open, budget_bytes, options)
        else:
            self.call(CacheCalls.open, budget_bytes, options)

    def send(
        self,
        call: Callable[Concatenate[CacheCalls, Arguments], Awaitable[Answer]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Any:
        """Call the cache actor without waiting.

        Args:
            call: One of ``CacheCalls``.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            Ray's reference to the answer.

        Raises:
            CacheClosedError: If the cache was shut down, or this client closed.
        """
        self.check_open()
        return getattr(self._actor, call.__name__).remote(*args, **kwargs)

    @property
    def is_open(self) -> bool:
        """Whether the cache answered last time, and this client is not closed."""
        return not (self._is_shut_down or self._is_closed)

    def check_open(self) -> None:
        """Refuse calls if the cache or Ray is gone: by itself Ray would start a new cluster at the next call.

        Raises:
            CacheClosedError: If the cache was shut down, this client closed, or Ray shut down.
            ConfigError: If this process is a fork of the one that is connected to Ray.
        """
        if self._is_shut_down:
            raise CacheClosedError(f"cache {self.name!r} was shut down", do="Make a new ModelCache.")
        if self._is_closed:
            raise CacheClosedError(f"this client of cache {self.name!r} was closed", do="Make a new ModelCache.")
        check_process()
        if not ray.is_initialized():
            raise CacheClosedError(
                f"cache {self.name!r} is gone: Ray is not running any more", do="Make a new ModelCache."
            )

    def call(
        self,
        call: Callable[Concatenate[CacheCalls, Arguments], Awaitable[Answer]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Answer:
        """Call the cache actor, again if its process died meanwhile, until the client's deadline.

        Args:
            call: One of ``CacheCalls``.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            Its answer.

        Raises:
            CacheClosedError: If the cache was shut down, or this client closed.
            DeadlineExceededError: If it does not answer in time.
            GenAIRayError: What it raised.
        """
        return self.call_within(None, call, *args, **kwargs)

    def call_within(
        self,
        within_s: float | None,
        call: Callable[Concatenate[CacheCalls, Arguments], Awaitable[Answer]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Answer:
        """Call the cache actor, again if its process died meanwhile.

        Args:
            within_s: Most seconds to wait; None for the client's deadline.
            call: One of ``CacheCalls``.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            Its answer.

        Raises:
            CacheClosedError: If the cache was shut down, or this client closed.
            DeadlineExceededError: If it does not answer in time.
            GenAIRayError: What it raised.
        """
        within_s = self._deadline_s if within_s is None else within_s
        deadline = time.monotonic() + within_s
        try:
            while True:
                try:
                    answer: Answer = self._wait(self.send(call, *args, **kwargs), deadline)
                    return answer
                except (ActorUnavailableError, ArgumentLostError):
                    time.sleep(
                        _RETRY_S
                    )  # Ray restarts the cache's process within 2 s; or a session died during the call
        except GetTimeoutError as exc:
            raise DeadlineExceededError(
                f"cache {self.name!r}: {call.__name__} was not done within {within_s:g} s",
                do="Give the client more time.",
            ) from exc
        except ActorDiedError as exc:
            self._is_shut_down = True
            raise CacheClosedError(f"cache {self.name!r} was shut down or died", do="Make a new ModelCache.") from exc

    def withdraw(self, lease_id: str) -> None:
        """Release a lease without waiting, even if this client is closed.

        Args:
            lease_id: Its id.
        """
        if ray.is_initialized() and not self._is_shut_down:
            self._actor.release.remote(lease_id)

    def close(self) -> None:
        """End the calls that other threads wait for, soon after; the cache goes on."""
        self._is_closed = True

    def _wait(self, answer: Any, deadline: float) -> Any:
        while True:
            left_s = deadline - time.monotonic()
            try:
                return wait_for(answer, max(min(left_s, _SLICE_S), 0.0))
            except GetTimeoutError:
                if left_s <= _SLICE_S:
                    raise
                self.check_open()

    def shutdown(self) -> None:
        """End every session and the cache itself; a second call does nothing."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        if ray.is_initialized():
            try:
                ray.get(self._actor.shutdown.remote(), timeout=_SHUTDOWN_WITHIN_S)
            except (RayActorError, GetTimeoutError):
                end_sessions(self.name)  # a dead or silent cache cannot end them
            ray.kill(self._actor)
