"""Everything that the endpoint has for people, put together: pictures, video jobs, the page."""

from __future__ import annotations

import logging
from pathlib import Path

from genai_ray.catalog import PeopleServing
from genai_ray.errors import GenAIRayError
from genai_ray.files import cache_folder
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.http.routes import Operation
from genai_ray.serve.web.pages import page_operations
from genai_ray.serve.web.pictures import picture_operations
from genai_ray.serve.web.videos import VideoDesk, video_operations

__all__ = ["people_operations", "resume_videos", "videos_folder"]

_log = logging.getLogger(__name__)


def videos_folder(chosen: str | None) -> Path:
    """Return where video jobs are kept.

    Args:
        chosen: What the profile says; None for ``genai_ray/videos`` in the user's cache folder.

    Returns:
        The folder, absolute; it may not exist yet.
    """
    return Path(chosen or cache_folder() / "videos").absolute()


def people_operations(engine: Engine) -> list[Operation]:
    """Return the part of the table of routes that is for people.

    Args:
        engine: What answers.

    Returns:
        The rows.
    """
    return [
        *page_operations(engine),
        *picture_operations(engine),
        *video_operations(engine, _desk(engine.profile.people)),
    ]


def resume_videos(options: PeopleServing) -> None:
    """Go on with the jobs that an earlier server left; waits for Ray, and belongs on a thread.

    Args:
        options: Where they are.
    """
    try:
        _desk(options).resume()
    except GenAIRayError as exc:
        _log.warning("video jobs do not go on before one is asked for: %s", exc)


def _desk(options: PeopleServing) -> VideoDesk:
    return VideoDesk(videos_folder(options.videos_folder), options)
