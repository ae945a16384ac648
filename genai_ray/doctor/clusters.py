"""Ray: its version, and the cluster that a command would join. Nothing is started and nothing is joined."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version

from genai_ray.cluster import ANSWER_WITHIN_S, Answer, RunningCluster, find_cluster
from genai_ray.doctor.findings import Finding, State

__all__ = ["check_cluster"]

TOPIC = "cluster"

_PUT_TOKEN = "Put the cluster's token into ~/.ray/auth_token, or into RAY_AUTH_TOKEN."
_CLOSE = "End it, run `ray get-auth-token --generate`, and start it again with `RAY_AUTH_MODE=token ray start --head`."


def check_cluster(address: str | None) -> Iterator[Finding]:
    """Look for a running cluster.

    Args:
        address: The cluster that would be joined; None for ``RAY_ADDRESS``, or one that runs on this machine.

    Yields:
        Ray's version, and what the cluster answers.
    """
    yield Finding(TOPIC, "Ray", State.OK, version("ray"))
    found = find_cluster(address)
    if found is None:
        detail = "none runs on this machine, and none is named: a job starts Ray for itself"
        yield Finding(TOPIC, "running", State.ABSENT, detail)
        return
    yield _check_answer(found, address)
    if found.answer is Answer.RAY:
        yield _check_token(found)


def _check_answer(found: RunningCluster, address: str | None) -> Finding:
    named = "--address" if address else "RAY_ADDRESS"
    place, leave = f"{found.address}, which {named} names", f"leave {named} out"
    if found.address not in (address, os.environ.get("RAY_ADDRESS")):
        place, leave = f"{found.address}, which Ray's file on this machine names", "end what listens there"
    match found.answer:
        case Answer.RAY:
            return Finding(TOPIC, "running", State.OK, f"at {found.address}")
        case Answer.NOT_TRIED:
            do = "To have it tried, name it as host:port, as `ray start --head` prints it."
            return Finding(TOPIC, "running", State.WARNING, f"not tried: {place}, is not host:port", do)
        case Answer.TLS:
            detail = f"not tried: {place}, speaks TLS"
            return Finding(TOPIC, "running", State.WARNING, detail, "Ask who runs it whether it requires a token.")
        case Answer.NOT_RAY:
            detail = f"something listens at {place}, but does not answer as Ray within {ANSWER_WITHIN_S:.0f} s"
            do = f"Name host:port as `ray start --head` prints it, start the cluster again, or {leave}."
            return Finding(TOPIC, "running", State.BROKEN, detail, do)
        case Answer.NOTHING:
            do = f"Start it there with `ray start --head`, or {leave}."
            return Finding(TOPIC, "running", State.BROKEN, f"nothing answers at {place}", do)


def _check_token(found: RunningCluster) -> Finding:
    if found.requires_token and found.accepts_token:
        return Finding(TOPIC, "access", State.OK, "it requires a token, and takes this user's")
    if found.requires_token:
        why = "and this user has none" if found.accepts_token is None else "and refuses this user's"
        return Finding(TOPIC, "access", State.BROKEN, f"it requires a token, {why}", _PUT_TOKEN)
    if found.is_local:
        detail = (
            "it requires no token: whoever has an account on this machine may run code in it; others cannot reach it"
        )
        return Finding(TOPIC, "access", State.WARNING, detail, _CLOSE)
    detail = f"open: it requires no token, so whoever reaches {found.address} may run code in it"
    return Finding(TOPIC, "access", State.WARNING, detail, _CLOSE)
