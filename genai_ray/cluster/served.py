"""``Served``: one of the sessions that a process serves, one after the other; how it is opened, used and drained."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from genai_ray.cluster.messages import LoadRequest, RetentionInfo
from genai_ray.errors import ResourceExhaustedError
from genai_ray.session import InferenceSession

__all__ = ["GROWTH_BYTES", "HOT_FOR_S", "HOT_QUEUE", "Served", "excess_of", "open_growing", "open_session"]

GROWTH_BYTES = 5_000_000
"""By how much a warm session grows with use, in heaps of Ray's threads: 2 MB in 26 requests, 5 in 500, 9 in 8,000. On a
CPU it is part of what is reserved for a session."""

FLOOR_SHARES = (1.0, 0.75)
"""Shares of the given bytes that a session tries to keep to, one after the other: predictions err by about a fifth."""

MAX_GROWTHS = 4
"""Times that a session on a GPU may ask for half as many bytes again until its warm-up fits into them: 5 times what was
predicted, which leaves out cuDNN's workspace."""

HOT_QUEUE = 6
"""Requests that make a session hot if they stay for ``HOT_FOR_S``: three for each concurrent run on two cores."""

HOT_FOR_S = 2.0
"""A session is hot when its queue has been that long for this many seconds."""

_LOOK_EVERY_S = 0.5

DRAIN_QUIET_S = 0.05
"""A retired session that nobody has called for this long may end."""

DRAIN_MOST_S = 1.0
"""A retired session may end after this, even if calls still come."""


def excess_of(inherited_bytes: int) -> int:
    """Return what is reserved in addition for a session in a used process: less has grown already, as it would anyway.

    Args:
        inherited_bytes: Bytes that the process kept of earlier sessions, beyond those of a new one.

    Returns:
        Those of them beyond ``GROWTH_BYTES``.
    """
    return max(inherited_bytes - GROWTH_BYTES, 0)


@dataclass(slots=True, eq=False)
class Served:
    """A session of a process. Everything here ends with it: the next session of the process has its own."""

    name: str
    """Its name, never used twice."""
    load_request: LoadRequest
    """What was asked for."""
    reserved_bytes: int
    """Bytes that counted against the budgets of the cache when it started to load."""
    predecessor: str | None = None
    """Name of the session that the process served before; None for the first one."""
    inherited_bytes: int = 0
    """Bytes that the process kept of earlier sessions, beyond those of a new one."""
    session: InferenceSession | None = None
    """None until it has loaded, and when it is closed."""
    is_closed: bool = False
    """Whether it has given its memory back, so that the process can serve another session."""
    frames_of: Counter[str] = field(default_factory=Counter)
    """Frames computed, by tag."""
    in_flight: int = 0
    """Uses at the moment."""
    use_count: int = 0
    """Uses so far."""
    watchers: int = 0
    """Calls of ``watch`` so far."""
    retirements: int = 0
    """Retirements so far, those that were taken back included."""
    measured_bytes: int | None = None
    """Bytes of the process when it had loaded, or when it was closed; None before."""
    most_bytes: int = 0
    """Most bytes that the process may take while it loads another variant of the model."""
    load_s: float = 0.0
    """Seconds that it took to load and warm."""
    last_use_s: float = field(default_factory=time.monotonic)
    """End of the last use."""
    last_refused_s: float = 0.0
    """When a call was last refused."""
    retired: bool = False
    """Whether new calls are refused."""
    is_online: bool = False
    """Whether somebody waited for the last use."""
    retention: RetentionInfo = field(default_factory=RetentionInfo)
    """Why it is not evicted."""

    def watch(self, mine: int) -> bool:
        """Return when the queue has been long for ``HOT_FOR_S``.

        Args:
            mine: What ``watchers`` became when this watcher was counted.

        Returns:
            True then; false if there is another watcher by now, or if the session is closed.
        """
        long_since_s = time.monotonic()
        while time.monotonic() - long_since_s < HOT_FOR_S:
            time.sleep(_LOOK_EVERY_S)
            if mine != self.watchers or self.is_closed:
                return False
            if self.in_flight < HOT_QUEUE:
                long_since_s = time.monotonic()
        return True

    def drain(self) -> None:
        """Return when nothing is in flight and no call has come for a while."""
        while self.in_flight and self.retired:
            time.sleep(DRAIN_QUIET_S / 5)
        started = time.monotonic()
        while time.monotonic() < min(max(self.last_refused_s, started) + DRAIN_QUIET_S, started + DRAIN_MOST_S):
            time.sleep(DRAIN_QUIET_S / 5)


def open_session(
    served: Served, process_bytes: int | None, *, reserve: Callable[[int], bool], ask: Callable[[int], bool]
) -> InferenceSession:
    """Open and warm a session.

    It keeps to the bytes that its caller gave by smaller tiles; they are a floor, not a ceiling: if they are too few,
    the model gets what it needs.

    Args:
        served: Which session; on a GPU ``reserved_bytes`` grows with what the cache reserves.
        process_bytes: Bytes that its process takes without a model; None on a GPU, which it does not use then.
        reserve: Reserves so many more bytes later on.
        ask: Asks the cache to reserve so many bytes in all.

    Returns:
        The warm session.

    Raises:
        GenAIRayError: Whatever ``InferenceSession`` raises.
    """
    floor_bytes = served.load_request.request.floor_bytes
    is_gpu = process_bytes is None
    if floor_bytes is not None:
        room = floor_bytes - (0 if process_bytes is None else process_bytes + excess_of(served.inherited_bytes))
        for share in FLOOR_SHARES:
            try:
                return _open(served, int(share * room), reserve, is_gpu=is_gpu)
            except ResourceExhaustedError:
                continue
    if not is_gpu:
        return _open(served, None, reserve, is_gpu=False)
    return open_growing(served, lambda: _open(served, None, reserve, is_gpu=True), ask)


def open_growing(
    served: Served, attempt: Callable[[], InferenceSession], ask: Callable[[int], bool]
) -> InferenceSession:
    """Open a session within the bytes that are reserved for it; if they are too few, the cache reserves more first.

    Args:
        served: Which session; its ``reserved_bytes`` grow.
        attempt: Opens it within ``reserved_bytes``.
        ask: Asks the cache to reserve so many bytes in all.

    Returns:
        The session.

    Raises:
        ResourceExhaustedError: If the cache has no more bytes, or if ``MAX_GROWTHS`` were not enough.
    """
    for _ in range(MAX_GROWTHS):
        try:
            return attempt()
        except ResourceExhaustedError:
            larger_bytes = served.reserved_bytes * 3 // 2
            if not ask(larger_bytes):
                raise
            served.reserved_bytes = larger_bytes
    return attempt()


def _open(served: Served, room: int | None, reserve: Callable[[int], bool], *, is_gpu: bool) -> InferenceSession:
    request = served.load_request.request
    limits = replace(request.limits(room), device_bytes=served.reserved_bytes if is_gpu else None, reserve=reserve)
    device = "cuda" if is_gpu else "cpu"
    session = InferenceSession(
        request.model, backend=request.backend, precision=request.precision, device=device, limits=limits
    )
    try:
        session.warmup()
    except BaseException:
        session.close()  # its threads would keep the model alive
        raise
    return session
