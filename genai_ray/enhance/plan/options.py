"""The options of an ``enhance`` job, and the checks of models and numbers that need nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

from genai_ray.backends import check_device, check_precision, resolve_device
from genai_ray.catalog import ModelCatalog, ModelSpec, ParamSpec
from genai_ray.display import describe_fields
from genai_ray.enhance.plan.background import Background, parse_background
from genai_ray.enhance.plan.fields import check_fields
from genai_ray.enhance.plan.piece import Piece, parse_piece
from genai_ray.enhance.plan.size import ResultSize, parse_size
from genai_ray.enhance.plan.timeline import MAX_FACTOR, MAX_FPS, TIMESTEP, check_chain, check_rate, has_mask, parse_rate
from genai_ray.errors import ConfigError, InvalidInputError
from genai_ray.fields import check_ranges, refuse_unknown
from genai_ray.inspection import find_model
from genai_ray.session import check_tile_size
from genai_ray.tune import check_quality
from genai_ray.types import (
    CheckLevel,
    Deinterlace,
    FieldOrder,
    Fit,
    ModelBackend,
    ModelPrecision,
    ModelTask,
    ParamPicture,
    Params,
    SceneDetector,
    parse_bytes,
    take_fields,
)
from genai_ray.video import Encoding, TrackOptions, is_picture_text, parse_picture_text, parse_track_options

__all__ = [
    "EnhanceOptions",
    "Paths",
    "check_chain_options",
    "check_given",
    "check_models",
    "convert_params",
    "describe_tasks",
    "read_param",
]

Paths: TypeAlias = str | Path | Sequence[str | Path]
"""One or several."""


@describe_fields
@refuse_unknown
@dataclass(frozen=True, slots=True, kw_only=True)
class EnhanceOptions:
    """The options of an ``enhance`` job: everything except inputs, output and models.

    Words are taken for members: ``backend="openvino"``, ``background="blur"``; numbers for rates: ``fps=60``.

    Raises:
        ConfigError: If a name is not known, a value is of another type than its field, no word of it or out of its
            range, or values contradict each other.
    """

    backend: ModelBackend = ModelBackend.ONNX
    """The runtime; ``auto`` for the fastest one that agrees with ONNX Runtime in FP32, measured when the job begins."""
    precision: ModelPrecision = ModelPrecision.FP32
    """The number format; ``auto``, with backend ``auto`` only, for a lower one if it is faster."""
    min_quality_db: float | None = None
    """With backend ``auto``, the least PSNR in dB from ONNX Runtime in FP32, from 40 to 120; None for 40."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    params: Params = field(default_factory=dict)
    """Extra inputs by name, for every model of the chain that has one of that name: a number, a sequence of numbers, or
    a picture as a ``ParamPicture`` or an array (H, W, 3), which is resized to what the model takes and must be given.
    If the catalog names a scale for users, values of 1 or more are on that scale: ``sigma`` of ffdnet may be 15, for
    15/255."""
    encoding: Encoding = field(default_factory=Encoding)
    """Video encoder and its settings."""
    tile_size_px: int | None = None
    """Longest side of a tile, halo included; 0 for never; None for automatic."""
    start: str | float | Fraction | None = None
    """Where a piece of each video begins: seconds, ``"1:30.5"``, or ``"f250"`` for frame 250, counted from 0; its first
    frame is the first that is shown then or later. Zero is the beginning of the file. None for the first frame."""
    end: str | float | Fraction | None = None
    """Where it ends: the last frame is the last that begins before. None for the end of the video."""
    duration: str | float | Fraction | None = None
    """How long it is, instead of ``end``; ``"f250"`` for 250 frames."""
    preview: bool = False
    """Whether only 5 s from the middle of each video are enhanced, into ``NAME.preview.mp4`` for ``NAME.mp4``."""
    audio: str = "auto"
    """Sound of the results: ``auto`` copies each track that the container holds, and encodes the others as AAC, ALAC,
    FLAC or Opus, with a note; ``copy`` refuses a video with a track that cannot be copied; ``none``; or ``aac``,
    ``ac3``, ``alac``, ``flac``, ``mp3``, ``opus``, ``pcm_s16le``, ``pcm_s24le``: tracks of other codecs are encoded. In
    slow motion ``auto`` leaves it out, and ``stretch`` makes it as long as the pictures."""
    subtitles: str = "auto"
    """Subtitles of the results: ``auto`` copies each track that the container holds, converts text, and leaves out
    pictures that it cannot hold, with a note; ``copy`` refuses a video with a track that cannot be copied; ``none``."""
    streams: str | None = None
    """Tracks of sound and subtitles, by words and commas: ``2`` for stream 2, ``audio``, ``subtitles``, ``audio:0`` for
    the first track of sound, ``subtitles:eng`` or ``eng`` by language. None for all."""
    size: str | None = None
    """Both sides of results, such as ``"1920x1080"``, as players show them; None for what the chain makes."""
    width: int | None = None
    """Only the width, in pixels; the height follows."""
    height: int | None = None
    """Only the height, in pixels; the width follows."""
    scale: str | float | Fraction | None = None
    """Sides of results over those of their sources instead, such as 1.5 or ``"3/2"``."""
    fit: Fit | None = None
    """How a picture of another shape is put into ``size``: ``inside``, ``pad``, ``crop`` or ``stretch``; None for
    inside."""
    input_height: int | None = None
    """Height in pixels to which frames are reduced before the first model, for sources that were enlarged before."""
    deinterlace: Deinterlace = Deinterlace.AUTO
    """Which frames are deinterlaced: ``auto``, those that are flagged as interlaced; ``off``, none; ``frame``, all, one
    for one; ``field``, all, into one frame for each field; ``ivtc``, telecined film, into its own frames."""
    field_order: FieldOrder | None = None
    """The field that is shown first, ``top`` or ``bottom``, whatever the video says; None for what it says."""
    factor: int | None = None
    """Frames of the result for one of the source, if a model of the chain adds frames; None for 2."""
    fps: Fraction | None = None
    """Frames per second of the result instead; of a sequence of pictures, pictures per second."""
    slow_motion: int | None = None
    """How many times as long as its source the result is instead: so many frames for one, at the rate of the source.
    Sound is left out, or with ``audio="stretch"`` made as long at the same pitch."""
    scene_detector: SceneDetector = SceneDetector.AUTO
    """What finds cuts, across which no frame is added: ``transnetv2``, a network that finds fades and dissolves too;
    ``threshold``; or ``auto``, which is the network if it takes less than a tenth of the time in which frames are
    added, and ``threshold`` on a GPU or if ``scene_threshold`` is given."""
    scene_threshold: float | None = None
    """Similarity of neighbours in [0, 1] below which a cut lies between them; 0 for never. None for 0.3, or for what
    ``scene_detector`` says."""
    check: CheckLevel = CheckLevel.DEFAULT
    """How closely frames are compared with those of the source: ``off``, ``default`` or ``strict``, which also writes a
    record beside each video, for ``verify_video``."""
    background: Background | None = None
    """What replaces a background that is removed; None for chroma-key green, since most encoders have no alpha."""
    address: str | None = None
    """Ray cluster to join; None for a running one, or else one of this process alone."""
    overwrite: bool = False
    """Whether an existing output may be replaced."""
    allow_truncated: bool = False
    """Whether a file that ends too early is enhanced as far as it goes."""
    any_format: bool = False
    """Whether inputs may be files that name other files and hosts, such as playlists, which are then opened."""
    work_dir: str | Path | None = None
    """Folder (path or URI) of finished segments; None for ``<output>.genai-ray`` beside the output."""
    batch_size: int = 8
    """Frames in one call of a session; fewer if frames are large."""
    segment_frames: int = 128
    """Most frames in a segment, the unit of work and of resuming."""
    max_memory_bytes: int | str | None = None
    """Budget of the model cache: a number, or text such as ``2GB`` or ``512MiB``; None for automatic."""
    cache_name: str = "default"
    """Name of the model cache."""
    replicas: int | None = 1
    """Devices that each model is loaded on; None for every device, also those that join while the job runs."""
    device_kinds: tuple[str, ...] = ()
    """Words such as ``L4``: the kind of a device must have one of them; empty for any."""
    name: str = "{folder}{stem}{suffix}"
    """Names of results in an output folder: ``{folder}`` below the listed one, ``{stem}`` and ``{suffix}`` of the
    input, ``{index}`` in the job."""
    fail_fast: bool = False
    """Whether the first video that fails ends the job; otherwise the report lists it at the end."""

    @property
    def piece(self) -> Piece | None:
        """The piece of each video that is asked for; None for all of it.

        Raises:
            ConfigError: If ``start``, ``end`` or ``duration`` is wrong, or they contradict each other.
        """
        return parse_piece(self.start, self.end, self.duration, is_preview=self.preview)

    @property
    def tracks(self) -> TrackOptions:
        """What is asked of the tracks beside the pictures.

        Raises:
            ConfigError: If ``audio``, ``subtitles`` or ``streams`` is wrong, or they contradict each other.
        """
        return parse_track_options(self.audio, self.subtitles, self.streams)

    @property
    def result_size(self) -> ResultSize | None:
        """The size that is asked for; None for what the chain makes of frames as they are.

        Raises:
            ConfigError: As ``parse_size``.
        """
        return parse_size(
            self.size,
            width=self.width,
            height=self.height,
            scale=self.scale,
            fit=self.fit,
            input_height=self.input_height,
        )

    def __post_init__(self) -> None:
        take_fields(self)
        if isinstance(self.background, str):
            object.__setattr__(self, "background", parse_background(self.background))
        if self.fps is not None and not isinstance(self.fps, Fraction):
            object.__setattr__(self, "fps", parse_rate(str(self.fps)))
        if not isinstance(self.background, Background | None):
            raise ConfigError(f"background={self.background!r}", "a Background, or a word such as 'blur' or '#00b140'")
        if not isinstance(self.encoding, Encoding):
            raise ConfigError(f"encoding={self.encoding!r}", "an Encoding, such as Encoding(codec='hevc')")
        if not isinstance(self.params, Mapping):
            raise ConfigError(
                f"params={self.params!r}", "numbers by name, such as {'sigma': 15}, sequences of numbers, or pictures"
            )
        if self.max_memory_bytes is not None:
            parse_bytes(self.max_memory_bytes)
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ConfigError(f"{self.fps} frames per second", f"above 0, up to {MAX_FPS}")
        check_ranges(
            self,
            tile_size_px=(0, math.inf),
            factor=(2, MAX_FACTOR),
            slow_motion=(2, MAX_FACTOR),
            scene_threshold=(0, 1),
            batch_size=(1, math.inf),
            segment_frames=(1, math.inf),
            replicas=(1, math.inf),
        )
        if self.min_quality_db is not None:
            check_quality(self.min_quality_db)
        check_device(self.device)
        _check_backend(self)
        check_fields(self.deinterlace, self.field_order)
        _ = self.piece, self.tracks, self.result_size  # they raise


def check_models(models: Paths, options: EnhanceOptions, *, has_sequence: bool = False) -> tuple[ModelSpec, ...]:
    """Find the models of a chain and check the options against them, before anything is started.

    Args:
        models: Ids, aliases or paths, in the order in which frames pass them.
        options: The job's options.
        has_sequence: Whether an input of the job is a sequence of pictures, whose rate ``fps`` is.

    Returns:
        Their specs in the same order.

    Raises:
        ConfigError: If there is no model, ``enhance`` cannot use one, one does not allow such tiles, or an option or
            param fits none of them.
        InvalidInputError: If a param is out of its range.
        ModelNotFoundError: If a model is not known or its file is missing.
        ModelLoadError: If a model's file is corrupt or has a wrong sha256.
    """
    if isinstance(models, str | Path):
        models = [models]
    if not models:
        raise ConfigError(
            "no model is given",
            describe_tasks(),
            "Pass --preset balanced, or --model ID (models=[...]); `genai-ray models show ID` says what one is.",
        )
    if ModelBackend.AUTO is options.backend:
        resolve_device(options.device)
    else:
        check_precision(options.backend, options.precision)
        resolve_device(options.device, options.backend)
    specs = tuple(find_model(model)[0] for model in models)
    for spec in specs:
        check_tile_size(spec, options.tile_size_px)
    check_chain(specs)
    check_chain_options(specs, options, has_sequence=has_sequence)
    return specs


def _check_backend(options: EnhanceOptions) -> None:
    """Check that backend, precision and least quality go together."""
    backend, precision = options.backend, options.precision
    if ModelBackend.AUTO is backend:
        if precision not in (ModelPrecision.FP32, ModelPrecision.AUTO):
            raise ConfigError(f"precision {precision.value!r} of backend 'auto'", "fp32 or auto")
        return
    if ModelPrecision.AUTO is precision:
        raise ConfigError(f"precision 'auto' of backend {backend.value!r}", "backend 'auto'", "Pass --backend auto.")
    if options.min_quality_db is not None:
        raise ConfigError(
            f"a least quality of {options.min_quality_db:g} dB with backend {backend.value!r}",
            "backend 'auto'",
            "Pass --backend auto, or no --min-quality-db: every other precision must reach 40 dB.",
        )


def describe_tasks() -> str:
    """List the models that ``enhance`` can use, by what they are for.

    Returns:
        Such as ``denoising: ffdnet; interpolation: rife``.
    """
    catalog = ModelCatalog.default()
    found: dict[str, list[str]] = {}
    for spec in map(catalog.get, catalog.ids()):
        if spec.is_image_model:
            found.setdefault(spec.task.value, []).append(spec.model_id)
    return "; ".join(f"{task}: {', '.join(ids)}" for task, ids in sorted(found.items()))


def check_chain_options(specs: Sequence[ModelSpec], options: EnhanceOptions, *, has_sequence: bool = False) -> None:
    """Check options against the models of a chain.

    Args:
        specs: The chain.
        options: The options of the job, or of one video.
        has_sequence: Whether an input is a sequence of pictures, whose rate ``fps`` is.

    Raises:
        ConfigError: If no model has a param of that name, no model uses an option, or one is out of its range.
        InvalidInputError: If a param is out of its range.
    """
    _check_scenes(specs, options)
    check_rate(specs, options.factor, options.fps, options.slow_motion, has_sequence=has_sequence)
    options.tracks.check_speed(int(options.slow_motion or 1))
    if options.background is not None and not has_mask(specs):
        raise ConfigError(
            f"background {options.background.kind!r} without a model that removes it",
            "a chain with one",
            "Add --model selfie-segmentation.",
        )
    known = _params_of(specs)
    for name, value in options.params.items():
        if name not in known:
            raise ConfigError(f"param {name!r}, which no model of the chain has", ", ".join(sorted(known)) or "none")
        known[name].read(name, value)


def check_given(specs: Sequence[ModelSpec], options: Iterable[EnhanceOptions]) -> None:
    """Refuse a job whose models take pictures beside the frames that are not given.

    Args:
        specs: The chain.
        options: The options of each video; only read if a model takes such a picture.

    Raises:
        ConfigError: If one is not given.
    """
    needed = [(spec, name) for spec in specs for name in spec.picture_params]
    for own in options if needed else ():
        for spec, name in needed:
            if name not in own.params:
                raise ConfigError(
                    f"model {spec.model_id} without its picture {name!r}",
                    spec.params[name].describe_limits(),
                    f"Pass --param {name}=@FILE.png (params={{{name!r}: array}}).",
                )


def _check_scenes(specs: Sequence[ModelSpec], options: EnhanceOptions) -> None:
    is_asked = options.scene_threshold is not None or options.scene_detector is not SceneDetector.AUTO
    if is_asked and all(spec.task is not ModelTask.INTERPOLATION for spec in specs):
        raise ConfigError(
            "scene detector or threshold without a model that adds frames", "a chain with one", "Add --model rife."
        )
    if options.scene_threshold is None:
        return
    if options.scene_detector is SceneDetector.TRANSNETV2:
        raise ConfigError(
            f"scene threshold {options.scene_threshold} with scene detector 'transnetv2'",
            "one of them: a threshold is for the detector 'threshold'",
        )


def convert_params(specs: Sequence[ModelSpec], options: EnhanceOptions) -> EnhanceOptions:
    """Convert params that the user gave on another scale than the model's own.

    Args:
        specs: The chain.
        options: The options of the job, or of one video; checked already.

    Returns:
        The options with every param in its model's own unit.
    """
    known = _params_of(specs)
    return replace(options, params={name: known[name].in_own_unit(value) for name, value in options.params.items()})


def _params_of(specs: Sequence[ModelSpec]) -> dict[str, ParamSpec]:
    """Return what users may set: the time between two frames follows from ``factor`` and ``fps``."""
    return {
        name: param
        for spec in specs
        for name, param in spec.params.items()
        if (spec.task, name) != (ModelTask.INTERPOLATION, TIMESTEP)
    }


def read_param(column: str, value: Any) -> float | tuple[float, ...] | ParamPicture:
    """Read a model's param from a manifest.

    Args:
        column: Its column, for the error.
        value: A number, numbers with commas or as a list, or the text of a picture, as ``parse_picture_text`` takes it;
            never a file's name, since manifests come from others.

    Returns:
        A number, a tuple for a vector, or a picture.

    Raises:
        ConfigError: If it is none of them.
    """
    if is_picture_text(value):
        try:
            return parse_picture_text(value)
        except InvalidInputError as exc:
            raise ConfigError(f"{column}: {exc.got}", exc.allowed, exc.do) from exc
    is_vector = "," in value if isinstance(value, str) else isinstance(value, Iterable)
    try:
        if not is_vector:
            return float(value)
        return tuple(map(float, value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise ConfigError(
            f"{column} {str(value)[:40]!r} of a manifest",
            "a number, the numbers of a vector such as 0,0.5,1, or a picture as data:image/png;base64,",
            "Names of files are for --param.",
        ) from None
