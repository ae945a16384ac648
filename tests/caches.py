"""Caches of tests, which end with their block: leaving the block of a client leaves its cache to others."""

from contextlib import contextmanager


@contextmanager
def ending(cache):
    """Give a cache, and end it for everybody afterwards."""
    try:
        yield cache
    finally:
        cache.shutdown()
