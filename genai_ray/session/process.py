"""What this process may use of the machine, what memory it really takes, and how to give memory back.

``RssAnon`` is the honest figure on Linux: it leaves out shared libraries and Ray's shared memory, which "private" bytes
include if no other process has touched a page.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import os
import platform
import sys
from pathlib import Path

__all__ = [
    "anonymous_bytes",
    "count_cores",
    "map_large_blocks",
    "processor_facts",
    "processor_kind",
    "release_freed_memory",
]

_CPUINFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 1 << 20


def count_cores() -> int:
    """Count the CPU cores that this process may use.

    Returns:
        The number; that of the machine if the system sets no limits for a process.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_facts() -> tuple[str, ...]:
    """Return what tells one kind of processor from another.

    Returns:
        System, architecture, and on Linux the names and abilities of the processor, sorted.
    """
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    kinds = ("model name", "flags", "Features")
    facts = sorted({line.split(":", 1)[1].strip() for line in lines if line.startswith(kinds)})
    return (platform.system(), platform.machine(), *facts)


@functools.cache
def processor_kind(device: str) -> str:
    """Name the kind of this machine's processor together with a device: what rounds in the same way has the same name.

    Args:
        device: ``cpu``, or the name of the accelerator that computes.

    Returns:
        A hexadecimal digest of the device and ``processor_facts``.
    """
    return hashlib.sha256("\n".join([device, *processor_facts()]).encode()).hexdigest()


def anonymous_bytes() -> int:
    """Return the bytes of anonymous memory that this process holds.

    Returns:
        ``RssAnon`` on Linux. On other systems the peak resident size, an upper bound; 0 on Windows.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@functools.cache
def map_large_blocks() -> None:
    """Let glibc map every block of 1 MiB or more on its own, in the whole process, so that freeing it returns it.

    By default the limit rises to the largest block ever freed, up to 32 MiB. Weights and tensors then lie in the heaps
    of several threads, which do not shrink: twelve load / close cycles of waifu2x-x2 ended between 77 and 105 MB, with
    this at 49 MB each time. What stays free at the end of a thread's heap, which ``malloc_trim`` does not return, is at
    most twice a large block, as in glibc's own rule. Limits set by the environment stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is None:
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for limit, number, num_bytes in (
        ("mmap", _M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES),
        ("trim", _M_TRIM_THRESHOLD, 2 * _LARGE_BLOCK_BYTES),
    ):
        if f"MALLOC_{limit.upper()}_THRESHOLD_" not in os.environ and f"{limit}_threshold" not in tunables:
            mallopt(number, num_bytes)


def release_freed_memory() -> None:
    """Return freed heap to the operating system; otherwise glibc keeps 30 MB and more of a small session."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
