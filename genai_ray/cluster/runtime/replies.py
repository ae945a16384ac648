"""Replies of actors: our errors come out as themselves, and deaths say whether they were crashes."""

from __future__ import annotations

from typing import Any, TypeAlias

import ray
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from genai_ray.errors import GenAIRayError, ResourceExhaustedError

__all__ = ["ArgumentLostError", "is_crash", "wait_for"]

Ref: TypeAlias = "ray.ObjectRef[Any]"

_ENDED_BY_OTHERS = ("it was killed by `ray.kill`", "its node has died")
"""How Ray's text describes a session that the cache ended, or that died with its node; nothing else tells."""


class ArgumentLostError(RayActorError):
    """An argument is lost with the session that computed it; the session that was asked is not at fault."""


def is_crash(exc: RayError) -> bool:
    """Tell whether the session that was asked crashed, perhaps because of its input.

    Args:
        exc: What Ray raised instead of a reply.

    Returns:
        False if the cache ended it, its node died, it cannot be reached, or the argument of the request is lost.
    """
    return isinstance(exc, OutOfMemoryError) or (
        isinstance(exc, ActorDiedError) and not any(words in str(exc) for words in _ENDED_BY_OTHERS)
    )


def wait_for(ref: Ref, timeout_s: float | None = None) -> Any:
    """Wait for a reply; our errors come out as themselves, with their fields.

    Args:
        ref: The pending reply.
        timeout_s: Most seconds to wait; None for no limit. Ray raises ``GetTimeoutError`` after that.

    Returns:
        The reply.

    Raises:
        GenAIRayError: What the actor raised, as its own class.
        ResourceExhaustedError: If the actor ran out of memory.
        ArgumentLostError: If an argument of the call is lost.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as exc:
        cause = exc.cause
        if isinstance(cause, GenAIRayError):
            raise cause from None
        if isinstance(cause, RayActorError | OutOfMemoryError | ObjectLostError):
            raise ArgumentLostError(error_msg=str(cause)) from exc
        if isinstance(cause, MemoryError):
            raise ResourceExhaustedError(f"the session ran out of memory: {cause}") from exc
        raise
