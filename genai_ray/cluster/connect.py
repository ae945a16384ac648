"""Starting or joining Ray: a named cluster, else one that runs on this machine, else one of this process's own."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import ray

from genai_ray.errors import ConfigError

__all__ = ["connect", "disconnect"]

_ANSWER_WITHIN_S = 2.0
_CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
_ENVIRONMENT = {
    # A dead raylet is noticed in 1.2 s instead of 15, a silent one in 4.2 s instead of over 60.
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # An actor that asks for no GPU hides them by itself; without this Ray warns of a change to come.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_usage_stats_enabled": "0",
}
_START = "Start one with `ray start --head`, or leave the address out."
_own_folders: list[str] = []


def connect(address: str | None = None, *, start: bool = True) -> bool:
    """Make sure that this process is connected to Ray.

    Args:
        address: A cluster's address; None for ``RAY_ADDRESS``, a cluster running on this machine, or one of our own.
        start: Whether one may be started.

    Returns:
        Whether this call started a cluster of this process's own, which ``disconnect`` ends.

    Raises:
        ConfigError: If the named cluster does not answer, or there is none and none may be started.
    """
    if ray.is_initialized():
        return False
    wanted = address or os.environ.get("RAY_ADDRESS") or _find_running()
    if wanted and wanted != "local":
        if not _answers(wanted):
            raise ConfigError(f"no Ray cluster at {wanted}: nothing answers there within {_ANSWER_WITHIN_S:.0f} s", do=_START)
        try:
            ray.init(address=wanted, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as exc:
            raise ConfigError(f"no Ray cluster at {wanted}: {exc}", do=_START) from exc
        return False
    if not start:
        raise ConfigError("no Ray cluster is running on this machine", "a running one", "Start one with `ray start --head`, or pass --address.")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    folder = tempfile.mkdtemp(prefix="genai-ray-")
    _own_folders.append(folder)
    atexit.register(disconnect)
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, _temp_dir=folder)
    return True


def disconnect() -> None:
    """End a cluster that ``connect`` started, and remove its temporary folder; does nothing in a cluster that was joined."""
    if not _own_folders:
        return
    atexit.unregister(disconnect)
    ray.shutdown()
    while _own_folders:
        shutil.rmtree(_own_folders.pop(), ignore_errors=True)


def _find_running() -> str | None:
    """Return the address of a cluster on this machine whose GCS port answers; a stale address file makes Ray hang."""
    if not _CURRENT_CLUSTER.is_file():
        return None
    address = _CURRENT_CLUSTER.read_text().strip()
    return address if address.rpartition(":")[2].isdigit() and _answers(address) else None


def _answers(address: str) -> bool:
    """Tell whether the port of ``host:port`` can be reached, where Ray itself would try for minutes; other words are Ray's to judge."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_WITHIN_S):
            return True
    except OSError:
        return False
