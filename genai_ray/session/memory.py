"""What this process really takes from the operating system, and how to give it back.

``RssAnon`` is the honest figure on Linux: it leaves out shared libraries and Ray's shared memory, which "private" bytes
count wherever only this process has touched a page.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

__all__ = ["anonymous_bytes", "release_freed_memory"]

_STATUS = Path("/proc/self/status")


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


def release_freed_memory() -> None:
    """Give freed heap back to the operating system; glibc keeps 30 MB and more of a small session otherwise."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
