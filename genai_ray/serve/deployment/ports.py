"""Ports: whether one is free, who has it, and what an endpoint that was killed left behind."""

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

from genai_ray.errors import ConfigError
from genai_ray.files import cache_folder, name_process_space

__all__ = ["Record", "check_ports", "find_free_ports", "find_port_block", "process_started", "records_folder"]

_log = logging.getLogger(__name__)

_END_WITHIN_S = 10.0
_BLOCKS_FROM, _BLOCKS_TO = 20_000, 30_000
_LISTENING = "0A"


@dataclass(slots=True)
class Record:
    """What an endpoint leaves behind where it is killed; kept in a file for as long as it runs."""

    pid: int
    """The process that started it."""
    started: int
    """When that process began, in ticks since the machine did: a number that is used again has another."""
    ports: tuple[int, ...]
    """Ports that it listens on."""
    folders: tuple[str, ...]
    """Its temporary folders."""
    processes: tuple[tuple[int, int], ...] = ()
    """(id, beginning) of every process that it started."""

    @property
    def path(self) -> Path:
        """Where the record is kept."""
        return records_folder() / f"{self.ports[0]}.json"

    def write(self) -> None:
        """Keep it, as far as that can be done: without it the next start does not find what a killed endpoint left."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(asdict(self)))
            part.replace(self.path)
        except OSError as exc:
            _log.info("%s cannot be written: %s", self.path, exc)

    def remove(self) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()


def records_folder() -> Path:
    """Return where running endpoints of this user are recorded: those that are seen from here, as containers and machines may share a home.

    Returns:
        The folder; it may not exist yet.
    """
    return cache_folder() / "serve" / name_process_space()


def process_started(pid: int) -> int | None:
    """Return when a process began.

    Args:
        pid: Its id.

    Returns:
        Ticks since the machine began; None where there is no such process, or it has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def check_ports(host: str, ports: Iterable[int]) -> list[str]:
    """Make sure that ports can be listened on; what a dead endpoint of this user left on them is ended.

    Args:
        host: Address to listen on.
        ports: The ports.

    Returns:
        What was ended, one sentence each.

    Raises:
        ConfigError: If a port is taken; the text names the process where the system tells it, and what it is.
    """
    told = _end_leftovers()
    for port in ports:
        if not _is_free(host, port):
            raise ConfigError(
                f"port {port} on {host} is taken by {_describe_owner(port)}",
                "a free port",
                "Choose another one, or end that process.",
            )
    return told


def find_free_ports(count: int) -> list[int]:
    """Find ports that are free at the moment.

    Args:
        count: How many.

    Returns:
        Different ports of the loopback address.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def find_port_block(count: int) -> int:
    """Find ports in a row that nobody listens on, chosen by chance: two that look at the same time hardly meet.

    Args:
        count: How many.

    Returns:
        The first of them, below those that the system gives out by itself.

    Raises:
        ConfigError: If there is no such block.
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
            f"host {host!r} cannot be listened on: {exc.strerror}", "a name or an address of this machine"
        ) from exc
    return True


def _describe_owner(port: int) -> str:
    for record in _records():
        if port in record.ports and process_started(record.pid) == record.started:
            return f"the endpoint that process {record.pid} started"
    pid = _owner_of(port)
    if pid is None:
        return "a process that this user cannot see"
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return f"process {pid} ({command[:100]})"


def _owner_of(port: int) -> int | None:
    """Return the process that listens on a port, as far as this user may see."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").iterdir() if sockets else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(file) in sockets for file in (entry / "fd").iterdir()):
                    return int(entry.name)
    return None


def _records() -> list[Record]:
    records = []
    for path in sorted(records_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            fields = json.loads(path.read_text())
            lists = {name: tuple(fields[name]) for name in ("ports", "folders")}
            records.append(
                Record(**fields | lists | {"processes": tuple((pid, started) for pid, started in fields["processes"])})
            )
    return records


def _end_leftovers() -> list[str]:
    """End what endpoints left whose own process is gone: by the ids that they recorded, and only where nobody else has got them since."""
    told = []
    for record in _records():
        if not record.started or process_started(record.pid) == record.started:  # 0 if the system did not tell
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
        told.append(
            f"an endpoint that was killed (process {record.pid}) had left {len(alive)} processes, which were ended"
        )
    return told
