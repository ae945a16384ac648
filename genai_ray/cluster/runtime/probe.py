"""Looks at a running cluster from outside, without joining it: does it answer, and whom does it let in."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from enum import StrEnum

# An extension without a stub.
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from genai_ray.cluster.runtime.connect import find_running, is_answering, is_on_loopback_alone, is_port

__all__ = ["ANSWER_WITHIN_S", "Answer", "RunningCluster", "find_cluster"]

_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A call of Ray's control store that takes an empty request and that every client makes first."""

ANSWER_WITHIN_S = 10.0
"""A busy cluster on a slow machine takes seconds."""
_TLS_WITHIN_S = 2.0
_ANY = "auto"


class Answer(StrEnum):
    """What comes back from an address."""

    NOT_TRIED = "not tried"
    """Not known: it is not ``host:port``."""
    NOTHING = "nothing"
    """Nobody listens there."""
    NOT_RAY = "not ray"
    """Somebody listens, but does not answer as Ray within ``ANSWER_WITHIN_S``."""
    TLS = "tls"
    """It speaks TLS, which this module does not: whether Ray is behind it is not known."""
    RAY = "ray"
    """A Ray cluster."""


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """What a cluster answers to somebody who has not joined it."""

    address: str
    """``host:port``, or what else the caller named."""
    answer: Answer
    """What answers there; only a ``RAY`` has what follows."""
    requires_token: bool = False
    """Whether a call without a token is refused."""
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
        return RunningCluster(wanted, Answer.NOT_TRIED)
    if not is_answering(wanted):
        return RunningCluster(wanted, Answer.NOTHING)
    refuses = _refuses(wanted, {})
    accepts = None
    if refuses and (token := _read_token()):
        refused = _refuses(wanted, token)
        refuses, accepts = (None, None) if refused is None else (True, not refused)
    if refuses is None:
        return RunningCluster(wanted, Answer.TLS if _speaks_tls(wanted) else Answer.NOT_RAY)
    return RunningCluster(wanted, Answer.RAY, refuses, accepts, is_local=is_on_loopback_alone(wanted))


def _refuses(address: str, metadata: dict[str, str]) -> bool | None:
    """Tell whether a call is refused for want of the right token; None if it fails for another reason.

    Ray's own client would send the token that it finds, and would print each refusal.
    """
    import grpc  # noqa: PLC0415 (0.1 s in each process)

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:  # as Ray's own
        call = channel.unary_unary(_METHOD)
        try:
            call(b"", timeout=ANSWER_WITHIN_S, metadata=tuple(metadata.items()))
        except grpc.RpcError as exc:
            return True if exc.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return False


def _speaks_tls(address: str) -> bool:
    """Tell whether TLS comes back from a port, be it only the alert that it wants a certificate."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent: only the protocol is asked
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_TLS_WITHIN_S) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except ssl.SSLError as exc:
        return "ALERT" in (exc.reason or "")
    except OSError:
        return False


def _read_token() -> dict[str, str]:
    try:
        found: dict[str, str] = AuthenticationTokenLoader.instance().get_token_for_http_header(ignore_auth_mode=True)
    except AuthenticationError:  # a file that cannot be read
        return {}
    return found
