"""Answers of actors: waited for, with errors of ours as themselves, and what the death of one says."""

from __future__ import annotations

from typing import Any, TypeAlias

import ray
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from genai_ray.errors import GenAIRayError, ResourceExhaustedError

__all__ = ["ArgumentLostError", "is_crash", "wait_for"]

Ref: TypeAlias = "ray.ObjectRef[Any]"

_ENDED_BY_OTHERS = ("it was killed by `ray.kill`", "its node has died")
"""What Ray says of a session that the cache ended, or that died with its node; it has no other way to say so."""


class ArgumentLostError(RayActorError):
    """The session that computed what a request was to be given is lost, which says nothing of the session that was asked."""


def is_crash(exc: RayError) -> bool:
    """Tell whether the session that was asked ended by itself, perhaps of what it computed.

    Args:
        exc: What Ray raised instead of its answer.

    Returns:
        False where the cache ended it, its node died, or it only cannot be reached, and where what it was to be given is lost.
    """
    return isinstance(exc, OutOfMemoryError) or (
        isinstance(exc, ActorDiedError) and not any(words in str(exc) for words in _ENDED_BY_OTHERS)
    )


def wait_for(ref: Ref, timeout_s: float | None = None) -> Any:
    """Wait for an answer; an error of ours comes out as itself, with its fields.

    Args:
        ref: What was called.
        timeout_s: Most seconds to wait; None for as long as it takes. Ray's ``GetTimeoutError`` tells that they are over.

    Returns:
        The answer.

    Raises:
        GenAIRayError: What was raised on the other side, as its own class.
        ResourceExhaustedError: If the other side ran out of memory.
        ArgumentLostError: If what the other side was to be given is lost.
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
