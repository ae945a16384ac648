"""Ray: its version, and the cluster that a command would join. Nothing is started and nothing is joined."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from genai_ray.cluster import RunningCluster, find_cluster
from genai_ray.doctor.findings import Finding, State

__all__ = ["check_cluster"]

TOPIC = "cluster"

_PUT_TOKEN = "Put the cluster's token into ~/.ray/auth_token, or into RAY_AUTH_TOKEN."
_CLOSE = "End it, run `ray get-auth-token --generate`, and start it again with `ray start --head`."


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
    if not found.is_answering:
        named = "--address" if address else "RAY_ADDRESS"
        do = f"Start it there with `ray start --head`, or leave {named} out."
        yield Finding(TOPIC, "running", State.BROKEN, f"nothing answers at {found.address}, which {named} names", do)
        return
    yield Finding(TOPIC, "running", State.OK, f"at {found.address}")
    yield _check_token(found)


def _check_token(found: RunningCluster) -> Finding:
    if found.requires_token is None:
        detail = "not known: what answers there does not speak Ray's protocol in plain text, as behind TLS or ray://"
        return Finding(TOPIC, "access", State.WARNING, detail, "Ask who runs it whether it requires a token.")
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
