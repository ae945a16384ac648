"""Where the folders of a job are: on the machine that it was started on, and on those that share them with it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from genai_ray.enhance.plan.clip_target import ClipTarget
from genai_ray.errors import VideoError
from genai_ray.files import identify_folder, is_remote

__all__ = ["SharedFolders", "check_there", "find_shared_folders"]

_ALLOWED = "a folder that all nodes share, or a URI"


@dataclass(frozen=True, slots=True)
class SharedFolders:
    """The folders that a video's result and its segments go to, as the machine has them that the job was started on.

    Each is a path and its identity: a node may have another folder of the same name. Of a URI there is none: every node reaches it.
    """

    output: tuple[str, str] | None = None
    """Where the result goes."""
    work: tuple[str, str] | None = None
    """Where segments go."""

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

    def check(self) -> None:
        """Say which node lacks a folder that it must have.

        Raises:
            VideoError: If this one does.
        """
        for folder in (self.output, self.work):
            if folder is not None and not _is_here(folder):
                got = (
                    f"{folder[0]}: this folder of the job's machine is not there for Ray on node {os.uname().nodename}"
                )
                raise VideoError(got, _ALLOWED, "Choose one that is the same for this process and Ray's.")


def find_shared_folders(target: ClipTarget) -> SharedFolders:
    """Find the folders that a video's result and its segments go to, as far as they are there already.

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
    """Say which node lacks an input.

    Args:
        source: Path or URI; of a URI that is not asked.

    Raises:
        VideoError: If this one does.
    """
    if not is_remote(source) and not os.path.exists(source):
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
        os.listdir(
            parent
        )  # NFS believes for half a minute that a folder is not there which another node has made since, but for this
    return bool(identity) and identify_folder(path) == identity
