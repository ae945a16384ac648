"""``POST /v1/enhance``: a picture in, a picture out; ``GET /v1/models``: which models there are."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genai_ray.catalog import ModelSpec, ParamValue
from genai_ray.errors import DeadlineExceededError, GenAIRayError, InvalidInputError
from genai_ray.serve.engine.engine import Engine
from genai_ray.serve.engine.inference import InferRequest, Tensor, datatype_of
from genai_ray.serve.engine.limits import ByteBudget, Share
from genai_ray.serve.engine.model_metadata import FRAMES, Target
from genai_ray.serve.engine.repository import ServedModel
from genai_ray.serve.http.bodies import hold_place, read_file
from genai_ray.serve.http.errors import without_folders
from genai_ray.serve.http.queries import Params, Query, check_given_once, parse_query
from genai_ray.serve.http.routes import BINARY, FILE, JSON, NAME, TEXT, Operation, Schema, list_of, map_of, record, ref
from genai_ray.types import ModelBackend, ModelPrecision, ModelPreset, ModelTask, full_range
from genai_ray.video.pictures.images import (
    FORMATS,
    Picture,
    PictureSize,
    check_encoding,
    decode_picture,
    encode_picture,
    measure_picture,
)

__all__ = ["SCHEMAS", "apply_output", "picture_operations", "to_frames"]

Array = npt.NDArray[Any]

_MAX_BYTES_PER_PIXEL = 12
"""16 bits, with alpha as a second picture."""
_LISTED_WITHIN_S = 5.0
"""Most seconds that a list of models waits for the metadata of new files."""

SCHEMAS: dict[str, Schema] = {
    "UploadForm": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": FILE},
        "patternProperties": {"^param\\.": FILE | {"description": "A picture that a model takes beside the file."}},
    },
    "Models": record(
        models=list_of(
            {
                "oneOf": [
                    record(name=NAME, error=NAME),
                    record(
                        name=NAME,
                        task={"enum": [task.value for task in ModelTask]},
                        **dict.fromkeys(("description", "purpose"), TEXT),
                        scale={"type": "integer", "minimum": 1},
                        presets=list_of({"enum": [preset.value for preset in ModelPreset]}),
                        takes_pictures={"type": "boolean"},
                        takes_videos={"type": "boolean"},
                        backend={"enum": [backend.value for backend in ModelBackend]},
                        precision={"enum": [precision.value for precision in ModelPrecision]},
                        params=map_of({"type": "object"}),
                    ),
                ]
            }
        )
    ),
}
"""Schemas of these routes by name."""


class _PictureQuery(Query):
    model: Annotated[str, Field(min_length=1)]
    params: Params = Field(default_factory=dict)
    format: Literal["png", "jpeg", "webp"] | SkipJsonSchema[None] = None
    """Format of the result; that of the picture by default."""
    image_quality: Annotated[int, Field(ge=1, le=100)] | SkipJsonSchema[None] = None
    """Quality of JPEG and WebP; 92 by default."""


def to_frames(picture: Picture, spec: ModelSpec) -> Array:
    """Return the model's input for a picture. Alpha that must be scaled becomes a second frame.

    Args:
        picture: The picture.
        spec: The model.

    Returns:
        (1 or 2, H, W, 3), the picture's dtype.
    """
    if picture.alpha is None or not _scales_alpha(picture, spec):
        return picture.rgb[None]
    return np.stack([picture.rgb, np.repeat(picture.alpha[..., None], 3, axis=2)])


def apply_output(picture: Picture, spec: ModelSpec, output: Array) -> Picture:
    """Make a picture of the model's output for ``to_frames``.

    Args:
        picture: The picture that went in.
        spec: The model.
        output: Frames (1 or 2, s*H, s*W, 3), or a mask (1, H, W, 1).

    Returns:
        The picture; a mask becomes alpha, multiplied by the alpha before.
    """
    alpha = picture.alpha
    if spec.task is ModelTask.BACKGROUND_REMOVAL:
        mask = output[0, ..., 0]
        if alpha is not None:
            mask = np.rint(alpha * (mask / full_range(mask.dtype))).astype(mask.dtype)
        return replace(picture, alpha=mask)
    if _scales_alpha(picture, spec):
        alpha = np.rint(output[1].mean(axis=2, dtype=np.float64)).astype(output.dtype)
    elif alpha is not None and spec.scale > 1:
        alpha = np.full(output.shape[1:3], alpha.flat[0], alpha.dtype)  # the same everywhere
    return replace(picture, rgb=output[0], alpha=alpha)


def picture_operations(engine: Engine) -> list[Operation]:
    """Return the rows of the route table for pictures.

    Args:
        engine: Computes.

    Returns:
        The rows.
    """
    api = _Api(engine)
    headers: dict[str, Schema] = {name: {"type": "string"} for name in ("Server-Timing", "X-Backend", "X-Precision")}
    headers["X-Model"] = {"type": "string", "description": "Name of the model, as UTF-8, percent-encoded."}
    return [
        Operation(
            "POST",
            "/v1/enhance",
            api.enhance,
            "enhance",
            "Enhance a picture: PNG, JPEG or WebP.",
            dict.fromkeys(FORMATS.values(), FILE),
            errors=(400, 404, 413, 429, 504),
            query=_PictureQuery,
            answer_headers=headers,
            body={BINARY: FILE, "multipart/form-data": ref("UploadForm")},
        ),
        Operation(
            "GET",
            "/v1/models",
            api.models,
            "models",
            "All models, and what they take.",
            {JSON: ref("Models")},
            errors=(400, 504),
        ),
    ]


class _Api:
    """The handlers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        profile = engine.profile
        self._room = ByteBudget(_MAX_BYTES_PER_PIXEL * profile.people.max_image_pixels + profile.max_output_bytes)
        """Bytes of the largest picture and its result."""

    async def models(self, request: Request) -> Response:
        parse_query(request, Query)
        models = self._engine.repository.models()
        return JSONResponse({"models": await asyncio.gather(*(self._describe(model) for model in models))})

    async def enhance(self, request: Request) -> Response:
        async with hold_place(request, self._engine.admission) as share:
            return await self._enhance(request, share)

    async def _enhance(self, request: Request, share: Share) -> Response:
        engine = self._engine
        query = parse_query(request, _PictureQuery)
        body, sent = await read_file(request, engine.profile.max_body_bytes, share)
        target = await engine.find(query.model)
        spec = target.metadata.spec
        _check_task(spec)
        words = _to_words(query.params, sent, spec)
        max_pixels = engine.profile.people.max_image_pixels
        within_s = engine.profile.request_timeout_s
        deadline = asyncio.get_running_loop().time() + within_s
        size = await engine.call(lambda: measure_picture(body, max_pixels=max_pixels))
        self._check_result(size, spec)
        async with contextlib.AsyncExitStack() as stack:
            async with _until(deadline, f"decoded within {within_s:g} s"):
                await stack.enter_async_context(self._room.hold(size.num_bytes * (1 + spec.scale**2)))
                began = time.perf_counter()
                picture = await engine.call(lambda: decode_picture(body, max_pixels=max_pixels))
            format_name = query.format or _usual_format(picture, spec)
            picture = _fit(picture, spec, format_name, query.image_quality)
            frames = to_frames(picture, spec)
            self._check_bytes(frames, spec)
            decoded = time.perf_counter()
            output = await self._infer(target, frames, words, deadline)
            inferred = time.perf_counter()
            async with _until(deadline, f"encoded within {within_s:g} s"):
                result = await engine.call(
                    lambda: encode_picture(apply_output(picture, spec, output), format_name, query.image_quality)
                )
            ended = time.perf_counter()
            await share.wait_for_result(len(result), max(0.0, deadline - asyncio.get_running_loop().time()))
            share.keep_result(len(result), is_written=True)
        parts = {"decode": decoded - began, "infer": inferred - decoded, "encode": ended - inferred}
        serving = target.model.serving
        headers = {
            "Server-Timing": ", ".join(f"{part};dur={1000 * seconds:.1f}" for part, seconds in parts.items()),
            "X-Model": quote(target.model.name),
            "X-Backend": serving.backend.value,
            "X-Precision": serving.precision.value,
            "Cache-Control": "no-store",
        }
        return Response(result, headers=headers, media_type=FORMATS[format_name])

    def _check_result(self, size: PictureSize, spec: ModelSpec) -> None:
        width = size.width * spec.scale
        height = size.height * spec.scale
        most = self._engine.profile.people.max_result_pixels
        if height * width > most:
            raise InvalidInputError(f"a result of {width}x{height}", f"{most} pixels", "Send a smaller picture.")

    def _check_bytes(self, frames: Array, spec: ModelSpec) -> None:
        num_bytes = frames.nbytes * spec.scale**2
        most = self._engine.profile.max_output_bytes
        if num_bytes > most:
            height, width = (side * spec.scale for side in frames.shape[1:3])
            depth = f"{8 * frames.itemsize} bits{' and alpha' if len(frames) > 1 else ''}"
            what = f"a result of {width}x{height} with {depth}, {num_bytes} bytes"
            raise InvalidInputError(what, f"{most} bytes", "Send a smaller picture, or one of 8 bits without alpha.")

    async def _infer(self, target: Target, frames: Array, words: Mapping[str, Any], deadline: float) -> Array:
        left_us = max(1, round((deadline - asyncio.get_running_loop().time()) * 1e6))
        asked = InferRequest(
            (Tensor(FRAMES, datatype_of(frames), frames),), parameters={FRAMES: True, "timeout": left_us, **words}
        )
        response = await self._engine.infer(target, asked)
        return response.outputs[0].array

    async def _describe(self, model: ServedModel) -> dict[str, Any]:
        try:
            spec = (await self._engine.find(model.name, within_s=_LISTED_WITHIN_S)).metadata.spec
        except GenAIRayError as exc:
            return {"name": model.name, "error": without_folders(exc)}
        return {
            "name": model.name,
            "task": spec.task.value,
            "description": spec.description,
            "purpose": spec.purpose,
            "scale": spec.scale,
            "presets": [preset.value for preset in spec.presets],
            "takes_pictures": _takes_pictures(spec),
            "takes_videos": spec.is_image_model and spec.task is not ModelTask.OTHER,
            "backend": model.serving.backend.value,
            "precision": model.serving.precision.value,
            "params": {name: param.model_dump() for name, param in spec.params.items()},
        }


@contextlib.asynccontextmanager
async def _until(deadline: float, what: str) -> AsyncIterator[None]:
    """Bound a step of a picture by its deadline, in the loop's time."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as exc:
        raise DeadlineExceededError(f"a picture was not {what}") from exc


def _fit(picture: Picture, spec: ModelSpec, format_name: str, quality: int | None) -> Picture:
    """Refuse a format that cannot hold the result. Alpha that is opaque everywhere is dropped for JPEG."""
    height, width = (side * spec.scale for side in picture.rgb.shape[:2])
    if spec.task is ModelTask.BACKGROUND_REMOVAL:
        check_encoding(replace(picture, alpha=picture.rgb[..., 0]), (width, height), format_name, quality)
        return picture
    alpha = picture.alpha
    if format_name == "jpeg" and alpha is not None and bool((alpha == full_range(alpha.dtype)).all()):
        picture = replace(picture, alpha=None)
    check_encoding(picture, (width, height), format_name, quality)
    return picture


def _to_words(params: Mapping[str, ParamValue], pictures: Mapping[str, bytes], spec: ModelSpec) -> dict[str, Any]:
    """Return params as parameters of a request for inference, whose own parameters are none of them."""
    check_given_once(params, pictures)
    unknown = next((name for name in (*params, *pictures) if name not in spec.params), None)
    if unknown is not None:
        got = f"parameter {unknown[:40]!r} for {spec.model_id}"
        raise InvalidInputError(got, f"{sorted(spec.params) or 'none'}")
    words = {name: ",".join(map(repr, value)) if isinstance(value, tuple) else value for name, value in params.items()}
    files = {name: base64.b64encode(file).decode() for name, file in pictures.items()}
    return words | {name: f"data:image/png;base64,{file}" for name, file in files.items()}


def _takes_pictures(spec: ModelSpec) -> bool:
    return spec.is_image_model and spec.task not in (ModelTask.OTHER, ModelTask.INTERPOLATION)


def _check_task(spec: ModelSpec) -> None:
    if not _takes_pictures(spec):
        raise InvalidInputError(
            f"{spec.model_id} ({spec.task.value}) for one picture",
            "a model that turns one picture into one picture",
            "GET /v1/models lists them.",
        )


def _usual_format(picture: Picture, spec: ModelSpec) -> str:
    """Return the format of the upload; PNG if the result has alpha and that format has none."""
    is_cut = spec.task is ModelTask.BACKGROUND_REMOVAL
    return "png" if is_cut and picture.format == "jpeg" else picture.format


def _scales_alpha(picture: Picture, spec: ModelSpec) -> bool:
    """Tell whether alpha passes through the model: if it is scaled, and not the same everywhere."""
    alpha = picture.alpha
    return spec.scale > 1 and alpha is not None and bool((alpha != alpha.flat[0]).any())
