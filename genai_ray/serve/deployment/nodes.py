"""The nodes of a joined cluster: each has an environment of its own, which decides what Ray Serve starts there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genai_ray.errors import ConfigError, ResourceExhaustedError
from genai_ray.serve.deployment.haproxy import LAUNCHERS

__all__ = ["check_ingress", "opens_ports"]

_ENABLED, _BINARY = "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_BINARY_PATH"

_ANSWER_WITHIN_S = 120.0
"""Each node starts a process to answer."""


def opens_ports(environment: Mapping[str, str]) -> bool:
    """Tell whether Ray Serve would start an HAProxy whose ports for statistics and metrics every network can reach.

    Args:
        environment: Variables of a node.

    Returns:
        Whether it would.
    """
    return environment.get(_ENABLED) == "1" and Path(environment.get(_BINARY, "")).name not in LAUNCHERS


def check_ingress() -> None:
    """Refuse a cluster that would open HAProxy's ports for statistics (8404) and metrics (9101) to every network.

    Raises:
        ConfigError: If one of its nodes would.
        ResourceExhaustedError: If a node does not answer.
    """
    ask: Any = ray.remote(num_cpus=0)(_opens_ports_here)
    asked = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(scheduling_strategy=there).remote()] = node["NodeManagerAddress"]
    try:
        answers = ray.get(list(asked), timeout=_ANSWER_WITHIN_S)
    except RayError as exc:
        raise ResourceExhaustedError(
            "a node of the cluster did not say which proxy it starts", do="Look at `ray status`, and try again."
        ) from exc
    nodes = sorted({address for address, is_open in zip(asked.values(), answers, strict=True) if is_open})
    if nodes:
        raise ConfigError(
            f"HAProxy on {', '.join(nodes)} would open its ports for statistics (8404) and metrics (9101) to every "
            "network",
            f"Ray's own proxy, or HAProxy by {LAUNCHERS[1]}",
            f"Start the nodes with {_BINARY} set to the path of {LAUNCHERS[1]}: see deployments/ray-env.sh.",
        )


def _opens_ports_here() -> bool:
    return opens_ports(os.environ)
