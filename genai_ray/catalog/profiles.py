"""Options in YAML files: ``JobProfile`` of jobs; ``ServeProfile``, ``ModelServing``, ``WebOptions`` of endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from genai_ray.catalog.files import describe_fields, read_profile, read_yaml
from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision, parse_bytes

__all__ = ["JobProfile", "ModelServing", "ServeProfile", "WebOptions", "load_model_serving"]


_HOST_PATTERN = r"^(\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*)$"

_Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""A number of bytes, also as text with a unit."""


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


class _Profile(_Options):
    """A set of options with a name: one YAML file of a folder of ``configs``."""

    folder: ClassVar[str]
    """Folder of the packaged profiles in ``configs``."""

    name: str
    """Name of the profile."""
    description: str = ""
    """What it is for."""

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a profile.

        Args:
            name: Name of a packaged profile, or the path of a YAML file.

        Returns:
            The profile.

        Raises:
            ConfigError: If there is no such profile, or one of its fields is wrong.
        """
        return read_profile(cls.folder, name, cls)


class JobProfile(_Profile):
    """Options of a batch job that suit a kind of machine; options of the command line override them."""

    folder: ClassVar[str] = "engine"

    max_memory_bytes: _Bytes | None = None
    """Budget of the model cache: a number, or text such as ``2GB``; None for automatic."""
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


class WebOptions(_Options):
    """The key ``people`` of a serve profile: limits of pictures and videos, and where video jobs are kept."""

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


class ModelServing(_Options):
    """How one model is served."""

    backend: ModelBackend = ModelBackend.ONNX
    """The runtime."""
    precision: ModelPrecision = ModelPrecision.FP32
    """The number format."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The kind of device that computes."""
    device_kinds: tuple[str, ...] = ()
    """Words such as ``L4``: the name of the device must contain one of them; empty for any device."""
    max_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Most frames of different requests, or rows of a free first axis, that are merged into one call. None for 8
    frames, and for no merging of raw tensors, whose first axis need not be a batch."""
    batch_wait_timeout_s: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Most seconds that a request waits for others while its session is idle; 0 sends a lone request at once."""
    request_class: Literal["online", "batch"] = "online"
    """Whether its requests overtake those of batch jobs."""
    pin: bool = False
    """Whether it is loaded at the start and never evicted."""
    preload: bool = False
    """Whether it is loaded at the start."""
    min_replicas: Annotated[int, Field(ge=0)] = 0
    """Devices on which it stays loaded as long as the endpoint runs; 0 to load it at its first request."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """Most devices on which the cache loads it when it is hot; None for as many as have free memory. A batch job that
    leases it on more devices gets them."""
    max_frame: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """(height, width) in pixels of the largest expected frame; the warm-up runs it. Larger frames are tiled."""
    warmup_shapes: tuple[dict[str, tuple[Annotated[int, Field(gt=0)], ...]], ...] = ()
    """Shapes of the model's own tensors, by name, that the warm-up runs, one after the other; empty for none. An input
    of a fixed shape may be left out."""
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Fewest bytes to reserve; None for what is measured."""

    @model_validator(mode="after")
    def _check(self) -> ModelServing:
        if ModelBackend.AUTO is self.backend or ModelPrecision.AUTO is self.precision:
            raise ValueError("a served model needs a backend and a precision by name, not auto")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is less than min_replicas={self.min_replicas}")
        return self


class ServeProfile(_Profile):
    """Options of an endpoint; options of the command line override them."""

    folder: ClassVar[str] = "serve"

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port for HTTP."""
    grpc_port: Annotated[int, Field(ge=1, le=65535)] | None = 8001
    """Port for gRPC; None for no gRPC."""
    num_replicas: Annotated[int, Field(ge=1)] = 2
    """Processes that take requests; they hold no model."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Most of them, if their number scales with the requests; at most ``num_replicas`` for a fixed number."""
    requests_per_replica: Annotated[float, Field(gt=0)] = 32.0
    """Requests in each replica that scaling aims at."""
    cache: str = "default"
    """Name of the model cache."""
    max_memory_bytes: _Bytes | None = None
    """Budget of the cache: a number, or text such as ``2GB``; None for automatic, or for that of a running cache."""
    models: tuple[str, ...] | None = None
    """Catalog ids that are offered; None for every model whose file is on this machine."""
    model_repository: str | None = None
    """Folder, or URI of one, with ``NAME.onnx`` and ``NAME/1/model.onnx``."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Most seconds for one request, including a load that it waits for."""
    max_body_bytes: Annotated[int, Field(gt=0)] = 256 * 1024**2
    """Most bytes of one request, also after decompression."""
    max_bodies_bytes: Annotated[int, Field(gt=0)] | None = None
    """Most bytes of all requests in one replica together, compressed and decompressed; None for four times
    ``max_body_bytes``."""
    max_json_bytes: Annotated[int, Field(gt=0)] = 32 * 1024**2
    """Most bytes of JSON in one request, or of a gRPC message beside its raw tensors; their values may take twenty
    times as many. Binary tensors do not count, except for the lengths of strings: four bytes each."""
    max_frame_pixels: Annotated[int, Field(gt=0)] = 64 * 1024**2
    """Most pixels of one frame of a tensor of frames."""
    max_output_bytes: Annotated[int, Field(gt=0)] = 512 * 1024**2
    """Most bytes of one response."""
    max_results_bytes: Annotated[int, Field(gt=0)] | None = None
    """Most bytes of all results in one replica together, until they are sent; None for twice ``max_output_bytes``."""
    token_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """sha256, hexadecimal, of the token that requests must carry; None for no token. Health needs no token."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call, such as ``https://example.org``; ``*`` for all. Pages of other origins change
    nothing."""
    allowed_hosts: tuple[Annotated[str, Field(pattern=_HOST_PATTERN)], ...] = ()
    """Hosts that requests may name beside this machine's names and ``host``, such as ``box.lan``; ``.lan`` for all
    below it, ``*`` for all."""
    access_log: str | None = None
    """File that gets one line of JSON for each HTTP request, on every node; None for no log."""
    max_waiting: Annotated[int, Field(gt=0)] = 256
    """Most requests in one replica at the same time; further ones are refused."""
    max_waiting_per_model: Annotated[int, Field(gt=0)] | None = None
    """Most of them for one model, so that a slow model leaves room for others; None for three quarters."""
    serving: ModelServing = ModelServing()
    """How models without a file of their own are served."""
    people: WebOptions = WebOptions()
    """The routes for pictures and videos."""

    @model_validator(mode="after")
    def _check(self) -> ServeProfile:
        if self.max_bodies_bytes is not None and self.max_bodies_bytes < 2 * self.max_body_bytes:
            raise ValueError(
                f"max_bodies_bytes={self.max_bodies_bytes} is less than twice max_body_bytes={self.max_body_bytes}: "
                "a compressed body counts twice"
            )
        if self.max_results_bytes is not None and self.max_results_bytes < self.max_output_bytes:
            raise ValueError(
                f"max_results_bytes={self.max_results_bytes} is less than max_output_bytes={self.max_output_bytes}"
            )
        return self

    def override(self, **fields: Any) -> ServeProfile:
        """Return a profile with other values in some fields.

        Args:
            fields: The values by field.

        Returns:
            The profile.

        Raises:
            ConfigError: If a value is wrong.
        """
        try:
            return ServeProfile.model_validate(self.model_dump() | fields)
        except ValidationError as exc:
            raise ConfigError(describe_fields(exc)) from exc


def load_model_serving(path: Path | str) -> ModelServing:
    """Read how a model is served.

    Args:
        path: A ``NAME.serve.yaml``; also a URI.

    Returns:
        The options.

    Raises:
        ConfigError: If the file or one of its fields is wrong.
    """
    return read_yaml(path, ModelServing)
