"""Whether two machines that know a folder by one name mean one folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["identify_folder"]

_SHARED = ("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "afs", "orangefs", "gfs2", "ocfs2", "9p", "virtiofs")
"""File systems of several machines at once, as the kernel names them; of others each machine has its own."""


def identify_folder(folder: str) -> str:
    """Tell what a folder is, whatever it is called: equal for two processes only if they see the same one.

    On one machine device and inode say it, also between containers. Between machines only a folder of a network file system can be the
    same: its inode and the size of its file system say it. Of network file systems that number files as each machine likes they differ,
    and so do those that are not known to be one.

    Args:
        folder: A path.

    Returns:
        The identity; empty where no folder is there.
    """
    try:
        found = os.stat(folder)
        kind = _kind_of(found.st_dev)
        if kind in _SHARED or kind.startswith("fuse."):
            return f"{kind}:{os.statvfs(folder).f_blocks}:{found.st_ino}"
    except OSError:
        return ""
    return f"{_machine()}:{found.st_dev}:{found.st_ino}"


def _kind_of(device: int) -> str:
    """Return the kind of a mounted file system; empty where the system does not tell."""
    mounts = Path("/proc/self/mountinfo")
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        words = line.split(" ")
        if words[2] == wanted:
            return words[words.index("-") + 1]
    return ""


def _machine() -> str:
    """Name this machine until it is started again; containers on it have the same name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()
