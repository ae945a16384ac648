"""``Endpoint``: starts Ray Serve with its HAProxy ingress, and leaves nothing behind when it stops."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
import os
import resource
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from genai_ray.catalog import ServeProfile
from genai_ray.cluster import ModelCache, check_inside, connect, disconnect, has_own_node_died, own_folders
from genai_ray.errors import ConfigError, ResourceExhaustedError
from genai_ray.files import make_folder, remove_folder, temporary_base
from genai_ray.serve.deployment.haproxy import HOST, MAX_CONNECTIONS, bracketed, find_binary, write_launcher
from genai_ray.serve.deployment.nodes import check_ingress
from genai_ray.serve.deployment.ports import Record, check_ports, find_free_ports, find_port_block, process_started
from genai_ray.serve.engine.preload import Preload
from genai_ray.serve.engine.repository import Repository

__all__ = ["Endpoint", "read_token"]

_log = logging.getLogger(__name__)

APPLICATION = "genai_ray"
"""Name of the Serve application."""

_DELETE_WITHIN_S, _SHUT_DOWN_WITHIN_S = 6.0, 2.5
"""Most seconds for the application to end, and in a joined cluster for the rest of Ray Serve."""

CHECK_EVERY_S = 0.5
"""How often Ray's node is checked."""

RECORD_EVERY_S = 2.0
"""How often the started processes are recorded."""

_SERVICER = "genai_ray.serve.oip.grpc.add_inference_service"

_INLINE_BYTES = 1_000_000
"""Results up to this size travel inline; larger ones are faster through the object store. With Ray's default, 100 KB,
throughput is 1.4 times lower."""

_MESSAGE_BYTES = 256 * 1024**2
"""Largest message over gRPC."""

_PORTS_OF_REPLICAS = 50
"""Ports for replicas: these for HTTP, and as many for gRPC. On Ray's default ports two endpoints on one machine would
get each other's gRPC requests, since Ray's option against sharing ports has a value that gRPC ignores."""

_SENDING_S = 60
"""Added to the longest request for its transfer. When replicas come or go, Ray replaces HAProxy; the old process ends
after this time."""

_CLIENT_IDLE_S = 60
"""Most seconds in which a client sends nothing of its request, or reads nothing of its response."""

_HAPROXY_HEALTH_S = 1.0
"""Ray restarts HAProxy after three failed health checks. With Ray's default of 10 s that would be half a minute without
responses."""

_OTHER_FILES = 1024
"""Files that HAProxy opens beside its connections."""

_MAX_BASE = 10

_LOOPBACK = "127.0.0.1"
"""Address of replicas in a cluster of our own: HAProxy connects to those of its node only."""

_BUFFER_BYTES = 1_000_000
"""HAProxy sends requests up to this size to another replica if theirs dies."""


class Endpoint:
    """Serves models over HTTP and gRPC from ``start`` to ``stop``; a context manager.

    Args:
        profile: Options.
        address: Ray cluster to join; None for the surrounding one, or a new one of this process.

    Raises:
        ConfigError: If a port is taken or the model repository does not exist.
        GenAIRayError: If a model that is preloaded or pinned cannot be loaded.
    """

    def __init__(self, profile: ServeProfile, *, address: str | None = None) -> None:
        self.profile = profile
        self.notes: list[str] = []
        """What was cleaned up after killed endpoints."""
        self.model_names: list[str] = []
        """Names of the served models."""
        self._address = address
        self._preload: Preload | None = None
        self._is_serving = False
        self._ends_ray = False
        self._folder: Path | None = None
        self._record: Record | None = None
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL of HTTP."""
        return f"http://{bracketed(self.profile.host)}:{self.profile.port}"

    @property
    def grpc_address(self) -> str | None:
        """Address of gRPC; None if it is off."""
        return None if self.profile.grpc_port is None else f"{bracketed(self.profile.host)}:{self.profile.grpc_port}"

    @property
    def warnings(self) -> list[str]:
        """Sentences for the person who starts it."""
        try:
            is_own = self.profile.host == "localhost" or ipaddress.ip_address(self.profile.host).is_loopback
        except ValueError:
            is_own = False
        if is_own or self.profile.token_sha256 is not None:
            return []
        return [f"{self.profile.host} is open to the network: set a token file, or listen on 127.0.0.1"]

    def start(self) -> None:
        """Start, and return when requests are accepted.

        Raises:
            ConfigError: If a port is taken, Ray Serve runs in the cluster already, the address is one of
                Ray Client, or an option is wrong.
            GenAIRayError: If a model that is preloaded or pinned cannot be loaded.
        """
        check_inside("the endpoint", self._address)
        profile = self.profile
        ports = [port for port in (profile.port, profile.grpc_port) if port is not None]
        if len(set(ports)) != len(ports):
            raise ConfigError(f"port {profile.port} for both HTTP and gRPC", "two different ports")
        self.notes = check_ports(profile.host, ports)
        repository = Repository(profile.model_repository, profile.models, profile.serving)
        self.model_names = [model.name for model in repository.models()]
        self._folder = _short_folder()
        started = process_started(os.getpid())
        self._record = Record(os.getpid(), started or 0, tuple(ports), (str(self._folder),))
        self._record.write()
        try:
            self._start_ray(self._folder)
            self._start_serve()
            self._preload = Preload(ModelCache(name=profile.cache))
            self._preload.update(repository.models())
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Wait until ``stop`` is called.

        Raises:
            ResourceExhaustedError: If the Ray node that this process started has died; call ``stop`` all the same.
        """
        while not self._over.wait(CHECK_EVERY_S):
            if has_own_node_died():
                raise ResourceExhaustedError(
                    "the Ray node that this process started has died", do="Start the endpoint again."
                )

    def stop(self) -> None:
        """Refuse new requests, finish the running ones, and end all that was started; a second call does nothing."""
        import ray  # noqa: PLC0415

        self._over.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        if ray.is_initialized() and not has_own_node_died():
            if self._preload is not None:
                self._preload.release()
            if self._is_serving:
                _end_serve(is_all=not self._ends_ray)
        self._preload = None
        self._is_serving = False
        if self._ends_ray:
            disconnect()
        if self._record is not None:
            self._record.remove()
            self._record = None
        if self._folder is not None:
            remove_folder(self._folder)
            self._folder = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_ray(self, folder: Path) -> None:
        for name, value in _environment(folder, self.profile.request_timeout_s).items():
            os.environ.setdefault(name, value)
        os.environ[HOST] = self.profile.host
        before = signal.getsignal(signal.SIGTERM)
        self._ends_ray = connect(self._address)  # neither a cluster nor a Ray that this process has already
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray replaced it by its own handler, which aborts
        if self._ends_ray and self._record is not None:
            self._record.folders += own_folders()
            self._watcher = threading.Thread(target=self._keep_record, name="genai-ray-serve-record", daemon=True)
            self._watcher.start()

    def _start_serve(self) -> None:
        from ray import serve  # noqa: PLC0415
        from ray.exceptions import RayError  # noqa: PLC0415
        from ray.serve.config import HTTPOptions, gRPCOptions  # noqa: PLC0415

        from genai_ray.serve.deployment.ingress import build_application  # noqa: PLC0415

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        profile = self.profile
        if serve.status().proxies:  # Ray Serve would silently keep its own ports
            do = "Deploy to it with `serve deploy deployments/serve.yaml`, or end it with `serve shutdown`."
            raise ConfigError("Ray Serve runs in this cluster already, on ports of its own", "a cluster without it", do)
        if not own_folders():
            check_ingress()
        self._is_serving = True
        ModelCache(profile.max_memory_bytes, name=profile.cache)
        is_ours = bool(own_folders()) and find_binary() is not None
        grpc = (
            gRPCOptions(port=profile.grpc_port, grpc_servicer_functions=[_SERVICER], enable_reflection=False)
            if profile.grpc_port
            else None
        )
        http = HTTPOptions(host=_LOOPBACK if is_ours else profile.host, port=profile.port)
        logs: Any = {"enable_access_log": False, "log_level": "ERROR"}
        try:
            serve.start(proxy_location="EveryNode", http_options=http, grpc_options=grpc, logging_config=logs)
            serve.run(build_application(profile), name=APPLICATION, route_prefix="/", logging_config=logs)
        except (RayError, RuntimeError, TimeoutError) as exc:
            *_, reason = ["", *str(exc).strip().splitlines()]  # the last line, after another process's traceback
            raise ResourceExhaustedError(
                f"Ray Serve did not start: {reason.strip(' .')}", do="If the machine has too much to do, try again."
            ) from exc

    def _keep_record(self) -> None:
        while not self._over.wait(RECORD_EVERY_S):
            if self._record is not None:
                children = psutil.Process().children(recursive=True)
                started = ((child.pid, process_started(child.pid)) for child in children)
                self._record.processes = tuple((pid, when) for pid, when in started if when is not None)
                self._record.write()


def _short_folder() -> Path:
    """Make a folder for HAProxy's socket. Its path, with the 56 letters of Ray's node id, must be shorter than 98."""
    base = temporary_base()
    return make_folder(base=base if len(base) <= _MAX_BASE else "/tmp")


def _environment(folder: Path, request_timeout_s: float) -> dict[str, str]:
    """Return the environment of Ray's processes: most of Ray Serve's options can be set in no other way."""
    fallback = find_free_ports(2)
    block = find_port_block(2 * _PORTS_OF_REPLICAS)
    state = str(folder)
    binary = find_binary()
    ingress = (
        {"RAY_SERVE_HAPROXY_BINARY_PATH": str(write_launcher(folder)), "GENAI_RAY_HAPROXY": binary} if binary else {}
    )
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if binary else "0",
        **ingress,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{state}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{state}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": state,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{state}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{state}/metrics.sock",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_MAXCONN": str(_max_connections()),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_CLIENT_IDLE_S),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(_HAPROXY_HEALTH_S),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(request_timeout_s) + _SENDING_S),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback[0]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(block + _PORTS_OF_REPLICAS - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(block + _PORTS_OF_REPLICAS),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(block + 2 * _PORTS_OF_REPLICAS - 1),
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(_MESSAGE_BYTES),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_max_direct_call_object_size": str(_INLINE_BYTES),
        "RAY_task_rpc_inlined_bytes_limit": str(40 * _INLINE_BYTES),
        "RAY_task_events_report_interval_ms": "0",  # else Ray's head keeps the last 100,000 calls
    }


def _max_connections() -> int:
    """Return how many clients HAProxy may serve: each takes two files, and pipes take half a file more."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MAX_CONNECTIONS if files == resource.RLIM_INFINITY else (files - _OTHER_FILES) * 2 // 5
    return max(_OTHER_FILES // 4, min(MAX_CONNECTIONS, most))


def _end_serve(*, is_all: bool) -> None:
    """Delete the application; replicas finish their requests. In a cluster that we joined, end all of Ray Serve too."""
    from ray import serve  # noqa: PLC0415
    from ray.exceptions import RayError  # noqa: PLC0415
    from ray.serve.exceptions import RayServeException  # noqa: PLC0415

    deadline = time.monotonic() + _DELETE_WITHIN_S
    try:
        serve.delete(APPLICATION, _blocking=False)
        while APPLICATION in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.05)
        if is_all:
            _end_controller()
    except (RayError, RayServeException, TimeoutError) as exc:
        _log.warning("Ray Serve did not end cleanly: %s", exc)


def _end_controller() -> None:
    """End Ray Serve as ``serve.shutdown`` does, which may wait for 30 s and leaves an error of a killed actor behind.

    It goes on in the cluster by itself.
    """
    import ray  # noqa: PLC0415
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE  # noqa: PLC0415

    deadline = time.monotonic() + _SHUT_DOWN_WITHIN_S
    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=_SHUT_DOWN_WITHIN_S)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:  # there is none any more
        return
    _log.warning("Ray Serve still ends its processes in the cluster; they will be gone within a minute")


def read_token(path: Path) -> str:
    """Read a token from a file, and return its hash only.

    Args:
        path: The file: one line.

    Returns:
        sha256 of the token, hexadecimal.

    Raises:
        ConfigError: If the file cannot be read, or holds no token.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(f"token file {path}: {reason}", "a file with one line") from exc
    if not token or len(token.split()) != 1:
        raise ConfigError(f"token file {path} with {len(token.split())} words", "one word")
    if not token.isascii():
        raise ConfigError(f"token file {path} with a word that is not ASCII", "ASCII, since headers carry nothing else")
    return hashlib.sha256(token.encode()).hexdigest()
