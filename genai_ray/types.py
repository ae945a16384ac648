"""Values that every other module shares: enums, results, and the frame contract.

Frames are always C-contiguous RGB, ``(N, H, W, 3)``; one frame is ``(H, W, 3)``. dtype is ``uint8`` in [0, 255],
``uint16`` in [0, 65535] or ``float32`` in [0, 1]; results have the dtype of the input. Arrays may be read-only (Arrow's
and Ray's are) and are never written in place. The module does not know any runtime.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from genai_ray.display import describe_fields, format_array, to_html
from genai_ray.errors import ConfigError, InvalidInputError

__all__ = [
    "FRAME_DTYPES",
    "CheckLevel",
    "Deinterlace",
    "FieldOrder",
    "Fit",
    "Frames",
    "InferenceResult",
    "ModelBackend",
    "ModelPrecision",
    "ModelPreset",
    "ModelTask",
    "ParamPicture",
    "Params",
    "PictureFormat",
    "SceneDetector",
    "ValidationResult",
    "check_frames",
    "full_range",
    "parse_bit_rate",
    "parse_bytes",
    "parse_fraction",
    "take_fields",
    "take_word",
]

Frames = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]
"""Frames of the contract of this module."""

Params: TypeAlias = "Mapping[str, float | Sequence[float] | Frames | ParamPicture]"
"""Extra inputs of models by name: a number, the numbers of a vector, or a picture (H, W, 3)."""

FRAME_DTYPES: tuple[np.dtype[np.generic], ...] = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
"""The dtypes a frame may have."""


class ModelBackend(StrEnum):
    """The runtime that computes; values are the words of the command line."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    COREML = "coreml"
    DIRECTML = "directml"
    AUTO = "auto"


class ModelPrecision(StrEnum):
    """The requested number format of weights and arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    AUTO = "auto"


class ModelTask(StrEnum):
    """What a model does to frames; it decides on the shape of the output.

    ``upscaling`` (N, H, W, 3) -> (N, s*H, s*W, 3); ``denoising`` and ``low-light`` keep the size; ``interpolation``
    (N, H, W, 3) -> (N-1, H, W, 3), one frame between each pair of neighbours; ``background-removal`` gives a mask
    (N, H, W, 1); ``other`` is any ONNX model that is not an image model: only raw tensors.
    """

    UPSCALING = "upscaling"
    DENOISING = "denoising"
    INTERPOLATION = "interpolation"
    BACKGROUND_REMOVAL = "background-removal"
    LOW_LIGHT = "low-light"
    OTHER = "other"


class ModelPreset(StrEnum):
    """Which model of a task suits somebody who does not want to choose one by its id."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class PictureFormat(StrEnum):
    """How a picture is stored as a file of its own: PNG is exact, with 8 or 16 bits; JPEG is lossy, with 8 bits."""

    PNG = "png"
    JPEG = "jpeg"


class CheckLevel(StrEnum):
    """How closely ``enhance`` compares frames with those that they were made of.

    ``off`` not at all; ``default`` by means of blocks, with limits that only accidents pass; ``strict`` by every
    measure of ``genai_ray.quality.FrameMeasures`` but the seams of tiles, with the limits of ``SourceChecks``. Each
    level passes only what the one before it passes.
    """

    OFF = "off"
    DEFAULT = "default"
    STRICT = "strict"


class Deinterlace(StrEnum):
    """What ``enhance`` does with frames that consist of two fields of different times.

    ``auto``: frames that are flagged as interlaced become progressive, one for one; others stay as they are. ``off``:
    all stay as they are. ``frame``: every frame becomes progressive, whatever its flag. ``field``: every frame becomes
    two, one of the time of each field. ``ivtc``: film that was made into interlaced video gets its own frames back,
    four of five.
    """

    AUTO = "auto"
    OFF = "off"
    FRAME = "frame"
    FIELD = "field"
    IVTC = "ivtc"


class FieldOrder(StrEnum):
    """The field of an interlaced frame that is shown first: the one with the top line, or the one with the second."""

    TOP = "top"
    BOTTOM = "bottom"


class Fit(StrEnum):
    """How ``enhance`` puts a picture into a width and a height of another shape.

    ``inside``: the largest picture that has room, and no more pixels than that. ``pad``: the same between black bars.
    ``crop``: the middle of the smallest picture that covers both sides. ``stretch``: the whole picture out of shape.
    """

    INSIDE = "inside"
    PAD = "pad"
    CROP = "crop"
    STRETCH = "stretch"


class SceneDetector(StrEnum):
    """How ``enhance`` finds cuts, across which no frame is added.

    ``transnetv2``: by the network of this name, which finds fades and dissolves too. ``threshold``: where neighbouring
    frames are less similar than a threshold. ``auto``: by the network if it takes less than a tenth of the time in
    which frames are added.
    """

    AUTO = "auto"
    TRANSNETV2 = "transnetv2"
    THRESHOLD = "threshold"


_Word = TypeVar("_Word", bound=StrEnum)
_WORDS: dict[str, type[StrEnum]] = {
    kind.__name__: kind
    for kind in (CheckLevel, Deinterlace, FieldOrder, Fit, ModelBackend, ModelPrecision, ModelTask, SceneDetector)
}
_PLAIN: dict[str, tuple[type, str]] = {
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "text"),
}


def take_word(kind: type[_Word], value: Any, name: str) -> _Word:
    """Return the member of an enum that a word means.

    Args:
        kind: The enum.
        value: One of its members or values.
        name: Name of the argument, for the error.

    Returns:
        The member.

    Raises:
        ConfigError: If it is none of them.
    """
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{name}={value!r}", ", ".join(kind)) from None


def take_fields(options: Any) -> None:
    """Check the fields of a frozen dataclass by their annotations; words become members of their enums.

    Fields of other types than enums of this module, bool, int, float and str, or None beside them, are left alone.

    Args:
        options: The dataclass, while it is made.

    Raises:
        ConfigError: If the value of a field is of another type, or no word of its enum.
    """
    for field in fields(options):
        kind, _, rest = str(field.type).partition(" | ")
        value = getattr(options, field.name)
        if rest not in ("", "None") or (value is None and rest):
            continue
        if kind in _WORDS:
            object.__setattr__(options, field.name, take_word(_WORDS[kind], value, field.name))
        elif kind in _PLAIN:
            wanted, allowed = _PLAIN[kind]
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                raise ConfigError(f"{field.name}={value!r}", allowed + (" or None" if rest else ""))


@describe_fields
@dataclass(frozen=True, slots=True, eq=False)
class InferenceResult:
    """The result of one frame."""

    frame_index: int
    """Position of the frame in the input, counted from 0."""
    output: Frames
    """The result of this frame, one frame of the contract: (s*H, s*W, 3), or a mask (H, W, 1)."""
    latency_ms: float
    """Milliseconds from sending the frame's batch to its result, measured by the caller; always above 0."""

    def __repr__(self) -> str:
        return f"InferenceResult({self.frame_index}, {format_array(self.output)}, {self.latency_ms:.1f} ms)"


@describe_fields
@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Whether a result is good enough, and what was measured; what was not measured is None."""

    passed: bool
    """Whether every threshold is reached; ``failures`` is empty then."""
    psnr: float | None
    """Peak signal-to-noise ratio in dB over the dtype's full range, MSE over all values of all frames; ``inf`` for
    equal arrays. None without a reference."""
    score: float | None
    """``clamp(psnr / 100, 0, 1)``; 1.0 for ``inf``. None without a reference."""
    failures: tuple[str, ...] = ()
    """One sentence for each threshold that is not reached: measure, value, frame, threshold."""
    num_frames: int = 1
    """Frames that were measured; 1 for an array of other axes than (N, H, W, C)."""
    ssim: float | None = None
    """SSIM of Wang et al. 2004, the mean over all frames; measured if it has a threshold."""
    ms_ssim: float | None = None
    """MS-SSIM of Wang et al. 2003, the mean over all frames; measured if it has a threshold."""
    vmaf: float | None = None
    """VMAF, model ``vmaf_v0.6.1neg``, the mean over all frames; measured if it has a threshold."""
    num_invalid: int = 0
    """Values of the result that are NaN, infinite or outside [0, 1]."""
    consistency_db: float | None = None
    """Lowest of any frame; see ``genai_ray.quality.FrameMeasures`` for this and the following."""
    colour_shift: float | None = None
    """Highest of any frame, a share of full range."""
    block_shift: float | None = None
    """Highest of any frame, a share of full range."""
    contrast: float | None = None
    """Farthest from 1 of any frame, a ratio."""
    clipped: float | None = None
    """Highest of any frame, a share of values."""
    flicker: float | None = None
    """Highest of any frame, a share of full range."""
    seam: float | None = None
    """Highest of any frame, a share of full range."""
    notes: tuple[str, ...] = ()
    """What a person should know of these numbers, such as VMAF of HDR."""

    def _measured(self) -> list[tuple[str, object]]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        measured = ((name, value) for name, value in values if value is not None and value != ())
        return [(name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in measured]

    def __repr__(self) -> str:
        return f"ValidationResult({', '.join(f'{name}={value}' for name, value in self._measured())})"

    def _repr_html_(self) -> str:
        return to_html("ValidationResult", self._measured())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ParamPicture:
    """A picture as an extra input of a model; hashable, and equal to others with the same pixels.

    Raises:
        InvalidInputError: If the pixels are not one frame of the contract.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """RGB, (H, W, 3); float32 in [0, 1] is rounded to 16 bits. It becomes an array of its own, which is read-only."""
    digest: str = ""
    """sha256 of its size, dtype and pixels, hexadecimal; always computed."""

    def __post_init__(self) -> None:
        pixels = check_frames(self.pixels)[0]
        if np.ndim(self.pixels) != 3:
            raise InvalidInputError(f"{len(self.pixels)} frames", "one picture, (H, W, 3)")
        pixels = np.rint(pixels * 65535.0).astype(np.uint16) if pixels.dtype == np.float32 else pixels.copy()
        pixels.flags.writeable = False
        object.__setattr__(self, "pixels", pixels)
        facts = f"{pixels.shape} {pixels.dtype.name} ".encode()
        object.__setattr__(self, "digest", hashlib.sha256(facts + pixels.tobytes()).hexdigest())

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        height, width, _ = self.pixels.shape
        return width, height

    def resized(self, width: int, height: int) -> ParamPicture:
        """Resize it, whatever its shape: linear interpolation, with a filter that is wider the more it is reduced.

        Args:
            width: In pixels.
            height: In pixels.

        Returns:
            A picture of the same dtype; itself if it has that size.
        """
        if self.size == (width, height):
            return self
        rows, columns = (_linear_weights(*sides) for sides in zip(self.pixels.shape[:2], (height, width), strict=True))
        values = np.einsum("yr,rcx,zc->yzx", rows, self.pixels, columns, optimize=True)
        return ParamPicture(np.rint(values).astype(self.pixels.dtype))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParamPicture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return "picture of {}x{}".format(*self.size)


def _linear_weights(size: int, wanted: int) -> npt.NDArray[np.float32]:
    """Return the weights (wanted, size) of a triangle around each pixel's centre; each row adds up to 1."""
    centres = (np.arange(wanted)[:, None] + 0.5) * size / wanted
    weights = np.maximum(1 - np.abs(np.arange(size) + 0.5 - centres) / max(size / wanted, 1.0), 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def full_range(dtype: npt.DTypeLike) -> float:
    """Return the largest value of the frame contract's range for a dtype: 255, 65535 or 1.

    Args:
        dtype: One of ``FRAME_DTYPES``.

    Returns:
        The upper end of the value range; the lower end is always 0.

    Raises:
        InvalidInputError: If the dtype is not one of ``FRAME_DTYPES``.
    """
    kind = np.dtype(dtype)
    if kind not in FRAME_DTYPES:
        raise InvalidInputError(
            f"frames of dtype {kind}", "uint8, uint16 or float32", "Convert them first, with rounding and clamping."
        )
    return 1.0 if kind == np.float32 else float(np.iinfo(kind).max)


def check_frames(frames: object, *, channels: tuple[int, ...] = (3,)) -> npt.NDArray[np.generic]:
    """Check frames against the contract, and add the batch axis to a single frame.

    Args:
        frames: Array (N, H, W, C) or (H, W, C), uint8, uint16 or float32, with at least one pixel; may be read-only.
        channels: The allowed values of C.

    Returns:
        A C-contiguous array (N, H, W, C) of the same dtype; a view of ``frames`` if that is contiguous.

    Raises:
        InvalidInputError: If it is not an array, its rank, channels or dtype are wrong, it is empty, or float values
            are NaN, infinite or outside [0, 1].
    """
    if not isinstance(frames, np.ndarray):
        raise InvalidInputError(f"frames of type {type(frames).__name__}", "a numpy array", "Use numpy.asarray(image).")
    wanted = " or ".join(map(str, channels))
    if frames.ndim not in (3, 4) or frames.shape[-1] not in channels:
        raise InvalidInputError(
            f"frames of shape {frames.shape}",
            f"(N, H, W, {wanted}) or (H, W, {wanted})",
            "Channels come last, in the order RGB.",
        )
    limit = full_range(frames.dtype)
    if frames.size == 0:
        raise InvalidInputError(f"empty frames of shape {frames.shape}", "at least one frame of at least one pixel")
    if frames.dtype == np.float32:
        low, high = float(frames.min()), float(frames.max())
        if not (low >= 0.0 and high <= limit):  # NaN fails this too
            raise InvalidInputError(
                f"float32 frames with values from {low} to {high}",
                "finite values in [0, 1]",
                "Divide and clip them first.",
            )
    return np.ascontiguousarray(frames if frames.ndim == 4 else frames[None])


_BYTE_UNITS = {"b": 1} | {
    f"{letter}{end}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for end, base in (("b", 1000), ("ib", 1024))
}


_FRACTION = re.compile(r"[+-]?[0-9]{0,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,2})?(/[0-9]{1,20})?", re.ASCII | re.IGNORECASE)
"""Numbers that are short when they are written out: 1e999999999 is not."""


def parse_fraction(word: str | float | Fraction) -> Fraction | None:
    """Read a number exactly.

    Args:
        word: A number or a fraction, such as ``1.5``, ``60`` or ``60000/1001``.

    Returns:
        The number; None if it is none, is not finite, or has more than 20 digits or two of an exponent.
    """
    text = str(word).strip()
    if not _FRACTION.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def parse_bytes(size: int | str, what: str = "max_memory_bytes") -> int:
    """Read a number of bytes that people write with a unit.

    Args:
        size: A whole number of bytes, or text such as ``2GB`` (2 * 1000**3) or ``512 MiB`` (512 * 1024**2), in any
            case; text without a unit is a number of bytes.
        what: Name of the option, for the error.

    Returns:
        Bytes, at least 1.

    Raises:
        ConfigError: If it is neither, or less than 1.
    """
    number, unit = (str(size), "b") if isinstance(size, int) else ("", "")
    if isinstance(size, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", size.lower())):
        number, unit = found[1], found[2] or "b"
    if isinstance(size, bool) or unit not in _BYTE_UNITS:
        raise ConfigError(f"{what}={size}", "bytes as a whole number, or with a unit, such as 2GB or 512MiB")
    num_bytes = int(Fraction(number) * _BYTE_UNITS[unit])
    if num_bytes < 1:
        raise ConfigError(f"{what}={size}", "more than 0")
    return num_bytes


_BIT_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}


def parse_bit_rate(rate: int | str, what: str) -> int:
    """Read a number of bits per second that people write with a unit.

    Args:
        rate: A whole number of bits per second, or text such as ``4M`` (4 * 1000**2) or ``4000k``, in any case.
        what: Name of the option, for the error.

    Returns:
        Bits per second, at least 1.

    Raises:
        ConfigError: If it is neither, or less than 1.
    """
    allowed = "bits per second as a whole number, or with a unit, such as 4M or 4000k"
    text = "" if isinstance(rate, bool) else str(rate)
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]?)\s*", text.lower(), re.ASCII)
    if found is None:
        raise ConfigError(f"{what}={rate}", allowed)
    bits = Fraction(found[1]) * _BIT_UNITS[found[2]]
    if bits.denominator != 1:
        raise ConfigError(f"{what}={rate}", allowed)
    if bits < 1:
        raise ConfigError(f"{what}={rate}", "more than 0")
    return int(bits)
