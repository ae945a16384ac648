"""Where the folders of a job are: on the machine that it was started on, and on those that share them with it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from genai_ray.enhance.targets import Target
from genai_ray.errors import VideoError
from genai_ray.files import identify_folder, is_remote

__all__ = ["Home", "check_there", "find_home", "is_there"]


@dataclass(frozen=True, slots=True)
class Home:
    """The folders that a video's result and its segments go to, as the machine has them that the job was started on."""

    folders: tuple[tuple[str, str], ...] = ()
    """Path and identity of each; a node may have another folder of the same name. URIs are none: every node reaches them."""

    def is_here(self) -> bool:
        """Tell whether this machine has the same ones.

        Returns:
            Whether all are.
        """
        return all(identify_folder(folder) == identity for folder, identity in self.folders)


def find_home(target: Target) -> Home:
    """Find the folders that a video's result and its segments go to, as far as they are there already.

    Args:
        target: The video.

    Returns:
        The folders as this machine has them.
    """
    places = (os.path.dirname(target.place) if not is_remote(target.place) else "", target.work_dir)
    folders = sorted({_deepest(place) for place in places if place and not is_remote(place)})
    return Home(tuple((folder, identify_folder(folder)) for folder in folders))


def is_there(place: str) -> bool:
    """Tell whether this machine has a file.

    Args:
        place: Path or URI.

    Returns:
        Whether it is there; of a URI that is not asked.
    """
    return is_remote(place) or os.path.exists(place)


def check_there(source: str) -> None:
    """Say which node lacks an input.

    Args:
        source: Path or URI.

    Raises:
        VideoError: If this one does.
    """
    if not is_there(source):
        got = f"{source}: the input is not there on node {os.uname().nodename}"
        raise VideoError(got, "a folder that all nodes share, or a URI", "Move it, or run the job where it is.")


def _deepest(folder: str) -> str:
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder
