"""The cache of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from genai_ray.cluster import ModelCache, check_own_gpu, disconnect
from genai_ray.enhance.plan.options import EnhanceOptions

__all__ = ["job_cache", "open_cache"]

_REQUEST_WITHIN_S = 24 * 3600.0
"""A batch of large frames may take hours on a CPU; a session that hangs is found by its silence long before."""


def open_cache(options: EnhanceOptions) -> ModelCache:
    """Open the cache of a job; Ray is started if none runs.

    Args:
        options: Of the job.

    Returns:
        The cache.

    Raises:
        BackendUnavailableError: If a GPU is asked for, and this machine alone would be used and has none.
        ConfigError: As ``ModelCache``.
    """
    check_own_gpu(options.device, options.address)
    return ModelCache(
        options.max_memory_bytes, name=options.cache_name, address=options.address, deadline_s=_REQUEST_WITHIN_S
    )


@contextmanager
def job_cache(options: EnhanceOptions) -> Iterator[ModelCache]:
    """Open the cache of a job; if Ray was started for it, both end with the block.

    Args:
        options: Of the job.

    Yields:
        The cache.

    Raises:
        GenAIRayError: As ``open_cache``.
    """
    cache = open_cache(options)
    try:
        with cache:
            yield cache
    finally:
        if cache.is_embedded:
            disconnect()
