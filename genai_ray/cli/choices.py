"""What the options of the commands share: groups of the help, closed sets, and how defaults are told.

This version has fewer backends and precisions than the package's enums name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.markup import escape

from genai_ray.errors import ConfigError
from genai_ray.types import (
    CheckLevel,
    Deinterlace,
    FieldOrder,
    Fit,
    ModelBackend,
    ModelPrecision,
    ModelPreset,
    ModelTask,
)

if TYPE_CHECKING:
    from genai_ray.catalog import JobProfile
    from genai_ray.types import ParamPicture

__all__ = [
    "PIPE",
    "AutoBackend",
    "AutoPrecision",
    "Backend",
    "Check",
    "Deinterlace",
    "FieldOrder",
    "Fit",
    "Group",
    "Manner",
    "Precision",
    "Preset",
    "ShownTask",
    "Task",
    "check_inputs",
    "choose_models",
    "flag",
    "load_profile",
    "option",
    "parse_devices",
    "parse_pairs",
    "parse_params",
    "words",
]

PIPE = "-"
"""The name of standard input and of standard output."""

Value = TypeVar("Value")

Check = CheckLevel
Preset = ModelPreset


class Group(StrEnum):
    """Groups of options in the help of ``enhance``, in their order there."""

    COMMON = "Common"
    TIME_AND_SIZE = "Time and size"
    MODEL = "Model"
    ENCODING = "Encoding"
    CLUSTER = "Cluster"
    ADVANCED = "Advanced"


class Backend(StrEnum):
    """Runtimes."""

    ONNX = ModelBackend.ONNX
    OPENVINO = ModelBackend.OPENVINO
    TENSORRT = ModelBackend.TENSORRT
    COREML = ModelBackend.COREML
    DIRECTML = ModelBackend.DIRECTML


class AutoBackend(StrEnum):
    """Runtimes of a command that can choose one."""

    AUTO = ModelBackend.AUTO
    ONNX = ModelBackend.ONNX
    OPENVINO = ModelBackend.OPENVINO
    TENSORRT = ModelBackend.TENSORRT
    COREML = ModelBackend.COREML
    DIRECTML = ModelBackend.DIRECTML


class AutoPrecision(StrEnum):
    """Number formats of a command that can choose one."""

    AUTO = ModelPrecision.AUTO
    FP32 = ModelPrecision.FP32
    FP16 = ModelPrecision.FP16
    BF16 = ModelPrecision.BF16


class Precision(StrEnum):
    """Number formats."""

    FP32 = ModelPrecision.FP32
    FP16 = ModelPrecision.FP16
    BF16 = ModelPrecision.BF16


class Task(StrEnum):
    """What models do to videos."""

    UPSCALING = ModelTask.UPSCALING
    DENOISING = ModelTask.DENOISING
    INTERPOLATION = ModelTask.INTERPOLATION
    BACKGROUND_REMOVAL = ModelTask.BACKGROUND_REMOVAL
    LOW_LIGHT = ModelTask.LOW_LIGHT


class ShownTask(StrEnum):
    """Those whose result is a picture of the same scene, which ``compare`` can show beside the source."""

    UPSCALING = ModelTask.UPSCALING
    DENOISING = ModelTask.DENOISING
    LOW_LIGHT = ModelTask.LOW_LIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a job is told."""

    as_json: bool
    """Whether standard output is one line of JSON instead of a table."""
    is_quiet: bool
    """Whether there is neither progress nor a table."""
    is_verbose: bool
    """Whether the table has notes about harmless findings too."""
    is_dry_run: bool
    """Whether only the plan is told, and nothing is written."""


def option(*names: str, help: str, group: Group | None = None, default: str = "", **others: Any) -> Any:
    """Declare an option.

    Args:
        names: Its spellings; by default the name of the parameter.
        help: What it does.
        group: Where the help lists it; None for the only group of a command with few options.
        default: What the help says the default is; empty to say nothing.
        others: As ``typer.Option``.

    Returns:
        What Typer reads from the annotation.
    """
    text = f"{help} {escape(f'[default: {default}]')}" if default else help
    return typer.Option(*names, help=text, rich_help_panel=group, show_default=False, **others)


flag = partial(option, metavar="")
"""An option without a value."""


def words(choices: type[StrEnum]) -> str:
    """List what a closed set has.

    Args:
        choices: The set.

    Returns:
        Such as ``fp32, fp16``.
    """
    return ", ".join(choices)


def check_inputs(inputs: Sequence[str], *, is_any_enough: bool = False) -> None:
    """Refuse inputs that are missing, before anything is started.

    Args:
        inputs: Paths, patterns and URIs; the latter are not looked for.
        is_any_enough: Whether one that is there is enough: of several videos, one that is missing fails by itself.

    Raises:
        ConfigError: If they are missing.
    """
    from genai_ray.files import find_missing, is_numbered, list_numbered, to_place

    named = [name for name in inputs if name != PIPE]
    missing = [
        name for name in find_missing(named) if not (is_numbered(to_place(name)) and list_numbered(to_place(name)))
    ]
    if missing and not (is_any_enough and len(missing) < len(inputs)):
        raise ConfigError(f"{', '.join(missing)}: no such file or folder", do="Check the spelling and the folder.")


def choose_models(model: list[str] | None, preset: Preset | None, task: Task | None) -> list[str]:
    """Return the models that the options name.

    Args:
        model: Words of --model.
        preset: Word of --preset.
        task: Word of --task.

    Returns:
        Their names, as they are given.

    Raises:
        ConfigError: If --task stands without --preset, or --model beside it.
    """
    from genai_ray.catalog import ModelCatalog

    if preset is None:
        if task is not None:
            raise ConfigError("--task without --preset", do="Pass --preset fast, balanced or best, or only --model.")
        return model or []
    if model:
        raise ConfigError("--model and --preset", "one of them")
    return [ModelCatalog.default().preset(ModelTask(task or Task.UPSCALING), ModelPreset(preset))]


def load_profile(profile: str | None) -> JobProfile:
    """Read the profile of a job.

    Args:
        profile: Word of --profile; None for the defaults.

    Returns:
        The profile.

    Raises:
        ConfigError: If there is no such profile, or it is wrong.
    """
    from genai_ray.catalog import JobProfile

    return JobProfile.load(profile) if profile else JobProfile(name="default")


def parse_devices(word: str) -> int | None:
    """Read a number of devices.

    Args:
        word: Word of --devices.

    Returns:
        The number; None for all.

    Raises:
        ConfigError: If it is neither.
    """
    if word == "all":
        return None
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"--devices {word}", "all, or a number of 1 or more")
    return int(word)


def parse_params(pairs: list[str] | None, refused: str) -> dict[str, float | tuple[float, ...] | ParamPicture]:
    """Read options of the form NAME=VALUE: a number or a fraction such as 15/255, numbers with commas, or @FILE.

    A file is one of numpy.save with numbers, NAME.npy, or a picture, NAME.png, .jpg, .jpeg or .webp.

    Args:
        pairs: The words; None for none.
        refused: Name of the option, for the error.

    Returns:
        The values by name; tuples for vectors.

    Raises:
        ConfigError: If a word has another form, or a file cannot be read.
    """
    allowed = (
        "NAME=VALUE with a number, such as sigma=15, numbers for a vector, such as 0,0.5,1, or its @FILE.npy, or a "
        "picture as @FILE.png"
    )
    return parse_pairs(pairs, _parse_value, refused, allowed)


def parse_pairs(
    pairs: list[str] | None, convert: Callable[[str], Value], refused: str, allowed: str
) -> dict[str, Value]:
    """Read options of the form NAME=VALUE.

    Args:
        pairs: The words; None for none.
        convert: Reads a value; raises ValueError for a wrong one.
        refused: Name of the option, for the error.
        allowed: What is allowed, for the error.

    Returns:
        The values by name.

    Raises:
        ConfigError: If a word has another form.
    """
    parsed = {}
    for pair in pairs or ():
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise ConfigError(f"{refused} {pair}", allowed)
        try:
            parsed[name.strip()] = convert(value)
        except ConfigError:
            raise
        except ValueError as exc:
            raise ConfigError(f"{refused} {pair}", allowed) from exc
    return parsed


def _parse_value(word: str) -> float | tuple[float, ...] | ParamPicture:
    if word.startswith("@"):
        from genai_ray.video import PICTURE_PARAM_SUFFIXES, load_param_picture

        is_picture = word.lower().endswith(PICTURE_PARAM_SUFFIXES)
        return load_param_picture(word[1:]) if is_picture else _read_vector(word[1:])
    return tuple(map(_parse_number, word.split(","))) if "," in word else _parse_number(word)


def _read_vector(path: str) -> tuple[float, ...]:
    import numpy as np

    from genai_ray.files import describe_error

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        allowed = "a file that numpy.save wrote, or the name of a picture: .png, .jpg, .jpeg or .webp"
        raise ConfigError(f"{path} cannot be read as an array: {describe_error(exc)}", allowed) from exc
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise ConfigError(f"{path} is no array of numbers", "a file that numpy.save wrote")
    return tuple(array.ravel().astype(float).tolist())


def _parse_number(word: str) -> float:
    try:
        return float(Fraction(word))
    except (OverflowError, ZeroDivisionError) as exc:
        raise ValueError(word) from exc
