"""Tells whether two processes see the same folder, and whether they run on the same machine."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

__all__ = ["identify_folder", "name_machine", "name_process_space"]

_SHARED = re.findall(
    r"\S+",
    "nfs nfs4 cifs smb3 ceph lustre gpfs beegfs afs pvfs2 gfs2 ocfs2 fuse.ceph fuse.glusterfs fuse.juicefs",
)
"""The kernel's names of file systems that several machines share; other file systems belong to one machine."""


def identify_folder(folder: str) -> str:
    """Return the identity of a folder: equal for two processes only if they see the same folder, under any path.

    On one machine, device and inode identify it, also in containers. Two machines can only share a folder of a network
    file
    system: its inode and the mount source identify it. A file system that is mounted from two sources, or that is not
    known to be shared, counts as two.

    Args:
        folder: A path.

    Returns:
        The identity; empty if there is no such folder.
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
    """Return the type and the source of a mounted file system; empty if the system does not tell."""
    mounts = Path("/proc/self/mountinfo")
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        words = line.split(" ")
        if words[2] == wanted:
            kind = words.index("-") + 1
            return words[kind], words[kind + 1]
    return "", ""


def name_machine() -> str:
    """Name this machine until it restarts; its containers have the same name.

    Returns:
        The name.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def name_process_space() -> str:
    """Name the space of process ids: this machine until it restarts, or a container on it.

    Returns:
        The name.
    """
    spaces = Path("/proc/self/ns/pid")
    return f"{name_machine()}-{spaces.stat().st_ino if spaces.exists() else 0}"
