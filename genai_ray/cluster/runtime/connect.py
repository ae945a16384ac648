"""Starting or joining Ray: a named cluster, else one that runs on this machine, else one of this process's own."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_ray_address_file
from ray._private import ray_constants

from genai_ray.backends.gpu import count_gpus
from genai_ray.cluster.runtime.driver import Guard, Job, hush, undisturbed
from genai_ray.cluster.runtime.node import few_processes
from genai_ray.cluster.runtime.token import CLIENT, check_token, forget_token, make_token, use_token
from genai_ray.errors import BackendUnavailableError, ConfigError, GenAIRayError, ResourceExhaustedError
from genai_ray.files import cache_folder, describe_error, make_folder, remove_folder, sweep_folders, temporary_base

__all__ = [
    "check_inside",
    "check_own_gpu",
    "check_process",
    "connect",
    "disconnect",
    "find_running",
    "has_own_node_died",
    "is_answering",
    "is_on_loopback_alone",
    "is_port",
    "own_folders",
    "say_if_node_dies",
]

_log = logging.getLogger(__name__)
_ANY = "auto"
"""Ray's word for a cluster on this machine. Ray itself would also join one that another process started for itself, and
that ends with it."""
_ANSWER_WITHIN_S = 2.0
_GONE_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.1
_ENVIRONMENT = {
    # Ray's time-outs for dead nodes stay: nothing can replace the only node, and one that was held up for some seconds
    # goes on.
    "ORT_DISABLE_TELEMETRY": "1",  # for processes that import ONNX Runtime before this package
    # Our actors hide the GPUs that they do not use; without this Ray warns of a future change.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_usage_stats_enabled": "0",
}
_DO_START = "Start one with `ray start --head`, or leave the address out."
_SHORT = "/tmp"
_PRELOAD = "RAY_preload_python_modules"
_MAX_ADDRESS = 300
"""Letters of ``host:port``."""
_MAX_PATH_BYTES = 43
"""A socket's path has at most 107 bytes, and Ray needs 64 of them for the session and the socket."""
_own_folders: list[Path] = []
_guards: list[Guard] = []
_connected_by = 0
"""Process id of the process that connected to Ray; this one may be a fork of it."""


def connect(address: str | None = None, *, start: bool = True, preload: str = "") -> bool:
    """Make sure that this process is connected to Ray.

    Args:
        address: A cluster's address, ``host:port`` or ``ray://host:port``; ``auto`` for one running on this machine;
            None for ``RAY_ADDRESS``, one running on this machine, or one of our own.
        start: Whether a cluster may be started.
        preload: Module that every process of a cluster that is started imports before it is asked for anything.

    Returns:
        Whether this call started a cluster for this process, which ``disconnect`` ends.

    Raises:
        ConfigError: If the named cluster does not answer, this process is connected to another one, or none runs and
            none may be started.
        ResourceExhaustedError: If Ray cannot be started on this machine.
    """
    if ray.is_initialized():
        check_process()
        _check_connected_to(address)
        return False
    asked = address or os.environ.get("RAY_ADDRESS")
    wanted = find_running() if not asked or asked == _ANY else asked
    if wanted and wanted != "local":
        if not is_answering(wanted.removeprefix(CLIENT)):
            raise ConfigError(
                f"no Ray cluster at {wanted}: nothing answers there within {_ANSWER_WITHIN_S:.0f} s", do=_DO_START
            )
        use_token()
        if is_port(wanted.removeprefix(CLIENT)):
            check_token(wanted)
        try:
            with _on_loopback() if is_on_loopback_alone(wanted) else contextlib.nullcontext(), undisturbed():
                # Ray Client makes its own job.
                job: dict[str, Any] = {} if wanted.startswith(CLIENT) else {"job_config": Job()}
                ray.init(address=wanted, logging_level=logging.ERROR, log_to_driver=False, **job)
        except (ConnectionError, ValueError, RuntimeError) as exc:
            # What the head's server for Ray Client could not do ends with the reason, after a traceback.
            reason = str(exc).strip().splitlines()[-1] if isinstance(exc, ConnectionAbortedError) else exc
            raise ConfigError(f"no Ray cluster at {wanted}: {reason}", do=_DO_START) from exc
        _note_process()
        return False
    if not start or asked == _ANY:
        do = "Start one with `ray start --head`, or pass host:port of another one by --address."
        raise ConfigError("no Ray cluster is running on this machine", "a running one", do)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _start(preload)
    return True


def check_process() -> None:
    """Refuse to use Ray's connection in a fork of the process that made it: there every call would wait for ever.

    Raises:
        ConfigError: If this process is such a fork.
    """
    if not ray.is_initialized():
        return
    if not _connected_by:
        _note_process()
    if _connected_by != os.getpid():
        got = f"this process is a fork of process {_connected_by}, which is connected to Ray"
        raise ConfigError(got, "a process that was not forked after that", "Start processes by 'spawn'.")


def _check_connected_to(address: str | None) -> None:
    """Refuse the address of another cluster than that of this process, which has one at a time."""
    if not address or address == _ANY:
        return
    client: Any = ray.util.client.ray
    if client.is_connected() or address.startswith(CLIENT):
        is_same, connected = client.is_connected() and address.startswith(CLIENT), "another cluster"
    else:
        connected = ray.get_runtime_context().gcs_address
        (host, port), (own_host, own_port) = (_numbers(each) for each in (address, connected))
        # Ray replaces a name of loopback by the node's own number.
        is_same = port == own_port and (host == own_host or host.startswith("127."))
    if not is_same:
        do = "Leave the address out, or end that connection first by ray.shutdown()."
        raise ConfigError(f"address {address}, as this process is connected to {connected} already", do=do)


def _numbers(address: str) -> tuple[str, str]:
    """Host by number, and port, of ``host:port``."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return host, port


def check_inside(what: str, address: str | None = None) -> None:
    """Refuse what Ray Client cannot do: this process must be on a machine of the cluster.

    Args:
        what: What needs it.
        address: As ``connect``, which need not have been called before.

    Raises:
        ConfigError: If this process is connected by ``ray://``, or would be.
    """
    client: Any = ray.util.client.ray
    wanted = address or ("" if ray.is_initialized() else os.environ.get("RAY_ADDRESS", ""))
    if client.is_connected() or wanted.startswith(CLIENT):
        do = "Run this on a machine of the cluster with RAY_ADDRESS=HEAD:6379, or send it there: ray job submit."
        raise ConfigError(f"{what} over {CLIENT}", "ModelCache, its sessions and enhance_videos", do)


def check_own_gpu(device: str, address: str | None) -> None:
    """Refuse a GPU on a machine without one before Ray is started there, and on no other.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        address: As ``connect``, which is called afterwards.

    Raises:
        BackendUnavailableError: If ``device`` is a GPU, and this machine alone would be used and has none.
    """
    if device in ("auto", "cpu") or ray.is_initialized() or count_gpus():
        return
    asked = address or os.environ.get("RAY_ADDRESS") or find_running()
    if asked in (None, "local"):
        raise BackendUnavailableError(
            f"asked for device {device!r}", "cpu, since this machine has no NVIDIA GPU", "Use device='cpu'."
        )


def disconnect() -> None:
    """End a cluster that ``connect`` started, and remove its temporary folders.

    Does nothing if a cluster was joined, or in a fork.
    """
    if not _own_folders or _connected_by != os.getpid():
        return
    atexit.unregister(disconnect)
    ray.shutdown()
    hush(is_quiet=False)
    while _guards:
        _guards.pop().stop()
    forget_token()
    while _own_folders:
        folder = _own_folders.pop()
        deadline = time.monotonic() + _GONE_WITHIN_S
        remove_folder(folder)
        while folder.exists() and time.monotonic() < deadline:  # processes without a raylet still write there
            time.sleep(_LOOK_EVERY_S)
            remove_folder(folder)


def own_folders() -> tuple[str, ...]:
    """Return the temporary folders of a cluster that ``connect`` started.

    Returns:
        Their paths; none if a cluster was joined.
    """
    return tuple(map(str, _own_folders))


def has_own_node_died() -> bool:
    """Tell whether a cluster that ``connect`` started has lost its only node.

    Ray answers no call after that, and ends this process about 15 s later, without an exception.

    Returns:
        Whether it has; false if a cluster was joined.
    """
    node: Any = ray._private.worker._global_node  # Ray has no public name for the processes that it started
    return (
        bool(_own_folders)
        and node is not None
        and any(kind in ("raylet", "gcs_server") for kind, _ in node.dead_processes())
    )


def say_if_node_dies(do: str) -> None:
    """Set the advice that is printed if Ray ends this process because the node that ``connect`` started has died.

    Args:
        do: What a person can do.
    """
    for guard in _guards:
        guard.say(do)


def _note_process() -> None:
    global _connected_by  # noqa: PLW0603 - a fork has a copy of every other sign of a connection
    _connected_by = os.getpid()


def _start(preload: str) -> None:
    base = os.environ.get("RAY_TMPDIR") or temporary_base()
    sweep_folders(base, _SHORT)
    cache_folder()  # warns here if it cannot be written: nobody sees the log of Ray's processes
    _note_process()
    atexit.register(disconnect)
    try:
        folder = _make_folder(base)
        make_token(folder.parent)
        hush(is_quiet=True)
        job = Job()
        with _on_loopback(), few_processes(), undisturbed(), _preloading(preload, job):
            ray.init(
                address="local",
                job_config=job,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                _temp_dir=str(folder),
            )
        node: Any = ray._private.worker._global_node
        _guards.append(
            Guard([info.process.pid for kind in ("raylet", "gcs_server") for info in node.all_processes.get(kind, ())])
        )
    except BaseException as exc:  # also Ctrl-C
        disconnect()
        if isinstance(exc, GenAIRayError) or not isinstance(exc, Exception):
            raise
        # Ray raises a plain Exception if its node does not answer in time
        raise ResourceExhaustedError(
            f"Ray did not start: {str(exc).strip(' .')}", do="If the machine is busy, try again later."
        ) from exc


@contextlib.contextmanager
def _preloading(module: str, job: Job) -> Iterator[None]:
    """Have Ray's processes import a module of ours first.

    Not if this process has the package from a folder that they only learn of with their job: they might find another
    version of it.
    """
    folder = str(Path(__file__).parents[3])
    if not module or _PRELOAD in os.environ or folder in job._py_driver_sys_path:
        yield
        return
    os.environ[_PRELOAD] = module
    try:
        yield
    finally:
        del os.environ[_PRELOAD]


def _make_folder(base: str) -> Path:
    """Make Ray's folder inside one that only this user can enter: Ray opens its own to everybody."""
    try:
        os.makedirs(base, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"no folder for Ray's files can be made: {describe_error(exc)}", do="Set RAY_TMPDIR to a writable folder."
        ) from exc
    outer = make_folder(base=base)
    _own_folders.append(outer)
    folder = outer / "ray"
    if len(os.fsencode(folder)) <= _MAX_PATH_BYTES:
        return folder
    folder.mkdir()
    short = make_folder(base=_SHORT)
    _own_folders.append(short)
    (short / "ray").symlink_to(folder)
    return short / "ray"


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Give Ray's node the loopback address, where all its processes then listen, as by default on macOS and Windows."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR in os.environ
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def find_running() -> str | None:
    """Return the address of a cluster on this machine whose GCS port answers: a stale address file makes Ray hang.

    A cluster gets this user's token and code, so one that another user started is joined only if the caller names it.

    Returns:
        ``host:port``; None if there is none.
    """
    path = get_ray_address_file(None)
    try:
        with open(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            address = file.read(_MAX_ADDRESS).strip() if stat.S_ISREG(found.st_mode) else ""
    except (OSError, UnicodeDecodeError):
        return None
    if not (is_port(address) and address.isprintable()):
        return None
    if found.st_uid not in (0, os.geteuid()):
        _log.warning("the Ray cluster at %s is another user's (%s): pass its address to join it", address, path)
        return None
    return address if is_answering(address) else None


def is_port(address: str) -> bool:
    """Tell whether an address is ``host:port``; Ray checks other forms itself.

    Args:
        address: What the caller named.

    Returns:
        Whether it is.
    """
    host, _, port = address.rpartition(":")
    return port.isdigit() and "/" not in host


def is_on_loopback_alone(address: str) -> bool:
    """Tell whether a cluster listens on the loopback alone, as one does that ``connect`` started in another process.

    Args:
        address: ``host:port``, or another form.

    Returns:
        Whether it does.
    """
    host, _, port = address.rpartition(":")
    if not is_port(address) or host.strip("[]") not in ("localhost", "127.0.0.1", "::1"):
        return False
    node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return not is_answering(f"{node}:{port}")


def is_answering(address: str) -> bool:
    """Tell whether ``host:port`` can be reached; Ray itself would try for minutes.

    Args:
        address: ``host:port``; any other form counts as reachable.

    Returns:
        Whether it can.
    """
    if not is_port(address):
        return True
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_WITHIN_S):
            return True
    except (OSError, ValueError, OverflowError):  # a host or a port that cannot be one is not always an OSError
        return False
