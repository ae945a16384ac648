"""The processes of a node, as its raylet knows them: Ray's Python interface has no call that starts one ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

__all__ = ["process_ids", "start_process"]

_ANSWER_WITHIN_S = 3.0


@contextmanager
def _raylet(node: str) -> Iterator[tuple[Any, Any]]:
    """Connect to a node's raylet; give the calls that it answers, and the classes of their messages."""
    # few caches need these, and every process of ours would import them
    import grpc  # noqa: PLC0415
    from ray._private.grpc_utils import init_grpc_channel  # noqa: PLC0415
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc  # noqa: PLC0415

    found = next((each for each in ray.nodes() if each["NodeID"] == node), None)  # type: ignore[no-untyped-call]
    if found is None:
        raise ConnectionError(f"node {node} left the cluster")
    address = f"{found['NodeManagerAddress']}:{found['NodeManagerPort']}"
    try:
        with init_grpc_channel(address) as channel:
            yield node_manager_pb2_grpc.NodeManagerServiceStub(channel), node_manager_pb2  # type: ignore[no-untyped-call]
    except grpc.RpcError as exc:
        raise ConnectionError(f"the raylet at {address} refuses: {exc}") from exc


def start_process(node: str, keep_s: int) -> None:
    """Start a process that waits for its first task or actor; returns before it is there.

    Args:
        node: Id of the node.
        keep_s: Seconds for which Ray keeps it, however many others are idle.

    Raises:
        ConnectionError: If the node's raylet does not do so.
    """
    with _raylet(node) as (raylet, messages):
        request = messages.PrestartWorkersRequest(num_workers=1, keep_alive_duration_secs=keep_s)
        raylet.PrestartWorkers(request, timeout=_ANSWER_WITHIN_S)


def process_ids(node: str) -> frozenset[int]:
    """Return the processes of a node that have registered, with or without work.

    Args:
        node: Id of the node.

    Returns:
        Their ids.

    Raises:
        ConnectionError: If the node's raylet does not say.
    """
    with _raylet(node) as (raylet, messages):
        answer = raylet.GetWorkerPIDs(messages.GetWorkerPIDsRequest(), timeout=_ANSWER_WITHIN_S)
        return frozenset(answer.pids)
