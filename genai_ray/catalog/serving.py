"""Options of the endpoint: a profile, one YAML file of ``configs/serve`` each, and what a ``NAME.serve.yaml`` says of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from genai_ray.catalog.files import read_profile, read_yaml
from genai_ray.catalog.web_options import WebOptions
from genai_ray.errors import ConfigError
from genai_ray.types import ModelBackend, ModelPrecision

__all__ = ["ModelServing", "ServeProfile", "load_model_serving", "load_serve_profile"]


_HOST_PATTERN = r"^(\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*)$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelServing(_Frozen):
    """How one model is served."""

    backend: ModelBackend = ModelBackend.ONNX
    """The runtime."""
    precision: ModelPrecision = ModelPrecision.FP32
    """The number format."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes."""
    device_kinds: tuple[str, ...] = ()
    """Words of which the kind of its device must have one, such as ``L4``; empty for any."""
    max_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Most frames, or rows of a free first axis, of different requests that are merged into one call; None for 8 frames, and for no
    merging of raw tensors, whose first axis need not be a batch."""
    batch_wait_timeout_s: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Most seconds that a request waits for others while its session is idle; 0 sends a lone request at once."""
    request_class: Literal["online", "batch"] = "online"
    """Whether its requests overtake those of batch jobs."""
    pin: bool = False
    """Whether it is loaded at the start and kept from being evicted."""
    preload: bool = False
    """Whether it is loaded at the start."""
    min_replicas: Annotated[int, Field(ge=0)] = 0
    """On how many devices it is kept as long as the endpoint runs; 0 for where requests bring it."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """On how many devices it is at the most when the cache makes replicas of it since it is hot; None for wherever memory is free. A batch
    job that leases it on more devices gets them."""
    max_frame: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """(height, width) in pixels of the largest frame that will come; the warm-up runs it. Larger ones are tiled."""
    warmup_shapes: tuple[dict[str, tuple[Annotated[int, Field(gt=0)], ...]], ...] = ()
    """Shapes of the model's own tensors, of each input by name, that the warm-up runs, one after the other; empty for none. An input whose
    shape is fixed may be left out."""
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Bytes to reserve at the least; None for what is measured."""

    @model_validator(mode="after")
    def _check(self) -> ModelServing:
        if ModelBackend.AUTO is self.backend or ModelPrecision.AUTO is self.precision:
            raise ValueError("backend and precision of a served model are named, not auto")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is less than min_replicas={self.min_replicas}")
        return self


class ServeProfile(_Frozen):
    """Options of an endpoint; each is overridden by its own option of the command line."""

    name: str
    """Name of the profile."""
    description: str = ""
    """What it is for."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port for HTTP."""
    grpc_port: Annotated[int, Field(ge=1, le=65535)] | None = 8001
    """Port for gRPC; None for none."""
    num_replicas: Annotated[int, Field(ge=1)] = 2
    """Processes that take requests; they hold no model."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Most of them, where they scale with the requests; not more than ``num_replicas`` for always so many."""
    requests_per_replica: Annotated[float, Field(gt=0)] = 32.0
    """Requests in each replica that scaling keeps to."""
    cache: str = "default"
    """Name of the model cache."""
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Budget of the cache; None for automatic, or for the one that is there."""
    models: tuple[str, ...] | None = None
    """Ids of the catalog that are offered; None for every one whose file is here."""
    model_repository: str | None = None
    """Folder, or URI of one, with ``NAME.onnx`` and ``NAME/1/model.onnx``."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Most seconds for one request, a load that it waits for included."""
    max_body_bytes: Annotated[int, Field(gt=0)] = 256 * 1024**2
    """Most bytes of one request, and of what it unpacks to."""
    max_bodies_bytes: Annotated[int, Field(gt=0)] | None = None
    """Most bytes of all requests in one replica together, as they come and as they unpack; None for four times ``max_body_bytes``."""
    max_json_bytes: Annotated[int, Field(gt=0)] = 32 * 1024**2
    """Most bytes of JSON, or of a gRPC message beside its raw tensors, in one request, whose values may take twenty times as many; binary tensors do not
    count, but the lengths of their strings, of four bytes each, may not take more either."""
    max_frame_pixels: Annotated[int, Field(gt=0)] = 64 * 1024**2
    """Most pixels of one frame of a tensor of frames."""
    max_output_bytes: Annotated[int, Field(gt=0)] = 512 * 1024**2
    """Most bytes of what one request gets back."""
    max_results_bytes: Annotated[int, Field(gt=0)] | None = None
    """Most bytes of all results in one replica together, until they are sent; None for twice ``max_output_bytes``."""
    token_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """sha256 of the token that requests must bear, hexadecimal; None for none. Health is told to everybody."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call, such as ``https://example.org``; ``*`` for all. Pages of others change nothing."""
    allowed_hosts: tuple[Annotated[str, Field(pattern=_HOST_PATTERN)], ...] = ()
    """Hosts that requests may name beside this machine's names and ``host``, such as ``box.lan``; ``.lan`` for all
    below it, ``*`` for all."""
    access_log: str | None = None
    """File that gets one line of JSON for each request over HTTP, on every node; None for none."""
    max_waiting: Annotated[int, Field(gt=0)] = 256
    """Requests in one replica at the same time; more are told to come again."""
    max_waiting_per_model: Annotated[int, Field(gt=0)] | None = None
    """Of these for one model, so that a slow one leaves room for others; None for three quarters."""
    serving: ModelServing = ModelServing()
    """How models are served that have no file of their own."""
    people: WebOptions = WebOptions()
    """The routes for pictures and videos."""

    @model_validator(mode="after")
    def _check(self) -> ServeProfile:
        if self.max_bodies_bytes is not None and self.max_bodies_bytes < 2 * self.max_body_bytes:
            raise ValueError(
                f"max_bodies_bytes={self.max_bodies_bytes} is less than twice max_body_bytes={self.max_body_bytes}: a packed body counts twice"
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
            raise ConfigError(
                "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
            ) from exc


def load_serve_profile(name: str) -> ServeProfile:
    """Read a profile of the endpoint.

    Args:
        name: Name of a packaged profile, or the path of a YAML file.

    Returns:
        The profile.

    Raises:
        ConfigError: If there is no such profile, or a field of it is wrong.
    """
    return read_profile("serve", name, ServeProfile)


def load_model_serving(path: Path | str) -> ModelServing:
    """Read how a model is served.

    Args:
        path: A ``NAME.serve.yaml``; a URI does as well.

    Returns:
        The options.

    Raises:
        ConfigError: If the file or a field of it is wrong.
    """
    return read_yaml(path, ModelServing)
