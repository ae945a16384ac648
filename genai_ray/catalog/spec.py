"""``ModelSpec``: everything that the engine needs to know about one model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from genai_ray.display import describe_fields
from genai_ray.errors import InvalidInputError
from genai_ray.types import Frames, ModelBackend, ModelPreset, ModelTask, ParamPicture, full_range

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


_Numbers: TypeAlias = float | tuple[float, ...]

ParamValue: TypeAlias = _Numbers | ParamPicture
"""A number, the numbers of a vector, or a picture."""

MAX_PARAM_PICTURE_PX = 512
"""Longest side of a picture for an input of any size: what networks of style were trained with, and a bound for the
memory of a run."""


class ParamSpec(_Frozen):
    """One extra input of a model that is no frame.

    A number, such as FFDNet's sigma, a vector of numbers, or a picture, such as one whose style is taken.
    """

    default: _Numbers
    """Value if the caller gives none, in the model's own unit. For a picture, which users must give, the grey in [0, 1]
    of the one that models are tried with."""
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
    picture: TensorSpec | None = None
    """How a picture becomes the model's input, whose name is that of the param; it is resized to the height and width
    that the graph fixes, whatever its shape, and its longest side to 512 px at most if it fixes neither. None for
    numbers."""
    description: str = ""
    """What it does, with its unit."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.full_scale is not None and self.maximum >= 1:
            raise ValueError(f"full_scale needs a maximum below 1, not {self.maximum:g}: 1 would have two meanings")
        given = len(self.default) if isinstance(self.default, tuple) else None
        if given != self.size:
            raise ValueError(f"a default of {given or 'one'} numbers for a param of size {self.size}")
        if self.picture is not None and (self.picture.channels != 3 or (self.size, self.full_scale) != (None, None)):
            raise ValueError("a picture has three channels, and neither a size nor a full_scale")
        return self

    def read(self, name: str, value: float | Sequence[float] | Frames | ParamPicture) -> ParamValue:
        """Check a value that a user gave, and convert it. A value that was converted before stays as it is.

        Args:
            name: Name of the param, for the error.
            value: In the model's own unit, or on the scale of ``full_scale``; any sequence for a vector; for a picture
                a ``ParamPicture``, or RGB (H, W, 3) as uint8, uint16 or float32 in [0, 1].

        Returns:
            The value in the model's own unit; a picture in the size of the model's input.

        Raises:
            InvalidInputError: If it is out of its limits, a vector has another size, or it is no picture for a picture.
        """
        if self.picture is not None:
            return self._read_picture(name, value)
        try:
            given = _numbers_of(value)
        except (TypeError, ValueError):
            raise InvalidInputError(f"param {name}={str(value)[:40]}", self.describe_limits()) from None
        if self.size == 1 and not isinstance(given, tuple):
            given = (given,)
        if (len(given) if isinstance(given, tuple) else None) != self.size:
            got = f"{len(given)} numbers" if isinstance(given, tuple) else f"{given:g}"
            raise InvalidInputError(f"param {name}={got}", self.describe_limits())
        own = self._in_own_unit(given)
        for number, converted in zip(_listed(given), _listed(own), strict=True):
            if not self.minimum <= converted <= self.maximum:
                raise InvalidInputError(f"param {name}={number:g}", self.describe_limits())
        return own

    def _read_picture(self, name: str, value: Any) -> ParamPicture:
        given = value
        if isinstance(value, np.ndarray):
            try:
                given = ParamPicture(value)
            except InvalidInputError as exc:
                raise InvalidInputError(f"param {name}={exc.got}", self.describe_limits()) from exc
        if not isinstance(given, ParamPicture):
            do = f"Pass --param {name}=@FILE.png, an array (H, W, 3) in Python, or data:image/png;base64,... over HTTP."
            raise InvalidInputError(f"param {name}={str(value)[:40]}", self.describe_limits(), do)
        return self._fit(given)

    def _fit(self, given: ParamPicture) -> ParamPicture:
        """Resize a picture for the model's input."""
        width, height = given.size
        fixed = self.picture or TensorSpec()
        shrunk = min(MAX_PARAM_PICTURE_PX / max(width, height), 1.0)
        return given.resized(
            fixed.width or max(round(width * shrunk), 1), fixed.height or max(round(height * shrunk), 1)
        )

    def in_own_unit(self, value: float | Sequence[float] | Frames | ParamPicture) -> ParamValue:
        """Convert a value that a user gave, and that ``read`` accepts.

        Args:
            value: In the model's own unit, or on the scale of ``full_scale``.

        Returns:
            The value in the model's own unit.
        """
        if self.picture is not None:
            return self._read_picture("", value)
        return self._in_own_unit(_numbers_of(value))

    def _in_own_unit(self, given: _Numbers) -> _Numbers:
        return tuple(map(self._convert, given)) if isinstance(given, tuple) else self._convert(given)

    def _convert(self, number: float) -> float:
        return number / self.full_scale if self.full_scale is not None and number >= 1 else number

    def to_array(
        self, value: ParamValue | None = None, *, side_px: int = MAX_PARAM_PICTURE_PX
    ) -> npt.NDArray[np.float32]:
        """Return what the input of ``fuse_frames`` gets for a value.

        Args:
            value: From ``read``; None for the default.
            side_px: Height and width of the default picture, as far as the graph fixes none, in pixels.

        Returns:
            float32: [] for a number, [size] for a vector, (H, W, 3) in [0, 1] for a picture.
        """
        if isinstance(value, ParamPicture):
            return np.asarray(value.pixels / full_range(value.pixels.dtype), np.float32)
        if value is None and self.picture is not None:
            sides = self.picture.height or side_px, self.picture.width or side_px
            return np.full((*sides, 3), self.default, np.float32)
        return np.asarray(self.default if value is None else value, np.float32)

    def describe_default(self) -> str:
        """Return the default, rounded.

        Returns:
            Such as ``0.0588``, ``0.5,0.5`` for a vector, or ``none`` for a picture.
        """
        if self.picture is not None:
            return "none"
        return ",".join(f"{number:.3g}" for number in _listed(self.default))

    def describe_limits(self) -> str:
        """Return what is allowed, rounded.

        Returns:
            Such as ``from 0 to 0.294, or 1 to 75 of 255``, or ``26 numbers, each from 0 to 1``.
        """
        if self.picture is not None:
            width, height = self.picture.width, self.picture.height
            if not (width and height):
                return f"a picture, whose sides become at most {MAX_PARAM_PICTURE_PX} px"
            return f"a picture, which becomes {width}x{height}"
        text = f"from {self.minimum:.3g} to {self.maximum:.3g}"
        if self.size is not None:
            text = f"{self.size} numbers, each {text}"
        if self.full_scale is None:
            return text
        return f"{text}, or 1 to {self.maximum * self.full_scale:.3g} of {self.full_scale:.3g}"


def _numbers_of(value: Any) -> _Numbers:
    """Return a tuple for anything that has several values, and a number for the rest."""
    is_vector = isinstance(value, Iterable) and not isinstance(value, str)
    return tuple(map(float, value)) if is_vector else float(value)


def _listed(value: _Numbers) -> tuple[float, ...]:
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
    """Extra inputs that are no frames, by their name in the graph."""
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
    def picture_params(self) -> tuple[str, ...]:
        """Names of the extra inputs that are pictures, which users must give."""
        return tuple(name for name, param in self.params.items() if param.picture is not None)

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
