"""Whether two machines that know a folder by one name mean one folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["identify_folder", "name_machine", "name_process_space"]

_SHARED = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "afs",
    "pvfs2",
    "gfs2",
    "ocfs2",
    "fuse.ceph",
    "fuse.glusterfs",
    "fuse.juicefs",
)
"""File systems of several machines at once, as the kernel names them; of others each machine has its own."""


def identify_folder(folder: str) -> str:
    """Tell what a folder is, whatever it is called: equal for two processes only if they see the same one.

    On one machine device and inode say it, also between containers. Between machines only a folder of a network file system can be the
    same: its inode and what is mounted say it. One that is mounted under two names, or whose kind is not known to be shared, counts as two.

    Args:
        folder: A path.

    Returns:
        The identity; empty where no folder is there.
    """
    try:
        found = os.stat(folder)
    except OSError:
        return ""
    kind, source = _mounted(found.st_dev)
    if kind in _SHARED:
        return f"{kind}:{source}:{found.st_ino}"
    return f"{name_machine()}:{found.st_dev}:{found.st_ino}"


def _mounted(device: int) -> tuple[str, str]:
    """Return the kind of a mounted file system and what is mounted; empty where the system does not tell."""
    mounts = Path("/proc/self/mountinfo")
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        words = line.split(" ")
        if words[2] == wanted:
            kind = words.index("-") + 1
            return words[kind], words[kind + 1]
    return "", ""


def name_machine() -> str:
    """Name this machine until it is started again; containers on it have the same name.

    Returns:
        The name.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def name_process_space() -> str:
    """Name what numbers processes: this machine until it is started again, or a container on it.

    Returns:
        The name.
    """
    spaces = Path("/proc/self/ns/pid")
    return f"{name_machine()}-{spaces.stat().st_ino if spaces.exists() else 0}"
