"""``ModelSpec``: everything that the engine needs to know about one model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genai_ray.display import describe_fields
from genai_ray.errors import InvalidInputError
from genai_ray.types import ModelBackend, ModelPreset, ModelTask

__all__ = ["ModelSpec", "ParamSpec", "ParamValue", "TensorSpec", "TileSpec"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One image tensor of a model, and how it is converted from or to frames."""

    name: str | None = None
    """Name in the graph; None means the tensor at this position."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of the axes."""
    channels: int = 3
    """Number of channels; 1 for a mask or a luma model."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Values of black and white in the tensor, before ``mean`` and ``std``."""
    mean: tuple[float, ...] | None = None
    """One value per channel, subtracted after scaling into ``value_range``; None for no subtraction."""
    std: tuple[float, ...] | None = None
    """One divisor per channel, applied after ``mean``; None for no division."""
    height: int | None = None
    """Height in pixels if the graph fixes it; None for any height."""
    width: int | None = None
    """Width in pixels if the graph fixes it; None for any width."""


ParamValue: TypeAlias = float | tuple[float, ...]
"""A number, or the numbers of a vector."""


class ParamSpec(_Frozen):
    """One extra input of a model that is no picture: a number, such as FFDNet's sigma, or a vector of numbers."""

    default: ParamValue
    """Value if the caller gives none, in the model's own unit."""
    minimum: float
    """Smallest sensible value, also of each number of a vector."""
    maximum: float
    """Largest sensible value, also of each number of a vector."""
    size: Annotated[int, Field(ge=1)] | None = None
    """How many numbers a vector has, such as the weights of styles; they fill the model's input in order. None for one
    number, which fills an input of any shape."""
    full_scale: Annotated[float, Field(gt=1)] | None = None
    """Users may also give the value on a scale with this maximum: 255 means that 15 is 15/255. Such values are 1 or
    more, so ``maximum`` must be below 1. None if there is no such scale."""
    description: str = ""
    """What it does, with its unit."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.full_scale is not None and self.maximum >= 1:
            raise ValueError(f"full_scale needs a maximum below 1, not {self.maximum:g}: 1 would have two meanings")
        given = len(self.default) if isinstance(self.default, tuple) else None
        if given != self.size:
            raise ValueError(f"a default of {given or 'one'} numbers for a param of size {self.size}")
        return self

    def read(self, name: str, value: float | Sequence[float]) -> ParamValue:
        """Check a value that a user gave, and convert it. A value that was converted before stays as it is.

        Args:
            name: Name of the param, for the error.
            value: In the model's own unit, or on the scale of ``full_scale``; any sequence for a vector.

        Returns:
            The value in the model's own unit.

        Raises:
            InvalidInputError: If it is out of its limits, or a vector has another size.
        """
        try:
            given = _numbers_of(value)
        except (TypeError, ValueError):
            raise InvalidInputError(f"param {name}={str(value)[:40]}", self.describe_limits()) from None
        if self.size == 1 and not isinstance(given, tuple):
            given = (given,)
        if (len(given) if isinstance(given, tuple) else None) != self.size:
            got = f"{len(given)} numbers" if isinstance(given, tuple) else f"{given:g}"
            raise InvalidInputError(f"param {name}={got}", self.describe_limits())
        own = self.in_own_unit(given)
        for number, converted in zip(_listed(given), _listed(own), strict=True):
            if not self.minimum <= converted <= self.maximum:
                raise InvalidInputError(f"param {name}={number:g}", self.describe_limits())
        return own

    def in_own_unit(self, value: float | Sequence[float]) -> ParamValue:
        """Convert a value that a user gave.

        Args:
            value: In the model's own unit, or on the scale of ``full_scale``.

        Returns:
            The value in the model's own unit.
        """
        given = _numbers_of(value)
        return tuple(map(self._convert, given)) if isinstance(given, tuple) else self._convert(given)

    def _convert(self, number: float) -> float:
        return number / self.full_scale if self.full_scale is not None and number >= 1 else number

    def describe_default(self) -> str:
        """Return the default, rounded.

        Returns:
            Such as ``0.0588``, or ``0.5,0.5`` for a vector.
        """
        return ",".join(f"{number:.3g}" for number in _listed(self.default))

    def describe_limits(self) -> str:
        """Return what is allowed, rounded.

        Returns:
            Such as ``from 0 to 0.294, or 1 to 75 of 255``, or ``26 numbers, each from 0 to 1``.
        """
        text = f"from {self.minimum:.3g} to {self.maximum:.3g}"
        if self.size is not None:
            text = f"{self.size} numbers, each {text}"
        if self.full_scale is None:
            return text
        return f"{text}, or 1 to {self.maximum * self.full_scale:.3g} of {self.full_scale:.3g}"


def _numbers_of(value: Any) -> ParamValue:
    """Return a tuple for anything that has several values, and a number for the rest."""
    is_vector = isinstance(value, Iterable) and not isinstance(value, str)
    return tuple(map(float, value)) if is_vector else float(value)


def _listed(value: ParamValue) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


class TileSpec(_Frozen):
    """Tiles whose halo is smaller than the receptive field.

    Results differ a little from those of whole frames, and depend on the size of the tiles, which is therefore always
    the same.
    """

    size_px: Annotated[int, Field(ge=1)]
    """Longest side of a tile in input pixels, halo included."""
    halo_px: Annotated[int, Field(ge=0)]
    """How far a tile reaches beyond the part that is kept, in input pixels."""
    error_levels: Annotated[float, Field(ge=0)] | None = None
    """Largest difference from the result of the whole frame, measured, in levels of 255; None if not measured."""


@describe_fields
class ModelSpec(_Frozen):
    """Everything the engine needs to know about one model; each YAML file of ``configs/models`` holds one spec."""

    model_id: str
    """Canonical id, lower case; the path, if the model was given by its path."""
    aliases: tuple[str, ...] = ()
    """Other names of the model."""
    task: ModelTask = ModelTask.OTHER
    """What the model does; it decides on the shape of the output."""
    presets: tuple[ModelPreset, ...] = ()
    """The presets of its task that mean this model."""
    description: str = ""
    """One sentence for people who choose a model: which network this is."""
    purpose: str = ""
    """What the model is for, and what it is not for; empty if that is not known."""
    file: str
    """File name within ``genai_ray/assets`` or the user's model folder, or an absolute path."""
    url: str | None = None
    """Where ``models pull`` downloads it; None for a packaged model."""
    size_bytes: int | None = None
    """Size of the file; None for a file given by path."""
    sha256: str | None = None
    """Hash that the file must have; None for a file given by path."""
    licence: str = ""
    """SPDX expression of the weights' licence."""
    source: str = ""
    """Origin of the weights."""
    inputs: tuple[TensorSpec, ...] = ()
    """The image inputs in order: one, or two neighbours for interpolation; empty for a model that takes no image."""
    outputs: tuple[TensorSpec, ...] = ()
    """The image output; further outputs of the graph are ignored."""
    params: dict[str, ParamSpec] = {}
    """Extra inputs that are no pictures, by their name in the graph."""
    scale: Annotated[int, Field(ge=1)] = 1
    """Output pixels per input pixel along each axis."""
    size_multiple: Annotated[int, Field(ge=1)] = 1
    """The model's input height and width must be multiples of this; frames are padded, and results cropped."""
    min_size_px: Annotated[int, Field(ge=1)] = 1
    """Smallest input height and width; smaller frames are padded, and results cropped."""
    receptive_field_px: int | None = None
    """Radius in input pixels on which an output pixel depends; None for the whole frame (no tiling)."""
    tile_stride: Annotated[int, Field(ge=1)] = 1
    """Origins of tiles must be multiples of this, so that tiles equal the whole frame."""
    tiles: TileSpec | None = None
    """Tiles with a smaller halo than ``receptive_field_px``; None for exact tiles, or for none if the radius is too
    large for them."""
    edge_px: Annotated[int, Field(ge=0)] = 0
    """Pixels by which frames are reflected on each side before the model gets them; results are cropped."""
    batchable: bool = True
    """Whether N > 1 frames in one run equal N single runs bit for bit; if so, fixed batch axes of 1 are freed."""
    backends: tuple[ModelBackend, ...] = (ModelBackend.ONNX,)
    """Backends that run it."""
    memory_bytes: int | None = None
    """Estimated bytes of a loaded session that computes one 640x360 frame; None if not known."""
    unsure: tuple[str, ...] = ()
    """What inspection could not find out for certain, one sentence each; empty for catalog models."""

    @model_validator(mode="after")
    def _check_tiles(self) -> Self:
        if self.tiles is None:
            return self
        if self.is_fixed_size or self.task is ModelTask.INTERPOLATION:
            raise ValueError("tiles are for models of single frames of any size")
        least = 2 * self.tiles.halo_px + 16 * self.tile_stride
        if self.tiles.size_px < least:
            raise ValueError(f"tiles with a halo of {self.tiles.halo_px} px need a size_px of {least} or more")
        return self

    @property
    def is_image_model(self) -> bool:
        """Whether it takes and returns frames."""
        return bool(self.inputs and self.outputs)

    @property
    def is_fixed_size(self) -> bool:
        """Whether the graph fixes the height or width of frames; frames are resized for masks, and tiled otherwise."""
        return bool(self.inputs) and (self.inputs[0].height is not None or self.inputs[0].width is not None)

    @property
    def is_resized(self) -> bool:
        """Whether frames are resized to the graph's fixed size, and masks resized back."""
        return self.is_fixed_size and self.task is ModelTask.BACKGROUND_REMOVAL

    @property
    def is_tileable(self) -> bool:
        """Whether tiles equal the whole frame bit for bit."""
        return (
            self.receptive_field_px is not None
            and self.tiles is None
            and not self.is_fixed_size
            and self.task is not ModelTask.INTERPOLATION
        )

    @property
    def is_path(self) -> bool:
        """Whether this model was given as a file rather than by an id."""
        return Path(self.file).is_absolute()
