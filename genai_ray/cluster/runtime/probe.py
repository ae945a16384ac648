"""Looks at a running cluster from outside, without joining it: does it answer, and whom does it let in."""

from __future__ import annotations

import os
from dataclasses import dataclass

import grpc

# An extension without a stub.
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from genai_ray.cluster.runtime.connect import find_running, is_answering, is_on_loopback_alone, is_port

__all__ = ["RunningCluster", "find_cluster"]

_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A call of Ray's control store that takes an empty request and that every client makes first."""

_ANSWER_WITHIN_S = 3.0
_ANY = "auto"


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """What a cluster answers to somebody who has not joined it."""

    address: str
    """``host:port``, or what else the caller named."""
    is_answering: bool
    """Whether something answers there."""
    requires_token: bool | None = None
    """Whether a call without a token is refused; None if what answers does not speak Ray's protocol in plain text."""
    accepts_token: bool | None = None
    """Whether it takes this user's token; None if it requires none, or this user has none."""
    is_local: bool = False
    """Whether it listens on the loopback alone, so that other machines cannot reach it."""


def find_cluster(address: str | None = None) -> RunningCluster | None:
    """Find the cluster that ``connect`` would join, and ask it for what everybody may ask.

    Args:
        address: As for ``connect``.

    Returns:
        The cluster; None if none is named and none runs on this machine.
    """
    asked = address or os.environ.get("RAY_ADDRESS")
    wanted = find_running() if not asked or asked == _ANY else asked
    if not wanted or wanted == "local":
        return None
    if not is_port(wanted):
        return RunningCluster(wanted, is_answering=True)
    if not is_answering(wanted):
        return RunningCluster(wanted, is_answering=False)
    refuses = _refuses(wanted, {})
    accepts = None
    if refuses:
        token = _read_token()
        accepts = not _refuses(wanted, token) if token else None
    return RunningCluster(
        wanted,
        is_answering=True,
        requires_token=refuses,
        accepts_token=accepts,
        is_local=is_on_loopback_alone(wanted),
    )


def _refuses(address: str, metadata: dict[str, str]) -> bool | None:
    """Tell whether a call is refused for want of the right token; None if it fails for another reason.

    Ray's own client would send the token that it finds, and would print each refusal.
    """
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_METHOD)
        try:
            call(b"", timeout=_ANSWER_WITHIN_S, metadata=tuple(metadata.items()))
        except grpc.RpcError as exc:
            return True if exc.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return False


def _read_token() -> dict[str, str]:
    try:
        found: dict[str, str] = AuthenticationTokenLoader.instance().get_token_for_http_header(ignore_auth_mode=True)
    except AuthenticationError:  # a file that cannot be read
        return {}
    return found
