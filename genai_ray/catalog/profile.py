"""Engine profiles: a name for a set of options, one YAML file of ``configs/engine`` each."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from genai_ray.catalog.files import read_profile
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["EngineProfile", "load_profile"]


class EngineProfile(BaseModel):
    """Options that suit a kind of machine; each is overridden by its own option of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the profile."""
    description: str = ""
    """What it is for."""
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Budget of the model cache; None for automatic."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Frames handed to a session at a time."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Encoder threads of one segment."""
    segment_frames: Annotated[int, Field(ge=1)] = 128
    """Most frames in a segment."""
    backend: ModelBackend = ModelBackend.ONNX
    """The runtime."""
    precision: ModelPrecision = ModelPrecision.FP32
    """The number format."""


def load_profile(name: str) -> EngineProfile:
    """Read a profile.

    Args:
        name: Name of a packaged profile, or the path of a YAML file.

    Returns:
        The profile.

    Raises:
        ConfigError: If there is no such profile, or a field of it is wrong.
    """
    return read_profile("engine", name, EngineProfile)
