"""What a segment needs before it is made: sessions, and memory."""

from __future__ import annotations

from collections.abc import Sequence

from genai_ray.catalog import ModelSpec
from genai_ray.cluster import SessionRequest
from genai_ray.enhance.plan.options import EnhanceOptions
from genai_ray.enhance.plan.size import find_input_size
from genai_ray.enhance.segment.chain import BATCHES_AHEAD, MAX_AHEAD_BYTES, MAX_BATCH_BYTES
from genai_ray.video import VideoInfo, predict_encoder_bytes

__all__ = ["find_requests", "predict_segment_bytes"]

RESAMPLED_BYTES_PER_PX = 60
"""Bytes per pixel of a frame that is resampled in 16 bits and converted for the encoder in float32."""


def find_requests(info: VideoInfo, specs: Sequence[ModelSpec], options: EnhanceOptions) -> tuple[SessionRequest, ...]:
    """Return the sessions that the chain needs, each for the largest frame that it will get.

    Args:
        info: Properties of the video.
        specs: The chain.
        options: The options of the video.

    Returns:
        One request for each model.

    Raises:
        ConfigError: If an input height is asked for that is larger than the video.
    """
    width, height = find_input_size(info, options.result_size)
    requests = []
    for spec in specs:
        request = SessionRequest(
            spec.model_id,
            options.backend,
            options.precision,
            device=options.device,
            max_frame=(height, width),
            tile_size_px=options.tile_size_px,
            device_kinds=options.device_kinds,
        )
        requests.append(request)
        height *= spec.scale
        width *= spec.scale
    return tuple(requests)


def predict_segment_bytes(
    size: tuple[int, int], bit_depth: int, made: tuple[int, int] | None = None, reduced: tuple[int, int] | None = None
) -> int:
    """Predict the memory of a task that makes one segment: frames in flight and the encoder, without the sessions.

    Args:
        size: (width, height) of the result in pixels.
        bit_depth: Bits of a component.
        made: (width, height) of what the chain makes, if it is resampled to the result; None for ``size``.
        reduced: (width, height) of the source, if its frames are reduced before the first model; else None.

    Returns:
        Bytes.
    """
    is_resampled = made is not None
    made = made or size
    frame_bytes = made[0] * made[1] * 3 * (1 if bit_depth <= 8 else 2)
    batch_bytes = max(frame_bytes, MAX_BATCH_BYTES)
    batches = min(BATCHES_AHEAD, MAX_AHEAD_BYTES // batch_bytes) + 2  # one is encoded, and one computed
    sides = (*((made, size) if is_resampled else ()), *((reduced,) if reduced is not None else ()))
    resampled = RESAMPLED_BYTES_PER_PX * sum(int(width * height) for width, height in sides)
    return batches * batch_bytes + 2 * frame_bytes + resampled + predict_encoder_bytes(size, bit_depth)
