"""Single flight: whoever asks for an entry that is not there waits for the one session of it that loads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from genai_ray.cluster.cache.session_table import Entry, SessionTable
from genai_ray.cluster.messages import Key, LoadRequest, key_of
from genai_ray.errors import DeadlineExceededError

__all__ = ["join_flight"]


async def join_flight(
    want: LoadRequest,
    deadline: float,
    book: SessionTable,
    check_failing: Callable[[Key], None],
    begin: Callable[[Entry], None],
) -> list[Entry]:
    """Wait for the sessions of an entry; the first who asks has one loaded, those who come meanwhile wait for the same.

    Args:
        want: Which session.
        deadline: Until when, by ``time.monotonic``.
        book: Sessions and bytes.
        check_failing: Raises the error of what failed a short while ago.
        begin: Starts to load an entry.

    Returns:
        Sessions that can be used at this moment, one or more.

    Raises:
        GenAIRayError: Why there is none by the deadline.
    """
    key = key_of(want.request)
    while True:
        entries = book.of_key(key)
        usable = [entry for entry in entries if book.is_usable(entry)]
        if usable:
            return usable
        pending = next((entry for entry in entries if not entry.ready.is_set()), None)
        if pending is None and entries:  # on their way out: the bytes are not free before the process is gone
            await book.wait_for(entries[0].gone, entries[0], deadline)
            continue
        if pending is None:
            check_failing(key)
            if time.monotonic() >= deadline:  # nobody would be there to use it
                raise DeadlineExceededError(f"{key.model} was not ready in time", do="Give the client more time.")
            pending = Entry(want)
            begin(pending)
        elif want.is_explicit and not pending.want.is_explicit:
            pending.want = replace(pending.want, is_explicit=True)
        await book.wait_for(pending.ready, pending, deadline)
        if pending.error is not None and not pending.is_replica:
            raise pending.error
