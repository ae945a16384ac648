"""Options of the endpoint's routes for pictures and videos: what may be sent, and where video jobs are kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["WebOptions"]


class WebOptions(BaseModel):
    """The key ``people`` of a serve profile: limits of pictures and videos, and where video jobs are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_image_pixels: Annotated[int, Field(gt=0)] = 32 * 1024**2
    """Most pixels of an uploaded picture."""
    max_result_pixels: Annotated[int, Field(gt=0)] = 128 * 1024**2
    """Most pixels of a resulting picture."""
    videos_folder: str | None = None
    """Folder of video jobs that every node can use; None for ``genai_ray/videos`` in the user's cache folder."""
    max_video_bytes: Annotated[int, Field(gt=0)] = 2 * 1024**3
    """Most bytes of an uploaded or fetched video."""
    max_videos: Annotated[int, Field(gt=0)] = 32
    """Most videos that are being sent, wait or run; further ones are refused with 429."""
    max_videos_bytes: Annotated[int, Field(gt=0)] = 32 * 1024**3
    """Most bytes of these videos in all. An upload counts with its ``Content-Length`` from its first byte; one without
    it, or a video to fetch, counts with ``max_video_bytes``."""
    videos_at_once: Annotated[int, Field(gt=0)] = 2
    """Video jobs that run at the same time."""
    keep_videos_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    """Seconds for which a finished job and its result are kept."""
    keep_videos: Annotated[int, Field(gt=0)] = 1000
    """Most finished jobs that are kept; the oldest is removed first."""
    keep_videos_bytes: Annotated[int, Field(gt=0)] = 64 * 1024**3
    """Most bytes of results in all; the latest result is kept whatever its size."""
    allowed_uris: tuple[Annotated[str, Field(pattern=r"^[a-z0-9+.-]+://")], ...] = ()
    """Prefixes of URIs from which videos may be fetched, such as ``s3://bucket/clips/``; none by default."""

    @model_validator(mode="after")
    def _check(self) -> WebOptions:
        if self.max_videos_bytes < self.max_video_bytes:
            raise ValueError(
                f"max_videos_bytes={self.max_videos_bytes} is less than max_video_bytes={self.max_video_bytes}"
            )
        return self
