"""The processes of a Ray node that ``connect`` starts: only those that somebody asks, which start beside each other."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import _raylet as untyped_raylet
from ray._private import node as ray_node
from ray._private import services

__all__ = ["few_processes"]

_raylet: Any = untyped_raylet

_LOOK_EVERY_S = 0.02
_REGISTERED_WITHIN_S = 10.0
"""After this Ray waits itself."""


class _Node(ray_node.Node):
    """Ray's node without the processes that nobody asks here: they take most of the CPU time of its start.

    The autoscaler's monitor can add no node, the log monitor has no driver to print to, and without the dashboard its
    server would only report usage, and its agent would serve nobody. The agent of runtime environments starts when a
    task asks for one.
    """

    def start_raylet(self, *arguments: Any, **options: Any) -> None:
        """Start it with other processes in the place of its agents: Ray demands two, and ends if one ends."""
        node: Any = self
        idle = shutil.which("cat")  # it ends when the raylet has ended, and closed its input
        if idle is None or os.name != "posix":
            super().start_raylet(*arguments, **options)
            return
        for port in (
            _raylet.METRICS_AGENT_PORT_NAME,
            _raylet.METRICS_EXPORT_PORT_NAME,
            _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
        ):
            _raylet.persist_port(node.get_session_dir_path(), node.node_id, port, -1)  # none, as Ray's agent says it
        before = services.start_ray_process

        def start(command: list[str], *others: Any, **more: Any) -> Any:
            return before(list(self._replace_agents(command, idle)), *others, **more)

        services.start_ray_process = start
        try:
            super().start_raylet(*arguments, **options)
        finally:
            services.start_ray_process = before
        # Ray itself looks for the node once a second.
        deadline = time.monotonic() + _REGISTERED_WITHIN_S
        client = node.get_gcs_client()
        while time.monotonic() < deadline and not node.dead_processes():
            if node.node_id in (known.hex() for known in client.get_all_node_info()):
                break
            time.sleep(_LOOK_EVERY_S)

    def _replace_agents(self, command: list[str], idle: str) -> Iterator[str]:
        node: Any = self
        name = _raylet.RUNTIME_ENV_AGENT_PORT_NAME
        port = os.path.join(node.get_session_dir_path(), _raylet.get_port_filename(node.node_id, name))
        stand_in = [sys.executable, "-I", "-S", str(Path(__file__).with_name("stand_in.py"))]
        for word in command:
            option, _, value = word.partition("=")
            if option == "--dashboard_agent_command":
                yield f"{option}={idle}"
            elif option == "--runtime_env_agent_command":
                yield f"{option}={subprocess.list2cmdline([*stand_in, node.node_ip_address, port])} {value}"
            else:
                yield word

    def start_monitor(self) -> None:
        """Start none."""

    def start_log_monitor(self) -> None:
        """Start none."""

    def start_api_server(self, **_: Any) -> None:
        """Start none."""
        self._webui_url = ""


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """Have ``ray.init`` start such a node.

    Yields:
        Nothing.
    """
    before = ray_node.Node
    ray_node.Node = _Node  # type: ignore[misc]
    try:
        yield
    finally:
        ray_node.Node = before  # type: ignore[misc]
