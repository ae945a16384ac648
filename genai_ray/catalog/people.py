"""Options of what the endpoint has for people: pictures, video jobs, and what these may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["PeopleServing"]


class PeopleServing(BaseModel):
    """What pictures and videos may be sent, and where video jobs are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_image_pixels: Annotated[int, Field(gt=0)] = 32 * 1024**2
    """Most pixels of a picture that is sent."""
    max_result_pixels: Annotated[int, Field(gt=0)] = 128 * 1024**2
    """Most pixels of a picture that is answered."""
    videos_folder: str | None = None
    """Folder of video jobs, readable and writable from every node; None for ``genai_ray/videos`` in the user's cache folder."""
    max_video_bytes: Annotated[int, Field(gt=0)] = 2 * 1024**3
    """Most bytes of a video that is sent or fetched."""
    max_videos: Annotated[int, Field(gt=0)] = 32
    """Most videos that are being sent, wait or run; more are told to come again."""
    max_videos_bytes: Annotated[int, Field(gt=0)] = 32 * 1024**3
    """Most bytes of them together. One counts from its first byte, with the length that its request says; one whose
    length is not said, or that is fetched, as the largest."""
    videos_at_once: Annotated[int, Field(gt=0)] = 2
    """Jobs that run at the same time."""
    keep_videos_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    """Seconds that a job and its result are kept after its end."""
    keep_videos: Annotated[int, Field(gt=0)] = 1000
    """Most jobs that are kept after their end; the oldest goes first."""
    keep_videos_bytes: Annotated[int, Field(gt=0)] = 64 * 1024**3
    """Most bytes of their results together; the last result is kept whatever its size."""
    allowed_uris: tuple[Annotated[str, Field(pattern=r"^[a-z0-9+.-]+://")], ...] = ()
    """Prefixes of URIs that videos may be fetched from, such as ``s3://bucket/clips/``; none by default."""

    @model_validator(mode="after")
    def _check(self) -> PeopleServing:
        if self.max_videos_bytes < self.max_video_bytes:
            raise ValueError(
                f"max_videos_bytes={self.max_videos_bytes} is less than max_video_bytes={self.max_video_bytes}"
            )
        return self
