"""The deployment: replicas that take requests, and the one that adds up what they counted."""

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

from genai_ray.catalog import ServeProfile, load_serve_profile
from genai_ray.cluster import ModelCache
from genai_ray.errors import CacheClosedError, DeadlineExceededError, GenAIRayError, ResourceExhaustedError
from genai_ray.serve.deployment.app import build_app, list_operations
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.limits import RETRY_LATER
from genai_ray.serve.engine.preload import Preload
from genai_ray.serve.engine.repository import Repository
from genai_ray.serve.engine.statistics import Statistics
from genai_ray.serve.http.middleware import Middleware
from genai_ray.serve.http.routes import open_paths
from genai_ray.serve.oip.grpc import InferenceServicer
from genai_ray.serve.web.video_jobs import resume_videos

_log = logging.getLogger(__name__)

__all__ = ["Ingress", "Total", "build_application", "main"]

TELL_EVERY_S = 0.5
"""How often a replica tells what it counted."""

TOTAL_WITHIN_S = 10.0

HEALTH_EVERY_S = 2.0
"""Ray Serve replaces a replica that is not well three times in a row."""

DRAIN_WITHIN_S = 5.0
"""Most seconds that a replica which leaves works on what it has."""

_UNLIMITED = 100_000
"""Replicas refuse by themselves what is too much: Ray's own refusal is plain text."""


class Total:
    """Adds up the figures of all replicas."""

    def __init__(self) -> None:
        self._tally = Statistics()

    async def merge(self, more: Statistics) -> Statistics:  # not a plain function: Ray would run several at a time
        """Add what a replica counted.

        Args:
            more: Its figures.

        Returns:
            All figures.
        """
        self._tally.merge(more)
        return self._tally


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
        self._standing, self._scans = Preload(cache), 0
        self._looking: asyncio.Task[None] | None = None
        self._bringing: set[asyncio.Task[None]] = set()
        engine.catch_up = self._catch_up

    def __serve_build_asgi_app__(self) -> Any:
        operations = list_operations(self.engine, self._statistics)
        return Middleware(build_app(operations, self._lifespan), self.engine, open_paths(operations))

    async def check_health(self) -> None:
        """Let Ray Serve replace a replica whose cache was shut down, by a notebook in the same cluster for one: the next one makes another.

        Raises:
            CacheClosedError: If it was.
        """
        if not self.engine.cache.is_open:
            raise CacheClosedError(
                f"cache {self.engine.cache.name!r} was shut down", do="Another replica makes another one."
            )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        telling = asyncio.create_task(self._tell())
        resuming = asyncio.create_task(self.engine.call(resume_videos, self.engine.profile.people))
        self._start_bringing()
        yield
        for bringing in self._bringing:
            bringing.cancel()
        resuming.cancel()
        telling.cancel()

    async def _statistics(self) -> Statistics:
        """Return the figures of all replicas, of others up to half a second old; what another one found in the model repository is known after it."""
        taken = self.engine.statistics.take()
        self._scans += taken.scans
        try:
            async with asyncio.timeout(TOTAL_WITHIN_S):
                figures: Statistics = await self._total.merge.remote(taken)
        except TimeoutError as exc:  # they may have been counted; to look once more does no harm
            self._scans -= taken.scans
            self.engine.statistics.scans += taken.scans
            raise DeadlineExceededError(
                f"the figures of all replicas did not come within {TOTAL_WITHIN_S:g} s"
            ) from exc
        except (RayError, RayServeException) as exc:
            self._scans -= taken.scans
            self.engine.statistics.merge(taken)
            raise ResourceExhaustedError("the figures of all replicas are not there", do=RETRY_LATER) from exc
        if figures.scans != self._scans:
            self._scans = figures.scans
            self._looking = asyncio.create_task(self._look_again())
        if self._looking is not None:
            await asyncio.shield(self._looking)
        if taken.scans:
            self._start_bringing()
        return figures

    async def _catch_up(self) -> None:
        """Know what other replicas found; goes on where who asked has gone."""
        await asyncio.shield(asyncio.create_task(self._statistics()))

    async def _look_again(self) -> None:
        try:
            await self.engine.rescan_here()
        except GenAIRayError as exc:
            _log.warning("another replica was told to look at the model repository, and here that failed: %s", exc)
        self._start_bringing()

    def _start_bringing(self) -> None:
        """Begin to load and pin what is to be there; nobody waits for it."""
        task = asyncio.create_task(self._bring())
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _bring(self) -> None:
        """Load and pin what is to be there without being asked for; also after the model repository has changed."""
        try:
            await self.engine.call(self._standing.bring, self.engine.repository.models())
        except GenAIRayError as exc:
            _log.warning("a model that is to be there is not: %s", exc)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            if (
                self.engine.profile.model_repository
                or self.engine.statistics.counts
                or self.engine.statistics.responses
            ):
                try:
                    await self._statistics()
                except GenAIRayError as exc:
                    _log.warning("%s; they follow with the next ones", exc)


def _peers_allowed(host: str) -> Callable[[str], bool]:
    """Return who may call over gRPC: Ray's replicas listen on every network for it, whatever the endpoint's own address is."""
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
        target = {"target_ongoing_requests": profile.requests_per_replica}
        scaling = {
            "autoscaling_config": {"min_replicas": profile.num_replicas, "max_replicas": profile.max_replicas, **target}
        }
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
    """Build the application as ``serve run`` and a cluster's configuration name it: ``genai_ray.serve.deployment.ingress:main``.

    Args:
        args: ``profile``: name of a packaged profile or the path of a YAML file.

    Returns:
        The application.
    """
    return build_application(load_serve_profile(args.get("profile", "cluster")))
