"""The Ray Serve deployments: ``Ingress``, whose replicas answer requests; ``Total``, which adds up their statistics."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from genai_ray.catalog import ServeProfile
from genai_ray.cluster import ModelCache
from genai_ray.errors import CacheClosedError, DeadlineExceededError, GenAIRayError, ResourceExhaustedError
from genai_ray.serve.deployment.app import build_app, list_operations
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.limits import RETRY_LATER
from genai_ray.serve.engine.preload import Preload
from genai_ray.serve.engine.repository import Repository
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.serve.http.middleware import Middleware
from genai_ray.serve.oip.grpc import InferenceServicer
from genai_ray.serve.web.video_jobs import resume_videos

_log = logging.getLogger(__name__)

__all__ = ["Ingress", "Total", "build_application", "main"]

REPORT_EVERY_S = 0.5
"""How often a replica reports its statistics."""

TOTAL_WITHIN_S = 10.0

HEALTH_EVERY_S = 2.0
"""Ray Serve replaces a replica after three failed health checks."""

DRAIN_WITHIN_S = 5.0
"""Most seconds that a stopping replica works on its requests."""

_UNLIMITED = 100_000
"""Replicas refuse excess requests themselves, since Ray would do it in plain text."""


class Total:
    """Adds up the statistics of all replicas."""

    def __init__(self) -> None:
        self._statistics = Statistics()

    async def merge(self, more: Statistics) -> Statistics:  # async, so that Ray runs one call at a time
        """Add what one replica counted.

        Args:
            more: Its statistics since the last call.

        Returns:
            The statistics of all replicas.
        """
        self._statistics.merge(more)
        return self._statistics


class Ingress(InferenceServicer):
    """One replica.

    Args:
        profile: Options.
        total: Where figures are added up.
    """

    def __init__(self, profile: ServeProfile, total: DeploymentHandle[Any]) -> None:
        cache = ModelCache(
            profile.max_memory_bytes, name=profile.cache, deadline_s=profile.request_timeout_s, is_online=True
        )
        engine = Engine(profile, cache, Repository(profile.model_repository, profile.models, profile.serving))
        super().__init__(engine, self._statistics, _peers_allowed(profile.host))
        self._total = total
        self._preload = Preload(cache)
        self._scans = 0
        """Scans of the model repository, by all replicas, that this one knows of."""
        self._rescanning: asyncio.Task[None] | None = None
        self._preloading: set[asyncio.Task[None]] = set()
        engine.catch_up = self._catch_up

    def __serve_build_asgi_app__(self) -> Any:
        operations = list_operations(self.engine, self._statistics)
        return Middleware(build_app(operations, self._lifespan), self.engine, operations)

    async def check_health(self) -> None:
        """Fail if the cache was shut down, for example by a notebook, so that Ray Serve replaces this replica.

        Raises:
            CacheClosedError: If the cache was shut down.
        """
        if not self.engine.cache.is_open:
            do = "A new replica starts a new one."
            raise CacheClosedError(f"cache {self.engine.cache.name!r} was shut down", do=do)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        reporting = asyncio.create_task(self._report())
        resuming = asyncio.create_task(self.engine.call(resume_videos, self.engine.profile.people))
        self._start_preload()
        yield
        for task in self._preloading:
            task.cancel()
        resuming.cancel()
        reporting.cancel()

    async def _statistics(self) -> Statistics:
        """Return the statistics of all replicas, at most half a second old; rescan if another replica did."""
        taken = self.engine.statistics.take()
        self._scans += taken.scans
        try:
            async with asyncio.timeout(TOTAL_WITHIN_S):
                figures: Statistics = await self._total.merge.remote(taken)
        except TimeoutError as exc:  # they may have been counted, but a second rescan does no harm
            self._scans -= taken.scans
            self.engine.statistics.scans += taken.scans
            raise DeadlineExceededError(
                f"the statistics of all replicas did not arrive within {TOTAL_WITHIN_S:g} s"
            ) from exc
        except (RayError, RayServeException) as exc:
            self._scans -= taken.scans
            self.engine.statistics.merge(taken)
            raise ResourceExhaustedError("the statistics of all replicas are not available", do=RETRY_LATER) from exc
        if figures.scans != self._scans:
            self._scans = figures.scans
            self._rescanning = asyncio.create_task(self._rescan())
        if self._rescanning is not None:
            await asyncio.shield(self._rescanning)
        if taken.scans:
            self._start_preload()
        return figures

    async def _catch_up(self) -> None:
        """Learn of the rescans of other replicas, even if the request that asked is cancelled."""
        await asyncio.shield(asyncio.create_task(self._statistics()))

    async def _rescan(self) -> None:
        try:
            await self.engine.rescan_here()
        except GenAIRayError as exc:
            _log.warning("another replica rescanned the model repository, but this one failed to: %s", exc)
        self._start_preload()

    def _start_preload(self) -> None:
        """Preload in the background."""
        task = asyncio.create_task(self._preload_models())
        self._preloading.add(task)
        task.add_done_callback(self._preloading.discard)

    async def _preload_models(self) -> None:
        """Load and pin the models that are to be preloaded, also after the model repository has changed."""
        try:
            await self.engine.call(self._preload.update, self.engine.repository.models())
        except GenAIRayError as exc:
            _log.warning("a model was not preloaded: %s", exc)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            own = self.engine.statistics
            if self.engine.profile.model_repository or own.counts or own.responses:
                try:
                    await self._statistics()
                except GenAIRayError as exc:
                    _log.warning("%s; the next report includes them", exc)


def _peers_allowed(host: str) -> Callable[[str], bool]:
    """Return who may call over gRPC: Ray's replicas listen on every network, whatever the address of the endpoint."""
    if not ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0]).is_loopback:
        return lambda _: True
    own = {"127.0.0.1", "[::1]", ray.util.get_node_ip_address()}  # type: ignore[no-untyped-call]

    def is_own(peer: str) -> bool:
        kind, _, rest = peer.partition(":")
        return kind == "unix" or unquote(rest.rpartition(":")[0]) in own

    return is_own


def build_application(profile: ServeProfile) -> serve.Application:
    """Build the application that ``serve.run`` takes.

    Args:
        profile: Options.

    Returns:
        The application.
    """
    logging_config = {"enable_access_log": False, "log_level": "WARNING"}
    total = serve.deployment(
        name="Total", num_replicas=1, ray_actor_options={"num_cpus": 0}, logging_config=logging_config
    )(Total)
    scaling: dict[str, Any] = {"num_replicas": profile.num_replicas}
    if profile.max_replicas > profile.num_replicas:
        bounds = {"min_replicas": profile.num_replicas, "max_replicas": profile.max_replicas}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": profile.requests_per_replica}}
    ingress = serve.deployment(
        name="Ingress",
        **scaling,
        max_ongoing_requests=_UNLIMITED,
        graceful_shutdown_timeout_s=DRAIN_WITHIN_S,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=HEALTH_EVERY_S,
        ray_actor_options={"num_cpus": 0},
        logging_config=logging_config,
    )(serve.ingress()(Ingress))
    return ingress.bind(profile, total.bind())


def main(args: dict[str, str]) -> serve.Application:
    """Build the application, for ``serve run`` and configuration files: ``genai_ray.serve.deployment.ingress:main``.

    Args:
        args: ``profile``: name of a packaged profile or the path of a YAML file.

    Returns:
        The application.
    """
    return build_application(ServeProfile.load(args.get("profile", "cluster")))
