"""What the catalog knows of one model: ``ModelSpec`` and its parts, checked by pydantic as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from genai_ray.types import ModelBackend, ModelTask

__all__ = ["ModelSpec", "ParamSpec", "TensorSpec"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One image tensor of a model: how frames of the contract become it, or it becomes frames."""

    name: str | None = None
    """Name in the graph; None means the tensor at this position."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of the axes."""
    channels: int = 3
    """Number of channels; 1 for a mask or a luma model."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """The values that black and white have in the tensor, before ``mean`` and ``std``."""
    mean: tuple[float, ...] | None = None
    """Per channel, subtracted after scaling into ``value_range``; None for none."""
    std: tuple[float, ...] | None = None
    """Per channel, divided by after ``mean``; None for none."""
    height: int | None = None
    """Height in pixels where the graph fixes it; None where it is free."""
    width: int | None = None
    """Width in pixels where the graph fixes it; None where it is free."""


class ParamSpec(_Frozen):
    """One extra scalar input of a model, such as FFDNet's sigma."""

    default: float
    """Value used when the caller gives none, in the model's own unit."""
    minimum: float
    """Smallest value that makes sense to the model."""
    maximum: float
    """Largest value that makes sense to the model."""
    description: str = ""
    """What it does, with its unit."""


class ModelSpec(_Frozen):
    """Everything the engine needs to know of one model; one YAML file of ``configs/models`` is one of these."""

    model_id: str
    """Canonical id, lower case; for a file given by path, that path."""
    aliases: tuple[str, ...] = ()
    """Other words that mean this model."""
    task: ModelTask = ModelTask.OTHER
    """What it does, and with it the shape law."""
    description: str = ""
    """One sentence for a person choosing a model: which net this really is."""
    file: str
    """File name within ``genai_ray/assets`` or the user's model folder, or an absolute path."""
    url: str | None = None
    """Where ``models pull`` gets it; None for a packaged model."""
    size_bytes: int | None = None
    """Size of the file; None for a file given by path."""
    sha256: str | None = None
    """Hash that the file must have; None for a file given by path."""
    licence: str = ""
    """SPDX expression of the weights' licence."""
    source: str = ""
    """Where the weights come from."""
    inputs: tuple[TensorSpec, ...] = ()
    """The image inputs in order: one, or two neighbours for interpolation; none for a model that takes no image."""
    outputs: tuple[TensorSpec, ...] = ()
    """The image output; further outputs of the graph are left alone."""
    params: dict[str, ParamSpec] = {}
    """Extra scalar inputs by their name in the graph."""
    scale: Annotated[int, Field(ge=1)] = 1
    """Output pixels per input pixel along each axis."""
    size_multiple: Annotated[int, Field(ge=1)] = 1
    """Height and width handed to the model must be multiples of this; frames are padded and cropped back."""
    min_size_px: Annotated[int, Field(ge=1)] = 1
    """Smallest height and width the model takes; smaller frames are padded and cropped back."""
    receptive_field_px: int | None = None
    """Radius in input pixels that an output pixel depends on; None where it is the whole frame (no tiling)."""
    tile_stride: Annotated[int, Field(ge=1)] = 1
    """Tile origins must be multiples of this for tiles to equal the whole."""
    batchable: bool = True
    """Whether N > 1 frames in one run equal N single runs bit for bit; fixed batch axes of 1 are freed when so."""
    backends: tuple[ModelBackend, ...] = (ModelBackend.ONNX,)
    """Backends it is known to run on."""
    memory_bytes: int | None = None
    """Estimate of a loaded session's bytes with one 640x360 frame in flight; None where nothing is known."""
    unsure: tuple[str, ...] = ()
    """What inspection could not find out for certain, one sentence each; empty for catalog models."""

    @property
    def is_image_model(self) -> bool:
        """Whether frames of the contract can go through it."""
        return bool(self.inputs and self.outputs)

    @property
    def is_fixed_size(self) -> bool:
        """Whether the graph fixes the height or width of its frames: for masks frames are resized to it, for anything else they are tiled to it."""
        return bool(self.inputs) and (self.inputs[0].height is not None or self.inputs[0].width is not None)

    @property
    def is_resized(self) -> bool:
        """Whether frames are resized to the graph's fixed size, and masks back."""
        return self.is_fixed_size and self.task is ModelTask.BACKGROUND_REMOVAL

    @property
    def is_tileable(self) -> bool:
        """Whether tiles equal the whole frame bit for bit."""
        return (
            self.receptive_field_px is not None and not self.is_fixed_size and self.task is not ModelTask.INTERPOLATION
        )

    @property
    def is_path(self) -> bool:
        """Whether this model was given as a file rather than by an id."""
        return Path(self.file).is_absolute()
