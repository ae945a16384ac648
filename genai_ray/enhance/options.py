"""What an ``enhance`` job may be told, and the checks that need nothing but the options and the file system."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from genai_ray.backends import resolve_device
from genai_ray.catalog import ModelSpec
from genai_ray.errors import ConfigError, InvalidInputError, VideoError
from genai_ray.inspection import find_model
from genai_ray.types import ModelBackend, ModelPrecision, ModelTask
from genai_ray.video import SUFFIXES, Encoding, validate_encoding

__all__ = ["EnhanceOptions", "Target", "check_models", "resolve_targets"]

WORK_SUFFIX = ".genai-ray"
"""Added to an output's name, it is the folder of its finished segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhanceOptions:
    """Everything an ``enhance`` job may be told beside inputs, output and models."""

    backend: ModelBackend = ModelBackend.ONNX
    """The runtime."""
    precision: ModelPrecision = ModelPrecision.FP32
    """The number format."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    params: Mapping[str, float] = field(default_factory=dict)
    """Extra inputs by name, given to every model of the chain that has one of that name."""
    encoding: Encoding = field(default_factory=Encoding)
    """Video encoder and its settings."""
    tile_size_px: int | None = None
    """Longest side of a tile, halo included; 0 for never; None for automatic."""
    background: tuple[int, int, int] = (0, 177, 64)
    """RGB in [0, 255] that background removal puts behind the subject, since H.264 has no alpha: chroma-key green."""
    address: str | None = None
    """Ray cluster to join; None for the one around, or one of this process's own."""
    overwrite: bool = False
    """Whether an existing output may be replaced."""
    allow_truncated: bool = False
    """Whether a file that ends too early is enhanced as far as it goes."""
    work_dir: Path | None = None
    """Folder of finished segments; None for ``<output>.genai-ray`` beside the output."""
    batch_size: int = 8
    """Frames handed to a session at a time; fewer where frames are large."""
    segment_frames: int = 128
    """Most frames in a segment, the unit of work and of resuming."""
    max_memory_bytes: int | None = None
    """Budget of the model cache; None for automatic."""


@dataclass(frozen=True, slots=True)
class Target:
    """One video of a job."""

    source: Path
    """Where it is."""
    output: Path
    """Where its result goes."""
    work_dir: Path
    """Where its finished segments go."""


def check_models(models: Sequence[str | Path], options: EnhanceOptions) -> tuple[ModelSpec, ...]:
    """Find the models of a chain and hold the options against them, before anything is started.

    Args:
        models: Ids, aliases or paths, in the order in which frames pass them.
        options: The job's options.

    Returns:
        Their specs in the same order.

    Raises:
        ConfigError: If there is no model, a task cannot be done by ``enhance``, or an option or param fits none of them.
        InvalidInputError: If a param is out of its range.
        ModelNotFoundError: If a model is not known or its file is not there.
        ModelLoadError: If a model's file is corrupt or has a wrong sha256.
    """
    if not models:
        raise ConfigError("no model", "at least one model id or path", "Pass --model; `genai-ray models list` shows them.")
    if ModelBackend.AUTO is options.backend or ModelPrecision.AUTO is options.precision:
        raise ConfigError("backend or precision 'auto'", "a backend and a precision by name", "Use onnx and fp32.")
    resolve_device(options.device, options.backend)
    if options.batch_size < 1 or options.segment_frames < 1:
        raise ConfigError(f"batch_size={options.batch_size}, segment_frames={options.segment_frames}", "1 or more each")
    if not all(0 <= value <= 255 for value in options.background):
        raise ConfigError(f"background {options.background}", "three values from 0 to 255: red, green, blue")
    specs = tuple(find_model(model)[0] for model in models)
    for spec in specs:
        if not spec.is_image_model or spec.task in (ModelTask.OTHER, ModelTask.INTERPOLATION):
            raise ConfigError(f"{spec.model_id} ({spec.task.value}) in enhance", "models that turn one frame into one frame")
    known = {name: param for spec in specs for name, param in spec.params.items()}
    for name, value in options.params.items():
        if name not in known:
            raise ConfigError(f"param {name!r}", f"params of these models: {', '.join(sorted(known)) or 'none'}")
        if not known[name].minimum <= value <= known[name].maximum:
            raise InvalidInputError(f"param {name}={value}", f"from {known[name].minimum} to {known[name].maximum}")
    return specs


def resolve_targets(inputs: Sequence[Path], output: Path, options: EnhanceOptions) -> tuple[Target, ...]:
    """Pair every input with its output, and check what can be checked of both without opening a video.

    Args:
        inputs: Video files.
        output: A file for one input; a folder for several, where each result keeps its input's name.
        options: The job's options.

    Returns:
        The pairs, in the order of the inputs.

    Raises:
        VideoError: If an input is missing or is not a file.
        ConfigError: If outputs collide, exist, equal an input, have a suffix that is not written, or their folder is
            missing or not writable; or the encoder is not there.
    """
    if not inputs:
        raise ConfigError("no input", "at least one video file")
    to_folder = len(inputs) > 1 or output.is_dir()
    targets = []
    for source in inputs:
        if not source.is_file():
            raise VideoError(f"{source}: {'not a file' if source.exists() else 'no such file'}", "a video file")
        suffix = source.suffix.lower() if source.suffix.lower() in SUFFIXES else SUFFIXES[0]
        result = output / (source.stem + suffix) if to_folder else output
        work_dir = options.work_dir / (result.name + WORK_SUFFIX) if options.work_dir else result.with_name(result.name + WORK_SUFFIX)
        targets.append(Target(source, result, work_dir))
    doubled = {str(t.output) for t in targets if sum(t.output == u.output for u in targets) > 1}
    if doubled:
        raise ConfigError(f"two inputs for {', '.join(sorted(doubled))}", "inputs of different names, or one folder each")
    for target in targets:
        _check_output(target, inputs, options)
    return tuple(targets)


def _check_output(target: Target, inputs: Sequence[Path], options: EnhanceOptions) -> None:
    output, folder = target.output, target.output.parent
    validate_encoding(options.encoding, output.suffix.lower())
    if not folder.is_dir():
        raise ConfigError(f"output folder {folder} does not exist", do="Create it first.")
    for place in (folder, options.work_dir):
        if place is not None and place.is_dir():
            _check_writable(place)
    if any(output.exists() and source.exists() and output.samefile(source) for source in inputs):
        raise ConfigError(f"output {output} is an input", "another file", "The input is never replaced.")
    if output.is_dir():
        raise ConfigError(f"output {output} is a folder", f"a file name ending in {' or '.join(SUFFIXES)}")
    if output.exists() and not options.overwrite:
        raise ConfigError(f"output {output} exists", do="Choose another name, or pass --overwrite.")


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell of a read-only file system
            pass
    except OSError as exc:
        raise ConfigError(f"folder {folder} is not writable ({exc.strerror})", do="Choose another one, or change its permissions.") from exc
