"""Caches of tests, which end with their block: leaving the block of a client leaves its cache to others."""

from contextlib import contextmanager

from tests.processes import wait_until


@contextmanager
def ending(cache):
    """Give a cache, and end it for everybody afterwards."""
    try:
        yield cache
    finally:
        cache.shutdown()


def keep_at_work(cache, session, frames, least=8):
    """Send frames until the session has been seen with ``least`` calls at once, which it computes for a while yet.

    However late this process looks: if it looks too late, more is sent.
    """
    pending = []

    def is_at_work():
        pending.extend(session.submit(frames) for _ in range(2 * least))
        return any(entry.queue >= least for entry in cache.status().models)

    wait_until(is_at_work)
    return pending
