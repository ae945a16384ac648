"""The cache of a job, and how long its requests may wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from genai_ray.cluster import ModelCache, disconnect
from genai_ray.enhance.plan.options import EnhanceOptions

__all__ = ["REQUEST_WITHIN_S", "job_cache"]

REQUEST_WITHIN_S = 24 * 3600.0
"""A batch of large frames may take hours on a CPU; a session that hangs is found by its silence long before."""


@contextmanager
def job_cache(options: EnhanceOptions) -> Iterator[ModelCache]:
    """Open the cache of a job; if Ray was started for it, both end with the block.

    Args:
        options: Of the job.

    Yields:
        The cache.
    """
    cache = ModelCache(
        options.max_memory_bytes, name=options.cache_name, address=options.address, deadline_s=REQUEST_WITHIN_S
    )
    try:
        with cache:
            yield cache
    finally:
        if cache.is_embedded:
            disconnect()
