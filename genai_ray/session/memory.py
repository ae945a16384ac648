"""What this process really takes from the operating system, and how to give it back.

``RssAnon`` is the honest figure on Linux: it leaves out shared libraries and Ray's shared memory, which "private" bytes
count wherever only this process has touched a page.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from pathlib import Path

__all__ = ["anonymous_bytes", "map_large_blocks", "release_freed_memory"]

_STATUS = Path("/proc/self/status")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK_BYTES = 1 << 20


def anonymous_bytes() -> int:
    """Return the bytes of anonymous memory that this process holds.

    Returns:
        ``RssAnon`` on Linux. Elsewhere the peak resident size, the nearest figure the standard library has: an upper bound.
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
    """Let glibc map every block from 1 MiB on by itself, for the whole process, so that freeing it gives it back.

    By default the limit rises to the largest block ever freed, up to 32 MiB; weights and tensors then lie in heaps of several
    threads, which do not shrink: twelve load / close cycles of waifu2x-x2 ended between 77 and 105 MB, with this at 49 MB each
    time. What stays free at the end of a thread's heap, which no ``malloc_trim`` gives back, is at most twice a large block, by the
    rule of glibc's own. Limits set by the environment are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is None:
        return
    for limit, number, num_bytes in (
        ("mmap", _M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES),
        ("trim", _M_TRIM_THRESHOLD, 2 * _LARGE_BLOCK_BYTES),
    ):
        if f"MALLOC_{limit.upper()}_THRESHOLD_" not in os.environ and f"{limit}_threshold" not in os.environ.get(
            "GLIBC_TUNABLES", ""
        ):
            mallopt(number, num_bytes)


def release_freed_memory() -> None:
    """Give freed heap back to the operating system; glibc keeps 30 MB and more of a small session otherwise."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
