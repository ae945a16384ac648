"""Ports: which ones are free, which process has one, and what a killed endpoint left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from genai_ray.errors import ConfigError
from genai_ray.files import cache_folder, name_process_space, write_whole

__all__ = ["Record", "check_ports", "find_free_ports", "find_port_block", "process_started"]

_log = logging.getLogger(__name__)

_END_WITHIN_S = 10.0
_BLOCKS_FROM = 20_000
_BLOCKS_TO = 30_000


@dataclass(slots=True)
class Record:
    """What a running endpoint would leave behind if it were killed; kept in a file as long as it runs."""

    pid: int
    """The process that started it."""
    started: int
    """When that process started: a later process of the same id has another value. 0 if unknown."""
    ports: tuple[int, ...]
    """Ports that the endpoint listens on."""
    folders: tuple[str, ...]
    """Its temporary folders."""
    processes: tuple[tuple[int, int], ...] = ()
    """(id, start) of each process that the endpoint started."""

    @property
    def path(self) -> Path:
        """The file."""
        return _records_folder() / f"{self.ports[0]}.json"

    def write(self) -> None:
        """Write the file. If that fails, it is logged: the next start then cannot clean up after this endpoint."""
        try:
            write_whole(self.path, json.dumps(asdict(self)))
        except OSError as exc:
            _log.info("%s cannot be written: %s", self.path, exc)

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()


def _records_folder() -> Path:
    """Return the folder for endpoints whose processes are visible here: containers and machines may share a home."""
    return cache_folder() / "serve" / name_process_space()


def process_started(pid: int) -> int | None:
    """Return when a process started. psutil's time moves with the clock of the machine, and would not find it again.

    Args:
        pid: Its id.

    Returns:
        Ticks since the machine booted; None if there is no such process, or it has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def check_ports(host: str, ports: Iterable[int]) -> list[str]:
    """Check that ports are free, after ending what killed endpoints of this user left.

    Args:
        host: Address to listen on.
        ports: The ports.

    Returns:
        One sentence for each endpoint that was cleaned up after.

    Raises:
        ConfigError: If a port is taken; the text names the process, if the system shows it.
    """
    notes = _end_leftovers()
    for port in ports:
        if not _is_free(host, port):
            raise ConfigError(
                f"port {port} on {host} is taken by {_describe_owner(port)}",
                "a free port",
                "Choose another one, or end that process.",
            )
    return notes


def find_free_ports(count: int) -> list[int]:
    """Find ports that are free at the moment.

    Args:
        count: How many.

    Returns:
        Different ports on the loopback address.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def find_port_block(count: int) -> int:
    """Find consecutive free ports, chosen at random, so that two endpoints that start together get different ones.

    Args:
        count: How many.

    Returns:
        The first of them, below the range of ports that the system assigns.

    Raises:
        ConfigError: If there is none.
    """
    starts = list(range(_BLOCKS_FROM, _BLOCKS_TO - count, count))
    random.shuffle(starts)
    for start in starts:
        if all(_is_free("0.0.0.0", port) for port in range(start, start + count)):
            return start
    raise ConfigError(f"no {count} free ports in a row", f"some between {_BLOCKS_FROM} and {_BLOCKS_TO}")


def _is_free(host: str, port: int) -> bool:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except PermissionError as exc:
        raise ConfigError(
            f"port {port} on {host}: {exc.strerror}", "a port from 1024 up, for a user without special rights"
        ) from exc
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return False
        raise ConfigError(
            f"cannot listen on host {host!r}: {exc.strerror}", "a name or an address of this machine"
        ) from exc
    return True


def _describe_owner(port: int) -> str:
    for record in _records():
        if port in record.ports and process_started(record.pid) == record.started:
            return f"the endpoint that process {record.pid} started"
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:100]})"
    return "a process that this user cannot see"


def _records() -> list[Record]:
    records = []
    for path in sorted(_records_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            fields = json.loads(path.read_text())
            processes = tuple((pid, started) for pid, started in fields["processes"])
            lists = {"ports": tuple(fields["ports"]), "folders": tuple(fields["folders"]), "processes": processes}
            records.append(Record(**fields | lists))
    return records


def _end_leftovers() -> list[str]:
    """End what killed endpoints left: only recorded processes whose start shows that their id was not reused."""
    notes = []
    for record in _records():
        if not record.started or process_started(record.pid) == record.started:
            continue
        alive = [pid for pid, started in record.processes if process_started(pid) == started]
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _END_WITHIN_S
        while any(process_started(pid) == started for pid, started in record.processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        for folder in record.folders:
            if Path(folder).name.startswith("genai-ray-"):
                shutil.rmtree(folder, ignore_errors=True)
        record.remove()
        killed = f"an endpoint that was killed (process {record.pid})"
        notes.append(f"{killed} had left {len(alive)} processes, which were ended")
    return notes
