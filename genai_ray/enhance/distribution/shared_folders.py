"""What a job needs only if its nodes do not share its folders.

The job's own machine has the folders of results and segments. If a step starts on a node without them, it returns
``AWAY`` and runs again at home, on the job's own node; from then on videos are planned and joined at home. A segment
may still be made anywhere: its bytes are brought home.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.errors import VideoError
from genai_ray.files import find_source_facts, identify_folder, is_remote

__all__ = ["AWAY", "HomeNode", "SharedFolders", "check_there", "find_shared_folders"]

_log = logging.getLogger(__name__)

AWAY = "away"
"""What a step returns, having done nothing, on a node that lacks the folders of its video."""

_ALLOWED = "a folder that all nodes share, or a URI"


@dataclass(frozen=True, slots=True)
class SharedFolders:
    """The folders of a video's result and segments, as the job's own machine has them.

    Each is a path and its identity, because a node may have another folder of the same name. None for a URI: every node
    reaches it.
    """

    output: tuple[str, str] | None = None
    """Folder of the result."""
    work: tuple[str, str] | None = None
    """Folder of the segments."""

    def has_work(self) -> bool:
        """Tell whether this machine has the same folder of segments.

        Returns:
            Whether it has.
        """
        return _is_here(self.work)

    def is_here(self) -> bool:
        """Tell whether this machine has the same folders.

        Returns:
            Whether it has both.
        """
        return _is_here(self.output) and _is_here(self.work)

    def is_away(self, *, at_home: bool) -> bool:
        """Tell whether a step must run at home instead.

        Args:
            at_home: Whether this is the job's own node.

        Returns:
            Whether this is another node, and lacks a folder.

        Raises:
            VideoError: If this is the job's own node, and lacks a folder.
        """
        if not at_home:
            return not self.is_here()
        self.check()
        return False

    def check(self) -> None:
        """Refuse to go on without the folders.

        Raises:
            VideoError: If this machine lacks one; names the node.
        """
        for folder in (self.output, self.work):
            if not _is_here(folder) and folder is not None:
                raise VideoError(
                    f"{folder[0]}: this folder of the job's machine is not there for Ray on node {os.uname().nodename}",
                    _ALLOWED,
                    "Choose one that is the same for this process and Ray's.",
                )


class HomeNode:
    """The node that the job was started on, and the steps that run there because another node lacks the folders."""

    def __init__(self) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        nodes: Any = ray.nodes
        cpus = next((int(node["Resources"].get("CPU", 0)) for node in nodes() if node["NodeID"] == node_id), 0)
        self.is_needed = False
        """Whether some node lacks the folders, so that videos are planned and joined at home."""
        self.num_steps = 0
        """Steps that run at home now."""
        self.options = {
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
            "num_cpus": min(1, cpus),
        }
        """Options of a Ray task that runs at home."""
        self._max_steps = 2 * cpus + 2

    def has_room(self) -> bool:
        """Tell whether one more step may run at home.

        Returns:
            Whether there are not more of them than it has CPUs for.
        """
        return self.num_steps < self._max_steps

    def require(self) -> None:
        """Note that some node lacks the folders, and say so once."""
        if not self.is_needed:
            _log.warning(
                "not every node has the folders of this job: videos are planned and joined on this one, "
                "and segments are brought to it"
            )
        self.is_needed = True


def find_shared_folders(target: ClipTarget) -> SharedFolders:
    """Find the folders of a video's result and segments, or the nearest of their parents that exist.

    Args:
        target: The video.

    Returns:
        The folders as this machine has them.
    """
    return SharedFolders(
        None if is_remote(target.place) else _identified(os.path.dirname(target.place)),
        None if is_remote(target.work_dir) else _identified(target.work_dir),
    )


def check_there(source: str) -> None:
    """Refuse an input that this node lacks.

    Args:
        source: Path or URI; a URI is not checked.

    Raises:
        VideoError: If this node lacks it; names the node if there are others.
    """
    if is_remote(source) or find_source_facts(source) is not None:
        return
    nodes: Any = ray.nodes
    if not ray.is_initialized() or sum(node["Alive"] for node in nodes()) == 1:
        raise VideoError(f"{source}: no such file", do="Check the spelling and the folder.")
    raise VideoError(
        f"{source}: no such file on node {os.uname().nodename}", _ALLOWED, "Move it, or run the job where it is."
    )


def _identified(folder: str) -> tuple[str, str]:
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder, identify_folder(folder)


def _is_here(folder: tuple[str, str] | None) -> bool:
    if folder is None:
        return True
    path, identity = folder
    if not identify_folder(path) and os.path.isdir(parent := os.path.dirname(path)):
        # NFS remembers for half a minute that a folder is missing, even if another node has made it since.
        os.listdir(parent)
    return bool(identity) and identify_folder(path) == identity
